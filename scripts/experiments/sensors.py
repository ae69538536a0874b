"""
A pre-trained model and labels of other sensors: from scratch, image resampled to EnMAP's bands, or model adapted.

    python scripts/experiments/sensors.py --model_name_or_path model_cards/hsst-enmap \\
        --budgets 5,20,100% --seeds 5 --real "Salinas-A=salinas" --radiance Salinas-A --output_dir outputs/sensors

Simulated sensors see one labelled scene of fine spectral resolution, which pre-training must not have seen
(--scene_seed), and with --scenes more for maps without labels. --real adds labelled scenes as LabelledScene reads them
(images/ and labels/, wavelengths). All three ways have the same architecture, labels, seeds and steps. Every run is a
row as soon as it is done; the same command resumes after an interruption. The output folder holds `sensors.json` and
`sensors.md`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from datasets_loading.files import write_json, write_text
from datasets_loading.labelled_data import LabelledData, Scene
from datasets_loading.labelled_scene import LabelledScene
from datasets_loading.land_cover_metric import land_cover_scores
from datasets_loading.resampling import resampled
from datasets_loading.sensors import ENMAP, Sensor
from datasets_loading.simulation.scene import simulate_scene
from datasets_loading.splits import split_by_blocks
from hsst.experiments.baselines import (
    choose_window_size,
    known_classes,
    load_config,
    load_processor,
    run_model,
    starting_point,
    warn_of_untrained_classes,
)
from hsst.experiments.label_efficiency import (
    Experiment,
    add_run_arguments,
    arrays_fingerprint,
    checkpoint_fingerprint,
    described,
    paired_difference,
    parse_budgets,
    percent,
    plan_runs,
    pooled_scores,
    quiet_libraries,
    run_experiment,
    summarise,
)
from hsst.run_classification import given_settings, options_of
from hsst.support.command_line import HelpFormatter, check_least, one_line_errors, parse_named
from hsst.support.reports import markdown_table
from hsst.support.training_settings import FineTuningSettings, ModelOptions, check_model, settings_for
from modeling_hsst.bands_hsst import nearest_spacing, spectral_weights, uncovered_bands

SCRATCH, RESAMPLED, ADAPTED = "scratch", "resampled", "adapted"
WAYS = {SCRATCH: "from scratch", RESAMPLED: "resampled to EnMAP", ADAPTED: "adapted"}
DIRECTION = "blocks"
SHARES = (0.5, 0.0, 0.5)
"""Of the blocks that are for training, validation and test."""

KEPT = ("model", "budget", "budget_title", "labels", "seeds", "parameters", "overall_accuracy", "average_accuracy")
"""What a result file keeps of each way and budget."""

COMPARED = {
    "overall_accuracy": ("difference", "differences", "of_scenes"),
    "average_accuracy": ("average_difference", "average_differences", "average_of_scenes"),
}
"""Scores that ways are compared by; a result file's names of differences without labels, of those with labels, and of
the scores of each scene without labels."""

FINE_SPACING = 5.0
FINE_CENTRES = np.arange(400.0, 2497.5, FINE_SPACING)
"""Band centres in nm of the scene that sensors are made from: what the simulator covers."""
WATER_VAPOUR_RANGES = ((1340.0, 1460.0), (1800.0, 1960.0))
"""Wavelengths in nm at which the atmosphere lets no light through: bands there hold no data."""

SIMULATED_SENSORS = {
    "48 bands, 374 to 1047 nm": (48, 374.0, 1047.0),
    "120 bands, 400 to 800 nm": (120, 400.0, 800.0),
    "285 bands, 380 to 2490 nm": (285, 380.0, 2490.0),
}
"""Number of bands, first and last centre in nm of each simulated sensor; bands are as wide as they are apart."""


@dataclass(frozen=True)
class SensorData:
    """
    Labelled scenes of one sensor, with the full width at half maximum of each band in nm, (bands,), or None. Where the
    numbers are not reflectance, every way standardises by its training area. Models that have the classes are tested
    on `other_scenes`, too, without a label of the sensor.
    """

    title: str
    data: LabelledData
    fwhm: np.ndarray | None = None
    is_reflectance: bool = True
    other_scenes: tuple[LabelledData, ...] = ()


def make_sensor(name: str) -> Sensor:
    """One of `SIMULATED_SENSORS`."""
    count, first, last = SIMULATED_SENSORS[name]
    spacing = (last - first) / (count - 1)
    return Sensor(name, tuple(np.linspace(first, last, count).tolist()), (spacing,) * count)


def simulate_sensors(
    names: Sequence[str], *, size: int, seed: int, block_size: int, window_size: int, num_scenes: int = 1
) -> list[SensorData]:
    """
    The same labelled scenes, seen by each sensor, all but the first for tests without labels. Scenes have the seeds
    from `seed` on. Half of the blocks are for training, half for test, with the radius of a window between them.
    """
    sensors = [make_sensor(name) for name in names]
    fine = Sensor("fine", tuple(FINE_CENTRES.tolist()), (FINE_SPACING,) * len(FINE_CENTRES))
    made: list[list[LabelledData]] = [[] for _ in sensors]
    for number in tqdm(range(num_scenes), desc="simulated scenes", disable=num_scenes == 1):
        scene = simulate_scene(size, size, seed=seed + number, sensor=fine, cloud_cover=0.0, swath=False)
        split = split_by_blocks(
            {"scene": scene.labels}, block_size=block_size, buffer=window_size // 2, shares=SHARES, seed=0
        )
        for sensor, data in zip(sensors, made, strict=True):
            seen = Scene("scene", seen_by(scene.cube, sensor), scene.labels)
            data.append(LabelledData([seen], scene.class_names, np.array(sensor.wavelengths), split))
    return [
        SensorData(sensor.name, data[0], np.array(sensor.fwhm), other_scenes=tuple(data[1:]))
        for sensor, data in zip(sensors, made, strict=True)
    ]


def seen_by(cube: np.ndarray, sensor: Sensor) -> np.ndarray:
    """
    Stored numbers of a sensor's bands, int16 (its bands, height, width), from those at `FINE_CENTRES`. Beyond the ends
    of these, spectra are taken as constant; bands within water vapour hold nodata.
    """
    beyond = 12  # bands at each end, 60 nm in all
    longer = FINE_CENTRES[0] + FINE_SPACING * np.arange(-beyond, len(FINE_CENTRES) + beyond)
    weights = spectral_weights(longer, np.full(len(longer), FINE_SPACING), sensor.wavelengths, sensor.fwhm)
    inner = weights[:, beyond:-beyond].copy()
    inner[:, 0] += weights[:, :beyond].sum(axis=1)
    inner[:, -1] += weights[:, -beyond:].sum(axis=1)
    used = np.flatnonzero(inner.any(axis=0))
    seen, centres = resampled(cube[used], inner[:, used]), np.asarray(sensor.wavelengths)
    for low, high in WATER_VAPOUR_RANGES:
        seen[(low < centres) & (centres < high)] = ENMAP.nodata
    return seen


def resampled_to_checkpoint(sensor_data: SensorData, checkpoint: str) -> tuple[LabelledData, int]:
    """Data with the bands of a checkpoint, and how many of these the sensor does not cover.

    Those hold the checkpoint's mean everywhere, which is 0 after standardising.
    """
    data, processor = sensor_data.data, load_processor(checkpoint)
    if data.wavelengths is None or processor.wavelengths is None:
        raise ValueError(f"{sensor_data.title}: expected wavelengths of the data and of {checkpoint}, got none")
    bands, wanted = np.flatnonzero(data.valid_bands), np.asarray(processor.wavelengths)
    given = data.wavelengths[bands]
    widths = nearest_spacing(given) if sensor_data.fwhm is None else sensor_data.fwhm[bands]
    wanted_widths = np.interp(wanted, ENMAP.wavelengths, ENMAP.fwhm)
    missing = uncovered_bands(given, widths, wanted, wanted_widths)
    covered = np.setdiff1d(np.arange(len(wanted)), missing)
    if not len(covered):
        raise ValueError(f"{sensor_data.title}: expected bands of {checkpoint} among its own, got none")
    weights = np.zeros((len(wanted), data.num_bands))
    weights[np.ix_(covered, bands)] = spectral_weights(given, widths, wanted[covered], wanted_widths[covered])
    mean = np.zeros(len(wanted)) if processor.image_mean is None else np.asarray(processor.image_mean)
    filling = np.rint(mean * processor.scale).astype(np.int16)
    used = np.flatnonzero(weights.any(axis=0))
    scenes = []
    for scene in data.scenes:
        cube = resampled(scene.cube[used], weights[:, used])
        cube[missing] = np.where(scene.valid, filling[missing, None, None], ENMAP.nodata)
        scenes.append(Scene(scene.name, cube, scene.labels, scene.crs, scene.transform))
    return replace(data, scenes=scenes, wavelengths=wanted), len(missing)


def adapting(sensor_data: SensorData, options: ModelOptions) -> ModelOptions:
    """Of models that start from the checkpoint, adapted to the bands of a sensor."""
    return replace(options, adapt_bands=True, statistics=None if sensor_data.is_reflectance else "training")


def check_sensor(sensor_data: SensorData, settings: Mapping[str, Any], options: ModelOptions) -> None:
    """Raises ValueError where `compare_ways` would, before anything is trained."""
    assert options.checkpoint is not None  # main looks
    resampled_to_checkpoint(sensor_data, options.checkpoint)
    check_model("hsst", settings_for("hsst", settings), adapting(sensor_data, options))
    starting_point(sensor_data.data, adapting(sensor_data, options))
    if settings.get("head_start") == "checkpoint":
        config, names = load_config(options.checkpoint), sensor_data.data.class_names
        known_classes(config, names, options.checkpoint, options.merged)


def compare_ways(
    sensor_data: SensorData,
    folder: str | Path,
    budgets: Sequence[str],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    options: ModelOptions,
    description: Mapping[str, Any],
    *,
    checkpoint_learning_rate: float | None = None,
    processes: int | None = None,
) -> dict[str, Any]:
    """
    Trains and tests all three ways on one sensor, each run a row in a folder for each way as soon as it is done; rows
    of another description are refused. The two ways that start from the checkpoint have its learning rate, where one
    is given.

    Returns:
        What the rows say, as JSON can hold it; under "unlabelled", how good the resampled and the adapted way are
        without a label of the sensor, on the test areas of all its scenes, where the settings have
        `head_start="checkpoint"`.
    """
    assert options.checkpoint is not None and sensor_data.data.wavelengths is not None  # check_sensor looks
    resampled, num_missing = resampled_to_checkpoint(sensor_data, options.checkpoint)
    pretrained = adapting(sensor_data, options)
    start = starting_point(sensor_data.data, pretrained)
    from_scratch = {name: value for name, value in settings.items() if name != "head_start"}
    rate = {} if checkpoint_learning_rate is None else {"learning_rate": checkpoint_learning_rate}
    ways: dict[str, Any] = {}
    unlabelled: dict[str, list[dict[str, Any]]] = {}
    pooled: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for way in WAYS:
        model = "hsst-scratch" if way == SCRATCH else "hsst"
        data = resampled if way == RESAMPLED else sensor_data.data
        experiment = Experiment(
            {DIRECTION: data},
            replace(pretrained, statistics="training", merged={}) if way == SCRATCH else pretrained,
            from_scratch if way == SCRATCH else {**settings, **rate},
            {**description, "sensor": sensor_data.title, "way": way},
        )
        runs = plan_runs([model], budgets, seeds, [DIRECTION])
        rows = run_experiment(experiment, runs, Path(folder) / way, processes=processes)
        entries = summarise(rows, [DIRECTION], data.class_names)["results"]
        ways[way] = [{name: entry[name] for name in KEPT} for entry in entries]
        pooled[way] = {}
        for (_, budget, seed), scores in pooled_scores(rows, [DIRECTION]).items():
            pooled[way].setdefault(budget, {})[seed] = scores
        if settings.get("head_start") == "checkpoint" and way != SCRATCH:
            untrained = replace(settings_for(model, settings), max_steps=0, num_epochs=None)
            unlabelled[way] = []
            for scene in tqdm([sensor_data.data, *sensor_data.other_scenes], desc=f"{WAYS[way]}, no labels"):
                if way == RESAMPLED:
                    scene = resampled_to_checkpoint(replace(sensor_data, data=scene), options.checkpoint)[0]
                outcome = run_model(model, scene, untrained, experiment.options, labelled_only=True)
                unlabelled[way].append(land_cover_scores(outcome.confusion))
    differences: dict[str, Any] = {name: {} for _, name, _ in COMPARED.values()}
    for score, (_, name, _) in COMPARED.items():
        for other in (SCRATCH, RESAMPLED):
            differences[name][other] = {
                budget: {**_difference(own, pooled[other][budget], score), "seeds": len(own)}
                for budget, own in pooled[ADAPTED].items()
            }
    return {
        "title": sensor_data.title,
        "bands": int(sensor_data.data.valid_bands.sum()),
        "range": sensor_data.data.wavelengths[[0, -1]].tolist(),
        "filled_bands": num_missing,
        "is_reflectance": sensor_data.is_reflectance,
        "adaptation": "bands taken as they are" if start.adaptation is None else str(start.adaptation),
        "ways": ways,
        "unlabelled": _unlabelled(unlabelled) if unlabelled else {},
        **differences,
    }


def _unlabelled(scores: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Scores of each way without labels over the scenes, and the adapted model's less those of the other."""
    ways: dict[str, dict[str, Any]] = {}
    for way, of_way in scores.items():
        values = {name: [scene[name] for scene in of_way] for name in COMPARED}
        ways[way] = {name: described(values[name]) for name in COMPARED}
        ways[way] |= {of_scenes: values[name] for name, (_, _, of_scenes) in COMPARED.items()}
    own, others = (dict(enumerate(scores[way])) for way in (ADAPTED, RESAMPLED))
    differences = {difference: _difference(own, others, name) for name, (difference, _, _) in COMPARED.items()}
    return {"scenes": len(own), "ways": ways, **differences}


def _difference(
    scores: Mapping[int, Mapping[str, Any]], others: Mapping[int, Mapping[str, Any]], name: str
) -> dict[str, Any]:
    """A score less another's, seed by seed or scene by scene."""
    paired = paired_difference(scores, others, name)
    return {**(paired["difference"] or {}), "better_in": paired["better_in"]}


def sensor_table(result: Mapping[str, Any], score: str = "overall_accuracy") -> str:
    """Markdown of `sensors.json`: a score (one of `COMPARED`) in percent, the best in bold."""
    rows = []
    without_labels, with_labels, of_scenes = COMPARED[score]
    for sensor in result["sensors"]:
        # What the first cell says, the score of each way, and the differences of the adapted one to the others
        lines: list[tuple[str, dict[str, Any], list[str]]] = []
        if unlabelled := sensor.get("unlabelled"):
            number, of_way = unlabelled["scenes"], unlabelled.get("ways", {})
            if not of_way or not all(of_scenes in values for values in of_way.values()):
                raise ValueError(f"{sensor['title']}: expected a result of this version of sensors.py")
            all_scenes = {way: values[score] for way, values in of_way.items()}
            labels = f"none ({number} scenes)" if number > 1 else "none"
            lines.append((labels, all_scenes, ["–", percent(unlabelled[without_labels])]))
            if number > 1:
                first = {way: described(values[of_scenes][:1]) or {} for way, values in of_way.items()}
                own = percent(described([first[ADAPTED]["mean"] - first[RESAMPLED]["mean"]]))
                lines.append(("none, the scene of the labels", first, ["–", own]))
        for number, entry in enumerate(sensor["ways"][ADAPTED]):
            of_ways = {way: sensor["ways"][way][number][score] for way in WAYS}
            texts = [percent(sensor[with_labels][other][entry["budget"]]) for other in (SCRATCH, RESAMPLED)]
            lines.append((f"{entry['budget_title']} ({entry['labels']:,.0f})", of_ways, texts))
        for labels, of_ways, differences in lines:
            best = max(scores["mean"] for scores in of_ways.values())
            cells = [percent(of_ways.get(way), way in of_ways and of_ways[way]["mean"] == best) for way in WAYS]
            if sensor["filled_bands"]:
                cells[list(WAYS).index(RESAMPLED)] += " *"
            title = sensor["title"] + ("" if sensor["is_reflectance"] else " (radiance)")
            rows.append([title, labels, *cells, *differences])
    header = ["sensor", "labels", *WAYS.values(), "adapted – from scratch", "adapted – resampled"]
    note = "\n\n\\* Bands of the model that the sensor does not cover hold their mean."
    return markdown_table(header, rows) + (note if any(each["filled_bands"] for each in result["sensors"]) else "")


def real_sensors(arguments: argparse.Namespace, window_size: int) -> Iterator[SensorData]:
    """The labelled scenes of --real."""
    folders = parse_named("real", "NAME=FOLDER", arguments.real)
    unknown = sorted(set(arguments.radiance) - set(folders))
    if unknown:
        raise ValueError(
            f"--radiance: expected names given by --real ({', '.join(folders) or 'none'}), got {unknown[0]}"
        )
    split = {"window_size": window_size, "block_size": arguments.block_size, "shares": SHARES}
    for name, folder in folders.items():
        data = LabelledScene(data_dir=folder, **split).data
        yield SensorData(name, data, is_reflectance=name not in arguments.radiance)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_run_arguments(parser, "5,20,100%")
    data = parser.add_argument_group("sensors")
    data.add_argument(
        "--sensors",
        nargs="*",
        choices=tuple(SIMULATED_SENSORS),
        default=list(SIMULATED_SENSORS),
        help="simulated sensors (all); nothing after it: none",
    )
    for name, default, text in (
        ("scene_size", 192, "side of the simulated scene in pixels"),
        ("scene_seed", 900001, "its seed, none of the pre-training's"),
        ("scenes", 1, "scenes that are mapped without labels, with --head_start checkpoint"),
        ("block_size", 24, "side of the blocks of the splits, in pixels"),
    ):
        data.add_argument(f"--{name}", type=int, default=default, help=text)
    data.add_argument("--real", action="append", default=[], metavar="NAME=FOLDER", help="a real labelled scene")
    data.add_argument(
        "--radiance", nargs="*", default=[], metavar="NAME", help="real scenes whose numbers are no reflectance"
    )
    text = "of the two ways that start from the checkpoint (--learning_rate): a trained classifier needs smaller steps"
    data.add_argument("--checkpoint_learning_rate", type=float, help=text)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    quiet_libraries()
    with one_line_errors("sensors.py"):
        check_least(arguments, 1, "seeds", "scenes", "processes")
        check_least(arguments, 0, "checkpoint_learning_rate")
        if arguments.scenes > 1 and arguments.head_start != "checkpoint":
            raise ValueError("--scenes: expected --head_start checkpoint, without which no scene is mapped unlabelled")
        if arguments.model_name_or_path is None:
            raise ValueError("--model_name_or_path: expected a pre-trained HSST, got none")
        for name in ("adapt_bands", "config_overrides", "statistics"):
            if getattr(arguments, name):
                raise ValueError(f"--{name} cannot be set here: each of the compared ways sets its own.")
        budgets = parse_budgets(arguments.budgets)
        settings, options = given_settings(arguments), options_of(arguments)
        checkpoint, learning_rate = arguments.model_name_or_path, arguments.checkpoint_learning_rate
        rates = {} if learning_rate is None else {"checkpoint_learning_rate": learning_rate}
        window_size = choose_window_size(FineTuningSettings(**settings), options, load_config(checkpoint))
        options = replace(options, window_size=window_size)
        sensors = list(real_sensors(arguments, window_size))
        if arguments.sensors:
            size, seed, block_size = arguments.scene_size, arguments.scene_seed, arguments.block_size
            given = {"size": size, "seed": seed, "block_size": block_size, "num_scenes": arguments.scenes}
            sensors = [*simulate_sensors(arguments.sensors, window_size=window_size, **given), *sensors]
        if not sensors:
            raise ValueError("--sensors, --real: expected a sensor, got none")
        for sensor in sensors:
            check_sensor(sensor, settings, options)
        results = []
        for sensor in sensors:
            warn_of_untrained_classes(sensor.data)
            description = {
                "checkpoint": checkpoint_fingerprint(checkpoint),
                "labels": arrays_fingerprint(sensor.data.labels),
                "pixels": arrays_fingerprint({scene.name: scene.cube for scene in sensor.data.scenes}),
                "bands": [] if sensor.data.wavelengths is None else sensor.data.wavelengths.tolist(),
                "is_reflectance": sensor.is_reflectance,
                "split": sensor.data.split.settings,
                "settings": settings,
                "options": asdict(replace(options, checkpoint=None)),
                **rates,
            }
            folder = arguments.output_dir / re.sub(r"[^a-z0-9]+", "-", sensor.title.lower()).strip("-")
            shared = (budgets, range(arguments.seeds), settings, options, description)
            results.append(compare_ways(sensor, folder, *shared, **rates, processes=arguments.processes))
        result = {
            "sensors": results,
            "model": Path(checkpoint).name,
            **{name: getattr(arguments, name) for name in ("seeds", "scene_seed", "scene_size")},
            "settings": asdict(FineTuningSettings(**settings)),
            **rates,
        }
        table = sensor_table(result)
        write_text(arguments.output_dir / "sensors.md", table + "\n")
        path = write_json(arguments.output_dir / "sensors.json", result)
    print(f"{table}\n\nResults: {path}")


if __name__ == "__main__":
    main()

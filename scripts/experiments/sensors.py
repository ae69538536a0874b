"""What to do with a model of one sensor and labels of another: start anew, resample the image, or adapt the model.

Sensors are simulated from one labelled scene of fine spectral resolution that was left out of pre-training, or real.
All three ways have the same architecture, labels, seeds and steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from datasets_loading.files import written_whole
from datasets_loading.labelled_data import LabelledData, Scene
from datasets_loading.land_cover_metric import land_cover_scores
from datasets_loading.sensors import ENMAP, Sensor
from datasets_loading.simulation.scene import simulate_scene
from datasets_loading.splits import split_by_blocks
from hsst.experiments.baselines import (
    ModelOptions,
    check_model,
    known_classes,
    load_config,
    load_processor,
    run_model,
    settings_for,
    starting_point,
)
from hsst.experiments.label_efficiency import (
    Experiment,
    described,
    percent,
    plan_runs,
    pooled_scores,
    run_experiment,
    summarise,
)
from modeling_hsst.bands_hsst import nearest_spacing, spectral_weights, uncovered_bands

SCRATCH, RESAMPLED, ADAPTED = "scratch", "resampled", "adapted"
WAYS = {SCRATCH: "from scratch", RESAMPLED: "resampled to EnMAP", ADAPTED: "adapted"}
WAY_COLOURS = {SCRATCH: "#888888", RESAMPLED: "#1b6ca8", ADAPTED: "#d1495b"}
DIRECTION = "blocks"
KEPT = ("model", "budget", "budget_title", "labels", "seeds", "parameters", "overall_accuracy", "average_accuracy")
"""What a result file keeps of each way and budget."""

DIFFERENCES = {
    "overall_accuracy": ("difference", "differences"),
    "average_accuracy": ("average_difference", "average_differences"),
}
"""Scores that ways are compared by; what a result file calls differences without labels, and with them."""

FINE_SPACING = 5.0
FINE_RANGE = (400.0, 2495.0)
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
    """Labelled data of one sensor.

    Attributes:
        title: of the sensor, for people.
        data: scenes with labels and split.
        fwhm: full width at half maximum of each band in nm, (bands,), or None.
        is_reflectance: whether the numbers are reflectance; otherwise every way standardises by its training area.
        other_scenes: further scenes with labels and split, on which ways that know the classes are tested without a
            label of the sensor.
    """

    title: str
    data: LabelledData
    fwhm: np.ndarray | None = None
    is_reflectance: bool = True
    other_scenes: tuple[LabelledData, ...] = ()


def make_sensor(name: str) -> Sensor:
    """One of `SIMULATED_SENSORS`.

    Raises:
        ValueError: there is no such sensor.
    """
    if name not in SIMULATED_SENSORS:
        raise ValueError(f"expected a sensor among {'; '.join(SIMULATED_SENSORS)}, got {name}")
    count, first, last = SIMULATED_SENSORS[name]
    return Sensor(
        name, tuple(np.linspace(first, last, count).tolist()), (float((last - first) / (count - 1)),) * count
    )


def simulate_sensors(
    names: Sequence[str], *, size: int, seed: int, block_size: int, window_size: int, num_scenes: int = 1
) -> list[SensorData]:
    """The same labelled scenes, seen by each sensor.

    Scenes are simulated with bands of 5 nm from 400 to 2495 nm, which is what the simulator covers; beyond its ends
    spectra are taken as constant. Half of the blocks are for training, half for test.

    Args:
        names: keys of `SIMULATED_SENSORS`.
        size: side of a scene in pixels.
        seed: of the first scene, the others have the next ones; they must be none of the pre-training's.
        block_size: side of the blocks of the split, in pixels.
        window_size: side of the largest window, in pixels: the buffer between blocks is its radius.
        num_scenes: scenes; all but the first are for tests without labels.

    Raises:
        ValueError: a sensor is unknown, or a scene is too small for the split.
    """
    sensors = [make_sensor(name) for name in names]
    centres = np.arange(FINE_RANGE[0], FINE_RANGE[1] + FINE_SPACING / 2, FINE_SPACING)
    fine = Sensor("fine", tuple(centres.tolist()), (FINE_SPACING,) * len(centres))
    made: list[list[LabelledData]] = [[] for _ in sensors]
    for number in tqdm(range(num_scenes), desc="simulated scenes", disable=num_scenes == 1):
        scene = simulate_scene(size, size, seed=seed + number, sensor=fine, cloud_cover=0.0, swath=False)
        split = split_by_blocks(
            {"scene": scene.labels}, block_size=block_size, buffer=window_size // 2, shares=(0.5, 0.0, 0.5), seed=0
        )
        for sensor, data in zip(sensors, made, strict=True):
            seen = Scene("scene", seen_by(scene.cube, centres, np.array(fine.fwhm), sensor), scene.labels)
            data.append(LabelledData([seen], scene.class_names, np.array(sensor.wavelengths), split))
    return [
        SensorData(sensor.name, data[0], np.array(sensor.fwhm), other_scenes=tuple(data[1:]))
        for sensor, data in zip(sensors, made, strict=True)
    ]


def seen_by(cube: np.ndarray, wavelengths: np.ndarray, fwhm: np.ndarray, sensor: Sensor) -> np.ndarray:
    """Stored numbers of a sensor's bands, int16 (its bands, height, width), from those of a finer one.

    Bands within water vapour hold nodata. Arguments as in `spectral_weights`.
    """
    before = np.arange(wavelengths[0] - 60.0, wavelengths[0] - 1.0, FINE_SPACING)
    after = np.arange(wavelengths[-1] + FINE_SPACING, wavelengths[-1] + 60.0, FINE_SPACING)
    longer = np.concatenate([before, wavelengths, after])
    widths = np.pad(fwhm, (len(before), len(after)), mode="edge")
    weights = spectral_weights(longer, widths, sensor.wavelengths, sensor.fwhm)
    inner = weights[:, len(before) : len(longer) - len(after)].copy()
    inner[:, 0] += weights[:, : len(before)].sum(axis=1)
    inner[:, -1] += weights[:, len(longer) - len(after) :].sum(axis=1)
    seen = resampled_cube(cube, inner)
    centres = np.asarray(sensor.wavelengths)
    absorbed = np.any([(low < centres) & (centres < high) for low, high in WATER_VAPOUR_RANGES], axis=0)
    seen[absorbed] = ENMAP.nodata
    return seen


def resampled_cube(cube: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Stored numbers int16 (target bands, height, width) by weights (target bands, bands) of a cube's bands.

    A pixel without data in a band that takes part holds nodata in all.
    """
    used = np.flatnonzero(weights.any(axis=0))
    missing = (cube[used] == ENMAP.nodata).any(axis=0)
    values = np.rint(np.tensordot(weights[:, used], cube[used].astype(np.float64), axes=1))
    values = np.clip(values, ENMAP.nodata + 1, np.iinfo(np.int16).max)
    return np.where(missing, ENMAP.nodata, values).astype(np.int16)


def weights_to_checkpoint(sensor_data: SensorData, checkpoint: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights by which the bands of a sensor become those of a checkpoint, float64 (checkpoint's bands, bands of the
    data), and numbers of the checkpoint's bands that the sensor does not cover; their weights are 0.

    Raises:
        ValueError: wavelengths are unknown, or the sensor covers no band of the checkpoint.
    """
    data, processor = sensor_data.data, load_processor(checkpoint)
    if data.wavelengths is None or processor.wavelengths is None:
        raise ValueError(f"{sensor_data.title}: expected wavelengths of the data and of {checkpoint}, got none")
    bands = np.flatnonzero(data.valid_bands)
    given = data.wavelengths[bands]
    widths = nearest_spacing(given) if sensor_data.fwhm is None else sensor_data.fwhm[bands]
    wanted = np.asarray(processor.wavelengths)
    wanted_widths = np.interp(wanted, ENMAP.wavelengths, ENMAP.fwhm)
    missing = uncovered_bands(given, widths, wanted, wanted_widths)
    covered = np.setdiff1d(np.arange(len(wanted)), missing)
    if not len(covered):
        raise ValueError(f"{sensor_data.title}: expected bands of {checkpoint} among its own, got none")
    weights = np.zeros((len(wanted), data.num_bands))
    weights[np.ix_(covered, bands)] = spectral_weights(given, widths, wanted[covered], wanted_widths[covered])
    return weights, missing


def resampled_to_checkpoint(sensor_data: SensorData, checkpoint: str) -> tuple[LabelledData, int]:
    """Data with the bands of a checkpoint, and how many of these the sensor does not cover.

    Those hold the checkpoint's mean everywhere, which is 0 after standardising.

    Raises:
        ValueError: as `weights_to_checkpoint` does.
    """
    weights, missing = weights_to_checkpoint(sensor_data, checkpoint)
    data, processor = sensor_data.data, load_processor(checkpoint)
    wanted = np.asarray(processor.wavelengths)
    mean = np.zeros(len(wanted)) if processor.image_mean is None else np.asarray(processor.image_mean)
    filling = np.rint(mean * processor.scale).astype(np.int16)
    scenes = []
    for scene in data.scenes:
        cube = resampled_cube(scene.cube, weights)
        for band in missing:
            cube[band] = np.where(scene.valid, filling[band], ENMAP.nodata)
        scenes.append(Scene(scene.name, cube, scene.labels, scene.crs, scene.transform))
    return replace(data, scenes=scenes, wavelengths=wanted), len(missing)


def check_sensor(sensor_data: SensorData, checkpoint: str, settings: Mapping[str, Any], options: ModelOptions) -> None:
    """Raises ValueError where `compare_ways` would, before anything is trained."""
    weights_to_checkpoint(sensor_data, checkpoint)
    adapting = _adapting(sensor_data, checkpoint, options)
    check_model("hsst", settings_for("hsst", settings), adapting)
    starting_point(sensor_data.data, adapting)
    if settings.get("head_start") == "checkpoint":
        known_classes(load_config(checkpoint), sensor_data.data.class_names, checkpoint, options.merged)


def _adapting(sensor_data: SensorData, checkpoint: str, options: ModelOptions) -> ModelOptions:
    """Of models that start from a checkpoint, adapted to the bands of a sensor."""
    statistics = None if sensor_data.is_reflectance else "training"
    return replace(options, checkpoint=checkpoint, adapt_bands=True, statistics=statistics)


def compare_ways(
    sensor_data: SensorData,
    folder: str | Path,
    *,
    checkpoint: str,
    budgets: Sequence[str],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    options: ModelOptions,
    description: Mapping[str, Any],
    checkpoint_learning_rate: float | None = None,
    processes: int | None = None,
) -> dict[str, Any]:
    """Trains and tests all three ways on one sensor, each run a row in `folder` as soon as it is done.

    Args:
        sensor_data: the sensor.
        folder: where the rows go, in a folder for each way; runs that are there are not repeated.
        checkpoint: folder or Hub name of a pre-trained HSST.
        budgets: labels per class ("5") or shares of the labels ("10%").
        seeds: of labels and weights.
        settings: given settings of fine-tuning.
        options: window size and dropout; checkpoint, statistics and adaptation are each way's own.
        description: what else decides the numbers; rows of another description are refused.
        checkpoint_learning_rate: of the two ways that start from the checkpoint; None takes that of the settings.
        processes: runs at the same time.

    Returns:
        What the rows say, as JSON can hold it; under "unlabelled", how good the resampled and the adapted way are
        without a label of the sensor, on the test areas of all its scenes, where the settings have
        `head_start="checkpoint"`.

    Raises:
        ValueError: the data do not fit the checkpoint, or the folder holds rows of something else.
    """
    resampled, num_missing = resampled_to_checkpoint(sensor_data, checkpoint)
    adapting = _adapting(sensor_data, checkpoint, options)
    start = starting_point(sensor_data.data, adapting)
    knows_classes = settings.get("head_start") == "checkpoint"
    from_checkpoint = dict(settings)
    if checkpoint_learning_rate is not None:
        from_checkpoint["learning_rate"] = checkpoint_learning_rate
    from_scratch = {name: value for name, value in settings.items() if name != "head_start"}
    ways: dict[str, Any] = {}
    unlabelled: dict[str, list[dict[str, Any]]] = {}
    pooled: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}
    for way in WAYS:
        model = "hsst-scratch" if way == SCRATCH else "hsst"
        data = resampled if way == RESAMPLED else sensor_data.data
        experiment = Experiment(
            {DIRECTION: data},
            replace(adapting, statistics="training", merged={}) if way == SCRATCH else adapting,
            from_scratch if way == SCRATCH else from_checkpoint,
            {**description, "sensor": sensor_data.title, "way": way},
        )
        runs = plan_runs([model], budgets, seeds, [DIRECTION])
        rows = run_experiment(experiment, runs, Path(folder) / way, processes=processes)
        entries = summarise(rows, [DIRECTION], data.class_names)["results"]
        ways[way] = [{name: entry[name] for name in KEPT} for entry in entries]
        if knows_classes and way != SCRATCH:
            untrained = replace(settings_for(model, settings), max_steps=0, num_epochs=None)
            unlabelled[way] = []
            for scene in tqdm([sensor_data.data, *sensor_data.other_scenes], desc=f"{WAYS[way]}, no labels"):
                if way == RESAMPLED:
                    scene = resampled_to_checkpoint(replace(sensor_data, data=scene), checkpoint)[0]
                outcome = run_model(model, scene, untrained, experiment.options, labelled_only=True)
                unlabelled[way].append(land_cover_scores(outcome.confusion))
        pooled[way] = {
            (budget, seed): scores for (_, budget, seed), scores in pooled_scores(rows, [DIRECTION]).items()
        }
    wavelengths = sensor_data.data.wavelengths
    assert wavelengths is not None  # resampled_to_checkpoint looks
    return {
        "title": sensor_data.title,
        "bands": int(sensor_data.data.valid_bands.sum()),
        "range": [float(wavelengths[0]), float(wavelengths[-1])],
        "filled_bands": num_missing,
        "is_reflectance": sensor_data.is_reflectance,
        "adaptation": "bands taken as they are" if start.adaptation is None else str(start.adaptation),
        "ways": ways,
        "unlabelled": _unlabelled(unlabelled) if unlabelled else {},
        **{
            differences: {other: _differences(pooled, other, score) for other in (SCRATCH, RESAMPLED)}
            for score, (_, differences) in DIFFERENCES.items()
        },
    }


def _unlabelled(scores: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Scores of each way without labels over the scenes, and the adapted model's less those of the other."""
    of_scenes = {
        name: {way: [scene[name] for scene in scenes] for way, scenes in scores.items()} for name in DIFFERENCES
    }
    return {
        "scenes": len(scores[ADAPTED]),
        "ways": {
            way: {
                **{name: described(of_scenes[name][way]) for name in DIFFERENCES},
                "of_scenes": of_scenes["overall_accuracy"][way],
                "average_of_scenes": of_scenes["average_accuracy"][way],
            }
            for way in scores
        },
        **{
            DIFFERENCES[name][0]: _difference(values[ADAPTED], values[RESAMPLED]) for name, values in of_scenes.items()
        },
    }


def _difference(scores: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Scores less others, one by one."""
    values = [a - b for a, b in zip(scores, others, strict=True)]
    return {**(described(values) or {}), "better_in": sum(value > 0 for value in values)}


def _differences(
    pooled: Mapping[str, Mapping[Any, Mapping[str, Any]]], other: str, score: str
) -> dict[str, dict[str, Any]]:
    """A score of the adapted model less that of another way, seed by seed, for each budget."""
    seeds: dict[str, list[Any]] = {}
    for budget, seed in pooled[ADAPTED]:
        seeds.setdefault(budget, []).append((budget, seed))
    found = {}
    for budget, keys in seeds.items():
        own, others = ([pooled[way][key][score] for key in keys] for way in (ADAPTED, other))
        found[budget] = {**_difference(own, others), "seeds": len(keys)}
    return found


def folder_name(title: str) -> str:
    """A sensor's title as the name of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def sensor_table(result: Mapping[str, Any], score: str = "overall_accuracy") -> str:
    """Markdown of a result file of `compare_sensors.py`: a score in percent (`DIFFERENCES`), the best bold."""
    rows = [
        f"| sensor | labels | {' | '.join(WAYS.values())} | adapted – from scratch | adapted – resampled |",
        "|---|---|" + "---|" * (len(WAYS) + 2),
    ]
    without_labels, with_labels = DIFFERENCES[score]
    for sensor in result["sensors"]:
        title = sensor["title"] + ("" if sensor["is_reflectance"] else " (radiance)")
        filled = " *" if sensor["filled_bands"] else ""
        for labels, of_ways, differences in _unlabelled_rows(sensor, score, without_labels):
            rows.append(f"| {title} | {labels} | {_cells(of_ways, filled)} | {' | '.join(differences)} |")
        for number, entry in enumerate(sensor["ways"][ADAPTED]):
            of_ways = {way: sensor["ways"][way][number][score] for way in WAYS}
            texts = [percent(sensor[with_labels][other][entry["budget"]]) for other in (SCRATCH, RESAMPLED)]
            labels = f"{entry['budget_title']} ({entry['labels']:,.0f})"
            rows.append(f"| {title} | {labels} | {_cells(of_ways, filled)} | {' | '.join(texts)} |")
    if any(sensor["filled_bands"] for sensor in result["sensors"]):
        rows += ["", "\\* Bands of the model that the sensor does not cover hold their mean."]
    return "\n".join(rows)


def _unlabelled_rows(
    sensor: Mapping[str, Any], score: str, difference: str
) -> Iterator[tuple[str, dict[str, dict[str, Any]], list[str]]]:
    """Of a sensor without labels, over all scenes and in the one whose labels others have: what the row is called, the
    scores of the ways, and differences of the adapted model."""
    unlabelled = sensor.get("unlabelled")
    if not unlabelled:
        return
    of_scenes = "of_scenes" if score == "overall_accuracy" else "average_of_scenes"
    if "ways" not in unlabelled or any(of_scenes not in values for values in unlabelled["ways"].values()):
        raise ValueError(f"{sensor['title']}: expected a result of this version of compare_sensors.py")
    number = unlabelled["scenes"]
    of_ways = {way: values[score] for way, values in unlabelled["ways"].items()}
    yield f"none ({number} scenes)" if number > 1 else "none", of_ways, ["–", percent(unlabelled[difference])]
    if number > 1:
        first = {way: described(values[of_scenes][:1]) or {} for way, values in unlabelled["ways"].items()}
        own = described([first[ADAPTED]["mean"] - first[RESAMPLED]["mean"]])
        yield "none, the scene of the labels", first, ["–", percent(own)]


def _cells(of_ways: Mapping[str, Mapping[str, Any]], filled: str) -> str:
    """Scores of the ways, the best mean in bold, – where a way has none."""
    best = max(scores["mean"] for scores in of_ways.values())
    texts = []
    for way in WAYS:
        text = _bold_mean(percent(of_ways[way]), of_ways[way]["mean"] == best) if way in of_ways else "–"
        texts.append(text + (filled if way == RESAMPLED else ""))
    return " | ".join(texts)


def crop_table(without: Mapping[str, Any], cropped: Mapping[str, Any]) -> str:
    """Markdown of two result files: overall accuracy of adapted models without labels, fine-tuned without and with
    `spectral_crop`, in percent over the same scenes.

    Raises:
        ValueError: the files hold other sensors or scenes.
    """
    rows = [
        "| sensor | scenes | all bands in each step | crops of the spectrum | difference |",
        "|---|---|---|---|---|",
    ]
    titles = [
        [f"{sensor['title']} ({sensor['unlabelled'].get('scenes')} scenes)" for sensor in result["sensors"]]
        for result in (without, cropped)
    ]
    if titles[0] != titles[1] or without["scene_seed"] != cropped["scene_seed"]:
        raise ValueError(f"expected the sensors and scenes of the other file, got {', '.join(titles[1])}")
    for sensors in zip(without["sensors"], cropped["sensors"], strict=True):
        first, second = (sensor["unlabelled"]["ways"][ADAPTED] for sensor in sensors)
        pairs = zip(first["of_scenes"], second["of_scenes"], strict=True)
        difference = described([after - before for before, after in pairs])
        texts = [percent(scores) for scores in (first["overall_accuracy"], second["overall_accuracy"], difference)]
        rows.append(f"| {sensors[0]['title']} | {len(first['of_scenes'])} | {' | '.join(texts)} |")
    return "\n".join(rows)


def _bold_mean(text: str, is_bold: bool) -> str:
    """A mean with its interval, the mean in bold."""
    mean, *between = text.split(" ", 1)
    return " ".join([f"**{mean}**", *between]) if is_bold else text


def plot_sensors(path: str | Path, result: Mapping[str, Any]) -> Path:
    """Draws overall accuracy over the number of labels as PNG, a panel for each sensor and a line for each way."""
    sensors = result["sensors"]
    figure = Figure(figsize=(4.2 * len(sensors) + 0.6, 4.4), layout="constrained")
    axes = figure.subplots(1, len(sensors))
    for axis, sensor in zip(np.atleast_1d(axes), sensors, strict=True):
        for way, title in WAYS.items():
            entries = sorted(sensor["ways"][way], key=lambda entry: entry["labels"])
            labels = [entry["labels"] for entry in entries]
            scores = [entry["overall_accuracy"] for entry in entries]
            means = [score["mean"] for score in scores]
            axis.plot(labels, means, marker="o", color=WAY_COLOURS[way], label=title)
            if all(score["low"] is not None for score in scores):
                lows, highs = [score["low"] for score in scores], [score["high"] for score in scores]
                axis.fill_between(labels, lows, highs, color=WAY_COLOURS[way], alpha=0.15, lw=0)
            if way in sensor.get("unlabelled", {}).get("ways", {}):
                score = sensor["unlabelled"]["ways"][way]["overall_accuracy"]["mean"]
                axis.axhline(score, color=WAY_COLOURS[way], linestyle=":", lw=1.5, label=f"{title}, no labels")
        ticks = {entry["labels"]: entry["budget_title"] for entry in sensor["ways"][ADAPTED]}
        axis.set_xscale("log")
        axis.set_xticks(list(ticks), [f"{title}\n({labels:,.0f})" for labels, title in ticks.items()], fontsize=8)
        axis.minorticks_off()
        filled = f"\n(resampled: {sensor['filled_bands']} bands hold their mean)" if sensor["filled_bands"] else "\n"
        axis.set_title(sensor["title"] + filled, fontsize=10)
        axis.set_xlabel("training labels")
        axis.yaxis.set_major_formatter(lambda value, position: f"{value:.0%}")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    np.atleast_1d(axes)[0].set_ylabel("overall accuracy")
    handles, titles = np.atleast_1d(axes)[0].get_legend_handles_labels()
    figure.legend(handles, titles, loc="outside lower center", ncols=len(titles), frameon=False)
    with written_whole(path) as partial:
        figure.savefig(partial, dpi=110)
    return Path(path)

"""
A pre-trained model and labels of other sensors: from scratch, image resampled to EnMAP's bands, or model adapted.

    python scripts/experiments/compare_sensors.py --model_name_or_path model_cards/hsst-enmap \\
        --budgets 5,20,100% --seeds 5 --real "Salinas-A=salinas" --radiance Salinas-A --output_dir outputs/sensors

Simulated sensors see one labelled scene, which pre-training must not have seen (--scene_seed), and with --scenes more
for maps without labels. --real adds labelled scenes as LabelledScene reads them (images/ and labels/, wavelengths).
Every run is a row as soon as it is done; the same command goes on after an interruption. The output folder holds
`sensors.json`, `sensors.md`, `sensors.png`.
"""

import argparse
import logging
from dataclasses import asdict, replace
from pathlib import Path

import transformers

from datasets_loading.files import write_json, write_text
from datasets_loading.labelled_scene import LabelledScene
from hsst.experiments.baselines import choose_window_size, load_config, warn_of_untrained_classes
from hsst.experiments.label_efficiency import Budget, arrays_fingerprint, checkpoint_fingerprint
from hsst.experiments.sensors import (
    SIMULATED_SENSORS,
    SensorData,
    check_sensor,
    compare_ways,
    folder_name,
    plot_sensors,
    sensor_table,
    simulate_sensors,
)
from hsst.run_classification import add_training_arguments, given_settings, options_of
from hsst.support.command_line import one_line_errors
from hsst.support.fine_tuning import FineTuningSettings


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", default="5,20,100%", help="labels per class, or shares (5,20,100%%)")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (5)")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--processes", type=int, help="runs at the same time (one for each GPU, or one)")
    data = parser.add_argument_group("sensors")
    data.add_argument(
        "--sensors",
        nargs="*",
        choices=tuple(SIMULATED_SENSORS),
        default=list(SIMULATED_SENSORS),
        help="simulated sensors (all); nothing after it: none",
    )
    data.add_argument("--scene_size", type=int, default=192, help="side of the simulated scene in pixels (192)")
    data.add_argument("--scene_seed", type=int, default=900001, help="its seed, none of the pre-training's (900001)")
    data.add_argument(
        "--scenes", type=int, default=1, help="scenes that are mapped without labels, with --head_start checkpoint (1)"
    )
    data.add_argument("--real", action="append", default=[], metavar="NAME=FOLDER", help="a real labelled scene")
    data.add_argument(
        "--radiance", nargs="*", default=[], metavar="NAME", help="real scenes whose numbers are no reflectance"
    )
    data.add_argument("--block_size", type=int, default=24, help="side of the blocks of the splits, in pixels (24)")
    data.add_argument(
        "--checkpoint_learning_rate",
        type=float,
        help="of the two ways that start from the checkpoint (--learning_rate): a classifier that knows the classes "
        "wants smaller steps",
    )
    add_training_arguments(parser)
    return parser.parse_args()


def real_sensors(arguments: argparse.Namespace, window_size: int) -> list[SensorData]:
    folders = {}
    for text in arguments.real:
        name, separator, folder = text.partition("=")
        if not separator or name in folders:
            raise ValueError(f"--real: expected NAME=FOLDER with names that differ, got {text}")
        folders[name] = folder
    unknown = sorted(set(arguments.radiance) - set(folders))
    if unknown:
        raise ValueError(
            f"--radiance: expected names given by --real ({', '.join(folders) or 'none'}), got {unknown[0]}"
        )
    found = []
    for name, folder in folders.items():
        builder = LabelledScene(
            data_dir=folder, window_size=window_size, block_size=arguments.block_size, shares=(0.5, 0.0, 0.5)
        )
        found.append(SensorData(name, builder.data, is_reflectance=name not in arguments.radiance))
    return found


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(format="%(levelname)s: %(message)s")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with one_line_errors("compare_sensors.py"):
        for name in ("seeds", "scenes"):
            if getattr(arguments, name) < 1:
                raise ValueError(f"--{name}: expected at least 1, got {getattr(arguments, name)}")
        if arguments.scenes > 1 and arguments.head_start != "checkpoint":
            raise ValueError("--scenes: expected --head_start checkpoint, without which no scene is mapped unlabelled")
        if arguments.model_name_or_path is None:
            raise ValueError("--model_name_or_path: expected a pre-trained HSST, got none")
        for name in ("adapt_bands", "config_overrides", "statistics"):
            if getattr(arguments, name):
                raise ValueError(f"--{name}: expected none, for it is each way's own, got {getattr(arguments, name)}")
        budgets = list(dict.fromkeys(arguments.budgets.split(",")))
        for budget in budgets:
            Budget.parse(budget)
        settings = given_settings(arguments)
        learning_rate = arguments.checkpoint_learning_rate
        rates = {} if learning_rate is None else {"checkpoint_learning_rate": learning_rate}
        if learning_rate is not None and not learning_rate >= 0:
            raise ValueError(f"--checkpoint_learning_rate: expected at least 0, got {learning_rate}")
        checkpoint = arguments.model_name_or_path
        options = options_of(arguments)
        window_size = choose_window_size(FineTuningSettings(**settings), options, load_config(checkpoint))
        options = replace(options, window_size=window_size)
        sensors = real_sensors(arguments, window_size)
        if arguments.sensors:
            sensors = [
                *simulate_sensors(
                    arguments.sensors,
                    size=arguments.scene_size,
                    seed=arguments.scene_seed,
                    block_size=arguments.block_size,
                    window_size=window_size,
                    num_scenes=arguments.scenes,
                ),
                *sensors,
            ]
        if not sensors:
            raise ValueError("--sensors, --real: expected a sensor, got none")
        for sensor in sensors:
            check_sensor(sensor, checkpoint, settings, options)
        results = []
        for sensor in sensors:
            warn_of_untrained_classes(sensor.data)
            results.append(
                compare_ways(
                    sensor,
                    arguments.output_dir / folder_name(sensor.title),
                    checkpoint=checkpoint,
                    budgets=budgets,
                    seeds=range(arguments.seeds),
                    settings=settings,
                    options=options,
                    description={
                        "checkpoint": checkpoint_fingerprint(checkpoint),
                        "labels": arrays_fingerprint(sensor.data.labels),
                        "pixels": arrays_fingerprint({scene.name: scene.cube for scene in sensor.data.scenes}),
                        "bands": [] if sensor.data.wavelengths is None else sensor.data.wavelengths.tolist(),
                        "is_reflectance": sensor.is_reflectance,
                        "split": sensor.data.split.settings,
                        "settings": settings,
                        "options": asdict(replace(options, checkpoint=None)),
                        **rates,
                    },
                    checkpoint_learning_rate=learning_rate,
                    processes=arguments.processes,
                )
            )
        result = {
            "sensors": results,
            "model": Path(checkpoint).name,
            "seeds": arguments.seeds,
            "scene_seed": arguments.scene_seed,
            "scene_size": arguments.scene_size,
            "settings": asdict(FineTuningSettings(**settings)),
            **rates,
        }
        table = sensor_table(result)
        plot_sensors(arguments.output_dir / "sensors.png", result)
        write_text(arguments.output_dir / "sensors.md", table + "\n")
        path = write_json(arguments.output_dir / "sensors.json", result)
    print(f"{table}\n\nResults: {path}")


if __name__ == "__main__":
    main()

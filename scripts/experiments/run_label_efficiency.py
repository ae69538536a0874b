"""
How few labels are enough: models over label budgets, seeds and areas, each area being the test area once.

    python scripts/experiments/run_label_efficiency.py --data_dir potsdam \\
        --area west=0,64,0,96 --area east=64,128,96,160 \\
        --models hsst,hsst-scratch,cnn-3d,random-forest --budgets 5,20,10%,100% --seeds 5 \\
        --model_name_or_path outputs/hsst --output_dir outputs/label_efficiency
    python scripts/experiments/run_label_efficiency.py --recipe houston2018 --data_dir 2018IEEE_Contest \\
        --model_name_or_path outputs/hsst --output_dir outputs/houston2018

Without areas, the split of the data is the only direction. Every run is a row of `runs.csv` as soon as it is done: the
same command goes on where it was interrupted, and with more models, budgets or seeds it adds theirs. At the end,
`label_efficiency.json`, `.png` and `.html` say what came out. With several GPUs, each takes runs of its own. A recipe
sets the paper's data, areas, budgets and fine-tuning; arguments that are given go before its own.
"""

import argparse
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from datasets_loading.labelled_data import LabelledData
from hsst.experiments.baselines import (
    MODELS,
    ModelOptions,
    check_classes,
    check_model,
    choose_window_size,
    load_config,
    settings_for,
    starting_point,
    warn_of_untrained_classes,
)
from hsst.experiments.label_efficiency import (
    Budget,
    Experiment,
    draw_maps,
    plan_runs,
    rows_of_others,
    run_experiment,
    summarise,
    untrained_classes,
    write_reports,
)
from hsst.experiments.recipes import RECIPES, recipe_defaults
from hsst.run_classification import (
    add_data_arguments,
    add_training_arguments,
    given_settings,
    load_data,
    options_of,
    parse_area,
)
from hsst.support.command_line import one_line_errors
from hsst.support.fine_tuning import FineTuningSettings


def add_experiment_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of seeds, areas and output, that experiments of many runs share; `load_directions` reads the areas."""
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from --first_seed on (5)")
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument(
        "--area",
        action="append",
        default=[],
        metavar="NAME=AREA",
        help="an area as [SCENE,]ROW,ROW,COLUMN,COLUMN or a scene; give two or more",
    )
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--processes", type=int, help="runs at the same time (one for each GPU, or one)")
    add_data_arguments(parser)
    add_training_arguments(parser)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    recipes = "; ".join(f"{name}: {recipe.title}" for name, recipe in RECIPES.items())
    parser.add_argument(
        "--recipe", choices=tuple(RECIPES), help=f"a benchmark of the paper with its settings: {recipes}"
    )
    parser.add_argument("--models", default=",".join(MODELS), help="the first is compared with the others (all)")
    parser.add_argument(
        "--budgets", default="5,20,10%,100%", help="labels per class, or shares of the labels (5,20,10%%,100%%)"
    )
    parser.add_argument("--validation_share", type=float, default=0.0, help="share of training labels to validate on")
    parser.add_argument(
        "--maps",
        action="store_true",
        help="also map the test areas, by the first model and the best baseline with the largest budget and the first "
        "seed, which are trained once more for it",
    )
    parser.add_argument(
        "--beside",
        type=Path,
        help="folder of an experiment on the same labels and areas, whose other models are compared with the first",
    )
    add_experiment_arguments(parser)
    arguments = parser.parse_args()
    if arguments.recipe is not None:
        parser.set_defaults(**recipe_defaults(arguments.recipe, vars(arguments)))
        arguments = parser.parse_args()
    return arguments


def load_directions(arguments: argparse.Namespace, window_size: int) -> dict[str, LabelledData]:
    """The data of each direction: an area to test on, all others to train on."""
    if not arguments.area:
        return {"split": load_data(arguments, window_size)}
    areas = {}
    for text in arguments.area:
        name, separator, area = text.partition("=")
        if not separator or name in areas:
            raise ValueError(f"--area: expected NAME=AREA with names that differ, got {text}")
        areas[name] = parse_area(area)
    if len(areas) < 2:
        raise ValueError(f"--area: expected two areas or more, got {len(areas)}")
    directions = {}
    for test in areas:
        training = [name for name in areas if name != test]
        split = {"train": [areas[name] for name in training], "test": [areas[test]]}
        directions[f"{' and '.join(training)} to {test}"] = load_data(arguments, window_size, split)
    return directions


def fingerprint(arrays: dict[str, np.ndarray]) -> str:
    """A checksum of labels or pixels, so that runs on others are not taken for runs on these."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def checkpoint_fingerprint(checkpoint: str) -> str:
    """A checksum of what makes the model of a checkpoint's folder; a name on the Hub stands for itself."""
    names = ("config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json")
    files = [file for name in names for file in sorted(Path(checkpoint).glob(name))]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest() if files else checkpoint


@dataclass(frozen=True)
class Setup:
    """What the arguments of an experiment come to.

    Attributes:
        directions: the data of each direction, by its name.
        options: checkpoint, windows, configuration and statistics.
        settings: settings of fine-tuning that were given.
        seeds: seeds of the runs.
        description: what was asked for, as JSON can hold it.
    """

    directions: dict[str, LabelledData]
    options: ModelOptions
    settings: dict[str, Any]
    seeds: range
    description: dict[str, Any]


def set_up(arguments: argparse.Namespace, models: Sequence[str] = ()) -> Setup:
    """Reads the data and checks what can be known before the first run.

    Args:
        arguments: of `add_experiment_arguments`.
        models: models that will run, to be checked before the data are read.

    Raises:
        ValueError: arguments, files or areas cannot be used.
    """
    for name in ("seeds", "processes"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name}: expected at least 1, got {value}")
    options, settings = options_of(arguments), given_settings(arguments)
    checked = FineTuningSettings(**settings)
    if checked.early_stopping_patience is not None:
        raise ValueError(
            "--early_stopping_patience: expected none, for validation labels would come on top of a label budget"
        )
    for name in models:
        check_model(name, settings_for(name, settings), options)
    base = None if options.checkpoint is None else load_config(options.checkpoint)
    options = replace(options, window_size=choose_window_size(checked, options, base))
    assert options.window_size is not None
    directions = load_directions(arguments, options.window_size)
    for data in directions.values():
        check_classes(data)
        warn_of_untrained_classes(data)
    starting_point(next(iter(directions.values())), options)  # raises where the checkpoint does not fit the bands
    description = {
        "data_dir": str(arguments.data_dir),
        "dataset": arguments.dataset,
        "dataset_config": arguments.dataset_config,
        "class_names": next(iter(directions.values())).class_names,
        "labels": {name: fingerprint(data.labels) for name, data in directions.items()},
        "checkpoint": None if options.checkpoint is None else checkpoint_fingerprint(options.checkpoint),
        "areas": arguments.area,
        "splits": {name: data.split.settings for name, data in directions.items()},
        "settings": settings,
        # what variants add is no argument, and what was not asked for is not told
        "options": {
            name: value
            for name, value in asdict(options).items()
            if name != "joint_attention" and (name != "merged" or value)
        },
    }
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    return Setup(directions, options, settings, seeds, description)


def quiet_libraries() -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def main() -> None:
    arguments = parse_arguments()
    quiet_libraries()
    with one_line_errors("run_label_efficiency.py"):
        models = list(dict.fromkeys(name.strip() for name in arguments.models.split(",")))
        budgets = [Budget.parse(budget).name for budget in arguments.budgets.split(",")]
        setup = set_up(arguments, models)
        runs = plan_runs(models, list(dict.fromkeys(budgets)), setup.seeds, list(setup.directions))
        experiment = Experiment(setup.directions, setup.options, setup.settings, setup.description)
        others = []
        if arguments.beside is not None:
            others = rows_of_others(arguments.beside, models, budgets, setup.description)
        rows = run_experiment(experiment, runs, arguments.output_dir, processes=arguments.processes)
        summary = summarise(
            [*rows, *others],
            list(setup.directions),
            experiment.class_names,
            setup.description,
            untrained_classes(setup.directions),
        )
        maps = draw_maps(experiment, summary, setup.seeds[0], arguments.output_dir) if arguments.maps else []
        for path in [*write_reports(summary, arguments.output_dir, maps), *maps]:
            print(path)


if __name__ == "__main__":
    main()

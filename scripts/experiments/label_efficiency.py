"""
How few labels are enough: models over label budgets, seeds and areas, each area being the test area once.

    python scripts/experiments/label_efficiency.py --data_dir potsdam \\
        --area west=0,64,0,96 --area east=64,128,96,160 \\
        --models hsst,hsst-scratch,cnn-3d,random-forest --budgets 5,20,10%,100% --seeds 5 \\
        --model_name_or_path outputs/hsst --output_dir outputs/label_efficiency
    python scripts/experiments/label_efficiency.py --recipe houston2018 --data_dir 2018IEEE_Contest \\
        --model_name_or_path outputs/hsst --output_dir outputs/houston2018

Without areas, the split of the data is the only direction. Every run is a row of `runs.jsonl` as soon as it is done:
the same command resumes where it was interrupted, and with more models, budgets or seeds it adds theirs. At the end,
`label_efficiency.json` and `.png` hold the results. A recipe sets the paper's data, areas, budgets and fine-tuning;
arguments on the command line override it.

Predictions of all directions are pooled into one confusion matrix per model, budget and seed. Means, standard
deviations and intervals (Student's t) are over seeds, which draw the labels and the weights; models are compared seed
by seed.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from datasets_loading.files import append_row, fingerprint, only_writer, read_rows, write_json
from datasets_loading.labelled_data import LabelledData
from datasets_loading.land_cover_metric import land_cover_scores
from datasets_loading.splits import draw_labels
from hsst.experiments.baselines import (
    check_classes,
    choose_window_size,
    load_config,
    run_model,
    starting_point,
    untrained_of,
    warn_of_untrained_classes,
)
from hsst.run_classification import (
    add_data_arguments,
    add_training_arguments,
    given_settings,
    load_data,
    options_of,
    parse_area,
)
from hsst.support.command_line import HelpFormatter, check_least, one_line_errors, parse_named
from hsst.support.figures import save_figure
from hsst.support.reports import described, markdown_table, percent, shares_of
from hsst.support.training_settings import MODELS, FineTuningSettings, ModelOptions, check_model, settings_for

Row = Mapping[str, Any]
SCORES = ("overall_accuracy", "average_accuracy", "average_accuracy_frequent", "macro_f1", "mean_iou", "kappa")
COMPARED_SCORES = ("overall_accuracy", "average_accuracy", "macro_f1", "mean_iou")
# Apart for eyes that tell red and green apart badly, too, and from the first model's red
COLORS = ("#0072b2", "#e69f00", "#009e73", "#56b4e9", "#7b3294", "#222222")
MARKERS = "os^DvP"
MAIN_COLOR = "#d1495b"

# The paper's benchmarks (Scheibenreif, Mommert and Borth 2023, Masked Vision Transformers for Hyperspectral Image
# Classification); docs/manual/evaluation.md lists what cannot be followed exactly
PUBLISHED: dict[str, Any] = {
    **{"models": "hsst,hsst-scratch,cnn-3d", "budgets": "0.1%,1%,10%,100%", "seeds": 5, "task": "dense"},
    **{"window_size": 8, "num_epochs": 100, "learning_rate": 5e-4, "head_learning_rate": 5e-3, "weight_decay": 5e-3},
}
RECIPES: dict[str, dict[str, Any]] = {
    "enmap_dfc": PUBLISHED | {"dataset": "enmap_dfc", "dataset_config": "paper", "max_steps": 1000, "batch_size": 2},
    # The published checkpoints were made for EnMAP
    "houston2018": PUBLISHED | {"dataset": "houston2018", "max_steps": 2000, "batch_size": 32, "adapt_bands": True},
}
"""Defaults of the arguments by the name of the recipe."""


def recipe_defaults(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of arguments that a recipe sets, beside those of the user (None where one was not given)."""
    defaults = dict(RECIPES[name])
    if given["max_steps"] is not None:
        del defaults["num_epochs"]  # epochs would go beyond the steps that were asked for
    if given["model_name_or_path"] is None:
        defaults.pop("adapt_bands", None)  # there is nothing to adapt
    return defaults


@dataclass(frozen=True)
class Budget:
    """How many training labels are used: a number for each class, or a fraction of each class."""

    per_class: int | None = None
    fraction: float | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """ "5" is a number for each class, "10%" and "0.1" are fractions, "100%" is all."""
        with suppress(ValueError):
            if text.endswith("%") or "." in text:
                fraction = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
                if 0 < fraction <= 1:
                    return cls(fraction=fraction)
            elif int(text) >= 1:
                return cls(per_class=int(text))
        raise ValueError(f"budgets: expected labels per class (5) or a share of the labels (10%), got {text}")

    @property
    def name(self) -> str:
        return str(self.per_class) if self.fraction is None else f"{100 * self.fraction:g}%"

    @property
    def title(self) -> str:
        return f"{self.per_class} per class" if self.fraction is None else self.name


@dataclass(frozen=True)
class Run:
    """One training: a model, a budget, a seed, and which area is the test area."""

    model: str
    budget: str
    seed: int
    direction: str


@dataclass(frozen=True)
class Experiment:
    """What all runs share: the data of each direction (same scenes, other splits), what models are made of, given
    settings of fine-tuning, and a description (runs of another one are not mixed with these)."""

    directions: Mapping[str, LabelledData]
    options: ModelOptions = ModelOptions()
    settings: Mapping[str, Any] = field(default_factory=dict)
    description: Mapping[str, Any] = field(default_factory=dict)

    @property
    def class_names(self) -> tuple[str, ...]:
        return next(iter(self.directions.values())).class_names


def plan_runs(
    models: Sequence[str], budgets: Sequence[str], seeds: Sequence[int], directions: Sequence[str]
) -> list[Run]:
    """All runs, seed by seed, so that an unfinished experiment can be looked at."""
    planned = itertools.product(seeds, budgets, models, directions)
    return [Run(model, budget, seed, direction) for seed, budget, model, direction in planned]


def execute_run(experiment: Experiment, run: Run) -> dict[str, Any]:
    """Trains and tests once; the row of the run. Errors name it."""
    data, budget = experiment.directions[run.direction], Budget.parse(run.budget)
    try:
        labels = draw_labels(
            data.labels, data.split, fraction=budget.fraction, per_class=budget.per_class, seed=run.seed
        )
        data = data.with_labels(labels)
        settings = replace(settings_for(run.model, experiment.settings), seed=run.seed)
        outcome = run_model(run.model, data, settings, experiment.options, labelled_only=True)
    except ValueError as error:
        raise ValueError(f"{run.model}, {budget.title}, seed {run.seed}, {run.direction}: {error}") from error
    scores = land_cover_scores(outcome.confusion)
    return {
        **asdict(run),
        "labels": int(data.class_counts("train").sum()),
        **{name: scores[name] for name in ("overall_accuracy", "average_accuracy")},
        "train_seconds": round(outcome.train_seconds, 2),
        "predict_seconds": round(outcome.predict_seconds, 2),
        "parameters": outcome.parameters,
        "steps": None if outcome.training is None else outcome.training.steps,
        "chosen_settings": outcome.chosen,
        "confusion_matrix": outcome.confusion.tolist(),
    }


def run_experiment(experiment: Experiment, runs: Sequence[Run], folder: str | Path) -> list[dict[str, Any]]:
    """
    Does the runs that are not done yet, and writes each one's row to `runs.jsonl` as soon as it is; returns the rows
    of all runs in their order. The folder is made if need be, and not left behind without anything in it. Runs of
    another experiment are not mixed with these: ValueError.
    """
    # None shall fail after hours of others
    for model in {run.model for run in runs}:
        check_model(model, settings_for(model, experiment.settings), experiment.options)
    folder = Path(folder)
    path, description = folder / "runs.jsonl", folder / "experiment.json"
    with only_writer(folder):
        if description.is_file():
            wanted, found = json.loads(json.dumps(experiment.description)), json.loads(description.read_text("utf-8"))
            different = [name for name in sorted({**found, **wanted}) if found.get(name) != wanted.get(name)]
            if different:
                raise ValueError(
                    f"{folder}: expected runs with {different[0]} {found.get(different[0])}, as those that are there "
                    f"have, got {wanted.get(different[0])}: take another output folder"
                )
        done = {run_of(row): row for row in read_rows(path)}
        left = [run for run in runs if run not in done]
        with tqdm(total=len(runs), initial=len(runs) - len(left), desc="runs") as bar:
            for run in left:
                row = execute_run(experiment, run)
                if not description.is_file():
                    write_json(description, experiment.description)
                append_row(path, row)
                done[run] = row
                bar.update()
                bar.set_postfix_str(f"{run.model}, {run.budget}: {row['overall_accuracy']:.3f}")
    return [done[run] for run in runs]


def run_of(row: Mapping[str, Any]) -> Run:
    return Run(str(row["model"]), str(row["budget"]), int(row["seed"]), str(row["direction"]))


def pooled_scores(rows: Sequence[Row], directions: Sequence[str]) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Scores of each model, budget and seed from the pooled predictions of all directions, with `labels`, the training
    labels of all directions; seeds that lack a direction are left out."""
    grouped: dict[tuple[str, str, int], dict[str, Row]] = {}
    for row in rows:
        grouped.setdefault((row["model"], row["budget"], row["seed"]), {})[row["direction"]] = row
    pooled = {}
    for key, by_direction in grouped.items():
        if set(directions) <= set(by_direction):
            chosen = [by_direction[name] for name in directions]
            matrix = np.sum([row["confusion_matrix"] for row in chosen], axis=0)
            totals = {name: sum(row[name] for row in chosen) for name in ("labels", "train_seconds")}
            pooled[key] = {**land_cover_scores(matrix), **totals, "parameters": chosen[0]["parameters"]}
    return pooled


def summarize(
    rows: Sequence[Row],
    directions: Sequence[str],
    class_names: Sequence[str],
    description: Mapping[str, Any] | None = None,
    untrained: Sequence[str] = (),
) -> dict[str, Any]:
    """What the rows say, as JSON can hold it; the average accuracy is also taken without `untrained` classes.

    Returns:
        results: for each budget and model, each score over seeds (`described`), the mean accuracy of each class, and
            `confusion_shares`, the mean share of each reference class (row) that was predicted as each class.
        comparisons: for each budget and score, the first model against the best of those without pre-training, which
            is chosen by its mean over the same seeds, which favours it.
        comparisons_to_scratch: the same of each model that is there from scratch, too.
    """
    pooled = pooled_scores(rows, directions)
    models = list(dict.fromkeys(row["model"] for row in rows))
    baselines = [name for name in models[1:] if name not in MODELS or not MODELS[name].needs_checkpoint]
    results, comparisons, comparisons_to_scratch = [], [], []
    for budget in dict.fromkeys(row["budget"] for row in rows):
        by_model: dict[str, dict[int, dict[str, Any]]] = {model: {} for model in models}
        for (model, size, seed), scores in sorted(pooled.items()):
            if size == budget:
                by_model[model][seed] = scores
        for model, by_seed in by_model.items():
            if by_seed:
                results.append(_entry(model, budget, by_seed, class_names, untrained))
        comparisons += _compare(by_model, models[0], baselines, budget)
        # Models beside those that only lack their pre-trained weights
        for model in models:
            scratch = [name for name in models if name == f"{model}-scratch"]
            comparisons_to_scratch += _compare(by_model, model, scratch, budget)
    return {
        "class_names": list(class_names),
        "untrained_classes": list(untrained),
        "directions": list(directions),
        "runs": len(rows),
        "results": results,
        "comparisons": comparisons,
        "comparisons_to_scratch": comparisons_to_scratch,
        "experiment": dict(description or {}),
    }


def _entry(
    model: str, budget: str, by_seed: Mapping[int, Row], class_names: Sequence[str], untrained: Sequence[str]
) -> dict[str, Any]:
    """The scores of a model with a budget over its seeds."""
    scores = list(by_seed.values())
    per_class = [dict(zip(class_names, score["accuracy_per_class"], strict=True)) for score in scores]
    without = [
        [accuracy for name, accuracy in accuracies.items() if accuracy is not None and name not in untrained]
        for accuracies in per_class
    ]
    shares = np.mean([shares_of(np.asarray(score["confusion_matrix"])) for score in scores], axis=0)
    return {
        "model": model,
        "title": MODELS[model].title if model in MODELS else model,
        "budget": budget,
        "budget_title": Budget.parse(budget).title,
        "labels": float(np.mean([score["labels"] for score in scores])),
        "seeds": list(by_seed),
        "parameters": scores[0]["parameters"],
        "train_seconds": float(np.mean([score["train_seconds"] for score in scores])),
        **{name: described([score[name] for score in scores]) for name in SCORES},
        "average_accuracy_trained": described([float(np.mean(kept)) if kept else None for kept in without]),
        "accuracy_per_class": {name: described([each[name] for each in per_class]) for name in class_names},
        "confusion_shares": [None if np.isnan(row).any() else row.tolist() for row in shares],
    }


def untrained_classes(directions: Mapping[str, LabelledData]) -> list[str]:
    """Classes that are tested in a direction in which they have no training pixel: there, none can be right."""
    return list(dict.fromkeys(name for data in directions.values() for name in untrained_of(data)))


def _compare(
    by_model: Mapping[str, Mapping[int, Row]], main: str, baselines: Sequence[str], budget: str
) -> list[dict[str, Any]]:
    """
    A model against the best of the baselines, over the seeds that both have. Which one is the best is decided over the
    seeds that all of them have; baselines with less than half as many as others are left out, which would leave few
    seeds to all.
    """
    shared = {name: len(by_model[main].keys() & by_model[name].keys()) for name in baselines}
    baselines = [name for name in baselines if 2 * shared[name] >= max(shared.values())]
    seeds = [seed for seed in by_model[main] if all(seed in by_model[name] for name in baselines)]
    if not seeds or not baselines:
        return []
    compared = []
    for score in COMPARED_SCORES:
        means = {name: np.mean([by_model[name][seed][score] for seed in seeds]) for name in baselines}
        best = max(means, key=lambda name: means[name])
        first, second = by_model[main], by_model[best]
        differences = [first[seed][score] - second[seed][score] for seed in first if seed in second]
        better_in = sum(difference > 0 for difference in differences)
        entry = {"budget": budget, "score": score, "model": main, "baseline": best, "seeds": len(differences)}
        compared.append({**entry, "better_in": better_in, "difference": described(differences)})
    return compared


def plot_label_efficiency(path: str | Path, summary: Mapping[str, Any]) -> Path:
    """Draws overall and average accuracy over the number of labels as PNG, a line with its 95 % interval for each
    model. The first one, in red, is compared with five others at a time, in a row of their own."""
    results = sorted(summary["results"], key=lambda entry: entry["labels"])
    first, *others = dict.fromkeys(entry["model"] for entry in summary["results"])
    rows = [others[start : start + 5] for start in range(0, max(len(others), 1), 5)]
    figure = Figure(figsize=(13, 4.6 * len(rows) + 0.6), layout="constrained")
    for axes, compared in zip(figure.subplots(len(rows), 2, squeeze=False), rows, strict=True):
        for axis, score in zip(axes, ("overall_accuracy", "average_accuracy"), strict=True):
            for number, model in enumerate((first, *compared)):
                entries = [entry for entry in results if entry["model"] == model]
                labels, scores = [entry["labels"] for entry in entries], [entry[score] for entry in entries]
                style: dict[str, Any] = {"color": COLORS[number - 1], "lw": 1.4, "ms": 5, "zorder": 3}
                if number == 0:
                    style = {"color": MAIN_COLOR, "lw": 2.6, "ms": 6, "zorder": 5}
                means, low, high = (np.array([s[key] for s in scores], dtype=float) for key in ("mean", "low", "high"))
                axis.plot(labels, means, marker=MARKERS[number], label=entries[0]["title"], **style)
                # The bands of many models would hide each other
                if (number == 0 or len(compared) <= 3) and not np.isnan(low).any():
                    axis.fill_between(labels, low, high, color=style["color"], alpha=0.15, lw=0)
            budgets = {entry["budget"]: entry for entry in results}.values()
            ticks = {entry["labels"]: f"{entry['budget_title']}\n({entry['labels']:,.0f})" for entry in budgets}
            axis.set_xscale("log")
            # Budgets that come out nearly equal would overlap as upright names
            axis.set_xticks(list(ticks), list(ticks.values()), fontsize=8, rotation=30, ha="right")
            axis.minorticks_off()
            axis.set_xlabel("training labels")
            # Intervals of few seeds reach far beyond what accuracies can be
            reached = [entry[score]["mean"] for entry in results]
            axis.set_ylim(max(0.0, min(reached) - 0.1), min(1.0, max(reached) + 0.1))
            axis.set_title(score.replace("_", " "), fontsize=11)
            axis.yaxis.set_major_formatter(lambda value, position: f"{value:.0%}")
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        axes[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9, frameon=False)
    over = over_seeds(results)
    figure.suptitle(f"Land cover from few labels, test area never trained on ({over})", fontsize=12)
    return save_figure(path, figure)


def over_seeds(entries: Sequence[Mapping[str, Any]]) -> str:
    """What a figure's title says of the seeds of `entries`, and of their intervals."""
    numbers = sorted({len(entry["seeds"]) for entry in entries})
    seeds = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    noun = "seed" if numbers[-1] == 1 else "seeds"
    return f"mean of {seeds} {noun}{'; bands: 95 % interval' if numbers[-1] > 2 else ''}"


def label_efficiency_table(summary: Mapping[str, Any]) -> str:
    """Markdown of `label_efficiency.json`: percent, mean over seeds with its 95 % interval, the best in bold."""
    scores = {"overall_accuracy": "overall accuracy", "average_accuracy": "average accuracy"}
    if summary.get("untrained_classes"):
        scores["average_accuracy_trained"] = f"average accuracy without {', '.join(summary['untrained_classes'])}"
    scores["macro_f1"] = "macro F1"
    rows = []
    for entry in summary["results"]:
        rivals = [other for other in summary["results"] if other["budget"] == entry["budget"]]
        best = {name: max(other[name]["mean"] for other in rivals) for name in scores}
        cells = [percent(entry[name], entry[name]["mean"] == best[name]) for name in scores]
        labels = f"{entry['budget_title']} ({entry['labels']:,.0f})"
        rows.append([labels, entry["title"], str(len(entry["seeds"])), *cells])
    return markdown_table(("labels", "model", "seeds", *scores.values()), rows)


def load_directions(arguments: argparse.Namespace, window_size: int) -> dict[str, LabelledData]:
    """The data of each direction: an area to test on, all others to train on."""
    if not arguments.area:
        return {"split": load_data(arguments, window_size)}
    areas = {name: parse_area(area) for name, area in parse_named("area", "NAME=AREA", arguments.area).items()}
    if len(areas) < 2:
        raise ValueError(f"--area: expected two areas or more, got {len(areas)}")
    directions = {}
    for test in areas:
        training = [name for name in areas if name != test]
        split = {"train": [areas[name] for name in training], "test": [areas[test]]}
        directions[f"{' and '.join(training)} to {test}"] = load_data(arguments, window_size, split)
    return directions


def checkpoint_fingerprint(checkpoint: str) -> str:
    """A checksum of what makes the model of a checkpoint's folder; a name on the Hub stands for itself."""
    names = ("config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json")
    files = [file for name in names for file in sorted(Path(checkpoint).glob(name))]
    return fingerprint(*(part for file in files for part in (file.name, file.read_bytes()))) if files else checkpoint


def set_up(arguments: argparse.Namespace, models: Sequence[str]) -> tuple[Experiment, range]:
    """Reads the data and checks what can be known before the first run, `models` before the data are read."""
    check_least(arguments, 1, "seeds")
    options, settings = options_of(arguments), given_settings(arguments)
    checked = FineTuningSettings(**settings)
    if checked.early_stopping_patience is not None:
        raise ValueError(
            "--early_stopping_patience: expected none, for validation labels would come on top of a label budget"
        )
    for name in models:
        check_model(name, settings_for(name, settings), options)
    base = None if options.checkpoint is None else load_config(options.checkpoint)
    window_size = choose_window_size(checked, options, base)
    options = replace(options, window_size=window_size)
    directions = load_directions(arguments, window_size)
    for data in directions.values():
        check_classes(data)
        warn_of_untrained_classes(data)
    first = next(iter(directions.values()))
    starting_point(first, options)  # raises where the checkpoint does not fit the bands
    description = {
        "data_dir": str(arguments.data_dir),
        **{name: getattr(arguments, name) for name in ("dataset", "dataset_config")},
        "class_names": first.class_names,
        "labels": {
            name: fingerprint(*(part for scene in sorted(data.labels) for part in (scene, data.labels[scene])))
            for name, data in directions.items()
        },
        "checkpoint": None if options.checkpoint is None else checkpoint_fingerprint(options.checkpoint),
        "areas": arguments.area,
        "splits": {name: data.split.settings for name, data in directions.items()},
        "settings": settings,
        # what was not asked for is left out
        "options": {name: value for name, value in asdict(options).items() if name != "merged" or value},
    }
    return Experiment(directions, options, settings, description), range(arguments.seeds)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--recipe", choices=tuple(RECIPES), help="a benchmark of the paper with its settings")
    parser.add_argument("--models", default=",".join(MODELS), help="the first is compared with the others (all)")
    text = "labels per class, or shares of the labels (5,20,10%%,100%%)"
    parser.add_argument("--budgets", default="5,20,10%,100%", help=text)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of results, made if missing")
    add_training_arguments(parser)
    text = "an area as [SCENE,]ROW,ROW,COLUMN,COLUMN or a scene; give two or more"
    parser.add_argument("--area", action="append", default=[], metavar="NAME=AREA", help=text)
    add_data_arguments(parser)
    arguments = parser.parse_args()
    if arguments.recipe is not None:
        parser.set_defaults(**recipe_defaults(arguments.recipe, vars(arguments)))
        arguments = parser.parse_args()
    return arguments


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(format="%(levelname)s: %(message)s")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # Each training collects garbage at its end, half a second long if it looks through all that was imported
    gc.freeze()
    with one_line_errors("label_efficiency.py"):
        models = list(dict.fromkeys(name.strip() for name in arguments.models.split(",")))
        budgets = list(dict.fromkeys(Budget.parse(budget).name for budget in arguments.budgets.split(",")))
        experiment, seeds = set_up(arguments, models)
        directions = list(experiment.directions)
        runs = plan_runs(models, budgets, seeds, directions)
        rows = run_experiment(experiment, runs, arguments.output_dir)
        untrained = untrained_classes(experiment.directions)
        summary = summarize(rows, directions, experiment.class_names, experiment.description, untrained)
        print(label_efficiency_table(summary))
        print(write_json(arguments.output_dir / "label_efficiency.json", summary))
        print(plot_label_efficiency(arguments.output_dir / "label_efficiency.png", summary))


if __name__ == "__main__":
    main()

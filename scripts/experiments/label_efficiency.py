"""Models over label budgets, seeds and areas: runs that survive interruption, and what can be concluded from them.

Every area is the test area once, with the others for training; predictions of all directions are pooled into one
confusion matrix per model, budget and seed. Means, standard deviations and intervals (Student's t) are over seeds,
which draw the labels and the weights; models are compared seed by seed.
"""

from __future__ import annotations

import csv
import html
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from filelock import FileLock, Timeout
from scipy.stats import t as student_t
from tqdm.auto import tqdm

matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402

from datasets_loading.files import write_json, written_whole
from datasets_loading.labelled_data import LabelledData  # noqa: E402
from datasets_loading.land_cover_metric import land_cover_scores  # noqa: E402
from datasets_loading.splits import draw_labels  # noqa: E402
from hsst.experiments.baselines import (  # noqa: E402
    MODELS,
    ModelOptions,
    Outcome,
    check_model,
    model_entry,
    run_model,
    settings_for,
)
from hsst.experiments.pages import picture, table, write_page  # noqa: E402
from hsst.support.reports import figure_of_shares, plot_land_cover_map, shares_of

ROWS_NAME = "runs.csv"
EXPERIMENT_NAME = "experiment.json"
LOCK_NAME = ".lock"
MAPS_FOLDER = "maps"
COLUMNS = (
    "model",
    "budget",
    "seed",
    "direction",
    "labels",
    "overall_accuracy",
    "average_accuracy",
    "train_seconds",
    "predict_seconds",
    "parameters",
    "steps",
    "chosen_settings",
    "confusion_matrix",
)
SCORES = {
    "overall_accuracy": "overall accuracy",
    "average_accuracy": "average accuracy",
    "average_accuracy_frequent": "average accuracy, frequent classes",
    "macro_f1": "macro F1",
    "mean_iou": "mean IoU",
    "kappa": "kappa",
}
COMPARED_SCORES = ("overall_accuracy", "average_accuracy", "macro_f1", "mean_iou")

COLOURS = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]
MAIN_COLOUR = "#d1495b"
MOST_BANDS = 4
"""Up to so many models, a figure shows the intervals of all; otherwise of the first one."""


@dataclass(frozen=True)
class Budget:
    """How many training labels are used: a number for each class, or a fraction of each class."""

    per_class: int | None = None
    fraction: float | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """ "5" is a number for each class, "10%" and "0.1" are fractions, "100%" is all.

        Raises:
            ValueError: it is neither.
        """
        try:
            if text.endswith("%"):
                budget = cls(fraction=float(text[:-1]) / 100)
            elif "." in text:
                budget = cls(fraction=float(text))
            else:
                budget = cls(per_class=int(text))
        except ValueError:
            budget = cls()
        if not (budget.per_class or 0) >= 1 and not 0 < (budget.fraction or 0) <= 1:
            raise ValueError(f"budgets: expected labels per class (5) or a share of the labels (10%), got {text}")
        return budget

    @property
    def name(self) -> str:
        return str(self.per_class) if self.per_class is not None else f"{100 * (self.fraction or 0):g}%"

    @property
    def title(self) -> str:
        return f"{self.per_class} per class" if self.per_class is not None else self.name


@dataclass(frozen=True)
class Run:
    """One training: a model, a budget, a seed, and which area is the test area."""

    model: str
    budget: str
    seed: int
    direction: str


@dataclass(frozen=True)
class Variant:
    """A model with options of its own, under a name of its own.

    Attributes:
        model: one of `MODELS`.
        title: name for people.
        options: what it is made of, in each direction by its name.
    """

    model: str
    title: str
    options: Mapping[str, ModelOptions]


@dataclass(frozen=True)
class Experiment:
    """What all runs share.

    Attributes:
        directions: the data of each direction, by its name: same scenes, other splits.
        options: checkpoint, windows, configuration and statistics.
        settings: given settings of fine-tuning, for all models; others are each model's own.
        description: what was asked for, as JSON can hold it; runs of another description are not mixed with these.
        variants: models beside `MODELS`, by their names.
    """

    directions: Mapping[str, LabelledData]
    options: ModelOptions = ModelOptions()
    settings: Mapping[str, Any] = field(default_factory=dict)
    description: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, Variant] = field(default_factory=dict)

    @property
    def class_names(self) -> tuple[str, ...]:
        return next(iter(self.directions.values())).class_names

    def model_of(self, run: Run) -> tuple[str, ModelOptions]:
        """The model of a run, one of `MODELS`, and what it is made of."""
        if run.model not in self.variants:
            return run.model, self.options
        variant = self.variants[run.model]
        return variant.model, variant.options[run.direction]


def plan_runs(
    models: Sequence[str],
    budgets: Sequence[str],
    seeds: Sequence[int],
    directions: Sequence[str],
    variants: Mapping[str, Variant] | None = None,
) -> list[Run]:
    """All runs, seed by seed, so that an unfinished experiment can be looked at."""
    for name in models:
        model_entry(variants[name].model if variants and name in variants else name)
    names = [Budget.parse(budget).name for budget in budgets]
    return [
        Run(model, budget, seed, direction)
        for seed in seeds
        for budget in names
        for model in models
        for direction in directions
    ]


def train_and_test(experiment: Experiment, run: Run, *, labelled_only: bool) -> tuple[LabelledData, Outcome]:
    """Trains and tests once; the data with the labels of the run's budget, and what came out.

    Raises:
        ValueError: the model cannot be trained on the data; the message names the run.
    """
    data = experiment.directions[run.direction]
    budget = Budget.parse(run.budget)
    model, options = experiment.model_of(run)
    try:
        labels = draw_labels(
            data.labels, data.split, fraction=budget.fraction, per_class=budget.per_class, seed=run.seed
        )
        data = data.with_labels(labels)
        settings = replace(settings_for(model, experiment.settings), seed=run.seed)
        return data, run_model(model, data, settings, options, labelled_only=labelled_only)
    except ValueError as error:
        raise ValueError(f"{run.model}, {budget.title}, seed {run.seed}, {run.direction}: {error}") from error


def execute_run(experiment: Experiment, run: Run) -> dict[str, Any]:
    """Trains and tests once; the row of the run.

    Raises:
        ValueError: the model cannot be trained on the data; the message names the run.
    """
    data, outcome = train_and_test(experiment, run, labelled_only=True)
    scores = land_cover_scores(outcome.confusion)
    return {
        **asdict(run),
        "labels": int(data.class_counts("train").sum()),
        "overall_accuracy": scores["overall_accuracy"],
        "average_accuracy": scores["average_accuracy"],
        "train_seconds": round(outcome.train_seconds, 2),
        "predict_seconds": round(outcome.predict_seconds, 2),
        "parameters": outcome.parameters,
        "steps": None if outcome.training is None else outcome.training.steps,
        "chosen_settings": outcome.chosen,
        "confusion_matrix": outcome.confusion.tolist(),
    }


def check_runs(experiment: Experiment, runs: Sequence[Run]) -> None:
    """Checks what can be known before the first run: none shall fail after hours of others.

    Raises:
        ValueError: a model needs a checkpoint, or the settings ask for what it does not have.
    """
    for run in {run.model: run for run in runs}.values():
        model, options = experiment.model_of(run)
        check_model(model, settings_for(model, experiment.settings), options)


def run_experiment(
    experiment: Experiment,
    runs: Sequence[Run],
    folder: str | Path,
    *,
    processes: int | None = None,
    prepare: Callable[[Sequence[Run]], None] | None = None,
) -> list[dict[str, Any]]:
    """Does the runs that are not done yet, and writes each one's row as soon as it is.

    Args:
        experiment: what they share.
        runs: all runs wanted.
        folder: holds the rows (`runs.csv`) and, from the first of them on, the description (`experiment.json`); made
            if need be, and not left behind without anything in it.
        processes: how many work at the same time; by default one for each GPU, or one.
        prepare: is given the runs that are left, before the first of them.

    Returns:
        The rows of `runs`, in their order.

    Raises:
        ValueError: the folder holds runs of another experiment, or another process writes to it, or a run cannot be
            done or failed.
    """
    check_runs(experiment, runs)
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder for the runs, got a file")
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_NAME, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"{folder}: expected to be the only process that writes there, got another one") from None
    try:
        _check_description(experiment, folder)
        path = folder / ROWS_NAME
        done = {run_of(row): row for row in read_rows(path)}
        left = [run for run in runs if run not in done]
        if prepare is not None and left:
            prepare(left)
        with tqdm(total=len(runs), initial=len(runs) - len(left), desc="runs") as bar:
            for run, row in _execute(experiment, left, processes):
                if not (folder / EXPERIMENT_NAME).is_file():
                    write_json(folder / EXPERIMENT_NAME, experiment.description)
                append_row(path, row)
                done[run] = row
                bar.update()
                bar.set_postfix_str(f"{run.model}, {run.budget}: {row['overall_accuracy']:.3f}")
    finally:
        if is_new and {entry.name for entry in folder.iterdir()} <= {LOCK_NAME}:
            (folder / LOCK_NAME).unlink(missing_ok=True)
            folder.rmdir()
        lock.release()
    return [done[run] for run in runs]


_experiment: Experiment | None = None


def _execute(
    experiment: Experiment, runs: Sequence[Run], processes: int | None
) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Rows as they come."""
    devices = torch.cuda.device_count()
    processes = processes or max(devices, 1)
    if processes == 1 or len(runs) < 2:
        for run in runs:
            yield run, execute_run(experiment, run)
        return
    context = multiprocessing.get_context("spawn")
    numbers = context.SimpleQueue()
    for number in range(processes):
        numbers.put(number % devices if devices else None)
    with ProcessPoolExecutor(processes, context, _begin, (experiment, numbers)) as executor:
        futures = {executor.submit(_work, run): run for run in runs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise ValueError(
                f"--processes {processes}: a process ended in the middle of its run, out of memory?"
            ) from error
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def _begin(experiment: Experiment, numbers: Any) -> None:
    """In a worker: takes a device of its own, before CUDA is used."""
    global _experiment
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    number = numbers.get()
    if number is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number] if visible else str(number)
    _experiment = experiment


def _end_with(parent: int) -> None:
    """Ends this process after its parent, for a parent that is killed cannot tell its workers."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _work(run: Run) -> dict[str, Any]:
    assert _experiment is not None
    return execute_run(_experiment, run)


def _check_description(experiment: Experiment, folder: Path) -> None:
    path = folder / EXPERIMENT_NAME
    if not path.is_file():
        return
    wanted = json.loads(json.dumps(experiment.description))
    found = json.loads(path.read_text(encoding="utf-8"))
    different = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    if different:
        name = sorted(different)[0]
        raise ValueError(
            f"{folder}: expected runs with {name} {found.get(name)}, as those that are there have, got "
            f"{wanted.get(name)}: take another output folder"
        )


def run_of(row: Mapping[str, Any]) -> Run:
    return Run(str(row["model"]), str(row["budget"]), int(row["seed"]), str(row["direction"]))


def rows_of_others(
    folder: Path, models: Sequence[str], budgets: Sequence[str], description: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Rows of another experiment on the same labels and areas, of models that are none of `models`.

    Raises:
        ValueError: the folder holds none, or they are of other labels or areas.
    """
    path = folder / EXPERIMENT_NAME
    if not path.is_file():
        raise ValueError(f"{folder}: expected an experiment, got a folder without {EXPERIMENT_NAME}")
    other = json.loads(path.read_text(encoding="utf-8"))
    for name in ("labels", "areas"):
        if other.get(name) != description[name]:
            raise ValueError(f"{folder}: expected an experiment on the same {name}, got one on others")
    rows = [row for row in read_rows(folder / ROWS_NAME) if row["model"] not in models and row["budget"] in budgets]
    if not rows:
        raise ValueError(f"{folder}: expected runs of other models with the budgets {', '.join(budgets)}, got none")
    return rows


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of runs that are done; a last line that was cut off in writing is removed from the file.

    Raises:
        ValueError: the file is not one of runs.
    """
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with written_whole(path) as partial:
            partial.write_bytes(whole)
    lines = whole.decode("utf-8").splitlines()
    if not lines:
        return []
    reader = csv.DictReader(lines)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ValueError(f"{path}: expected the columns {', '.join(COLUMNS)}, got {lines[0][:200]}")
    return [_parsed(row) for row in reader]


def _parsed(row: dict[str, str]) -> dict[str, Any]:
    parsed: dict[str, Any] = dict(row)
    for name in ("seed", "labels"):
        parsed[name] = int(row[name])
    for name in ("overall_accuracy", "average_accuracy", "train_seconds", "predict_seconds"):
        parsed[name] = float(row[name])
    for name in ("parameters", "steps"):
        parsed[name] = int(row[name]) if row[name] else None
    for name in ("chosen_settings", "confusion_matrix"):
        parsed[name] = json.loads(row[name])
    return parsed


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a row at the end of the file, and waits until the disk has it."""
    is_new = not path.is_file() or path.stat().st_size == 0
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(COLUMNS)
        values = (row[name] for name in COLUMNS)
        writer.writerow([json.dumps(value) if isinstance(value, (list, dict)) else value for value in values])
        file.flush()
        os.fsync(file.fileno())


def pooled_scores(rows: Sequence[Mapping[str, Any]], directions: Sequence[str]) -> dict[tuple[str, str, int], dict]:
    """Scores of each model, budget and seed from the pooled predictions of all directions, with `labels`, the training
    labels of all directions; seeds that lack a direction are left out."""
    grouped: dict[tuple[str, str, int], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        grouped.setdefault((row["model"], row["budget"], row["seed"]), {})[row["direction"]] = row
    pooled = {}
    for key, by_direction in grouped.items():
        if set(directions) <= set(by_direction):
            chosen = [by_direction[name] for name in directions]
            matrix = sum(np.array(row["confusion_matrix"]) for row in chosen)
            pooled[key] = {
                **land_cover_scores(np.asarray(matrix)),
                "labels": sum(row["labels"] for row in chosen),
                "train_seconds": sum(row["train_seconds"] for row in chosen),
                "parameters": chosen[0]["parameters"],
            }
    return pooled


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """
    95 % interval of a mean after Student's t; None for fewer than three values. Bootstrapped percentiles of so few
    values as there are seeds are too narrow: of five, they hold the mean in 84 % of the cases.
    """
    if len(values) < 3:
        return None
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / len(values) ** 0.5
    reach = float(student_t.ppf(0.975, len(values) - 1)) * error
    return mean - reach, mean + reach


def described(values: Sequence[float | None]) -> dict[str, Any] | None:
    """Mean, standard deviation and 95 % interval (low, high) of values; None where none is known."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    between = interval(known)
    return {
        "mean": float(np.mean(known)),
        "std": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "low": None if between is None else between[0],
        "high": None if between is None else between[1],
    }


def summarise(
    rows: Sequence[Mapping[str, Any]],
    directions: Sequence[str],
    class_names: Sequence[str],
    description: Mapping[str, Any] | None = None,
    untrained: Sequence[str] = (),
) -> dict[str, Any]:
    """What the rows say, as JSON can hold it.

    Args:
        rows: of `run_experiment`.
        directions: names of the directions that are pooled.
        class_names: of the labels.
        description: of the experiment.
        untrained: classes that lack training pixels in a direction in which they are tested (`untrained_classes`): the
            average accuracy is also taken without them.

    Returns:
        results: for each budget and model the seeds, labels, and mean, standard deviation and 95 %
            interval (low, high) of each score over seeds, with the mean accuracy of each class and
            `confusion_shares`, the mean over seeds of the share of each reference class (row) that was predicted as
            each class, None in rows of classes that do not occur.
        comparisons: for each budget and score, the first model against the best of those without pre-training: mean
            difference, its interval, and in how many seeds it is better. The best is chosen by its mean over the same
            seeds, which favours it.
        comparisons_to_scratch: the same of each model that is there from scratch, too.
    """
    pooled = pooled_scores(rows, directions)
    models = list(dict.fromkeys(row["model"] for row in rows))
    budgets = list(dict.fromkeys(row["budget"] for row in rows))
    results, comparisons, comparisons_to_scratch = [], [], []
    for budget in budgets:
        by_model = {
            model: {
                seed: scores
                for (name, size, seed), scores in sorted(pooled.items())
                if (name, size) == (model, budget)
            }
            for model in models
        }
        for model, by_seed in by_model.items():
            if not by_seed:
                continue
            scores = list(by_seed.values())
            accuracies = [
                [value[number] for value in (score["accuracy_per_class"] for score in scores)]
                for number in range(len(class_names))
            ]
            results.append(
                {
                    "model": model,
                    "title": MODELS[model].title if model in MODELS else model,
                    "budget": budget,
                    "budget_title": Budget.parse(budget).title,
                    "labels": float(np.mean([score["labels"] for score in scores])),
                    "seeds": list(by_seed),
                    "parameters": scores[0]["parameters"],
                    "train_seconds": float(np.mean([score["train_seconds"] for score in scores])),
                    **{name: described([score[name] for score in scores]) for name in SCORES},
                    "average_accuracy_trained": described(
                        [average_without(score["accuracy_per_class"], class_names, untrained) for score in scores]
                    ),
                    "accuracy_per_class": {
                        name: described(values) for name, values in zip(class_names, accuracies, strict=True)
                    },
                    "confusion_shares": _mean_shares([score["confusion_matrix"] for score in scores]),
                }
            )
        main, *others = models
        baselines = [name for name in others if name not in MODELS or not MODELS[name].needs_checkpoint]
        comparisons += _compare(by_model, main, baselines, budget)
        # Models beside those that only lack their pre-trained weights
        for model in models:
            comparisons_to_scratch += _compare(
                by_model, model, [name for name in models if name == f"{model}-scratch"], budget
            )
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


def untrained_classes(directions: Mapping[str, LabelledData]) -> list[str]:
    """Classes that are tested in a direction in which they have no training pixel: there, none can be right."""
    found = []
    for data in directions.values():
        trained, tested = data.class_counts("train"), data.class_counts("test")
        found += [name for name, a, b in zip(data.class_names, trained, tested, strict=True) if b and not a]
    return list(dict.fromkeys(found))


def average_without(
    accuracies: Sequence[float | None], class_names: Sequence[str], left_out: Sequence[str]
) -> float | None:
    """Mean accuracy of the classes that occur, without some; None where no class is left."""
    kept = [
        accuracy
        for accuracy, name in zip(accuracies, class_names, strict=True)
        if accuracy is not None and name not in left_out
    ]
    return float(np.mean(kept)) if kept else None


def _mean_shares(matrices: Sequence[Sequence[Sequence[int]]]) -> list[list[float] | None]:
    """Mean of the shares of confusion matrices, row by row; None where a class does not occur."""
    shares = np.mean([shares_of(np.asarray(matrix)) for matrix in matrices], axis=0)
    return [None if np.isnan(row).any() else row.tolist() for row in shares]


def _compare(
    by_model: Mapping[str, Mapping[int, Mapping[str, Any]]], main: str, baselines: Sequence[str], budget: str
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
        of_both = [seed for seed in by_model[main] if seed in by_model[best]]
        difference = paired_difference(by_model[main], by_model[best], score, of_both)
        compared.append({"budget": budget, "score": score, "model": main, "baseline": best, **difference})
    return compared


def paired_difference(
    first: Mapping[int, Mapping[str, Any]], second: Mapping[int, Mapping[str, Any]], score: str, seeds: Sequence[int]
) -> dict[str, Any]:
    """How much better the first is than the second, seed by seed.

    Args:
        first, second: scores by seed (`pooled_scores`).
        score: name of the score.
        seeds: seeds that both have.

    Returns:
        seeds: how many; better_in: in how many of them the first is better; difference: its mean with deviation and
        interval.
    """
    differences = [first[seed][score] - second[seed][score] for seed in seeds]
    better_in = sum(difference > 0 for difference in differences)
    return {"seeds": len(seeds), "better_in": better_in, "difference": described(differences)}


def plot_label_efficiency(path: str | Path, summary: Mapping[str, Any]) -> Path:
    """Draws overall and average accuracy over the number of labels as PNG, a line with its 95 % interval for each
    model, the first one in red."""
    results = summary["results"]
    models = list(dict.fromkeys(entry["model"] for entry in results))
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.2), layout="constrained", sharex=True)
    for axis, score in zip(axes, ("overall_accuracy", "average_accuracy"), strict=True):
        for number, model in enumerate(models):
            entries = sorted(
                (entry for entry in results if entry["model"] == model), key=lambda entry: entry["labels"]
            )
            labels = [entry["labels"] for entry in entries]
            means = [entry[score]["mean"] for entry in entries]
            is_main = number == 0
            colour = MAIN_COLOUR if is_main else COLOURS[(number - 1) % 10]
            style = "-" if is_main or number <= 5 else "--"
            axis.plot(
                labels,
                means,
                style,
                marker="o",
                color=colour,
                lw=2.6 if is_main else 1.4,
                ms=6 if is_main else 4,
                zorder=5 if is_main else 3,
                label=entries[0]["title"],
            )
            bands = [entry[score] for entry in entries]
            # of many models, the bands would hide each other
            if all(band["low"] is not None for band in bands) and (is_main or len(models) <= MOST_BANDS):
                lows, highs = [band["low"] for band in bands], [band["high"] for band in bands]
                axis.fill_between(labels, lows, highs, color=colour, alpha=0.25 if is_main else 0.1, lw=0)
        axis.set_xscale("log")
        ticks = {entry["budget"]: entry for entry in results}
        positions = [ticks[name]["labels"] for name in ticks]
        names = [f"{ticks[name]['budget_title']}\n({ticks[name]['labels']:,.0f} labels)" for name in ticks]
        # Budgets that come out nearly equal would overlap as upright names
        axis.set_xticks(positions, names, fontsize=8, rotation=30, ha="right")
        axis.minorticks_off()
        # Intervals of few seeds reach far beyond what accuracies can be
        means = [entry[score]["mean"] for entry in results]
        axis.set_ylim(max(0.0, min(means) - 0.1), min(1.0, max(means) + 0.1))
        axis.set_title(SCORES[score], fontsize=11)
        axis.yaxis.set_major_formatter(lambda value, position: f"{value:.0%}")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_xlabel("training labels")
    axes[1].set_xlabel("training labels")
    axes[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9, frameon=False)
    numbers = sorted({len(entry["seeds"]) for entry in results})
    seeds = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    noun = "seed" if numbers[-1] == 1 else "seeds"
    intervals = "; bands: 95 % interval" if numbers[-1] > 2 else ""
    figure.suptitle(
        f"Land cover from few labels, test area never trained on (mean of {seeds} {noun}{intervals})", fontsize=12
    )
    try:
        with written_whole(path) as partial:
            figure.savefig(partial, dpi=110)
        return Path(path)
    finally:
        plt.close(figure)


def percent(described: Mapping[str, Any] | None) -> str:
    """A mean with its interval, in percent."""
    if described is None:
        return "–"
    mean = f"{100 * described['mean']:.1f}"
    if described["low"] is None:
        return mean
    # a dash would run into a minus sign
    to = " to " if described["low"] < 0 else "–"
    return f"{mean} ({100 * described['low']:.1f}{to}{100 * described['high']:.1f})"


def label_efficiency_table(summary: Mapping[str, Any]) -> str:
    """Markdown of `label_efficiency.json`: percent, mean over seeds with its 95 % interval, the best in bold."""
    scores = {"overall_accuracy": "overall accuracy", "average_accuracy": "average accuracy"}
    if summary.get("untrained_classes"):
        scores["average_accuracy_trained"] = f"average accuracy without {', '.join(summary['untrained_classes'])}"
    scores["macro_f1"] = "macro F1"
    rows = [f"| labels | model | seeds | {' | '.join(scores.values())} |", "|---|---|---|" + "---|" * len(scores)]
    for budget in dict.fromkeys(entry["budget"] for entry in summary["results"]):
        entries = [entry for entry in summary["results"] if entry["budget"] == budget]
        for entry in entries:
            cells = []
            for name in scores:
                score = entry[name]
                text = f"{100 * score['mean']:.1f}"
                if score["mean"] == max(other[name]["mean"] for other in entries):
                    text = f"**{text}**"
                if score["low"] is not None:
                    text += f" ({100 * score['low']:.1f}–{100 * score['high']:.1f})"
                cells.append(text)
            rows.append(
                f"| {entry['budget_title']} ({entry['labels']:,.0f}) | {entry['title']} | {len(entry['seeds'])} | "
                f"{' | '.join(cells)} |"
            )
    return "\n".join(rows)


def write_report_page(
    path: str | Path, summary: Mapping[str, Any], figure: str | Path, maps: Sequence[str | Path] = ()
) -> Path:
    """Writes one HTML file with figure, scores, comparisons, confusion matrices, maps and accuracies of classes; it
    needs no other file."""
    titles = {
        name: SCORES[name]
        for name in ("overall_accuracy", "average_accuracy", "average_accuracy_frequent", "macro_f1", "mean_iou")
    }
    untrained = summary["untrained_classes"]
    if untrained:
        titles["average_accuracy_trained"] = f"average accuracy without {', '.join(untrained)}"
    rows = []
    for entry in summary["results"]:
        cells = [entry["budget_title"], entry["title"], f"{entry['labels']:,.0f}", str(len(entry["seeds"]))]
        cells += [percent(entry[name]) for name in titles]
        cells += ["–" if entry["parameters"] is None else f"{entry['parameters']:,}", f"{entry['train_seconds']:,.0f}"]
        rows.append(cells)
    header = ["labels", "model", "number", "seeds", *titles.values(), "parameters", "seconds"]
    classes = [
        [
            entry["budget_title"],
            entry["title"],
            *(percent(entry["accuracy_per_class"][name]) for name in summary["class_names"]),
        ]
        for entry in summary["results"]
    ]
    body = f"""<p>{summary["runs"]} runs; directions: {html.escape("; ".join(summary["directions"]))}. Every area is
the test area once; predictions of all directions are pooled. Percent, mean over seeds with its 95&nbsp;% interval
(Student's t).{_told_untrained(untrained)}</p>
{picture(figure, "Scores over the number of training labels")}
<h2>Scores</h2>{table(header, rows)}
<h2>Against the best baseline, seed by seed</h2>
<p>The best baseline, among models without pre-training, is chosen by its mean over the same seeds.</p>
{_comparison_table(summary["comparisons"])}
"""
    if summary["comparisons_to_scratch"]:
        body += "<h2>Against the same model from scratch, seed by seed</h2>\n"
        body += _comparison_table(summary["comparisons_to_scratch"])
    body += f"""<h2>Confusion matrices</h2>
<p>Share of each reference class that was predicted as each class, mean over seeds; beside the first model the best
baseline by overall accuracy. Classes that do not occur in the test area have an empty row.</p>
{_confusion_pictures(summary)}
"""
    if maps:
        body += "<h2>Maps</h2><p>One seed, the largest budget; the first model and the best baseline.</p>\n"
        body += "\n".join(picture(source, Path(source).stem) for source in maps)
    body += f"""<h2>Accuracy of each class</h2>{table(["labels", "model", *summary["class_names"]], classes)}
<h2>Settings</h2><pre>{html.escape(json.dumps(summary["experiment"], indent=1, ensure_ascii=False))}</pre>"""
    return write_page(path, "Land cover from few labels", body)


def _told_untrained(untrained: Sequence[str]) -> str:
    if not untrained:
        return ""
    names = html.escape(", ".join(untrained))
    return (
        f" In one direction or more there is no training pixel of {names}: none of its test pixels can be right there."
    )


def _comparison_table(comparisons: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            Budget.parse(entry["budget"]).title,
            SCORES[entry["score"]],
            f"{_title(entry['model'])} – {_title(entry['baseline'])}",
            percent(entry["difference"]),
            f"{entry['better_in']} of {entry['seeds']}",
        ]
        for entry in comparisons
    ]
    return table(["labels", "score", "difference of", "points", "better in"], rows)


def best_baselines(summary: Mapping[str, Any]) -> dict[str, str]:
    """The best baseline by overall accuracy of each budget that has one."""
    return {
        entry["budget"]: entry["baseline"] for entry in summary["comparisons"] if entry["score"] == "overall_accuracy"
    }


def _confusion_pictures(summary: Mapping[str, Any]) -> str:
    """Confusion matrices of the first model and of the best baseline, budget by budget."""
    by_name = {(entry["budget"], entry["model"]): entry for entry in summary["results"]}
    best, main = best_baselines(summary), summary["results"][0]["model"]
    pictures = []
    for budget in dict.fromkeys(entry["budget"] for entry in summary["results"]):
        entries = [by_name[budget, name] for name in (main, best.get(budget)) if (budget, name) in by_name]
        if not entries:
            continue
        size = len(summary["class_names"])
        matrices = {
            f"{entry['title']}, {entry['budget_title']}": np.array(
                [[np.nan] * size if row is None else row for row in entry["confusion_shares"]]
            )
            for entry in entries
        }
        pictures.append(picture(figure_of_shares(matrices, summary["class_names"]), f"Confusion matrices, {budget}"))
    return "\n".join(pictures)


def _title(model: str) -> str:
    return MODELS[model].title if model in MODELS else model


def draw_maps(experiment: Experiment, summary: Mapping[str, Any], seed: int, folder: str | Path) -> list[Path]:
    """Maps of the test areas by the first model and the best baseline of the largest budget, beside the reference.

    Rows do not keep maps, so that each model is trained once more for each direction; a map that is there is kept.

    Args:
        experiment: what the runs share.
        summary: `summarise` of its rows.
        seed: of the runs to draw.
        folder: folder of the runs; maps are PNG files in its folder `maps`.

    Raises:
        ValueError: the model cannot be trained on the data.
    """
    budget = max(summary["results"], key=lambda entry: entry["labels"])["budget"]
    models = [summary["results"][0]["model"]]
    models += [name for name in [best_baselines(summary).get(budget)] if name is not None]
    paths = []
    for number, direction in enumerate(experiment.directions):
        for model in models:
            run = Run(model, budget, seed, direction)
            path = Path(folder) / MAPS_FOLDER / f"{model}_{budget.replace('%', '_percent')}_seed{seed}_{number}.png"
            if not path.is_file():
                data, outcome = train_and_test(experiment, run, labelled_only=False)
                title = f"{_title(model)}, {Budget.parse(budget).title}, seed {seed}, {direction}"
                plot_land_cover_map(path, data, outcome.maps, title)
            paths.append(path)
    return paths


def write_reports(summary: Mapping[str, Any], folder: str | Path, maps: Sequence[str | Path] = ()) -> list[Path]:
    """Writes `label_efficiency.json`, `.png` and `.html`, with maps (`draw_maps`) on the page."""
    folder = Path(folder)
    figure = plot_label_efficiency(folder / "label_efficiency.png", summary)
    return [
        write_json(folder / "label_efficiency.json", summary),
        figure,
        write_report_page(folder / "label_efficiency.html", summary, figure, maps),
    ]

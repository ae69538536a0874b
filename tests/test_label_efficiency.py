"""Models over label budgets: nothing is done twice, nothing done is lost, and the sums are right."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_one_clear_line
from small_land_cover import CLASS_NAMES, TINY, small_cube, small_data, write_small_checkpoint, write_small_scene

from datasets_loading.files import append_row, read_rows
from datasets_loading.land_cover_metric import land_cover_scores
from hsst.experiments import label_efficiency
from hsst.experiments.label_efficiency import (
    COMPARED_SCORES,
    Budget,
    Experiment,
    Run,
    _compare,
    label_efficiency_table,
    plan_runs,
    plot_label_efficiency,
    pooled_scores,
    run_experiment,
    run_of,
    summarize,
    untrained_classes,
)
from hsst.support.reports import described, interval, percent, pooled_interval
from hsst.support.training_settings import ModelOptions

ROOT = Path(__file__).parents[1]
SCRIPT = "experiments/label_efficiency.py"
OPTIONS = ModelOptions(None, TINY, window_size=5)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


SETTINGS = {"max_steps": 3, "batch_size": 2, "use_cpu": True}


def experiment(settings=SETTINGS, **description):
    return Experiment({"left to right": small_data()}, OPTIONS, settings, description)


def made_up_row(model, budget, seed, direction, matrix):
    scores = land_cover_scores(np.array(matrix))
    return {
        "model": model,
        "budget": budget,
        "seed": seed,
        "direction": direction,
        "labels": 10,
        "overall_accuracy": scores["overall_accuracy"],
        "average_accuracy": scores["average_accuracy"],
        "train_seconds": 1.5,
        "predict_seconds": 0.5,
        "parameters": None,
        "steps": 4,
        "chosen_settings": {"C": 1.0},
        "confusion_matrix": matrix,
    }


@pytest.mark.parametrize(
    ("text", "name", "title"),
    [("5", "5", "5 per class"), ("10%", "10%", "10%"), ("0.1", "10%", "10%"), ("0.5%", "0.5%", "0.5%")],
)
def test_budgets(text, name, title) -> None:
    assert (Budget.parse(text).name, Budget.parse(text).title) == (name, title)
    assert Budget.parse(name) == Budget.parse(text)


@pytest.mark.parametrize("text", ["0", "-3", "120%", "few", "1.5", "0%"])
def test_senseless_budgets_are_refused(text) -> None:
    with pytest.raises(ValueError, match=f"budgets: expected .+, got {text}"):
        Budget.parse(text)


def test_rows_are_read_as_they_were_written(tmp_path) -> None:
    path = tmp_path / "runs.jsonl"
    rows = [made_up_row("svm", "5", seed, "a to b", [[3, 1], [0, 4]]) for seed in range(3)]
    for row in rows:
        append_row(path, row)
    assert read_rows(path) == rows


def test_a_row_that_was_cut_off_is_done_again(tmp_path) -> None:
    path = tmp_path / "runs.jsonl"
    for seed in range(2):
        append_row(path, made_up_row("svm", "5", seed, "a to b", [[3, 1], [0, 4]]))
    content = path.read_bytes()
    for cut in (len(content) - 1, len(content) - 20, content.index(b"\n") + 3, 3):
        path.write_bytes(content[:cut])
        left = len(read_rows(path))
        append_row(path, made_up_row("svm", "5", 7, "a to b", [[3, 1], [0, 4]]))
        assert [row["seed"] for row in read_rows(path)] == [*range(left), 7]
    for other in ("other,columns\n", "1\n", "[\n"):
        path.write_text(content.decode() + other)
        with pytest.raises(ValueError, match="runs.jsonl, line 3: expected a JSON object"):
            read_rows(path)


def test_runs_that_are_done_are_not_done_again(tmp_path, monkeypatch) -> None:
    calls = []
    execute = label_efficiency.execute_run
    monkeypatch.setattr(
        label_efficiency, "execute_run", lambda given, run: (calls.append(run), execute(given, run))[1]
    )
    runs = plan_runs(["knn", "cnn-1d"], ["2", "100%"], range(2), ["left to right"])
    first = run_experiment(experiment(), runs[:3], tmp_path)
    assert calls == runs[:3]
    rows = run_experiment(experiment(), runs, tmp_path)
    assert calls == runs and [run_of(row) for row in rows] == runs and rows[:3] == first
    assert run_experiment(experiment(), runs, tmp_path) == read_rows(tmp_path / "runs.jsonl")
    assert len(calls) == len(runs)
    by_run = {run_of(row): row for row in rows}
    assert by_run[Run("knn", "2", 0, "left to right")]["labels"] == 6
    # the same seed, the same result, whatever ran before it
    again = execute(experiment(), runs[1])
    assert again["confusion_matrix"] == by_run[runs[1]]["confusion_matrix"]


DIVERGING = {**SETTINGS, "learning_rate": 1e30, "max_grad_norm": 0.0}


def test_an_error_loses_no_other_run(tmp_path) -> None:
    runs = [Run("knn", "2", 0, "left to right"), Run("cnn-1d", "2", 0, "left to right")]
    with pytest.raises(ValueError, match="cnn-1d, 2 per class, seed 0, left to right: learning_rate: expected one"):
        run_experiment(experiment(DIVERGING), runs, tmp_path)
    assert [run_of(row) for row in read_rows(tmp_path / "runs.jsonl")] == runs[:1]


def test_an_error_in_the_first_run_leaves_nothing(tmp_path) -> None:
    runs = [Run("cnn-1d", "2", 0, "left to right")]
    with pytest.raises(ValueError, match="learning_rate"):
        run_experiment(experiment(DIVERGING, rate=1e30), runs, tmp_path / "output")
    assert not (tmp_path / "output").exists()
    # the description of runs that never were does not bind those that follow
    assert len(run_experiment(experiment(rate=1e-3), runs, tmp_path / "output")) == 1


@pytest.mark.parametrize(
    ("last", "settings", "words"),
    [
        ("hsst", {}, "hsst: expected a checkpoint"),
        (
            "cnn-3d",
            {"freeze_encoder": True},
            "--freeze_encoder: expected a model .+, got cnn-3d",
        ),
        ("cnn-3d", {"spectral_crop": 0.5}, "--spectral_crop: expected a model with .+, got cnn-3d"),
    ],
)
def test_what_cannot_run_is_found_before_the_first_run(last, settings, words, tmp_path) -> None:
    runs = plan_runs(["knn", last], ["2"], range(1), ["left to right"])
    with pytest.raises(ValueError, match=words):
        run_experiment(experiment({**SETTINGS, **settings}), runs, tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_runs_with_other_settings_are_not_mixed(tmp_path) -> None:
    runs = plan_runs(["knn"], ["2"], range(1), ["left to right"])
    run_experiment(experiment(given={"max_steps": 3}), runs, tmp_path)
    with pytest.raises(ValueError, match="expected runs with given .+'max_steps': 3.+, got .+'max_steps': 4"):
        run_experiment(experiment(given={"max_steps": 4}), runs, tmp_path)


def test_directions_are_pooled_before_they_are_scored() -> None:
    first, second = [[8, 2], [0, 0]], [[0, 0], [9, 1]]
    rows = [made_up_row("svm", "5", 0, "a", first), made_up_row("svm", "5", 0, "b", second)]
    rows.append(made_up_row("svm", "5", 1, "a", first))
    pooled = pooled_scores(rows, ["a", "b"])
    assert list(pooled) == [("svm", "5", 0)]  # seed 1 lacks a direction
    assert pooled["svm", "5", 0]["average_accuracy"] == pytest.approx((0.8 + 0.1) / 2)
    assert pooled["svm", "5", 0]["labels"] == 20


def test_summary_has_means_deviations_and_paired_differences() -> None:
    right = {"hsst": (80, 82, 84), "svm": (70, 75, 80), "knn": (60, 60, 60), "linear-probe": (99, 99, 99)}
    rows = [
        made_up_row(model, "5", seed, "a", [[count, 100 - count], [100 - count, count]])
        for model, counts in right.items()
        for seed, count in enumerate(counts)
    ]
    summary = summarize(rows, ["a"], ["one", "two"])
    scores = {entry["model"]: entry["overall_accuracy"] for entry in summary["results"]}
    assert scores["svm"]["mean"] == pytest.approx(0.75) and scores["svm"]["std"] == pytest.approx(0.05)
    # Student's t with two degrees of freedom
    assert scores["svm"]["low"] == pytest.approx(0.75 - 4.3027 * 0.05 / 3**0.5, abs=1e-4)
    assert scores["svm"]["high"] == pytest.approx(0.75 + 4.3027 * 0.05 / 3**0.5, abs=1e-4)
    assert scores["knn"]["low"] == scores["knn"]["high"] == pytest.approx(0.6)
    compared = {entry["score"]: entry for entry in summary["comparisons"]}["overall_accuracy"]
    # a probe of the pre-trained model itself is no baseline
    assert (compared["model"], compared["baseline"], compared["better_in"]) == ("hsst", "svm", 3)
    assert compared["difference"]["mean"] == pytest.approx((0.10 + 0.07 + 0.04) / 3)
    assert json.loads(json.dumps(summary)) == summary


def test_the_model_from_scratch_is_compared_beside_the_best_baseline() -> None:
    right = {"hsst": (80, 82, 84), "svm": (79, 85, 80), "hsst-scratch": (70, 75, 80)}
    rows = [
        made_up_row(model, "5", seed, "a", [[count, 100 - count], [100 - count, count]])
        for model, counts in right.items()
        for seed, count in enumerate(counts)
    ]
    summary = summarize(rows, ["a"], ["one", "two"])
    best, scratch = (
        {entry["score"]: entry for entry in summary[name]}["overall_accuracy"]
        for name in ("comparisons", "comparisons_to_scratch")
    )
    assert (best["baseline"], best["better_in"], scratch["baseline"], scratch["better_in"]) == (
        *("svm", 2),
        *("hsst-scratch", 3),
    )
    assert scratch["difference"]["mean"] == pytest.approx((0.10 + 0.07 + 0.04) / 3)
    assert scratch["difference"]["low"] < scratch["difference"]["mean"] < scratch["difference"]["high"]
    # it is not compared with itself
    alone = summarize([row for row in rows if row["model"] == "hsst-scratch"], ["a"], ["one", "two"])
    assert alone["comparisons_to_scratch"] == []


def test_confusion_shares_are_means_over_seeds_of_rows() -> None:
    rows = [
        made_up_row("svm", "5", seed, "a", [[right, 10 - right, 0], [0, 4, 0], [0, 0, 0]])
        for seed, right in enumerate((8, 6))
    ]
    (entry,) = summarize(rows, ["a"], ["one", "two", "three"])["results"]
    assert entry["confusion_shares"] == [pytest.approx([0.7, 0.3, 0.0]), [0.0, 1.0, 0.0], None]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([0.5], "50.0"),
        ([0.5, 0.5, 0.5], "50.0 (50.0–50.0)"),
        ([-0.5, -0.5, -0.5], "-50.0 (-50.0 to -50.0)"),
        ([], "–"),
    ],
)
def test_percent(values, text) -> None:
    assert percent(described(values)) == text


def test_interval_is_that_of_the_mean() -> None:
    assert interval([0.5, 0.6]) is None
    values = np.random.default_rng(0).normal(0.5, 0.1, 100)
    low, high = interval(values)
    assert low == pytest.approx(values.mean() - 1.96 * values.std() / 10, abs=0.003)
    assert high == pytest.approx(values.mean() + 1.96 * values.std() / 10, abs=0.003)
    # Of few values, it holds the mean as often as it says
    drawn = np.random.default_rng(1).normal(0.0, 1.0, (2000, 5))
    held = [low <= 0.0 <= high for low, high in map(interval, drawn)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


def test_interval_of_pooled_scores_is_around_them() -> None:
    """Of parts with other classes each, too, whose own scores have another mean."""
    generator = np.random.default_rng(0)
    alike = [generator.multinomial(50, [0.3, 0.1, 0.2, 0.4]).reshape(2, 2) for _ in range(5)]
    expected = interval([np.trace(matrix) / 50 for matrix in alike])
    assert pooled_interval(alike, "overall_accuracy") == pytest.approx(expected)
    assert pooled_interval(alike[:2], "macro_f1") is None

    def part() -> np.ndarray:
        matrix = np.zeros((4, 4), dtype=np.int64)
        for row in generator.choice(4, 2, replace=False, p=[0.5, 0.3, 0.15, 0.05]):
            matrix[row] = generator.multinomial(30, generator.dirichlet(0.4 + 4 * np.eye(4)[row]))
        return matrix

    truth = land_cover_scores(np.sum([part() for _ in range(5_000)], axis=0))["macro_f1"]
    parts = [[part() for _ in range(8)] for _ in range(200)]
    held = [low <= truth <= high for low, high in (pooled_interval(each, "macro_f1") for each in parts)]
    own = [interval([land_cover_scores(matrix)["macro_f1"] for matrix in each]) for each in parts]
    assert np.mean(held) > 0.88
    assert np.mean([low <= truth <= high for low, high in own]) < 0.8


def test_figure_and_table_show_every_model_and_budget(tmp_path, real_figures) -> None:
    rows = [
        made_up_row(model, budget, seed, "a", [[8 + seed, 2], [1, 9]])
        for model in ("hsst", "svm")
        for budget in ("5", "100%")
        for seed in range(2)
    ]
    summary = summarize(rows, ["a"], ["grass", "water"], {"data_dir": "folder"})
    assert summary["runs"] == 8 and summary["experiment"] == {"data_dir": "folder"}
    assert plot_label_efficiency(tmp_path / "figure.png", summary).stat().st_size > 10_000
    text = label_efficiency_table(summary)
    for words in ("HSST, pre-trained", "SVM (RBF)", "5 per class", "100%"):
        assert text.count(words) == 2


def test_classes_without_training_pixels_are_named_and_left_out_of_an_average() -> None:
    rows = [made_up_row("svm", "5", seed, "a", [[8, 2, 0], [4, 6, 0], [5, 5, 0]]) for seed in range(3)]
    summary = summarize(rows, ["a"], ["one", "two", "water"], untrained=["water"])
    (entry,) = summary["results"]
    assert entry["average_accuracy"]["mean"] == pytest.approx(1.4 / 3)
    assert entry["average_accuracy_trained"]["mean"] == pytest.approx(0.7)
    assert "average accuracy without water" in label_efficiency_table(summary)
    whole = experiment()
    assert untrained_classes(whole.directions) == []
    name, data = next(iter(whole.directions.items()))
    labels = {scene: np.where(values == 0, 255, values).astype(np.uint8) for scene, values in data.labels.items()}
    tested = {key: np.where(data.split.mask(key, "test"), data.labels[key], labels[key]) for key in labels}
    assert untrained_classes({name: data.with_labels(tested)}) == [data.class_names[0]]


def test_documents_get_their_table_from_the_results(tmp_path, monkeypatch) -> None:
    rows = [
        made_up_row(model, "5", seed, "a", [[8 + seed, 2], [1, right]])
        for model, right in (("hsst", 9), ("svm", 5))
        for seed in range(3)
    ]
    summary = summarize(rows, ["a"], ["grass", "water"])
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    tables = runpy.run_path(str(ROOT / "scripts" / "experiments/tables.py"))["TABLES"]
    monkeypatch.setitem(tables["label_efficiency"].__globals__, "result", lambda name: summary)
    lines = tables["label_efficiency"]().splitlines()
    assert len(lines) == 4
    mean = 100 * summary["results"][0]["overall_accuracy"]["mean"]
    assert lines[2].startswith(f"| 5 per class (10) | HSST, pre-trained | 3 | **{mean:.1f}** (")
    assert "**" not in lines[3]


def script_arguments(folder):
    write_small_scene(folder / "scene")
    return [
        *("--data_dir", folder / "scene", "--class_names", ",".join(CLASS_NAMES), "--window_size", 5),
        *("--area", "left=0,24,0,22", "--area", "right=0,24,28,52", "--max_steps", 4, "--batch_size", 2),
        *("--use_cpu", "--output_dir", folder / "output"),
    ]


def test_command_tests_on_each_area_once(run_script, tmp_path) -> None:
    checkpoint = write_small_checkpoint(tmp_path / "checkpoint")
    given = script_arguments(tmp_path)
    given += ["--model_name_or_path", checkpoint, "--models", "hsst,knn", "--budgets", "3,50%", "--seeds", 2]
    result = run_script(SCRIPT, *given)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "output" / "label_efficiency.json").read_text())
    assert summary["directions"] == ["right to left", "left to right"] and summary["runs"] == 16
    data = small_data()
    total = sum(data.class_counts(split).sum() for split in ("train", "test"))
    rows = read_rows(tmp_path / "output" / "runs.jsonl")
    tested = [
        np.sum(row["confusion_matrix"])
        for row in rows
        if (row["model"], row["budget"], row["seed"]) == ("knn", "3", 0)
    ]
    assert sum(tested) == total
    assert all(len(entry["seeds"]) == 2 for entry in summary["results"])
    assert (tmp_path / "output" / "label_efficiency.png").is_file()
    assert label_efficiency_table(summary) in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--budgets", "5,many"), ("budgets", "many")),
        (("--models", "knn,forest"), ("expected a model among", "forest")),
        (("--seeds", 0), ("--seeds", "0")),
        (("--area", "left=0,24,0,5"), ("--area", "left=0,24,0,5")),
        (("--area", "third=0,24,20,30"), ("do not overlap", "48 pixels")),
        (("--stride", 6), ("stride", "got 6")),
        (("--models", "knn,cnn-1d", "--freeze_encoder"), ("--freeze_encoder", "cnn-1d")),
        (("--models", "knn,hsst"), ("hsst", "expected a checkpoint", "--model_name_or_path")),
        (("--models", "cnn-1d", "--learning_rate", "1e30"), ("learning_rate", "1e+30")),
        (("--dataset_config", "paper"), ("--dataset_config", "--dataset")),
    ],
)
def test_bad_input_is_one_clear_line(arguments, words, run_script, tmp_path) -> None:
    result = run_script(SCRIPT, *script_arguments(tmp_path), "--models", "knn", *arguments)
    assert_one_clear_line(result, *words)
    assert not (tmp_path / "output").exists()


def bad_scenes():
    _, labels = small_cube()
    values = np.where(labels == 255, 0, labels + 1).astype(np.uint8)
    one_class = values.copy()
    one_class[:, :24][one_class[:, :24] > 0] = 1
    return {
        "one class": ({"values": one_class}, ("at least 2 classes", "got 1 (meadow)")),
        "labels outside the list": ({"values": np.where(values == 3, 9, values)}, ("scene.tif", "got 9")),
    }


@pytest.mark.parametrize("name", bad_scenes())
def test_bad_scenes_are_one_clear_line(name, run_script, tmp_path) -> None:
    given = script_arguments(tmp_path)
    changes, words = bad_scenes()[name]
    write_small_scene(tmp_path / "scene", **changes)
    assert_one_clear_line(run_script(SCRIPT, *given, "--models", "knn"), *words)
    assert not (tmp_path / "output").exists()


def test_checkpoint_for_other_bands_is_refused(run_script, tmp_path) -> None:
    checkpoint = write_small_checkpoint(tmp_path / "checkpoint", wavelengths=np.linspace(500, 900, 6))
    given = [*script_arguments(tmp_path), "--models", "knn,hsst", "--model_name_or_path", checkpoint]
    assert_one_clear_line(run_script(SCRIPT, *given), checkpoint, "--adapt_bands")
    assert not (tmp_path / "output").exists()


@pytest.mark.slow
def test_a_killed_command_goes_on_where_it_was(tmp_path) -> None:
    given = [*script_arguments(tmp_path), "--models", "knn,cnn-1d", "--budgets", "3", "--seeds", 4]
    command = [sys.executable, str(ROOT / "scripts" / SCRIPT), *map(str, given)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    path = tmp_path / "output" / "runs.jsonl"
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while (not path.is_file() or path.read_bytes().count(b"\n") < 4) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = read_rows(path)
    assert done
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    rows = read_rows(path)
    assert rows[: len(done)] == done and len(rows) == len({run_of(row) for row in rows}) == 16


def test_models_are_compared_over_the_seeds_that_both_have():
    """Which baseline is the best is a matter of the seeds that all have; how much better, of those of the two."""

    def scores(*values):
        return {seed: dict.fromkeys(COMPARED_SCORES, value) for seed, value in enumerate(values)}

    by_model = {"main": scores(0.5, 0.5, 0.9, 0.9), "often": scores(0.4, 0.4, 0.3, 0.1), "seldom": scores(0.3, 0.3)}
    compared = _compare(by_model, "main", ["often", "seldom"], "5")
    assert {(entry["baseline"], entry["seeds"], entry["better_in"]) for entry in compared} == {("often", 4, 4)}
    assert compared[0]["difference"]["mean"] == pytest.approx(0.4)
    by_model["seldom"] = scores(0.6, 0.6)
    compared = _compare(by_model, "main", ["often", "seldom"], "5")
    assert {(entry["baseline"], entry["seeds"], entry["better_in"]) for entry in compared} == {("seldom", 2, 0)}
    by_model["seldom"] = scores(0.6)
    assert _compare(by_model, "main", ["often", "seldom"], "5")[0]["baseline"] == "often"

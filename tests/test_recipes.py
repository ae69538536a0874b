"""The paper's benchmarks as recipes, on small files in the official layouts: published settings, official areas."""

import json

import numpy as np
import pytest
import torch
from conftest import assert_one_clear_line
from small_benchmarks import HOUSTON_TILE, write_dfc, write_houston
from small_land_cover import write_small_checkpoint, write_small_scene
from small_products import WAVELENGTHS

from datasets_loading.enmap_dfc import EnMAPDFC
from datasets_loading.files import read_rows
from datasets_loading.houston2018 import official_areas
from hsst.experiments.label_efficiency import recipe_defaults

SCRIPT = "experiments/label_efficiency.py"
QUICK = ("--max_steps", 1, "--seeds", 1, "--stride", 8, "--use_cpu")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def few_tiles(monkeypatch):
    """The small region has 9 tiles in place of 357."""
    config = next(config for config in EnMAPDFC.BUILDER_CONFIGS if config.name == "paper")
    monkeypatch.setattr(config, "num_tiles", 9)
    monkeypatch.setattr(config, "test_tiles", (1, 5))


@pytest.mark.parametrize(("name", "steps", "batch_size"), [("enmap_dfc", 1000, 2), ("houston2018", 2000, 32)])
def test_published_fine_tuning(name, steps, batch_size) -> None:
    defaults = recipe_defaults(name, {"max_steps": None, "model_name_or_path": None})
    assert (defaults["learning_rate"], defaults["head_learning_rate"], defaults["weight_decay"]) == (5e-4, 5e-3, 5e-3)
    assert (defaults["max_steps"], defaults["num_epochs"], defaults["batch_size"]) == (steps, 100, batch_size)
    assert (defaults["task"], defaults["window_size"]) == ("dense", 8)
    assert defaults["budgets"].split(",") == ["0.1%", "1%", "10%", "100%"] and defaults["seeds"] == 5
    assert defaults["models"].split(",")[:2] == ["hsst", "hsst-scratch"]
    assert "adapt_bands" not in defaults


def test_steps_that_are_given_are_not_outrun_by_epochs() -> None:
    given = {"max_steps": 3, "model_name_or_path": "checkpoint"}
    assert "num_epochs" not in recipe_defaults("houston2018", given)
    assert recipe_defaults("houston2018", given)["adapt_bands"]
    assert "adapt_bands" not in recipe_defaults("enmap_dfc", given)


def test_enmap_dfc_runs_on_the_papers_tiles(few_tiles, run_script, tmp_path) -> None:
    torch.manual_seed(0)
    checkpoint = write_small_checkpoint(tmp_path / "checkpoint", wavelengths=WAVELENGTHS, window_size=8)
    given = ("--data_dir", write_dfc(tmp_path / "files"), "--model_name_or_path", checkpoint)
    output = tmp_path / "output"
    result = run_script(SCRIPT, "--recipe", "enmap_dfc", *given, *QUICK, "--budgets", "1%", "--output_dir", output)
    assert result.returncode == 0, result.stderr
    summary = json.loads((output / "label_efficiency.json").read_text())
    (split,) = summary["experiment"]["splits"].values()
    assert split["scenes"]["test"] == ["tile1", "tile5"] and len(split["scenes"]["train"]) == 7
    settings = summary["experiment"]["settings"]
    assert (settings["max_steps"], settings["batch_size"], settings["head_learning_rate"]) == (1, 2, 5e-3)
    assert {row["model"] for row in read_rows(output / "runs.jsonl")} == {"hsst", "hsst-scratch", "cnn-3d"}
    assert summary["comparisons_to_scratch"][0]["baseline"] == "hsst-scratch"


def test_houston_runs_on_the_contests_areas_with_a_checkpoint_for_enmap(run_script, tmp_path, real_figures) -> None:
    torch.manual_seed(0)
    bands = np.linspace(420, 1000, 20)
    checkpoint = write_small_checkpoint(tmp_path / "checkpoint", wavelengths=bands, window_size=8)
    given = ("--data_dir", write_houston(tmp_path / "files"), "--model_name_or_path", checkpoint)
    output = tmp_path / "output"
    given += (*QUICK, "--models", "hsst", "--budgets", "0.1%", "--batch_size", 2, "--output_dir", output)
    result = run_script(SCRIPT, "--recipe", "houston2018", *given)
    assert result.returncode == 0, result.stderr
    summary = json.loads((output / "label_efficiency.json").read_text())
    (split,) = summary["experiment"]["splits"].values()
    areas = official_areas(2 * HOUSTON_TILE[0], 7 * HOUSTON_TILE[1])
    for name, wanted in areas.items():
        assert [tuple(area) for area in split["areas"][name]] == [
            (area.scene, area.first_row, area.last_row, area.first_column, area.last_column) for area in wanted
        ]
    assert len(summary["class_names"]) == 20 and summary["experiment"]["options"]["adapt_bands"]
    assert (output / "label_efficiency.png").stat().st_size > 10_000


def test_a_recipe_without_its_files_or_checkpoint_is_one_clear_line(run_script, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    output = ("--output_dir", tmp_path / "output")
    for name, words in (("enmap_dfc", "dfc_MexicoCity"), ("houston2018", "20170218_UH_CASI_S4_NAD83.hdr")):
        given = ("--recipe", name, "--data_dir", tmp_path / "empty", *output)
        assert_one_clear_line(run_script(SCRIPT, *given), "--model_name_or_path")
        assert_one_clear_line(run_script(SCRIPT, *given, "--models", "hsst-scratch"), words, tmp_path / "empty")
    assert not (tmp_path / "output").exists()


def test_unknown_configurations_are_refused(run_script, tmp_path) -> None:
    scene = write_small_scene(tmp_path / "scene")
    given = ("--data_dir", scene, "--models", "knn", "--output_dir", tmp_path / "output")
    for dataset, words in (("enmap_dfc", "blocks or paper"), ("houston2018", "none")):
        result = run_script(SCRIPT, *given, "--dataset", dataset, "--dataset_config", "tiles")
        assert_one_clear_line(result, "--dataset_config", dataset, words, "got tiles")

"""Notebooks are their scripts, and run: at a small size as scripts, as they are (slow) in a kernel."""

import functools
import re
import shutil
from pathlib import Path

import jupytext
import matplotlib
import nbformat
import numpy as np
import pytest
import rasterio
from matplotlib import pyplot as plt

import datasets_loading.simulation.scene
from datasets_loading.simulation.spectra import simulate_spectral_library
from hsst.support import few_labels

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "docs" / "notebooks").glob("*.py"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with the model cards."""
    (tmp_path / "model_cards").symlink_to(ROOT / "model_cards")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = functools.partial(simulate_spectral_library, spectra_per_material=4)
    monkeypatch.setattr(datasets_loading.simulation.scene, "simulate_spectral_library", few)
    matplotlib.use("Agg")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_notebook_is_its_script(script: Path) -> None:
    """After a change: jupytext --to ipynb docs/notebooks/NAME.py"""
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    wanted = jupytext.read(script)
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in wanted.cells
    ]
    assert not any(cell.get("outputs") for cell in notebook.cells)


def run(name: str, **instead) -> dict:
    """Runs the cells at a small size; `instead` takes the place of what the cells define."""
    names = {"__name__": "notebook"}
    for cell in jupytext.read(ROOT / "docs" / "notebooks" / name).cells:
        if cell.cell_type == "code":
            exec(compile(re.sub(r"^size = 128\b", "size = 32", cell.source, flags=re.M), name, "exec"), names)
            names.update({key: value for key, value in instead.items() if key in names})
    plt.close("all")
    return names


def test_features_and_a_query(small, capsys) -> None:
    names = run("features_and_a_query.py")
    assert names["vectors"].shape == (96, 32, 32)
    assert names["similarity"][names["row"], names["column"]] == pytest.approx(1)
    counts = re.findall(r"(\d+) of the 100 most alike", capsys.readouterr().out)
    assert sum(map(int, counts)) == 100


def test_map_from_60_points(small, run_script, monkeypatch, real_figures) -> None:
    ridge = few_labels.HEADS["ridge"]._replace(settings=({"alpha": 100.0}, {"alpha": 1.0}))
    monkeypatch.setattr(few_labels, "HEADS", {"ridge": ridge})
    scripts = {"finetune": "run_classification.py", "predict": "predict_scene.py"}

    def hsst(command, *words):
        result = run_script(scripts[command], *words)
        assert result.returncode == 0, result.stderr

    names = run("map_from_60_points.py", hsst=hsst)
    assert len(names["features"]) == 60
    with rasterio.open("outputs/notebooks/points/map.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), names["classes"])
    assert names["share"] > 0.4


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_notebook_runs_in_a_kernel(script: Path, folder: Path) -> None:
    from nbclient import NotebookClient

    notebook = nbformat.read(shutil.copy(script.with_suffix(".ipynb"), folder), as_version=4)
    NotebookClient(notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)

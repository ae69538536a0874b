"""What the models make of a small scene, in one picture."""

import numpy as np
import pytest
import rasterio
from conftest import assert_one_clear_line
from small_land_cover import CLASS_NAMES, small_cube, write_small_checkpoint, write_small_scene

MODELS = {"model": {}, "landcover": {"class_names": CLASS_NAMES}}


@pytest.fixture
def command(tmp_path):
    """Arguments for a scene with a corner without data, and tiny models."""
    image, _ = small_cube()
    image[:, :6, :7] = -32768
    scene = write_small_scene(tmp_path, image=image) / "images" / "scene.tif"
    words = ["explore_scene.py", scene]
    for name, changes in MODELS.items():
        words += [f"--{name}", write_small_checkpoint(tmp_path / name, window_size=4, **changes)]
    return words


def test_picture_and_map(command, run_script, tmp_path, real_figures):
    result = run_script(*command, "--output", tmp_path / "out" / "scene.png", "--row", 9, "--column", 20)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "scene.png").stat().st_size > 30_000
    with rasterio.open(tmp_path / "out" / "scene_map.tif") as dataset:
        classes = dataset.read(1)
    assert (classes[:6, :7] == 255).all() and np.isin(classes[6:], range(3)).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output", "scene.tif"], "--output: expected a file ending in .png, got scene.tif"),
        (["--output", "scene.png", "--row", 24], "--row: expected less than 24, got 24"),
        (["--output", "scene.png", "--column", -1], "--column: expected at least 0, got -1"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, words, command, run_script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_one_clear_line(run_script(*command, *arguments), words)
    assert not (tmp_path / "scene.png").exists()

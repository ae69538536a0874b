"""The benchmark of whole scenes: the part that is mapped, the model without weights, figures that fit together."""

import json

import numpy as np
import pytest
import torch
from conftest import assert_one_clear_line
from PIL import Image
from small_products import EMPTY_BAND, HEIGHT, TRANSFORM, WAVELENGTHS, WIDTH, write_small_product

from datasets_loading.scenes import open_scene
from hsst.experiments.scene_speed import crop_middle, measure_scene, model_without_weights, plot_scene, write_repeated
from modeling_hsst import ENMAP_WAVELENGTHS, ArrayScene, HSSTImageProcessor, ScenePredictor

SMALL = {
    "hidden_size": 12,
    "num_spatial_layers": 1,
    "num_spectral_layers": 1,
    "num_attention_heads": 1,
    "head_dim": 8,
    "intermediate_size": 8,
    "band_patch_size": 4,
}
OVERRIDES = ",".join(f"{name}={value}" for name, value in SMALL.items())
SCRIPT = "experiments/benchmark_speed.py"


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    return write_small_product(tmp_path_factory.mktemp("products"))


def test_crop_is_the_middle_of_the_scene(product):
    with open_scene(product) as scene:
        crop = crop_middle(scene, 40)
        row, column = (HEIGHT - 40) // 2, (WIDTH - 40) // 2
        rows, columns = slice(3, 11), slice(5, 12)
        moved = slice(3 + row, 11 + row), slice(5 + column, 12 + column)
        assert crop.shape == (40, 40) and crop.name == scene.name
        np.testing.assert_array_equal(crop.read(rows, columns, [0, 4]), scene.read(*moved, [0, 4]))
        kinds = ("cloud", "outside")
        np.testing.assert_array_equal(crop.read_excluded(rows, columns, kinds), scene.read_excluded(*moved, kinds))
        assert crop.transform @ (0, 0) == TRANSFORM @ (column, row)
        assert crop_middle(scene, 160).shape == (HEIGHT, 160)
        with pytest.raises(ValueError, match="--crop: expected at least 1 pixel, got 0"):
            crop_middle(scene, 0)


def test_a_repeated_scene_is_mirrored_copies(product, tmp_path):
    with open_scene(product) as scene:
        write_repeated(tmp_path / "large.tif", scene, 3)
        cube = scene.read(slice(0, HEIGHT), slice(0, WIDTH), range(len(WAVELENGTHS)))
        with open_scene(tmp_path / "large.tif") as large:
            whole = large.read(slice(0, 3 * HEIGHT), slice(0, 3 * WIDTH), range(len(WAVELENGTHS)))
            assert large.transform == scene.transform and large.crs == scene.crs
            np.testing.assert_allclose(large.wavelengths, scene.wavelengths, atol=1e-3)
            np.testing.assert_allclose(large.fwhm, scene.fwhm, atol=1e-3)
            np.testing.assert_array_equal(large.valid_bands, scene.valid_bands)
        with pytest.raises(ValueError, match="--repeat: expected at least 1, got 0"):
            write_repeated(tmp_path / "none.tif", scene, 0)
    np.testing.assert_array_equal(whole, np.pad(cube, ((0, 0), (0, 2 * HEIGHT), (0, 2 * WIDTH)), mode="symmetric"))
    assert [path.name for path in tmp_path.iterdir()] == ["large.tif"]


def test_a_repeated_scene_is_measured(run_script, product, tmp_path):
    given = ("--scene", product, "--output_dir", tmp_path, "--device", "cpu", "--config_overrides", OVERRIDES)
    process = run_script(SCRIPT, "scene", *given, "--repeat", 2, "--stride", 8, "--batch_size", 512)
    assert process.returncode == 0, process.stderr
    result = json.loads((tmp_path / "scene_speed_cpu.json").read_text())
    assert result["shape"] == [2 * HEIGHT, 2 * WIDTH] and result["repeat"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scene_speed_cpu.json", "scene_speed_cpu.png"]


def test_model_without_weights_is_for_the_bands_of_the_scene(product):
    with open_scene(product) as scene:
        model, processor = model_without_weights(scene, SMALL)
        expected = np.delete(WAVELENGTHS, EMPTY_BAND)
        np.testing.assert_allclose(model.config.wavelengths, expected)
        assert processor.match_wavelengths(scene.wavelengths.tolist()) == np.flatnonzero(scene.valid_bands).tolist()
    enmap = ArrayScene(np.ones((201, 1, 1)), [400.0, *ENMAP_WAVELENGTHS])
    assert model_without_weights(enmap, SMALL)[0].config.wavelengths == list(ENMAP_WAVELENGTHS)
    unknown = ArrayScene(np.ones((5, 1, 1)))
    model, processor = model_without_weights(unknown, SMALL)
    assert model.config.num_channels == 5 and isinstance(processor, HSSTImageProcessor)
    published = model_without_weights(enmap)[0]
    assert sum(parameter.numel() for parameter in published.hsst.parameters()) > 1_500_000


def test_figures_fit_together(product, tmp_path):
    with open_scene(product) as scene:
        predictor = ScenePredictor(*model_without_weights(scene, SMALL), stride=8)
        excluded = crop_middle(scene, 40).read_excluded(slice(0, 40), slice(0, 40), ("outside",))
    result = measure_scene(lambda: open_scene(product), predictor, tmp_path, crop=40, turns=2, progress=False)
    assert result["shape"] == [40, 40] and result["stride"] == 8 and result["window"] == [8, 8]
    assert result["num_mapped"] == 1600 - excluded.sum() and len(result["turns"]) == 2
    assert result["pixels_per_second"] == pytest.approx(result["num_mapped"] / result["seconds"])
    assert all(0 < turn["seconds_in_model"] < turn["seconds"] for turn in result["turns"])
    assert 0 < result["share_in_model"] < 1 and result["peak_memory_mb"] > 50
    assert list(tmp_path.iterdir()) == []  # maps are gone
    assert Image.open(plot_scene(tmp_path / "scene.png", result)).size[0] > 1000


def test_command(run_script, product, tmp_path):
    given = ("--scene", product, "--output_dir", tmp_path, "--device", "cpu", "--config_overrides", OVERRIDES)
    process = run_script(SCRIPT, "scene", *given, "--crop", 24, "--stride", 4, "--precision", "bfloat16")
    assert process.returncode == 0, process.stderr
    assert "24x24 pixels, stride 4" in process.stdout and "of it in the model; at most" in process.stdout
    result = json.loads((tmp_path / "scene_speed_cpu.json").read_text())
    assert result["precision"] == "bfloat16" and result["model"] is None and "benchmark_speed.py" in result["command"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["scene_speed_cpu.json", "scene_speed_cpu.png"]


def test_a_given_model_is_measured(run_script, product, tmp_path):
    with open_scene(product) as scene:
        torch.manual_seed(0)
        for part in model_without_weights(scene, SMALL):
            part.save_pretrained(tmp_path / "model")
    given = ("--scene", product, "--output_dir", tmp_path / "out", "--device", "cpu", "--model", tmp_path / "model")
    process = run_script(SCRIPT, "scene", *given, "--crop", 16)
    assert process.returncode == 0, process.stderr
    result = json.loads((tmp_path / "out" / "scene_speed_cpu.json").read_text())
    assert result["model"] == str(tmp_path / "model") and result["stride"] == 4
    assert_one_clear_line(run_script(SCRIPT, "scene", *given, "--config_overrides", OVERRIDES), "--config_overrides")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--scene", "nowhere.tif"), ("nowhere.tif", "no such file")),
        (("--stride", 9), ("stride", "got 9")),
        (("--crop", 0), ("--crop", "got 0")),
        (("--repeat", 0), ("--repeat", "got 0")),
        (("--turns", 0), ("--turns", "got 0")),
    ],
)
def test_bad_input_is_one_clear_line(arguments, words, run_script, product, tmp_path):
    given = ("--scene", product, "--output_dir", tmp_path / "out", "--device", "cpu", "--config_overrides", OVERRIDES)
    assert_one_clear_line(run_script(SCRIPT, "scene", *given, *arguments), *words)
    assert not (tmp_path / "out").exists()

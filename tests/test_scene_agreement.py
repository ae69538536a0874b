"""The check of maps against single windows and against a shifted scene: it agrees where it must, and can disagree."""

import json

import numpy as np
import pytest
import torch
from conftest import assert_one_clear_line
from small_products import write_small_product

from datasets_loading.scenes import open_scene
from hsst.experiments.scene_agreement import agreement, measure_agreement
from hsst.experiments.scene_speed import model_without_weights
from modeling_hsst import HSSTForImageClassification, ScenePredictor

SMALL = {
    "hidden_size": 12,
    "num_spatial_layers": 1,
    "num_spectral_layers": 1,
    "num_attention_heads": 1,
    "head_dim": 8,
    "intermediate_size": 8,
    "band_patch_size": 4,
    "initializer_range": 0.3,
}
SCRIPT = "experiments/check_scene_maps.py"


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    return write_small_product(tmp_path_factory.mktemp("products"))


@pytest.fixture(scope="module")
def model(product):
    with open_scene(product) as scene:
        model, processor = model_without_weights(scene, SMALL)
    processor.image_std = [0.002] * len(processor.image_std)
    return model, processor


def test_map_is_what_single_windows_say_and_shifts_change_what_is_blended_otherwise(product, model):
    with open_scene(product) as scene:
        result = measure_agreement(scene, ScenePredictor(*model), crop=51, num_windows=9)
    assert result["side"] == 48 and result["window"] == [8, 8]
    assert result["single_windows"]["windows"] == 9 and result["single_windows"]["pixels"] == 9 * 64
    assert result["single_windows"]["same_class"] == 1 and result["single_windows"]["largest_difference"] < 1e-5
    grid, quarter, unblended = result["shifted"]
    assert [(row["stride"], row["shift"]) for row in result["shifted"]] == [(4, 4), (4, 2), (8, 4)]
    # Shifted by the stride, all windows but the first are the same ones
    assert grid["inside"]["same_class"] == 1 and grid["inside"]["largest_difference"] < 1e-5
    assert grid["everywhere"]["largest_difference"] > 1e-3 and grid["everywhere"]["pixels"] == 44**2
    assert 0 < quarter["inside"]["mean_difference"] < unblended["inside"]["mean_difference"]
    assert unblended["inside"]["pixels"] == 28**2
    half = result["half_precision"]
    assert half["pixels"] == 48**2 and half["same_class"] > 0.9 and 1e-6 < half["largest_difference"] < 0.2


def test_a_model_that_looks_at_its_place_in_the_batch_is_found_out(product, model):
    """A map that is not what single windows say does not pass."""

    class Shuffled(ScenePredictor):
        def _run(self, values, pixel_mask, components):
            return super()._run(values, pixel_mask, components).roll(1, dims=0)

    with open_scene(product) as scene:
        result = measure_agreement(scene, Shuffled(*model), crop=48, num_windows=9)
    assert result["single_windows"]["same_class"] < 1 and result["single_windows"]["largest_difference"] > 1e-3


def test_agreement_counts_compared_pixels_only():
    first = np.array([[[0.9, 0.2, np.nan]], [[0.1, 0.8, np.nan]]], dtype=np.float32)
    second = np.array([[[0.8, 0.6, 0.5]], [[0.2, 0.4, 0.5]]], dtype=np.float32)
    told = agreement(first, second, np.array([[True, True, False]]))
    assert told["pixels"] == 2 and told["same_class"] == 0.5
    assert told["largest_difference"] == pytest.approx(0.4) and told["mean_difference"] == pytest.approx(0.25)
    with pytest.raises(ValueError, match="pixels with a class"):
        agreement(first, second, np.zeros((1, 3), dtype=bool))


def test_what_cannot_be_checked(product, model):
    with open_scene(product) as scene:
        with pytest.raises(ValueError, match="32 pixels.*got 24"):
            measure_agreement(scene, ScenePredictor(*model), crop=31)
        torch.manual_seed(0)
        whole = ScenePredictor(HSSTForImageClassification(model[0].config), model[1])
        with pytest.raises(ValueError, match="HSSTForImageClassification"):
            measure_agreement(scene, whole)


def test_command(run_script, product, model, tmp_path):
    for part in model:
        part.save_pretrained(tmp_path / "model")
    given = (SCRIPT, product, "--model", tmp_path / "model", "--output", tmp_path / "out.json")
    result = run_script(*given, "--crop", 40)
    assert result.returncode == 0, result.stderr
    assert "in bfloat16: same class at" in result.stdout
    assert "25 windows by themselves" in result.stdout and "stride 8, shifted by 4" in result.stdout
    assert json.loads((tmp_path / "out.json").read_text())["single_windows"]["same_class"] == 1
    assert_one_clear_line(run_script(*given[:-1], tmp_path / "out.txt"), "--output", "out.txt")
    assert_one_clear_line(run_script(*given[:3], tmp_path / "none", *given[4:]), "--model", "none")
    assert_one_clear_line(run_script(SCRIPT, tmp_path / "none.tif", *given[2:]), "none.tif")

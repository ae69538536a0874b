"""The speed benchmark: variants of one model in turns, and a table of them."""

import functools
import json

import pytest
import torch
from conftest import assert_one_clear_line
from small_land_cover import write_small_checkpoint

import datasets_loading.simulation.scene
from datasets_loading.resampling import ENMAP_BANDS_WITH_DATA
from datasets_loading.sensors import ENMAP
from datasets_loading.simulation.spectra import simulate_spectral_library
from hsst.experiments import speed
from hsst.experiments.speed import products_counter
from modeling_hsst.kernels.cpu_products import has_fused_products, linear, linear_add

SCRIPT = "experiments/speed.py"
SMALL = (
    "hidden_size=24,num_attention_heads=2,head_dim=8,intermediate_size=16,num_spatial_layers=1,num_spectral_layers=1"
)


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch):
    """Large ones take half a minute where a processor has no instructions for bfloat16."""
    monkeypatch.setitem(speed.LARGE, "cpu", 64)


@pytest.mark.parametrize("part", ["train", "inference"])
def test_variants_take_turns(part, run_script, tmp_path):
    arguments = [part, "--output_dir", tmp_path, "--config_overrides", SMALL, "--batch_size", 2, "--turns", 2]
    result = run_script(SCRIPT, *arguments, "--device", "cpu")
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / f"speed_{part}_cpu.json").read_text())["rows"]
    names = [row["name"] for row in rows]
    assert names == ["plain", "sdpa", "fast", "fast, bfloat16", *["fast, visible only"] * (part == "train")]
    assert rows[0]["ratio"] == 1 and all(len(row["seconds"]) == 2 for row in rows)
    if part == "inference":
        assert (
            rows[0]["largest_difference"] == 0 and rows[2]["largest_difference"] < 1e-5 < rows[3]["largest_difference"]
        )
        assert rows[2]["same_class"] == 1
    assert all(f"| {name} |" in result.stdout for name in names)
    assert all(row["matrix_rate"] > 0 for row in rows)
    assert rows[0]["arithmetic"] == 1
    for row in rows:
        shares = row["time_shares"]
        assert shares["products"] > 0 and sum(shares.values()) <= 1 and min(shares.values()) >= 0
    assert "| products | softmax | LayerNorm |" in result.stdout


def test_all_products_are_counted():
    left, right = torch.ones(3, 4), torch.ones(4, 5)
    with products_counter() as counted:
        torch.mm(left, right, out=torch.empty(3, 5))
        torch.zeros(3, 5).addmm_(left, right)
        torch.bmm(left[None], right[None], out=torch.empty(1, 3, 5))
        torch.zeros(1, 3, 5).baddbmm_(left[None], right[None])
    assert counted.get_total_flops() == 4 * 2 * 3 * 4 * 5
    if has_fused_products(torch.bfloat16):
        half = left.bfloat16(), right.t().contiguous().bfloat16(), torch.ones(5).bfloat16()
        with products_counter() as counted:
            linear(*half, gelu=True)
            linear_add(*half, torch.ones(3, 5).bfloat16())
        assert counted.get_total_flops() == 2 * 2 * 3 * 4 * 5


def test_single_pixels(run_script, tmp_path):
    arguments = ["inference", "--output_dir", tmp_path, "--config_overrides", SMALL, "--turns", 1, "--window", 1]
    result = run_script(SCRIPT, *arguments, "--device", "cpu", "--variants", "plain; fast")
    assert result.returncode == 0, result.stderr
    assert "batches of 16 windows of 1x1" in result.stdout and (tmp_path / "speed_inference_pixels_cpu.json").is_file()


def test_scene_from_file_to_map(run_script, tmp_path, monkeypatch):
    few = functools.partial(simulate_spectral_library, spectra_per_material=4)
    monkeypatch.setattr(datasets_loading.simulation.scene, "simulate_spectral_library", few)
    bands = [ENMAP.wavelengths[band] for band in ENMAP_BANDS_WITH_DATA[:20]]
    model = write_small_checkpoint(tmp_path / "model", wavelengths=bands, class_names=["land", "water"])
    arguments = ["scene", "--output_dir", tmp_path, "--side", 32, "--turns", 1, "--device", "cpu", "--model", model]
    result = run_script(SCRIPT, *arguments, "--variants", "fast, bfloat16")
    assert result.returncode == 0, result.stderr
    (row,) = json.loads((tmp_path / "speed_scene_cpu.json").read_text())["rows"]
    assert row["ratio"] == row["same_class"] == 1 and row["pixels"] == 32 * 32
    assert row["whole_seconds"] > 1 and 0 < row["matrix_rate"] < 1 and row["peak_megabytes"] > 100
    assert row["windows_per_second"] == pytest.approx(32 * 32 / 5**2 / row["whole_seconds"])
    assert "a scene of 32 x 32 pixels, 1,024 of them mapped" in result.stdout
    assert_one_clear_line(run_script(SCRIPT, *arguments[:-2]), "scene: expected a --model")


def test_what_cannot_be_measured_is_one_line(run_script, tmp_path):
    arguments = [SCRIPT, "train", "--output_dir", tmp_path / "out", "--device", "cpu"]
    assert_one_clear_line(run_script(*arguments, "--variants", "warp"), "--variants", "plain; sdpa", "got warp")
    assert_one_clear_line(run_script(*arguments, "--window", 0), "--window", "at least 1, got 0")
    assert_one_clear_line(run_script(*arguments, "--turns", 0), "--turns", "at least 1, got 0")
    assert_one_clear_line(run_script(*arguments, "--model", tmp_path / "none"), "--model", "none")
    assert not (tmp_path / "out").exists()

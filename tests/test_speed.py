"""The speed benchmark: arithmetic counted right, every variant computes the same, results whole."""

import json

import pytest
import torch
from conftest import assert_one_clear_line
from torch.utils.flop_counter import FlopCounterMode

from hsst.experiments.loss_curves import plot_curves
from hsst.experiments.plain_reference import plain_reference
from hsst.experiments.speed import (
    TrainingStep,
    Variant,
    forward_flops,
    inference_variants,
    measure,
    plot_speed,
    training_variants,
)
from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling, HSSTForSemanticSegmentation, draw_mask

SMALL = {
    "num_channels": 30,
    "image_size": 8,
    "hidden_size": 24,
    "num_attention_heads": 2,
    "head_dim": 16,
    "num_spatial_layers": 1,
    "num_spectral_layers": 2,
    "mask_patch_size": 2,
}


def counted(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def test_published_model():
    # The figures that the arithmetic of the published model is known by
    assert forward_flops(HSSTConfig(num_labels=8), "segmentation") == pytest.approx(5.2e9, rel=0.01)
    assert 3 * forward_flops(HSSTConfig(), "masked") == pytest.approx(15.5e9, rel=0.015)


def test_flops_are_those_that_torch_counts():
    pixel_values = torch.randn(2, 30, 8, 8)
    config = HSSTConfig(**SMALL, num_labels=5)
    plain = plain_reference(HSSTForSemanticSegmentation(config))
    assert counted(lambda: plain(pixel_values)) == 2 * forward_flops(config, "segmentation")

    # The plain decoder maps hidden tokens only; all of them are counted here
    masked = plain_reference(HSSTForMaskedImageModeling(config))
    mask = torch.ones(2, 192, dtype=torch.bool)
    assert counted(lambda: masked(pixel_values, mask)) == 2 * forward_flops(config, "masked")


@pytest.mark.parametrize(("mask_type", "side"), [("tube", 8), ("grid", 8), ("even", 6)])
@pytest.mark.parametrize("width", [None, 12])
def test_flops_of_visible_only(mask_type, side, width):
    settings = SMALL | {"image_size": side, "mask_type": mask_type, "decoder_hidden_size": width}
    config = HSSTConfig(**settings, visible_only=True)
    model = HSSTForMaskedImageModeling(config)
    model.set_attn_implementation("eager")
    mask = draw_mask(2, 3, (side, side), mask_type=mask_type, mask_ratio=0.7, mask_patch_size=2)
    pixel_values = torch.randn(2, 30, side, side)
    assert counted(lambda: model(pixel_values, bool_masked_pos=mask)) == 2 * forward_flops(config, "masked")


@pytest.mark.parametrize("part", ["train", "inference"])
def test_measured(part, tmp_path):
    result = measure(part, SMALL, 2, torch.device("cpu"), turns=2, with_memory=False, progress=False)
    variants = (training_variants if part == "train" else inference_variants)("cpu")
    assert [row["variant"]["name"] for row in result["rows"]] == [variant.name for variant in variants]
    for row in result["rows"]:
        variant = row["variant"]
        assert row["seconds"] > 0 and row["windows_per_second"] == pytest.approx(2 / row["seconds"])
        assert row["tokens_per_second"] == pytest.approx(192 * row["windows_per_second"])
        assert 0 < row["share_of_matrix_rate"] < 2
        if part == "inference":
            tolerance = 0.03 if variant["precision"] == "bfloat16" else 1e-5
            assert row["agreement"]["relative_difference"] < tolerance
        elif not variant["visible_only"] and not variant["dropout"]:
            assert row["agreement"]["difference"] < (0.01 if variant["precision"] == "bfloat16" else 1e-6)
            assert set(row["stages"]) == {"forward", "backward", "optimizer"}
    json.dumps(result)
    picture = plot_speed(tmp_path / "speed.png", result)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_ratio_is_to_the_baseline():
    variants = [Variant("plain", plain=True), Variant("slow", attention="eager"), Variant("alone", baseline="none")]
    rows = measure(
        "train", SMALL, 1, torch.device("cpu"), turns=3, variants=variants, with_memory=False, progress=False
    )["rows"]
    assert rows[0]["ratio"] == 1.0 and "ratio" not in rows[2]
    pairs = zip(rows[0]["turns"], rows[1]["turns"], strict=True)
    assert rows[1]["ratio"] == sorted(plain / ours for plain, ours in pairs)[1]


def test_variants_on_cuda_are_made_on_any_machine():
    assert {variant.name for variant in training_variants("cuda")} > {"plain", "bfloat16, compiled layers"}
    step = TrainingStep(Variant("float32, visible only", visible_only=True), SMALL, 1, torch.device("cpu"))
    before = [parameter.clone() for parameter in step.model.parameters()]
    step()
    assert any(not torch.equal(*pair) for pair in zip(before, step.model.parameters(), strict=True))


@pytest.mark.slow
def test_command(run_script, tmp_path):
    overrides = ",".join(f"{name}={value}" for name, value in SMALL.items())
    process = run_script(
        "experiments/benchmark_speed.py", "train", "--output_dir", tmp_path, "--turns", 1, "--batch_size", 2,
        "--device", "cpu", "--variants", "plain; float32", "--config_overrides", overrides,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    result = json.loads((tmp_path / "train_speed_cpu.json").read_text())
    assert [row["variant"]["name"] for row in result["rows"]] == ["plain", "float32"]
    assert all(row["megabytes_per_window"] > 0 for row in result["rows"])
    assert (tmp_path / "train_speed_cpu.png").is_file()


def test_unknown_variant(run_script, tmp_path):
    process = run_script(
        "experiments/benchmark_speed.py",
        "inference",
        "--output_dir",
        tmp_path / "speed",
        "--device",
        "cpu",
        "--variants",
        "warp",
    )
    assert_one_clear_line(process, "expected names among plain; ", "got warp")
    assert not (tmp_path / "speed").exists()


def test_curves_chart(tmp_path):
    losses = {"plain": [1.0, 0.9, 0.8, 0.7, 0.6, 0.5], "bfloat16": [1.0, 0.91, 0.8, 0.7, 0.6, 0.5]}
    result = {"losses": losses, "batch_size": 4, "machine": {"device": "some machine"}}
    assert plot_curves(tmp_path / "curves.png", result).read_bytes().startswith(b"\x89PNG")


def test_larger_batches_hold_the_same_windows():
    variants = [Variant("plain", plain=True), Variant("large", batch_factor=3)]
    for part in ("train", "inference"):
        result = measure(part, SMALL, 2, torch.device("cpu"), turns=1, variants=variants, with_memory=False)
        small, large = result["rows"]
        assert large["agreement"]["difference"] < 1e-5
        assert large["windows_per_second"] == pytest.approx(6 / large["seconds"])
        assert large["ratio"] == pytest.approx(3 * small["seconds"] / large["seconds"])


def test_variants_that_fail_are_left_out():
    variants = [Variant("plain", plain=True), Variant("broken", attention="eager", compiled="no such mode")]
    result = measure("inference", SMALL, 1, torch.device("cpu"), turns=1, variants=variants, with_memory=False)
    assert [row["variant"]["name"] for row in result["rows"]] == ["plain"]
    assert list(result["failures"]) == ["broken"]

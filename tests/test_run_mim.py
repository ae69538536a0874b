"""Masked pre-training as a command: trains, resumes the very same run, works in two processes, refuses bad input."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from conftest import SCRIPTS, assert_one_clear_line
from loopback_hub import LoopbackHub
from rasterio.transform import from_origin
from transformers import AutoModel, AutoModelForMaskedImageModeling
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # see modeling_hsst/__init__.py

from modeling_hsst import HSSTImageProcessor

NUM_BANDS = 20
MODEL = (
    "hidden_size=24,num_spatial_layers=1,num_spectral_layers=1,num_attention_heads=2,head_dim=8,intermediate_size=16"
)
ARGUMENTS = [
    *("--bands", "valid", "--config_overrides", f"{MODEL},band_patch_size=5", "--per_device_train_batch_size", 4),
    *("--learning_rate", 0.003, "--seed", 5, "--train_val_split", 0.34),
]


def write_tile(path, image, wavelengths=None):
    bands, height, width = image.shape
    profile = dict(driver="GTiff", count=bands, height=height, width=width, dtype=image.dtype, nodata=-32768)
    with rasterio.open(path, "w", crs="EPSG:32633", transform=from_origin(0, 0, 30, 30), **profile) as dataset:
        dataset.write(image)
        for band in range(bands):
            if wavelengths is not None:
                dataset.update_tags(band + 1, wavelength=str(wavelengths[band]))


@pytest.fixture
def tiles(tmp_path):
    """Six tiles of 16x16 pixels whose bands and neighbours are alike, as those of real scenes are."""
    folder = tmp_path / "tiles"
    folder.mkdir()
    generator = np.random.default_rng(0)
    spectra = np.cumsum(generator.uniform(-300, 400, (3, NUM_BANDS)), axis=1) + 2000
    for number in range(6):
        shares = generator.dirichlet((1, 1, 1), (4, 4)).repeat(4, axis=0).repeat(4, axis=1)
        image = np.moveaxis(shares @ spectra, -1, 0) + generator.normal(0, 20, (NUM_BANDS, 16, 16))
        if number == 1:
            image[:, :3, :3] = -32768
        write_tile(folder / f"tile_{number}.tif", image.astype(np.int16), 450 + 30 * np.arange(NUM_BANDS))
    return folder


def parameter_hash(folder):
    state = AutoModelForMaskedImageModeling.from_pretrained(folder).state_dict()
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()


def history(folder):
    return [json.loads(line) for line in (folder / "log_history.jsonl").read_text().splitlines()]


def test_trains_and_saves_what_the_auto_classes_load(tiles, tmp_path, run_script):
    output = tmp_path / "model"
    result = run_script(
        *("run_mim.py", "--train_dir", tiles, "--output_dir", output, "--num_train_epochs", 6, *ARGUMENTS),
        *("--windows_per_tile", 40, "--validation_steps", 80, "--mask_type", "unit", "--mask_ratio", 0.5),
        *("--learning_rate", 0.01, "--dropout", 0),
    )
    assert result.returncode == 0, result.stderr
    results = json.loads((output / "all_results.json").read_text())
    assert results["eval_loss"] < 0.7 * results["start_eval_loss"]
    assert results["eval_loss"] < min(results["eval_band_mean_loss"], results["eval_visible_mean_loss"])
    assert results["eval_band_mean_loss"] == results["start_eval_band_mean_loss"]
    assert results["realised_mask_ratio"] == pytest.approx(0.5)
    assert (results["training_tiles"], results["validation_tiles"], results["steps"]) == (4, 2, 240)

    # every window of an epoch once: 4 tiles with 40 windows each
    epochs = [entry for entry in history(output) if "windows" in entry]
    assert len(epochs) == 6 and all(e["windows"] == e["distinct_windows"] == 160 for e in epochs)

    figures = sorted((output / "figures").glob("*.png"))
    assert len(figures) == 4 and all(figure.stat().st_size > 20_000 for figure in figures)
    assert f"{figures[-1]}" in result.stdout

    model, info = AutoModel.from_pretrained(output, output_loading_info=True)
    assert not info["missing_keys"]
    processor = AutoImageProcessor.from_pretrained(output)
    assert isinstance(processor, HSSTImageProcessor) and processor.num_bands == NUM_BANDS
    with rasterio.open(tiles / "tile_0.tif") as dataset:
        window = dataset.read()[:, :8, :8]
    inputs = processor(window, wavelengths=450 + 30 * np.arange(NUM_BANDS))
    assert model(**inputs).last_hidden_state.isfinite().all()
    # the statistics are those of the training tiles
    assert inputs.pixel_values.abs().mean() < 3


def interrupted_after(step, command, output):
    """Runs a command until the checkpoint of a step is whole, then kills it."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for _ in range(1200):
            if (output / f"step_{step}").is_dir():
                break
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert (output / f"step_{step}").is_dir() and not (output / "model.safetensors").exists()


def test_a_resumed_run_is_the_same_run(tiles, tmp_path, run_script):
    """Killed in the middle of an epoch after a checkpoint; dropout, masks and windows all go on as they would have."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    arguments = ["--train_dir", tiles, "--max_train_steps", 30, "--checkpointing_steps", 7, "--mask_type", "unit"]
    arguments += ["--gradient_accumulation_steps", 2, "--windows_per_tile", 6, *ARGUMENTS]
    assert run_script("run_mim.py", "--output_dir", whole, *arguments).returncode == 0
    command = [sys.executable, SCRIPTS / "run_mim.py", "--output_dir", resumed, *arguments]
    interrupted_after(14, [str(part) for part in command], resumed)
    for later in (21, 28):
        shutil.rmtree(resumed / f"step_{later}", ignore_errors=True)
    result = run_script("run_mim.py", "--output_dir", resumed, "--resume_from_checkpoint", "latest", *arguments)
    assert result.returncode == 0, result.stderr
    assert "Resumed from" in result.stdout and "step 14" in result.stdout
    assert parameter_hash(resumed) == parameter_hash(whole)
    assert not list(resumed.glob(".*partial"))

    # another run's checkpoint is refused
    arguments[arguments.index("unit")] = "tube"
    result = run_script("run_mim.py", "--output_dir", resumed, "--resume_from_checkpoint", "latest", *arguments)
    assert_one_clear_line(result, "mask_type was unit and is tube")


def test_two_processes_see_different_windows(tiles, tmp_path):
    output = tmp_path / "model"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29617"]
    command += [SCRIPTS / "run_mim.py", "--train_dir", tiles, "--output_dir", output, "--num_train_epochs", 2]
    command += ["--per_device_eval_batch_size", 3]  # not the same number of batches on both
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [str(part) for part in [*command, *ARGUMENTS]], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    results = json.loads((output / "all_results.json").read_text())
    assert results["run"]["num_processes"] == 2 and results["steps"] == 4
    epochs = [entry for entry in history(output) if "windows" in entry]
    # two steps of four windows on each of two processes, all of them different
    assert [(entry["windows"], entry["distinct_windows"]) for entry in epochs] == [(16, 16), (16, 16)]
    assert results["validation_windows"] == 8


def test_validation_does_not_depend_on_the_number_of_processes(tiles, tmp_path, run_script):
    """The same weights get the same validation loss, whatever the batch size."""
    losses = []
    for batch_size in (3, 64):
        output = tmp_path / f"batch_{batch_size}"
        arguments = ["--max_train_steps", 1, "--per_device_eval_batch_size", batch_size, *ARGUMENTS]
        assert run_script("run_mim.py", "--train_dir", tiles, "--output_dir", output, *arguments).returncode == 0
        losses.append(json.loads((output / "all_results.json").read_text())["start_eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_bf16_and_starting_from_a_checkpoint(tiles, tmp_path, run_script):
    first, second = tmp_path / "first", tmp_path / "second"
    arguments = ["--train_dir", tiles, "--max_train_steps", 4, "--mixed_precision", "bf16", *ARGUMENTS]
    assert run_script("run_mim.py", "--output_dir", first, *arguments).returncode == 0
    result = run_script("run_mim.py", "--output_dir", second, "--model_name_or_path", first, *arguments)
    assert result.returncode == 0, result.stderr
    end = json.loads((first / "all_results.json").read_text())["eval_loss"]
    start = json.loads((second / "all_results.json").read_text())["start_eval_loss"]
    assert start == pytest.approx(end, rel=1e-3)
    assert AutoModelForMaskedImageModeling.from_pretrained(second).dtype == torch.float32


def test_pushes_a_repository_that_loads_by_name(tiles, tmp_path):
    with LoopbackHub() as hub:
        command = [sys.executable, SCRIPTS / "run_mim.py", "--train_dir", tiles, "--output_dir", tmp_path / "model"]
        command += ["--max_train_steps", 1, "--push_to_hub", "--hub_model_id", "hsg-aiml/hsst-tiny", *ARGUMENTS]
        # with trackers too, of which none need be installed
        command += ["--hub_token", "hf_loopback", "--with_tracking"]
        environment = os.environ | hub.client_environment(tmp_path / "cache")
        result = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr
        files = hub.repositories["hsg-aiml/hsst-tiny"].files
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_hsst.py"} <= set(files)
    assert files["model.safetensors"] == (tmp_path / "model" / "model.safetensors").read_bytes()
    assert "AutoModelForMaskedImageModeling" in json.loads(files["config.json"])["auto_map"]


@pytest.mark.parametrize(
    ("damage", "arguments", "words"),
    [
        ("no folder", [], ["tiles"]),
        ("empty", [], ["tiles", "expected"]),
        ("truncated", [], ["tile_2.tif"]),
        ("another band count", [], ["tile_2.tif", "20", "19"]),
        ("all nodata", [], ["tile_2.tif"]),
        ("product without METADATA.XML", [], ["METADATA.XML"]),
        (None, ["--mask_ratio", 0], ["`mask_ratio` must lie between 0 and 1", "got 0.0"]),
        (None, ["--mask_ratio", 1], ["`mask_ratio` must lie between 0 and 1", "got 1.0"]),
        (None, ["--image_size", 9, "--patch_size", 2], ["divisible by `patch_size`", "9x9"]),
        (None, ["--image_size", 6], ["grid of positions divisible by `mask_patch_size`", "6x6"]),
        (None, ["--image_size", 32], ["at least 32x32 pixels", "16x16"]),
        (None, ["--bands", "config"], ["within 5.0 nm of each of the model's 200 bands", "--bands valid"]),
        (None, ["--config_overrides", "hidden_size"], ["expected name=value", "hidden_size"]),
        (None, ["--config_overrides", "hidden_size=abc"], ["expected hidden_size to be of type int, got abc"]),
        (None, ["--config_overrides", "num_labels=5"], ["expected name=value with a setting of HSSTConfig"]),
        (None, ["--config_overrides", "hidden_dropout_prob=0.5"], ["is set by --dropout"]),
        (None, ["--max_train_steps", 0], ["--max_train_steps: expected at least 1, got 0"]),
        (None, ["--max_grad_norm", -1], ["--max_grad_norm: expected at least 0, got -1"]),
        (None, ["--train_val_split", 1.5], ["share between 0 and 1, got 1.5"]),
        (None, ["--per_device_train_batch_size", 400], ["the 400 windows of one step", "--windows_per_tile"]),
        (None, ["--resume_from_checkpoint", "latest"], ["expected a checkpoint (step_N)"]),
    ],
)
def test_bad_input(tiles, tmp_path, run_script, damage, arguments, words):
    tile = tiles / "tile_2.tif"
    if damage == "no folder":
        shutil.rmtree(tiles)
    elif damage == "empty":
        shutil.rmtree(tiles)
        tiles.mkdir()
    elif damage == "truncated":
        tile.write_bytes(tile.read_bytes()[: tile.stat().st_size // 2])
    elif damage == "another band count":
        write_tile(tile, np.ones((19, 16, 16), np.int16), 450 + 30 * np.arange(19))
    elif damage == "all nodata":
        write_tile(tile, np.full((NUM_BANDS, 16, 16), -32768, np.int16), 450 + 30 * np.arange(NUM_BANDS))
    elif damage == "product without METADATA.XML":
        shutil.rmtree(tiles)
        (tiles / "product").mkdir(parents=True)
        name = "ENMAP01-____L2A-DT0000001867_20220724T104526Z_008_V010302_20230628T165614Z-SPECTRAL_IMAGE.TIF"
        write_tile(tiles / "product" / name, np.ones((NUM_BANDS, 64, 64), np.int16))
    output = tmp_path / "model"
    result = run_script("run_mim.py", "--train_dir", tiles, "--output_dir", output, *ARGUMENTS, *arguments)
    assert_one_clear_line(result, *words)
    assert not output.exists()


@pytest.mark.parametrize("damage", ["empty band", "other wavelengths"])
def test_validation_tiles_must_have_the_same_bands(tiles, tmp_path, run_script, damage):
    validation = tmp_path / "validation"
    validation.mkdir()
    image = np.random.default_rng(0).integers(100, 5000, (NUM_BANDS, 16, 16)).astype(np.int16)
    wavelengths = 450 + 30 * np.arange(NUM_BANDS)
    if damage == "empty band":
        image[7] = -32768
    write_tile(validation / "tile.tif", image, wavelengths + (60 if damage == "other wavelengths" else 0))
    arguments = ["--train_dir", tiles, "--validation_dir", validation, "--output_dir", tmp_path / "model", *ARGUMENTS]
    result = run_script("run_mim.py", *arguments)
    words = {"empty band": "the first is band 7", "other wavelengths": "got 510.0 nm where they have 450.0 nm"}
    assert_one_clear_line(result, validation, words[damage])
    assert not (tmp_path / "model").exists()


def test_trains_on_shared_potsdam_tiles(tmp_path, run_script):
    """The published band selection finds its 200 bands in real EnMAP tiles, where they are at hand."""
    shared = Path(os.environ.get("HSST_SHARED", Path(__file__).parents[2] / "shared"))
    images = shared / "data" / "enmap_potsdam" / "images"
    if not images.is_dir():
        pytest.skip("real EnMAP tiles are not part of the repository")
    output = tmp_path / "model"
    result = run_script(
        *("run_mim.py", "--train_dir", images, "--output_dir", output, "--max_train_steps", 2),
        *("--config_overrides", MODEL, "--per_device_train_batch_size", 2),
    )
    assert result.returncode == 0, result.stderr
    processor = AutoImageProcessor.from_pretrained(output)
    assert processor.num_bands == 200 and processor.num_source_bands == 224

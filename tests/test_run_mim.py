"""Masked pre-training as a command: trains, resumes the very same run, works in two processes, refuses bad input."""

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch
from conftest import SCRIPTS, assert_one_clear_line
from loopback_hub import LoopbackHub, use_hub
from rasterio.transform import from_origin
from safetensors import SafetensorError, safe_open
from transformers import AutoModel, AutoModelForMaskedImageModeling
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # see modeling_hsst/__init__.py

from datasets_loading.files import only_writer
from hsst.support.command_line import one_line_errors
from hsst.support.model_sources import OTHER_PARTS, load_model
from hsst.support.pretraining import FiniteWatch
from hsst.support.pretraining_data import choose_bands, make_config, statistics_of_checkpoint
from hsst.support.pretraining_run import Run
from modeling_hsst import (
    HSSTConfig,
    HSSTForMaskedImageModeling,
    HSSTForSemanticSegmentation,
    HSSTImageProcessor,
    adapt_to_wavelengths,
)

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


def write_tiles(folder):
    """Six tiles of 16x16 pixels whose bands and neighbors are alike, as those of real scenes are."""
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


@pytest.fixture
def tiles(tmp_path):
    return write_tiles(tmp_path / "tiles")


def test_what_images_do_not_state_is_given(tiles, tmp_path, run_script):
    """Reflectance from 0 to 1 without wavelengths, told by --scale and --wavelengths, trains the same model."""
    fractions = tmp_path / "fractions"
    fractions.mkdir()
    for path in sorted(tiles.glob("*.tif")):
        with rasterio.open(path) as dataset:
            stored = dataset.read()
        write_tile(fractions / path.name, np.where(stored == -32768, np.nan, stored / 10000).astype(np.float32))
    given = ["--wavelengths", tmp_path / "bands.csv", "--scale", 1]
    (tmp_path / "bands.csv").write_text("".join(f"{450 + 30 * band}\n" for band in range(NUM_BANDS)))
    losses, statistics = [], []
    for folder, options in ((tiles, []), (fractions, given)):
        output = tmp_path / f"from {folder.name}"
        arguments = ["--train_dir", folder, "--output_dir", output, *options, *ARGUMENTS, "--max_train_steps", 2]
        result = run_script("run_mim.py", *arguments)
        assert result.returncode == 0, result.stderr
        losses.append(json.loads((output / "all_results.json").read_text())["eval_loss"])
        statistics.append(json.loads((output / "preprocessor_config.json").read_text())["image_mean"])
        corpus = ["--data_dir", folder, "--output_dir", tmp_path / f"corpus of {folder.name}", *options]
        result = run_script("prepare_enmap.py", *corpus)
        assert result.returncode == 0 and "not used" not in result.stderr, result.stderr
    assert losses[0] == losses[1] and statistics[0] == statistics[1]
    result = run_script("run_mim.py", "--train_dir", fractions, "--output_dir", tmp_path / "none", *ARGUMENTS)
    assert_one_clear_line(result, "tile_0.tif", "--scale 1")


def parameter_hash(folder):
    state = AutoModelForMaskedImageModeling.from_pretrained(folder).state_dict()
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()


def history(folder):
    return [json.loads(line) for line in (folder / "log_history.jsonl").read_text().splitlines()]


def test_trains_and_saves_what_the_auto_classes_load(tiles, tmp_path, run_script, real_figures):
    output = tmp_path / "model"
    result = run_script(
        *("run_mim.py", "--train_dir", tiles, "--output_dir", output, "--num_train_epochs", 6, *ARGUMENTS),
        *("--windows_per_tile", 40, "--validation_steps", 80, "--mask_type", "unit", "--mask_ratio", 0.5),
        *("--learning_rate", 0.01, "--dropout", 0),
    )
    assert result.returncode == 0, result.stderr
    results = json.loads((output / "all_results.json").read_text())
    assert "validation: " in result.stderr  # its own progress bar
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
    with (resumed / "log_history.jsonl").open("a") as file:
        file.write('{"step": 15, "note": "of the interrupted run"}\n{"step": 1')
    result = run_script("run_mim.py", "--output_dir", resumed, "--resume_from_checkpoint", "latest", *arguments)
    assert result.returncode == 0, result.stderr
    assert "Resumed from" in result.stdout and "step 14" in result.stdout
    assert parameter_hash(resumed) == parameter_hash(whole)
    assert not list(resumed.glob(".*partial"))
    # as if it had never been interrupted: every loss, the windows of every epoch, every validation
    assert [entry["step"] for entry in history(whole) if "loss" in entry] == [10, 20, 30]
    assert history(resumed) == history(whole)
    starts = [json.loads((folder / "all_results.json").read_text())["start_eval_loss"] for folder in (resumed, whole)]
    assert starts[0] == starts[1]

    # the same command once more has nothing to do, unless a weight was damaged since
    latest = ["run_mim.py", "--output_dir", resumed, "--resume_from_checkpoint", "latest"]
    before = (resumed / "model.safetensors").stat().st_mtime_ns
    result = run_script(*latest, *arguments)
    assert result.returncode == 0 and "Finished before" in result.stdout
    assert (resumed / "model.safetensors").stat().st_mtime_ns == before
    weights = bytearray((resumed / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (resumed / "model.safetensors").write_bytes(weights)
    result = run_script(*latest, *arguments)
    assert result.returncode == 0 and "Finished before" not in result.stdout
    assert parameter_hash(resumed) == parameter_hash(whole)

    # another run's checkpoint is refused, unless it is asked for
    arguments[arguments.index("unit")] = "tube"
    arguments[arguments.index("--max_train_steps") + 1] = 32
    words = ["max_train_steps was 30 and is 32", "mask_type was unit and is tube", "--allow_changed_run"]
    assert_one_clear_line(run_script(*latest, *arguments), *words)
    result = run_script(*latest, *arguments, "--allow_changed_run")
    assert result.returncode == 0, result.stderr
    assert "another run from here on: mask_type was unit and is tube, max_train_steps was 30" in result.stderr
    assert history(resumed)[-1]["step"] == 32


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    """The output folder of a run of four steps in two processes, and its arguments."""
    folder = tmp_path_factory.mktemp("two_processes")
    tiles, output = write_tiles(folder / "tiles"), folder / "model"
    arguments = ["--train_dir", tiles, "--num_train_epochs", 2, "--checkpointing_steps", 2, *ARGUMENTS]
    arguments += ["--per_device_eval_batch_size", 3]  # not the same number of batches on both
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29617"]
    command += [str(part) for part in (SCRIPTS / "run_mim.py", "--output_dir", output, *arguments)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return SimpleNamespace(output=output, arguments=arguments)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_goes_on(tiles, tmp_path, run_script, number, exit_code):
    """
    Sent to all processes of the run, as by SLURM. Without a checkpoint asked for; in the first validation, in which
    there is nothing to save, too.
    """
    arguments = ["--train_dir", tiles, "--max_train_steps", 12, "--windows_per_tile", 6, *ARGUMENTS]
    arguments += ["--dataloader_num_workers", 1]
    arguments += ["--resume_from_checkpoint", "latest"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run_script("run_mim.py", "--output_dir", whole, *arguments).returncode == 0
    ending = "saved" if number == signal.SIGTERM else "nothing was trained yet"
    place = "hsst.support.pretraining_run.Run." + ("finish_step" if ending == "saved" else "validate")
    with pytest.MonkeyPatch.context() as patch:
        method = getattr(Run, place.rpartition(".")[2])
        asked = []

        def with_signal(self, *given):
            if not asked and (ending != "saved" or self.progress.completed_steps == 5):
                everyone = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
                asked.append(len(everyone))
                subprocess.run(["kill", f"-{number.value}", *map(str, everyone)], check=True)
                time.sleep(0.5)
            return method(self, *given)

        patch.setattr(place, with_signal)
        result = run_script("run_mim.py", "--output_dir", stopped, *arguments)
    assert result.returncode == exit_code and "Traceback" not in result.stderr
    assert asked == [2 if ending == "saved" else 1]
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"run_mim.py: {'terminated' if exit_code == 143 else 'interrupted'}: {ending}")
    assert [path.name for path in stopped.glob("step_*")] == (["step_5"] if ending == "saved" else [])
    assert run_script("run_mim.py", "--output_dir", stopped, *arguments).returncode == 0
    assert parameter_hash(stopped) == parameter_hash(whole) and history(stopped) == history(whole)


def test_a_damaged_checkpoint_is_passed_over(tiles, tmp_path, run_script):
    output = tmp_path / "model"
    arguments = ["run_mim.py", "--train_dir", tiles, "--output_dir", output, "--windows_per_tile", 6, *ARGUMENTS]
    arguments += ["--checkpointing_steps", 2, "--resume_from_checkpoint", "latest"]
    assert run_script(*arguments, "--max_train_steps", 6).returncode == 0
    before = parameter_hash(output)
    (output / "model.safetensors").unlink()
    with (output / "step_6" / "optimizer.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    (output / "step_4" / "manifest.json").unlink()
    result = run_script(*arguments, "--max_train_steps", 6)
    assert result.returncode == 0, result.stderr
    assert "step_6/optimizer.safetensors: expected the file that was saved, got a damaged one" in result.stderr
    assert "step_4: expected a checkpoint with its manifest.json, found none" in result.stderr
    assert "after step 2" in result.stdout and parameter_hash(output) == before
    for folder in output.glob("step_*"):
        (folder / "state.json").write_text("{}")
    (output / "model.safetensors").unlink()
    assert_one_clear_line(run_script(*arguments, "--max_train_steps", 6), output, "got 3 damaged ones")


def test_a_checkpoint_of_more_processes_goes_on_where_that_is_allowed(of_two_processes, tmp_path, run_script):
    output = tmp_path / "model"
    shutil.copytree(of_two_processes.output, output)
    arguments = [*of_two_processes.arguments, "--output_dir", output, "--resume_from_checkpoint", "latest"]
    assert_one_clear_line(run_script("run_mim.py", *arguments), "num_processes was 2 and is 1")
    (output / "step_4" / "manifest.json").unlink()
    result = run_script("run_mim.py", *arguments, "--allow_changed_run")
    assert result.returncode == 0, result.stderr
    assert "another run from here on: num_processes was 2 and is 1" in result.stderr
    assert "after step 2" in result.stdout


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_step_that_is_not_finite_stops_the_run(tiles, tmp_path, run_script, monkeypatch, bad):
    """At that very step; the checkpoint before stays, and the windows are there to be looked at."""
    forward = HSSTForMaskedImageModeling.forward
    calls = []

    def spoiled(self, *arguments, **settings):
        outputs = forward(self, *arguments, **settings)
        if self.training:
            calls.append(None)
        if len(calls) == 5 and self.training:
            if bad == "loss":
                outputs.loss = outputs.loss * float("nan")
            else:
                outputs.loss.register_hook(lambda gradient: gradient * float("inf"))
        return outputs

    monkeypatch.setattr(HSSTForMaskedImageModeling, "forward", spoiled)
    output = tmp_path / "model"
    arguments = ["--output_dir", output, "--max_train_steps", 8, "--checkpointing_steps", 2, *ARGUMENTS]
    result = run_script("run_mim.py", "--train_dir", tiles, "--windows_per_tile", 8, *arguments)
    batch = output / "not_finite_step_5_process_0.safetensors"
    assert_one_clear_line(
        result, f"got {'the loss nan' if bad == 'loss' else 'a gradient of norm'}", "at step 5", batch
    )
    assert sorted(path.name for path in output.glob("step_*")) == ["step_2", "step_4"]
    with safe_open(batch, "pt") as file:
        about = json.loads(file.metadata()["about"])
        pixels = file.get_tensor("pixels")
    assert pixels.shape == (4, NUM_BANDS, 8, 8) and len(about["windows"]) == len(about["tiles"]) == 4
    assert about["step"] == 5 and {name[:5] for name in about["tiles"]} == {"tile_"}


def test_an_infinite_gradient_is_meant_where_gradients_are_scaled():
    finite, infinite = torch.tensor(1.0), torch.tensor(math.inf)
    watch = FiniteWatch(torch.device("cpu"), scaled=True)
    watch.add(1, finite, infinite, "a batch")
    assert watch.first_bad() is None
    watch.add(2, infinite, finite, "a batch")
    assert watch.first_bad() == (2, "the loss inf", "a batch")


def test_one_run_at_a_time_writes_into_a_folder(tiles, tmp_path, run_script):
    output = tmp_path / "model"
    arguments = ["run_mim.py", "--train_dir", tiles, "--output_dir", output, "--max_train_steps", 1, *ARGUMENTS]
    with only_writer(output):
        assert_one_clear_line(run_script(*arguments), output, "expected to be the only process that writes there")
    assert run_script(*arguments).returncode == 0
    assert not (output / ".lock").exists()


def test_no_code_of_a_checkpoint_is_run(tiles, tmp_path, run_script):
    """Nothing in one is a pickle; one of another program, or with a pickle in place of a file, is refused."""
    output = tmp_path / "model"
    arguments = ["run_mim.py", "--train_dir", tiles, "--output_dir", output, "--max_train_steps", 2, *ARGUMENTS]
    assert run_script(*arguments, "--checkpointing_steps", 2).returncode == 0
    names = {path.name for path in (output / "step_2").iterdir()}
    assert {Path(name).suffix for name in names} == {".safetensors", ".json", ".jsonl"}
    payload = b"cos\nsystem\n(S'touch " + str(tmp_path / "executed").encode() + b"'\ntR."
    for name in names:
        folder = tmp_path / name
        shutil.copytree(output / "step_2", folder)
        (folder / name).write_bytes(payload)
        result = run_script(*arguments, "--resume_from_checkpoint", folder)
        assert_one_clear_line(result, folder)
    (output / "step_2" / "custom_checkpoint_0.pkl").write_bytes(payload)
    assert not (tmp_path / "executed").exists()


def test_processes_that_do_not_see_each_other_are_refused(tiles, tmp_path, run_script, monkeypatch):
    """Each would train a model of its own into the same folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    output = tmp_path / "model"
    result = run_script("run_mim.py", "--train_dir", tiles, "--output_dir", output, *ARGUMENTS)
    assert_one_clear_line(result, "WORLD_SIZE=2, but accelerate sees 1 process")
    assert not output.exists()


def test_loading_an_encoder_is_quiet(tmp_path, capfd):
    """That it has no classifier, and the classifier no decoder, is no news; that other weights lack is refused."""
    config = HSSTConfig(num_channels=20, wavelengths=None, band_patch_size=5)
    HSSTForMaskedImageModeling(config).save_pretrained(tmp_path)
    capfd.readouterr()
    load_model(HSSTForSemanticSegmentation, str(tmp_path), config, new=OTHER_PARTS, unused=OTHER_PARTS)
    assert "".join(capfd.readouterr()) == ""
    with pytest.raises(ValueError, match="no weights but those that config.json describes"):
        load_model(HSSTForSemanticSegmentation, str(tmp_path), config, new=OTHER_PARTS)


def test_two_processes_see_different_windows(of_two_processes):
    output = of_two_processes.output
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


def test_gradients_need_not_be_clipped(tiles, tmp_path, run_script):
    weights = {}
    for norm in (0, 1e9):
        output = tmp_path / f"norm {norm}"
        arguments = ["--train_dir", tiles, "--output_dir", output, *ARGUMENTS, "--max_train_steps", 2]
        result = run_script("run_mim.py", *arguments, "--max_grad_norm", norm)
        assert result.returncode == 0, result.stderr
        weights[norm] = parameter_hash(output)
    assert weights[0] == weights[1e9]


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


def test_pushes_a_repository_that_loads_by_name(tiles, tmp_path, run_script, monkeypatch):
    with LoopbackHub() as hub:
        use_hub(hub, monkeypatch, tmp_path)
        command = ["run_mim.py", "--train_dir", tiles, "--output_dir", tmp_path / "model"]
        command += ["--max_train_steps", 1, "--push_to_hub", "--hub_model_id", "hsg-aiml/hsst-tiny", *ARGUMENTS]
        # with trackers too, of which none need be installed
        command += ["--hub_token", "hf_loopback", "--with_tracking"]
        result = run_script(*command)
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
        (None, ["--image_size", 32], ["tiles: expected", "at least 32x32 pixels", "16x16 in tile_"]),
        (None, ["--bands", "config"], ["within 5.0 nm of each of the model's 200 bands", "--bands valid"]),
        (None, ["--config_overrides", "hidden_size"], ["expected name=value", "hidden_size"]),
        (None, ["--config_overrides", "hidden_size=abc"], ["expected hidden_size to be of type int, got abc"]),
        (None, ["--config_overrides", "hidden_size=0"], ["expected hidden_size of at least 1, got 0"]),
        (None, ["--config_overrides", "num_labels=5"], ["expected name=value with a setting of HSSTConfig"]),
        (None, ["--config_overrides", "hidden_dropout_prob=0.5"], ["is set by --dropout"]),
        (None, ["--max_train_steps", 0], ["--max_train_steps: expected at least 1, got 0"]),
        (None, ["--max_grad_norm", -1], ["--max_grad_norm: expected at least 0, got -1"]),
        (None, ["--config_overrides", "num_channels=19"], ["num_channels follows from the tiles"]),
        (None, ["--recompute_statistics"], ["--recompute_statistics needs --model_name_or_path"]),
        (None, ["--model_name_or_path", "outputs/of/nobody"], ["no folder outputs/of/nobody", "owner/model"]),
        (None, ["--config_name_or_path", "/outputs"], ["--config_name_or_path", "no folder /outputs"]),
        ("one tile", [], ["tile_2.tif", "expected a folder", "got one file"]),
        (None, ["--overwrite_output_dir", "--resume_from_checkpoint", "latest"], ["expected one of them"]),
        (None, ["--train_val_split", 1.5], ["share between 0 and 1, got 1.5"]),
        (None, ["--per_device_train_batch_size", 400], ["the 400 windows of one step", "--windows_per_tile"]),
        (None, ["--resume_from_checkpoint", "nowhere"], ["nowhere: expected a checkpoint", "manifest.json"]),
        (None, ["--report_to", "nothing"], ["--report_to: expected one of all", "got nothing"]),
        (None, ["--report_to", "swanlab"], ["--report_to swanlab: it is not installed (installed: "]),
        (None, ["--lr_scheduler_type", "reduce_lr_on_plateau"], ["--lr_scheduler_type: invalid choice"]),
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
        write_tile(tile, np.full((19, 16, 16), 1000, np.int16), 450 + 30 * np.arange(19))
    elif damage == "all nodata":
        write_tile(tile, np.full((NUM_BANDS, 16, 16), -32768, np.int16), 450 + 30 * np.arange(NUM_BANDS))
    elif damage == "product without METADATA.XML":
        shutil.rmtree(tiles)
        (tiles / "product").mkdir(parents=True)
        name = "ENMAP01-____L2A-DT0000001867_20220724T104526Z_008_V010302_20230628T165614Z-SPECTRAL_IMAGE.TIF"
        write_tile(tiles / "product" / name, np.full((NUM_BANDS, 64, 64), 1000, np.int16))
    output = tmp_path / "model"
    source = tile if damage == "one tile" else tiles
    result = run_script("run_mim.py", "--train_dir", source, "--output_dir", output, *ARGUMENTS, *arguments)
    assert_one_clear_line(result, *words)
    assert not output.exists()


def test_statistics_of_a_checkpoint_are_kept(tiles, tmp_path, run_script):
    first = tmp_path / "first"
    arguments = ["--max_train_steps", 1, "--validation_dir", tiles, *ARGUMENTS]
    assert run_script("run_mim.py", "--train_dir", tiles, "--output_dir", first, *arguments).returncode == 0
    statistics = json.loads((first / "preprocessor_config.json").read_text())
    # Brighter tiles, with the bands in another order and one more
    others = tmp_path / "others"
    others.mkdir()
    for path in tiles.iterdir():
        with rasterio.open(path) as dataset:
            image = dataset.read()
        image = np.where(image == -32768, image, image + 1500)
        wavelengths = np.append(450 + 30 * np.arange(NUM_BANDS), 2000)[::-1]
        write_tile(others / path.name, np.concatenate([image, image[:1]])[::-1], wavelengths)
    arguments = ["--train_dir", others, "--model_name_or_path", first, "--max_train_steps", 1, "--bands", "config"]
    arguments += ["--per_device_train_batch_size", 4]

    result = run_script("run_mim.py", "--output_dir", tmp_path / "kept", *arguments)
    assert result.returncode == 0, result.stderr
    kept = json.loads((tmp_path / "kept" / "preprocessor_config.json").read_text())
    assert (kept["image_mean"], kept["image_std"]) == (statistics["image_mean"], statistics["image_std"])
    assert kept["band_indices"] == list(range(NUM_BANDS)) and kept["num_source_bands"] == NUM_BANDS + 1

    result = run_script("run_mim.py", "--output_dir", tmp_path / "new", "--recompute_statistics", *arguments)
    assert result.returncode == 0, result.stderr
    new = json.loads((tmp_path / "new" / "preprocessor_config.json").read_text())
    assert np.subtract(new["image_mean"], kept["image_mean"]).min() > 0.1

    (first / "preprocessor_config.json").unlink()
    result = run_script("run_mim.py", "--output_dir", tmp_path / "none", *arguments)
    assert result.returncode == 0, result.stderr
    assert f"{first}: no band statistics" in result.stdout
    computed = json.loads((tmp_path / "none" / "preprocessor_config.json").read_text())
    assert computed["image_mean"] == new["image_mean"]

    # weights that cannot be those of the settings
    arguments += ["--config_overrides", "hidden_size=48"]
    result = run_script("run_mim.py", "--output_dir", tmp_path / "other", *arguments)
    assert_one_clear_line(result, first, "weights of the configuration, got a file of")


def test_statistics_are_found_by_wavelength():
    processor = HSSTImageProcessor(
        image_mean=[0.1, 0.2, 0.3], image_std=[1.0, 2.0, 3.0], wavelengths=[500.0, 600.0, 700.0], clip_range=[0.0, 2.0]
    )
    config = HSSTConfig(num_channels=2, wavelengths=[701.0, 499.0], band_patch_size=1)
    statistics = statistics_of_checkpoint(processor, config)
    assert statistics == {"image_mean": [0.3, 0.1], "image_std": [3.0, 1.0], "clip_range": [0.0, 2.0]}
    for wavelengths in ([500.0, 650.0], None):
        config = HSSTConfig(num_channels=2, wavelengths=wavelengths, band_patch_size=1)
        with pytest.raises(ValueError, match="--recompute_statistics"):
            statistics_of_checkpoint(processor, config)


class OnADeviceWithoutFloat64(torch.Tensor):
    """A tensor that is as those of Apple's devices in one way."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        result = super().__torch_function__(function, types, args, kwargs or {})
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            raise TypeError("Cannot convert a tensor to float64")
        return result


def test_validation_needs_no_float64_of_the_device():
    config = HSSTConfig(num_channels=4, band_patch_size=2, mask_type="unit")
    model = torch.nn.Module()
    model.forward = lambda pixel_values, **_: SimpleNamespace(
        reconstruction=(pixel_values + 0.5).as_subclass(OnADeviceWithoutFloat64)
    )
    accelerator = SimpleNamespace(
        device="cpu", num_processes=1, unwrap_model=lambda model: model, autocast=torch.no_grad
    )
    pixels = torch.randint(0, 9000, (3, 4, 8, 8), dtype=torch.int16)
    loader = [{"pixels": pixels, "window_index": torch.arange(3)}]
    run = SimpleNamespace(
        model=model, validation_loader=loader, processor=HSSTImageProcessor(), config=config, accelerator=accelerator
    )
    run.arguments, run.is_main = SimpleNamespace(seed=0), False
    results = Run.validate(run)
    assert results["eval_loss"] == pytest.approx(0.5)


def test_a_used_output_folder(tiles, tmp_path, run_script):
    output = tmp_path / "model"
    arguments = ["run_mim.py", "--train_dir", tiles, "--output_dir", output, *ARGUMENTS]
    result = run_script(*arguments, "--max_train_steps", 2, "--checkpointing_steps", 1)
    assert result.returncode == 0, result.stderr
    before = parameter_hash(output)

    arguments += ["--max_train_steps", 1, "--learning_rate", 0.01]
    assert_one_clear_line(run_script(*arguments), output, "found step_1", "--overwrite_output_dir")
    for folder in output.glob("step_*"):
        shutil.rmtree(folder)
    assert_one_clear_line(run_script(*arguments), output, "found model.safetensors")
    assert parameter_hash(output) == before

    (output / "step_7").mkdir()
    result = run_script(*arguments, "--overwrite_output_dir")
    assert result.returncode == 0, result.stderr
    assert not list(output.glob("step_*")) and parameter_hash(output) != before
    figures = [figure.name for figure in sorted((output / "figures").iterdir())]
    assert figures == ["reconstruction_step_0000000.png", "reconstruction_step_0000001.png"]
    assert {entry["step"] for entry in history(output)} == {0, 1}


def test_errors_while_training_give_one_clear_line(tiles, tmp_path, run_script):
    """A disk that cannot be written to, say, or as here a file in the way."""
    output = tmp_path / "model"
    output.mkdir()
    (output / "figures").write_text("")
    result = run_script("run_mim.py", "--train_dir", tiles, "--output_dir", output, "--max_train_steps", 1, *ARGUMENTS)
    assert_one_clear_line(result, output / "figures")


@pytest.mark.parametrize(
    "saving", ["hsst.support.checkpoints.save_file", "modeling_hsst.HSSTPreTrainedModel.save_pretrained"]
)
def test_a_full_disk_leaves_nothing_half_written(tiles, tmp_path, run_script, monkeypatch, saving):
    def fail(_, place, **__):
        (place / "model.safetensors" if place.is_dir() else place).touch()
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(saving, fail)
    output = tmp_path / "model"
    arguments = ["--output_dir", output, "--max_train_steps", 1, "--checkpointing_steps", 1, *ARGUMENTS]
    result = run_script("run_mim.py", "--train_dir", tiles, *arguments)
    place = output / "step_1" if "checkpoints" in saving else output
    assert_one_clear_line(result, f"{place}: expected a folder that can be written", "No space left on device")
    assert not {path.name for path in output.iterdir()} - {"step_1", "figures", "log_history.jsonl"}
    assert place == output or not place.exists()


def test_an_interruption_is_one_line(monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit, one_line_errors("program.py"):
        raise KeyboardInterrupt
    assert exit.value.code == 130
    assert capsys.readouterr().err == "program.py: interrupted\n"


class NoNetworkError(Exception):
    """What an HTTP library raises need not be an OSError."""


@pytest.mark.parametrize("failing", ["create_repo", "upload_folder"])
def test_a_hub_out_of_reach(tiles, tmp_path, run_script, monkeypatch, failing):
    def fail(*_, **__):
        raise NoNetworkError("Network is unreachable")

    for name in ("create_repo", "upload_folder"):
        monkeypatch.setattr(f"huggingface_hub.HfApi.{name}", fail if name == failing else lambda *_, **__: None)
    output = tmp_path / "model"
    arguments = ["--max_train_steps", 1, "--push_to_hub", "--hub_model_id", "owner/model", *ARGUMENTS]
    result = run_script("run_mim.py", "--train_dir", tiles, "--output_dir", output, *arguments)
    if failing == "create_repo":
        assert_one_clear_line(result, "owner/model cannot be written: Network is unreachable")
        assert not output.exists()
    else:
        assert_one_clear_line(result, f"the model is saved in {output}", "owner/model failed: Network is unreachable")
        assert (output / "model.safetensors").is_file()


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


def test_valid_bands_leave_the_blocks_of_an_adapted_checkpoint_alone(tmp_path):
    """Its weights belong to the bands of its blocks: the same ones go on, others are refused."""
    settings = {"num_spatial_layers": 1, "num_spectral_layers": 1, "image_size": 4, "band_patch_size": 5}
    trained = [500.0 + 10 * band for band in range(20)]
    settings |= {"num_channels": 20, "wavelengths": trained, "position_embedding_type": "wavelength"}
    model = HSSTForMaskedImageModeling(HSSTConfig(**settings, normalize_token_values=False))
    bands = np.array([498.0 + 7.3 * band for band in range(27)])
    adapted = adapt_to_wavelengths(model, bands.tolist())
    adapted.save_pretrained(tmp_path)
    names = ("config_name_or_path", "config_overrides", "image_size", "patch_size", "mask_type", "mask_ratio")
    arguments = argparse.Namespace(
        **dict.fromkeys((*names, "mask_patch_size")), model_name_or_path=str(tmp_path), bands="valid", dropout=0.0
    )
    tiles = SimpleNamespace(valid_bands=np.ones(27, dtype=bool), wavelengths=bands)
    config = make_config(arguments, tiles)
    assert config.block_bands == adapted.config.block_bands is not None
    assert config.block_centers == adapted.config.block_centers
    with pytest.raises(
        ValueError, match=f"--bands valid: expected the 27 bands of {tmp_path}, got 27 others: adapt it"
    ):
        make_config(arguments, SimpleNamespace(valid_bands=tiles.valid_bands, wavelengths=bands + 3))
    model.save_pretrained(tmp_path)  # one that was not adapted
    for others, count in ((bands, 27), (np.array(trained) + 100, 20)):
        with pytest.raises(ValueError, match=f"expected the 20 bands of {tmp_path}, got {count} others: adapt it"):
            make_config(arguments, SimpleNamespace(valid_bands=np.ones(count, dtype=bool), wavelengths=others))
    close = SimpleNamespace(valid_bands=np.ones(20, dtype=bool), wavelengths=np.array(trained) + 1)
    assert make_config(arguments, close).wavelengths == close.wavelengths.tolist()
    arguments.train_dir, arguments.bands = "tiles", "config"
    with pytest.raises(ValueError, match="tiles: .*; adapt the model to the bands of the tiles first"):
        choose_bands(model.config, SimpleNamespace(valid_bands=tiles.valid_bands, wavelengths=bands + 500), arguments)


BLOCKED = """
import signal, sys, time
from pathlib import Path
from hsst.support.command_line import one_line_errors

if "blocked" in sys.argv:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # as one who waits for others in C++ code
try:
    with one_line_errors("blocked.py", grace=0.5):
        Path("begun").touch()
        while True:
            time.sleep(0.1)
finally:
    Path("cleaned").touch()
"""


@pytest.mark.parametrize("kind", ["blocked", "free"])
def test_a_process_ends_with_its_launcher(tmp_path, kind):
    """Whether it listens to signals or not, and cleans up where it can."""
    (tmp_path / "child.py").write_text(BLOCKED)
    launcher = tmp_path / "torchrun"
    launcher.write_text("import subprocess, sys\nsubprocess.run([sys.executable, 'child.py', *sys.argv[1:]])\n")
    process = subprocess.Popen([sys.executable, str(launcher), kind], cwd=tmp_path, stderr=subprocess.PIPE)
    for _ in range(600):
        if (tmp_path / "begun").exists():
            break
        time.sleep(0.05)
    process.kill()
    # Its pipe closes when the child has ended as well
    errors = process.communicate(timeout=20)[1].decode()
    assert (tmp_path / "cleaned").exists() == (kind == "free")
    assert ("blocked.py: terminated" in errors) == (kind == "free")

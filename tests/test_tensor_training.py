"""Pre-training on tile tensors: files of tiles, windows cut from them, and runs that go on exactly."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_products import write_small_product

from datasets_loading.simulation.scene import simulate_scene
from datasets_loading.tiles import read_tile_set
from hsst.experiments.tensor_training import Pretraining, PretrainingSettings, describe, generator_of, pretrain
from hsst.experiments.tile_tensors import (
    TileTensors,
    band_statistics,
    cut_windows,
    draw_places,
    gather_windows,
    slice_windows,
    turned,
)
from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling, HSSTImageProcessor

ROOT = Path(__file__).parents[1]
WAVELENGTHS = [500.0 + 10 * band for band in range(20)]

EXPORT = "experiments/export_tiles.py"


def tiles_of(count=6, side=12, seed=0, weight=1.0, name="tiles"):
    """Smooth spectra of two ingredients."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.rand(count, 2, side, side, generator=generator)
    spectra = torch.rand(2, len(WAVELENGTHS), generator=torch.Generator().manual_seed(9)) * 4000
    tiles = torch.einsum("nihw,ib->nbhw", shares, spectra).to(torch.int16)
    return TileTensors(tiles, WAVELENGTHS, 10000.0, -32768, name, weight)


def small_model(**settings):
    torch.manual_seed(0)
    sizes = {
        "num_channels": 20,
        "wavelengths": WAVELENGTHS,
        "band_patch_size": 5,
        "image_size": 4,
        "hidden_size": 24,
        "head_dim": 8,
        "num_attention_heads": 2,
        "num_spatial_layers": 1,
        "num_spectral_layers": 1,
        "mask_patch_size": 1,
        "mask_ratio": 0.75,
        "visible_only": True,
        "position_embedding_type": "wavelength",
        "normalize_token_values": False,
    }
    return HSSTForMaskedImageModeling(HSSTConfig(**(sizes | settings)))


def processor_of(*sources):
    mean, deviation = band_statistics(sources, [-0.02, 1.0])
    return HSSTImageProcessor(image_mean=mean, image_std=deviation, wavelengths=WAVELENGTHS)


def test_files_give_back_what_was_saved(tmp_path):
    tiles = tiles_of()
    tiles.save(tmp_path / "tiles.safetensors")
    again = TileTensors.read(tmp_path / "tiles.safetensors", 2.0)
    assert torch.equal(again.tiles, tiles.tiles) and again.wavelengths == WAVELENGTHS
    assert (again.scale, again.nodata, again.weight) == (10000.0, -32768, 2.0)
    assert again.sha256 == tiles.sha256
    changed = tiles.tiles.clone()
    changed[0, 0, 0, 0] += 1
    assert TileTensors(changed, WAVELENGTHS, 10000.0, -32768, "other").sha256 != tiles.sha256
    some = again.with_bands(WAVELENGTHS[::2][::-1])
    assert torch.equal(some.tiles, tiles.tiles[:, ::2].flip(1))
    with pytest.raises(ValueError, match="tiles.safetensors: Expected a band within 5.0 nm"):
        again.with_bands([900.0])


def test_files_that_are_none(tmp_path):
    path = tmp_path / "tiles.safetensors"
    with pytest.raises(ValueError, match="expected a safetensors file of tiles"):
        TileTensors.read(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="expected a safetensors file of tiles"):
        TileTensors.read(path)
    save_file({"weights": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="expected a tensor `tiles` with wavelengths"):
        TileTensors.read(path)
    metadata = {"wavelengths": json.dumps(WAVELENGTHS), "scale": "1.0", "nodata": "0"}
    save_file({"tiles": torch.zeros(2, 3, 4, 4, dtype=torch.int16)}, path, metadata)
    with pytest.raises(ValueError, match=r"20 bands, rows, columns\), got torch.int16 \(2, 3, 4, 4\)"):
        TileTensors.read(path)


def test_statistics_leave_nodata_out_and_weigh_sources():
    bright, dark = tiles_of(3), tiles_of(2, seed=1)
    dark.tiles.div_(2, rounding_mode="floor")
    bright.tiles[0, 3, 2, 2] = -32768
    bright.weight, dark.weight = 3.0, 1.0
    mean, deviation = band_statistics([bright, dark], [-0.02, 1.0])
    pixels = [source.tiles.numpy().transpose(0, 2, 3, 1).reshape(-1, 20) / 10000 for source in (bright, dark)]
    pixels[0] = pixels[0][(pixels[0] > -1).all(1)]
    assert len(pixels[0]) == 3 * 144 - 1
    expected = 0.75 * pixels[0].mean(0) + 0.25 * pixels[1].mean(0)
    second = 0.75 * (pixels[0] ** 2).mean(0) + 0.25 * (pixels[1] ** 2).mean(0)
    np.testing.assert_allclose(mean, expected, atol=1e-7)
    np.testing.assert_allclose(deviation, np.sqrt(second - expected**2), atol=1e-6)


def test_windows_come_from_everywhere():
    tiles = tiles_of(2, side=6)
    tiles.tiles[:] = torch.arange(2 * 36).view(2, 1, 6, 6)
    other = tiles_of(1, name="other", weight=3.0)
    other.tiles[:] = -1
    places = draw_places([tiles, other], 6000, 4, generator_of(0))
    windows, numbers = cut_windows([tiles, other], places, 4), [len(place.tile) for place in places]
    assert windows.shape == (6000, 20, 4, 4) and sum(numbers) == 6000
    assert 1350 < numbers[0] < 1650 and (windows[numbers[0] :] == -1).all()
    drawn = windows[: numbers[0], 0]
    assert len(drawn.unique()) == 72
    # Two tiles, three offsets each way, and eight turns of each
    assert len({tuple(window.flatten().tolist()) for window in drawn}) == 2 * 9 * 8
    again = cut_windows([tiles, other], draw_places([tiles, other], 6000, 4, generator_of(0)), 4)
    assert torch.equal(again, windows)


def test_windows_are_the_same_on_every_device():
    tiles = tiles_of().tiles
    places = torch.tensor([0, 3, 5]), torch.tensor([0, 8, 2]), torch.tensor([4, 8, 0])
    sliced = slice_windows(tiles, *places, 4)
    assert torch.equal(sliced, gather_windows(tiles, *places, 4)) and torch.equal(sliced[1], tiles[3, :, 8:, 8:])
    nothing = torch.empty(0, dtype=torch.int64)
    assert slice_windows(tiles, nothing, nothing, nothing, 4).shape == (0, 20, 4, 4)


def test_turns_are_the_eight_ones():
    window = torch.arange(18).view(1, 2, 3, 3)
    ways = turned(window.expand(8, -1, -1, -1), torch.arange(8))
    expected = {
        tuple(torch.rot90(w, k, (-2, -1)).flatten().tolist())
        for w in (window[0], window[0].flip(-1))
        for k in range(4)
    }
    assert {tuple(way.flatten().tolist()) for way in ways} == expected


def run_of(tmp_path, steps=6, **arguments):
    sources = [tiles_of(), tiles_of(seed=1, name="more")]
    settings = PretrainingSettings(
        steps=steps,
        batch_size=4,
        learning_rate=3e-3,
        warmup_steps=2,
        mask_types=("even", "tube", "grid", "unit"),
        gain=0.1,
    )
    model = small_model(hidden_dropout_prob=0.1)
    run = Pretraining(model, processor_of(*sources), sources, settings, torch.device("cpu"))
    options = {"validation": [tiles_of(seed=2, name="held out")], "validation_mask_types": ["unit", "tube"]}
    options |= {"output_dir": tmp_path, "description": describe(settings, model.config, sources)}
    options |= {"validation_steps": 3, "save_steps": 2, "progress": False}
    return run, options | arguments


def test_interrupted_runs_go_on_exactly(tmp_path):
    run, options = run_of(tmp_path / "whole")
    results = pretrain(run, **options)
    assert results["steps"] == 6 and results["windows_seen"] == 24
    assert sum(results["windows_by_source"].values()) == 24
    assert [entry["step"] for entry in results["history"]] == [0, 3, 6]
    assert set(results["history"][0]["validation"]) == {"held out/unit", "held out/tube"}

    first, options = run_of(tmp_path / "parts")
    real_step, left = first.step, iter(range(5))

    def step():
        if next(left, None) is None:
            raise KeyboardInterrupt
        return real_step()

    first.step = step
    with pytest.raises(KeyboardInterrupt):
        pretrain(first, **options)
    second, options = run_of(tmp_path / "parts")
    with pytest.raises(ValueError, match="expected no other run in the output folder"):
        pretrain(second, **options)
    other = options["description"] | {"model": {}}
    with pytest.raises(ValueError, match="a resumed run must have the arguments"):
        pretrain(second, **(options | {"resume": True, "description": other}))
    resumed = pretrain(second, **(options | {"resume": True}))
    assert resumed["windows_seen"] == 24
    whole = HSSTForMaskedImageModeling.from_pretrained(tmp_path / "whole").state_dict()
    parts = HSSTForMaskedImageModeling.from_pretrained(tmp_path / "parts").state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert resumed["history"][-1]["validation"] == results["history"][-1]["validation"]


def test_it_learns(tmp_path):
    run, options = run_of(tmp_path, steps=150, validation_steps=150, save_steps=150)
    history = pretrain(run, **options)["history"]
    before, after = (history[place]["validation"]["held out/unit"] for place in (0, -1))
    assert after["error"] < 0.6 * before["error"] and after["error"] < before["band_mean"]


def test_learning_rates_rise_stay_and_fall():
    settings = PretrainingSettings(steps=100, learning_rate=1.0, warmup_steps=10, decay_share=0.25)
    rates = [settings.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9:76] == [1.0] * 67 and rates[-1] == pytest.approx(0.04)
    assert all(later < earlier for earlier, later in zip(rates[75:], rates[76:], strict=False))
    longer = replace(settings, steps=200)
    assert [longer.learning_rate_at(step) for step in range(76)] == rates[:76]


def test_runs_may_be_prolonged_until_their_rate_falls(tmp_path):
    run, options = run_of(tmp_path / "long", steps=12)
    whole = pretrain(run, **options)
    short, options = run_of(tmp_path / "short", steps=6)
    real_step, left = short.step, iter(range(4))
    short.step = lambda: real_step() if next(left, None) is not None else (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        pretrain(short, **options)
    prolonged, options = run_of(tmp_path / "short", steps=12)
    assert pretrain(prolonged, **(options | {"resume": True}))["history"][-1] == whole["history"][-1]
    late, options = run_of(tmp_path / "long", steps=24)
    with pytest.raises(ValueError, match="--steps: a run of 12 steps can have another number"):
        pretrain(late, **(options | {"resume": True}))


def test_runs_end_in_time(tmp_path):
    run, options = run_of(tmp_path / "late", steps=1000)
    # Each step seems to take a second: after six of them, a quarter of the time is left
    real_step = run.step

    def slow_step():
        run.seconds += 1.0
        return real_step()

    run.step = slow_step
    results = pretrain(run, **(options | {"max_seconds": 7.9}))
    assert results["steps"] == results["run"]["steps"] == 8 == results["settings"]["steps"]
    planned, options = run_of(tmp_path / "planned", steps=8)
    assert pretrain(planned, **options)["history"][-1]["validation"] == results["history"][-1]["validation"]


def command(script, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def test_script_goes_on_from_a_checkpoint_and_tells_of_both_runs(tmp_path):
    tiles = tiles_of()
    tiles.save(tmp_path / "tiles.safetensors")
    small_model().save_pretrained(tmp_path / "first")
    processor_of(tiles).save_pretrained(tmp_path / "first")
    path = tmp_path / "tiles.safetensors"
    usual = ["--tiles", path, "--validation_tiles", path, "--batch_size", 4, "--validation_steps", 2]
    for start, end, steps in (("first", "second", 2), ("second", "third", 3)):
        places = ["--model_name_or_path", tmp_path / start, "--output_dir", tmp_path / end]
        done = command("experiments/run_mim_tensors.py", *usual, *places, "--steps", steps, "--device", "cpu")
        assert done.returncode == 0, done.stderr
    second, third = (json.loads((tmp_path / name / "all_results.json").read_text()) for name in ("second", "third"))
    assert "earlier" not in second and third["earlier"] == second
    assert (second["steps"], third["steps"]) == (2, 3)
    # It began with the weights that the other ended with
    ended, began = second["history"][-1]["validation"], third["history"][0]["validation"]
    assert ended == began


def test_script_says_what_is_wrong(tmp_path):
    tiles_of().save(tmp_path / "tiles.safetensors")
    usual = ["--validation_tiles", tmp_path / "tiles.safetensors", "--steps", 2, "--output_dir", tmp_path / "out"]
    for arguments, message in (
        (["--tiles", f"{tmp_path}/tiles.safetensors=none"], "expected FILE or FILE=WEIGHT"),
        (
            ["--tiles", tmp_path / "tiles.safetensors"],
            "Expected a band within 5.0 nm of each of the model's 200 bands",
        ),
    ):
        done = command("experiments/run_mim_tensors.py", *arguments, *usual)
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_tiles_are_exported_as_they_are_stored(tmp_path):
    write_small_product(tmp_path / "products")
    path = tmp_path / "tiles.safetensors"
    done = command(EXPORT, "--data_dir", tmp_path / "products", "--tile_size", 50, "--output", path)
    assert done.returncode == 0, done.stderr
    tensors = TileTensors.read(path)
    product_tiles = read_tile_set(tmp_path / "products", 50, progress=False)
    bands = np.flatnonzero(product_tiles.valid_bands)
    assert len(bands) == 11 and tensors.tiles.shape == (len(product_tiles), 11, 50, 50)
    np.testing.assert_allclose(tensors.wavelengths, product_tiles.wavelengths[bands])
    for number in range(len(product_tiles)):
        np.testing.assert_array_equal(tensors.tiles[number].numpy(), np.asarray(product_tiles[number])[bands])
    few = command(
        EXPORT,
        "--data_dir",
        tmp_path / "products",
        "--tile_size",
        50,
        "--max_tiles",
        2,
        "--output",
        path,
    )
    assert few.returncode == 0 and len(TileTensors.read(path).tiles) == 2
    empty = command(EXPORT, "--data_dir", tmp_path / "nothing", "--output", tmp_path / "none.safetensors")
    assert empty.returncode == 2 and empty.stderr.count("\n") == 1 and not (tmp_path / "none.safetensors").exists()


def test_images_are_cut_into_squares_without_leaving_anything_out():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from hsst.experiments.export_tiles import squares_of
    finally:
        sys.path.pop(0)
    tiles = SimpleNamespace(shapes=np.array([[5, 4], [8, 8]]), names=["a", "b"])
    squares = squares_of(tiles, 4)
    assert squares[:2] == [(0, 0, 0), (0, 1, 0)] and len(squares) == 2 + 4
    with pytest.raises(
        ValueError, match="--tile_size: expected at most the size of every image, got 6 and 5x4 pixels in a"
    ):
        squares_of(tiles, 6)


def test_tiles_are_simulated_as_products_are(tmp_path):
    output = tmp_path / "simulated.safetensors"
    command = [sys.executable, str(ROOT / "scripts" / "experiments/simulate_tiles.py"), "--output", str(output)]
    options = ["--num_scenes", "2", "--size", "48", "--tile_size", "16", "--seed", "5", "--num_processes", "1"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tiles = TileTensors.read(output)
    scenes = [simulate_scene(48, 48, seed=seed, swath=False) for seed in (5, 6)]
    bands = [band for band in range(224) if band not in scenes[0].empty_bands]
    assert tiles.wavelengths == [scenes[0].sensor.wavelengths[band] for band in bands] and tiles.is_whole
    squares = {
        scene.cube[bands, row : row + 16, column : column + 16].tobytes(): scene.quality["cloud"][
            row : row + 16, column : column + 16
        ].mean()
        for scene in scenes
        for row in (0, 16, 32)
        for column in (0, 16, 32)
    }
    found = [tile.numpy().tobytes() for tile in tiles.tiles]
    assert found == [square for square, cloud in squares.items() if cloud <= 0.1] and found


def test_simulating_tiles_says_what_is_wrong(tmp_path):
    output = tmp_path / "simulated.safetensors"
    command = [sys.executable, str(ROOT / "scripts" / "experiments/simulate_tiles.py"), "--output", str(output)]
    done = subprocess.run([*command, "--size", "32"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.endswith(
        "error: --tile_size: expected at most the 32 pixels of --size, got 64\n"
    )
    assert not output.exists()

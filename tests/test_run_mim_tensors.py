"""Pre-training on tiles in safetensors files: bands by wavelength, windows of real pixels, errors that fall."""

import json

import numpy as np
import pytest
import torch
from conftest import assert_one_clear_line
from safetensors.torch import load_file, save_file
from small_benchmarks import write_raster
from small_products import write_small_product

from datasets_loading.tiles import read_tile_set
from hsst.experiments.run_mim_tensors import TileTensors
from hsst.support.pretraining import in_other_light, parameter_groups
from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling

WAVELENGTHS = [500.0 + 10 * band for band in range(20)]
ABOUT = {"wavelengths": json.dumps(WAVELENGTHS), "scale": "10000.0", "nodata": "-32768"}
SCRIPT, EXPORT = "experiments/run_mim_tensors.py", "experiments/export_tiles.py"
SETTINGS = {
    **{"num_channels": 20, "wavelengths": WAVELENGTHS, "band_patch_size": 5, "image_size": 4, "hidden_size": 24},
    **{"head_dim": 8, "num_attention_heads": 2, "num_spatial_layers": 1, "num_spectral_layers": 1},
    **{"mask_patch_size": 1, "mask_ratio": 0.75, "visible_only": True, "position_embedding_type": "wavelength"},
}


def write_tiles(path, count=6, side=12, about=ABOUT):
    """Smooth spectra of two ingredients."""
    shares = torch.rand(count, 2, side, side, generator=torch.Generator().manual_seed(0))
    spectra = torch.rand(2, len(WAVELENGTHS), generator=torch.Generator().manual_seed(9)) * 4000
    tiles = torch.einsum("nihw,ib->nbhw", shares, spectra).to(torch.int16).contiguous()
    tiles[0, :, 0, 0] = -32768
    save_file({"tiles": tiles}, path, about)
    return tiles


def test_bands_are_found_by_wavelength_and_windows_hold_pixels_of_the_tiles(tmp_path):
    tiles = write_tiles(tmp_path / "a.safetensors")
    few = HSSTConfig(num_channels=4, wavelengths=WAVELENGTHS[::-1][:4], band_patch_size=2, image_size=4)
    read = TileTensors.read(tmp_path / "a.safetensors", few)
    assert torch.equal(read.tiles, tiles[:, [19, 18, 17, 16]])
    windows = read.windows(50, 4, 0)
    pixels = {pixel.numpy().tobytes() for pixel in read.tiles.permute(0, 2, 3, 1).flatten(0, 2)}
    assert windows.shape == (50, 4, 4, 4)
    assert all(pixel.numpy().tobytes() in pixels for pixel in windows.permute(0, 2, 3, 1).flatten(0, 2))
    assert len({window.numpy().tobytes() for window in windows}) > 40


def test_statistics_leave_out_what_holds_no_data(tmp_path):
    tiles = write_tiles(tmp_path / "a.safetensors")
    processor = TileTensors.read(tmp_path / "a.safetensors", HSSTConfig(**SETTINGS)).processor(WAVELENGTHS)
    values = tiles.permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    values = values[(values != -32768).all(axis=1)] / 10000
    np.testing.assert_allclose(processor.image_mean, values.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(processor.image_std, values.std(axis=0), rtol=1e-6)


def test_other_light_is_one_factor_for_each_window_and_leaves_nodata():
    pixels = torch.full((2, 3, 2, 2), 1000, dtype=torch.int16)
    pixels[0, :, 0, 0] = -32768
    torch.manual_seed(0)
    lit = in_other_light(pixels, -32768, 0.3)
    assert (lit[0, :, 0, 0] == -32768).all()
    assert (
        lit[0, 0, 1, 1] == lit[0, 2, 0, 1] != 1000
        and lit[1].unique().numel() == 1
        and lit[1, 0, 0, 0] != lit[0, 0, 1, 1]
    )


def test_matrices_decay_and_nothing_else():
    model = HSSTForMaskedImageModeling(HSSTConfig(**SETTINGS))
    decayed, undecayed = (group["params"] for group in parameter_groups(model, 0.1))
    assert len(decayed) + len(undecayed) == len(list(model.parameters()))
    assert all(parameter.ndim > 1 for parameter in decayed)
    assert any(parameter.ndim == 1 for parameter in undecayed)


def test_error_falls_and_both_runs_are_recorded(tmp_path, run_script):
    path = tmp_path / "tiles.safetensors"
    write_tiles(path)
    torch.manual_seed(0)
    config = HSSTConfig(**SETTINGS)
    HSSTForMaskedImageModeling(config).save_pretrained(tmp_path / "first")
    TileTensors.read(path, config).processor(WAVELENGTHS).save_pretrained(tmp_path / "first")
    usual = ["--tiles", path, "--validation_tiles", path, "--batch_size", 8, "--mask_types", "tube", "--steps"]
    (tmp_path / "second" / ".0.partial").mkdir(parents=True)  # of a run that was killed while it saved
    given = ["--model_name_or_path", tmp_path / "first", "--output_dir", tmp_path / "second"]
    result = run_script(SCRIPT, *usual, 30, *given)
    assert result.returncode == 0, result.stderr
    second = json.loads((tmp_path / "second" / "all_results.json").read_text())
    before, after = (second["history"][number]["validation"]["tiles.safetensors/tube"]["error"] for number in (0, 1))
    assert after < before and second["windows_seen"] == 240 and "earlier" not in second
    given = ["--model_name_or_path", tmp_path / "second", "--output_dir", tmp_path / "third"]
    assert run_script(SCRIPT, *usual, 1, *given).returncode == 0
    third = json.loads((tmp_path / "third" / "all_results.json").read_text())
    assert third["earlier"] == second and third["history"][0]["validation"] == second["history"][1]["validation"]
    assert_one_clear_line(run_script(SCRIPT, *usual, 1, *given), tmp_path / "third", "no other run")
    both = ["--config_overrides", "hidden_size=24", "--output_dir", tmp_path / "fourth"]
    assert_one_clear_line(run_script(SCRIPT, *usual, 1, *given, *both), "--config_overrides", "got both")


@pytest.mark.parametrize(
    ("about", "source", "words"),
    [
        ({**ABOUT, "scale": "0"}, "tiles.safetensors", "a scale 0"),
        ({**ABOUT, "wavelengths": "[[1]]"}, "tiles.safetensors", "float() argument"),
        (ABOUT, "missing.safetensors", "No such file"),
        ({}, "tiles.safetensors", "scale"),
        (ABOUT | {"wavelengths": "[500.0]"}, "tiles.safetensors", "1 wavelengths of 20 bands"),
        (ABOUT, "tiles.safetensors", "Expected a band within 5.0 nm of each of the model's 200 bands"),
        ("small", "tiles.safetensors", "for windows of (8, 8) pixels"),
    ],
)
def test_bad_tiles_are_one_line(tmp_path, run_script, about, source, words):
    write_tiles(tmp_path / "tiles.safetensors", **({"side": 7} if about == "small" else {"about": about}))
    arguments = ["--tiles", tmp_path / source, "--validation_tiles", tmp_path / "tiles.safetensors", "--steps", 2]
    result = run_script(SCRIPT, *arguments, "--output_dir", tmp_path / "out")
    assert_one_clear_line(result, source, "expected a file of export_tiles.py", words)
    assert not (tmp_path / "out").exists()


def test_tiles_are_exported_as_they_are_stored(tmp_path, run_script):
    write_small_product(tmp_path / "products")
    path = tmp_path / "tiles.safetensors"
    usual = ["--data_dir", tmp_path / "products", "--tile_size", 50, "--output", path]
    result = run_script(EXPORT, *usual)
    assert result.returncode == 0, result.stderr
    product_tiles = read_tile_set(tmp_path / "products", 50, progress=False)
    bands = np.flatnonzero(product_tiles.valid_bands)
    config = HSSTConfig(num_channels=11, wavelengths=product_tiles.wavelengths[bands].tolist(), band_patch_size=11)
    tensors = TileTensors.read(path, config)
    assert len(bands) == 11 and tensors.tiles.shape == (len(product_tiles), 11, 50, 50)
    for tile, exported in zip(product_tiles, tensors.tiles, strict=True):
        np.testing.assert_array_equal(exported.numpy(), np.asarray(tile)[bands])
    nothing = run_script(EXPORT, "--data_dir", tmp_path / "nothing", "--output", tmp_path / "none.safetensors")
    assert_one_clear_line(nothing, "nothing")
    assert not (tmp_path / "none.safetensors").exists()


def test_images_are_cut_into_squares_without_leaving_anything_out(tmp_path, run_script):
    image = np.arange(1, 2 * 12 * 9 + 1, dtype=np.int16).reshape(2, 12, 9)
    tags = lambda band: {"wavelength": str(WAVELENGTHS[band]), "wavelength_units": "nanometers"}
    (tmp_path / "images").mkdir()
    write_raster(tmp_path / "images" / "a.tif", image, band_tags=tags)
    usual = ["--data_dir", tmp_path / "images", "--output", tmp_path / "tiles.safetensors", "--scale", 10000]
    result = run_script(EXPORT, *usual, "--tile_size", 5)
    assert result.returncode == 0, result.stderr
    squares = load_file(tmp_path / "tiles.safetensors")["tiles"]
    assert squares.shape == (6, 2, 5, 5) and set(squares.flatten().tolist()) == set(image.ravel().tolist())
    large = run_script(EXPORT, *usual, "--tile_size", 10)
    assert_one_clear_line(large, "--tile_size", "expected at most 9", "got 10")

"""Predictors of hidden values against what they should give by definition, and the command that compares them."""

import json

import numpy as np
import pytest
import rasterio
import torch
from conftest import assert_one_clear_line

from datasets_loading.tiles import Tiles
from hsst.experiments.reconstruction import (
    GAUSSIAN,
    INTERPOLATION,
    MODEL,
    REGIONS,
    VISIBLE_MEAN,
    GaussianSpectrum,
    evaluate_reconstruction,
    interpolate_spectra,
    reconstruction_table,
    region_of_bands,
)
from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling, HSSTImageProcessor

WAVELENGTHS = np.array([450.0, 500.0, 560.0, 620.0, 690.0, 720.0, 760.0, 900.0, 1200.0, 1600.0, 2100.0, 2300.0])
NUM_BANDS = len(WAVELENGTHS)


def spectra(count, seed=0):
    """Spectra that three hidden causes explain but for a little noise, standardised."""
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(3, NUM_BANDS, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    noise = 0.05 * torch.randn(count, NUM_BANDS, generator=generator, dtype=torch.float64)
    return torch.randn(count, 3, generator=generator, dtype=torch.float64) @ causes / 2 + noise


def tile_set(num_tiles=4, side=16, nodata_at=None):
    tiles = []
    for number in range(num_tiles):
        values = spectra(side * side, seed=number).T.reshape(NUM_BANDS, side, side).numpy()
        tiles.append(np.rint(3000 + 500 * values).astype(np.int16))
    if nodata_at is not None:
        for tile in tiles:
            tile[:, *nodata_at] = -32768
    names = [f"tile_{number}" for number in range(num_tiles)]
    return Tiles.in_memory(tiles, names, WAVELENGTHS, None, np.ones(NUM_BANDS, dtype=bool))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = HSSTConfig(
        num_channels=NUM_BANDS,
        band_patch_size=2,
        hidden_size=24,
        num_spatial_layers=1,
        num_spectral_layers=1,
        num_attention_heads=2,
        head_dim=8,
        wavelengths=WAVELENGTHS.tolist(),
        position_embedding_type="wavelength",
    )
    return HSSTForMaskedImageModeling(config).eval()


@pytest.fixture(scope="module")
def processor():
    return HSSTImageProcessor(
        wavelengths=WAVELENGTHS.tolist(), image_mean=[0.3] * NUM_BANDS, image_std=[0.05] * NUM_BANDS
    )


def test_conditional_mean_is_that_of_the_textbook():
    values = spectra(500)
    gaussian = GaussianSpectrum.estimate(values.split(100), NUM_BANDS)
    np.testing.assert_allclose(gaussian.mean, values.mean(0), atol=1e-12)
    np.testing.assert_allclose(gaussian.covariance, np.cov(values.T.numpy(), bias=True), atol=1e-10)
    assert gaussian.num_pixels == 500
    hidden = torch.rand(40, NUM_BANDS, generator=torch.Generator().manual_seed(1)) < 0.6
    hidden[0], hidden[1] = True, False
    predicted = gaussian.conditional_mean(values[:40], hidden, ridge=0.0)
    for row in range(40):
        unseen, seen = hidden[row].nonzero().flatten(), (~hidden[row]).nonzero().flatten()
        expected = gaussian.mean[unseen]
        if len(seen):
            system = gaussian.covariance[seen][:, seen]
            weights = torch.linalg.solve(system, values[row, seen] - gaussian.mean[seen])
            expected = expected + gaussian.covariance[unseen][:, seen] @ weights
        np.testing.assert_allclose(predicted[row, unseen], expected, atol=1e-7)


def test_conditional_mean_does_not_look_at_what_is_hidden():
    values = spectra(50)
    gaussian = GaussianSpectrum.estimate([values], NUM_BANDS)
    hidden = torch.rand(50, NUM_BANDS, generator=torch.Generator().manual_seed(1)) < 0.6
    first = gaussian.conditional_mean(values, hidden, 1e-3)
    second = gaussian.conditional_mean(values.masked_fill(hidden, 1e6), hidden, 1e-3)
    assert torch.equal(first, second)


def test_one_pixel_gives_no_gaussian():
    with pytest.raises(ValueError, match="at least 2 pixels"):
        GaussianSpectrum.estimate([spectra(1)], NUM_BANDS)


def test_interpolation_is_numpys():
    values = spectra(60)
    hidden = torch.rand(60, NUM_BANDS, generator=torch.Generator().manual_seed(2)) < 0.7
    hidden[0] = True
    hidden[1, :-1] = True  # one visible band at the end
    found = interpolate_spectra(values.masked_fill(hidden, 1e6), hidden, torch.from_numpy(WAVELENGTHS))
    assert not found[0].any()
    for row in range(1, 60):
        seen = ~hidden[row].numpy()
        if seen.any():
            expected = np.interp(WAVELENGTHS, WAVELENGTHS[seen], values[row].numpy()[seen])
            np.testing.assert_allclose(found[row], expected, atol=1e-12)


def test_every_band_lies_in_one_region():
    regions = region_of_bands(np.arange(400.0, 2500.0))
    bands = np.concatenate(list(regions.values()))
    assert list(regions) == list(REGIONS) and len(bands) == len(set(bands)) == 2100
    assert list(region_of_bands([450.0, 700.0])) == ["VNIR", "red edge"]


class Perfect(HSSTForMaskedImageModeling):
    """Knows what it cannot see, but for an offset."""

    def forward(self, pixel_values, bool_masked_pos=None, pixel_mask=None, mask_type=None):
        outputs = super().forward(pixel_values, bool_masked_pos, pixel_mask, mask_type=mask_type)
        outputs.reconstruction = pixel_values + 0.25
        return outputs


def test_errors_are_in_standard_deviations_and_of_hidden_valid_values_only(model, processor):
    perfect = Perfect(model.config).eval()
    tiles = tile_set(nodata_at=(slice(0, 3), slice(0, 16)))
    result = evaluate_reconstruction(perfect, processor, tiles, {}, source="here", mask_ratio=0.5)
    errors = result["predictors"][MODEL]
    assert errors["overall"] == pytest.approx(0.25, abs=1e-6)
    assert list(errors["regions"].values()) == pytest.approx([0.25] * 4, abs=1e-6)
    assert result["hidden"] == pytest.approx(0.5)
    # half of the values of each window, but where the nodata rows got more or less than their share
    assert result["values"] == pytest.approx(0.5 * 4 * 13 * 16 * NUM_BANDS, rel=0.1)


def test_gaussian_is_far_better_than_interpolation_where_spectra_are_gaussian(model, processor):
    tiles = tile_set()
    right = GaussianSpectrum.estimate([spectra(5000, seed=50)], NUM_BANDS)
    # The spectra in another order of bands: wrong for all tiles but the last
    wrong = GaussianSpectrum.estimate([spectra(5000, seed=50).flip(1)], NUM_BANDS)
    gaussians = {"right": [right] * 4, "mixed": [wrong, wrong, wrong, right]}
    result = evaluate_reconstruction(model, processor, tiles, gaussians, source="here", mask_ratio=0.5)
    errors = {name: values["overall"] for name, values in result["predictors"].items()}
    scale = 500 / 10000 / 0.05  # standard deviations of the processor in those of the spectra
    assert errors[GAUSSIAN + "right"] < 0.4 * errors[INTERPOLATION] * scale
    assert errors[GAUSSIAN + "right"] < 0.6 * errors[GAUSSIAN + "mixed"]
    ratio = result["model_to"][GAUSSIAN + "right"]
    assert ratio["ratio"] == pytest.approx(errors[MODEL] / errors[GAUSSIAN + "right"])
    assert ratio["low"] <= ratio["ratio"] <= ratio["high"]


def test_tube_masks_hide_whole_pixels(model, processor):
    gaussian = GaussianSpectrum.estimate([spectra(5000, seed=50)], NUM_BANDS)
    result = evaluate_reconstruction(
        model, processor, tile_set(), {"same": [gaussian] * 4}, source="here", mask_type="tube", mask_ratio=0.75
    )
    errors = {name: values["overall"] for name, values in result["predictors"].items()}
    # Nothing of the pixel is left to go by; the window's visible pixels are no help where pixels are independent
    assert errors[GAUSSIAN + "same"] == pytest.approx(errors["band mean"], rel=0.05)
    assert errors[INTERPOLATION] == pytest.approx(errors["band mean"])
    assert errors[VISIBLE_MEAN] > errors["band mean"]


def test_table_marks_the_best_and_tells_the_ratio(model, processor):
    masks = evaluate_reconstruction(model, processor, tile_set(), {}, source="here")
    masks["predictors"][VISIBLE_MEAN]["overall"] = 0.001
    lines = reconstruction_table({"masks": {"unit": masks}}).splitlines()
    assert lines[0].startswith("| unit masks, 70% hidden | all bands | VNIR | red edge | SWIR1 | SWIR2 |")
    assert [line for line in lines if "**0.001**" in line] == [line for line in lines if "visible tokens" in line]
    ratio = masks["model_to"][INTERPOLATION]
    assert f"{ratio['ratio']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})" in lines[3]


def test_tiles_without_a_band_of_the_model_are_refused(model, processor):
    shorter = [tile[:-1] for tile in tile_set()]
    tiles = Tiles.in_memory(shorter, list("abcd"), WAVELENGTHS[:-1], None, np.ones(NUM_BANDS - 1, dtype=bool))
    with pytest.raises(ValueError, match="here: .*2300"):
        evaluate_reconstruction(model, processor, tiles, {}, source="here")


def write_tiles(folder, tiles):
    folder.mkdir()
    for name, tile in zip(tiles.names, tiles, strict=True):
        profile = {"count": NUM_BANDS, "height": 16, "width": 16, "dtype": "int16", "nodata": -32768}
        with rasterio.open(folder / f"{name}.tif", "w", driver="GTiff", **profile) as dataset:
            dataset.write(tile)
            for band, centre in enumerate(WAVELENGTHS, 1):
                dataset.update_tags(band, wavelength=centre)
    return folder


@pytest.fixture
def arguments(tmp_path, model, processor):
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    tiles = write_tiles(tmp_path / "tiles", tile_set())
    return ["--model", tmp_path / "model", "--tiles", tiles, "--output_dir", tmp_path / "out"]


def test_command(tmp_path, arguments, run_script):
    training = write_tiles(tmp_path / "training", tile_set(2))
    blocks = ["--block", "west=tile_0,tile_1", "--block", "east=tile_[23]"]
    result = run_script(
        "experiments/reconstruction.py",
        *arguments,
        *blocks,
        "--training_tiles",
        training,
        "--mask_types",
        "unit",
        "grid",
    )
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "out" / "reconstruction.json").read_text())
    assert list(figures["masks"]) == ["unit", "grid"]
    predictors = figures["masks"]["unit"]["predictors"]
    assert [name for name in predictors if name.startswith(GAUSSIAN)] == [
        "Gaussian, the model's training tiles",
        "Gaussian, other tiles of the same scene",
    ]
    assert figures["gaussian_pixels"]["other tiles of the same scene"] == [512]
    table = (tmp_path / "out" / "reconstruction.md").read_text()
    assert table.strip() in result.stdout and f"{predictors[MODEL]['overall']:.3f}" in table
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["--training_tiles", "nowhere"], ["nowhere"]),
        (["--block", "west=tile_0"], ["--block", "at least 2"]),
        (["--block", "west=tile_0", "--block", "east=tile_[23]"], ["--block", "0 for tile_1"]),
        (["--block", "west=tile_*", "--block", "east=tile_[23]"], ["--block", "2 for tile_2"]),
        (["--block", "west"], ["--block", "NAME=PATTERN"]),
        (["--mask_ratio", "1.5"], ["mask_ratio", "1.5"]),
        (["--tiles", "nowhere"], ["nowhere"]),
        (["--model", "./nowhere"], ["--model", "nowhere"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, arguments, run_script, changed, words):
    result = run_script("experiments/reconstruction.py", *arguments, *changed)
    assert_one_clear_line(result, *words)
    assert not (tmp_path / "out").exists()

"""Spectra of other sensors in EnMAP's bands: what stays the same, what is refused, and what training reads."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import assert_one_clear_line

from datasets_loading.raster_file import ProductError
from datasets_loading.resampling import ENMAP_BANDS_WITH_DATA, resample_image, spectral_weights, tile_windows
from datasets_loading.sensors import ENMAP, ENMAP_WATER_VAPOUR_BANDS
from datasets_loading.tiles import read_tile_set
from modeling_hsst.scene_prediction_hsst import response_weights

AIRBORNE = np.arange(383.0, 2512.0, 5.0)
TARGETS = np.array(ENMAP.wavelengths)[list(ENMAP_BANDS_WITH_DATA)]
TARGET_WIDTHS = np.array(ENMAP.fwhm)[list(ENMAP_BANDS_WITH_DATA)]
DEVIATION_PER_FWHM = 1 / 2.354820045


def line(wavelengths, center, fwhm):
    """A Gaussian line of area 1."""
    deviation = fwhm * DEVIATION_PER_FWHM
    return np.exp(-0.5 * ((wavelengths - center) / deviation) ** 2) / (deviation * np.sqrt(2 * np.pi))


def write_airborne(path, height=20, width=30, wavelengths=AIRBORNE, tagged=True, slope=1.0):
    """An image whose spectra are straight lines, different in each pixel."""
    offsets = np.arange(height * width).reshape(height, width)
    cube = np.rint(wavelengths[:, None, None] * slope + offsets).astype(np.int16)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=len(cube),
        height=height,
        width=width,
        dtype="int16",
        nodata=-9999,
        crs="EPSG:32617",
        transform=Affine(1.0, 0.0, 1000.0, 0.0, -1.0, 2000.0),
    ) as dataset:
        dataset.write(cube)
        for band, center in enumerate(wavelengths, 1):
            if tagged:
                dataset.update_tags(band, wavelength=center, fwhm=5.0)
    return path, cube


def change(path, band, row, column, value):
    with rasterio.open(path, "r+") as dataset:
        values = dataset.read(band + 1)
        values[row, column] = value
        dataset.write(values, band + 1)


@pytest.mark.parametrize("spacing", [1.0, 5.0, 10.0])
def test_straight_spectrum_keeps_its_values(spacing):
    wavelengths = np.arange(380.0, 2520.0, spacing)
    weights = spectral_weights(wavelengths, np.full(len(wavelengths), spacing), TARGETS, TARGET_WIDTHS)
    np.testing.assert_allclose(weights @ (3.0 * wavelengths - 200.0), 3.0 * TARGETS - 200.0, atol=0.1)


@pytest.mark.parametrize("source_width", [0.1, 5.0])
def test_band_has_the_width_it_should(source_width):
    """What the source has blurred already is not blurred once more."""
    wavelengths = np.arange(1500.0, 1700.0, 1.0)
    weights = spectral_weights(wavelengths, np.full(len(wavelengths), source_width), [1600.0], [10.0])
    shift = np.arange(-8.0, 9.0, 2.0)
    seen = np.array([weights[0] @ line(wavelengths, 1600.0 + offset, np.hypot(6.0, source_width)) for offset in shift])
    expected = line(shift, 0.0, np.hypot(6.0, 10.0))
    np.testing.assert_allclose(seen, expected, rtol=0.02)


def test_agrees_with_the_responses_of_scene_prediction():
    smooth = 2000 + 1500 * np.sin(AIRBORNE / 200) + 500 * np.cos(AIRBORNE / 90)
    widths = np.sqrt(TARGET_WIDTHS**2 - 5.0**2)
    ours = spectral_weights(AIRBORNE, np.full(len(AIRBORNE), 5.0), TARGETS, TARGET_WIDTHS) @ smooth
    theirs = response_weights(TARGETS, AIRBORNE, widths) @ smooth
    # Theirs takes narrow responses from the nearest band, a slope and half a step away
    assert np.abs(ours - theirs).max() < 2.5 * np.abs(np.gradient(smooth, AIRBORNE)).max()
    truth = 2000 + 1500 * np.sin(TARGETS / 200) + 500 * np.cos(TARGETS / 90)
    assert np.abs(ours - truth).max() < 5


@pytest.mark.parametrize(
    ("kept", "named"),
    [
        (AIRBORNE < 1047, "1048.2"),  # ends too early
        (AIRBORNE > 430, "418.2"),  # starts too late
        ((AIRBORNE < 1590) | (AIRBORNE > 1625), "1598.3"),  # a gap
    ],
)
def test_bands_beyond_the_source_are_refused(kept, named):
    wavelengths = AIRBORNE[kept]
    with pytest.raises(ValueError, match=named):
        spectral_weights(wavelengths, np.full(len(wavelengths), 5.0), TARGETS, TARGET_WIDTHS)


def test_gap_where_water_vapour_absorbs_is_no_gap():
    kept = ~((AIRBORNE > 1345) & (AIRBORNE < 1440)) & ~((AIRBORNE > 1795) & (AIRBORNE < 1950))
    wavelengths = AIRBORNE[kept]
    weights = spectral_weights(wavelengths, None, TARGETS, TARGET_WIDTHS)
    np.testing.assert_allclose(weights @ wavelengths, TARGETS, atol=0.5)


def test_tile(tmp_path):
    path, cube = write_airborne(tmp_path / "plot.tif")
    change(path, int(np.argmin(np.abs(AIRBORNE - 1600))), 3, 4, -9999)  # takes part
    change(path, int(np.argmin(np.abs(AIRBORNE - 1400))), 5, 6, -9999)  # takes no part
    result = resample_image(path, tmp_path / "tiles")
    assert [file.name for file in result.tiles] == ["plot_x00000_y00000.tif"]
    assert result.num_pixels == 20 * 30 - 1
    with rasterio.open(result.tiles[0]) as dataset:
        image = dataset.read()
        assert dataset.nodata == -32768 and dataset.dtypes[0] == "int16"
        assert dataset.transform.c == 1000.0 and dataset.crs.to_epsg() == 32617
        assert float(dataset.tags(1)["wavelength"]) == ENMAP.wavelengths[0]
        assert float(dataset.tags(1)["fwhm"]) == ENMAP.fwhm[0]
        # Blocks are not much larger than the tile: what is beyond would be decoded with each reading
        assert dataset.block_shapes[0] == (32, 32)
    assert (image[list(ENMAP_WATER_VAPOUR_BANDS)] == -32768).all()
    expected = TARGETS[:, None, None] + np.arange(600).reshape(20, 30)
    valid = np.ones((20, 30), dtype=bool)
    valid[3, 4] = False
    given = image[list(ENMAP_BANDS_WITH_DATA)]
    assert (given[:, 3, 4] == -32768).all()
    assert np.abs(given - expected)[:, valid].max() <= 1.1


def test_large_image_is_cut_into_parts_that_cover_it_once(tmp_path):
    path, _ = write_airborne(tmp_path / "plot.tif", height=21)
    result = resample_image(path, tmp_path / "tiles", tile_size=16)
    tiles = read_tile_set(tmp_path / "tiles", progress=False)
    assert sorted(map(tuple, tiles.shapes.tolist())) == [(10, 15), (10, 15), (11, 15), (11, 15)]
    assert len(result.tiles) == 4 and result.num_pixels == 21 * 30
    whole = resample_image(path, tmp_path / "whole").tiles[0]
    with rasterio.open(whole) as one, rasterio.open(tmp_path / "tiles" / "plot_x00015_y00010.tif") as part:
        assert np.abs(part.read() - one.read()[:, 10:, 15:]).max() <= 1  # rounding
        assert part.transform.c == 1015.0 and part.transform.f == 1990.0


@pytest.mark.parametrize(("length", "tile_size"), [(1, 64), (64, 64), (65, 64), (200, 64)])
def test_windows_cover_once_without_slivers(length, tile_size):
    seen = np.zeros((length, 7), dtype=int)
    for window in tile_windows((length, 7), tile_size):
        assert window.height <= tile_size and window.height >= min(length, tile_size // 2)
        seen[window.row_off : window.row_off + window.height] += 1
    assert (seen == 1).all()


def test_training_reads_tiles_with_the_bands_that_hold_data(tmp_path):
    resample_image(write_airborne(tmp_path / "plot.tif")[0], tmp_path / "tiles")
    tiles = read_tile_set(tmp_path / "tiles", progress=False)
    assert np.flatnonzero(~tiles.valid_bands).tolist() == sorted(ENMAP_WATER_VAPOUR_BANDS)
    np.testing.assert_allclose(tiles.wavelengths, ENMAP.wavelengths)
    np.testing.assert_allclose(tiles.fwhm, ENMAP.fwhm)


def test_image_without_wavelengths_is_refused(tmp_path):
    path, _ = write_airborne(tmp_path / "plot.tif", tagged=False)
    with pytest.raises(ProductError, match="plot.tif: expected wavelengths"):
        resample_image(path, tmp_path / "tiles")


def test_script(tmp_path, run_script):
    (tmp_path / "images").mkdir()
    write_airborne(tmp_path / "images" / "first.tif", tagged=False)
    write_airborne(tmp_path / "images" / "second.tif", tagged=False)
    (tmp_path / "bands.txt").write_text("\n".join(f"{center} 5.0" for center in AIRBORNE))
    arguments = [tmp_path / "images", "--wavelengths", tmp_path / "bands.txt", "--output_dir", tmp_path / "tiles"]
    result = run_script("resample_spectra.py", *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"2 tiles with 1,200 pixels of 2 images: {tmp_path / 'tiles'}"
    assert len(list((tmp_path / "tiles").iterdir())) == 2


@pytest.mark.parametrize("bad", ["short", "damaged", "missing"])
def test_script_writes_nothing_where_one_image_is_bad(tmp_path, run_script, bad):
    (tmp_path / "images").mkdir()
    write_airborne(tmp_path / "images" / "first.tif")
    path = tmp_path / "images" / "second.tif"
    images = [tmp_path / "images"]
    if bad == "short":
        write_airborne(path, wavelengths=AIRBORNE[AIRBORNE < 1000])
    elif bad == "damaged":
        path.write_bytes(b"II*\0 but no more")
    else:
        images.append(path)
    result = run_script("resample_spectra.py", *images, "--output_dir", tmp_path / "tiles")
    assert_one_clear_line(result, path)
    assert not (tmp_path / "tiles").exists()

"""Tiles from products and GeoTIFF files: which windows are kept, which bands are valid, and what is refused."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
from small_products import (
    EMPTY_BAND,
    FIRST_COLUMN,
    NAME,
    TRANSFORM,
    WAVELENGTHS,
    edit_metadata,
    part,
    small_cube,
    small_quality,
    write_small_product,
)

from datasets_loading.raster_file import ProductError
from datasets_loading.resampling import find_images
from datasets_loading.sensors import ENMAP
from datasets_loading.tiles import (
    RunningStatistics,
    Tiles,
    band_statistics,
    find_sources,
    open_image,
    read_tile_set,
)
from datasets_loading.wavelengths import SIDECAR_NAME

SHARED = Path(os.environ.get("HSST_SHARED", Path(__file__).parents[2] / "shared"))
POTSDAM = SHARED / "data" / "enmap_potsdam" / "images"

TILE_WAVELENGTHS = np.array([450.0, 550.0, 650.0, 1650.0])
# VNIR and SWIR out of order, as in files of the EnMAP-Box.
FILE_ORDER = np.array([2, 3, 0, 1])


def tile_image(seed: int = 0, size: int = 16) -> np.ndarray:
    """Stored numbers in ascending wavelength, float32 (4, size, size), one corner without data."""
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 500, (4, size, size)) + 1000.0 * np.arange(1, 5)[:, None, None]
    image[:, :2, :2] = -32768
    return image.astype(np.float32)


def write_tile(path: Path, image: np.ndarray | None = None, tags: bool = True, **profile: Any) -> Path:
    """Writes a tile, its bands shuffled by `FILE_ORDER` if there are four, as floats with tags by default."""
    image = tile_image() if image is None else image
    order = FILE_ORDER if len(image) == 4 else np.arange(len(image))
    wavelengths = profile.pop("wavelengths", TILE_WAVELENGTHS[: len(image)])
    scale = profile.pop("scale", 1.0)
    bands, height, width = image.shape
    shape = {"count": bands, "height": height, "width": width, "dtype": image.dtype}
    profile = {"driver": "GTiff", "nodata": -32768, "crs": "EPSG:32633", "transform": TRANSFORM, **shape, **profile}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(image[order])
        dataset.scales = [scale] * bands
        for number, band in enumerate(order, start=1):
            if tags:
                dataset.update_tags(number, wavelength=f"{wavelengths[band]}", fwhm=f"{7 + band}")
    return path


def read_quietly(folder: Path, **options: Any) -> Tiles:
    return read_tile_set(folder, progress=False, **options)


def read_tile(path: Path) -> SimpleNamespace:
    with open_image(path) as raster:
        about = {name: getattr(raster, name) for name in ("name", "wavelengths", "fwhm")}
        return SimpleNamespace(image=raster.read_stored(), **about)


def assert_one_line(error: pytest.ExceptionInfo[ProductError], path: Path) -> None:
    message = str(error.value)
    assert message.startswith(str(path)), message
    assert re.search(": expected .+, got .+", message), message
    assert "\n" not in message


# One tile


@pytest.mark.parametrize("scale", [1.0, 0.0001])
def test_tile_is_int16_in_ascending_wavelength(tmp_path: Path, scale: float):
    tile = read_tile(write_tile(tmp_path / "tile_0_0.tif", scale=scale))
    assert tile.name == "tile_0_0"
    assert tile.image.dtype == np.int16
    np.testing.assert_array_equal(tile.image, tile_image())
    assert tile.wavelengths is not None and tile.fwhm is not None
    np.testing.assert_array_equal(tile.wavelengths, TILE_WAVELENGTHS)
    np.testing.assert_array_equal(tile.fwhm, [7, 8, 9, 10])


def test_tile_of_another_scale_is_brought_to_ten_thousand(tmp_path: Path):
    image = np.where(tile_image() == -32768, -32768, tile_image() / 2).round().astype(np.int16)
    tile = read_tile(write_tile(tmp_path / "tile.tif", image, scale=0.0002))
    np.testing.assert_array_equal(tile.image, np.where(image == -32768, -32768, image * 2))


def test_nan_and_the_files_own_nodata_become_nodata(tmp_path: Path):
    image = tile_image()
    image[image == -32768] = -9999
    image[1, 5, 5] = np.nan
    expected = tile_image().astype(np.int16)
    expected[1, 5, 5] = -32768
    np.testing.assert_array_equal(read_tile(write_tile(tmp_path / "t.tif", image, nodata=-9999)).image, expected)


def test_tile_without_wavelengths_stays_in_file_order(tmp_path: Path):
    tile = read_tile(write_tile(tmp_path / "tile.tif", tags=False))
    assert tile.wavelengths is None and tile.fwhm is None
    np.testing.assert_array_equal(tile.image, tile_image()[FILE_ORDER])


@pytest.mark.parametrize(("form", "has_widths"), [("{0}", False), ("{0}, {1}", True), ("  {0}\t{1}", True)])
def test_wavelengths_from_a_sidecar(tmp_path: Path, form: str, has_widths: bool):
    path = write_tile(tmp_path / "tile.tif", tags=False)
    lines = [form.format(TILE_WAVELENGTHS[band], 7 + band) for band in FILE_ORDER]
    (tmp_path / SIDECAR_NAME).write_text("\n".join(lines) + "\n")
    tile = read_tile(path)
    np.testing.assert_array_equal(tile.image, tile_image())
    assert tile.wavelengths is not None
    np.testing.assert_array_equal(tile.wavelengths, TILE_WAVELENGTHS)
    assert (tile.fwhm is not None) == has_widths


@pytest.mark.parametrize(("text", "message"), [("450\n550\n", "expected 4 .* got 2"), ("blue\n", "in each line")])
def test_sidecar_that_does_not_fit(tmp_path: Path, text: str, message: str):
    path = write_tile(tmp_path / "tile.tif", tags=False)
    (tmp_path / SIDECAR_NAME).write_text(text)
    with pytest.raises(ProductError, match=f"{SIDECAR_NAME}: expected.*{message}|{message}"):
        read_tile(path)


def test_tile_without_data(tmp_path: Path):
    path = write_tile(tmp_path / "tile.tif", np.full((4, 8, 8), -32768, dtype=np.int16))
    with pytest.raises(ProductError, match="expected pixels with data, got nodata in all 64 pixels") as error:
        read_quietly(tmp_path)
    assert_one_line(error, path)


def test_tile_with_duplicate_wavelengths(tmp_path: Path):
    path = write_tile(tmp_path / "tile.tif", wavelengths=np.array([450.0, 550.0, 550.0, 1650.0]))
    with pytest.raises(ProductError, match="expected wavelengths that differ, got 550 nm more than once") as error:
        read_tile(path)
    assert_one_line(error, path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9])
@pytest.mark.parametrize("compress", [None, "deflate"])
def test_truncated_tile(tmp_path: Path, share: float, compress: str | None):
    path = write_tile(tmp_path / "tile.tif", tile_image(size=64), compress=compress)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ProductError, match="expected a whole, readable raster") as error:
        read_quietly(tmp_path)
    assert_one_line(error, path)


# Sets of tiles


def test_folder_of_tiles_is_read_in_the_order_of_names(tmp_path: Path):
    for name, seed in (("b/tile_1", 1), ("a/tile_2", 2), ("tile_0", 0)):
        write_tile(tmp_path / f"{name}.tif", tile_image(seed))
    (tmp_path / "README.md").write_text("not a tile")
    tile_set = read_quietly(tmp_path)
    assert tile_set.names == ["a/tile_2", "b/tile_1", "tile_0"]
    for tile, seed in zip(tile_set, (2, 1, 0), strict=True):
        np.testing.assert_array_equal(tile, tile_image(seed))
    assert len(tile_set) == 3 and tile_set.num_bands == 4 and tile_set.num_skipped == 0
    assert tile_set.wavelengths is not None
    np.testing.assert_array_equal(tile_set.wavelengths, TILE_WAVELENGTHS)
    assert (tile_set.nodata, tile_set.scale) == (-32768, 10000.0)
    assert tile_set.valid_bands.all()


def test_sizes_may_differ(tmp_path: Path):
    write_tile(tmp_path / "a.tif", tile_image(size=16))
    write_tile(tmp_path / "b.tif", tile_image(size=24))
    assert [tile.shape for tile in read_quietly(tmp_path)] == [(4, 16, 16), (4, 24, 24)]


def test_a_band_is_valid_where_every_tile_has_data_in_it(tmp_path: Path):
    first, second = tile_image(0), tile_image(1)
    second[1] = -32768
    first[2], second[2] = 1.0, 1.0
    # One number in one tile is data, as in deep water; one number in all tiles is a filling.
    first[3] = 0.0
    write_tile(tmp_path / "a.tif", first)
    write_tile(tmp_path / "b.tif", second)
    tile_set = read_quietly(tmp_path)
    np.testing.assert_array_equal(tile_set.valid_bands, [True, False, False, True])


@pytest.mark.parametrize("as_zip", [False, True])
def test_product_is_cut_and_filtered(tmp_path: Path, as_zip: bool):
    product = write_small_product(tmp_path, as_zip=as_zip)
    # Windows at columns 0, 64 and rows 0, 64: the first column has 40 of 64 columns off the swath, and the cloud fills
    # the upper window of the second column.
    tile_set = read_quietly(product)
    assert tile_set.names == [f"{NAME}_x00064_y00064"]
    assert tile_set.num_skipped == 3
    np.testing.assert_array_equal(tile_set[0], small_cube()[:, 64:128, 64:128])
    assert tile_set[0].dtype == np.int16 and tile_set[0].flags.c_contiguous
    np.testing.assert_array_equal(np.flatnonzero(~tile_set.valid_bands), [EMPTY_BAND])
    cloudy = read_quietly(tmp_path, max_cloud=1.0)
    assert cloudy.names == [f"{NAME}_x00064_y00000", f"{NAME}_x00064_y00064"]
    edge = read_quietly(tmp_path, max_outside=FIRST_COLUMN / 64)
    assert edge.names == [f"{NAME}_x00000_y00000", f"{NAME}_x00000_y00064", f"{NAME}_x00064_y00064"]
    np.testing.assert_array_equal(edge[0], small_cube()[:, :64, :64])


def test_windows_without_data_are_skipped_even_where_the_layers_claim_land(tmp_path: Path):
    quality = small_quality() | {"classes": np.ones_like(small_quality()["classes"])}
    write_small_product(tmp_path, quality=quality)
    tile_set = read_quietly(tmp_path, tile_size=40, max_outside=1.0, max_cloud=1.0)
    assert tile_set.num_skipped == 3
    assert len(tile_set) == 3 * 3


def test_product_without_quality_layers_is_still_filtered_by_nodata(tmp_path: Path):
    folder = write_small_product(tmp_path)
    for file in folder.glob("*QL_*"):
        file.unlink()
    with pytest.warns(UserWarning, match="no quality layer"):
        assert len(read_quietly(tmp_path)) == 2


def test_products_and_tiles_together_with_other_gains(tmp_path: Path):
    write_small_product(tmp_path / "a")
    write_small_product(tmp_path / "b", name="SECOND", gain=0.0002, offset=0.01)
    write_tile(tmp_path / "c.tif", small_cube()[:, :64, 64:128], wavelengths=WAVELENGTHS + 0.2)
    tile_set = read_quietly(tmp_path)
    assert tile_set.names == [f"{NAME}_x00064_y00064", "SECOND_x00064_y00064", "c"]
    stored = small_cube()[:, 64:128, 64:128]
    np.testing.assert_array_equal(tile_set[1], np.where(stored == -32768, -32768, stored * 2 + 100))
    assert tile_set.wavelengths is not None
    np.testing.assert_array_equal(tile_set.wavelengths, WAVELENGTHS)


@pytest.mark.parametrize("stated", [True, False])
def test_a_band_is_valid_where_every_product_has_data_in_it(tmp_path: Path, stated: bool):
    write_small_product(tmp_path / "a")
    cube = small_cube()
    cube[3, :, 64:] = -32768
    second = write_small_product(tmp_path / "b", cube=cube)
    if stated:
        # The statistics call band 5 empty, whatever its pixels hold; those of band 3 hold nothing in any window.
        mean = r"(<bandStatistics>.*?<bandID number=\"6\">.*?<mean>)[^<]*"
        edit_metadata(second, mean, r"\g<1>-1000000")
    np.testing.assert_array_equal(
        np.flatnonzero(~read_quietly(tmp_path).valid_bands), [3, 5, EMPTY_BAND] if stated else [3, EMPTY_BAND]
    )


def test_a_product_that_gives_no_window_says_nothing_of_the_bands(tmp_path: Path):
    write_small_product(tmp_path / "a")
    cube = small_cube()
    cube[3] = -32768
    cloud = np.ones((150, 170), dtype=np.uint8)
    write_small_product(tmp_path / "b", cube=cube, quality=small_quality() | {"cloud": cloud})
    np.testing.assert_array_equal(np.flatnonzero(~read_quietly(tmp_path).valid_bands), [EMPTY_BAND])


def test_other_band_count_than_the_first(tmp_path: Path):
    first = write_tile(tmp_path / "a.tif")
    second = write_tile(tmp_path / "b.tif", tile_image()[:3])
    with pytest.raises(ProductError, match=re.escape(f"expected 4 bands as in {first}, got 3")) as error:
        read_quietly(tmp_path)
    assert_one_line(error, second)


def test_other_wavelengths_than_the_first(tmp_path: Path):
    first = write_tile(tmp_path / "a.tif")
    second = write_tile(tmp_path / "b.tif", wavelengths=TILE_WAVELENGTHS + [0, 0, 1.5, 0])
    message = re.escape(f"expected 650 nm in band 2 as in {first}, got 651.5 nm")
    with pytest.raises(ProductError, match=message) as error:
        read_quietly(tmp_path)
    assert_one_line(error, second)


def test_no_wavelengths_beside_tiles_with_wavelengths(tmp_path: Path):
    first = write_tile(tmp_path / "a.tif")
    second = write_tile(tmp_path / "b.tif", tags=False)
    with pytest.raises(ProductError, match=re.escape(f"expected wavelengths as in {first}, got no")) as error:
        read_quietly(tmp_path)
    assert_one_line(error, second)


def test_what_is_looked_for_in_folders_by_its_name(tmp_path: Path):
    """Files named .h5 hold anything; beside images of EMIT and AVIRIS lie others of the same format."""
    images = ["AV320231008t173943_000_L2A_OE_27577724_RFL_ORT.nc", "EMIT_L2A_RFL_001_20230101T000000_1_2.nc"]
    images += ["NIS1_20140507_143910_atmcor.h5", "NEON_D17_SJER_DP3_257000_4112000_reflectance.h5"]
    images += ["20250514_193939_64_4001_ortho_sr_hdf5.h5"]
    others = ["AV320231008t173943_000_L2A_OE_27577724_UNC_ORT.nc", "AV320231008t173943_000_L1B_ORT_27577724_OBS.nc"]
    images += ["ang20180814t224053_corr_v2r2_img.tif", "f180628t01p00r05_refl_img.tif"]
    others += [f"ang20180814t224053_{name}.tif" for name in ("rdn_v2r2_obs_ort", "rdn_v2r2_loc", "h2o_v2r2_img")]
    others += [
        "EMIT_L2A_MASK_001_20230101T000000_1_2.nc",
        "weights.h5",
        "20250514_193939_64_4001_basic_radiance_hdf5.h5",
    ]
    for name in (*images, *others):
        (tmp_path / name).touch()
    assert [path.name for path in find_sources(tmp_path).images] == sorted(images)
    assert find_images([tmp_path, tmp_path / "weights.h5"]) == [
        *find_sources(tmp_path).images,
        tmp_path / "weights.h5",
    ]


def test_empty_and_absent_folders(tmp_path: Path):
    with pytest.raises(ProductError, match="expected EnMAP products or images, got none") as error:
        read_quietly(tmp_path)
    assert_one_line(error, tmp_path)
    with pytest.raises(ProductError, match="got nothing there") as error:
        read_quietly(tmp_path / "absent")
    assert_one_line(error, tmp_path / "absent")


def test_product_of_which_nothing_passes(tmp_path: Path):
    write_small_product(tmp_path, quality=small_quality() | {"cloud": np.ones((150, 170), dtype=np.uint8)})
    with pytest.raises(ProductError, match="at most 50% without data and 10% cloud, got none among 4 in 1") as error:
        read_quietly(tmp_path)
    assert_one_line(error, tmp_path)


def test_product_without_metadata_is_not_taken_for_a_tile(tmp_path: Path):
    folder = write_small_product(tmp_path)
    part(folder, "METADATA").unlink()
    with pytest.raises(
        ProductError, match="expected 224 bands, or METADATA.XML beside it to say which, got 12"
    ) as error:
        read_quietly(tmp_path)
    assert_one_line(error, part(folder, "SPECTRAL_IMAGE"))


@pytest.mark.parametrize("damage", ["spectral image", "archive", "metadata"])
def test_damaged_product(tmp_path: Path, damage: str):
    product = write_small_product(tmp_path, as_zip=damage == "archive")
    if damage == "metadata":
        edit_metadata(product, "<bandCharacterisation>.*</bandCharacterisation>", "")
        file = part(product, "METADATA")
    else:
        file = product if damage == "archive" else part(product, "SPECTRAL_IMAGE")
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ProductError) as error:
        read_quietly(tmp_path)
    assert_one_line(error, file)


def test_unfinished_products_are_left_alone(tmp_path: Path):
    write_small_product(tmp_path)
    shutil.copytree(tmp_path / NAME, tmp_path / ".writing-1" / NAME)
    assert len(read_quietly(tmp_path)) == 1


# Statistics


def test_statistics_are_those_of_valid_clipped_reflectance(tmp_path: Path):
    image = tile_image()
    image[0, 5, 5], image[1, 5, 5] = -500, 30000
    image[2] = -32768
    write_tile(tmp_path / "a.tif", image)
    write_tile(tmp_path / "b.tif", np.where(np.arange(4)[:, None, None] == 2, -32768, tile_image(1, size=24)))
    tile_set = read_quietly(tmp_path)
    mean, std = band_statistics(tile_set, minimum=0.0, maximum=0.9)
    assert mean.dtype == std.dtype == np.float64
    assert np.isnan(mean[2]) and np.isnan(std[2])
    for band in (0, 1, 3):
        stored = np.concatenate([tile[band][tile[band] != -32768] for tile in tile_set])
        reflectance = np.clip(stored / 10000, 0.0, 0.9)
        assert len(stored) == 16 * 16 + 24 * 24 - 2 * 4
        assert mean[band] == pytest.approx(reflectance.mean(), rel=1e-12)
        assert std[band] == pytest.approx(reflectance.std(), rel=1e-12)


def test_statistics_are_stable_and_merge():
    generator = np.random.default_rng(0)
    # A spread of 1e-6 on 1: the mean of squares less the square of the mean would keep three digits of it at best.
    values = 1.0 + 1e-6 * generator.standard_normal((3, 1000))
    valid = generator.random(values.shape) < 0.7
    valid[1] = False
    parts = [RunningStatistics(3) for _ in range(4)]
    for index, columns in enumerate(np.array_split(np.arange(1000), 40)):
        parts[index % 4].update(values[:, columns], valid[:, columns])
    whole = RunningStatistics(3)
    for other in parts:
        whole.merge(other)
    np.testing.assert_array_equal(whole.count, valid.sum(axis=1))
    assert np.isnan(whole.mean[1]) and np.isnan(whole.std[1])
    for band in (0, 2):
        assert whole.mean[band] == pytest.approx(values[band][valid[band]].mean(), rel=1e-14)
        assert whole.std[band] == pytest.approx(values[band][valid[band]].std(), rel=1e-8)


# Real tiles


@pytest.mark.skipif(not POTSDAM.is_dir(), reason="needs real EnMAP tiles")
def test_real_tiles():
    tile_set = read_quietly(POTSDAM)
    assert len(tile_set) == 10 and tile_set[0].shape == (224, 32, 32) and tile_set[0].dtype == np.int16
    assert tile_set.wavelengths is not None
    np.testing.assert_allclose(tile_set.wavelengths, ENMAP.wavelengths, atol=0.2)
    np.testing.assert_array_equal(np.flatnonzero(~tile_set.valid_bands), np.arange(129, 135))
    mean, std = band_statistics(tile_set)
    assert 0 < np.nanmin(mean) < np.nanmax(mean) < 0.5 and np.nanmin(std) > 0
    # Vegetation: the near infrared is much brighter than the red.
    near_infrared, red = (np.abs(np.array(ENMAP.wavelengths) - center).argmin() for center in (850.0, 670.0))
    assert mean[near_infrared] > 3 * mean[red]


def test_labels_beside_an_image_are_no_tile(tmp_path: Path):
    write_small_product(tmp_path)
    write_tile(tmp_path / f"{NAME}_labels.tif", np.ones((1, 150, 170), dtype=np.uint8), nodata=255)
    assert read_quietly(tmp_path).names == [f"{NAME}_x00064_y00064"]

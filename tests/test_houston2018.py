"""Houston 2018 from generated files in the official layout: halved labels on the right offset, official areas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.enums import Resampling
from small_benchmarks import (
    HOUSTON_LEFT,
    HOUSTON_TILE,
    HOUSTON_TOP,
    assert_builder_holds_its_promises,
    assert_one_clear_line,
    houston_labels,
    striped_cube,
    write_houston,
    write_raster,
)

from datasets_loading.houston2018 import CLASS_NAMES, WAVELENGTHS, Houston2018, official_areas
from datasets_loading.splits import UNLABELLED

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

ROWS, COLUMNS = HOUSTON_TILE
TRAINING = np.s_[ROWS : 2 * ROWS, COLUMNS : 5 * COLUMNS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_houston(tmp_path_factory.mktemp("houston"))


def builder(folder: Path, cache: Path, **settings: Any) -> Houston2018:
    return Houston2018(data_dir=str(folder), cache_dir=str(cache), tile_size=16, **settings)


def expected_labels() -> np.ndarray:
    halved = houston_labels()[1::2, 1::2]
    return np.where(halved == 0, UNLABELLED, halved - 1).astype(np.uint8)


def test_official_areas_of_the_official_image():
    areas = official_areas(1202, 4172)
    (training,) = areas["train"]
    assert training.slices == (slice(601, 1202), slice(596, 2980))
    tiles = [(area.last_row - area.first_row) * (area.last_column - area.first_column) for area in areas["test"]]
    assert sum(tiles) == 10 * 601 * 596


def test_labels_lie_on_their_pixels(folder: Path, tmp_path: Path):
    (scene,) = builder(folder, tmp_path).data.scenes
    np.testing.assert_array_equal(scene.labels, expected_labels())
    assert scene.cube.shape == (48, 2 * ROWS, 7 * COLUMNS)
    np.testing.assert_array_equal(scene.cube[:10], striped_cube(2 * ROWS, 7 * COLUMNS, 10))


def test_training_labels_come_from_the_training_file(folder: Path, tmp_path: Path):
    """The raster of the whole scene may be empty where training is: only its test areas are used."""
    labels = houston_labels()
    labels[2 * ROWS :, 2 * COLUMNS : 10 * COLUMNS] = 0
    copy = write_houston(tmp_path / "files")
    write_raster(copy / "TestingGT" / "Test_Labels.tif", labels, crs=None, transform=None)
    (scene,) = builder(copy, tmp_path).data.scenes
    np.testing.assert_array_equal(scene.labels, expected_labels())


def test_halving_is_that_of_gdal(folder: Path):
    path = folder / "TestingGT" / "Test_Labels.tif"
    with rasterio.open(path) as dataset:
        halved = dataset.read(1, out_shape=(2 * ROWS, 7 * COLUMNS), resampling=Resampling.nearest)
    np.testing.assert_array_equal(halved, houston_labels()[1::2, 1::2])


def test_builder(folder: Path, tmp_path: Path):
    houston = builder(folder, tmp_path, window_size=6)
    prepared = assert_builder_holds_its_promises(houston, window_size=6)
    assert set(prepared) == {"train", "test"}
    data = houston.data
    assert data.class_names == CLASS_NAMES and len(CLASS_NAMES) == 20
    codes = data.split.codes["Houston2018"]
    # Test tiles are whole; training gives up the buffer where it meets them, which is on three sides.
    train = np.zeros(codes.shape, dtype=bool)
    train[ROWS + 3 : 2 * ROWS, COLUMNS + 3 : 5 * COLUMNS - 3] = True
    np.testing.assert_array_equal(codes == 0, train)
    test = np.ones(codes.shape, dtype=bool)
    test[TRAINING] = False
    np.testing.assert_array_equal(codes == 2, test)


def test_validation_is_part_of_the_training_area(folder: Path, tmp_path: Path):
    data = builder(folder, tmp_path, window_size=2, validation_share=0.3, block_size=8).data
    validation = data.split.mask("Houston2018", "validation")
    assert validation.any() and validation[TRAINING].sum() == validation.sum()


def test_wavelengths(folder: Path, tmp_path: Path):
    stated = builder(folder, tmp_path).data.wavelengths
    assert stated is not None
    np.testing.assert_allclose(stated, 374.4 + 14.3 * np.arange(48))
    without = builder(write_houston(tmp_path / "files", wavelengths=False), tmp_path).data.wavelengths
    np.testing.assert_array_equal(without, WAVELENGTHS)
    assert (WAVELENGTHS[0], WAVELENGTHS[-1]) == (374.4, 1047.1)


# Bad input


@pytest.mark.parametrize(
    "name",
    [
        "20170218_UH_CASI_S4_NAD83.pix",
        "20170218_UH_CASI_S4_NAD83.hdr",
        "Test_Labels.tif",
        "2018_IEEE_GRSS_DFC_GT_TR.tif",
    ],
)
def test_missing_file_is_named(tmp_path: Path, name: str):
    folder = write_houston(tmp_path / "files")
    next(folder.rglob(name)).unlink()
    assert_one_clear_line(
        lambda: builder(folder, tmp_path).data, f"expected a file {name}", "machinelearning.ee.uh.edu"
    )


@pytest.mark.parametrize(
    ("profile", "word"),
    [
        ({"crs": "EPSG:26914"}, "EPSG:26914"),
        ({"transform": Affine(0.5, 0, HOUSTON_LEFT + COLUMNS + 0.5, 0, -0.5, HOUSTON_TOP - ROWS)}, "column 10.50"),
        ({"transform": Affine(0.5, 0, HOUSTON_LEFT + COLUMNS + 1, 0, -0.5, HOUSTON_TOP - ROWS)}, "outside"),
        ({"transform": Affine(0.5, 0, HOUSTON_LEFT + 60, 0, -0.5, HOUSTON_TOP - ROWS)}, "inside the 24 x 70 pixels"),
        (
            {"transform": Affine(1, 0, HOUSTON_LEFT + COLUMNS, 0, -1, HOUSTON_TOP - ROWS)},
            "half the image's pixel size",
        ),
    ],
)
def test_training_labels_elsewhere_are_refused(tmp_path: Path, profile: dict[str, Any], word: str):
    folder = write_houston(tmp_path / "files")
    path = folder / "TrainingGT" / "2018_IEEE_GRSS_DFC_GT_TR.tif"
    values = houston_labels()[2 * ROWS :, 2 * COLUMNS : 10 * COLUMNS]
    grid = {"crs": "EPSG:26915", "transform": Affine(0.5, 0, HOUSTON_LEFT + COLUMNS, 0, -0.5, HOUSTON_TOP - ROWS)}
    write_raster(path, values, **{**grid, **profile})
    assert_one_clear_line(lambda: builder(folder, tmp_path).data, path.name, word)


def test_other_label_size_and_unknown_values_are_refused(tmp_path: Path):
    folder = write_houston(tmp_path / "files")
    path = folder / "TestingGT" / "Test_Labels.tif"
    no_grid = {"crs": None, "transform": None}
    write_raster(path, houston_labels()[:-2], **no_grid)
    assert_one_clear_line(lambda: builder(folder, tmp_path).data, "48 x 140", "46 x 140")
    labels = houston_labels()
    labels[0, :3] = 21
    write_raster(path, labels, **no_grid)
    assert_one_clear_line(lambda: builder(folder, tmp_path).data, "got 21 in 3 pixels")


def test_truncated_image_is_refused(tmp_path: Path):
    folder = write_houston(tmp_path / "files")
    path = next(folder.rglob("*.pix"))
    path.write_bytes(path.read_bytes()[:20000])
    assert_one_clear_line(lambda: builder(folder, tmp_path).data, "20170218_UH_CASI_S4_NAD83")

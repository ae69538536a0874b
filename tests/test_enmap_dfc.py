"""EnMAP-DFC from generated products and labels: offsets, majority, the paper's tiles, blocks, and bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from small_benchmarks import (
    LABEL_COLUMN,
    LABEL_HEIGHT,
    LABEL_ROW,
    LABEL_WIDTH,
    PRODUCT_NAMES,
    assert_builder_holds_its_promises,
    assert_one_clear_line,
    dfc_cube,
    dfc_values,
    write_dfc,
    write_dfc_labels,
    write_raster,
)
from small_products import write_small_product

from datasets_loading.enmap_dfc import (
    CLASS_NAMES,
    CLASS_OF_VALUE,
    NUM_PAPER_TILES,
    PAPER_TEST_TILES,
    DFCLabels,
    EnMAPDFC,
    majority,
)
from datasets_loading.sensors import ENMAP
from datasets_loading.splits import UNLABELLED


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dfc(tmp_path_factory.mktemp("enmap_dfc"))


def builder(folder: Path, cache: Path, **settings: Any) -> EnMAPDFC:
    return EnMAPDFC(data_dir=str(folder), cache_dir=str(cache), **settings)


def square_grid(pixel: float) -> Affine:
    return Affine(pixel, 0, 0, 0, -pixel, 0)


def expected_image() -> np.ndarray:
    return dfc_cube()[:, LABEL_ROW : LABEL_ROW + LABEL_HEIGHT, LABEL_COLUMN : LABEL_COLUMN + LABEL_WIDTH]


def expected_labels() -> np.ndarray:
    return np.array([CLASS_OF_VALUE[value] for value in range(11)], dtype=np.uint8)[dfc_values()[::3, ::3]]


def test_image_and_labels_lie_on_each_other(folder: Path, tmp_path: Path):
    (scene,) = builder(folder, tmp_path, block_size=50).data.scenes
    np.testing.assert_array_equal(scene.cube, expected_image())
    np.testing.assert_array_equal(scene.labels, expected_labels())
    assert set(np.unique(scene.labels)) == {*range(8), UNLABELLED}


def test_blocks(folder: Path, tmp_path: Path):
    blocks = builder(folder, tmp_path, block_size=50, tile_size=50)
    prepared = assert_builder_holds_its_promises(blocks)
    assert blocks.config.name == "blocks"
    assert set(prepared) == {"train", "validation", "test"}
    for name, share in zip(("train", "validation", "test"), (0.6, 0.2, 0.2), strict=True):
        counts = blocks.data.class_counts(name)
        assert (counts > 0).all()
        assert abs(counts.sum() / (expected_labels() != UNLABELLED).sum() - share) < 0.2


def test_labels_in_clouds_are_none(tmp_path: Path):
    folder = write_dfc(tmp_path / "files")
    for path in folder.rglob("*QL_QUALITY_CLOUD.TIF"):
        with rasterio.open(path, "r+") as dataset:
            cloud = dataset.read(1)
            cloud[:, LABEL_COLUMN + 20 : LABEL_COLUMN + 40] = 1
            dataset.write(cloud, 1)
    (scene,) = builder(folder, tmp_path, block_size=50).data.scenes
    expected = expected_labels()
    expected[:, 20:40] = UNLABELLED
    np.testing.assert_array_equal(scene.labels, expected)


def test_paper_tiles_are_numbered_row_by_row_less_those_with_gaps(tmp_path: Path):
    values = dfc_values()
    values[:3, 3 * 70] = 0  # one pixel without labels in the second tile of the upper row
    folder = write_dfc(tmp_path / "files", values)
    paper = builder(folder, tmp_path, config_name="paper", test_tiles=(1, 5), num_tiles=8)
    data = paper.data
    places = [(row, column) for row in (0, 64, 128) for column in (0, 64, 128) if (row, column) != (0, 64)]
    assert [scene.name for scene in data.scenes] == [f"tile{number}" for number in range(8)]
    for scene, (row, column) in zip(data.scenes, places, strict=True):
        np.testing.assert_array_equal(scene.cube, expected_image()[:, row : row + 64, column : column + 64])
        np.testing.assert_array_equal(scene.labels, expected_labels()[row : row + 64, column : column + 64])
    prepared = assert_builder_holds_its_promises(paper)
    assert prepared["test"]["scene"] == ["tile1", "tile5"]
    assert len(prepared["train"]) == 6


def test_paper_counts_its_tiles():
    assert len(set(PAPER_TEST_TILES)) == 71
    assert NUM_PAPER_TILES - len(PAPER_TEST_TILES) == 286
    assert max(PAPER_TEST_TILES) < NUM_PAPER_TILES


def test_paper_needs_the_papers_files(folder: Path, tmp_path: Path):
    paper = builder(folder, tmp_path, config_name="paper")
    assert_one_clear_line(lambda: paper.data, "357 whole tiles", "got 9")


def test_validation_is_taken_from_the_papers_training_tiles(folder: Path, tmp_path: Path):
    settings = {"test_tiles": (0,), "num_tiles": 9, "validation_share": 0.25, "block_size": 64}
    data = builder(folder, tmp_path, config_name="paper", **settings).data
    assert not data.split.mask("tile0", "validation").any()
    assert 0.15 < data.class_counts("validation").sum() / data.class_counts("train").sum() < 0.6


@pytest.mark.parametrize("factor", [2, 3])
def test_majority_is_the_most_frequent_label_and_the_lowest_of_equals(factor: int):
    values = np.random.default_rng(0).integers(1, 5, (6 * factor, 7 * factor), dtype=np.uint8)
    labels = DFCLabels("dfc_here", values, CRS.from_epsg(32633), square_grid(10.0))
    found, complete = majority(labels, square_grid(10.0 * factor), (6, 7), factor)
    for row, column in np.ndindex(6, 7):
        cell = values[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
        present, counts = np.unique(cell, return_counts=True)
        assert found[row, column] == present[counts.argmax()]
    assert complete.all()


@pytest.mark.parametrize("meters", [-5.0, -4.0, 4.0])
def test_labels_between_pixels_go_to_the_nearest(tmp_path: Path, meters: float):
    """The grids of EnMAP and of the labels are half a label apart at most; patches of 4 x 4 pixels stay in place."""
    folder = write_dfc(tmp_path / "files")
    for path in folder.rglob("*_p?.tif"):
        with rasterio.open(path, "r+") as dataset:
            t = dataset.transform
            dataset.transform = type(t)(t.a, t.b, t.c + meters, t.d, t.e, t.f + meters)
    (scene,) = builder(folder, tmp_path, block_size=50).data.scenes
    height, width = min(scene.shape[0], LABEL_HEIGHT), min(scene.shape[1], LABEL_WIDTH)
    assert (scene.labels[:height, :width] == expected_labels()[:height, :width]).mean() > 0.99


def test_class_names_are_those_of_the_labels():
    assert len(CLASS_NAMES) == 8
    assert {value for value, label in CLASS_OF_VALUE.items() if label == UNLABELLED} == {0, 3, 8}


def test_products_elsewhere_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = write_dfc(tmp_path / "files")
    write_small_product(folder / "products", "ENMAP01-____L2A-DT0000000001_X", crs="EPSG:32614")
    (scene,) = builder(folder, tmp_path, block_size=50).data.scenes
    np.testing.assert_array_equal(scene.cube, expected_image())
    assert "EPSG:32614" in caplog.text


# Bad input


def test_missing_files_are_named(folder: Path, tmp_path: Path):
    assert_one_clear_line(lambda: EnMAPDFC(cache_dir=str(tmp_path)).data, "data_dir", "planning.enmap.org")
    assert_one_clear_line(lambda: builder(tmp_path / "nowhere", tmp_path).data, "nowhere", "planning.enmap.org")
    labels_only = tmp_path / "labels_only"
    write_dfc_labels(labels_only, dfc_values())
    assert_one_clear_line(lambda: builder(labels_only, tmp_path).data, "EnMAP products", PRODUCT_NAMES[0][:49])
    assert_one_clear_line(lambda: builder(folder, tmp_path, region="Mumbai").data, "dfc_Mumbai", "ieee-dataport")


def test_another_crs_is_refused(tmp_path: Path):
    folder = write_dfc(tmp_path / "files", crs="EPSG:32632")
    assert_one_clear_line(
        lambda: builder(folder, tmp_path).data, "dfc_MexicoCity", "EPSG:32632", "EPSG:32633", "gdalwarp"
    )


def test_unknown_label_values_are_counted(tmp_path: Path):
    values = dfc_values()
    values[0, :7] = 17
    folder = write_dfc(tmp_path / "files", values)
    assert_one_clear_line(lambda: builder(folder, tmp_path).data, "p0.tif", "got 17 in 7 pixels")


def test_labels_of_another_pixel_size_are_refused(tmp_path: Path):
    folder = write_dfc(tmp_path / "files")
    path = next(folder.rglob("*_p3.tif"))
    write_raster(path, dfc_values()[:60, :60])
    assert_one_clear_line(lambda: builder(folder, tmp_path).data, "p3.tif", "10 m", "30 m")


def test_products_beside_the_labels_are_refused(tmp_path: Path):
    folder = write_dfc(tmp_path / "files", transform=square_grid(10.0))
    assert_one_clear_line(lambda: builder(folder, tmp_path).data, "overlaps the labels")


def test_damaged_image_is_refused(tmp_path: Path):
    folder = write_dfc(tmp_path / "files")
    image = next(folder.rglob("*-SPECTRAL_IMAGE.TIF"))
    image.write_bytes(image.read_bytes()[:3000])
    assert_one_clear_line(lambda: builder(folder, tmp_path).data, image.name)


def test_nodata_stays(folder: Path, tmp_path: Path):
    (scene,) = builder(folder, tmp_path, block_size=50).data.scenes
    assert (scene.cube != ENMAP.nodata).all(axis=0).sum() == scene.valid.sum() == LABEL_HEIGHT * LABEL_WIDTH

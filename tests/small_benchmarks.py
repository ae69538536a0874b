"""Small files in the layouts of the labelled data sets, and what every builder has to pass."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from small_products import DETECTORS, FWHM, TRANSFORM, WAVELENGTHS

from datasets_loading.labelled_data import LabelledBuilder, LabelledData
from datasets_loading.sensors import ENMAP
from datasets_loading.simulation.product_writer import write_enmap_product
from datasets_loading.splits import NO_SPLIT, SPLITS, UNLABELLED, check_split

CRS = "EPSG:32633"


def write_raster(path: Path, values: np.ndarray, **profile: Any) -> Path:
    """Writes (bands, height, width) or (height, width) as a GeoTIFF on the grid of `TRANSFORM`."""
    tags = profile.pop("band_tags", None)
    values = values[None] if values.ndim == 2 else values
    count, height, width = values.shape
    shape = {"count": count, "height": height, "width": width, "dtype": values.dtype}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", **{"driver": "GTiff", "crs": CRS, "transform": TRANSFORM, **shape, **profile}
    ) as dataset:
        dataset.write(values)
        for band in range(1, count + 1):
            dataset.update_tags(band, **({} if tags is None else tags(band - 1)))
    return path


def striped_cube(height: int, width: int, num_bands: int = 4, seed: int = 0) -> np.ndarray:
    """Stored numbers that tell where they stand: band, row and column can be read off, int16."""
    rows, columns = np.mgrid[:height, :width]
    place = rows * width + columns + seed
    return (place[None] % 3000 + 3000 * np.arange(num_bands)[:, None, None]).astype(np.int16)


def patchy_labels(height: int, width: int, values: list[int], seed: int = 0) -> np.ndarray:
    """Patches of 4 x 4 pixels with one of the values each, uint8."""
    generator = np.random.default_rng(seed)
    patches = generator.choice(np.array(values, dtype=np.uint8), (-(-height // 4), -(-width // 4)))
    return np.kron(patches, np.ones((4, 4), dtype=np.uint8))[:height, :width]


# EnMAP-DFC

PRODUCT_NAMES = (
    "ENMAP01-____L2A-DT0000006195_20221203T174715Z_003_V010111_20230103T090230Z",
    "ENMAP01-____L2A-DT0000006195_20221203T174720Z_004_V010111_20230103T074330Z",
)
PRODUCT_HEIGHT, PRODUCT_WIDTH, PRODUCT_OVERLAP = 150, 210, 20
# Labels begin 5 pixels right of and 3 below the upper product's corner, and end in the lower one.
LABEL_ROW, LABEL_COLUMN, LABEL_HEIGHT, LABEL_WIDTH = 3, 5, 200, 200


def shifted(rows: float, columns: float, pixel: float = 30.0) -> Affine:
    """A grid that begins so many pixels of 30 m below and right of `TRANSFORM`."""
    return Affine(pixel, 0, TRANSFORM.c + 30 * columns, 0, -pixel, TRANSFORM.f - 30 * rows)


def dfc_cube() -> np.ndarray:
    """The strip that both products show, int16 (12, 280, 210), its last two columns off the swath."""
    height = 2 * PRODUCT_HEIGHT - PRODUCT_OVERLAP
    cube = np.random.default_rng(0).integers(100, 3000, (len(WAVELENGTHS), height, PRODUCT_WIDTH), dtype=np.int16)
    cube[:, :, -2:] = ENMAP.nodata
    return cube


def dfc_values() -> np.ndarray:
    """Labels of 10 m, uint8 (600, 600): patches whose upper left corners lie on EnMAP's pixels."""
    return np.kron(patchy_labels(LABEL_HEIGHT, LABEL_WIDTH, list(range(1, 11))), np.ones((3, 3), dtype=np.uint8))


def write_dfc(folder: Path, values: np.ndarray | None = None, crs: str = CRS, **label_profile: Any) -> Path:
    """Two overlapping products and the labels of their region in four files, as the user has them."""
    cube = dfc_cube()
    for number, name in enumerate(PRODUCT_NAMES):
        first = number * (PRODUCT_HEIGHT - PRODUCT_OVERLAP)
        write_enmap_product(
            folder / "products",
            name,
            cube[:, first : first + PRODUCT_HEIGHT],
            wavelengths=WAVELENGTHS,
            fwhm=FWHM,
            detectors=DETECTORS,
            transform=shifted(first, 0),
            crs=crs,
            acquisition_time=datetime(2022, 12, 3, 17, 47, 15, tzinfo=UTC),
            sun_elevation=45.0,
            quality={},
        )
    write_dfc_labels(folder, dfc_values() if values is None else values, **label_profile)
    return folder


def write_dfc_labels(folder: Path, values: np.ndarray, **profile: Any) -> None:
    half = values.shape[0] // 2
    for number, (row, column) in enumerate([(0, 0), (0, half), (half, 0), (half, half)]):
        write_raster(
            folder / "ROIs0000_winter" / "dfc_MexicoCity" / f"ROIs0000_winter_dfc_MexicoCity_p{number}.tif",
            values[row : row + half, column : column + half],
            **{
                "transform": shifted(LABEL_ROW + row / 3, LABEL_COLUMN + column / 3, 10.0),
                "nodata": 0,
                "compress": "deflate",
                **profile,
            },
        )


# Houston 2018: 2 x 7 tiles as in the official image, but of 12 x 10 pixels

HOUSTON_TILE = (12, 10)
HOUSTON_LEFT, HOUSTON_TOP = 271460.0, 3290891.0


def houston_labels() -> np.ndarray:
    """Labels of the whole scene at half the pixel size, uint8 (48, 140), values 0 to 20."""
    return np.random.default_rng(1).integers(0, 21, (48, 140), dtype=np.uint8)


def write_houston(folder: Path, wavelengths: bool = True) -> Path:
    """The contest's files: ENVI image, labels of the training area, labels of the whole scene without georeference."""
    height, width = 2 * HOUSTON_TILE[0], 7 * HOUSTON_TILE[1]
    cube = np.concatenate([striped_cube(height, width, 10)] * 5).astype(np.uint16)
    image = folder / "FullHSIDataset" / "20170218_UH_CASI_S4_NAD83.pix"
    image.parent.mkdir(parents=True)
    cube.tofile(image)
    centers = ", ".join(f"{374.4 + 14.3 * band:.1f}" for band in range(50))
    image.with_suffix(".hdr").write_text(
        f"ENVI\nsamples = {width}\nlines = {height}\nbands = 50\nheader offset = 0\ndata type = 12\n"
        "interleave = bsq\nbyte order = 0\nmap info = {UTM, 1.0, 1.0, "
        f"{HOUSTON_LEFT}, {HOUSTON_TOP}, 1.0, 1.0, 15, North, WGS-84, units=Meters}}\n"
        + (f"wavelength units = Nanometers\nwavelength = {{{centers}}}\n" if wavelengths else "")
    )
    rows, columns = HOUSTON_TILE
    labels = houston_labels()
    write_raster(
        folder / "TrainingGT" / "2018_IEEE_GRSS_DFC_GT_TR.tif",
        labels[2 * rows :, 2 * columns : 10 * columns],
        crs="EPSG:26915",
        transform=Affine(0.5, 0, HOUSTON_LEFT + columns, 0, -0.5, HOUSTON_TOP - rows),
    )
    write_raster(folder / "TestingGT" / "Test_Labels.tif", labels, crs=None, transform=None)
    return folder


# What every builder has to pass


def assert_one_clear_line(call: Callable[[], Any], *words: object) -> None:
    """The call is refused in one line that says what was expected, what came, and the words."""
    with pytest.raises(ValueError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    assert re.search("expected .+, got .+", message), message
    for word in words:
        assert str(word) in message, message


def assert_windows_do_not_leak(data: LabelledData, window_size: int) -> None:
    """Pixel by pixel: a window around a labelled pixel of a split shows no pixel of another one."""
    before = window_size // 2
    for scene in data.scenes:
        codes = data.split.codes[scene.name]
        padded = np.pad(codes, window_size, constant_values=NO_SPLIT)
        for row, column in np.argwhere((scene.labels != UNLABELLED) & (codes != NO_SPLIT)):
            top, left = row + window_size - before, column + window_size - before
            seen = np.unique(padded[top : top + window_size, left : left + window_size])
            assert set(seen) <= {codes[row, column], NO_SPLIT}


def assert_builder_holds_its_promises(builder: LabelledBuilder, window_size: int = 8) -> dict[str, Any]:
    """Split without leaks, equal rows map-style and streaming, documented features; gives the map-style data set."""
    data = builder.data
    check_split(data.split, window_size)
    assert_windows_do_not_leak(data, window_size)
    builder.download_and_prepare()
    prepared = builder.as_dataset()
    streamed = builder.as_streaming_dataset()
    assert set(prepared) == set(streamed) == {name for name in SPLITS if data.class_counts(name).sum()}
    for name, dataset in prepared.items():
        assert dataset.features["image"].dtype == "int16" and dataset.features["label"].dtype == "uint8"
        assert dataset.features["classes"].feature.names == list(data.class_names)
        arrays = dataset.with_format("numpy", dtype=np.int16, columns=["image", "label"])
        counts = np.zeros(256, dtype=np.int64)
        rows = list(streamed[name])
        assert len(rows) == len(dataset)
        for row, array, streamed_row in zip(dataset.remove_columns(["image", "label"]), arrays, rows, strict=True):
            assert row == {key: streamed_row[key] for key in row}
            np.testing.assert_array_equal(array["image"], streamed_row["image"])
            np.testing.assert_array_equal(array["label"], streamed_row["label"])
            assert array["image"].dtype == np.int16 and array["image"].shape[0] == data.num_bands
            counts += np.bincount(array["label"].ravel(), minlength=256)
        np.testing.assert_array_equal(counts[: len(data.class_names)], data.class_counts(name))
    return prepared

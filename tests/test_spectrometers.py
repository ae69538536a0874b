"""PRISMA, EMIT and DESIS: numbers, bands, coordinates and masks, windows, and files that cannot be used."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import rasterio
import rasterio.transform
from affine import Affine
from rasterio.crs import CRS
from spectrometer_files import DESIS_NAME, EMIT_NAME, NODATA, PRISMA_NAME, write_desis, write_emit, write_prisma

from datasets_loading import spectrometers
from datasets_loading.raster_file import ProductError
from datasets_loading.raster_formats import GdalFile
from datasets_loading.spectrometers import (
    DesisFile,
    EmitFile,
    PrismaFile,
    is_desis,
    is_emit,
    is_prisma,
    open_spectrometer,
)

BANDS, HEIGHT, WIDTH = 14, 23, 31
WAVELENGTHS = np.array([412.0, 450.5, 502.3, 555, 610.7, 668, 705.2, 783, 842, 998.4, 1003.2, 1250, 1650.1, 2203.9])
FWHM = np.linspace(8, 12, BANDS)
TRANSFORM = Affine(30.0, 0.0, 366015.0, 0.0, -30.0, 5809965.0)
CRS_NAME = "EPSG:32633"
MARKED = (17, 5)
"""Row and column of the one pixel of reflectance 0.9."""
MARKED_NUMBER = 9000
GRID = (WAVELENGTHS, FWHM, TRANSFORM, CRS_NAME)
ALL = range(BANDS)


@pytest.fixture
def stored() -> np.ndarray:
    """Reflectance x 10000: some of it negative, pixels without data at the left, one number without data elsewhere."""
    generator = np.random.default_rng(0)
    cube = generator.integers(-150, 5000, (BANDS, HEIGHT, WIDTH), dtype=np.int16)
    cube[:, MARKED[0], MARKED[1]] = MARKED_NUMBER
    cube[:, :, :4] = NODATA
    cube[3, 8, 9] = NODATA
    return cube


@pytest.fixture(params=["prisma", "emit", "desis"])
def product(request: pytest.FixtureRequest, tmp_path: Path, stored: np.ndarray) -> Path:
    """The same image in each of the formats."""
    if request.param == "prisma":
        return write_prisma(tmp_path / PRISMA_NAME, stored, *GRID)
    if request.param == "emit":
        return write_emit(tmp_path / EMIT_NAME, stored, *GRID, quarter_turns=1)
    return write_desis(tmp_path / DESIS_NAME, stored, *GRID, gain=np.linspace(3e-5, 1e-4, BANDS), offset=-0.0005)


def whole(file: Any) -> np.ndarray:
    return file.read(range(file.shape[0]), slice(0, file.shape[1]), slice(0, file.shape[2]))


def to_stored(file: Any, numbers: np.ndarray) -> np.ndarray:
    """Stored numbers of a file as reflectance x 10000 in ascending wavelength, as the writers take them."""
    stated = file.stated
    values = np.rint((numbers * stated.gain[:, None, None] + stated.offset[:, None, None]) * 1e4)
    values[numbers == stated.nodata] = NODATA
    return values[np.argsort(stated.wavelengths)].astype(np.int16)


def change(path: Path, edit: Any) -> Path:
    with h5py.File(path, "r+") as file:
        edit(file)
    return path


def attribute(name: str, value: Any) -> Any:
    """A change that gives an attribute of the file another value."""
    return lambda file: file.attrs.create(name, value)


def refused(path: Path, reader: Any, *parts: str) -> None:
    """Expects one line that names the file and holds the parts."""
    with pytest.raises(ProductError) as caught:
        whole(reader(path))
    message = str(caught.value)
    assert "\n" not in message and path.name in message
    assert all(part in message for part in parts), message


# What all formats have in common


def test_every_format_gives_back_the_image_that_was_written(product: Path, stored: np.ndarray) -> None:
    file = open_spectrometer(product)
    assert file is not None and file.shape == (BANDS, HEIGHT, WIDTH)
    numbers = whole(file)
    assert numbers.dtype == file.dtype and numbers.shape == file.shape
    assert np.array_equal(to_stored(file, numbers), stored)
    assert file.stated.quantity == "reflectance" and not file.stated.notes


def test_every_format_states_its_bands(product: Path) -> None:
    stated = open_spectrometer(product).stated  # type: ignore[union-attr]
    order = np.argsort(stated.wavelengths)
    assert np.allclose(stated.wavelengths[order], WAVELENGTHS, atol=1e-3)
    assert np.allclose(stated.fwhm[order], FWHM, atol=1e-5)
    for values in (stated.wavelengths, stated.fwhm, stated.gain, stated.offset):
        assert values.dtype == np.float64 and values.shape == (BANDS,)


def test_a_marked_pixel_lies_at_its_coordinates(product: Path) -> None:
    file = open_spectrometer(product)
    assert file is not None and file.stated.crs == CRS.from_epsg(32633)
    east, north = rasterio.transform.xy(TRANSFORM, *MARKED)
    row, column = rasterio.transform.rowcol(file.stated.transform, east, north)
    assert (row, column) == MARKED and rasterio.transform.xy(file.stated.transform, row, column) == (east, north)
    pixel = file.read(ALL, slice(row, row + 1), slice(column, column + 1))
    assert (to_stored(file, pixel) == MARKED_NUMBER).all()


def test_windows_and_bands_in_any_order_equal_those_of_the_whole(product: Path) -> None:
    file = open_spectrometer(product)
    assert file is not None
    numbers = whole(file)
    for bands, rows, columns in [
        ([0], slice(0, 1), slice(0, 1)),
        ([13, 2, 3, 4, 0], slice(5, 20), slice(3, 31)),
        ([7, 7, 1], slice(22, 23), slice(0, 31)),
        (list(ALL), slice(10, 11), slice(30, 31)),
        ([], slice(0, 3), slice(0, 3)),
    ]:
        part = file.read(bands, rows, columns)
        assert part.dtype == file.dtype and np.array_equal(part, numbers[bands][:, rows, columns])
        mask = file.read_mask(rows, columns)
        assert mask is None or (mask.dtype == bool and mask.shape == part.shape[1:])
    with pytest.raises(IndexError):
        file.read([BANDS], slice(0, 1), slice(0, 1))


def test_a_reader_is_pickled_without_its_open_file(product: Path) -> None:
    file = open_spectrometer(product)
    numbers = whole(file)
    copy = pickle.loads(pickle.dumps(file))
    assert not copy._handles and np.array_equal(whole(copy), numbers)


def test_a_closed_file_opens_again_and_leaves_others_open(product: Path) -> None:
    file, other = open_spectrometer(product), open_spectrometer(product)
    numbers = whole(file)
    file.close()  # type: ignore[union-attr]
    file.close()  # type: ignore[union-attr]
    assert np.array_equal(whole(other), numbers) and np.array_equal(whole(file), numbers)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_process_opens_the_file_itself(product: Path) -> None:
    file: Any = open_spectrometer(product)
    numbers = whole(file)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def child() -> None:
        queue.put((np.array_equal(whole(file), numbers), list(file._handles)[-1] == os.getpid()))

    process = context.Process(target=child)
    process.start()
    assert queue.get(timeout=60) == (True, True)
    process.join()
    assert np.array_equal(whole(file), numbers) and list(file._handles) == [os.getpid()]


def test_the_block_shape_is_that_of_the_file(tmp_path: Path, stored: np.ndarray) -> None:
    prisma = write_prisma(tmp_path / PRISMA_NAME, stored, *GRID)
    assert PrismaFile(prisma).block_shape == (1, WIDTH)
    assert PrismaFile(write_prisma(prisma, stored, *GRID, chunks=(8, 2, 16))).block_shape == (8, 16)
    emit = write_emit(tmp_path / EMIT_NAME, stored, *GRID, chunks=(8, 16, 2))
    assert EmitFile(emit, orthorectified=False).block_shape == (8, 16)
    assert EmitFile(emit).block_shape == (HEIGHT, WIDTH)
    assert np.array_equal(to_stored(EmitFile(emit), whole(EmitFile(emit))), stored)


# Which reader a path needs


def test_products_are_told_apart_by_name_and_renamed_ones_by_content(tmp_path: Path, stored: np.ndarray) -> None:
    prisma = write_prisma(tmp_path / "scene.he5", stored, *GRID)
    emit = write_emit(tmp_path / "scene.nc", stored, *GRID)
    desis = write_desis(tmp_path / "order" / "any", stored, *GRID)
    metadata = desis / f"{DESIS_NAME}-METADATA.xml"
    image = desis / f"{DESIS_NAME}-SPECTRAL_IMAGE.tif"
    for path, kinds in [
        (prisma, (True, False, False)),
        (emit, (False, True, False)),
        (desis, (False, False, True)),
        (metadata, (False, False, True)),
        (image, (False, False, True)),
        (tmp_path / PRISMA_NAME, (True, False, False)),
        (tmp_path / EMIT_NAME, (False, True, False)),
        (tmp_path / "ENMAP01-____L2A-DT0000006195-METADATA.XML", (False, False, False)),
        (tmp_path / "nothing.nc", (False, False, False)),
        (tmp_path, (False, False, False)),
    ]:
        assert (is_prisma(path), is_emit(path), is_desis(path)) == kinds, path
    (tmp_path / "text.nc").write_text("no HDF5")
    change(write_emit(tmp_path / "other.nc", stored, *GRID), lambda file: file.pop("sensor_band_parameters"))
    for path in (tmp_path / "text.nc", tmp_path / "other.nc", tmp_path, tmp_path / "nothing"):
        assert open_spectrometer(path) is None
    for path in (desis, desis.parent, metadata, image):
        file: Any = open_spectrometer(path)
        assert file.stated.name == DESIS_NAME and file.path == image
    assert isinstance(open_spectrometer(prisma), PrismaFile) and isinstance(open_spectrometer(emit), EmitFile)
    assert open_spectrometer(emit, orthorectified=False).stated.crs is None  # type: ignore[union-attr]


def test_without_h5py_the_error_names_what_to_install(
    tmp_path: Path, stored: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_prisma(tmp_path / PRISMA_NAME, stored, *GRID)
    renamed = write_emit(tmp_path / "scene.nc", stored, *GRID)
    desis = write_desis(tmp_path / DESIS_NAME, stored, *GRID)
    monkeypatch.setitem(sys.modules, "h5py", None)
    refused(path, open_spectrometer, "pip install h5py")
    assert open_spectrometer(renamed) is None and open_spectrometer(desis) is not None


# PRISMA


def test_prisma_leaves_out_unused_bands_and_keeps_the_order_of_the_file(tmp_path: Path, stored: np.ndarray) -> None:
    file = PrismaFile(write_prisma(tmp_path / PRISMA_NAME, stored, *GRID))
    vnir = WAVELENGTHS[WAVELENGTHS <= 1000][::-1]
    swir = WAVELENGTHS[WAVELENGTHS > 1000][::-1]
    assert np.allclose(file.stated.wavelengths, np.concatenate([vnir, swir]), atol=1e-3)
    numbers = whole(file)
    assert numbers.dtype == np.uint16 and numbers.max() < 65535


def test_prisma_without_bands_of_one_detector(tmp_path: Path, stored: np.ndarray) -> None:
    path = write_prisma(tmp_path / PRISMA_NAME, stored[:10], WAVELENGTHS[:10], FWHM[:10], TRANSFORM, CRS_NAME)
    file = PrismaFile(path)
    assert file.shape[0] == 10 and np.array_equal(to_stored(file, whole(file)), stored[:10])


def test_prisma_reflectance_is_between_the_limits_of_its_detector(tmp_path: Path, stored: np.ndarray) -> None:
    stored[:10, 0, 10] = 20000  # 2.0: beyond the usual limit, in VNIR only
    file = PrismaFile(write_prisma(tmp_path / PRISMA_NAME, stored, *GRID))
    assert len(np.unique(file.stated.gain)) == 2
    assert file.stated.nodata == 0 and np.array_equal(to_stored(file, whole(file)), stored)
    highest = 65535 * file.stated.gain + file.stated.offset
    assert highest[:10] == pytest.approx(2.01) and highest[10:] == pytest.approx(1.2)


def test_prisma_masks_pixels_outside_the_swath(tmp_path: Path, stored: np.ndarray) -> None:
    path = write_prisma(tmp_path / PRISMA_NAME, stored, *GRID)
    mask = PrismaFile(path).read_mask(slice(2, 10), slice(0, 8))
    assert mask is not None and mask.dtype == bool and mask.shape == (8, 8)
    assert not mask[:, :4].any() and mask[:, 4:].all()  # one band without data leaves a pixel in
    write_prisma(path, stored, *GRID, sun_zenith=False)
    assert PrismaFile(path).read_mask(slice(0, 8), slice(0, 8)) is None


@pytest.mark.parametrize(("corners", "noted"), [("centers", False), ("outer", False), ("odd", True)])
def test_prisma_corners_may_be_centers_of_pixels_or_corners_of_the_image(
    tmp_path: Path, stored: np.ndarray, corners: str, noted: bool
) -> None:
    stated = PrismaFile(write_prisma(tmp_path / PRISMA_NAME, stored, *GRID, corners=corners)).stated
    assert bool(stated.notes) is noted
    shift = 75 if noted else 0
    assert stated.transform == Affine(30.0, 0.0, TRANSFORM.c + shift, 0.0, -30.0, TRANSFORM.f - shift)


def test_prisma_corners_count_by_where_they_lie_rather_than_by_name(tmp_path: Path, stored: np.ndarray) -> None:
    def swap(file: Any) -> None:
        for axis in ("easting", "northing"):
            first, last = f"Product_ULcorner_{axis}", f"Product_LRcorner_{axis}"
            file.attrs[first], file.attrs[last] = file.attrs[last], file.attrs[first]
            del file.attrs[f"Product_URcorner_{axis}"], file.attrs[f"Product_LLcorner_{axis}"]

    path = change(write_prisma(tmp_path / PRISMA_NAME, stored, *GRID), swap)
    assert PrismaFile(path).stated.transform == TRANSFORM


@pytest.mark.parametrize(("level", "quantity"), [("L1", "radiance"), ("L2B", "radiance"), ("L2C", "reflectance")])
def test_prisma_in_sensor_geometry_has_no_coordinates(
    tmp_path: Path, stored: np.ndarray, level: str, quantity: str
) -> None:
    file = PrismaFile(write_prisma(tmp_path / f"PRS_{level}_STD_1_2_0001.he5", stored, *GRID, level=level))
    assert file.stated.quantity == quantity and file.stated.metadata["processing_level"] == level
    assert file.stated.crs is None and file.stated.transform is None
    assert file.read_mask(slice(0, 4), slice(0, 4)) is None
    if level == "L1":  # radiance = number / 100, and 0 is a radiance
        assert file.stated.nodata is None and np.allclose(file.stated.gain, 0.01) and not file.stated.offset.any()
    else:
        assert np.array_equal(to_stored(file, whole(file)), stored)


@pytest.mark.parametrize(
    ("edit", "parts"),
    [
        (lambda file: file.pop("HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields/SWIR_Cube"), ["a dataset", "SWIR_Cube", "none"]),
        (lambda file: file.pop("HDFEOS"), ["PRS_L2D_HCO", "none"]),
        (lambda file: file["HDFEOS/SWATHS"].move("PRS_L2D_HCO", "PRS_L2D_PCO"), ["PRS_L2D_HCO", "PRS_L2D_PCO"]),
        (lambda file: file.attrs.pop("List_Cw_Vnir"), ["an attribute List_Cw_Vnir"]),
        (lambda file: file.attrs.pop("L2ScaleSwirMax"), ["an attribute L2ScaleSwirMax"]),
        (lambda file: file.attrs.pop("Product_ULcorner_northing"), ["an attribute Product_ULcorner_northing"]),
        (attribute("Epsg_Code", 123456), ["an EPSG code", "123456"]),
        (attribute("List_Fwhm_Swir", np.ones(3)), ["6 finite numbers", "List_Fwhm_Swir"]),
        (
            attribute("List_Cw_Vnir", np.full(12, np.nan)),
            ["12 finite numbers", "List_Cw_Vnir"],
        ),
        (attribute("L2ScaleVnirMax", -5.0), ["L2ScaleVnirMax above L2ScaleVnirMin"]),
        (attribute("L2ScaleVnirMax", "one"), ["1 finite numbers", "L2ScaleVnirMax"]),
        (attribute("List_Cw_Vnir", -np.ones(12)), []),
    ],
)
def test_damaged_prisma_products_are_refused_in_one_line(
    tmp_path: Path, stored: np.ndarray, edit: Any, parts: list[str]
) -> None:
    path = change(write_prisma(tmp_path / PRISMA_NAME, stored, *GRID), edit)
    if parts:
        refused(path, PrismaFile, *parts)
    else:  # the other detector is left
        assert PrismaFile(path).shape[0] == (WAVELENGTHS > 1000).sum()


def test_prisma_cubes_of_another_size_or_type_are_refused(tmp_path: Path, stored: np.ndarray) -> None:
    name = "HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields/SWIR_Cube"

    def put(array: Any) -> Any:
        def edit(file: Any) -> None:
            del file[name]
            file[name] = array

        return edit

    for array, parts in [
        (np.ones((HEIGHT, 6, WIDTH + 1), np.uint16), [f"({HEIGHT}, any, {WIDTH})", f"(23, 6, {WIDTH + 1})"]),
        (np.ones((HEIGHT, 7, WIDTH), np.uint16), ["7 finite numbers", "List_Cw_Swir"]),
        (np.ones((HEIGHT, WIDTH), np.uint16), ["SWIR_Cube"]),
        (np.ones((HEIGHT, 6, WIDTH), np.float32), ["uint16", "float32"]),
        ("text", ["SWIR_Cube"]),
    ]:
        refused(change(write_prisma(tmp_path / PRISMA_NAME, stored, *GRID), put(array)), PrismaFile, *parts)

    def angle(file: Any) -> None:
        del file["HDFEOS/SWATHS/PRS_L2D_HCO/Geometric Fields/Solar_Zenith_Angle"]
        file["HDFEOS/SWATHS/PRS_L2D_HCO/Geometric Fields/Solar_Zenith_Angle"] = np.ones((3, 3))

    path = change(write_prisma(tmp_path / PRISMA_NAME, stored, *GRID), angle)
    refused(path, PrismaFile, "Solar_Zenith_Angle", f"({HEIGHT}, {WIDTH})")


# EMIT


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
def test_emit_is_orthorectified_by_its_lookup_table_and_keeps_its_gaps(
    tmp_path: Path, stored: np.ndarray, quarter_turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectrometers, "_STRIP_BYTES", 4000)  # some strips of a few lines each
    gaps = np.zeros((HEIGHT, WIDTH), dtype=bool)
    gaps[2:5, 10:20] = True
    path = write_emit(tmp_path / EMIT_NAME, stored, *GRID, quarter_turns=quarter_turns, gaps=gaps)
    file = EmitFile(path)
    numbers = whole(file)
    assert np.array_equal(to_stored(file, numbers), np.where(gaps, NODATA, stored))
    assert (numbers[:, gaps] == file.stated.nodata).all() and file.read_mask(slice(0, 2), slice(0, 2)) is None
    part = file.read([4, 2], slice(3, 22), slice(15, 29))
    assert np.array_equal(part, numbers[[4, 2], 3:22, 15:29])
    assert (file.read(ALL, slice(2, 4), slice(11, 14)) == -9999).all()
    sensor = EmitFile(path, orthorectified=False)
    assert np.array_equal(to_stored(sensor, whole(sensor)), np.rot90(stored, quarter_turns, axes=(1, 2)))
    assert sensor.stated.crs is None and sensor.stated.transform is None


def test_emit_reads_no_more_lines_than_a_window_needs(
    tmp_path: Path, stored: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = EmitFile(write_emit(tmp_path / EMIT_NAME, stored, *GRID, quarter_turns=2))
    read: list[tuple[slice, slice]] = []
    plain = spectrometers._read_cube

    def watched(dataset: Any, bands: np.ndarray, rows: slice, columns: slice, band_axis: int) -> np.ndarray:
        read.append((rows, columns))
        return plain(dataset, bands, rows, columns, band_axis)

    monkeypatch.setattr(spectrometers, "_read_cube", watched)
    file.read([0, 1], slice(0, 2), slice(0, 5))
    assert read == [(slice(HEIGHT - 2, HEIGHT), slice(WIDTH - 5, WIDTH))]


def test_emit_states_bands_that_are_not_good(tmp_path: Path, stored: np.ndarray) -> None:
    good = np.ones(BANDS, dtype=bool)
    good[[11, 12]] = False
    path = write_emit(tmp_path / EMIT_NAME, stored, *GRID, good_wavelengths=good)
    assert np.array_equal(EmitFile(path).stated.good_bands, good)
    change(path, lambda file: file.pop("sensor_band_parameters/good_wavelengths"))
    assert EmitFile(path).stated.good_bands is None


def test_emit_level_1_is_radiance(tmp_path: Path, stored: np.ndarray) -> None:
    file = EmitFile(write_emit(tmp_path / "EMIT_L1B_RAD_001_1_2_3.nc", stored, *GRID, radiance=True))
    assert file.stated.quantity == "radiance" and file.stated.metadata["processing_level"] == "L1B"


@pytest.mark.parametrize(
    ("edit", "parts"),
    [
        (lambda file: file.move("reflectance", "mask"), ["reflectance or radiance", "mask"]),
        (lambda file: file.pop("location/glt_x"), ["a dataset location/glt_x"]),
        (lambda file: file.pop("location"), ["a dataset location/glt_x"]),
        (lambda file: file.pop("sensor_band_parameters"), ["a dataset sensor_band_parameters/wavelengths"]),
        (lambda file: file.attrs.pop("geotransform"), ["an attribute geotransform"]),
        (lambda file: file.attrs.pop("spatial_ref"), ["spatial_ref"]),
        (attribute("spatial_ref", "nonsense"), ["spatial_ref"]),
        (attribute("geotransform", np.ones(5)), ["6 finite numbers", "geotransform"]),
        (lambda file: file["location/glt_y"].write_direct(np.full((HEIGHT, WIDTH), 99, np.int32)), ["23 lines", "99"]),
        (lambda file: file["sensor_band_parameters/fwhm"].write_direct(np.full(BANDS, np.nan, "f4")), ["fwhm"]),
        (lambda file: file["sensor_band_parameters/wavelengths"].write_direct(np.zeros(BANDS, "f4")), ["wavelengths"]),
    ],
)
def test_damaged_emit_products_are_refused_in_one_line(
    tmp_path: Path, stored: np.ndarray, edit: Any, parts: list[str]
) -> None:
    refused(change(write_emit(tmp_path / EMIT_NAME, stored, *GRID), edit), EmitFile, *parts)


def test_emit_datasets_of_other_shapes_are_refused(tmp_path: Path, stored: np.ndarray) -> None:
    for name, array, part in [
        ("reflectance", np.ones((HEIGHT, WIDTH), "f4"), "(any, any, any)"),
        ("sensor_band_parameters/wavelengths", np.ones(3), f"({BANDS})"),
        ("location/glt_y", np.ones((3, 3), "i4"), f"({HEIGHT}, {WIDTH})"),
        ("location/glt_y", np.ones((HEIGHT, WIDTH), "f4"), "whole numbers"),
        ("location/glt_x", h5py.Empty("i4"), "location/glt_x"),
    ]:

        def edit(file: Any, name: str = name, array: Any = array) -> None:
            del file[name]
            file[name] = array

        refused(change(write_emit(tmp_path / EMIT_NAME, stored, *GRID), edit), EmitFile, part)


def test_a_header_that_declares_much_takes_no_memory(tmp_path: Path, stored: np.ndarray) -> None:
    def huge(bands: int, chunks: Any) -> Any:
        def edit(file: Any) -> None:
            del file["reflectance"], file["sensor_band_parameters"]
            file.create_dataset("reflectance", (10**6, 10**6, bands), "f4", chunks=chunks, fillvalue=-9999)
            for name in ("wavelengths", "fwhm"):
                file.create_dataset(f"sensor_band_parameters/{name}", (bands,), "f4", chunks=(10,), fillvalue=500)
                if bands < 1000:
                    file[f"sensor_band_parameters/{name}"][:] = np.arange(500, 500 + bands)

        return edit

    path = change(write_emit(tmp_path / EMIT_NAME, stored, *GRID), huge(10**9, (1, 1, 100)))
    refused(path, EmitFile, "at most 10000 bands")
    path = change(write_emit(path, stored, *GRID), huge(100, (30_000, 300, 100)))
    refused(path, EmitFile, "chunks below", "(30000, 300, 100)")
    file = EmitFile(change(write_emit(path, stored, *GRID), huge(100, (10, 10, 100))), orthorectified=False)
    assert (file.read([3, 50], slice(900_000, 900_004), slice(0, 3)) == -9999).all()


# DESIS


def test_desis_takes_gain_and_offset_of_each_band(tmp_path: Path, stored: np.ndarray) -> None:
    gain, offset = np.linspace(5e-5, 1e-4, BANDS), np.linspace(-0.01, 0.02, BANDS)
    offset = np.rint(offset * 1e4) / 1e4
    file = DesisFile(write_desis(tmp_path / DESIS_NAME, stored, *GRID, gain=gain, offset=offset, declare_nodata=False))
    assert np.allclose(file.stated.gain, gain) and np.allclose(file.stated.offset, offset)
    assert file.stated.nodata == NODATA and np.array_equal(to_stored(file, whole(file)), stored)


def test_desis_bands_are_those_that_the_metadata_number(tmp_path: Path, stored: np.ndarray) -> None:
    folder = write_desis(tmp_path / DESIS_NAME, stored, *GRID)
    metadata = folder / f"{DESIS_NAME}-METADATA.xml"
    lines = metadata.read_text().split("\n")
    numbers = [index for index, line in enumerate(lines) if "wavelengthCenterOfBand" in line]
    lines[numbers[0]], lines[numbers[-1]] = lines[numbers[-1]], lines[numbers[0]]
    metadata.write_text("\n".join(lines))
    assert np.allclose(DesisFile(folder).stated.wavelengths, WAVELENGTHS)


def test_desis_level_1_is_radiance(tmp_path: Path, stored: np.ndarray) -> None:
    for level in ("L1B", "L1C"):
        name = DESIS_NAME.replace("L2A", level)
        file = DesisFile(write_desis(tmp_path / level, stored, *GRID, name=name))
        assert file.stated.quantity == "radiance" and file.stated.metadata["processing_level"] == level


def test_a_folder_of_several_desis_products_is_refused(tmp_path: Path, stored: np.ndarray) -> None:
    write_desis(tmp_path / "order" / "1", stored, *GRID)
    write_desis(tmp_path / "order" / "2", stored, *GRID, name=DESIS_NAME.replace("241_001", "241_002"))
    refused(tmp_path / "order", open_spectrometer, "one DESIS-HSI", "2: open them one by one")
    with pytest.raises(ProductError, match=f"a file {DESIS_NAME[:-1]}-SPECTRAL_IMAGE.tif, got none"):
        open_spectrometer(tmp_path / "order" / "1" / f"{DESIS_NAME[:-1]}-METADATA.xml")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, DesisFile, "none")
    refused(empty / "scene.tif", DesisFile, "another name")


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("<hsi_doc>", "<!DOCTYPE a [<!ENTITY b 'c'>]><hsi_doc>", ["document type declaration"]),
        ("</hsi_doc>", "", ["well-formed XML"]),
        ("bandCharacterisation", "other", ["a list of bands"]),
        ("<gainOfBand>0.0001</gainOfBand>", "", ["a gainOfBand in each band", "none"]),
        ("<gainOfBand>0.0001</gainOfBand>", "<gainOfBand>nan</gainOfBand>", ["a gainOfBand", "'nan'"]),
        ("<bandNumber>2</bandNumber>", "<bandNumber>1</bandNumber>", ["bandNumber"]),
        ("<wavelengthCenterOfBand>412.", "<wavelengthCenterOfBand>-412.", ["300 to 2600 nm, got -412"]),
    ],
)
def test_damaged_desis_metadata_is_refused_in_one_line(
    tmp_path: Path, stored: np.ndarray, old: str, new: str, parts: list[str]
) -> None:
    folder = write_desis(tmp_path / DESIS_NAME, stored, *GRID)
    metadata = folder / f"{DESIS_NAME}-METADATA.xml"
    metadata.write_text(metadata.read_text().replace(old, new))
    refused(folder, DesisFile, *parts)


def test_desis_takes_no_other_format_under_its_name(tmp_path: Path, stored: np.ndarray) -> None:
    folder = write_desis(tmp_path / DESIS_NAME, stored, *GRID)
    image = folder / f"{DESIS_NAME}-SPECTRAL_IMAGE.tif"
    profile = {"driver": "ENVI", "dtype": "int16", "count": BANDS, "height": HEIGHT, "width": WIDTH}
    with rasterio.open(tmp_path / "scene", "w", **profile) as dataset:
        dataset.write(stored)
    shutil.copy(tmp_path / "scene", image)
    shutil.copy(tmp_path / "scene.hdr", image.with_suffix(".hdr"))
    assert whole(GdalFile(str(image))).shape == stored.shape
    refused(folder, DesisFile, image.name)


def test_desis_says_that_a_local_coordinate_system_is_left_out(tmp_path: Path, stored: np.ndarray) -> None:
    folder = write_desis(tmp_path / DESIS_NAME, stored, *GRID)
    with rasterio.open(folder / f"{DESIS_NAME}-SPECTRAL_IMAGE.tif", "r+") as dataset:
        dataset.crs = CRS.from_wkt('LOCAL_CS["arbitrary",UNIT["metre",1]]')
    stated = DesisFile(folder).stated
    assert stated.crs is None and stated.transform is None
    assert stated.notes == ["its local coordinate system is left out"]


def test_desis_parts_that_disagree_or_lack_are_refused(tmp_path: Path, stored: np.ndarray) -> None:
    folder = write_desis(tmp_path / DESIS_NAME, stored, *GRID)
    image = folder / f"{DESIS_NAME}-SPECTRAL_IMAGE.tif"
    profile = {"driver": "GTiff", "dtype": "int16", "count": 2, "height": 4, "width": 4, "transform": TRANSFORM}
    with rasterio.open(image, "w", **profile) as dataset:
        dataset.write(np.ones((2, 4, 4), np.int16))
    refused(folder, DesisFile, f"{BANDS} bands", "got 2")
    image.write_text("<html>Please log in</html>")
    refused(folder, DesisFile, image.name)
    image.unlink()
    refused(folder, DesisFile, "a file", image.name, "none")
    write_desis(folder, stored, *GRID)
    (folder / f"{DESIS_NAME}-METADATA.xml").unlink()
    with pytest.raises(ProductError, match="METADATA.xml, got none"):
        DesisFile(image)


# Files that were cut off


def test_files_that_were_cut_off_are_refused_in_one_line(tmp_path: Path, stored: np.ndarray) -> None:
    prisma = write_prisma(tmp_path / PRISMA_NAME, stored, *GRID)
    emit = write_emit(tmp_path / EMIT_NAME, stored, *GRID)
    image = write_desis(tmp_path / DESIS_NAME, stored, *GRID) / f"{DESIS_NAME}-SPECTRAL_IMAGE.tif"
    for path in (prisma, emit, image):
        content = path.read_bytes()
        for length in (0, 4, 100, len(content) // 2, len(content) - 100):
            path.write_bytes(content[:length])
            refused(path, open_spectrometer)
        path.unlink()
        refused(path, open_spectrometer)


def test_damage_inside_a_compressed_cube_is_refused_in_one_line(tmp_path: Path, stored: np.ndarray) -> None:
    prisma = write_prisma(tmp_path / PRISMA_NAME, stored, *GRID, chunks=(HEIGHT, 4, WIDTH))
    emit = write_emit(tmp_path / EMIT_NAME, stored, *GRID, chunks=(HEIGHT, WIDTH, BANDS))
    for path, name in ((prisma, "HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields/VNIR_Cube"), (emit, "reflectance")):
        with h5py.File(path) as file:
            chunk = file[name].id.get_chunk_info(0)
        with path.open("r+b") as raw:
            raw.seek(chunk.byte_offset + 10)
            raw.write(b"\xff" * 200)
        refused(path, open_spectrometer, "a whole, readable HDF5 file")

"""Images of any format through every entrance: reflectance, no data, labels, damaged files, and what is refused."""

from __future__ import annotations

import importlib
import math
import multiprocessing
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from affine import Affine
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.windows import Window
from scipy.io import savemat
from transformers import pipeline

from datasets_loading import raster_file, rasters
from datasets_loading.labelled_data import NEVER_CLASSES, read_label_values
from datasets_loading.labelled_scene import LabelledScene
from datasets_loading.raster_file import ProductError
from datasets_loading.rasters import open_raster
from datasets_loading.scenes import open_scene
from datasets_loading.tiles import read_tile, read_tile_set
from datasets_loading.wavelengths import SIDECAR_NAME
from modeling_hsst import HSSTConfig, HSSTForSemanticSegmentation, HSSTImageProcessor

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

NODATA = -32768
BANDS, HEIGHT, WIDTH = 20, 12, 14
CENTERS = np.linspace(420, 2440, BANDS)
ORDER = np.random.default_rng(1).permutation(BANDS)
"""The band of ascending wavelength that stands at each place of a file."""
GRID = {"crs": "EPSG:32633", "transform": Affine(30, 0, 500000, 0, -30, 5800000)}
ENVI_TYPES = {"uint8": 1, "int16": 2, "int32": 3, "float32": 4, "float64": 5, "uint16": 12}


def image(shape: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """Reflectance x 10000 of flat spectra with noise, int16 (20, height, width)."""
    return np.random.default_rng(0).integers(500, 6000, (BANDS, *shape), dtype=np.int16)


def fractions(shape: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    return (image(shape) / 10000).astype(np.float32)


def with_rows(values: np.ndarray, number: float) -> np.ndarray:
    """The same with one number in the upper two rows, a sixth of the pixels."""
    values = values.copy()
    values[:, :2] = number
    return values


def listed(numbers: Any) -> str:
    """A list of an ENVI header, from numbers in ascending wavelength."""
    return "{" + ", ".join(f"{number:.10g}" for number in np.broadcast_to(numbers, BANDS)[ORDER]) + "}"


def tif(
    path: Path, values: np.ndarray, *, tagged: bool = True, scales: Any = 1, offsets: Any = 0, **more: Any
) -> Path:
    """A GeoTIFF with its bands out of order, but for `tagged` without; everything is given in ascending wavelength."""
    order = ORDER if tagged else np.arange(len(values))
    unit, mask = more.pop("unit", None), more.pop("mask", None)
    settings = {"driver": "GTiff", "dtype": values.dtype, "count": len(values), **GRID, **more}
    path.parent.mkdir(exist_ok=True)
    with rasterio.open(path, "w", height=values.shape[1], width=values.shape[2], **settings) as dataset:
        dataset.write(values[order])
        for place, band in enumerate(order if tagged else (), start=1):
            dataset.update_tags(place, wavelength=str(CENTERS[band]), wavelength_units="nm")
        dataset.scales, dataset.offsets = (np.broadcast_to(v, len(values))[order] for v in (scales, offsets))
        if unit is not None:
            dataset.units = [unit] * len(values)
        if mask is not None:
            dataset.write_mask(mask)
    return path


def envi(path: Path, values: np.ndarray, *lines: str, kind: str = "bsq", order: int = 0) -> Path:
    """An ENVI image with its bands out of order, and more lines in its header: its data file."""
    axes = {"bsq": (0, 1, 2), "bil": (1, 0, 2), "bip": (1, 2, 0)}[kind]
    path.write_bytes(values[ORDER].transpose(axes).astype(values.dtype.newbyteorder("<>"[order])).tobytes())
    text = f"ENVI\nsamples = {values.shape[2]}\nlines = {values.shape[1]}\nbands = {BANDS}\nbyte order = {order}\n"
    text += f"data type = {ENVI_TYPES[values.dtype.name]}\ninterleave = {kind}\nwavelength = {listed(CENTERS)}\n"
    path.with_suffix(".hdr").write_text(text + "\n".join(lines) + "\n")
    return path


# Entrances: functions that give reflectance x 10000, int16 (bands, height, width), from a path


def read(path: Path, **reading: Any) -> np.ndarray:
    with open_raster(path, **reading) as raster:
        reflectance, valid = raster.read()
    assert reflectance.dtype == np.float32 and np.isnan(reflectance[~valid]).all()
    assert (np.abs(reflectance[valid]) < 1e30).all()
    stored = np.rint(np.where(valid, reflectance.astype(np.float64), 0) * 10000)
    return np.where(valid & (np.abs(stored) < 32768), stored, NODATA).astype(np.int16)


def read_stored(path: Path, **reading: Any) -> np.ndarray:
    with open_raster(path, **reading) as raster:
        return raster.read_stored()


def read_scene(path: Path, **reading: Any) -> np.ndarray:
    with open_scene(path, **reading) as scene:
        return scene.read()


def read_only_tile(path: Path, **reading: Any) -> np.ndarray:
    if path.suffix in (".npy", ".npz", ".h5"):
        pytest.skip("such files are not looked for in folders")
    (tile,) = read_tile_set(path.parent, progress=False, **reading)
    return tile


Reader = Callable[..., np.ndarray]
Log = pytest.LogCaptureFixture
SPEAKING: dict[str, Reader] = {
    "open_scene": read_scene,
    "read_tile": lambda path, **reading: read_tile(path, **reading).image,
    "read_tile_set": read_only_tile,
}
ENTRANCES: dict[str, Reader] = {"read": read, "read_stored": read_stored, **SPEAKING}


@pytest.fixture(params=ENTRANCES)
def entrance(request: pytest.FixtureRequest) -> Reader:
    return ENTRANCES[request.param]


@pytest.fixture(params=SPEAKING)
def speaking(request: pytest.FixtureRequest) -> Reader:
    """An entrance that says in the log what it assumed."""
    return SPEAKING[request.param]


@pytest.fixture(scope="module")
def classify() -> Any:
    """A pipeline with a small model of all bands and weights by chance."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_attention_heads": 1, "head_dim": 8, "intermediate_size": 8, "image_size": 8}
    sizes |= {"num_spatial_layers": 1, "num_spectral_layers": 1, "band_patch_size": 5, "num_channels": BANDS}
    config = HSSTConfig(**sizes, wavelengths=CENTERS.tolist(), num_labels=4, initializer_range=0.5)
    statistics = {"image_mean": [0.3] * BANDS, "image_std": [0.15] * BANDS}
    processor = HSSTImageProcessor(wavelengths=CENTERS.tolist(), **statistics)
    model = HSSTForSemanticSegmentation(config).eval()
    return pipeline("hyperspectral-scene-classification", model=model, image_processor=processor)


@contextmanager
def refused(path: Path, *words: str) -> Iterator[None]:
    """Expects a ProductError of one line, which begins with the file and says what was expected and what came."""
    with pytest.raises(ProductError) as caught:
        yield
    message = str(caught.value)
    stem = re.escape(str(path.with_suffix("")))  # that of a header and its data
    assert re.fullmatch(rf"{stem}[^\n]*: expected [^\n]+, got [^\n]+", message), message
    for word in words:
        assert word in message


def said(caplog: Log, path: Path) -> str:
    """The only line of the log that begins with a path."""
    (line,) = (record.getMessage() for record in caplog.records if record.getMessage().startswith(str(path)))
    assert "\n" not in line
    return line


# Numbers to reflectance

STEPS = 1.0 + np.arange(BANDS) % 3
GAINS = f"data gain values = {listed(STEPS * 1e-4)}\ndata offset values = {listed(-STEPS / 100)}"
NUMBERS = f"data gain values = {listed(STEPS)}\ndata offset values = {listed(-100)}"
STATED: dict[str, tuple[str, dict[str, Any], Any, Any]] = {
    # lines of an ENVI header, or settings of a GeoTIFF; the gain and offset that they mean
    "scale": ("", {"scales": 2e-4}, 2e-4, 0),
    "scale and negative offset": ("", {"scales": 1e-4, "offsets": -0.1}, 1e-4, -0.1),
    "of each band": ("", {"scales": STEPS * 1e-4, "offsets": STEPS / 100}, STEPS * 1e-4, STEPS / 100),
    "offset of stored numbers": ("", {"offsets": -1000}, 1e-4, -0.1),
    "factor": ("reflectance scale factor = 5000", {}, 1 / 5000, 0),
    "gains and offsets": (GAINS, {}, STEPS * 1e-4, -STEPS / 100),
    "gains of reflectance beside those of radiance": (
        f"data gain values = {listed(7)}\n"
        + GAINS.replace("gain", "reflectance gain").replace("offset", "reflectance offset"),
        {},
        STEPS * 1e-4,
        -STEPS / 100,
    ),
    # gain and offset come first, and the factor divides what they give
    "all three": (f"{NUMBERS}\nreflectance scale factor = 12500", {}, STEPS / 12500, -100 / 12500),
}


def stated_image(folder: Path, case: str) -> tuple[Path, np.ndarray]:
    """An image that states its numbers, and what they mean."""
    line, settings, gain, offset = STATED[case]
    path = envi(folder / "a.img", image(), line) if line else tif(folder / "a.tif", image(), **settings)
    gain, offset = (np.broadcast_to(values, BANDS)[:, None, None] for values in (gain, offset))
    return path, np.rint((image() * gain + offset) * 10000).astype(np.int16)


@pytest.mark.parametrize("case", STATED)
def test_what_a_file_states_makes_reflectance(tmp_path: Path, entrance: Reader, case: str) -> None:
    path, expected = stated_image(tmp_path, case)
    np.testing.assert_array_equal(entrance(path), expected)


@pytest.mark.parametrize("case", ["of each band", "all three"])
def test_the_pipeline_sees_the_same_reflectance(tmp_path: Path, classify: Any, case: str) -> None:
    path, expected = stated_image(tmp_path, case)
    given, found = classify(expected, wavelengths=CENTERS), classify(path)
    np.testing.assert_array_equal(found["classes"], given["classes"])
    np.testing.assert_allclose(found["confidence"], given["confidence"], atol=1e-5)
    assert np.unique(given["classes"]).size > 1


def test_errors_name_a_path_as_it_is_in_one_line(tmp_path: Path) -> None:
    for name in ("two  spaces.tif", " one before.tif"):
        with pytest.raises(ProductError) as error:
            open_raster(tmp_path / name)
        assert str(error.value) == f"{tmp_path / name}: expected an image, got no such file"
    with pytest.raises(ProductError) as error:
        raster_file.fail("two\nlines.tif", "an  image", "none\nat all")
    assert str(error.value) == "two lines.tif: expected an image, got none at all"


@pytest.mark.parametrize("factor", [1, 100])
def test_fractions_are_not_rounded_before_they_are_scaled(tmp_path: Path, entrance: Reader, factor: int) -> None:
    path = envi(tmp_path / "a.img", fractions() * factor, f"reflectance scale factor = {factor}")
    np.testing.assert_array_equal(entrance(path), image())


@pytest.mark.parametrize("case", ["of each band", "all three"])
def test_the_scale_of_the_caller_overrules_what_is_stated(tmp_path: Path, entrance: Reader, case: str) -> None:
    path, _ = stated_image(tmp_path, case)
    np.testing.assert_array_equal(entrance(path, scale=5000), 2 * image())
    np.testing.assert_array_equal(entrance(path, scale=10000, offset=-0.05), image() - 500)


BAD_LINES = {
    "reflectance scale factor = 0": "got 0",
    "reflectance scale factor = -10000": "got -10000",
    "reflectance scale factor = NaN": "NaN",
    "reflectance scale factor = inf": "inf",
    "reflectance scale factor = ten thousand": "'ten thousand'",
    "reflectance scale factor = {10000, 10000}": "got 2",
    f"data gain values = {listed(0)}": "0",
    f"data gain values = {listed(math.nan)}": "nan",
    f"data gain values = {listed(1).replace('1', 'x', 1)}": "'x'",
    "data gain values = {0.0001, 0.0001}": "20 numbers under 'data gain values'",
    "data offset values = {0}": "20 numbers under 'data offset values'",
    "data ignore value = none": "'none'",
    "description = {At-sensor radiance}": "--radiance",
    "data units = W/(m^2*um*sr)": "--radiance",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_headers_that_state_no_reflectance_are_refused(tmp_path: Path, entrance: Reader, line: str) -> None:
    path = envi(tmp_path / "a.img", image(), line)
    with refused(path, BAD_LINES[line]):
        entrance(path)


@pytest.mark.parametrize("stated", [{"scales": 0}, {"scales": math.nan}, {"offsets": math.nan}, {"scales": -1e-4}])
def test_scales_that_cannot_be_are_refused(tmp_path: Path, entrance: Reader, stated: dict[str, float]) -> None:
    path = tif(tmp_path / "a.tif", image(), **stated)
    with refused(path):
        entrance(path)


@pytest.mark.parametrize("dtype", ["int16", "uint16", "int32", "float32", "fractions"])
def test_numbers_without_a_scale_are_read_where_they_are_clear_and_this_is_said(
    tmp_path: Path, speaking: Reader, dtype: str, caplog: Log
) -> None:
    path = tif(tmp_path / "a.tif", fractions() if dtype == "fractions" else image().astype(dtype))
    np.testing.assert_array_equal(speaking(path), image())
    how = "reflectance from 0 to 1" if dtype == "fractions" else "reflectance x 10000"
    assert f"read as {how}" in said(caplog, path)


def test_dark_numbers_without_a_scale_name_the_other_scale(tmp_path: Path, speaking: Reader, caplog: Log) -> None:
    path = tif(tmp_path / "a.tif", image() // 10)
    np.testing.assert_array_equal(speaking(path), image() // 10)
    assert "--scale 1000" in said(caplog, path)


SUNLIGHT = np.interp(CENTERS, [550, 2200], [1, 0.04])[:, None, None].astype(np.float32)
UNCLEAR: dict[str, tuple[np.ndarray, Any]] = {
    # numbers, and their wavelengths
    "fractions without wavelengths": (fractions(), None),
    "fractions in visible light": (fractions(), np.linspace(400, 700, BANDS)),
    "fractions that fall as radiance does": (fractions() * SUNLIGHT, CENTERS),
    "percent": (fractions() * 100, CENTERS),
    "8 bits": ((image() // 24).astype(np.uint8), CENTERS),
    "8 bits in 16": ((image() // 24).astype(np.uint16), CENTERS),
    "far above 10000": (image().astype(np.uint16) * 8, CENTERS),
}


def unclear_image(folder: Path, case: str) -> Path:
    values, centers = UNCLEAR[case]
    if centers is not None:
        (folder / SIDECAR_NAME).write_text("\n".join(map(str, centers)))
    return tif(folder / "a.tif", values, tagged=False)


@pytest.mark.parametrize("case", UNCLEAR)
def test_numbers_that_can_be_read_in_two_ways_are_refused(tmp_path: Path, entrance: Reader, case: str) -> None:
    path = unclear_image(tmp_path, case)
    with refused(path, "--scale"):
        entrance(path)


@pytest.mark.parametrize(("case", "scale"), [("percent", 100), ("fractions in visible light", 1), ("8 bits", 255)])
def test_with_the_scale_of_the_caller_they_are_read(tmp_path: Path, entrance: Reader, case: str, scale: float) -> None:
    expected = np.rint(UNCLEAR[case][0] * np.float64(10000 / scale))
    np.testing.assert_array_equal(entrance(unclear_image(tmp_path, case), scale=scale), expected)


def test_the_pipeline_refuses_them_too_and_takes_a_scale(tmp_path: Path, classify: Any) -> None:
    path = unclear_image(tmp_path, "percent")
    with refused(path, "--scale"):
        classify(path)
    given = classify(image(), wavelengths=CENTERS)["confidence"]
    np.testing.assert_allclose(classify(str(path), scale=100)["confidence"], given, atol=1e-5)


CORNER, FEW = np.s_[:16, :16], np.s_[3:6, 3:6]


@pytest.mark.parametrize("largest_sample", [1000, 16_000_000])
@pytest.mark.parametrize(
    ("factor", "place", "number"),
    # clouds, shadow and sensor errors; the factor that makes numbers of reflectance x 10000, None where it is unclear
    [(1, CORNER, 14000), (1, CORNER, 0), (1, FEW, 32000), (1e4, CORNER, 1.25), (1e4, FEW, 500), (None, CORNER, 0.5)],
)
def test_the_whole_image_decides_what_its_numbers_are(
    tmp_path: Path, monkeypatch: Any, factor: float | None, place: Any, number: float, largest_sample: int
) -> None:
    monkeypatch.setattr(rasters, "_LARGEST_SAMPLE", largest_sample)
    values = (image((64, 64)) / (factor or 100)).astype(np.float32)
    values[:, *place] = number
    path = tif(tmp_path / "a.tif", values)
    if factor is None:
        with refused(path, "--scale 100"):
            open_raster(path)
        return
    expected = np.rint(values * np.float64(factor))
    for reader in (read_stored, read, read_scene):
        np.testing.assert_array_equal(reader(path), np.where(expected < 32768, expected, NODATA))


def test_numbers_that_16_bits_cannot_hold_are_no_data_and_not_clipped(
    tmp_path: Path, entrance: Reader, caplog: Log
) -> None:
    values = image().astype(np.uint16)
    values[3, 5, :2] = 32767, 40000
    expected = values.astype(np.int16)
    expected[3, 5, 1] = NODATA
    np.testing.assert_array_equal(entrance(tif(tmp_path / "a.tif", values, nodata=0)), expected)
    # As floating-point numbers any reflectance is given
    assert entrance is read or "beyond 3.2767 treated as no data" in caplog.text


@pytest.mark.parametrize("unit", ["W/m2/sr/um", "uW cm-2 sr-1 nm-1", "Radiance"])
@pytest.mark.parametrize("factor", [1, 10000])
def test_radiance_is_refused_unless_it_is_asked_for(tmp_path: Path, entrance: Reader, unit: str, factor: int) -> None:
    values = (fractions() * SUNLIGHT * factor).astype(np.int16 if factor > 1 else np.float32)
    path = tif(tmp_path / "a.tif", values, unit=unit)
    with refused(path, "radiance", "--radiance"):
        entrance(path)
    np.testing.assert_array_equal(entrance(path, radiance=True), np.rint(values * np.float64(10000 / factor)))


@pytest.mark.parametrize(
    ("name", "value"),
    [("scale", "10000"), ("scale", True), ("scale", math.nan), ("scale", math.inf), ("scale", 0), ("scale", -1.0)]
    + [("scale", [1, 2]), ("offset", "0"), ("offset", math.inf), ("nodata", "-9999"), ("nodata", False)],
)
def test_what_is_no_number_is_refused(tmp_path: Path, entrance: Reader, name: str, value: Any) -> None:
    path = tif(tmp_path / "a.tif", image())
    with refused(path, name):
        entrance(path, **{name: value})


# No data


@pytest.mark.parametrize("declared", [-32768, -1, 0, 65535, -99999, -1.5, 0.1, math.nan, None])
def test_pixels_without_data_that_the_file_declares(tmp_path: Path, entrance: Reader, declared: float | None) -> None:
    dtype = {-32768: "int16", -1: "int16", 0: "uint16", 65535: "uint16", -99999: "int32"}.get(declared, "float32")
    values = fractions() if dtype == "float32" else image().astype(dtype)
    values = with_rows(values, math.inf if declared is None else declared)
    path = tif(tmp_path / "a.tif", values, nodata=declared)
    np.testing.assert_array_equal(entrance(path), with_rows(image(), NODATA))


@pytest.mark.parametrize("factor", [1, 10000])
def test_a_nodata_value_for_each_band(tmp_path: Path, entrance: Reader, factor: int) -> None:
    own = np.where(np.arange(BANDS) == 3, 1001, 1003)
    values = image()
    values[3:5, 0, :2] = [[1001, 1003], [1001, 1003]]
    path = tif(tmp_path / "a.tif", values if factor > 1 else (values / 10000).astype(np.float32))
    tags = (
        f'<PAMRasterBand band="{place}"><NoDataValue>{own[band] * factor / 10000:g}</NoDataValue></PAMRasterBand>'
        for place, band in enumerate(ORDER, start=1)
    )
    path.with_name("a.tif.aux.xml").write_text(f"<PAMDataset>{''.join(tags)}</PAMDataset>")
    np.testing.assert_array_equal(entrance(path), np.where(values == own[:, None, None], NODATA, values))


@pytest.mark.parametrize("internal", [True, False])
@pytest.mark.parametrize("nodata", [None, 7])
def test_masks_inside_and_beside_a_geotiff(
    tmp_path: Path, entrance: Reader, internal: bool, nodata: int | None
) -> None:
    values = image()
    values[:, 5, 5] = 7
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal):
        path = tif(tmp_path / "a.tif", values, mask=with_rows(np.ones(values.shape, bool), False)[0], nodata=nodata)
    assert path.with_name("a.tif.msk").exists() != internal
    expected = with_rows(values, NODATA)
    expected[:, 5, 5] = 7 if nodata is None else NODATA
    np.testing.assert_array_equal(entrance(path), expected)


def test_an_alpha_band_is_the_mask_and_no_band_of_the_spectrum(
    tmp_path: Path, entrance: Reader, classify: Any
) -> None:
    alpha = with_rows(np.full((1, HEIGHT, WIDTH), 255, dtype=np.int16), 0)
    alpha[:, 4] = 90  # seen through, but seen
    path = tif(tmp_path / "a.tif", np.concatenate([image()[ORDER], alpha]), tagged=False)
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.gray, *[ColorInterp.undefined] * (BANDS - 1), ColorInterp.alpha]
        for place, band in enumerate(ORDER, start=1):
            dataset.update_tags(place, wavelength=str(CENTERS[band]))
    np.testing.assert_array_equal(entrance(path), with_rows(image(), NODATA))
    if entrance is read_scene:
        classes = classify(path)["classes"]
        assert (classes[:2] == 255).all() and (classes[2:] != 255).all()


@pytest.mark.parametrize(
    ("dtype", "fill"),
    [("int16", -9999), ("int16", -32768), ("int32", -32768), ("uint16", 65535), ("float32", -9999)]
    + [("float32", -32768), ("float32", float(np.finfo(np.float32).min)), ("float64", -1.7e308)],
)
def test_usual_fills_are_found_where_none_is_declared_and_their_share_is_said(
    tmp_path: Path, entrance: Reader, dtype: str, fill: float, caplog: Log
) -> None:
    values = (fractions() if dtype.startswith("float") else image()).astype(dtype)
    path = tif(tmp_path / "a.tif", with_rows(values, fill))
    np.testing.assert_array_equal(entrance(path), with_rows(image(), NODATA))
    note = f"{fill:g} treated as no data (16.7% of the numbers; --nodata nan: data)"
    assert open_raster(path).notes.count(note) == 1
    assert caplog.text.count(note) == (entrance in SPEAKING.values())


def test_nodata_of_the_caller_stands_beside_the_usual_fills_and_nan_means_none(
    tmp_path: Path, entrance: Reader
) -> None:
    values = with_rows(image(), -9999)
    values[:, 5, 5] = 7
    expected = with_rows(image(), NODATA)
    expected[:, 5, 5] = NODATA
    for name, declared in (("found", None), ("declared", -9999)):
        path = tif(tmp_path / name / "a.tif", values, nodata=declared)
        np.testing.assert_array_equal(entrance(path, nodata=math.nan), values)
        np.testing.assert_array_equal(entrance(path, nodata=7), expected)


def test_numbers_far_below_zero_are_refused(tmp_path: Path, entrance: Reader) -> None:
    path = tif(tmp_path / "a.tif", with_rows(image(), -9998))
    with refused(path, "reflectance above -0.5", "16.7% of the numbers", "--nodata -9998"):
        entrance(path)
    assert (entrance(path, nodata=-9998)[:, :2] == NODATA).all()


def test_a_lowest_number_that_is_often_there_is_said(tmp_path: Path, speaking: Reader, caplog: Log) -> None:
    path = tif(tmp_path / "a.tif", with_rows(image(), -999))
    np.testing.assert_array_equal(speaking(path), with_rows(image(), -999))
    assert caplog.text.count("16.7% of the numbers are -999, the lowest, and read as data (--nodata -999)") == 1


@pytest.mark.parametrize(
    ("numbers", "fill", "scale"),
    [("fractions", 9999, 1), ("fractions", 9.969209968386869e36, 1), ("percent", 9999, 100)],
)
def test_a_fill_far_above_all_numbers_does_not_decide_their_scale(
    tmp_path: Path, entrance: Reader, numbers: str, fill: float, scale: float
) -> None:
    values = fractions() if numbers == "fractions" else (fractions() * 100)
    path = tif(tmp_path / "a.tif", with_rows(values, fill))
    with refused(path, f"(--nodata {float(np.float32(fill)):.9g})"):
        entrance(path)
    given = f"{float(np.float32(fill)):.9g}"
    np.testing.assert_array_equal(entrance(path, nodata=float(given), scale=scale), with_rows(image(), NODATA))


def test_a_highest_number_that_is_often_there_is_said(tmp_path: Path, caplog: Log) -> None:
    path = tif(tmp_path / "a.tif", with_rows(image(), 20_000))
    read_scene(path)
    assert "of the numbers are 20000, the highest by far, and read as data (--nodata 20000)" in said(caplog, path)


def test_bytes_after_the_image_of_a_header_are_said(tmp_path: Path, caplog: Log) -> None:
    path = envi(tmp_path / "a.img", image())
    header = path.with_suffix(".hdr")
    header.write_text(header.read_text().replace(f"lines = {HEIGHT}", f"lines = {HEIGHT - 1}"))
    read_scene(path)
    assert f"it goes on for {2 * BANDS * WIDTH} bytes after the image" in said(caplog, path)


def test_data_beside_the_sample_of_a_large_image_decide_what_its_numbers_are(tmp_path: Path) -> None:
    values = np.full((BANDS, 500, 500), -9999, dtype=np.float32)
    values[:, 40:60, 40:60] = 0.2 + np.arange(20) / 100
    path = tif(tmp_path / "a.tif", values, nodata=-9999)
    raster = open_raster(path)
    assert raster.scale_note == "assumed: reflectance x 1" and "fractions" in raster.notes[0]
    assert raster.read_stored(Window(45, 45, 1, 1))[0] == 2500


def test_a_band_on_another_scale_is_refused_or_said(tmp_path: Path) -> None:
    path = tif(tmp_path / "a.tif", image(), scales=np.where(np.arange(BANDS) == 3, 1.0, 1e-4))
    with refused(path, "after its gain 0.0001 to 1"):
        open_raster(path)
    np.save(tmp_path / "b.npy", np.concatenate([image().repeat(12, axis=0), 200 * image()[:1].astype(np.int32)]))
    raster = open_raster(tmp_path / "b.npy", wavelengths=np.linspace(420, 2440, 12 * BANDS + 1))
    assert any("1 bands hold numbers a hundred times those of the others" in note for note in raster.notes)


def test_scales_and_offsets_of_the_caller_are_said_where_they_overrule(tmp_path: Path) -> None:
    path = tif(tmp_path / "a.tif", image(), scales=1e-4, offsets=-0.1)
    assert (
        "what it states (gain 0.0001, offset -0.1) is overruled by the given scale 5000"
        in open_raster(path, scale=5000).notes
    )
    plain = open_raster(tif(tmp_path / "b.tif", image()), offset=0.1)
    assert np.allclose(plain.offset, 0.1) and np.allclose(plain.gain, 1e-4)


def test_whole_numbers_are_no_fractions(tmp_path: Path) -> None:
    path = tif(tmp_path / "a.tif", (image() % 3 + 1).astype(np.int16))
    with refused(path, "numbers of int16 up to 3", "percent"):
        open_raster(path)


def test_zero_in_every_band_is_data_and_said_unless_the_caller_overrules(
    tmp_path: Path, speaking: Reader, caplog: Log
) -> None:
    values = image()
    values[0] = 0  # one dark band is none of these
    path = tif(tmp_path / "a.tif", with_rows(values, 0))
    np.testing.assert_array_equal(speaking(path), with_rows(values, 0))
    assert caplog.text.count("16.7% of the pixels hold 0 in every band and are read as data (--nodata 0)") == 1
    caplog.clear()
    assert (speaking(path, nodata=0)[:, :2] == NODATA).all() and "hold 0" not in caplog.text


def test_bands_of_one_number_are_not_valid(tmp_path: Path) -> None:
    values = image()
    values[4], values[9] = 0, 1234
    values[4, 0, 0] = values[9, 0, 0] = NODATA
    path = tif(tmp_path / "a.tif", values, nodata=NODATA)
    with open_scene(path) as scene:
        assert np.flatnonzero(~scene.valid_bands).tolist() == [4, 9]
    assert np.flatnonzero(~read_tile_set(tmp_path, progress=False).valid_bands).tolist() == [4, 9]


@pytest.mark.parametrize("name", ["a.img", "a.tif"])
def test_bands_that_are_marked_as_bad_are_not_used(tmp_path: Path, entrance: Reader, name: str) -> None:
    good = np.isin(np.arange(BANDS), [4, 9], invert=True).astype(int)
    if name == "a.img":
        path = envi(tmp_path / name, image(), f"bbl = {listed(good)}")
    else:
        path = tif(tmp_path / name, image())
        with rasterio.open(path, "r+") as dataset:
            for place, band in enumerate(ORDER, start=1):
                dataset.update_tags(place, bbl=good[band])
    np.testing.assert_array_equal(entrance(path), np.where(good[:, None, None], image(), NODATA))
    assert np.flatnonzero(~open_raster(path).valid_bands).tolist() == [4, 9]


# Labels

LABELS = (1 + np.arange(WIDTH) // 5 + np.zeros((HEIGHT, 1))).astype(np.uint8)


def labelled(folder: Path, labels: np.ndarray, *, grid: Any = None, **settings: Any) -> LabelledScene:
    """A builder of the image and of labels (bands, height, width) or (height, width) on a grid."""
    tif(folder / "images" / "a.tif", image())
    labels = labels if labels.ndim == 3 else labels[None]
    tif(folder / "labels" / "a.tif", labels, tagged=False, **(grid or {}))
    return LabelledScene(data_dir=str(folder), cache_dir=str(folder / "cache"), split="test", **settings)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.stack([LABELS] * 3), ["3 bands", "colors"]),
        (np.stack([LABELS] * 2), ["2 bands"]),
        ((LABELS + 0.5).astype(np.float32), ["whole numbers", "1.5"]),
        (np.where(LABELS.cumsum().reshape(LABELS.shape) < 3, 9, LABELS), ["among 0, 1, 2, 3", "9 in 2 pixels"]),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path: Path, labels: np.ndarray, words: list[str]) -> None:
    builder = labelled(tmp_path, labels, class_names=["water", "soil", "forest"])
    with refused(tmp_path / "labels" / "a.tif", *words):
        _ = builder.data


@pytest.mark.parametrize(
    ("grid", "word"),
    [
        ({"transform": Affine(30, 0, 500000, 0, -60, 5800000)}, "30 x -60"),
        ({"transform": Affine(30, 12, 500000, 12, -30, 5800000)}, "ends"),
        ({"transform": Affine(30, 0, 500000, 0, 30, 5800000)}, "30 x 30"),
        ({"transform": Affine(30, 0, 500000, 0, 30, 5800000 - 30 * HEIGHT)}, "30 x 30"),
        ({"transform": Affine(30, 0, 500030, 0, -30, 5800000)}, "+1.00 columns"),
        ({"crs": "EPSG:32632"}, "EPSG:32632"),
    ],
)
def test_labels_on_another_grid_are_refused(tmp_path: Path, grid: dict[str, Any], word: str) -> None:
    builder = labelled(tmp_path, LABELS, grid=grid)
    with refused(tmp_path / "labels" / "a.tif", word):
        _ = builder.data


def test_labels_of_another_size_that_do_not_say_where_they_lie_are_refused(tmp_path: Path) -> None:
    builder = labelled(tmp_path, LABELS[1:], grid={"crs": None})
    with refused(tmp_path / "labels" / "a.tif", "12 x 14", "11 x 14"):
        _ = builder.data


@pytest.mark.parametrize("value", [255, -1, -100, -9999, -32768, 65535, -(2**31), math.nan, 7])
def test_values_that_mean_no_class_everywhere_are_unlabelled_but_for_those_with_a_name(
    tmp_path: Path, value: float
) -> None:
    labels = np.where(np.arange(WIDTH) == 0, np.float32(value), LABELS)
    (scene,) = labelled(tmp_path, labels, grid={"nodata": 7}).data.scenes
    np.testing.assert_array_equal(scene.labels, np.where(np.arange(WIDTH) == 0, 255, LABELS - 1))
    if value in NEVER_CLASSES:
        names = {1: "water", 2: "soil", 3: "forest", int(value): "snow"}
        (scene,) = labelled(tmp_path, labels, class_names=names).data.scenes
        assert np.unique(scene.labels).tolist() == [0, 1, 2, 3]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_labels_that_state_no_place_are_said_to_lie_on_the_image(tmp_path: Path, caplog: Log) -> None:
    _ = labelled(tmp_path, LABELS, grid={"crs": None, "transform": None}).data
    assert "a.tif states no place, and is taken to lie on the pixels of a" in caplog.text


def test_class_names_for_labels_that_count_from_0_are_asked_about(tmp_path: Path, caplog: Log) -> None:
    names = ["water", "soil", "forest"]
    data = labelled(tmp_path, LABELS - 1, class_names=names).data
    assert "0 is read as unlabelled, and no pixel is forest" in said(caplog, tmp_path / "labels" / "a.tif")
    assert data.class_counts("test").tolist() == [60, 48, 0]
    caplog.clear()
    data = labelled(tmp_path, LABELS - 1, class_names=names, unlabelled=(255,)).data
    assert data.class_counts("test").tolist() == [60, 60, 48] and "unlabelled" not in caplog.text


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    if path.suffix == ".mat":
        savemat(path, arrays)
    else:
        np.savez(path, **arrays)


@pytest.mark.parametrize("ending", [".mat", ".npz"])
def test_one_of_several_arrays_is_chosen_by_name(tmp_path: Path, ending: str) -> None:
    for folder, values in (("images", image()), ("labels", LABELS)):
        values = values.transpose(1, 2, 0) if values.ndim == 3 and ending == ".mat" else values
        (tmp_path / folder).mkdir()
        save_arrays(tmp_path / folder / f"a{ending}", wrong=values[::-1], right=values)
    own = {"data_dir": str(tmp_path), "cache_dir": str(tmp_path / "cache"), "split": "test", "wavelengths": CENTERS}
    with refused(tmp_path / "images" / f"a{ending}", "wrong", "right", "--image_variable"):
        _ = LabelledScene(**own).data
    with refused(tmp_path / "labels" / f"a{ending}", "wrong (12, 14), right (12, 14)", "--label_variable"):
        _ = LabelledScene(**own, image_variable="right").data
    (scene,) = LabelledScene(**own, label_variable="right", image_variable="right").data.scenes
    np.testing.assert_array_equal(scene.cube, image())
    np.testing.assert_array_equal(scene.labels, LABELS - 1)


# Formats


def copied(path: Path, driver: str, **options: Any) -> Path:
    source = tif(path.with_name("source.tif"), image())
    rasterio.shutil.copy(source, path, driver=driver, **options)
    source.unlink()
    return path


def hdf5(path: Path, axes: tuple[int, int, int] = (1, 2, 0), **attributes: float) -> Path:
    values = image()[ORDER].transpose(axes)
    stored = np.rint((values / 10000 - attributes.get("add_offset", 0)) / attributes.get("scale_factor", 1e-4))
    with h5py.File(path, "w", userblock_size=512 if path.suffix == ".mat" else 0) as file:
        file["reflectance"] = stored.astype(np.int16)
        file["reflectance"].attrs.update(attributes)
    return path


def saved(path: Path, axes: tuple[int, int, int]) -> Path:
    values = image()[ORDER].transpose(axes)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        save_arrays(path, image=values)
    return path


FORMATS: dict[str, Callable[[Path], Path]] = {
    "GeoTIFF by pixel": lambda folder: tif(folder / "a.tif", image(), interleave="pixel", ENDIANNESS="BIG"),
    "GeoTIFF by band": lambda folder: tif(folder / "a.tif", image(), compress="deflate", BIGTIFF="YES"),
    "COG": lambda folder: copied(folder / "a.tif", "COG", BLOCKSIZE=128),
    "JPEG 2000": lambda folder: copied(folder / "a.jp2", "JP2OpenJPEG", QUALITY=100, REVERSIBLE="YES"),
    "MATLAB 5": lambda folder: saved(folder / "a.mat", (1, 2, 0)),
    "MATLAB 7.3": lambda folder: hdf5(folder / "a.mat", (0, 2, 1)),
    "NumPy, bands first": lambda folder: saved(folder / "a.npy", (0, 1, 2)),
    "NumPy, bands last": lambda folder: saved(folder / "a.npy", (1, 2, 0)),
    "npz, bands first": lambda folder: saved(folder / "a.npz", (0, 1, 2)),
    "npz, bands last": lambda folder: saved(folder / "a.npz", (1, 2, 0)),
    "HDF5": lambda folder: hdf5(folder / "a.h5"),
    "HDF5, bands first": lambda folder: hdf5(folder / "a.h5", (0, 1, 2)),
    "NetCDF4": lambda folder: hdf5(folder / "a.nc", scale_factor=5e-5, add_offset=0.05),
    **{
        f"ENVI {kind} {order}": lambda folder, kind=kind, order=order: envi(
            folder / "a.img", image(), kind=kind, order=order
        )
        for kind in ("bsq", "bil", "bip")
        for order in (0, 1)
    },
}


@pytest.fixture(params=FORMATS)
def any_format(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The image in a format, its bands out of order, with its wavelengths beside it."""
    (tmp_path / SIDECAR_NAME).write_text("\n".join(map(str, CENTERS[ORDER])))
    return FORMATS[request.param](tmp_path)


def test_all_formats_give_the_same_numbers(any_format: Path, entrance: Reader) -> None:
    np.testing.assert_array_equal(entrance(any_format), image())


def test_windows_are_parts_of_the_whole(any_format: Path) -> None:
    part = image()[np.ix_([7, 0, 19], range(3, 8), range(2, 13))]
    with open_raster(any_format) as raster:
        np.testing.assert_allclose(raster.wavelengths, CENTERS)
        np.testing.assert_array_equal(raster.read_stored(Window(2, 3, 11, 5), [7, 0, 19]), part)
        np.testing.assert_allclose(raster.read(Window(2, 3, 11, 5), [7, 0, 19])[0] * 10000, part, atol=0.01)
        with pytest.raises(ValueError, match="inside 12 x 14 pixels"):
            raster.read_stored(Window(2, 3, 13, 5))
    with open_scene(any_format) as scene:
        np.testing.assert_array_equal(scene.read(slice(3, 8), slice(2, 13), [7, 0, 19]), part)
        assert scene.valid_bands.all()


def in_a_child(function: Callable[[], Any]) -> Any:
    """What a function gives in a process that is forked from this one."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(function()))
    process.start()
    sender.close()
    try:
        return receiver.recv()  # fails where the child has
    finally:
        process.join()


def test_an_image_is_read_in_other_processes_and_after_it_was_closed(any_format: Path) -> None:
    raster = open_raster(any_format)
    np.testing.assert_array_equal(raster.read_stored(), image())
    pickled = pickle.dumps(raster)
    assert len(pickled) < 20_000  # without its pixels
    np.testing.assert_array_equal(in_a_child(raster.read_stored), image())
    np.testing.assert_array_equal(in_a_child(lambda: pickle.loads(pickled).read_stored()), image())
    raster.close()
    np.testing.assert_array_equal(raster.read_stored(), image())


def test_numpy_files_need_wavelengths(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npy", (0, 1, 2))
    with refused(path, "20 x 12 x 14", "--wavelengths"):
        open_raster(path)
    with refused(path, "7 bands as there are wavelengths"):
        open_raster(path, wavelengths=CENTERS[:7])


@pytest.mark.parametrize("names", ["{:g} nm", "band (%s {:g} Nanometers)", "{:g}µm"])
def test_wavelengths_in_the_names_of_bands_are_read(tmp_path: Path, names: str) -> None:
    path = tif(tmp_path / "a.tif", image()[ORDER], tagged=False)
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = [names.format(CENTERS[band] / (1000 if "µ" in names else 1)) for band in ORDER]
    with open_raster(path) as raster:
        np.testing.assert_allclose(raster.wavelengths, CENTERS, atol=0.01)
        np.testing.assert_array_equal(raster.read_stored(), image())
    # A file beside the image was put there for programs
    (tmp_path / "wavelengths.txt").write_text("\n".join(f"{CENTERS[band] + 1}" for band in ORDER))
    with open_raster(path) as raster:
        np.testing.assert_allclose(raster.wavelengths, CENTERS + 1)
    (tmp_path / "wavelengths.txt").unlink()
    with rasterio.open(path, "r+") as dataset:
        dataset.set_band_description(1, "mean of 500 nm and 510 nm")
    with open_raster(path) as raster:
        assert raster.wavelengths is None


@pytest.mark.parametrize(("unit", "factor"), [("angstrom", 10), (b"nanometers", 1), ("um", 1e-3)])
def test_the_unit_of_wavelengths_in_hdf5_counts(tmp_path: Path, unit: str | bytes, factor: float) -> None:
    path = hdf5(tmp_path / "a.nc")
    with h5py.File(path, "r+") as file:
        file["wavelength"] = CENTERS[ORDER] * factor
        file["wavelength"].attrs["units"] = unit
    with open_raster(path) as raster:
        np.testing.assert_allclose(raster.wavelengths, CENTERS)
        assert not any("without a unit" in note for note in raster.notes)
    with h5py.File(path, "r+") as file:
        file["wavelength"].attrs["units"] = "furlong"
    with refused(path, "the unit 'furlong'"):
        open_raster(path)


@pytest.mark.parametrize("way", ["GeoTransform", "coordinates", "degrees"])
def test_netcdf_says_where_it_lies(tmp_path: Path, way: str) -> None:
    """As rioxarray, GDAL and xarray write it; what cannot be understood is left out, and the log says so."""
    path = hdf5(tmp_path / "a.nc", (0, 1, 2))
    names = ("lat", "lon") if way == "degrees" else ("y", "x")
    steps, corner = ((-0.01, 0.01), (53.0, 12.0)) if way == "degrees" else ((-30.0, 30.0), (5_900_000.0, 400_000.0))
    with h5py.File(path, "r+") as file:
        file["wavelength"] = CENTERS[ORDER]
        array = file["reflectance"]
        for axis, (name, step, start) in enumerate(zip(names, steps, corner, strict=True), 1):
            file[name] = start + step * (np.arange(array.shape[axis]) + 0.5)
            file[name].make_scale(name)
            array.dims[axis].attach_scale(file[name])
            file[name].attrs["units"] = ("degrees_north", "degrees_east")[axis - 1] if way == "degrees" else "m"
        if way != "degrees":
            file["spatial_ref"] = 0
            file["spatial_ref"].attrs["crs_wkt"] = CRS.from_epsg(32633).to_wkt()
            array.attrs["grid_mapping"] = "spatial_ref"
        if way == "GeoTransform":
            file["spatial_ref"].attrs["GeoTransform"] = "400000.0 30.0 0.0 5900000.0 0.0 -30.0"
            del file["x"]
    expected = Affine(steps[1], 0, corner[1], 0, steps[0], corner[0])
    with open_raster(path) as raster:
        assert raster.crs == CRS.from_epsg(4326 if way == "degrees" else 32633)
        assert raster.transform.almost_equals(expected, 1e-6)
        np.testing.assert_array_equal(raster.read_stored(), image())
    with h5py.File(path, "r+") as file:
        if way == "GeoTransform":
            file["spatial_ref"].attrs["GeoTransform"] = "somewhere"
        else:
            file[names[0]][2] += 5 * steps[0]
    with open_raster(path) as raster:
        assert raster.crs is None and raster.transform is None
        assert any("place on Earth is not understood" in note for note in raster.notes)


def test_netcdf_whose_rows_ascend_lies_where_its_coordinates_say(tmp_path: Path) -> None:
    """GDAL writes the last row first, with the transform of the image north up."""
    path = hdf5(tmp_path / "a.nc", (0, 1, 2))
    with h5py.File(path, "r+") as file:
        file["wavelength"] = CENTERS[ORDER]
        array = file["reflectance"]
        height = array.shape[1]
        file["y"] = 5_900_000.0 - 30 * (np.arange(height)[::-1] + 0.5)
        file["y"].make_scale("y")
        array.dims[1].attach_scale(file["y"])
        file["crs"] = 0
        file["crs"].attrs["spatial_ref"] = CRS.from_epsg(32633).to_wkt()
        file["crs"].attrs["GeoTransform"] = "400000 30 0 5900000 0 -30 "
        array.attrs["grid_mapping"] = "crs"
    with open_raster(path) as raster:
        # The outer corners of the first row, which is the southernmost, and of the last one
        assert raster.transform @ (0, 0) == (400_000, 5_900_000 - 30 * height)
        assert raster.transform @ (0, height) == (400_000, 5_900_000)
        np.testing.assert_array_equal(raster.read_stored(), image())


def on_grid(file: h5py.File, name: str, y: np.ndarray, x: np.ndarray, **about: Any) -> None:
    """Puts an array (bands, y, x) on a grid of UTM as rioxarray states it, beside what `about` says of the grid."""
    file["wavelength"] = CENTERS[ORDER]
    file["spatial_ref"] = 0
    file["spatial_ref"].attrs.update({"crs_wkt": CRS.from_epsg(32633).to_wkt(), **about})
    file[name].attrs["grid_mapping"] = "spatial_ref"
    for axis, (label, values) in enumerate((("y", y), ("x", x)), 1):
        file[label] = values
        file[label].make_scale(label)
        file[name].dims[axis].attach_scale(file[label])


@pytest.mark.parametrize("way", ["cut", "every third pixel", "cut, rows ascend"])
def test_coordinates_count_where_an_image_was_cut_and_its_geotransform_was_not(tmp_path: Path, way: str) -> None:
    """As xarray leaves it in what `isel` gives; one for all of the image is taken as it is."""
    path, step = hdf5(tmp_path / "a.nc", (0, 1, 2)), 90.0 if "third" in way else 30.0
    y, x = 5_900_000 - step * (np.arange(HEIGHT) + 2.5), 400_000 + step * (np.arange(WIDTH) + 3.5)
    if "ascend" in way:
        y = y[::-1]
    with h5py.File(path, "r+") as file:
        on_grid(file, "reflectance", y, x, GeoTransform="400000 30 0 5900000 0 -30")
    with open_raster(path) as raster:
        assert raster.transform @ (0.5, 0.5) == (x[0], y[0])
        assert raster.transform @ (WIDTH - 0.5, HEIGHT - 0.5) == (x[-1], y[-1])
        assert any("its coordinates count" in note for note in raster.notes)


def test_what_netcdf_states_of_a_place_in_other_ways(tmp_path: Path) -> None:
    y, x = 5_900_000 - 3 * (np.arange(HEIGHT) + 0.5), 400_000 + 3 * (np.arange(WIDTH) + 0.5)
    for number, (rows, columns, about) in enumerate(
        [
            (y.astype(np.float32), x.astype(np.float32), {}),  # rounded to halves of a meter
            (y, x, {"GeoTransform": "400000 3 0 5900000 0 -3"}),
        ]
    ):
        path = hdf5(tmp_path / f"{number}.nc", (0, 1, 2))
        with h5py.File(path, "r+") as file:
            on_grid(file, "reflectance", rows, columns, **about)
            file["reflectance"].attrs["grid_mapping"] = "spatial_ref: x y"
            if about:  # dimensions without coordinates
                for name in "yx":
                    file[name][:] = 0
                    file[name].attrs["NAME"] = "This is a netCDF dimension but not a netCDF variable.    12"
        with open_raster(path) as raster:
            assert raster.transform is not None, raster.notes
            assert raster.transform.almost_equals(Affine(3, 0, 400_000, 0, -3, 5_900_000), 0.5)
    # The attribute that arithmetic of xarray drops, and longitudes and latitudes that only their names tell
    for name in ("dropped", "degrees"):
        path = hdf5(tmp_path / f"{name}.nc", (0, 1, 2))
        with h5py.File(path, "r+") as file:
            on_grid(file, "reflectance", y if name == "dropped" else y / 1e5, x if name == "dropped" else x / 1e5)
            del file["reflectance"].attrs["grid_mapping"]
            if name == "degrees":
                del file["spatial_ref"]
                for old, new in (("y", "lat"), ("x", "Longitude")):
                    file.move(old, new)
        with open_raster(path) as raster:
            assert raster.crs == CRS.from_epsg(32633 if name == "dropped" else 4326)
            assert raster.transform.almost_equals(
                Affine(3, 0, 4e5, 0, -3, 5.9e6) if name == "dropped" else Affine(3e-5, 0, 4, 0, -3e-5, 59), 1e-6
            )
    for name, change in (
        ("kilometers", "coordinates in km"),
        ("parameters", "spatial_ref without crs_wkt"),
        ("no system", "coordinates without crs_wkt"),
    ):
        path = hdf5(tmp_path / f"{name}.nc", (0, 1, 2))
        with h5py.File(path, "r+") as file:
            on_grid(file, "reflectance", y / 1000, x / 1000)
            if name == "kilometers":
                file["y"].attrs["units"] = file["x"].attrs["units"] = "km"
            elif name == "parameters":
                del file["spatial_ref"].attrs["crs_wkt"]
            else:
                del file["spatial_ref"], file["reflectance"].attrs["grid_mapping"]
        with open_raster(path) as raster:
            assert raster.transform is None and raster.crs is None
            assert any(change in note for note in raster.notes)


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("reflectance_uncertainty", {}),
        ("rhos_unc", {"scale_factor": 1e-4}),
        ("band_data", {"long_name": "Surface reflectance uncertainty"}),
    ],
)
def test_uncertainties_are_no_reflectance(tmp_path: Path, name: str, attributes: dict[str, Any]) -> None:
    """As of AVIRIS-3 (`..._UNC_ORT.nc`), also where the array is named."""
    with h5py.File(tmp_path / "a.nc", "w") as file:
        file[name] = (image() / (10000 if not attributes.get("scale_factor") else 1)).astype(np.float32)
        file[name].attrs.update(attributes)
        file["wavelength"] = CENTERS
    for variable in (None, name):
        with refused(tmp_path / "a.nc", "expected reflectance, got uncertainty"):
            open_raster(tmp_path / "a.nc", variable=variable)
    envi(tmp_path / "a.img", fractions(), "description = {Per-pixel surface reflectance uncertainty}")
    with refused(tmp_path / "a.img", "expected reflectance, got uncertainty"):
        open_raster(tmp_path / "a.img")


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("cube", {"Units": "uW/cm^2/nm/sr"}),
        ("cube", {"units": np.array([b"W m-2 sr-1 um-1"])}),
        ("band_data", {"long_name": "Top of atmosphere radiance"}),
        ("remote_sensing_reflectance", {"units": "sr^-1"}),  # a third of reflectance
    ],
)
def test_arrays_that_state_radiance_in_any_spelling_are_refused(
    tmp_path: Path, name: str, attributes: dict[str, Any]
) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file[name] = image()
        file[name].attrs.update(attributes)
        file["wavelength"] = CENTERS
    with refused(tmp_path / "a.h5", "expected reflectance, got radiance"):
        open_raster(tmp_path / "a.h5")


@pytest.mark.parametrize("of_band", [True, False])
@pytest.mark.parametrize(
    ("tags", "quantity"),
    [
        ({"units": "W m-2 sr-1 um-1"}, "radiance"),
        ({"TIFFTAG_IMAGEDESCRIPTION": "TOA radiance"}, "radiance"),
        ({"DESCRIPTION": "Surface reflectance uncertainty"}, "uncertainty"),
        ({"units": "nm", "DESCRIPTION": "surface reflectance, from radiance"}, None),
    ],
)
def test_tags_of_a_geotiff_say_what_its_numbers_are(
    tmp_path: Path, of_band: bool, tags: dict[str, str], quantity: str | None
) -> None:
    path = tif(tmp_path / "a.tif", image())
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(*([1] if of_band else []), **tags)
    if quantity is None:
        np.testing.assert_array_equal(read_stored(path), image())
    else:
        with refused(path, f"expected reflectance, got {quantity}"):
            open_raster(path)


def test_radiance_of_aviris_is_refused_by_its_name(tmp_path: Path) -> None:
    """Whole numbers that nothing in the header tells from reflectance x 10000."""
    for name in ("f180628t01p00r05rdn_e_sc01_ort.img", "ang20180814t224053_rdn_v2r2.img"):
        with refused(envi(tmp_path / name, image()), "expected reflectance, got radiance"):
            open_raster(tmp_path / name)
    np.testing.assert_array_equal(read_stored(envi(tmp_path / "verdner_wald.img", image())), image())


@pytest.mark.parametrize("scale", [{"Scale_Factor": 1e-4}, {"SCALE FACTOR": b"10000"}, {"Scale Factor": [10000.0]}])
def test_scale_and_fill_in_any_spelling(tmp_path: Path, scale: dict[str, Any]) -> None:
    """A scale factor above 1 divides, as that of NEON, and one below multiplies, as that of most others."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["cube"] = with_rows(image(), 15000)[ORDER]
        file["cube"].attrs.update({"data ignore value": b"15000.0", **scale})
        file["wavelength"] = CENTERS[ORDER]
    np.testing.assert_array_equal(read_stored(tmp_path / "a.h5"), with_rows(image(), NODATA))


def test_a_flight_line_of_neon_before_2016(tmp_path: Path) -> None:
    """Bands first, everything in the root, attributes with spaces; rasters with an axis of 1 beside it."""
    path = tmp_path / "NIS1_20140507_143910_atmcor.h5"
    with h5py.File(path, "w") as file:
        file["Reflectance"] = with_rows(image(), 15000)[ORDER]
        file["Reflectance"].attrs.update({"data ignore value": b"15000.0", "Scale Factor": b"10000.0"})
        file["Cast_Shadow"] = np.zeros((1, HEIGHT, WIDTH), np.float32)
        file["wavelength"] = CENTERS[ORDER][None] / 1000
        file["map info"] = np.array([b"UTM,1,1,257000.0,4113000.0,1,1,11,North,WGS-84,units=Meters"])
        file["coordinate system string"] = np.array([CRS.from_epsg(32611).to_wkt().encode()])
    with open_raster(path) as raster:
        np.testing.assert_array_equal(raster.read_stored(), with_rows(image(), NODATA))
        assert raster.crs == CRS.from_epsg(32611)
        assert raster.transform == Affine(1, 0, 257000, 0, -1, 4113000)
        assert raster.scale_note.startswith("stated: gain 0.0001")


def test_surface_reflectance_of_pace(tmp_path: Path) -> None:
    """Level 2 in swaths: the bands of the array are `wavelength_3d`, beside others of the instrument."""
    path = tmp_path / "PACE_OCI.20240605T183011.L2.SFREFL.V3_0.nc"
    with h5py.File(path, "w") as file:
        file["geophysical_data/rhos"] = with_rows(image(), -32767)[ORDER].transpose(1, 2, 0)
        file["geophysical_data/rhos"].attrs.update({"scale_factor": 1e-4, "_FillValue": np.int16(-32767)})
        file["sensor_band_parameters/wavelength"] = np.linspace(314, 2258, BANDS + 9)
        file["sensor_band_parameters/wavelength_3d"] = CENTERS[ORDER]
        file["navigation_data/latitude"] = np.zeros((HEIGHT, WIDTH))
    with open_raster(path) as raster:
        np.testing.assert_array_equal(raster.read_stored(), with_rows(image(), NODATA))
        np.testing.assert_allclose(raster.wavelengths, CENTERS)
        assert any("latitudes and longitudes" in note for note in raster.notes)


def neon(path: Path, map_info: str = "UTM, 1.000, 1.000, 257000.0, 4113000.0, 1.0, 1.0, 11, North, WGS-84") -> Path:
    """As NEON's airborne observatory writes a tile: (rows, columns, bands), with attributes of its own."""
    with h5py.File(path, "w") as file:
        tile = file.create_group("SJER/Reflectance")
        tile["Reflectance_Data"] = with_rows(image(), -9999)[ORDER].transpose(1, 2, 0)
        tile["Reflectance_Data"].attrs.update({"Scale_Factor": [10000.0], "Data_Ignore_Value": b"-9999"})
        tile.attrs["Band_Window_1_Nanometers"] = [CENTERS[1] - 1, CENTERS[1] + 1]
        tile["Metadata/Spectral_Data/Wavelength"] = CENTERS[ORDER]
        tile["Metadata/Spectral_Data/FWHM"] = np.full(BANDS, 5.0)
        tile["Metadata/Ancillary_Imagery/Weather_Quality_Indicator"] = np.zeros((*image().shape[1:], 3), np.uint8)
        tile["Metadata/Ancillary_Imagery/Slope"] = np.zeros(image().shape[1:])
        tile["Metadata/Coordinate_System/Map_Info"] = np.bytes_(map_info)
        tile["Metadata/Coordinate_System/EPSG Code"] = np.bytes_("32611")
    return path


def test_a_tile_of_neon(tmp_path: Path) -> None:
    with open_raster(neon(tmp_path / "NEON_D17_SJER_DP3_257000_4112000_reflectance.h5")) as raster:
        expected = with_rows(image(), NODATA)
        expected[1] = NODATA  # where water vapour leaves no light
        np.testing.assert_array_equal(raster.read_stored(), expected)
        np.testing.assert_allclose(raster.wavelengths, CENTERS)
        assert raster.crs == CRS.from_epsg(32611) and raster.notes == []
        assert raster.transform == Affine(1, 0, 257000, 0, -1, 4113000)
        assert raster.scale_note.startswith("stated: gain 0.0001")
    # The place of another pixel than the first, and a grid that is turned, which is left out
    with open_raster(neon(tmp_path / "a.h5", "UTM, 3, 2, 257000, 4113000, 2, 4, 11, North, WGS-84")) as raster:
        assert raster.transform == Affine(2, 0, 257000 - 4, 0, -4, 4113000 + 4)
    for info in ("UTM, 1, 1, 257000, 4113000, 1, 1, 11, North, WGS-84, rotation=13.0", "UTM, 1, 1"):
        with open_raster(neon(tmp_path / "b.h5", info)) as raster:
            assert raster.transform is None
            assert any("place on Earth is not understood" in note for note in raster.notes)
    with h5py.File(tmp_path / "b.h5", "r+") as file:
        file["SJER/Reflectance/Reflectance_Data"].attrs["Scale_Factor"] = [0.0]
    with refused(tmp_path / "b.h5", "a finite scale above 0"):
        open_raster(tmp_path / "b.h5")


STRUCTURE = """GROUP=GridStructure
\tGROUP=GRID_1
\t\tGridName="OTHER"\n\t\tXDim=1\n\t\tYDim=1\n\t\tUpperLeftPointMtrs=(0.0,9.0)\n\t\tLowerRightMtrs=(9.0,0.0)
\tGROUP=GRID_2
\t\tGridName="HYP"\n\t\tXDim={1}\n\t\tYDim={0}
\t\tUpperLeftPointMtrs=(500000.0,4000000.0)\n\t\tLowerRightMtrs=({right},{bottom})
\t\tProjection={projection}\n\t\tZoneCode={zone}
"""


def tanager(
    path: Path, kind: str = "GRIDS", epsg: int | None = 32611, zone: int = 11, projection: str = "UTM"
) -> Path:
    """As Planet writes a scene of Tanager: bands first, their wavelengths in attributes."""
    values = np.where(with_rows(image(), NODATA) == NODATA, -9999, image() / np.float32(10000))
    height, width = size = values.shape[1:]
    ends = {"right": 500000.0 + 30 * width, "bottom": 4000000.0 - 30 * height}
    structure = STRUCTURE.format(*size, **ends, zone=zone, projection=f"HE5_GCTP_{projection}")
    with h5py.File(path, "w") as file:
        fields = file.create_group(f"HDFEOS/{kind}/HYP/Data Fields")
        fields["surface_reflectance"] = values[ORDER].astype(np.float32)
        own = {"wavelengths": CENTERS[ORDER], "fwhm": np.full(BANDS, 5.0), "good_wavelengths": ORDER != 0}
        fields["surface_reflectance"].attrs.update(own | {"_FillValue": np.float32(-9999)})
        fields["surface_reflectance_uncertainty"] = np.full(values.shape, 0.01, np.float32)
        fields["surface_reflectance_uncertainty"].attrs["wavelengths"] = CENTERS[ORDER]
        fields["beta_cloud_mask"] = np.zeros(size, np.uint8)
        if kind == "SWATHS":
            file[f"HDFEOS/{kind}/HYP/Geolocation Fields/Latitude"] = np.zeros(size)
        if epsg is not None:
            file[f"HDFEOS/{kind}/HYP"].attrs["epsg_code"] = epsg
        file["HDFEOS INFORMATION/StructMetadata.0"] = np.bytes_(structure)
    return path


def test_a_scene_of_tanager(tmp_path: Path) -> None:
    with open_raster(tanager(tmp_path / "20250514_ortho_sr_hdf5.h5")) as raster:
        expected = with_rows(image(), NODATA)
        expected[0] = NODATA  # a band that the file does not call good
        np.testing.assert_array_equal(raster.read_stored(), expected)
        np.testing.assert_allclose(raster.wavelengths, CENTERS)
        np.testing.assert_allclose(raster.fwhm, 5)
        assert raster.crs == CRS.from_epsg(32611)
        assert raster.transform == Affine(30, 0, 500000, 0, -30, 4000000)
        assert any("surface_reflectance is taken" in note for note in raster.notes)
        assert any("of surface_reflectance read as reflectance from 0 to 1" in note for note in raster.notes)
    with open_raster(tanager(tmp_path / "south.h5", epsg=None, zone=-11)) as raster:
        assert raster.crs == CRS.from_epsg(32711)
    with open_raster(tanager(tmp_path / "a.h5", epsg=None, projection="LAMAZ")) as raster:
        assert raster.transform is None
        assert any("place on Earth is not understood" in note for note in raster.notes)
    with open_raster(tanager(tmp_path / "basic_sr_hdf5.h5", "SWATHS")) as raster:
        assert raster.transform is None and any("latitudes and longitudes" in note for note in raster.notes)


def test_fractions_that_fall_as_radiance_are_reflectance_where_the_array_is_called_so(tmp_path: Path) -> None:
    """As of water, or in NetCDF files of AVIRIS-3, whose array states no unit."""
    values = image() / 10000 * np.linspace(1, 0.02, BANDS)[:, None, None]
    for name, words in (("reflectance", None), ("cube", "expected stored numbers"), ("toa_radiance", "radiance")):
        path = tmp_path / f"{name}.nc"
        with h5py.File(path, "w") as file:
            file[f"reflectance/{name}"] = values.astype(np.float32)
            file["reflectance/wavelength"] = np.linspace(400, 2400, BANDS)
        if words is None:
            np.testing.assert_allclose(read(path), np.rint(values * 10000), atol=1)
        else:
            with refused(path, words):
                open_raster(path)


def test_whole_numbers_marked_as_unsigned_are_read_as_such(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    with h5py.File(path, "w") as file:
        file["reflectance"] = with_rows(image().astype(np.uint16) * 10, 65535)[ORDER].view(np.int16)
        file["reflectance"].attrs.update({"_Unsigned": "true", "scale_factor": 1e-5, "_FillValue": np.int16(-1)})
        file["wavelength"] = CENTERS[ORDER]
    np.testing.assert_array_equal(read_stored(path), with_rows(image(), NODATA))
    np.testing.assert_array_equal(read(path), with_rows(image(), NODATA))


# Files that are damaged, or no images


def test_a_band_marked_as_alpha_before_the_last_is_read_and_told(tmp_path: Path, caplog: Log) -> None:
    """As GDAL's option ALPHA=YES marks the second of many bands."""
    path = tif(tmp_path / "a.tif", with_rows(image(), 0), alpha="YES")
    np.testing.assert_array_equal(read_scene(path), with_rows(image(), 0))
    assert "band 2 is marked as alpha and read as one of the spectrum" in said(caplog, path)


def test_pages_of_one_band_are_no_image(tmp_path: Path) -> None:
    """As libraries for pictures write a cube: GDAL reads the first page alone."""
    pages = [Image.fromarray(band.astype(np.uint16)) for band in image()]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with refused(tmp_path / "a.tif", f"{BANDS} pages of one band", "make them bands of one page"):
        open_raster(tmp_path / "a.tif")


def test_lists_of_a_header_may_end_with_a_comma(tmp_path: Path, entrance: Reader) -> None:
    path = envi(tmp_path / "a.img", image(), f"fwhm = {listed(np.full(BANDS, 7))}".replace("}", ",}"))
    np.testing.assert_array_equal(entrance(path), image())
    with open_raster(path) as raster:
        assert raster.fwhm is not None and (raster.fwhm == 7).all()


@pytest.mark.parametrize("name", ["a.hdr", "a.img.hdr"])
def test_a_byte_order_mark_before_a_header_is_named(tmp_path: Path, name: str) -> None:
    path = envi(tmp_path / "a.img", image())
    content = path.with_suffix(".hdr").read_bytes()
    path.with_suffix(".hdr").unlink()
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content)
    for opened in (path, tmp_path / name):
        with refused(tmp_path / name, "byte order mark"):
            open_raster(opened)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_pixels_without_a_size_lie_nowhere(tmp_path: Path, caplog: Log) -> None:
    path = tif(tmp_path / "a.tif", image(), transform=Affine(30, 0, 500000, 0, 0, 5800000))
    with open_scene(path) as scene:
        assert scene.transform is None and scene.crs is None
    assert "its pixels have no size" in said(caplog, path)


def test_ground_control_points_are_left_out_and_told(tmp_path: Path, caplog: Log) -> None:
    path = tif(tmp_path / "a.tif", image(), crs=None, transform=None)
    corners = [GroundControlPoint(row, col, 5e5 + 30 * col, 5.8e6 - 30 * row) for row, col in ((0, 0), (0, 9), (9, 0))]
    with rasterio.open(path, "r+") as dataset:
        dataset.gcps = corners, CRS.from_epsg(32633)
    with open_scene(path) as scene:
        assert scene.transform is None
    assert "ground control points are left out (gdalwarp" in said(caplog, path)


def test_other_formats_are_refused_with_what_to_do(tmp_path: Path) -> None:
    envi(tmp_path / "lone.img", image()).with_suffix(".hdr").unlink()
    with refused(tmp_path / "lone.img", "ENVI image with its header", "gdal_translate"):
        open_raster(tmp_path / "lone.img")


@pytest.mark.parametrize(
    ("start", "kind"), [(b"CDF\x01", "classic NetCDF (nccopy -k nc4"), (b"\x0e\x03\x13\x01", "HDF4 (h4toh5")]
)
def test_older_formats_of_arrays_are_refused_with_what_to_do(tmp_path: Path, start: bytes, kind: str) -> None:
    (tmp_path / "a.nc").write_bytes(start + bytes(64))
    with refused(tmp_path / "a.nc", kind):
        open_raster(tmp_path / "a.nc")


def test_of_many_arrays_the_first_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{f"band_{band}": image()[band] for band in range(BANDS)})
    with refused(tmp_path / "a.npz", "band_7 (12, 14), 12 more", "--variable"):
        open_raster(tmp_path / "a.npz")


def test_an_image_with_as_many_columns_as_bands_is_refused_with_what_to_do(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", image((HEIGHT, BANDS)))
    with refused(tmp_path / "a.npy", "2 axes in an array of 20 x 12 x 20: leave out"):
        open_raster(tmp_path / "a.npy", wavelengths=CENTERS)


@pytest.mark.parametrize("kept", [0.3, 0.995])
def test_files_that_were_cut_off_are_refused(any_format: Path, entrance: Reader, kept: float) -> None:
    content = any_format.read_bytes()
    any_format.write_bytes(content[: int(kept * len(content))])
    with refused(any_format, "cut off at" if any_format.suffix == ".tif" and kept > 0.9 else ""):
        entrance(any_format)


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["array.npy", "array.npz", "pickle.npy"])
def test_pickled_objects_are_refused_and_not_unpickled(tmp_path: Path, kind: str) -> None:
    path, sprung = tmp_path / kind, tmp_path / "sprung"
    objects = np.full((2, 3, 4), Trap(sprung), dtype=object)
    if kind == "pickle.npy":
        path.write_bytes(pickle.dumps(objects))
    else:
        (np.save if kind == "array.npy" else np.savez)(path, objects)
    for open_it in (open_raster, open_scene, read_label_values):
        with refused(path):
            open_it(path)
    assert not sprung.exists()


TEXTS = {
    "VRT": '<VRTDataset rasterXSize="14" rasterYSize="12"><VRTRasterBand dataType="Int16" band="1"><SimpleSource>'
    '<SourceFilename relativeToVRT="1">../secret/a.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
    "</VRTRasterBand></VRTDataset>",
    "WMS": '<GDAL_WMS><Service name="TMS"><ServerUrl>http://127.0.0.1:9/${z}/${x}/${y}.png</ServerUrl></Service>'
    "<DataWindow><SizeX>64</SizeX><SizeY>64</SizeY></DataWindow><BandsCount>1</BandsCount></GDAL_WMS>",
    "WCS": "<WCS_GDAL><ServiceURL>http://127.0.0.1:9/?</ServiceURL><CoverageName>a</CoverageName></WCS_GDAL>",
    "text": "what is this?",
    "nothing": "",
}


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_that_name_other_files_or_addresses_open_nothing(tmp_path: Path, entrance: Reader, kind: str) -> None:
    tif(tmp_path / "secret" / "a.tif", image())
    path = tmp_path / "texts" / "a.tif"
    path.parent.mkdir()
    path.write_text(TEXTS[kind])
    for reader in (entrance, read_label_values):
        with refused(path, "no GeoTIFF"):
            reader(path)


@pytest.mark.parametrize("name", ["a.npz", "a.mat"])
def test_arrays_larger_than_memory_are_refused_before_they_are_read(
    tmp_path: Path, name: str, monkeypatch: Any
) -> None:
    path = saved(tmp_path / name, (1, 2, 0))
    monkeypatch.setattr(raster_file, "available_memory", lambda: image().nbytes)
    with refused(path, "an array image that fits into half of the free memory"):
        open_raster(path, wavelengths=CENTERS).read_stored()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the size of a process is asked for in Linux's way")
def test_an_image_larger_than_memory_is_read_by_windows_and_refused_as_a_whole(
    tmp_path: Path, entrance: Reader
) -> None:
    path, side = tmp_path / "a.tif", 40_000
    layout = {"tiled": True, "blockxsize": 64, "blockysize": 64, "interleave": "pixel"}
    size = {"count": 200, "height": side, "width": side, "dtype": "int16", "nodata": 0}
    with rasterio.open(path, "w", driver="GTiff", BIGTIFF="YES", SPARSE_OK="TRUE", **layout, **size) as dataset:
        dataset.write(np.full((200, 64, 64), 1234, dtype=np.int16), window=Window(19968, 19968, 64, 64))

    def read_window() -> np.ndarray:
        resource = importlib.import_module("resource")
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + 300_000_000, resource.RLIM_INFINITY))
        with open_raster(path) as raster:
            return raster.read_stored(Window(20000, 20000, 40, 3))

    if entrance is read_stored:
        assert (in_a_child(read_window)[:, :, :32] == 1234).all()
    with refused(path, "an image that fits into", "free memory", "200 bands of 40000 x 40000 pixels"):
        entrance(path)

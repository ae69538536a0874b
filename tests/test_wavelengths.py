"""Wavelengths of images: units, widths, tags, headers and their data, files beside images, and what is refused."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from datasets_loading.raster_file import ProductError
from datasets_loading.rasters import Raster, open_raster
from datasets_loading.wavelengths import (
    LARGEST_SIDECAR,
    SIDECAR_NAME,
    check_same_bands,
    read_wavelength_file,
    to_nanometers,
)

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

LIGHT = 299_792_458.0  # m/s
CENTERS = np.array([2200.0, 450.0, 700.0, 1600.0])
WIDTHS = np.array([12.0, 6.0, 8.0, 10.0])


@contextmanager
def refused(path: object, *words: str) -> Iterator[None]:
    """Expects a ProductError of one line, which begins with the file and says what was expected and what came."""
    with pytest.raises(ProductError) as caught:
        yield
    message = str(caught.value)
    assert re.fullmatch(rf"{re.escape(str(path))}[^\n]*: expected [^\n]+, got [^\n]+", message), message
    for word in words:
        assert word in message


def image() -> np.ndarray:
    """Reflectance x 10000, int16 (4, 6, 7): a number of its own for each band."""
    return (1000 * np.arange(1, 5)[:, None, None] + np.arange(42).reshape(6, 7)).astype(np.int16)


def write_tif(path: Path, tags: Sequence[dict[str, Any]] = (), namespace: str | None = None) -> Path:
    """The image as a GeoTIFF; `tags` of its bands, one after the other."""
    with rasterio.open(path, "w", driver="GTiff", count=4, height=6, width=7, dtype="int16") as dataset:
        dataset.write(image())
        for band, own in enumerate(tags, start=1):
            dataset.update_tags(band, ns=namespace, **{name: str(value) for name, value in own.items()})
    return path


def write_envi(folder: Path, *lines: str, header: str = "cube.hdr", data: str = "cube.img") -> Path:
    (folder / data).write_bytes(image().astype("<i2").tobytes())
    required = "samples = 7\nlines = 6\nbands = 4\ndata type = 2\ninterleave = bsq\nbyte order = 0"
    (folder / header).write_text("\n".join(["ENVI", required, *lines, ""]))
    return folder / header


def listed(numbers: Any) -> str:
    return "{" + ", ".join(f"{number:.12g}" for number in numbers) + "}"


def assert_bands(raster: Raster, fwhm: np.ndarray | None = WIDTHS) -> None:
    """Bands ascend, each with its width and its pixels."""
    order = np.argsort(CENTERS)
    with raster:
        np.testing.assert_allclose(raster.wavelengths, CENTERS[order], rtol=1e-6)
        assert (raster.fwhm is None) == (fwhm is None)
        if fwhm is not None:
            np.testing.assert_allclose(raster.fwhm, fwhm[order], rtol=1e-4)
        np.testing.assert_array_equal(raster.read_stored(), image()[order])


# Units

LENGTHS = {
    1.0: ("nm", "NM", "Nanometers", "nanometre", " nano-meters "),
    1e-3: ("um", "µm", "μm", "Micrometers", "microns", "Micron"),
    10.0: ("Angstroms", "Å", "ångström", "a"),
    1e-6: ("mm", "Millimeters"),
    1e-7: ("cm", "centimetres"),
    1e-9: ("m", "Meters"),
}
CONSTANTS = {
    1e7: ("cm-1", "1/cm", "cm^-1", "Wavenumber", "wave numbers"),
    LIGHT: ("GHz", "gigahertz"),
    LIGHT * 1e3: ("MHz",),
    LIGHT * 1e9: ("Hz",),
    LIGHT / 1e3: ("THz", "terahertz"),
}


@pytest.mark.parametrize(("factor", "unit"), [(factor, unit) for factor in LENGTHS for unit in LENGTHS[factor]])
def test_lengths_become_nanometers(factor: float, unit: str) -> None:
    centers, widths, notes = to_nanometers(CENTERS * factor, WIDTHS * factor, unit, "a.tif")
    np.testing.assert_allclose(centers, CENTERS)
    np.testing.assert_allclose(widths, WIDTHS)
    assert notes == []


@pytest.mark.parametrize(
    ("constant", "unit"), [(constant, unit) for constant in CONSTANTS for unit in CONSTANTS[constant]]
)
def test_wavenumbers_and_frequencies_become_nanometers_with_their_widths(constant: float, unit: str) -> None:
    edges = constant / (CENTERS + WIDTHS / 2), constant / (CENTERS - WIDTHS / 2)
    centers, widths, _ = to_nanometers((edges[0] + edges[1]) / 2, edges[1] - edges[0], unit, "a.tif")
    # The middle of two frequencies is not quite that of their wavelengths
    np.testing.assert_allclose(centers, CENTERS, rtol=1e-4)
    np.testing.assert_allclose(widths, WIDTHS, rtol=1e-4)


@pytest.mark.parametrize("unit", [None, "", "Unknown", "none", "Index"])
def test_without_a_unit_the_range_decides(unit: str | None) -> None:
    centers, widths, notes = to_nanometers(CENTERS, WIDTHS, unit, "a.tif")
    assert centers.tolist() == CENTERS.tolist() and notes == []
    centers, widths, notes = to_nanometers(CENTERS / 1e3, WIDTHS / 1e3, unit, "a.tif")
    np.testing.assert_allclose(centers, CENTERS)
    np.testing.assert_allclose(widths, WIDTHS)
    assert notes == ["wavelengths without a unit read as micrometers"]


@pytest.mark.parametrize(
    ("centers", "widths", "unit", "words"),
    [
        ([500, 600], None, "furlongs", ["'furlongs'", "nm"]),
        ([0.5, 0.6], None, "nm", ["300 to 2600 nm", "0.5 to 0.6", "'nm' stated"]),
        ([500, 600], None, "um", ["300 to 2600 nm", "'um' stated"]),
        ([299, 600], None, None, ["299 to 600"]),
        ([500, 2601], None, "nm", ["500 to 2601"]),
        ([0.2, 0.6], None, None, ["0.2 to 0.6"]),
        ([1, 2, 3], None, "Index", ["1 to 3"]),
        ([0, 20000], None, "cm-1", ["positive"]),
        ([500, 600, 500], None, "nm", ["500 nm more than once"]),
        ([500, np.nan], None, "nm", ["nan in band 2"]),
        ([np.inf, 500], None, "nm", ["inf in band 1"]),
        ([500, 600], [0, 10], "nm", ["positive width", "0.0 in band 1"]),
        ([500, 600], [10, -1], "nm", ["-1.0 in band 2"]),
        ([500, 600], [-10, -10], "nm", ["-10.0 in band 1"]),
        ([500, 600], [10, np.nan], "nm", ["nan in band 2"]),
        ([500, 600], [np.nan, np.nan], "nm", ["nan in band 1"]),
    ],
)
def test_wavelengths_that_no_sensor_has_are_refused(
    centers: list[float], widths: list[float] | None, unit: str | None, words: list[str]
) -> None:
    with refused("a.tif", *words):
        to_nanometers(centers, widths, unit, "a.tif")


def test_the_whole_range_of_reflectance_is_taken() -> None:
    assert to_nanometers([2600, 300], None, "nm", "a.tif")[0].tolist() == [2600, 300]


def test_widths_that_are_all_zero_are_left_out_and_this_is_noted() -> None:
    _, widths, notes = to_nanometers(CENTERS, np.zeros(4), "nm", "a.tif")
    assert widths is None and notes == ["widths of 0 ignored"]


# Where images state them


@pytest.mark.parametrize("key", ["wavelength_units", "wavelength_unit"])
@pytest.mark.parametrize(("unit", "factor"), [("nm", 1.0), ("Micrometers", 1e-3), ("Angstroms", 10.0)])
def test_tags_of_the_bands(tmp_path: Path, key: str, unit: str, factor: float) -> None:
    tags = [
        {"wavelength": center * factor, "fwhm": width * factor, key: unit}
        for center, width in zip(CENTERS, WIDTHS, strict=True)
    ]
    assert_bands(open_raster(write_tif(tmp_path / "a.tif", tags)))


@pytest.mark.parametrize(
    ("names", "factor"),
    [(("Wavelength", "FWHM"), 1.0), (("center_wavelength", "fwhm"), 1.0), (("wavelength_um", "fwhm_um"), 1e-3)],
)
def test_tags_of_other_names(tmp_path: Path, names: tuple[str, str], factor: float) -> None:
    pairs = zip(CENTERS, WIDTHS, strict=True)
    tags = [{names[0]: center * factor, names[1]: width * factor} for center, width in pairs]
    raster = open_raster(write_tif(tmp_path / "a.tif", tags))
    assert_bands(raster)
    assert factor == 1 or not any("micrometers" in note for note in raster.notes)


def test_tags_in_micrometers_without_a_unit_are_understood_and_said(tmp_path: Path) -> None:
    raster = open_raster(write_tif(tmp_path / "a.tif", [{"wavelength": center / 1e3} for center in CENTERS]))
    assert any("micrometers" in note for note in raster.notes)
    assert_bands(raster, fwhm=None)


def test_the_domain_of_the_raster_library_is_micrometers(tmp_path: Path) -> None:
    tags = [
        {"CENTRAL_WAVELENGTH_UM": center / 1e3, "FWHM_UM": width / 1e3}
        for center, width in zip(CENTERS, WIDTHS, strict=True)
    ]
    assert_bands(open_raster(write_tif(tmp_path / "a.tif", tags, "IMAGERY")))


@pytest.mark.parametrize(
    ("tags", "namespace", "words"),
    [
        ([{"wavelength": 500}, {"wavelength": 600}, {}, {"wavelength": 800}], None, ["all of its 4 bands", "it on 3"]),
        ([{"CENTRAL_WAVELENGTH_UM": 0.5}], "IMAGERY", ["all of its 4 bands", "it on 1"]),
        ([{"wavelength": "red"}] * 4, None, ["a number in the tag wavelength", "'red' in band 1"]),
        ([{"wavelength": 500 + band, "fwhm": "wide"} for band in range(4)], None, ["tag fwhm", "'wide'"]),
        (
            [{"wavelength": 500 + band, "wavelength_units": unit} for band, unit in enumerate(["nm", "um"] * 2)],
            None,
            ["one unit", "nm, um"],
        ),
        ([{"wavelength": 500}] * 4, None, ["more than once"]),
    ],
)
def test_tags_that_do_not_fit_the_bands_are_refused(
    tmp_path: Path, tags: list[dict[str, Any]], namespace: str | None, words: list[str]
) -> None:
    path = write_tif(tmp_path / "a.tif", tags, namespace)
    with refused(path, *words):
        open_raster(path)


@pytest.mark.parametrize(
    ("unit", "numbers", "widths"),
    [
        ("wavelength units = Nanometers", CENTERS, WIDTHS),
        ("wavelength units = Micrometers", CENTERS / 1e3, WIDTHS / 1e3),
        ("wavelength units = Wavenumber", 1e7 / CENTERS, 1e7 * WIDTHS / CENTERS**2),
        ("wavelength units = GHz", LIGHT / CENTERS, LIGHT * WIDTHS / CENTERS**2),
        ("wavelength units = MHz", LIGHT * 1e3 / CENTERS, LIGHT * 1e3 * WIDTHS / CENTERS**2),
        ("wavelength units = Unknown", CENTERS, WIDTHS),
        ("; no unit", CENTERS / 1e3, WIDTHS / 1e3),
    ],
)
@pytest.mark.parametrize("name", ["cube.hdr", "cube.img"])
def test_envi_headers(tmp_path: Path, unit: str, numbers: np.ndarray, widths: np.ndarray, name: str) -> None:
    write_envi(tmp_path, unit, f"wavelength = {listed(numbers)}", f"fwhm = {listed(widths)}")
    assert_bands(open_raster(tmp_path / name))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["wavelength = {500, 600, 700}"], ["4 numbers under 'wavelength'", "got 3"]),
        (["wavelength = {500, 600, 700, blue}"], ["'blue'"]),
        (["wavelength = {500, 600, 700, 800}", "fwhm = {5, 5}"], ["4 numbers under 'fwhm'"]),
        (["wavelength = {500, 600, 700, 800}", "wavelength units = Parsec"], ["'Parsec'"]),
        (["wavelength = {1, 2, 3, 4}", "wavelength units = Index"], ["300 to 2600 nm", "1 to 4"]),
    ],
)
def test_envi_headers_that_do_not_fit_are_refused(tmp_path: Path, lines: list[str], words: list[str]) -> None:
    path = write_envi(tmp_path, *lines)
    with refused(tmp_path / "cube", *words):
        open_raster(path)


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ("cube.hdr", "cube.IMG"),
        ("cube.HDR", "cube.BSQ"),
        ("cube.Hdr", "cube.dat"),
        ("cube.hdr", "cube.bin"),
        ("cube.hdr", "cube.hyspex"),
        ("cube.hdr", "cube"),
        ("cube.hdr", "cube.own"),
        ("cube.img.hdr", "cube.img"),
        ("cube.bsq.HDR", "cube.bsq"),
        ("Cube.hdr", "Cube.img"),
        ("a.b.hdr", "a.b"),
    ],
)
def test_headers_and_their_data_are_found_from_each_other(tmp_path: Path, header: str, data: str) -> None:
    write_envi(tmp_path, f"wavelength = {listed(CENTERS)}", header=header, data=data)
    for beside in ("cube.xml", "cube.png", "cube_mask.img", "cube.txt"):
        (tmp_path / beside).write_text("something else")
    for name in (header, data):
        assert_bands(open_raster(tmp_path / name), fwhm=None)


def test_headers_without_data_or_with_several_or_of_others_are_refused(tmp_path: Path) -> None:
    path = write_envi(tmp_path)
    (tmp_path / "cube.img").rename(tmp_path / "cube.one")
    shutil.copy(tmp_path / "cube.one", tmp_path / "cube.two")
    with refused(path, "the data of this ENVI header", "cube.one, cube.two"):
        open_raster(path)
    for name in ("cube.one", "cube.two"):
        (tmp_path / name).unlink()
    with refused(path, "the data of this ENVI header", "none"):
        open_raster(path)
    path.write_text("BYTEORDER I\nLAYOUT BIL\nNROWS 6\nNCOLS 7\nNBANDS 4\nNBITS 16\n")
    (tmp_path / "cube.bil").write_bytes(image().tobytes())
    for name, words in (("cube.hdr", ["the word ENVI", "'BYTEORDER I"]), ("cube.bil", ["no GeoTIFF"])):
        with refused(tmp_path / name, *words):
            open_raster(tmp_path / name)


@pytest.mark.parametrize("given", ["array", "file", "beside"])
def test_an_image_without_takes_those_given_or_beside_it(tmp_path: Path, given: str) -> None:
    path = write_tif(tmp_path / "a.tif")
    lines = "\n".join(f"{center} {width}" for center, width in zip(CENTERS, WIDTHS, strict=True))
    name = SIDECAR_NAME if given == "beside" else "own.csv"
    (tmp_path / name).write_text("" if given == "array" else lines)
    own: dict[str, Any] = {"array": {"wavelengths": CENTERS, "fwhm": WIDTHS}, "file": {"wavelengths": tmp_path / name}}
    assert_bands(open_raster(path, **own.get(given, {})))


def test_what_the_file_states_goes_before_the_file_beside_it_and_the_caller_before_both(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", [{"wavelength": center} for center in CENTERS])
    (tmp_path / SIDECAR_NAME).write_text("501\n502\n503\n504\n")
    assert_bands(open_raster(path), fwhm=None)
    assert open_raster(path, wavelengths=[901, 902, 903, 904]).wavelengths.tolist() == [901, 902, 903, 904]
    assert open_raster(write_tif(tmp_path / "b.tif")).wavelengths.tolist() == [501, 502, 503, 504]


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"wavelengths": [500, 600, 700]}, ["each of its 4 bands", "got 3"]),
        ({"wavelengths": [0.5, 0.6, 0.7, 0.8]}, ["300 to 2600 nm"]),
        ({"wavelengths": [500, 600, 700, 700]}, ["more than once"]),
        ({"wavelengths": CENTERS, "fwhm": [5, 5, 5]}, ["a positive width for each of its 4 bands"]),
        ({"wavelengths": CENTERS, "fwhm": [5, 5, 5, 0]}, ["a positive width for each of its 4 bands"]),
    ],
)
def test_given_wavelengths_that_do_not_fit_are_refused(tmp_path: Path, own: dict[str, Any], words: list[str]) -> None:
    path = write_tif(tmp_path / "a.tif")
    with refused(path, *words):
        open_raster(path, **own)


# Files of wavelengths


@pytest.mark.parametrize(
    ("text", "centers", "widths"),
    [
        ("450\n700\n\n1600\n", [450, 700, 1600], None),
        ("450 6\n700 8\n", [450, 700], [6, 8]),
        ("450, 6\n700, 8\n", [450, 700], [6, 8]),
        ("450.0,6\n700.5,8\n", [450, 700.5], [6, 8]),
        ("450.0, 6.5,\n700.0, 8.5,\n", [450, 700], [6.5, 8.5]),
        ("# of the sensor\n450 # the first\n  # and\n700\n", [450, 700], None),
        # units, stated or by range
        ("0.45\n0.7\n", [450, 700], None),
        ("wavelength (um)\n0.45\n0.7\n", [450, 700], None),
        ("Wavelength [nm]\n450\n700\n", [450, 700], None),
        ("Wavelength (µm), FWHM (µm)\n0.45,0.006\n0.7,0.008\n", [450, 700], [6, 8]),
        ("wavenumber (cm-1)\n20000\n12500\n", [500, 800], None),
        ("nanometers\n700\n450\n", [700, 450], None),
        # numbers of bands before the wavelengths
        ("1 450\n2 700\n", [450, 700], None),
        ("0 450 6\n1 700 8\n", [450, 700], [6, 8]),
        ("1,450\n2,700\n3,1600\n", [450, 700, 1600], None),
        ("0,450\n1,700\n2,950\n3,1600\n", [450, 700, 950, 1600], None),
        ("1,450,6\n2,700,8\n", [450, 700], [6, 8]),
        # columns by their names
        ("band,wavelength\n1,450\n2,700\n3,1600\n", [450, 700, 1600], None),
        ("fwhm;band;center\n6;10;450\n8;20;700\n", [450, 700], [6, 8]),
        ("no\tcentre_wavelength_nm\twidth_nm\n7\t450\t6\n9\t700\t8\n", [450, 700], [6, 8]),
        # decimal commas
        ("450,24; 6,5\n700,5; 8\n", [450.24, 700.5], [6.5, 8]),
        ("450,24\t6,5\n700,5\t8,0\n", [450.24, 700.5], [6.5, 8]),
        ("1;450,2;6,5\n2;700,0;8,5\n", [450.2, 700], [6.5, 8.5]),
        ("band;wavelength;fwhm\n1;450,2;6,5\n2;700,0;8,5\n", [450.2, 700], [6.5, 8.5]),
        ("450,24\n700,04\n950,91\n", [450.24, 700.04, 950.91], None),
        ("0,4502\n0,7000\n1,6001\n", [450.2, 700, 1600.1], None),
        ("0,450;0,006\n0,700;0,008\n", [450, 700], [6, 8]),
    ],
)
def test_what_people_write_into_files_of_wavelengths(
    tmp_path: Path, text: str, centers: list[float], widths: list[float] | None
) -> None:
    path = tmp_path / "bands.txt"
    path.write_text(text, encoding="utf-8")
    found, found_widths, _ = read_wavelength_file(path, len(centers))
    np.testing.assert_allclose(found, centers)
    assert (found_widths is None) == (widths is None)
    if widths is not None:
        np.testing.assert_allclose(found_widths, widths)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path: Path, encoding: str, newline: str) -> None:
    path = tmp_path / "bands.txt"
    path.write_bytes(newline.join(["Wellenlänge µm", "0.45", "0.7"]).encode(encoding))
    centers, _, notes = read_wavelength_file(path)
    np.testing.assert_allclose(centers, [450, 700])
    assert notes == []  # the unit was read, not guessed


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("450\nseven hundred\n", 2, ["a wavelength", "'seven hundred'"]),
        ("# bands\n\nwavelength\n450\n7OO\n", 5, ["'7OO'"]),
        ("450\n-700\n", 2, ["-700"]),
        ("nan\n450\n", 1, ["nan"]),
        ("450 6\n700 -8\n", 2, ["a positive width", "-8"]),
        ("450 6\n700 0\n", 2, ["a positive width"]),
        # a comma before a width, or in the number
        ("450,12\n700,12\n950,13\n", 1, ["decimal point", "semicolon", "'450,12'", "either"]),
        ("wavelength\n450,6\n700,8\n", 2, ["'450,6'", "either"]),
        # numbers of bands before nm, or decimal commas of micrometers
        ("0,450\n1,600\n", 1, ["'0,450'", "either"]),
        ("450,24,6,5\n700,04,8,0\n", None, ["and perhaps a width in each line", "'450,24,6,5'"]),
        ("450\n700\n450\n", None, ["450 nm more than once"]),
        ("1\n2\n3\n", None, ["300 to 2600 nm", "1 to 3"]),
        ("", None, ["got none"]),
        ("# nothing\nwavelength\n", None, ["got none"]),
        ("450\x00700\n", None, ["a text file"]),
        ("450\n" * (LARGEST_SIDECAR // 4 + 1), None, ["at most 1,000,000 bytes", "1,000,004"]),
    ],
)
def test_files_of_something_else_are_refused_with_the_line(
    tmp_path: Path, content: str, line: int | None, words: list[str]
) -> None:
    path = tmp_path / "bands.txt"
    path.write_text(content)
    with refused(path if line is None else f"{path}, line {line}", *words):
        read_wavelength_file(path)


@pytest.mark.parametrize("count", [1, 3])
def test_another_count_than_bands_is_refused(tmp_path: Path, count: int) -> None:
    path = tmp_path / "bands.txt"
    path.write_text("450\n700\n")
    with refused(path, f"{count} wavelengths, one for each band", "got 2"):
        read_wavelength_file(path, count)


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.txt", tmp_path):
        with refused(path, "a file of wavelengths"):
            read_wavelength_file(path)


# Two sources


def test_bands_of_two_sources_agree_within_a_nanometer() -> None:
    check_same_bands("b.tif", 4, CENTERS + 0.9, 4, CENTERS, "a.tif")
    check_same_bands("b.tif", 4, None, 4, None, "a.tif")
    for bands, words in (
        ((3, CENTERS[:3]), ["4 bands as in a.tif", "got 3"]),
        ((4, None), ["wavelengths as in a.tif", "no wavelengths"]),
        ((4, CENTERS + [0, 0, 1.1, 0]), ["700 nm in band 2 as in a.tif", "701.1 nm"]),
    ):
        with refused("b.tif", *words):
            check_same_bands("b.tif", *bands, 4, CENTERS, "a.tif")

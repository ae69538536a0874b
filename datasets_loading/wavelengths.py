"""How files state the bands of a sensor: units of wavelengths, widths, sidecar files, and which sources agree.

Everything here ends in nanometers. Reflectance is measured between 300 and 2,600 nm: numbers elsewhere are in another
unit than they seem, or of another kind of sensor, and are refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets_loading.raster_file import decode_text, fail, read_text_file

SHORTEST, LONGEST = 300.0, 2600.0
"""Range of band centers of reflectance in nm."""

WAVELENGTH_TOLERANCE = 1.0
"""Largest difference in nm between equal bands of two sources: calibrations move EnMAP's bands by tenths of a nm."""

SIDECAR_NAME = "wavelengths.txt"
"""File beside images that state no wavelengths: a line for each band in file order, its center and perhaps width."""

LARGEST_SIDECAR = 1_000_000
"""Bytes that a file of wavelengths may have: a thousand bands take some ten thousand."""

_SPEED_OF_LIGHT = 299_792_458.0
_LENGTHS = {
    "nm|nano-?met(er|re)s?": 1.0,
    "um|[µμ]m|micro-?met(er|re)s?|microns?|mic": 1e3,
    "a|å|[aå]ngstr(o|ö|oe)ms?": 0.1,
    "mm|millimet(er|re)s?": 1e6,
    "cm|centimet(er|re)s?": 1e7,
    "m|met(er|re)s?": 1e9,
}
# Of these the wavelength is a constant divided by the number
_RECIPROCALS = {
    r"(1/cm|cm-1|cm\^-1|wave ?numbers?)": 1e7,
    "hz|hertz": _SPEED_OF_LIGHT * 1e9,
    "mhz|megahertz": _SPEED_OF_LIGHT * 1e3,
    "ghz|gigahertz": _SPEED_OF_LIGHT,
    "thz|terahertz": _SPEED_OF_LIGHT / 1e3,
}
_NO_UNIT = "|none|unknown|index|-"
_UNIT_IN_HEADER = re.compile(r"(?<![a-z])(nm|nanomet\w+|um|[µμ]m|micromet\w+|microns?|cm-1|ghz)(?![a-z])")


def to_nanometers(
    centers: Sequence[float] | np.ndarray, widths: Sequence[float] | np.ndarray | None, unit: str | None, where: object
) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """Band centers and widths in nm, checked, in the order given.

    Args:
        centers: band centers (bands,) in `unit`.
        widths: full width at half maximum of each band (bands,) in `unit`, or None.
        unit: as the file states it: a length, a wavenumber or a frequency, in words or as a symbol. Without one,
            micrometers and nanometers are told apart by their range.
        where: the file, for errors.

    Returns:
        Centers in nm, float64 (bands,); widths in nm, float64 (bands,), or None; what was assumed, a phrase each.

    Raises:
        ProductError: the unit is unknown, a number is not finite, a center lies outside 300 to 2,600 nm or occurs
            twice, or some widths are not positive.
    """
    centers = np.asarray(centers, dtype=np.float64)
    given_widths = None if widths is None else np.asarray(widths, dtype=np.float64)
    notes: list[str] = []
    if not np.isfinite(centers).all():
        band = int(np.flatnonzero(~np.isfinite(centers))[0])
        fail(where, "a wavelength for each band", f"{centers[band]} in band {band + 1}")
    if given_widths is not None and not (known := np.isfinite(given_widths) & (given_widths > 0)).all():
        if given_widths.any():  # all 0 means that there are none
            band = int(np.flatnonzero(~known)[0])
            expected = "a positive width (full width at half maximum) for each band"
            fail(where, expected, f"{given_widths[band]} in band {band + 1}")
        given_widths = None
        notes.append("widths of 0 ignored")
    name = re.sub(r"\s+", " ", (unit or "").strip().lower())
    factor = _find(_LENGTHS, name)
    constant = _find(_RECIPROCALS, name)
    if constant is not None:
        if (centers <= 0).any():
            fail(where, f"positive numbers in {unit}", f"{centers.min():g}")
        if given_widths is not None:
            given_widths = np.abs(constant / (centers - given_widths / 2) - constant / (centers + given_widths / 2))
        centers = constant / centers
    elif factor is not None:
        centers = centers * factor
        given_widths = None if given_widths is None else given_widths * factor
    elif re.fullmatch(_NO_UNIT, name):
        if len(centers) and centers.max() <= LONGEST / 1e3 and centers.min() >= SHORTEST / 1e3:
            centers = centers * 1e3
            given_widths = None if given_widths is None else given_widths * 1e3
            notes.append("wavelengths without a unit read as micrometers")
    else:
        fail(where, "wavelengths in nm, µm, Å, mm, m, wavenumbers (cm-1) or GHz", f"the unit {unit!r}")
    if len(centers) and not (SHORTEST <= centers.min() and centers.max() <= LONGEST):
        stated = f" ({unit!r} stated)" if name and not re.fullmatch(_NO_UNIT, name) else ""
        expected = f"wavelengths of reflectance, {SHORTEST:g} to {LONGEST:g} nm"
        fail(where, expected, f"{centers.min():g} to {centers.max():g}{stated}")
    if given_widths is not None and len(given_widths) and given_widths.max() > LONGEST:
        fail(where, f"widths of bands, at most {LONGEST:g} nm", f"{given_widths.max():g}")
    ordered = np.sort(centers)
    if (np.diff(ordered) <= 0).any():
        fail(where, "wavelengths that differ", f"{ordered[1:][np.diff(ordered) <= 0][0]:g} nm more than once")
    return centers, given_widths, notes


def _find(table: dict[str, float], name: str) -> float | None:
    return next((value for pattern, value in table.items() if re.fullmatch(pattern, name)), None)


def read_wavelength_file(
    path: str | Path, num_bands: int | None = None
) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """Band centers and, where every line states one, widths from a text file with a line for each band.

    A line holds the center and perhaps the width, in nm or µm, after the number of the band or not, with a decimal
    point or comma; a first line of names may state the unit, and "#" begins a comment. The file is in UTF-8, UTF-16
    with a byte order mark, or Latin-1. What is returned is as of `to_nanometers`.

    Raises:
        ProductError: the file is missing, too large, holds something else (the message names the line), or another
            number of bands.
    """
    path = Path(path)
    lines = _lines(path)
    header = re.split(r"[,;\t ]+", lines[0][1].lower()) if lines and re.match(r"[\"'a-zµμ]", lines[0][1], re.I) else []
    unit = None
    if header and not re.fullmatch(r"nan|inf(inity)?", header[0]):
        found = _UNIT_IN_HEADER.search(lines[0][1].lower().replace("_", " "))
        unit = found[1] if found else None
        lines = lines[1:]
    rows = _numbers(path, lines)
    if not rows:
        fail(path, "a wavelength in each line", "none")
    columns = [
        next((place for place, name in enumerate(header) if re.search(pattern, name)), None)
        for pattern in ("wavelength|wl|cent(er|re)", "fwhm|width")
    ]
    named = [place for place in columns if place is not None]
    if columns[0] is not None and len(header) == min(map(len, rows)):
        rows = [[row[place] for place in named] for row in rows]
    elif min(map(len, rows)) >= 2 and len(rows) > 1:
        first = np.array([row[0] for row in rows])
        if first[0] in (0, 1) and np.array_equal(first, first[0] + np.arange(len(rows))):
            rows = [row[1:] for row in rows]
    if num_bands is not None and len(rows) != num_bands:
        fail(path, f"{num_bands} wavelengths, one for each band", f"{len(rows)}")
    centers = [row[0] for row in rows]
    widths = [row[1] for row in rows] if all(len(row) >= 2 for row in rows) else None
    # Widths of 0 in all lines are none, as in headers
    stated_widths = widths if widths is not None and any(widths) else []
    for kind, values in (("a wavelength", centers), ("a positive width", stated_widths)):
        for (number, _), value in zip(lines, values, strict=False):
            if not (np.isfinite(value) and value > 0):
                fail(f"{path}, line {number}", kind, f"{value:g}")
    return to_nanometers(centers, widths, unit, path)


def _lines(path: Path) -> list[tuple[int, str]]:
    """Number and text of every line that holds something."""
    text = decode_text(read_text_file(path, "a file of wavelengths", LARGEST_SIDECAR))
    if "\0" in text:
        fail(path, "a text file of wavelengths", "a file of another kind")
    stripped = [(number, line.split("#")[0].strip()) for number, line in enumerate(text.splitlines(), start=1)]
    return [(number, line) for number, line in stripped if line]


def _numbers(path: Path, lines: Sequence[tuple[int, str]]) -> list[list[float]]:
    """The numbers of each line, a comma being taken for what it separates."""
    texts = [line for _, line in lines]
    comma_is_decimal = False
    unclear = any("," in line for line in texts) and not any(
        "." in line or re.search(r",\s+\d", line) for line in texts
    )
    if unclear:
        if any(re.search(r"[;\s]", line) for line in texts):
            comma_is_decimal = True  # something else separates: "418,24; 6,99"
        else:
            parts = [line.split(",") for line in texts]
            if any(len(part) > 3 for part in parts):
                fail(path, "a wavelength and perhaps a width in each line", repr(texts[0][:40]))
            second = [part[1].strip() for part in parts if len(part) == 2]
            if len(second) == len(parts) and all(text.isdigit() for text in second):
                values = np.array([int(text) for text in second])
                as_widths = values.min() > 0 and values.max() <= 3 * values.min() and values.max() <= 100
                counts = ([str(start + place) for place in range(len(parts))] for start in (0, 1))
                is_numbered = len(parts) > 1 and [part[0].strip() for part in parts] in counts and in_range(values)
                comma_is_decimal = not is_numbered
                as_micrometers = is_numbered and in_range([1e3 * float(text.replace(",", ".")) for text in texts])
                if as_widths or as_micrometers:
                    place = "before the width" if as_widths else "after the number"
                    wanted = f"a decimal point, or a semicolon {place}"
                    fail(f"{path}, line {lines[0][0]}", wanted, f"{texts[0]!r}, which may be either")
    rows = []
    for number, line in lines:
        fields = re.split(r"[;\s]+", line) if comma_is_decimal else re.split(r"[,;\s]+", line)
        try:
            rows.append([float(field.replace(",", ".")) for field in fields if field])
        except ValueError:
            fail(f"{path}, line {number}", "a wavelength, and perhaps a width, in nm or µm", repr(line[:40]))
    return rows


def in_range(centers: Sequence[float] | np.ndarray) -> bool:
    """Whether band centers can be wavelengths of reflectance in nm."""
    return SHORTEST <= min(centers) and max(centers) <= LONGEST


def check_same_bands(
    where: object,
    num_bands: int,
    wavelengths: Sequence[float] | np.ndarray | None,
    expected_num_bands: int,
    expected_wavelengths: Sequence[float] | np.ndarray | None,
    first: object,
) -> None:
    """Raises ProductError where the source `where` has other bands than the source `first`."""
    like = f"as in {first}"
    if num_bands != expected_num_bands:
        fail(where, f"{expected_num_bands} bands {like}", f"{num_bands}")
    if (wavelengths is None) != (expected_wavelengths is None):
        states = ("no wavelengths", "wavelengths")
        has = wavelengths is not None
        fail(where, f"{states[not has]} {like}", states[has])
    if wavelengths is not None and expected_wavelengths is not None:
        given, expected = np.asarray(wavelengths), np.asarray(expected_wavelengths)
        worst = int(np.abs(given - expected).argmax())
        if abs(given[worst] - expected[worst]) > WAVELENGTH_TOLERANCE:
            fail(where, f"{expected[worst]:g} nm in band {worst} {like}", f"{given[worst]:g} nm")

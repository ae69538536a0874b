"""Labels as vector files - points and polygons with a class - for the pixels of an image.

`read_features` reads a file and numbers its classes, `rasterize_features` puts them on the pixels of one image. A
polygon labels the pixels whose centers lie in it, as in GDAL (gdal.org/programs/gdal_rasterize), and a point labels
the pixel it lies in. A polygon that holds no center, which GDAL drops, labels the pixel of a point inside it. A pixel
that two classes claim has no label.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.features import rasterize
from rasterio.warp import transform as transform_coordinates

from datasets_loading.raster_file import ProductError, decode_text, fail, read_text_file

_TABLE_ENDINGS = (".csv", ".tsv", ".txt")
VECTOR_ENDINGS = (".gpkg", ".geojson", ".json", ".shp", *_TABLE_ENDINGS)
"""Endings of the files that are read, in lower case."""

OTHER_ENDINGS = (".xlsx", ".xls", ".ods", ".kml", ".kmz", ".gpx", ".gml", ".fgb", ".parquet", ".dbf", ".shx", ".prj")
"""Endings of tables and vector files that are not read: they have to be saved in another format first."""

MAX_CLASSES = 255
"""Labels are uint8 in the scenes, where one value means unlabelled."""

_DEGREES = (("lon", "lat"), ("longitude", "latitude"), ("long", "lat"), ("lng", "lat"))
_METERS = (
    ("easting", "northing"),
    ("x", "y"),
    ("xcoord", "ycoord"),
    ("point_x", "point_y"),
    ("rechtswert", "hochwert"),
)
_COORDINATES = (*_DEGREES, *_METERS, ("wkt",), ("wkt_geom",), ("geometry",))
# As pandas reads them, and what a German Excel writes
_MISSING = "#N/A #NA #NV -NaN -nan <NA> <Null> N/A NA NULL NaN None n/a nan null".split()
_POLYGON, _FIRST_COLLECTION = 3, 4
_NO_CLASS = 2**16 - 1
_LARGEST_SMALL_POLYGON = 2**22

_Read = tuple[np.ndarray, list[str | None], CRS | None, list[str]]
"""Shapely geometries or None, (features,); class of each; coordinate reference system; notes."""


@dataclass(eq=False)
class VectorFeatures:
    """Points and polygons of a vector file, each with a class.

    Attributes:
        where: what messages call the file.
        geometries: points and polygons, shapely objects (parts,); a geometry of several parts is several of them.
        feature_of_part: the feature that each part belongs to, int64 (parts,).
        classes: name of each feature's class, str (features,).
        class_names: the classes of the whole file: whole numbers by value, other names in alphabetical order.
        crs: coordinate reference system; None where coordinates are those of the image.
        notes: what was assumed and left out, a phrase each.
    """

    where: str
    geometries: np.ndarray
    feature_of_part: np.ndarray
    classes: np.ndarray
    class_names: tuple[str, ...]
    crs: CRS | None
    notes: list[str]


@dataclass(eq=False)
class VectorLabels:
    """Labels of the pixels of an image.

    Attributes:
        values: int64 (height, width), -1 = none, otherwise the number of the class, from 1.
        class_names: class k of `values` is `class_names[k - 1]`.
        counts: pixels of each class by its name.
        num_features: points and polygons of the file that have a class; one of several parts counts once.
        num_outside: those of them that lie wholly outside the image.
        num_ambiguous: pixels that two classes claim, which have none.
        description: the rule and the counts in two plain lines, for people.
    """

    values: np.ndarray
    class_names: tuple[str, ...]
    counts: dict[str, int]
    num_features: int
    num_outside: int
    num_ambiguous: int
    description: str


def read_features(path: str | Path, class_column: str | None = None) -> VectorFeatures:
    """Reads points and polygons with their classes.

    Args:
        path: GeoPackage, GeoJSON, shapefile or CSV file, whose columns are separated by commas, semicolons or tabs.
            A CSV file has a header and the columns lon and lat, or longitude and latitude (WGS 84), or x and y,
            easting and northing, or wkt (coordinates of the image).
        class_column: column of the classes; by default the only one that holds text or whole numbers.

    Raises:
        ProductError: the file is missing, damaged, of another kind or without a coordinate reference system; it has no
            class column, or several; or it holds lines, fractions as classes, more than 255 classes, or no features.
    """
    path, where = Path(path), str(path)
    if path.suffix.lower() not in VECTOR_ENDINGS:
        advice = "save tables as CSV (UTF-8), and others as GeoPackage, in a GIS"
        fail(where, f"a vector file ({', '.join(VECTOR_ENDINGS)})", f"the ending {path.suffix!r}: {advice}")
    if not path.is_file():
        fail(where, "labels", "no such file")
    shapely = _optional("shapely", where)
    read = _read_csv if path.suffix.lower() in _TABLE_ENDINGS else _read_with_gdal
    geometries, classes, crs, notes = read(path, class_column, where)
    unnamed = np.array([name is None for name in classes], dtype=bool)
    empty = (shapely.is_missing(geometries) | shapely.is_empty(geometries)) & ~unnamed
    for lacking, left_out in (("class", unnamed), ("geometry", empty)):
        if left_out.any():
            notes.append(f"features left out for lack of a {lacking}: {left_out.sum()}")
    kept = np.flatnonzero(~empty & ~unnamed)
    if not len(kept):
        fail(where, "points or polygons with a class", "; ".join(notes[1:]) or "none")
    names = np.array([classes[index] for index in kept], dtype=object)
    parts, feature_of_part = geometries[kept], np.arange(len(kept))
    # a collection may hold collections
    while (shapely.get_type_id(parts) >= _FIRST_COLLECTION).any():
        parts, part_of = shapely.get_parts(parts, return_index=True)
        parts, feature_of_part = parts[~shapely.is_empty(parts)], feature_of_part[part_of[~shapely.is_empty(parts)]]
    lines = np.flatnonzero((shapely.get_type_id(parts) > 0) & (shapely.get_type_id(parts) < _POLYGON))
    if len(lines):
        first = f"the first in feature {kept[feature_of_part[lines[0]]] + 1}"
        fail(where, "points and polygons", f"{len(lines)} of the type {parts[lines[0]].geom_type}, {first}")
    coordinates, part_of = shapely.get_coordinates(parts, return_index=True)
    limits = (360, 90) if crs is not None and crs.is_geographic else (np.finfo(float).max,) * 2
    wrong = np.flatnonzero(~(np.abs(coordinates) <= limits).all(axis=1))
    if len(wrong):
        place = "{:.10g}, {:.10g}".format(*coordinates[wrong[0]])
        number = kept[feature_of_part[part_of[wrong[0]]]] + 1
        fail(where, f"coordinates in {crs}, which the file states or implies", f"{place} in feature {number}")
    whole = all(re.fullmatch(r"-?[0-9]+", name) for name in names)
    class_names = tuple(sorted(set(names), key=int if whole else str))
    in_one_case = Counter(name.casefold() for name in class_names)
    twins = [name for name in class_names if in_one_case[name.casefold()] > 1]
    if twins:
        notes.append(f"names that differ only in case are classes of their own: {', '.join(twins)}")
    if len(class_names) > MAX_CLASSES:
        fail(where, f"at most {MAX_CLASSES} classes", f"{len(class_names)} ({notes[0]})")
    return VectorFeatures(where, parts, feature_of_part, names, class_names, crs, notes)


def rasterize_features(
    features: VectorFeatures,
    crs: CRS | None,
    transform: Affine | None,
    shape: tuple[int, int],
    class_names: Sequence[str] | None = None,
    *,
    allow_outside: bool = False,
) -> VectorLabels:
    """Labels of one image from the features of a file, whose classes have the same numbers in all images.

    Args:
        crs, transform, shape: coordinate reference system of the image, from (column, row) to its coordinates, and
            (height, width).
        class_names: the classes in their order; by default those of the file.
        allow_outside: whether all features may lie outside the image, such as those of other images.

    Raises:
        ProductError: the image is not georeferenced, a class is not among `class_names`, a polygon goes beyond what
            the image's coordinate reference system covers, or all features lie outside the image.
    """
    shapely, where = _optional("shapely", features.where), features.where
    if crs is None or transform is None or transform.is_identity or transform.is_degenerate:
        advice = "none: give the image's pixels their labels in a raster of the same size"
        fail(where, "a coordinate reference system and a transform of the image", advice)
    number_of_feature, names = _numbers(features, class_names)
    numbers = number_of_feature[features.feature_of_part]
    parts = _in_pixels(shapely, features, crs, transform)
    polygon = shapely.get_type_id(parts) == _POLYGON
    # a point of each part, and the pixel that it lies in
    spots = np.floor([shapely.get_x(spot := shapely.point_on_surface(parts)), shapely.get_y(spot)]).T
    hit = ((spots >= 0) & (spots < shape[::-1])).all(axis=1)
    # a polygon that touches the border of the image from outside is outside
    frame = shapely.box(1e-6, 1e-6, shape[1] - 1e-6, shape[0] - 1e-6)
    inside = np.where(polygon, shapely.intersects(parts, frame), hit)
    small = polygon & inside
    small[small] = _hold_no_center(shapely, parts[small], spots[small])
    num_features = len(features.classes)
    num_outside = num_features - len(np.unique(features.feature_of_part[inside]))
    if num_outside == num_features and not allow_outside:
        _fail_outside(shapely, features, crs, transform, shape)

    # a pixel has one class where burning from the first class to the last gives the same as from the last to the first
    highest, lowest = np.zeros(shape, dtype=np.uint16), np.full(shape, _NO_CLASS, dtype=np.uint16)
    burnt = np.flatnonzero(polygon & inside & ~small)
    burnt = burnt[np.argsort(numbers[burnt])]
    if len(burnt):
        rasterize([(parts[index], int(numbers[index])) for index in burnt], out=highest)
        rasterize([(parts[index], int(numbers[index])) for index in burnt[::-1]], out=lowest)
    single = hit & (small | ~polygon)
    columns, rows = spots[single].astype(np.int64).T
    np.maximum.at(highest, (rows, columns), numbers[single])
    np.minimum.at(lowest, (rows, columns), numbers[single])
    labelled, agreed = highest > 0, highest == lowest
    values = np.where(agreed, highest.astype(np.int64), -1)
    pixels = np.bincount(values[agreed], minlength=len(names) + 1)[1:]
    counts = {name: int(count) for name, count in zip(names, pixels, strict=True)}
    num_ambiguous = int((labelled & ~agreed).sum())
    told = {
        "features outside the image": num_outside,
        "pixels without a label, as two classes claim them": num_ambiguous,
        "polygons that hold no pixel center and label the pixel of a point inside them": int((single & small).sum()),
    }
    notes = [*features.notes, *(f"{what}: {count}" for what, count in told.items() if count)]
    description = (
        f"{num_features} features of {where}: a polygon labels the pixels whose centers lie in it, a point the pixel "
        f"it lies in. Pixels: {', '.join(f'{name} {count}' for name, count in counts.items())}.\n{'; '.join(notes)}."
    )
    return VectorLabels(values, names, counts, num_features, num_outside, num_ambiguous, description)


def _optional(module: str, where: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError:
        raise ProductError(f"{where}: vector labels need {module}: pip install pyogrio shapely") from None


def _read_with_gdal(path: Path, class_column: str | None, where: str) -> _Read:
    shapely, pyogrio = _optional("shapely", where), _optional("pyogrio", where)
    if path.suffix.lower() == ".shp":
        # GDAL reads the features that are missing at the end of a file as ones without geometry
        with path.open("rb") as file:
            code, *_, half_size = np.frombuffer(file.read(28).ljust(28), dtype=">i4")
        if code == 9994 and 2 * int(half_size) > path.stat().st_size:
            fail(where, f"a whole shapefile of {2 * int(half_size)} bytes", f"{path.stat().st_size}")
    try:
        # GDAL warns of features that it reads without geometry, which are counted
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
            if len(layers) != 1:
                fail(where, "one layer of points or polygons", ", ".join(layers) or "none")
            info = pyogrio.read_info(path, layer=layers[0])
            if not info["features"]:
                fail(where, "points or polygons with a class", "none")
            named = {"O": "text", "i": "integer", "b": "integer", "f": "number"}
            kinds = {
                # GDAL's lists are no types of numpy's
                str(name): "list" if kind.startswith("list") else named.get(np.dtype(kind).kind, kind)
                for name, kind in zip(info["fields"], info["dtypes"], strict=True)
            }
            column, note = _choose_column(kinds, class_column, where)
            raw = import_module("pyogrio.raw")
            meta, _, stored, (values,) = raw.read(path, layer=layers[0], columns=[column])
            if values.dtype.kind == "O" and meta["encoding"] == "ISO-8859-1":
                # a shapefile without its .cpg file, which says what it is encoded in
                texts = [decode_text(text.encode("latin-1")) if isinstance(text, str) else text for text in values]
                values = np.array([*texts, None], dtype=object)[:-1]
        geometries = shapely.from_wkb(stored)
    except ProductError:
        raise
    # pyogrio raises RuntimeError, UnicodeDecodeError and more, shapely an Exception of its own
    except Exception as error:
        # what follows is advice for users of pyogrio
        fail(where, "a whole, readable vector file", str(error).replace(str(path), path.name).split(";")[0])
    missing = "none: put the .prj file beside the .shp file, or assign one in a GIS and save the file again"
    if meta["crs"] is None or "Undefined" in meta["crs"]:
        fail(where, "a coordinate reference system", missing)
    try:
        return geometries, _class_texts(values, column, where), CRS.from_user_input(meta["crs"]), [note]
    except CRSError as error:
        fail(where, "a coordinate reference system", f"one that cannot be read ({error})")


def _read_csv(path: Path, class_column: str | None, where: str) -> _Read:
    shapely = _optional("shapely", where)
    header, lines, delimiter = _csv_lines(path, where)
    lower = [name.lower() for name in header]
    found = [names for names in _COORDINATES if set(names) <= set(lower)]
    if len(found) != 1 or len(set(lower)) < len(lower):
        ways = "lon and lat, longitude and latitude, easting and northing, x and y, or wkt"
        fail(where, f"columns with different names, for the place either {ways}", ", ".join(header))
    places = [lower.index(name) for name in found[0]]
    table = {
        name: ["" if line[n] in _MISSING else line[n] for _, line in lines]
        for n, name in enumerate(header)
        if n not in places
    }
    point = r"\." if delimiter == "," else "[.,]"
    kinds = {name: _kind_of_texts(texts, point) for name, texts in table.items()}
    column, note = _choose_column(kinds, class_column, where)
    values = np.array(table[column], dtype=object)
    if kinds[column] == "number":
        values = np.array([float(text.replace(",", ".") or "nan") for text in table[column]])
    in_degrees = found[0] in _DEGREES
    geometries = np.full(len(lines), None, dtype=object)
    for index, (number, line) in enumerate(lines):
        cells = [line[place] for place in places]
        try:
            if len(cells) == 1:
                geometries[index] = shapely.from_wkt(cells[0]) if cells[0] else None
            elif any(cells):
                # a comma that does not separate columns is a decimal one
                x, y = (float(cell if delimiter == "," else cell.replace(",", ".")) for cell in cells)
                if not (np.isfinite([x, y]).all() and (not in_degrees or (abs(x) <= 180 and abs(y) <= 90))):
                    raise ValueError("a place that cannot be")
                geometries[index] = shapely.Point(x, y)
        # shapely raises an Exception of its own
        except Exception:
            kind = "a longitude and a latitude in degrees" if in_degrees else f"a value of {' and '.join(found[0])}"
            fail(f"{where}, line {number}", kind, ", ".join(cells)[:80])
    if not in_degrees:
        given = " and ".join(header[place] for place in places)
        note += f"; {given} were taken to be in the image's coordinate reference system"
    return geometries, _class_texts(values, column, where), CRS.from_epsg(4326) if in_degrees else None, [note]


def _csv_lines(path: Path, where: str) -> tuple[list[str], list[tuple[int, list[str]]], str]:
    """Header of a CSV file, its other lines with their numbers, and the character that separates columns."""
    text = decode_text(read_text_file(path, "a CSV file"))
    if "\0" in text:
        fail(where, "text in UTF-8 or Latin-1", "something else")
    # a first line for Excel
    stated = re.match(r"sep=(.)\s*\n", text, re.I)
    delimiter = stated[1] if stated else max(",;\t", key=text.lstrip().split("\n", 1)[0].count)
    # a polygon may be longer than the 131072 characters that are allowed by default
    limit = csv.field_size_limit(len(text) + 1)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    lines: list[tuple[int, list[str]]] = []
    try:
        for row in reader:
            if any(cell.strip() for cell in row) and not (stated and reader.line_num == 1):
                lines.append((reader.line_num, [cell.strip() for cell in row]))
            if lines and len(row) not in (0, len(lines[0][1])):
                fail(f"{where}, line {reader.line_num}", f"{len(lines[0][1])} values as in the header", f"{len(row)}")
    except csv.Error as error:
        fail(f"{where}, line {reader.line_num}", "values with separators", str(error))
    finally:
        csv.field_size_limit(limit)
    if len(lines) < 2:
        fail(where, "a header, and lines with coordinates and a class", f"{len(lines)} lines")
    # Excel saves empty columns that were once touched
    filled = [n for n in range(len(lines[0][1])) if any(row[n] for _, row in lines)]
    lines = [(number, [row[n] for n in filled]) for number, row in lines]
    return lines[0][1], lines[1:], delimiter


def _kind_of_texts(texts: Sequence[str], point: str) -> str:
    """What a column of a CSV file holds. Numbers with leading zeros are codes, which are text."""
    filled = [text for text in texts if text]
    whole = "-?(0|[1-9][0-9]*)"
    for kind, pattern in (("integer", whole), ("number", f"{whole}({point}[0-9]*)?")):
        if filled and all(re.fullmatch(pattern, text) for text in filled):
            return kind
    return "text" if filled else "empty"


def _choose_column(kinds: Mapping[str, str], class_column: str | None, where: str) -> tuple[str, str]:
    """Name of the class column, and a note on it. `kinds` states what each column of the file holds."""
    columns = ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or "no columns"
    if class_column is not None:
        if class_column not in kinds:
            fail(where, f"the class column {class_column}", columns)
        return class_column, f"Classes are those of the column {class_column}"
    candidates = [name for name, kind in kinds.items() if kind in ("text", "integer")]
    if len(candidates) != 1:
        hint = ": the class column must be named" if kinds else ""
        fail(where, "one column of text or whole numbers, which are the classes", columns + hint)
    return candidates[0], f"Classes are those of the column {candidates[0]}, the only one of text or whole numbers"


def _class_texts(values: np.ndarray, column: str, where: str) -> list[str | None]:
    """Name of the class of each feature, None where it has none. Raises ProductError for fractions and dates."""
    expected = f"whole numbers or text as classes in the column {column}"
    if values.dtype.kind == "f":
        fractions = values[np.isfinite(values) & (values != np.rint(values))]
        if len(fractions):
            fail(where, expected, f"{fractions[0]:g}")
        return [str(int(value)) if np.isfinite(value) else None for value in values]
    if values.dtype.kind == "b":
        return ["true" if value else "false" for value in values]
    if values.dtype.kind in "iu":
        return [str(int(value)) for value in values]
    others = [value for value in values if not isinstance(value, str | None)]
    if others:
        fail(where, expected, type(others[0]).__name__)
    # one name for "ä" as one sign or two, and whatever blanks are in it
    texts = [" ".join(unicodedata.normalize("NFC", value or "").split()) for value in values]
    return [None if text in ("", *_MISSING) else text for text in texts]


def _numbers(features: VectorFeatures, class_names: Sequence[str] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Number of the class of each feature from 1, int64 (features,), and the names of the classes."""
    names = features.class_names if class_names is None else tuple(str(name) for name in class_names)
    number_of = {name: number for number, name in enumerate(names, start=1)}
    if len(number_of) < len(names) or len(names) > MAX_CLASSES:
        fail(features.where, f"at most {MAX_CLASSES} different class names", f"{len(names)}: {', '.join(names[:8])}")
    unknown = Counter(name for name in features.classes if name not in number_of)
    if unknown:
        listed = ", ".join(f"{name} ({count} features)" for name, count in sorted(unknown.items()))
        fail(features.where, f"classes among {', '.join(names)}", listed)
    return np.array([number_of[name] for name in features.classes], dtype=np.int64), names


def _in_pixels(shapely: ModuleType, features: VectorFeatures, crs: CRS, transform: Affine) -> np.ndarray:
    """The parts in (column, row) of the image, shapely objects (parts,); far away where the image's CRS ends."""
    parts = features.geometries
    polygon = shapely.get_type_id(parts) == _POLYGON
    if features.crs not in (None, crs) and polygon.any():
        # an edge that is straight in the file's coordinates is a curve in those of the image
        left, bottom, right, top = shapely.bounds(parts[polygon]).T
        longest = np.maximum(np.hypot(right - left, top - bottom), 1e-9) / 64
        parts = parts.copy()
        parts[polygon] = shapely.segmentize(parts[polygon], longest)
    coordinates, part_of = shapely.get_coordinates(parts, return_index=True)
    coordinates = _reproject(coordinates, features.crs, crs)
    lost = ~np.isfinite(coordinates).all(axis=1)
    partly = np.intersect1d(part_of[lost], part_of[~lost])
    if len(partly):
        name = features.classes[features.feature_of_part[partly[0]]]
        fail(features.where, f"polygons within what {crs} covers", f"{len(partly)} that go beyond, of {name}")
    pixels = np.where(lost[:, None], -1e9, _to_pixels(coordinates, transform))
    return shapely.set_coordinates(parts.copy(), pixels)


def _reproject(coordinates: np.ndarray, source: CRS | None, target: CRS) -> np.ndarray:
    """Coordinates (points, 2) in another reference system, float64; NaN or infinite where it does not cover them."""
    if source in (None, target) or not len(coordinates):
        return coordinates
    try:
        return np.array(transform_coordinates(source, target, *coordinates.T)).T
    # one point that cannot be transformed fails them all; the error is none of rasterio's public ones
    except Exception:
        if len(coordinates) == 1:
            return np.full_like(coordinates, np.nan)
        halves = np.array_split(coordinates, 2)
        return np.concatenate([_reproject(half, source, target) for half in halves])


def _to_pixels(coordinates: np.ndarray, transform: Affine) -> np.ndarray:
    """(column, row) of coordinates, float64 (points, 2). Taking the origin off first keeps all digits."""
    x, y = (coordinates - (transform.c, transform.f)).T
    with np.errstate(invalid="ignore"):  # infinite where the image's coordinate system has none for them
        columns, rows = transform.e * x - transform.b * y, transform.a * y - transform.d * x
    return np.stack([columns, rows], axis=1) / transform.determinant


def _hold_no_center(shapely: ModuleType, polygons: np.ndarray, spots: np.ndarray) -> np.ndarray:
    """Which polygons hold no center of a pixel, bool; `spots` are pixels that each shares, (column, row)."""
    left, top, right, bottom = shapely.bounds(polygons).T
    small = (np.ceil(left - 0.5) > np.floor(right - 0.5)) | (np.ceil(top - 0.5) > np.floor(bottom - 0.5))
    for index in np.flatnonzero(~small & ~shapely.contains_xy(polygons, *(spots + 0.5).T)):
        column, row = int(np.floor(left[index])), int(np.floor(top[index]))
        size = int(np.ceil(bottom[index])) - row, int(np.ceil(right[index])) - column
        # such a wide one is not small, whatever it holds
        if size[0] * size[1] <= _LARGEST_SMALL_POLYGON:
            window = Affine.translation(column, row)
            small[index] = not rasterize([polygons[index]], out_shape=size, transform=window, dtype=np.uint8).any()
    return small


def _fail_outside(
    shapely: ModuleType, features: VectorFeatures, crs: CRS, transform: Affine, shape: tuple[int, int]
) -> None:
    """Raises ProductError with the bounds of the features and the image, and a reason that explains the distance."""
    height, width = shape
    given = shapely.get_coordinates(features.geometries)
    image = np.array([transform @ corner for corner in ((0, 0), (width, 0), (0, height), (width, height))])
    moved = _reproject(given, features.crs, crs)
    bounds = [
        "x {:.8g} to {:.8g}, y {:.8g} to {:.8g}".format(*np.stack([points.min(axis=0), points.max(axis=0)]).T.flat)
        for points in (image, moved[np.isfinite(moved).all(axis=1)])
        if len(points)
    ]
    hint = ""
    for points, source, reason in (
        (given, CRS.from_epsg(4326), "; they look like longitudes and latitudes"),
        (given[:, ::-1], CRS.from_epsg(4326), "; they look like latitudes and longitudes, which are swapped"),
        (given[:, ::-1], features.crs, "; x and y look swapped"),
    ):
        if source is not None and source.is_geographic:
            points = points[(np.abs(points) <= (360, 90)).all(axis=1)]
        pixels = _to_pixels(_reproject(points, source, crs), transform)
        if ((pixels >= 0) & (pixels < (width, height))).all(axis=1).any():
            hint = reason
    features_at = bounds[1] if len(bounds) > 1 else f"none that {crs} covers"
    fail(features.where, f"features in the image, which covers {bounds[0]} ({crs})", f"{features_at}{hint}")

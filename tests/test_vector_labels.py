"""Labels from vector files on the pixels of an image, checked against pixels that are worked out in another way."""

import json
import os
import sqlite3
import sys
from contextlib import closing

import numpy as np
import pytest
import shapely
from affine import Affine
from pyogrio import raw
from rasterio.crs import CRS
from rasterio.warp import transform as transform_coordinates

from datasets_loading.raster_file import ProductError
from datasets_loading.vector_labels import rasterize_features, read_features

UTM, DEGREES = CRS.from_epsg(32633), CRS.from_epsg(4326)
GRID = Affine(30, 0, 500_100, 0, -30, 5_400_000)
ROTATED = Affine.translation(500_100, 5_400_000) @ Affine.rotation(33) @ Affine.scale(30, -20)
SHAPE = (12, 15)
IMAGE = {"crs": UTM, "transform": GRID, "shape": SHAPE}


def write(path, geometries, classes, crs="EPSG:32633", column="crop", **columns):
    """A vector file with a class column and others."""
    columns = {column: classes, **columns}
    arrays = [np.array(v, dtype=object if isinstance([*v, ""][0], str | None) else None) for v in columns.values()]
    geometries = np.array([*geometries, None], dtype=object)[:-1]
    types = {geometry.geom_type for geometry in geometries if geometry is not None}
    kind = types.pop() if len(types) == 1 else "Unknown"
    raw.write(path, shapely.to_wkb(geometries), arrays, list(columns), crs=crs, geometry_type=kind)
    return path


def write_json(path, *features, **others):
    """A GeoJSON file of (geometry as JSON, properties)."""
    features = [{"type": "Feature", "geometry": g, "properties": p} for g, p in features]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features, **others}))
    return path


def on_ground(geometry, transform=GRID):
    """A geometry given in (column, row) of an image, in its coordinates."""
    return shapely.transform(geometry, lambda xy: np.array([transform @ tuple(pair) for pair in xy]).reshape(-1, 2))


def point(column, row, transform=GRID):
    return on_ground(shapely.Point(column, row), transform)


def box(left, top, right, bottom, transform=GRID):
    return on_ground(shapely.box(left, top, right, bottom), transform)


def in_degrees(geometry):
    return shapely.transform(geometry, lambda xy: np.transpose(transform_coordinates(UTM, DEGREES, *xy.T)))


def mask(rows, columns, shape=SHAPE):
    values = np.full(shape, -1)
    values[rows, columns] = 1
    return values


def rasterize_labels(path, class_column=None, class_names=None, **image):
    return rasterize_features(read_features(path, class_column), **image, class_names=class_names)


def refusal(path, *words, read=rasterize_labels, **arguments):
    """The message with which labels are refused: one line that names the file."""
    with pytest.raises(ProductError) as error:
        read(path, **(IMAGE if read is rasterize_labels else {}) | arguments)
    message = str(error.value)
    assert "\n" not in message and path.name in message
    for word in words:
        assert word in message, message
    return message


@pytest.mark.parametrize("ending", [".gpkg", ".geojson", ".shp"])
@pytest.mark.parametrize("transform", [GRID, ROTATED, Affine(30, 0, 500_100, 0, 30, 5_400_000)])
def test_points_in_degrees_fall_in_the_pixels_of_a_utm_image(tmp_path, ending, transform):
    random = np.random.default_rng(0)
    pixels = random.permutation(SHAPE[0] * SHAPE[1])[:60]
    rows, columns = np.divmod(pixels, SHAPE[1])
    # up to a thousandth of a pixel from its border
    within = random.uniform(0.001, 0.999, (60, 2))
    places = np.array([c + u for c, u in zip(np.stack([columns, rows], 1), within, strict=True)])
    classes = [("wheat", "barley", "maize")[pixel % 3] for pixel in pixels]
    points = [in_degrees(point(*place, transform)) for place in places]
    path = write(tmp_path / f"fields{ending}", points, classes, "EPSG:4326")
    labels = rasterize_labels(path, **IMAGE | {"transform": transform})
    assert labels.class_names == ("barley", "maize", "wheat")
    expected = np.full(SHAPE, -1)
    expected[rows, columns] = [labels.class_names.index(name) + 1 for name in classes]
    assert labels.values.dtype == np.int64 and (labels.values == expected).all()
    assert labels.counts == {name: classes.count(name) for name in labels.class_names}
    assert (labels.num_features, labels.num_outside, labels.num_ambiguous) == (60, 0, 0)


def test_a_point_on_the_central_meridian_lies_where_the_length_of_the_meridian_puts_it(tmp_path):
    # Snyder, Map Projections (1987), equation 3-21, for WGS 84
    e2, latitude = 0.00669437999014, np.radians(48.75)
    length = 6378137 * (
        (1 - e2 / 4 - 3 * e2**2 / 64 - 5 * e2**3 / 256) * latitude
        - (3 * e2 / 8 + 3 * e2**2 / 32 + 45 * e2**3 / 1024) * np.sin(2 * latitude)
        + (15 * e2**2 / 256 + 45 * e2**3 / 1024) * np.sin(4 * latitude)
        - 35 * e2**3 / 3072 * np.sin(6 * latitude)
    )
    grid = Affine(1, 0, 500_000 - 4.5, 0, -1, 0.9996 * length + 7.5)
    path = write_json(tmp_path / "a.json", ({"type": "Point", "coordinates": [15, 48.75]}, {"crop": "oak"}))
    labels = rasterize_labels(path, **IMAGE | {"transform": grid})
    assert (labels.values == mask(7, 4)).all()


def test_points_on_the_border_of_pixels_belong_to_the_next_one(tmp_path):
    corners = [(0, 0), (3, 2), (15, 5), (5, 12), (14, 11)]
    path = write(tmp_path / "a.gpkg", [point(*corner) for corner in corners], ["a"] * 5)
    labels = rasterize_labels(path, **IMAGE)
    assert (labels.values == mask([0, 2, 11], [0, 3, 14])).all() and labels.num_outside == 2


@pytest.mark.parametrize("transform", [GRID, ROTATED])
def test_polygons_label_the_pixels_whose_centers_lie_in_them(tmp_path, transform):
    hole = shapely.Polygon(
        [(1.4, 1.6), (6.6, 1.6), (6.6, 6.4), (1.4, 6.4)], [[(2.6, 2.4), (4.6, 2.4), (4.6, 4.6), (2.6, 4.6)]]
    )
    triangle = shapely.Polygon([(8, 0), (13.2, 0), (8, 5.2)])
    path = write(tmp_path / "a.gpkg", [on_ground(g, transform) for g in (hole, triangle)], ["a", "b"])
    picture = """
        ........22222..
        ........2222...
        .11..11.222....
        .11..11.22.....
        .11..11.2......
        .111111........
        ...............
        ...............
        ...............
        ...............
        ...............
        ...............""".split()
    expected = [[-1 if letter == "." else int(letter) for letter in line] for line in picture]
    assert rasterize_labels(path, **IMAGE | {"transform": transform}).values.tolist() == expected


def test_a_wide_polygon_keeps_its_straight_edges_of_degrees(tmp_path):
    grid, shape = Affine(100, 0, 640_000, 0, -100, 6_700_000), (400, 400)
    x, y = (np.stack(np.meshgrid(np.arange(400) + 0.5, np.arange(400) + 0.5), 0) * 100).reshape(2, -1)
    longitudes, latitudes = np.array(transform_coordinates(UTM, DEGREES, 640_000 + x, 6_700_000 - y))
    left, right = np.quantile(longitudes, [0.2, 0.8])
    bottom, top = np.quantile(latitudes, [0.2, 0.8])
    expected = (longitudes > left) & (longitudes < right) & (latitudes > bottom) & (latitudes < top)
    path = write(tmp_path / "a.geojson", [shapely.box(left, bottom, right, top)], ["a"], "EPSG:4326")
    # GeoJSON keeps seven decimals, which is a centimeter
    labels = rasterize_labels(path, crs=UTM, transform=grid, shape=shape)
    assert ((labels.values == 1).ravel() != expected).sum() <= 2


@pytest.mark.parametrize("code", [3035, 25832, 3857])
@pytest.mark.parametrize("ending", [".gpkg", ".shp"])
def test_files_in_other_coordinate_reference_systems_are_reprojected(tmp_path, code, ending):
    def reproject(geometry):
        target = CRS.from_epsg(code)
        return shapely.transform(geometry, lambda xy: np.transpose(transform_coordinates(UTM, target, *xy.T)))

    fields = [reproject(box(1.2, 2.3, 4.7, 5.8)), reproject(box(8.1, 8.1, 12.9, 10.9))]
    path = write(tmp_path / f"a{ending}", fields, ["a", "b"], f"EPSG:{code}")
    expected = mask(slice(2, 6), slice(1, 5)).clip(-1, 1)
    expected[8:11, 8:13] = 2
    assert (rasterize_labels(path, **IMAGE).values == expected).all()


def test_pixels_that_two_classes_claim_have_none(tmp_path):
    fields = [box(0, 0, 4, 4), box(2, 0, 6, 4), box(5, 0, 8, 4), point(0.5, 0.5), point(0.6, 0.6), point(10.5, 10.5)]
    classes = ["a", "b", "b", "a", "b", "c"]
    for order in (slice(None), slice(None, None, -1)):
        labels = rasterize_labels(write(tmp_path / "a.gpkg", fields[order], classes[order]), **IMAGE)
        expected = np.full(SHAPE, -1)
        expected[:4, :2], expected[:4, 4:8], expected[10, 10], expected[0, 0] = 1, 2, 3, -1
        assert (labels.values == expected).all()
        assert labels.num_ambiguous == 4 * 2 + 1 and labels.counts == {"a": 7, "b": 16, "c": 1}
        assert "pixels without a label, as two classes claim them: 9" in labels.description
        (tmp_path / "a.gpkg").unlink()


def test_polygons_that_share_a_border_leave_no_pixel_between_them(tmp_path):
    # the border runs through centers of pixels
    fields = [box(0, 0, 7.5, 12), box(7.5, 0, 15, 12)]
    labels = rasterize_labels(write(tmp_path / "a.gpkg", fields, ["a", "b"]), **IMAGE)
    assert labels.num_ambiguous == 0 and sum(labels.counts.values()) == 12 * 15


def test_features_outside_are_counted(tmp_path):
    fields = [point(3.5, 3.5), point(-0.1, 3), point(3, 12.1), box(20, 20, 30, 30), box(-3, 0, 0, 3), box(-3, 0, 2, 3)]
    multi = on_ground(shapely.MultiPoint([(40, 3), (5.5, 6.5)]))
    around = shapely.box(-5, -5, 20, 20).difference(shapely.box(-1, -1, 16, 13))
    path = write(tmp_path / "a.geojson", [*fields, multi, on_ground(around)], ["a"] * 8)
    labels = rasterize_labels(path, **IMAGE)
    assert (labels.num_features, labels.num_outside) == (8, 5)
    expected = mask(slice(0, 3), slice(0, 2))
    expected[3, 3] = expected[6, 5] = 1
    assert (labels.values == expected).all() and "features outside the image: 5" in labels.description


def test_when_all_features_lie_outside_the_reason_is_given(tmp_path):
    path = write(tmp_path / "far.gpkg", [point(100.5, 3)], ["a"])
    message = refusal(path, "x 500100 to 500550, y 5399640 to 5400000 (EPSG:32633)", "503115", "5399910")
    assert "look" not in message
    spot = in_degrees(point(3.5, 3.5))
    swapped = shapely.Point(spot.y, spot.x)
    refusal(write(tmp_path / "swapped.gpkg", [swapped], ["a"], "EPSG:4326"), "swapped")
    degrees = write(tmp_path / "degrees.gpkg", [spot], ["a"])
    refusal(degrees, "they look like longitudes and latitudes")
    (tmp_path / "far.csv").write_text(f"x,y,crop\n{spot.y},{spot.x},a\n")
    refusal(tmp_path / "far.csv", "latitudes and longitudes, which are swapped")
    turned = write(tmp_path / "turned.gpkg", [shapely.Point(5_399_900, 500_200)], ["a"])
    refusal(turned, "x and y look swapped")


@pytest.mark.parametrize("transform", [GRID, ROTATED])
def test_polygons_without_a_pixel_center_label_the_pixel_of_a_point_inside(tmp_path, transform):
    crescent = shapely.Point(8.5, 8.5).buffer(0.4).difference(shapely.Point(8.7, 8.5).buffer(0.4))
    slivers = [shapely.box(2.6, 2.1, 2.9, 2.9), shapely.box(4.55, 0.2, 4.75, 5.1), crescent]
    # beside the image, and over its border with its centers outside
    others = [shapely.box(-0.4, 2, -0.1, 3), shapely.box(-3, 9.4, 0.3, 9.6)]
    path = write(tmp_path / "a.gpkg", [on_ground(g, transform) for g in slivers + others], ["a"] * 5)
    labels = rasterize_labels(path, **IMAGE | {"transform": transform})
    expected = mask([2, 2, 8], [2, 4, 8])
    assert (labels.values == expected).all() and labels.num_outside == 1
    assert "polygons that hold no pixel center and label the pixel of a point inside them: 3" in labels.description


def test_odd_polygons_are_no_error(tmp_path):
    bow = shapely.Polygon([(0, 0), (0, 4), (6, 0), (6, 4)])
    flat = shapely.Polygon([(8.2, 8.2), (9.7, 9.7), (8.2, 8.2)])
    overlapping = shapely.MultiPolygon([shapely.box(10, 0, 13, 2), shapely.box(10, 0, 14, 3)])
    path = write(tmp_path / "a.gpkg", [on_ground(g) for g in (bow, flat, overlapping)], ["a", "b", "c"])
    labels = rasterize_labels(path, **IMAGE)
    assert labels.counts == {"a": 12, "b": 1, "c": 12}


def test_parts_heights_and_collections_are_read(tmp_path):
    parts = on_ground(shapely.MultiPolygon([shapely.box(0, 0, 2, 2), shapely.box(5, 5, 6, 6)]))
    nested = shapely.GeometryCollection(
        [point(9.5, 9.5), shapely.GeometryCollection([on_ground(shapely.MultiPoint([(10.5, 9.5), (11.5, 9.5)]))])]
    )
    high = shapely.force_3d(point(3.5, 0.5), 99.0)
    labels = rasterize_labels(write(tmp_path / "a.gpkg", [parts, nested, high], ["a", "b", "c"]), **IMAGE)
    assert labels.counts == {"a": 5, "b": 3, "c": 1} and labels.num_features == 3
    assert (labels.values[9, 9:12] == 2).all() and labels.values[0, 3] == 3


def test_lines_are_refused(tmp_path):
    line = on_ground(shapely.LineString([(0, 0), (3, 3)]))
    path = write(tmp_path / "a.gpkg", [point(1, 1), line], ["a", "b"])
    refusal(path, "expected points and polygons, got 1 of the type LineString, the first in feature 2")
    mixed = shapely.GeometryCollection([point(1, 1), on_ground(shapely.MultiLineString([[(0, 0), (3, 3)]]))])
    refusal(write(tmp_path / "b.gpkg", [mixed], ["b"]), "LineString", "feature 1")


def test_features_without_class_or_geometry_are_left_out_and_counted(tmp_path):
    fields = [point(1, 1), None, point(3, 3), None, shapely.Polygon(), point(4, 4)]
    path = write(tmp_path / "a.gpkg", fields, ["a", None, "  ", "a", "b", "a"])
    labels = rasterize_labels(path, **IMAGE)
    assert labels.num_features == 2 and labels.counts == {"a": 2}
    assert "features left out for lack of a class: 2" in labels.description
    assert "features left out for lack of a geometry: 2" in labels.description
    path = write(tmp_path / "b.gpkg", fields, [3.0, np.nan, 3.0, 5.0, 3.0, 12.0])
    assert rasterize_labels(path, "crop", **IMAGE).class_names == ("3", "12")
    refusal(write(tmp_path / "c.gpkg", [point(1, 1)], [None]), "got features left out for lack of a class: 1")


def test_whole_numbers_sort_by_value_and_text_by_letters(tmp_path):
    points = [point(n + 0.5, 0.5) for n in range(4)]
    for number, classes in enumerate(([10, 9, 200, -1], ["10", "9", "200", "-1"])):
        labels = rasterize_labels(write(tmp_path / f"{number}.gpkg", points, classes), **IMAGE)
        assert labels.class_names == ("-1", "9", "10", "200")
        assert labels.values[0, :4].tolist() == [3, 2, 4, 1]
    labels = rasterize_labels(write(tmp_path / "text.gpkg", points, ["b", "10", "9", "ä"]), **IMAGE)
    assert labels.class_names == ("10", "9", "b", "ä")


def test_class_names_fix_the_order_and_refuse_others(tmp_path):
    path = write(tmp_path / "a.gpkg", [point(1, 1), point(2, 2), point(3, 3)], ["b", "a", "b"])
    labels = rasterize_labels(path, class_names=["b", "c", "a"], **IMAGE)
    assert labels.class_names == ("b", "c", "a") and labels.counts == {"b": 2, "c": 0, "a": 1}
    assert labels.values[1, 1] == 1 and labels.values[2, 2] == 3
    refusal(path, "expected classes among a, c, got b (2 features)", class_names=["a", "c"])
    refusal(path, "different class names", class_names=["a", "b", "a"])


def test_more_than_255_classes_are_refused(tmp_path):
    points = [point(1, 1)] * 256
    refusal(write(tmp_path / "a.gpkg", points, list(range(256))), "expected at most 255 classes, got 256")
    path = write(tmp_path / "b.gpkg", points[:255], list(range(255)))
    assert len(rasterize_labels(path, **IMAGE).class_names) == 255


def test_the_class_column_must_be_clear(tmp_path):
    points = [point(1, 1), point(2, 2)]
    path = write(tmp_path / "a.gpkg", points, ["a", "b"], id=[1, 2], area=[0.5, 1.5])
    columns = "crop (text), id (integer), area (number)"
    refusal(path, f"got {columns}: the class column must be named")
    refusal(path, "expected the class column Crop", columns, class_column="Crop")
    refusal(path, "whole numbers or text as classes in the column area, got 0.5", class_column="area")
    assert rasterize_labels(path, "id", **IMAGE).class_names == ("1", "2")
    path = write(tmp_path / "b.gpkg", points, ["a", "b"], area=[0.5, 1.5])
    description = rasterize_labels(path, **IMAGE).description
    assert "column crop, the only one of text or whole numbers" in description
    refusal(write(tmp_path / "c.gpkg", points, [0.5, 1.0]), "crop (number)")
    days = np.array(["2024-01-01", "2024-01-02"], dtype="datetime64[ms]")
    path = write(tmp_path / "d.gpkg", points, days)
    refusal(path, "whole numbers or text as classes", class_column="crop")
    raw.write(tmp_path / "e.gpkg", shapely.to_wkb(points), [], [], crs="EPSG:32633", geometry_type="Point")
    refusal(tmp_path / "e.gpkg", "got no columns")


def test_csv_files_of_several_kinds_give_the_same_labels(tmp_path):
    places = [(1.5, 2.5), (7.25, 3.75)]
    metric = [point(*place) for place in places]
    degrees = [in_degrees(place) for place in metric]
    tables = {
        "x,y,crop": [f"{p.x},{p.y}" for p in metric],
        "Easting;Northing;crop": [f"{p.x};{p.y}".replace(".", ",") for p in metric],
        "lon\tlat\tcrop": [f"{p.x:.9f}\t{p.y:.9f}" for p in degrees],
        '"Longitude", "Latitude", "crop"': [f'"{p.x:.9f}", "{p.y:.9f}"' for p in degrees],
        "WKT;crop": [p.wkt for p in metric],
        "wkt,crop": [f'"{p.buffer(1).wkt}"' for p in metric],
    }
    for number, (header, lines) in enumerate(tables.items()):
        separator = next(sign for sign in "\t;," if sign in header)
        text = "\r\n".join([header, f"{lines[0]}{separator}rye", "", f"{lines[1]}{separator}Spätkartoffel", ""])
        for encoding in ("utf-8", "utf-8-sig", "latin-1"):
            path = tmp_path / f"{number}.csv"
            path.write_bytes(text.encode(encoding))
            labels = rasterize_labels(path, **IMAGE)
            assert labels.class_names == ("Spätkartoffel", "rye")
            assert labels.values[2, 1] == 2 and labels.values[3, 7] == 1 and (labels.values > 0).sum() == 2
            told = "taken to be in the image's coordinate reference system" in labels.description
            assert told == (header[1:4].lower() != "lon" and header[:3] != "lon")


def test_csv_classes_may_be_numbers(tmp_path):
    path = tmp_path / "a.csv"
    for texts, names in (
        (["10", "9"], ("9", "10")),
        (["10.0", "9.0"], ("9", "10")),
        (["010", "9"], ("9", "010")),
    ):
        lines = [f"{500_115 + 30 * n},5399900,{text}" for n, text in enumerate(texts)]
        path.write_text("\n".join(["x,y,crop", *lines, "500200,5399900,", ",,9"]))
        labels = rasterize_labels(path, "crop", **IMAGE)
        assert labels.class_names == names
        assert "lack of a class: 1" in labels.description and "lack of a geometry: 1" in labels.description
    path.write_text("x,y,crop\n500115,5399900,1.5\n500115,5399900,2\n")
    refusal(path, "crop (number)")
    refusal(path, "got 1.5", class_column="crop")


SPREADSHEETS = {
    "German, with a decimal comma": ("x;y;Hoehe;crop\r\n500115,5;5399900,0;12,5;Äcker\r\n", "cp1252"),
    "with columns and lines that were touched": (
        "x;y;crop;;\r\n500115,5;5399900,0;Äcker;;\r\n;;;;\r\n\r\n",
        "utf-8-sig",
    ),
    "with a line for Excel": ("sep=;\r\nx;y;crop\r\n500115,5;5399900,0;Äcker\r\n", "utf-8-sig"),
    "as Unicode text": ("x\ty\tcrop\r\n500115.5\t5399900\tÄcker\r\n", "utf-16"),
    "with German names": ("Rechtswert;Hochwert;crop\r\n500115,5;5399900;Äcker\r\n", "utf-8"),
}


@pytest.mark.parametrize("kind", SPREADSHEETS)
def test_tables_as_spreadsheets_save_them(tmp_path, kind):
    text, encoding = SPREADSHEETS[kind]
    for name in ("a.csv", "a.txt"):
        (tmp_path / name).write_bytes(text.encode(encoding))
        labels = rasterize_labels(tmp_path / name, **IMAGE)
        assert labels.class_names == ("Äcker",)
        np.testing.assert_array_equal(labels.values, mask(3, 0))


def test_signs_of_windows_1252_are_read(tmp_path):
    (tmp_path / "a.csv").write_bytes("x,y,crop\n500115,5399900,Brache – 5 €\n".encode("cp1252"))
    assert rasterize_labels(tmp_path / "a.csv", **IMAGE).class_names == ("Brache – 5 €",)


def test_classes_of_numbers_with_a_decimal_comma_are_those_of_whole_numbers(tmp_path):
    (tmp_path / "a.csv").write_text("x;y;crop\n500115;5399900;1,0\n500145;5399900;2,0\n")
    assert rasterize_labels(tmp_path / "a.csv", "crop", **IMAGE).class_names == ("1", "2")
    refusal(tmp_path / "a.csv", "got crop (number): the class column must be named")


@pytest.mark.parametrize("missing", ["nan", "NaN", "NA", "#N/A", "#NV", "null", "None", " "])
def test_texts_that_mean_missing_are_no_class(tmp_path, missing):
    texts = ["1.0", missing, "2.0"]
    lines = [f"{500_115 + 30 * n},5399900,{text}" for n, text in enumerate(texts)]
    (tmp_path / "a.csv").write_text("\n".join(["x,y,crop", *lines]))
    spots = [point(n + 0.5, 1.5) for n in range(3)]
    texts = ["wheat", missing, "oats"]
    for path, names in (
        (tmp_path / "a.csv", ("1", "2")),
        (write(tmp_path / "a.gpkg", spots, texts), ("oats", "wheat")),
    ):
        labels = rasterize_labels(path, "crop", **IMAGE)
        assert labels.class_names == names and "lack of a class: 1" in labels.description


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_shapefile_may_have_lost_its_encoding(tmp_path, encoding, kept):
    path, spots = tmp_path / "a.shp", [point(0.5, 1.5), point(1.5, 1.5), point(2.5, 1.5)]
    names = np.array(["Wälder", "Brache – 5 €", None], dtype=object)
    raw.write(
        path, shapely.to_wkb(spots), [names], ["crop"], crs="EPSG:32633", geometry_type="Point", encoding=encoding
    )
    if not kept:
        path.with_suffix(".cpg").unlink()
    assert rasterize_labels(path, **IMAGE).class_names == ("Brache – 5 €", "Wälder")


def test_names_of_classes_do_not_depend_on_how_they_are_typed(tmp_path):
    names = ['"bare soil"', '"bare  soil"', '"bare\nsoil"', "W\u00e4lder", "Wa\u0308lder"]
    lines = [f"{500_115 + 30 * n},5399900,{name}" for n, name in enumerate(names)]
    (tmp_path / "a.csv").write_text("\n".join(["x,y,crop", *lines]), encoding="utf-8")
    assert rasterize_labels(tmp_path / "a.csv", **IMAGE).counts == {"W\u00e4lder": 2, "bare soil": 3}


def test_long_codes_are_not_rounded(tmp_path):
    codes = [str(10**19 + 1), str(10**19 + 2)]
    lines = [f"{500_115 + 30 * n},5399900,{code}" for n, code in enumerate(codes)]
    (tmp_path / "a.csv").write_text("\n".join(["x,y,crop", *lines]))
    assert rasterize_labels(tmp_path / "a.csv", **IMAGE).class_names == tuple(codes)


def test_truth_values_are_named_and_names_in_two_cases_are_told(tmp_path):
    spots = [{"type": "Point", "coordinates": [*in_degrees(point(n + 0.5, 1.5)).coords[0]]} for n in range(2)]
    truth = [(spot, {"crop": value, "tags": ["a", "b"]}) for spot, value in zip(spots, (True, False), strict=True)]
    assert rasterize_labels(write_json(tmp_path / "a.json", *truth), **IMAGE).class_names == ("false", "true")
    names = [(spot, {"crop": name}) for spot, name in zip(spots, ("Forest", "forest "), strict=True)]
    labels = rasterize_labels(write_json(tmp_path / "b.json", *names), **IMAGE)
    assert "names that differ only in case are classes of their own: Forest, forest" in labels.description


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x,y,crop\n1,2,a\n\n1,2\n", ["line 4: expected 3 values as in the header, got 2"]),
        ("x,y,crop\n1,2,a\n1,north,a\n", ["line 3: expected a value of x and y, got 1, north"]),
        ("x,y,crop\n1,,a\n", ["line 2", "got 1,"]),
        ("x,y,crop\n1,inf,a\n", ["line 2"]),
        ("lon,lat,crop\n1,2,a\n500000,5400000,b\n", ["line 3: expected a longitude and a latitude", "500000"]),
        ("lat,lon,crop\n101,9,b\n", ["line 2: expected a longitude and a latitude"]),
        ("wkt;crop\nPOINT (1;b\n", ["line 2: expected a value of wkt, got POINT (1"]),
        ('x,y,crop\n1,2,"a\n', ["line 2: expected values with separators"]),
        ("a,b,crop\n1,2,c\n", ["either lon and lat, longitude", "got a, b, crop"]),
        ("x,y,lon,lat,crop\n1,2,1,2,c\n", ["either lon and lat, longitude", "got x, y, lon, lat, crop"]),
        ("x,y,crop,crop\n1,2,c,c\n", ["columns with different names"]),
        ("x,y,crop\n", ["expected a header, and lines", "got 1 lines"]),
        ("x,y,crop\n1,2,\n", ["got crop (empty)"]),
        ("x,y,crop,id\n1,2,c,3\n", ["crop (text), id (integer): the class column must be named"]),
        ("x,y\n1,2\n", ["got no columns"]),
        ("", ["expected a header, and lines", "got 0 lines"]),
        ("x\0,\0y\0", ["expected text in UTF-8 or Latin-1"]),
        ("wkt;crop\nLINESTRING (1 2, 3 4);b\n", ["LineString"]),
    ],
)
def test_bad_csv_files_are_refused_with_the_line(tmp_path, text, words):
    path = tmp_path / "a.csv"
    path.write_text(text)
    refusal(path, *words)


def test_a_polygon_of_many_corners_fits_in_a_csv_file(tmp_path):
    circle = shapely.Point(500_300, 5_399_800).buffer(60, quad_segs=2000)
    (tmp_path / "a.csv").write_text(f"wkt;crop\n{circle.wkt};a\n")
    assert rasterize_labels(tmp_path / "a.csv", **IMAGE).counts["a"] > 10


def test_files_without_a_coordinate_reference_system_are_refused(tmp_path):
    for ending in (".shp", ".gpkg"):
        with pytest.warns(UserWarning):
            path = write(tmp_path / f"a{ending}", [point(1, 1)], ["a"], None)
        refusal(path, "expected a coordinate reference system", "put the .prj file beside the .shp file")
    for name, undefined in {"plane": -1, "globe": 0}.items():
        path = write(tmp_path / f"{name}.gpkg", [point(1, 1)], ["a"])
        with closing(sqlite3.connect(path)) as tables, tables:
            for table in ("gpkg_contents", "gpkg_geometry_columns"):
                tables.execute(f"UPDATE {table} SET srs_id = {undefined}")
        refusal(path, "expected a coordinate reference system, got none")


def test_json_of_meters_that_states_no_reference_system_is_refused(tmp_path):
    spot = point(1, 1)
    feature = ({"type": "Point", "coordinates": [spot.x, spot.y]}, {"crop": "a"})
    refusal(
        write_json(tmp_path / "a.json", feature), "expected coordinates in EPSG:4326", "500130, 5399970 in feature 1"
    )
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    assert rasterize_labels(write_json(tmp_path / "b.json", feature, crs=crs), **IMAGE).values[1, 1] == 1


def test_an_image_without_georeference_is_refused(tmp_path):
    path = write(tmp_path / "a.gpkg", [point(1, 1)], ["a"])
    for missing in ({"crs": None}, {"transform": None}, {"transform": Affine.identity()}):
        with pytest.raises(ProductError, match="a transform of the image, got none"):
            rasterize_labels(path, **IMAGE | missing)


def test_files_that_are_damaged_or_no_vector_files_are_refused(tmp_path):
    refusal(tmp_path / "none.gpkg", "expected labels, got no such file")
    refusal(tmp_path / "labels.tif", "expected a vector file (.gpkg, .geojson, .json, ", "got the ending '.tif'")
    for ending in (".gpkg", ".geojson", ".json", ".shp"):
        (tmp_path / f"text{ending}").write_text('{"crop": "this is no layer"}')
        refusal(tmp_path / f"text{ending}", f"whole, readable vector file, got 'text{ending}' not recognized")
        (tmp_path / f"empty{ending}").write_bytes(b"")
        refusal(tmp_path / f"empty{ending}", "expected a whole")
    points = [point(n / 10, 1) for n in range(100)]
    for ending in (".gpkg", ".geojson", ".shp"):
        path = write(tmp_path / f"cut{ending}", points, ["a"] * 100)
        os.truncate(path, path.stat().st_size * 2 // 3)
        refusal(path, "expected a whole")
    path = write(tmp_path / "lone.shp", points, ["a"] * 100)
    path.with_suffix(".shx").unlink()
    refusal(path, "expected a whole, readable vector file", "lone.shx")
    ring = {"type": "Polygon", "coordinates": [[[15, 48], [16, 48]]]}
    refusal(write_json(tmp_path / "ring.json", (ring, {"crop": "a"})), "expected")


def test_files_without_features_are_refused(tmp_path):
    refusal(write_json(tmp_path / "a.json"), "expected points or polygons with a class, got none")
    refusal(write_json(tmp_path / "b.json", (None, {"crop": "a"})), "got features left out for lack of a geometry: 1")
    refusal(write(tmp_path / "c.gpkg", [], []), "expected points or polygons with a class, got none")


def test_a_file_of_several_layers_is_refused(tmp_path):
    path = write(tmp_path / "a.gpkg", [point(1, 1)], ["a"])
    more = {"crs": "EPSG:32633", "geometry_type": "Point", "append": True}
    raw.write(path, shapely.to_wkb([point(2, 2)]), [np.array(["b"], dtype=object)], ["crop"], layer="more", **more)
    refusal(path, "expected one layer of points or polygons, got a, more")


def test_several_images_share_the_classes_of_one_file(tmp_path):
    path = write(tmp_path / "a.gpkg", [point(2.5, 2.5), point(20.5, 2.5), point(2.5, 20.5)], ["c", "a", "b"])
    features = read_features(path)
    east, south, far = (GRID @ Affine.translation(*shift) for shift in ((15, 0), (0, 12), (900, 900)))
    images = [rasterize_features(features, UTM, transform, SHAPE) for transform in (GRID, east, south)]
    assert [image.class_names for image in images] == [("a", "b", "c")] * 3
    assert [image.values.max() for image in images] == [3, 1, 2]
    assert [image.num_outside for image in images] == [2, 2, 2]
    with pytest.raises(ProductError, match="expected features in the image"):
        rasterize_features(features, UTM, far, SHAPE)
    empty = rasterize_features(features, UTM, far, SHAPE, allow_outside=True)
    assert empty.num_outside == 3 and (empty.values == -1).all() and empty.counts == {"a": 0, "b": 0, "c": 0}


def test_labels_do_not_depend_on_how_an_image_is_cut(tmp_path):
    random = np.random.default_rng(1)
    fields = [shapely.Point(*random.uniform(-1, 16, 2)).buffer(size) for size in random.uniform(0.1, 2, 60)]
    path = write(tmp_path / "a.gpkg", [on_ground(g) for g in fields], [int(n) for n in random.integers(0, 3, 60)])
    features = read_features(path)
    whole = rasterize_features(features, UTM, GRID, SHAPE)
    left = rasterize_features(features, UTM, GRID, (12, 7))
    right = rasterize_features(features, UTM, GRID @ Affine.translation(7, 0), (12, 8))
    assert (np.concatenate([left.values, right.values], axis=1) == whole.values).all() and whole.num_ambiguous


@pytest.mark.filterwarnings("error:invalid value:RuntimeWarning")
def test_features_that_the_image_has_no_coordinates_for_are_outside(tmp_path):
    near, far = in_degrees(point(3.5, 3.5)), [shapely.Point(105, 0), shapely.box(105, -0.001, 105.001, 0.001)]
    path = write(tmp_path / "a.gpkg", [far[0], near, far[1]], ["a", "a", "b"], "EPSG:4326")
    labels = rasterize_labels(path, **IMAGE)
    assert (labels.values == mask(3, 3)).all() and labels.num_outside == 2
    refusal(write(tmp_path / "b.gpkg", far, ["a", "b"], "EPSG:4326"), "got none that EPSG:32633 covers")
    wide = shapely.box(15, 0, 105, 49)
    path = write(tmp_path / "c.gpkg", [near, wide], ["a", "b"], "EPSG:4326")
    refusal(path, "expected polygons within what EPSG:32633 covers, got 1 that go beyond, of b")


@pytest.mark.parametrize("missing", ["pyogrio", "shapely"])
def test_missing_libraries_are_named_with_the_way_to_install_them(tmp_path, monkeypatch, missing):
    path = write(tmp_path / "a.gpkg", [point(1, 1)], ["a"])
    monkeypatch.setitem(sys.modules, missing, None)
    refusal(path, f"vector labels need {missing}: pip install pyogrio shapely")


def test_geopandas_and_pyproj_are_not_needed(tmp_path, monkeypatch):
    path = write(tmp_path / "a.gpkg", [in_degrees(point(1.5, 1.5))], ["a"], "EPSG:4326")
    for name in ("geopandas", "pandas", "pyproj", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    assert rasterize_labels(path, **IMAGE).values[1, 1] == 1

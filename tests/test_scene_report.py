"""What people look at: areas that add up, colors that mean something, pictures and a page that are written whole."""

import base64
import csv
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.crs import CRS
from rasterio.warp import transform as transform_coordinates

from datasets_loading.files import write_text
from hsst.support.map_writer import (
    class_colors,
    class_map_writer,
    probability_steps,
    probability_writer,
)
from hsst.support.reports import plot_confusion
from hsst.support.scene_report import (
    SceneSummary,
    amount_text,
    pixel_size,
    plot_quick_look,
    scale_bar_length,
    share_text,
    write_areas,
    write_areas_json,
    write_page,
)

pytestmark = pytest.mark.usefixtures("real_figures")

CLASSES = ["water", "forest </script>", "bare soil", "snow"]
WAVELENGTHS = np.array([460.0, 550.0, 640.0, 850.0, 1600.0, 2200.0])
UTM = Affine(30.0, 0.0, 500000.0, 0.0, -30.0, 5800000.0)


def scene(height=60, width=80, crs="EPSG:32633", transform=UTM):
    return SimpleNamespace(
        name="a scene & more",
        shape=(height, width),
        crs=None if crs is None else CRS.from_user_input(crs),
        transform=transform,
        metadata={"acquired": "2024-06-01 <10:00> UTC"},
        scale=10000.0,
        nodata=-32768,
    )


def prediction(height=60, width=80):
    """Classes, their confidence and pixels: water at the left, forest, soil, and a corner without a class."""
    generator = np.random.default_rng(0)
    classes = np.zeros((height, width), dtype=np.uint8)
    classes[:, width // 4 :], classes[:, width // 2 :] = 1, 2
    classes[: height // 3, : width // 8] = 255
    confidence = np.where(classes == 255, np.nan, generator.uniform(0.5, 1, classes.shape)).astype(np.float32)
    level = np.array([200, 800, 2500, 0])[np.where(classes == 255, 3, classes)]
    pixels = (level + 300 * np.arange(6)[:, None, None] + generator.normal(0, 30, (6, height, width))).astype(np.int16)
    pixels[:, classes == 255] = -32768
    return classes, confidence, pixels


def summary_of(of, classes, confidence, pixels, step=None):
    """A summary of parts of `step` pixels; of everything at once by default."""
    summary = SceneSummary(of, CLASSES, WAVELENGTHS, {"model": "a model"})
    height, width = classes.shape
    step = step or max(height, width)
    for row in range(0, height, step):
        for column in range(0, width, step):
            place = slice(row, min(row + step, height)), slice(column, min(column + step, width))
            summary.update(*place, classes[place], confidence[place], pixels[:, place[0], place[1]])
    return summary


@pytest.fixture
def summary():
    return summary_of(scene(), *prediction())


def test_areas_of_few_pixels_are_rounded_from_square_meters():
    texts = [amount_text({"pixels": pixels, "area_km2": round(pixels * 9e-4, 6)}) for pixels in (5, 65, 1111, 1112)]
    assert texts == ["0.5 ha", "5.8 ha", "100.0 ha", "1.0 km²"]
    assert amount_text({"pixels": 1234, "area_km2": None}) == "1,234 px"


def test_areas_add_up(summary, tmp_path):
    write_areas(tmp_path / "a.csv", summary)
    write_areas_json(tmp_path / "a.json", summary, {})
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == CLASSES
    assert [int(row["pixels"]) for row in rows] == [20 * 60 - 20 * 10, 20 * 60, 40 * 60, 0]
    assert [float(row["area_ha"]) for row in rows] == [int(row["pixels"]) * 0.09 for row in rows]
    assert float(rows[2]["area_km2"]) == pytest.approx(2.16)
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1, abs=1e-5)
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["pixels_without_class"] == 200 and content["crs"] == "EPSG:32633"
    assert content["classes"][3]["mean_confidence"] is None
    assert content["classes"][1]["mean_confidence"] == pytest.approx(0.75, abs=0.02)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("step", [7, 16, 33])
def test_parts_make_the_same_summary_as_the_whole(monkeypatch, step):
    monkeypatch.setattr("hsst.support.scene_report.LARGEST_SIDE", 27)
    monkeypatch.setattr("hsst.support.scene_report.SPECTRUM_PIXELS", 500)
    whole, parts = (summary_of(scene(), *prediction(), step=s) for s in (None, step))
    assert whole.step == 3 and whole.class_map.shape == (20, 27)
    np.testing.assert_array_equal(whole.class_map, prediction()[0][::3, ::3])
    for name in ("class_map", "confidence", "colors", "pixel_counts"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name), err_msg=name)
    np.testing.assert_allclose(parts.areas, whole.areas)
    np.testing.assert_allclose(parts.spectrum(1), whole.spectrum(1))


def test_spectra_are_means_of_the_classes(summary):
    mean, deviation = summary.spectrum(2)
    np.testing.assert_allclose(mean, (2500 + 300 * np.arange(6)) / 10000, atol=0.001)
    np.testing.assert_allclose(deviation, 0.003, atol=0.0006)
    assert summary.spectrum(3) is None


def test_degrees_become_square_meters():
    transform = Affine(0.001, 0, 10.0, 0, -0.001, 60.03)
    summary = summary_of(scene(crs="EPSG:4326", transform=transform), *prediction())
    expected = 2400 * 111_195.0**2 * 1e-6 * np.cos(np.radians(60))
    assert summary.areas[2] == pytest.approx(expected, rel=0.01)  # of a sphere
    assert pixel_size(summary) == pytest.approx(111.195 * 0.5, rel=0.01)


def test_areas_of_web_maps_are_those_on_the_ground():
    """The same place in degrees and in the meters of web maps, which are twice as long at 60 degrees."""
    corner = transform_coordinates("EPSG:4326", "EPSG:3857", [10.0], [60.0])
    transform = Affine(10, 0, corner[0][0], 0, -10, corner[1][0])
    summary = summary_of(scene(crs="EPSG:3857", transform=transform), *prediction())
    assert summary.areas[2] == pytest.approx(2400 * 100 / 4, rel=0.005)  # of a sphere
    assert pixel_size(summary) == pytest.approx(5, rel=0.002)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:4087", "EPSG:3857"])
@pytest.mark.parametrize("latitude", [0.2, 52.0, 75.0])
def test_areas_are_those_of_the_ellipsoid(crs, latitude):
    """Whether a map is in degrees, in meters of the equator along both axes, or in those of Mercator."""
    ((x,), (y,)) = transform_coordinates("EPSG:4326", crs, [10.0], [latitude])
    ((other,), _) = transform_coordinates("EPSG:4326", crs, [10.0001], [latitude])
    _, (higher,) = transform_coordinates("EPSG:4326", crs, [10.0], [latitude + 1e-4])
    summary = summary_of(scene(crs=crs, transform=Affine(other - x, 0, x, 0, y - higher, y)), *prediction())
    # WGS 84: radii of the meridian and of the parallel
    equator, squared = 6_378_137.0, 0.00669437999
    rest = 1 - squared * np.sin(np.radians(latitude)) ** 2
    meridian, parallel = equator * (1 - squared) / rest**1.5, equator / rest**0.5 * np.cos(np.radians(latitude))
    assert summary.areas[2] == pytest.approx(2400 * meridian * parallel * np.radians(1e-4) ** 2, rel=5e-4)


def test_maps_without_a_place_on_earth():
    local = scene(crs='LOCAL_CS["plane",UNIT["metre",1]]', transform=Affine(2, 0, 0, 0, -2, 0))
    assert summary_of(local, *prediction()).areas is None
    far = scene(crs="EPSG:32633", transform=Affine(2, 0, 1e12, 0, -2, 1e12))
    assert summary_of(far, *prediction()).areas[2] == 2400 * 4


def test_feet_become_square_meters():
    summary = summary_of(scene(crs="EPSG:2263", transform=Affine(10, 0, 0, 0, -10, 0)), *prediction())
    assert summary.areas[2] == pytest.approx(2400 * 3.048**2, rel=1e-4)


@pytest.mark.parametrize("kind", ["plain", "no georeference", "nothing mapped", "rotated", "tiny", "many classes"])
def test_quick_look_and_page_of_any_scene(tmp_path, kind):
    height, width = (3, 2) if kind == "tiny" else (60, 80)
    of, parts = scene(height, width), prediction(height, width)
    if kind == "no georeference":
        of = scene(crs=None, transform=None)
    if kind == "nothing mapped":
        parts = np.full((60, 80), 255, np.uint8), np.full((60, 80), np.nan, np.float32), np.full((6, 60, 80), -32768)
    if kind == "rotated":
        of = scene(transform=UTM @ Affine.rotation(20))
    summary = summary_of(of, *parts)
    if kind == "many classes":
        summary.class_names = [f"class {number}" for number in range(30)]
        summary.colors_of_classes = class_colors(summary.class_names)
        summary.pixel_counts = np.arange(30)[::-1] * 100
        summary.confidence_sums = summary.pixel_counts * 0.8
        summary.areas = summary.pixel_counts * 900.0
        summary._spectra = None
    plot_quick_look(tmp_path / "look.png", summary)
    picture = np.asarray(Image.open(tmp_path / "look.png").convert("RGB"))
    assert picture.shape[1] > 2000 and picture.std() > 5
    write_page(tmp_path / "page.html", summary)
    assert '<img id="spectrum" hidden' in (tmp_path / "page.html").read_text()  # no broken picture without a class
    assert sorted(path.name for path in tmp_path.iterdir()) == ["look.png", "page.html"]


def test_page_holds_everything_and_asks_for_nothing(summary, tmp_path):
    write_page(tmp_path / "page.html", summary)
    text = (tmp_path / "page.html").read_text()
    addresses = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', text)
    assert addresses and all(address.startswith("data:") for address in addresses)
    without_data = re.sub(r"data:[\w/+;]+base64,[\w+/=]+", "", text)
    assert "http" not in without_data and "url(" not in without_data
    assert text.count("</script>") == 1  # the name of a class cannot end the script
    assert "forest &lt;/script&gt;" in text and "a scene &amp; more" in text and "&lt;10:00&gt;" in text
    assert "2.2 km²" in text and "90.0 ha" in text and "Not found: snow" in text


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# What a person does: a click on a class, on the map and on a button; what the page then shows stands in <body>
CLICKS = """<script>
window.addEventListener("load", () => setTimeout(() => {
  const told = {};
  document.querySelector('#legend tr[data-class="1"]').click();
  told.class = element("chosen").textContent;
  told.spectrum = element("spectrum").src === classes[1].spectrum && element("spectrum").naturalWidth > 0;
  const box = element("ground").getBoundingClientRect();
  const place = { clientX: box.left + (12.5 / 80) * box.width, clientY: box.top + (54.5 / 60) * box.height };
  element("stack").dispatchEvent(new MouseEvent("click", place));
  told.map = [element("chosen").textContent, element("told").textContent];
  document.querySelector('button[data-layer="confidence"]').click();
  told.confidence = element("layer").src === layers.confidence && element("key").style.display !== "none";
  document.body.dataset.told = btoa(JSON.stringify(told));
}, 300));
</script>"""


def browser(folder, *arguments):
    """Runs a browser without a window and without a network; gives what it printed."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={folder / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += ["--window-size=1300,1000", "--force-device-scale-factor=1", "--virtual-time-budget=3000"]
    return subprocess.run(
        [*command, *map(str, arguments)], check=True, capture_output=True, timeout=120, text=True
    ).stdout


@pytest.mark.skipif(BROWSER is None, reason="needs a browser (Debian: apt-get install chromium)")
def test_page_opens_in_a_browser_without_a_network(summary, tmp_path):
    write_page(tmp_path / "page.html", summary)
    browser(tmp_path, f"--screenshot={tmp_path / 'page.png'}", (tmp_path / "page.html").as_uri())
    picture = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).reshape(-1, 3)
    # The map is drawn in the colors of its classes, soil on half of it, and so are the bars of the legend
    for name, least in (("water", 20_000), ("forest", 30_000), ("bare soil", 60_000)):
        color = np.array([int(class_colors([name])[0][place : place + 2], 16) for place in (1, 3, 5)])
        assert (np.abs(picture - color.astype(int)).max(axis=1) <= 2).sum() > least, name


@pytest.mark.skipif(BROWSER is None, reason="needs a browser (Debian: apt-get install chromium)")
def test_page_answers_clicks(summary, tmp_path):
    write_page(tmp_path / "page.html", summary)
    text = (tmp_path / "page.html").read_text()
    (tmp_path / "clicked.html").write_text(text.replace("</body>", CLICKS + "</body>"))
    page = browser(tmp_path, "--dump-dom", (tmp_path / "clicked.html").as_uri())
    found = re.search(r'data-told="([\w+/=]+)"', page)
    assert found is not None, page[-2000:]
    told = json.loads(base64.b64decode(found[1]))
    assert told["class"] == CLASSES[1] and told["spectrum"] and told["confidence"]
    confidence = round(float(100 * prediction()[1][54, 12]))
    assert told["map"] == ["water", f"Here: water, confidence {confidence} %"]


def test_colors_follow_names_and_differ():
    names = ["Water", "broadleaf forest", "needleleaf forest", "cropland", "roof", "something", "quarry", "Wetlands"]
    colors = class_colors(names)
    assert len(set(colors)) == len(names)

    def channels(color):
        return [int(color[place : place + 2], 16) for place in (1, 3, 5)]

    assert max(channels(colors[0])) == channels(colors[0])[2]  # water is blue
    assert max(channels(colors[1])) == channels(colors[1])[1]  # forest is green
    assert len(set(class_colors([f"class {number}" for number in range(100)]))) == 100
    # The same for the same names, in whatever order and beside whatever others
    assert class_colors(names[::-1]) == colors[::-1]
    for name, color in zip(names, colors, strict=True):
        assert class_colors([name]) == class_colors(["meadow", name, "sand"])[1:2] == [color]


def test_numbers_for_people():
    assert [scale_bar_length(width) for width in (30_000, 4100, 900)] == [5000, 1000, 200]
    assert [share_text(share) for share in (0, 0.0001, 0.0006, 0.5)] == ["0.0%", "< 0.1%", "0.1%", "50.0%"]


def test_map_has_colors_names_and_place(tmp_path):
    classes = prediction()[0]
    path = tmp_path / "map.tif"
    with class_map_writer(
        path, classes.shape, CLASSES, crs=CRS.from_epsg(32633), transform=UTM, tags={"a": "b"}
    ) as write:
        for row in range(0, 60, 7):
            write(slice(row, min(row + 7, 60)), slice(0, 80), classes[row : row + 7])
        assert not path.exists()
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(dataset.read(1), classes)
        assert dataset.crs.to_epsg() == 32633 and dataset.transform == UTM and dataset.nodata == 255
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG" and dataset.descriptions == ("land cover",)
        assert json.loads(dataset.tags()["class_names"]) == CLASSES and dataset.tags()["a"] == "b"
        table = dataset.colormap(1)
        assert bytes(table[2][:3]).hex() == class_colors(CLASSES)[2][1:] and table[255][3] == 0
    assert "<Category>bare soil</Category>" in (tmp_path / "map.tif.aux.xml").read_text()
    entries = ElementTree.parse(tmp_path / "map.qml").findall("pipe/rasterrenderer[@type='paletted']//paletteEntry")
    assert [(entry.get("label"), entry.get("color")) for entry in entries] == list(
        zip(CLASSES, class_colors(CLASSES), strict=True)
    )
    assert [entry.get("value") for entry in entries] == ["0", "1", "2", "3"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["map.qml", "map.tif", "map.tif.aux.xml"]


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_probabilities_come_back(tmp_path, dtype):
    values = np.random.default_rng(0).uniform(0, 1, (3, 60, 80)).astype(np.float32)
    values[:, :5] = np.nan
    with probability_writer(
        tmp_path / "p.tif", (60, 80), ["a", "b", "c"], dtype=dtype, crs=None, transform=None, tags={}
    ) as write:
        write(slice(0, 60), slice(0, 80), probability_steps(values) if dtype == "uint8" else values)
    with rasterio.open(tmp_path / "p.tif") as dataset:
        read = dataset.read(masked=True) * np.array(dataset.scales)[:, None, None]
        assert dataset.descriptions == ("a", "b", "c") and read.mask[:, :5].all() and not read.mask[:, 5:].any()
    np.testing.assert_allclose(read[:, 5:], values[:, 5:], atol=0.0021 if dtype == "uint8" else 0)


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "map.tif"
    path.write_text("an older map")
    with (
        pytest.raises(KeyboardInterrupt),
        class_map_writer(path, (60, 80), CLASSES, crs=None, transform=None, tags={}) as write,
    ):
        write(slice(0, 60), slice(0, 80), prediction()[0])
        raise KeyboardInterrupt
    assert [file.name for file in tmp_path.iterdir()] == ["map.tif"] and path.read_text() == "an older map"


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    def full(partial, *arguments, **options):
        partial.touch()
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.txt"
    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match=r"a\.txt: expected a file that can be written, got: No space left on device"):
        write_text(path, "text")
    assert list(tmp_path.iterdir()) == []


def test_names_of_any_kind_cost_no_file(tmp_path):
    """Dollar signs begin formulas in figures, signs of arithmetic do in spreadsheets, and XML has no control signs."""
    names = ["$\\frac{$ water", "=1+1", "<b>&\"'", "bell \x07\x1b[31m"]
    files = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        place = SimpleNamespace(**{**vars(scene()), "name": "$a_$ scene \x07"})
        summary = SceneSummary(place, names, WAVELENGTHS, {"model": "$x^$"})
        summary.update(slice(0, 60), slice(0, 80), *prediction())
        plot_quick_look(folder / "a.png", summary)
        write_areas(folder / "a.csv", summary)
        write_page(folder / "a.html", summary)
        tags = {"scene": "a"}
        with class_map_writer(folder / "a.tif", (60, 80), names, crs=None, transform=None, tags=tags) as write:
            write(slice(0, 60), slice(0, 80), prediction()[0])
        plot_confusion(folder / "b.png", np.eye(4, dtype=int), names, "$\\bad{$")
        files.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert files[0] == files[1]
    labels = [entry.get("label") for entry in ElementTree.fromstring(files[0]["a.qml"]).iter("paletteEntry")]
    assert labels == [*names[:3], "bell \\x07\\x1b[31m"]
    categories = [entry.text for entry in ElementTree.fromstring(files[0]["a.tif.aux.xml"]).iter("Category")]
    assert categories == labels
    assert b",'=1+1," in files[0]["a.csv"]
    assert b"<b>&" not in files[0]["a.html"]

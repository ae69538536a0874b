"""The page for a Space: what a click looks up, what is refused in a line, and the page in a browser."""

import functools
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch
from archive_server import small_item, write_archive_files, write_item
from browser import BROWSER, open_browser
from PIL import Image

import datasets_loading.simulation.scene
from datasets_loading.raster_file import ProductError
from datasets_loading.scenes import open_scene
from datasets_loading.simulation.spectra import simulate_spectral_library
from hsst.support import explored_scene, uploads
from hsst.support.explored_scene import Explored, explore, load_models
from modeling_hsst.scene_prediction_hsst import select_bands

ROOT = Path(__file__).parents[1]
MODELS = [str(ROOT / "model_cards" / name) for name in ("hsst-enmap", "hsst-enmap-landcover")]
SIDE = 24


@pytest.fixture(scope="module")
def app():
    pytest.importorskip("gradio")
    spec = importlib.util.spec_from_file_location("space_app", ROOT / "spaces" / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def models():
    return load_models(*MODELS)


def test_without_gradio_the_extra_is_named_in_one_line():
    program = "import runpy, sys; sys.modules['gradio'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
    command = [sys.executable, "-c", program, str(ROOT / "spaces" / "app.py")]
    process = subprocess.run(command, capture_output=True, text=True)
    expected = 'app.py: error: needs gradio, which is not installed: pip install "hsst[space]"\n'
    assert (process.returncode, process.stderr) == (2, expected)


@pytest.mark.parametrize(("half", "expected"), [(0.3, torch.bfloat16), (0.9, torch.float32), (2.0, torch.float32)])
def test_half_precision_is_chosen_where_it_is_measured_to_be_faster(monkeypatch, half, expected):
    """Some processors have instructions for it and are slower with them."""

    class Timer:
        def __init__(self, statement, globals, num_threads):
            self.seconds = half if globals["left"].dtype == torch.bfloat16 else 1.0

        def timeit(self, number):
            return SimpleNamespace(mean=self.seconds)

    monkeypatch.setattr(explored_scene, "Timer", Timer)
    assert explored_scene.faster_dtype() == expected


@pytest.fixture(scope="module")
def cache(app, tmp_path_factory):
    """Small simulated scenes, whose materials have few spectra each."""
    folder = tmp_path_factory.mktemp("cache")
    few = functools.partial(simulate_spectral_library, spectra_per_material=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets_loading.simulation.scene, "simulate_spectral_library", few)
        for name in app.EXAMPLES:
            app.example_scene(name, folder, SIDE)
    return folder


@pytest.fixture(scope="module")
def product(app, cache):
    return app.example_scene("Fields", cache, SIDE)


@pytest.fixture(scope="module")
def explored(product, models, tmp_path_factory):
    progress = []
    map_path = tmp_path_factory.mktemp("maps") / "land_cover.tif"
    with open_scene(product) as scene:
        found = explore(scene, models, map_path, lambda share, what: progress.append((share, what)))
    assert [share for share, _ in progress] == sorted(share for share, _ in progress) and progress[-1][0] == 1
    assert len({what for _, what in progress}) == 3
    with rasterio.open(map_path) as dataset:
        np.testing.assert_array_equal(dataset.read(1), found.classes)
        assert json.loads(dataset.tags()["class_names"]) == found.class_names.tolist() and dataset.crs is not None
    return found


def write_envi(path, height=16, width=16, wavelengths=None, bands=20):
    """An ENVI image of reflectance x 10000; its header states wavelengths if there are any."""
    bands = bands if wavelengths is None else len(wavelengths)
    values = np.random.default_rng(0).integers(500, 4000, (bands, height, width)).astype(np.int16)
    profile = {"driver": "ENVI", "count": bands, "height": height, "width": width, "dtype": "int16"}
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(values)
    if wavelengths is not None:
        stated = ", ".join(str(wavelength) for wavelength in wavelengths)
        with path.with_suffix(".hdr").open("a") as header:
            header.write(f"wavelength units = Nanometers\nwavelength = {{{stated}}}\n")
    return path


def test_what_is_kept_of_a_scene(explored, product):
    with open_scene(product) as scene:
        stored = scene.read()
        empty = ~scene.valid_bands
    assert explored.shape == (SIDE, SIDE) and explored.step == 1
    np.testing.assert_allclose(explored.spectra[~empty], stored[~empty] / 10000, atol=1e-3)
    assert empty.any() and np.isnan(explored.spectra[empty]).all()
    assert explored.hidden.sum() == 70 and explored.hidden.shape == (200,)  # 7 of 20 blocks
    truth = explored.spectra[explored.model_bands].astype(np.float32)
    error = np.abs(explored.reconstruction - truth)[explored.hidden].mean()
    spread = np.abs(truth - truth.mean(axis=(1, 2), keepdims=True))[explored.hidden].mean()
    assert error < 0.5 * spread
    lengths = np.linalg.norm(explored.features.astype(np.float32), axis=0)
    np.testing.assert_allclose(lengths, 1, atol=0.01)
    assert (explored.classes < len(explored.class_names)).all() and (explored.confidence <= 100).all()
    assert explored.pictures.shape == (3, SIDE, SIDE, 3) and explored.pictures.std(axis=(1, 2, 3)).min() > 5


def test_hidden_bands_do_not_reach_the_model(explored, product, models):
    masked, processor = models.masked
    mask = torch.zeros(masked.config.num_blocks, masked.config.num_positions, dtype=torch.bool)
    mask[explored_scene.HIDDEN_BLOCKS] = True
    rows = slice(0, SIDE)
    with open_scene(product) as scene:
        stored = scene.read()[select_bands(scene, processor, masked.config.num_channels).bands]
        changed = stored.copy()
        changed[explored.hidden] = 9000
        first, second = (
            explored_scene.reconstruct(masked, processor, scene, values, rows, mask.flatten()[None])
            for values in (stored, changed)
        )
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(explored.reconstruction, first, atol=2e-3)


def test_similarity_is_highest_at_the_pixel(explored):
    for row, column in ((0, 0), (5, 17), (23, 23)):
        found = explored_scene.similarity(explored, row, column)
        assert found[row, column] == pytest.approx(1, abs=0.01) and found.max() < 1.01 and found.min() > -1.01
        assert found.std() > 0.1
        picture = explored_scene.similarity_picture(explored, row, column)
        assert picture[row, column].sum() > 600 and picture.shape == (SIDE, SIDE, 3)


def test_plot_shows_the_spectrum_with_gaps_and_what_was_hidden(explored):
    axis = explored_scene.plot_pixel(explored, 3, 4).axes[0]
    spectrum, reconstruction = axis.lines[:2]
    x, y = spectrum.get_data()
    known = np.isfinite(y)
    expected = explored.spectra[:, 3, 4].astype(float)
    np.testing.assert_array_equal(y[known], expected[np.isfinite(expected)])
    assert not known[np.searchsorted(x[np.isfinite(x)], 1400)] or np.diff(x[known]).max() > 100  # water vapor
    assert np.isfinite(reconstruction.get_ydata()).sum() == explored.hidden.sum()
    assert len(axis.patches) >= 7 and axis.get_ylim()[0] <= 0
    assert spectrum.get_color() != reconstruction.get_color()
    assert [text.get_text() for text in axis.get_legend().get_texts()][1:] == [
        "reconstruction by the model",
        "hidden from the model",
    ]
    other = explored_scene.plot_pixel(explored, 20, 20).axes[0].lines[0].get_ydata()
    assert not np.array_equal(other, y, equal_nan=True)


def test_pictures_are_enlarged_and_marked(explored, app):
    pictures = app.view_pixel(explored, 0, 23)
    times = explored_scene.enlargement(explored)
    assert times == 512 // SIDE
    for picture in pictures[:4]:
        assert picture.shape == (SIDE * times, SIDE * times, 3)
    untouched = explored.pictures[0].repeat(times, axis=0).repeat(times, axis=1)
    different = np.argwhere((pictures[0] != untouched).any(axis=2))
    assert different[:, 0].max() < times + 8 and different[:, 1].min() >= 23 * times - 8
    assert "Row 0, column 23: <b>" in pictures[5]


def test_larger_scenes_keep_every_third_pixel(explored, product, models, tmp_path, monkeypatch):
    monkeypatch.setattr(explored_scene, "SHOWN_SIDE", 8)
    monkeypatch.setattr(explored_scene, "ROWS_OF_A_STRIP", 16)
    with open_scene(product) as scene:
        small = explore(scene, models, tmp_path / "map.tif")
    assert small.step == 3 and small.shape == (8, 8)
    np.testing.assert_array_equal(small.spectra, explored.spectra[:, ::3, ::3])
    np.testing.assert_array_equal(small.classes, explored.classes[::3, ::3])
    np.testing.assert_allclose(small.reconstruction, explored.reconstruction[:, ::3, ::3], atol=0.02)
    assert explored_scene.describe_pixel(small, 2, 1).startswith("Row 6, column 3: ")
    with rasterio.open(tmp_path / "map.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), explored.classes)


def test_scenes_of_other_sensors_and_shapes(models, tmp_path):
    path = write_envi(tmp_path / "other.img", 19, 30, np.linspace(420, 950, 60).tolist())
    with open_scene(path) as scene:
        found = explore(scene, models, tmp_path / "map.tif")
    assert found.shape == (19, 30) and 0 < found.hidden.sum() < len(found.model_bands)
    assert np.isfinite(found.reconstruction).all() and (found.classes != 255).all()
    assert explored_scene.plot_pixel(found, 18, 29).axes[0].lines


def test_what_was_computed_is_read_back(app, cache, models, monkeypatch):
    first = app.Gallery(models, cache, SIDE)
    key = first.show_example("Fields", lambda share, what: None)
    assert first.map_of(key).is_file()
    monkeypatch.setattr(app, "explore", None)
    assert first.show_example("Fields", None) == key  # from memory
    second = app.Gallery(models, cache, SIDE)
    assert second.show_example("Fields", None) == key  # from the disk
    for field in fields(Explored):
        np.testing.assert_array_equal(getattr(first[key], field.name), getattr(second[key], field.name))


def test_scenes_of_visitors_are_forgotten(app, cache, models, tmp_path, monkeypatch):
    monkeypatch.setattr(app, "KEPT_SCENES", 1)
    gallery = app.Gallery(models, cache, SIDE)
    path = write_envi(tmp_path / "mine.img", wavelengths=np.linspace(420, 950, 40).tolist())
    elsewhere = tmp_path / "elsewhere"  # as a server puts each file into a folder of its own
    elsewhere.mkdir()
    header = path.with_suffix(".hdr").rename(elsewhere / "mine.hdr")
    keys = [gallery.show_files([path, header], lambda share, what: None) for _ in range(2)]
    assert [gallery.map_of(key).exists() for key in keys] == [False, True]
    with pytest.raises(ValueError, match="open it again"):
        gallery[keys[0]]
    app.Gallery(models, cache, SIDE)
    assert not gallery.map_of(keys[1]).exists()  # of an earlier run


def refused_files(folder, kind):
    """Files that the page must not take, and words of the line that says so."""
    path = folder / "bad.tif"
    if kind == "none":
        return [], ["expected a GeoTIFF", "got no file"]
    if kind == "text":
        path.write_text("no image")
        return [path], ["bad.tif: expected"]
    if kind == "too large":
        with path.open("wb") as file:
            file.truncate(2 * 1024**3 + 2**20)
        return [path], ["at most 2 GB, got 2.0 GB"]
    if kind == "too many pixels":
        path = write_envi(folder / "wide.img", 4, 2049, [500.0, 600.0])
        return [path, path.with_suffix(".hdr")], ["at most 2048 x 2048 pixels", "got 4 x 2049", "`hsst predict`"]
    if kind == "no wavelengths":
        path = write_envi(folder / "unknown.img")
        return [path, path.with_suffix(".hdr")], ["unknown: expected wavelengths", "got none"]
    if kind == "no header":
        path = write_envi(folder / "lone.img")
        return [path], ["lone.img: expected"]
    if kind == "picture":
        with rasterio.open(path, "w", driver="GTiff", count=3, height=9, width=9, dtype="uint8") as dataset:
            dataset.write(np.arange(3 * 81, dtype=np.uint8).reshape(3, 9, 9))
        return [path], ["got numbers of uint8 up to", "This page takes spectral images", "reflectance scale factor"]
    if kind == "two scenes":
        paths = [write_envi(folder / f"{name}.img") for name in "ab"]
        return [*paths, *(path.with_suffix(".hdr") for path in paths)], ["the files of one scene, got a.img, b.img"]
    if kind == "no item":
        path = folder / "item.json"
        path.write_text('{"a": 1}')
        return [path], ["item.json: expected a STAC item"]
    path = folder / "item.json"
    image = {"href": "http://169.254.169.254/image.tif"}
    path.write_text(json.dumps({"id": "a", "properties": {}, "assets": {"image": image}}))
    return [path], ["files beside the item, or at https://download.geoservice.dlr.de", "169.254.169.254"]


KINDS = (
    "none",
    "text",
    "too large",
    "too many pixels",
    "no wavelengths",
    "no header",
    "picture",
    "two scenes",
    "no item",
    "host",
)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_files_are_refused_in_a_line(app, tmp_path, kind):
    files, words = refused_files(tmp_path, kind)
    (tmp_path / "cache").mkdir()
    gallery = app.Gallery(None, tmp_path / "cache")  # no model is asked
    with pytest.raises(ProductError) as error:
        gallery.show_files(files, None)
    message = app.message_of(error.value)
    assert "\n" not in message and "hsst_" not in message and "/tmp" not in message and "--" not in message
    for word in words:
        assert word in message
    assert not list((tmp_path / "cache").rglob("*.tif"))


def test_names_of_files_are_no_markup(app):
    assert app.message_of(ProductError("<img src=x>\n is\x07 bad")) == "&lt;img src=x&gt; is\\x07 bad"


def test_a_wavelength_file_may_lie_beside(tmp_path):
    path = write_envi(tmp_path / "a.img", bands=3)
    (tmp_path / "wavelengths.txt").write_text("450\n550\n650\n")
    folder = tmp_path / "together"
    folder.mkdir()
    files = [path, path.with_suffix(".hdr"), tmp_path / "wavelengths.txt"]
    with uploads.open_checked(uploads.gather_upload(files, folder)) as scene:
        assert scene.wavelengths.tolist() == [450, 550, 650]


def test_an_item_opens_with_its_files_beside(tmp_path):
    """Files of the archive, as a visitor downloads them; the item names them by their addresses there."""
    files = [*write_archive_files(tmp_path / "archive").iterdir()]
    item = write_item(tmp_path / "item.json", small_item())
    folder = tmp_path / "together"
    folder.mkdir()
    with uploads.open_checked(uploads.gather_upload([item, *files], folder)) as scene:
        assert scene.product is not None and len(scene.wavelengths) == 12


@pytest.mark.slow  # by hand, on a machine that has nothing else to do
def test_a_click_on_a_scene_of_256_pixels_takes_less_than_a_second(app, explored):
    """What the server does for one; a lookup, a product of features, four pictures, a plot."""
    large = {}
    for field in fields(Explored):
        values = getattr(explored, field.name)
        is_image = values.shape[-2:] == (SIDE, SIDE)
        if field.name == "pictures":
            values = values.repeat(11, axis=1).repeat(11, axis=2)[:, :256, :256]
        elif is_image:
            values = values.repeat(11, axis=-2).repeat(11, axis=-1)[..., :256, :256]
        large[field.name] = values
    seconds = []
    for place in range(3):
        start = time.perf_counter()
        *pictures, plot, _ = app.view_pixel(Explored(**large), 10 * place, 200)
        for picture in pictures:
            Image.fromarray(picture).save(os.devnull, "png")
        plot.savefig(os.devnull, format="png")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1


@pytest.fixture(scope="module")
def address(app, cache, models, product):
    """The page as its command starts it, with scenes that are in the cache."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, str(ROOT / "spaces" / "app.py"), "--port", str(port), "--cache", str(cache)]
    command += ["--model", MODELS[0], "--landcover", MODELS[1], "--example_size", str(SIDE)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Running on" in line:
                break
        assert process.poll() is None, "".join(lines)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(120)
    assert "Traceback" not in process.stdout.read()


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(BROWSER is None, reason="needs a browser (Debian: apt-get install chromium)")
def test_page_in_a_browser(address, explored, tmp_path):
    """A person clicks a pixel, sees another spectrum, and gives a bad file, which is refused in a line."""
    spectrum = "document.querySelector('#spectrum img').src"
    button = "[...document.querySelectorAll('button')].find(found => found.innerText === '{}').click()"
    with open_browser(tmp_path) as browser:
        browser.resize(1400, 1000)
        browser.go(address)
        first = browser.wait_for(f"{spectrum}.length > 1000 && {spectrum}")
        ready = "[...document.querySelectorAll('#true_color img')].some(image => image.naturalWidth > 400)"
        browser.wait_for(ready)
        box = "document.querySelector('#true_color img').getBoundingClientRect()"
        left, top, width, height = (browser.evaluate(f"{box}.{side}") for side in ("left", "top", "width", "height"))
        assert width == pytest.approx(height, rel=0.05)
        browser.click(left + width * 5.5 / SIDE, top + height * 19.5 / SIDE)
        browser.wait_for("document.querySelector('#pixel').innerText.includes('Row 19, column 5')")
        browser.wait_for(f"{spectrum} !== {json.dumps(first)}")
        downloads = tmp_path / "downloads"
        downloads.mkdir()
        browser.send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        browser.evaluate(button.format("Download the map (GeoTIFF)"))
        wait_until(lambda: (downloads / "land_cover.tif").exists())
        with rasterio.open(downloads / "land_cover.tif") as dataset:
            assert dataset.shape == (SIDE, SIDE)

        bad = tmp_path / "bad name.tif"
        bad.write_text("no image")
        browser.choose_files("input[type=file]", bad)
        browser.wait_for("document.body.innerText.includes('.tif')")
        browser.evaluate(button.format("Show my scene"))
        browser.wait_for("document.body.innerText.includes('bad name.tif: expected')")
        assert "Traceback" not in browser.evaluate("document.body.innerText")
        assert browser.evaluate(f"{spectrum}.length") > 1000  # what was shown stays
        elsewhere = [name for name in browser.requested if not name.startswith((address, "data:", "blob:"))]
        assert elsewhere == []

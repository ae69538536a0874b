"""Scenes are found in a catalogue, looked at, and fetched: whole, in pieces, and never as something else."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from archive_server import (
    LOGIN_PAGE,
    Archive,
    archive_process,
    assert_is_small_product,
    closed_port,
    log_in,
    read_tiles,
    set_plain_environment,
)
from conftest import SCRIPTS, assert_one_clear_line
from PIL import Image
from small_products import CLOUD, NAME, TRANSFORM, small_cube, small_quality
from test_predict_scene import save_model

from datasets_loading import archive as archive_module
from datasets_loading import stac_items
from datasets_loading.scenes import open_scene

OTHER = NAME.replace("DT0000006195", "DT0000006196")
IMAGE = f"/files/{NAME}-SPECTRAL_IMAGE_COG.TIF"
BOX = ("--bbox", 13, 52.3, 13.1, 52.5)
PARTS = ("METADATA.XML", "SPECTRAL_IMAGE_COG.TIF", "QL_QUALITY_CLOUD_COG.TIF", "QL_PIXELMASK_COG.TIF")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_plain_environment(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def new_archive() -> Iterator[Callable[[], Archive]]:
    with archive_process() as new:
        yield new


@pytest.fixture(scope="module")
def scene(new_archive, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], str]:
    """Files of a scene, and its item with HOST in place of an address."""
    archive = new_archive()
    item = archive.add_scene(tmp_path_factory.mktemp("scene"))
    return archive.files, json.dumps(item).replace(archive.host, "HOST")


@pytest.fixture
def archive(new_archive, scene) -> Archive:
    archive = new_archive()
    archive.files, archive.scenes = scene[0], [json.loads(scene[1].replace("HOST", archive.host))]
    return archive


@pytest.fixture
def find(run_script, archive: Archive):
    """Runs the program on the catalogue."""
    return lambda *arguments: run_script("find_enmap.py", "--catalogue", archive.address("/stac"), *arguments)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.usefixtures("real_figures")
def test_search_to_table_and_picture(find, archive: Archive, tmp_path: Path):
    moved = TRANSFORM @ TRANSFORM.translation(100, 60)
    for number in range(7, 11):
        archive.add_scene(tmp_path, NAME.replace("6195", f"{number:04d}"), transform=moved)
    archive.scenes = [
        {**item, "properties": {**item["properties"], "eo:cloud_cover": cover, "enmap:season": "summer"}}
        for item, cover in zip(archive.scenes, ("7", "0", None, "60", "10"), strict=True)
    ]
    archive.failures = {"/stac": [502], "/stac/search": [502, 503]}
    result = find(*BOX, "--date", "2022-12-01/2022-12-31", "--max_cloud", 10, "--output_dir", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split()[1][18:28] for line in lines[1:4]] == ["0000006195", "0000000007", "0000000010"]
    assert lines[1].split()[2:] == ["2022-12-03", "7", "?", "?", "2", "38", "summer"]
    assert "left out whose cloud cover is unknown: 1" in result.stderr
    assert (tmp_path / "out" / "products.txt").read_text().splitlines() == [line.split()[1] for line in lines[1:4]]
    with open_scene(tmp_path / "out" / "items" / f"{NAME}.json") as scene:
        np.testing.assert_array_equal(scene.read(), small_cube())
    with Image.open(tmp_path / "out" / "footprints.png") as picture:
        assert picture.size[0] > 1000
    assert len(find("--date", "2022-12-01", "--limit", 2).stdout.splitlines()) == 3
    assert "there may be more" in find("--date", "2022-12-01", "--limit", 2).stderr
    assert len(find("--products", tmp_path / "out" / "products.txt", "--limit", 1).stdout.splitlines()) == 4


def test_no_scene_is_found(find):
    assert_one_clear_line(find("--bbox", 0, 0, 1, 1), "ENMAP_HSI_L2A", "got none")


def test_from_the_catalogue_to_a_corpus_and_a_map(find, run_script, archive: Archive, tmp_path: Path, monkeypatch):
    archive.login = ("student", "opensesame")
    log_in(monkeypatch, tmp_path, "home", "opensesame")
    result = find(*BOX, "--download", tmp_path / "products", "--jobs", 3)
    assert result.returncode == 0, result.stderr
    assert "Contains modified EnMAP data (c) DLR 2022" in result.stdout
    product = tmp_path / "products" / NAME
    assert {f"{NAME}-{part}" for part in PARTS} < set(names_in(product)) == set(names_in(tmp_path / "products"))
    assert len(names_in(product)) == 10
    assert_is_small_product(product)
    # The catalogue is sent no login, and what is there is not fetched again
    assert not any(request.authorization for request in archive.requests if request.path.startswith("/stac"))
    before = sum(archive.bytes_sent.values())
    assert find(*BOX, "--download", tmp_path / "products").returncode == 0
    assert sum(archive.bytes_sent.values()) == before
    (product / f"{NAME}-QL_QUALITY_CLOUD_COG.TIF").unlink()
    assert find(*BOX, "--download", tmp_path / "products").returncode == 0
    assert_is_small_product(product)
    assert sum(archive.bytes_sent.values()) == before + len(archive.files[f"/files/{NAME}-QL_QUALITY_CLOUD_COG.TIF"])

    result = run_script("prepare_enmap.py", "--data_dir", tmp_path / "products", "--output_dir", tmp_path / "corpus")
    assert result.returncode == 0 and "1 tiles of 1 sources" in result.stdout, result.stderr
    assert read_tiles(tmp_path / "products").names == [f"{NAME}_x00064_y00064"]  # as run_mim.py does
    model = save_model(tmp_path / "model")
    result = run_script("predict_scene.py", product, "--model", model, "--output", tmp_path / "map.tif")
    assert result.returncode == 0, result.stderr
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert (dataset.read(1)[CLOUD] == 255).all() and dataset.transform == TRANSFORM


@pytest.mark.parametrize("kind", ["window", "crop"])
def test_a_window_of_a_scene_is_a_product(find, run_script, archive: Archive, tmp_path: Path, monkeypatch, kind: str):
    archive.login = ("student", "opensesame")
    log_in(monkeypatch, tmp_path, "home", "opensesame")
    x, y = TRANSFORM @ (60, 70)
    west, south, east, north = rasterio.warp.transform_bounds("EPSG:32633", "EPSG:4326", x, y - 2400, x + 2100, y)
    box = ("--bbox", west, south, east, north)
    way = ("--window", 70, 60, 80, 70, *BOX) if kind == "window" else ("--crop", *box)
    result = find("--download", tmp_path / "windows", *way)
    assert result.returncode == 0, result.stderr
    (product,) = (tmp_path / "windows").iterdir()
    with open_scene(product) as scene:
        assert scene.name == product.name and scene.product.missing_layers == ()
        column, row = (round(number) for number in ~TRANSFORM @ (scene.transform.c, scene.transform.f))
        height, width = scene.shape
        place = (slice(row, row + height), slice(column, column + width))
        np.testing.assert_array_equal(scene.read(), small_cube()[:, *place])
        np.testing.assert_array_equal(scene.read_excluded(kinds=["water"]), small_quality()["classes"][place] == 2)
    if kind == "window":
        assert product.name == f"{NAME}_x00060_y00070_80x70" and (row, column, height, width) == (70, 60, 80, 70)
    else:
        assert 55 <= column <= 60 and 65 <= row <= 70 and 70 <= width <= 80 and row + height == 150
    assert find("--download", tmp_path / "windows", *way).returncode == 0
    result = run_script("prepare_enmap.py", "--data_dir", tmp_path / "windows", "--output_dir", tmp_path / "corpus")
    assert result.returncode == 0 and "1 tiles of 1 sources" in result.stdout, result.stderr


def test_windows_that_cannot_be_fetched(find, archive: Archive, new_archive, tmp_path: Path, monkeypatch):
    folder = tmp_path / "windows"
    named = tmp_path / "names.txt"
    named.write_text(f"# a scene\n\n{NAME}\n{NAME}\n")
    fetch = ("--products", named, "--download", folder)
    assert_one_clear_line(find(*fetch, "--window", 100, 0, 64, 64), "a window inside 150 x 170 pixels")
    assert_one_clear_line(find(*fetch, "--window", 0, 0, 64, 20), "pixels with data")
    assert_one_clear_line(find(*fetch, "--crop", "--bbox", -60, -10, -59, -9), "one outside of it")
    monkeypatch.setenv("GDAL_HTTP_COOKIE", "session=wrongsecret")
    sign_on = new_archive()
    sign_on.files = {"/image": archive.files[IMAGE]}
    archive.redirections = {IMAGE: sign_on.address("/image")}
    result = find(*fetch, "--window", 0, 60, 64, 64)
    assert_one_clear_line(result, "a host that the login is for")
    assert [request for request in sign_on.requests] and not any(request.cookie for request in sign_on.requests)
    assert not folder.exists()


# What breaks off


def test_cut_and_busy_answers_are_gone_on_with(find, archive: Archive, tmp_path: Path):
    archive.cut_from, archive.cuts = 0, 9
    archive.failures = {IMAGE: [502, 503], f"/files/{NAME}-METADATA.XML": [502]}
    assert find(*BOX, "--download", tmp_path / "products").returncode == 0
    assert_is_small_product(tmp_path / "products" / NAME)
    sent = archive.bytes_sent
    assert all(sent[path] == len(archive.files[path]) for path in sent)  # nothing twice


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_download_that_is_ended_is_gone_on_with(find, archive: Archive, tmp_path: Path, way: signal.Signals):
    archive.silent_from = 0
    command = [sys.executable, "-m", "hsst", "find_enmap", "--catalogue", archive.address("/stac")]
    command += [*map(str, BOX), "--download", str(tmp_path / "products"), "--jobs", "8"]
    environment = {**os.environ, "PYTHONPATH": f"{SCRIPTS.parent}"}
    # Tests that run in the background of a shell ignore Ctrl-C, and so would this process
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, preexec_fn=heard)
    partial = tmp_path / "products" / f".{NAME}.partial" / f"{NAME}-SPECTRAL_IMAGE_COG.TIF.partial"
    while not (partial.is_file() and partial.stat().st_size):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(way)
    _, error = process.communicate(timeout=20)  # though the server is silent
    ends = {
        signal.SIGTERM: (143, b"hsst find_enmap: terminated"),
        signal.SIGINT: (130, b"hsst find_enmap: interrupted"),
    }
    code, line = ends.get(way, (-way, b""))
    assert process.returncode == code and line in error and b"Traceback" not in error
    assert not (tmp_path / "products" / NAME).exists()
    # A file of which there is another version by now comes whole
    changed = f"/files/{NAME}-QL_PIXELMASK_COG.TIF"
    archive.versions, archive.silent_from, before = {changed: "2"}, None, dict(archive.bytes_sent)
    assert find(*BOX, "--download", tmp_path / "products").returncode == 0
    assert_is_small_product(tmp_path / "products" / NAME)
    assert names_in(tmp_path / "products") == names_in(tmp_path / "products" / NAME)
    more = archive.bytes_sent[IMAGE] - before[IMAGE]
    assert 0 < more < len(archive.files[IMAGE])
    assert archive.bytes_sent[changed] - before.get(changed, 0) == len(archive.files[changed])


def test_one_scene_that_fails_does_not_stop_the_others(find, archive: Archive, tmp_path: Path):
    archive.add_scene(tmp_path, OTHER)
    archive.files = {path: content for path, content in archive.files.items() if path != IMAGE}
    result = find(*BOX, "--download", tmp_path / "products")
    assert_one_clear_line(result, "1 of 2 scenes not fetched", IMAGE, "status 404 (Not Found)")
    with open_scene(tmp_path / "products" / OTHER) as scene:
        assert scene.name == OTHER
    assert not (tmp_path / "products" / NAME).exists()


def test_a_full_disk(find, archive: Archive, tmp_path: Path, monkeypatch):
    usage = archive_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archive_module.shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    assert_one_clear_line(find(*BOX, "--download", tmp_path / "products"), "0.00 GB free on the disk", "still to come")
    assert not any(archive_module.product_part(name) for name in names_in(tmp_path / "products"))
    monkeypatch.undo()
    set_plain_environment(monkeypatch, tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive_module.os, "fsync", full)
    assert_one_clear_line(find(*BOX, "--download", tmp_path / "products"), "can be written", "No space left on device")
    assert not (tmp_path / "products" / NAME).exists()
    monkeypatch.undo()
    set_plain_environment(monkeypatch, tmp_path)
    assert find(*BOX, "--download", tmp_path / "products").returncode == 0
    assert_is_small_product(tmp_path / "products" / NAME)


# Logins


@pytest.mark.parametrize("way", ["cookie", "netrc"])
def test_login(find, archive: Archive, tmp_path: Path, monkeypatch, way: str):
    archive.cookie, archive.login = "session=opensesame", ("student", "opensesame")
    log_in(monkeypatch, tmp_path, way, "opensesame")
    assert find(*BOX, "--download", tmp_path / "products").returncode == 0
    assert_is_small_product(tmp_path / "products" / NAME)


@pytest.mark.parametrize("way", ["none", "cookie", "home"])
@pytest.mark.parametrize("answer", ["page", 401, "window"])
def test_refused_login(find, archive: Archive, tmp_path: Path, monkeypatch, way: str, answer):
    archive.cookie, archive.login = "session=opensesame", ("student", "opensesame")
    if answer == 401:
        archive.failures = {path: [401] for path in archive.files}
    log_in(monkeypatch, tmp_path, way, "wrongsecret")
    window = ("--window", 0, 60, 64, 64) if answer == "window" else ()
    result = find(*BOX, "--download", tmp_path / "products", *window)
    assert_one_clear_line(result, "login for 127.0.0.1", "no login" if way == "none" else "was refused", "~/.netrc")
    assert "wrongsecret" not in result.stdout + result.stderr and "student" not in result.stdout + result.stderr
    assert not any(archive_module.product_part(name) for name in names_in(tmp_path))


def test_an_expired_login_leaves_what_is_there(find, archive: Archive, tmp_path: Path, monkeypatch):
    archive.cut_from = 0
    assert find(*BOX, "--download", tmp_path / "products").returncode == 2
    partial = tmp_path / "products" / f".{NAME}.partial" / f"{NAME}-SPECTRAL_IMAGE_COG.TIF.partial"
    before = partial.stat().st_size
    archive.cut_from, archive.cookie = None, "session=opensesame"
    assert_one_clear_line(find(*BOX, "--download", tmp_path / "products"), "no login for 127.0.0.1")
    assert partial.stat().st_size == before > 10_000


@pytest.mark.parametrize("way", ["cookie", "home"])
def test_a_login_is_not_sent_on(find, archive: Archive, new_archive, tmp_path: Path, monkeypatch, way: str):
    sign_on = new_archive()
    sign_on.files = {"/login.html": LOGIN_PAGE}
    archive.login = ("student", "opensesame")
    archive.redirections = {path: sign_on.address("/login.html") for path in archive.files}
    log_in(monkeypatch, tmp_path, way, "opensesame")
    assert_one_clear_line(find(*BOX, "--download", tmp_path / "products"), "was refused")
    assert sign_on.requests and not any(request.cookie or request.authorization for request in sign_on.requests)
    # Within the host it is
    archive.redirections = {f"{path}": f"/moved{path}" for path in archive.files}
    archive.files |= {f"/moved{path}": content for path, content in archive.files.items()}
    archive.cookie = "session=opensesame"
    assert find(*BOX, "--download", tmp_path / "products").returncode == 0
    # A cookie is for the host of the catalogue, whatever an item says
    archive.redirections = {}
    (item,) = archive.scenes
    archive.scenes = [json.loads(json.dumps(item).replace("127.0.0.1", "localhost"))]
    find(*BOX, "--download", tmp_path / "again")
    sent = [request for request in archive.requests if request.path == IMAGE][-1]
    assert not sent.cookie and not sent.authorization


def test_who_is_sent_a_login(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_COOKIE", "session=opensesame")
    (tmp_path / ".netrc").write_text("machine download.example.org\nlogin student\npassword opensesame\n")
    (tmp_path / ".netrc").chmod(0o600)
    login = archive_module.Archive("https://example.org/stac", "ENMAP_HSI_L2A")._login
    assert set(login("https://download.example.org/x.TIF")) == {"Cookie", "Authorization"}
    assert set(login("https://example.org/x.TIF")) == {"Cookie"}
    for other in ("http://download.example.org", "https://badexample.org", "https://example.org.evil.net"):
        assert not login(f"{other}/x.TIF")


# Bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--bbox", 11, 48, 10, 49), "WEST < EAST"),
        (("--bbox", "nan", 48, 10, 49), "WEST < EAST"),
        (("--bbox", 10, 48, 11, 95), "SOUTH < NORTH"),
        (("--date", "yesterday"), "YYYY-MM-DD"),
        (("--date", "2024-02-30"), "day is out of range"),
        (("--date", "2024-08-31/2024-06-01"), "YYYY-MM-DD"),
        ((), "--bbox or --date"),
        ((*BOX, "--limit", 0), "--limit"),
        ((*BOX, "--max_cloud", "nan"), "--max_cloud"),
        ((*BOX, "--jobs", 99), "at most 16"),
        ((*BOX, "--crop"), "--download"),
        (("--date", "2024-06-01", "--crop", "--download", "x"), "--bbox"),
        ((*BOX, "--window", 0, 0, 0, 5, "--download", "x"), "sides from 1"),
        ((*BOX, "--catalogue", "file:///etc"), "https://"),
        ((*BOX, "--catalogue", "student:opensesame@localhost/stac"), "without a login"),
        ((*BOX, "--catalogue", "https://student:opensesame@localhost/stac"), "without a login"),
    ],
)
def test_bad_arguments(run_script, monkeypatch, arguments, words: str):
    monkeypatch.setitem(sys.modules, "pystac_client", None)  # nothing heavy has been asked for by then
    result = run_script("find_enmap.py", *arguments)
    assert_one_clear_line(result, words)
    assert "opensesame" not in result.stderr


def test_bad_arguments_are_answered_at_once():
    command = [sys.executable, "-X", "importtime", "-m", "hsst", "find_enmap", "--bbox", "3", "2", "1", "0"]
    process = subprocess.run(command, cwd=SCRIPTS.parent, capture_output=True, text=True)
    assert process.returncode == 2
    assert not any(name in process.stderr for name in (" torch\n", " rasterio\n", " matplotlib\n", " pystac_client\n"))


def test_a_package_that_is_missing(find, monkeypatch):
    monkeypatch.delitem(sys.modules, "datasets_loading.archive")
    monkeypatch.setitem(sys.modules, "pystac_client", None)
    assert_one_clear_line(find(*BOX), "pystac_client", "pip install pystac-client")


@pytest.mark.parametrize("kind", ["closed", "no json", "no catalogue", "page", "busy", "no item", "no list"])
def test_catalogues_that_cannot_be_searched(find, run_script, archive: Archive, tmp_path: Path, kind: str):
    if kind in ("no item", "no list"):
        names = tmp_path / "names.txt"
        if kind == "no item":
            names.write_text(f"{OTHER}\n")
        result = find("--products", names)
        return assert_one_clear_line(result, *((OTHER, "Not Found") if kind == "no item" else (names, "No such file")))
    if kind == "busy":
        archive.failures = {"/stac/search": [502] * 40}
        return assert_one_clear_line(find(*BOX), "a STAC catalogue", "status 502")
    bodies = {"no json": b"{", "no catalogue": b'{"type": "Feature"}', "page": LOGIN_PAGE}
    archive.files |= {"/root.json": bodies.get(kind, b"")}
    address = f"{closed_port()}/stac" if kind == "closed" else archive.address("/root.json")
    result = run_script("find_enmap.py", "--catalogue", address, *BOX)
    assert_one_clear_line(result, "a STAC catalogue", *(["Connection refused"] if kind == "closed" else []))


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("id", "../../escape", "a name that files can have"),
        ("id", "..", "a name that files can have"),
        ("id", ".hidden", "a name that folders can have"),
        ("collection", "DESIS_HSI_L2A", "an item of the collection"),
        ("properties", None, "a STAC item with id"),
        ("image", "{host}/files/..%2F..%2Fescape.TIF", "a name that files can have"),
        ("image", "{host}/files/DESIS-HSI-L2A-DT0000006195-SPECTRAL_IMAGE.tif", "a file"),
        ("image", "{host}/files/EVIL-SPECTRAL_IMAGE_COG.TIF", "a file"),
        ("image", "ftp://127.0.0.1/x-SPECTRAL_IMAGE.TIF", "an address of the web"),
        ("image", "http://student:opensesame@127.0.0.1/x-SPECTRAL_IMAGE.TIF", "without a login"),
        ("image", "", "an address of the web"),
        ("metadata", None, "an address of the web"),
    ],
)
def test_items_that_are_refused(find, archive: Archive, tmp_path: Path, place: str, value, words: str, monkeypatch):
    (item,) = archive.scenes
    if place in ("image", "metadata"):
        item["assets"][place] = {"href": value.format(host=archive.host)} if value is not None else None
    else:
        item[place] = value
    collection = item["collection"]
    archive.scenes = [item]
    if place == "collection":
        # A catalogue that does not heed what it is asked for
        archive.scenes, collection = [{**item, "collection": ["ENMAP_HSI_L2A"]}], "ENMAP_HSI_L2A"
        monkeypatch.setattr(archive_module.Archive, "search", lambda self, *_: iter([self._checked(self._item)]))
        monkeypatch.setattr(archive_module.Archive, "_item", stac_items.Item("", item), raising=False)
    result = find(*BOX, "--collection", collection, "--download", tmp_path / "deep" / "products")
    assert_one_clear_line(result, words)
    assert "opensesame" not in result.stderr
    assert not any(archive_module.product_part(name) or "escape" in name for name in names_in(tmp_path))


@pytest.mark.parametrize("kind", ["huge", "html", "short", "no tiff", "other size"])
def test_files_that_are_something_else(find, archive: Archive, tmp_path: Path, monkeypatch, kind: str):
    if kind == "huge":
        monkeypatch.setattr(archive_module, "LARGEST_FILE", 20_000)
        words = ["a file of at most 20,000 bytes"]
    else:
        cloud, xml = archive.files[f"/files/{NAME}-QL_QUALITY_CLOUD_COG.TIF"], f"/files/{NAME}-METADATA.XML"
        bodies = {"html": b" \n<html>", "short": cloud[:200], "no tiff": b"II*", "other size": cloud}
        words = {"html": ["a web page"], "no tiff": ["a GeoTIFF"]}.get(kind, ["remove the folder to fetch it again"])
        archive.files |= {IMAGE: bodies[kind], xml: archive.files[xml]}
    assert_one_clear_line(find(*BOX, "--download", tmp_path / "products"), *words)
    assert not (tmp_path / "products" / NAME).exists()


def test_one_download_for_a_folder(find, archive: Archive, tmp_path: Path):
    with archive_module.only_writer(tmp_path / "products"):
        assert_one_clear_line(find(*BOX, "--download", tmp_path / "products"), "the only process")


def test_radiance_is_said(find, archive: Archive, tmp_path: Path):
    archive.add_scene(tmp_path, NAME.replace("L2A", "L1C"))
    archive.scenes = [
        {**archive.scenes[1], "collection": "ENMAP_HSI_L1C", "properties": {"datetime": "2022-12-03T17:20:49Z"}}
    ]
    result = find(*BOX, "--collection", "ENMAP_HSI_L1C", "--download", tmp_path / "products")
    assert result.returncode == 0 and "radiance" in result.stderr

"""A download archive on the loopback: files by ranges, behind a login, as DLR's archive serves those of EnMAP; and the
small product with the file names and the catalogue item that it would have there, and what is expected of its readers.

    with archive_process() as new_archive:
        archive = new_archive()
        archive.files |= {"/scene.json": b"..."}
        open_scene(archive.address("/scene.json"))

As there, the catalogue (files that end in ".json", and the STAC API at /stac) is open to all, and whoever asks for
another file without a login gets a web page of status 200. Each archive has a port of its own: the raster library
remembers what it got from one. They run in a process of their own: the raster library lets no other thread run while
it waits for some answers.
"""

from __future__ import annotations

import base64
import io
import json
import multiprocessing
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.managers import BaseManager, NamespaceProxy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.warp import transform as transform_coordinates
from small_products import (
    ACQUISITION_TIME,
    FWHM,
    HEIGHT,
    NAME,
    TRANSFORM,
    WAVELENGTHS,
    WIDTH,
    small_cube,
    small_quality,
    write_small_product,
)

from datasets_loading import archive, stac_items
from datasets_loading.raster_file import ProductError
from datasets_loading.scenes import open_scene
from datasets_loading.sensors import ENMAP
from datasets_loading.stac_items import OPENING_SETTINGS, REMOTE_SETTINGS
from datasets_loading.tiles import Tiles, read_tile_set

DOWNLOADS = "https://download.geoservice.dlr.de/ENMAP/files/L2A/2022/12/03/DT0000006195/03"
ASSETS = {
    "image": "SPECTRAL_IMAGE",
    "quality_classes": "QL_QUALITY_CLASSES",
    "quality_cloud": "QL_QUALITY_CLOUD",
    "quality_cloud_shadow": "QL_QUALITY_CLOUDSHADOW",
    "quality_haze": "QL_QUALITY_HAZE",
    "quality_cirrus": "QL_QUALITY_CIRRUS",
    "quality_snow": "QL_QUALITY_SNOW",
    "quality_testflags": "QL_QUALITY_TESTFLAGS",
    "defective_pixel_mask": "QL_PIXELMASK",
}
"""Name of an asset in the catalogue, and the part of the file name that it has."""

LOGIN_PAGE = b"""
<!DOCTYPE html>
<html><head><title>Single sign-on</title></head><body><form>User name and password, please.</form></body></html>
"""


class Request(NamedTuple):
    """What came, and the status that it was answered with."""

    method: str
    path: str
    cookie: str
    authorization: str
    status: int


class ArchiveServer:
    """The server, in a thread of the process of `archive_process`.

    Attributes:
        files: content of each path.
        cookie: the cookie of who is logged in, or "".
        login: user and password, or None. Without a cookie and a login all files are open.
        failures: statuses that a path is answered with before it is served, the first one first.
        host: address of the server.
        redirections: address that a path sends its reader to.
        cut_from: place in a file from which on every answer breaks off in its middle, or None.
        cuts: how many answers still break off, or None for all of them.
        scenes: items of the catalogue, which gives two at a time.
        versions: version of a path's file, by which readers see that it has changed.
        silent_from: place in a file from which on every answer stops in its middle, with the connection left open.
        requests: everything that came.
        bytes_sent: bytes of files that were sent, by path.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cookie = ""
        self.login: tuple[str, str] | None = None
        self.failures: dict[str, list[int]] = {}
        self.redirections: dict[str, str] = {}
        self.cut_from: int | None = None
        self.cuts: int | None = None
        self.scenes: list[dict[str, Any]] = []
        self.versions: dict[str, str] = {}
        self.silent_from: int | None = None
        self.requests: list[Request] = []
        self.bytes_sent: dict[str, int] = {}
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (RequestHandler,), {"archive": self}))
        self.server.daemon_threads = True
        self.host = f"http://127.0.0.1:{self.server.server_address[1]}"

        threading.Thread(target=self.server.serve_forever, daemon=True).start()


class Archive(NamespaceProxy):
    """An `ArchiveServer` for the tests: its attributes can be read, which copies them, and set."""

    def address(self, path: str) -> str:
        return self.host + path

    def add_small_product(self, folder: Path) -> str:
        """Takes in the small product, and gives the address of its item; `folder` is a place to write files in."""
        item = small_item(self.address("/files"))
        layers = {f"quality_{name}".replace("test_", "test"): layer[None] for name, layer in small_quality().items()}
        cubes = {item["assets"][name]["href"]: cube for name, cube in {"image": small_cube(), **layers}.items()}
        self.files |= {address.removeprefix(self.host): cog(cube, folder) for address, cube in cubes.items()}
        self.files |= {"/item.json": json.dumps(item).encode()}
        return self.address("/item.json")

    def add_scene(self, folder: Path, name: str = NAME, **changes: Any) -> dict[str, Any]:
        """Takes in a small product with all of its files, and its item, which it gives, in the catalogue."""
        write_archive_files(folder / ".scene", name, **changes)
        self.files |= {f"/files/{file.name}": file.read_bytes() for file in (folder / ".scene").iterdir()}
        shutil.rmtree(folder / ".scene")
        item = json.loads(json.dumps(small_item(self.address("/files"))).replace(NAME, name))
        place = TRANSFORM if "transform" not in changes else changes["transform"]
        xs, ys = zip(*(place @ corner for corner in ((0, 0), (0, HEIGHT), (WIDTH, HEIGHT), (WIDTH, 0))), strict=True)
        ring = list(zip(*transform_coordinates("EPSG:32633", "EPSG:4326", xs, ys), strict=True))
        item["geometry"] = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
        item["bbox"] = [*map(min, zip(*ring, strict=True)), *map(max, zip(*ring, strict=True))]
        thumbnail = io.BytesIO()
        Image.fromarray(small_quality()["classes"] * 80).save(thumbnail, "JPEG")
        self.files |= {f"/files/{name}-thumbnail.jpg": thumbnail.getvalue()}
        item["assets"]["thumbnail"] = {"href": self.address(f"/files/{name}-thumbnail.jpg")}
        self.scenes += [item]
        return item


class ArchiveManager(BaseManager):
    """Starts the process."""


ArchiveManager.register("archive", ArchiveServer, Archive)


@contextmanager
def archive_process() -> Iterator[Callable[[], Archive]]:
    """The process, which lasts as long as the `with` block, and a function that makes an archive in it."""
    with ArchiveManager(ctx=multiprocessing.get_context("spawn")) as manager:
        yield manager.archive  # type: ignore[attr-defined]


class RequestHandler(BaseHTTPRequestHandler):
    """Answers GET and HEAD, with one range or none."""

    archive: ArchiveServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        self.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.do_GET()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        archive, path = self.archive, self.path
        with archive.lock:
            failures = archive.failures.get(path)
            failure = failures.pop(0) if failures else None
        if failure is not None:
            self.reply(failure, b"try again")
        elif path.startswith("/stac"):
            self.reply_catalogue(path.removeprefix("/stac").split("?")[0])
        elif path in archive.redirections:
            self.reply(302, b"", {"Location": archive.redirections[path]})
        elif not self.is_let_in():
            self.reply(200, LOGIN_PAGE, {"Content-Type": "text/html"})
        elif path not in archive.files:
            self.reply(404, b"<html>not found</html>", {"Content-Type": "text/html"})
        else:
            self.reply_file(archive.files[path])

    def is_let_in(self) -> bool:
        archive = self.archive
        if self.path.endswith(".json") or not (archive.cookie or archive.login):
            return True
        if archive.cookie and archive.cookie in self.headers.get("Cookie", ""):
            return True
        expected = "Basic " + base64.b64encode(":".join(archive.login or ()).encode()).decode()
        return archive.login is not None and self.headers.get("Authorization") == expected

    def reply_catalogue(self, path: str) -> None:
        host, scenes = self.archive.host, self.archive.scenes
        content: Any = None
        if path == "":
            conforms = [f"https://api.stacspec.org/v1.0.0/{name}" for name in ("core", "item-search")]
            links = [
                {"rel": "search", "href": f"{host}/stac/search", "method": "POST", "type": "application/geo+json"}
            ]
            content = {"type": "Catalog", "id": "eoc", "stac_version": "1.0.0", "description": "", "links": links}
            content |= {"conformsTo": conforms}
        elif path == "/search":
            # As in the archive, "ids" are no matter
            found = [item for item in scenes if item["collection"] in self.asked["collections"]]
            if "bbox" in self.asked:
                west, south, east, north = self.asked["bbox"]
                found = [item for item in found if item["bbox"][0] <= east and item["bbox"][2] >= west]
                found = [item for item in found if item["bbox"][1] <= north and item["bbox"][3] >= south]
            start = int(self.asked.get("token", 0))
            content = {"type": "FeatureCollection", "features": found[start : start + 2], "links": []}
            if start + 2 < len(found):
                body = {"token": start + 2}
                link = {"rel": "next", "href": f"{host}/stac/search", "method": "POST", "merge": True, "body": body}
                content["links"] = [link]
        else:
            own = [item for item in scenes if path == f"/collections/{item['collection']}/items/{item['id']}"]
            content = own[0] if own else None
        status = 404 if content is None else 200
        self.reply(status, json.dumps(content).encode(), {"Content-Type": "application/geo+json"})

    def reply_file(self, content: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        version = f'"{self.archive.versions.get(self.path, "1")}"'
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", "ETag": version}
        if asked is None or self.headers.get("If-Range", version) != version:
            return self.reply(200, content, headers, start=0)
        start, stop = int(asked[1]), min(int(asked[2] or len(content)) + 1, len(content))
        if start >= len(content):
            return self.reply(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self.reply(206, content[start:stop], headers, start=start)

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, start: int | None = None) -> None:
        """Sends an answer; `start` is the place of `body` in the file, or None for what is no file."""
        archive = self.archive
        cookie, authorization = (self.headers.get(name, "") for name in ("Cookie", "Authorization"))
        with archive.lock:
            archive.requests.append(Request(self.command, self.path, cookie, authorization, status))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        is_cut, is_silent = (
            start is not None and place is not None and start + len(body) > place
            for place in (archive.cut_from, archive.silent_from)
        )
        if is_cut and archive.cuts is not None:
            with archive.lock:
                is_cut = archive.cuts > 0
                archive.cuts -= 1
        body = body[: len(body) // 2] if is_cut or is_silent else body
        if start is not None:
            with archive.lock:
                archive.bytes_sent[self.path] = archive.bytes_sent.get(self.path, 0) + len(body)
        try:
            self.wfile.write(body)
            if is_silent:
                time.sleep(20)
            if is_cut or is_silent:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            self.close_connection = True  # the reader has gone


def write_archive_files(
    folder: Path, name: str = NAME, metadata: str = "METADATA.XML", image: str = "TIF", **changes: Any
) -> Path:
    """The small product with the names that the archive gives its files; `folder` may hold other scenes already."""
    product = write_small_product(folder / ".writing", name, **changes)
    for file in sorted(product.iterdir()):
        file.rename(folder / (f"{name}-{metadata}" if file.suffix == ".XML" else f"{file.stem}_COG.{image}"))
    shutil.rmtree(folder / ".writing")
    return folder


def write_image(path: Path, cube: np.ndarray, **profile: Any) -> Path:
    bands, height, width = cube.shape
    size = {"count": bands, "height": height, "width": width, "dtype": cube.dtype}
    grid = {"crs": "EPSG:32633", "transform": TRANSFORM, "nodata": ENMAP.nodata if bands > 1 else None}
    with rasterio.open(path, "w", **{"driver": "GTiff", **size, **grid, **profile}) as dataset:
        dataset.write(cube)
    return path


def cog(cube: np.ndarray, folder: Path) -> bytes:
    """A cloud-optimized GeoTIFF, in blocks of 128 x 128 pixels."""
    return write_image(folder / "cog.tif", cube, driver="COG", blocksize=128).read_bytes()


def small_item(base: str = DOWNLOADS, shape: tuple[int, int] = (HEIGHT, WIDTH), **properties: Any) -> dict[str, Any]:
    """An item of the small product as the catalogue gives them; `base` is the address of the folder of its files."""
    bands = [
        {
            "name": number,
            "center_wavelength": float(wavelength),
            "full_width_half_max": float(width),
            "enmap:gain_of_band": 0.0001,
            "enmap:offset_of_band": 0,
        }
        for number, (wavelength, width) in enumerate(zip(WAVELENGTHS, FWHM, strict=True), start=1)
    ]
    assets: dict[str, Any] = {name: {"href": f"{base}/{NAME}-{part}_COG.TIF"} for name, part in ASSETS.items()}
    assets["metadata"] = {"href": f"{base}/{NAME}-METADATA.XML"}
    assets["image"] |= {"proj:epsg": 32633, "proj:shape": list(shape), "eo:bands": bands}
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": NAME,
        "collection": "ENMAP_HSI_L2A",
        "geometry": None,
        "properties": {
            "datetime": "2022-12-03T17:20:49Z",
            "start_datetime": "2022-12-03T17:20:49.250000Z",
            "proj:epsg": None,
            "eo:cloud_cover": "7",
            "view:sun_elevation": 38.5,
            "processing:level": "L2A",
            "enmap:sunElevationAngle": "38.5",
            "enmap:water_cover": "2",
            **properties,
        },
        "assets": assets,
        "links": [],
    }


def write_item(path: Path, item: Any) -> Path:
    path.write_bytes(item if isinstance(item, bytes) else json.dumps(item).encode())
    return path


def closed_port() -> str:
    """An address where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


def set_plain_environment(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """No login of this machine's user, short waits, and nothing that stays behind in this process."""
    for name in (*REMOTE_SETTINGS, *OPENING_SETTINGS, "GDAL_HTTP_COOKIE", "GDAL_HTTP_NETRC_FILE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "5")
    for module in (archive, stac_items):
        monkeypatch.setattr(module, "RETRY_PAUSES", (0, 0, 0))


def log_in(monkeypatch: pytest.MonkeyPatch, home: Path, way: str, secret: str) -> None:
    """Gives the raster library a secret: "cookie", "netrc" (a file of any name), "home" (`~/.netrc`), or "none"."""
    if way == "cookie":
        monkeypatch.setenv("GDAL_HTTP_COOKIE", f"session={secret}")
    elif way != "none":
        file = home / {"netrc": "logins", "home": ".netrc"}[way]
        file.write_text(f"machine 127.0.0.1\nlogin student\npassword {secret}\n")
        file.chmod(0o600)
        if way == "netrc":
            monkeypatch.setenv("GDAL_HTTP_NETRC_FILE", str(file))


def assert_is_small_product(path: Path | str, **opening: Any) -> None:
    """The pixels, bands and quality layers are those of the small product."""
    with open_scene(path, **opening) as scene:
        assert scene.name == NAME
        np.testing.assert_array_equal(scene.read(), small_cube())
        np.testing.assert_array_equal(scene.wavelengths, WAVELENGTHS)
        np.testing.assert_array_equal(scene.read_excluded(kinds=["cloud"]), small_quality()["cloud"] == 1)
        np.testing.assert_array_equal(scene.read_excluded(kinds=["water"]), small_quality()["classes"] == 2)
        assert scene.product is not None and scene.product.acquisition_time == ACQUISITION_TIME
        assert scene.crs is not None and scene.crs.to_epsg() == 32633 and scene.transform == TRANSFORM


def read_scene(path: Path | str, **opening: Any) -> np.ndarray:
    with open_scene(path, **opening) as scene:
        return scene.read()


def read_clouds(path: Path | str) -> np.ndarray:
    with open_scene(path) as scene:
        return scene.read_excluded(kinds=["cloud"])


def read_tiles(path: Path | str, **opening: Any) -> Tiles:
    return read_tile_set(path, progress=False, **opening)


def assert_refused(path: Path | str, *words: str, where: Path | str | None = None, read: Any = read_scene) -> str:
    """Reading ends in one line: the path (or `where`), what was expected, what came, and in it these words."""
    with pytest.raises(ProductError) as error:
        read(path)
    message = str(error.value)
    assert message.startswith(f"{path if where is None else where}"), message
    assert re.search(": expected .+, got .+", message) and "\n" not in message, message
    for word in words:
        assert word in message, message
    return message

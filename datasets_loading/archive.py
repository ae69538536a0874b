"""The archive that serves EnMAP: its catalogue, and its files, whole or a window of them.

Follows the STAC API at https://geoservice.dlr.de/eoc/ogc/stac/v1. The catalogue is open to all; files are served to
registered users, whose login is found as `datasets_loading.stac_items` does. What is brought has the archive's own
file names, in a folder for each product, which appears when all of it is there: readers take a quality layer that is
missing as clear.
"""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import threading
import warnings
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager, suppress
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import numpy as np
import requests
from affine import Affine
from pystac_client import Client
from pystac_client.stac_api_io import StacApiIO
from rasterio.warp import transform_bounds
from rasterio.windows import Window
from rasterio.windows import transform as window_transform
from requests.adapters import HTTPAdapter
from tqdm.auto import tqdm
from urllib3 import Retry
from urllib3.exceptions import HTTPError

from datasets_loading.enmap_product import ASSETS, EnMAPProduct, product_part
from datasets_loading.files import only_writer, written_folder
from datasets_loading.raster_file import (
    LARGEST_TEXT,
    ProductError,
    check_fits,
    check_name,
    fail,
    parse_xml,
    raster_errors,
    to_count,
)
from datasets_loading.raster_formats import GdalFile
from datasets_loading.simulation.product_writer import write_raster
from datasets_loading.stac_items import (
    RETRY_PAUSES,
    TIMEOUT_SECONDS,
    Item,
    is_address,
    login_headers,
    looks_like_a_page,
    read_item,
    to_item,
)

LARGEST_FILE = 20_000_000_000
"""Bytes that a file may have; the largest of a scene, its spectral image, has some hundred million."""

FREE_BYTES = 100_000_000
"""What a download leaves free on the disk."""

_CHUNK = 2**18
_BUSY = (429, 500, 502, 503, 504)
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class LoginError(ProductError):
    """The archive gives a file to registered users only, and the login was refused, or there is none."""


class _Session(requests.Session):
    """
    Sends the login of an address there, and nowhere else: not to another host that a server sends its reader on to.
    Requests itself would look up each host in ~/.netrc, that of the catalogue and of a single sign-on, too.
    """

    def __init__(self, login: Callable[[str], dict[str, str]]):
        super().__init__()
        self.login = login
        self.auth = lambda request: request
        self.max_redirects = 5

    def rebuild_auth(self, prepared_request: Any, response: Any) -> None:
        prepared_request.headers.pop("Authorization", None)
        if urlsplit(prepared_request.url)[:2] == urlsplit(response.request.url)[:2]:
            prepared_request.headers.update(self.login(prepared_request.url))


class Archive:
    """A STAC API by its address, one collection of it, and the files that its items point to."""

    def __init__(self, catalogue: str, collection: str):
        self.catalogue, self.collection = catalogue.rstrip("/"), collection
        self._session = _Session(self._login)
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._answers: set[requests.Response] = set()
        self._coming = 0  # bytes of the files under way that are not on the disk yet

    def search(self, box: Sequence[float] | None, dates: str | None) -> Iterator[Item]:
        """Items in a box (west, south, east, north in degrees) and a range of dates (`2024-06-01/2024-08-31`).

        Raises:
            ProductError: the catalogue cannot be reached, or answers with something else than items of the collection.
        """
        with self._catalogue_errors():
            reader = StacApiIO(timeout=TIMEOUT_SECONDS)
            reader.session = _Session(lambda address: {})
            # Silence, and the answers of a busy server, are normal under load
            patience = Retry(
                len(RETRY_PAUSES),
                backoff_factor=RETRY_PAUSES[0],
                status_forcelist=_BUSY,
                allowed_methods=None,
                raise_on_status=False,
                respect_retry_after_header=False,  # a server does not say for how long this program waits
            )
            for scheme in ("https://", "http://"):
                reader.session.mount(scheme, HTTPAdapter(max_retries=patience))
            catalogue = Client.open(self.catalogue, stac_io=reader)
            bbox, collections = None if box is None else list(box), [self.collection]
            search = catalogue.search(collections=collections, bbox=bbox, datetime=dates, limit=50)
            contents, seen = search.items_as_dicts(), set()
        while True:
            with self._catalogue_errors():
                content = next(contents, None)
            if content is None:
                return
            item = self._checked(to_item(self.catalogue, content))
            if item.name not in seen:  # pages may shift while they are read
                seen.add(item.name)
                yield item

    def items(self, names: Iterable[str]) -> Iterator[Item]:
        """Items by their names, one by one: a search of this archive takes no names.

        Raises:
            ProductError: the catalogue has no such item, or cannot be reached.
        """
        for name in names:
            item = self._checked(read_item(self._address(check_name(name, "the list of products"))))
            if item.name != name:
                fail(item.source, f"the item {name}", item.name)
            yield item

    def thumbnail(self, item: Item) -> bytes | None:
        """The file of an item's thumbnail; None where it cannot be had."""
        try:
            return self._read(item.location("thumbnail").removeprefix("/vsicurl/"), 5_000_000)
        except ProductError:
            return None

    def download(
        self,
        items: Iterable[Item],
        folder: str | Path,
        *,
        jobs: int = 4,
        place: Window | Sequence[float] | None = None,
    ) -> dict[str, Path | ProductError]:
        """Brings the image, the metadata and the quality layers of items, or a window of them.

        A file that was brought before is not fetched again, and one that was cut off goes on where it ended.

        Args:
            folder: folder for a folder of each product.
            jobs: how many files, or windows of scenes, are brought at the same time.
            place: the pixels to bring of each scene, in place of whole files: a window, or a box (west, south, east,
                north in degrees).

        Returns:
            By the name of each item its folder, or why it could not be brought.

        Raises:
            LoginError: the archive refuses the login, or there is none.
            OSError: the disk is full, or cannot be written.
            ValueError: another process writes into the folder.
        """
        folder = Path(folder)
        results: dict[str, Path | ProductError] = {}
        unit: dict[str, Any] = {"unit": "B", "unit_scale": True} if place is None else {"unit": "file"}
        self._stopped.clear()
        bar: Any
        with only_writer(folder), tqdm(total=0, desc="fetching", **unit) as bar, ThreadPoolExecutor(jobs) as pool:
            work: dict[Future[Path], str] = {}
            try:
                for name, item in {item.name: item for item in items}.items():
                    try:
                        files = self._files(item)
                    except ProductError as error:
                        results[name] = error
                        continue
                    results[name], partial = folder / name, folder / f".{name}.partial"
                    if place is not None:
                        bar.total += len(files)
                        work[pool.submit(self._bring_window, name, files, folder, place, bar)] = name
                        continue
                    lacking = [file for file in files.values() if not (folder / name / file[1]).exists()]
                    work |= {pool.submit(self._bring, url, partial / file, bar): name for url, file in lacking}
                    if not lacking:
                        results[name] = _finish(folder / name, partial)
                left = Counter(work.values())
                for future in as_completed(work):
                    name, failure = work[future], future.exception()
                    left[name] -= 1
                    if isinstance(failure, ProductError) and not isinstance(failure, LoginError):
                        results[name] = failure
                    elif failure is not None:
                        raise failure
                    elif place is not None:
                        results[name] = future.result()
                    elif not left[name] and isinstance(results[name], Path):
                        results[name] = _finish(folder / name, folder / f".{name}.partial")
            except BaseException:
                self._stopped.set()
                for answer in list(self._answers):
                    with suppress(OSError, ValueError, RuntimeError):  # one that is over
                        answer.raw.shutdown()  # its thread waits for what may not come
                pool.shutdown(cancel_futures=True)
                raise
        return results

    def _address(self, name: str) -> str:
        collection = quote(self.collection, safe="")
        return f"{self.catalogue}/collections/{collection}/items/{quote(name)}?f=application%2Fgeo%2Bjson"

    def _checked(self, item: Item) -> Item:
        name = check_name(item.name, self.catalogue)
        if not name or name.startswith("."):
            fail(self.catalogue, "a name that folders can have", repr(name))
        if item.content.get("collection") != self.collection:
            fail(name, f"an item of the collection {self.collection}", repr(item.content.get("collection")))
        return Item(self._address(name), item.content)

    def _files(self, item: Item) -> dict[str, tuple[str, str]]:
        """Address and name of each file of a product, by its part, the spectral image first."""
        files = {}
        for asset, part in {**ASSETS, "metadata": "METADATA"}.items():
            address = item.location(asset).removeprefix("/vsicurl/")
            if not address and asset not in ("image", "metadata"):
                continue  # the reader of the product says which layers are missing
            name = unquote(PurePosixPath(urlsplit(address).path).name)
            if not is_address(address) or urlsplit(address).username is not None:
                fail(item.name, f"an address of the web without a login in it as {asset}", "none")
            if product_part(check_name(name, item.name)) != part or not name.startswith(item.name):
                fail(item.name, f"a file {item.name}-{part} of EnMAP as {asset}", repr(name))
            files[part] = address, name
        return files

    def _login(self, address: str) -> dict[str, str]:
        """
        Headers with the login for an address. A cookie names no host, so it goes to the catalogue's and what is below
        it; and no login goes where others could read it on the way.
        """
        headers = login_headers(address)
        own, other = urlsplit(self.catalogue), urlsplit(address)
        if not f".{other.hostname}".endswith(f".{own.hostname}"):
            headers.pop("Cookie", None)
        return {} if own.scheme == "https" and other.scheme != "https" else headers

    @contextmanager
    def _opened(self, address: str, **headers: str) -> Iterator[tuple[requests.Response, Iterator[bytes]]]:
        """An answer of the archive, and its bytes piece by piece; raises RequestException where it breaks off."""
        login = self._login(address)
        sent = {"Accept-Encoding": "identity", **login, **headers}
        with self._session.get(address, headers=sent, stream=True, timeout=TIMEOUT_SECONDS) as answer:
            self._answers.add(answer)
            self._check_stop()
            status = f"status {answer.status_code} ({answer.reason})"
            is_refused = answer.status_code in (401, 403)
            if answer.status_code in _BUSY:
                raise requests.ConnectionError(status)
            if not is_refused and answer.status_code not in (200, 206, 416):
                fail(_plain(address), "a file", status)
            pieces, first = _pieces(answer), b""
            with suppress(requests.RequestException):  # what came before is kept, and found to be too little
                while len(first) < 512 and (piece := next(pieces, b"")):
                    first += piece
            if is_refused or looks_like_a_page(first):
                host, came = urlsplit(address).hostname, status if is_refused else "a web page"
                hint = f"no login for {host} was found: put it into ~/.netrc, which only you may read (chmod 600)"
                if login:
                    hint = f"the login for {host} was refused: check it in ~/.netrc, or the cookie in GDAL_HTTP_COOKIE"
                raise LoginError(f"{_plain(address)}: expected a file, got {came}: {hint}")
            yield answer, chain([first], pieces)
        self._answers.discard(answer)

    def _patiently(self, address: str, work: Callable[[], Any], size: Callable[[], int] = int) -> Any:
        """Does what asks an address, again where the answer breaks off, until that adds nothing to `size`."""
        tries = 0
        while True:
            before = size()
            try:
                return work()
            except requests.RequestException as error:
                tries = 0 if size() > before else tries + 1
                if tries > len(RETRY_PAUSES):
                    fail(_plain(address), "a whole file", _reason(error))
                if self._stopped.wait(RETRY_PAUSES[max(0, tries - 1)]):
                    raise

    def _read(self, address: str, largest: int) -> bytes:
        def read() -> bytes:
            content = b""
            with self._opened(address) as (_, pieces):
                for piece in pieces:
                    content += piece
                    if len(content) > largest:
                        fail(_plain(address), f"a file of at most {largest:,} bytes", "more")
            return content

        return self._patiently(address, read)

    def _bring(self, address: str, path: Path, bar: Any) -> Path:
        """Brings a file, the rest of it where a part is there."""
        partial = path.with_name(f"{path.name}.partial")
        if not path.exists():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._patiently(address, lambda: self._go_on(address, partial, bar), lambda: _size(partial))
                partial.replace(path)
                partial.with_suffix(".tag").unlink(missing_ok=True)
            except requests.RequestException:  # is an OSError, too
                raise
            except OSError as error:
                reason = error.strerror or error
                raise OSError(f"{path}: expected a file that can be written, got: {reason}") from None
        return path

    def _go_on(self, address: str, partial: Path, bar: Any) -> None:
        """Brings what is missing of a file; raises RequestException where that breaks off."""
        start, tag, headers = _size(partial), partial.with_suffix(".tag"), {}
        if start and _size(tag):
            # A file that has changed since comes whole
            headers = {"Range": f"bytes={start}-", "If-Range": tag.read_text()}
        with self._opened(address, **headers) as (answer, pieces):
            span = re.fullmatch(r"bytes (?:\*|(\d+)-\d+)/(\d+)", answer.headers.get("Content-Range", ""))
            if answer.status_code == 416 and span and int(span[2]) == start:
                return
            if answer.status_code == 200:
                start, stated = 0, answer.headers.get("Content-Length")
            elif span and span[1] == str(start):
                stated = span[2]
            else:
                tag.unlink(missing_ok=True)  # so that the next try begins anew
                raise requests.ConnectionError("a part of the file that was not asked for")
            size = to_count(stated, "the size of the file", _plain(address))
            if size > LARGEST_FILE:
                fail(_plain(address), f"a file of at most {LARGEST_FILE:,} bytes", f"{size:,}")
            if start == 0:
                first = next(pieces)
                is_xml = first.lstrip(b"\xef\xbb\xbf \r\n").startswith(b"<")
                expected = "XML" if product_part(partial.stem) == "METADATA" else "a GeoTIFF"
                if not (is_xml if expected == "XML" else first.startswith(_TIFF_STARTS)):
                    fail(_plain(address), expected, "something else")
                version = answer.headers.get("ETag", "W/")
                tag.write_text(answer.headers.get("Last-Modified", "") if version.startswith("W/") else version)
                pieces = chain([first], pieces)
            left = size - start
            self._count(left, bar)
            try:
                free = shutil.disk_usage(partial.parent).free
                if self._coming + FREE_BYTES > free:
                    sizes = f"{free / 1e9:.2f} GB free on the disk, and {self._coming / 1e9:.2f} GB still to come"
                    raise OSError(errno.ENOSPC, sizes)
                with partial.open("ab" if start else "wb") as file:
                    for piece in pieces:
                        self._check_stop()
                        file.write(piece)
                        left -= len(piece)
                        with self._lock:
                            self._coming -= len(piece)
                            bar.update(len(piece))
                    os.fsync(file.fileno())
            finally:
                self._count(-left, bar)
        if left:  # an old library takes an answer that breaks off for a whole one
            raise requests.ConnectionError(f"{size - left:,} of {size:,} bytes")

    def _check_stop(self) -> None:
        if self._stopped.is_set():
            raise requests.ConnectionError("stopped")

    def _count(self, more: int, bar: Any) -> None:
        with self._lock:
            self._coming += more
            bar.total += more

    def _bring_window(
        self, name: str, files: dict[str, tuple[str, str]], folder: Path, place: Window | Sequence[float], bar: Any
    ) -> Path:
        """Reads a window of each file of a product, and writes them as a product of its own."""
        with closing(self._raster(files["SPECTRAL_IMAGE"][0])) as image:
            window, transform = _window_of(place, image, name)
            (top, bottom), (left, right) = window.toranges()
            grid: dict[str, Any] = {"crs": image.stated.crs, "transform": transform}
            target = folder / f"{name}_x{left:05d}_y{top:05d}_{bottom - top}x{right - left}"
            if target.exists():
                return target
            with written_folder(target) as partial:
                for part, (address, _) in files.items():
                    self._check_stop()
                    if part == "METADATA":
                        content = _of_window(self._read(address, LARGEST_TEXT), target.name, image.shape, window)
                        (partial / f"{target.name}-{part}.XML").write_bytes(content)
                    else:
                        file = image if part == "SPECTRAL_IMAGE" else self._raster(address)
                        with closing(file):
                            values, nodata = _read_window(file, window, image.shape), file.stated.nodata
                        if file is image and (values == nodata).all():
                            fail(name, f"pixels with data in the window {target.name[len(name) + 1 :]}", "none")
                        write_raster(partial / f"{target.name}-{part}.TIF", values, nodata=nodata, **grid)
                    with self._lock:
                        bar.update()
                _checked(partial)
        return target

    def _raster(self, address: str) -> GdalFile:
        """
        A raster of the archive, opened by the raster library. That one sends a cookie to every host, and on to those
        that a server sends its reader to: so it only gets addresses where this has been found not to happen.
        """

        def final_address() -> str:
            with self._opened(address, Range="bytes=0-511") as (answer, _):
                return answer.url

        final = urlsplit(self._patiently(address, final_address))
        if final[:2] != urlsplit(address)[:2] or self._login(address) != login_headers(address):
            got = f"{final.hostname}: fetch whole files"
            fail(_plain(address), "a host that the login is for, to read a window", got)
        return GdalFile(f"/vsicurl/{address}")

    @contextmanager
    def _catalogue_errors(self) -> Iterator[None]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about what a catalogue says it conforms to
                yield
        except Exception as error:  # the libraries have many kinds for what a server may answer
            status = getattr(error, "status_code", None)
            came = f"status {status}" if status else _reason(error)
            fail(self.catalogue, "a STAC catalogue that can be searched", came)


def _finish(target: Path, partial: Path) -> Path | ProductError:
    """Moves the files of a product to their place, if they can be read; gives the product, or the error."""
    if partial.is_dir() and target.is_dir():
        for file in partial.iterdir():
            file.replace(target / file.name)
        partial.rmdir()
    try:
        if not partial.is_dir():
            return _checked(target)
        return _checked(partial).replace(target)
    except ProductError as error:
        return ProductError(f"{error} (remove the folder to fetch it again)")


def _checked(product: Path) -> Path:
    """A product, which raises ProductError where it cannot be read."""
    with EnMAPProduct.open(product, radiance=True) as opened:
        _ = opened.raster
    return product


def _window_of(place: Window | Sequence[float], image: GdalFile, name: str) -> tuple[Window, Affine]:
    """The pixels of an image that a place means, and their transform: a box in degrees is cut to the image."""
    crs, transform, (height, width) = image.stated.crs, image.stated.transform, image.shape[1:]
    if crs is None or transform is None:
        fail(name, "a spectral image that states where it lies", "none")
    size = f"{height} x {width} pixels"
    if isinstance(place, Window):
        (top, bottom), (left, right) = place.toranges()
        if bottom > height or right > width:
            fail(name, f"a window inside {size}", f"rows {top} to {bottom}, columns {left} to {right}")
    else:
        with raster_errors(name):
            west, south, east, north = transform_bounds("EPSG:4326", crs, *place, densify_pts=21)
        corners = np.array([~transform @ (west, north), ~transform @ (east, south)])
        columns, rows = np.nan_to_num(corners, nan=-1.0).clip(-1, 1e9).T
        (top, bottom), (left, right) = (
            (max(0, math.floor(min(ends))), math.ceil(max(ends))) for ends in (rows, columns)
        )
        bottom, right = min(bottom, height), min(right, width)
        if top >= bottom or left >= right:
            fail(name, f"a scene of {size} that the box touches", "one outside of it")
    window = Window(left, top, right - left, bottom - top)
    return window, window_transform(window, transform)


def _read_window(file: GdalFile, window: Window, shape: tuple[int, ...]) -> np.ndarray:
    """Stored numbers of all bands, (bands, height, width)."""
    if file.shape[1:] != shape[1:]:
        fail(file.location, f"the size of the spectral image, {shape[1:]}", f"{file.shape[1:]}")
    check_fits(file.location, 2.0 * file.shape[0] * window.height * window.width * file.dtype.itemsize, "a window")
    return file.read(range(file.shape[0]), *window.toslices())


def _of_window(content: bytes, name: str, shape: tuple[int, ...], window: Window) -> bytes:
    """METADATA.XML of a product's window, with its own name and size; its outline is left to the rasters."""
    root = parse_xml(content, f"{name}-METADATA.XML")
    height, width = str(int(window.height)), str(int(window.width))
    comment = f"Window of a product of {shape[1]} x {shape[2]} pixels, whose statistics and quality figures these are"
    texts = {"metadata/name": f"{name}-METADATA.XML", "metadata/comment": comment}
    texts |= {"specific/heightOfOrthoScene": height, "specific/widthOfOrthoScene": width}
    texts |= {"product/image/merge/dimension/rows": height, "product/image/merge/dimension/columns": width}
    for path, text in texts.items():
        for element in root.findall(path):
            element.text = text
    for coverage in root.findall("base/spatialCoverage"):
        for outline in coverage.findall("boundingPolygon"):
            coverage.remove(outline)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def _pieces(answer: requests.Response) -> Iterator[bytes]:
    """The bytes of an answer as they come; requests itself loses those of a piece that breaks off."""
    try:
        while piece := answer.raw.read1(_CHUNK):
            yield piece
    except HTTPError as error:
        raise requests.ConnectionError(str(error)) from None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _plain(address: str) -> str:
    """An address without what stands after the path, which may be a secret."""
    return address.split("?")[0].split("#")[0]


def _reason(error: BaseException) -> str:
    """What went wrong, in few words and without the address, which the libraries repeat."""
    text = str(error)
    system = re.search(r"\[Errno -?\d+\] ([^'\")\]]+)", text)
    if system:
        return system[1]
    if re.search("timed out|timeout", text, re.I):
        return f"no answer within {TIMEOUT_SECONDS} s"
    return (text or type(error).__name__) if len(text) <= 100 else f"an answer that broke off ({type(error).__name__})"

"""What every image file is to its readers: numbers as they are stored, and what the file states about them.

A reader of a format (`datasets_loading.rasters`, `datasets_loading.spectrometers`) gives a `RasterFile`. It applies no
rule and guesses nothing: `datasets_loading.rasters.open_raster` does, in one place, for all formats.
"""

from __future__ import annotations

import importlib
import os
import re
import warnings
import xml.etree.ElementTree as ElementTree
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NoReturn, Self

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError

LARGEST_TEXT = 2**26
"""Bytes that metadata and other texts beside an image may have; those of products have about 300,000."""

_MOST_ELEMENTS, _DEEPEST_ELEMENT = 500_000, 100
_LONGEST_NAME = 200
_LARGEST_CHUNK = 2**31


class ProductError(ValueError):
    """A file that cannot be used. The message is one line: the file, what was expected, and what came."""


@dataclass(eq=False)
class Stated:
    """What a file states about its numbers. Bands are in the order of the file; None where the file states nothing.

    Attributes:
        wavelengths, fwhm: band centers and full widths at half maximum in nm, float64 (bands,) each.
        good_bands: which bands are to be used, bool (bands,).
        gain, offset: `quantity` = stored number * gain + offset, float64 (bands,) each.
        nodata: stored number of a pixel without data, of all bands or of each, float64 (bands,).
        quantity: "reflectance" (1 = all light), "radiance", "uncertainty", or None.
        called: what it calls its numbers, as "surface_reflectance", which is no scale.
        crs, transform: coordinate reference system, and from (column, row) to its coordinates.
        name: name of the product or file.
        metadata: what the file says about itself, for people.
        notes: what was assumed where the file states nothing, a phrase each.
    """

    wavelengths: np.ndarray | None = None
    fwhm: np.ndarray | None = None
    good_bands: np.ndarray | None = None
    gain: np.ndarray | None = None
    offset: np.ndarray | None = None
    nodata: float | np.ndarray | None = None
    quantity: str | None = None
    called: str = ""
    crs: CRS | None = None
    transform: Affine | None = None
    name: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class RasterFile(ABC):
    """A file's numbers as they are stored, with bands in the order of the file.

    It may be pickled and used after a fork: every process opens the file for itself, at its first reading, for a file
    position must not be shared.

    Attributes:
        shape: (bands, height, width).
        dtype: type of the stored numbers.
        block_shape: (height, width) of the blocks that the file is stored in.
        stated: what the file states about them.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    block_shape: tuple[int, int]
    stated: Stated

    def __init__(self) -> None:
        self._handles: dict[int, Any] = {}

    @abstractmethod
    def read(self, bands: Sequence[int], rows: slice, columns: slice) -> np.ndarray:
        """Stored numbers of some bands (from 0) in a window, (bands, height, width) of type `dtype`.

        Raises:
            ProductError: the file is damaged.
            IndexError: there is no such band.
        """

    def read_mask(self, rows: slice, columns: slice) -> np.ndarray | None:
        """Which pixels of a window hold data by the file's own mask, bool (height, width); None without a mask."""
        return None

    @abstractmethod
    def _open(self) -> Any:
        """Opens the file in this process."""

    def _handle(self) -> Any:
        process = os.getpid()
        if process not in self._handles:
            self._handles[process] = self._open()
        return self._handles[process]

    def close(self) -> None:
        """Closes the file; a later reading opens it again."""
        for handle in self._handles.values():
            handle.close()
        self._handles.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}}


class Closing(ABC):
    """What is closed at the end of `with`."""

    @abstractmethod
    def close(self) -> None:
        """Closes the files."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def fail(where: object, expected: str, got: str) -> NoReturn:
    """Raises ProductError with one line: the file, what was expected, and what came."""
    where = str(where).removeprefix("/vsicurl/")
    archive = re.match(r"/vsi[a-z]+/{(.*?)}(/.*)?$", str(where))
    place = archive[1] + (archive[2] or "") if archive else where
    # A path stays as it is, with all of its spaces: it can be copied from the message
    raise ProductError(f"{' '.join(place.splitlines())}: " + " ".join(f"expected {expected}, got {got}".split()))


@contextmanager
def raster_errors(location: str) -> Iterator[None]:
    """Turns an error of the raster library into a ProductError of one line, which names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            yield
    except RasterioError as error:
        reason = str(error.__cause__ or error).replace(location, PurePosixPath(location).name)
        if "not recognized as being in a supported file format" in reason:
            reason = "no GeoTIFF, ENVI image with its header or JPEG 2000 (gdal_translate makes a GeoTIFF of others)"
        fail(location, "a whole, readable raster", reason)


def walk_files(folder: Path) -> list[Path]:
    """Files under a folder, sorted by path: in linked folders too, each once, and none that is hidden."""
    found, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(parent)
        if place in seen:
            folders.clear()  # a link to a folder above, or a second one to the same
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())


def is_hidden(path: PurePath) -> bool:
    """Whether a file, or a folder above it, is hidden: a product being written, or a twin "._" left by an archiver."""
    return any(part.startswith(".") for part in path.parts)


def read_text_file(path: Path, expected: str, largest: int = LARGEST_TEXT) -> bytes:
    """What a file of text holds; raises ProductError where there is none, or it is larger than such files are."""
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except OSError as error:
        fail(path, expected, f"none ({error.strerror or error})")
    if len(content) > largest:
        fail(path, f"{expected}, at most {largest:,} bytes", f"{path.stat().st_size:,}")
    return content


def decode_text(content: bytes) -> str:
    """The text of a file that may be in UTF-16 with a byte order mark, UTF-8 or Windows-1252, as Excel writes."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def available_memory() -> int:
    """Bytes that this process can have without paging: what the system, its container and its limits leave."""
    amounts = _memory_of_system(), _memory_of_container(), _memory_of_process()
    return max(0, min(amount for amount in amounts if amount is not None))


def _memory_of_system() -> int:
    try:
        text = Path("/proc/meminfo").read_text()
        return int(re.search(r"MemAvailable:\s+(\d+)", text)[1]) * 1024  # type: ignore[index]
    except (OSError, TypeError):
        if hasattr(os, "sysconf"):
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        return 8_000_000_000


def _memory_of_container() -> int | None:
    """As control groups (version 2) limit it; what the group reads from files is freed when it is needed."""
    try:
        folder = Path("/sys/fs/cgroup")
        limit, used = int((folder / "memory.max").read_text()), int((folder / "memory.current").read_text())
        files = re.search(r"^inactive_file (\d+)", (folder / "memory.stat").read_text(), re.M)
        return limit - used + (int(files[1]) if files else 0)
    except (OSError, ValueError):  # no such group, or "max"
        return None


def _memory_of_process() -> int | None:
    """As `ulimit -v` limits it."""
    try:
        resource = importlib.import_module("resource")
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        return None if limit == resource.RLIM_INFINITY else limit - pages * resource.getpagesize()
    except (ImportError, OSError):  # on Windows, and where there is no /proc
        return None


def check_fits(where: object, size: float, what: str) -> None:
    """Raises ProductError where something of so many bytes would not fit into half of the free memory."""
    if size > available_memory() / 2:
        fail(where, f"{what} that fits into half of the free memory", f"one of {size / 1e9:,.1f} GB")


def check_hdf5(dataset: Any, file: Any, where: object) -> None:
    """Raises ProductError where an array of an HDF5 file lies in another file, or in pieces too large for memory."""
    if dataset.file.filename != file.filename or dataset.external or dataset.is_virtual:
        fail(where, f"numbers of {dataset.name} in the file itself", "a link to another file")
    size = float(np.prod(dataset.chunks or (0,), dtype=float)) * dataset.dtype.itemsize
    if size > _LARGEST_CHUNK:
        fail(where, f"chunks below {_LARGEST_CHUNK} bytes in {dataset.name}", f"{dataset.chunks} of {dataset.dtype}")
    check_fits(where, size, f"a chunk of {dataset.name}")


def leads_outside(name: str) -> bool:
    """Whether a name that a file states would lead out of the folder it is looked for in."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or "\0" in name or re.match("[a-z]:", name, re.I) is not None


def check_name(name: str, where: object) -> str:
    """The name of a product, if it can be that of a file; raises ProductError otherwise."""
    if not name.isprintable() or "/" in name or leads_outside(name) or len(name) > _LONGEST_NAME:
        fail(where, "a name that files can have", ascii(name[:_LONGEST_NAME]))
    return name


class _BoundedBuilder(ElementTree.TreeBuilder):
    """
    Stops at a document type declaration, because products have none and entities can only be declared in one, and at
    more or deeper elements than products have, because an element takes a hundred times the memory of its text.
    """

    count = depth = 0

    def start(self, tag: str, attributes: dict[str, str]) -> ElementTree.Element:
        self.count, self.depth = self.count + 1, self.depth + 1
        if self.count > _MOST_ELEMENTS or self.depth > _DEEPEST_ELEMENT:
            raise ElementTree.ParseError(f"more than {_MOST_ELEMENTS:,} elements, or {_DEEPEST_ELEMENT} in each other")
        return super().start(tag, attributes)

    def end(self, tag: str) -> ElementTree.Element:
        self.depth -= 1
        return super().end(tag)

    def doctype(self, name: str, public_id: str | None, system: str | None) -> None:
        raise ElementTree.ParseError("a document type declaration")


def parse_xml(content: bytes, where: object) -> ElementTree.Element:
    """The root of an XML document; raises ProductError where it is none, or declares a document type."""
    parser = ElementTree.XMLParser(target=_BoundedBuilder())
    try:
        for start in range(0, len(content), 2**16):  # after an error, the parser goes on to the end of what it was fed
            parser.feed(content[start : start + 2**16])
        return parser.close()
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        fail(where, "well-formed XML", f"{error or 'none'}")


def to_number(text: str | None, expected: str, where: object) -> float:
    """A finite number from a text; raises ProductError where it is none."""
    try:
        number = float(text or "")
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        fail(where, expected, "none" if text is None or not text.strip() else repr(text))
    return number


def to_count(value: object, expected: str, where: object) -> int:
    """A whole number above 0; raises ProductError where the value is none."""
    number = to_number(None if value is None else str(value), expected, where)
    if number < 1 or number != int(number):
        fail(where, expected, f"{number:g}")
    return int(number)


def to_time(text: str, expected: str, where: object) -> datetime:
    """A time in UTC, which a text without a time zone is taken for; raises ProductError where it is none."""
    try:
        time = datetime.fromisoformat(text)
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # the latter at the ends of the calendar
        fail(where, expected, repr(text))


def to_elevation(text: str | None, expected: str, where: object) -> float:
    """Degrees of the sun above the horizon; raises ProductError where the text says none."""
    number = to_number(text, expected, where)
    if not -90 <= number <= 90:
        fail(where, f"{expected}, -90 to 90", f"{number:g}")
    return number

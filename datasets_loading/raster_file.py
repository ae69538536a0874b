"""What every image file is to its readers: numbers as they are stored, and what the file states about them.

A reader of a format (`datasets_loading.rasters`, `datasets_loading.spectrometers`) gives a `RasterFile`. It applies no
rule and guesses nothing: `datasets_loading.rasters.open_raster` does, in one place, for all formats.
"""

from __future__ import annotations

import os
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import NoReturn, Protocol

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError


class ProductError(ValueError):
    """A file that cannot be used. The message is one line: the file, what was expected, and what came."""


@dataclass(eq=False)
class Stated:
    """What a file states about its numbers. Bands are in the order of the file; None where the file states nothing.

    Attributes:
        wavelengths: band centres in nm, float64 (bands,).
        fwhm: full width at half maximum of each band in nm, float64 (bands,).
        good_bands: which bands are to be used, bool (bands,).
        gain: factor from stored number to `quantity`, float64 (bands,).
        offset: value of the stored number 0, float64 (bands,).
        nodata: stored number of a pixel without data, of all bands or of each, float64 (bands,).
        quantity: what stored number * gain + offset is: "reflectance" (1 = all light), "radiance", or None.
        crs: coordinate reference system.
        transform: from (column, row) to coordinates.
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
    crs: CRS | None = None
    transform: Affine | None = None
    name: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class RasterFile(Protocol):
    """A file's numbers as they are stored, with bands in the order of the file.

    It may be pickled and used after a fork: it opens its file at the first reading in each process.

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

    def read(self, bands: Sequence[int], rows: slice, columns: slice) -> np.ndarray:
        """Stored numbers of some bands (from 0) in a window, (bands, height, width) of type `dtype`.

        Raises:
            ProductError: the file is damaged.
        """

    def read_mask(self, rows: slice, columns: slice) -> np.ndarray | None:
        """Which pixels of a window hold data by the file's own mask, bool (height, width); None without a mask."""

    def close(self) -> None:
        """Closes the file; a later reading opens it again."""


def fail(where: object, expected: str, got: str) -> NoReturn:
    """Raises ProductError with one line: the file, what was expected, and what came."""
    where = str(where).removeprefix("/vsicurl/")
    archive = re.match(r"/vsi[a-z]+/{(.*?)}(/.*)?$", str(where))
    place = archive[1] + (archive[2] or "") if archive else where
    raise ProductError(" ".join(f"{place}: expected {expected}, got {got}".split()))


@contextmanager
def raster_errors(location: str) -> Iterator[None]:
    """Turns an error of the raster library into a ProductError of one line, which names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            yield
    except RasterioError as error:
        reason = str(error.__cause__ or error).replace(location, PurePosixPath(location).name)
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


class _BuilderWithoutDoctype(ElementTree.TreeBuilder):
    """Stops at a document type declaration: products have none, and entities can only be declared in one."""

    def doctype(self, name: str, public_id: str | None, system: str | None) -> None:
        raise ElementTree.ParseError("a document type declaration")


def parse_xml(content: bytes, where: object) -> ElementTree.Element:
    """The root of an XML document; raises ProductError where it is none, or declares a document type."""
    try:
        return ElementTree.fromstring(content, parser=ElementTree.XMLParser(target=_BuilderWithoutDoctype()))
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

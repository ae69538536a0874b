"""One EnMAP level 2A product: its metadata, its bands in ascending wavelength, its quality layers, read by window.

Follows the EnMAP HSI Level 2A Product Specification (DLR, EN-PCV-ICD-2009). A product is a folder or a ZIP with one
METADATA.XML, one spectral image (int16, reflectance = stored number * gain + offset) and quality layers on the same
grid. Names of folders and archives are never relied on: the metadata file is searched for, and what stands beside it
under the same prefix belongs to it. The band order of the spectral image is not relied on either: each band's
wavelength comes from METADATA.XML, and all bands are given in ascending wavelength.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
import xml.etree.ElementTree as ElementTree
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path, PurePath, PurePosixPath
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from datasets_loading.sensors import ENMAP

logger = logging.getLogger(__name__)

QUALITY_LAYERS = {
    "classes": "QL_QUALITY_CLASSES",
    "cloud": "QL_QUALITY_CLOUD",
    "cloud_shadow": "QL_QUALITY_CLOUDSHADOW",
    "haze": "QL_QUALITY_HAZE",
    "cirrus": "QL_QUALITY_CIRRUS",
    "snow": "QL_QUALITY_SNOW",
    "test_flags": "QL_QUALITY_TESTFLAGS",
    "pixel_mask": "QL_PIXELMASK",
}
"""Name of each quality layer here, and the part of the file name that it has in a product."""

CLASS_LAND, CLASS_WATER, CLASS_OUTSIDE = 1, 2, 3
"""Values of the layer "classes"; 0 is background: in the scene, and neither land nor water."""

EMPTY_BAND_MEAN = -1_000_000
"""Mean that METADATA.XML states for a band without data."""

_PARTS = ("METADATA", "SPECTRAL_IMAGE", "QL_VNIR", "QL_SWIR", *QUALITY_LAYERS.values())
_FILE_NAME = re.compile(rf"(?P<prefix>|.*?[-_])(?P<part>{'|'.join(_PARTS)})(_COG)?\.(?P<extension>[a-z0-9]+)", re.I)
_RASTER_EXTENSIONS = ("tif", "tiff", "bsq", "bil", "bip", "jp2")

# Copies whose raster carries its own wavelengths may differ from METADATA.XML by a calibration, not by a band.
_WAVELENGTH_TOLERANCE = 1.0


class ProductError(ValueError):
    """A file that cannot be used. The message is one line: the file, what was expected, and what came."""


def find_products(folder: str | Path) -> list[Path]:
    """METADATA.XML files and ZIP archives under a folder, sorted by path; each can be given to `EnMAPProduct.open`."""
    folder = Path(folder)
    files = (path for path in folder.rglob("*") if path.is_file() and not is_hidden(path.relative_to(folder)))
    return sorted(path for path in files if path.suffix.lower() == ".zip" or product_part(path.name) == "METADATA")


def is_hidden(path: PurePath) -> bool:
    """Whether a file, or a folder above it, is hidden: a product being written, or a twin "._" left by an archiver."""
    return any(part.startswith(".") for part in path.parts)


def product_part(file_name: str) -> str | None:
    """The part of a product that a file is by its name, such as "SPECTRAL_IMAGE", or None."""
    match = _FILE_NAME.fullmatch(file_name)
    return match["part"].upper() if match else None


@dataclass(eq=False)
class EnMAPProduct:
    """An EnMAP level 2A product, made by `EnMAPProduct.open`.

    Bands are 0-based and in ascending wavelength everywhere. Rasters are opened at the first reading and stay open:
    use the product as a context manager, or call `close`. It may be pickled, and used after a fork; one object must
    not be used by two threads at a time.

    Attributes:
        path: folder, ZIP or METADATA.XML that was opened.
        name: name of the product, from its metadata or, where that states none, from its file names.
        wavelengths: band centres in nm, ascending, float64 (bands,).
        fwhm: full width at half maximum in nm, float64 (bands,).
        gain: factor from stored number to reflectance, float64 (bands,).
        offset: reflectance of the stored number 0, float64 (bands,).
        detectors: "VNIR", "SWIR" or, where the metadata do not say, "unknown", one per band.
        file_bands: 1-based band of the spectral image that holds each band, int64 (bands,).
        shape: (height, width) in pixels.
        acquisition_time: start of the acquisition, in UTC.
        sun_elevation: sun elevation at the centre of the scene in degrees.
        missing_layers: names of the quality layers that the product lacks.
    """

    path: Path
    name: str
    wavelengths: np.ndarray
    fwhm: np.ndarray
    gain: np.ndarray
    offset: np.ndarray
    detectors: tuple[str, ...]
    file_bands: np.ndarray
    shape: tuple[int, int]
    acquisition_time: datetime
    sun_elevation: float
    missing_layers: tuple[str, ...]
    _stated_valid_bands: np.ndarray | None = field(repr=False)
    _locations: dict[str, str] = field(repr=False)
    _datasets: dict[tuple[int, str], Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def open(cls, path: str | Path) -> EnMAPProduct:
        """Opens a product and reads its METADATA.XML, and nothing else.

        Args:
            path: a folder or a ZIP with one product at any depth, or a METADATA.XML. A ZIP is not unpacked.

        Raises:
            ProductError: no or several METADATA.XML, a ZIP that is not whole, malformed XML, or XML in which the list
                of bands, a wavelength, the size, the time or the sun elevation is missing or contradictory.
        """
        path = Path(path)
        content, metadata_file, locations = _find_files(path)
        where = f"{path}/{metadata_file}" if path.suffix.lower() != ".xml" else str(path)
        root = _parse_xml(content, where)
        numbers, wavelengths, fwhm, gain, offset = _read_bands(root, where)
        order = np.argsort(wavelengths)
        missing_layers = tuple(layer for layer, part in QUALITY_LAYERS.items() if part not in locations)
        product = cls(
            path=path,
            name=_read_name(root, metadata_file),
            wavelengths=wavelengths[order],
            fwhm=fwhm[order],
            gain=gain[order],
            offset=offset[order],
            detectors=_read_detectors(root, numbers[order], where),
            file_bands=numbers[order],
            shape=_read_shape(root, where),
            acquisition_time=_read_time(root, where),
            sun_elevation=_read_sun_elevation(root, where),
            missing_layers=missing_layers,
            _stated_valid_bands=_read_valid_bands(root, numbers[order], where),
            _locations=locations,
        )
        if missing_layers:
            logger.warning("%s: quality layers missing, taken as clear: %s", product.name, ", ".join(missing_layers))
        return product

    @property
    def num_bands(self) -> int:
        return len(self.wavelengths)

    @cached_property
    def valid_bands(self) -> np.ndarray:
        """Which bands hold data, bool (bands,).

        As the band statistics in METADATA.XML say. A product that states none is read once, row by row of blocks:
        a band then holds data where any of its pixels does.

        Raises:
            ProductError: the spectral image has to be read for it and cannot be.
        """
        if self._stated_valid_bands is not None:
            return self._stated_valid_bands
        valid = np.zeros(self.num_bands, dtype=bool)
        for window in row_windows(self.shape, 64):
            valid |= (self.read(window) != ENMAP.nodata).any(axis=(1, 2))
        return valid

    @cached_property
    def _grid(self) -> tuple[CRS, Affine]:
        # The layers share the grid of the spectral image: where that is damaged, a layer still says where it lies.
        try:
            dataset = self._spectral_image()
        except ProductError:
            if "classes" in self.missing_layers:
                raise
            dataset = self._open_raster(QUALITY_LAYERS["classes"])
        return dataset.crs, dataset.transform

    @property
    def crs(self) -> CRS:
        """Coordinate reference system, from the raster's header; raises ProductError where that is unreadable."""
        return self._grid[0]

    @property
    def transform(self) -> Affine:
        """From (column, row) to coordinates in the unit of the CRS; raises ProductError as `crs` does."""
        return self._grid[1]

    @property
    def block_shape(self) -> tuple[int, int]:
        """(height, width) of the blocks that the spectral image is stored in; raises ProductError as `read` does."""
        return self._spectral_image().block_shapes[0]

    def read(self, window: Window | None = None, bands: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Stored numbers of chosen bands, int16 (bands, height, width), with nodata -32768.

        Args:
            window: part of the scene; the whole scene by default.
            bands: indices in ascending wavelength; all bands by default.

        Raises:
            ProductError: the spectral image is missing, damaged, or not what METADATA.XML describes.
            ValueError: the window reaches beyond the scene.
        """
        file_bands = self.file_bands if bands is None else self.file_bands[np.asarray(bands, dtype=np.int64)]
        dataset = self._spectral_image()
        stored = self._read_raster(dataset, [int(band) for band in file_bands], window)
        return to_stored_numbers(stored, dataset.nodata, dataset.name)

    def read_reflectance(
        self, window: Window | None = None, bands: Sequence[int] | np.ndarray | None = None
    ) -> np.ndarray:
        """Reflectance of chosen bands, float32 (bands, height, width), NaN without data. Arguments as in `read`."""
        chosen = np.arange(self.num_bands) if bands is None else np.asarray(bands, dtype=np.int64)
        stored = self.read(window, chosen)
        reflectance = stored * self.gain[chosen, None, None] + self.offset[chosen, None, None]
        return np.where(stored == ENMAP.nodata, np.nan, reflectance).astype(np.float32)

    def read_layer(self, layer: str, window: Window | None = None) -> np.ndarray:
        """Values of a quality layer, uint8 (height, width); zeros, with a warning, where the product lacks it.

        Args:
            layer: a key of `QUALITY_LAYERS` other than "pixel_mask", which has bands (see `read_defective`).
            window: part of the scene; the whole scene by default.

        Raises:
            ProductError: the layer is there but damaged, or of another size than the scene.
        """
        if layer in self.missing_layers:
            self._warn_of_missing(layer)
            return np.zeros(self._window_shape(window), dtype=np.uint8)
        return self._read_raster(self._open_raster(QUALITY_LAYERS[layer]), 1, window).astype(np.uint8)

    def read_cloud(self, window: Window | None = None) -> np.ndarray:
        """Pixels classified as cloud, bool (height, width)."""
        return self.read_layer("cloud", window) == 1

    def read_cloud_shadow(self, window: Window | None = None) -> np.ndarray:
        """Pixels classified as shadow of a cloud, bool (height, width)."""
        return self.read_layer("cloud_shadow", window) == 1

    def read_haze(self, window: Window | None = None) -> np.ndarray:
        """Pixels classified as haze, bool (height, width)."""
        return self.read_layer("haze", window) == 1

    def read_snow(self, window: Window | None = None) -> np.ndarray:
        """Pixels classified as snow, bool (height, width)."""
        return self.read_layer("snow", window) == 1

    def read_cirrus_level(self, window: Window | None = None) -> np.ndarray:
        """Cirrus, uint8 (height, width): 0 none, 1 thin, 2 medium, 3 thick."""
        return self.read_layer("cirrus", window)

    def read_outside(self, window: Window | None = None) -> np.ndarray:
        """Pixels off the swath, bool (height, width); from the spectral image where the product lacks its classes."""
        if "classes" in self.missing_layers:
            self._warn_of_missing("classes")
            first_valid_band = int(np.argmax(self.valid_bands))
            return self.read(window, [first_valid_band])[0] == ENMAP.nodata
        return self.read_layer("classes", window) == CLASS_OUTSIDE

    def read_defective(
        self, window: Window | None = None, bands: Sequence[int] | np.ndarray | None = None
    ) -> np.ndarray:
        """Defective pixels of chosen bands, bool (bands, height, width). Arguments as in `read`."""
        file_bands = self.file_bands if bands is None else self.file_bands[np.asarray(bands, dtype=np.int64)]
        if "pixel_mask" in self.missing_layers:
            self._warn_of_missing("pixel_mask")
            return np.zeros((len(file_bands), *self._window_shape(window)), dtype=bool)
        dataset = self._open_raster(QUALITY_LAYERS["pixel_mask"])
        if dataset.count != self.num_bands:
            _fail(dataset.name, f"{self.num_bands} bands as in METADATA.XML", f"{dataset.count}")
        return self._read_raster(dataset, [int(band) for band in file_bands], window) == 1

    def close(self) -> None:
        """Closes the rasters; a later reading opens them again."""
        for dataset in self._datasets.values():
            dataset.close()
        self._datasets.clear()

    def __enter__(self) -> EnMAPProduct:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_datasets": {}}

    def _spectral_image(self) -> Any:
        dataset = self._open_raster("SPECTRAL_IMAGE")
        if dataset.count != self.num_bands:
            _fail(dataset.name, f"{self.num_bands} bands as in METADATA.XML", f"{dataset.count}")
        return dataset

    def _open_raster(self, part: str) -> Any:
        # A file position must not be shared between processes: each opens its own after a fork.
        key = (os.getpid(), part)
        if key in self._datasets:
            return self._datasets[key]
        if part not in self._locations:
            _fail(str(self.path), f"a file {self.name}-{part}.TIF", "none")
        location = self._locations[part]
        with raster_errors(location):
            dataset = rasterio.open(location)
        if dataset.shape != self.shape:
            _fail(location, f"{_size(self.shape)} pixels as in METADATA.XML", _size(dataset.shape))
        if part == "SPECTRAL_IMAGE":
            self._check_wavelengths(dataset)
        self._datasets[key] = dataset
        return dataset

    def _check_wavelengths(self, dataset: Any) -> None:
        tagged, _ = band_tags(dataset)
        if tagged is None or dataset.count != self.num_bands:
            return
        differences = np.abs(tagged[self.file_bands - 1] - self.wavelengths)
        if differences.max() > _WAVELENGTH_TOLERANCE:
            worst = int(differences.argmax())
            _fail(
                dataset.name,
                f"{self.wavelengths[worst]:g} nm in band {self.file_bands[worst]} as in METADATA.XML",
                f"{tagged[self.file_bands[worst] - 1]:g} nm in the raster's own tags",
            )

    def _read_raster(self, dataset: Any, bands: int | list[int], window: Window | None) -> np.ndarray:
        self._window_shape(window)
        with raster_errors(dataset.name):
            return dataset.read(bands, window=window)

    def _window_shape(self, window: Window | None) -> tuple[int, int]:
        if window is None:
            return self.shape
        height, width = self.shape
        inside = 0 <= window.row_off <= window.row_off + window.height <= height
        if not (inside and 0 <= window.col_off <= window.col_off + window.width <= width):
            raise ValueError(f"{self.name}: expected a window inside {_size(self.shape)} pixels, got {window}")
        return int(window.height), int(window.width)

    def _warn_of_missing(self, layer: str) -> None:
        warnings.warn(f"{self.name}: no quality layer {layer!r}, taken as clear", stacklevel=3)


def row_windows(shape: tuple[int, int], rows: int) -> Iterator[Window]:
    """Windows of `rows` rows and full width that cover a scene from top to bottom; the last one may be lower."""
    height, width = shape
    for row in range(0, height, rows):
        yield Window(0, row, width, min(rows, height - row))


def to_stored_numbers(values: np.ndarray, nodata: float | None, where: str) -> np.ndarray:
    """A raster's values as int16 stored numbers with nodata -32768.

    Args:
        values: stored numbers of any integer or floating type, (bands, height, width). Fractions are rounded, values
            beyond the range of int16 are set to its ends, NaN becomes nodata.
        nodata: the raster's own nodata value, or None.
        where: name of the file, for the error.

    Raises:
        ProductError: the values are fractions of 1, so reflectance where stored numbers are expected.
    """
    if values.dtype == np.int16 and nodata in (None, ENMAP.nodata):
        return values
    without_data = ~np.isfinite(values)
    if nodata is not None:
        without_data |= values == nodata
    if np.issubdtype(values.dtype, np.floating):
        values = np.where(without_data, 0, values)
        largest = np.abs(values).max(initial=0)
        if largest < 10 and (values != np.rint(values)).any():
            _fail(where, "stored numbers (reflectance x 10000)", f"fractions, the largest being {largest:g}")
        values = np.rint(values)
    stored = np.clip(values, ENMAP.nodata + 1, np.iinfo(np.int16).max).astype(np.int16)
    stored[without_data] = ENMAP.nodata
    return stored


def band_tags(dataset: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Wavelengths and widths in nm that a raster's bands are tagged with, in file order; None where not all are.

    Reads the tags `wavelength`, `fwhm` and `wavelength_units` (as ENVI headers and the EnMAP-Box write them).
    """
    tags = [dataset.tags(band) for band in range(1, dataset.count + 1)]

    def numbers(key: str) -> np.ndarray | None:
        try:
            # Nanometres unless the tags say otherwise: "um", "µm", "Micrometers", "Micrometer".
            factors = [
                1000.0 if re.match("um|[µμ]m|micro", tag.get("wavelength_units", ""), re.I) else 1 for tag in tags
            ]
            return np.array([float(tag[key]) * factor for tag, factor in zip(tags, factors, strict=True)])
        except (KeyError, ValueError):
            return None

    return numbers("wavelength"), numbers("fwhm")


@contextmanager
def raster_errors(location: str) -> Iterator[None]:
    """Turns an error of the raster library into a ProductError of one line, which names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            yield
    except RasterioError as error:
        reason = str(error.__cause__ or error).replace(location, PurePosixPath(location).name)
        _fail(location, "a whole, readable raster", reason)


def _fail(where: str, expected: str, got: str) -> NoReturn:
    archive = re.match(r"/vsizip/{(.*)}(/.*)", where)
    where = archive[1] + archive[2] if archive else where
    raise ProductError(" ".join(f"{where}: expected {expected}, got {got}".split()))


def _size(shape: tuple[int, int]) -> str:
    return f"{shape[0]} x {shape[1]}"


def _find_files(path: Path) -> tuple[bytes, str, dict[str, str]]:
    """Content and inner path of METADATA.XML, and the location of every raster beside it, by part."""
    if path.is_dir():
        names = [str(file.relative_to(path)) for file in sorted(path.rglob("*")) if file.is_file()]
        metadata_file = _only_metadata(path, names)
        content = _read_file(path / metadata_file)
        prefix = f"{path}/"
    elif product_part(path.name) == "METADATA" and path.is_file():
        names = sorted(file.name for file in path.parent.iterdir() if file.is_file())
        metadata_file = path.name
        content = _read_file(path)
        prefix = f"{path.parent}/"
    elif path.is_file():
        try:
            with zipfile.ZipFile(path) as archive:
                names = sorted(archive.namelist())
                metadata_file = _only_metadata(path, names)
                content = archive.read(metadata_file)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
            _fail(str(path), "a whole ZIP with one product, or a METADATA.XML", f"a file that is neither ({error})")
        # Braces tell GDAL where the archive's name ends, whatever it is.
        prefix = f"/vsizip/{{{path.absolute()}}}/"
    else:
        _fail(str(path), "a product's folder, ZIP or METADATA.XML", "nothing there")
    return (
        content,
        metadata_file,
        {part: prefix + name for part, name in _rasters_beside(metadata_file, names).items()},
    )


def _only_metadata(path: Path, names: list[str]) -> str:
    found = [
        name
        for name in names
        if product_part(PurePosixPath(name).name) == "METADATA" and not is_hidden(PurePosixPath(name))
    ]
    if not found:
        _fail(str(path), "one METADATA.XML", f"none among {len(names)} files")
    if len(found) > 1:
        _fail(str(path), "one METADATA.XML", f"{len(found)}: open them one by one")
    return found[0]


def _rasters_beside(metadata_file: str, names: list[str]) -> dict[str, str]:
    """Name of each raster that has the folder and the prefix of the metadata file, by part."""
    folder = PurePosixPath(metadata_file).parent
    own = _FILE_NAME.fullmatch(PurePosixPath(metadata_file).name)
    rasters = {}
    for name in names:
        match = _FILE_NAME.fullmatch(PurePosixPath(name).name)
        if own is None or match is None or PurePosixPath(name).parent != folder:
            continue
        if match["prefix"].lower() == own["prefix"].lower() and match["extension"].lower() in _RASTER_EXTENSIONS:
            rasters[match["part"].upper()] = name
    return rasters


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        _fail(str(path), "a readable file", error.strerror or str(error))


class _BuilderWithoutDoctype(ElementTree.TreeBuilder):
    """Stops at a document type declaration: products have none, and entities can only be declared in one."""

    def doctype(self, name: str, public_id: str | None, system: str | None) -> None:
        raise ElementTree.ParseError("a document type declaration")


def _parse_xml(content: bytes, where: str) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(content, parser=ElementTree.XMLParser(target=_BuilderWithoutDoctype()))
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        _fail(where, "well-formed XML", f"{error or 'none'}")


def _read_name(root: ElementTree.Element, metadata_file: str) -> str:
    for file_name in (root.findtext("metadata/name", "").strip(), PurePosixPath(metadata_file).name):
        match = _FILE_NAME.fullmatch(file_name)
        name = match["prefix"].rstrip("-_") if match else file_name
        if name:
            return name
    return PurePosixPath(metadata_file).stem


def _read_bands(
    root: ElementTree.Element, where: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Number in the file, wavelength, width, gain and offset of each band, in the order of the XML."""
    elements = root.findall("specific/bandCharacterisation/bandID")
    if not elements:
        _fail(where, "a list of bands (specific/bandCharacterisation/bandID)", "none")
    numbers = np.array([_number(element.get("number"), "a band's number", where) for element in elements])
    if not np.array_equal(np.sort(numbers), np.arange(1, len(numbers) + 1)):
        _fail(where, f"bands numbered from 1 to {len(numbers)}, each once", _shortened(numbers))

    def values(tag: str) -> np.ndarray:
        return np.array(
            [
                _number(element.findtext(tag), f"a {tag} in band {int(number)}", where)
                for number, element in zip(numbers, elements, strict=True)
            ]
        )

    wavelengths = values("wavelengthCenterOfBand")
    unique, counts = np.unique(wavelengths, return_counts=True)
    if (counts > 1).any():
        _fail(where, "wavelengths that differ", f"{unique[counts > 1][0]:g} nm {counts.max()} times")
    if unique[0] <= 0:
        _fail(where, "wavelengths in nm", f"{unique[0]:g}")
    return numbers.astype(np.int64), wavelengths, values("FWHMOfBand"), values("GainOfBand"), values("OffsetOfBand")


def _read_detectors(root: ElementTree.Element, file_bands: np.ndarray, where: str) -> tuple[str, ...]:
    """Detector of each band in ascending wavelength, from the lists of expected channels."""
    lists = {}
    for detector in ("VNIR", "SWIR"):
        text = root.findtext(f"specific/{detector.lower()}ProductQuality/expectedChannelsList", "")
        channels = [_number(number, "channel numbers", where) for number in text.split(",") if number.strip()]
        lists[detector] = [int(channel) for channel in channels]
    detector_of_channel = {channel: detector for detector, channels in lists.items() for channel in channels}
    detectors = tuple(detector_of_channel.get(int(band), "unknown") for band in file_bands)
    for detector in lists:
        own_bands = [band for band, name in zip(file_bands, detectors, strict=True) if name == detector]
        if own_bands != sorted(own_bands):
            # A detector's bands ascend in every product. Where they do not, this is a copy with reordered bands, and
            # the lists still count the channels by wavelength.
            return tuple(detector_of_channel.get(band, "unknown") for band in range(1, len(file_bands) + 1))
    return detectors


def _read_valid_bands(root: ElementTree.Element, file_bands: np.ndarray, where: str) -> np.ndarray | None:
    """Which bands hold data by their stated means, in ascending wavelength; None where a mean is missing."""
    means = {
        element.get("number"): _number(element.findtext("mean"), "a mean in product/bandStatistics", where)
        for element in root.findall("product/bandStatistics/bandID")
    }
    if any(str(band) not in means for band in file_bands):
        return None
    return np.array([means[str(band)] > EMPTY_BAND_MEAN for band in file_bands])


def _read_shape(root: ElementTree.Element, where: str) -> tuple[int, int]:
    height = _number(root.findtext("specific/heightOfOrthoScene"), "specific/heightOfOrthoScene in pixels", where)
    width = _number(root.findtext("specific/widthOfOrthoScene"), "specific/widthOfOrthoScene in pixels", where)
    return int(height), int(width)


def _read_time(root: ElementTree.Element, where: str) -> datetime:
    text = root.findtext("base/temporalCoverage/startTime", "").strip()
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        _fail(where, "a time in base/temporalCoverage/startTime", repr(text))
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)


def _read_sun_elevation(root: ElementTree.Element, where: str) -> float:
    text = root.findtext("specific/sunElevationAngle/center")
    return _number(text, "degrees in specific/sunElevationAngle/center", where)


def _number(text: str | None, expected: str, where: str) -> float:
    try:
        number = float(text or "")
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        _fail(where, expected, "none" if text is None or not text.strip() else repr(text))
    return number


def _shortened(numbers: np.ndarray) -> str:
    text = ", ".join(f"{number:g}" for number in numbers[:8])
    return f"{text}, ..." if len(numbers) > 8 else text

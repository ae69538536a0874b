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
import time
import warnings
import xml.etree.ElementTree as ElementTree
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window

from datasets_loading.raster_file import (
    LARGEST_TEXT,
    Closing,
    ProductError,
    check_fits,
    check_name,
    fail,
    is_hidden,
    leads_outside,
    parse_xml,
    read_text_file,
    to_count,
    to_elevation,
    to_number,
    to_time,
    walk_files,
)
from datasets_loading.raster_formats import GdalFile
from datasets_loading.rasters import Raster, inside
from datasets_loading.sensors import ENMAP
from datasets_loading.stac_items import is_address, is_stac_item, read_item
from datasets_loading.wavelengths import WAVELENGTH_TOLERANCE, to_nanometers

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
# The archive serves "..._COG.TIF" and, of many products, "...METADATA.XML.XML"
_FILE_NAME = re.compile(
    rf"(?!DESIS)(?P<prefix>|.*?[-_])(?P<part>{'|'.join(_PARTS)})(_COG)?\.(?P<extension>[a-z0-9]+|xml\.xml)", re.I
)
_RASTER_EXTENSIONS = ("tif", "tiff", "bsq", "bil", "bip", "jp2")
_METADATA_EXTENSIONS = ("xml", "xml.xml")
ARCHIVE_ENDINGS = (".tar.gz", ".tgz", ".tar", ".gz", ".7z", ".rar")
"""Archives that are not read, but named: products must be unpacked from them."""

_LEVEL_PLACES = ("metadata/schema/processingLevel", "base/level", "specific/code")
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
"""Name of each raster in a STAC item, and the part of the product that it is."""


def find_products(folder: str | Path) -> list[Path]:
    """METADATA.XML files and ZIP archives under a folder, sorted by path; each can be given to `EnMAPProduct.open`."""
    files = walk_files(Path(folder))
    return [path for path in files if path.suffix.lower() == ".zip" or product_part(path.name) == "METADATA"]


def product_part(file_name: str) -> str | None:
    """The part of a product that a file is by its name, such as "SPECTRAL_IMAGE", or None."""
    match = _FILE_NAME.fullmatch(file_name)
    return match["part"].upper() if match else None


def metadata_beside(image: Path) -> Path | None:
    """The METADATA.XML, or else the STAC item, that describes the spectral image at a path, where it stands beside."""
    match = _FILE_NAME.fullmatch(image.name)
    if match is None or match["part"].upper() != "SPECTRAL_IMAGE":
        return None
    for name in filter(_is_metadata, _files_beside(image)):
        return image.with_name(name)
    item = image.with_name(match["prefix"].rstrip("-_") + ".json")
    return item if item.is_file() else None


def _files_beside(file: Path) -> list[str]:
    """Sorted names of the files of one product, of which `file` is one, that lie in its folder."""
    match = _FILE_NAME.fullmatch(file.name)
    assert match is not None
    changed = file.parent.stat().st_mtime_ns
    # A folder that has just changed may change again at what is the same time for a coarse clock
    listed = _files_by_product if time.time_ns() - changed > 3e9 else _files_by_product.__wrapped__
    return listed(file.parent, changed).get(match["prefix"].lower(), [])


@lru_cache(maxsize=4)
def _files_by_product(folder: Path, changed: int) -> dict[str, list[str]]:
    """
    Sorted names of a folder's files by the prefix of their product in lower case. Kept until the folder is `changed`:
    of many products in one folder, each would have all of it listed otherwise.
    """
    names: dict[str, list[str]] = {}
    with os.scandir(folder) as entries:
        for name in sorted(entry.name for entry in entries if entry.is_file()):
            match = _FILE_NAME.fullmatch(name)
            if match:
                names.setdefault(match["prefix"].lower(), []).append(name)
    return names


def only_image(folder: Path) -> Path | None:
    """The spectral image in a folder without METADATA.XML, where there is just one."""
    files = walk_files(folder)
    if any(_is_metadata(file.name) for file in files):
        return None
    images = [file for file in files if product_part(file.name) == "SPECTRAL_IMAGE" and file.suffix.lower() != ".hdr"]
    return images[0] if len(images) == 1 else None


def _is_metadata(name: str) -> bool:
    match = _FILE_NAME.fullmatch(name)
    return (
        match is not None
        and match["part"].upper() == "METADATA"
        and match["extension"].lower() in _METADATA_EXTENSIONS
    )


@dataclass(eq=False)
class EnMAPProduct(Closing):
    """An EnMAP level 2A product, made by `EnMAPProduct.open`.

    Bands are 0-based and in ascending wavelength everywhere. Rasters are opened at the first reading and stay open:
    use the product as a context manager, or call `close`. It may be pickled, and used after a fork; one object must
    not be used by two threads at a time.

    Attributes:
        path: what was opened: folder, ZIP, METADATA.XML or STAC item (a file or an address).
        name: name of the product, from its metadata or, where that states none, from its file names.
        wavelengths, fwhm: band centers, ascending, and full widths at half maximum in nm, float64 (bands,) each.
        gain, offset: reflectance = number in the file * gain + offset, float64 (bands,) each.
        detectors: "VNIR", "SWIR" or, where the metadata do not say, "unknown", one per band.
        file_bands: 1-based band of the spectral image that holds each band, int64 (bands,).
        shape: (height, width) in pixels.
        acquisition_time: start of the acquisition, in UTC.
        sun_elevation: sun elevation at the center of the scene in degrees.
        missing_layers: names of the quality layers that the product lacks.
        notes: what a user has to know of the product, a phrase each.
    """

    path: Path | str
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
    notes: tuple[str, ...]
    _stated_valid_bands: np.ndarray | None = field(repr=False)
    _locations: dict[str, str] = field(repr=False)
    _quantity: str = "reflectance"
    _files: dict[str, GdalFile] = field(default_factory=dict, init=False, repr=False)
    missing_layers: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        layers = (layer for layer, part in QUALITY_LAYERS.items() if part not in self._locations)
        self.missing_layers = tuple(layers)
        if self.missing_layers:
            logger.warning("%s: quality layers missing, taken as clear: %s", self.name, ", ".join(self.missing_layers))

    @classmethod
    def open(cls, path: str | Path, *, radiance: bool = False) -> EnMAPProduct:
        """Opens a product and reads its metadata, and nothing else.

        Args:
            path: a folder or a ZIP with one product at any depth, a METADATA.XML, a spectral image beside one, or a
                STAC item: the path or address of its JSON. A ZIP is not unpacked.
            radiance: take level 1 products, whose numbers are radiance.

        Raises:
            ProductError: no or several METADATA.XML, two files for one part, a ZIP that is not whole, malformed XML,
                a level other than 2A, or metadata in which the list of bands, a wavelength, the size, the time or the
                sun elevation is missing or contradictory.
        """
        if is_stac_item(path):
            return cls._from_item(path, radiance)
        path = Path(path)
        image = only_image(path) if path.is_dir() else path
        if image is not None and product_part(image.name) == "SPECTRAL_IMAGE" and image.is_file():
            described = metadata_beside(image)
            if described is not None:
                return cls.open(described, radiance=radiance)
            if path.is_file():
                fail(path, "the product's METADATA.XML beside it", "none")
        content, metadata_file, locations = _find_files(path)
        where = f"{path}/{metadata_file}" if not _is_metadata(path.name) else str(path)
        root = parse_xml(content, where)
        name = check_name(_read_name(root, metadata_file), where)
        stated_levels = (root.findtext(place, "").strip().upper() for place in _LEVEL_PLACES)
        quantity = check_level(next(filter(None, stated_levels), level_in_name(name)), radiance, where)
        height, width = (
            to_count(root.findtext(f"specific/{side}OfOrthoScene"), f"specific/{side}OfOrthoScene in pixels", where)
            for side in ("height", "width")
        )
        time, sun = "base/temporalCoverage/startTime", "specific/sunElevationAngle/center"
        numbers, wavelengths, fwhm, gain, offset = _read_bands(root, where)
        order = np.argsort(wavelengths)
        return cls(
            path=path,
            name=name,
            wavelengths=wavelengths[order],
            fwhm=fwhm[order],
            gain=gain[order],
            offset=offset[order],
            detectors=_read_detectors(root, numbers[order], where),
            file_bands=numbers[order],
            shape=(height, width),
            acquisition_time=to_time(root.findtext(time, "").strip(), f"a time in {time}", where),
            sun_elevation=to_elevation(root.findtext(sun), f"degrees in {sun}", where),
            notes=_read_notes(root),
            _stated_valid_bands=_read_valid_bands(root, numbers[order], where),
            _locations=locations,
            _quantity=quantity,
        )

    @classmethod
    def _from_item(cls, path: str | Path, radiance: bool) -> EnMAPProduct:
        item = read_item(path)
        wavelengths, fwhm, gain, offset, shape = item.image()
        quantity = check_level(item.level or level_in_name(item.name), radiance, item.source)
        order = np.argsort(wavelengths)
        locations = {part: item.location(asset) for asset, part in ASSETS.items() if item.location(asset)}
        return cls(
            path=item.source if is_address(item.source) else path,
            name=check_name(item.name, item.source),
            wavelengths=wavelengths[order],
            fwhm=fwhm[order],
            gain=gain[order],
            offset=offset[order],
            detectors=("unknown",) * len(order),
            file_bands=order + 1,
            shape=shape,
            acquisition_time=item.acquisition_time,
            sun_elevation=item.sun_elevation,
            notes=(),
            _stated_valid_bands=None,
            _locations=locations,
            _quantity=quantity,
        )

    @property
    def num_bands(self) -> int:
        return len(self.wavelengths)

    @cached_property
    def raster(self) -> Raster:
        """The spectral image, opened.

        Raises:
            ProductError: it is missing, damaged, or not what the metadata describe.
        """
        file = self._open("SPECTRAL_IMAGE")
        if file.shape[0] != self.num_bands:
            fail(file.location, f"{self.num_bands} bands as in METADATA.XML", f"{file.shape[0]}")
        self._check_wavelengths(file)
        stated, in_file = file.stated, np.argsort(self.file_bands)
        stated.wavelengths, stated.fwhm = self.wavelengths[in_file], self.fwhm[in_file]
        stated.gain, stated.offset, stated.quantity = self.gain[in_file], self.offset[in_file], self._quantity
        # The bands of some products are marked as bad though they hold data: METADATA.XML says which hold none
        stated.good_bands, stated.name, stated.notes = None, self.name, list(self.notes)
        if stated.nodata is None:
            stated.nodata = ENMAP.nodata
        return Raster(file, self.path, radiance=self._quantity == "radiance", trusted=True)

    @cached_property
    def valid_bands(self) -> np.ndarray:
        """Which bands hold data, bool (bands,).

        As the band statistics in METADATA.XML say; of a product that states none, as `Raster.valid_bands` finds.

        Raises:
            ProductError: the spectral image has to be read for it and cannot be.
        """
        return self.raster.valid_bands if self._stated_valid_bands is None else self._stated_valid_bands

    @cached_property
    def _grid(self) -> tuple[CRS | None, Affine | None]:
        # The layers share the grid of the spectral image: where that is damaged, a layer still says where it lies.
        try:
            stated = self._open("SPECTRAL_IMAGE").stated
        except ProductError:
            if "classes" in self.missing_layers:
                raise
            stated = self._open(QUALITY_LAYERS["classes"]).stated
        return stated.crs, stated.transform

    @property
    def crs(self) -> CRS | None:
        """Coordinate reference system, from the raster's header; raises ProductError where that is unreadable."""
        return self._grid[0]

    @property
    def transform(self) -> Affine | None:
        """From (column, row) to coordinates in the unit of the CRS; raises ProductError as `crs` does."""
        return self._grid[1]

    @property
    def block_shape(self) -> tuple[int, int]:
        """(height, width) of the blocks that the spectral image is stored in; raises ProductError as `read` does."""
        return self.raster.block_shape

    def read(self, window: Window | None = None, bands: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Reflectance x 10000, int16 (bands, height, width), with nodata -32768.

        By default of the whole scene and all bands, which count in ascending wavelength.

        Raises:
            ProductError: the spectral image is missing, damaged, or not what METADATA.XML describes.
            ValueError: the window reaches beyond the scene.
        """
        return self.raster.read_stored(window, bands)

    def read_layer(self, layer: str, window: Window | None = None) -> np.ndarray:
        """Values of a quality layer, uint8 (height, width); zeros, with a warning, where the product lacks it.

        A layer is a key of `QUALITY_LAYERS` other than "pixel_mask", which has bands.

        Raises:
            ProductError: the layer is there but damaged, or of another size than the scene.
        """
        window = inside(window, self.shape, self.name)
        check_fits(self.path, 2.0 * window.width * window.height, "a window of quality layers")
        if layer in self.missing_layers:
            self._warn_of_missing(layer)
            return np.zeros((int(window.height), int(window.width)), dtype=np.uint8)
        return self._open(QUALITY_LAYERS[layer]).read([0], *window.toslices())[0].astype(np.uint8)

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

    def close(self) -> None:
        """Closes the rasters; a later reading opens them again."""
        for file in self._files.values():
            file.close()

    def _open(self, part: str) -> GdalFile:
        if part not in self._files:
            if part not in self._locations:
                fail(self.path, f"a file {self.name}-{part}.TIF", "none")
            file = GdalFile(self._locations[part])
            if file.shape[1:] != self.shape:
                fail(file.location, f"{_size(self.shape)} pixels as in METADATA.XML", _size(file.shape[1:]))
            self._files[part] = file
        return self._files[part]

    def _check_wavelengths(self, file: GdalFile) -> None:
        tagged = file.stated.wavelengths
        if tagged is None:
            return
        differences = np.abs(tagged[self.file_bands - 1] - self.wavelengths)
        if differences.max() > WAVELENGTH_TOLERANCE:
            worst = int(differences.argmax())
            band = self.file_bands[worst]
            stated = f"{self.wavelengths[worst]:g} nm in band {band} as in METADATA.XML"
            fail(file.location, stated, f"{tagged[band - 1]:g} nm in the raster's own tags")

    def _warn_of_missing(self, layer: str) -> None:
        warnings.warn(f"{self.name}: no quality layer {layer!r}, taken as clear", stacklevel=3)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]}"


def _find_files(path: Path) -> tuple[bytes, str, dict[str, str]]:
    """Content and inner path of METADATA.XML, and the location of every raster beside it, by part."""
    if path.is_dir():
        names = [str(file.relative_to(path)) for file in walk_files(path)]
        metadata_file = _only_metadata(path, names)
        content = read_text_file(path / metadata_file, "a METADATA.XML")
        prefix = f"{path}/"
    elif _is_metadata(path.name) and path.is_file():
        names = _files_beside(path)
        metadata_file = path.name
        content = read_text_file(path, "a METADATA.XML")
        prefix = f"{path.parent}/"
    elif path.name.lower().endswith(ARCHIVE_ENDINGS) and path.is_file():
        fail(path, "a product's folder, ZIP or METADATA.XML", f"an archive: unpack it first (tar -xf {path.name})")
    elif path.is_file():
        try:
            with zipfile.ZipFile(path) as archive:
                names = sorted(archive.namelist())
                metadata_file = _only_metadata(path, names)
                entry = archive.getinfo(metadata_file)
                if entry.file_size > LARGEST_TEXT:
                    fail(path, f"a METADATA.XML of at most {LARGEST_TEXT:,} bytes", f"{entry.file_size:,}")
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    # Of the other ways of packing, the library unpacks a whole entry, however large it becomes
                    fail(path, "a METADATA.XML that is deflated, as in every ZIP of products", "another compression")
                content = archive.read(metadata_file)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
            fail(path, "a whole ZIP with one product, or a METADATA.XML", f"a file that is neither ({error})")
        # Braces tell GDAL where the archive's name ends, whatever it is.
        prefix = f"/vsizip/{{{path.absolute()}}}/"
    else:
        fail(path, "a product's folder, ZIP or METADATA.XML", "nothing there")
    rasters = _rasters_beside(path, metadata_file, names)
    return content, metadata_file, {part: prefix + name for part, name in rasters.items()}


def _only_metadata(path: Path, names: list[str]) -> str:
    found = [name for name in names if _is_metadata(PurePosixPath(name).name) and not is_hidden(PurePosixPath(name))]
    if any(map(leads_outside, found)):
        fail(path, "names of files that lie in it", repr(found[0]))
    if not found:
        inner = [name for name in names if name.lower().endswith((".zip", *ARCHIVE_ENDINGS))]
        if inner:
            fail(path, "one METADATA.XML", f"archives in it: unpack {PurePosixPath(inner[0]).name} first")
        fail(path, "one METADATA.XML", f"none among {len(names)} files: if it is no product, name the image itself")
    if len(found) > 1:
        fail(path, "one METADATA.XML", f"{len(found)}: open them one by one")
    return found[0]


def _rasters_beside(path: Path, metadata_file: str, names: list[str]) -> dict[str, str]:
    """Name of each raster that has the folder and the prefix of the metadata file, by part."""
    folder = PurePosixPath(metadata_file).parent
    own = _FILE_NAME.fullmatch(PurePosixPath(metadata_file).name)
    rasters: dict[str, str] = {}
    for name in names:
        match = _FILE_NAME.fullmatch(PurePosixPath(name).name)
        if own is None or match is None or PurePosixPath(name).parent != folder:
            continue
        if match["prefix"].lower() == own["prefix"].lower() and match["extension"].lower() in _RASTER_EXTENSIONS:
            part = match["part"].upper()
            if part in rasters:
                both = " and ".join(PurePosixPath(file).name for file in (rasters[part], name))
                fail(path, f"one file of {part} in a product", f"{both}: move one away")
            rasters[part] = name
    return rasters


def level_in_name(name: str) -> str:
    """The level that the name of a product or of one of its files holds, such as "L2A", or ""."""
    match = re.search(r"(?<![A-Z0-9])L(1B|1C|2A)(?![A-Z0-9])", name.upper())
    return match[0] if match else ""


def check_level(level: str, radiance: bool, where: str | Path) -> str:
    """What the numbers of a level are, "reflectance" or "radiance"."""
    if level.startswith("L1"):
        if not radiance:
            advice = "order L2A, or take it as it is (--radiance) for a model trained on such"
            fail(where, "a level 2A product, which holds reflectance", f"level {level}, radiance: {advice}")
        return "radiance"
    return "reflectance"


def _read_notes(root: ElementTree.Element) -> tuple[str, ...]:
    """What is special of a product's correction: the water mode gives another reflectance over water."""
    correction = root.findtext("processing/correctionType", "").strip()
    if not re.search("water|combined", correction, re.I):
        return ()
    kind = (root.findtext(".//waterReflectanceProduct") or root.findtext(".//waterType") or "").strip()
    kind = f" ({kind})" if kind else ""
    return (f"corrected in the mode {correction}: pixels of water hold water reflectance{kind}",)


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
        fail(where, "a list of bands (specific/bandCharacterisation/bandID)", "none")
    numbers = np.array([to_number(element.get("number"), "a band's number", where) for element in elements])
    if not np.array_equal(np.sort(numbers), np.arange(1, len(numbers) + 1)):
        fail(where, f"bands numbered from 1 to {len(numbers)}, each once", _shortened(numbers))

    def values(tag: str) -> np.ndarray:
        texts = [element.findtext(tag) for element in elements]
        return np.array(
            [to_number(text, f"a {tag} in band {int(n)}", where) for n, text in zip(numbers, texts, strict=True)]
        )

    wavelengths, widths, _ = to_nanometers(values("wavelengthCenterOfBand"), values("FWHMOfBand"), "nm", where)
    if widths is None:
        fail(where, "a positive FWHMOfBand in each band", "0 in all")
    return numbers.astype(np.int64), wavelengths, widths, values("GainOfBand"), values("OffsetOfBand")


def _read_detectors(root: ElementTree.Element, file_bands: np.ndarray, where: str) -> tuple[str, ...]:
    """Detector of each band in ascending wavelength, from the lists of expected channels."""
    lists = {}
    for detector in ("VNIR", "SWIR"):
        text = root.findtext(f"specific/{detector.lower()}ProductQuality/expectedChannelsList", "")
        channels = [to_number(number, "channel numbers", where) for number in text.split(",") if number.strip()]
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
        element.get("number"): to_number(element.findtext("mean"), "a mean in product/bandStatistics", where)
        for element in root.findall("product/bandStatistics/bandID")
    }
    if any(str(band) not in means for band in file_bands):
        return None
    return np.array([means[str(band)] > EMPTY_BAND_MEAN for band in file_bands])


def _shortened(numbers: np.ndarray) -> str:
    text = ", ".join(f"{number:g}" for number in numbers[:8])
    return f"{text}, ..." if len(numbers) > 8 else text

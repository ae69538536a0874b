"""Tiles for training: windows of products and GeoTIFF tiles, all with the same bands, in memory as int16.

`read_tile_set` gathers them from a folder, and `band_statistics` gives the mean and standard deviation that a
processor standardizes with.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rasterio.windows import Window
from tqdm.auto import tqdm

from datasets_loading.enmap_product import ARCHIVE_ENDINGS, EnMAPProduct, metadata_beside, product_part
from datasets_loading.labelled_data import read_cube
from datasets_loading.raster_file import ProductError, fail, walk_files
from datasets_loading.raster_formats import envi_data
from datasets_loading.rasters import Raster, open_raster, row_windows
from datasets_loading.scenes import open_lone_image
from datasets_loading.sensors import ENMAP
from datasets_loading.spectrometers import is_desis
from datasets_loading.wavelengths import check_same_bands

logger = logging.getLogger(__name__)

IMAGE_ENDINGS = (".tif", ".tiff", ".hdr", ".jp2", ".he5", ".nc", ".mat")
"""Endings of the images that are looked for in folders; ENVI images by their headers."""

_HDF5_PRODUCTS = re.compile(r"NEON_.+_reflectance\.h5|NIS1_.+_atmcor\.h5|.+_(ortho|basic)_sr_hdf5\.h5", re.I)
"""Names of NEON's and Tanager's images, which are looked for, too; other HDF5 files hold anything."""
_NO_IMAGES = re.compile(
    r"EMIT_L\w+_(RFLUNCERT|MASK|OBS)_|(AV|ang|f|emit)\d{6,}t.+_(unc|uncert|obs|loc|glt|igm|mask|h2o)(_|\.)", re.I
)
"""What lies beside the images of EMIT and AVIRIS."""

read_tile = read_cube
"""Reads one tile whole, as any other image: programs that others wrote call it by this name."""


class Moments(NamedTuple):
    """Mean and standard deviation of each band's reflectance, float64 (bands,) each, set to a range before."""

    clip_range: tuple[float, float]
    mean: np.ndarray
    std: np.ndarray


@dataclass(eq=False)
class Tiles:
    """Tiles with the same bands, by number; their sizes may differ.

    An array may be a read-only view of a disk's pages: copy it to change it.

    Attributes:
        images: stored numbers by row, int16 (bands, height, width) each: a list, or what reads them when asked to.
        names: one name per tile.
        shapes: height and width of each tile, int64 (tiles, 2).
        wavelengths, fwhm: band centers, ascending, and full widths at half maximum in nm, float64 (bands,), or None
            where no tile states them.
        valid_bands: which bands hold data in every source, bool (bands,).
        groups: group of each tile, int64 (tiles,): tiles of one group are best read soon after one another.
        groups_at_once: how many groups of tiles a reader keeps at hand; None for tiles in memory.
        rows: row of each tile among the images, int64 (tiles,).
        moments: of all tiles of a corpus, some of which these may be; None where they are not known.
        nodata, scale: stored numbers of a pixel without data, and of a reflectance of 1.
        num_skipped: windows of products that were left out, being outside the swath or cloudy.
    """

    images: Any
    names: list[str]
    shapes: np.ndarray
    wavelengths: np.ndarray | None
    fwhm: np.ndarray | None
    valid_bands: np.ndarray
    groups: np.ndarray
    groups_at_once: int | None
    rows: np.ndarray
    moments: Moments | None = None
    nodata: int = ENMAP.nodata
    scale: float = ENMAP.scale
    num_skipped: int = 0

    @classmethod
    def in_memory(
        cls,
        images: list[np.ndarray],
        names: list[str],
        wavelengths: np.ndarray | None,
        fwhm: np.ndarray | None,
        valid_bands: np.ndarray,
    ) -> Tiles:
        """Tiles of images, int16 (bands, height, width) each."""
        shapes = np.array([image.shape[1:] for image in images], dtype=np.int64).reshape(-1, 2)
        rows = np.arange(len(images))
        return cls(images, names, shapes, wavelengths, fwhm, valid_bands, rows, None, rows)

    @property
    def num_bands(self) -> int:
        return len(self.valid_bands)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.images[int(self.rows[index])]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[number] for number in range(len(self)))

    def select(self, numbers: Sequence[int]) -> Tiles:
        """Some of the tiles; nothing is copied."""
        chosen = np.asarray(numbers, dtype=np.int64)
        parts = {name: getattr(self, name)[chosen] for name in ("shapes", "groups", "rows")}
        return replace(self, names=[self.names[number] for number in numbers], **parts)

    def band_statistics(self, minimum: float, maximum: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each band's reflectance set to `minimum` to `maximum`, float64 (bands,) each.

        Those of the whole corpus where they were taken for that range; otherwise all tiles are read once.
        """
        if self.moments is not None and (minimum, maximum) == self.moments.clip_range:
            return self.moments.mean, self.moments.std
        return band_statistics(self, minimum, maximum)


def open_image(path: Path, **reading: Any) -> Raster:
    """Opens an image, or the spectral image of a product that lacks its metadata."""
    return (open_lone_image if product_part(path.name) == "SPECTRAL_IMAGE" else open_raster)(path, **reading)


def read_tile_set(
    folder: str | Path,
    tile_size: int = 64,
    *,
    max_outside: float = 0.5,
    max_cloud: float = 0.1,
    progress: bool = True,
    **reading: Any,
) -> Tiles:
    """Reads everything that can be trained on under a folder, in an order that depends on names alone.

    EnMAP products, as folders or ZIPs, are cut from their upper left corner into windows of `tile_size` pixels, what
    remains at the right and lower edge being left out. Images that belong to no product are tiles as they are.

    Args:
        folder: a folder of products and tiles at any depth, or one product.
        max_outside, max_cloud: largest share of a window's pixels without data, and of those classified as cloud.
        reading: how to read images, as for `open_raster`.

    Raises:
        ProductError: there is nothing to read, a file is damaged, a source has other bands than the first, a tile
            holds no data, or no window of any product passes.
    """
    folder = Path(folder)
    sources = find_sources(folder)
    for path in sources.archives:
        logger.warning("%s: an archive, left out: unpack it first", path)
    num_files = len(sources.products) + len(sources.images)
    with Notes().told() as notes, tqdm(total=num_files, desc="reading", unit="file", disable=not progress) as bar:
        collection = _Collection(bar)
        for path in sources.products:
            with EnMAPProduct.open(path, radiance=bool(reading.get("radiance"))) as product:
                notes.add(path, product.notes)
                collection.add_product(product, path, cut_product(product, tile_size, max_outside, max_cloud))
        for path in sources.images:
            with open_image(path, **reading) as image:
                notes.add(path, image.notes)
                collection.add_image(image, path, path.relative_to(folder).with_suffix("").as_posix())
    if not collection.tiles:
        size = f"{tile_size} x {tile_size}"
        wanted = f"a window of {size} pixels with at most {max_outside:.0%} without data and {max_cloud:.0%} cloud"
        fail(folder, wanted, f"none among {collection.num_skipped} in {len(sources.products)} products")
    if collection.num_skipped:
        logger.info("%s: %d windows outside or cloudy, left out", folder, collection.num_skipped)
    return collection.tile_set()


def band_statistics(tiles: Tiles, minimum: float = 0.0, maximum: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each band's reflectance, float64 (bands,) each; NaN where a band holds no data.

    Reflectance is set to `minimum` to `maximum` before. One tile at a time is read; pixels without data are left out,
    band by band.
    """
    statistics = RunningStatistics(tiles.num_bands)
    for tile in tiles:
        reflectance = np.clip(tile / tiles.scale, minimum, maximum)
        statistics.update(reflectance, tile != tiles.nodata)
    return statistics.mean, statistics.std


class RunningStatistics:
    """Mean and standard deviation of each band in one pass (Chan, Golub and LeVeque 1983).

    Statistics of parts, from several workers, `merge` into those of the whole. `count` are the values seen so far,
    int64 (bands,).
    """

    def __init__(self, num_bands: int) -> None:
        self.num_bands = num_bands
        self.count = np.zeros(num_bands, dtype=np.int64)
        self._mean, self._squares = np.zeros(num_bands), np.zeros(num_bands)

    @property
    def mean(self) -> np.ndarray:
        """Mean of each band, float64 (bands,); NaN for a band without values."""
        return np.where(self.count > 0, self._mean, np.nan)

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of each band (of the population), float64 (bands,); NaN for a band without values."""
        return np.where(self.count > 0, np.sqrt(self._squares / np.maximum(self.count, 1)), np.nan)

    def update(self, values: np.ndarray, valid: np.ndarray) -> None:
        """Takes in values (bands, ...) where `valid`, bool of the same shape, is true."""
        values = values.reshape(self.num_bands, -1).astype(np.float64, copy=False)
        valid = valid.reshape(self.num_bands, -1)
        part = RunningStatistics(self.num_bands)
        part.count = valid.sum(axis=1)
        part._mean = values.sum(axis=1, where=valid) / np.maximum(part.count, 1)
        deviations = values - part._mean[:, None]
        part._squares = np.square(deviations).sum(axis=1, where=valid)
        self.merge(part)

    def merge(self, other: RunningStatistics) -> None:
        """Takes in everything that `other` has seen."""
        total = self.count + other.count
        share = other.count / np.maximum(total, 1)
        difference = other._mean - self._mean
        self._mean = self._mean + difference * share
        self._squares = self._squares + other._squares + np.square(difference) * self.count * share
        self.count = total

    def to_dict(self) -> dict[str, list[Any]]:
        """The state as lists, which JSON keeps to the last bit."""
        return {
            "count": self.count.tolist(),
            "mean": self._mean.tolist(),
            "sum_of_squared_deviations": self._squares.tolist(),
        }

    @classmethod
    def from_dict(cls, state: dict[str, list[Any]]) -> RunningStatistics:
        """What `to_dict` was called of; ValueError where it is of different numbers of bands, or cannot be."""
        statistics = cls(len(state["count"]))
        statistics.count = np.array(state["count"], dtype=np.int64)
        statistics._mean = np.array(state["mean"], dtype=np.float64)
        statistics._squares = np.array(state["sum_of_squared_deviations"], dtype=np.float64)
        parts = statistics.count, statistics._mean, statistics._squares
        if {part.shape for part in parts} != {(statistics.num_bands,)} or not all(
            map(np.all, map(np.isfinite, parts))
        ):
            raise ValueError("statistics that are not one number for each band")
        if (statistics.count < 0).any() or (statistics._squares < 0).any():
            raise ValueError("statistics below 0")
        return statistics


@dataclass(eq=False)
class ProductTile:
    """A window of a product that passed the filter.

    Attributes:
        name: name of the product with the column and row of the window's upper left pixel.
        image: reflectance x 10000, int16 (bands, height, width), nodata -32768.
        outside_share, cloud_share: share of the pixels off the swath or without data, and of those classed as cloud.
    """

    name: str
    row: int
    column: int
    image: np.ndarray
    outside_share: float
    cloud_share: float


def cut_product(
    product: EnMAPProduct, tile_size: int, max_outside: float, max_cloud: float
) -> Iterator[tuple[list[ProductTile], int]]:
    """Windows of a product side by side from its upper left corner, a row of them at a time: no more is in memory.

    Yields:
        The windows of a row that pass, and how many of it do not.

    Raises:
        ProductError: a raster is damaged.
    """
    first_valid_band = int(np.argmax(product.valid_bands))
    columns = range(0, product.shape[1] - tile_size + 1, tile_size)
    # A row of windows at a time: blocks of a raster are often as wide as the scene, and would be decoded anew for
    # each window.
    for row in row_windows(product.shape, tile_size):
        if row.height < tile_size:
            continue
        outside = product.read_outside(row) | (product.read(row, [first_valid_band])[0] == ENMAP.nodata)
        cloud = product.read_cloud(row)
        passing = []
        for column in columns:
            outside_share = float(outside[:, column : column + tile_size].mean())
            cloud_share = float(cloud[:, column : column + tile_size].mean())
            if outside_share <= max_outside and cloud_share <= max_cloud and outside_share < 1:
                passing.append((column, outside_share, cloud_share))
        tiles = []
        if passing:
            left, right = passing[0][0], passing[-1][0] + tile_size
            strip = product.read(Window(left, row.row_off, right - left, tile_size))
            for column, outside_share, cloud_share in passing:
                name = f"{product.name}_x{column:05d}_y{row.row_off:05d}"
                image = np.ascontiguousarray(strip[:, :, column - left : column - left + tile_size])
                tiles.append(ProductTile(name, row.row_off, column, image, outside_share, cloud_share))
        yield tiles, len(columns) - len(passing)


class Notes:
    """What was assumed of many files, to be said once for all of them."""

    def __init__(self) -> None:
        self.files: Counter[str] = Counter()
        self.first: dict[str, tuple[Path | str, str]] = {}

    def add(self, path: Path | str, notes: Sequence[str]) -> None:
        for note in notes:
            kind = re.sub(r"[-+]?[\d.,]+%?", "#", note)
            self.files[kind] += 1
            self.first.setdefault(kind, (path, note))

    def join(self, others: Notes) -> None:
        for kind, count in others.files.items():
            self.files[kind] += count
            self.first.setdefault(kind, others.first[kind])

    @contextmanager
    def told(self) -> Iterator[Notes]:
        """Says them at the end of the block, which an error may be."""
        try:
            yield self
        finally:
            for kind, count in self.files.items():
                path, note = self.first[kind]
                logger.warning("%s: %s%s", path, note, f", and {count - 1} other files" if count > 1 else "")


@dataclass(frozen=True)
class Bands:
    """The bands that all sources have: number, centers in nm where known, and the file they come from."""

    num_bands: int
    wavelengths: tuple[float, ...] | None
    first_source: str

    @classmethod
    def of(cls, opened: EnMAPProduct | Raster, source: object) -> Bands:
        """Those of an opened product or image."""
        wavelengths = None if opened.wavelengths is None else tuple(opened.wavelengths.tolist())
        return cls(opened.num_bands, wavelengths, str(source))

    def check(self, opened: EnMAPProduct | Raster, path: Path) -> None:
        """Raises ProductError where the source at `path` has other bands."""
        expected = None if self.wavelengths is None else np.array(self.wavelengths)
        check_same_bands(path, opened.num_bands, opened.wavelengths, self.num_bands, expected, self.first_source)


class _Collection:
    """Tiles gathered so far, which a progress bar shows, and what the first source says of the bands."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar
        self.tiles: list[np.ndarray] = []
        self.names: list[str] = []
        self.num_skipped = 0
        self.bands: Bands | None = None

    def start(self, opened: EnMAPProduct | Raster, path: Path) -> None:
        """Takes the bands of the first source; ProductError where a later one has others."""
        if self.bands is None:
            self.bands = Bands.of(opened, path)
            self.wavelengths, self.fwhm = opened.wavelengths, opened.fwhm
            self.lowest = np.full(opened.num_bands, np.iinfo(np.int16).max, dtype=np.int16)
            self.highest = np.full(opened.num_bands, ENMAP.nodata, dtype=np.int16)
            self.valid_bands = np.ones(opened.num_bands, dtype=bool)
        self.bands.check(opened, path)

    def add_product(
        self, product: EnMAPProduct, path: Path, rows: Iterable[tuple[Sequence[ProductTile], int]]
    ) -> None:
        """Takes in the windows of a product, as `cut_product` gives them."""
        self.start(product, path)
        has_data = np.zeros(product.num_bands, dtype=bool)
        for tiles, num_skipped in rows:
            self.num_skipped += num_skipped
            for tile in tiles:
                has_data |= self.add(tile.image, tile.name)
        # A product that gave no window says nothing of the bands of the set.
        if has_data.any():
            self.valid_bands &= has_data & product.valid_bands
        self.show()

    def add_image(self, raster: Raster, path: Path, name: str) -> None:
        """Takes in an image, which is a tile as it is; ProductError where it holds no data."""
        self.start(raster, path)
        image = raster.read_stored()
        if (image == ENMAP.nodata).all():
            fail(path, "pixels with data", f"nodata in all {image[0].size} pixels")
        self.valid_bands &= self.add(image, name)
        self.show()

    def show(self) -> None:
        """Moves the progress bar on by a file."""
        self.bar.set_postfix(tiles=len(self.tiles), skipped=self.num_skipped)
        self.bar.update()

    def add(self, image: np.ndarray, name: str) -> np.ndarray:
        """Takes in a tile; gives the bands in which it holds data, bool (bands,)."""
        has_data = image != ENMAP.nodata
        lowest = image.min(axis=(1, 2), where=has_data, initial=np.iinfo(np.int16).max)
        self.lowest = np.minimum(self.lowest, lowest)
        self.highest = np.maximum(self.highest, image.max(axis=(1, 2)))
        self.tiles.append(image)
        self.names.append(name)
        return has_data.any(axis=(1, 2))

    def tile_set(self) -> Tiles:
        # A band with one number in all pixels of all tiles holds a filling, not data.
        valid_bands = self.valid_bands & (self.lowest < self.highest)
        tiles = Tiles.in_memory(self.tiles, self.names, self.wavelengths, self.fwhm, valid_bands)
        return replace(tiles, num_skipped=self.num_skipped)


def _without_twins(images: list[Path]) -> list[Path]:
    """The images without data that an ENVI header among them describes, and without headers of no ENVI image."""
    described, stray = set(), set()
    for path in images:
        if path.suffix.lower() == ".hdr":
            try:
                described.add(envi_data(path))
            except ProductError as error:
                logger.warning("left out: %s", error)
                stray.add(path)
    return [path for path in images if path not in described and path not in stray]


class Sources(NamedTuple):
    """What a folder holds, each sorted by path.

    Attributes:
        products: EnMAP products: METADATA.XML files and ZIPs.
        images: images that belong to no product, ENVI images by their headers.
        archives: archives that have to be unpacked.
    """

    products: list[Path]
    images: list[Path]
    archives: list[Path]


def find_sources(folder: Path) -> Sources:
    """Everything under a folder that can be trained on; linked folders are looked into, too.

    A raster of labels beside its image (`<image>_labels.tif`) is no image.

    Raises:
        ProductError: there is nothing of the kind, or `folder` is a single tile.
    """
    if folder.is_file() and folder.suffix.lower() in IMAGE_ENDINGS and product_part(folder.name) is None:
        raise ProductError(f"{folder}: expected a folder of EnMAP products or images, got one file; name its folder")
    if folder.is_file():
        return Sources([folder], [], [])
    if not folder.is_dir():
        raise ProductError(f"{folder}: expected a folder of EnMAP products or images, got nothing there")
    products, images, archives = [], [], []
    for path in walk_files(folder):
        ending, part = path.suffix.lower(), product_part(path.name)
        if ending == ".zip" or part == "METADATA":
            products.append(path)
        elif path.name.lower().endswith(ARCHIVE_ENDINGS):
            archives.append(path)
        elif part == "SPECTRAL_IMAGE":
            described_by = metadata_beside(path)
            if described_by is not None and described_by.suffix == ".json":
                products.append(described_by)
            elif described_by is None and ending != ".hdr":
                images.append(path)
        elif part is None and (ending in IMAGE_ENDINGS or _HDF5_PRODUCTS.fullmatch(path.name)):
            # Of a product of DESIS one file is the image; labels, uncertainties and masks are none
            is_other = path.name.startswith("DESIS-") and not is_desis(path)
            if not is_other and not path.stem.endswith("_labels") and not _NO_IMAGES.match(path.name):
                images.append(path)
    images = _without_twins(images)
    if not products and not images:
        unpack = f"{len(archives)} archives: unpack {archives[0].name} first" if archives else "none"
        raise ProductError(f"{folder}: expected EnMAP products or images, got {unpack}")
    return Sources(products, images, archives)

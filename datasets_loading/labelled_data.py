"""What the labelled data sets share: cubes and labels from files, scenes with their split, and the face to `datasets`.

A builder of this package reads its files into a `LabelledData`: scenes on their pixel grids, with labels from 0,
255 = unlabelled, and a split that was proven not to leak. The same object serves training code directly
(`builder.data`) and fills the rows of the Hugging Face data set, which are cuts of the scenes.
"""

from __future__ import annotations

import logging
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from affine import Affine
from datasets import (
    Array2D,
    Array3D,
    BuilderConfig,
    ClassLabel,
    DatasetInfo,
    Features,
    GeneratorBasedBuilder,
    List,
    SplitGenerator,
    Value,
)
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as transform_coordinates
from rasterio.windows import Window
from scipy.sparse.csgraph import connected_components

from datasets_loading.files import fingerprint
from datasets_loading.raster_file import ProductError, fail, raster_errors, walk_files
from datasets_loading.raster_formats import ArrayFile, GdalFile, envi_data
from datasets_loading.rasters import open_raster
from datasets_loading.scenes import Scene as OpenScene
from datasets_loading.sensors import ENMAP
from datasets_loading.splits import (
    NO_SPLIT,
    SPLITS,
    UNLABELLED,
    Labels,
    Split,
    check_split,
    read_split,
    split_by_blocks,
    with_validation,
)
from datasets_loading.wavelengths import check_same_bands

logger = logging.getLogger(__name__)

JOIN_GAP = 64
"""Tiles up to this many pixels apart share one scene; tiles farther apart cannot meet in a window."""

_POINTS_AT_ONCE = 2**21
_GRID_TOLERANCE = 0.05
_TILE_NAME = re.compile(r"tile_(\d+)_(\d+)")

NEVER_CLASSES = (255, -1, -100, -9999, -32768, 65535, -(2**31), 2**31 - 1, 2**32 - 1)
"""Values of label rasters that mean no class in every convention, unless a class has that number by name."""


@dataclass(eq=False)
class Cube:
    """An image with its bands in ascending wavelength, where wavelengths are known.

    Attributes:
        name: name of the image.
        image: stored numbers (reflectance x 10000), int16 (bands, height, width), nodata -32768.
        wavelengths: band centers in nm, float64 (bands,), or None.
        crs, transform: coordinate reference system, and from (column, row) to its coordinates; or None.
        hidden: pixels in cloud or its shadow, bool (height, width), as an EnMAP product says; or None.
    """

    name: str
    image: np.ndarray
    wavelengths: np.ndarray | None
    crs: CRS | None = None
    transform: Affine | None = None
    hidden: np.ndarray | None = None

    def seen(self, labels: np.ndarray) -> np.ndarray:
        """Labels, uint8 (height, width), without those of pixels that cloud or shadow hides, which the log counts."""
        if self.hidden is None:
            return labels
        lost = self.hidden & (labels != UNLABELLED)
        if lost.any():
            logger.warning("%s: %d labelled pixels in cloud or shadow, taken as unlabelled", self.name, lost.sum())
        return np.where(lost, UNLABELLED, labels)


@dataclass(eq=False)
class Scene:
    """A labelled image on one pixel grid.

    Attributes:
        name: name of the scene.
        cube: stored numbers (reflectance x 10000), int16 (bands, height, width), nodata -32768.
        labels: classes from 0, uint8 (height, width), 255 = unlabelled; so is every pixel that is not `valid`.
        crs, transform: coordinate reference system, and from (column, row) to its coordinates; or None.
    """

    name: str
    cube: np.ndarray
    labels: np.ndarray
    crs: CRS | None = None
    transform: Affine | None = None

    def __post_init__(self) -> None:
        without_data = (self.labels != UNLABELLED) & ~self.valid
        if without_data.any():
            logger.warning("%s: %d labelled pixels lack data, taken as unlabelled", self.name, without_data.sum())
            self.labels = np.where(without_data, UNLABELLED, self.labels)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.labels.shape[0], self.labels.shape[1]

    @cached_property
    def valid(self) -> np.ndarray:
        """Pixels with data in every band that holds data anywhere in the scene, bool (height, width)."""
        valid = np.ones(self.shape, dtype=bool)
        any_band = False
        for band in self.cube:
            has_data = band != ENMAP.nodata
            if has_data.any():
                valid &= has_data
                any_band = True
        return valid & any_band


@dataclass(eq=False)
class LabelledData:
    """Labelled scenes with the same bands and classes, and their split.

    Attributes:
        scenes: the scenes; their names differ.
        class_names: name of each class, from 0.
        wavelengths: band centers in nm, ascending, float64 (bands,), or None.
        split: training, validation and test pixels.
    """

    scenes: list[Scene]
    class_names: tuple[str, ...]
    wavelengths: np.ndarray | None
    split: Split

    @property
    def num_bands(self) -> int:
        return len(self.scenes[0].cube)

    @property
    def labels(self) -> dict[str, np.ndarray]:
        """Labels of each scene by its name, uint8 (height, width)."""
        return {scene.name: scene.labels for scene in self.scenes}

    @cached_property
    def valid_bands(self) -> np.ndarray:
        """Which bands hold data in every scene, and more than one number in all of them, bool (bands,)."""
        valid = np.ones(self.num_bands, dtype=bool)
        for number in range(self.num_bands):
            values = [scene.cube[number][scene.cube[number] != ENMAP.nodata] for scene in self.scenes]
            if not all(part.size for part in values):
                valid[number] = False
            elif sum(part.size for part in values) >= 16:
                # One number everywhere is a filling
                valid[number] = min(part.min() for part in values) < max(part.max() for part in values)
        return valid

    def class_counts(self, split: str) -> np.ndarray:
        """Labelled pixels of each class in a split, int64 (classes,)."""
        labels = self.split.labels_of(self.labels, split)
        counts = sum(np.bincount(values.ravel(), minlength=256) for values in labels.values())
        return np.asarray(counts)[: len(self.class_names)]

    def with_labels(self, labels: Mapping[str, np.ndarray]) -> LabelledData:
        """The same scenes with other labels, such as few of them (`splits.draw_labels`); cubes are not copied."""
        scenes = [copy(scene) for scene in self.scenes]
        for scene in scenes:
            scene.labels = labels[scene.name]
        return replace(self, scenes=scenes)


def read_cube(path: str | Path, **reading: Any) -> Cube:
    """Reads an image of any format whole, as `open_raster` does, and says in the log what had to be assumed.

    Raises:
        ProductError: the file is missing or damaged, its numbers can be read in two ways, it holds no data or too few
            bands, or its wavelengths do not fit its bands.
    """
    path = Path(path)
    with open_raster(path, **reading) as raster:
        raster.tell()
        image = raster.read_stored()
        if (image == ENMAP.nodata).all():
            fail(path, "pixels with data", f"nodata in all {image[0].size} pixels")
        return Cube(path.stem, image, raster.wavelengths, raster.crs, raster.transform)


def read_scene(scene: OpenScene, window: Window | None = None) -> Cube:
    """Reads a window of an opened scene, the whole of it by default; ProductError where it is damaged."""
    image = scene.raster.read_stored(window)
    transform = scene.transform
    if window is not None and transform is not None:
        transform = moved(transform, window.row_off, window.col_off)
    hidden = None
    if scene.product is not None:
        rows, columns = (None, None) if window is None else window.toslices()
        hidden = scene.read_excluded(rows, columns, ("cloud", "shadow"))
    return Cube(scene.name, image, scene.wavelengths, scene.crs, transform, hidden)


def read_label_values(path: str | Path, variable: str | None = None) -> tuple[np.ndarray, CRS | None, Affine | None]:
    """Values of a label raster as they are in the file, int64 (height, width), -1 for its nodata and NaN; its grid.

    Of a MATLAB or NumPy file `variable` is the array, by default the only one with two dimensions.

    Raises:
        ProductError: the file is missing or damaged, has several bands (as a picture in colors does), or holds
            fractions.
    """
    file = open_labels(Path(path), variable)
    values = _label_values(file, path)
    file.close()
    return values, file.stated.crs, file.stated.transform


def read_labels_on(image: Cube, path: str | Path, variable: str | None = None, by_place: bool = False) -> np.ndarray:
    """Values of a label raster on the pixels of an image, int64 (height, width), -1 where there is none.

    A raster as large as the image has to lie on its pixels. One of another size, or any with `by_place`, is laid on
    them where both say where they lie, which the log says: where the image's pixels hold several of its own, by the
    most frequent value in each, and else by the value at their centers. Only the part under the image is read.

    Raises:
        ProductError: as `read_label_values` and `check_same_grid`; or with `by_place`, one of them does not say where
            it lies.
    """
    path = Path(path)
    file = open_labels(path, variable)
    stated, shape = file.stated, image.image.shape[1:]
    transform = stated.transform if stated.crs and image.crs and image.transform is not None else None
    if isinstance(file, GdalFile) and transform is not None and (by_place or file.shape[1:] != shape):
        values, how = _laid_on(image, file, stated.crs, transform, path)
        found = int((values != -1).sum())
        logger.warning(
            "%s laid on the pixels of %s: the %s; %d of %d have one", path, image.name, how, found, values.size
        )
    elif by_place:
        without = image.name if stated.crs and stated.transform is not None else "the labels"
        fail(path, "a folder of labels for several images, or all to say where they lie", f"no place of {without}")
    else:
        check_same_grid(image, stated.crs, stated.transform, file.shape[1:], str(path))
        values = _label_values(file, path)
    file.close()
    return values


def _laid_on(image: Cube, file: GdalFile, crs: CRS, transform: Affine, path: Path) -> tuple[np.ndarray, str]:
    """Values of a raster, by its place, on the pixels of an image, as `read_labels_on`; and how they were taken.

    They are taken at points in each pixel, so that places without a label (nodata, NaN, masked, beside the map) count
    as others do, and the image may be turned against the map.
    """
    assert image.transform is not None
    height, width = image.image.shape[1:]
    with raster_errors(str(path)):
        side = np.sqrt(_pixels_in_one(image, crs, transform))
    # One for each pixel of the map, as far as a share of classes needs so many
    points = round(np.clip(side, 3, 16)) if side >= np.sqrt(2) else 1
    grid = {"crs": image.crs, "transform": image.transform @ Affine.scale(1 / points)}
    size = {"height": height * points, "width": width * points}
    values = np.empty((height, width), dtype=np.int64)
    step = max(1, _POINTS_AT_ONCE // (width * points**2))
    with (
        raster_errors(str(path)),
        # Its nodata is left to `_as_labels`: the library refuses one that the file's type cannot hold
        WarpedVRT(file.dataset, **grid, **size, dtype="float64", src_nodata=None, nodata=np.nan) as laid,
    ):
        for row in range(0, height, step):
            rows = min(step, height - row)
            part = laid.read(1, window=Window(0, row * points, width * points, rows * points))
            cells = _as_labels(part, None, file.stated.nodata, path).reshape(rows, points, width, points)
            present = np.unique(cells)
            counts = np.stack([(cells == value).sum(axis=(1, 3), dtype=np.int16) for value in present])
            values[row : row + rows] = present[counts.argmax(axis=0)]
    return values, "value at the center of each" if points == 1 else "most frequent value in each"


def _pixels_in_one(image: Cube, crs: CRS, transform: Affine) -> float:
    """How many pixels of a raster one pixel in the middle of an image holds."""
    assert image.transform is not None
    height, width = image.image.shape[1:]
    corners = [image.transform @ (width // 2 + right, height // 2 + down) for right, down in ((0, 0), (1, 0), (0, 1))]
    moved_corners = transform_coordinates(image.crs, crs, *map(list, zip(*corners, strict=True)))[:2]
    start, right, down = (np.array(~transform @ place) for place in zip(*moved_corners, strict=True))
    return float(abs(np.linalg.det(np.stack([right - start, down - start]))))


def open_labels(path: Path, variable: str | None = None) -> ArrayFile | GdalFile:
    """A file of labels, which has one band."""
    if not path.is_file():
        fail(path, "labels", "no such file")
    file: ArrayFile | GdalFile
    if path.suffix.lower() in (".mat", ".npy", ".npz"):
        file = ArrayFile(path, variable, dimensions=2)
    else:
        file = GdalFile(str(envi_data(path) if path.suffix.lower() == ".hdr" else path))
    bands = file.shape[0]
    if bands != 1:
        picture = ", a picture in colors: make each color a number first" if bands == 3 else ""
        fail(path, "labels in one band of whole numbers", f"{bands} bands{picture}")
    return file


def _label_values(file: ArrayFile | GdalFile, path: str | Path) -> np.ndarray:
    """All values of a file of labels, int64 (height, width), -1 where there is none."""
    whole = slice(0, file.shape[1]), slice(0, file.shape[2])
    return _as_labels(file.read([0], *whole)[0], file.read_mask(*whole), file.stated.nodata, path)


def _as_labels(values: np.ndarray, mask: np.ndarray | None, nodata: Any, path: str | Path) -> np.ndarray:
    """Whole numbers, int64, -1 outside the mask, where they are not finite or mean no data."""
    without = ~np.isfinite(values) if mask is None else ~np.isfinite(values) | ~mask
    if values.dtype.kind == "f":
        without |= np.abs(values) > 1e30
    if nodata is not None:
        without |= values == nodata
    # in a type that holds -1, which the unsigned ones of most label files do not
    values = np.where(without, -1, values.astype(np.result_type(values.dtype, np.int16)))
    if (values != np.rint(values)).any():
        fail(path, "whole numbers as labels", f"{values[values != np.rint(values)][0]:g}")
    return values.astype(np.int64)


def to_classes(values: np.ndarray, class_of_value: Mapping[int, int], where: str) -> np.ndarray:
    """Label values of a file as classes from 0.

    Args:
        values: int64 (height, width), -1 where there is no label.
        class_of_value: class of each value of the file, `UNLABELLED` for values that mean none.

    Returns:
        uint8 (height, width), 255 = unlabelled.

    Raises:
        ProductError: a value is in no class; the message says which, and in how many pixels.
    """
    present, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    class_of_value = {**dict.fromkeys(NEVER_CLASSES, UNLABELLED), **class_of_value}
    found = dict(zip(present.tolist(), counts.tolist(), strict=True))
    unknown = {value: count for value, count in found.items() if value not in class_of_value}
    if unknown:
        known = ", ".join(str(value) for value in sorted(class_of_value) if value not in NEVER_CLASSES)
        listed = ", ".join(f"{value} in {n}" for value, n in list(unknown.items())[:8])
        fail(where, f"label values among {known}", f"{listed} pixels")
    table = [class_of_value[int(value)] for value in present]
    return np.array(table, dtype=np.uint8)[inverse].reshape(values.shape)


def check_same_grid(
    image: Cube, crs: CRS | None, transform: Affine | None, shape: tuple[int, ...], where: str
) -> None:
    """Checks that labels lie on the pixels of an image: same size and, where both say so, same place.

    Raises:
        ProductError: another size, another coordinate reference system, or another place.
    """
    size = image.image.shape[1:]
    if tuple(shape) != size:
        fail(where, f"{size[0]} x {size[1]} labels as {image.name} has pixels", f"{shape[0]} x {shape[1]}")
    if image.transform is not None and transform is None:
        logger.warning("%s states no place, and is taken to lie on the pixels of %s", where, image.name)
    if image.transform is None or transform is None:
        return
    check_same_crs(crs, image.crs, image.transform, where, image.name)
    # All four corners: other pixels, a rotation, or another direction show at one of them
    height, width = size
    own = [pixel_of(image.transform, *(transform @ corner)) for corner in corners_of(height, width)]
    apart = [(row - y, column - x) for (row, column), (x, y) in zip(own, corners_of(height, width), strict=True)]
    if max(abs(distance) for pair in apart for distance in pair) > 0.5:
        (row, column), (last_row, last_column) = apart[0], apart[-1]
        fail(
            where,
            f"labels on the pixels of {image.name}",
            f"a grid that begins {row:+.2f} rows and {column:+.2f} columns away and ends {last_row:+.2f} rows and "
            f"{last_column:+.2f} columns away, with pixels of {transform.a:g} x {transform.e:g}",
        )


def check_same_crs(crs: CRS | None, expected: CRS | None, transform: Affine, where: str, image_name: str) -> None:
    """Checks that two coordinate reference systems mean the same place, whatever they are called.

    Files of one delivery may call it NAD83 and WGS 84, which lie within a meter or two: what counts is that the
    corner of the image (`transform`) stays within half a pixel.

    Raises:
        ProductError: the place is another one.
    """
    if crs is None or expected is None or crs == expected:
        return
    try:
        (x,), (y,) = transform_coordinates(crs, expected, [transform.c], [transform.f])[:2]
        same = np.hypot(x - transform.c, y - transform.f) <= abs(transform.a) / 2
    except RasterioError:
        same = False
    if not same:
        advice = "reproject the labels to the image's grid first (gdalwarp -r near)"
        wanted = f"the coordinate reference system of {image_name}, {expected.to_string()}"
        fail(where, wanted, f"{crs.to_string()}: {advice}")


def pixel_of(transform: Affine, x: float, y: float) -> tuple[float, float]:
    """Row and column, with fractions, of a place in coordinates."""
    column, row = ~transform @ (x, y)
    return row, column


def corners_of(height: int, width: int) -> list[tuple[int, int]]:
    """Column and row of the corners of an image, from the upper left to the lower right one."""
    return [(0, 0), (width, 0), (0, height), (width, height)]


def moved(transform: Affine, rows: float, columns: float) -> Affine:
    """The transform of a raster that begins so many rows and columns farther."""
    return transform @ Affine.translation(columns, rows)


def join_tiles(tiles: Sequence[tuple[Cube, np.ndarray]]) -> list[Scene]:
    """Lays tiles of one pixel grid side by side, so that windows may cross the edges between them.

    Tiles without georeference are laid by names `tile_X_Y`, X and Y being column and row offsets in pixels, or else
    stay scenes of their own. A scene is named after its upper left tile and holds nodata between its tiles. A tile is
    an image and its labels, uint8 (height, width).

    Raises:
        ProductError: tiles overlap, have the same name, or other bands than the first one.
    """
    first = tiles[0][0]
    for cube, _ in tiles[1:]:
        check_same_bands(cube.name, len(cube.image), cube.wavelengths, len(first.image), first.wavelengths, first.name)
    names = [cube.name for cube, _ in tiles]
    if len(set(names)) < len(names):
        duplicate = next(name for name in names if names.count(name) > 1)
        fail(duplicate, "tiles with different names", "this one more than once")
    scenes: list[Scene] = []
    for grid in _group_by_grid(tiles):
        corners = np.array([corner for _, _, corner in grid])  # (tiles, 2): row, column
        sizes = np.array([labels.shape for _, labels, _ in grid])
        for members in _neighborhoods(corners, sizes):
            origin = corners[members].min(axis=0)
            members = sorted(members, key=lambda number: tuple(corners[number]))
            height, width = (corners[members] + sizes[members]).max(axis=0) - origin
            cube, labels, _ = grid[members[0]]
            image, transform = cube.image, cube.transform
            if len(members) > 1:
                upper, left = origin - corners[members[0]]
                transform = None if transform is None else moved(transform, upper, left)
                image = np.full((len(cube.image), height, width), ENMAP.nodata, dtype=np.int16)
                labels = np.full((height, width), UNLABELLED, dtype=np.uint8)
                taken = np.zeros((height, width), dtype=bool)
                for number in members:
                    tile, tile_labels, _ = grid[number]
                    row, column = corners[number] - origin
                    part = np.s_[row : row + sizes[number][0], column : column + sizes[number][1]]
                    if taken[part].any():
                        overlap = f"one that overlaps another in {int(taken[part].sum())} pixels"
                        fail(tile.name, "tiles that lie side by side", overlap)
                    taken[part] = True
                    image[:, *part] = tile.image
                    labels[part] = tile_labels
            scenes.append(Scene(cube.name, image, labels, cube.crs, transform))
    return scenes


@dataclass
class LabelledConfig(BuilderConfig):
    """Settings that all builders of labelled data share.

    Attributes:
        window_size: side of the largest window that will be cut, in pixels: the buffer is its radius.
        tile_size: side of the cuts that are the rows of the Hugging Face data set, in pixels.
        block_size: side of the blocks of a split by blocks, in pixels.
        shares: shares of the labels for training, validation and test in a split by blocks.
        validation_share: share of the labels of a given training area that becomes a validation area.
        split_file: a split that `splits.write_split` wrote, used instead of the builder's own.
        seed: of the split.
    """

    window_size: int = 8
    tile_size: int = 64
    block_size: int = 64
    shares: tuple[float, float, float] = (0.6, 0.2, 0.2)
    validation_share: float = 0.0
    split_file: str | None = None
    seed: int = 0

    @property
    def buffer(self) -> int:
        """Buffer between splits in pixels."""
        return self.window_size // 2

    def by_blocks(self, labels: Labels) -> Split:
        """The split by blocks that these settings ask for."""
        return split_by_blocks(
            labels, block_size=self.block_size, buffer=self.buffer, shares=self.shares, seed=self.seed
        )

    def with_validation(self, split: Split, labels: Labels) -> Split:
        """The split, with a validation area where `validation_share` asks for one."""
        if not self.validation_share:
            return split
        return with_validation(split, labels, share=self.validation_share, block_size=self.block_size, seed=self.seed)


class LabelledBuilder(GeneratorBasedBuilder):
    """Builder of a Hugging Face data set from the user's own copies of labelled hyperspectral files.

    `download_and_prepare` and `as_dataset`, or `as_streaming_dataset`, give tiles, each with at least one labelled
    pixel of its split. For training code, `data` holds the scenes themselves. Columns of a tile:

    * `image`: int16 (bands, tile_size, tile_size), stored numbers (reflectance x 10000 where the data are
      reflectance), nodata -32768; pixels of other splits, and outside the scene, are nodata
    * `label`: uint8 (tile_size, tile_size), classes from 0; 255 = unlabelled, in another split, or in the buffer
    * `classes`: the classes that occur in the tile, with their names
    * `wavelengths`: band centers in nm, ascending; empty where they are unknown
    * `name`, `scene`, `row`, `column`: the tile, its scene, and the offset of its upper left pixel in it
    """

    BUILDER_CONFIG_CLASS = LabelledConfig
    # A tile of EnMAP weighs 1.8 MB: a thousand of them, the default, would fill the memory.
    DEFAULT_WRITER_BATCH_SIZE = 16
    SOURCE: ClassVar[str] = ""
    """Where the files come from, and how they have to lie."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # The files are the user's and may change: what was prepared from other files must not be taken for theirs.
        folder = kwargs.get("data_dir") or ""
        named = [kwargs.get(name) for name in ("images", "labels", "wavelengths")]
        outside = [Path(folder, name).expanduser() for name in named if isinstance(name, str)]
        kwargs.setdefault("hash", _fingerprint(folder, kwargs.get("split_file"), *outside))
        self._data: LabelledData | None = None
        super().__init__(*args, **kwargs)

    @property
    def data_dir(self) -> Path:
        """The user's folder of files.

        Raises:
            ProductError: no folder was given, or there is none.
        """
        if not self.config.data_dir:
            raise ProductError(f"{type(self).__name__}: expected data_dir, a folder of files, got none. {self.SOURCE}")
        folder = Path(self.config.data_dir).expanduser()
        if not folder.is_dir():
            raise ProductError(f"{folder}: expected a folder of files, got nothing there. {self.SOURCE}")
        return folder

    @property
    def data(self) -> LabelledData:
        """All scenes with their split, read at the first use and kept.

        Raises:
            ProductError: a file is missing or cannot be used.
            SplitError: the split leaks for windows of `window_size`, or is empty.
        """
        if self._data is None:
            data = self._read()
            if self.config.split_file is not None:
                data = replace(data, split=read_split(self.config.split_file, data.labels))
            check_split(data.split, self.config.window_size)
            self._data = data
        return self._data

    @abstractmethod
    def _read(self) -> LabelledData:
        """Reads the files and makes the builder's own split."""

    @abstractmethod
    def _info(self) -> DatasetInfo:
        """Description, citation and licence; features follow from the files."""

    def _split_generators(self, dl_manager: Any) -> list[SplitGenerator]:
        data = self.data
        self.info.features = tile_features(data, self.config.tile_size)
        generators = []
        for name in SPLITS:
            places = list(tile_places(data, name, self.config.tile_size))
            if places:
                generators.append(SplitGenerator(name, gen_kwargs={"places": places, "split": name}))
        return generators

    def _generate_examples(
        self, places: list[tuple[int, int, int]], split: str
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, row, column in places:
            tile = cut_tile(self.data, split, number, row, column, self.config.tile_size)
            yield tile["name"], tile

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes read the files themselves: scenes are too large to be sent to each of them.
        return {**super().__getstate__(), "_data": None}


def tile_features(data: LabelledData, tile_size: int) -> Features:
    """Features of the rows of a data set, as `LabelledBuilder` describes them."""
    return Features(
        {
            "image": Array3D((data.num_bands, tile_size, tile_size), "int16"),
            "label": Array2D((tile_size, tile_size), "uint8"),
            "classes": List(ClassLabel(names=list(data.class_names))),
            "wavelengths": List(Value("float64")),
            "name": Value("string"),
            "scene": Value("string"),
            "row": Value("int32"),
            "column": Value("int32"),
        }
    )


def tile_places(data: LabelledData, split: str, tile_size: int) -> Iterator[tuple[int, int, int]]:
    """Scene number, row and column of every tile of the grid with a labelled pixel of a split."""
    labels = data.split.labels_of(data.labels, split)
    for number, scene in enumerate(data.scenes):
        for row in range(0, scene.shape[0], tile_size):
            for column in range(0, scene.shape[1], tile_size):
                part = labels[scene.name][row : row + tile_size, column : column + tile_size]
                if (part != UNLABELLED).any():
                    yield number, row, column


def cut_tile(data: LabelledData, split: str, number: int, row: int, column: int, tile_size: int) -> dict[str, Any]:
    """One row of a data set: a tile of scene `number`, without the pixels of other splits (`LabelledBuilder`)."""
    scene = data.scenes[number]
    part = np.s_[row : row + tile_size, column : column + tile_size]
    codes = data.split.codes[scene.name][part]
    own_code = SPLITS.index(split)
    height, width = codes.shape
    image = np.full((data.num_bands, tile_size, tile_size), ENMAP.nodata, dtype=np.int16)
    image[:, :height, :width] = np.where(np.isin(codes, (own_code, NO_SPLIT)), scene.cube[:, *part], ENMAP.nodata)
    label = np.full((tile_size, tile_size), UNLABELLED, dtype=np.uint8)
    label[:height, :width] = np.where(codes == own_code, scene.labels[part], UNLABELLED)
    return {
        "image": image,
        "label": label,
        "classes": np.setdiff1d(label, [UNLABELLED]).tolist(),
        "wavelengths": [] if data.wavelengths is None else data.wavelengths.tolist(),
        "name": f"{scene.name}_x{column:05d}_y{row:05d}",
        "scene": scene.name,
        "row": row,
        "column": column,
    }


def _group_by_grid(tiles: Sequence[tuple[Cube, np.ndarray]]) -> list[list[tuple[Cube, np.ndarray, tuple[int, int]]]]:
    """Tiles whose pixels lie on one grid, each with the row and column of its corner relative to the first one's."""
    named = [_TILE_NAME.fullmatch(cube.name) for cube, _ in tiles]
    by_name = all(named) and all(cube.transform is None for cube, _ in tiles)
    groups: list[list[tuple[Cube, np.ndarray, tuple[int, int]]]] = []
    for (cube, labels), match in zip(tiles, named, strict=True):
        place = Affine.translation(int(match[1]), int(match[2])) if by_name and match else cube.transform
        for group in groups:
            first = group[0][0]
            origin = Affine.identity()
            if not by_name:
                if place is None or first.transform is None or cube.crs != first.crs:
                    continue
                origin = first.transform
            assert place is not None
            row, column = pixel_of(origin, place.c, place.f)
            same_pixels = np.allclose((place.a, place.b, place.d, place.e), (origin.a, origin.b, origin.d, origin.e))
            if same_pixels and max(abs(column - round(column)), abs(row - round(row))) < _GRID_TOLERANCE:
                group.append((cube, labels, (round(row), round(column))))
                break
        else:
            corner = (round(place.f), round(place.c)) if by_name and place is not None else (0, 0)
            groups.append([(cube, labels, corner)])
    return groups


def _neighborhoods(corners: np.ndarray, sizes: np.ndarray) -> list[list[int]]:
    """Numbers of tiles that hang together across gaps of up to `JOIN_GAP` pixels."""
    gaps = np.maximum(corners[:, None] - (corners + sizes)[None], 0).max(axis=2)
    _, group = connected_components(np.maximum(gaps, gaps.T) <= JOIN_GAP, directed=False)
    return [np.flatnonzero(group == number).tolist() for number in range(group.max() + 1)]


def _fingerprint(*paths: str | Path | None) -> str:
    """A short name for the state of files: it changes where a file comes, goes, or is written to."""
    lines = []
    for root in [Path(path).expanduser() for path in paths if path]:
        # A file with those beside it that belong to it, as ENVI headers, masks and parts of shapefiles do
        files = [root, *sorted(root.parent.glob(f"{escape(root.stem)}.*"))] if root.is_file() else walk_files(root)
        for file in files:
            if file.is_file():
                status = file.stat()
                lines.append(f"{file.relative_to(root.parent)} {status.st_size} {status.st_mtime_ns}\n")
    return fingerprint(*lines)[:16]

"""What the labelled data sets share: cubes and labels from files, scenes with their split, and the face to `datasets`.

A builder of this package reads its files into a `LabelledData`: scenes on their pixel grids, with labels from 0,
255 = unlabelled, and a split that was proven not to leak. The same object serves training code directly
(`builder.data`) and fills the rows of the Hugging Face data set, which are cuts of the scenes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import rasterio
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
from rasterio.warp import transform as transform_coordinates
from rasterio.windows import Window

from datasets_loading.enmap_product import EnMAPProduct, ProductError, band_tags, raster_errors, to_stored_numbers
from datasets_loading.sensors import ENMAP
from datasets_loading.splits import NO_SPLIT, SPLITS, UNLABELLED, Split, check_split, read_split
from datasets_loading.tiles import SIDECAR_NAME, WAVELENGTH_TOLERANCE

logger = logging.getLogger(__name__)

JOIN_GAP = 64
"""Tiles up to this many pixels apart share one scene; tiles farther apart cannot meet in a window."""

COLUMNS = """\
* `image`: int16 (bands, tile_size, tile_size), stored numbers (reflectance x 10000 where the data are reflectance),
  nodata -32768; pixels of other splits, and outside the scene, are nodata
* `label`: uint8 (tile_size, tile_size), classes from 0; 255 = unlabelled, in another split, or in the buffer
* `classes`: the classes that occur in the tile, with their names
* `wavelengths`: band centres in nm, ascending; empty where they are unknown
* `name`, `scene`, `row`, `column`: the tile, its scene, and the offset of its upper left pixel in it"""
"""Columns of the Hugging Face data sets, in Markdown."""

_GRID_TOLERANCE = 0.05
_TILE_NAME = re.compile(r"tile_(\d+)_(\d+)")
_SAVED_AS_HDF5 = "MATLAB 7.3"


@dataclass(eq=False)
class Cube:
    """An image with its bands in ascending wavelength, where wavelengths are known.

    Attributes:
        name: name of the image.
        image: stored numbers (reflectance x 10000), int16 (bands, height, width), nodata -32768.
        wavelengths: band centres in nm, float64 (bands,), or None.
        crs: coordinate reference system, or None.
        transform: from (column, row) to coordinates, or None.
    """

    name: str
    image: np.ndarray
    wavelengths: np.ndarray | None
    crs: CRS | None = None
    transform: Affine | None = None


@dataclass(eq=False)
class Scene:
    """A labelled image on one pixel grid.

    Attributes:
        name: name of the scene.
        cube: stored numbers (reflectance x 10000), int16 (bands, height, width), nodata -32768.
        labels: classes from 0, uint8 (height, width), 255 = unlabelled; so is every pixel that is not `valid`.
        crs: coordinate reference system, or None.
        transform: from (column, row) to coordinates, or None.
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
        wavelengths: band centres in nm, ascending, float64 (bands,), or None.
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
        """Which bands hold data in every scene, bool (bands,)."""
        return np.all([[(band != ENMAP.nodata).any() for band in scene.cube] for scene in self.scenes], axis=0)

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

    def with_split(self, split: Split) -> LabelledData:
        """The same scenes with another split."""
        return replace(self, split=split)


def read_cube(
    path: str | Path,
    *,
    wavelengths: Sequence[float] | np.ndarray | None = None,
    scale: float | None = None,
    nodata: float | None = None,
    variable: str | None = None,
    num_bands: int | None = None,
) -> Cube:
    """Reads a hyperspectral image from a GeoTIFF, an ENVI file or a MATLAB file, whole.

    Args:
        path: the file; for ENVI its header or its data.
        wavelengths: band centres in nm in the order of the file. By default those that the file's bands are tagged
            with or its header states, or else those of a file `wavelengths.txt` beside it (`read_wavelengths`).
        scale: stored number of a reflectance of 1; by default what the file states, or else 10000.
        nodata: stored number of a pixel without data; by default what the file states. NaN always is.
        variable: array of a MATLAB file; by default the only one with three dimensions, (height, width, bands).
        num_bands: how many bands from the first one on are spectral ones, to be read; by default all.

    Raises:
        ProductError: the file is missing, damaged, holds fractions and no scale, has no data or too few bands, or its
            wavelengths do not fit its bands.
    """
    path = Path(path)
    if not path.is_file():
        raise ProductError(f"{path}: expected an image, got no such file")
    crs = transform = tagged = None
    if path.suffix.lower() == ".mat":
        values = np.moveaxis(_read_matlab(path, variable, 3), -1, 0)
        gain, offset, own_nodata = np.ones(len(values)), np.zeros(len(values)), None
    else:
        data_path = envi_data(path) if path.suffix.lower() == ".hdr" else path
        with raster_errors(str(data_path)), rasterio.open(data_path) as dataset:
            if num_bands is not None and dataset.count < num_bands:
                raise ProductError(f"{path}: expected at least {num_bands} bands, got {dataset.count}")
            bands = list(range(1, (num_bands or dataset.count) + 1))
            values, own_nodata, tagged = dataset.read(bands), dataset.nodata, band_tags(dataset)[0]
            gain, offset = np.array(dataset.scales)[: len(bands)], np.array(dataset.offsets)[: len(bands)]
            tagged = None if tagged is None else tagged[: len(bands)]
            crs, transform = _grid(dataset)
            factor = float(dataset.tags(ns="ENVI").get("reflectance_scale_factor", 0))
        if factor > 0 and scale is None:
            scale = factor
    image = _to_int16(values, gain, offset, scale, own_nodata if nodata is None else nodata, str(path))
    if (image == ENMAP.nodata).all():
        raise ProductError(f"{path}: expected pixels with data, got nodata in all {image[0].size} pixels")
    centres = tagged if wavelengths is None else np.asarray(wavelengths, dtype=np.float64)
    sidecar = path.with_name(SIDECAR_NAME)
    if centres is None and sidecar.is_file():
        centres = read_wavelengths(sidecar)
    if centres is None:
        return Cube(path.stem, image, None, crs, transform)
    if len(centres) != len(image):
        raise ProductError(f"{path}: expected a wavelength for each of its {len(image)} bands, got {len(centres)}")
    order = np.argsort(centres)
    if (np.diff(centres[order]) <= 0).any():
        duplicate = centres[order][1:][np.diff(centres[order]) <= 0][0]
        raise ProductError(f"{path}: expected wavelengths that differ, got {duplicate:g} nm more than once")
    if (np.diff(order) != 1).any():
        image = image[order]
    return Cube(path.stem, image, centres[order], crs, transform)


def read_product(product: EnMAPProduct, window: Window | None = None) -> Cube:
    """Reads a window of an EnMAP product, the whole of it by default, as reflectance x 10000.

    Raises:
        ProductError: the spectral image is missing or damaged.
    """
    image = _to_int16(product.read(window), product.gain, product.offset, None, ENMAP.nodata, product.name)
    transform = product.transform if window is None else moved(product.transform, window.row_off, window.col_off)
    return Cube(product.name, image, product.wavelengths, product.crs, transform)


def read_wavelengths(path: str | Path) -> np.ndarray:
    """Band centres in nm from a text file, the first number of each line, float64 (bands,)."""
    path = Path(path)
    try:
        lines = [re.split(r"[,;\s]+", line.strip()) for line in path.read_text(encoding="utf-8").splitlines()]
        wavelengths = np.array([float(line[0]) for line in lines if line[0]])
    except OSError as error:
        raise ProductError(f"{path}: expected a file of wavelengths, got none ({error.strerror})") from None
    except ValueError:
        raise ProductError(f"{path}: expected a wavelength in nm in each line, got something else") from None
    if not len(wavelengths) or wavelengths.max() < 100:
        largest = f"numbers up to {wavelengths.max():g}" if len(wavelengths) else "none"
        raise ProductError(f"{path}: expected wavelengths in nm, one in each line, got {largest}")
    return wavelengths


def read_label_values(path: str | Path, variable: str | None = None) -> tuple[np.ndarray, CRS | None, Affine | None]:
    """Values of a label raster as they are in the file, int64 (height, width), -1 for its nodata and NaN; its grid.

    Args:
        path: GeoTIFF, ENVI or MATLAB file; the first band of a raster.
        variable: array of a MATLAB file; by default the only one with two dimensions.

    Raises:
        ProductError: the file is missing or damaged, or holds fractions.
    """
    path = Path(path)
    if not path.is_file():
        raise ProductError(f"{path}: expected labels, got no such file")
    crs = transform = nodata = None
    if path.suffix.lower() == ".mat":
        values = _read_matlab(path, variable, 2)
    else:
        data_path = envi_data(path) if path.suffix.lower() == ".hdr" else path
        with raster_errors(str(data_path)), rasterio.open(data_path) as dataset:
            values, nodata = dataset.read(1), dataset.nodata
            crs, transform = _grid(dataset)
    without = ~np.isfinite(values)
    if nodata is not None:
        without |= values == nodata
    # in a type that holds -1, which the unsigned ones of most label files do not
    values = np.where(without, -1, values.astype(np.result_type(values.dtype, np.int16)))
    if (values != np.rint(values)).any():
        raise ProductError(f"{path}: expected whole numbers as labels, got {values[values != np.rint(values)][0]:g}")
    return values.astype(np.int64), crs, transform


def to_classes(values: np.ndarray, class_of_value: Mapping[int, int], where: str) -> np.ndarray:
    """Label values of a file as classes from 0.

    Args:
        values: int64 (height, width), -1 where there is no label.
        class_of_value: class of each value of the file, `UNLABELLED` for values that mean none.
        where: name of the file, for the error.

    Returns:
        uint8 (height, width), 255 = unlabelled.

    Raises:
        ProductError: a value is in no class; the message says which, and in how many pixels.
    """
    present, inverse = np.unique(values, return_inverse=True)
    unknown = [int(value) for value in present if value != -1 and int(value) not in class_of_value]
    if unknown:
        count = int(np.isin(values, unknown).sum())
        known = ", ".join(str(value) for value in sorted(class_of_value))
        raise ProductError(
            f"{where}: expected label values among {known}, got {', '.join(map(str, unknown[:8]))} in {count} pixels"
        )
    table = [UNLABELLED if value == -1 else class_of_value[int(value)] for value in present]
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
        raise ProductError(
            f"{where}: expected {size[0]} x {size[1]} labels as {image.name} has pixels, got {shape[0]} x {shape[1]}"
        )
    if image.transform is None or transform is None:
        return
    check_same_crs(crs, image.crs, image.transform, where, image.name)
    row, column = pixel_of(image.transform, transform.c, transform.f)
    if max(abs(row), abs(column)) > 0.5 or not np.isclose(transform.a, image.transform.a, rtol=0.01):
        raise ProductError(
            f"{where}: expected labels on the pixels of {image.name}, got a grid that begins {row:+.2f} rows and "
            f"{column:+.2f} columns away, with pixels of {transform.a:g}"
        )


def check_same_crs(crs: CRS | None, expected: CRS | None, transform: Affine, where: str, image_name: str) -> None:
    """Checks that two coordinate reference systems mean the same place, whatever they are called.

    Files of one delivery may call it NAD83 and WGS 84, which lie within a metre or two: what counts is that the
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
        raise ProductError(
            f"{where}: expected the coordinate reference system of {image_name}, {expected.to_string()}, got "
            f"{crs.to_string()}: reproject the labels to the image's grid first (gdalwarp -r near)"
        )


def pixel_of(transform: Affine, x: float, y: float) -> tuple[float, float]:
    """Row and column, with fractions, of a place in coordinates."""
    inverse = ~transform
    return inverse.d * x + inverse.e * y + inverse.f, inverse.a * x + inverse.b * y + inverse.c


def moved(transform: Affine, rows: float, columns: float) -> Affine:
    """The transform of a raster that begins so many rows and columns farther."""
    t = transform
    return Affine(t.a, t.b, t.c + columns * t.a + rows * t.b, t.d, t.e, t.f + columns * t.d + rows * t.e)


def join_tiles(tiles: Sequence[tuple[Cube, np.ndarray]]) -> list[Scene]:
    """Lays tiles of one pixel grid side by side, so that windows may cross the edges between them.

    Tiles without georeference are laid by names `tile_X_Y`, X and Y being column and row offsets in pixels, or else
    stay scenes of their own. A scene is named after its upper left tile and holds nodata between its tiles.

    Args:
        tiles: image and labels, uint8 (height, width), of each tile.

    Raises:
        ProductError: tiles overlap, have the same name, or other bands than the first one.
    """
    first = tiles[0][0]
    for cube, _ in tiles[1:]:
        check_same_bands(cube, first)
    names = [cube.name for cube, _ in tiles]
    if len(set(names)) < len(names):
        duplicate = next(name for name in names if names.count(name) > 1)
        raise ProductError(f"{duplicate}: expected tiles with different names, got this one more than once")
    scenes: list[Scene] = []
    for grid in _group_by_grid(tiles):
        corners = np.array([corner for _, _, corner in grid])  # (tiles, 2): row, column
        sizes = np.array([labels.shape for _, labels, _ in grid])
        for members in _neighbourhoods(corners, sizes):
            origin = corners[members].min(axis=0)
            members = sorted(members, key=lambda number: tuple(corners[number]))
            height, width = (corners[members] + sizes[members]).max(axis=0) - origin
            cube, labels, _ = grid[members[0]]
            transform = cube.transform
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
                        raise ProductError(
                            f"{tile.name}: expected tiles that lie side by side, got one that overlaps another in "
                            f"{int(taken[part].sum())} pixels"
                        )
                    taken[part] = True
                    image[:, *part] = tile.image
                    labels[part] = tile_labels
                scenes.append(Scene(cube.name, image, labels, cube.crs, transform))
            else:
                scenes.append(Scene(cube.name, cube.image, labels, cube.crs, transform))
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


class LabelledBuilder(GeneratorBasedBuilder):
    """Builder of a Hugging Face data set from the user's own copies of labelled hyperspectral files.

    `download_and_prepare` and `as_dataset`, or `as_streaming_dataset`, give tiles with the columns of `COLUMNS`; every
    one has at least one labelled pixel of its split. For training code, `data` holds the scenes themselves.
    """

    BUILDER_CONFIG_CLASS = LabelledConfig
    # A tile of EnMAP weighs 1.8 MB: a thousand of them, the default, would fill the memory.
    DEFAULT_WRITER_BATCH_SIZE = 16
    SOURCE: ClassVar[str] = ""
    """Where the files come from, and how they have to lie."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # The files are the user's and may change: what was prepared from other files must not be taken for theirs.
        kwargs.setdefault("hash", _fingerprint(kwargs.get("data_dir"), kwargs.get("split_file")))
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
                data = data.with_split(read_split(self.config.split_file, data.labels))
            check_split(data.split, self.config.window_size)
            self._data = data
        return self._data

    def card(self) -> str:
        """A data set card (README.md) with features, classes, counts, split, licence and citation."""
        return dataset_card(type(self).__name__, self.info, self.data, self.SOURCE)

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


def dataset_card(name: str, info: DatasetInfo, data: LabelledData, source: str) -> str:
    """README.md of a data set: what it holds, how it was split, and whom to cite."""
    counts = {part: data.class_counts(part) for part in SPLITS}
    table = "\n".join(
        f"| {number} | {class_name} | " + " | ".join(f"{counts[part][number]:,}" for part in SPLITS) + " |"
        for number, class_name in enumerate(data.class_names)
    )
    if data.wavelengths is None:
        bands = f"{data.num_bands} bands, wavelengths unknown"
    else:
        bands = f"{data.num_bands} bands, {data.wavelengths[0]:g} to {data.wavelengths[-1]:g} nm"
    sizes = ", ".join(f"{scene.shape[0]} x {scene.shape[1]}" for scene in data.scenes[:4])
    more = f" and {len(data.scenes) - 4} more" if len(data.scenes) > 4 else ""
    citation = f"\n## Citation\n```bibtex\n{info.citation.strip()}\n```\n" if info.citation else ""
    settings = json.dumps(data.split.settings)
    return f"""---
pretty_name: {name}
task_categories:
- image-segmentation
tags:
- hyperspectral
- remote-sensing
- land-cover
---

# {name}

{info.description.strip()}

{bands}; {len(data.scenes)} scene(s) of {sizes}{more} pixels.

## Columns
{COLUMNS}

## Classes and labelled pixels
| class | name | train | validation | test |
|---|---|---|---|---|
{table}

Labels count from 0; 255 is unlabelled.

## Split
Training, validation and test lie apart in space, with a buffer of {data.split.buffer} pixels between them:
`{settings if len(settings) < 500 else settings[:500] + " ..."}`

## Source
{source}

## Licence
{info.license}
{citation}"""


def envi_data(header: Path) -> Path:
    """The data file that an ENVI header describes.

    Raises:
        ProductError: there is none beside it.
    """
    stem = header.with_suffix("")
    endings = ("", ".img", ".dat", ".bsq", ".bil", ".bip", ".pix", ".raw", ".cube")
    for candidate in (stem.with_name(stem.name + ending) for ending in endings):
        if candidate.is_file():
            return candidate
    raise ProductError(f"{header}: expected the data of this ENVI header beside it, {stem}.img or alike, got none")


def _grid(dataset: Any) -> tuple[CRS | None, Affine | None]:
    georeferenced = not dataset.transform.is_identity
    return (dataset.crs, dataset.transform) if georeferenced else (None, None)


def _read_matlab(path: Path, variable: str | None, dimensions: int) -> np.ndarray:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ProductError(f"{path}: expected scipy to read MATLAB files, got none: pip install scipy") from None
    try:
        content = loadmat(path)
    except NotImplementedError:
        raise ProductError(
            f"{path}: expected a MATLAB file of version 7 or older, got {_SAVED_AS_HDF5}: save it with -v7"
        ) from None
    except Exception as error:  # damaged files raise errors of struct, zlib or scipy
        reason = " ".join(str(error).split())
        raise ProductError(f"{path}: expected a whole MATLAB file, got one that is not ({reason})") from None
    arrays = {name: value for name, value in content.items() if isinstance(value, np.ndarray)}
    if variable is None:
        # Everything has at least two dimensions in MATLAB: a line of numbers is no image.
        names = [
            name
            for name, value in arrays.items()
            if value.ndim == dimensions and min(value.shape[:2]) > 1 and value.dtype.kind in "iufb"
        ]
        if len(names) != 1:
            held = ", ".join(f"{name} {value.shape}" for name, value in arrays.items())
            raise ProductError(
                f"{path}: expected one array with {dimensions} dimensions, got {len(names)} ({held}): name it"
            )
        variable = names[0]
    if variable not in arrays or arrays[variable].ndim != dimensions:
        raise ProductError(f"{path}: expected an array {variable} with {dimensions} dimensions, got none")
    return np.asarray(arrays[variable])


def _to_int16(
    values: np.ndarray,
    gain: np.ndarray,
    offset: np.ndarray,
    scale: float | None,
    nodata: float | None,
    where: str,
) -> np.ndarray:
    """Values (bands, height, width) as reflectance x 10000, int16, nodata -32768.

    A gain of 1 with an offset of 0 is what files without either report: their numbers are taken as they are.
    """
    factor = np.full(len(values), ENMAP.scale / scale) if scale else np.where(gain == 1, 1.0, gain * ENMAP.scale)
    if np.allclose(factor, 1, rtol=1e-6) and not offset.any():
        return to_stored_numbers(values, nodata, where)
    without = ~np.isfinite(values)
    if nodata is not None:
        without |= values == nodata
    shift = np.zeros(len(values)) if scale else offset * ENMAP.scale
    scaled = values * factor[:, None, None] + shift[:, None, None]
    # Rounded here: what is reflectance of a dark scene may be no larger than a few units.
    return to_stored_numbers(np.rint(np.where(without, np.nan, scaled)), None, where)


def check_same_bands(cube: Cube, first: Cube) -> None:
    if len(cube.image) != len(first.image):
        raise ProductError(
            f"{cube.name}: expected {len(first.image)} bands as {first.name} has, got {len(cube.image)}"
        )
    if (cube.wavelengths is None) != (first.wavelengths is None):
        raise ProductError(f"{cube.name}: expected wavelengths as in {first.name}, either in all images or in none")
    if cube.wavelengths is not None and first.wavelengths is not None:
        worst = int(np.abs(cube.wavelengths - first.wavelengths).argmax())
        if abs(cube.wavelengths[worst] - first.wavelengths[worst]) > WAVELENGTH_TOLERANCE:
            raise ProductError(
                f"{cube.name}: expected {first.wavelengths[worst]:g} nm in band {worst} as in {first.name}, got "
                f"{cube.wavelengths[worst]:g} nm"
            )


def _group_by_grid(
    tiles: Sequence[tuple[Cube, np.ndarray]],
) -> list[list[tuple[Cube, np.ndarray, tuple[int, int]]]]:
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


def _neighbourhoods(corners: np.ndarray, sizes: np.ndarray) -> list[list[int]]:
    """Numbers of tiles that hang together across gaps of up to `JOIN_GAP` pixels."""
    left = set(range(len(corners)))
    groups = []
    while left:
        group = [left.pop()]
        for number in group:
            gaps = np.maximum(corners - (corners[number] + sizes[number]), corners[number] - (corners + sizes))
            near = {int(other) for other in np.flatnonzero(gaps.max(axis=1) <= JOIN_GAP)} & left
            left -= near
            group += sorted(near)
        groups.append(sorted(group))
    return sorted(groups)


def _fingerprint(*paths: str | Path | None) -> str:
    """A short name for the state of files: it changes where a file comes, goes, or is written to."""
    digest = hashlib.sha256()
    for path in paths:
        root = Path(path).expanduser() if path else None
        if root is None or not root.exists():
            continue
        for file in [root] if root.is_file() else sorted(root.rglob("*")):
            if file.is_file():
                status = file.stat()
                digest.update(f"{file.relative_to(root.parent)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]

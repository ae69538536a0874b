"""EnMAP-DFC: EnMAP products of Mexico City with the land cover of the 2020 IEEE GRSS Data Fusion Contest.

    builder = EnMAPDFC(data_dir="enmap_dfc")                         # blocks apart in space
    builder = EnMAPDFC(config_name="paper", data_dir="enmap_dfc")    # the paper's test tiles
    builder.download_and_prepare()

Follows the labelled data set of Scheibenreif, Mommert and Borth 2023 (Masked Vision Transformers for Hyperspectral
Image Classification): labels of 10 m become those of EnMAP's 30 m by majority of 3 x 3 pixels, and the area that both
share is cut into 64 x 64 tiles, numbered row by row, less those with pixels without data or labels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from affine import Affine
from datasets import DatasetInfo
from rasterio.crs import CRS
from rasterio.windows import Window

from datasets_loading.enmap_product import EnMAPProduct, find_products
from datasets_loading.labelled_data import (
    Cube,
    LabelledBuilder,
    LabelledConfig,
    LabelledData,
    Scene,
    check_same_crs,
    moved,
    pixel_of,
    read_label_values,
    read_scene,
    to_classes,
)
from datasets_loading.raster_file import ProductError, fail
from datasets_loading.scenes import Scene as OpenScene
from datasets_loading.sensors import ENMAP
from datasets_loading.splits import UNLABELLED, Split, SplitError, split_by_scenes
from datasets_loading.wavelengths import check_same_bands

logger = logging.getLogger(__name__)

CLASS_NAMES = ("Forest", "Shrubland", "Grassland", "Wetlands", "Croplands", "Urban/Built-up", "Barren", "Water")
"""The eight classes in use, from 0."""

CLASS_OF_VALUE = {0: UNLABELLED, 1: 0, 2: 1, 3: UNLABELLED, 4: 2, 5: 3, 6: 4, 7: 5, 8: UNLABELLED, 9: 6, 10: 7}
"""Class of each value of the contest's labels (simplified IGBP); 3 (savanna) and 8 (snow and ice) are left out."""

NUM_PAPER_TILES = 357

# fmt: off
PAPER_TEST_TILES = (
    4, 9, 10, 13, 32, 37, 40, 47, 51, 53, 54, 59, 62, 63, 68, 76, 80, 81, 85, 96, 97, 98, 99, 117, 125, 127, 131, 137,
    138, 142, 148, 169, 171, 186, 189, 190, 193, 196, 202, 203, 211, 218, 226, 227, 229, 230, 234, 235, 239, 241, 245,
    251, 265, 267, 268, 269, 278, 279, 286, 297, 307, 314, 323, 331, 337, 341, 344, 345, 347, 349, 352,
)
# fmt: on
"""Numbers of the paper's 71 test tiles among its 357."""


@dataclass
class EnMAPDFCConfig(LabelledConfig):
    """Settings of EnMAP-DFC beside those that all builders share.

    Attributes:
        region: the contest's name of the region; its labels lie in folders `dfc_<region>`.
        test_tiles: numbers of the test tiles of the configuration "paper".
        num_tiles: number of tiles that the numbers refer to.
    """

    region: str = "MexicoCity"
    test_tiles: tuple[int, ...] = PAPER_TEST_TILES
    num_tiles: int = NUM_PAPER_TILES


class EnMAPDFC(LabelledBuilder):
    """Builder of EnMAP-DFC from the user's own copies of the EnMAP products and the contest's labels.

    Configurations: "blocks", one scene split into blocks with a buffer (default); "paper", the paper's tiles, each a
    scene of its own, and its test tiles. Tiles of the paper touch each other, and were drawn at random: results on
    them are more favourable than those on blocks.
    """

    BUILDER_CONFIG_CLASS = EnMAPDFCConfig
    BUILDER_CONFIGS = [
        EnMAPDFCConfig(name="blocks", description="One scene, split into blocks with a buffer between them"),
        EnMAPDFCConfig(name="paper", description="The paper's tiles and its test tiles"),
    ]
    DEFAULT_CONFIG_NAME = "blocks"
    SOURCE = (
        "Put into one folder, at any depth: the EnMAP L2A products "
        "ENMAP01-____L2A-DT0000006195_20221203T174715Z_003_* and ENMAP01-____L2A-DT0000006195_20221203T174720Z_004_*, "
        "as folders or ZIPs (free after registration, https://planning.enmap.org), and the folder dfc_MexicoCity of "
        "the DFC2020 labels (ROIs0000_winter in DFC_Public_Dataset.zip, "
        "https://ieee-dataport.org/competitions/2020-ieee-grss-data-fusion-contest)."
    )

    def _info(self) -> DatasetInfo:
        return DatasetInfo(
            description=(
                "EnMAP L2A reflectance of Mexico City (2022-12-03, 224 bands, 30 m) with the land cover of the 2020 "
                "IEEE GRSS Data Fusion Contest: eight classes of simplified IGBP, the majority of 3 x 3 labels of "
                "10 m; savanna and snow and ice are left out."
            ),
            homepage="https://github.com/HSG-AIML/MaskedSST",
            license=(
                "EnMAP data (c) DLR, under the licence accepted at registration, not to be published again; DFC2020 "
                "labels: CC BY 4.0."
            ),
            citation=_CITATION,
        )

    def _read(self) -> LabelledData:
        labels = read_dfc_labels(self.data_dir, self.config.region, self.SOURCE)
        cube, values, complete = match_products(find_products(self.data_dir), labels, self.data_dir, self.SOURCE)
        classes = to_classes(values, CLASS_OF_VALUE, labels.name)
        split: Split
        if self.config.name == "paper":
            scenes = _paper_tiles(cube, complete, classes)
            split = self._split_by_tiles(scenes)
        else:
            scenes = [Scene(f"EnMAP-{self.config.region}", cube.image, cube.seen(classes), cube.crs, cube.transform)]
            split = self.config.by_blocks({scene.name: scene.labels for scene in scenes})
        return LabelledData(scenes, CLASS_NAMES, cube.wavelengths, split)

    def _split_by_tiles(self, tiles: Sequence[Scene]) -> Split:
        config = self.config
        if len(tiles) != config.num_tiles:
            raise SplitError(
                f"{self.data_dir}: expected {config.num_tiles} whole tiles, to which the numbers of the test tiles "
                f"refer, got {len(tiles)}: other products or labels than the paper's"
            )
        labels = {tile.name: tile.labels for tile in tiles}
        names = [tile.name for tile in tiles]
        parts = {
            "train": [name for number, name in enumerate(names) if number not in config.test_tiles],
            "test": [names[number] for number in config.test_tiles],
        }
        return config.with_validation(split_by_scenes(labels, parts, buffer=config.buffer), labels)


@dataclass(eq=False)
class DFCLabels:
    """Labels of a region as the contest delivers them, laid side by side: uint8 (height, width), 0 = none."""

    name: str
    values: np.ndarray
    crs: CRS
    transform: Affine


def read_dfc_labels(folder: Path, region: str, source: str) -> DFCLabels:
    """Reads all label files in folders `dfc_<region>` under a folder.

    Raises:
        ProductError: there are none, one is damaged or not georeferenced, or their grids differ.
    """
    paths = sorted(path for path in folder.rglob(f"dfc_{region}/*.tif") if path.is_file())
    if not paths:
        fail(folder, f"label files dfc_{region}/*.tif", f"none. {source}")
    parts: list[tuple[np.ndarray, int, int]] = []
    crs = transform = None
    for path in paths:
        values, own_crs, own = read_label_values(path)
        values = np.maximum(values, 0)
        if own_crs is None or own is None:
            fail(path, "a coordinate reference system", "none")
        if crs is None or transform is None:
            crs, transform = own_crs, own
        if own_crs != crs or own.a != transform.a or own.e != transform.e:
            first = f"{crs.to_string()} and pixels of {transform.a:g} m as in {paths[0].name}"
            fail(path, first, f"{own_crs.to_string()} and {own.a:g} m")
        if not np.isin(values, list(CLASS_OF_VALUE)).all():
            to_classes(values, CLASS_OF_VALUE, str(path))
        row, column = pixel_of(transform, own.c, own.f)
        parts.append((values.astype(np.uint8), round(row), round(column)))
    assert crs is not None and transform is not None
    top, left = min(row for _, row, _ in parts), min(column for _, _, column in parts)
    height = max(row + values.shape[0] for values, row, _ in parts) - top
    width = max(column + values.shape[1] for values, _, column in parts) - left
    merged = np.zeros((height, width), dtype=np.uint8)
    for values, row, column in parts:
        place = merged[row - top : row - top + values.shape[0], column - left : column - left + values.shape[1]]
        # Patches of the contest may overlap; the first one stays, as when rasters are merged.
        np.copyto(place, values, where=place == 0)
    return DFCLabels(f"dfc_{region}", merged, crs, moved(transform, top, left))


def match_products(
    paths: Sequence[Path], labels: DFCLabels, folder: Path, source: str
) -> tuple[Cube, np.ndarray, np.ndarray]:
    """Reads what products and labels share: the image, and for each of its pixels the majority of labels.

    Where products overlap, the first one by path with data stays. The corner of the area is the nearest corner of an
    EnMAP pixel, and the corner of each pixel the nearest corner of a label, so that labels lie up to half a label off.

    Returns:
        The image of the shared area, and what `majority` gives for it.

    Raises:
        ProductError: there is no product, or none that overlaps the labels in their coordinate reference system (one
            of several products may: the others are left out, with a warning); or the pixel size or the bands of a
            product do not fit.
    """
    grid: Affine | None = None
    factor = top = left = bottom = right = 0
    wanted: list[tuple[Path, int, int, int, int]] = []
    skipped: list[str] = []
    for path in paths:
        with EnMAPProduct.open(path) as product:
            own, (height, width) = product.transform, product.shape
            if own is None:
                fail(path, "a georeferenced image", "one without")
            try:
                check_same_crs(labels.crs, product.crs, own, str(folder / labels.name), product.name)
            except ProductError as error:
                skipped.append(str(error))
                continue
        ratio = own.a / labels.transform.a
        if abs(ratio - round(ratio)) > 0.01 or (grid is not None and not np.isclose(own.a, grid.a)):
            fitting = f"pixels that are a multiple of the labels' {labels.transform.a:g} m, and equal in all products"
            fail(path, fitting, f"{own.a:g} m")
        if grid is None:
            grid, factor = own, round(ratio)
            top, left = (round(place) for place in pixel_of(grid, labels.transform.c, labels.transform.f))
            bottom, right = (top + labels.values.shape[0] // factor, left + labels.values.shape[1] // factor)
        row, column = (round(place) for place in pixel_of(grid, own.c, own.f))
        if row < bottom and row + height > top and column < right and column + width > left:
            wanted.append((path, row, column, row + height, column + width))
        else:
            skipped.append(f"{path}: expected a product that overlaps the labels, got one beside them")
    if not wanted or grid is None:
        raise ProductError(skipped[0] if skipped else f"{folder}: expected EnMAP products, got none. {source}")
    for reason in skipped:
        logger.warning("left out: %s", reason)
    top, left = max(top, min(entry[1] for entry in wanted)), max(left, min(entry[2] for entry in wanted))
    bottom, right = min(bottom, max(entry[3] for entry in wanted)), min(right, max(entry[4] for entry in wanted))
    merged: Cube | None = None
    for path, first_row, first_column, last_row, last_column in wanted:
        rows = max(top, first_row), min(bottom, last_row)
        columns = max(left, first_column), min(right, last_column)
        window = Window(columns[0] - first_column, rows[0] - first_row, columns[1] - columns[0], rows[1] - rows[0])
        with EnMAPProduct.open(path) as product:
            cube = read_scene(OpenScene(product, path), window)
        if merged is None:
            image = np.full((len(cube.image), bottom - top, right - left), ENMAP.nodata, dtype=np.int16)
            hidden = np.zeros(image.shape[1:], dtype=bool)
            merged = Cube(cube.name, image, cube.wavelengths, cube.crs, moved(grid, top, left), hidden)
        bands = len(cube.image), cube.wavelengths
        check_same_bands(cube.name, *bands, len(merged.image), merged.wavelengths, merged.name)
        part = np.s_[rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left]
        place = merged.image[:, *part]
        free = (place == ENMAP.nodata).all(axis=0)
        assert cube.hidden is not None
        np.copyto(place, cube.image, where=free)
        np.copyto(hidden[part], cube.hidden, where=free)
    assert merged is not None and merged.transform is not None
    return merged, *majority(labels, merged.transform, (bottom - top, right - left), factor)


def majority(
    labels: DFCLabels, transform: Affine, shape: tuple[int, int], factor: int
) -> tuple[np.ndarray, np.ndarray]:
    """The most frequent label of `factor` x `factor` labels in each pixel, the lowest value of equally frequent ones.

    Returns:
        uint8 (height, width), 0 where there are no labels; and which pixels are covered by labels wholly, bool.
    """
    row, column = (round(place) for place in pixel_of(labels.transform, transform.c, transform.f))
    height, width = shape[0] * factor, shape[1] * factor
    fine = np.zeros((height, width), dtype=np.uint8)
    source = np.s_[max(row, 0) : max(row + height, 0), max(column, 0) : max(column + width, 0)]
    part = labels.values[source]
    top, left = max(-row, 0), max(-column, 0)
    fine[top : top + part.shape[0], left : left + part.shape[1]] = part
    cells = fine.reshape(shape[0], factor, shape[1], factor)
    counts = np.stack([(cells == value).sum(axis=(1, 3), dtype=np.uint16) for value in range(max(CLASS_OF_VALUE) + 1)])
    return counts.argmax(axis=0).astype(np.uint8), counts[0] == 0


def _paper_tiles(cube: Cube, complete: np.ndarray, classes: np.ndarray) -> list[Scene]:
    """The paper's tiles: those covered by labels wholly, with a band without gaps; numbered row by row."""
    tiles: list[Scene] = []
    tile_size = 64
    for row in range(0, complete.shape[0] - tile_size + 1, tile_size):
        for column in range(0, complete.shape[1] - tile_size + 1, tile_size):
            part = np.s_[row : row + tile_size, column : column + tile_size]
            has_gaps = (cube.image[:, *part] == ENMAP.nodata).any(axis=(1, 2)).all()
            if has_gaps or not complete[part].all():
                continue
            transform = None if cube.transform is None else moved(cube.transform, row, column)
            # A copy, so that the whole scene can be forgotten.
            image = np.ascontiguousarray(cube.image[:, *part])
            tiles.append(Scene(f"tile{len(tiles)}", image, classes[part], cube.crs, transform))
    return tiles


_CITATION = """\
@inproceedings{scheibenreif2023masked,
  title = {Masked Vision Transformers for Hyperspectral Image Classification},
  author = {Scheibenreif, Linus and Mommert, Michael and Borth, Damian},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition Workshops},
  year = {2023}
}
@article{storch2023enmap,
  title = {The EnMAP imaging spectroscopy mission towards operations},
  author = {Storch, Tobias and others},
  journal = {Remote Sensing of Environment},
  volume = {294},
  year = {2023},
  doi = {10.1016/j.rse.2023.113632}
}
@misc{dfc2020,
  title = {2020 IEEE GRSS Data Fusion Contest},
  author = {Schmitt, Michael and Hughes, Lloyd and Ghamisi, Pedram and Yokoya, Naoto and H{\\"a}nsch, Ronny},
  publisher = {IEEE DataPort},
  doi = {10.21227/rha7-m332}
}
"""

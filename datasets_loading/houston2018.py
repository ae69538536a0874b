"""Houston 2018: the hyperspectral image of the 2018 IEEE GRSS Data Fusion Contest with its urban land use classes.

    builder = Houston2018(data_dir="2018IEEE_Contest")
    builder.download_and_prepare()

The image has 1 m, the labels 0.5 m. The raster of training labels covers the training area alone: labels are halved
(nearest) and laid where their own georeference says. The official areas are cells of a grid of 2 x 7 equal tiles: the
lower row, columns 1 to 4, is for training, the other ten tiles are for testing. They touch each other: training pixels
within the buffer of a test tile are given up, test tiles stay whole.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from affine import Affine
from datasets import DatasetInfo
from rasterio.crs import CRS

from datasets_loading.labelled_data import (
    Cube,
    LabelledBuilder,
    LabelledData,
    Scene,
    check_same_crs,
    pixel_of,
    read_cube,
    read_label_values,
    to_classes,
)
from datasets_loading.raster_file import fail
from datasets_loading.sensors import ENMAP
from datasets_loading.splits import UNLABELLED, Area, split_by_areas

CLASS_NAMES = (
    "Healthy grass",
    "Stressed grass",
    "Artificial turf",
    "Evergreen trees",
    "Deciduous trees",
    "Bare earth",
    "Water",
    "Residential buildings",
    "Non-residential buildings",
    "Roads",
    "Sidewalks",
    "Crosswalks",
    "Major thoroughfares",
    "Highways",
    "Railways",
    "Paved parking lots",
    "Unpaved parking lots",
    "Cars",
    "Trains",
    "Stadium seats",
)
"""The 20 classes, from 0; their values in the files count from 1, and 0 is unclassified."""

CLASS_OF_VALUE = {0: UNLABELLED} | {value: value - 1 for value in range(1, len(CLASS_NAMES) + 1)}

NUM_BANDS = 48
"""Spectral bands; two auxiliary layers follow them in the file."""

WAVELENGTHS = tuple(float(wavelength) for wavelength in np.linspace(374.4, 1047.1, NUM_BANDS).round(1))
"""Band centers in nm, used where the header states none."""

SCENE_NAME = "Houston2018"
IMAGE_NAME = "20170218_UH_CASI_S4_NAD83"
TRAINING_LABELS_NAME = "2018_IEEE_GRSS_DFC_GT_TR.tif"
TEST_LABELS_NAME = "Test_Labels.tif"

TILE_ROWS, TILE_COLUMNS = 2, 7
TRAINING_COLUMNS = (1, 5)
"""The training area in the grid of tiles: the lower row, from column 1 to before column 5."""


class Houston2018(LabelledBuilder):
    """Builder of Houston 2018 from the user's own copy of the contest's files, with the official areas.

    `validation_share` sets blocks of the training area aside for validation.
    """

    SOURCE = (
        "The files are those of phase 2 of the contest, free after registration (https://machinelearning.ee.uh.edu, "
        "2018 IEEE GRSS Data Fusion Challenge): put FullHSIDataset/20170218_UH_CASI_S4_NAD83.hdr and .pix, "
        "TrainingGT/2018_IEEE_GRSS_DFC_GT_TR.tif and TestingGT/Test_Labels.tif into one folder, at any depth."
    )

    def _info(self) -> DatasetInfo:
        return DatasetInfo(
            description=(
                "Airborne hyperspectral image of the campus of the University of Houston and its surroundings "
                "(ITRES CASI 1500, 2017-02-16, 48 bands from 374 to 1047 nm, 1 m) with 20 urban land use and land "
                "cover classes and the contest's own training and test areas. Stored numbers are those of the file: "
                "a processor's scale and statistics have to be made from them. Those above 32767 are set to it."
            ),
            homepage="https://www.grss-ieee.org/community/technical-committees/2018-ieee-grss-data-fusion-contest/",
            license="Free for research, with acknowledgement of the contest and the University of Houston.",
            citation=_CITATION,
        )

    def _read(self) -> LabelledData:
        names = (f"{IMAGE_NAME}.hdr", f"{IMAGE_NAME}.pix", TRAINING_LABELS_NAME, TEST_LABELS_NAME)
        header, _, training_path, test_path = (self._find(name) for name in names)
        cube = read_image(header)
        height, width = cube.image.shape[1:]
        if height % TILE_ROWS or width % TILE_COLUMNS:
            fail(header, f"an image of {TILE_ROWS} x {TILE_COLUMNS} equal tiles", f"{height} x {width} pixels")
        areas = official_areas(height, width)
        (training,) = areas["train"]
        labels = lay_labels(test_path, cube)
        own = lay_labels(training_path, cube)
        inside = training.slices
        outside = int((own != UNLABELLED).sum() - (own[inside] != UNLABELLED).sum())
        if outside:
            rows = f"rows {training.first_row} to {training.last_row - 1}"
            columns = f"columns {training.first_column} to {training.last_column - 1}"
            fail(training_path, f"training labels in {rows} and {columns}", f"{outside} outside")
        labels[inside] = own[inside]
        scene = Scene(SCENE_NAME, cube.image, labels, cube.crs, cube.transform)
        by_name = {scene.name: scene.labels}
        split = split_by_areas(by_name, areas, buffer=self.config.buffer)
        split = self.config.with_validation(split, by_name)
        return LabelledData([scene], CLASS_NAMES, cube.wavelengths, split)

    def _find(self, name: str) -> Path:
        found = sorted(self.data_dir.rglob(name))
        if not found:
            fail(self.data_dir, f"a file {name}", f"none. {self.SOURCE}")
        return found[0]


def official_areas(height: int, width: int) -> dict[str, list[Area]]:
    """The official training area, and those for testing left of it, above it and right of it, for an image's size."""
    first_row = height // TILE_ROWS
    first_column, last_column = (column * (width // TILE_COLUMNS) for column in TRAINING_COLUMNS)
    return {
        "train": [Area(SCENE_NAME, first_row, height, first_column, last_column)],
        "test": [
            Area(SCENE_NAME, 0, height, 0, first_column),
            Area(SCENE_NAME, 0, first_row, first_column, last_column),
            Area(SCENE_NAME, 0, height, last_column, width),
        ],
    }


def read_image(header: Path) -> Cube:
    """The 48 spectral bands of the contest's image; ProductError where it is damaged or has fewer."""
    # The contest states no scale: its numbers are taken as they are
    cube = read_cube(header, num_bands=NUM_BANDS, scale=ENMAP.scale)
    if cube.wavelengths is None:
        cube.wavelengths = np.array(WAVELENGTHS)
    return cube


def lay_labels(path: Path, image: Cube) -> np.ndarray:
    """Labels of half the image's pixel size, halved and laid on the image.

    Of each 2 x 2 labels the lower right one is taken, as GDAL does when it halves by the nearest neighbor. Labels
    without georeference have to cover the whole image.

    Returns:
        Classes, uint8 (height, width) of the image, 255 = unlabelled.

    Raises:
        ProductError: the labels have another coordinate reference system or pixel size, lie between pixels or beyond
            the image, or hold unknown values.
    """
    values, crs, transform = read_label_values(path)
    classes = to_classes(values, CLASS_OF_VALUE, str(path))[1::2, 1::2]
    height, width = image.image.shape[1:]
    row = column = 0
    if transform is None or image.transform is None:
        if values.shape != (2 * height, 2 * width):
            whole = f"{2 * height} x {2 * width} labels of the whole image, as they have no georeference"
            fail(path, whole, f"{values.shape[0]} x {values.shape[1]}")
    else:
        row, column = _offset(path, crs, transform, image)
        if not (0 <= row <= height - classes.shape[0] and 0 <= column <= width - classes.shape[1]):
            place = f"{classes.shape[0]} x {classes.shape[1]} that begin at row {row}, column {column}"
            fail(path, f"labels inside the {height} x {width} pixels of the image", place)
    laid = np.full((height, width), UNLABELLED, dtype=np.uint8)
    laid[row : row + classes.shape[0], column : column + classes.shape[1]] = classes
    return laid


def _offset(path: Path, crs: CRS | None, transform: Affine, image: Cube) -> tuple[int, int]:
    """Row and column of the image at which labels begin."""
    assert image.transform is not None
    check_same_crs(crs, image.crs, transform, str(path), image.name)
    ratio = image.transform.a / transform.a
    row, column = pixel_of(image.transform, transform.c, transform.f)
    if abs(ratio - 2) > 0.01 or max(abs(row - round(row)), abs(column - round(column))) > 0.1:
        place = f"1/{ratio:g} of it and a beginning at row {row:.2f}, column {column:.2f}"
        fail(path, "labels of half the image's pixel size that begin at a pixel's corner", place)
    return round(row), round(column)


_CITATION = """\
@article{xu2019advanced,
  title = {Advanced Multi-Sensor Optical Remote Sensing for Urban Land Use and Land Cover Classification: Outcome of
    the 2018 IEEE GRSS Data Fusion Contest},
  author = {Xu, Yonghao and Du, Bo and Zhang, Liangpei and Cerra, Daniele and Pato, Miguel and Carmona, Emiliano and
    Prasad, Saurabh and Yokoya, Naoto and H{\\"a}nsch, Ronny and Le Saux, Bertrand},
  journal = {IEEE Journal of Selected Topics in Applied Earth Observations and Remote Sensing},
  volume = {12},
  number = {6},
  pages = {1709--1724},
  year = {2019},
  doi = {10.1109/JSTARS.2019.2911113}
}
"""

"""Any labelled hyperspectral image as a Hugging Face data set: MATLAB, ENVI or GeoTIFF files, or EnMAP products.

    builder = LabelledScene(
        data_dir="potsdam",
        class_names=["roof", "pavement", "low vegetation", "tree", "soil", "water"],
        split={"train": [(0, 64, 0, 96)], "test": [(64, 128, 96, 160)]},
    )
    builder.download_and_prepare()
    dataset = builder.as_dataset(split="train").with_format("numpy", dtype="int16", columns=["image"])
    data = builder.data  # the scenes themselves

The folder holds `images/` and `labels/` with files of the same names (`labels/<name>_labels.*` will do, too). Tiles of
one pixel grid are laid side by side. MATLAB files hold the image as (height, width, bands).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from datasets import DatasetInfo

from datasets_loading.enmap_product import EnMAPProduct, ProductError, is_hidden, raster_errors
from datasets_loading.labelled_data import (
    Cube,
    LabelledBuilder,
    LabelledConfig,
    LabelledData,
    Scene,
    check_same_grid,
    join_tiles,
    read_cube,
    read_label_values,
    read_product,
    read_wavelengths,
    to_classes,
)
from datasets_loading.splits import (
    SPLITS,
    UNLABELLED,
    Area,
    Labels,
    Split,
    SplitError,
    all_for_test,
    split_by_areas,
    split_by_blocks,
    split_by_scenes,
    with_validation,
)

logger = logging.getLogger(__name__)

IMAGE_ENDINGS = (".tif", ".tiff", ".mat", ".hdr", ".zip")
LABEL_ENDINGS = (".tif", ".tiff", ".mat", ".hdr")


@dataclass
class LabelledSceneConfig(LabelledConfig):
    """Settings of a labelled scene beside those that all builders share.

    Attributes:
        images: folder of images, or one image, in the data folder. An image is a GeoTIFF, an ENVI header, a MATLAB
            file, or an EnMAP product as a folder or ZIP.
        labels: folder of label rasters with the images' names, or one raster.
        class_names: names of the label values 1, 2, ..., or a name for each value. By default those that a label
            raster is tagged with (`class_0`, ...), or else "class <value>" for each value that occurs.
        unlabelled: label values that mean none, less those that have a name.
        wavelengths: band centres in nm in the order of the files, or a text file of them, one in each line.
        scale: stored number of a reflectance of 1, where the files do not say and it is not 10000.
        nodata: stored number of pixels without data, where the files do not say.
        image_variable, label_variable: arrays of MATLAB files that hold several.
        split: "blocks"; "test", where all pixels are for test; or for "train", "test" and perhaps "validation" a list
            of scenes by name, or of rectangles (first row, row after the last, first column, column after the last),
            with the scene's name before them where there are several scenes.
    """

    images: str = "images"
    labels: str = "labels"
    class_names: Sequence[str] | Mapping[int, str] | None = None
    unlabelled: tuple[int, ...] = (0, 255)
    wavelengths: str | Sequence[float] | None = None
    scale: float | None = None
    nodata: float | None = None
    image_variable: str | None = None
    label_variable: str | None = None
    split: str | Mapping[str, Sequence[Any]] = "blocks"


class LabelledScene(LabelledBuilder):
    """Builder of a data set from the user's own labelled images (see the module and `LabelledSceneConfig`)."""

    BUILDER_CONFIG_CLASS = LabelledSceneConfig
    SOURCE = (
        "Your own files: a folder images/ of GeoTIFF, ENVI or MATLAB files or EnMAP products, and a folder labels/ "
        "of label rasters with the same names."
    )

    def _info(self) -> DatasetInfo:
        return DatasetInfo(
            description="Labelled hyperspectral images from the user's own files.",
            license="That of the files it was made from.",
        )

    def _read(self) -> LabelledData:
        config = self.config
        image_paths = _find_images(self.data_dir / config.images, self.SOURCE)
        label_paths = _find_labels(image_paths, self.data_dir / config.labels)
        wavelengths = config.wavelengths
        if isinstance(wavelengths, str):
            wavelengths = read_wavelengths(self.data_dir / wavelengths)
        label_rasters = [read_label_values(path, config.label_variable) for path in label_paths]
        names = _class_names(config, label_paths, [values for values, _, _ in label_rasters])
        class_of_value = dict.fromkeys(config.unlabelled, UNLABELLED) | {value: n for n, value in enumerate(names)}
        tiles: list[tuple[Cube, np.ndarray]] = []
        for image_path, label_path, (values, crs, transform) in zip(
            image_paths, label_paths, label_rasters, strict=True
        ):
            if image_path.is_dir() or image_path.suffix.lower() == ".zip":
                with EnMAPProduct.open(image_path) as product:
                    cube = read_product(product)
            else:
                cube = read_cube(
                    image_path,
                    wavelengths=wavelengths,
                    scale=config.scale,
                    nodata=config.nodata,
                    variable=config.image_variable,
                )
            check_same_grid(cube, crs, transform, values.shape, str(label_path))
            tiles.append((cube, to_classes(values, class_of_value, str(label_path))))
        scenes = join_tiles(tiles)
        labels = {scene.name: scene.labels for scene in scenes}
        if len(np.setdiff1d(np.concatenate([values.ravel() for values in labels.values()]), [UNLABELLED])) < 2:
            raise ProductError(f"{self.data_dir / config.labels}: expected labels of at least 2 classes, got fewer")
        split = make_split(config, scenes, labels)
        return LabelledData(scenes, tuple(names.values()), tiles[0][0].wavelengths, split)


def make_split(config: LabelledSceneConfig, scenes: Sequence[Scene], labels: Labels) -> Split:
    """The split that a configuration asks for.

    Raises:
        SplitError: the configuration names no split that can be made of these scenes.
    """
    if config.split == "blocks":
        return split_by_blocks(
            labels, block_size=config.block_size, buffer=config.buffer, shares=config.shares, seed=config.seed
        )
    if config.split == "test":
        return all_for_test(labels)
    if isinstance(config.split, str) or not set(config.split) <= set(SPLITS):
        given = config.split if isinstance(config.split, str) else ", ".join(config.split)
        raise SplitError(f'expected the split "blocks" or "test", or areas of {", ".join(SPLITS)}, got {given}')
    entries = [entry for part in config.split.values() for entry in part]
    if all(isinstance(entry, str) for entry in entries):
        split = split_by_scenes(labels, config.split, buffer=config.buffer)
    else:
        areas = {name: [_area(entry, scenes) for entry in part] for name, part in config.split.items()}
        split = split_by_areas(labels, areas, buffer=config.buffer)
    if config.validation_share:
        split = with_validation(
            split, labels, share=config.validation_share, block_size=config.block_size, seed=config.seed
        )
    return split


def _area(entry: Any, scenes: Sequence[Scene]) -> Area:
    if len(entry) == 4 and len(scenes) == 1:
        entry = (scenes[0].name, *entry)
    if len(entry) != 5:
        raise SplitError(
            "expected areas as (first row, row after the last, first column, column after the last), with the scene "
            f"before them where there are several, got {entry} and the scenes {', '.join(s.name for s in scenes)}"
        )
    return Area(str(entry[0]), *(int(side) for side in entry[1:]))


def _find_images(path: Path, source: str) -> list[Path]:
    """Images in a folder by name: files, and folders that hold an EnMAP product."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ProductError(f"{path}: expected a folder of images, or an image, got nothing there. {source}")
    found = [
        entry
        for entry in sorted(path.iterdir())
        if not is_hidden(entry.relative_to(path))
        and (entry.is_dir() or (entry.suffix.lower() in IMAGE_ENDINGS and not _is_labels(entry)))
    ]
    if not found:
        raise ProductError(f"{path}: expected images ({', '.join(IMAGE_ENDINGS)}), got none. {source}")
    return found


def _is_labels(path: Path) -> bool:
    return path.stem.endswith("_labels")


def _find_labels(images: Sequence[Path], path: Path) -> list[Path]:
    """The label raster of each image."""
    if path.is_file():
        if len(images) != 1:
            raise ProductError(f"{path}: expected a folder of labels for {len(images)} images, got a file")
        return [path]
    found = []
    for image in images:
        name = image.name if image.is_dir() else image.stem
        candidates = [path / f"{name}{suffix}{ending}" for suffix in ("", "_labels") for ending in LABEL_ENDINGS]
        labels = next((candidate for candidate in candidates if candidate.is_file()), None)
        if labels is None:
            raise ProductError(f"{candidates[0]}: expected the labels of {image.name}, got no such file")
        found.append(labels)
    if path.is_dir():
        used = set(found)
        others = [entry for entry in sorted(path.glob("*")) if entry.suffix.lower() in LABEL_ENDINGS]
        spare = [entry.name for entry in others if entry not in used and entry not in images]
        if spare:
            logger.warning("%s: labels without an image, left out: %s", path, ", ".join(spare[:8]))
    return found


def _class_names(
    config: LabelledSceneConfig, label_paths: Sequence[Path], rasters: Sequence[np.ndarray]
) -> dict[int, str]:
    """Name of each label value, in the order of the values."""
    names: dict[int, str] = {}
    if isinstance(config.class_names, Mapping):
        names = {int(value): name for value, name in config.class_names.items()}
    elif config.class_names is not None:
        names = dict(enumerate(config.class_names, start=1))
    else:
        names = _tagged_names(label_paths[0])
        if not names:
            values = np.unique(np.concatenate([np.unique(raster) for raster in rasters]))
            names = {int(value): f"class {value}" for value in values if value not in (-1, *config.unlabelled)}
    if len(names) > UNLABELLED:
        raise ProductError(f"{label_paths[0]}: expected at most {UNLABELLED} classes, got {len(names)} label values")
    return dict(sorted(names.items()))


def _tagged_names(path: Path) -> dict[int, str]:
    if path.suffix.lower() not in (".tif", ".tiff"):
        return {}
    with raster_errors(str(path)), rasterio.open(path) as dataset:
        tags = {**dataset.tags(), **dataset.tags(1)}
    names = {key.removeprefix("class_"): name for key, name in tags.items() if key.startswith("class_")}
    return {int(value): name for value, name in names.items() if value.isdigit()}

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
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetInfo

from datasets_loading.enmap_product import product_part
from datasets_loading.labelled_data import (
    NEVER_CLASSES,
    Cube,
    LabelledBuilder,
    LabelledConfig,
    LabelledData,
    Scene,
    join_tiles,
    read_labels_on,
    read_scene,
    to_classes,
)
from datasets_loading.raster_file import fail, is_hidden
from datasets_loading.raster_formats import ARRAY_ENDINGS, GdalFile, envi_data
from datasets_loading.scenes import is_product, name_of, open_scene
from datasets_loading.sensors import ENMAP
from datasets_loading.spectrometers import is_desis
from datasets_loading.splits import (
    SPLITS,
    UNLABELLED,
    Area,
    Labels,
    Split,
    SplitError,
    all_for_test,
    split_by_areas,
    split_by_scenes,
)
from datasets_loading.vector_labels import OTHER_ENDINGS, VECTOR_ENDINGS, rasterize_features, read_features

logger = logging.getLogger(__name__)

IMAGE_ENDINGS = (".tif", ".tiff", ".mat", ".hdr", ".zip", ".jp2", ".he5", ".h5", ".hdf5", ".nc", ".npy", ".npz")
LABEL_ENDINGS = (".tif", ".tiff", ".mat", ".hdr", ".npy", ".npz")


@dataclass
class LabelledSceneConfig(LabelledConfig):
    """Settings of a labelled scene beside those that all builders share.

    Attributes:
        images: folder of images, or one image, in the data folder. An image is a GeoTIFF, an ENVI header, a MATLAB
            file, or an EnMAP product as a folder or ZIP.
        labels: folder of label rasters with the images' names, one raster, or a vector file of points or polygons
            for all images (GeoPackage, GeoJSON, shapefile, CSV; see `datasets_loading.vector_labels`).
        class_column: column of a vector file that holds the classes.
        class_names: names of the label values 1, 2, ... (0, 1, ... where `unlabelled` leaves 0 out), or a name for
            each value. By default those that a label raster is tagged with (`class_0`, ...), or else "class <value>"
            for each value that occurs. Of a vector file the names and their order.
        unlabelled: label values that mean none, less those that have a name; 0 by default. 255, -1, -100 and -9999
            always do.
        wavelengths: band centers in nm in the order of the files, or a text file of them, one in each line.
        scale: stored number of a reflectance of 1, where the files do not say.
        nodata: stored number of pixels without data, where the files do not say.
        radiance: take images of radiance as they are.
        image_variable, label_variable: arrays of MATLAB and NumPy files that hold several.
        split: "blocks"; "test", where all pixels are for test; or for "train", "test" and perhaps "validation" a list
            of scenes by name, or of rectangles (first row, row after the last, first column, column after the last),
            with the scene's name before them where there are several scenes.
    """

    images: str = "images"
    labels: str = "labels"
    class_column: str | None = None
    class_names: Sequence[str] | Mapping[int, str] | None = None
    unlabelled: tuple[int, ...] | None = None
    wavelengths: str | Sequence[float] | None = None
    scale: float | None = None
    nodata: float | None = None
    radiance: bool = False
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
        labels_path = self.data_dir / config.labels
        image_paths = _find_images(self.data_dir / config.images, self.SOURCE)
        # A map that lies among the images is none of them; a MATLAB file may hold both
        image_paths = [path for path in image_paths if not _is_same(path, labels_path)] or image_paths
        if labels_path.suffix.lower() in (*VECTOR_ENDINGS, *OTHER_ENDINGS) and not labels_path.is_dir():
            cubes = [self._read_image(path) for path in image_paths]
            names, label_values = self._vector_labels(labels_path, cubes)
        else:
            label_paths = _find_labels(image_paths, labels_path)
            cubes = [self._read_image(path) for path in image_paths]
            pairs = list(zip(cubes, label_paths, strict=True))
            is_shared = labels_path.is_file() and len(cubes) > 1
            rasters = [read_labels_on(cube, path, config.label_variable, is_shared) for cube, path in pairs]
            names = _class_names(config, label_paths, rasters)
            unlabelled = (0,) if config.unlabelled is None else config.unlabelled
            class_of_value = dict.fromkeys(unlabelled, UNLABELLED) | {value: n for n, value in enumerate(names)}
            label_values = [
                to_classes(values, class_of_value, str(path))
                for values, path in zip(rasters, label_paths, strict=True)
            ]
        scenes = join_tiles([(cube, cube.seen(values)) for cube, values in zip(cubes, label_values, strict=True)])
        labels = {scene.name: scene.labels for scene in scenes}
        found = set().union(*(np.unique(values).tolist() for values in labels.values())) - {UNLABELLED}
        if len(found) < 2:
            only = [name for number, name in enumerate(names.values()) if number in found]
            fail(
                labels_path, "labels of at least 2 classes on the images", f"only {only[0]}" if only else "none there"
            )
        split = make_split(config, scenes, labels)
        return LabelledData(scenes, tuple(names.values()), cubes[0].wavelengths, split)

    def _read_image(self, path: Path) -> Cube:
        config = self.config
        reading: dict[str, Any] = {}
        if not is_product(path):
            wavelengths = config.wavelengths
            reading = {
                "wavelengths": self.data_dir / wavelengths if isinstance(wavelengths, str) else wavelengths,
                "scale": config.scale,
                "nodata": config.nodata,
                "variable": config.image_variable,
            }
        with open_scene(path, radiance=config.radiance, **reading) as scene:
            cube = read_scene(scene)
        if (cube.image == ENMAP.nodata).all():
            fail(path, "pixels with data", f"nodata in all {cube.image[0].size} pixels")
        # Labels are found by the name of the file, and scenes are named in splits by it
        return cube if is_product(path) else replace(cube, name=path.stem)

    def _vector_labels(self, path: Path, cubes: Sequence[Cube]) -> tuple[dict[int, str], list[np.ndarray]]:
        """Names of the classes, and classes of each image, uint8 (height, width)."""
        config = self.config
        if isinstance(config.class_names, Mapping):
            fail(path, "names in their order for labels of a vector file", "a name for each value")
        features = read_features(path, config.class_column)
        found = []
        for cube in cubes:
            grid = cube.crs, cube.transform, cube.image.shape[1:]
            labels = rasterize_features(features, *grid, config.class_names, allow_outside=len(cubes) > 1)
            logger.warning("%s on %s: %s", path, cube.name, labels.description)
            found.append(np.where(labels.values < 0, UNLABELLED, labels.values - 1))
        # Numbers that mean no class in rasters mean none here
        none = {str(value) for value in (*NEVER_CLASSES, *((0,) if config.unlabelled is None else config.unlabelled))}
        none = none if config.class_names is None else set()
        kept = [number for number, name in enumerate(labels.class_names) if name not in none]
        left_out = [name for name in labels.class_names if name in none]
        if left_out:
            logger.warning("%s: read as unlabelled: %s (--unlabelled)", path, ", ".join(left_out))
        table = np.full(UNLABELLED + 1, UNLABELLED, dtype=np.uint8)
        table[kept] = np.arange(len(kept))
        names = {number: labels.class_names[old] for number, old in enumerate(kept)}
        return names, [table[values] for values in found]


def make_split(config: LabelledSceneConfig, scenes: Sequence[Scene], labels: Labels) -> Split:
    """The split that a configuration asks for.

    Raises:
        SplitError: the configuration names no split that can be made of these scenes.
    """
    if config.split == "blocks":
        return config.by_blocks(labels)
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
    return config.with_validation(split, labels)


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
        fail(path, "a folder of images, or an image", f"nothing there. {source}")
    entries = [entry for entry in sorted(path.iterdir()) if not is_hidden(entry.relative_to(path))]
    products = [entry for entry in entries if product_part(entry.name) == "METADATA"]
    if products or is_desis(path):
        # The folder of a product, or files of several as the archive serves them
        return products or [path]
    found = [
        entry
        for entry in entries
        if entry.is_dir() or (entry.suffix.lower() in IMAGE_ENDINGS and not entry.stem.endswith("_labels"))
    ]
    if not found:
        fail(path, f"images ({', '.join(IMAGE_ENDINGS)})", f"none. {source}")
    return found


def _is_same(image: Path, labels: Path) -> bool:
    """Whether a found image is the file of labels, or the ENVI header of it."""
    may_be_header = image.suffix.lower() == ".hdr" and image.stem == labels.stem and labels.is_file()
    return image == labels or (may_be_header and envi_data(image) == labels)


def _find_labels(images: Sequence[Path], path: Path) -> list[Path]:
    """The label raster of each image."""
    if path.is_file():
        return [path] * len(images)
    found = []
    for image in images:
        name = name_of(image)
        candidates = [path / f"{name}{suffix}{ending}" for suffix in ("", "_labels") for ending in LABEL_ENDINGS]
        labels = next((candidate for candidate in candidates if candidate.is_file()), None)
        if labels is None:
            fail(candidates[0], f"the labels of {image.name}", "no such file")
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
    values = {int(value) for raster in rasters for value in np.unique(raster)} - set(NEVER_CLASSES)
    names: dict[int, str] = {}
    if isinstance(config.class_names, Mapping):
        names = {int(value): name for value, name in config.class_names.items()}
    elif config.class_names is not None:
        last = len(config.class_names)
        first = 1 if config.unlabelled is None or 0 in config.unlabelled else 0
        if config.unlabelled is None and 0 in values and last not in values and max(values) < last:
            logger.warning(
                "%s: values 0 to %d for %d class names: 0 is read as unlabelled, and no pixel is %s. Where 0 is %s, "
                "say --unlabelled 255",
                label_paths[0],
                max(values),
                last,
                config.class_names[-1],
                config.class_names[0],
            )
        names = dict(enumerate(config.class_names, start=first))
    else:
        names = _tagged_names(label_paths[0])
        if not names:
            unlabelled = (0,) if config.unlabelled is None else config.unlabelled
            names = {value: f"class {value}" for value in values if value not in unlabelled}
            if config.unlabelled is None and 0 in values and values == set(range(len(values))):
                count = sum(int((raster == 0).sum()) for raster in rasters)
                logger.warning(
                    "%s: 0 is read as unlabelled (%d pixels). Where it is a class, say --unlabelled 255",
                    label_paths[0],
                    count,
                )
    if len(names) > UNLABELLED:
        fail(label_paths[0], f"at most {UNLABELLED} classes", f"{len(names)} label values")
    return dict(sorted(names.items()))


def _tagged_names(path: Path) -> dict[int, str]:
    """Names of label values by the tags `class_<value>` of a GeoTIFF, or by the `class names` of an ENVI header."""
    if path.suffix.lower() in ARRAY_ENDINGS:
        return {}
    file = GdalFile(str(envi_data(path) if path.suffix.lower() == ".hdr" else path))
    tags = {**file.dataset.tags(), **file.dataset.tags(1)}
    listed = file.dataset.tags(ns="ENVI").get("class_names", "").strip("{} ")
    file.close()
    names = {key.removeprefix("class_"): name for key, name in tags.items() if key.startswith("class_")}
    found = {int(value): name for value, name in names.items() if value.isdigit()}
    of_header = {value: name.strip() for value, name in enumerate(listed.split(","))} if listed else {}
    if re.fullmatch(r"unclassified|background|no ?data|none|0|", of_header.get(0, ""), re.I):
        of_header.pop(0, None)
    return found or of_header

"""Maps as Cloud-Optimized GeoTIFF, written part by part: classes with names and colors, probabilities, features.

A map is written into a hidden file beside its final name and put there when it is whole. Names of classes stand in
the file's tags, in the `.aux.xml` beside it, which is where GDAL keeps categories, and in the `.qml` beside it, the
style that QGIS opens the map with: by the file alone, whose color table always has 256 entries, it would list 256
classes.
"""

from __future__ import annotations

import json
import os
import warnings
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from datasets_loading.files import write_text
from hsst.support.command_line import shown

NO_CLASS = 255
"""Value of a pixel without a class in maps of type uint8."""

PROBABILITY_STEPS = 250
"""Stored number that means a probability of 1 in rasters of type uint8."""

# Matched in this order; a shade is taken for the second class that a word would fit
_COLORS_BY_WORD: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("snow", "ice", "glacier"), ("#d7f3fb", "#b5e2f2")),
    (("water", "river", "lake", "sea", "ocean"), ("#2b6cb8", "#1b4f8f", "#5a9bd8")),
    (("wetland", "marsh", "swamp", "bog"), ("#5fb7a5", "#3f8f84")),
    (("needleleaf", "conifer", "evergreen", "spruce", "pine"), ("#0f4a34", "#1d5e45")),
    (("broadleaf", "deciduous", "forest", "tree", "wood", "beech", "oak"), ("#2f8f3e", "#47a452", "#1f6b2c")),
    (("dry vegetation", "savanna", "straw", "stubble"), ("#cdb866", "#b9a24a")),
    (("shrub", "heath", "bush"), ("#93a83d", "#7b8e2c")),
    (("crop", "agricult", "arable", "field", "vineyard", "orchard"), ("#f2c53d", "#dba520", "#f7dd85")),
    (("grass", "meadow", "pasture", "low vegetation", "lawn", "vegetation"), ("#9bd770", "#7cc455", "#c0e8a3")),
    (("rock", "gravel", "sand", "stone"), ("#a89c94", "#c7bcb0")),
    (("soil", "barren", "bare", "earth"), ("#a5673f", "#bf8a63")),
    (("roof", "building", "urban", "built", "residential", "house"), ("#d4382c", "#e8746b", "#a82218")),
    (("pavement", "road", "asphalt", "street", "highway", "railway", "parking"), ("#6d6875", "#8d8896", "#4f4b57")),
    (("cloud",), ("#f5f5f5",)),
    (("shadow",), ("#303030",)),
)
_OTHER_COLORS = (
    "#8e5bb5", "#e377c2", "#17a2a8", "#ff8c42", "#5c6bc0", "#b0337b", "#00897b", "#c2a5e0", "#7f5539", "#3d9be9",
    "#f06292", "#827717", "#26c6da", "#6a1b9a", "#ef9a9a", "#455a64",
)  # fmt: skip


def class_colors(class_names: Sequence[str]) -> list[str]:
    """
    A color ("#rrggbb") for each class: one that its name suggests (water is blue), else one that stands apart. A name
    has the same color whatever the others are and in whatever order, but where two would have the same.
    """
    colors: dict[str, str] = {}
    # Names of a single word have its first shade, whatever longer names are beside them
    for name in sorted(set(class_names), key=lambda name: (not _suits(name)[1], name)):
        shades, is_word = _suits(name)
        seed = zlib.crc32(name.lower().encode())
        random = np.random.default_rng(seed)
        candidates = chain(
            _from_place(shades, 0 if is_word else seed),
            _from_place(_OTHER_COLORS, seed),
            (f"#{bytes(random.integers(40, 230, 3).tolist()).hex()}" for _ in count()),
        )
        colors[name] = next(color for color in candidates if color not in colors.values())
    return [colors[name] for name in class_names]


def _suits(name: str) -> tuple[tuple[str, ...], bool]:
    """The colors that the words of a name suggest, and whether it is a single word."""
    for words, shades in _COLORS_BY_WORD:
        if any(word in name.lower() for word in words):
            return shades, " " not in name
    return (), False


def _from_place(colors: Sequence[str], place: int) -> Iterator[str]:
    """All of them, from one on."""
    return (colors[(place + number) % len(colors)] for number in range(len(colors)))


@contextmanager
def raster_writer(
    path: str | Path,
    shape: tuple[int, int],
    band_names: Sequence[str],
    *,
    dtype: str,
    nodata: float,
    crs: CRS | None = None,
    transform: Affine | None = None,
    scale: float = 1.0,
    tags: Mapping[str, str] | None = None,
    classes: Sequence[tuple[str, str]] | None = None,
) -> Iterator[Callable[[slice, slice, np.ndarray], None]]:
    """One raster, written part by part: leaving it puts the file under its name, an error removes what was written.

    Args:
        path: GeoTIFF to write; what is there under this name is replaced.
        shape: (height, width) in pixels.
        dtype: "uint8" or "float32".
        transform: from (column, row) to coordinates, or None.
        scale: factor from stored numbers to what they mean.
        tags: what the file says of itself.
        classes: name and color ("#rrggbb") of each class, for one band of type uint8; names stand beside the file.

    Yields:
        What writes the values of some rows and columns, (bands, height, width) or, for one band, (height, width).
    """
    path = Path(path)
    # Hidden, in the same folder, with the same ending
    plain, whole = (path.with_name(f".{path.stem}.{kind}{path.suffix}") for kind in ("parts", "whole"))
    profile = {"count": len(band_names), "dtype": dtype, "nodata": nodata, "crs": crs, "transform": transform}
    profile |= {"tiled": True, "blockxsize": 256, "blockysize": 256, "bigtiff": "if_safer", "interleave": "band"}
    # Named, or else three bands of type uint8 would be a photograph
    profile["photometric"] = "palette" if classes else "minisblack"
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Uncompressed: a tile that is written twice would leave its first version in the file
        dataset = rasterio.open(plain, "w", driver="GTiff", height=shape[0], width=shape[1], **profile)

    def write(rows: slice, columns: slice, values: np.ndarray) -> None:
        values = values[None] if values.ndim == 2 else values
        with _writing(path):
            dataset.write(values, window=Window.from_slices(rows, columns))

    try:
        with _writing(path):
            dataset.descriptions = tuple(band_names)
            dataset.scales = (scale,) * len(band_names)
            dataset.update_tags(**(tags or {}))
            if classes is not None:
                table = {number: (*bytes.fromhex(color[1:]), 255) for number, (_, color) in enumerate(classes)}
                dataset.write_colormap(1, {**table, int(nodata): (0, 0, 0, 0)})
            else:
                dataset.colorinterp = (ColorInterp.gray,) + (ColorInterp.undefined,) * (len(band_names) - 1)
        yield write
        with _writing(path):
            dataset.close()
            rasterio.shutil.copy(
                plain,
                whole,
                driver="COG",
                compress="deflate",
                predictor="yes" if dtype == "float32" else "no",
                blocksize=256,
                bigtiff="if_safer",
                overview_resampling="nearest" if classes else "average",
                overviews="auto",
                num_threads="2",
            )
        side_file, style_file = path.with_name(path.name + ".aux.xml"), path.with_suffix(".qml")
        if classes is not None:
            write_text(side_file, _categories_xml(classes))
            write_text(style_file, _style_xml(classes))
        else:
            side_file.unlink(missing_ok=True)
            style_file.unlink(missing_ok=True)
        os.replace(whole, path)
    finally:
        dataset.close()
        for part in (plain, whole):
            part.unlink(missing_ok=True)
            part.with_name(part.name + ".aux.xml").unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Errors of the raster library as an OSError that names the file; silence about a missing georeference."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            yield
    except (RasterioError, OSError) as error:
        reason = error.__cause__ or getattr(error, "strerror", None) or error
        raise OSError(f"{path}: expected a file that can be written, got: {reason}") from None


def class_map_writer(
    path: str | Path, shape: tuple[int, int], class_names: Sequence[str], *, tags: Mapping[str, str], **place: Any
) -> AbstractContextManager[Callable[[slice, slice, np.ndarray], None]]:
    """A map of classes, uint8, 255 = no class, with colors and names; `place` are its crs and transform."""
    names = json.dumps(list(class_names), ensure_ascii=False)
    classes = list(zip(class_names, class_colors(class_names), strict=True))
    given = {"tags": {**tags, "class_names": names}, "classes": classes, **place}
    return raster_writer(path, shape, ["land cover"], dtype="uint8", nodata=NO_CLASS, **given)


def probability_writer(
    path: str | Path, shape: tuple[int, int], band_names: Sequence[str], *, dtype: str, **place: Any
) -> AbstractContextManager[Callable[[slice, slice, np.ndarray], None]]:
    """Probabilities, one band for each name: float32 (NaN = none), or uint8 in steps of 1/250 (255 = none); `place`
    are crs, transform and tags."""
    if dtype == "uint8":
        place |= {"nodata": NO_CLASS, "scale": 1 / PROBABILITY_STEPS}
    return raster_writer(path, shape, band_names, dtype=dtype, **{"nodata": float("nan"), **place})


def probability_steps(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities (NaN = none) as uint8 in steps of 1/250, 255 = none."""
    steps = np.rint(np.nan_to_num(probabilities, nan=0.0) * PROBABILITY_STEPS)
    return np.where(np.isnan(probabilities), NO_CLASS, steps).astype(np.uint8)


def _categories_xml(classes: Sequence[tuple[str, str]]) -> str:
    """GDAL's side file with the name of each class."""
    root = ElementTree.Element("PAMDataset")
    band = ElementTree.SubElement(root, "PAMRasterBand", band="1")
    ElementTree.SubElement(band, "Description").text = "land cover"
    categories = ElementTree.SubElement(band, "CategoryNames")
    for name, _ in classes:
        ElementTree.SubElement(categories, "Category").text = shown(name)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _style_xml(classes: Sequence[tuple[str, str]]) -> str:
    """Style of QGIS with the name and color of each class and no others."""
    root = ElementTree.Element("qgis", version="3.22", styleCategories="Symbology")
    pipe = ElementTree.SubElement(root, "pipe")
    renderer = ElementTree.SubElement(pipe, "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1")
    palette = ElementTree.SubElement(renderer, "colorPalette")
    for number, (name, color) in enumerate(classes):
        ElementTree.SubElement(palette, "paletteEntry", value=str(number), color=color, alpha="255", label=shown(name))
    ElementTree.indent(root)
    doctype = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>"
    return f"{doctype}\n{ElementTree.tostring(root, encoding='unicode')}\n"

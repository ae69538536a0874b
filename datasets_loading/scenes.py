"""Whole scenes with one face, whatever they come in: EnMAP products and items, images of any format, read by window.

`open_scene` finds out what a path is. A scene gives reflectance x 10000 as int16 with nodata -32768, its bands in
ascending wavelength where wavelengths are known.
"""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window

from datasets_loading.enmap_product import (
    ARCHIVE_ENDINGS,
    CLASS_WATER,
    EnMAPProduct,
    check_level,
    level_in_name,
    metadata_beside,
    only_image,
    product_part,
)
from datasets_loading.raster_file import Closing, ProductError, Stated, fail, is_hidden
from datasets_loading.rasters import Raster, open_raster
from datasets_loading.sensors import ENMAP
from datasets_loading.spectrometers import is_desis
from datasets_loading.stac_items import is_address, is_stac_item

logger = logging.getLogger(__name__)

EXCLUDABLE = ("outside", "cloud", "shadow", "haze", "cirrus", "snow", "water")
"""Kinds of pixels that an EnMAP product marks. Other files mark none: there, only nodata is left out."""


class Scene(Closing):
    """A whole scene, made by `open_scene`. Use it as a context manager, or call `close`.

    Attributes:
        path: file, folder or address that was opened.
        name: name of the scene.
        product: the EnMAP product that it is, or None.
        wavelengths, fwhm: band centers, ascending, and full widths at half maximum in nm, float64 (bands,), or None
            where the file states none.
        shape: (height, width) in pixels.
        scale, nodata: stored numbers of a reflectance of 1, and of a pixel without data.
    """

    scale = ENMAP.scale
    nodata = ENMAP.nodata

    def __init__(self, source: EnMAPProduct | Raster, path: str | Path):
        self.product = source if isinstance(source, EnMAPProduct) else None
        self._source = source
        self.path, self.name = path, source.name
        self.wavelengths, self.fwhm = source.wavelengths, source.fwhm
        self.shape: tuple[int, int] = source.shape if isinstance(source, EnMAPProduct) else source.shape[1:]

    @property
    def raster(self) -> Raster:
        """The image itself."""
        return self._source.raster if isinstance(self._source, EnMAPProduct) else self._source

    @property
    def valid_bands(self) -> np.ndarray:
        """Which bands hold data, bool (bands,)."""
        return self._source.valid_bands

    @property
    def block_shape(self) -> tuple[int, int]:
        """(height, width) of the blocks that the file is stored in."""
        return self._source.block_shape

    @property
    def crs(self) -> CRS | None:
        """Coordinate reference system."""
        return self._source.crs

    @property
    def transform(self) -> Affine | None:
        """From (column, row) to coordinates."""
        return self._source.transform

    @cached_property
    def metadata(self) -> dict[str, str]:
        """What the file says of itself, for people."""
        bands = f"{len(self.valid_bands)}"
        if self.wavelengths is not None:
            bands += f", {self.wavelengths[0]:.0f} to {self.wavelengths[-1]:.0f} nm"
        if self.product is None:
            name = Path(self.path).name
            return {"file": name, **self.raster.metadata, "bands": bands, "numbers": self.raster.scale_note}
        return {
            "product": self.name,
            "acquired": f"{self.product.acquisition_time:%Y-%m-%d %H:%M} UTC",
            "sun elevation": f"{self.product.sun_elevation:.1f}°",
            "bands with data": f"{int(self.valid_bands.sum())} of {bands}",
        }

    def read(
        self, rows: slice | None = None, columns: slice | None = None, bands: Sequence[int] | np.ndarray | None = None
    ) -> np.ndarray:
        """Reflectance x 10000 of chosen bands, int16 (bands, height, width); all rows, columns or bands by default.

        Raises:
            ProductError: the file is damaged, or holds something else than it says.
        """
        return self.raster.read_stored(self._window(rows, columns), bands)

    def read_excluded(
        self, rows: slice | None = None, columns: slice | None = None, kinds: Sequence[str] = ()
    ) -> np.ndarray:
        """Pixels of any of these kinds (`EXCLUDABLE`), bool (height, width)."""
        unknown = sorted(set(kinds).difference(EXCLUDABLE))
        if unknown:
            raise ValueError(f"exclude: expected kinds among {', '.join(EXCLUDABLE)}, got {', '.join(unknown)}")
        window = self._window(rows, columns)
        excluded = np.zeros((int(window.height), int(window.width)), dtype=bool)
        if self.product is None:
            return excluded
        readers = {
            "outside": self.product.read_outside,
            "cloud": self.product.read_cloud,
            "shadow": self.product.read_cloud_shadow,
            "haze": self.product.read_haze,
            "cirrus": lambda window: self.product.read_cirrus_level(window) > 0,  # type: ignore[union-attr]
            "snow": self.product.read_snow,
            "water": lambda window: self.product.read_layer("classes", window) == CLASS_WATER,  # type: ignore[union-attr]
        }
        for kind in kinds:
            excluded |= readers[kind](window)
        return excluded

    def _window(self, rows: slice | None, columns: slice | None) -> Window:
        places = [
            slice(0, length) if part is None else slice(*part.indices(length)[:2])
            for part, length in zip((rows, columns), self.shape, strict=True)
        ]
        return Window.from_slices(*places)

    def close(self) -> None:
        """Closes the files."""
        self._source.close()


def open_scene(path: str | Path, *, radiance: bool = False, **reading: Any) -> Scene:
    """Opens a scene, and says in the log what had to be assumed.

    Args:
        path: an EnMAP L2A product (folder, ZIP, METADATA.XML, or a spectral image beside it), a STAC item of one (a
            file or an address), or an image of any format that `open_raster` reads.
        radiance: take radiance as it is, which is refused otherwise.
        reading: how to read an image: wavelengths, fwhm, scale, offset, nodata, variable, orthorectified, as for
            `open_raster`. A product states all that itself.

    Raises:
        ProductError: the path is none of these, or damaged; or the image's numbers can be read in two ways.
    """
    if is_product(path):
        product = EnMAPProduct.open(path, radiance=radiance)
        overruled = {name: value for name, value in reading.items() if value is not None and name != "orthorectified"}
        if overruled:
            options = ", ".join(f"--{name}" for name in overruled)
            reason = "cannot be used with a product, which states its own bands and numbers"
            raise ProductError(f"{path}: {options} {reason}")
        scene = Scene(product, path)
        if product.notes:
            logger.warning("%s: %s", path, "; ".join(product.notes))
        return scene
    path = Path(path)
    part = product_part(path.name)
    if part not in (None, "SPECTRAL_IMAGE", "METADATA") and path.is_file():
        fail(path, "the product's SPECTRAL_IMAGE or METADATA.XML", f"its {part}")
    image = only_image(path) if path.is_dir() and not is_desis(path) else path
    if image is not None and product_part(image.name) == "SPECTRAL_IMAGE" and image.is_file():
        path = image
        raster = open_lone_image(path, radiance=radiance, **reading)
    else:
        raster = open_raster(path, radiance=radiance, **reading)
    raster.tell()
    return Scene(raster, path)


def name_of(path: Path) -> str:
    """What files that belong to a scene are called: a product's name, or the file's without its ending."""
    match = re.match(r"(.*?)[-_](METADATA|SPECTRAL_IMAGE)[._]", path.name, re.I)
    if match:
        return match[1]
    if path.suffix.lower() == ".xml":
        return path.parent.name
    # Names of folders hold dots, and no ending
    return path.name if path.is_dir() else path.stem


def is_product(path: str | Path) -> bool:
    """Whether a path is that of an EnMAP product rather than of an image."""
    if is_stac_item(path):
        return True
    path = Path(path)
    if is_desis(path):
        return False
    if product_part(path.name) == "SPECTRAL_IMAGE" and path.is_file():
        return metadata_beside(path) is not None
    if path.is_dir():
        image = only_image(path)
        return image is None or metadata_beside(image) is not None
    return path.name.lower().endswith((".zip", ".xml", *ARCHIVE_ENDINGS))


def open_lone_image(path: Path, **reading: Any) -> Raster:
    """The spectral image of a product without its metadata: with EnMAP's nominal bands, which are noted to be such.

    Raises:
        ProductError: it has another number of bands than EnMAP, and states no wavelengths; or its name is that of
            radiance.
    """
    if not path.name.upper().startswith("ENMAP"):
        return open_raster(path, **reading)
    given = bool(reading.get("radiance")) or reading.get("scale") is not None
    check_level(level_in_name(path.name), given, path)
    usual = Stated(
        wavelengths=np.array(ENMAP.wavelengths),
        fwhm=np.array(ENMAP.fwhm),
        gain=np.array(1 / ENMAP.scale),
        nodata=float(ENMAP.nodata),
        quantity="reflectance",
        notes=[
            "METADATA.XML is missing: EnMAP's nominal bands, a gain of 0.0001 and nodata -32768 taken where the image "
            "does not state its own"
        ],
    )
    raster = open_raster(path, **reading, usual=usual)
    if raster.wavelengths is None:
        fail(path, f"{ENMAP.num_bands} bands, or METADATA.XML beside it to say which", f"{raster.num_bands} bands")
    return raster


def find_scenes(patterns: Sequence[str | Path]) -> list[Path | str]:
    """The scenes that paths, addresses and patterns (`scenes/*.ZIP`) name, each once, sorted within a pattern.

    Raises:
        ProductError: a pattern matches nothing.
    """
    found: dict[Path | str, None] = {}
    for pattern in map(str, patterns):
        if is_address(pattern):
            found.setdefault(pattern)
            continue
        matches = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        # ENVI headers and data match the same pattern; what the quality layers of a product are is its own business
        paths = [Path(match) for match in matches if not is_hidden(Path(Path(match).name))]
        if not paths:
            raise ProductError(f"{pattern}: expected a scene, got no such file")
        for path in paths:
            header = path.suffix.lower() == ".hdr" and any(
                other != path and path.with_suffix("") in (other, other.with_suffix("")) for other in paths
            )
            part = product_part(path.name)
            quality = part is not None and part not in ("METADATA", "SPECTRAL_IMAGE")
            described = part == "SPECTRAL_IMAGE" and len(paths) > 1 and metadata_beside(path) in paths
            other_xml = path.suffix.lower() == ".xml" and part != "METADATA"
            if not header and not (len(paths) > 1 and (quality or described or other_xml)):
                found.setdefault(path)
    return list(found)

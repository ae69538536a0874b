"""Whole scenes with one face, whatever file they come in: EnMAP products, GeoTIFF and ENVI images, read by window.

`open_scene` finds out what a path is. A scene gives reflectance x 10000 as int16 with nodata -32768, its bands in
ascending wavelength where wavelengths are known.
"""

from __future__ import annotations

import glob
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window

from datasets_loading.enmap_product import (
    CLASS_WATER,
    EnMAPProduct,
    ProductError,
    band_tags,
    is_hidden,
    product_part,
    raster_errors,
    to_stored_numbers,
)
from datasets_loading.sensors import ENMAP
from datasets_loading.tiles import SIDECAR_NAME, to_common_scale

EXCLUDABLE = ("outside", "cloud", "shadow", "haze", "cirrus", "snow", "water")
"""Kinds of pixels that an EnMAP product marks. Other files mark none: there, only nodata is left out."""

RASTER_CACHE_MEGABYTES = 64
"""What the raster library may keep of blocks it has read: its own default is a share of the machine's memory."""

_ENVI_DATA_ENDINGS = ("", ".img", ".dat", ".bsq", ".bil", ".bip", ".pix", ".raw", ".cube")


class Scene(Protocol):
    """A whole scene.

    Attributes:
        path: file or folder that was opened.
        name: name of the scene.
        wavelengths: band centres in nm, ascending, float64 (bands,), or None where the file states none.
        fwhm: full width at half maximum of each band in nm, float64 (bands,), or None.
        valid_bands: which bands hold data, bool (bands,).
        shape: (height, width) in pixels.
        block_shape: (height, width) of the blocks that the file is stored in.
        crs: coordinate reference system, or None.
        transform: from (column, row) to coordinates, or None.
        scale: stored number that means a reflectance of 1.
        nodata: stored number of a pixel without data.
        metadata: what the file says of itself, for people.
    """

    @property
    def path(self) -> Path: ...
    @property
    def name(self) -> str: ...
    @property
    def wavelengths(self) -> np.ndarray | None: ...
    @property
    def fwhm(self) -> np.ndarray | None: ...
    @property
    def valid_bands(self) -> np.ndarray: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def block_shape(self) -> tuple[int, int]: ...
    @property
    def crs(self) -> CRS | None: ...
    @property
    def transform(self) -> Affine | None: ...
    @property
    def scale(self) -> float: ...
    @property
    def nodata(self) -> float: ...
    @property
    def metadata(self) -> dict[str, str]: ...

    def read(self, rows: slice, columns: slice, bands: Sequence[int]) -> np.ndarray:
        """Stored numbers of chosen bands, int16 (bands, height, width).

        Raises:
            ProductError: the file is damaged, or holds something else than it says.
        """

    def read_excluded(self, rows: slice, columns: slice, kinds: Sequence[str]) -> np.ndarray:
        """Pixels of any of these kinds (`EXCLUDABLE`), bool (height, width)."""

    def close(self) -> None:
        """Closes the files."""

    def __enter__(self) -> Scene: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class _SceneFile(ABC):
    """What scenes share."""

    scale = ENMAP.scale
    nodata = ENMAP.nodata

    @abstractmethod
    def close(self) -> None:
        """Closes the files."""

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class EnMAPScene(_SceneFile):
    """An EnMAP L2A product as a scene. Attributes and methods as in `Scene`."""

    def __init__(self, product: EnMAPProduct):
        self.product = product
        self.path = product.path
        self.name = product.name
        self.wavelengths = product.wavelengths
        self.fwhm = product.fwhm
        self.shape = product.shape

    @property
    def valid_bands(self) -> np.ndarray:
        return self.product.valid_bands

    @property
    def block_shape(self) -> tuple[int, int]:
        return self.product.block_shape

    @property
    def crs(self) -> CRS | None:
        return self.product.crs

    @property
    def transform(self) -> Affine | None:
        return self.product.transform

    @cached_property
    def metadata(self) -> dict[str, str]:
        product = self.product
        return {
            "product": product.name,
            "acquired": f"{product.acquisition_time:%Y-%m-%d %H:%M} UTC",
            "sun elevation": f"{product.sun_elevation:.1f}°",
            "bands with data": f"{int(product.valid_bands.sum())} of {product.num_bands}, "
            f"{product.wavelengths[0]:.0f} to {product.wavelengths[-1]:.0f} nm",
        }

    def read(self, rows: slice, columns: slice, bands: Sequence[int]) -> np.ndarray:
        chosen = np.asarray(bands, dtype=np.int64)
        stored = self.product.read(Window.from_slices(rows, columns), chosen)
        return to_common_scale(stored, self.product.gain[chosen], self.product.offset[chosen])

    def read_excluded(self, rows: slice, columns: slice, kinds: Sequence[str]) -> np.ndarray:
        window = Window.from_slices(rows, columns)
        readers = {
            "outside": self.product.read_outside,
            "cloud": self.product.read_cloud,
            "shadow": self.product.read_cloud_shadow,
            "haze": self.product.read_haze,
            "cirrus": lambda window: self.product.read_cirrus_level(window) > 0,
            "snow": self.product.read_snow,
            "water": lambda window: self.product.read_layer("classes", window) == CLASS_WATER,
        }
        excluded = np.zeros((rows.stop - rows.start, columns.stop - columns.start), dtype=bool)
        for kind in kinds:
            excluded |= readers[kind](window)
        return excluded

    def close(self) -> None:
        self.product.close()


class RasterScene(_SceneFile):
    """A GeoTIFF or ENVI image as a scene. Attributes and methods as in `Scene`.

    Args:
        path: the image; for ENVI its header or its data.
        wavelengths: file with the band centres in nm and, optionally, their widths, a line for each band in file
            order; by default what the bands are tagged with or the header states, or else `wavelengths.txt` beside
            the image.
        scale: stored number that means a reflectance of 1; by default what the file states, or else 10000.
        nodata: stored number of a pixel without data; by default what the file states. NaN always is.

    Raises:
        ProductError: the file is missing or damaged, or its wavelengths do not fit its bands.
    """

    def __init__(
        self,
        path: str | Path,
        wavelengths: str | Path | None = None,
        scale: float | None = None,
        nodata: float | None = None,
    ):
        self.path = Path(path)
        data_path = envi_data_file(self.path) if self.path.suffix.lower() == ".hdr" else self.path
        if not data_path.is_file():
            raise ProductError(f"{path}: expected an image, got no such file")
        with raster_errors(str(data_path)):
            self._dataset = rasterio.open(data_path)
        dataset = self._dataset
        self.name = self.path.stem
        self.shape = dataset.shape
        self.block_shape: tuple[int, int] = dataset.block_shapes[0]
        georeferenced = not dataset.transform.is_identity
        self.crs = dataset.crs if georeferenced else None
        self.transform = dataset.transform if georeferenced else None
        factor = float(dataset.tags(ns="ENVI").get("reflectance_scale_factor", 0))
        self._file_scale = scale or factor or None
        self._file_nodata = dataset.nodata if nodata is None else nodata
        centres, widths = self._stated_wavelengths(None if wavelengths is None else Path(wavelengths))
        order = np.arange(dataset.count) if centres is None else np.argsort(centres)
        self.wavelengths = None if centres is None else centres[order]
        self.fwhm = None if widths is None else widths[order]
        if self.wavelengths is not None and (np.diff(self.wavelengths) <= 0).any():
            duplicate = self.wavelengths[1:][np.diff(self.wavelengths) <= 0][0]
            raise ProductError(f"{path}: expected wavelengths that differ, got {duplicate:g} nm more than once")
        self._file_bands = order + 1

    def _stated_wavelengths(self, given: Path | None) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Band centres and widths in nm in file order."""
        sidecar = self.path.with_name(SIDECAR_NAME)
        centres, widths = band_tags(self._dataset)
        if given is not None or (centres is None and sidecar.is_file()):
            centres, widths = read_wavelength_file(given or sidecar, self._dataset.count)
        elif centres is not None and widths is None:
            header = re.findall(r"[-+.\deE]+", self._dataset.tags(ns="ENVI").get("fwhm", ""))
            if len(header) == len(centres):
                # As the wavelengths: in micrometres where no number could be nanometres
                widths = np.array([float(number) for number in header])
                widths = widths * 1000 if widths.max() < 0.5 else widths
        return centres, widths

    @cached_property
    def valid_bands(self) -> np.ndarray:
        """Bands with data in at least one of a few blocks spread over the scene; all, where these hold none at all."""
        height, width = self.shape
        valid = np.zeros(self._dataset.count, dtype=bool)
        for row in np.unique(np.linspace(0, height - 1, 5).astype(int)):
            for column in np.unique(np.linspace(0, width - 1, 5).astype(int)):
                pixel = self.read(slice(row, row + 1), slice(column, column + 1), range(len(valid)))
                valid |= pixel[:, 0, 0] != self.nodata
        if valid.all():
            return valid
        if not valid.any():
            return np.ones_like(valid)
        for row in range(0, height, 256):
            missing = np.flatnonzero(~valid)
            for band in missing:
                values = self.read(slice(row, min(row + 256, height)), slice(0, width), [int(band)])
                valid[band] = (values != self.nodata).any()
        return valid

    @cached_property
    def metadata(self) -> dict[str, str]:
        bands = f"{self._dataset.count}"
        if self.wavelengths is not None:
            bands += f", {self.wavelengths[0]:.0f} to {self.wavelengths[-1]:.0f} nm"
        return {"file": self.path.name, "format": str(self._dataset.driver), "bands": bands}

    def read(self, rows: slice, columns: slice, bands: Sequence[int]) -> np.ndarray:
        dataset = self._dataset
        file_bands = [int(band) for band in self._file_bands[np.asarray(bands, dtype=np.int64)]]
        with raster_errors(str(self.path)):
            values = dataset.read(file_bands, window=Window.from_slices(rows, columns))
        if self._file_scale is not None:
            if self._file_scale == ENMAP.scale:
                return to_stored_numbers(values, self._file_nodata, str(self.path))
            without = ~np.isfinite(values)
            if self._file_nodata is not None:
                without |= values == self._file_nodata
            scaled = np.rint(values.astype(np.float32) * (ENMAP.scale / self._file_scale))
            return to_stored_numbers(np.where(without, np.nan, scaled), None, str(self.path))
        gain = np.array(dataset.scales)[np.array(file_bands) - 1]
        offset = np.array(dataset.offsets)[np.array(file_bands) - 1]
        return to_common_scale(to_stored_numbers(values, self._file_nodata, str(self.path)), gain, offset)

    def read_excluded(self, rows: slice, columns: slice, kinds: Sequence[str]) -> np.ndarray:
        return np.zeros((rows.stop - rows.start, columns.stop - columns.start), dtype=bool)

    def close(self) -> None:
        self._dataset.close()


def read_wavelength_file(path: Path, num_bands: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Band centres and, where every line states one, widths in nm, float64 (bands,) each.

    Raises:
        ProductError: the file is missing, holds something else, or another number of bands.
    """
    try:
        lines = [re.split(r"[,;\s]+", line.strip()) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ProductError(f"{path}: expected a file of wavelengths, got none ({error})") from None
    try:
        rows = [[float(number) for number in line[:2] if number] for line in lines if line[0]]
    except ValueError:
        raise ProductError(f"{path}: expected a wavelength in nm, and optionally a width, in each line") from None
    if len(rows) != num_bands:
        raise ProductError(f"{path}: expected {num_bands} wavelengths, one for each band, got {len(rows)}")
    centres = np.array([row[0] for row in rows])
    if centres.max() < 100:
        raise ProductError(f"{path}: expected wavelengths in nm, got numbers up to {centres.max():g}")
    return centres, np.array([row[1] for row in rows]) if all(len(row) == 2 for row in rows) else None


def envi_data_file(header: Path) -> Path:
    """The data file that an ENVI header describes.

    Raises:
        ProductError: there is none beside it.
    """
    stem = header.with_suffix("")
    for candidate in (stem.with_name(stem.name + ending) for ending in _ENVI_DATA_ENDINGS):
        if candidate.is_file():
            return candidate
    raise ProductError(f"{header}: expected the data of this ENVI header beside it, {stem}.img or alike, got none")


def open_scene(
    path: str | Path,
    *,
    wavelengths: str | Path | None = None,
    scale: float | None = None,
    nodata: float | None = None,
) -> EnMAPScene | RasterScene:
    """Opens a scene.

    Args:
        path: an EnMAP L2A product (folder, ZIP or METADATA.XML), a GeoTIFF, or an ENVI image (header or data).
        wavelengths: file with the wavelengths of an image that does not state them; see `RasterScene`.
        scale: stored number that means a reflectance of 1 in an image, where it is not what the image states.
        nodata: stored number of a pixel without data in an image, where it is not what the image states.

    Raises:
        ProductError: the path is none of these, or damaged.
    """
    # Read before the first block is kept, by the raster library itself
    os.environ.setdefault("GDAL_CACHEMAX", str(RASTER_CACHE_MEGABYTES))
    path = Path(path)
    if path.is_dir() or path.suffix.lower() in (".zip", ".xml"):
        return EnMAPScene(EnMAPProduct.open(path))
    return RasterScene(path, wavelengths, scale, nodata)


def find_scenes(patterns: Sequence[str | Path]) -> list[Path]:
    """The scenes that paths and patterns (`scenes/*.ZIP`) name, each once, sorted within a pattern.

    Raises:
        ProductError: a pattern matches nothing.
    """
    found: dict[Path, None] = {}
    for pattern in map(str, patterns):
        matches = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        # ENVI headers and data match the same pattern; what the quality layers of a product are is its own business
        paths = [Path(match) for match in matches if not is_hidden(Path(Path(match).name))]
        if not paths:
            raise ProductError(f"{pattern}: expected a scene, got no such file")
        for path in paths:
            header = path.suffix.lower() == ".hdr" and any(
                other != path and other.with_suffix("") == path.with_suffix("") for other in paths
            )
            side_file = path.suffix.lower() == ".xml" and product_part(path.name) != "METADATA"
            if not header and not side_file:
                found.setdefault(path)
    return list(found)

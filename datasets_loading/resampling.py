"""Images of other sensors as EnMAP would have seen them: spectra resampled by the responses of its bands.

`spectral_weights` turns the bands of one sensor into those of another, `resample_scene` applies them to an image and
writes tiles that pre-training reads. Reflectance stays reflectance: no noise is added, and pixels keep their size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window
from rasterio.windows import transform as window_transform

from datasets_loading.files import written_whole
from datasets_loading.raster_file import ProductError, raster_errors
from datasets_loading.scenes import Scene, open_scene
from datasets_loading.sensors import ENMAP, ENMAP_WATER_VAPOUR_BANDS
from datasets_loading.simulation.product_writer import write_raster
from datasets_loading.tiles import find_sources
from modeling_hsst.bands_hsst import spectral_weights

ENMAP_BANDS_WITH_DATA = tuple(band for band in range(ENMAP.num_bands) if band not in ENMAP_WATER_VAPOUR_BANDS)
"""The 202 bands that products of 2022 and 2023 hold data in."""


@dataclass(frozen=True)
class ResampledImage:
    """What became of one image: the files written, pixels with data in them, bands of the image that took part."""

    path: Path
    tiles: list[Path]
    num_pixels: int
    num_source_bands: int


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The images that are named, and those in the folders that are named, sorted by path.

    Raises:
        ProductError: a path does not exist, or a folder holds no image.
    """
    images: list[Path] = []
    for path in paths:
        if not path.exists():
            raise ProductError(f"{path}: expected an image or a folder of images, got nothing there")
        found = [path] if path.is_file() else find_sources(path).images
        if not found:
            raise ProductError(f"{path}: expected images in the folder, got EnMAP products, which have EnMAP's bands")
        images.extend(found)
    return images


def resample_image(path: Path, output_dir: Path, *, tile_size: int = 64, **reading: Any) -> ResampledImage:
    """Writes one image as tiles with EnMAP's 224 bands, of which the 22 of water vapour hold nodata as in products.

    A pixel that lacks a band which takes part is nodata in all bands; a tile without any data is not written.

    Images larger than `tile_size` pixels are cut into parts of about equal size. Files appear whole or not at all.
    `reading` is how to read the image where it does not say so itself, as for `open_scene`.

    Raises:
        ProductError: the image is damaged, states no wavelengths, or does not cover every band of EnMAP with data.
    """
    with open_scene(path, **reading) as scene:
        bands, weights = enmap_weights(scene)
        tags = {"source": scene.name, "resampled_to": ENMAP.name}
        band_tags = [
            {"wavelength": center, "fwhm": width, "wavelength_units": "nm"}
            for center, width in zip(ENMAP.wavelengths, ENMAP.fwhm, strict=True)
        ]
        tiles, num_pixels = [], 0
        for window in tile_windows(scene.shape, tile_size):
            image = np.full((ENMAP.num_bands, window.height, window.width), ENMAP.nodata, dtype=np.int16)
            rows, columns = window.toslices()
            image[list(ENMAP_BANDS_WITH_DATA)] = resampled(scene.read(rows, columns, bands), weights)
            has_data = image[ENMAP_BANDS_WITH_DATA[0]] != ENMAP.nodata
            if has_data.any():
                file = output_dir / f"{scene.name}_x{window.col_off:05d}_y{window.row_off:05d}.tif"
                transform = None if scene.transform is None else window_transform(window, scene.transform)
                # No larger than the tile, in steps of 16 as TIFF has it: what is beyond would be decoded with it
                block_size = min(128, -(-max(image.shape[1:]) // 16) * 16)
                with written_whole(file) as partial, raster_errors(str(file)):
                    write_raster(partial, image, scene.crs, transform, ENMAP.nodata, tags, band_tags, block_size)
                tiles.append(file)
                num_pixels += int(has_data.sum())
    return ResampledImage(path, tiles, num_pixels, len(bands))


def enmap_weights(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Bands of a scene that take part, int64 (bands,), and their weights in EnMAP's bands with data, (202, bands).

    Raises:
        ProductError: the scene states no wavelengths, or does not cover every band of EnMAP with data.
    """
    if scene.wavelengths is None:
        raise ProductError(f"{scene.path}: expected wavelengths of its bands, got none; --wavelengths names a file")
    with_data = np.flatnonzero(scene.valid_bands)
    enmap_bands = list(ENMAP_BANDS_WITH_DATA)
    try:
        weights = spectral_weights(
            scene.wavelengths[with_data],
            None if scene.fwhm is None else scene.fwhm[with_data],
            np.array(ENMAP.wavelengths)[enmap_bands],
            np.array(ENMAP.fwhm)[enmap_bands],
        )
    except ValueError as error:
        raise ProductError(f"{scene.path}: {error}") from None
    used = np.flatnonzero(weights.any(axis=0))
    return with_data[used], weights[:, used]


def resampled(stored: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Stored numbers int16 (target bands, height, width) by weights (target bands, bands) of an image's bands.

    A pixel without data in a band holds nodata in all.
    """
    missing = (stored == ENMAP.nodata).any(axis=0)
    values = np.rint(np.tensordot(weights, stored.astype(np.float64), axes=1))
    values = np.clip(values, ENMAP.nodata + 1, np.iinfo(np.int16).max)
    return np.where(missing, ENMAP.nodata, values).astype(np.int16)


def tile_windows(shape: tuple[int, int], tile_size: int) -> Iterator[Window]:
    """Windows that cover an image (height, width) once, none larger than `tile_size` and none a mere sliver."""
    if tile_size < 1:
        raise ValueError(f"tile_size: expected at least 1, got {tile_size}")
    row_edges, column_edges = (
        np.linspace(0, length, -(-length // tile_size) + 1).round().astype(int) for length in shape
    )
    for top, bottom in zip(row_edges, row_edges[1:], strict=False):
        for left, right in zip(column_edges, column_edges[1:], strict=False):
            yield Window(int(left), int(top), int(right - left), int(bottom - top))

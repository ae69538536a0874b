"""How much simulated scenes resemble real ones: band statistics, principal components, nearest spectra.

All functions work on pixels as rows: (pixels, bands) float, reflectance, without missing values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from datasets_loading.rasters import open_raster
from datasets_loading.simulation.atmosphere import gas_optical_depth
from datasets_loading.simulation.spectra import SPECTRUM_WAVELENGTHS

FloatArray = NDArray[np.floating]


@dataclass(frozen=True)
class Tile:
    """A real image.

    Attributes:
        name: name of the file.
        reflectance: (bands, height, width) float32, NaN where there are no data, bands in ascending wavelength.
        wavelengths: (bands,) nm.
        bounds: left, bottom, right, top in metres.
    """

    name: str
    reflectance: NDArray[np.float32]
    wavelengths: NDArray[np.float64]
    bounds: tuple[float, float, float, float]


def read_tiles(folder: str | Path, **reading: Any) -> list[Tile]:
    """Read GeoTIFF tiles of reflectance whose wavelengths are known.

    Raises:
        ValueError: the folder holds no such tiles.
    """
    folder = Path(folder)
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".tif", ".tiff"))
    if not paths:
        raise ValueError(f"{folder}: expected a folder of GeoTIFF tiles, found none")
    tiles = []
    for path in paths:
        with open_raster(path, **reading) as raster:
            raster.tell()
            if raster.wavelengths is None:
                raise ValueError(f"{path}: expected wavelengths of its bands (tags, wavelengths.txt), found none")
            transform = raster.transform or Affine.identity()
            (left, top), (right, bottom) = transform @ (0, 0), transform @ (raster.width, raster.height)
            reflectance, _ = raster.read()
            tiles.append(Tile(path.name, reflectance, raster.wavelengths, (left, bottom, right, top)))
    if any(not np.allclose(tile.wavelengths, tiles[0].wavelengths, atol=0.5) for tile in tiles[1:]):
        raise ValueError(f"{folder}: expected tiles of the same bands, got several sets of wavelengths")
    return tiles


def adjoining_blocks(tiles: Sequence[Tile]) -> list[list[int]]:
    """Groups of tiles (their positions) that share an edge with another tile of the group."""
    group = list(range(len(tiles)))
    for first, tile in enumerate(tiles):
        for second in range(first):
            left, bottom, right, top = tile.bounds
            other_left, other_bottom, other_right, other_top = tiles[second].bounds
            overlap_x = min(right, other_right) - max(left, other_left)
            overlap_y = min(top, other_top) - max(bottom, other_bottom)
            if min(overlap_x, overlap_y) >= 0 and max(overlap_x, overlap_y) > 0:
                group = [group[second] if member == group[first] else member for member in group]
    return [[tile for tile, member in enumerate(group) if member == name] for name in sorted(set(group))]


def pixels_of(cubes: Sequence[FloatArray], bands: NDArray[np.integer]) -> FloatArray:
    """Pixels (pixels, chosen bands) of cubes (bands, height, width) that have data in all chosen bands."""
    pixels = np.concatenate([cube[bands].reshape(len(bands), -1).T for cube in cubes])
    return pixels[np.isfinite(pixels).all(axis=1)]


def explained_variance(pixels: FloatArray, components: int = 20) -> NDArray[np.float64]:
    """Share of the variance that the first 1, 2, ... principal components explain, (components,)."""
    covariance = np.cov(pixels.astype(np.float64), rowvar=False)
    variances = np.linalg.eigvalsh(covariance)[::-1].clip(0)
    return (np.cumsum(variances) / variances.sum())[:components]


def nearest_spectral_angles(spectra: FloatArray, reference: FloatArray, chunk: int = 1024) -> NDArray[np.float32]:
    """Angle in degrees (spectra,) of each spectrum to the most similar one of the reference."""

    def directions(pixels: FloatArray) -> NDArray[np.float32]:
        lengths = np.linalg.norm(pixels, axis=1, keepdims=True)
        return (pixels / np.maximum(lengths, 1e-9)).astype(np.float32)

    spectra, reference = directions(spectra), directions(reference)
    nearest = [(spectra[start : start + chunk] @ reference.T).max(axis=1) for start in range(0, len(spectra), chunk)]
    return np.rad2deg(np.arccos(np.concatenate(nearest).clip(-1.0, 1.0)))


def window_bands(wavelengths: FloatArray) -> NDArray[np.bool_]:
    """Bands (bands,) outside the absorption of atmospheric gases, where residuals of the correction are small."""
    depth = np.interp(wavelengths, SPECTRUM_WAVELENGTHS, gaussian_filter1d(gas_optical_depth(), 6.0))
    return depth < 0.08


def spectral_angle_figures(
    real: FloatArray, simulated: FloatArray, real_blocks: Sequence[FloatArray]
) -> dict[str, NDArray[np.float32]]:
    """Angles in degrees of real pixels to the nearest simulated ones, and to the nearest of other real blocks."""
    angles = {"real_to_simulated": nearest_spectral_angles(real, simulated)}
    if len(real_blocks) > 1:
        across = []
        for number, block in enumerate(real_blocks):
            others = np.concatenate([*real_blocks[:number], *real_blocks[number + 1 :]])
            across.append(nearest_spectral_angles(block, others))
        angles["real_to_other_real_block"] = np.concatenate(across)
    return angles


def percentiles(values: FloatArray) -> dict[str, float]:
    """The 5th, 50th and 95th percentile and the mean."""
    low, middle, high = np.percentile(values, (5, 50, 95))
    return {"p5": float(low), "median": float(middle), "p95": float(high), "mean": float(values.mean())}


def true_colour(cube: FloatArray, bands: Sequence[int], clear: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
    """Image (height, width, 3) from 0 to 1: red, green and blue between their 2nd and 98th percentile.

    Args:
        cube: (bands, height, width), NaN without data.
        bands: of red, green and blue.
        clear: pixels (height, width) that decide the percentiles; by default all.
    """
    image = np.stack([cube[band] for band in bands], axis=-1).astype(np.float32)
    deciding = image.reshape(-1, 3) if clear is None else image[clear]
    low, high = np.nanpercentile(deciding, (2, 98), axis=0)
    return np.nan_to_num((image - low) / np.maximum(high - low, 1e-6)).clip(0.0, 1.0)


def compare(
    real: FloatArray,
    simulated_scenes: Sequence[FloatArray],
    wavelengths: FloatArray,
    real_blocks: Sequence[FloatArray],
) -> dict[str, object]:
    """All figures of the comparison, ready for JSON.

    The variance explained by principal components is the mean over simulated scenes, as the real pixels are of one
    scene; everything else is of all scenes together.

    Args:
        real: (pixels, bands) reflectance.
        simulated_scenes: (pixels, bands) reflectance of each scene.
        wavelengths: (bands,) nm.
        real_blocks: pixels of parts of the real image that lie apart: how similar they are is the yardstick.
    """
    simulated = np.concatenate(simulated_scenes)
    real_mean, simulated_mean = real.mean(axis=0), simulated.mean(axis=0)
    real_deviation, simulated_deviation = real.std(axis=0), simulated.std(axis=0)
    window = window_bands(wavelengths)

    def summary(angles: dict[str, NDArray[np.float32]]) -> dict[str, dict[str, float]]:
        return {name: percentiles(values) for name, values in angles.items()}

    return {
        "pixels": {"real": len(real), "simulated": len(simulated)},
        "mean_reflectance_error": {
            "root_mean_square": float(np.sqrt(((simulated_mean - real_mean) ** 2).mean())),
            "largest": float(np.abs(simulated_mean - real_mean).max()),
        },
        "deviation_ratio_simulated_to_real": percentiles(simulated_deviation / real_deviation),
        "explained_variance": {
            "real": explained_variance(real).tolist(),
            "simulated": np.mean([explained_variance(scene) for scene in simulated_scenes], axis=0).tolist(),
        },
        "spectral_angle_degrees": {
            "all_bands": summary(spectral_angle_figures(real, simulated, real_blocks)),
            "window_bands": summary(
                spectral_angle_figures(
                    real[:, window], simulated[:, window], [block[:, window] for block in real_blocks]
                )
            ),
        },
        "bands": {
            "wavelengths": wavelengths.tolist(),
            "real_mean": real_mean.tolist(),
            "simulated_mean": simulated_mean.tolist(),
            "real_deviation": real_deviation.tolist(),
            "simulated_deviation": simulated_deviation.tolist(),
            "window": window.tolist(),
        },
    }

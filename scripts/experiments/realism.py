"""
Compare simulated scenes with real EnMAP tiles: band statistics, principal components, nearest spectra.

    python scripts/experiments/realism.py --real_dir enmap_tiles/images --output_dir realism --date 2022-07-24

Real tiles are GeoTIFFs of reflectance whose wavelengths are known. The output folder holds `realism.json`. Pixels are
rows: (pixels, bands) float, reflectance, without missing values.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from tqdm import tqdm

from datasets_loading.files import write_json
from datasets_loading.rasters import open_raster
from datasets_loading.sensors import ENMAP
from datasets_loading.simulation.atmosphere import gas_optical_depth
from datasets_loading.simulation.scene import simulate_scene
from datasets_loading.simulation.spectra import SPECTRUM_WAVELENGTHS
from hsst.support.command_line import HelpFormatter, check_least, one_line_errors

FloatArray = NDArray[np.floating]

SCENE_SIZE = 160
"""Side of simulated scenes in pixels."""


@dataclass(frozen=True)
class Tile:
    """A real image: its file, reflectance (bands, height, width) float32 with NaN where there are no data, wavelengths
    (bands,) in nm, ascending, and bounds (left, bottom, right, top) in meters."""

    name: str
    reflectance: NDArray[np.float32]
    wavelengths: NDArray[np.float64]
    bounds: tuple[float, float, float, float]


def read_tiles(folder: Path, scale: float | None) -> list[Tile]:
    """Reads GeoTIFF tiles of reflectance whose wavelengths are known."""
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".tif", ".tiff"))
    if not paths:
        raise ValueError(f"{folder}: expected a folder of GeoTIFF tiles, found none")
    tiles = []
    for path in paths:
        with open_raster(path, scale=scale) as raster:
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


def explained_variance(pixels: FloatArray) -> NDArray[np.float64]:
    """Share of the variance that the first 1, 2, ... 20 principal components explain, (components,)."""
    variances = np.linalg.eigvalsh(np.cov(pixels.astype(np.float64), rowvar=False))[::-1].clip(0)
    return (np.cumsum(variances) / variances.sum())[:20]


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


def spectral_angles(
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
    low, middle, high = np.percentile(values, (5, 50, 95)).tolist()
    return {"p5": low, "median": middle, "p95": high, "mean": float(values.mean())}


def compare(
    real: FloatArray,
    simulated_scenes: Sequence[FloatArray],
    wavelengths: FloatArray,
    angles: Mapping[str, Mapping[str, FloatArray]],
) -> dict[str, Any]:
    """
    All figures of the comparison, ready for JSON. The variance explained by principal components is the mean over
    simulated scenes, as the real pixels are of one scene; everything else is of all scenes together. Parts of the real
    image that lie apart are the yardstick: how similar they are.
    """
    simulated = np.concatenate(simulated_scenes)
    means = {"real_mean": real.mean(axis=0), "simulated_mean": simulated.mean(axis=0)}
    deviations = {"real_deviation": real.std(axis=0), "simulated_deviation": simulated.std(axis=0)}
    error = means["simulated_mean"] - means["real_mean"]
    of_bands = {"wavelengths": wavelengths, **means, **deviations, "window": window_bands(wavelengths)}
    return {
        "pixels": {"real": len(real), "simulated": len(simulated)},
        "mean_reflectance_error": {
            "root_mean_square": float(np.sqrt((error**2).mean())),
            "largest": float(np.abs(error).max()),
        },
        "deviation_ratio_simulated_to_real": percentiles(
            deviations["simulated_deviation"] / deviations["real_deviation"]
        ),
        "explained_variance": {
            "real": explained_variance(real).tolist(),
            "simulated": np.mean([explained_variance(scene) for scene in simulated_scenes], axis=0).tolist(),
        },
        "spectral_angle_degrees": {
            name: {kind: percentiles(values) for kind, values in kinds.items()} for name, kinds in angles.items()
        },
        "bands": {name: values.tolist() for name, values in of_bands.items()},
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--scale", type=float, help="stored number of a reflectance of 1, where tiles do not state it")
    parser.add_argument("--real_dir", type=Path, required=True, help="folder of real tiles")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of results, made if missing")
    parser.add_argument("--num_scenes", type=int, default=8, help="simulated scenes")
    parser.add_argument("--date", type=datetime.fromisoformat, help="day of the scenes, e.g. that of the real tiles")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("realism.py"):
        check_least(arguments, 1, "num_scenes")
        time = arguments.date and arguments.date.replace(hour=10, minute=45, tzinfo=UTC)
        tiles = read_tiles(arguments.real_dir, arguments.scale)
        scenes = [
            simulate_scene(SCENE_SIZE, SCENE_SIZE, seed=seed, swath=False, acquisition_time=time)
            for seed in tqdm(range(arguments.num_scenes), desc="simulating", unit="scene")
        ]
        has_data = np.ones(ENMAP.num_bands, dtype=bool)
        has_data[list(scenes[0].empty_bands)] = False
        real_has_data = np.any([np.isfinite(tile.reflectance).any(axis=(1, 2)) for tile in tiles], axis=0)
        distance = np.abs(np.array(ENMAP.wavelengths)[:, None] - tiles[0].wavelengths[real_has_data])
        has_data &= distance.min(axis=1) < 1.0
        simulated_bands = np.flatnonzero(has_data)
        real_bands = np.flatnonzero(real_has_data)[distance[has_data].argmin(axis=1)]
        groups = [range(len(tiles)), *adjoining_blocks(tiles)]
        real, *blocks = (pixels_of([tiles[index].reflectance for index in group], real_bands) for group in groups)
        generator = np.random.default_rng(0)
        simulated = []
        for scene in scenes:
            pixels = scene.cube[simulated_bands][:, scene.clear].T / np.float32(ENMAP.scale)
            simulated.append(pixels[generator.permutation(len(pixels))[: 60_000 // len(scenes)]])
        wavelengths, all_simulated = np.array(ENMAP.wavelengths)[simulated_bands], np.concatenate(simulated)
        window = window_bands(wavelengths)
        angles = {
            name: spectral_angles(real[:, bands], all_simulated[:, bands], [block[:, bands] for block in blocks])
            for name, bands in (("all_bands", slice(None)), ("window_bands", window))
        }
        figures = compare(real, simulated, wavelengths, angles)
        write_json(arguments.output_dir / "realism.json", figures)
    print(json.dumps({name: value for name, value in figures.items() if name != "bands"}, indent=1))


if __name__ == "__main__":
    main()

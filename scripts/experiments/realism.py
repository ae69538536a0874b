"""
Compare simulated scenes with real EnMAP tiles: band statistics, principal components, nearest spectra.

    python scripts/experiments/realism.py --real_dir enmap_tiles/images --output_dir realism --date 2022-07-24

Real tiles are GeoTIFFs of reflectance whose wavelengths are known. The output folder holds `realism.json`,
`realism_statistics.png` and `realism_scenes.png`. Pixels are rows: (pixels, bands) float, reflectance, without missing
values.
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
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from tqdm import tqdm

from datasets_loading.files import write_json
from datasets_loading.rasters import open_raster
from datasets_loading.sensors import ENMAP
from datasets_loading.simulation.atmosphere import gas_optical_depth
from datasets_loading.simulation.materials import CLASS_NAMES
from datasets_loading.simulation.scene import SimulatedScene, simulate_scene
from datasets_loading.simulation.spectra import SPECTRUM_WAVELENGTHS
from hsst.support.command_line import check_least, one_line_errors
from hsst.support.figures import save_figure, true_colour, true_colour_bands, with_gaps
from hsst.support.map_writer import class_colours

FloatArray = NDArray[np.floating]

CLASS_COLOURS = class_colours(CLASS_NAMES)
SCENE_SIZE = 160
"""Side of simulated scenes in pixels."""
REAL, SIMULATED, YARDSTICK = "#222222", "#d1495b", "#3a7ca5"


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


def explained_variance(pixels: FloatArray, components: int = 20) -> NDArray[np.float64]:
    """Share of the variance that the first 1, 2, ... principal components explain, (components,)."""
    variances = np.linalg.eigvalsh(np.cov(pixels.astype(np.float64), rowvar=False))[::-1].clip(0)
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


def plot_statistics(
    path: Path,
    figures: Mapping[str, Any],
    real: np.ndarray,
    simulated: np.ndarray,
    angles: Mapping[str, Mapping[str, FloatArray]],
) -> None:
    wavelengths = np.array(figures["bands"]["wavelengths"])
    figure = Figure(figsize=(13, 9), layout="constrained")
    axes = figure.subplots(2, 2)
    for pixels, colour, name in ((real, REAL, "real"), (simulated, SIMULATED, "simulated")):
        low, high = np.percentile(pixels, (5, 95), axis=0)
        grid, lower = with_gaps(wavelengths, low)
        axes[0, 0].fill_between(grid, lower, with_gaps(wavelengths, high)[1], color=colour, alpha=0.13, linewidth=0)
        axes[0, 0].plot(*with_gaps(wavelengths, pixels.mean(axis=0)), color=colour, label=f"{name}, 5-95 % shaded")
        axes[0, 1].plot(*with_gaps(wavelengths, pixels.std(axis=0)), color=colour, label=name)
        rest = 1.0 - np.array(figures["explained_variance"][name])
        axes[1, 0].semilogy(np.arange(1, len(rest) + 1), rest, marker="o", markersize=4, color=colour, label=name)
    axes[0, 0].set(title="Mean reflectance per band", xlabel="wavelength (nm)", ylabel="reflectance", ylim=(0, None))
    axes[0, 1].set(title="Standard deviation per band", xlabel="wavelength (nm)", ylabel="reflectance", ylim=(0, None))
    axes[1, 0].set(
        title="Variance left after the first principal components", xlabel="components", ylabel="share of variance"
    )
    axes[1, 0].set_xticks(range(1, 21, 2))
    for (where, kinds), style in zip(angles.items(), ("-", "--"), strict=True):
        for name, values in kinds.items():
            colour = SIMULATED if name == "real_to_simulated" else YARDSTICK
            label = f"{name}, {where}: median {np.median(values):.2f}°".replace("_", " ")
            axes[1, 1].plot(np.sort(values), np.linspace(0, 1, len(values)), style, color=colour, label=label)
    axes[1, 1].set(
        title="Spectral angle to the nearest spectrum", xlabel="degrees", ylabel="share of pixels below", xlim=(0, 12)
    )
    for axis in axes.ravel():
        axis.grid(alpha=0.25)
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    save_figure(path, figure, dpi=130)


def plot_scenes(
    path: Path, scene: SimulatedScene, tiles: list[Tile], real: np.ndarray, real_wavelengths: np.ndarray
) -> None:
    figure = Figure(figsize=(17, 10.5), layout="constrained")
    axes = figure.subplots(2, 3)
    cube = np.where(scene.cube == ENMAP.nodata, np.nan, scene.cube / np.float32(ENMAP.scale)).astype(np.float32)
    _, limits = true_colour(np.where(scene.clear, cube, np.nan), ENMAP.wavelengths)  # clouds would decide them
    axes[0, 0].imshow(true_colour(cube, ENMAP.wavelengths, limits)[0])
    axes[0, 0].set_title(f"Simulated, {scene.acquisition_time:%d %B}, true colour")
    shown = np.where(scene.labels < len(CLASS_NAMES), scene.labels, len(CLASS_NAMES))
    colours = ListedColormap([*CLASS_COLOURS, "#ffffff"])
    norm = BoundaryNorm(np.arange(colours.N + 1) - 0.5, colours.N)
    axes[0, 1].imshow(shown, cmap=colours, norm=norm, interpolation="nearest")
    axes[0, 1].set_title("Its land cover")
    block = max(adjoining_blocks(tiles), key=len)
    axes[0, 2].imshow(mosaic([tiles[index] for index in block]))
    axes[0, 2].set_title("Real, true colour")
    for axis in axes[0]:
        axis.set_xticks([])
        axis.set_yticks([])
    present = []
    generator = np.random.default_rng(0)
    wavelengths = np.array(ENMAP.wavelengths)
    has_data = ~np.isin(np.arange(ENMAP.num_bands), scene.empty_bands)
    for number, name in enumerate(CLASS_NAMES):
        pure = (scene.class_fractions[number] > 0.8) & (scene.labels == number) & scene.clear
        mixed = (scene.labels == number) & scene.clear
        if mixed.sum() < 5:
            continue
        present.append(Patch(color=CLASS_COLOURS[number], label=name))
        colour = CLASS_COLOURS[number] if name != "snow" else "#9db7c9"
        chosen = pure if pure.sum() >= 5 else mixed
        spectra = cube[:, chosen][has_data].T
        axes[1, 0].plot(*with_gaps(wavelengths[has_data], np.median(spectra, axis=0)), color=colour, linewidth=1.6)
        for spectrum in spectra[generator.choice(len(spectra), min(3, len(spectra)), replace=False)]:
            axes[1, 1].plot(*with_gaps(wavelengths[has_data], spectrum), color=colour, linewidth=0.8)
    present.append(Patch(facecolor="#ffffff", edgecolor="#999999", label="cloud, no label"))
    axes[0, 1].legend(handles=present, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    axes[1, 0].set_title("Simulated: median of each class")
    axes[1, 1].set_title("Simulated: single pixels")
    for spectrum in real[generator.choice(len(real), 36, replace=False)]:
        axes[1, 2].plot(*with_gaps(real_wavelengths, spectrum), linewidth=0.8)
    axes[1, 2].set_title("Real: single pixels")
    for axis in axes[1]:
        axis.set(xlabel="wavelength (nm)", ylabel="reflectance", ylim=(0, 0.6))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    save_figure(path, figure, dpi=120)


def mosaic(tiles: list[Tile]) -> np.ndarray:
    """True colour (height, width, 3) of tiles laid side by side, white between them."""
    left, top = min(tile.bounds[0] for tile in tiles), max(tile.bounds[3] for tile in tiles)
    size = (tiles[0].bounds[2] - tiles[0].bounds[0]) / tiles[0].reflectance.shape[2]
    places = [(round((top - tile.bounds[3]) / size), round((tile.bounds[0] - left) / size)) for tile in tiles]
    height = max(row + tile.reflectance.shape[1] for (row, _), tile in zip(places, tiles, strict=True))
    width = max(column + tile.reflectance.shape[2] for (_, column), tile in zip(places, tiles, strict=True))
    bands = true_colour_bands(tiles[0].wavelengths, len(tiles[0].wavelengths))
    cube = np.full((3, height, width), np.nan, dtype=np.float32)
    for (row, column), tile in zip(places, tiles, strict=True):
        _, rows, columns = tile.reflectance.shape
        cube[:, row : row + rows, column : column + columns] = tile.reflectance[bands]
    image = true_colour(cube, tiles[0].wavelengths[bands])[0]
    image[np.isnan(cube).any(axis=0)] = 1.0
    return image


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, help="stored number of a reflectance of 1, where tiles do not state it")
    parser.add_argument("--real_dir", type=Path, required=True, help="folder of real tiles")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--num_scenes", type=int, default=8, help="simulated scenes (8)")
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
        output = arguments.output_dir
        write_json(output / "realism.json", figures)
        plot_statistics(output / "realism_statistics.png", figures, real, all_simulated, angles)
        shown = max(scenes, key=lambda scene: scene.clear.mean() + 0.1 * len(np.unique(scene.labels)))
        plot_scenes(output / "realism_scenes.png", shown, tiles, real, wavelengths)
    print(json.dumps({name: value for name, value in figures.items() if name != "bands"}, indent=1))


if __name__ == "__main__":
    main()

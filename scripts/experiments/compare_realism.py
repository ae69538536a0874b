"""Compare simulated scenes with real EnMAP tiles: figures as JSON, plots as PNG.

    python scripts/experiments/compare_realism.py --real_dir enmap_tiles/images --output_dir realism --date 2022-07-24

Real tiles are GeoTIFFs of reflectance whose wavelengths are known. Written are `realism.json`,
`realism_statistics.png` and `realism_scenes.png`.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from tqdm import tqdm

from datasets_loading.sensors import ENMAP
from datasets_loading.simulation.materials import CLASS_NAMES
from datasets_loading.simulation.scene import SimulatedScene, simulate_scene
from hsst.experiments.realism import (
    Tile,
    adjoining_blocks,
    compare,
    pixels_of,
    read_tiles,
    spectral_angle_figures,
    true_colour,
)

CLASS_COLOURS = (
    "#2e7d32", "#0b4f3a", "#8a9a3b", "#9ccc65", "#fdd835", "#d7b56d", "#8d5a3b", "#bdbdbd", "#c62828", "#5f6670",
    "#1e6fd9", "#e8f4ff",
)  # fmt: skip
REAL, SIMULATED, YARDSTICK = "#222222", "#d1495b", "#3a7ca5"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, help="stored number of a reflectance of 1, where tiles do not state it")
    parser.add_argument("--real_dir", type=Path, required=True, help="folder of real tiles")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--num_scenes", type=int, default=8, help="simulated scenes (default: 8)")
    parser.add_argument("--size", type=int, default=160, help="their side in pixels (default: 160)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first scene; the others count on")
    parser.add_argument("--date", type=datetime.fromisoformat, help="day of the scenes, e.g. that of the real tiles")
    return parser.parse_args()


def with_gaps(wavelengths: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Break lines where bands are missing for more than 40 nm."""
    gaps = np.flatnonzero(np.diff(wavelengths) > 40.0) + 1
    return np.insert(wavelengths, gaps, np.nan), np.insert(values, gaps, np.nan)


def plot_statistics(
    figures: dict[str, Any], real: np.ndarray, simulated: np.ndarray, blocks: list[np.ndarray], path: Path
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
    window = np.array(figures["bands"]["window"])
    for bands, style, where in ((slice(None), "-", "all bands"), (window, "--", "window bands")):
        angles = spectral_angle_figures(real[:, bands], simulated[:, bands], [block[:, bands] for block in blocks])
        for name, values in angles.items():
            colour = SIMULATED if name == "real_to_simulated" else YARDSTICK
            label = f"{name.replace('_', ' ')}, {where}: median {np.median(values):.2f}°"
            axes[1, 1].plot(np.sort(values), np.linspace(0, 1, len(values)), style, color=colour, label=label)
    axes[1, 1].set(
        title="Spectral angle to the nearest spectrum", xlabel="degrees", ylabel="share of pixels below", xlim=(0, 12)
    )
    for axis in axes.ravel():
        axis.grid(alpha=0.25)
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def plot_scenes(tiles: list[Tile], scene: SimulatedScene, path: Path) -> None:
    figure = Figure(figsize=(17, 10.5), layout="constrained")
    axes = figure.subplots(2, 3)
    cube = scene_reflectance(scene)
    axes[0, 0].imshow(true_colour(cube, ENMAP.true_colour_bands, scene.clear))
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
    finite = np.flatnonzero(np.isfinite(np.concatenate([tile.reflectance for tile in tiles], axis=2)).any(axis=(1, 2)))
    bands = finite[np.isin(np.round(tiles[0].wavelengths[finite], 1), np.round(wavelengths[has_data], 1))]
    pixels = pixels_of([tile.reflectance for tile in tiles], bands)
    for spectrum in pixels[generator.choice(len(pixels), 36, replace=False)]:
        axes[1, 2].plot(*with_gaps(tiles[0].wavelengths[bands], spectrum), linewidth=0.8)
    axes[1, 2].set_title("Real: single pixels")
    for axis in axes[1]:
        axis.set(xlabel="wavelength (nm)", ylabel="reflectance", ylim=(0, 0.6))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def mosaic(tiles: list[Tile]) -> np.ndarray:
    """True colour (height, width, 3) of tiles laid side by side, white between them."""
    left, top = min(tile.bounds[0] for tile in tiles), max(tile.bounds[3] for tile in tiles)
    size = (tiles[0].bounds[2] - tiles[0].bounds[0]) / tiles[0].reflectance.shape[2]
    places = [(round((top - tile.bounds[3]) / size), round((tile.bounds[0] - left) / size)) for tile in tiles]
    height = max(row + tile.reflectance.shape[1] for (row, _), tile in zip(places, tiles, strict=True))
    width = max(column + tile.reflectance.shape[2] for (_, column), tile in zip(places, tiles, strict=True))
    wavelengths = tiles[0].wavelengths
    bands = [int(np.abs(wavelengths - ENMAP.wavelengths[band]).argmin()) for band in ENMAP.true_colour_bands]
    cube = np.full((3, height, width), np.nan, dtype=np.float32)
    for (row, column), tile in zip(places, tiles, strict=True):
        _, rows, columns = tile.reflectance.shape
        cube[:, row : row + rows, column : column + columns] = tile.reflectance[bands]
    image = true_colour(cube, (0, 1, 2))
    image[np.isnan(cube).any(axis=0)] = 1.0
    return image


def scene_reflectance(scene: SimulatedScene) -> np.ndarray:
    """Reflectance (bands, height, width) float32, NaN without data."""
    return np.where(scene.cube == ENMAP.nodata, np.nan, scene.cube / np.float32(ENMAP.scale)).astype(np.float32)


def main() -> None:
    arguments = parse_arguments()
    if arguments.num_scenes < 1 or arguments.size < 8 or arguments.seed < 0:
        raise ValueError("--num_scenes is at least 1, --size at least 8, --seed at least 0")
    time = arguments.date and arguments.date.replace(hour=10, minute=45, tzinfo=UTC)
    tiles = read_tiles(arguments.real_dir, scale=arguments.scale)
    scenes = [
        simulate_scene(arguments.size, arguments.size, seed=seed, swath=False, acquisition_time=time)
        for seed in tqdm(range(arguments.seed, arguments.seed + arguments.num_scenes), desc="simulating", unit="scene")
    ]
    has_data = np.ones(ENMAP.num_bands, dtype=bool)
    has_data[list(scenes[0].empty_bands)] = False
    real_has_data = np.any([np.isfinite(tile.reflectance).any(axis=(1, 2)) for tile in tiles], axis=0)
    distance = np.abs(np.array(ENMAP.wavelengths)[:, None] - tiles[0].wavelengths[real_has_data])
    has_data &= distance.min(axis=1) < 1.0
    simulated_bands = np.flatnonzero(has_data)
    real_bands = np.flatnonzero(real_has_data)[distance[has_data].argmin(axis=1)]
    real = pixels_of([tile.reflectance for tile in tiles], real_bands)
    blocks = [
        pixels_of([tiles[index].reflectance for index in block], real_bands) for block in adjoining_blocks(tiles)
    ]
    generator = np.random.default_rng(0)
    simulated_scenes = []
    for scene in scenes:
        pixels = scene.cube[simulated_bands][:, scene.clear].T / np.float32(ENMAP.scale)
        simulated_scenes.append(pixels[generator.permutation(len(pixels))[: 60_000 // len(scenes)]])
    simulated = np.concatenate(simulated_scenes)
    figures = compare(real, simulated_scenes, np.array(ENMAP.wavelengths)[simulated_bands], blocks)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    (arguments.output_dir / "realism.json").write_text(json.dumps(figures, indent=1) + "\n")
    plot_statistics(figures, real, simulated, blocks, arguments.output_dir / "realism_statistics.png")
    shown = max(scenes, key=lambda scene: scene.clear.mean() + 0.1 * len(np.unique(scene.labels)))
    plot_scenes(tiles, shown, arguments.output_dir / "realism_scenes.png")
    print(json.dumps({name: value for name, value in figures.items() if name != "bands"}, indent=1))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, ImportError, OSError) as error:
        print(f"compare_realism.py: {error}", file=sys.stderr)
        sys.exit(2)

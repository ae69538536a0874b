"""
Simulated EnMAP tiles as plain tensors, for `run_mim_tensors.py`, without products between.

    python scripts/experiments/simulate_tiles.py --output simulated.safetensors --num_scenes 16 --seed 100

Scenes are those of simulate_enmap.py with the same seeds, on rasters without a tilted swath unless --swath is given
and one process for each processor. Tiles with more than a tenth under cloud or with a pixel off the swath are left
out, and so are the bands without data.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from datasets_loading.sensors import ENMAP
from datasets_loading.simulation.scene import EMPTY_BANDS, simulate_scene
from hsst.experiments.tile_tensors import TileTensors
from hsst.support.command_line import one_line_errors


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="safetensors file")
    parser.add_argument("--num_scenes", type=int, default=8, help="(8)")
    parser.add_argument("--size", type=int, default=1024, help="height and width of a scene in pixels (1024)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first scene, the next being --seed + 1 (0)")
    parser.add_argument("--tile_size", type=int, default=64, help="side of the tiles in pixels (64)")
    parser.add_argument("--swath", action="store_true", help="scenes on a tilted swath")
    parser.add_argument(
        "--processor_version",
        choices=sorted(EMPTY_BANDS),
        default="010111",
        help="decides which bands hold no data (010111)",
    )
    parser.add_argument(
        "--num_processes", type=int, help="scenes at the same time, 1.6 GB of memory each (one for each processor)"
    )
    arguments = parser.parse_args()
    for name in ("num_scenes", "size", "tile_size", "num_processes"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            parser.error(f"--{name}: expected at least 1, got {getattr(arguments, name)}")
    if arguments.seed < 0:
        parser.error(f"--seed: expected at least 0, got {arguments.seed}")
    if arguments.tile_size > arguments.size:
        parser.error(f"--tile_size: expected at most the {arguments.size} pixels of --size, got {arguments.tile_size}")
    return arguments


MAX_CLOUD = 0.1


def clear_tiles(seed: int, size: int, side: int, swath: bool, processor_version: str) -> NDArray[np.int16]:
    """Tiles (tiles, bands with data, side, side) of one scene that are on the swath and not cloudy."""
    scene = simulate_scene(size, size, seed=seed, swath=swath, processor_version=processor_version, workers=1)
    bands = np.setdiff1d(np.arange(len(scene.cube)), scene.empty_bands)
    starts = range(0, size - side + 1, side)
    squares = [np.s_[row : row + side, column : column + side] for row in starts for column in starts]
    off, cloud = scene.cube[bands[0]] == scene.sensor.nodata, scene.quality["cloud"] > 0
    kept = [square for square in squares if not off[square].any() and cloud[square].mean() <= MAX_CLOUD]
    cube = scene.cube[bands]
    tiles = [cube[:, square[0], square[1]] for square in kept]
    return np.stack(tiles) if tiles else np.empty((0, len(bands), side, side), np.int16)


def simulate(arguments: argparse.Namespace) -> None:
    seeds = range(arguments.seed, arguments.seed + arguments.num_scenes)
    parts = []
    processes = min(arguments.num_processes or os.cpu_count() or 1, arguments.num_scenes)
    # Not forked: threads of torch do not survive it
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(
                clear_tiles,
                seed,
                arguments.size,
                arguments.tile_size,
                arguments.swath,
                arguments.processor_version,
            )
            for seed in seeds
        ]
        for job in tqdm(jobs, desc="simulating", unit="scene"):
            parts.append(torch.from_numpy(job.result()))
    tiles = torch.cat(parts)
    if not len(tiles):
        raise ValueError(
            f"--num_scenes: expected scenes with a tile of {arguments.tile_size}x{arguments.tile_size} pixels on the "
            f"swath and without cloud, found none in {arguments.num_scenes} scenes from seed {arguments.seed}"
        )
    kept = np.setdiff1d(np.arange(ENMAP.num_bands), EMPTY_BANDS[arguments.processor_version])
    wavelengths = [float(ENMAP.wavelengths[band]) for band in kept]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    tensors = TileTensors(tiles, wavelengths, float(ENMAP.scale), int(ENMAP.nodata), arguments.output.name)
    tensors.save(arguments.output)
    side = arguments.tile_size
    print(f"{len(tiles):,} tiles of {len(kept)} bands and {side}x{side} pixels: {arguments.output}")


if __name__ == "__main__":
    parsed = parse_arguments()
    with one_line_errors("simulate_tiles.py"):
        simulate(parsed)

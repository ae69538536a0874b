"""Simulate EnMAP L2A products with known land cover.

    python scripts/simulate_enmap.py --output_dir products --num_scenes 4 --size 256 --seed 1

Each scene becomes a folder (or ZIP) in the official file format, with `<product>_labels.tif` beside it. The first
scene has the seed --seed, the next --seed + 1, and so on; the same seed gives the same bytes. Interrupted, the same
command makes all of them.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from tqdm import tqdm

from datasets_loading.files import only_writer
from datasets_loading.simulation.scene import EMPTY_BANDS, simulate_scene, write_scene
from hsst.support.command_line import HelpFormatter, one_line_errors


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write into, made if missing")
    parser.add_argument("--num_scenes", type=int, default=1, help="scenes to simulate")
    parser.add_argument("--size", type=int, default=1024, help="height and width in pixels")
    parser.add_argument("--height", type=int, help="height in pixels, instead of --size")
    parser.add_argument("--width", type=int, help="width in pixels, instead of --size")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first scene")
    parser.add_argument("--zip", action="store_true", help="write each product as a ZIP")
    for kind in ("cloud", "haze", "cirrus"):
        parser.add_argument(
            f"--{kind}_cover",
            type=float,
            metavar="SHARE",
            help=f"share under {kind}, 0 to 1; drawn per scene if absent",
        )
    parser.add_argument("--no_swath", action="store_true", help="fill the whole raster instead of a tilted swath")
    parser.add_argument(
        "--processor_version",
        choices=sorted(EMPTY_BANDS),
        default="010111",
        help="decides which bands hold no data: 22 as in products of 2022 and 2023 (default), or 6",
    )
    arguments = parser.parse_args()
    if arguments.num_scenes < 1:
        parser.error(f"--num_scenes: expected at least 1, got {arguments.num_scenes}")
    return arguments


def simulate(arguments: argparse.Namespace) -> None:
    for unfinished in arguments.output_dir.glob(".*.partial*"):  # of a run that was killed
        shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()
    progress = tqdm(range(arguments.seed, arguments.seed + arguments.num_scenes), desc="simulating", unit="scene")
    for seed in progress:
        scene = simulate_scene(
            arguments.size if arguments.height is None else arguments.height,
            arguments.size if arguments.width is None else arguments.width,
            seed=seed,
            cloud_cover=arguments.cloud_cover,
            haze_cover=arguments.haze_cover,
            cirrus_cover=arguments.cirrus_cover,
            swath=not arguments.no_swath,
            processor_version=arguments.processor_version,
        )
        product = write_scene(scene, arguments.output_dir, as_zip=arguments.zip)
        progress.write(str(product))


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("simulate_enmap.py"):
        try:
            with only_writer(arguments.output_dir):
                simulate(arguments)
        except ImportError as error:  # of the extra that simulates
            raise ValueError(error) from None


if __name__ == "__main__":
    main()

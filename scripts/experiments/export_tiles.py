"""
Tiles as a plain tensor, for `run_mim_tensors.py`: products, images or a corpus as one safetensors file.

    python scripts/experiments/export_tiles.py --data_dir products --output tiles.safetensors

Bands that hold data in every source are kept. Images of another size than --tile_size are cut into squares of it, the
last ones flush with the edge, so that nothing is left out.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tqdm.auto import tqdm

from datasets_loading.corpus import is_corpus, read_corpus
from datasets_loading.files import written_whole
from datasets_loading.tiles import read_tile_set
from datasets_loading.windows import tile_to_windows
from hsst.support.command_line import HelpFormatter, add_reading_arguments, check_least, one_line_errors, reading_of


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of products, GeoTIFF tiles or shards")
    parser.add_argument("--output", type=Path, required=True, help="safetensors file")
    add_reading_arguments(parser)
    parser.add_argument("--tile_size", type=int, default=64, help="side of the tiles in pixels")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    folder, side = arguments.data_dir, arguments.tile_size
    with one_line_errors("export_tiles.py"):
        check_least(arguments, 1, "tile_size")
        tiles = read_corpus(folder) if is_corpus(folder) else read_tile_set(folder, side, **reading_of(arguments))
        if tiles.wavelengths is None:
            raise ValueError(f"{folder}: expected tiles that state their wavelengths, got none")
        if tiles.shapes.min() < side:
            raise ValueError(
                f"--tile_size: expected at most {tiles.shapes.min()}, as small as an image is, got {side}"
            )
        bands = np.flatnonzero(tiles.valid_bands)
        squares = [
            tile_to_windows(np.asarray(tiles[number])[bands], side)
            for number in tqdm(range(len(tiles)), desc="tiles", unit="tile")
        ]
        about = {"wavelengths": json.dumps(tiles.wavelengths[bands].tolist()), "scale": repr(float(tiles.scale))}
        with written_whole(arguments.output) as partial:
            save_file({"tiles": torch.cat(squares)}, partial, about | {"nodata": repr(int(tiles.nodata))})
        count = sum(map(len, squares))
    print(f"{count:,} tiles of {len(bands)} bands and {side}x{side} pixels: {arguments.output}")


if __name__ == "__main__":
    main()

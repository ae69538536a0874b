"""
Tiles as plain tensors, for `run_mim_tensors.py`: products, GeoTIFF tiles or a corpus as one safetensors file.

    python scripts/experiments/export_tiles.py --data_dir products --output tiles.safetensors
    python scripts/experiments/export_tiles.py --data_dir crops --tile_size 20 --output crops.safetensors

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
from datasets_loading.tiles import Tiles, read_tile_set
from hsst.support.command_line import HelpFormatter, add_reading_arguments, check_least, one_line_errors, reading_of


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of products, GeoTIFF tiles or shards")
    parser.add_argument("--output", type=Path, required=True, help="safetensors file")
    add_reading_arguments(parser)
    parser.add_argument("--tile_size", type=int, default=64, help="side of the tiles in pixels")
    return parser.parse_args()


def squares_of(tiles: Tiles, side: int) -> list[tuple[int, int, int]]:
    """Number of the tile, first row and first column of each square.

    Raises:
        ValueError: a tile is smaller than a square.
    """
    squares = []
    for number, (height, width) in enumerate(tiles.shapes.tolist()):
        if min(height, width) < side:
            raise ValueError(
                f"--tile_size: expected at most the size of every image, got {side} and {height}x{width} pixels in "
                f"{tiles.names[number]}"
            )
        rows = [min(start, height - side) for start in range(0, height, side)]
        columns = [min(start, width - side) for start in range(0, width, side)]
        squares += [(number, row, column) for row in rows for column in columns]
    return squares


def export(arguments: argparse.Namespace) -> None:
    if is_corpus(arguments.data_dir):
        tiles = read_corpus(arguments.data_dir, streaming=False)
    else:
        tiles = read_tile_set(arguments.data_dir, arguments.tile_size, **reading_of(arguments))
    if tiles.wavelengths is None:
        raise ValueError(f"{arguments.data_dir}: expected tiles that state their wavelengths, got none")
    bands = np.flatnonzero(tiles.valid_bands)
    side = arguments.tile_size
    squares = squares_of(tiles, side)
    # NumPy's memory errors are said in a line; those of torch are errors of any kind
    stack = torch.from_numpy(np.empty((len(squares), len(bands), side, side), dtype=np.int16))
    for place, (number, row, column) in enumerate(tqdm(squares, desc="tiles", unit="tile")):
        stack[place] = torch.from_numpy(np.asarray(tiles[number])[bands, row : row + side, column : column + side])
    about = {
        "wavelengths": json.dumps(tiles.wavelengths[bands].tolist()),
        "scale": repr(float(tiles.scale)),
        "nodata": repr(int(tiles.nodata)),
    }
    with written_whole(arguments.output) as partial:
        save_file({"tiles": stack}, partial, about)
    print(f"{len(stack):,} tiles of {len(bands)} bands and {side}x{side} pixels: {arguments.output}")


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("export_tiles.py"):
        check_least(arguments, 1, "tile_size")
        export(arguments)


if __name__ == "__main__":
    main()

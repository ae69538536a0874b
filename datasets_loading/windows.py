"""
Windows cut from tiles: random ones with flips and quarter turns for training, a fixed grid of them for validation.

Every random choice follows from (seed, epoch, index), so that a run that is resumed, or spread over processes and
workers, cuts the very same windows.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler


class RandomWindows(Dataset):
    """
    Random windows of tiles, many from each tile, every one with its own offset, flip and quarter turn.

    Args:
        tiles: int16 arrays (bands, height, width) of equal band count; heights and widths may differ.
        window_size: height and width of a window in pixels.
        windows_per_tile: windows an epoch takes from each tile; by default as many as tile the largest one.
        seed: of all offsets, flips and turns.
        augment: whether windows are flipped and turned (quarter turns only where windows are square).

    An item holds `pixels`, int16 (bands, height, width) as stored, and `window_index`, int64, its number in the epoch.

    Raises:
        ValueError: a tile is smaller than a window, or there are no tiles.
    """

    def __init__(
        self,
        tiles: Sequence[np.ndarray],
        window_size: tuple[int, int],
        *,
        windows_per_tile: int | None = None,
        seed: int = 0,
        augment: bool = True,
    ):
        check_tiles(tiles, window_size)
        self.tiles = tiles
        self.window_size = window_size
        area = window_size[0] * window_size[1]
        largest = max(tile.shape[1] * tile.shape[2] for tile in tiles)
        self.windows_per_tile = windows_per_tile or max(1, largest // area)
        self.seed = seed
        self.augment = augment
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose windows are cut from now on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.tiles) * self.windows_per_tile

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = np.random.default_rng((self.seed, self.epoch, index))
        tile = self.tiles[index // self.windows_per_tile]
        height, width = self.window_size
        row = generator.integers(tile.shape[1] - height + 1)
        column = generator.integers(tile.shape[2] - width + 1)
        window = tile[:, row : row + height, column : column + width]
        if self.augment:
            if generator.integers(2):
                window = window[:, :, ::-1]
            turns = int(generator.integers(4) if height == width else 2 * generator.integers(2))
            window = np.rot90(window, turns, axes=(1, 2))
        pixels = torch.from_numpy(np.ascontiguousarray(window))
        return {"pixels": pixels, "window_index": torch.tensor(index)}


class GridWindows(Dataset):
    """
    Side-by-side windows that cover each tile from its upper left corner, the same every time; what is left at the
    lower and right margins is not covered.

    Items as in `RandomWindows`.
    """

    def __init__(self, tiles: Sequence[np.ndarray], window_size: tuple[int, int]):
        check_tiles(tiles, window_size)
        self.tiles = tiles
        self.window_size = window_size
        height, width = window_size
        self.places = [
            (number, row, column)
            for number, tile in enumerate(tiles)
            for row in range(0, tile.shape[1] - height + 1, height)
            for column in range(0, tile.shape[2] - width + 1, width)
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        number, row, column = self.places[index]
        window = self.tiles[number][:, row : row + self.window_size[0], column : column + self.window_size[1]]
        return {"pixels": torch.from_numpy(np.ascontiguousarray(window)), "window_index": torch.tensor(index)}


class EpochSampler(Sampler[int]):
    """A random order of `length` items that follows from (seed, epoch) alone."""

    def __init__(self, length: int, seed: int):
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order is drawn from now on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.default_rng((self.seed, self.epoch)).permutation(self.length).tolist())


def tile_to_windows(tile: np.ndarray, window_size: tuple[int, int]) -> torch.Tensor:
    """Cuts a tile (bands, height, width), whose sides are multiples of the window's, into (windows, bands, h, w)."""
    bands, height, width = tile.shape
    rows, columns = height // window_size[0], width // window_size[1]
    windows = tile.reshape(bands, rows, window_size[0], columns, window_size[1]).transpose(1, 3, 0, 2, 4)
    return torch.from_numpy(np.ascontiguousarray(windows).reshape(rows * columns, bands, *window_size))


def windows_to_tile(windows: torch.Tensor, columns: int) -> torch.Tensor:
    """The inverse of `tile_to_windows`: (windows, bands, h, w), row by row, to (bands, height, width)."""
    rows = windows.shape[0] // columns
    grid = windows.reshape(rows, columns, *windows.shape[1:]).permute(2, 0, 3, 1, 4)
    return grid.reshape(windows.shape[1], rows * windows.shape[2], columns * windows.shape[3])


def check_tiles(tiles: Sequence[np.ndarray], window_size: tuple[int, int]) -> None:
    """Raises ValueError where a window does not fit into every tile."""
    if not tiles:
        raise ValueError("Expected at least one tile to cut windows from, got none.")
    for number, tile in enumerate(tiles):
        if tile.shape[1] < window_size[0] or tile.shape[2] < window_size[1]:
            raise ValueError(
                f"Expected tiles of at least {window_size[0]}x{window_size[1]} pixels, the size of a window; tile "
                f"{number} has {tile.shape[1]}x{tile.shape[2]}."
            )

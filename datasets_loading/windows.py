"""
Windows cut from tiles: random ones with flips and quarter turns for training, a fixed grid of them for validation.

Every random choice follows from (seed, epoch, index), so that a run that is resumed, or spread over processes and
workers, cuts the very same windows.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from datasets_loading.tiles import Tiles


class _ByEpoch:
    """What differs from epoch to epoch."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose windows are cut, or whose order is drawn, from now on."""
        self.epoch = epoch


class RandomWindows(_ByEpoch, Dataset):
    """
    Random windows of tiles, many from each tile, every one with its own offset, flip and quarter turn.

    Args:
        tiles: int16 arrays (bands, height, width) of equal band count; heights and widths may differ.
        window_size: height and width of a window in pixels.
        bands: indices of the bands to keep; all by default.
        windows_per_tile: windows an epoch takes from each tile; by default as many as tile the largest one.
        seed: of all offsets, flips and turns; quarter turns only where windows are square.

    An item holds `pixels`, int16 (bands, height, width) as stored, and `window_index`, int64, its number in the epoch.

    Raises:
        ValueError: a tile is smaller than a window, or there are no tiles.
    """

    def __init__(
        self,
        tiles: Sequence[np.ndarray] | Tiles,
        window_size: tuple[int, int],
        *,
        bands: Sequence[int] | None = None,
        windows_per_tile: int | None = None,
        seed: int = 0,
    ):
        shapes = check_tiles(tiles, window_size)
        self.tiles = tiles
        self.window_size = window_size
        self.bands = bands
        area = window_size[0] * window_size[1]
        self.windows_per_tile = windows_per_tile or max(1, int(shapes.prod(axis=1).max()) // area)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.tiles) * self.windows_per_tile

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = np.random.default_rng((self.seed, self.epoch, index))
        tile = self.tiles[index // self.windows_per_tile]
        height, width = self.window_size
        row = generator.integers(tile.shape[1] - height + 1)
        column = generator.integers(tile.shape[2] - width + 1)
        window = tile[:, row : row + height, column : column + width]
        if generator.integers(2):
            window = window[:, :, ::-1]
        turns = int(generator.integers(4) if height == width else 2 * generator.integers(2))
        window = np.rot90(window, turns, axes=(1, 2))
        return {"pixels": to_pixels(window, self.bands), "window_index": torch.tensor(index)}


class GridWindows(Dataset):
    """
    Side-by-side windows that cover each tile from its upper left corner, the same every time; what is left at the
    lower and right margins is not covered.

    Items as in `RandomWindows`.
    """

    def __init__(
        self, tiles: Sequence[np.ndarray] | Tiles, window_size: tuple[int, int], *, bands: Sequence[int] | None = None
    ):
        shapes = check_tiles(tiles, window_size)
        self.tiles = tiles
        self.window_size = window_size
        self.bands = bands
        height, width = window_size
        self.places = [
            (number, row, column)
            for number, (tile_height, tile_width) in enumerate(shapes.tolist())
            for row in range(0, tile_height - height + 1, height)
            for column in range(0, tile_width - width + 1, width)
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        number, row, column = self.places[index]
        window = self.tiles[number][:, row : row + self.window_size[0], column : column + self.window_size[1]]
        return {"pixels": to_pixels(window, self.bands), "window_index": torch.tensor(index)}


class EpochSampler(_ByEpoch, Sampler[int]):
    """A random order of `length` items that follows from (seed, epoch) alone."""

    def __init__(self, length: int, seed: int):
        self.length = length
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.default_rng((self.seed, self.epoch)).permutation(self.length).tolist())


class GroupedSampler(_ByEpoch, Sampler[int]):
    """
    A random order of the windows of tiles on disk, in which every part of the disk is read once: groups of tiles are
    taken in random order, some at a time, and the windows of those are mixed. It follows from (seed, epoch) and the
    arguments alone.

    Batches are dealt to processes and their data workers in turn (batch i to consumer i modulo `num_consumers`): each
    is dealt batches of its own groups, so that no group is read by all of them.

    Args:
        groups: group of each tile (tiles,).
        windows_per_tile: windows of each tile, numbered tile by tile.
        groups_at_once: groups whose windows are mixed.
        num_consumers: processes times the data workers of each.
    """

    def __init__(
        self,
        groups: np.ndarray,
        windows_per_tile: int,
        seed: int,
        *,
        groups_at_once: int,
        batch_size: int = 1,
        num_consumers: int = 1,
    ):
        self.tiles_by_group = np.argsort(groups, kind="stable")
        _, self.group_starts, self.group_sizes = np.unique(
            np.asarray(groups)[self.tiles_by_group], return_index=True, return_counts=True
        )
        self.windows_per_tile = windows_per_tile
        self.seed = seed
        self.groups_at_once = groups_at_once
        self.batch_size = batch_size
        self.num_consumers = num_consumers

    def __len__(self) -> int:
        return len(self.tiles_by_group) * self.windows_per_tile

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.group_sizes))
        num_batches = len(self) // self.batch_size
        streams, start = [], 0
        for consumer in range(self.num_consumers):
            stop = start + len(range(consumer, num_batches, self.num_consumers)) * self.batch_size
            streams.append(self._windows(order, start, stop))
            start = stop
        for batch in range(num_batches):
            yield from islice(streams[batch % self.num_consumers], self.batch_size)
        yield from self._windows(order, start, len(self))

    def _windows(self, order: np.ndarray, start: int, stop: int) -> Iterator[int]:
        """Places `start` to `stop` of the order in which one consumer would take all windows."""
        chunk_start = 0
        for number, first in enumerate(range(0, len(order), self.groups_at_once)):
            chunk = order[first : first + self.groups_at_once]
            length = int(self.group_sizes[chunk].sum()) * self.windows_per_tile
            if chunk_start < stop and chunk_start + length > start:
                starts, sizes = self.group_starts[chunk], self.group_sizes[chunk]
                parts = [self.tiles_by_group[s : s + size] for s, size in zip(starts, sizes, strict=True)]
                tiles = np.concatenate(parts)
                mixed = np.random.default_rng((self.seed, self.epoch, number)).permutation(length)
                mixed = mixed[max(start - chunk_start, 0) : stop - chunk_start]
                yield from (
                    tiles[mixed // self.windows_per_tile] * self.windows_per_tile + mixed % self.windows_per_tile
                ).tolist()
            chunk_start += length


def tile_to_windows(tile: np.ndarray, window_size: int | tuple[int, int]) -> torch.Tensor:
    """
    Windows side by side that cover a tile (bands, height, width) of any size, row by row, (windows, bands, h, w).

    Where the window size does not divide the tile, the last window of a row or column ends with the tile and overlaps
    the one before.

    Raises:
        ValueError: the tile is smaller than a window.
    """
    height, width = (window_size, window_size) if isinstance(window_size, int) else window_size
    rows, columns = _starts(tile.shape[1], height), _starts(tile.shape[2], width)
    windows = [tile[:, row : row + height, column : column + width] for row in rows for column in columns]
    return torch.stack([to_pixels(window, None) for window in windows])


def windows_to_tile(windows: torch.Tensor, tile_shape: tuple[int, int]) -> torch.Tensor:
    """The inverse of `tile_to_windows`: (windows, bands, h, w), row by row, to (bands, height, width)."""
    height, width = windows.shape[2:]
    rows, columns = _starts(tile_shape[0], height), _starts(tile_shape[1], width)
    tile = windows.new_empty(windows.shape[1], *tile_shape)
    for number, window in enumerate(windows):
        row, column = rows[number // len(columns)], columns[number % len(columns)]
        tile[:, row : row + height, column : column + width] = window
    return tile


def _starts(length: int, window: int) -> list[int]:
    """First pixels of windows that cover an axis; the last one ends with it."""
    if not 1 <= window <= length:
        raise ValueError(f"expected windows of 1 to {length} pixels along an axis of {length}, got {window}")
    starts = list(range(0, length - window + 1, window))
    return starts if starts[-1] + window == length else [*starts, length - window]


def to_pixels(window: np.ndarray, bands: Sequence[int] | None) -> torch.Tensor:
    """Copies a window (bands, height, width), or some of its bands, out of its tile."""
    return torch.from_numpy(np.array(window if bands is None else window[np.asarray(bands)], order="C"))


def check_tiles(tiles: Sequence[np.ndarray] | Tiles, window_size: tuple[int, int]) -> np.ndarray:
    """Height and width of each tile, int64 (tiles, 2); ValueError where a window does not fit into every tile."""
    if not len(tiles):
        raise ValueError("Expected at least one tile to cut windows from, got none.")
    # Tiles on disk know their shapes without being read.
    shapes = getattr(tiles, "shapes", None)
    if shapes is None:
        shapes = np.array([tile.shape[1:] for tile in tiles])
    too_small = np.flatnonzero((shapes < np.array(window_size)).any(axis=1))
    if too_small.size:
        height, width = shapes[too_small[0]]
        raise ValueError(
            f"Expected tiles of at least {window_size[0]}x{window_size[1]} pixels, the size of a window; tile "
            f"{too_small[0]} has {height}x{width}."
        )
    return shapes

"""Windows of labelled scenes for training and evaluation, by split, cut from the scenes without copying them.

`task="center"` gives one window around every labelled pixel and that pixel's class; `task="dense"` gives windows whose
pixels are labelled one by one, each labelled pixel of the split in exactly one of them. No window of a split shows a
pixel of another split, whatever the split's buffer is.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from datasets_loading.labelled_data import LabelledData
from datasets_loading.sensors import ENMAP
from datasets_loading.splits import NO_SPLIT, SPLITS, UNLABELLED, SplitError, box_counts, window_margins


class LabelledWindows(Dataset):
    """Windows of one split.

    An item holds `pixels`, int16 (bands, window_size, window_size) as stored, nodata outside the scene, `labels`,
    int64 (window_size, window_size) for "dense" and () for "center", 255 = unlabelled, and `window_index`, int64.

    Args:
        data: scenes with labels and split.
        split: "train", "validation" or "test".
        window_size: side of a window in pixels. The centre of a window is its pixel (size // 2, size // 2).
        task: "dense" or "center".
        anchor: row and column of the scene, less than the window size, at which the grid of dense windows begins.

    Attributes:
        places: scene number, row and column of the upper left pixel of each window, int64 (windows, 3); rows and
            columns may be negative or reach beyond the scene.
        own_pixels: scene number, row, column and window of each labelled pixel, int64 (pixels, 4), by window.

    Raises:
        SplitError: the split has no labelled pixel, or some of its pixels lie in no window without pixels of other
            splits; they are counted.
    """

    def __init__(
        self,
        data: LabelledData,
        split: str,
        window_size: int,
        task: Literal["dense", "center"],
        *,
        anchor: tuple[int, int] = (0, 0),
    ) -> None:
        if task not in ("dense", "center"):
            raise ValueError(f'expected the task "dense" or "center", got {task!r}')
        if window_size < 1:
            raise ValueError(f"expected windows of at least 1 pixel, got {window_size}")
        self.data = data
        self.split = split
        self.window_size = window_size
        self.task = task
        places: list[np.ndarray] = []
        own_pixels: list[np.ndarray] = []
        num_windows = 0
        for number, scene in enumerate(data.scenes):
            codes = data.split.codes[scene.name]
            own = (codes == SPLITS.index(split)) & (scene.labels != UNLABELLED)
            foreign = (codes != SPLITS.index(split)) & (codes != NO_SPLIT)
            corners, pixels = _cover(own, foreign, window_size, None if task == "center" else anchor)
            if (pixels[:, 2] < 0).any():
                count = int((pixels[:, 2] < 0).sum())
                raise SplitError(
                    f"expected every labelled {split} pixel in a window of {window_size} x {window_size} pixels "
                    f"without pixels of other splits, got {count} in {scene.name} that are in none: a buffer of "
                    f"{window_size // 2} pixels is needed, this split has {data.split.buffer}"
                )
            places.append(np.insert(corners, 0, number, axis=1))
            pixels[:, 2] += num_windows
            own_pixels.append(np.insert(pixels, 0, number, axis=1))
            num_windows += len(corners)
        self.places = np.concatenate(places)
        self.own_pixels = np.concatenate(own_pixels)
        if not num_windows:
            raise SplitError(f"expected labelled {split} pixels, got none")
        self._first_pixel = np.searchsorted(self.own_pixels[:, 3], np.arange(num_windows + 1))

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.data.class_names

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        number, row, column = (int(value) for value in self.places[index])
        scene = self.data.scenes[number]
        size = self.window_size
        window = np.full((len(scene.cube), size, size), ENMAP.nodata, dtype=np.int16)
        top, left = max(row, 0), max(column, 0)
        bottom, right = min(row + size, scene.shape[0]), min(column + size, scene.shape[1])
        window[:, top - row : bottom - row, left - column : right - column] = scene.cube[:, top:bottom, left:right]
        pixels = self.own_pixels[self._first_pixel[index] : self._first_pixel[index + 1]]
        classes = scene.labels[pixels[:, 1], pixels[:, 2]]
        labels: Any = int(classes[0])
        if self.task == "dense":
            labels = np.full((size, size), UNLABELLED, dtype=np.int64)
            labels[pixels[:, 1] - row, pixels[:, 2] - column] = classes
        return {
            "pixels": torch.from_numpy(window),
            "labels": torch.as_tensor(labels, dtype=torch.int64),
            "window_index": torch.tensor(index),
        }


def _cover(
    own: np.ndarray, foreign: np.ndarray, window_size: int, anchor: tuple[int, int] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Windows that hold all of `own`, bool (height, width), and nothing of `foreign`.

    With an anchor, windows of a grid come first; a pixel that they leave over is given one that holds it as near to
    its upper left corner as can be. Without, every pixel is the centre of a window of its own.

    Returns:
        Row and column of the upper left pixel of each window, int64 (windows, 2), and row, column and window of each
        own pixel, int64 (pixels, 3), by window; the window is -1 where no window can hold the pixel.
    """
    height, width = own.shape
    before, _ = window_margins(window_size)
    rows, columns = np.nonzero(own)
    # Whether the window with this upper left pixel is free of foreign pixels; index 0 stands for 1 - window_size.
    padded = np.pad(foreign, window_size - 1)
    free = box_counts(padded, 0, window_size - 1) == 0
    shift = window_size - 1
    if anchor is None:
        corners = np.stack([rows - before, columns - before], axis=1)
        window_of = np.where(free[corners[:, 0] + shift, corners[:, 1] + shift], np.arange(len(rows)), -1)
    else:
        cells_across = width // window_size + 2
        # The first cell of the grid begins at or above the scene's edge.
        first = np.array([offset % window_size - window_size if offset % window_size else 0 for offset in anchor])
        cell_rows, cell_columns = (rows - first[0]) // window_size, (columns - first[1]) // window_size
        cells, window_of = np.unique(cell_rows * cells_across + cell_columns, return_inverse=True)
        grid = np.stack(np.divmod(cells, cells_across), axis=1) * window_size + first
        usable = free[grid[:, 0] + shift, grid[:, 1] + shift]
        window_of = np.where(usable, np.cumsum(usable) - 1, -1)[window_of]
        corners = _cover_rest(grid[usable], rows, columns, window_of, free, window_size)
    order = np.argsort(window_of, kind="stable")
    pixels = np.stack([rows, columns, window_of], axis=1)[order]
    return corners.astype(np.int64), pixels.astype(np.int64)


def _cover_rest(
    corners: np.ndarray, rows: np.ndarray, columns: np.ndarray, window_of: np.ndarray, free: np.ndarray, size: int
) -> np.ndarray:
    """Adds windows for the pixels with the window -1, whose entries in `window_of` are set; gives all corners."""
    offsets = np.array(sorted(np.ndindex(size, size), key=sum))
    pixel_at = np.full((rows.max(initial=0) + 1, columns.max(initial=0) + 1), -1)
    pixel_at[rows, columns] = np.arange(len(rows))
    added: list[np.ndarray] = []
    for pixel in np.flatnonzero(window_of < 0):
        if window_of[pixel] >= 0:
            continue
        candidates = np.array([rows[pixel], columns[pixel]]) - offsets
        usable = np.flatnonzero(free[candidates[:, 0] + size - 1, candidates[:, 1] + size - 1])
        if not len(usable):
            continue
        corner = candidates[usable[0]]
        top, left = np.maximum(corner, 0)
        inside = pixel_at[top : corner[0] + size, left : corner[1] + size].ravel()
        inside = inside[inside >= 0]
        window_of[inside[window_of[inside] < 0]] = len(corners) + len(added)
        added.append(corner)
    return np.concatenate([corners, np.array(added).reshape(-1, 2)])

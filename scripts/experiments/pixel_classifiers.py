"""Classifiers of single pixels from scikit-learn: on spectra, and on the features of a frozen HSST."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier

from datasets_loading.splits import UNLABELLED
from hsst.support.few_labels import HEADS, Head
from hsst.support.fine_tuning import AreaTensors, covering_corners

FOLD_BLOCK = 8
"""Side in pixels of the blocks that stay together in a fold."""


class _Neighbors(KNeighborsClassifier):
    """Takes all pixels for neighbors where there are fewer than asked for."""

    def fit(self, features: np.ndarray, classes: np.ndarray) -> _Neighbors:
        self.n_neighbors: int = min(self.n_neighbors, len(features))
        return super().fit(features, classes)


def head_of(model: str, seed: int, balanced: bool) -> Head:
    """The classifier of a model of kind "pixels" or "features", with the settings among which `tuned` chooses; where
    it can, a `balanced` one weighs classes by the inverse of their pixels."""
    if model in ("knn", "knn-features"):
        return Head(_Neighbors, tuple({"n_neighbors": count} for count in (5, 1, 3, 9, 15, 25)))
    name = {"random-forest": "random forest", "svm": "SVM"}.get(model, "logistic regression")
    head = HEADS[name]
    given: dict[str, Any] = {"random_state": seed, "class_weight": "balanced" if balanced else None}
    if model == "random-forest":
        given["n_jobs"] = torch.get_num_threads()  # as many processors as torch may use
    return head._replace(build=partial(head.build, **given))


def fold_groups(pixels: np.ndarray) -> np.ndarray:
    """Which pixels (`AreaTensors.labelled_pixels`) lie in one block of `FOLD_BLOCK` pixels, int64 (pixels,)."""
    blocks = pixels // (1, FOLD_BLOCK, FOLD_BLOCK)
    return np.unique(blocks, axis=0, return_inverse=True)[1].reshape(-1)


@torch.no_grad()
def frozen_features(
    encoder: Any,
    area: AreaTensors,
    pixels: np.ndarray,
    batch_size: int = 64,
    precision: str = "float32",
    concatenated: bool = False,
) -> np.ndarray:
    """
    Features of pixels (`AreaTensors.labelled_pixels`): tokens averaged over windows that overlap by half and over the
    spectral blocks, float32 (pixels, hidden_size), or `concatenated` blocks, (pixels, blocks * hidden_size).
    """
    encoder.eval()
    device = next(encoder.parameters()).device
    size, patch_size = area.window_size, encoder.config.patch_size
    corners = covering_corners(pixels, size, max(size // 2, 1))
    index = [torch.full(own.shape, -1, dtype=torch.int64) for own in area.own]
    for position, (number, row, column) in enumerate(pixels.tolist()):
        index[number][row, column] = position
    num_blocks = encoder.config.num_blocks
    sums = torch.zeros(len(pixels), encoder.config.hidden_size * (num_blocks if concatenated else 1))
    counts = torch.zeros(len(pixels), 1)
    for start in range(0, len(corners), batch_size):
        batch_corners = corners[start : start + batch_size]
        batch = area.windows(batch_corners, "dense")
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            tokens = encoder(batch["pixel_values"].to(device), batch["pixel_mask"].to(device)).last_hidden_state
        tokens = tokens.float().unflatten(1, (num_blocks, -1))
        tokens = (tokens.transpose(1, 2).flatten(2) if concatenated else tokens.mean(dim=1)).cpu()
        rows = size // patch_size
        tokens = tokens.unflatten(1, (rows, rows)).repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)
        for (number, row, column), window in zip(batch_corners.tolist(), tokens, strict=True):
            places = index[number][row : row + size, column : column + size]
            sums[places[places >= 0]] += window[places >= 0]
            counts[places[places >= 0]] += 1
    return (sums / counts).numpy()


def map_of(area: AreaTensors, pixels: np.ndarray, classes: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
    """Classes of pixels as maps of their scenes, uint8 (height, width), 255 elsewhere, by scene."""
    maps = [np.full(own.shape, UNLABELLED, dtype=np.uint8) for own in area.own]
    for (number, row, column), label in zip(pixels.tolist(), classes, strict=True):
        maps[number][row, column] = label
    return area.to_scenes(maps)

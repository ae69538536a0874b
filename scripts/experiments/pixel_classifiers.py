"""Classifiers of single pixels from scikit-learn: on spectra, and on the features of a frozen HSST.

Each searches the same small number of settings by cross-validation inside the training pixels, in folds of pixels that
lie apart.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from datasets_loading.splits import UNLABELLED
from hsst.support.fine_tuning import AreaTensors, covering_corners

FOLD_BLOCK = 8
"""Side in pixels of the blocks that stay together in a fold."""

FOLDS = 3


class _Neighbours(KNeighborsClassifier):
    """Takes all pixels for neighbours where there are fewer than asked for."""

    def fit(self, features: np.ndarray, classes: np.ndarray) -> _Neighbours:
        self.n_neighbors: int = min(self.n_neighbors, len(features))
        return super().fit(features, classes)


Candidates = list[dict[str, Any]]
REGULARISATIONS: Candidates = [{"C": strength} for strength in (0.1, 1e-3, 1e-2, 1.0, 10.0, 1e2)]
linear: Callable[..., Any] = partial(LogisticRegression, max_iter=1000)

PIXEL_CLASSIFIERS: dict[str, tuple[Callable[..., Any], Candidates]] = {
    "random-forest": (
        partial(RandomForestClassifier, n_estimators=500),
        [{"max_features": share, "min_samples_leaf": leaf} for leaf in (1, 2, 5) for share in ("sqrt", "log2")],
    ),
    "svm": (SVC, [{"C": penalty, "gamma": gamma} for gamma in ("scale", 1e-3) for penalty in (10.0, 1.0, 100.0)]),
    "knn": (_Neighbours, [{"n_neighbors": count} for count in (5, 1, 3, 9, 15, 25)]),
    "logistic-regression": (linear, REGULARISATIONS),
    "linear-probe": (linear, REGULARISATIONS),
}
"""Classifiers by name, each with six candidates of settings; the first is taken where pixels are too few to choose."""


def make_classifier(name: str, settings: Mapping[str, Any], seed: int, balanced: bool) -> Any:
    """A classifier with its settings; all but the forest see features of mean 0 and deviation 1."""
    classifier = PIXEL_CLASSIFIERS[name][0](**settings)
    given = {"random_state": seed, "class_weight": "balanced" if balanced else None}
    classifier.set_params(**{key: value for key, value in given.items() if key in classifier.get_params()})
    if name == "random-forest":
        return classifier.set_params(n_jobs=torch.get_num_threads())  # as many processors as torch may use
    return make_pipeline(StandardScaler(), classifier)


class FittedClassifier(NamedTuple):
    """A trained classifier, with the settings that were chosen."""

    estimator: Any
    settings: dict[str, Any]


def fit_pixel_classifier(
    name: str, features: np.ndarray, classes: np.ndarray, groups: np.ndarray, seed: int, balanced: bool = False
) -> FittedClassifier:
    """Chooses settings by cross-validation inside the training pixels and trains on all of them.

    Args:
        name: one of `PIXEL_CLASSIFIERS`.
        features: float (pixels, features).
        classes: int (pixels,).
        groups: which pixels stay together in a fold, int (pixels,) (`fold_groups`).
        seed: of the classifier and the folds.
        balanced: weigh classes by the inverse of their pixels, where the classifier can.

    Raises:
        ValueError: fewer than two classes.
    """
    if len(np.unique(classes)) < 2:
        raise ValueError(f"expected training labels of at least 2 classes, got {len(np.unique(classes))}")
    candidates = PIXEL_CLASSIFIERS[name][1]
    # a smaller forest ranks the settings as well
    smaller = {"n_estimators": 100} if name == "random-forest" else {}
    with warnings.catch_warnings():
        # classes that are missing in some fold, which is as it is
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        folds = _folds(features, classes, groups, seed)
        scores = []
        for candidate in candidates if folds else ():
            of_folds = []
            for training, test in folds:
                estimator = make_classifier(name, smaller | candidate, seed, balanced)
                estimator.fit(features[training], classes[training])
                of_folds.append(balanced_accuracy_score(classes[test], estimator.predict(features[test])))
            scores.append(float(np.mean(of_folds)))
        best = int(np.argmax(scores)) if scores else 0
        estimator = make_classifier(name, candidates[best], seed, balanced).fit(features, classes)
    return FittedClassifier(estimator, candidates[best])


def _folds(
    features: np.ndarray, classes: np.ndarray, groups: np.ndarray, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds whose training part holds two classes or more; none where pixels are too few."""
    count = min(FOLDS, len(np.unique(groups)), int(np.unique(classes, return_counts=True)[1].max()))
    if count < 2:
        return []
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    folds = splitter.split(features, classes, groups)
    return [fold for fold in folds if len(np.unique(classes[fold[0]])) > 1 and len(fold[1])]


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
    """Features of pixels: tokens averaged over the spectral blocks, and over windows that overlap by half.

    Args:
        encoder: an `HSSTModel`.
        area: the area.
        pixels: `AreaTensors.labelled_pixels` or `own_pixels`.
        batch_size: windows in a step.
        precision: "float32" or "bfloat16".
        concatenated: the blocks' tokens stand beside each other instead of being averaged.

    Returns:
        float32 (pixels, hidden_size), or (pixels, blocks * hidden_size).
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

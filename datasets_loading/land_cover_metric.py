"""Scores of land-cover maps, from one confusion matrix over all labelled pixels of an area.

    parts = [confusion_matrix(predictions, references, num_classes=8) for predictions, references in tiles]
    land_cover_scores(sum(parts))  # classes from 0, 255 = unlabelled

Averages over classes take the classes that occur in the references: of the others, nothing can be known.
"""

from typing import Any

import numpy as np

UNLABELLED = 255
FEW_PIXELS = 30
"""Below so many reference pixels, the accuracy of a class is little more than chance."""


def confusion_matrix(predictions: np.ndarray, references: np.ndarray, *, num_classes: int | None = None) -> np.ndarray:
    """Counts of labelled pixels by reference (row) and prediction (column).

    Args:
        predictions: classes from 0, integers of any shape.
        references: the same shape; masked pixels and those of `UNLABELLED` are left out, whatever was predicted.
        num_classes: number of classes; by default up to the largest that occurs.

    Returns:
        int64 (classes, classes).

    Raises:
        ValueError: shapes differ, no pixel is labelled, or a class is out of range, masked, or no whole number.
    """
    predictions, references = np.asanyarray(predictions), np.asanyarray(references)
    if predictions.shape != references.shape:
        raise ValueError(f"expected a prediction for each reference {references.shape}, got {predictions.shape}")
    labelled = (np.ma.getdata(references) != UNLABELLED) & ~np.ma.getmaskarray(references)
    predicted, wanted = whole("predictions", predictions[labelled]), whole("references", references[labelled])
    if not len(wanted):
        raise ValueError(f"expected labelled pixels among the references, got {UNLABELLED} in all {labelled.size}")
    largest = int(max(predicted.max(), wanted.max()))
    num_classes = largest + 1 if num_classes is None else num_classes
    for name, values in (("predictions", predicted), ("references", wanted)):
        outside = values[(values < 0) | (values >= num_classes)]
        if len(outside):
            raise ValueError(
                f"expected {name} among the classes 0 to {num_classes - 1}, got {outside[0]} "
                f"(in {len(outside)} labelled pixels)"
            )
    counts = np.bincount(wanted * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def land_cover_scores(matrix: np.ndarray, *, min_support: int = FEW_PIXELS) -> dict[str, Any]:
    """All scores of a confusion matrix.

    Args:
        matrix: counts by reference (row) and prediction (column), (classes, classes).
        min_support: `average_accuracy_frequent` takes the classes with at least so many reference pixels.

    Returns:
        overall_accuracy, average_accuracy (mean recall of the classes that occur), average_accuracy_frequent,
        macro_f1, mean_iou and Cohen's kappa; accuracy_per_class, f1_per_class and iou_per_class; support_per_class,
        reference pixels of each class; and the confusion_matrix. None where a score is not defined, such as kappa
        where one class is all there is.

    Raises:
        ValueError: the matrix is not square, or empty, or holds shares or negative numbers.
    """
    matrix = whole("counts", np.asanyarray(matrix))
    if matrix.size and matrix.min() < 0:
        raise ValueError(f"expected counts of 0 or more, got {matrix.min()}")
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.sum():
        raise ValueError(
            f"expected a square confusion matrix with counts, got {matrix.sum()} pixels in the shape {matrix.shape}"
        )
    total = matrix.sum()
    correct = np.diagonal(matrix).astype(np.float64)
    support, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    present = support > 0
    divisor = np.maximum(support, 1)
    accuracy = correct / divisor
    f1 = 2 * correct / np.maximum(support + predicted, 1)
    iou = correct / np.maximum(support + predicted - correct, 1)
    agreement = correct.sum() / total
    by_chance = float((support / total) @ (predicted / total))
    frequent = support >= max(min_support, 1)
    return {
        "overall_accuracy": float(agreement),
        "average_accuracy": float(accuracy[present].mean()),
        "average_accuracy_frequent": float(accuracy[frequent].mean()) if frequent.any() else None,
        "macro_f1": float(f1[present].mean()),
        "mean_iou": float(iou[present].mean()),
        "kappa": float((agreement - by_chance) / (1 - by_chance)) if by_chance < 1 else None,
        "accuracy_per_class": _with_none(accuracy, present),
        "f1_per_class": _with_none(f1, present),
        "iou_per_class": _with_none(iou, present),
        "support_per_class": support.tolist(),
        "confusion_matrix": matrix.tolist(),
    }


def whole(name: str, values: np.ndarray) -> np.ndarray:
    """The values as int64; ValueError where some are masked or no whole numbers, such as shares or probabilities."""
    if np.ma.is_masked(values) or values.dtype.kind not in "biuf" or (values.dtype.kind == "f" and (values % 1).any()):
        raise ValueError(f"expected {name} that are whole numbers, none masked, got {values.ravel()[:5]}")
    return np.ma.getdata(values).astype(np.int64)


def _with_none(values: np.ndarray, present: np.ndarray) -> list[float | None]:
    return [float(value) if known else None for value, known in zip(values, present, strict=True)]

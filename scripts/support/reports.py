"""What a run leaves behind for people: tables, confusion matrix, map; every file is written whole or not at all."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from scipy.stats import t as student_t

from datasets_loading.files import written_whole
from datasets_loading.land_cover_metric import land_cover_scores
from datasets_loading.sensors import ENMAP
from datasets_loading.splits import NO_SPLIT, SPLITS, UNLABELLED
from hsst.support.figures import legend_columns, longest, save_figure, true_color, wrapped
from hsst.support.map_writer import class_colors

if TYPE_CHECKING:
    from datasets_loading.labelled_data import LabelledData

PALE = (0.93, 0.93, 0.93, 1.0)
LARGEST_MATRIX_WITH_COUNTS = 12


def without_folders(value: Any) -> Any:
    """What JSON can hold of a run, with absolute paths cut to their last part: where they lie is nobody's business."""
    if isinstance(value, Mapping):
        return {name: without_folders(part) for name, part in value.items()}
    if isinstance(value, list):
        return [without_folders(part) for part in value]
    if isinstance(value, str | PurePath):
        return PurePath(value).name if PurePath(value).is_absolute() else str(value)
    return value


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """
    95 % interval of a mean after Student's t; None for fewer than three values. Bootstrapped percentiles of so few
    values as there are seeds are too narrow: of five, they hold the mean in 84 % of the cases.
    """
    if len(values) < 3:
        return None
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    # Not given the error as its scale, for which it takes no 0
    low, high = (float(np.mean(values)) + reach * error for reach in student_t.interval(0.95, len(values) - 1))
    return float(low), float(high)


def pooled_interval(matrices: Sequence[np.ndarray], score: str) -> tuple[float, float] | None:
    """
    95 % interval of a score of the sum of confusion matrices, by leaving one of them out at a time (jackknife), after
    Student's t, as far as scores reach (0 to 1); None for fewer than three. Of matrices of as many pixels, that of
    overall accuracy is the `interval` of theirs; those of different sizes have means that are not the score of all.
    """
    count = len(matrices)
    if count < 3:
        return None
    total = np.sum(matrices, axis=0)
    without = [land_cover_scores(total - matrix)[score] for matrix in matrices]
    error = (count - 1) ** 0.5 * float(np.std(without))
    low, high = (land_cover_scores(total)[score] + reach * error for reach in student_t.interval(0.95, count - 1))
    return max(float(low), 0.0), min(float(high), 1.0)


def described(values: Sequence[float | None]) -> dict[str, Any] | None:
    """Mean, standard deviation and 95 % interval (low, high) of values; None where none is known."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    low, high = interval(known) or (None, None)
    deviation = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return {"mean": float(np.mean(known)), "std": deviation, "low": low, "high": high}


def percent(described: Mapping[str, Any] | None, is_bold: bool = False) -> str:
    """A mean, perhaps in bold, with its interval, in percent."""
    if described is None:
        return "–"
    mean = f"{100 * described['mean']:.1f}"
    mean = f"**{mean}**" if is_bold else mean
    if described["low"] is None:
        return mean
    # a dash would run into a minus sign
    to = " to " if described["low"] < 0 else "–"
    return f"{mean} ({100 * described['low']:.1f}{to}{100 * described['high']:.1f})"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def csv_cell(text: str) -> str:
    """A name for a cell of CSV: spreadsheets would compute one that begins as a formula does."""
    return f"'{text}" if text.startswith(tuple("=+-@\t\r")) else text


def write_confusion_csv(path: str | Path, matrix: np.ndarray, class_names: Sequence[str]) -> Path:
    """Counts with class names: a row for each reference, a column for each prediction."""

    with written_whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["reference \\ prediction", *map(csv_cell, class_names)])
        for name, counts in zip(class_names, np.asarray(matrix).tolist(), strict=True):
            writer.writerow([csv_cell(name), *counts])
    return Path(path)


def plot_confusion(path: str | Path, matrix: np.ndarray, class_names: Sequence[str], title: str) -> Path:
    """
    Draws a confusion matrix as PNG: the share of each reference class (row) that was predicted as each class, with
    counts of pixels where classes are few.
    """
    matrix = np.asarray(matrix)
    support = matrix.sum(axis=1)
    count = len(class_names)
    side = max(4.5, 0.75 * count + 2)
    margin = longest(class_names, 9)  # of names as labels
    figure = Figure(
        figsize=(side + 1 + margin, side + 0.7 * margin), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    )
    axis = figure.subplots()
    shares, few = shares_of(matrix), count <= LARGEST_MATRIX_WITH_COUNTS
    drawn = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(count, count):
        share = shares[row, column]
        if np.isnan(share) or (share < 0.005 and not few):
            continue
        text = f"{share:.0%}\n{matrix[row, column]:,}" if few else f"{share:.0%}"
        color = "white" if share > 0.6 else "#222222"
        axis.text(column, row, text, ha="center", va="center", fontsize=9 if few else 6, color=color)
    labels = [f"{name} ({int(total):,})" for name, total in zip(class_names, support, strict=True)]
    axis.set_yticks(range(count), labels, fontsize=9)
    axis.set_xticks(range(count), class_names, rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
    axis.set_ylabel("reference (test pixels)")
    axis.set_xlabel("prediction")
    figure.suptitle(wrapped(title, side + margin, 11), fontsize=11)
    figure.colorbar(drawn, ax=axis, shrink=0.75, label="share of the reference class")
    return save_figure(path, figure)


def shares_of(matrix: np.ndarray) -> np.ndarray:
    """Counts (classes, classes) as shares of each row, float64; NaN in rows of classes that do not occur."""
    support = matrix.sum(axis=1, keepdims=True)
    return np.where(support > 0, matrix / np.maximum(support, 1), np.nan)


def plot_land_cover_map(path: str | Path, data: LabelledData, maps: Mapping[str, np.ndarray], title: str) -> Path:
    """
    Draws test area, reference and prediction side by side as PNG: one row for each scene (the first four), cut to its
    test area; `maps` are predicted classes by the scene's name, uint8 (height, width), 255 = none.
    """
    colors = to_rgba_array(class_colors(data.class_names))
    scenes = [scene for scene in data.scenes if scene.name in maps][:4]
    rows = []
    for scene in scenes:
        area = data.split.codes[scene.name] == SPLITS.index("test")
        inside = np.nonzero(area)
        part = tuple(slice(int(side.min()), int(side.max()) + 1) for side in inside)
        valid = scene.valid[part]
        reflectance = np.where(valid, scene.cube[:, *part] / ENMAP.scale, np.nan)
        picture = np.where(valid[..., None], true_color(reflectance, data.wavelengths)[0], 1.0)
        reference = np.where(area[part], scene.labels[part], UNLABELLED)
        hidden = data.split.codes[scene.name][part] == NO_SPLIT
        rows.append((scene.name, picture, reference, np.asarray(maps[scene.name])[part], valid & ~hidden))
    height, width = rows[0][1].shape[:2]
    panel = 4.2 * min(max(width / height, 0.6), 1.5)
    handles = [Patch(color=colors[number], label=name) for number, name in enumerate(data.class_names)]
    handles.append(Patch(facecolor=PALE, edgecolor="#999999", label="no label or no prediction"))
    handles.append(Patch(facecolor="white", edgecolor="#999999", label="no data, cloud or shadow"))
    figure_width = max(3 * panel + 0.4, 9.0)
    columns = legend_columns([str(handle.get_label()) for handle in handles], figure_width - 0.4, 9)
    row_height = min(4.4, max(panel * height / width, 0.6) + 0.6)
    figure_height = row_height * len(rows) + 0.6 + 0.22 * -(-len(handles) // columns)
    figure = Figure(figsize=(figure_width, figure_height), layout="constrained")
    axes = figure.subplots(len(rows), 3, squeeze=False)
    figure.suptitle(wrapped(title, figure_width - 0.4, 12), fontsize=12)
    for axis_row, (name, picture, reference, prediction, valid) in zip(axes, rows, strict=True):
        labelled = int((reference != UNLABELLED).sum())
        right = int(((reference == prediction) & (reference != UNLABELLED)).sum())
        panels = [
            (picture, "true color"),
            (_colored(reference, valid, colors), f"reference ({labelled:,} labelled pixels)"),
            (_colored(prediction, valid, colors), f"prediction ({right / max(labelled, 1):.0%} right)"),
        ]
        for axis, (image, label) in zip(axis_row, panels, strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set_title(label, fontsize=10)
            axis.set_xticks([])
            axis.set_yticks([])
        if len(rows) > 1:
            # Products have names as long as two panels are high
            axis_row[0].set_ylabel("\n".join(wrap(name, 34)), fontsize=9)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
    return save_figure(path, figure)


def _colored(classes: np.ndarray, valid: np.ndarray, colors: np.ndarray) -> np.ndarray:
    image = np.where(valid[..., None], np.array(PALE), 1.0)
    known = classes != UNLABELLED
    image[known] = colors[classes[known]]
    return image

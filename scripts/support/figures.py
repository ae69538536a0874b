"""Figures of hyperspectral images for people: true color, masks, reconstructions, spectra, labels, splits."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.ticker import LogFormatter

from datasets_loading.files import written_whole
from datasets_loading.sensors import TRUE_COLOR_WAVELENGTHS

INPUT_COLOR = "#222222"
RECONSTRUCTION_COLOR = "#d1495b"
PIXEL_COLORS = ("#f4a100", "#00a6a6", "#9b5de5")
MASKED_GRAY = 0.6
DARKEST_CLOUD = 0.2
"""Reflectance in every color; what is darker in one is no cloud."""

LETTER = 0.0085
"""Width of a letter of usual text in inches, for each point of its size."""


def true_color_bands(wavelengths: Sequence[float] | np.ndarray | None, num_bands: int) -> list[int]:
    """Bands nearest to 640, 550 and 460 nm; evenly spread bands where `wavelengths` (nm) are unknown."""
    if wavelengths is None:
        return [3 * num_bands // 4, num_bands // 2, num_bands // 4]
    return [int(np.abs(np.asarray(wavelengths) - target).argmin()) for target in TRUE_COLOR_WAVELENGTHS]


def true_color(
    reflectance: np.ndarray, wavelengths: Sequence[float] | np.ndarray | None, limits: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """
    A picture (height, width, 3) in 0..1 of reflectance (bands, height, width), each color stretched between its 2nd
    and 98th percentile, and these limits (2, 3), for another picture of the same scene. Clouds do not count, which
    would leave the land black: pixels that are much brighter in every color than the darker half is.
    """
    bands = true_color_bands(wavelengths, len(reflectance))
    image = np.moveaxis(reflectance[bands], 0, -1).astype(np.float64)
    if limits is None:
        pixels = image.reshape(-1, 3)
        darkest = pixels.min(axis=1)
        dark = darkest[darkest <= np.nanmedian(darkest)]
        clear = darkest <= max(DARKEST_CLOUD, 2 * np.percentile(dark, 98)) if dark.size else np.isnan(darkest)
        limits = np.nanpercentile(pixels[clear], [2, 98], axis=0)
    low, high = limits
    # Nothing to stretch in a picture of one color
    stretched = np.where(high - low > 1e-6, (image - low) / np.maximum(high - low, 1e-6), 0.5 + 0 * image)
    return np.nan_to_num(np.clip(stretched, 0, 1)), limits


def plot_reconstruction(
    path: str | Path,
    *,
    reflectance: np.ndarray,
    reconstruction: np.ndarray,
    hidden: np.ndarray,
    valid: np.ndarray,
    wavelengths: Sequence[float] | np.ndarray | None,
    title: str,
) -> Path:
    """
    Draws what a masked model makes of what it does not see, and saves it as PNG.

    Above: true color of the input, of what the model sees (a hidden color is gray), of the input with the hidden
    values reconstructed, and the mean absolute error of the hidden values. Below: spectra of three marked pixels;
    shaded bands were hidden.

    Args:
        reflectance, reconstruction: input and the model's values of all bands, (bands, height, width).
        hidden: bool of the same shape, True where the model did not see a value.
        valid: bool (height, width), False at pixels without data.
        wavelengths: band centers in nm, or None.
    """
    hidden = np.logical_and(hidden, valid)
    filled = np.where(hidden, reconstruction, reflectance)
    color_bands = true_color_bands(wavelengths, len(reflectance))
    picture, limits = true_color(np.where(valid, reflectance, np.nan), wavelengths)
    seen = np.where(np.moveaxis(hidden[color_bands], 0, -1), MASKED_GRAY, picture)
    counts = hidden.sum(axis=0)
    error = np.where(hidden, np.abs(reconstruction - reflectance), 0.0).sum(axis=0) / np.maximum(counts, 1)
    error = np.where(counts > 0, error, np.nan)

    figure = Figure(figsize=(13.5, 8.0), layout="constrained")
    figure.suptitle(wrapped(title, 13.5, 12), fontsize=12)
    figure.supxlabel(
        "Pictures: white is without data, or a cloud; what is hidden from the model is gray, or tinted where not all "
        "of its three colors are.\nError: brighter is larger, white where nothing was hidden. Squares mark the pixels "
        "of the spectra below; their shaded bands were hidden from the model.",
        fontsize=9,
        color=INPUT_COLOR,
    )
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.15, 1.0), squeeze=False)[:, 0]
    axes = upper.subplots(1, 4)
    pictures = (
        (picture, "input, true color"),
        (seen, f"what the model sees ({hidden.sum() / max(1, valid.sum() * len(hidden)):.0%} hidden)"),
        (true_color(filled, wavelengths, limits)[0], "hidden values reconstructed"),
    )
    for axis, (image, label) in zip(axes, pictures, strict=False):
        axis.imshow(np.where(valid[..., None], image, 1.0), interpolation="nearest")
        axis.set_title(wrapped(label, 2.9, 10), fontsize=10)
    top = float(np.nanpercentile(error, 98)) if np.isfinite(error).any() else 1.0
    drawn = axes[3].imshow(error, interpolation="nearest", cmap="magma", vmin=0, vmax=max(top, 1e-6))
    axes[3].set_title(wrapped("mean absolute error of hidden values", 2.2, 10), fontsize=10)
    upper.colorbar(drawn, ax=axes[3], shrink=0.75, label="reflectance")
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])

    x_values = np.arange(len(reflectance)) if wavelengths is None else np.asarray(wavelengths, dtype=float)
    for axis, (row, column), color in zip(
        lower.subplots(1, 3, sharey=True), marked_pixels(reflectance, hidden, valid), PIXEL_COLORS, strict=False
    ):
        for image_axis in axes:
            image_axis.plot(column, row, "s", ms=7, mfc="none", mec=color, mew=2)
        predicted = {"reconstruction": (reconstruction[:, row, column], {"color": RECONSTRUCTION_COLOR})}
        plot_spectrum(axis, x_values, reflectance[:, row, column], predicted, hidden[:, row, column])
        axis.set_title(f"pixel at row {row}, column {column}", fontsize=10, color=color)
        axis.set_xlabel("band" if wavelengths is None else "wavelength (nm)")
    low, high = lower.axes[0].get_ylim()  # shared, so of all spectra
    lower.axes[0].set_ylim(min(0.0, low), high)
    lower.axes[0].set_ylabel("reflectance")
    lower.axes[0].legend(fontsize=8, loc="upper right")

    return save_figure(path, figure)


def wrapped(text: str, width: float, size: float) -> str:
    """A text in lines of at most `width` inches, in letters of `size` points; names as long as that are cut."""
    length = max(1, int(width / (LETTER * size)))
    return "\n".join(line for part in text.split("\n") for line in wrap(part, length))


def legend_columns(names: Sequence[str], width: float, size: float) -> int:
    """How many columns of a legend fit beside each other into a width in inches."""
    return max(1, min(len(names), int(width / (longest(names, size) + 0.6))))


def longest(texts: Iterable[str], size: float) -> float:
    """Width in inches of the longest of some lines in letters of `size` points; 0 of none."""
    font = FontProperties(size=size)
    return max((text_to_path.get_text_width_height_descent(text, font, False)[0] / 72 for text in texts), default=0.0)


def with_gaps(wavelengths: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wavelengths and values with NaN, where a line breaks, in place of bands that are missing."""
    steps = np.diff(wavelengths)
    gaps = np.flatnonzero(steps > max(40.0, 4 * float(np.median(steps)) if len(steps) else 0.0)) + 1
    return np.insert(wavelengths.astype(float), gaps, np.nan), np.insert(values.astype(float), gaps, np.nan)


def plot_spectrum(
    axis: Axes,
    x_values: np.ndarray,
    spectrum: np.ndarray,
    predictions: Mapping[str, tuple[np.ndarray, Mapping[str, Any]]],
    hidden: np.ndarray,
) -> None:
    """One pixel's input and, by their names, predictions of its hidden bands with a style each; these are shaded."""
    axis.plot(*with_gaps(x_values, spectrum), color=INPUT_COLOR, lw=1.6, label="input", zorder=3)
    for name, (values, style) in predictions.items():
        shown = np.where(hidden, values, np.nan)
        axis.plot(*with_gaps(x_values, shown), **{"label": name, "lw": 1.4, "zorder": 4, **style})
    places, is_hidden = with_gaps(x_values, hidden)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], is_hidden == 1, [0]])))
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        axis.axvspan(places[first], places[last - 1], color="#000000", alpha=0.07, lw=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.2)


def save_figure(path: str | Path, figure: Figure, dpi: int = 110) -> Path:
    """
    Writes a figure as PNG, whole. Names of classes and files are shown as they are: matplotlib takes what stands
    between dollar signs for a formula, and fails at one that it cannot read.
    """
    formulas = {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        if isinstance(axis.get_major_formatter(), LogFormatter)  # powers of ten
        for label in (*axis.get_ticklabels(), *axis.get_ticklabels(minor=True))
    }
    for text in set(figure.findobj(Text)) - formulas:
        text.set_parse_math(False)
        text.set_text("".join(sign if sign.isprintable() or sign == "\n" else "\ufffd" for sign in text.get_text()))
    with written_whole(path) as partial:
        figure.savefig(partial, dpi=dpi, format="png")
    return Path(path)


def marked_pixels(reflectance: np.ndarray, hidden: np.ndarray, valid: np.ndarray) -> list[tuple[int, int]]:
    """
    Three pixels worth a look: among the fully or mostly hidden ones a dark, a middling and a bright one, by their mean
    reflectance (10th, 50th and 90th percentile).
    """
    share = hidden.mean(axis=0)
    rows, columns = np.nonzero(valid & (share >= 0.75 * share[valid].max())) if valid.any() else ([0], [0])
    brightness = reflectance[:, rows, columns].mean(axis=0)
    order = np.argsort(brightness)
    places = [order[int(quantile * (len(order) - 1))] for quantile in (0.1, 0.5, 0.9)]
    return [(int(rows[place]), int(columns[place])) for place in places]

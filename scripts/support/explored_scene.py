"""What a page shows of a scene at a click, computed once: spectra, reconstruction, features, land cover.

`explore` runs the models over a scene; the functions that take an `Explored` only look up and draw.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image, ImageDraw
from torch.utils.benchmark import Timer

from datasets_loading.files import fingerprint, written_whole
from datasets_loading.raster_file import fail
from datasets_loading.scenes import Scene
from datasets_loading.windows import tile_to_windows, windows_to_tile
from hsst.support.features import features_as_colors, fitted_to_scene, load_encoder, scene_features
from hsst.support.figures import plot_spectrum, true_color_bands, with_gaps
from hsst.support.map_writer import NO_CLASS, class_map_writer
from hsst.support.model_sources import load_classifier, load_masked_model, read_processor
from hsst.support.scene_report import SceneSummary, amount_text, clear_picture, kept, share_text
from modeling_hsst import HSSTImageProcessor, ScenePredictor
from modeling_hsst.modeling_hsst_masked import hidden_values
from modeling_hsst.scene_prediction_hsst import ScenePart, select_bands

SHOWN_SIDE = 512
"""Pixels along the longer side of what is kept of a scene: every pixel of small scenes, every n-th of larger ones."""

HIDDEN_BLOCKS = slice(1, None, 3)
"""Spectral blocks that are hidden from the model at all pixels: every third."""

EXCLUDED = ("outside", "cloud", "shadow")
BATCH = 64
ROWS_OF_A_STRIP = 32  # few, for the progress
BACKGROUND = (0.93, 0.94, 0.95)
RECONSTRUCTED = "reconstruction by the model"

Report = Callable[[float, str], Any]
"""Takes the share that is done, from 0 to 1, and what is being done."""


@dataclass(frozen=True)
class Models:
    """The models of the page, each with the processor of its weights, and a name that changes with the weights."""

    encoder: tuple[Any, HSSTImageProcessor]
    masked: tuple[Any, HSSTImageProcessor]
    land_cover: tuple[Any, HSSTImageProcessor]
    name: str


@dataclass(frozen=True)
class Explored:
    """What is kept of a scene, of every `step`-th pixel."""

    name: np.ndarray  # name of the scene, and a line on its bands and size
    step: np.ndarray  # pixels from one that is kept to the next
    wavelengths: np.ndarray  # band centers of the scene in nm, float64 (bands,)
    spectra: np.ndarray  # reflectance, float16 (bands, height, width), NaN without data
    model_bands: np.ndarray  # the scene's bands that the model sees, int64 (model bands,)
    hidden: np.ndarray  # which of these are hidden from it, bool (model bands,)
    reconstruction: np.ndarray  # its reflectance of them, float16 (model bands, height, width), NaN without data
    features: np.ndarray  # float16 (features, height, width), of length 1 around their mean; 0 without data
    classes: np.ndarray  # uint8 (height, width), 255 = none
    confidence: np.ndarray  # probability of the class in percent, uint8 (height, width)
    class_names: np.ndarray
    legend: np.ndarray  # HTML of the land-cover map's legend
    pictures: np.ndarray  # true color, features and land cover, uint8 (3, height, width, 3)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of what is kept."""
        return self.classes.shape[0], self.classes.shape[1]


def load_models(model: str, land_cover: str, precision: str | None = None) -> Models:
    """Loads the models from folders or the Hub, to compute in a precision, by default in what is faster here;
    ValueError where there is no such model, or it is damaged or of another kind."""
    dtype = getattr(torch, precision) if precision else faster_dtype()
    encoder, processor = load_encoder(model)
    masked, classifier = load_masked_model(model), load_classifier(land_cover)
    pairs = [(encoder, processor), (masked, processor), (classifier, read_processor(land_cover, classifier.config))]
    weights = (values.float().numpy() for network, _ in pairs for values in network.state_dict().values())
    name = fingerprint(str(dtype), *(values.tobytes() for values in weights), *(p.to_json_string() for _, p in pairs))
    given = [(network.to(dtype), own) for network, own in pairs]
    return Models(given[0], given[1], given[2], name[:12])


def faster_dtype() -> torch.dtype:
    """
    bfloat16 where this processor multiplies matrices in it much faster than in float32. That is measured: processors
    that have instructions for it are up to four times as fast with it, or half as fast.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.randn(2, 512, 512).to(dtype)
        timer = Timer("left @ right", globals={"left": left, "right": right}, num_threads=torch.get_num_threads())
        # The shortest: the first ones wake threads, and a busy machine only makes them longer
        seconds[dtype] = min(timer.timeit(5).mean for _ in range(5))
    return torch.bfloat16 if 1.3 * seconds[torch.bfloat16] < seconds[torch.float32] else torch.float32


def explore(scene: Scene, models: Models, map_path: Path, report: Report = lambda share, what: None) -> Explored:
    """
    Computes all that the page shows of an open scene with wavelengths, and writes its land-cover map. ProductError
    where the scene is damaged, or smaller than a window of the model. ValueError where it shares no band with a model.
    """
    step = -(-max(scene.shape) // SHOWN_SIDE)
    shape = tuple(-(-side // step) for side in scene.shape)
    assert scene.wavelengths is not None
    spectra = np.full((len(scene.wavelengths), *shape), np.nan, dtype=np.float16)

    masked, processor = fitted_to_scene(*models.masked, scene)
    selection = select_bands(scene, processor, masked.config.num_channels)
    window = masked.config.window_size
    if min(scene.shape) < max(window):
        fail(scene.name, f"at least {max(window)} x {max(window)} pixels", "{} x {}".format(*scene.shape))
    mask = torch.zeros(masked.config.num_blocks, masked.config.num_positions, dtype=torch.bool)
    mask[HIDDEN_BLOCKS] = True
    mask = mask.flatten()[None]
    hidden = hidden_values(mask, torch.zeros(1, masked.config.num_channels, *window), masked.config)[0, :, 0, 0]
    reconstruction = np.full((len(hidden), *shape), np.nan, dtype=np.float16)
    for rows in strips(scene.shape[0], window[0]):
        report(0.3 * rows.start / scene.shape[0], "reconstructing hidden bands")
        taken, place = kept(rows, step)
        stored = scene.read(rows, slice(0, scene.shape[1]))
        spectra[:, place] = np.where(stored == scene.nodata, np.nan, stored / np.float32(scene.scale))[
            :, taken, ::step
        ]
        tile = reconstruct(masked, processor, scene, stored[selection.bands], rows, mask)
        reconstruction[:, place] = tile[:, taken, ::step]

    own = dict(zip(("encoder", "processor"), fitted_to_scene(*models.encoder, scene), strict=True))
    side = min(max(max(scene.shape) // 4, 64), 256)  # many parts, for the progress
    settings: dict[str, Any] = {"exclude": EXCLUDED, "chunk_size": side}
    features_of = scene_features(**own, scene=scene, stride=min(window), **settings)
    features = np.full((features_of.num_outputs, *shape), np.nan, dtype=np.float32)
    for part in counted(features_of.predict(scene), scene, report, 0.3, 0.6, "computing features"):
        (rows, row_place), (columns, column_place) = kept(part.rows, step), kept(part.columns, step)
        features[:, row_place, column_place] = part.probabilities[:, rows, columns]

    classifier, processor = fitted_to_scene(*models.land_cover, scene)
    predictor = ScenePredictor(classifier, processor, stride=min(classifier.config.window_size), **settings)
    summary = SceneSummary(scene, predictor.class_names, processor.wavelengths)
    classes, confidence = np.full(shape, NO_CLASS, dtype=np.uint8), np.zeros(shape, dtype=np.uint8)
    place_of: dict[str, Any] = {"crs": scene.crs, "transform": scene.transform, "tags": {"scene": scene.name}}
    with class_map_writer(map_path, scene.shape, predictor.class_names, **place_of) as write:
        for part in counted(predictor.predict(scene), scene, report, 0.6, 1.0, "mapping land cover"):
            write(part.rows, part.columns, part.classes)
            summary.update(part.rows, part.columns, part.classes, part.confidence, part.pixels)
            (rows, row_place), (columns, column_place) = kept(part.rows, step), kept(part.columns, step)
            classes[row_place, column_place] = part.classes[rows, columns]
            percent = np.rint(100 * np.nan_to_num(part.confidence[rows, columns]))
            confidence[row_place, column_place] = percent

    colors = np.array([to_rgb(color) for color in summary.colors_of_classes] + [BACKGROUND])
    pictures = [
        visible_picture(spectra, scene.wavelengths, classes != NO_CLASS),
        on_background(features_as_colors(features)),
        colors[np.where(classes == NO_CLASS, len(colors) - 1, classes)],
    ]
    in_range = f"{scene.wavelengths[0]:.0f} to {scene.wavelengths[-1]:.0f} nm"
    size = f"{scene.shape[0]} x {scene.shape[1]} pixels, {len(scene.wavelengths)} bands from {in_range}"
    return Explored(
        name=np.array([scene.name, size]),
        step=np.array(step),
        wavelengths=scene.wavelengths,
        spectra=spectra,
        model_bands=np.array(selection.bands),
        hidden=hidden.numpy(),
        reconstruction=reconstruction,
        features=unit_length(features),
        classes=classes,
        confidence=confidence,
        class_names=np.array(predictor.class_names),
        legend=np.array(legend_of(summary)),
        pictures=np.stack([np.rint(255 * picture).astype(np.uint8) for picture in pictures]),
    )


def strips(length: int, window: int) -> Iterator[slice]:
    """Rows of the strips that a scene is reconstructed in; the last one has a window of them at least."""
    for start in range(0, length, ROWS_OF_A_STRIP):
        yield slice(min(start, length - window), min(start + ROWS_OF_A_STRIP, length))


@torch.inference_mode()
def reconstruct(
    model: Any, processor: HSSTImageProcessor, scene: Scene, stored: np.ndarray, rows: slice, mask: torch.Tensor
) -> np.ndarray:
    """
    Reflectance that the model gives for whole rows of a scene, float32 (model bands, rows, width), NaN without data;
    `stored` are the rows' numbers in the model's bands, `mask` the tokens that are hidden in each window (1, tokens).
    """
    window = model.config.window_size
    values, valid = processor.standardize(tile_to_windows(stored, window), scale=scene.scale, nodata=scene.nodata)
    usable = ~scene.read_excluded(rows, slice(0, scene.shape[1]), EXCLUDED)
    valid = valid & tile_to_windows(usable[None], window)[:, 0]
    outputs = [
        model(batch.to(model.dtype), mask.expand(len(batch), -1), known, mask_type="unit").reconstruction.float()
        for batch, known in zip(values.split(BATCH), valid.split(BATCH), strict=True)
    ]
    reflectance = processor.to_reflectance(torch.cat(outputs)).masked_fill(~valid.unsqueeze(1), torch.nan)
    return windows_to_tile(reflectance, usable.shape).numpy()


def counted(
    parts: Iterable[ScenePart], scene: Scene, report: Report, first: float, last: float, what: str
) -> Iterator[ScenePart]:
    """The parts of a scene; reports from `first` to `last` how much of it is done."""
    report(first, what)
    done = 0
    for part in parts:
        yield part
        done += part.classes.size
        report(first + (last - first) * done / (scene.shape[0] * scene.shape[1]), what)


def unit_length(features: np.ndarray) -> np.ndarray:
    """Features (features, height, width) less their mean, scaled to length 1, float16; 0 where there are none."""
    known = np.isfinite(features).all(axis=0)
    filled = np.where(known, features, 0)
    centered = filled - filled.sum(axis=(1, 2), keepdims=True) / max(known.sum(), 1)
    lengths = np.linalg.norm(centered, axis=0)
    return np.where(known, centered / np.maximum(lengths, 1e-6), 0).astype(np.float16)


def visible_picture(spectra: np.ndarray, wavelengths: np.ndarray, mapped: np.ndarray) -> np.ndarray:
    """True color of spectra (bands, height, width), stretched over the `mapped` pixels, bool (height, width)."""
    filled = np.flatnonzero(np.isfinite(spectra).any(axis=(1, 2)))
    bands = filled[true_color_bands(wavelengths[filled], len(filled))] if filled.size else [0, 0, 0]
    return on_background(clear_picture(spectra[bands].astype(np.float32), mapped))


def on_background(colors: np.ndarray) -> np.ndarray:
    """Colors (height, width, 4) in 0..1 without transparency, (height, width, 3)."""
    return colors[..., :3] * colors[..., 3:] + np.array(BACKGROUND) * (1 - colors[..., 3:])


def legend_of(summary: SceneSummary) -> str:
    """Classes of a map by their share, as HTML: color, name, area, share."""
    rows = sorted((row for row in summary.rows() if row["pixels"]), key=lambda row: -row["pixels"])
    cells = "".join(
        f'<tr><td><span style="background:{row["color"]}"></span></td><td>{html.escape(row["name"])}</td>'
        f"<td>{amount_text(row)}</td><td>{share_text(row['share'])}</td></tr>"
        for row in rows
    )
    return f'<table class="legend">{cells}</table>' if cells else "<p>No pixel of this scene has a class.</p>"


def save(explored: Explored, path: Path) -> None:
    """Writes what was computed of a scene, whole or not at all."""
    with written_whole(path) as partial, partial.open("wb") as file:
        np.savez(file, **{field.name: getattr(explored, field.name) for field in fields(explored)})


def load(path: Path) -> Explored:
    """Reads what `save` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return Explored(**{field.name: arrays[field.name] for field in fields(Explored)})


def first_pixel(explored: Explored) -> tuple[int, int]:
    """The mapped pixel nearest to the middle, or the middle where none is mapped, (row, column)."""
    middle = explored.shape[0] // 2, explored.shape[1] // 2
    rows, columns = np.nonzero(explored.classes != NO_CLASS)
    if not len(rows):
        return middle
    nearest = np.hypot(rows - middle[0], columns - middle[1]).argmin()
    return int(rows[nearest]), int(columns[nearest])


def similarity(explored: Explored, row: int, column: int) -> np.ndarray:
    """Cosine similarity of all features to those of a pixel, float32 (height, width); 0 without data."""
    features = explored.features.reshape(len(explored.features), -1).astype(np.float32)
    wanted = explored.features[:, row, column].astype(np.float32)
    return (wanted @ features).reshape(explored.shape)


def similarity_picture(explored: Explored, row: int, column: int) -> np.ndarray:
    """Similarity to a pixel from dark (0 and below) to bright (1), uint8 (height, width, 3)."""
    heat = colormaps["inferno"](similarity(explored, row, column).clip(0, 1))[..., :3]
    heat[~explored.features.any(axis=0)] = BACKGROUND
    return np.rint(255 * heat).astype(np.uint8)


def enlargement(explored: Explored) -> int:
    """How many pixels of a picture along each side show one that is kept."""
    return max(1, SHOWN_SIDE // max(explored.shape))


def marked(picture: np.ndarray, explored: Explored, row: int, column: int) -> np.ndarray:
    """A picture, uint8 (height, width, 3), enlarged, with a square around a pixel."""
    times = enlargement(explored)
    image = Image.fromarray(picture.repeat(times, axis=0).repeat(times, axis=1))
    x, y = int((column + 0.5) * times), int((row + 0.5) * times)
    for reach, shade in ((8, 0), (7, 255), (6, 255), (5, 0)):
        box = (x - reach, y - reach, x + reach, y + reach)
        ImageDraw.Draw(image).rectangle(box, outline=(shade, shade, shade))
    return np.array(image)


def plot_pixel(explored: Explored, row: int, column: int) -> Figure:
    """A figure with `draw_pixel` alone."""
    figure = Figure(figsize=(10, 3.9), dpi=130, layout="constrained")
    draw_pixel(figure.subplots(), explored, row, column)
    return figure


def draw_pixel(axis: Any, explored: Explored, row: int, column: int) -> None:
    """Draws a pixel's spectrum, and what the model makes of the bands that were hidden from it, which are shaded."""
    spectrum = explored.spectra[:, row, column].astype(np.float64)
    wavelengths = explored.wavelengths[explored.model_bands]
    predicted = {RECONSTRUCTED: (explored.reconstruction[:, row, column].astype(np.float64), {"color": "#d1495b"})}
    plot_spectrum(axis, wavelengths, spectrum[explored.model_bands], predicted, explored.hidden)
    axis.lines[0].set_data(*with_gaps(explored.wavelengths, spectrum))  # of all bands, not only the model's
    axis.lines[0].set_label("spectrum of the pixel")
    axis.set_xlim(explored.wavelengths[0] - 20, explored.wavelengths[-1] + 20)
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, 0.0), max(high, 0.05))
    axis.set_xlabel("wavelength (nm)")
    axis.set_ylabel("reflectance")
    shading = Patch(color="#000000", alpha=0.07, lw=0, label="hidden from the model")
    above: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 3, "frameon": False}
    axis.legend(handles=[*axis.lines[:2], shading], fontsize=9, **above)


def describe_pixel(explored: Explored, row: int, column: int) -> str:
    """Where a pixel is and what it is taken for, one line of HTML."""
    step, number = int(explored.step), int(explored.classes[row, column])
    here = f"Row {row * step}, column {column * step}: "
    if number == NO_CLASS:
        return here + "no data, cloud or shadow"
    name = html.escape(str(explored.class_names[number]))
    return f"{here}<b>{name}</b>, probability {int(explored.confidence[row, column])}%"

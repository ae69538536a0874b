"""Features that a frozen HSST of any kind gives for the pixels of scenes of any sensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from transformers.utils import logging

from datasets_loading.scenes import Scene, open_scene
from hsst.support.figures import save_figure, wrapped
from hsst.support.map_writer import raster_writer
from hsst.support.model_sources import OTHER_PARTS, load_model, read_config, read_processor
from hsst.support.scene_maps import SETTINGS_TAG, settings_text
from hsst.support.scene_report import kept
from modeling_hsst import ArrayScene, HSSTImageProcessor, HSSTModel, adapt_processor, adapt_to_wavelengths
from modeling_hsst.modeling_hsst import HSSTPositionEmbeddings
from modeling_hsst.scene_prediction_hsst import SceneFeatures, SceneReader, select_bands

logger = logging.get_logger(__name__)

PIXELS_AT_ONCE = 4096
PICTURE_SIDE = 1024  # pixels, at most


def load_encoder(source: str | Path | tuple[Any, HSSTImageProcessor]) -> tuple[Any, HSSTImageProcessor]:
    """
    The encoder of a model of any kind and its image processor, for features.

    Pre-trained models that add a place in the window to each token (positions of type "wavelength") get that of the
    middle at all places: else the place, and not the land, is most of what the features of windows differ by. A single
    pixel lies in the middle, so its features stay as they are. Fine-tuned models have learned to do without the place,
    and are loaded as they are. A model and its image processor in place of a folder or a name on the Hub are returned.
    ValueError where there is no such model, or its weights are damaged.
    """
    if not isinstance(source, (str, Path)):
        if [*map(hasattr, source if isinstance(source, tuple) else (), ("config", "standardize"))] == [True, True]:
            return source
        raise ValueError(
            f"model: expected a folder, a name on the Hub or a tuple (model, image processor), got {source!r:.60}"
        )
    source = str(source)
    config = read_config(source, "model")
    new: tuple[str, ...] = ()
    middle = None
    is_pretrained = "HSSTForMaskedImageModeling" in (config.architectures or ())
    if is_pretrained and config.position_embedding_type == "wavelength":
        with_place = HSSTPositionEmbeddings(config)((1, 1))
        config.position_embedding_type = "relative"
        middle = (with_place - HSSTPositionEmbeddings(config)((1, 1)))[0, 0, 0]
        new = tuple(f"spatial_layers.{layer}.attention.position_bias" for layer in range(config.num_spatial_layers))
        logger.info("%s: features are taken without the place in the window that tokens were told in training", source)
    encoder = load_model(HSSTModel, source, config, new=new, unused=OTHER_PARTS)
    if middle is not None:
        embeddings = encoder.embeddings.patch_embeddings
        last = embeddings.layernorm_after if config.normalize_token_values else embeddings
        last.bias.data += middle.to(last.bias)
    return encoder.eval(), read_processor(source, config)


def extract_features(
    model: str | Path | tuple[Any, HSSTImageProcessor],
    scene: str | Path | np.ndarray | SceneReader,
    *,
    wavelengths: Sequence[float] | np.ndarray | None = None,
    fwhm: Sequence[float] | np.ndarray | None = None,
    pooling: str = "mean",
    window: int | None = None,
    brightness: str = "kept",
    scale: float | None = None,
    exclude: Sequence[str] = ("outside", "cloud", "shadow"),
    progress: bool = False,
) -> np.ndarray:
    """
    What a model makes of each pixel of a scene.

    The bands of the model are picked from the scene's by wavelength; where the scene lacks some of them, the model is
    carried over to the scene's bands, and the log says so.

    Args:
        model: folder of a model or its name on the Hub, or a model and its image processor.
        scene: path of a scene that `open_scene` reads, one that is open, or an array (bands, height, width).
        wavelengths, fwhm: band centers and widths in nm (bands,) of an array, or of a file in place of its own.
        pooling: `"mean"` over the spectral blocks, or all `"blocks"` side by side: as many times the features.
        window: side of the windows that the model sees, in pixels; 1 for single pixels; by default the model's.
        brightness: features of spectra as they are (`"kept"`), of spectra scaled to the same brightness (`"equal"`),
            or of `"both"` side by side, which is best for single pixels.
        scale: stored number that means a reflectance of 1; by default the file's or, of an array, the processor's,
            10,000.
        exclude: kinds of pixels of an EnMAP product that get no features.
        progress: whether to show a bar.

    Returns:
        float32 (features, height, width), NaN at pixels without data.

    Raises:
        ValueError: the scene shares no band with the model, has no wavelengths, or an argument is out of range.
    """
    encoder, processor = load_encoder(model)
    settings: dict[str, Any] = {"pooling": pooling, "window": window, "brightness": brightness, "exclude": exclude}
    reading: dict[str, Any] = {"wavelengths": wavelengths, "fwhm": fwhm, "scale": scale}
    reading = {name: value for name, value in reading.items() if value is not None}
    with ExitStack() as stack:
        if isinstance(scene, (str, Path)):
            scene = stack.enter_context(open_scene(scene, **reading))
        elif isinstance(scene, (np.ndarray, torch.Tensor)):
            stored: dict[str, Any] = {"scale": processor.scale, "nodata": processor.nodata, "name": "the array"}
            scene = ArrayScene(scene, **stored | reading)
        elif reading:
            raise ValueError(f"{', '.join(reading)}: expected only with a path or an array, an open scene has its own")
        features = scene_features(encoder, processor, scene, **settings)
        output = np.empty((features.num_outputs, *scene.shape), dtype=np.float32)
        for part in features.predict(scene, progress):
            output[:, part.rows, part.columns] = part.probabilities
    return output


def scene_features(
    encoder: Any,
    processor: HSSTImageProcessor,
    scene: SceneReader,
    *,
    pooling: str = "mean",
    window: int | None = None,
    brightness: str = "kept",
    **settings: Any,
) -> SceneFeatures:
    """Gives the features of a scene part by part; the model is carried over to the scene's bands where it must be."""
    side = window if isinstance(window, int) and window > 0 else None
    batch_size = max(1, PIXELS_AT_ONCE // (side or min(encoder.config.window_size)) ** 2)
    settings = {"batch_size": batch_size, "chunk_size": 256, "pooling": pooling, "window": window, **settings}
    settings["brightness"] = brightness
    SceneFeatures(encoder, processor, **settings)  # senseless settings are refused first
    encoder, processor = fitted_to_scene(encoder, processor, scene, bool(settings.get("resample")))
    return SceneFeatures(encoder, processor, **settings)


def fitted_to_scene(
    model: Any, processor: HSSTImageProcessor, scene: SceneReader, resample: bool = False
) -> tuple[Any, HSSTImageProcessor]:
    """
    A model of any kind and its processor: as they are where the scene has the model's bands, or they may be resampled
    from the scene's, and otherwise carried over to the scene's bands, which the log says. ValueError where the scene
    shares no band with the model, or has no wavelengths and another number of bands.
    """
    try:
        select_bands(scene, processor, model.config.num_channels, resample)
        return model, processor
    except ValueError as error:
        if scene.wavelengths is None or model.config.wavelengths is None:
            raise
        reason = error
    bands = np.flatnonzero(scene.valid_bands)
    bands = bands[np.unique(scene.wavelengths[bands], return_index=True)[1]]  # in ascending order, each once
    fwhm = None if scene.fwhm is None else scene.fwhm[bands].tolist()
    centers = scene.wavelengths[bands].tolist()
    adapted = adapt_to_wavelengths(model, centers, fwhm)
    adapted_processor = adapt_processor(processor, centers, fwhm)
    logger.info("%s: the model is carried over to its bands. %s", scene.name, reason)
    return adapted, adapted_processor


def write_scene_features(features: SceneFeatures, scene: Scene, path: Path, settings: Mapping[str, object]) -> int:
    """
    Writes the features of a scene as a GeoTIFF, float32, NaN without data, which states the settings, and beside it
    (.png) a picture of the three directions in which they differ most. Returns the number of pixels with features.
    """
    step = max(1, -(-max(scene.shape) // PICTURE_SIDE))
    sample = np.full((features.num_outputs, *(-(-side // step) for side in scene.shape)), np.nan, dtype=np.float32)
    names = [f"feature {number}" for number in range(1, features.num_outputs + 1)]
    given: dict[str, Any] = {"dtype": "float32", "nodata": np.nan, "crs": scene.crs, "transform": scene.transform}
    tags, count = {SETTINGS_TAG: settings_text(settings), "scene": scene.name}, 0
    with raster_writer(path, scene.shape, names, tags=tags, **given) as write:
        for part in features.predict(scene, progress=True):
            write(part.rows, part.columns, part.probabilities)
            count += int(np.isfinite(part.probabilities[0]).sum())
            (rows, row_place), (columns, column_place) = kept(part.rows, step), kept(part.columns, step)
            sample[:, row_place, column_place] = part.probabilities[:, rows, columns]
        plot_features(path.with_suffix(".png"), sample, scene.name)
    return count


def plot_features(path: Path, features: np.ndarray, name: str) -> Path:
    """A picture of features (features, height, width) as `features_as_colors` gives them."""
    _, height, width = features.shape
    figure = Figure(figsize=(6, 6 * height / width + 0.5), layout="constrained")
    axis = figure.subplots()
    axis.imshow(features_as_colors(features), interpolation="nearest")
    axis.set_title(wrapped(f"features of {name}", 5.5, 9), fontsize=9)
    axis.axis("off")
    return save_figure(path, figure)


def features_as_colors(features: np.ndarray) -> np.ndarray:
    """
    Features (features, height, width) as an image (height, width, 4): their three principal components as red, green
    and blue between their 2nd and 98th percentiles, transparent where there are none.
    """
    known = np.isfinite(features).all(axis=0)
    colors = np.zeros((*known.shape, 4))
    flat = features[:, known].T.astype(np.float64)
    if len(flat) > 1:
        flat -= flat.mean(axis=0)
        _, directions = np.linalg.eigh(flat.T @ flat)
        components = flat @ directions[:, ::-1][:, :3]
        low, high = np.percentile(components, [2, 98], axis=0)
        colors[known, :3] = ((components - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    colors[known, 3] = 1.0
    return colors

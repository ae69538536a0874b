"""Features of a frozen HSST for any sensor: of whole scenes, and of spectra and windows for scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import NotFittedError
from transformers.utils import logging

from datasets_loading.scenes import open_scene
from hsst.support.model_sources import OTHER_PARTS, load_model, read_config, read_processor
from modeling_hsst import ArrayScene, HSSTImageProcessor, HSSTModel, adapt_processor, adapt_to_wavelengths
from modeling_hsst.scene_prediction_hsst import SceneFeatures, SceneReader

logger = logging.get_logger(__name__)

PIXELS_AT_ONCE = 4096


def load_encoder(source: str) -> tuple[HSSTModel, HSSTImageProcessor]:
    """
    The encoder of a model of any kind and its image processor.

    Args:
        source: folder of the model, or its name on the Hub.

    Raises:
        ValueError: there is no such model, or its weights are damaged.
    """
    config = read_config(source, "model")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a decoder or a head is left out here, of which transformers warns
    try:
        encoder = load_model(HSSTModel, source, config, unused=OTHER_PARTS)
        return encoder.eval(), read_processor(source, config)
    finally:
        logging.set_verbosity(verbosity)


def extract_features(
    model: str | tuple[Any, HSSTImageProcessor],
    scene: str | Path | np.ndarray | SceneReader,
    *,
    wavelengths: Sequence[float] | np.ndarray | None = None,
    fwhm: Sequence[float] | np.ndarray | None = None,
    pooling: str = "mean",
    window: int | None = None,
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
        wavelengths, fwhm: band centers and widths of an array in nm (bands,).
        pooling: `"mean"` over the spectral blocks, or all `"blocks"` side by side: as many times the features.
        window: side of the windows that the model sees, in pixels; 1 for single pixels; by default the model's.
        scale: stored number of an array that means a reflectance of 1; by default the processor's, 10,000.
        exclude: kinds of pixels of an EnMAP product that get no features.
        progress: whether to show a bar.

    Returns:
        float32 (features, height, width), NaN at pixels without data.

    Raises:
        ValueError: the scene shares no band with the model, has no wavelengths, or an argument is out of range.
    """
    encoder, processor = load_encoder(model) if isinstance(model, str) else model
    if isinstance(scene, (str, Path)):
        with open_scene(scene) as opened:
            return _of_scene(encoder, processor, opened, pooling, window, exclude, progress)
    if isinstance(scene, (np.ndarray, torch.Tensor)):
        scene = ArrayScene(
            scene, wavelengths, fwhm, processor.scale if scale is None else scale, processor.nodata, "the array"
        )
    return _of_scene(encoder, processor, scene, pooling, window, exclude, progress)


def scene_features(
    encoder: Any,
    processor: HSSTImageProcessor,
    scene: SceneReader,
    *,
    pooling: str = "mean",
    window: int | None = None,
    **settings: Any,
) -> SceneFeatures:
    """Gives the features of a scene part by part; the model is carried over to the scene's bands where it must be."""
    batch_size = max(1, PIXELS_AT_ONCE // (window or min(encoder.config.window_size)) ** 2)
    settings = {"batch_size": batch_size, "chunk_size": 256, "pooling": pooling, "window": window, **settings}
    features = SceneFeatures(encoder, processor, **settings)
    try:
        features.select_bands(scene)
        return features
    except ValueError as error:
        if scene.wavelengths is None or encoder.config.wavelengths is None:
            raise
        reason = error
    bands = np.flatnonzero(scene.valid_bands)
    bands = bands[np.unique(scene.wavelengths[bands], return_index=True)[1]]  # in ascending order, each once
    fwhm = None if scene.fwhm is None else scene.fwhm[bands].tolist()
    centers = scene.wavelengths[bands].tolist()
    adapted = adapt_to_wavelengths(encoder, centers, fwhm)
    adapted_processor = adapt_processor(processor, centers, fwhm)
    logger.info("%s: the model is carried over to its bands. %s", scene.name, reason)
    return SceneFeatures(adapted, adapted_processor, **settings)


def _of_scene(
    encoder: Any,
    processor: HSSTImageProcessor,
    scene: SceneReader,
    pooling: str,
    window: int | None,
    exclude: Sequence[str],
    progress: bool,
) -> np.ndarray:
    features = scene_features(encoder, processor, scene, pooling=pooling, window=window, exclude=exclude)
    output = np.empty((features.num_outputs, *scene.shape), dtype=np.float32)
    for part in features.predict(scene, progress):
        output[:, part.rows, part.columns] = part.probabilities
    return output


class HSSTFeatures(TransformerMixin, BaseEstimator):
    """
    Features of a frozen HSST as a step of a scikit-learn pipeline:

    ```python
    make_pipeline(HSSTFeatures("hsg-aiml/hsst-enmap", wavelengths), StandardScaler(), LogisticRegression())
    ```

    It learns nothing from the data. Spectra (pixels, bands) are seen as single pixels, windows (pixels, bands, height,
    width) as windows, of which the pixel in the middle counts.

    Args:
        model: folder of a model or its name on the Hub.
        wavelengths: band centers of the data in nm (bands,), any sensor's; by default the model's.
        fwhm: their full widths at half maximum in nm (bands,).
        pooling: `"blocks"` for the features of all spectral blocks side by side, or their `"mean"`.
        scale: number in the data that means a reflectance of 1; by default the processor's, 10,000.
        batch_size: pixels that the model sees at once.

    Raises:
        ValueError: at `fit`: there is no such model, or it shares no band with the wavelengths; at `transform`: the
            data have another number of bands, or numbers that are not finite.
    """

    def __init__(
        self,
        model: str = "hsg-aiml/hsst-enmap",
        wavelengths: Sequence[float] | np.ndarray | None = None,
        fwhm: Sequence[float] | np.ndarray | None = None,
        *,
        pooling: str = "blocks",
        scale: float | None = None,
        batch_size: int = PIXELS_AT_ONCE,
    ):
        self.model = model
        self.wavelengths = wavelengths
        self.fwhm = fwhm
        self.pooling = pooling
        self.scale = scale
        self.batch_size = batch_size

    def fit(self, X: np.ndarray, y: Any = None) -> HSSTFeatures:
        """Loads the model, and carries it over to the wavelengths."""
        encoder, processor = load_encoder(self.model)
        num_bands = np.shape(X)[1]
        wavelengths = processor.wavelengths if self.wavelengths is None else self.wavelengths
        if wavelengths is None or len(wavelengths) != num_bands:
            known = "none are known" if wavelengths is None else f"there are {len(wavelengths)}"
            raise ValueError(f"wavelengths: expected one for each of the {num_bands} bands of the data, but {known}")
        fwhm = None if self.fwhm is None else [*map(float, self.fwhm)]
        # Bands of one wavelength, or in another order, are for whole scenes: a spectrum has few that tell the order
        scene = ArrayScene(np.zeros((num_bands, 1, 1), dtype=np.float32), wavelengths, fwhm, name="the data")
        features = scene_features(encoder, processor, scene, pooling=self.pooling, window=1, exclude=())
        self.features_ = features
        self.bands_ = features.select_bands(scene).bands
        self.n_features_in_ = num_bands
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Features, float32 (pixels, features)."""
        if not hasattr(self, "features_"):
            raise NotFittedError("HSSTFeatures: expected fit before transform")
        data = np.asarray(X)
        if data.ndim not in (2, 4) or data.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X: expected spectra (pixels, {self.n_features_in_}) or windows (pixels, {self.n_features_in_}, "
                f"height, width), got the shape {data.shape}"
            )
        if data.dtype.kind not in "iuf" or not np.isfinite(data).all():
            raise ValueError(f"X: expected finite numbers, got {data.dtype} with others")
        data = data.reshape(*data.shape[:2], *(data.shape[2:] or (1, 1)))[:, self.bands_]
        row, column = (side // 2 for side in data.shape[2:])
        features, step = self.features_, max(1, self.batch_size // (data.shape[2] * data.shape[3]))
        found = np.empty((len(data), features.num_outputs), dtype=np.float32)
        for start in range(0, len(data), step):
            pixels = torch.as_tensor(np.ascontiguousarray(data[start : start + step], dtype=np.float32))
            with torch.inference_mode():
                values, mask = features.processor.standardize(pixels, scale=self.scale)
                found[start : start + step] = features._run(values, mask)[:, :, row, column].numpy()
        return found


__all__ = ["HSSTFeatures", "extract_features", "load_encoder", "scene_features"]

"""Features of a frozen HSST as a step of scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import NotFittedError

from hsst.support.features import PIXELS_AT_ONCE, load_encoder, scene_features
from modeling_hsst import ArrayScene


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
        brightness: features of spectra as they are (`"kept"`), of spectra scaled to the same brightness (`"equal"`),
            or of `"both"` side by side.
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
        brightness: str = "both",
        scale: float | None = None,
        batch_size: int = PIXELS_AT_ONCE,
    ):
        self.model = model
        self.wavelengths = wavelengths
        self.fwhm = fwhm
        self.pooling = pooling
        self.brightness = brightness
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
        features = scene_features(
            encoder, processor, scene, pooling=self.pooling, window=1, brightness=self.brightness, exclude=()
        )
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
                values, mask = features.processor.standardize(pixels.to(features.model.device), scale=self.scale)
                found[start : start + step] = features._run(values, mask)[:, :, row, column].cpu().numpy()
        return found

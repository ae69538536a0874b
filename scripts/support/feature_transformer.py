"""Features of a frozen HSST as a step of scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import NotFittedError

from hsst.support.features import PIXELS_AT_ONCE, load_encoder, scene_features
from modeling_hsst import ArrayScene, HSSTImageProcessor
from modeling_hsst.image_processing_hsst import as_list, as_numbers, check_stored
from modeling_hsst.scene_prediction_hsst import check_count


class HSSTFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """
    Features of a frozen HSST as a step of a scikit-learn pipeline:

    ```python
    make_pipeline(HSSTFeatures("hsg-aiml/hsst-enmap", wavelengths), StandardScaler(), LogisticRegression())
    ```

    It learns nothing from the data. Spectra (pixels, bands) are seen as single pixels, windows (pixels, bands, height,
    width) as windows, of which the pixel in the middle counts.

    Args:
        model: folder of a model or its name on the Hub, or a model and its image processor.
        wavelengths: band centers of the data in nm (bands,), any sensor's; by default the numbers that name the
            columns of a data frame, or else the model's.
        fwhm: their full widths at half maximum in nm (bands,).
        pooling: `"blocks"` for the features of all spectral blocks side by side, or their `"mean"`.
        brightness: features of spectra as they are (`"kept"`), of spectra scaled to the same brightness (`"equal"`),
            or of `"both"` side by side.
        scale: number in the data that means a reflectance of 1; by default the processor's, 10,000.
        batch_size: pixels that the model sees at once.

    Raises:
        ValueError: at `fit`: there is no such model, or it shares no band with the wavelengths; at `transform`: the
            data have another number or order of bands, numbers that are not finite or mean no data, or another scale.
    """

    def __init__(
        self,
        model: str | Path | tuple[Any, HSSTImageProcessor] = "hsg-aiml/hsst-enmap",
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
        num_bands = self._checked(X).shape[1]
        check_count("batch_size", self.batch_size)
        encoder, processor = load_encoder(self.model)
        self.columns_ = columns = list(X.columns) if hasattr(X, "columns") else None
        named = columns if columns and all(isinstance(name, Real) and float(name) >= 100 for name in columns) else None
        stated = processor.wavelengths if named is None else named
        wavelengths = stated if self.wavelengths is None else as_list("wavelengths", self.wavelengths)
        if wavelengths is None or len(wavelengths) != num_bands:
            known = "none are known" if wavelengths is None else f"there are {len(wavelengths)}"
            raise ValueError(f"wavelengths: expected one for each of the {num_bands} bands of the data, but {known}")
        # Bands of one wavelength, or in another order, are for whole scenes: a spectrum has few that tell the order
        image = np.zeros((num_bands, 1, 1), dtype=np.float32)
        scene = ArrayScene(image, wavelengths, self.fwhm, processor.scale, name="the data")
        centers = np.array(wavelengths, dtype=np.float64)
        if named is not None and np.abs(np.array(named, dtype=np.float64) - centers).max() > 5:
            raise ValueError(f"wavelengths: expected those of the columns of X in their order, {named[:3]}, ...")
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
        data = self._checked(X)
        if data.shape[1] != self.n_features_in_:
            raise ValueError(f"X: expected the {self.n_features_in_} bands of fit, got the shape {data.shape}")
        if self.columns_ is not None and hasattr(X, "columns") and list(X.columns) != self.columns_:
            raise ValueError(f"X: expected the columns of fit in their order, {self.columns_[:3]}, ...")
        data = data.reshape(*data.shape[:2], *(data.shape[2:] or (1, 1)))[:, self.bands_]
        row, column = (side // 2 for side in data.shape[2:])
        features, step = self.features_, max(1, self.batch_size // (data.shape[2] * data.shape[3]))
        processor, scale = features.processor, features.processor.scale if self.scale is None else self.scale
        check_stored(as_numbers(data[:, :, row, column]), scale, processor.nodata, processor.clip_range[1])
        found = np.empty((len(data), features.num_outputs), dtype=np.float32)
        for start in range(0, len(data), step):
            pixels = torch.as_tensor(np.ascontiguousarray(data[start : start + step], dtype=np.float32))
            with torch.inference_mode():
                values, mask = processor.standardize(pixels.to(features.model.device), scale=scale)
                if not mask[:, row, column].all():
                    raise ValueError(f"X: expected spectra with data in every band, got nodata ({processor.nodata})")
                found[start : start + step] = features._run(values, mask)[:, :, row, column].cpu().numpy()
        return found

    @property
    def _n_features_out(self) -> int:
        return self.features_.num_outputs

    @staticmethod
    def _checked(X: Any) -> np.ndarray:
        """Finite numbers (pixels, bands) or (pixels, bands, height, width), if X is such."""
        if np.ma.is_masked(X):
            raise ValueError("X: expected spectra with data in every band, got masked numbers")
        data = np.asarray(X)
        if data.ndim not in (2, 4) or 0 in data.shape[1:]:
            expected = "spectra (pixels, bands) or windows (pixels, bands, height, width)"
            raise ValueError(f"X: expected {expected}, got the shape {data.shape}")
        if data.dtype.kind not in "iuf" or not np.isfinite(data).all():
            got = "NaN or infinity" if data.dtype.kind == "f" else data.dtype
            raise ValueError(f"X: expected finite numbers, got {got}")
        return data

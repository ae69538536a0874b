"""Networks that classify single pixels, with the face of scikit-learn: a 1-D CNN, and an HSST that is fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from hsst.experiments.baselines import BaselineConfig, BaselineModel
from hsst.support.feature_transformer import HSSTFeatures
from hsst.support.few_labels import HEADS
from hsst.support.pretraining import parameter_groups
from modeling_hsst import use_fast_layers

BATCH_SIZE = 32  # pixels, drawn so that each class is as frequent
WEIGHT_DECAY = 0.05


class PixelCNN(nn.Module):
    """The 1-D CNN of Hu et al. (2015), which standardizes spectra by those it is trained on, (pixels, bands)."""

    def __init__(self, spectra: torch.Tensor, numbers: np.ndarray):
        super().__init__()
        config = BaselineConfig(architecture="cnn-1d", num_channels=spectra.shape[1], image_size=1, per_pixel=False)
        config.num_labels = int(numbers.max()) + 1
        self.network = BaselineModel(config)
        self.mean, self.deviation = spectra.mean(dim=0), spectra.std(dim=0).clamp_min(1e-6)

    def forward(self, spectra: torch.Tensor) -> torch.Tensor:
        return self.network(((spectra - self.mean) / self.deviation)[:, :, None, None]).logits

    def loss(self, scores: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(scores, numbers)


class FineTunedHSST(nn.Module):
    """
    The features of an HSST, as `HSSTFeatures` gives them, and a linear head that begins as the ridge classifier of
    frozen ones, its penalty by leaving one out: otherwise few labels bend the encoder before the head knows what it is
    for (Kumar et al. 2022, https://huggingface.co/papers/2202.10054). The loss is the ridge classifier's, too: under
    cross-entropy, the first steps would be about the size of its scores.
    """

    def __init__(
        self, source: str, wavelengths: Sequence[float] | np.ndarray | None, spectra: torch.Tensor, numbers: np.ndarray
    ):
        super().__init__()
        transformer = HSSTFeatures(source, wavelengths, scale=1.0).fit(spectra.numpy())
        self.bands, self.extract = transformer.bands_, transformer.features_
        self.encoder = use_fast_layers(self.extract.model).requires_grad_(True)
        with torch.no_grad():
            features = self.features(spectra).double().numpy()
        rotate = make_pipeline(StandardScaler(), PCA(svd_solver="full"))  # all that a linear head uses, in less time
        seen = rotate.fit_transform(features)
        alphas = [setting["alpha"] for setting in HEADS["ridge"].settings]
        ridge = RidgeClassifierCV(alphas, class_weight="balanced").fit(seen, numbers)
        scaler, rotation = rotate[0], np.atleast_2d(ridge.coef_) @ rotate[1].components_
        weight = rotation / scaler.scale_
        bias = ridge.intercept_ - weight @ scaler.mean_ - rotation @ rotate[1].mean_
        if len(weight) == 1:  # of two classes
            weight, bias = np.concatenate([-weight, weight]), np.concatenate([-bias, bias])
        self.head = nn.Linear(weight.shape[1], len(weight))
        self.head.load_state_dict({"weight": torch.as_tensor(weight), "bias": torch.as_tensor(bias)})

    def features(self, spectra: torch.Tensor) -> torch.Tensor:
        values, mask = self.extract.processor.standardize(spectra[:, self.bands, None, None], scale=1.0)
        return self.extract._run(values, mask)[:, :, 0, 0]

    def forward(self, spectra: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(spectra))

    def loss(self, scores: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(scores, 2.0 * nn.functional.one_hot(numbers, scores.shape[1]) - 1)


class PixelNetwork(ClassifierMixin, BaseEstimator):
    """
    A network trained on few spectra (pixels, bands).

    Args:
        source: folder of an HSST to fine-tune, or its name on the Hub; without one a `PixelCNN`.
        wavelengths: of the bands in nm (bands,), for an HSST.
        learning_rate: at its highest, after a tenth of the steps; then a cosine.
        steps: batches in training.
        seed: of new weights and batches.
    """

    def __init__(
        self,
        source: str | None = None,
        wavelengths: Sequence[float] | np.ndarray | None = None,
        learning_rate: float = 1e-3,
        steps: int = 300,
        seed: int = 0,
    ):
        self.source = source
        self.wavelengths = wavelengths
        self.learning_rate = learning_rate
        self.steps = steps
        self.seed = seed

    def fit(self, spectra: np.ndarray, classes: np.ndarray) -> PixelNetwork:
        self.classes_, numbers = np.unique(classes, return_inverse=True)
        values, targets = torch.as_tensor(spectra, dtype=torch.float32), torch.as_tensor(numbers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.network_: PixelCNN | FineTunedHSST = (
                PixelCNN(values, numbers)
                if self.source is None
                else FineTunedHSST(self.source, self.wavelengths, values, numbers)
            )
        generator = torch.Generator().manual_seed(self.seed)
        shares = 1 / torch.bincount(targets).double()[targets]
        optimizer = torch.optim.AdamW(parameter_groups(self.network_, WEIGHT_DECAY), lr=self.learning_rate)
        schedule = get_cosine_schedule_with_warmup(optimizer, self.steps // 10, self.steps)
        for _ in range(self.steps):
            chosen = torch.multinomial(shares, BATCH_SIZE, replacement=True, generator=generator)
            self.network_.loss(self.network_(values[chosen]), targets[chosen]).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        return self

    @torch.inference_mode()
    def predict(self, spectra: np.ndarray) -> np.ndarray:
        """The class of each spectrum, int64 (pixels,)."""
        parts = torch.as_tensor(spectra, dtype=torch.float32).split(1024)
        scores = torch.cat([self.network_(part) for part in parts])
        return self.classes_[scores.argmax(dim=1).numpy()]

"""Networks that classify single pixels, with the face of scikit-learn: a 1-D CNN, and an HSST that is fine-tuned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from hsst.experiments.baselines import BaselineConfig, BaselineModel
from hsst.support.features import fitted_to_scene, load_encoder
from hsst.support.pretraining import parameter_groups
from modeling_hsst import ArrayScene, HSSTForImageClassification, use_fast_layers
from modeling_hsst.scene_prediction_hsst import select_bands

BATCH_SIZE = 32  # pixels, drawn so that each class is as frequent
LIGHT = 0.2  # deviation of the logarithm of a factor by which fine-tuning changes the brightness of each pixel
WEIGHT_DECAY = 0.05


class PixelNetwork(ClassifierMixin, BaseEstimator):
    """
    A network trained on few spectra (pixels, bands). The head of an HSST begins as the logistic regression on its
    frozen features: otherwise few labels bend the encoder before the head knows what it is for (Kumar et al. 2022,
    https://huggingface.co/papers/2202.10054).

    Args:
        source: folder of an HSST to fine-tune, or its name on the Hub; without one a 1-D CNN (Hu et al. 2015).
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
        generator = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            build = self._cnn if self.source is None else self._hsst
            self.network_, self.prepare_ = build(spectra, len(self.classes_))
        light = 0.0 if self.source is None else LIGHT
        values, targets = torch.as_tensor(spectra, dtype=torch.float32), torch.as_tensor(numbers)
        if self.source is not None:
            self._begin_with_regression(values, numbers)
        shares = 1 / torch.bincount(targets).double()[targets]
        optimizer = torch.optim.AdamW(parameter_groups(self.network_, WEIGHT_DECAY), lr=self.learning_rate)
        schedule = get_cosine_schedule_with_warmup(optimizer, self.steps // 10, self.steps)
        self.network_.train()
        for _ in range(self.steps):
            chosen = torch.multinomial(shares, BATCH_SIZE, replacement=True, generator=generator)
            factors = torch.exp(light * torch.randn(BATCH_SIZE, 1, generator=generator))
            self._outputs(values[chosen] * factors, labels=targets[chosen]).loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        self.network_.eval()
        return self

    @torch.inference_mode()
    def predict(self, spectra: np.ndarray) -> np.ndarray:
        """The class of each spectrum, int64 (pixels,)."""
        parts = torch.as_tensor(spectra, dtype=torch.float32).split(1024)
        logits = torch.cat([self._outputs(part).logits for part in parts])
        return self.classes_[logits.argmax(dim=1).numpy()]

    @torch.no_grad()
    def _begin_with_regression(self, values: torch.Tensor, numbers: np.ndarray) -> None:
        head: Any = self.network_.eval().head
        encoder = self.network_.base_model
        tokens = encoder(self.prepare_(values), interpolate_pos_encoding=True).last_hidden_state
        scaler = StandardScaler()
        features = scaler.fit_transform(head.features(tokens).squeeze(1).double().numpy())
        regression = LogisticRegression(max_iter=300, class_weight="balanced").fit(features, numbers)
        weight, bias = regression.coef_ / scaler.scale_, regression.intercept_
        if len(weight) == 1:  # of two classes
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        head.classifier.weight.copy_(torch.as_tensor(weight))
        head.classifier.bias.copy_(torch.as_tensor(bias - weight @ scaler.mean_))

    def _outputs(self, spectra: torch.Tensor, **labels: torch.Tensor) -> Any:
        # A single pixel is another window than the one an HSST was pre-trained on
        given = {} if self.source is None else {"interpolate_pos_encoding": True}
        return self.network_(self.prepare_(spectra), **given, **labels)

    def _cnn(
        self, spectra: np.ndarray, num_classes: int
    ) -> tuple[PreTrainedModel, Callable[[torch.Tensor], torch.Tensor]]:
        """A network and what standardizes spectra (pixels, bands) for it, as windows of a pixel."""
        config = BaselineConfig(
            architecture="cnn-1d",
            num_channels=spectra.shape[1],
            image_size=1,
            per_pixel=False,
        )
        config.num_labels = num_classes
        mean, deviation = (torch.as_tensor(of(spectra, axis=0), dtype=torch.float32) for of in (np.mean, np.std))
        deviation = deviation.clamp_min(1e-6)
        return BaselineModel(config), lambda values: ((values - mean) / deviation)[:, :, None, None]

    def _hsst(
        self, spectra: np.ndarray, num_classes: int
    ) -> tuple[PreTrainedModel, Callable[[torch.Tensor], torch.Tensor]]:
        scene = ArrayScene(np.zeros((spectra.shape[1], 1, 1), dtype=np.float32), self.wavelengths, None)
        encoder, processor = fitted_to_scene(*load_encoder(str(self.source)), scene)
        bands = select_bands(scene, processor, encoder.config.num_channels, False).bands
        config = deepcopy(encoder.config)
        config.num_labels, config.head_type = num_classes, "concat"
        network = HSSTForImageClassification(config)
        network.hsst.load_state_dict(encoder.state_dict())

        def prepare(values: torch.Tensor) -> torch.Tensor:
            return processor.standardize(values[:, bands, None, None], scale=1.0)[0]

        return use_fast_layers(network), prepare

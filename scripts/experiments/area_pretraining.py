"""Masked pre-training on the training area of labelled scenes, without its labels: small, in this process, no files.

For comparisons that need a pre-trained model for every area, mask type or mask ratio. `scripts/run_mim.py` is the
command for tiles and products, with resuming, several processes and figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup, set_seed

from datasets_loading.labelled_data import LabelledData
from datasets_loading.splits import box_counts
from hsst.support.fine_tuning import AreaTensors, has_diverged, turn_window
from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling, HSSTImageProcessor, use_fast_layers

WEIGHT_DECAY = 0.05
MAX_GRAD_NORM = 1.0
WARMUP_SHARE = 0.05
LOSS_STEPS = 50
"""The loss that is reported is the mean of so many last steps."""


@dataclass(frozen=True)
class PretrainingSettings:
    """How a model is pre-trained on an area: AdamW, a cosine after a warm-up, by default at the published rate.

    Attributes:
        steps: optimisation steps.
        batch_size: windows in a step.
        learning_rate: the highest one.
        seed: of weights, windows, turns and masks.
        use_cpu: stay on the CPU.
    """

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 8e-3
    seed: int = 0
    use_cpu: bool = False

    def __post_init__(self) -> None:
        for name, minimum in (("steps", 1), ("batch_size", 1), ("learning_rate", 0)):
            if not getattr(self, name) >= minimum:
                raise ValueError(f"--pretraining_{name}: expected at least {minimum}, got {getattr(self, name)}")


def pretrain_on_area(
    data: LabelledData,
    config: HSSTConfig,
    processor: HSSTImageProcessor,
    bands: Sequence[int],
    settings: PretrainingSettings,
    *,
    progress: bool = False,
) -> tuple[HSSTForMaskedImageModeling, float]:
    """Pre-trains a model from scratch on the pixels of the training area, labelled or not.

    All other pixels are hidden in every window, those in no split too: nothing of the test area, or of the buffer
    around it, is seen.

    Args:
        data: scenes with their split.
        config: of the model; its windows are square and its bands are `bands` of the scenes.
        processor: standardises.
        bands: band indices in the scenes.
        settings: how to train.
        progress: show a progress bar.

    Returns:
        The model on the CPU, in evaluation mode, and the mean absolute error of hidden values (in standard deviations
        of their band) over the last `LOSS_STEPS` steps.

    Raises:
        ValueError: the training area has no pixel with data, or training diverged.
    """
    area = AreaTensors.of(data, "train", processor, bands, config.window_size[0])
    # The model hides what is not valid; fine-tuning lets the buffer be seen, which belongs to no split
    area = replace(area, pixel_mask=area.own)
    corners = training_corners(area)
    device = torch.device("cuda" if torch.cuda.is_available() and not settings.use_cpu else "cpu")
    set_seed(settings.seed)
    generator = np.random.default_rng(settings.seed)
    model: Any = use_fast_layers(HSSTForMaskedImageModeling(config).to(device))  # type: ignore[arg-type]
    model.train()
    plain = ("bias", "_embeddings", "mask_token")
    decayed = {name for name, p in model.named_parameters() if p.ndim > 1 and not name.endswith(plain)}
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in model.named_parameters() if (name in decayed) == decays], "weight_decay": decay}
        for decays, decay in ((True, WEIGHT_DECAY), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
    warmup_steps = round(WARMUP_SHARE * settings.steps)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup_steps, settings.steps)
    losses: list[float] = []
    for _ in tqdm(range(settings.steps), desc="pre-training", unit="step", disable=not progress, leave=False):
        batch = area.windows(corners[generator.integers(len(corners), size=settings.batch_size)], "dense")
        turns = generator.integers(8, size=settings.batch_size).tolist()
        values, mask = (
            torch.stack([turn_window(window, turn) for window, turn in zip(batch[name], turns, strict=True)])
            for name in ("pixel_values", "pixel_mask")
        )
        loss = model(values.to(device), pixel_mask=mask.to(device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
    last = float(np.mean(losses[-LOSS_STEPS:]))
    if has_diverged(model, last):
        raise ValueError(
            f"--pretraining_learning_rate: expected one with a finite loss, got {settings.learning_rate} (diverged)"
        )
    return model.cpu().eval(), last


def training_corners(area: AreaTensors) -> np.ndarray:
    """Corners of all windows that lie in the training area wholly; where none does, of all that hold a pixel of it.

    Returns:
        Number of the tensor, row and column of the upper left pixel, int64 (windows, 3).

    Raises:
        ValueError: the area has no pixel with data.
    """
    size = area.window_size
    counts = [box_counts(own.numpy(), 0, size - 1) for own in area.own]
    for least in (size**2, 1):
        found = [
            # A window that reaches beyond the margin of its tensor cannot be cut
            np.insert(
                np.argwhere(count[: len(count) - size + 1, : count.shape[1] - size + 1] >= least), 0, number, axis=1
            )
            for number, count in enumerate(counts)
        ]
        corners = np.concatenate(found).astype(np.int64)
        if len(corners):
            return corners
    raise ValueError("expected training pixels with data, got none")

"""What every pre-training shares: which weights decay, which masks follow from which seed, and a watch on losses."""

from __future__ import annotations

import json
import math
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling_hsst import HSSTConfig, draw_mask
from modeling_hsst.image_processing_hsst import holds_data


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters for an optimizer: weight decay for matrices, none for biases, norms, tokens and positions."""
    named = list(model.named_parameters())
    decays = {name: parameter.ndim > 1 and not name.endswith(("bias", "_embeddings")) for name, parameter in named}
    return [
        {"params": [parameter for name, parameter in named if decays[name]], "weight_decay": weight_decay},
        {"params": [parameter for name, parameter in named if not decays[name]], "weight_decay": 0.0},
    ]


def step_seed(seed: int, step: int, process: int = 0) -> int:
    """Seed of all that is random in one step on one process (masks, dropout), so that a resumed run draws the same."""
    return int(np.random.SeedSequence((seed, step, process)).generate_state(1, np.uint32)[0])


def masks_for(config: HSSTConfig, batch_size: int, seed: int, mask_type: str | None = None) -> torch.Tensor:
    """Masks from a seed, of the configuration's kind or another, bool (batch_size, tokens)."""
    return draw_mask(
        batch_size,
        config.num_blocks,
        config.grid_size,
        mask_type=mask_type or config.mask_type,
        mask_ratio=config.mask_ratio,
        mask_patch_size=config.mask_patch_size,
        generator=torch.Generator().manual_seed(seed),
    )


def in_other_light(pixels: torch.Tensor, nodata: int, spread: float) -> torch.Tensor:
    """
    Windows of stored numbers (windows, bands, rows, columns), each times a factor of its own, as under other
    illumination; pixels without data stay so. `spread` is the standard deviation of the factor's logarithm.
    """
    factor = torch.exp(spread * torch.randn(len(pixels), 1, 1, 1)).to(pixels.device)
    return torch.where(holds_data(pixels, nodata), pixels * factor, pixels.float())


class FiniteWatch:
    """
    Says of each step whether its loss and its gradient were finite. On a GPU it says so when the next one is under
    way, so that the GPU need not wait for an answer. Gradients that are `scaled` (float16) may be infinite.
    """

    def __init__(self, device: torch.device, scaled: bool = False):
        self.device, self.scaled = device, scaled
        self._waiting: deque[tuple[Any, torch.Tensor, int, Any]] = deque()

    def add(self, step: int, loss: torch.Tensor, gradient_norm: torch.Tensor, of: Any) -> None:
        """Looks at a step; `of` is kept to be given back by `first_bad`."""
        figures = torch.stack([loss.detach().float(), (loss if self.scaled else gradient_norm).detach().float()])
        event = None
        if self.device.type == "cuda":
            on_host = torch.empty(2, pin_memory=True)
            on_host.copy_(figures, non_blocking=True)
            figures, event = on_host, torch.cuda.Event()
            event.record()
        self._waiting.append((event, figures, step, of))

    def first_bad(self, wait: bool = False) -> tuple[int, str, Any] | None:
        """
        The first step that was not finite, what it had in place, and what it was a step of; None where all were. With
        `wait`, the last step is waited for, too.
        """
        while len(self._waiting) > (self.device.type == "cuda" and not wait):
            event, figures, step, of = self._waiting.popleft()
            if event is not None:
                event.synchronize()
            loss, norm = figures.tolist()
            if not math.isfinite(loss) or not math.isfinite(norm):
                found = f"a gradient of norm {norm}" if math.isfinite(loss) else f"the loss {loss}"
                return step, found, of
        return None


def masked_loss(
    model: Any, config: HSSTConfig, values: torch.Tensor, valid: torch.Tensor, seed: int, mask_type: str | None = None
) -> torch.Tensor:
    """
    Loss of a masked model on standardized windows (windows, bands, rows, columns), `valid` (windows, rows, columns)
    where they hold data. Masks of `mask_type` follow from the seed; without it the model draws the configuration's.
    """
    masks: dict[str, Any] = {}
    if mask_type is not None:
        drawn = masks_for(config, len(values), seed, mask_type=mask_type).to(values.device)
        masks = {"bool_masked_pos": drawn, "mask_type": mask_type}
    return model(values, pixel_mask=valid, **masks).loss


def earlier_run(checkpoint: str | None) -> dict[str, Any]:
    """What `all_results.json` beside a checkpoint says of its training, as `earlier`; nothing where there is none."""
    path = Path(checkpoint or "") / "all_results.json"
    if not checkpoint or not path.is_file():
        return {}
    return {"earlier": json.loads(path.read_text(encoding="utf-8"))}

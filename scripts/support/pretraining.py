"""What every pre-training shares: which weights decay, which masks are drawn from which seed, and other light."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling_hsst import HSSTConfig, draw_mask


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


def masks_for(
    config: HSSTConfig,
    batch_size: int,
    seed: int,
    device: torch.device | str = "cpu",
    mask_type: str | None = None,
) -> torch.Tensor:
    """Masks from a seed, of the configuration's kind or another, bool (batch_size, tokens)."""
    return draw_mask(
        batch_size,
        config.num_blocks,
        config.grid_size,
        mask_type=mask_type or config.mask_type,
        mask_ratio=config.mask_ratio,
        mask_patch_size=config.mask_patch_size,
        device=device,
        generator=torch.Generator(device).manual_seed(seed),
    )


def kind_of_step(mask_types: list[str], seed: int) -> str:
    """The kind of masks of a step, which follows from its seed."""
    return mask_types[seed % len(mask_types)]


def in_other_light(pixels: torch.Tensor, nodata: int, spread: float) -> torch.Tensor:
    """
    Windows of stored numbers (windows, bands, rows, columns), each times a factor of its own, as under other
    illumination; pixels without data stay so.

    Args:
        pixels: stored numbers.
        nodata: stored number of a pixel without data.
        spread: standard deviation of the factor's logarithm.
    """
    factor = torch.exp(spread * torch.randn(len(pixels), 1, 1, 1)).to(pixels.device)
    return torch.where(pixels == nodata, pixels.float(), pixels * factor)


def earlier_run(checkpoint: str | None) -> dict[str, Any]:
    """What `all_results.json` beside a checkpoint says of its training, as `earlier`; nothing where there is none."""
    path = Path(checkpoint or "") / "all_results.json"
    if not checkpoint or not path.is_file():
        return {}
    return {"earlier": json.loads(path.read_text(encoding="utf-8"))}

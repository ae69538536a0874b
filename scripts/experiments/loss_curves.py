"""The same training in every precision: losses that lie on each other say that speed was not bought with accuracy."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from datasets_loading.enmap_corpus import read_corpus
from datasets_loading.shards import is_corpus
from datasets_loading.tiles import read_tile_set
from datasets_loading.windows import RandomWindows
from hsst.experiments.plain_reference import plain_reference
from hsst.experiments.speed import describe
from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling, HSSTImageProcessor, draw_mask

CURVES: dict[str, dict[str, Any]] = {
    "plain reference, float32": {"plain": True},
    "float32": {},
    "float32, compiled": {"compiled": True},
    "bfloat16": {"precision": torch.bfloat16},
}


def measure_curves(
    train_dir: Path,
    settings: dict[str, Any],
    device: torch.device,
    *,
    num_steps: int = 500,
    batch_size: int = 8,
    tile_size: int = 64,
    learning_rate: float = 1e-3,
) -> dict[str, Any]:
    """
    Trains the same model from the same seed on the same windows and masks, once in each way of `CURVES`.

    Args:
        train_dir: folder of EnMAP products, GeoTIFF tiles or shards.
        settings: of `HSSTConfig`, where they differ from the published ones; dropout stays off.
        device: where.
        num_steps: of AdamW, with a warm-up of a twentieth of them.
        batch_size: windows in a step.
        tile_size: side of the tiles cut from products, in pixels.
        learning_rate: after the warm-up.

    Returns:
        The losses of every step, and what was measured on.

    Raises:
        ValueError: the tiles have not as many bands with data as the configuration.
    """
    tiles = read_corpus(train_dir) if is_corpus(train_dir) else read_tile_set(train_dir, tile_size)
    bands = np.flatnonzero(tiles.valid_bands)
    settings = {"num_channels": len(bands)} | settings
    if settings["num_channels"] > len(bands):
        raise ValueError(
            f"{train_dir}: expected tiles with data in {settings['num_channels']} bands, got {len(bands)}"
        )
    bands = bands[: settings["num_channels"]]
    config = HSSTConfig(**settings)
    low, high = HSSTImageProcessor.clip_range
    mean, std = (values[bands] for values in tiles.band_statistics(low, high))
    processor = HSSTImageProcessor(
        image_mean=mean.tolist(), image_std=np.maximum(std, 1e-4).tolist(), scale=tiles.scale, nodata=tiles.nodata
    )
    windows = RandomWindows(tiles, config.window_size, bands=bands.tolist(), seed=0)
    batches = training_batches(windows, batch_size, num_steps)
    losses = {
        name: _losses(config, batches, processor, device, learning_rate, name, **options)
        for name, options in CURVES.items()
    }
    return {
        "settings": settings,
        "num_steps": num_steps,
        "batch_size": batch_size,
        "machine": describe(device),
        "losses": losses,
    }


def training_batches(windows: RandomWindows, batch_size: int, num_steps: int) -> list[torch.Tensor]:
    """So many batches of stored numbers (batch_size, bands, height, width), epoch after epoch."""
    if len(windows) < batch_size:
        raise ValueError(f"expected at least the {batch_size} windows of a batch, got {len(windows)}")
    batches: list[torch.Tensor] = []
    epoch = 0
    while len(batches) < num_steps:
        windows.set_epoch(epoch)
        order = torch.Generator().manual_seed(epoch)
        loader = DataLoader(windows, batch_size, shuffle=True, drop_last=True, generator=order)
        batches += [batch["pixels"] for batch in loader]
        epoch += 1
    return batches[:num_steps]


def _losses(
    config: HSSTConfig,
    batches: list[torch.Tensor],
    processor: HSSTImageProcessor,
    device: torch.device,
    learning_rate: float,
    name: str,
    *,
    plain: bool = False,
    compiled: bool = False,
    precision: torch.dtype | None = None,
) -> list[float]:
    torch.manual_seed(0)
    ours = HSSTForMaskedImageModeling(config)
    model = nn.Module.to(plain_reference(ours) if plain else ours, device).train()
    if compiled:
        model.compile(fullgraph=True, dynamic=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
    warmup = max(1, len(batches) // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup))
    losses = []
    for number, batch in enumerate(tqdm(batches, desc=name, unit="step")):
        pixel_values, _ = processor.standardize(batch.to(device))
        mask = draw_mask(
            len(batch),
            config.num_blocks,
            config.grid_size,
            mask_type=config.mask_type,
            mask_ratio=config.mask_ratio,
            mask_patch_size=config.mask_patch_size,
            generator=torch.Generator().manual_seed(number),
        ).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision is not None):
            outputs = model(pixel_values, bool_masked_pos=mask)
        loss = outputs[0] if plain else outputs.loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def plot_curves(path: Path, result: dict[str, Any]) -> Path:
    """The losses over each other, and below how far they are from those of the first curve, smoothed."""
    from matplotlib.figure import Figure

    def smoothed(values: list[float]) -> np.ndarray:
        span = max(1, min(20, len(values) // 5))
        return np.convolve(values, np.ones(span) / span, mode="valid")

    figure = Figure(figsize=(8, 6), layout="constrained")
    upper, lower = figure.subplots(2, height_ratios=(3, 1), sharex=True)
    reference = next(iter(result["losses"].values()))
    styles = ("-", "--", ":", "-.")
    for number, (name, losses) in enumerate(result["losses"].items()):
        line = {"linestyle": styles[number % 4], "linewidth": 3.2 - 0.7 * number, "color": f"C{number}"}
        values = smoothed(losses)
        steps = np.arange(len(values)) + len(losses) - len(values) + 1
        upper.plot(steps, values, label=name, **line)
        lower.plot(steps, smoothed((np.array(losses) - reference).tolist()), **line)
    upper.set_ylabel("training loss\n(standard deviations of the band)")
    upper.legend()
    lower.set_ylabel("difference")
    lower.set_xlabel(f"step of {result['batch_size']} windows (mean of the last {len(losses) - len(values) + 1})")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    upper.set_title(f"The same training in every precision: {result['machine']['device']}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    return path

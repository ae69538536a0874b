"""How good a reconstruction is, beside predictors that need no training."""

import torch

from .configuration_hsst import HSSTConfig
from .modeling_hsst import (
    bands_to_blocks,
    block_band_index,
    blocks_to_bands,
    pixels_to_tokens,
    tokens_to_pixels,
)


def hidden_values(bool_masked_pos: torch.Tensor, pixel_values: torch.Tensor, config: HSSTConfig) -> torch.Tensor:
    """
    True (batch, bands, height, width) at the values that a mask (batch, tokens) hides: in every block that holds them,
    and in one at least.
    """
    band_index = block_band_index(config)
    band_index = None if band_index is None else band_index.to(pixel_values.device)
    in_blocks = bands_to_blocks(pixel_values, band_index)
    tokens = pixels_to_tokens(in_blocks, config.band_patch_size, config.patch_size)
    mask = bool_masked_pos.bool().reshape(*tokens.shape[:3], 1).expand_as(tokens)
    grid_size = pixel_values.shape[-2] // config.patch_size, pixel_values.shape[-1] // config.patch_size
    hidden = tokens_to_pixels(mask, in_blocks.shape[1], grid_size, config.patch_size)
    return blocks_to_bands(hidden.float(), band_index, config.num_channels) == 1


def visible_band_mean(pixel_values: torch.Tensor, hidden: torch.Tensor, pixel_mask: torch.Tensor) -> torch.Tensor:
    """
    Predicts each value (batch, bands, height, width) as the mean of the window's visible values of the same band, and
    where a band is hidden altogether as its mean over the training data, which is 0 after standardising.
    """
    visible = (~hidden & pixel_mask.bool().unsqueeze(1)).to(pixel_values.dtype)
    sums = (pixel_values * visible).sum(dim=(2, 3), keepdim=True)
    return (sums / visible.sum(dim=(2, 3), keepdim=True).clamp(min=1.0)).expand_as(pixel_values)


def absolute_error_sums(
    pixel_values: torch.Tensor,
    reconstruction: torch.Tensor,
    bool_masked_pos: torch.Tensor,
    pixel_mask: torch.Tensor,
    config: HSSTConfig,
) -> torch.Tensor:
    """
    Sums over the hidden, valid values of a batch, float64 (4,): absolute errors of the model, of the band's mean over
    the training data and of the mean of the visible tokens of the same band, and the number of values.
    """
    hidden = hidden_values(bool_masked_pos, pixel_values, config)
    scored = (hidden & pixel_mask.bool().unsqueeze(1)).double()
    predictions = (reconstruction, torch.zeros_like(pixel_values), visible_band_mean(pixel_values, hidden, pixel_mask))
    sums = [((prediction - pixel_values).abs().double() * scored).sum() for prediction in predictions]
    return torch.stack([*sums, scored.sum()])


__all__ = ["absolute_error_sums", "hidden_values", "visible_band_mean"]

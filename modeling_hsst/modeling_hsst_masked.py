# Copyright 2026 The HSST authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
PyTorch HSST model for masked image modeling: masks, the layout of visible tokens, and the decoder.

Unit, block and tube masks follow Scheibenreif et al. (2023), with exact counts wherever the grid of positions allows;
grid masks leave a random subset of positions times a random subset of spectral blocks visible, so that the visible
tokens still form a full grid. Even masks are unit masks that leave the same number of tokens visible in every block,
and at every position, so that an encoder of visible tokens has sequences of one length. Shapes are named as in
`modeling_hsst`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, MaskedImageModelingOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple

from .configuration_hsst import MASK_TYPES, HSSTConfig
from .modeling_hsst import (
    HSSTEmbeddings,
    HSSTLayer,
    HSSTModel,
    HSSTPositionEmbeddings,
    HSSTPreTrainedModel,
    bands_to_blocks,
    block_band_index,
    blocks_to_bands,
    blockwise_linear,
    expand_over_blocks,
    gather_tokens,
    hide_nodata,
    pixels_to_tokens,
    tokens_to_pixels,
    valid_positions,
)

COUNTED_MASK_TYPES = ("even", "tube", "grid")
"""Those whose visible tokens are as many in every visible block, and at every visible position."""


def draw_mask(
    batch_size: int,
    num_blocks: int,
    grid_size: tuple[int, int],
    *,
    mask_type: str,
    mask_ratio: float,
    mask_patch_size: int = 1,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """
    Draws a mask for each window of a batch, True where a token is hidden: bool (batch_size, num_blocks * rows *
    columns), in block-major order. `generator` is the source of randomness on `device` (PyTorch's default one).

    Args:
        batch_size, num_blocks, grid_size: windows, spectral blocks, and rows and columns of positions.
        mask_type: one of `MASK_TYPES`.
        mask_ratio: share of the tokens to hide; the mask type's nearest count is hidden, never none and never all.
        mask_patch_size: side of the squares of block and tube masks, in positions.

    Raises:
        ValueError: the grid is not divisible by the squares, the mask ratio is not between 0 and 1, there is no token
            to hide beside a visible one, an even mask cannot be made on the grid, or the mask type is unknown.
    """
    if not 0 < mask_ratio < 1:
        raise ValueError(f"`mask_ratio` must lie between 0 and 1 (exclusive), got {mask_ratio}.")
    rows, columns = grid_size
    num_positions = rows * columns
    draw: dict[str, Any] = {"device": device, "generator": generator}

    def random_subset(subset_size: int | torch.Tensor, *shape: int) -> torch.Tensor:
        """True at `subset_size` random places along the last of the dimensions (batch_size, *shape)."""
        order = torch.rand(batch_size, *shape, **draw).argsort(dim=-1).argsort(dim=-1)
        return order < subset_size

    if mask_type == "unit":
        num_tokens = num_blocks * num_positions
        return random_subset(nearest_count(num_tokens, mask_ratio), num_tokens)

    if mask_type == "even":
        visible_blocks, _ = visible_evenly(num_blocks, num_positions, mask_ratio)
        # Groups of positions deal all blocks out among themselves, each position getting as many
        hands = torch.rand(batch_size, num_positions * visible_blocks // num_blocks, num_blocks, **draw).argsort(-1)
        order = torch.rand(batch_size, num_positions, **draw).argsort(-1)[:, :, None].expand(-1, -1, visible_blocks)
        hands = hands.reshape(batch_size, num_positions, visible_blocks).gather(1, order)
        hidden = torch.ones(batch_size, num_positions, num_blocks, dtype=torch.bool, device=device)
        return hidden.scatter(2, hands, False).transpose(1, 2).flatten(1)

    if mask_type in ("block", "tube"):
        if rows % mask_patch_size or columns % mask_patch_size:
            raise ValueError(
                f"Masks of type {mask_type!r} need a grid of positions divisible by `mask_patch_size`, got "
                f"{rows}x{columns} positions and squares of {mask_patch_size}x{mask_patch_size}."
            )
        square_rows, square_columns = rows // mask_patch_size, columns // mask_patch_size
        num_squares = square_rows * square_columns
        if mask_type == "tube":
            squares = random_subset(nearest_count(num_squares, mask_ratio), 1, num_squares)
            squares = squares.expand(-1, num_blocks, -1)
        else:
            # Every block hides the same number of squares, and random ones of them one more, so that the sum is exact
            per_block, remainder = divmod(nearest_count(num_blocks * num_squares, mask_ratio), num_blocks)
            hidden_in_block = per_block + random_subset(remainder, num_blocks).long()
            squares = random_subset(hidden_in_block.unsqueeze(-1), num_blocks, num_squares)
        squares = squares.reshape(batch_size, num_blocks, square_rows, square_columns)
        return squares.repeat_interleave(mask_patch_size, 2).repeat_interleave(mask_patch_size, 3).flatten(1)

    if mask_type == "grid":
        visible_blocks, visible_positions = visible_grid(num_blocks, num_positions, mask_ratio)
        blocks = random_subset(visible_blocks, num_blocks)
        positions = random_subset(visible_positions, num_positions)
        return ~(blocks.unsqueeze(2) & positions.unsqueeze(1)).flatten(1)

    raise ValueError(f"`mask_type` must be one of {', '.join(MASK_TYPES)}, got {mask_type!r}.")


def nearest_count(total: int, ratio: float) -> int:
    """The count nearest to `ratio * total` that leaves at least one hidden and one visible."""
    if total < 2:
        raise ValueError(f"A mask needs at least 2 units to hide one and show one, got {total}.")
    return min(max(round(ratio * total), 1), total - 1)


def visible_counts(
    num_blocks: int, grid_size: tuple[int, int], *, mask_type: str, mask_ratio: float, mask_patch_size: int = 1
) -> tuple[int, int]:
    """
    How many blocks and how many positions a tube or grid mask (see `draw_mask`) leaves visible; of an even mask, how
    many blocks at each position and how many positions in each block. Raises ValueError for masks of other types.
    """
    rows, columns = grid_size
    if mask_type == "even":
        return visible_evenly(num_blocks, rows * columns, mask_ratio)
    if mask_type == "tube":
        squares = (rows // mask_patch_size) * (columns // mask_patch_size)
        return num_blocks, (squares - nearest_count(squares, mask_ratio)) * mask_patch_size**2
    if mask_type == "grid":
        return visible_grid(num_blocks, rows * columns, mask_ratio)
    raise ValueError(
        f"Visible tokens are as many everywhere under masks of type {', '.join(COUNTED_MASK_TYPES)} only, got "
        f"{mask_type!r}."
    )


def visible_evenly(num_blocks: int, num_positions: int, mask_ratio: float) -> tuple[int, int]:
    """
    How many blocks an even mask leaves visible at each position, and how many positions in each block: a number of
    blocks that divides them, the one nearest to the asked share. Raises ValueError where there is none.
    """
    divisors = [count for count in range(1, num_blocks) if num_blocks % count == 0]
    counts = [count for count in divisors if num_positions * count % num_blocks == 0]
    if not counts:
        raise ValueError(
            f"Even masks need a number of positions that shares the blocks out, got {num_positions} positions and "
            f"{num_blocks} blocks; masks of type unit fit any."
        )
    visible = min(counts, key=lambda count: abs(count / num_blocks - (1 - mask_ratio)))
    return visible, num_positions * visible // num_blocks


def visible_grid(num_blocks: int, num_positions: int, mask_ratio: float) -> tuple[int, int]:
    """
    How many blocks and how many positions a grid mask leaves visible. Both are thinned about equally (by the square
    root of the visible share); among nearly even ways the one whose product is nearest to the asked share is taken.
    """
    num_tokens = num_blocks * num_positions
    wanted = num_tokens - nearest_count(num_tokens, mask_ratio)
    even = num_blocks * (wanted / num_tokens) ** 0.5
    best: tuple[float, float, int, int] | None = None
    for blocks in range(max(1, int(0.8 * even)), min(num_blocks, int(1.25 * even) + 1) + 1):
        positions = min(max(round(wanted / blocks), 1), num_positions)
        if blocks * positions == num_tokens:
            positions -= 1
        if positions < 1:
            continue
        candidate = (abs(blocks * positions - wanted), abs(blocks - even), blocks, positions)
        best = candidate if best is None else min(best, candidate)
    if best is None:
        raise ValueError(f"No grid of {num_blocks} blocks and {num_positions} positions hides {mask_ratio:.0%}.")
    return best[2], best[3]


@dataclass
class VisibleTokens:
    """The visible tokens of masks (B, T), laid out for spatial and for spectral layers."""

    mask: torch.Tensor  # True (B, N, P) where a token is visible
    # Places (B, visible) among all tokens, in the order in which an encoder returns them
    last_index: torch.Tensor
    # Places (B, n * p) of n blocks with p visible positions each; None where their numbers differ, so that all tokens
    # are computed and hidden ones kept out of the attention
    spatial_index: torch.Tensor | None = None
    # Where in `spatial_index` the tokens of spectral layers lie, m blocks times q positions (B, m * q); None: in order
    spectral_order: torch.Tensor | None = None
    spatial_blocks: int = 0  # n
    spectral_blocks: int = 0  # m

    @classmethod
    def of(cls, mask: torch.Tensor, counts: tuple[int, int] | None, in_grid: bool) -> "VisibleTokens":
        """
        Lays out the tokens of a mask (B, N, P) with the `counts` of `visible_counts`, None for masks of other types.
        `in_grid` says that they are those of some blocks at some positions, as in tube and grid masks.
        """
        num_positions = mask.shape[2]
        if counts is None:
            # As many places as the window with the most visible tokens needs; the others repeat their first one
            flat = mask.flatten(1)
            order = flat.byte().argsort(dim=1, descending=True, stable=True)[:, : int(flat.sum(1).max())]
            return cls(mask, torch.where(flat.gather(1, order), order, order[:, :1]))
        num_blocks, per_block = counts
        if in_grid:
            # Visible ones first, in their order
            blocks = mask.any(dim=2).byte().argsort(dim=1, descending=True, stable=True)[:, :num_blocks]
            positions = mask.any(dim=1).byte().argsort(dim=1, descending=True, stable=True)[:, :per_block]
            index = (blocks[:, :, None] * num_positions + positions[:, None, :]).flatten(1)
            return cls(mask, index, index, None, num_blocks, num_blocks)
        positions = mask.byte().argsort(dim=2, descending=True, stable=True)[:, :, :per_block]  # (B, N, p)
        first = torch.arange(mask.shape[1], device=mask.device)[:, None] * num_positions
        spatial_index = (first + positions).flatten(1)
        # The place of each token among those of the spatial layers
        places = mask.flatten(1).cumsum(dim=1) - 1
        blocks = mask.transpose(1, 2).byte().argsort(dim=2, descending=True, stable=True)[:, :, :num_blocks]
        columns = torch.arange(num_positions, device=mask.device)
        last_index = (blocks.transpose(1, 2) * num_positions + columns).flatten(1)  # (B, m * P)
        return cls(mask, last_index, spatial_index, places.gather(1, last_index), mask.shape[1], num_blocks)


class HSSTHiddenTokens(nn.Module):
    """
    Puts encoded visible tokens `(batch_size, visible_tokens, hidden_size)` at their places among all tokens
    `(batch_size, tokens, decoder_hidden_size)`, a mask token at all others, and says where each lies.
    """

    def __init__(self, config: HSSTConfig):
        super().__init__()
        self.config = config
        width = config.decoder_hidden_size or config.hidden_size
        self.projection = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        # CODEPATH: positions of a decoder start from sin-cos tables; those of wavelengths stay as they are
        kind = config.position_embedding_type if config.encodes_wavelengths else "sincos"
        self.position_embeddings = HSSTPositionEmbeddings(config, width, kind)

    def forward(self, hidden_states: torch.Tensor, index: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
        hidden_states = self.projection(hidden_states)
        num_tokens = self.config.num_blocks * grid_size[0] * grid_size[1]
        tokens = self.mask_token.to(hidden_states.dtype).expand(hidden_states.shape[0], num_tokens, -1)
        tokens = tokens.scatter(1, index.unsqueeze(2).expand_as(hidden_states), hidden_states)
        return tokens + self.position_embeddings(grid_size).flatten(1, 2).to(hidden_states.dtype)


class HSSTPixelDecoder(nn.Module):
    """
    Maps tokens `(batch_size, tokens, width)` to the values of their bands and pixels `(batch_size, num_blocks,
    num_positions, values)`: one linear layer for each spectral block or one for all, after `num_decoder_layers` pairs
    of a spatial and a spectral layer.
    """

    def __init__(self, config: HSSTConfig):
        super().__init__()
        self.config = config
        num_values = config.band_patch_size * config.patch_size**2
        # CODEPATH: the published checkpoint decodes blockwise; False is the paper's shared decoder
        num_projections = config.num_blocks if config.blockwise_decoder else 1
        width, num_heads = config.hidden_size, config.num_attention_heads
        # CODEPATH: a decoder of visible tokens may be narrower than the encoder
        if config.visible_only:
            width, num_heads = config.decoder_hidden_size or width, config.decoder_num_attention_heads or num_heads
        axes = ("spatial", "spectral") * config.decoder_depth
        self.layers = nn.ModuleList([HSSTLayer(config, axis, width, num_heads) for axis in axes])
        self.weight = nn.Parameter(torch.empty(num_projections, num_values, width))
        self.bias = nn.Parameter(torch.empty(num_projections, num_values))

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, places: torch.Tensor | None = None
    ) -> torch.Tensor:
        num_blocks = self.config.num_blocks
        for layer in self.layers:
            mask = attention_mask if layer.axis == "spatial" else None
            hidden_states = layer(hidden_states, mask, num_blocks=num_blocks, places=places)
        return blockwise_linear(hidden_states.unflatten(1, (num_blocks, -1)), self.weight, self.bias)


@auto_docstring(custom_intro="Output of masked image modeling.")
@dataclass
class HSSTForMaskedImageModelingOutput(MaskedImageModelingOutput):
    r"""
    loss (`torch.FloatTensor` of shape `(1,)`):
        Mean absolute error over the valid values of the masked tokens.
    reconstruction (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
        The decoder's values of all tokens, masked or not.
    bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, num_blocks * num_positions)`):
        The mask that was used, given or drawn.
    """

    bool_masked_pos: torch.Tensor | None = None


@auto_docstring(
    custom_intro="""
    HSST with a decoder on top for masked image modeling. As published, in the manner of
    [SimMIM](https://huggingface.co/papers/2111.09886): all tokens, masked or not, pass the encoder, and the decoder is
    linear. With `visible_only`, in the manner of [MAE](https://huggingface.co/papers/2111.06377): only visible tokens
    pass the encoder, and layers of the decoder fill the others in.
    """
)
class HSSTForMaskedImageModeling(HSSTPreTrainedModel):
    def __init__(self, config: HSSTConfig):
        super().__init__(config)
        # CODEPATH: where only visible tokens are encoded the mask token belongs to the decoder
        self.hsst = HSSTModel(config, use_mask_token=not config.visible_only)
        # Embeddings are dropped in fine-tuning only, as published
        self.hsst.embeddings.dropout = nn.Identity()
        # CODEPATH: published models encode all tokens; visible_only is the fast way
        self.hidden_tokens = HSSTHiddenTokens(config) if config.visible_only else None
        self.decoder = HSSTPixelDecoder(config)
        # Initialize weights and apply final processing
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize the weights"""
        super()._init_weights(module)
        if isinstance(module, HSSTPixelDecoder):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, HSSTHiddenTokens):
            init.normal_(module.mask_token, mean=0.0, std=self.config.initializer_range)

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        mask_type: str | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> HSSTForMaskedImageModelingOutput:
        r"""
        bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, num_blocks * num_positions)`, *optional*):
            Tokens to hide and to score (1), in block-major order. Drawn by the configuration where absent.
        pixel_mask (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*):
            1 where a pixel is valid, 0 where it has no data; pixels without data are never scored.
        mask_type (`str`, *optional*):
            Kind of mask that is drawn, or that `bool_masked_pos` is of, where it is not `config.mask_type`. With
            `visible_only`, `"even"`, `"tube"` and `"grid"` are faster than `"unit"`, which fits any mask.

        Example:

        ```python
        >>> import torch
        >>> from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling

        >>> model = HSSTForMaskedImageModeling(HSSTConfig())
        >>> outputs = model(torch.randn(2, 200, 8, 8))
        >>> list(outputs.reconstruction.shape)
        [2, 200, 8, 8]
        ```"""
        patch_size, num_blocks = self.config.patch_size, self.config.num_blocks
        grid_size = pixel_values.shape[-2] // patch_size, pixel_values.shape[-1] // patch_size
        mask_type = self.config.mask_type if mask_type is None else mask_type
        if bool_masked_pos is None:
            kind = self.mask_settings(mask_type)
            bool_masked_pos = draw_mask(len(pixel_values), num_blocks, grid_size, **kind, device=pixel_values.device)
        pixel_values = hide_nodata(pixel_values, pixel_mask)
        outputs: BaseModelOutput
        # CODEPATH: published models encode all tokens; visible_only is the fast way
        if self.hidden_tokens is None:
            outputs = self.hsst(pixel_values, pixel_mask, bool_masked_pos, interpolate_pos_encoding, **kwargs)
            hidden_states = outputs.last_hidden_state
        else:
            visible = self.visible_tokens(bool_masked_pos, grid_size, mask_type)
            outputs = self.encode_visible(pixel_values, pixel_mask, visible, interpolate_pos_encoding, **kwargs)
            hidden_states = self.hidden_tokens(outputs.last_hidden_state, visible.last_index, grid_size)
        attention_mask = None
        if self.decoder.layers:
            position_mask = valid_positions(pixel_mask, patch_size)
            attention_mask = self.hsst.sequence_mask(hidden_states, expand_over_blocks(position_mask, num_blocks))
        predictions = self.decoder(hidden_states, attention_mask, self.hsst.places(pixel_values))  # (B, N, P, V)

        targets = self.hsst.embeddings.token_values(pixel_values)
        scored = bool_masked_pos.bool().reshape(*targets.shape[:3], 1) & self.valid_values(pixel_values, pixel_mask)
        # Half precision cannot even count the values of a batch
        dtype = torch.promote_types(predictions.dtype, torch.float32)
        scored = scored.to(dtype).expand_as(targets)
        loss = ((predictions.to(dtype) - targets.to(dtype)).abs() * scored).sum() / scored.sum().clamp(min=1.0)

        return HSSTForMaskedImageModelingOutput(
            loss=loss,
            reconstruction=self.hsst.embeddings.pixel_values(predictions, grid_size),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            bool_masked_pos=bool_masked_pos,
        )

    def mask_settings(self, mask_type: str) -> dict[str, Any]:
        """What `draw_mask` and `visible_counts` take beside the sizes of windows."""
        ratio, side = self.config.mask_ratio, self.config.mask_patch_size
        return {"mask_type": mask_type, "mask_ratio": ratio, "mask_patch_size": side}

    def encode_visible(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None,
        visible: VisibleTokens,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """The tokens (B, visible, D) at `visible.last_index`, encoded as if no others were there."""
        encoder, num_blocks = self.hsst, self.config.num_blocks
        pixel_values = pixel_values.to(encoder.embeddings.patch_embeddings.weight.dtype)
        hidden_states = encoder.embeddings(pixel_values, None, bool(interpolate_pos_encoding))
        token_mask = expand_over_blocks(valid_positions(pixel_mask, self.config.patch_size), num_blocks)  # (B, N, P)
        places = encoder.places(pixel_values)
        if visible.spatial_index is None:
            # Hidden tokens pass the layers too, but nothing sees them
            seen = visible.mask if token_mask is None else visible.mask & token_mask
            spatial_mask = encoder.sequence_mask(hidden_states, seen)
            # A mask of valid positions would hide all or none of the blocks of a position
            spectral_mask = encoder.sequence_mask(hidden_states, visible.mask.transpose(1, 2))
            blocks = num_blocks, num_blocks
        else:
            hidden_states = gather_tokens(hidden_states, visible.spatial_index)
            blocks = visible.spatial_blocks, visible.spectral_blocks
            if places is not None:
                positions = visible.spatial_index.unflatten(1, (blocks[0], -1)) % visible.mask.shape[2]
                places = places[0, 0, positions]  # (B, S, L, 2)
            if token_mask is not None:
                token_mask = token_mask.flatten(1).gather(1, visible.spatial_index).unflatten(1, (blocks[0], -1))
            spatial_mask, spectral_mask = encoder.sequence_mask(hidden_states, token_mask), None
        order = visible.spectral_order
        outputs: BaseModelOutput = encoder.encode(
            hidden_states, spatial_mask, spectral_mask, *blocks, order, places, return_dict=True, **kwargs
        )
        if visible.spatial_index is None:
            outputs.last_hidden_state = gather_tokens(outputs.last_hidden_state, visible.last_index)
        return outputs

    def visible_tokens(
        self, bool_masked_pos: torch.Tensor, grid_size: tuple[int, int], mask_type: str
    ) -> VisibleTokens:
        """The visible tokens of masks of a type, of the configuration's ratio where their number depends on it."""
        config = self.config
        num_positions = grid_size[0] * grid_size[1]
        mask = HSSTEmbeddings.check_mask(bool_masked_pos, bool_masked_pos.shape[0], config.num_blocks, num_positions)
        visible = ~mask.unflatten(1, (config.num_blocks, -1))
        if mask_type not in COUNTED_MASK_TYPES:
            return VisibleTokens.of(visible, None, in_grid=False)
        counts = num_blocks, per_block = visible_counts(config.num_blocks, grid_size, **self.mask_settings(mask_type))
        # A look at the values would wait for a GPU, or break a graph
        if mask.device.type == "cpu" and not torch.compiler.is_compiling():
            in_blocks, at_positions = visible.sum(dim=2), visible.sum(dim=1)
            counted = [(in_blocks, per_block), (at_positions, num_blocks)]
            if mask_type != "even":
                counted = [(in_blocks.bool().sum(dim=1), num_blocks), (at_positions.bool().sum(dim=1), per_block)]
                counted.append((visible.sum(dim=(1, 2)), num_blocks * per_block))
            if not all((found == wanted).all() for found, wanted in counted):
                raise ValueError(
                    f"With `visible_only`, `bool_masked_pos` must leave {num_blocks} blocks times {per_block} "
                    f"positions of each window visible, as masks of type {mask_type!r} and `mask_ratio` "
                    f"{config.mask_ratio} do; got others, which `mask_type='unit'` admits."
                )
        return VisibleTokens.of(visible, counts, in_grid=mask_type != "even")

    def valid_values(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None) -> torch.Tensor:
        """True (B, N, P, V) at values that are neither nodata nor padding of the last block."""
        pixel_mask = torch.ones_like(pixel_values[:, 0]) if pixel_mask is None else pixel_mask
        valid = pixel_mask.bool().unsqueeze(1).expand_as(pixel_values)
        return self.hsst.embeddings.token_values(valid)


def hidden_values(bool_masked_pos: torch.Tensor, pixel_values: torch.Tensor, config: HSSTConfig) -> torch.Tensor:
    """
    True (B, bands, height, width) at the values that a mask (B, T) hides: in every block that holds them, and in one
    at least.
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
    Predicts each value (B, bands, height, width) as the mean of the window's visible values of the same band, and of a
    band that is hidden altogether as its mean over the training data, which is 0 after standardizing.
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


__all__ = ["COUNTED_MASK_TYPES", "HSSTForMaskedImageModeling", "draw_mask", "visible_counts"]

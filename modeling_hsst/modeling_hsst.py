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
PyTorch HSST model: a transformer for hyperspectral windows, with blockwise patch embeddings and attention factorized
into space and spectrum, after "Masked Vision Transformers for Hyperspectral Image Classification" (Scheibenreif,
Mommert and Borth, CVPR EarthVision 2023).

A token is one spectral block (a group of consecutive bands) at one position (a spatial patch). Tokens are ordered
block-major: token = block * positions + row * columns + column. Shape comments use

    B windows (batch)        N spectral blocks        P positions        T = N * P tokens
    V values of a token (band, row, column)           D width (`hidden_size`)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.integrations import use_kernel_forward_from_hub
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    SemanticSegmenterOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple, maybe_autocast, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_hsst import HSSTConfig

# The unit in which mean wavelengths enter sin-cos positions: neighboring EnMAP blocks are 25 to 250 nm apart, so that
# their positions differ by about one, as the published block indices do.
NANOMETERS_PER_SPECTRAL_STEP = 100.0
# PyTorch's attention on CUDA counts sequences in a dimension of the grid that ends here
MAX_SEQUENCES = 65535


def pixels_to_tokens(pixel_values: torch.Tensor, band_patch_size: int, patch_size: int) -> torch.Tensor:
    """Cuts windows (B, bands, height, width) into values of tokens (B, N, P, V), zero-padding the last block."""
    batch_size, num_bands, height, width = pixel_values.shape
    padding = -num_bands % band_patch_size
    if padding:
        pixel_values = nn.functional.pad(pixel_values, (0, 0, 0, 0, 0, padding))
    rows, columns = height // patch_size, width // patch_size
    num_blocks = pixel_values.shape[1] // band_patch_size
    tokens = pixel_values.reshape(batch_size, num_blocks, band_patch_size, rows, patch_size, columns, patch_size)
    tokens = tokens.permute(0, 1, 3, 5, 2, 4, 6)  # (B, N, rows, columns, band, row, column)
    return tokens.reshape(batch_size, tokens.shape[1], rows * columns, band_patch_size * patch_size**2)


def tokens_to_pixels(
    token_values: torch.Tensor, num_bands: int, grid_size: tuple[int, int], patch_size: int
) -> torch.Tensor:
    """The inverse of `pixels_to_tokens`: (B, N, P, V) to (B, bands, height, width), without the padding."""
    rows, columns = grid_size
    pixels = token_values.reshape(*token_values.shape[:2], rows, columns, -1, patch_size, patch_size)
    pixels = pixels.permute(0, 1, 4, 2, 5, 3, 6)  # (B, N, band, rows, row, columns, column)
    return pixels.reshape(pixels.shape[0], -1, rows * patch_size, columns * patch_size)[:, :num_bands]


def block_band_index(config: HSSTConfig) -> torch.Tensor | None:
    """The bands (blocks * bands of a block,) of all blocks in their order; None where they are all bands in theirs."""
    # CODEPATH: blocks of published checkpoints are consecutive bands; those adapted to another sensor gather theirs
    return None if config.block_bands is None else torch.tensor(config.block_bands).flatten()


def bands_to_blocks(pixel_values: torch.Tensor, band_index: torch.Tensor | None) -> torch.Tensor:
    """Windows (B, bands, height, width) with the bands in the order of the blocks, as `block_band_index` gives it."""
    return pixel_values if band_index is None else pixel_values.index_select(1, band_index)


def blocks_to_bands(pixel_values: torch.Tensor, band_index: torch.Tensor | None, num_bands: int) -> torch.Tensor:
    """The inverse of `bands_to_blocks`: where several places hold a band, their mean, and 0 where none does."""
    if band_index is None:
        return pixel_values
    shape = pixel_values.shape[0], num_bands, *pixel_values.shape[2:]
    sums = pixel_values.new_zeros(shape).index_add(1, band_index, pixel_values)
    counts = pixel_values.new_zeros(num_bands).index_add(0, band_index, pixel_values.new_ones(len(band_index)))
    return sums / counts.clamp(min=1)[:, None, None]


def sincos_1d(positions: torch.Tensor, width: int) -> torch.Tensor:
    """Sine and cosine of `positions` (length,) at `width / 2` frequencies from 1 to 1/10000: (length, [sin | cos])."""
    frequencies = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angles = positions.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_2d(row_positions: torch.Tensor, column_positions: torch.Tensor, width: int) -> torch.Tensor:
    """Encodes a grid: (rows * columns, width), the column in the first half of the width, the row in the second."""
    rows = sincos_1d(row_positions, width // 2)[:, None, :].expand(-1, len(column_positions), -1)
    columns = sincos_1d(column_positions, width // 2)[None, :, :].expand(len(row_positions), -1, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1)


class HSSTPatchEmbeddings(nn.Module):
    """
    Turns the values of tokens `(batch_size, num_blocks, num_positions, values)` into embeddings `(batch_size,
    num_blocks, num_positions, hidden_size)`: one linear layer for each spectral block (or one for all), between two
    LayerNorms that the blocks share. These leave the shape of a token's spectrum only, and take its brightness away;
    `normalize_token_values=False` does without them.
    """

    def __init__(self, config: HSSTConfig):
        super().__init__()
        num_values = config.band_patch_size * config.patch_size**2
        # CODEPATH: published checkpoints embed blockwise; those of the paper's ablation share one embedding
        num_projections = config.num_blocks if config.blockwise_patch_embedding else 1
        self.layernorm_before: nn.Module = nn.Identity()
        self.layernorm_after: nn.Module = nn.Identity()
        # CODEPATH: published checkpoints normalize the values of a token, and so lose its brightness; ours keep it
        if config.normalize_token_values:
            self.layernorm_before = nn.LayerNorm(num_values, eps=config.layer_norm_eps)
            self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.weight = nn.Parameter(torch.empty(num_projections, config.hidden_size, num_values))
        self.bias = nn.Parameter(torch.empty(num_projections, config.hidden_size))

    def forward(self, token_values: torch.Tensor) -> torch.Tensor:
        hidden_states = blockwise_linear(self.layernorm_before(token_values), self.weight, self.bias)
        return self.layernorm_after(hidden_states)


def blockwise_linear(hidden_states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Applies to each block of (B, N, P, in) its own linear layer: `weight` (N, out, in), or (1, out, in) for all."""
    if weight.shape[0] == 1:
        return nn.functional.linear(hidden_states, weight[0], bias[0])
    return torch.einsum("bnpi,noi->bnpo", hidden_states, weight) + bias[:, None, :]


class HSSTPositionEmbeddings(nn.Module):
    """
    Says where a token lies in the window and in the spectrum: a vector for each token (`"learned"`), or a spatial part
    that all blocks share beside a spectral part that all positions share, trainable (`"sincos"`) or fixed
    (`"wavelength"`), or the spectral part alone (`"relative"`).
    """

    position_embeddings: torch.Tensor
    spatial_embeddings: torch.Tensor
    spectral_embeddings: torch.Tensor

    def __init__(self, config: HSSTConfig, hidden_size: int | None = None, position_embedding_type: str | None = None):
        super().__init__()
        self.config = config
        # A decoder may have a width and positions of its own
        self.position_embedding_type = position_embedding_type or config.position_embedding_type
        width = hidden_size or config.hidden_size
        self.spectral_width = width // 3
        self.spatial_width = width - self.spectral_width
        # CODEPATH: learned and sincos are published; wavelength is for models that move between sensors
        if self.position_embedding_type == "learned":
            # The published checkpoints carry one spare, unused position at the end
            num_tokens = config.num_blocks * config.num_positions
            self.position_embeddings = nn.Parameter(torch.empty(1, num_tokens + 1, width))
        # CODEPATH: sincos is published; wavelength is for models that move between sensors
        elif self.position_embedding_type == "sincos":
            self.spatial_embeddings = nn.Parameter(torch.empty(1, config.num_positions, self.spatial_width))
            self.spectral_embeddings = nn.Parameter(torch.empty(1, config.num_blocks, self.spectral_width))
        else:
            spatial_table, spectral_table = self.spatial_table(*config.grid_size), self.spectral_table()
            self.spatial_embeddings = nn.Buffer(spatial_table, persistent=False)
            self.spectral_embeddings = nn.Buffer(spectral_table, persistent=False)

    def spatial_table(self, rows: int, columns: int) -> torch.Tensor:
        """Sin-cos table (1, rows * columns, spatial width), its positions stretched to the trained grid's."""
        # CODEPATH: relative positions are in the attention; tokens hold the wavelength where they did beside a place
        if self.position_embedding_type == "relative":
            return torch.zeros(1, rows * columns, self.spatial_width)
        trained_rows, trained_columns = self.config.grid_size
        row_positions = (torch.arange(rows) + 0.5) * trained_rows / rows - 0.5
        column_positions = (torch.arange(columns) + 0.5) * trained_columns / columns - 0.5
        return sincos_2d(row_positions, column_positions, self.spatial_width)[None].to(torch.get_default_dtype())

    def spectral_table(self) -> torch.Tensor:
        """Sin-cos table (1, blocks, spectral width) of block positions, or of mean wavelengths."""
        # CODEPATH: the published sincos checkpoints train tables of indices; wavelength and relative fix them
        if self.position_embedding_type != "sincos":
            positions = torch.tensor(self.config.block_wavelengths) / NANOMETERS_PER_SPECTRAL_STEP
        else:
            positions = torch.tensor(self.config.spectral_positions)
        return sincos_1d(positions, self.spectral_width)[None].to(torch.get_default_dtype())

    def forward(self, grid_size: tuple[int, int]) -> torch.Tensor:
        """Positions (1, N, P, D) of a window of `grid_size` rows and columns."""
        num_blocks = self.config.num_blocks
        # CODEPATH: learned and sincos are published; wavelength is for models that move between sensors
        if self.position_embedding_type == "learned":
            positions = self.position_embeddings[:, :-1].unflatten(1, (num_blocks, -1))
            return self.interpolate(positions, grid_size)
        # CODEPATH: the published sincos checkpoints train tables of indices; wavelength and relative fix them
        if self.position_embedding_type != "sincos" and grid_size != self.config.grid_size:
            # Nothing is trained here, so the table of the new grid is exact
            spatial = self.spatial_table(*grid_size).to(self.spatial_embeddings).unsqueeze(1)
        else:
            spatial = self.interpolate(self.spatial_embeddings.unsqueeze(1), grid_size)
        spatial = spatial.expand(-1, num_blocks, -1, -1)
        spectral = self.spectral_embeddings.unsqueeze(2).expand(-1, -1, spatial.shape[2], -1)
        return torch.cat([spatial, spectral], dim=-1)

    def interpolate(self, positions: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
        """Bicubic interpolation of positions (1, blocks, P, width) from the trained grid to another."""
        # CODEPATH: no choice between checkpoints: windows of the size all of them were trained on, or others
        if grid_size == self.config.grid_size:
            return positions
        grids = positions[0].unflatten(1, self.config.grid_size).permute(0, 3, 1, 2)  # (blocks, width, rows, columns)
        grids = nn.functional.interpolate(grids, size=grid_size, mode="bicubic", align_corners=False)
        return grids.flatten(2).transpose(1, 2)[None]


class HSSTEmbeddings(nn.Module):
    """Construct the patch and position embeddings. Optionally, also the mask token."""

    def __init__(self, config: HSSTConfig, use_mask_token: bool = False):
        super().__init__()
        self.config = config
        band_index = block_band_index(config)
        # CODEPATH: models adapted to another sensor gather the bands of blocks that they were trained with
        self.band_index = None if band_index is None else nn.Buffer(band_index, persistent=False)
        self.patch_embeddings = HSSTPatchEmbeddings(config)
        self.position_embeddings = HSSTPositionEmbeddings(config)
        self.mask_token = nn.Parameter(torch.empty(config.hidden_size)) if use_mask_token else None
        self.dropout: nn.Module = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> torch.Tensor:
        grid_size = self.check_window(pixel_values, interpolate_pos_encoding)
        embeddings = self.patch_embeddings(self.token_values(pixel_values))
        if bool_masked_pos is not None:
            if self.mask_token is None:
                raise ValueError(
                    "`bool_masked_pos` needs a model with a mask token: HSSTForMaskedImageModeling, or "
                    "HSSTModel(config, use_mask_token=True)."
                )
            mask = self.check_mask(bool_masked_pos, *embeddings.shape[:3]).reshape(*embeddings.shape[:3], 1)
            embeddings = torch.where(mask, self.mask_token.to(embeddings.dtype), embeddings)
        embeddings = embeddings + self.position_embeddings(grid_size).to(embeddings.dtype)
        return self.dropout(embeddings.flatten(1, 2))  # (B, T, D)

    def token_values(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The values (B, N, P, V) of the tokens of windows (B, bands, height, width)."""
        pixel_values = bands_to_blocks(pixel_values, self.band_index)
        return pixels_to_tokens(pixel_values, self.config.band_patch_size, self.config.patch_size)

    def pixel_values(self, token_values: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
        """Windows (B, bands, height, width) from the values (B, N, P, V) of their tokens."""
        num_bands = self.config.num_channels
        num_places = num_bands if self.band_index is None else len(self.band_index)
        pixel_values = tokens_to_pixels(token_values, num_places, grid_size, self.config.patch_size)
        return blocks_to_bands(pixel_values, self.band_index, num_bands)

    @staticmethod
    def check_mask(mask: torch.Tensor, batch_size: int, num_blocks: int, num_positions: int) -> torch.Tensor:
        """The mask as booleans, if it has one for each token."""
        if mask.shape != (batch_size, num_blocks * num_positions):
            expected = f"({batch_size}, {num_blocks} * {num_positions}), got {tuple(mask.shape)}"
            raise ValueError(f"`bool_masked_pos` must have the shape (batch, blocks * positions) {expected}.")
        return mask.bool()

    def check_window(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool) -> tuple[int, int]:
        """Rows and columns of positions of a window that fits the model."""
        _, num_bands, height, width = pixel_values.shape
        if num_bands != self.config.num_channels:
            raise ValueError(
                f"`pixel_values` must have the {self.config.num_channels} bands of the configuration (`num_channels`) "
                f"as their second dimension, got {num_bands} bands: {tuple(pixel_values.shape)}."
            )
        patch_size = self.config.patch_size
        if height % patch_size or width % patch_size:
            raise ValueError(
                f"The window must be divisible by the patches of {patch_size}x{patch_size} pixels (`patch_size`), got "
                f"{height}x{width} pixels."
            )
        if not interpolate_pos_encoding and (height, width) != self.config.window_size:
            raise ValueError(
                f"The window must have the {self.config.window_size[0]}x{self.config.window_size[1]} pixels of the "
                f"configuration (`image_size`), got {height}x{width}; `interpolate_pos_encoding=True` admits others."
            )
        return height // patch_size, width // patch_size


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    attn_weights = torch.matmul(query, key.transpose(2, 3)) * (query.size(-1) ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        attn_weights = attn_weights + attention_mask
    attn_weights = nn.functional.softmax(attn_weights, dim=-1)
    attn_weights = nn.functional.dropout(attn_weights, p=dropout, training=module.training)
    attn_output = torch.matmul(attn_weights, value).transpose(1, 2).contiguous()
    return attn_output, attn_weights


def in_chunks(attention_interface: Callable) -> Callable:
    """The same attention, for at most `MAX_SEQUENCES` sequences at once."""

    def attend(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shared = attention_mask is None or len(attention_mask) == 1
        outputs, weights = [], []
        for start in range(0, len(query), MAX_SEQUENCES):
            chunk = slice(start, start + MAX_SEQUENCES)
            mask = attention_mask if shared else attention_mask[chunk]
            output, weight = attention_interface(module, query[chunk], key[chunk], value[chunk], mask, **kwargs)
            outputs.append(output)
            weights.append(weight)
        return torch.cat(outputs), None if weights[0] is None else torch.cat(weights)

    return attend


def grid_places(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """Row and column of each position of a window, as integers (1, 1, P, 2)."""
    place = torch.arange(rows * columns, device=device)
    return torch.stack([place // columns, place % columns], dim=1)[None, None]


class HSSTRelativePositionBias(nn.Module):
    """
    What the attention of one position to another gains from how many rows and columns lie between them: a learned
    number for each head and distance, as in [BEiT](https://huggingface.co/papers/2106.08254). Positions that lie
    farther apart than any in the trained window count as the farthest there.
    """

    def __init__(self, config: HSSTConfig, num_attention_heads: int | None = None):
        super().__init__()
        self.grid_size = config.grid_size
        rows, columns = self.grid_size
        num_attention_heads = num_attention_heads or config.num_attention_heads
        self.bias = nn.Parameter(torch.empty((2 * rows - 1) * (2 * columns - 1), num_attention_heads))

    def forward(self, places: torch.Tensor) -> torch.Tensor:
        """
        The bias (B, S, heads, L, L) among tokens at rows and columns `places` (B, S, L, 2) of S sequences; B and S are
        1 where windows or sequences do not differ.
        """
        farthest_row, farthest_column = (size - 1 for size in self.grid_size)
        rows, columns = (places.unsqueeze(-2) - places.unsqueeze(-3)).unbind(-1)
        rows = rows.clamp(-farthest_row, farthest_row) + farthest_row
        columns = columns.clamp(-farthest_column, farthest_column) + farthest_column
        return self.bias[rows * (2 * farthest_column + 1) + columns].movedim(-1, 2)

    def for_grid(self, grid_size: tuple[int, int]) -> torch.Tensor:
        """The numbers (distances, heads) for windows of another size, so that positions gain what they do here."""
        steps = [
            torch.arange(1 - size, size, device=self.bias.device).clamp(1 - own, own - 1) + own - 1
            for size, own in zip(grid_size, self.grid_size, strict=True)
        ]
        return self.bias.unflatten(0, (2 * self.grid_size[0] - 1, -1))[steps[0][:, None], steps[1]].flatten(0, 1)

    def add_to(
        self, attention_mask: torch.Tensor | None, places: torch.Tensor, num_sequences: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """The bias and a mask (sequences, 1, L, L) of booleans or numbers as one: (sequences or 1, heads, L, L)."""
        bias = self(places).to(dtype)
        if bias.shape[:2] != (1, 1):
            bias = bias.expand(-1, num_sequences, -1, -1, -1)
        bias = bias.flatten(0, 1)
        if attention_mask is None:
            return bias
        if attention_mask.dtype == torch.bool:
            return torch.where(attention_mask, bias, torch.finfo(dtype).min)
        return bias + attention_mask.to(dtype)


class HSSTAttention(nn.Module):
    def __init__(
        self,
        config: HSSTConfig,
        axis: str,
        hidden_size: int | None = None,
        num_attention_heads: int | None = None,
    ):
        super().__init__()
        self.config = config
        self.num_attention_heads = num_attention_heads or config.num_attention_heads
        self.head_dim = config.head_dim
        self.attention_dropout = config.attention_probs_dropout_prob
        self.scaling = self.head_dim**-0.5
        self.is_causal = False

        hidden_size = hidden_size or config.hidden_size
        inner_width = self.num_attention_heads * config.head_dim
        self.qkv_proj = nn.Linear(hidden_size, 3 * inner_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(inner_width, hidden_size, bias=True)
        # CODEPATH: published checkpoints add positions to tokens; relative ones are for features without a grid
        is_relative = axis == "spatial" and config.position_embedding_type == "relative"
        self.position_bias = HSSTRelativePositionBias(config, self.num_attention_heads) if is_relative else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        places: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        # (windows, sequences, length, width) to 3 x (windows * sequences, heads, length, head width)
        qkv = self.qkv_proj(hidden_states.flatten(0, 1)).unflatten(-1, (3, -1, self.head_dim))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)

        implementation = self.config._attn_implementation
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        if self.position_bias is not None and places is not None:
            if implementation is not None and ("flash" in implementation or "flex" in implementation):
                raise ValueError(
                    f"Positions of type 'relative' need attention that adds numbers to its scores, as 'eager' and "
                    f"'sdpa' do, got {implementation!r}."
                )
            num_sequences = hidden_states.shape[1]
            attention_mask = self.position_bias.add_to(attention_mask, places, num_sequences, query.dtype)
        # Masks of flex attention cannot be cut
        if query.shape[0] > MAX_SEQUENCES and (attention_mask is None or isinstance(attention_mask, torch.Tensor)):
            attention_interface = in_chunks(attention_interface)
        dropout = self.attention_dropout if self.training else 0.0
        attn_output, attn_weights = attention_interface(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        attn_output = attn_output.reshape(*hidden_states.shape[:-1], -1).contiguous()
        return self.o_proj(attn_output), attn_weights


class HSSTMLP(nn.Module):
    def __init__(self, config: HSSTConfig, hidden_size: int | None = None):
        super().__init__()
        hidden_size = hidden_size or config.hidden_size
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.dropout(self.activation_fn(self.fc1(hidden_states)))
        return self.fc2(hidden_states)


@use_kernel_forward_from_hub("HSSTLayer")
class HSSTLayer(GradientCheckpointingLayer):
    """
    A pre-norm transformer layer along one axis: `"spatial"` lets the positions of each block attend to each other,
    `"spectral"` the blocks of each position. Takes and returns `(batch_size, tokens, hidden_size)`. A decoder's layers
    may differ from the encoder's in width and heads.
    """

    def __init__(
        self, config: HSSTConfig, axis: str, hidden_size: int | None = None, num_attention_heads: int | None = None
    ):
        super().__init__()
        hidden_size = hidden_size or config.hidden_size
        self.axis = axis
        self.attention = HSSTAttention(config, axis, hidden_size, num_attention_heads)
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = HSSTMLP(config, hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        num_blocks: int,
        places: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        tokens = self.layernorm_before(hidden_states).unflatten(1, (num_blocks, -1))  # (B, N, P, D)
        sequences = tokens if self.axis == "spatial" else tokens.transpose(1, 2)
        attended, _ = self.attention(sequences, attention_mask, places, **kwargs)
        attended = attended if self.axis == "spatial" else attended.transpose(1, 2)
        hidden_states = hidden_states + self.dropout(attended.reshape(hidden_states.shape))
        return hidden_states + self.dropout(self.mlp(self.layernorm_after(hidden_states)))


@auto_docstring
class HSSTPreTrainedModel(PreTrainedModel):
    config: HSSTConfig
    base_model_prefix = "hsst"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _no_split_modules = ["HSSTEmbeddings", "HSSTLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # The losses are means over what is labeled or masked, which Trainer's count of items in a batch does not know
    accepts_loss_kwargs = False
    _can_record_outputs = {"hidden_states": HSSTLayer, "attentions": HSSTAttention}
    _input_embed_layer = "patch_embeddings"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize the weights"""
        super()._init_weights(module)
        if isinstance(module, HSSTPatchEmbeddings):
            std = self.config.initializer_range
            # CODEPATH: without LayerNorms around them, embeddings of standardized values have a variance of 1
            if not self.config.normalize_token_values:
                std = module.weight.shape[2] ** -0.5
            init.normal_(module.weight, mean=0.0, std=std)
            init.zeros_(module.bias)
        elif isinstance(module, HSSTEmbeddings):
            if module.mask_token is not None:
                init.normal_(module.mask_token, mean=0.0, std=1.0)
            band_index = block_band_index(module.config)
            if module.band_index is not None and band_index is not None:
                init.copy_(module.band_index, band_index)
        elif isinstance(module, HSSTPositionEmbeddings):
            # CODEPATH: learned and sincos are published; wavelength is for models that move between sensors
            if module.position_embedding_type == "learned":
                init.normal_(module.position_embeddings, mean=0.0, std=1.0)
            else:
                init.copy_(module.spatial_embeddings, module.spatial_table(*module.config.grid_size))
                init.copy_(module.spectral_embeddings, module.spectral_table())
        elif isinstance(module, HSSTRelativePositionBias):
            init.zeros_(module.bias)


@auto_docstring
class HSSTModel(HSSTPreTrainedModel):
    def __init__(self, config: HSSTConfig, use_mask_token: bool = False):
        r"""
        use_mask_token (`bool`, *optional*, defaults to `False`):
            Whether to use a mask token for masked image modeling.
        """
        super().__init__(config)
        self.config = config
        self.embeddings = HSSTEmbeddings(config, use_mask_token=use_mask_token)
        self.spatial_layers = nn.ModuleList([HSSTLayer(config, "spatial") for _ in range(config.num_spatial_layers)])
        num_spectral_layers = config.num_spectral_layers
        self.spectral_layers = nn.ModuleList([HSSTLayer(config, "spectral") for _ in range(num_spectral_layers)])
        # Initialize weights and apply final processing
        self.post_init()

    @merge_with_config_defaults
    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
            Standardized windows, as the image processor returns them.
        pixel_mask (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*):
            1 where a pixel is valid, 0 where it has no data. Positions without a valid pixel take no part in attention
            and pooling, whatever their values.
        bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, num_blocks * num_positions)`, *optional*):
            Tokens that are replaced by the mask token (1), in block-major order.
        """
        pixel_values = hide_nodata(pixel_values, pixel_mask).to(self.embeddings.patch_embeddings.weight.dtype)
        hidden_states = self.embeddings(pixel_values, bool_masked_pos, bool(interpolate_pos_encoding))
        num_blocks = self.config.num_blocks
        position_mask = valid_positions(pixel_mask, self.config.patch_size)
        masks = self.nodata_masks(hidden_states, position_mask)
        places = self.places(pixel_values)
        outputs = self.encode(hidden_states, *masks, num_blocks, num_blocks, places=places, return_dict=True, **kwargs)
        hidden_states = outputs.last_hidden_state
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states,
            pooler_output=mean_over_positions(hidden_states.unflatten(1, (num_blocks, -1)).mean(1), position_mask),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @capture_outputs(tie_last_hidden_states=False)
    def encode(
        self,
        hidden_states: torch.Tensor,
        spatial_mask: Any,
        spectral_mask: Any,
        spatial_blocks: int,
        spectral_blocks: int,
        reorder: torch.Tensor | None = None,
        places: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """
        Passes embedded tokens (B, spatial_blocks * positions, D), all or some, in block-major order, through the
        layers. Masks are what `sequence_mask` gives. Spectral layers take the tokens at the places `reorder` (B,
        spectral_blocks * positions) among those of spatial layers; None for the same ones in the same order. `places`
        are what relative positions need of the tokens in spatial layers (see `HSSTRelativePositionBias`).
        """
        for layer in self.spatial_layers:
            hidden_states = layer(hidden_states, spatial_mask, num_blocks=spatial_blocks, places=places, **kwargs)
        if reorder is not None:
            hidden_states = gather_tokens(hidden_states, reorder)
        for layer in self.spectral_layers:
            hidden_states = layer(hidden_states, spectral_mask, num_blocks=spectral_blocks, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)

    def places(self, pixel_values: torch.Tensor) -> torch.Tensor | None:
        """Row and column of each position of windows (B, bands, height, width), where relative positions need them."""
        # CODEPATH: published checkpoints add positions to tokens; relative ones are for features without a grid
        if self.config.position_embedding_type != "relative":
            return None
        rows, columns = (side // self.config.patch_size for side in pixel_values.shape[-2:])
        return grid_places(rows, columns, pixel_values.device)

    def nodata_masks(self, hidden_states: torch.Tensor, position_mask: torch.Tensor | None) -> tuple[Any, Any]:
        """What keeps nodata positions out of the attention in spatial layers, and in spectral layers."""
        # A position is valid or not as a whole, so that no mask is needed among its blocks
        return self.sequence_mask(hidden_states, expand_over_blocks(position_mask, self.config.num_blocks)), None

    def sequence_mask(self, hidden_states: torch.Tensor, seen: torch.Tensor | None) -> Any:
        """The mask that lets tokens see those that are True in `seen` (B, sequences, length) only, for attention."""
        if seen is None:
            return None
        # In a sequence without any all are seen: attention needs something to average
        seen = (seen | ~seen.any(dim=-1, keepdim=True)).flatten(0, 1)
        inputs_embeds = hidden_states.new_empty(*seen.shape, 1)
        return create_bidirectional_mask(config=self.config, inputs_embeds=inputs_embeds, attention_mask=seen)


def hide_nodata(pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None) -> torch.Tensor:
    """Windows with zeros in place of pixels without data, so that nothing depends on their values."""
    if not isinstance(pixel_values, torch.Tensor) or pixel_values.ndim != 4:
        got = f"{type(pixel_values).__name__} {tuple(getattr(pixel_values, 'shape', ()))}"
        raise ValueError(f"`pixel_values` must be a tensor (batch, bands, height, width), got {got}.")
    if pixel_mask is None:
        return pixel_values
    batch_size, _, height, width = pixel_values.shape
    if pixel_mask.shape != (batch_size, height, width):
        raise ValueError(
            f"`pixel_mask` must have the shape (batch, height, width) {(batch_size, height, width)} of "
            f"`pixel_values`, got {tuple(pixel_mask.shape)}."
        )
    return pixel_values.masked_fill(~pixel_mask.bool().unsqueeze(1), 0.0)


def valid_positions(pixel_mask: torch.Tensor | None, patch_size: int) -> torch.Tensor | None:
    """
    Positions (B, P) with at least one valid pixel. In a window without any all count as valid: they hold zeros, and
    attention and pooling need something to average.
    """
    if pixel_mask is None:
        return None
    patches = pixel_mask.bool().unflatten(1, (-1, patch_size)).unflatten(3, (-1, patch_size))
    position_mask = patches.any(dim=4).any(dim=2).flatten(1)
    return position_mask | ~position_mask.any(dim=1, keepdim=True)


def expand_over_blocks(position_mask: torch.Tensor | None, num_blocks: int) -> torch.Tensor | None:
    """(B, P) to (B, N, P)."""
    return None if position_mask is None else position_mask.unsqueeze(1).expand(-1, num_blocks, -1)


def gather_tokens(hidden_states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The tokens (B, n, D) of (B, T, D) at the places (B, n)."""
    return hidden_states.gather(1, index.unsqueeze(2).expand(-1, -1, hidden_states.shape[2]))


def mean_over_positions(hidden_states: torch.Tensor, position_mask: torch.Tensor | None) -> torch.Tensor:
    """Mean (B, D) of (B, P, D) over the valid positions."""
    if position_mask is None:
        return hidden_states.mean(dim=1)
    weights = position_mask.to(hidden_states.dtype).unsqueeze(-1)
    return (hidden_states * weights).sum(dim=1) / weights.sum(dim=1)


class HSSTClassifier(nn.Linear):
    """
    A linear layer whose scores are of full precision, whatever that of a model: classes that lie close together would
    be rounded to the same score in half precision.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        with maybe_autocast(features.device.type, enabled=False):
            return nn.functional.linear(features.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


class HSSTClassificationHead(nn.Module):
    """
    The classifiers of the published model: `"mean"` and `"concat"` give a class to each pixel of each position,
    `"center"` one to the window from its flattened positions.
    """

    def __init__(self, config: HSSTConfig, num_outputs: int):
        super().__init__()
        self.config = config
        # CODEPATH: mean and center are published, concat is the paper's variant
        width = config.hidden_size * (config.num_blocks if config.head_type == "concat" else 1)
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        # CODEPATH: center is the published head of 7x7 windows; the others see one position at a time
        in_features = width * (config.num_positions if config.head_type == "center" else 1)
        self.classifier = HSSTClassifier(in_features, num_outputs)

    def features(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Tokens (B, T, D) with their blocks averaged or concatenated (B, P, features), after a LayerNorm."""
        hidden_states = hidden_states.unflatten(1, (self.config.num_blocks, -1))
        # CODEPATH: mean and center are published, concat is the paper's variant
        if self.config.head_type == "concat":
            return self.layernorm(hidden_states.transpose(1, 2).flatten(2))
        return self.layernorm(hidden_states.mean(dim=1))


@auto_docstring(
    custom_intro="""
    HSST with a classifier for whole windows, e.g. for the land cover of a window, or of its center pixel with
    `head_type="center"` (the published pixel-wise variant).
    """
)
class HSSTForImageClassification(HSSTPreTrainedModel):
    def __init__(self, config: HSSTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.hsst = HSSTModel(config)
        self.head = HSSTClassificationHead(config, config.num_labels)
        # Initialize weights and apply final processing
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        r"""
        labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Class of each window, or of its center pixel, from 0; windows of class
            `config.semantic_loss_ignore_index` are left out of the loss.
        pixel_mask (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*):
            1 where a pixel is valid, 0 where it has no data.
        """
        outputs: BaseModelOutputWithPooling = self.hsst(
            pixel_values, pixel_mask, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
        )
        features = self.head.features(outputs.last_hidden_state)
        position_mask = valid_positions(pixel_mask, self.config.patch_size)
        # CODEPATH: center is published for single pixels; mean and concat label whole windows
        if self.config.head_type == "center":
            if features.shape[1] != self.config.num_positions:
                raise ValueError(
                    f"The head of type 'center' sees all {self.config.num_positions} positions of a window at once; "
                    f"other windows than those of `image_size` {self.config.image_size} do not fit, got "
                    f"{pixel_values.shape[-2]}x{pixel_values.shape[-1]} pixels."
                )
            if position_mask is not None:
                features = features * position_mask.to(features.dtype).unsqueeze(-1)
            features = features.flatten(1)
        else:
            features = mean_over_positions(features, position_mask)
        logits = self.head.classifier(features)

        loss = None
        if labels is not None:
            if self.num_labels > 1 and not labels.is_floating_point():
                loss = labelled_cross_entropy(logits, labels, self.config.semantic_loss_ignore_index)
            else:
                loss = self.loss_function(labels, logits, self.config, **kwargs)

        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


@auto_docstring(
    custom_intro="""
    HSST with a classifier for every pixel of a window, the published model for land-cover maps.
    """
)
class HSSTForSemanticSegmentation(HSSTPreTrainedModel):
    def __init__(self, config: HSSTConfig):
        super().__init__(config)
        if config.head_type == "center":
            raise ValueError(
                "A head of type 'center' classifies the center pixel only: use HSSTForImageClassification, or set "
                "`head_type` to 'mean' or 'concat' to classify every pixel."
            )
        self.num_labels = config.num_labels
        self.hsst = HSSTModel(config)
        self.head = HSSTClassificationHead(config, config.num_labels * config.patch_size**2)
        # Initialize weights and apply final processing
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SemanticSegmenterOutput:
        r"""
        labels (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
            Class of each pixel, from 0; pixels of class `config.semantic_loss_ignore_index` and pixels without data
            are left out of the loss.
        pixel_mask (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*):
            1 where a pixel is valid, 0 where it has no data.
        """
        outputs: BaseModelOutputWithPooling = self.hsst(
            pixel_values, pixel_mask, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
        )
        patch_size = self.config.patch_size
        logits = self.head.classifier(self.head.features(outputs.last_hidden_state))  # (B, P, row * column * class)
        rows, columns = pixel_values.shape[-2] // patch_size, pixel_values.shape[-1] // patch_size
        logits = logits.view(-1, rows, columns, patch_size, patch_size, self.num_labels)
        logits = logits.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.num_labels, rows * patch_size, columns * patch_size)

        loss = None
        if labels is not None:
            ignore_index = self.config.semantic_loss_ignore_index
            if pixel_mask is not None:
                labels = labels.masked_fill(~pixel_mask.bool(), ignore_index)
            loss = labelled_cross_entropy(logits, labels, ignore_index)

        return SemanticSegmenterOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def labelled_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """
    Mean cross-entropy over the labeled pixels or windows; 0 in a batch without any, as few labels bring about. Labels
    below 0 (-1, and -100 as everywhere in transformers) mean none, as `ignore_index` does.
    """
    labels = labels.to(logits.device).long()
    labels = labels.masked_fill(labels < 0, ignore_index)
    loss = nn.functional.cross_entropy(logits.float(), labels, ignore_index=ignore_index, reduction="sum")
    return loss / (labels != ignore_index).sum().clamp(min=1)


@auto_docstring(
    custom_intro="""
    HSST backbone: feature maps `(batch_size, hidden_size, rows, columns)`, the mean over the spectral blocks, for any
    dense head.
    """
)
class HSSTBackbone(BackboneMixin, HSSTPreTrainedModel):
    def __init__(self, config: HSSTConfig):
        super().__init__(config)
        self.hsst = HSSTModel(config)
        self.num_features = [config.hidden_size for _ in range(config.num_hidden_layers + 1)]
        # Initialize weights and apply final processing
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BackboneOutput:
        r"""
        pixel_mask (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*):
            1 where a pixel is valid, 0 where it has no data.
        """
        kwargs["output_hidden_states"] = True
        outputs: BaseModelOutputWithPooling = self.hsst(
            pixel_values, pixel_mask, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
        )
        rows = pixel_values.shape[-2] // self.config.patch_size
        feature_maps = tuple(
            hidden_states.unflatten(1, (self.config.num_blocks, rows, -1)).mean(dim=1).permute(0, 3, 1, 2).contiguous()
            for stage, hidden_states in zip(self.stage_names, outputs.hidden_states, strict=True)
            if stage in self.out_features
        )
        return BackboneOutput(
            feature_maps=feature_maps, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = [
    "HSSTBackbone",
    "HSSTForImageClassification",
    "HSSTForSemanticSegmentation",
    "HSSTModel",
    "HSSTPreTrainedModel",
]

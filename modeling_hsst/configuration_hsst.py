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
"""HSST configuration: the model of Scheibenreif, Mommert and Borth (CVPR EarthVision 2023) in numbers."""

from math import ceil, inf
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import auto_docstring

# Band centers (nm) of the published model's input: the 224 in-flight bands of EnMAP in ascending wavelength, without
# the 22 water-vapor bands (0-based 126-140, 160-166) and without bands 200 and 201 (2266 and 2274 nm).
# fmt: off
ENMAP_WAVELENGTHS = (
    418.24, 423.874, 429.294, 434.528, 439.603, 444.549, 449.391, 454.159, 458.884, 463.584, 468.265, 472.934, 477.599,
    482.265, 486.941, 491.633, 496.349, 501.094, 505.87, 510.678, 515.519, 520.397, 525.313, 530.268, 535.265, 540.305,
    545.391, 550.525, 555.71, 560.947, 566.239, 571.587, 576.995, 582.464, 587.997, 593.596, 599.267, 605.011, 610.833,
    616.737, 622.732, 628.797, 634.919, 641.1, 647.341, 653.643, 660.007, 666.435, 672.927, 679.485, 686.11, 692.804,
    699.567, 706.401, 713.307, 720.282, 727.324, 734.431, 741.601, 748.833, 756.124, 763.472, 770.876, 778.333,
    785.843, 793.402, 801.01, 808.665, 816.367, 824.112, 831.901, 839.731, 847.601, 855.509, 863.455, 871.433, 879.442,
    887.478, 895.537, 902.257, 903.617, 911.715, 911.872, 919.827, 921.624, 927.951, 931.512, 936.082, 941.53, 944.217,
    951.677, 952.355, 960.495, 961.948, 968.638, 972.341, 976.783, 982.851, 984.932, 993.083, 993.475, 1004.21,
    1015.05, 1026.0, 1037.05, 1048.19, 1059.42, 1070.74, 1082.14, 1093.62, 1105.17, 1116.79, 1128.47, 1140.2, 1151.98,
    1163.81, 1175.67, 1187.56, 1199.48, 1211.42, 1223.37, 1235.34, 1247.31, 1259.3, 1271.29, 1283.29, 1530.64, 1542.02,
    1553.36, 1564.65, 1575.9, 1587.1, 1598.26, 1609.36, 1620.43, 1631.44, 1642.41, 1653.33, 1664.2, 1675.03, 1685.8,
    1696.53, 1707.2, 1717.83, 1728.4, 1977.37, 1986.74, 1996.07, 2005.36, 2014.61, 2023.82, 2032.99, 2042.11, 2051.19,
    2060.24, 2069.24, 2078.21, 2087.13, 2096.01, 2104.86, 2113.67, 2122.44, 2131.17, 2139.87, 2148.52, 2157.15,
    2165.73, 2174.28, 2182.79, 2191.27, 2199.71, 2208.12, 2216.5, 2224.84, 2233.14, 2241.42, 2249.66, 2257.86, 2282.29,
    2290.37, 2298.42, 2306.44, 2314.42, 2322.37, 2330.29, 2338.19, 2346.05, 2353.88, 2361.68, 2369.45, 2377.19, 2384.9,
    2392.58, 2400.23, 2407.85, 2415.45, 2423.01, 2430.55, 2438.05, 2445.53,
)
# fmt: on

POSITION_EMBEDDING_TYPES = ("learned", "sincos", "wavelength", "relative")
HEAD_TYPES = ("mean", "concat", "center")
MASK_TYPES = ("unit", "even", "block", "tube", "grid")


def block_means(values: list[float] | tuple[float, ...], band_patch_size: int) -> list[float]:
    """Mean of each group of `band_patch_size` consecutive values; the last group may be shorter."""
    groups = [values[start : start + band_patch_size] for start in range(0, len(values), band_patch_size)]
    return [sum(group) / len(group) for group in groups]


@auto_docstring(checkpoint="hsg-aiml/hsst-enmap")
@strict
class HSSTConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    image_size (`int`, `list[int]` or `tuple[int, int]`, *optional*, defaults to 8):
        Height and width of a window in pixels.
    patch_size (`int`, *optional*, defaults to 1):
        Side of a spatial patch in pixels. A window has `(height // patch_size) * (width // patch_size)` positions.
    num_channels (`int`, *optional*, defaults to 200):
        Number of input bands.
    band_patch_size (`int`, *optional*, defaults to 10):
        Number of consecutive bands in a spectral block. A token is one block at one position; where the bands do not
        fill the last block, the model pads it with zeros.
    block_bands (`list[list[int]]`, *optional*):
        Band indices of each block (`band_patch_size` per block). Defaults to consecutive bands. A band may be in
        several blocks, several times in one, or in none: then the model does not see it, and reconstructs it as 0.
    block_centers (`list[float]`, *optional*):
        Wavelength in nm that stands for each block in positions of type `"wavelength"`. Defaults to the mean of the
        block's bands.
    wavelengths (`list[float]`, *optional*):
        Band centers in nm, one for each input band. Defaults to the published 200 EnMAP bands when `num_channels` is
        200, otherwise to none.
    num_spatial_layers (`int`, *optional*, defaults to 4):
        Number of layers in which the positions of one block attend to each other. May be 0.
    num_spectral_layers (`int`, *optional*, defaults to 4):
        Number of layers after them, in which the blocks of one position attend to each other. May be 0.
    head_dim (`int`, *optional*, defaults to 64):
        Width of one attention head; the heads together may be wider than `hidden_size`.
    position_embedding_type (`str`, *optional*, defaults to `"learned"`):
        `"learned"` (one vector for each token) and `"sincos"` (sin-cos initialized, trainable, a spatial and a
        spectral part) are the published ones. `"wavelength"` fixes the sin-cos tables and encodes the mean wavelength
        of each block in place of its index, so that weights can move to another sensor; it needs `wavelengths`.
        `"relative"` adds the same wavelengths to tokens, but no place: spatial attention learns a bias for each
        distance in rows and columns, so that features of a pixel do not tell where in its window it lay.
    spectral_positions (`list[float]`, *optional*):
        Spectral position of each block for `"sincos"`. Defaults to the index of the EnMAP block whose mean wavelength
        is nearest, or to 0, 1, 2, ... where `wavelengths` are unknown.
    blockwise_patch_embedding (`bool`, *optional*, defaults to `True`):
        One linear patch embedding for each spectral block rather than one for all.
    normalize_token_values (`bool`, *optional*, defaults to `True`):
        Whether LayerNorms take the mean and the spread of the values of each token away when they are embedded, as
        published. Without them the model sees how bright a pixel is.
    head_type (`str`, *optional*, defaults to `"mean"`):
        What a classification head sees: `"mean"` over the blocks, their `"concat"`enation, or `"center"`: the mean
        over the blocks at all positions of the window, to classify its center pixel (image classification only).
    mask_type (`str`, *optional*, defaults to `"tube"`):
        Which tokens are hidden together in masked image modeling: `"unit"` single tokens, `"even"` single tokens, as
        many in every block and at every position, `"block"` squares of positions drawn for each spectral block,
        `"tube"` squares shared by all blocks, `"grid"` everything but a random subset of positions times a random
        subset of blocks.
    mask_ratio (`float`, *optional*, defaults to 0.7):
        Share of the tokens to hide, between 0 and 1 (exclusive). The nearest count that the mask type allows is used.
    mask_patch_size (`int`, *optional*, defaults to 4):
        Side of the squares of `"block"` and `"tube"` masks, in positions.
    blockwise_decoder (`bool`, *optional*, defaults to `True`):
        One linear decoder for each spectral block rather than one for all.
    visible_only (`bool`, *optional*, defaults to `False`):
        Whether the encoder sees only the visible tokens in masked image modeling, and a decoder with layers of its
        own fills in the hidden ones ([He et al., 2022](https://huggingface.co/papers/2111.06377)), rather than all
        tokens with hidden ones replaced. About half the arithmetic under `"even"`, `"tube"` and `"grid"` masks, which
        leave as many tokens visible everywhere; other masks are computed among all tokens.
    num_decoder_layers (`int`, *optional*):
        Number of pairs of a spatial and a spectral layer between the encoder and the linear decoder. Defaults to 1
        with `visible_only`, otherwise to 0, as published.
    decoder_hidden_size (`int`, *optional*):
        Width of these layers with `visible_only`; defaults to `hidden_size`.
    decoder_num_attention_heads (`int`, *optional*):
        Their attention heads with `visible_only`; defaults to `num_attention_heads`.
    semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
        Label of unlabeled pixels and windows; they take no part in the loss.

    Example:

    ```python
    >>> from modeling_hsst import HSSTConfig, HSSTModel

    >>> configuration = HSSTConfig()  # the published EnMAP settings
    >>> model = HSSTModel(configuration)
    >>> configuration = model.config
    ```"""

    model_type = "hsst"

    hidden_size: int = 96
    num_spatial_layers: int = 4
    num_spectral_layers: int = 4
    num_attention_heads: int = 8
    head_dim: int = 64
    intermediate_size: int = 64
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    qkv_bias: bool = False
    image_size: int | list[int] | tuple[int, int] = 8
    patch_size: int = 1
    num_channels: int = 200
    band_patch_size: int = 10
    block_bands: list[list[int]] | tuple[tuple[int, ...], ...] | None = None
    block_centers: list[float] | tuple[float, ...] | None = None
    wavelengths: list[float] | tuple[float, ...] | None = ENMAP_WAVELENGTHS
    position_embedding_type: str = "learned"
    spectral_positions: list[float | int] | tuple[float | int, ...] | None = None
    blockwise_patch_embedding: bool = True
    normalize_token_values: bool = True
    head_type: str = "mean"
    mask_type: str = "tube"
    mask_ratio: float = 0.7
    mask_patch_size: int = 4
    blockwise_decoder: bool = True
    visible_only: bool = False
    num_decoder_layers: int | None = None
    decoder_hidden_size: int | None = None
    decoder_num_attention_heads: int | None = None
    semantic_loss_ignore_index: int = 255
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self._check_sizes()
        self._check_blocks()
        # The default band centers belong to the default number of bands only
        if self.wavelengths is not None and len(self.wavelengths) != self.num_channels:
            if tuple(self.wavelengths) != ENMAP_WAVELENGTHS:
                raise ValueError(
                    f"`wavelengths` must hold one band center (nm) for each of the {self.num_channels} bands of "
                    f"`num_channels`, got {len(self.wavelengths)}."
                )
            self.wavelengths = None
        if self.wavelengths is not None:
            self.wavelengths = [float(wavelength) for wavelength in self.wavelengths]
            if not all(100 <= wavelength < inf for wavelength in self.wavelengths):
                raise ValueError(f"`wavelengths` must be in nm, got {self.wavelengths[:3]}, ...")

        if self.spectral_positions is None:
            self.spectral_positions = self._default_spectral_positions()
        self._check()

        self.stage_names = ["stem"] + [f"stage{index}" for index in range(1, self.num_hidden_layers + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        # It names code that lay beside the checkpoint and that `save_pretrained` of the package's class does not copy
        if not __name__.startswith("transformers_modules"):
            kwargs.pop("auto_map", None)
        super().__post_init__(**kwargs)

    def _default_spectral_positions(self) -> list[float | int]:
        if self.block_wavelengths is None:
            return list(range(self.num_blocks))
        blocks = block_means(ENMAP_WAVELENGTHS, 10)
        nearest = [[abs(block - wavelength) for block in blocks] for wavelength in self.block_wavelengths]
        return [distances.index(min(distances)) for distances in nearest]

    def _check_sizes(self) -> None:
        # hidden_size is left to its own errors: generic code of transformers builds configurations with 0
        names = (
            "num_attention_heads head_dim intermediate_size patch_size num_channels band_patch_size mask_patch_size"
        )
        for name in (*names.split(), "decoder_hidden_size", "decoder_num_attention_heads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {getattr(self, name)}.")
        if not isinstance(self.image_size, int) and len(self.image_size) != 2:
            raise ValueError(f"`image_size` must be one number, or height and width, got {self.image_size}.")
        if min(self.window_size) < 1:
            raise ValueError(f"`image_size` must be 1 or more, got {self.image_size}.")
        if self.hidden_size < 0 or self.decoder_depth < 0:
            got = f"{self.hidden_size} and {self.decoder_depth}"
            raise ValueError(f"`hidden_size` and `num_decoder_layers` must not be negative, got {got}.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` must be an activation that transformers knows, got {self.hidden_act!r}.")

    def _check_blocks(self) -> None:
        for block, bands in enumerate(self.block_bands or []):
            if len(bands) != self.band_patch_size or not all(0 <= band < self.num_channels for band in bands):
                raise ValueError(
                    f"`block_bands` must hold `band_patch_size` {self.band_patch_size} bands for each block, each "
                    f"between 0 and {self.num_channels - 1}, got {list(bands)} for block {block}."
                )
        if self.block_bands is not None and not self.block_bands:
            raise ValueError("`block_bands` must hold the bands of one block or more, got none.")
        if self.block_centers is not None and len(self.block_centers) != self.num_blocks:
            raise ValueError(
                f"`block_centers` must hold one wavelength (nm) for each of the {self.num_blocks} blocks, got "
                f"{len(self.block_centers)}."
            )

    def _check(self) -> None:
        choices = {
            "position_embedding_type": POSITION_EMBEDDING_TYPES,
            "head_type": HEAD_TYPES,
            "mask_type": MASK_TYPES,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        if self.visible_only and self.decoder_depth < 1:
            raise ValueError(
                f"`visible_only` needs a decoder with layers, where hidden tokens learn from visible ones: "
                f"`num_decoder_layers` 1 or more, got {self.num_decoder_layers}."
            )
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"`mask_ratio` must lie between 0 and 1 (exclusive), got {self.mask_ratio}.")
        height, width = self.window_size
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"`image_size` must be divisible by `patch_size`, got a window of {height}x{width} pixels and patches "
                f"of {self.patch_size}x{self.patch_size}."
            )
        if len(self.spectral_positions) != self.num_blocks:
            raise ValueError(
                f"`spectral_positions` must hold one position for each of the {self.num_blocks} blocks "
                f"({self.num_channels} bands in blocks of {self.band_patch_size}), got {len(self.spectral_positions)}."
            )
        if self.num_hidden_layers < 1 or min(self.num_spatial_layers, self.num_spectral_layers) < 0:
            raise ValueError(
                f"`num_spatial_layers` and `num_spectral_layers` must be 0 or more and not both 0, got "
                f"{self.num_spatial_layers} and {self.num_spectral_layers}."
            )
        widths = {} if self.position_embedding_type == "learned" else {"hidden_size": self.hidden_size}
        if self.visible_only:
            widths["decoder_hidden_size"] = self.decoder_hidden_size or self.hidden_size
        for name, width in widths.items():
            if width // 3 % 2 or (width - width // 3) % 4:
                raise ValueError(
                    f"Sin-cos positions ({self.position_embedding_type!r}, and those of a decoder with layers) split "
                    f"the width into a third for the spectrum (an even number) and the rest for row and column (a "
                    f"multiple of 4); `{name}` {width} does not allow it, 12 and its multiples do."
                )
        if self.encodes_wavelengths and self.block_wavelengths is None:
            raise ValueError(
                f"Positions of type {self.position_embedding_type!r} need `wavelengths`: {self.num_channels} band "
                "centers in nm, got none."
            )

    @property
    def encodes_wavelengths(self) -> bool:
        """Whether tokens are told the wavelength of their block, rather than its index."""
        return self.position_embedding_type in ("wavelength", "relative")

    @property
    def decoder_depth(self) -> int:
        """Pairs of a spatial and a spectral layer in the decoder."""
        if self.num_decoder_layers is None:
            return 1 if self.visible_only else 0
        return self.num_decoder_layers

    @property
    def window_size(self) -> tuple[int, int]:
        """Height and width of a window in pixels."""
        if isinstance(self.image_size, int):
            return self.image_size, self.image_size
        height, width = self.image_size
        return height, width

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of positions in a window."""
        height, width = self.window_size
        return height // self.patch_size, width // self.patch_size

    @property
    def num_positions(self) -> int:
        """Positions in a window."""
        rows, columns = self.grid_size
        return rows * columns

    @property
    def num_blocks(self) -> int:
        """Spectral blocks, the last one padded where the bands do not fill it."""
        if self.block_bands is not None:
            return len(self.block_bands)
        return ceil(self.num_channels / self.band_patch_size)

    @property
    def block_wavelengths(self) -> list[float] | None:
        """Wavelength of each block in nm: `block_centers`, or the mean of its bands without padding, or unknown."""
        if self.block_centers is not None:
            return list(self.block_centers)
        if self.wavelengths is None:
            return None
        if self.block_bands is not None:
            return [sum(self.wavelengths[band] for band in bands) / len(bands) for bands in self.block_bands]
        return block_means(self.wavelengths, self.band_patch_size)

    @property
    def num_hidden_layers(self) -> int:
        """All layers of the encoder."""
        return self.num_spatial_layers + self.num_spectral_layers

    @num_hidden_layers.setter
    def num_hidden_layers(self, value: int) -> None:
        raise NotImplementedError(
            f"`num_hidden_layers` is a sum: set `num_spatial_layers` and `num_spectral_layers` instead (got {value})."
        )


__all__ = ["ENMAP_WAVELENGTHS", "HSSTConfig"]

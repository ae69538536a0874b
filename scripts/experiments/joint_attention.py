"""HSST whose tokens all attend to each other in every layer: what its factorised attention is compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from modeling_hsst import HSSTConfig, HSSTModel
from modeling_hsst.modeling_hsst import HSSTLayer


class JointAttentionLayer(HSSTLayer):
    """The layer of HSST, weight for weight, with the tokens of a window as one sequence: (windows, tokens, width)."""

    def __init__(self, config: HSSTConfig) -> None:
        super().__init__(config, "spatial")

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        num_blocks: int,
        places: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        if places is not None:
            raise ValueError("joint attention: expected positions that are added to tokens, got relative ones")
        # Positions of one block attend to each other: here all tokens are that block
        return super().forward(hidden_states, attention_mask, num_blocks=1, **kwargs)


class JointAttentionModel(HSSTModel):
    """HSST with the same parameters under the same names, and joint attention in all its layers.

    Cost grows with the square of blocks times positions, where factorised attention grows with the sum of squares.
    """

    def __init__(self, config: HSSTConfig) -> None:
        super().__init__(config)
        self.spatial_layers = nn.ModuleList([JointAttentionLayer(config) for _ in self.spatial_layers])
        self.spectral_layers = nn.ModuleList([JointAttentionLayer(config) for _ in self.spectral_layers])
        self.post_init()

    def nodata_masks(self, hidden_states: torch.Tensor, position_mask: torch.Tensor | None) -> tuple[Any, Any]:
        """What keeps all tokens of nodata positions out of the attention, in all layers; None where all are valid."""
        seen = None
        if position_mask is not None:
            seen = position_mask.repeat(1, self.config.num_blocks).unsqueeze(1)  # block-major, as tokens are
        mask = self.sequence_mask(hidden_states, seen)
        return mask, mask

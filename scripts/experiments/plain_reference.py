"""
The published model written down plainly: what an optimised implementation is measured against, and must agree with.

Linear layers in a list, attention weights in full, hidden tokens picked by boolean masks. Written from the paper
(Scheibenreif, Mommert and Borth, "Masked Vision Transformers for Hyperspectral Image Classification", CVPR EarthVision
2023); the tests hold it against the numbers of the published implementation. Nobody should train with it.
"""

from collections.abc import Sequence

import torch
from torch import nn

from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling, HSSTForSemanticSegmentation
from modeling_hsst.modeling_hsst import HSSTLayer


class PlainAttention(nn.Module):
    def __init__(self, width: int, heads: int, head_dim: int, bias: bool, dropout: float):
        super().__init__()
        self.heads, self.scale = heads, head_dim**-0.5
        self.to_qkv = nn.Linear(width, 3 * heads * head_dim, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.to_out = nn.Linear(heads * head_dim, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(sequences, length, width) to the same."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.to_qkv(tokens).chunk(3, dim=-1)
        )
        weights = torch.matmul(query, key.transpose(-1, -2)) * self.scale
        weights = self.dropout(weights.softmax(dim=-1))
        return self.to_out(torch.matmul(weights, value).transpose(1, 2).flatten(2))


class PlainLayer(nn.Module):
    def __init__(self, config: HSSTConfig):
        super().__init__()
        width, dropout = config.hidden_size, config.hidden_dropout_prob
        self.norm_attention = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = PlainAttention(
            width, config.num_attention_heads, config.head_dim, config.qkv_bias, config.attention_probs_dropout_prob
        )
        self.dropout = nn.Dropout(dropout)
        self.norm_mlp = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.intermediate_size),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(config.intermediate_size, width),
            nn.Dropout(dropout),
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.dropout(self.attention(self.norm_attention(tokens)))
        return tokens + self.mlp(self.norm_mlp(tokens))


class PlainEncoder(nn.Module):
    """Windows (batch, bands, height, width) to tokens (batch, blocks * positions, width), block by block."""

    def __init__(self, config: HSSTConfig):
        super().__init__()
        self.config = config
        values = config.band_patch_size * config.patch_size**2
        tokens = config.num_blocks * config.num_positions
        num_embeddings = config.num_blocks if config.blockwise_patch_embedding else 1
        self.norm_values = nn.LayerNorm(values, eps=config.layer_norm_eps)
        self.embeddings = nn.ModuleList([nn.Linear(values, config.hidden_size) for _ in range(num_embeddings)])
        self.norm_embeddings = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.positions = nn.Parameter(torch.zeros(1, tokens, config.hidden_size))
        self.mask_token = nn.Parameter(torch.zeros(config.hidden_size))
        self.spatial_layers = nn.ModuleList([PlainLayer(config) for _ in range(config.num_spatial_layers)])
        self.spectral_layers = nn.ModuleList([PlainLayer(config) for _ in range(config.num_spectral_layers)])

    def cut(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The values (batch, blocks, positions, values) of the tokens."""
        size, bands = self.config.patch_size, self.config.band_patch_size
        padding = -pixel_values.shape[1] % bands
        pixel_values = nn.functional.pad(pixel_values, (0, 0, 0, 0, 0, padding))
        patches = pixel_values.unfold(2, size, size).unfold(3, size, size)  # (batch, bands, rows, columns, size, size)
        patches = patches.unflatten(1, (-1, bands)).permute(0, 1, 3, 4, 2, 5, 6)
        return patches.flatten(4).flatten(2, 3)

    def forward(self, pixel_values: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        values = self.norm_values(self.cut(pixel_values))
        batch_size, blocks, positions, _ = values.shape
        tokens = torch.stack(
            [self.embeddings[block % len(self.embeddings)](values[:, block]) for block in range(blocks)], dim=1
        )
        tokens = self.norm_embeddings(tokens).flatten(1, 2)
        if mask is not None:
            tokens = tokens.clone()
            tokens[mask] = self.mask_token
        tokens = tokens + self.positions
        tokens = tokens.reshape(batch_size * blocks, positions, -1)
        for layer in self.spatial_layers:
            tokens = layer(tokens)
        tokens = tokens.reshape(batch_size, blocks, positions, -1).transpose(1, 2)
        tokens = tokens.reshape(batch_size * positions, blocks, -1)
        for layer in self.spectral_layers:
            tokens = layer(tokens)
        tokens = tokens.reshape(batch_size, positions, blocks, -1).transpose(1, 2)
        return tokens.reshape(batch_size, blocks * positions, -1)


class PlainMaskedImageModeling(nn.Module):
    """Mean absolute error of the values of hidden tokens, each block's from its own linear layer."""

    def __init__(self, config: HSSTConfig):
        super().__init__()
        self.config = config
        self.encoder = PlainEncoder(config)
        values = config.band_patch_size * config.patch_size**2
        num_decoders = config.num_blocks if config.blockwise_decoder else 1
        self.decoders = nn.ModuleList([nn.Linear(config.hidden_size, values) for _ in range(num_decoders)])

    def forward(self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss and the predictions (hidden tokens, values), block after block."""
        tokens = self.encoder(pixel_values, bool_masked_pos).unflatten(1, (self.config.num_blocks, -1))
        targets = self.encoder.cut(pixel_values)
        mask = bool_masked_pos.unflatten(1, (self.config.num_blocks, -1))
        predictions, wanted = [], []
        for block in range(self.config.num_blocks):
            predictions.append(self.decoders[block % len(self.decoders)](tokens[:, block][mask[:, block]]))
            wanted.append(targets[:, block][mask[:, block]])
        prediction, target = torch.cat(predictions), torch.cat(wanted)
        return (prediction - target).abs().mean(), prediction


class PlainSemanticSegmentation(nn.Module):
    """A class for every pixel, from the mean over the blocks."""

    def __init__(self, config: HSSTConfig):
        super().__init__()
        self.config = config
        self.encoder = PlainEncoder(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        num_labels = config.num_labels or 0
        self.classifier = nn.Linear(config.hidden_size, num_labels * config.patch_size**2)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes, height, width)."""
        size = self.config.patch_size
        rows, columns = pixel_values.shape[2] // size, pixel_values.shape[3] // size
        tokens = self.encoder(pixel_values).unflatten(1, (self.config.num_blocks, -1)).mean(dim=1)
        logits = self.classifier(self.norm(tokens)).unflatten(-1, (size, size, -1)).unflatten(1, (rows, columns))
        return logits.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def plain_reference(
    model: HSSTForMaskedImageModeling | HSSTForSemanticSegmentation,
) -> PlainMaskedImageModeling | PlainSemanticSegmentation:
    """
    The plain model with the weights (copies) of a model of this package.

    Raises:
        ValueError: the model has parts that the published one lacks: layers in the decoder, heads other than `"mean"`.
    """
    config = model.config
    if config.decoder_depth or config.head_type != "mean":
        raise ValueError("The plain reference has neither layers in its decoder nor heads other than 'mean'.")
    plain: PlainMaskedImageModeling | PlainSemanticSegmentation
    if isinstance(model, HSSTForMaskedImageModeling):
        plain = PlainMaskedImageModeling(config).to(model.device, model.dtype)
        copy_blocks(model.decoder.weight, model.decoder.bias, plain.decoders)
    else:
        plain = PlainSemanticSegmentation(config).to(model.device, model.dtype)
        plain.norm.load_state_dict(model.head.layernorm.state_dict())
        plain.classifier.load_state_dict(model.head.classifier.state_dict())
    embeddings, encoder = model.hsst.embeddings, plain.encoder
    patch_embeddings = embeddings.patch_embeddings
    copy_blocks(patch_embeddings.weight, patch_embeddings.bias, encoder.embeddings)
    encoder.norm_values.load_state_dict(patch_embeddings.layernorm_before.state_dict())
    encoder.norm_embeddings.load_state_dict(patch_embeddings.layernorm_after.state_dict())
    with torch.no_grad():
        encoder.positions.copy_(embeddings.position_embeddings(config.grid_size).flatten(1, 2))
        if embeddings.mask_token is not None:
            encoder.mask_token.copy_(embeddings.mask_token)
    for theirs, ours in (
        (encoder.spatial_layers, model.hsst.spatial_layers),
        (encoder.spectral_layers, model.hsst.spectral_layers),
    ):
        for plain_layer, layer in zip(theirs, ours, strict=True):
            assert isinstance(plain_layer, PlainLayer) and isinstance(layer, HSSTLayer)
            plain_layer.norm_attention.load_state_dict(layer.layernorm_before.state_dict())
            plain_layer.attention.to_qkv.load_state_dict(layer.attention.qkv_proj.state_dict())
            plain_layer.attention.to_out.load_state_dict(layer.attention.o_proj.state_dict())
            plain_layer.norm_mlp.load_state_dict(layer.layernorm_after.state_dict())
            plain_layer.mlp[0].load_state_dict(layer.mlp.fc1.state_dict())
            plain_layer.mlp[3].load_state_dict(layer.mlp.fc2.state_dict())
    return plain.train(model.training)


@torch.no_grad()
def copy_blocks(weight: torch.Tensor, bias: torch.Tensor, layers: Sequence[nn.Linear] | nn.ModuleList) -> None:
    """Deals stacked weights (blocks, out, in) and biases (blocks, out) to a list of linear layers."""
    for block, layer in enumerate(layers):
        assert isinstance(layer, nn.Linear)
        layer.weight.copy_(weight[block])
        layer.bias.copy_(bias[block])

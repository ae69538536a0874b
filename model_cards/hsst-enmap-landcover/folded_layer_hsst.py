"""A whole transformer layer, a few sequences at a time, for predictions on processors that work from their caches.

Attention is folded (see `attention_hsst`). What lies between the tokens that go into a layer and those that come out
of it (normalised tokens, queries, attention weights, contexts, hidden values of the MLP) never leaves the cache: a
layer reads each token once and writes it once.

Shape comments use

    B windows     N blocks     P positions     S sequences     L tokens in a sequence     D width (`hidden_size`)
"""

from typing import Any

import torch

from .attention_hsst import (
    attention_weights,
    by_query,
    folds_projections,
    keys_come_first,
    pieces,
    products_dtype,
)
from .fused_layer_hsst import has_plain_modules, only_predicts


def folds_layer(
    layer: Any, tokens: torch.Tensor, attention_mask: torch.Tensor | None, output_attentions: bool | None
) -> bool:
    """
    Whether `folded_layer` computes an `HSSTLayer` of tokens (B, N, P, D): for predictions on a processor, where
    attention is folded, as long as only plain modules work on them.
    """
    attention = layer.attention
    sequences = tokens if layer.axis == "spatial" else tokens.transpose(1, 2)
    return (
        only_predicts(layer, attention_mask, output_attentions)
        and folds_projections(attention.config, sequences, attention.qkv_proj, attention.o_proj)
        and (
            torch.is_autocast_enabled("cpu")
            or all(parameter.dtype == tokens.dtype for parameter in layer.parameters())
        )
        and has_plain_modules(layer)
    )


def folded_layer(layer: Any, tokens: torch.Tensor) -> torch.Tensor:
    """
    What an `HSSTLayer` makes of tokens.

    Args:
        layer: where `folds_layer` says so.
        tokens: (B, N, P, D).

    Returns:
        (B, N, P, D), in the precision of `tokens`, or of the products where that is higher.
    """
    dtype = products_dtype(tokens)
    with torch.autocast("cpu", enabled=False):
        query_key, value_output = layer.attention.folded_projections(dtype)
        sequences = tokens if layer.axis == "spatial" else tokens.transpose(1, 2)
        output = torch.empty_like(sequences, dtype=torch.promote_types(tokens.dtype, dtype))
        for piece in pieces(sequences, dtype):
            some = sequences[piece].reshape(-1, *sequences.shape[2:]).contiguous()
            place = output[piece]
            # Where tokens lie in a row, they are computed in their place
            row = place if place.is_contiguous() else torch.empty_like(some, dtype=output.dtype)
            _of_some(layer, some, query_key, value_output, row.view(-1, some.shape[2]))
            if row is not place:
                place.copy_(row.view_as(place))
    return output if layer.axis == "spatial" else output.transpose(1, 2)


def _of_some(
    layer: Any, tokens: torch.Tensor, query_key: torch.Tensor, value_output: torch.Tensor, output: torch.Tensor
) -> None:
    """Writes what a layer makes of sequences (S, L, D) to `output` (S * L, D)."""
    mlp, dtype = layer.mlp, query_key.dtype
    keys_first = keys_come_first(tokens.shape[1], dtype)
    normalised = layer.layernorm_before(tokens).to(dtype)
    _, weights = attention_weights(normalised, query_key, keys_first)
    context = torch.bmm(by_query(weights, keys_first), normalised).view(-1, value_output.shape[1])  # (S * L, H * D)
    torch.add(tokens.view(-1, tokens.shape[2]), layer.attention.o_proj.bias, out=output)
    _add_product(output, context, value_output.t())

    hidden = layer.layernorm_after(output).to(dtype)
    hidden = torch.addmm(mlp.fc1.bias.to(dtype), hidden, mlp.fc1.weight.to(dtype).t())
    _add_product(output.add_(mlp.fc2.bias), mlp.activation_fn(hidden), mlp.fc2.weight.to(dtype).t())


def _add_product(values: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Adds a matrix product to values, which may be of higher precision."""
    if values.dtype == left.dtype:
        values.addmm_(left, right)
    else:
        values.add_(torch.mm(left, right))

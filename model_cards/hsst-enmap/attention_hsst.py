"""Attention within many short sequences, with its projections folded, for processors that work from their caches.

The published attention has 8 heads of 64 on tokens of width 96. The scores of a head, `x Wq (x Wk)^T`, are also
`(x (Wq Wk^T)) x^T`, and what it adds to the tokens, `(weights (x Wv)) Wo`, is also `(weights x) (Wv Wo)`: with the two
products of weights made beforehand the tokens themselves are keys and values of all heads. That is less arithmetic
(6 % less among 64 tokens, 18 % among 20), needs no transposed copies, and the heads of a sequence become one matrix
product. It is worked through a few sequences at a time, so that what is computed stays in the cache, and only queries
and attention weights are kept for the backward pass. Sums are taken in another order than in the unfolded form, and
differ by rounding. Second derivatives and `torch.func` need `attn_implementation="eager"`.

Shape comments use

    W windows     S sequences in a window     L tokens in a sequence     D width (`hidden_size`)     H heads
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedConfig

# Tokens worked on at once, in bytes of a value of each: queries, scores and contexts of 1,280 tokens in float32, or
# 2,560 in half precision, fit the caches of two cores (measured: half or twice as many differ by a tenth)
TOKEN_BYTES_AT_ONCE = 5120
# Widest registers of processors: softmax along rows that do not fill them goes value by value in PyTorch
REGISTER_BYTES = 64


def keys_come_first(length: int, dtype: torch.dtype) -> bool:
    """Whether scores among `length` tokens are kept as (keys, queries), for the sake of their softmax."""
    return length % (REGISTER_BYTES // dtype.itemsize) != 0


def folding_pays(length: int, width: int, head_dim: int) -> bool:
    """Whether folded attention takes fewer multiplications than its usual form, for each token and head."""
    return folding_ratio(length, width, head_dim) <= 1


def folding_ratio(length: int, width: int, head_dim: int) -> float:
    """Multiplications of folded attention to those of its usual form."""
    return width * (width + length) / (head_dim * (2 * width + length))


def folding_is_faster(length: int, width: int, head_dim: int, dtype: torch.dtype) -> bool:
    """
    Whether folded attention takes less time on a processor: with fewer multiplications, or with up to twice as many
    among short sequences in half precision, which PyTorch's own attention takes up to ten times as long for.
    """
    allowed = 2 if dtype.itemsize < 4 and length <= 128 else 1
    return folding_ratio(length, width, head_dim) <= allowed


def products_dtype(tokens: torch.Tensor) -> torch.dtype:
    """The precision of matrix products of tokens."""
    kind = tokens.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tokens.dtype


def folds_projections(config: PreTrainedConfig, hidden_states: torch.Tensor, *projections: nn.Module) -> bool:
    """
    Whether attention among (W, S, L, D) is folded: on processors, in place of "sdpa", where it pays. Only plain linear
    projections can be: adapters, hooks, pruning, quantisation and offloading work on calls of them, which folding
    leaves out.
    """
    length, width = hidden_states.shape[2:]
    return (
        config._attn_implementation == "sdpa"
        and hidden_states.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and folding_is_faster(length, width, config.head_dim, products_dtype(hidden_states))
        and all(_is_plain(projection) for projection in projections)
    )


def _is_plain(module: nn.Module) -> bool:
    """Whether calling a module does nothing but its linear product."""
    has_hooks = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return type(module) is nn.Linear and module.weight.device.type == "cpu" and not has_hooks


def fold_projections(
    qkv_weight: torch.Tensor, output_weight: torch.Tensor, num_heads: int, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The projections of queries and keys (H * D, D), scaled, and of values and output (D, H * D), from the joint weight
    of queries, keys and values (3 * H * head_dim, D) and that of the output (D, H * head_dim).
    """
    width = qkv_weight.shape[1]
    query, key, value = qkv_weight.view(3, num_heads, -1, width).unbind(0)  # (H, head_dim, D)
    output = output_weight.view(width, num_heads, -1).transpose(0, 1)  # (H, D, head_dim)
    query_key = torch.matmul(key.transpose(1, 2), query) * scaling  # (H, D of keys, D of queries)
    value_output = torch.matmul(output, value)  # (H, D of outputs, D of values)
    return query_key.flatten(0, 1), value_output.transpose(0, 1).flatten(1)


def draw_kept(like: torch.Tensor, dropout: float) -> tuple[torch.Tensor, float]:
    """
    Random booleans of the shape of `like`, False with probability `dropout` (rounded to 1/65536), and the factor that
    makes up for what is dropped. Sixteen random bits decide on a value, several times faster than PyTorch's own
    way on processors.
    """
    steps = round(dropout * 2**16)
    if steps >= 2**16:
        return torch.zeros_like(like, dtype=torch.bool), 0.0
    bits = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device).random_(-(2**63), None)
    kept = bits.view(torch.int16)[: like.numel()].view(like.shape) >= steps - 2**15
    return kept, 2**16 / (2**16 - steps)


class HSSTDropout(nn.Dropout):
    """Dropout, in a faster way on processors."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0.0 or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        kept, factor = draw_kept(input, self.p)
        return torch.where(kept, input * factor, 0.0)


def folded_attention(
    sequences: torch.Tensor,
    query_key: torch.Tensor,
    value_output: torch.Tensor,
    bias: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """
    Self-attention with folded projections (see `fold_projections`).

    Args:
        sequences: (W, S, L, D), of any strides.
        query_key: (H * D, D).
        value_output: (D, H * D).
        bias: of the output, (D,).
        attention_mask: bool (W * S, 1, L, L), True where a query sees a key; at least one key for each query.
        dropout: probability to drop an attention weight.

    Returns:
        (W, S, L, D), with the strides of `sequences`.
    """
    if not torch.is_grad_enabled():
        # A parameter would have everything kept for a backward pass that never comes
        bias = bias.detach()
    return _FoldedAttention.apply(sequences, query_key, value_output, bias, attention_mask, dropout)


def pieces(sequences: torch.Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, slice]]:
    """
    Where in (W, S, L, D) the sequences lie that are worked on together in `dtype`: several windows, or a part of one.
    """
    num_windows, num_sequences, length, _ = sequences.shape
    together = max(1, TOKEN_BYTES_AT_ONCE // dtype.itemsize // length)
    step = max(1, together // num_sequences)
    for window in range(0, num_windows, step):
        for start in range(0, num_sequences, together):
            yield slice(window, window + step), slice(start, start + together)


def attention_weights(
    tokens: torch.Tensor, query_key: torch.Tensor, keys_first: bool, hidden: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Queries (S, L * H, D) and attention weights of tokens (S, L, D): (S, L * H, L), or (S, L, L * H) with keys first;
    none for keys that are `hidden` (S, 1, L, L) from a query.
    """
    num_sequences, length, width = tokens.shape
    queries = torch.mm(tokens.view(-1, width), query_key.t()).view(num_sequences, -1, width)
    scores = products_with_keys(queries, tokens, keys_first)
    if hidden is not None:
        if keys_first:
            scores.view(num_sequences, length, length, -1).masked_fill_(hidden.permute(0, 3, 2, 1), float("-inf"))
        else:
            scores.view(num_sequences, length, -1, length).masked_fill_(hidden.transpose(1, 2), float("-inf"))
    return queries, torch.softmax(scores, dim=1 if keys_first else 2)


def products_with_keys(rows: torch.Tensor, tokens: torch.Tensor, keys_first: bool) -> torch.Tensor:
    """Scalar products of (S, L * H, D) with the tokens of their sequence (S, L, D): (S, L * H, L), or keys first."""
    return torch.bmm(tokens, rows.transpose(1, 2)) if keys_first else torch.bmm(rows, tokens.transpose(1, 2))


def by_query(weights: torch.Tensor, keys_first: bool) -> torch.Tensor:
    """A view of weights as (S, L * H, L)."""
    return weights.transpose(1, 2) if keys_first else weights


class _FoldedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        sequences: torch.Tensor,
        query_key: torch.Tensor,
        value_output: torch.Tensor,
        bias: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float,
    ) -> torch.Tensor:
        length, width = sequences.shape[2:]
        keys_first = keys_come_first(length, sequences.dtype)
        output = torch.empty_like(sequences)
        needs_backward = any(ctx.needs_input_grad)
        kept_for_backward: list[torch.Tensor | None] = []
        factor = 1.0
        if attention_mask is not None:
            attention_mask = attention_mask.unflatten(0, sequences.shape[:2])
        for piece in pieces(sequences, sequences.dtype):
            tokens = sequences[piece].reshape(-1, length, width).contiguous()  # (sequences of the piece, L, D)
            hidden = None if attention_mask is None else ~attention_mask[piece].flatten(0, 1)
            queries, weights = attention_weights(tokens, query_key, keys_first, hidden)
            dropped, kept = weights, None
            if dropout:
                kept, factor = draw_kept(weights, dropout)
                dropped = weights * kept
            # (tokens, H * D)
            context = torch.bmm(by_query(dropped, keys_first), tokens).view(-1, value_output.shape[1])
            # What is dropped is made up for in the smaller matrix
            attended = torch.addmm(bias, context, value_output.t(), alpha=factor)
            output[piece] = attended.view_as(output[piece])
            if needs_backward:
                kept_for_backward += [queries, weights, kept]
        ctx.save_for_backward(sequences, query_key, value_output, *kept_for_backward)
        ctx.factor = factor
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        sequences, query_key, value_output, *kept_for_backward = ctx.saved_tensors
        length, width = sequences.shape[2:]
        keys_first = keys_come_first(length, sequences.dtype)
        gradient = torch.empty_like(sequences)
        # Sums over many pieces: not in half precision
        sums_dtype = torch.promote_types(sequences.dtype, torch.float32)
        query_key_gradient = torch.zeros_like(query_key, dtype=sums_dtype)
        value_output_gradient = torch.zeros_like(value_output, dtype=sums_dtype)
        for number, piece in enumerate(pieces(sequences, sequences.dtype)):
            queries, weights, kept = kept_for_backward[3 * number : 3 * number + 3]
            tokens = sequences[piece].reshape(-1, length, width).contiguous()
            flat_tokens = tokens.view(-1, width)
            flat_gradient = output_gradient[piece].reshape(-1, width)
            if ctx.factor != 1.0:
                flat_gradient = flat_gradient * ctx.factor
            dropped = weights if kept is None else weights * kept
            context = torch.bmm(by_query(dropped, keys_first), tokens).view(-1, value_output.shape[1])
            _add_product(value_output_gradient, flat_gradient.t(), context)
            context_gradient = torch.mm(flat_gradient, value_output).view_as(queries)
            weights_gradient = products_with_keys(context_gradient, tokens, keys_first)
            if kept is not None:
                weights_gradient *= kept
            keys = 1 if keys_first else 2
            scores_gradient = torch.ops.aten._softmax_backward_data(weights_gradient, weights, keys, weights.dtype)
            queries_gradient = torch.bmm(by_query(scores_gradient, keys_first), tokens).view(flat_tokens.shape[0], -1)
            _add_product(query_key_gradient, queries_gradient.t(), flat_tokens)
            tokens_gradient = torch.bmm(by_query(dropped, not keys_first), context_gradient)  # the tokens as values
            tokens_gradient.baddbmm_(by_query(scores_gradient, not keys_first), queries)  # as keys
            tokens_gradient.view(-1, width).addmm_(queries_gradient, query_key)  # as queries
            gradient[piece] = tokens_gradient.view_as(gradient[piece])
        bias_gradient = output_gradient.sum(dim=(0, 1, 2), dtype=sums_dtype)
        return (
            gradient,
            query_key_gradient.to(query_key.dtype),
            value_output_gradient.to(value_output.dtype),
            bias_gradient.to(output_gradient.dtype),
            None,
            None,
        )


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Adds a matrix product to a sum, which may be of higher precision."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(torch.mm(left, right))

"""Attention within many short sequences, with its projections folded, for processors that work from their caches.

The published attention has 8 heads of 64 on tokens of width 96. The scores of a head, `x Wq (x Wk)^T`, are also
`(x (Wq Wk^T)) x^T`, and what it adds to the tokens, `(weights (x Wv)) Wo`, is also `(weights x) (Wv Wo)`: with the two
products of weights made beforehand the tokens themselves are keys and values of all heads. That is less arithmetic
(6 % less among 64 tokens, 18 % among 20), needs no transposed copies, and the heads of a sequence become one matrix
product. It is worked through a few sequences at a time, so that what is computed stays in the cache. The backward pass
computes it again there, which takes about as long as to write and read it for a whole batch, and far less memory.
Sums are taken in another order than in the unfolded form, and differ by rounding. Second derivatives and `torch.func`
need `attn_implementation="eager"`.

Shape comments use

    W windows     S sequences in a window     L tokens in a sequence     D width (`hidden_size`)     H heads
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedConfig

from .cached_products_hsst import GradientSum, Scratch, multiply, pieces

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
        and all(is_plain(module, nn.Linear) and module.weight.device.type == "cpu" for module in projections)
    )


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling a module, forwards and backwards, does nothing but what its class says."""
    hooks = [
        *module._forward_pre_hooks.values(),
        *module._forward_hooks.values(),
        *module._backward_pre_hooks.values(),
        *module._backward_hooks.values(),
    ]
    # Recorders of attention weights, which transformers leaves in place, have nothing to record here
    hooks = [hook for hook in hooks if getattr(hook, "__name__", "") != "output_capturing_hook"]
    # Hooks of accelerate stand in for `forward`
    return type(module) is kind and not hooks and not hasattr(module, "_hf_hook") and "forward" not in vars(module)


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


def draw_kept(like: torch.Tensor, dropout: float) -> torch.Tensor:
    """
    Random booleans of the shape of `like`, False with probability `dropout` (rounded to 1/65536). Sixteen random bits
    decide on a value, several times faster than PyTorch's own way on processors.
    """
    steps = round(dropout * 2**16)
    if steps >= 2**16:
        return torch.zeros_like(like, dtype=torch.bool)
    bits = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device).random_(-(2**63), None)
    return bits.view(torch.int16)[: like.numel()].view(like.shape) >= steps - 2**15


def dropout_factor(dropout: float) -> float:
    """What makes up for the values that are dropped with a probability (see `draw_kept`)."""
    steps = round(dropout * 2**16)
    return 2**16 / (2**16 - steps) if steps < 2**16 else 0.0


class HSSTDropout(nn.Dropout):
    """Dropout, in a faster way on processors."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0.0 or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        return torch.where(draw_kept(input, self.p), input * dropout_factor(self.p), 0.0)


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
    if attention_mask is not None:
        attention_mask = attention_mask.unflatten(0, sequences.shape[:2])
    # What dropout takes from contexts is made up for in the smaller matrix
    if dropout:
        value_output = value_output * dropout_factor(dropout)
    if not torch.is_grad_enabled():
        places = pieces(sequences, sequences.dtype)
        return _forward(sequences, query_key, value_output, bias, attention_mask, dropout, places)[0]
    return _FoldedAttention.apply(sequences, query_key, value_output, bias, attention_mask, dropout)


class Attention(NamedTuple):
    """Attention of tokens (S, L, D) within their sequences, in memory that the next sequences use again."""

    queries: torch.Tensor  # (S, L * H, D)
    weights: torch.Tensor  # (S, L * H, L), or (S, L, L * H) where keys come first
    kept: torch.Tensor | None  # which of them dropout kept
    dropped: torch.Tensor  # the weights after dropout, what was dropped not made up for
    context: torch.Tensor  # (S, L * H, D)


def attend(
    tokens: torch.Tensor,
    query_key: torch.Tensor,
    scratch: Scratch,
    *,
    hidden: torch.Tensor | None = None,
    dropout: float = 0.0,
    kept: torch.Tensor | None = None,
    wants_gradients: bool = False,
) -> Attention:
    """
    Attention of tokens (S, L, D), none to keys that are `hidden` (S, 1, L, L) from a query. What dropout keeps is
    drawn, or as it was `kept` before. Unless `attend_backward` is to follow, contexts are written over queries.
    """
    (num_sequences, length, width), dtype = tokens.shape, tokens.dtype
    keys_first = keys_come_first(length, dtype)
    queries = scratch("queries", (num_sequences * length, query_key.shape[0]), dtype)
    multiply(tokens.view(-1, width), query_key.t(), queries)
    queries = queries.view(num_sequences, -1, width)
    scores = products_with_keys(queries, tokens, keys_first, scratch, "weights")
    if hidden is not None:
        if keys_first:
            scores.view(num_sequences, length, length, -1).masked_fill_(hidden.permute(0, 3, 2, 1), float("-inf"))
        else:
            scores.view(num_sequences, length, -1, length).masked_fill_(hidden.transpose(1, 2), float("-inf"))
    # In place, for the sake of the cache, as is the softmax's gradient
    weights = torch.ops.aten._softmax.out(scores, 1 if keys_first else 2, False, out=scores)
    if dropout and kept is None:
        kept = draw_kept(weights, dropout)
    dropped = weights if kept is None else torch.mul(weights, kept, out=scratch("dropped", weights.shape, dtype))
    context = scratch("context" if wants_gradients else "queries", queries.shape, dtype)
    torch.bmm(by_query(dropped, keys_first), tokens, out=context)
    return Attention(queries, weights, kept, dropped, context)


def attend_backward(
    tokens: torch.Tensor,
    query_key: torch.Tensor,
    value_output: torch.Tensor,
    attention: Attention,
    gradient: torch.Tensor,
    key_query_sum: GradientSum,
    value_output_sum: GradientSum,
    scratch: Scratch,
) -> torch.Tensor:
    """
    The gradient of tokens (S, L, D) from that of what their attention adds to them (T, D). Those of `query_key`,
    transposed, and `value_output` are added to sums; what `attention` holds is written over.
    """
    (_, length, width), dtype = tokens.shape, tokens.dtype
    keys_first = keys_come_first(length, dtype)
    queries, weights, kept, dropped, context = attention
    flat_context = context.view(gradient.shape[0], -1)
    value_output_sum.add_product(gradient, flat_context)
    multiply(gradient, value_output, flat_context)
    context_gradient = context
    tokens_gradient = torch.bmm(by_query(dropped, not keys_first), context_gradient)  # the tokens as values
    weights_gradient = products_with_keys(context_gradient, tokens, keys_first, scratch, "weights_gradient")
    if kept is not None:
        weights_gradient *= kept
    scores_gradient = torch.ops.aten._softmax_backward_data.out(
        weights_gradient, weights, 1 if keys_first else 2, dtype, grad_input=weights_gradient
    )
    tokens_gradient.baddbmm_(by_query(scores_gradient, not keys_first), queries)  # as keys
    queries_gradient = torch.bmm(by_query(scores_gradient, keys_first), tokens, out=queries).view_as(flat_context)
    key_query_sum.add_product(tokens.view(-1, width), queries_gradient)
    multiply(queries_gradient, query_key, tokens_gradient.view(-1, width), add=True)  # as queries
    return tokens_gradient


def products_with_keys(
    rows: torch.Tensor, tokens: torch.Tensor, keys_first: bool, scratch: Scratch, name: str
) -> torch.Tensor:
    """
    Scalar products of (S, L * H, D) with the tokens of their sequence (S, L, D), in memory with a name: (S, L * H, L),
    or keys first.
    """
    left, right = (tokens, rows) if keys_first else (rows, tokens)
    output = scratch(name, (left.shape[0], left.shape[1], right.shape[1]), left.dtype)
    return torch.bmm(left, right.transpose(1, 2), out=output)


def by_query(weights: torch.Tensor, keys_first: bool) -> torch.Tensor:
    """A view of weights as (S, L * H, L)."""
    return weights.transpose(1, 2) if keys_first else weights


def _forward(
    sequences: torch.Tensor,
    query_key: torch.Tensor,
    value_output: torch.Tensor,
    bias: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float,
    places: Iterable[tuple[slice, slice]],
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """What attention makes of sequences (W, S, L, D), a piece at a time, and which weights of each dropout kept."""
    output = torch.empty_like(sequences)
    all_kept = []
    scratch = Scratch()
    for piece in places:
        tokens, hidden = _some(sequences, attention_mask, piece)
        attention = attend(tokens, query_key, scratch, hidden=hidden, dropout=dropout)
        context = attention.context.view(-1, value_output.shape[1])
        output[piece] = torch.addmm(bias, context, value_output.t()).view_as(output[piece])
        all_kept.append(attention.kept)
    return output, all_kept


def _some(
    sequences: torch.Tensor, attention_mask: torch.Tensor | None, piece: tuple[slice, slice]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The sequences of a piece (S, L, D), and which keys are hidden from their queries (S, 1, L, L)."""
    tokens = sequences[piece].reshape(-1, *sequences.shape[2:]).contiguous()
    return tokens, None if attention_mask is None else ~attention_mask[piece].flatten(0, 1)


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
        # The same in the backward pass, on however many threads
        ctx.places = list(pieces(sequences, sequences.dtype))
        output, all_kept = _forward(sequences, query_key, value_output, bias, attention_mask, dropout, ctx.places)
        ctx.save_for_backward(sequences, query_key, value_output, attention_mask, *all_kept)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        sequences, query_key, value_output, attention_mask, *all_kept = ctx.saved_tensors
        gradient = torch.empty_like(sequences)
        key_query_sum, value_output_sum = GradientSum(query_key.t()), GradientSum(value_output)
        scratch = Scratch()
        for piece, kept in zip(ctx.places, all_kept, strict=True):
            tokens, hidden = _some(sequences, attention_mask, piece)
            tokens_gradient = attend_backward(
                tokens,
                query_key,
                value_output,
                attend(tokens, query_key, scratch, hidden=hidden, kept=kept, wants_gradients=True),
                output_gradient[piece].reshape(-1, sequences.shape[3]).contiguous(),
                key_query_sum,
                value_output_sum,
                scratch,
            )
            gradient[piece] = tokens_gradient.view_as(gradient[piece])
        bias_gradient = output_gradient.sum(dim=(0, 1, 2), dtype=key_query_sum.sum_dtype).to(output_gradient.dtype)
        return gradient, key_query_sum().t(), value_output_sum(), bias_gradient, None, None

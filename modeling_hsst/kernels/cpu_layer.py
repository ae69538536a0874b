"""A whole transformer layer, a few sequences at a time, for processors that work from their caches.

Attention is folded (see `folding`). What lies between the tokens that go into a layer and those that come out of it
(normalized tokens, queries, attention weights, contexts, hidden values of the MLP) never leaves the cache: a layer
reads each token once and writes it once. For a backward pass the tokens between attention and MLP are kept, and what
dropout kept. The rest is computed again there, in the cache, which takes about as long as to write and read it for a
whole batch, and a fraction of the memory. Second derivatives and `torch.func` need `attn_implementation="eager"`.

Shape comments use

    B windows     N blocks     P positions     S sequences     L tokens in a sequence     T all tokens of a piece
    D width (`hidden_size`)     H heads     M width of the MLP (`intermediate_size`)
"""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.activations import GELUActivation

from ..modeling_hsst import HSSTAttention, HSSTLayer
from .cpu_products import GradientSum, Scratch, has_fused_products, linear, linear_add, multiply, pieces
from .folding import fold_projections, folding_ratio, products_dtype

# Widest registers of processors: softmax along rows that do not fill them goes value by value in PyTorch
REGISTER_BYTES = 64
# What dropout drops values of: attention weights, what attention adds to the tokens, active hidden values of the MLP,
# what the MLP adds to the tokens
DROPPED = ("attention", "attended", "active", "output")
Kept = dict[str, torch.Tensor]  # what dropout kept, for names of `DROPPED`
Sums = dict[str, GradientSum]  # gradients of weights, for names of `LayerWeights`


def folds_layer(layer: HSSTLayer, tokens: torch.Tensor) -> bool:
    """
    Whether `folded_layer` computes tokens (B, N, P, D) that a layer of plain modules is called with: on a processor,
    where folding pays.
    """
    length, width = tokens.shape[2 if layer.axis == "spatial" else 1], tokens.shape[3]
    return (
        tokens.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and folding_is_faster(length, width, layer.attention.head_dim, products_dtype(tokens))
        and all(
            parameter.device.type == "cpu" and (torch.is_autocast_enabled("cpu") or parameter.dtype == tokens.dtype)
            for parameter in layer.parameters()
        )
    )


def folding_is_faster(length: int, width: int, head_dim: int, dtype: torch.dtype) -> bool:
    """
    Whether folded attention takes less time on a processor: with fewer multiplications, or with up to twice as many
    among short sequences in half precision, which PyTorch's own attention takes up to ten times as long for.
    """
    allowed = 2 if dtype.itemsize < 4 and length <= 128 else 1
    return folding_ratio(length, width, head_dim) <= allowed


class LayerWeights(NamedTuple):
    """What a layer computes with. Matrices, and the bias of the MLP's hidden values, in the precision of products."""

    before_weight: torch.Tensor  # (D,)
    before_bias: torch.Tensor  # (D,)
    query_key: torch.Tensor  # (H * D, D), see `fold_projections`
    value_output: torch.Tensor  # (D, H * D)
    output_bias: torch.Tensor  # (D,)
    after_weight: torch.Tensor  # (D,)
    after_bias: torch.Tensor  # (D,)
    first_weight: torch.Tensor  # (M, D)
    first_bias: torch.Tensor  # (M,)
    second_weight: torch.Tensor  # (D, M)
    second_bias: torch.Tensor  # (D,)
    position_bias: torch.Tensor | None  # (B, S, ...) as scores lie; B and S are 1 where they make no difference


class LayerSettings(NamedTuple):
    """How a layer computes: its activation, the epsilons of its LayerNorms, and probabilities to drop values."""

    activation: Callable[[torch.Tensor], torch.Tensor]
    before_eps: float
    after_eps: float
    dropout: dict[str, float]  # of each of `DROPPED`


def folded_layer(
    layer: Any,
    tokens: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    places: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    What an `HSSTLayer` makes of tokens.

    Args:
        layer: where `folds_layer` says so.
        tokens: (B, N, P, D).
        attention_mask: bool (B * S, 1, L, L), True where a query sees a key; at least one key for each query.
        places: what relative positions need (see `HSSTRelativePositionBias`).

    Returns:
        (B, N, P, D), in the precision of `tokens`, or of the products where that is higher.
    """
    dtype, attention, mlp = products_dtype(tokens), layer.attention, layer.mlp
    sequences = tokens if layer.axis == "spatial" else tokens.transpose(1, 2)
    if attention_mask is not None:
        attention_mask = attention_mask.unflatten(0, sequences.shape[:2])
    dropout = (attention.attention_dropout, layer.dropout.p, mlp.dropout.p, layer.dropout.p)
    settings = LayerSettings(
        mlp.activation_fn,
        layer.layernorm_before.eps,
        layer.layernorm_after.eps,
        dict(zip(DROPPED, dropout if layer.training else (0.0,) * 4, strict=True)),
    )
    with torch.autocast("cpu", enabled=False):
        query_key, value_output = folded_projections(attention, dtype)
        heads = slice(None)
        if sequences.shape[2] == 1 and not settings.dropout["attention"]:
            # A token that is alone sees itself, whatever its query, so that heads count by their sum: one does for all
            width, heads = sequences.shape[3], slice(1)
            query_key, value_output = query_key[:width], value_output.unflatten(1, (-1, width)).sum(1)
        if settings.dropout["attention"]:
            # What dropout takes from contexts is made up for in the smaller matrix
            value_output = value_output * dropout_factor(settings.dropout["attention"])
        before, after = layer.layernorm_before, layer.layernorm_after
        attention_weights = query_key, value_output, attention.o_proj.bias
        mlp_weights = mlp.fc1.weight.to(dtype), mlp.fc1.bias.to(dtype), mlp.fc2.weight.to(dtype), mlp.fc2.bias
        norms = before.weight, before.bias, after.weight, after.bias
        bias = None
        if places is not None and attention.position_bias is not None:
            bias = as_scores_lie(attention.position_bias(places)[:, :, heads].to(dtype))
        weights = LayerWeights(*norms[:2], *attention_weights, *norms[2:], *mlp_weights, bias)
        if torch.is_grad_enabled():
            output = _FoldedLayer.apply(settings, sequences, attention_mask, *weights)
        else:
            output, *_ = _forward(settings, sequences, attention_mask, weights, pieces(sequences, dtype), keeps=False)
    return output if layer.axis == "spatial" else output.transpose(1, 2)


def folded_projections(attention: HSSTAttention, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """What `fold_projections` makes of the weights: products in at least float32, rounded once."""
    qkv_weight, output_weight = attention.qkv_proj.weight, attention.o_proj.weight
    full = torch.promote_types(qkv_weight.dtype, torch.float32)
    query_key, value_output = fold_projections(
        qkv_weight.to(full), output_weight.to(full), attention.num_attention_heads, attention.scaling
    )
    return query_key.to(dtype), value_output.to(dtype)


def _forward(
    settings: LayerSettings,
    sequences: torch.Tensor,
    attention_mask: torch.Tensor | None,
    weights: LayerWeights,
    places: Iterable[tuple[slice, slice]],
    keeps: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, list[torch.Tensor | None]]:
    """
    The tokens after a layer, of sequences (B, S, L, D) and with their strides, computed a piece at a time; those
    between attention and MLP, if a backward pass is to come and this `keeps` them; and which values of each piece
    dropout kept, for each of `DROPPED`. `attention_mask` (B, S, 1, L, L) is as for `folded_layer`.
    """
    dtype, (length, width) = weights.query_key.dtype, sequences.shape[2:]
    output = torch.empty_like(sequences, dtype=torch.promote_types(sequences.dtype, dtype))
    middle = torch.empty(sequences.shape, dtype=output.dtype) if keeps else None
    all_kept: list[torch.Tensor | None] = []
    some = SomeOfALayer(settings, weights)
    for piece in places:
        kept: Kept = {}
        before = sequences[piece].reshape(-1, length, width).contiguous()
        shape = (before.shape[0] * length, width)
        between = some.scratch("between", shape, output.dtype) if middle is None else middle[piece].view(shape)
        some.add_attention(before, hidden_keys(attention_mask, piece), piece, kept, between)
        place = output[piece]
        # Where tokens lie in a row, they are computed in their place
        after = place.view(shape) if place.is_contiguous() else some.scratch("after", shape, output.dtype)
        some.add_mlp(between, kept, after)
        if not place.is_contiguous():
            place.copy_(after.view_as(place))
        all_kept += [kept.get(name) for name in DROPPED]
    return output, middle, all_kept


class _FoldedLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        settings: LayerSettings,
        sequences: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *weights: torch.Tensor | None,
    ) -> torch.Tensor:
        layer = LayerWeights(*weights)  # type: ignore[arg-type]
        # The same in the backward pass, on however many threads
        places = list(pieces(sequences, layer.query_key.dtype))
        keeps = any(ctx.needs_input_grad)
        output, middle, all_kept = _forward(settings, sequences, attention_mask, layer, places, keeps)
        ctx.settings, ctx.places = settings, places
        ctx.save_for_backward(sequences, attention_mask, middle, *weights, *all_kept)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        sequences, attention_mask, middle, *saved = ctx.saved_tensors
        number = len(LayerWeights._fields)
        weights, all_kept = LayerWeights(*saved[:number]), iter(saved[number:])
        length, width = sequences.shape[2:]
        gradient = torch.empty_like(sequences)
        some = SomeOfALayer(ctx.settings, weights)
        sums = {name: GradientSum(weight) for name, weight in weights._asdict().items() if weight is not None}
        sums["query_key"] = GradientSum(weights.query_key.t())
        for piece in ctx.places:
            masks = zip(DROPPED, islice(all_kept, len(DROPPED)), strict=True)
            kept = {name: mask for name, mask in masks if mask is not None}
            before = sequences[piece].reshape(-1, length, width).contiguous()
            between = middle[piece].view(-1, width)
            of_after = output_gradient[piece].reshape(-1, width).contiguous()
            of_between = some.add_mlp_backward(between, kept, of_after, sums)
            hidden = hidden_keys(attention_mask, piece)
            of_before = some.add_attention_backward(before, hidden, piece, kept, of_between, sums)
            gradient[piece] = of_before.view_as(gradient[piece])
        gradients = {name: total() for name, total in sums.items()}
        gradients["query_key"] = gradients["query_key"].t()
        return None, gradient, None, *(gradients.get(name) for name in LayerWeights._fields)


def hidden_keys(attention_mask: torch.Tensor | None, piece: tuple[slice, slice]) -> torch.Tensor | None:
    """Which keys are hidden from the queries of a piece (S, 1, L, L)."""
    return None if attention_mask is None else ~attention_mask[piece].flatten(0, 1)


def as_scores_lie(position_bias: torch.Tensor) -> torch.Tensor:
    """A bias (B, S, H, L, L) as (B, S, L * H, L), or (B, S, L, L * H) where keys come first."""
    by_queries = position_bias.transpose(2, 3)  # (B, S, query, head, key)
    if keys_come_first(position_bias.shape[-1], position_bias.dtype):
        return by_queries.movedim(-1, 2).flatten(3).contiguous()
    return by_queries.flatten(2, 3).contiguous()


def of_piece(position_bias: torch.Tensor, piece: tuple[slice, slice]) -> torch.Tensor:
    """What belongs to a piece of the sequences of a bias (B, S, ...), in which B and S may be 1."""
    windows, sequences = (
        part if size > 1 else slice(None) for part, size in zip(piece, position_bias.shape[:2], strict=True)
    )
    return position_bias[windows, sequences]


class Attention(NamedTuple):
    """Attention of tokens (S, L, D) within their sequences, in memory that the next sequences use again."""

    queries: torch.Tensor  # (S, L * H, D)
    weights: torch.Tensor  # (S, L * H, L), or (S, L, L * H) where keys come first
    dropped: torch.Tensor  # the weights after dropout, what was dropped not made up for
    context: torch.Tensor  # (S, L * H, D)


def keys_come_first(length: int, dtype: torch.dtype) -> bool:
    """Whether scores among `length` tokens are kept as (keys, queries), for the sake of their softmax."""
    return length % (REGISTER_BYTES // dtype.itemsize) != 0


def by_query(weights: torch.Tensor, keys_first: bool) -> torch.Tensor:
    """A view of weights as (S, L * H, L)."""
    return weights.transpose(1, 2) if keys_first else weights


class SomeOfALayer:
    """What a layer makes of some sequences, and gradients from that of what it made."""

    def __init__(self, settings: LayerSettings, weights: LayerWeights):
        self.settings = settings
        self.weights = weights
        self.dtype = weights.query_key.dtype
        self.scratch = Scratch()

    def add_attention(
        self,
        before: torch.Tensor,
        hidden: torch.Tensor | None,
        piece: tuple[slice, slice],
        kept: Kept,
        between: torch.Tensor,
    ) -> None:
        """Writes tokens (S, L, D) and what attention makes of them to (T, D), and what dropout kept to `kept`."""
        weights = self.weights
        normalized = self.normalize_before(before)[0]
        context = self.attend(normalized, hidden, piece, kept, wants_gradients=False).context.view(len(between), -1)
        tokens = before.view_as(between)
        self.add_product(tokens, context, weights.value_output, weights.output_bias, "attended", kept, between)

    def add_mlp(self, between: torch.Tensor, kept: Kept, after: torch.Tensor) -> None:
        """Writes tokens (T, D) and what the MLP makes of them to (T, D), and what dropout kept to `kept`."""
        weights = self.weights
        normalized = self.normalize_after(between)[0]
        if isinstance(self.settings.activation, GELUActivation):
            active = linear(normalized, weights.first_weight, weights.first_bias, gelu=True)
        else:
            active = self.settings.activation(self.hidden(normalized))
        active = self.drop(active, "active", kept)
        self.add_product(between, active, weights.second_weight, weights.second_bias, "output", kept, after)

    def add_mlp_backward(self, between: torch.Tensor, kept: Kept, of_after: torch.Tensor, sums: Sums) -> torch.Tensor:
        """The gradient of tokens (T, D) from that of what `add_mlp` made of them; those of weights go to sums."""
        weights = self.weights
        normalized, *moments = self.normalize_after(between)
        hidden = self.hidden(normalized)
        of_output = self.drop(of_after, "output", kept)
        sums["second_bias"].add_sum(of_output)
        of_output = of_output.to(self.dtype)
        sums["second_weight"].add_product(of_output, self.drop(self.settings.activation(hidden), "active", kept))
        of_active = self.drop(torch.mm(of_output, weights.second_weight), "active", kept)
        of_hidden = activation_backward(self.settings.activation, hidden, of_active)
        sums["first_bias"].add_sum(of_hidden)
        sums["first_weight"].add_product(of_hidden, normalized)
        of_normalized = torch.mm(of_hidden, weights.first_weight)
        of_between, of_weight, of_bias = layer_norm_backward(
            of_normalized, between, moments, weights.after_weight, weights.after_bias
        )
        sums["after_weight"].add(of_weight)
        sums["after_bias"].add(of_bias)
        return of_between.add_(of_after)

    def add_attention_backward(
        self,
        before: torch.Tensor,
        hidden: torch.Tensor | None,
        piece: tuple[slice, slice],
        kept: Kept,
        of_between: torch.Tensor,
        sums: Sums,
    ) -> torch.Tensor:
        """The gradient of tokens (S, L, D) from that of what `add_attention` made of them (T, D)."""
        weights = self.weights
        normalized, *moments = self.normalize_before(before)
        of_attended = self.drop(of_between, "attended", kept)
        sums["output_bias"].add_sum(of_attended)
        of_attended = of_attended.to(self.dtype)
        queries, attention_weights, dropped, context = self.attend(
            normalized, hidden, piece, kept, wants_gradients=True
        )
        length, width = before.shape[1:]
        keys_first = keys_come_first(length, self.dtype)
        flat_context = context.view(len(of_attended), -1)
        sums["value_output"].add_product(of_attended, flat_context)
        # Written over what attention holds, from here on
        multiply(of_attended, weights.value_output, flat_context)
        of_normalized = torch.bmm(by_query(dropped, not keys_first), context)  # the tokens as values
        of_weights = self.products_with_keys(context, normalized, keys_first, "weights_gradient")
        if "attention" in kept:
            of_weights *= kept["attention"]
        of_scores = torch.ops.aten._softmax_backward_data.out(
            of_weights, attention_weights, 1 if keys_first else 2, self.dtype, grad_input=of_weights
        )
        if weights.position_bias is not None:
            total = of_piece(sums["position_bias"].total[0], piece)
            of_scores_by_window = of_scores.view(total.shape[0], -1, *total.shape[2:])
            if total.shape[1] == 1:
                of_scores_by_window = of_scores_by_window.sum(dim=1, keepdim=True)
            total += of_scores_by_window
        of_normalized.baddbmm_(by_query(of_scores, not keys_first), queries)  # as keys
        of_queries = torch.bmm(by_query(of_scores, keys_first), normalized, out=queries).view_as(flat_context)
        sums["query_key"].add_product(normalized.view(-1, width), of_queries)
        multiply(of_queries, weights.query_key, of_normalized.view(-1, width), add=True)  # as queries
        of_before, of_weight, of_bias = layer_norm_backward(
            of_normalized, before, moments, weights.before_weight, weights.before_bias
        )
        sums["before_weight"].add(of_weight)
        sums["before_bias"].add(of_bias)
        return of_before.add_(of_between.view_as(before))

    def normalize_before(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Tokens that attention sees, in the precision of products; and their moments."""
        weights = self.weights
        return layer_norm(tokens, weights.before_weight, weights.before_bias, self.settings.before_eps, self.dtype)

    def normalize_after(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Tokens that the MLP sees, in the precision of products; and their moments."""
        weights = self.weights
        return layer_norm(tokens, weights.after_weight, weights.after_bias, self.settings.after_eps, self.dtype)

    def attend(
        self,
        tokens: torch.Tensor,
        hidden: torch.Tensor | None,
        piece: tuple[slice, slice],
        kept: Kept,
        wants_gradients: bool,
    ) -> Attention:
        """
        Attention of normalized tokens (S, L, D) of a piece, none to keys that are `hidden` (S, 1, L, L) from a query.
        Unless gradients are to follow, contexts are written over queries.
        """
        (num_sequences, length, width), query_key = tokens.shape, self.weights.query_key
        keys_first = keys_come_first(length, self.dtype)
        queries = self.scratch("queries", (num_sequences * length, query_key.shape[0]), self.dtype)
        multiply(tokens.view(-1, width), query_key.t(), queries)
        queries = queries.view(num_sequences, -1, width)
        bias = self.weights.position_bias
        if bias is not None and bias.shape[:2] == (1, 1):
            scores = self.products_with_keys(queries, tokens, keys_first, "weights", bias[0])
        else:
            scores = self.products_with_keys(queries, tokens, keys_first, "weights")
            if bias is not None:
                bias = of_piece(bias, piece)
                scores.view(bias.shape[0], -1, *bias.shape[2:]).add_(bias)
        if hidden is not None and keys_first:
            scores.view(num_sequences, length, length, -1).masked_fill_(hidden.permute(0, 3, 2, 1), float("-inf"))
        elif hidden is not None:
            scores.view(num_sequences, length, -1, length).masked_fill_(hidden.transpose(1, 2), float("-inf"))
        # In place, for the sake of the cache, as is the softmax's gradient
        weights = dropped = torch.ops.aten._softmax.out(scores, 1 if keys_first else 2, False, out=scores)
        if self.settings.dropout["attention"] and "attention" not in kept:
            kept["attention"] = draw_kept(weights, self.settings.dropout["attention"])
        if "attention" in kept:
            dropped = torch.mul(weights, kept["attention"], out=self.scratch("dropped", weights.shape, self.dtype))
        context = self.scratch("context" if wants_gradients else "queries", queries.shape, self.dtype)
        torch.bmm(by_query(dropped, keys_first), tokens, out=context)
        return Attention(queries, weights, dropped, context)

    def products_with_keys(
        self,
        rows: torch.Tensor,
        tokens: torch.Tensor,
        keys_first: bool,
        name: str,
        added: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Scalar products of (S, L * H, D) with the tokens of their sequence (S, L, D), in memory with a name: (S, L * H,
        L), or keys first. What is `added` to each sequence lies so, too.
        """
        left, right = (tokens, rows) if keys_first else (rows, tokens)
        output = self.scratch(name, (left.shape[0], left.shape[1], right.shape[1]), self.dtype)
        if added is not None:
            return torch.baddbmm(added.expand_as(output), left, right.transpose(1, 2), out=output)
        return torch.bmm(left, right.transpose(1, 2), out=output)

    def hidden(self, normalized: torch.Tensor) -> torch.Tensor:
        """The hidden values (T, M) of the MLP."""
        return linear(normalized, self.weights.first_weight, self.weights.first_bias)

    def drop(self, values: torch.Tensor, name: str, kept: Kept) -> torch.Tensor:
        """Values after dropout. What it keeps is drawn where `kept` does not say, and written there."""
        dropout = self.settings.dropout[name]
        if not dropout:
            return values
        if name not in kept:
            kept[name] = draw_kept(values, dropout)
        return torch.where(kept[name], values * dropout_factor(dropout), 0.0)

    def add_product(
        self,
        tokens: torch.Tensor,
        rows: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        name: str,
        kept: Kept,
        output: torch.Tensor,
    ) -> None:
        """Writes tokens (T, D) and, after dropout, rows (T, K) by weights (D, K) with a bias to (T, D)."""
        if self.settings.dropout[name]:
            torch.add(tokens, self.drop(torch.mm(rows, weight.t()) + bias, name, kept), out=output)
        elif output.dtype == bias.dtype == rows.dtype and has_fused_products(rows.dtype):
            output.copy_(linear_add(rows, weight, bias, tokens))
        else:
            multiply(rows, weight.t(), torch.add(tokens, bias, out=output), add=True)


def layer_norm(
    tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """LayerNorm of tokens (..., D) in a precision; means and reciprocal standard deviations of the tokens."""
    normalized, *moments = torch.native_layer_norm(tokens, tokens.shape[-1:], weight, bias, eps)
    return normalized.to(dtype), *moments


def layer_norm_backward(
    gradient: torch.Tensor, tokens: torch.Tensor, moments: list[torch.Tensor], weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of tokens, weight and bias from that of what `layer_norm` made of them."""
    return torch.ops.aten.native_layer_norm_backward(
        gradient.to(tokens.dtype), tokens, tokens.shape[-1:], *moments, weight, bias, [True, True, True]
    )


def activation_backward(
    activation: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor, gradient: torch.Tensor
) -> torch.Tensor:
    """The gradient of values from that of what an activation made of them."""
    if isinstance(activation, GELUActivation):
        return torch.ops.aten.gelu_backward(gradient, values)
    with torch.enable_grad():
        values = values.detach().requires_grad_()
        return torch.autograd.grad(activation(values), values, gradient)[0]


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


class FastDropout(nn.Dropout):
    """Dropout, in a faster way on processors."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0.0 or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        return torch.where(draw_kept(input, self.p), input * dropout_factor(self.p), 0.0)

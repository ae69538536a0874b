"""A whole transformer layer, a few sequences at a time, for processors that work from their caches.

Attention is folded (see `attention_hsst`). What lies between the tokens that go into a layer and those that come out
of it (normalised tokens, queries, attention weights, contexts, hidden values of the MLP) never leaves the cache: a
layer reads each token once and writes it once. For a backward pass the tokens between attention and MLP are kept, and
what dropout kept. The rest is computed again there, in the cache, which takes about as long as to write and read it
for a whole batch, and a fraction of the memory. Second derivatives and `torch.func` need
`attn_implementation="eager"`.

Shape comments use

    B windows     N blocks     P positions     S sequences     L tokens in a sequence     T all tokens of a piece
    D width (`hidden_size`)     H heads     M width of the MLP (`intermediate_size`)
"""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from transformers.activations import GELUActivation

from .attention_hsst import (
    Attention,
    attend,
    attend_backward,
    draw_kept,
    dropout_factor,
    folds_projections,
    products_dtype,
)
from .cached_products_hsst import (
    GradientSum,
    Scratch,
    has_fused_products,
    linear,
    linear_add,
    multiply,
    pieces,
)
from .fused_layer_hsst import has_plain_modules, wants_only_tokens

# What dropout drops values of: attention weights, what attention adds to the tokens, active hidden values of the MLP,
# what the MLP adds to the tokens
DROPPED = ("attention", "attended", "active", "output")


def folds_layer(
    layer: Any, tokens: torch.Tensor, attention_mask: torch.Tensor | None, output_attentions: bool | None
) -> bool:
    """
    Whether `folded_layer` computes an `HSSTLayer` of tokens (B, N, P, D): on a processor, where attention is folded,
    as long as only plain modules work on them and nothing else is wanted of them.
    """
    attention = layer.attention
    sequences = tokens if layer.axis == "spatial" else tokens.transpose(1, 2)
    return (
        wants_only_tokens(layer, attention_mask, output_attentions)
        and folds_projections(attention.config, sequences, attention.qkv_proj, attention.o_proj)
        and (
            torch.is_autocast_enabled("cpu")
            or all(parameter.dtype == tokens.dtype for parameter in layer.parameters())
        )
        and has_plain_modules(layer)
        # Its gradients are those of its input alone
        and not any(True for _ in layer.mlp.activation_fn.parameters())
    )


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


class LayerSettings(NamedTuple):
    """How a layer computes: its activation, the epsilons of its LayerNorms, and probabilities to drop values."""

    activation: Callable[[torch.Tensor], torch.Tensor]
    before_eps: float
    after_eps: float
    dropout: dict[str, float]  # of each of `DROPPED`


def folded_layer(layer: Any, tokens: torch.Tensor) -> torch.Tensor:
    """
    What an `HSSTLayer` makes of tokens.

    Args:
        layer: where `folds_layer` says so.
        tokens: (B, N, P, D).

    Returns:
        (B, N, P, D), in the precision of `tokens`, or of the products where that is higher.
    """
    dtype, attention, mlp = products_dtype(tokens), layer.attention, layer.mlp
    sequences = tokens if layer.axis == "spatial" else tokens.transpose(1, 2)
    dropout = (attention.attention_dropout, layer.dropout.p, mlp.dropout.p, layer.dropout.p)
    settings = LayerSettings(
        mlp.activation_fn,
        layer.layernorm_before.eps,
        layer.layernorm_after.eps,
        dict(zip(DROPPED, dropout if layer.training else (0.0,) * 4, strict=True)),
    )
    with torch.autocast("cpu", enabled=False):
        query_key, value_output = attention.folded_projections(dtype)
        if settings.dropout["attention"]:
            # What dropout takes from contexts is made up for in the smaller matrix
            value_output = value_output * dropout_factor(settings.dropout["attention"])
        weights = LayerWeights(
            layer.layernorm_before.weight,
            layer.layernorm_before.bias,
            query_key,
            value_output,
            attention.o_proj.bias,
            layer.layernorm_after.weight,
            layer.layernorm_after.bias,
            mlp.fc1.weight.to(dtype),
            mlp.fc1.bias.to(dtype),
            mlp.fc2.weight.to(dtype),
            mlp.fc2.bias,
        )
        if torch.is_grad_enabled():
            output = _FoldedLayer.apply(settings, sequences, *weights)
        else:
            output, *_ = _forward(settings, sequences, weights, pieces(sequences, dtype), keeps=False)
    return output if layer.axis == "spatial" else output.transpose(1, 2)


def _forward(
    settings: LayerSettings,
    sequences: torch.Tensor,
    weights: LayerWeights,
    places: Iterable[tuple[slice, slice]],
    keeps: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, list[torch.Tensor | None]]:
    """
    The tokens after a layer, of sequences (B, S, L, D) and with their strides, computed a piece at a time; those
    between attention and MLP, if a backward pass is to come and this `keeps` them; and which values of each piece
    dropout kept, for each of `DROPPED`.
    """
    dtype, (length, width) = weights.query_key.dtype, sequences.shape[2:]
    output = torch.empty_like(sequences, dtype=torch.promote_types(sequences.dtype, dtype))
    middle = torch.empty(sequences.shape, dtype=output.dtype) if keeps else None
    all_kept: list[torch.Tensor | None] = []
    some = SomeOfALayer(settings, weights)
    for piece in places:
        kept: dict[str, torch.Tensor] = {}
        before = sequences[piece].reshape(-1, length, width).contiguous()
        shape = (before.shape[0] * length, width)
        between = some.scratch("between", shape, output.dtype) if middle is None else middle[piece].view(shape)
        some.add_attention(before, kept, between)
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
    def forward(ctx: Any, settings: LayerSettings, sequences: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        layer = LayerWeights(*weights)
        # The same in the backward pass, on however many threads
        places = list(pieces(sequences, layer.query_key.dtype))
        output, middle, all_kept = _forward(settings, sequences, layer, places, keeps=any(ctx.needs_input_grad))
        ctx.settings, ctx.places = settings, places
        ctx.save_for_backward(sequences, middle, *weights, *all_kept)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        sequences, middle, *saved = ctx.saved_tensors
        number = len(LayerWeights._fields)
        weights, all_kept = LayerWeights(*saved[:number]), iter(saved[number:])
        length, width = sequences.shape[2:]
        gradient = torch.empty_like(sequences)
        some = SomeOfALayer(ctx.settings, weights)
        sums = {name: GradientSum(weight) for name, weight in weights._asdict().items()}
        sums["query_key"] = GradientSum(weights.query_key.t())
        for piece in ctx.places:
            masks = zip(DROPPED, islice(all_kept, len(DROPPED)), strict=True)
            kept = {name: mask for name, mask in masks if mask is not None}
            before = sequences[piece].reshape(-1, length, width).contiguous()
            between = middle[piece].view(-1, width)
            of_after = output_gradient[piece].reshape(-1, width).contiguous()
            of_between = some.add_mlp_backward(between, kept, of_after, sums)
            of_before = some.add_attention_backward(before, kept, of_between, sums)
            gradient[piece] = of_before.view_as(gradient[piece])
        gradients = {name: total() for name, total in sums.items()}
        gradients["query_key"] = gradients["query_key"].t()
        return None, gradient, *gradients.values()


class SomeOfALayer:
    """What a layer makes of some sequences, and gradients from that of what it made."""

    def __init__(self, settings: LayerSettings, weights: LayerWeights):
        self.settings = settings
        self.weights = weights
        self.dtype = weights.query_key.dtype
        self.scratch = Scratch()

    def add_attention(self, before: torch.Tensor, kept: dict[str, torch.Tensor], between: torch.Tensor) -> None:
        """
        Writes tokens (S, L, D) and what attention makes of them to (T, D), and what dropout kept to `kept`.
        """
        weights = self.weights
        normalised = self.normalise_before(before)[0]
        attention = self.attend(normalised, kept, wants_gradients=False)
        if attention.kept is not None:
            kept["attention"] = attention.kept
        context = attention.context.view(len(between), -1)
        self.add_product(
            before.view_as(between), context, weights.value_output, weights.output_bias, "attended", kept, between
        )

    def add_mlp(self, between: torch.Tensor, kept: dict[str, torch.Tensor], after: torch.Tensor) -> None:
        """Writes tokens (T, D) and what the MLP makes of them to (T, D), and what dropout kept to `kept`."""
        weights = self.weights
        normalised = self.normalise_after(between)[0]
        if isinstance(self.settings.activation, GELUActivation):
            active = linear(normalised, weights.first_weight, weights.first_bias, gelu=True)
        else:
            active = self.settings.activation(self.hidden(normalised))
        active = self.drop(active, "active", kept)
        self.add_product(between, active, weights.second_weight, weights.second_bias, "output", kept, after)

    def add_mlp_backward(
        self,
        between: torch.Tensor,
        kept: dict[str, torch.Tensor],
        of_after: torch.Tensor,
        sums: dict[str, GradientSum],
    ) -> torch.Tensor:
        """The gradient of tokens (T, D) from that of what `add_mlp` made of them; those of weights go to sums."""
        weights = self.weights
        normalised, *moments = self.normalise_after(between)
        hidden = self.hidden(normalised)
        of_output = self.drop(of_after, "output", kept)
        sums["second_bias"].add_sum(of_output)
        of_output = of_output.to(self.dtype)
        sums["second_weight"].add_product(of_output, self.drop(self.settings.activation(hidden), "active", kept))
        of_active = self.drop(torch.mm(of_output, weights.second_weight), "active", kept)
        of_hidden = activation_backward(self.settings.activation, hidden, of_active)
        sums["first_bias"].add_sum(of_hidden)
        sums["first_weight"].add_product(of_hidden, normalised)
        of_normalised = torch.mm(of_hidden, weights.first_weight)
        of_between, of_weight, of_bias = layer_norm_backward(
            of_normalised, between, moments, weights.after_weight, weights.after_bias
        )
        sums["after_weight"].add(of_weight)
        sums["after_bias"].add(of_bias)
        return of_between.add_(of_after)

    def add_attention_backward(
        self,
        before: torch.Tensor,
        kept: dict[str, torch.Tensor],
        of_between: torch.Tensor,
        sums: dict[str, GradientSum],
    ) -> torch.Tensor:
        """The gradient of tokens (S, L, D) from that of what `add_attention` made of them (T, D)."""
        weights = self.weights
        normalised, *moments = self.normalise_before(before)
        of_attended = self.drop(of_between, "attended", kept)
        sums["output_bias"].add_sum(of_attended)
        of_normalised = attend_backward(
            normalised,
            weights.query_key,
            weights.value_output,
            self.attend(normalised, kept, wants_gradients=True),
            of_attended.to(self.dtype),
            sums["query_key"],
            sums["value_output"],
            self.scratch,
        )
        of_before, of_weight, of_bias = layer_norm_backward(
            of_normalised, before, moments, weights.before_weight, weights.before_bias
        )
        sums["before_weight"].add(of_weight)
        sums["before_bias"].add(of_bias)
        return of_before.add_(of_between.view_as(before))

    def normalise_before(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Tokens that attention sees, in the precision of products; and their moments."""
        return layer_norm(
            tokens, self.weights.before_weight, self.weights.before_bias, self.settings.before_eps, self.dtype
        )

    def normalise_after(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Tokens that the MLP sees, in the precision of products; and their moments."""
        return layer_norm(
            tokens, self.weights.after_weight, self.weights.after_bias, self.settings.after_eps, self.dtype
        )

    def attend(self, normalised: torch.Tensor, kept: dict[str, torch.Tensor], wants_gradients: bool) -> Attention:
        """Attention of normalised tokens (S, L, D)."""
        return attend(
            normalised,
            self.weights.query_key,
            self.scratch,
            dropout=self.settings.dropout["attention"],
            kept=kept.get("attention"),
            wants_gradients=wants_gradients,
        )

    def hidden(self, normalised: torch.Tensor) -> torch.Tensor:
        """The hidden values (T, M) of the MLP."""
        return linear(normalised, self.weights.first_weight, self.weights.first_bias)

    def drop(self, values: torch.Tensor, name: str, kept: dict[str, torch.Tensor]) -> torch.Tensor:
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
        kept: dict[str, torch.Tensor],
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
    normalised, *moments = torch.native_layer_norm(tokens, tokens.shape[-1:], weight, bias, eps)
    return normalised.to(dtype), *moments


def layer_norm_backward(
    gradient: torch.Tensor,
    tokens: torch.Tensor,
    moments: list[torch.Tensor],
    weight: torch.Tensor,
    bias: torch.Tensor,
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

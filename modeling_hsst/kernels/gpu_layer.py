"""A whole transformer layer in one kernel, for predictions on GPUs.

Tokens of width 96 are small, and what a layer makes of them in between (8 heads of queries, keys and values, of 64
values each) is 16 times as large: written and read again, it takes most of the time. Here a tile of whole sequences is
read once, passes LayerNorms, attention and MLP in registers, and is written once; weights come from the cache. The
projections are folded (see `folding`), so that the normalized tokens themselves are keys and values of all
heads, and nothing but their tile is shared between the threads that work on it.

Shape comments use

    B windows     N blocks     P positions     D width (`hidden_size`)     H heads     I `intermediate_size`
"""

from typing import Any

import torch
from torch import nn

from ..modeling_hsst import HSSTLayer
from .folding import fold_projections, folding_ratio, products_dtype
from .gpu_attention import HAS_TRITON, bias_places, kernels_run_on, plain_forward, replaces_sdpa, tile_tokens

try:
    import triton
    import triton.language as tl
except ImportError:  # comes with PyTorch for GPUs only
    pass

# Tokens worked on together: rows of the matrix instructions of a group of 4 warps
ROWS = 64
NUM_WARPS = 4
# Weights of the next head are read while those of one are used
NUM_STAGES = 2
LOG2_E = 1.4426950408889634

if HAS_TRITON:
    # Annotations in quotes: Triton would look for their names in its own language

    @triton.jit
    def normalize(
        main: "Any", rest: "Any", weight: "Any", bias: "Any", eps: "Any", MAIN: tl.constexpr, REST: tl.constexpr
    ) -> "Any":
        """LayerNorm of rows in two parts (ROWS, MAIN) and (ROWS, REST), in float32."""
        in_main = tl.arange(0, MAIN)
        in_rest = MAIN + tl.arange(0, REST)
        mean = (tl.sum(main, axis=1) + tl.sum(rest, axis=1)) / (MAIN + REST)
        main = main - mean[:, None]
        rest = rest - mean[:, None]
        variance = (tl.sum(main * main, axis=1) + tl.sum(rest * rest, axis=1)) / (MAIN + REST)
        factor = (1.0 / tl.sqrt(variance + eps))[:, None]
        main = main * factor * tl.load(weight + in_main).to(tl.float32)[None, :]
        rest = rest * factor * tl.load(weight + in_rest).to(tl.float32)[None, :]
        main += tl.load(bias + in_main).to(tl.float32)[None, :]
        rest += tl.load(bias + in_rest).to(tl.float32)[None, :]
        return main, rest

    @triton.jit
    def layer_kernel(
        tokens: "Any",
        output: "Any",
        before_weight: "Any",
        before_bias: "Any",
        query_key: "Any",
        value_output: "Any",
        attention_bias: "Any",
        after_weight: "Any",
        after_bias: "Any",
        fc1_weight: "Any",
        fc1_bias: "Any",
        fc2_weight: "Any",
        fc2_bias: "Any",
        position_bias: "Any",
        num_sequences: "Any",
        before_eps: "Any",
        after_eps: "Any",
        LENGTH: tl.constexpr,
        INNER: tl.constexpr,
        HEADS: tl.constexpr,
        MAIN: tl.constexpr,
        REST: tl.constexpr,
        MIDDLE: tl.constexpr,
        ROWS: tl.constexpr,
        HAS_BIAS: tl.constexpr,
        STAGES: tl.constexpr,
    ) -> None:
        # Tiles have powers of two as sides: the width is the sum of two of them
        width: tl.constexpr = MAIN + REST
        token, is_token = tile_tokens(tl.program_id(0), num_sequences, LENGTH, INNER, ROWS)
        mask = is_token[:, None]
        in_main = tl.arange(0, MAIN)
        in_rest = MAIN + tl.arange(0, REST)
        place_main = token[:, None] * width + in_main[None, :]
        place_rest = token[:, None] * width + in_rest[None, :]
        main = tl.load(tokens + place_main, mask=mask, other=0.0).to(tl.float32)
        rest = tl.load(tokens + place_rest, mask=mask, other=0.0).to(tl.float32)
        main, rest = normalize(main, rest, before_weight, before_bias, before_eps, MAIN, REST)
        dtype = query_key.dtype.element_ty
        main = main.to(dtype)
        rest = rest.to(dtype)

        sequence = tl.arange(0, ROWS) // LENGTH
        sum_main = tl.zeros((ROWS, MAIN), dtype=tl.float32)
        sum_rest = tl.zeros((ROWS, REST), dtype=tl.float32)
        # Weights lie as (out, in)
        main_main = in_main[:, None] * width + in_main[None, :]
        main_rest = in_main[:, None] * width + in_rest[None, :]
        rest_main = in_rest[:, None] * width + in_main[None, :]
        rest_rest = in_rest[:, None] * width + in_rest[None, :]
        row_step: tl.constexpr = (HEADS - 1) * width
        for head in tl.range(0, HEADS, num_stages=STAGES):
            head_weight = query_key + head * (width * width)
            query_main = tl.dot(main, tl.trans(tl.load(head_weight + main_main)))
            query_main = tl.dot(rest, tl.trans(tl.load(head_weight + main_rest)), query_main)
            query_rest = tl.dot(main, tl.trans(tl.load(head_weight + rest_main)))
            query_rest = tl.dot(rest, tl.trans(tl.load(head_weight + rest_rest)), query_rest)
            scores = tl.dot(query_main.to(dtype), tl.trans(main))
            scores = tl.dot(query_rest.to(dtype), tl.trans(rest), scores)
            if HAS_BIAS:
                scores += tl.load(position_bias + bias_places(head, LENGTH, ROWS))
            if LENGTH < ROWS:
                scores = tl.where(sequence[:, None] == sequence[None, :], scores, float("-inf"))
            # The weights of queries hold the factor that makes this a power of 2
            weights = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
            weights = (weights / tl.sum(weights, axis=1)[:, None]).to(dtype)
            context_main = tl.dot(weights, main).to(dtype)
            context_rest = tl.dot(weights, rest).to(dtype)
            head_weight = value_output + head * width
            row_main = in_main[:, None] * row_step
            row_rest = in_rest[:, None] * row_step
            sum_main = tl.dot(context_main, tl.trans(tl.load(head_weight + row_main + main_main)), sum_main)
            sum_main = tl.dot(context_rest, tl.trans(tl.load(head_weight + row_main + main_rest)), sum_main)
            sum_rest = tl.dot(context_main, tl.trans(tl.load(head_weight + row_rest + rest_main)), sum_rest)
            sum_rest = tl.dot(context_rest, tl.trans(tl.load(head_weight + row_rest + rest_rest)), sum_rest)

        # Read again, from a cache, rather than kept in registers
        sum_main += tl.load(tokens + place_main, mask=mask, other=0.0).to(tl.float32)
        sum_rest += tl.load(tokens + place_rest, mask=mask, other=0.0).to(tl.float32)
        sum_main += tl.load(attention_bias + in_main).to(tl.float32)[None, :]
        sum_rest += tl.load(attention_bias + in_rest).to(tl.float32)[None, :]

        main, rest = normalize(sum_main, sum_rest, after_weight, after_bias, after_eps, MAIN, REST)
        middle = tl.arange(0, MIDDLE)
        middle_main = middle[:, None] * width + in_main[None, :]
        middle_rest = middle[:, None] * width + in_rest[None, :]
        hidden = tl.dot(main.to(dtype), tl.trans(tl.load(fc1_weight + middle_main)))
        hidden = tl.dot(rest.to(dtype), tl.trans(tl.load(fc1_weight + middle_rest)), hidden)
        hidden += tl.load(fc1_bias + middle).to(tl.float32)[None, :]
        hidden = (0.5 * hidden * (1.0 + tl.math.erf(hidden * 0.7071067811865476))).to(dtype)
        main_middle = in_main[:, None] * MIDDLE + middle[None, :]
        rest_middle = in_rest[:, None] * MIDDLE + middle[None, :]
        sum_main = tl.dot(hidden, tl.trans(tl.load(fc2_weight + main_middle)), sum_main)
        sum_rest = tl.dot(hidden, tl.trans(tl.load(fc2_weight + rest_middle)), sum_rest)
        sum_main += tl.load(fc2_bias + in_main).to(tl.float32)[None, :]
        sum_rest += tl.load(fc2_bias + in_rest).to(tl.float32)[None, :]
        tl.store(output + place_main, sum_main.to(output.dtype.element_ty), mask=mask)
        tl.store(output + place_rest, sum_rest.to(output.dtype.element_ty), mask=mask)


def fuses_layer(layer: HSSTLayer, tokens: torch.Tensor) -> bool:
    """
    Whether `fused_layer` computes tokens (B, N, P, D) that a layer of plain modules is called with: for predictions in
    half precision on a GPU.
    """
    attention = layer.attention
    config, width = attention.config, tokens.shape[3]
    sequences = tokens if layer.axis == "spatial" else tokens.transpose(1, 2)
    if (
        torch.is_grad_enabled()
        or (layer.training and (layer.dropout.p or attention.attention_dropout))
        or not replaces_sdpa(config, sequences)
        or sequences.shape[2] > ROWS
        or config.hidden_act != "gelu"
        or split_width(width) is None
        or config.intermediate_size not in (16, 32, 64, 128)
        or folding_ratio(sequences.shape[2], width, config.head_dim) > 1
    ):
        return False
    dtype = products_dtype(tokens)
    if dtype not in (torch.bfloat16, torch.float16) or tokens.dtype not in (dtype, torch.float32):
        return False
    return torch.is_autocast_enabled(tokens.device.type) or attention.qkv_proj.weight.dtype == dtype


class FastLayerNorm(nn.LayerNorm):
    """
    A LayerNorm of the few values of a token. PyTorch's kernel gives each token a block of threads on GPUs, most of
    which have nothing to do: it takes as long as several layers of the model.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.device.type != "cuda" or torch.compiler.is_compiling() or input.shape[-1] > 32:
            return super().forward(input)
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        values = values - values.mean(dim=-1, keepdim=True)
        values = values * (values.square().mean(dim=-1, keepdim=True) + self.eps).rsqrt()
        values = values * self.weight + self.bias
        return values if torch.is_autocast_enabled("cuda") else values.to(input.dtype)


def split_width(width: int) -> tuple[int, int] | None:
    """Two powers of 2, from 16 on, that make up a width of at most 128; None where there are none."""
    for main in (16, 32, 64):
        rest = width - main
        if 16 <= rest <= main and rest & (rest - 1) == 0:
            return main, rest
    return None


def fused_layer(layer: Any, tokens: torch.Tensor, places: torch.Tensor | None = None) -> torch.Tensor:
    """
    What an `HSSTLayer` makes of tokens (B, N, P, D), in float32 or in the half precision of the products, where
    `fuses_layer` says so: (B, N, P, D), in their precision. Sums, LayerNorms and softmax are taken in float32.
    `places` (1, 1, L, 2) are what relative positions need.
    """
    attention, mlp, before, after = layer.attention, layer.mlp, layer.layernorm_before, layer.layernorm_after
    attention_weights = attention.qkv_proj.weight, attention.o_proj.weight, attention.o_proj.bias
    mlp_weights = mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias
    weights = before.weight, before.bias, *attention_weights, after.weight, after.bias, *mlp_weights
    settings = attention.num_attention_heads, attention.scaling, before.eps, after.eps
    bias = before.weight.new_empty(0, dtype=torch.float32)
    if places is not None and attention.position_bias is not None:
        bias = attention.position_bias(places)[0, 0].float()
    return _fused_layer(tokens, *weights, bias, *settings, 2 if layer.axis == "spatial" else 1, products_dtype(tokens))


@torch.library.custom_op("hsst::fused_layer", mutates_args=())
def _fused_layer(
    tokens: torch.Tensor,
    before_weight: torch.Tensor,
    before_bias: torch.Tensor,
    qkv_weight: torch.Tensor,
    output_weight: torch.Tensor,
    output_bias: torch.Tensor,
    after_weight: torch.Tensor,
    after_bias: torch.Tensor,
    fc1_weight: torch.Tensor,
    fc1_bias: torch.Tensor,
    fc2_weight: torch.Tensor,
    fc2_bias: torch.Tensor,
    position_bias: torch.Tensor,
    num_heads: int,
    scaling: float,
    before_eps: float,
    after_eps: float,
    axis: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    before, after = (before_weight, before_bias, before_eps), (after_weight, after_bias, after_eps)
    attention, mlp = (qkv_weight, output_weight, output_bias), (fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    # Precisions are chosen here
    with torch.autocast(tokens.device.type, enabled=False):
        compute = launch_layer if tokens.numel() and kernels_run_on(tokens.new_empty(0, dtype=dtype)) else plain_layer
        weights = before, attention, after, mlp, position_bias
        return compute(tokens.contiguous(), *weights, num_heads, scaling, axis, dtype)


@_fused_layer.register_fake
def _(tokens: torch.Tensor, *arguments: Any) -> torch.Tensor:
    return tokens.new_empty(tokens.shape)


def launch_layer(
    tokens: torch.Tensor,
    before: tuple[torch.Tensor, torch.Tensor, float],
    attention: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    after: tuple[torch.Tensor, torch.Tensor, float],
    mlp: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    position_bias: torch.Tensor,
    num_heads: int,
    scaling: float,
    axis: int,
    dtype: torch.dtype,
    **launch_options: int,
) -> torch.Tensor:
    """A layer in its kernel: LayerNorms (weight, bias, epsilon), attention (qkv, output, bias), MLP, and what is added
    to scores (H, L, L) or nothing ().
    """
    qkv_weight, output_weight, output_bias = attention
    fc1_weight, fc1_bias, fc2_weight, fc2_bias = mlp
    # Products of weights in float32, rounded once
    query_key, value_output = fold_projections(qkv_weight.float(), output_weight.float(), num_heads, scaling * LOG2_E)
    num_sequences = tokens.shape[:3].numel() // tokens.shape[axis]
    num_tiles = -(-num_sequences // (ROWS // tokens.shape[axis]))
    widths = split_width(tokens.shape[3])
    assert widths is not None
    options = {"num_warps": NUM_WARPS, "num_stages": NUM_STAGES} | launch_options
    matrices = [matrix.to(dtype) for matrix in (query_key, value_output, fc1_weight, fc2_weight)]
    weights = (*before[:2], *matrices[:2], output_bias, *after[:2], matrices[2], fc1_bias, matrices[3], fc2_bias)
    output = torch.empty_like(tokens)
    # Triton launches on the current GPU
    with torch.cuda.device_of(tokens):
        layer_kernel[(num_tiles,)](
            tokens,
            output,
            *(weight.contiguous() for weight in weights),
            (position_bias * LOG2_E).contiguous(),
            num_sequences,
            before[2],
            after[2],
            LENGTH=tokens.shape[axis],
            INNER=tokens.shape[2] if axis == 1 else 1,
            HEADS=num_heads,
            MAIN=widths[0],
            REST=widths[1],
            MIDDLE=fc1_weight.shape[0],
            ROWS=ROWS,
            HAS_BIAS=position_bias.numel() > 0,
            STAGES=options["num_stages"],
            **options,
        )
    return output


def plain_layer(
    tokens: torch.Tensor,
    before: tuple[torch.Tensor, torch.Tensor, float],
    attention: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    after: tuple[torch.Tensor, torch.Tensor, float],
    mlp: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    position_bias: torch.Tensor,
    num_heads: int,
    scaling: float,
    axis: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """What the kernel computes, in operators of PyTorch."""

    def normalized(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
        return nn.functional.layer_norm(values, values.shape[-1:], weight.float(), bias.float(), eps).to(dtype)

    def linear(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return nn.functional.linear(values, weight.to(dtype), None if bias is None else bias.to(dtype))

    qkv_weight, output_weight, output_bias = attention
    fc1_weight, fc1_bias, fc2_weight, fc2_bias = mlp
    values = tokens.float()
    context = plain_forward(linear(normalized(values, *before), qkv_weight), num_heads, scaling, axis, position_bias)
    values = values + linear(context, output_weight, output_bias).float()
    hidden = nn.functional.gelu(linear(normalized(values, *after), fc1_weight, fc1_bias))
    return (values + linear(hidden, fc2_weight, fc2_bias).float()).to(tokens.dtype)

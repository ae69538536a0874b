"""Attention within many short sequences in one kernel, for GPUs that wait for their memory.

Fused attention of PyTorch works in tiles of 64 to 128 queries and keys of one sequence, on copies in which a sequence
lies in one piece. Sequences of 20 blocks or 64 positions leave most of such a tile empty, and the time goes into the
copies. Here a tile holds as many whole sequences as fit. Queries, keys and values are read where the joint projection
wrote them, along either axis of the tokens, and results are written in the order of the tokens. Attention within a
tile is computed at once, without the scores between its sequences; a NaN in one of them reaches the others. Nothing
but the projection is kept for the backward pass. Second derivatives and `torch.func` need
`attn_implementation="eager"`.

Shape comments use

    B windows     N blocks     P positions     L tokens in a sequence     H heads
"""

from typing import Any

import torch
from transformers import PreTrainedConfig

from ..modeling_hsst import HSSTAttention

try:
    import triton
    import triton.language as tl

    # Tried on GPUs of Nvidia only, whose shared memory is larger
    HAS_TRITON = torch.version.hip is None
except ImportError:  # comes with PyTorch for GPUs only
    HAS_TRITON = False

HEAD_DIMS = (16, 32, 64, 128)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)

if HAS_TRITON:
    # Sums that make up the gradient of a bias
    BIAS_SUMS = tl.constexpr(32)

    # Annotations in quotes: Triton would look for their names in its own language

    @triton.jit
    def tile_tokens(
        tile: "Any", num_sequences: "Any", LENGTH: tl.constexpr, INNER: tl.constexpr, ROWS: tl.constexpr
    ) -> "Any":
        """
        Which tokens the rows of a tile are, and which rows are tokens at all. A sequence has `LENGTH` tokens, `INNER`
        apart, and `INNER` sequences interleave: 1 where the positions of a block attend to each other, P where the
        blocks of a position do.
        """
        per_tile: tl.constexpr = ROWS // LENGTH
        row = tl.arange(0, ROWS)
        sequence = tile * per_tile + row // LENGTH
        is_token = (row < per_tile * LENGTH) & (sequence < num_sequences)
        token = sequence // INNER * (LENGTH * INNER) + row % LENGTH * INNER + sequence % INNER
        # Beyond 2^31 values in a batch of a thousand windows
        return token.to(tl.int64), is_token

    @triton.jit
    def bias_places(head: "Any", LENGTH: tl.constexpr, ROWS: tl.constexpr) -> "Any":
        """Where in a bias (H, L, L) the numbers for the scores (ROWS, ROWS) of a head lie."""
        place = tl.arange(0, ROWS) % LENGTH
        return head * (LENGTH * LENGTH) + place[:, None] * LENGTH + place[None, :]

    @triton.jit
    def tile_weights(
        query: "Any",
        key: "Any",
        bias: "Any",
        head: "Any",
        scaling: "Any",
        LENGTH: tl.constexpr,
        ROWS: tl.constexpr,
        HAS_BIAS: tl.constexpr,
        PRECISION: tl.constexpr,
    ) -> "Any":
        """
        Attention weights (ROWS, ROWS) in float32, 0 between sequences. Rows beyond the last sequence attend among
        themselves, so that they hold numbers too.
        """
        # Powers of 2 are what the hardware computes
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * (scaling * 1.4426950408889634)
        if HAS_BIAS:
            scores += tl.load(bias + bias_places(head, LENGTH, ROWS)).to(tl.float32) * 1.4426950408889634
        if LENGTH < ROWS:
            sequence = tl.arange(0, ROWS) // LENGTH
            scores = tl.where(sequence[:, None] == sequence[None, :], scores, float("-inf"))
        weights = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
        return weights / tl.sum(weights, axis=1)[:, None]

    @triton.jit
    def forward_kernel(
        qkv: "Any",
        bias: "Any",
        output: "Any",
        num_sequences: "Any",
        scaling: "Any",
        LENGTH: tl.constexpr,
        INNER: tl.constexpr,
        HEADS: tl.constexpr,
        HEAD_DIM: tl.constexpr,
        ROWS: tl.constexpr,
        HAS_BIAS: tl.constexpr,
        PRECISION: tl.constexpr,
    ) -> None:
        # Heads of a tile run side by side: what they read lies side by side
        head = tl.program_id(0) % HEADS
        token, is_token = tile_tokens(tl.program_id(0) // HEADS, num_sequences, LENGTH, INNER, ROWS)
        inner_width: tl.constexpr = HEADS * HEAD_DIM
        column = head * HEAD_DIM + tl.arange(0, HEAD_DIM)
        place = token[:, None] * (3 * inner_width) + column[None, :]
        mask = is_token[:, None]
        query = tl.load(qkv + place, mask=mask, other=0.0)
        key = tl.load(qkv + place + inner_width, mask=mask, other=0.0)
        value = tl.load(qkv + place + 2 * inner_width, mask=mask, other=0.0)
        weights = tile_weights(query, key, bias, head, scaling, LENGTH, ROWS, HAS_BIAS, PRECISION)
        context = tl.dot(weights.to(value.dtype), value, input_precision=PRECISION)
        tl.store(output + token[:, None] * inner_width + column[None, :], context.to(value.dtype), mask=mask)

    @triton.jit
    def backward_kernel(
        gradient: "Any",
        qkv: "Any",
        bias: "Any",
        qkv_gradient: "Any",
        bias_gradient: "Any",
        num_sequences: "Any",
        scaling: "Any",
        LENGTH: tl.constexpr,
        INNER: tl.constexpr,
        HEADS: tl.constexpr,
        HEAD_DIM: tl.constexpr,
        ROWS: tl.constexpr,
        HAS_BIAS: tl.constexpr,
        PRECISION: tl.constexpr,
    ) -> None:
        head = tl.program_id(0) % HEADS
        token, is_token = tile_tokens(tl.program_id(0) // HEADS, num_sequences, LENGTH, INNER, ROWS)
        inner_width: tl.constexpr = HEADS * HEAD_DIM
        column = head * HEAD_DIM + tl.arange(0, HEAD_DIM)
        place = token[:, None] * (3 * inner_width) + column[None, :]
        mask = is_token[:, None]
        query = tl.load(qkv + place, mask=mask, other=0.0)
        key = tl.load(qkv + place + inner_width, mask=mask, other=0.0)
        value = tl.load(qkv + place + 2 * inner_width, mask=mask, other=0.0)
        gradient_place = token[:, None] * inner_width + column[None, :]
        context_gradient = tl.load(gradient + gradient_place, mask=mask, other=0.0)
        weights = tile_weights(query, key, bias, head, scaling, LENGTH, ROWS, HAS_BIAS, PRECISION)

        value_gradient = tl.dot(tl.trans(weights.to(value.dtype)), context_gradient, input_precision=PRECISION)
        tl.store(qkv_gradient + place + 2 * inner_width, value_gradient.to(value.dtype), mask=mask)

        weights_gradient = tl.dot(context_gradient, tl.trans(value), input_precision=PRECISION)
        mean_gradient = tl.sum(weights * weights_gradient, axis=1)
        scores_gradient = weights * (weights_gradient - mean_gradient[:, None])
        if HAS_BIAS:
            # Several sums, so that tiles wait for each other less
            total = tl.program_id(0) // HEADS % BIAS_SUMS * (HEADS * LENGTH * LENGTH)
            sequence = tl.arange(0, ROWS) // LENGTH
            same = (sequence[:, None] == sequence[None, :]) & is_token[:, None] & is_token[None, :]
            tl.atomic_add(bias_gradient + total + bias_places(head, LENGTH, ROWS), scores_gradient, mask=same)
        scores_gradient = (scores_gradient * scaling).to(value.dtype)
        query_gradient = tl.dot(scores_gradient, key, input_precision=PRECISION)
        tl.store(qkv_gradient + place, query_gradient.to(value.dtype), mask=mask)
        key_gradient = tl.dot(tl.trans(scores_gradient), query, input_precision=PRECISION)
        tl.store(qkv_gradient + place + inner_width, key_gradient.to(value.dtype), mask=mask)


else:
    bias_places = tile_tokens = None


class ShortAttention(HSSTAttention):
    """Attention that its kernel computes wherever there is one for a call."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        places: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        dropout = self.attention_dropout if self.training else 0.0
        output_attentions = kwargs.get("output_attentions")
        axis = short_attention_axis(self.config, hidden_states, attention_mask, dropout, output_attentions)
        # The kernel takes one bias for all sequences
        if axis is None or (places is not None and places.shape[:2] != (1, 1)):
            return super().forward(hidden_states, attention_mask, places, **kwargs)
        bias = None
        if places is not None and self.position_bias is not None:
            bias = self.position_bias(places)[0, 0]
        # On the tokens that the sequences are a view of
        tokens = hidden_states if axis == 2 else hidden_states.transpose(1, 2)  # (B, N, P, D)
        context = short_attention(self.qkv_proj(tokens), self.num_attention_heads, self.scaling, axis, bias)
        attn_output = self.o_proj(context)
        return attn_output if axis == 2 else attn_output.transpose(1, 2), None


def short_attention_axis(
    config: PreTrainedConfig,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float,
    output_attentions: bool | None,
) -> int | None:
    """
    The axis of the tokens (B, N, P, D) that sequences (B, S, L, D) run along: 2 where they are the tokens as they lie,
    1 where they are a view with these axes swapped. None where `short_attention` does not take the place of "sdpa".
    """
    if attention_mask is not None or dropout or output_attentions or not replaces_sdpa(config, hidden_states):
        return None
    return 2 if hidden_states.is_contiguous() or not hidden_states.transpose(1, 2).is_contiguous() else 1


def replaces_sdpa(config: PreTrainedConfig, hidden_states: torch.Tensor) -> bool:
    """Whether there are kernels for sequences (B, S, L, D) where "sdpa" is asked for."""
    return (
        HAS_TRITON
        and config._attn_implementation == "sdpa"
        and hidden_states.device.type == "cuda"
        # The operators look for themselves, and a compiler may not follow
        and (torch.compiler.is_compiling() or kernels_run_on(hidden_states))
        # Graphs that go elsewhere know nothing of this operator. The compiler of PyTorch 2.11 takes `is_exporting()`
        # to be always true, but not the flag behind it
        and not torch.jit.is_tracing()
        and not getattr(torch.compiler, "_is_exporting_flag", False)
        and fits_tile(hidden_states.shape[2], config.head_dim, hidden_states.dtype)
    )


def fits_tile(length: int, head_dim: int, dtype: torch.dtype) -> bool:
    """Whether a tile holds whole sequences."""
    if dtype not in DTYPES or head_dim not in HEAD_DIMS or not 1 <= length <= 128:
        return False
    # More takes more registers or shared memory than there is
    if dtype == torch.float32:
        return length <= 64 and head_dim <= 64
    return length <= 64 or head_dim <= 64


def tile_shape(length: int, dtype: torch.dtype) -> tuple[int, int]:
    """Rows of a tile for sequences of a length, and the warps that work on it."""
    if dtype == torch.float32:
        # Unrounded products take longer than memory does: as few rows as hold a sequence
        rows = next(rows for rows in (16, 32, 64) if length <= rows)
        return rows, rows // 8
    # Large enough for the matrix instructions of a group of 4 warps
    return (64, 4) if length <= 64 else (128, 8)


def short_attention(
    qkv: torch.Tensor, num_heads: int, scaling: float, axis: int, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Self-attention of tokens along `axis`: 2 among the P positions of a block, 1 among the N blocks of a position.
    `qkv` are queries, keys and values of all heads, one after the other (B, N, P, 3 * H * head_dim), in float32 or
    half precision; a `bias` (H, L, L) is added to scores. Returns (B, N, P, H * head_dim) in the precision of `qkv`;
    softmax and sums are taken in float32. On GPUs the gradient of a bias is summed in no certain order.
    """
    if axis not in (1, 2) or qkv.ndim != 4 or qkv.shape[3] % (3 * num_heads):
        raise ValueError(
            f"Expected `axis` 1 or 2 and `qkv` (windows, blocks, positions, 3 * {num_heads} heads * head_dim), got "
            f"{axis} and {tuple(qkv.shape)}."
        )
    # An operator that takes tensors and gives their gradients: an empty one stands for none
    no_bias = qkv.new_empty(0, dtype=torch.promote_types(qkv.dtype, torch.float32))
    return _short_attention(qkv, num_heads, scaling, axis, no_bias if bias is None else bias.to(no_bias))


@torch.library.custom_op("hsst::short_attention", mutates_args=())
def _short_attention(qkv: torch.Tensor, num_heads: int, scaling: float, axis: int, bias: torch.Tensor) -> torch.Tensor:
    qkv, bias = qkv.contiguous(), bias.contiguous()
    if not runs_kernels(qkv, num_heads, axis):
        return plain_forward(qkv, num_heads, scaling, axis, bias)
    return launch_forward(qkv, num_heads, scaling, axis, bias)


@_short_attention.register_fake
def _(qkv: torch.Tensor, num_heads: int, scaling: float, axis: int, bias: torch.Tensor) -> torch.Tensor:
    return qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)


@torch.library.custom_op("hsst::short_attention_backward", mutates_args=())
def _short_attention_backward(
    gradient: torch.Tensor, qkv: torch.Tensor, num_heads: int, scaling: float, axis: int, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    gradient, qkv, bias = gradient.contiguous(), qkv.contiguous(), bias.contiguous()
    if not runs_kernels(qkv, num_heads, axis):
        return plain_backward(gradient, qkv, num_heads, scaling, axis, bias)
    return launch_backward(gradient, qkv, num_heads, scaling, axis, bias)


@_short_attention_backward.register_fake
def _(
    gradient: torch.Tensor, qkv: torch.Tensor, num_heads: int, scaling: float, axis: int, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return qkv.new_empty(qkv.shape), bias.new_empty(bias.shape)


def _setup_context(ctx: Any, inputs: tuple[torch.Tensor, int, float, int, torch.Tensor], output: torch.Tensor) -> None:
    qkv, ctx.num_heads, ctx.scaling, ctx.axis, bias = inputs
    ctx.save_for_backward(qkv, bias)


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    qkv, bias = ctx.saved_tensors
    gradients = _short_attention_backward(gradient, qkv, ctx.num_heads, ctx.scaling, ctx.axis, bias)
    return gradients[0], None, None, None, gradients[1]


_short_attention.register_autograd(_backward, setup_context=_setup_context)


def runs_kernels(qkv: torch.Tensor, num_heads: int, axis: int) -> bool:
    """Whether there is a kernel for a projection, and something to run it on."""
    head_dim = qkv.shape[3] // (3 * num_heads)
    return qkv.numel() > 0 and fits_tile(qkv.shape[axis], head_dim, qkv.dtype) and kernels_run_on(qkv)


def kernels_run_on(tokens: torch.Tensor) -> bool:
    """Whether kernels run where tokens lie: on GPUs since Ampere, or in the interpreter of Triton."""
    if not HAS_TRITON:
        return False
    if not isinstance(forward_kernel, triton.JITFunction):
        # The interpreter multiplies the bits of bfloat16
        return tokens.dtype != torch.bfloat16
    return tokens.is_cuda and torch.cuda.get_device_capability(tokens.device) >= (8, 0)


def launch_forward(
    qkv: torch.Tensor, num_heads: int, scaling: float, axis: int, bias: torch.Tensor, **tile: int
) -> torch.Tensor:
    """What `short_attention` returns, from its kernel, in tiles of other than the usual `rows` or `num_warps`."""
    output = qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)
    _launch(forward_kernel, (qkv, bias, output), qkv, num_heads, scaling, axis, bias, **tile)
    return output


def launch_backward(
    gradient: torch.Tensor,
    qkv: torch.Tensor,
    num_heads: int,
    scaling: float,
    axis: int,
    bias: torch.Tensor,
    **tile: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of `qkv` and of the bias from that of what `short_attention` returned."""
    qkv_gradient = torch.empty_like(qkv)
    bias_sums = bias.new_zeros(BIAS_SUMS.value if bias.numel() else 1, *bias.shape, dtype=torch.float32)
    tensors = gradient, qkv, bias, qkv_gradient, bias_sums
    _launch(backward_kernel, tensors, qkv, num_heads, scaling, axis, bias, **tile)
    return qkv_gradient, bias_sums.sum(dim=0).to(bias.dtype)


def _launch(
    kernel: Any,
    tensors: tuple[torch.Tensor, ...],
    qkv: torch.Tensor,
    num_heads: int,
    scaling: float,
    axis: int,
    bias: torch.Tensor,
    rows: int | None = None,
    num_warps: int | None = None,
) -> None:
    length = qkv.shape[axis]
    default_rows, default_warps = tile_shape(length, qkv.dtype)
    rows = default_rows if rows is None else rows
    num_sequences = qkv.shape[:3].numel() // length
    num_tiles = -(-num_sequences // (rows // length))
    # Triton launches on the current GPU
    with torch.cuda.device_of(qkv):
        kernel[(num_tiles * num_heads,)](
            *tensors,
            num_sequences,
            scaling,
            LENGTH=length,
            INNER=qkv.shape[2] if axis == 1 else 1,
            HEADS=num_heads,
            HEAD_DIM=qkv.shape[3] // (3 * num_heads),
            ROWS=rows,
            HAS_BIAS=bias.numel() > 0,
            PRECISION=dot_precision(),
            num_warps=default_warps if num_warps is None else num_warps,
            num_stages=1,
        )


def dot_precision() -> str:
    """Whether products of float32 may be rounded, as the user set it for all of PyTorch."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def plain_forward(qkv: torch.Tensor, num_heads: int, scaling: float, axis: int, bias: torch.Tensor) -> torch.Tensor:
    """What the kernel computes, in operators of PyTorch."""
    query, key, value = split_heads(qkv, 3, num_heads, axis)
    return join_heads([plain_weights(query, key, bias, scaling).to(value.dtype) @ value], axis)


def plain_backward(
    gradient: torch.Tensor, qkv: torch.Tensor, num_heads: int, scaling: float, axis: int, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the backward kernel computes, in operators of PyTorch."""
    query, key, value = split_heads(qkv, 3, num_heads, axis)
    (context_gradient,) = split_heads(gradient, 1, num_heads, axis)
    weights = plain_weights(query, key, bias, scaling)
    weights_gradient = (context_gradient @ value.transpose(-2, -1)).to(weights.dtype)
    scores_gradient = torch.ops.aten._softmax_backward_data(weights_gradient, weights, -1, weights.dtype)
    bias_gradient = scores_gradient.sum(dim=(0, 1)).to(bias.dtype) if bias.numel() else torch.empty_like(bias)
    scores_gradient = (scores_gradient * scaling).to(value.dtype)
    value_gradient = weights.to(value.dtype).transpose(-2, -1) @ context_gradient
    parts = [scores_gradient @ key, scores_gradient.transpose(-2, -1) @ query, value_gradient]
    return join_heads(parts, axis), bias_gradient


def plain_weights(query: torch.Tensor, key: torch.Tensor, bias: torch.Tensor, scaling: float) -> torch.Tensor:
    """Attention weights (B, S, H, L, L), in at least float32."""
    scores = (query @ key.transpose(-2, -1)).to(torch.promote_types(query.dtype, torch.float32)) * scaling
    return torch.softmax(scores + bias if bias.numel() else scores, dim=-1)


def split_heads(packed: torch.Tensor, parts: int, num_heads: int, axis: int) -> tuple[torch.Tensor, ...]:
    """Each of so many parts of (B, N, P, parts * H * head_dim) as (B, S, H, L, head_dim)."""
    sequences = packed if axis == 2 else packed.transpose(1, 2)
    return sequences.unflatten(-1, (parts, num_heads, -1)).permute(3, 0, 1, 4, 2, 5).unbind(0)


def join_heads(parts: list[torch.Tensor], axis: int) -> torch.Tensor:
    """The inverse of `split_heads`."""
    sequences = torch.stack(parts, dim=3).permute(0, 1, 4, 3, 2, 5).flatten(3)
    return (sequences if axis == 2 else sequences.transpose(1, 2)).contiguous()

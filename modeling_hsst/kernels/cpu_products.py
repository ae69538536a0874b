"""Matrix products of a few sequences at a time, for processors that work from their caches.

Shape comments use

    W windows     S sequences in a window     L tokens in a sequence     D width     T tokens of a piece
"""

import math
from collections.abc import Iterator
from functools import cache

import torch
from torch.nn import functional as F

# Tokens that a thread works on at once, in bytes of a value of each: 1,280 tokens in float32, 2,560 in half precision.
# What is computed of them in a layer fits the caches (measured: half as many take a tenth longer, twice as many too)
TOKEN_BYTES_OF_A_THREAD = 5120


def pieces(sequences: torch.Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, slice]]:
    """
    Where in (W, S, L, D) the sequences lie that are worked on together in `dtype`: several windows, or a part of one.
    The first piece is as large as any.
    """
    num_windows, num_sequences, length, _ = sequences.shape
    tokens = torch.get_num_threads() * TOKEN_BYTES_OF_A_THREAD // dtype.itemsize
    together = max(1, tokens // length)
    step = max(1, together // num_sequences)
    for window in range(0, num_windows, step):
        for start in range(0, num_sequences, together):
            yield slice(window, window + step), slice(start, start + together)


class Scratch:
    """Memory that pieces use one after the other, so that it stays in the cache."""

    def __init__(self) -> None:
        self.memory: dict[str, torch.Tensor] = {}
        self.views: dict[tuple[str, tuple[int, ...]], torch.Tensor] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor, its values left from what had the name before: of one precision, and the largest at first."""
        view = self.views.get((name, shape))
        if view is None:
            size = math.prod(shape)
            if name not in self.memory:
                self.memory[name] = torch.empty(size, dtype=dtype)
            view = self.views[name, shape] = self.memory[name][:size].view(shape)
        return view


def multiply(left: torch.Tensor, right: torch.Tensor, output: torch.Tensor, add: bool = False) -> None:
    """
    Writes a matrix product, (T, K) by (K, M), to (T, M), which may be of higher precision where it is added to.

    In full precision each thread has a product of its own: the threads of one product get in each other's way where
    its sides differ as much as those of tokens and weights.
    """
    threads = threads_with_products(left)
    if threads > 1:
        left = left.view(threads, -1, left.shape[1])
        right = right.expand(threads, -1, -1)
        output = output.view(threads, -1, output.shape[1])
        if add:
            output.baddbmm_(left, right)
        else:
            torch.bmm(left, right, out=output)
    elif not add:
        torch.mm(left, right, out=output)
    elif output.dtype == left.dtype:
        output.addmm_(left, right)
    else:
        output.add_(torch.mm(left, right))


def linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, gelu: bool = False) -> torch.Tensor:
    """Rows (T, K) by weights (M, K) and a bias (M,), and GELU of that, in one pass where that is faster: (T, M)."""
    if has_fused_products(rows.dtype):
        return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "gelu" if gelu else "none", [], "none")
    output = torch.addmm(bias, rows, weight.t())
    return F.gelu(output) if gelu else output


def linear_add(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """
    Rows (T, K) by weights (M, K), a bias (M,) and values (T, M), summed in full precision and rounded once. Where
    `has_fused_products` says so.
    """
    return torch.ops.mkldnn._linear_pointwise.binary(rows, added, weight, bias, "add")


@cache
def has_fused_products(dtype: torch.dtype) -> bool:
    """
    Whether products in `dtype` are oneDNN's, which do what comes after them before they write: in bfloat16, where they
    are faster. They are operators that `torch.compile` makes use of and not promised by PyTorch: they are tried first.
    """
    if dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
        return False
    rows, weight, bias = (values.to(dtype) for values in (torch.eye(4), torch.arange(16.0).view(4, 4), torch.ones(4)))
    wanted = weight.t() + bias
    try:
        return (
            torch.ops.mkldnn._is_mkldnn_bf16_supported()
            and torch.equal(torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "none"), wanted)
            and torch.allclose(
                torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "gelu", [], "none"), F.gelu(wanted), rtol=1e-2
            )
            and torch.equal(linear_add(rows, weight, bias, wanted), wanted + wanted)
        )
    except (AttributeError, RuntimeError, TypeError):
        return False


def threads_with_products(rows: torch.Tensor) -> int:
    """How many threads have products of their own with (T, K)."""
    threads = torch.get_num_threads()
    return threads if rows.dtype.itemsize >= 4 and rows.shape[0] % threads == 0 else 1


class GradientSum:
    """The gradient of weights: a sum over many pieces, and therefore not in half precision."""

    def __init__(self, weights: torch.Tensor):
        self.dtype = weights.dtype
        self.sum_dtype = torch.promote_types(weights.dtype, torch.float32)
        # Each thread has a sum of its own
        self.total = torch.zeros(torch.get_num_threads(), *weights.shape, dtype=self.sum_dtype)

    def add(self, gradient: torch.Tensor) -> None:
        """Adds the gradient of a piece, which may be of higher or lower precision."""
        self.total[0] += gradient

    def add_sum(self, gradients: torch.Tensor) -> None:
        """Adds what tokens (T, M) add each."""
        self.total[0] += gradients.sum(dim=0, dtype=self.sum_dtype)

    def add_product(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """Adds a matrix product, (T, K) transposed by (T, M)."""
        threads = threads_with_products(left)
        if left.dtype != self.sum_dtype:
            self.total[0] += torch.mm(left.t(), right)
        elif threads == 1:
            self.total[0].addmm_(left.t(), right)
        else:
            left = left.view(threads, -1, left.shape[1]).transpose(1, 2)
            self.total.baddbmm_(left, right.view(threads, -1, right.shape[1]))

    def __call__(self) -> torch.Tensor:
        """The sum of all, in the precision of the weights."""
        return self.total.sum(dim=0).to(self.dtype)

"""Folded attention computes what attention computes, forwards and backwards, in less time."""

import pytest
import torch

from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling
from modeling_hsst.attention_hsst import (
    HSSTDropout,
    draw_kept,
    dropout_factor,
    folded_attention,
    folding_is_faster,
    folding_pays,
    folds_projections,
)
from modeling_hsst.modeling_hsst import HSSTAttention


def make_attention(dtype=torch.float64, **settings):
    config = HSSTConfig(hidden_size=12, num_attention_heads=3, head_dim=16, **settings)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    attention = HSSTAttention(config).to(dtype)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_(std=0.5)
    return attention


def output_and_gradients(attention, sequences, implementation, mask=None):
    attention.config._attn_implementation = implementation
    sequences = sequences.detach().requires_grad_()
    output, _ = attention(sequences, mask)
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape).to(output.dtype)
    gradients = torch.autograd.grad((output * weights).sum(), [sequences, *attention.parameters()])
    return [output, *gradients]


@pytest.mark.parametrize("strewn", [False, True], ids=["row", "strewn"])
@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 130, 7), (3, 1, 700), (1, 64, 20)], ids=str)
def test_folded_is_the_same(shape, strewn):
    attention = make_attention()
    assert folds_projections(attention.config, torch.zeros(*shape, 12))
    windows, num_sequences, length = shape
    sequences = torch.randn(windows, num_sequences, length, 12, dtype=torch.float64)
    if strewn:
        sequences = sequences.transpose(1, 2).contiguous().transpose(1, 2)
    expected = output_and_gradients(attention, sequences, "eager")
    for value, wanted in zip(output_and_gradients(attention, sequences, "sdpa"), expected, strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-9, rtol=1e-9)


def test_biases_of_queries_keys_and_values_are_not_folded():
    attention = make_attention(qkv_bias=True)
    sequences = torch.randn(2, 3, 5, 12, dtype=torch.float64)
    expected = output_and_gradients(attention, sequences, "eager")
    for value, wanted in zip(output_and_gradients(attention, sequences, "sdpa"), expected, strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("strewn", [False, True], ids=["row", "strewn"])
def test_folded_with_a_mask(strewn):
    attention = make_attention()
    sequences = torch.randn(2, 100, 9, 12, dtype=torch.float64)
    if strewn:
        sequences = sequences.transpose(1, 2).contiguous().transpose(1, 2)
    mask = torch.rand(200, 1, 1, 9) > 0.4
    mask[..., 0] = True
    mask = mask.expand(-1, -1, 9, -1)
    expected = output_and_gradients(
        attention, sequences, "eager", torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, float("-inf"))
    )
    for value, wanted in zip(output_and_gradients(attention, sequences, "sdpa", mask), expected, strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-9, rtol=1e-9)


def test_dropout_of_weights_is_unbiased_and_its_gradient_right():
    attention = make_attention(attention_probs_dropout_prob=0.25)
    projections = torch.randn(36, 12, dtype=torch.float64) * 0.3, torch.randn(12, 36, dtype=torch.float64)
    sequences = torch.randn(1, 2, 5, 12, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(12, dtype=torch.float64, requires_grad=True)
    inputs = sequences, *(projection.requires_grad_() for projection in projections), bias

    def dropped(*tensors):
        torch.manual_seed(3)
        return folded_attention(*tensors, dropout=0.25)

    assert torch.autograd.gradcheck(dropped, inputs)
    with torch.no_grad():
        expected = folded_attention(*inputs)
        mean = torch.stack([folded_attention(*inputs, dropout=0.25) for _ in range(4000)]).mean(0)
        assert not torch.equal(dropped(*inputs), expected)
        assert (mean - expected).abs().max() < 0.1 * (expected - bias).abs().max()
    attention.train()
    assert not torch.equal(attention(sequences)[0], attention(sequences)[0])
    attention.eval()
    assert torch.equal(attention(sequences)[0], attention(sequences)[0])


def test_share_of_dropped_values():
    for dropout in (0.0, 0.1, 0.5, 1.0):
        kept, factor = draw_kept(torch.empty(1001, 1003), dropout), dropout_factor(dropout)
        assert abs(kept.double().mean().item() - (1 - dropout)) < 2e-3
        assert abs(factor * (1 - dropout) - 1) < 1e-4 or dropout == 1.0
    # Sixteen bits a value, and no two values from the same bits
    kept = draw_kept(torch.empty(4, 250_000), 0.5)
    both = (kept[:, None] & kept[None]).double().mean(-1)
    assert (both - (0.25 + 0.25 * torch.eye(4))).abs().max() < 5e-3


def test_dropout_module():
    dropout = HSSTDropout(0.3)
    values = torch.ones(300, 301, requires_grad=True)
    dropped = dropout(values)
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 1 / 0.7]), atol=1e-4, rtol=0)
    assert abs(dropped.mean().item() - 1) < 0.02
    torch.testing.assert_close(torch.autograd.grad(dropped.sum(), values)[0], dropped.detach())
    assert dropout(values.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(dropout.eval()(values), values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    attention = make_attention(torch.float32)
    sequences = torch.randn(2, 40, 20, 12)
    exact = output_and_gradients(attention, sequences, "eager")
    rounded = output_and_gradients(attention.to(dtype), sequences.to(dtype), "sdpa")
    for value, wanted in zip(rounded, exact, strict=True):
        assert value.dtype == dtype
        assert (value.float() - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_autocast():
    attention = make_attention(torch.float32)
    sequences = torch.randn(2, 40, 20, 12)
    exact = output_and_gradients(attention, sequences, "eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = output_and_gradients(attention, sequences, "sdpa")
    assert rounded[0].dtype == torch.bfloat16 and rounded[1].dtype == torch.float32
    for value, wanted in zip(rounded, exact, strict=True):
        assert (value.float() - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_sequences_alone_are_kept_for_the_backward_pass():
    attention, sequences = make_attention(), torch.randn(2, 20, 64, 12, dtype=torch.float64)
    saved = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.setdefault(tensor.data_ptr(), tensor.numel()) and tensor, lambda tensor: tensor
    ):
        attention(sequences.requires_grad_())
    parameters = sum(parameter.numel() for parameter in attention.parameters())
    assert sequences.numel() <= sum(saved.values()) <= sequences.numel() + 4 * parameters
    with torch.no_grad():
        assert attention(sequences)[0].grad_fn is None


def test_only_plain_projections_are_folded():
    """What works on calls of a projection (adapters, hooks, quantisation) is not left out."""

    class Adapter(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base

        weight = property(lambda self: self.base.weight)
        bias = property(lambda self: self.base.bias)

        def forward(self, values):
            return 2 * self.base(values)

    sequences = torch.randn(1, 2, 5, 12, dtype=torch.float64)
    for name in ("qkv_proj", "o_proj"):
        attention = make_attention()
        plain, _ = attention(sequences)
        calls = []
        handle = getattr(attention, name).register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.testing.assert_close(attention(sequences)[0], plain)
        assert calls == [1]
        handle.remove()
        handle = getattr(attention, name).register_full_backward_hook(lambda *_, calls=calls: calls.append(2))
        attention(sequences.clone().requires_grad_())[0].sum().backward()
        assert calls == [1, 2]
        handle.remove()
        setattr(attention, name, Adapter(getattr(attention, name)))
        adapted, _ = attention(sequences)
        attention.config._attn_implementation = "eager"
        torch.testing.assert_close(adapted, attention(sequences)[0])
        assert not torch.allclose(adapted, plain)


def test_folding_where_it_pays():
    assert folding_pays(64, 96, 64) and folding_pays(20, 96, 64)  # the published heads
    assert not folding_pays(64, 96, 16) and not folding_pays(1000, 96, 64)
    # In half precision with more multiplications, too, as long as sequences are short
    assert folding_is_faster(20, 48, 16, torch.bfloat16) and not folding_is_faster(20, 48, 16, torch.float32)
    assert not folding_is_faster(20, 48, 8, torch.bfloat16) and not folding_is_faster(1000, 96, 64, torch.bfloat16)
    attention = make_attention()
    tokens = torch.zeros(1, 2, 5, 12)
    assert folds_projections(attention.config, tokens)
    attention.config._attn_implementation = "eager"
    assert not folds_projections(attention.config, tokens)
    assert not folds_projections(make_attention().config, tokens.to("meta"))


@pytest.mark.parametrize("nodata", [False, True])
def test_published_size_agrees_with_eager(nodata):
    """Losses and gradients of the model with the published layers, folded and not."""
    torch.manual_seed(0)
    config = HSSTConfig(num_spatial_layers=1, num_spectral_layers=1, position_embedding_type="sincos")
    model = HSSTForMaskedImageModeling(config)
    pixel_values = torch.randn(2, 200, 8, 8)
    pixel_mask = torch.rand(2, 8, 8) > 0.3 if nodata else None
    mask = torch.rand(2, 1280) < 0.7
    results = {}
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        outputs = model(pixel_values, bool_masked_pos=mask, pixel_mask=pixel_mask)
        outputs.loss.backward()
        results[implementation] = [
            outputs.reconstruction,
            *(parameter.grad.clone() for parameter in model.parameters()),
        ]
    for value, wanted in zip(results["sdpa"], results["eager"], strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-5, rtol=1e-4)

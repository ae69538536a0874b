"""Attention by its names: "sdpa" is PyTorch's, "eager" is in full, and the fast layers agree with both."""

import pytest
import torch

from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling, HSSTModel, modeling_hsst, use_fast_layers
from modeling_hsst.kernels.cpu_layer import FastDropout, draw_kept, dropout_factor, folding_is_faster
from modeling_hsst.kernels.folding import folding_ratio
from modeling_hsst.modeling_hsst import HSSTAttention


def small_model(**settings):
    defaults = {"num_channels": 30, "image_size": 6, "hidden_size": 24, "num_attention_heads": 2, "head_dim": 16}
    torch.manual_seed(0)
    return HSSTModel(HSSTConfig(**(defaults | {"num_spatial_layers": 1, "num_spectral_layers": 1} | settings)))


@pytest.fixture
def sizes(monkeypatch):
    """The sequences of each call of PyTorch's attention."""
    sizes = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(query, *arguments, **settings):
        sizes.append(len(query))
        return attend(query, *arguments, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    return sizes


@pytest.mark.parametrize("bias", [False, True])
def test_sdpa_is_that_of_pytorch(bias, sizes):
    model, pixel_values = small_model(qkv_bias=bias), torch.randn(3, 30, 6, 6)
    assert model.config._attn_implementation == "sdpa"
    output = model(pixel_values).last_hidden_state
    assert sizes == [9, 108]  # 3 windows of 3 blocks and of 36 positions
    model.set_attn_implementation("eager")
    torch.testing.assert_close(output, model(pixel_values).last_hidden_state, atol=1e-6, rtol=1e-5)
    assert len(sizes) == 2


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("nodata", [False, True])
def test_many_sequences_are_split(nodata, implementation, sizes, monkeypatch):
    """CUDA launches no more than 65535 sequences at once."""
    model, pixel_values = small_model(), torch.randn(3, 30, 6, 6)
    model.set_attn_implementation(implementation)
    pixel_mask = torch.rand(3, 6, 6) > 0.3 if nodata else None
    expected = model(pixel_values, pixel_mask, output_attentions=implementation == "eager")
    monkeypatch.setattr(modeling_hsst, "MAX_SEQUENCES", 4)
    outputs = model(pixel_values, pixel_mask, output_attentions=implementation == "eager")
    torch.testing.assert_close(outputs.last_hidden_state, expected.last_hidden_state, atol=1e-6, rtol=1e-6)
    if implementation == "sdpa":
        assert sizes == [9, 108] + [4, 4, 1] + 27 * [4]
    else:
        torch.testing.assert_close(outputs.attentions, expected.attentions)


def test_attention_takes_sequences_of_any_strides():
    attention = HSSTAttention(HSSTConfig(hidden_size=12, num_attention_heads=3, head_dim=16), "spatial")
    attention.config._attn_implementation = "sdpa"
    sequences = torch.randn(2, 5, 7, 12).transpose(1, 2)
    torch.testing.assert_close(attention(sequences)[0], attention(sequences.contiguous())[0])


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
    dropout = FastDropout(0.3)
    values = torch.ones(300, 301, requires_grad=True)
    dropped = dropout(values)
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 1 / 0.7]), atol=1e-4, rtol=0)
    assert abs(dropped.mean().item() - 1) < 0.02
    torch.testing.assert_close(torch.autograd.grad(dropped.sum(), values)[0], dropped.detach())
    assert dropout(values.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(dropout.eval()(values), values)


def test_folding_where_it_pays():
    assert folding_ratio(64, 96, 64) < 1 and folding_ratio(20, 96, 64) < 1  # the published heads
    assert folding_ratio(64, 96, 16) > 1 and folding_ratio(1000, 96, 64) > 1
    # In half precision with more multiplications, too, as long as sequences are short
    assert folding_is_faster(20, 48, 16, torch.bfloat16) and not folding_is_faster(20, 48, 16, torch.float32)
    assert not folding_is_faster(20, 48, 8, torch.bfloat16) and not folding_is_faster(1000, 96, 64, torch.bfloat16)


@pytest.mark.parametrize("nodata", [False, True])
def test_published_size_agrees_with_eager(nodata):
    """Losses and gradients of the model with the published layers, folded and not."""
    torch.manual_seed(0)
    config = HSSTConfig(num_spatial_layers=1, num_spectral_layers=1, position_embedding_type="sincos")
    model = use_fast_layers(HSSTForMaskedImageModeling(config))
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

"""Layers worked through a few sequences at a time compute what layers compute, where only tokens are wanted."""

import pytest
import torch

from modeling_hsst import HSSTConfig, HSSTModel, folded_layer_hsst
from modeling_hsst import modeling_hsst as modeling
from modeling_hsst.attention_hsst import pieces
from modeling_hsst.folded_layer_hsst import folded_layer, folds_layer
from modeling_hsst.modeling_hsst import HSSTLayer

# windows, blocks, positions: windows of few tokens, of many, single pixels, the published ones
SHAPES = [(3, 2, 9), (2, 20, 49), (5, 7, 1), (2, 20, 64)]


def make_layer(axis="spatial", dtype=torch.float64, **settings):
    defaults = {"hidden_size": 24, "num_attention_heads": 2, "head_dim": 32, "intermediate_size": 40}
    config = HSSTConfig(**(defaults | settings))
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    layer = HSSTLayer(config, axis).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.3)
    return layer.to(dtype)


def unfolded(layer, tokens):
    """The layer in its usual form, with attention in full."""
    layer.attention.config._attn_implementation = "eager"
    output = layer(tokens.flatten(1, 2), None, num_blocks=tokens.shape[1]).view(tokens.shape)
    layer.attention.config._attn_implementation = "sdpa"
    return output


@pytest.mark.parametrize("axis", ["spatial", "spectral"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_same_as_the_layer(shape, axis):
    layer = make_layer(axis)
    tokens = torch.randn(*shape, 24, dtype=torch.float64)
    before = tokens.clone()
    with torch.no_grad():
        assert folds_layer(layer, tokens, None, None)
        output = folded_layer(layer, tokens)
        torch.testing.assert_close(output, unfolded(layer, tokens), atol=1e-10, rtol=1e-10)
        assert torch.equal(layer(tokens.flatten(1, 2), None, num_blocks=shape[1]).view(tokens.shape), output)
    assert torch.equal(tokens, before)


def test_pieces_cover_each_sequence_once():
    sizes = set()
    for shape in [(*shape, 24) for shape in SHAPES] + [(2, 20, 25, 24), (1, 300, 8, 24), (3, 2, 2000, 24)]:
        for sequences in (torch.zeros(shape), torch.zeros(shape).transpose(1, 2)):
            for piece in pieces(sequences, torch.float64):
                sequences[piece] += 1
                sizes.add((sequences[piece].shape[0] > 1, sequences[piece].shape[1] < sequences.shape[1]))
            assert torch.equal(sequences, torch.ones_like(sequences))
    assert sizes == {(True, False), (False, False), (False, True)}  # several windows, one, a part of one


@pytest.mark.parametrize("axis", ["spatial", "spectral"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, axis):
    layer = make_layer(axis, torch.float32)
    tokens = torch.randn(2, 20, 49, 24)
    with torch.no_grad():
        exact = unfolded(layer, tokens)
        with torch.autocast("cpu", dtype=dtype):
            autocast = folded_layer(layer, tokens)
            mixed = folded_layer(layer, tokens.to(dtype))
        half = folded_layer(layer.to(dtype), tokens.to(dtype))
    assert autocast.dtype == torch.float32 and mixed.dtype == dtype and half.dtype == dtype
    for output in (autocast, mixed, half):
        assert (output.float() - exact).abs().max() < 0.03 * exact.abs().max()


def test_where_layers_are_folded():
    layer, tokens = make_layer(), torch.zeros(2, 3, 4, 24, dtype=torch.float64)
    assert not folds_layer(layer, tokens, None, None)  # gradients
    with torch.no_grad():
        assert folds_layer(layer, tokens, None, None)
        assert not folds_layer(layer, tokens, torch.ones(6, 1, 4, 4, dtype=torch.bool), None)
        assert not folds_layer(layer, tokens, None, True)
        assert not folds_layer(layer, tokens.float(), None, None)  # an error in the usual form too
        assert not folds_layer(make_layer(qkv_bias=True), tokens, None, None)
        assert not folds_layer(make_layer(head_dim=2), tokens, None, None)  # folding does not pay
        assert not folds_layer(make_layer(hidden_dropout_prob=0.1).train(), tokens, None, None)
        assert not folds_layer(make_layer(attention_probs_dropout_prob=0.1).train(), tokens, None, None)
        assert folds_layer(make_layer(hidden_dropout_prob=0.1), tokens, None, None)
        assert folds_layer(make_layer(hidden_act="relu"), tokens, None, None)
        layer.attention.config._attn_implementation = "eager"
        assert not folds_layer(layer, tokens, None, None)


def test_only_plain_modules_are_folded():
    tokens = torch.zeros(2, 3, 4, 24, dtype=torch.float64)
    with torch.no_grad():
        for name in [name for name, _ in make_layer().named_modules() if name]:
            layer = make_layer()
            handle = layer.get_submodule(name).register_forward_hook(lambda *_: None)
            assert not folds_layer(layer, tokens, None, None), name
            handle.remove()
            assert folds_layer(layer, tokens, None, None), name
            layer.get_submodule(name).__class__ = type("Adapter", (type(layer.get_submodule(name)),), {})
            if list(layer.get_submodule(name).parameters(recurse=False)):
                assert not folds_layer(layer, tokens, None, None), name


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_model(mode, monkeypatch):
    folded = []
    compute = folded_layer_hsst.folded_layer
    monkeypatch.setattr(modeling, "folded_layer", lambda *arguments: (folded.append(1), compute(*arguments))[1])
    torch.manual_seed(0)
    config = HSSTConfig(num_channels=40, image_size=7, num_spatial_layers=1, num_spectral_layers=1)
    model = HSSTModel(config).eval()
    pixel_values = torch.randn(2, 40, 7, 7)
    with mode():
        outputs = model(pixel_values, output_hidden_states=True)
        assert folded == [1, 1]
        model.set_attn_implementation("eager")
        expected = model(pixel_values, output_hidden_states=True)
    assert folded == [1, 1]
    for value, wanted in zip(outputs.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-5, rtol=1e-5)
    model.set_attn_implementation("sdpa")
    model(pixel_values).last_hidden_state.sum().backward()
    assert folded == [1, 1] and all(parameter.grad is not None for parameter in model.parameters())

"""The switch for fast layers: nothing is fast without it, nothing is skipped with it, and it names obstacles."""

import copy
import io

import pytest
import torch
from transformers.utils import logging

from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling, HSSTForSemanticSegmentation, use_fast_layers
from modeling_hsst.kernels import switch
from modeling_hsst.modeling_hsst import HSSTLayer


def small_model(model_class=HSSTForMaskedImageModeling, **settings):
    defaults = {"num_channels": 30, "image_size": 6, "hidden_size": 24, "num_attention_heads": 2, "head_dim": 32}
    torch.manual_seed(0)
    config = HSSTConfig(
        **(defaults | {"num_spatial_layers": 1, "num_spectral_layers": 1, "mask_patch_size": 2} | settings)
    )
    return model_class(config).eval()


@pytest.fixture
def folded(monkeypatch):
    """The layers that were computed as a whole."""
    folded, compute = [], switch.folded_layer
    monkeypatch.setattr(switch, "folded_layer", lambda layer, *some: (folded.append(layer), compute(layer, *some))[1])
    return folded


@pytest.fixture
def warnings():
    """What the switch logs."""
    stream = io.StringIO()
    handler = logging.logging.StreamHandler(stream)
    switch.logger.addHandler(handler)
    yield stream
    switch.logger.removeHandler(handler)


@pytest.mark.parametrize("settings", [{}, {"visible_only": True}, {"num_decoder_layers": 1}], ids=str)
def test_the_same_model_faster(settings, folded, warnings):
    model, pixel_values = small_model(**settings), torch.randn(2, 30, 6, 6)
    names = list(model.state_dict())
    mask = model(pixel_values).bool_masked_pos
    expected = model(pixel_values, mask)
    assert folded == []
    assert use_fast_layers(model) is model and use_fast_layers(model) is model
    outputs = model(pixel_values, mask)
    assert len(folded) == (2 if not settings else 4) and list(model.state_dict()) == names
    torch.testing.assert_close(outputs.reconstruction, expected.reconstruction, atol=1e-5, rtol=1e-5)
    # With nodata too, and where hidden tokens are kept out of the attention
    pixel_mask = torch.rand(2, 6, 6) > 0.3
    folded.clear()
    among = model(pixel_values, mask, pixel_mask, mask_type="unit")
    assert len(folded) == (2 if not settings else 4)
    model.set_attn_implementation("eager")
    usual = model(pixel_values, mask, pixel_mask, mask_type="unit")
    torch.testing.assert_close(among.reconstruction, usual.reconstruction, atol=1e-5, rtol=1e-5)
    assert len(folded) == (2 if not settings else 4) and warnings.getvalue() == ""


def test_copies_and_files_stay_fast(folded, tmp_path):
    model, pixel_values = use_fast_layers(small_model(HSSTForSemanticSegmentation)), torch.randn(2, 30, 6, 6)
    expected = model(pixel_values).logits
    twin = copy.deepcopy(model)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    for again in (twin, loaded):
        with torch.no_grad():
            again.head.classifier.weight.zero_()
        folded.clear()
        assert not torch.equal(again(pixel_values).logits, expected)
        assert len(folded) == 2 and all(layer in set(again.modules()) for layer in folded)
    assert torch.equal(model(pixel_values).logits, expected)
    # A saved checkpoint knows nothing of it
    model.save_pretrained(tmp_path)
    folded.clear()
    plain = HSSTForSemanticSegmentation.from_pretrained(tmp_path)
    torch.testing.assert_close(plain(pixel_values).logits, expected, atol=1e-5, rtol=1e-5)
    assert folded == []
    # What shares a model out among devices finds its layers
    assert {type(layer).__name__ for layer in model.modules() if isinstance(layer, HSSTLayer)} == {"HSSTLayer"}


def test_hooks_and_adapters_are_not_skipped_whenever_they_come(folded, warnings):
    class Adapter(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base

        weight = property(lambda self: self.base.weight)
        bias = property(lambda self: self.base.bias)

        def forward(self, values):
            return 2 * self.base(values)

    pixel_values = torch.randn(2, 30, 6, 6)
    for late in (False, True):
        for name in ("attention.qkv_proj", "attention.o_proj", "mlp.fc1", "mlp.fc2"):
            model = small_model(HSSTForSemanticSegmentation)
            layer, calls = model.hsst.spatial_layers[0], []
            if late:
                use_fast_layers(model)
            handle = layer.get_submodule(name).register_forward_hook(lambda *_, calls=calls: calls.append(1))
            if not late:
                use_fast_layers(model)
            folded.clear()
            plain = model(pixel_values).logits
            assert calls == [1] and len(folded) == 1
            handle.remove()
            torch.testing.assert_close(model(pixel_values).logits, plain, atol=1e-5, rtol=1e-5)
            assert calls == [1] and len(folded) == 3
            layer.set_submodule(name, Adapter(layer.get_submodule(name)))
            adapted = model(pixel_values).logits
            assert len(folded) == 4
            model.set_attn_implementation("eager")
            torch.testing.assert_close(adapted, model(pixel_values).logits, atol=1e-5, rtol=1e-5)
            assert not torch.allclose(adapted, plain)
    logged = warnings.getvalue().strip().split("\n")
    # Of those that were there first
    assert len(logged) == 4
    assert logged[0] == (
        "1 of 2 layers are computed in the usual form for now; hsst.spatial_layers.0: attention.qkv_proj is not a "
        "plain Linear, or has hooks."
    )


def test_it_says_what_is_not_possible(warnings):
    class OwnLayer(HSSTLayer):
        pass

    model = small_model()
    model.hsst.spatial_layers[0].__class__ = OwnLayer
    use_fast_layers(model)
    use_fast_layers(small_model(qkv_bias=True))
    use_fast_layers(small_model(hidden_act="xielu"))
    use_fast_layers(torch.nn.Linear(2, 3))
    lines = warnings.getvalue().strip().split("\n")
    assert "1 of 2 layers" in lines[0] and lines[0].endswith("it is a OwnLayer.")
    assert "2 of 2 layers" in lines[1] and lines[1].endswith("queries, keys and values have a bias.")
    assert lines[2].endswith("its activation has weights.")
    assert lines[3] == "Found no layers of modeling_hsst.modeling_hsst to make faster in this Linear."


def test_attention_weights_are_recorded(folded):
    model, pixel_values = use_fast_layers(small_model()), torch.randn(2, 30, 6, 6)
    model.set_attn_implementation("eager")
    assert len(model(pixel_values, output_attentions=True).attentions) == 2
    model.set_attn_implementation("sdpa")
    # The recorders stay, and record nothing
    assert len(model(pixel_values, output_hidden_states=True).hidden_states) == 3 and len(folded) == 2


@pytest.mark.parametrize("training", [False, True])
def test_it_compiles(training):
    model, pixel_values = small_model(), torch.randn(2, 30, 6, 6)
    mask = model(pixel_values).bool_masked_pos
    expected = model(pixel_values, mask).loss
    # Windows of other sizes, before and after this, would otherwise make the sizes of all symbols
    torch.compiler.reset()
    run = torch.compile(use_fast_layers(model).train(training), fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(run(pixel_values, mask).loss, expected)
    torch.compiler.reset()

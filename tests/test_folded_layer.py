"""Layers worked through a few sequences at a time compute what layers compute, forwards and backwards."""

import pytest
import torch

from modeling_hsst import HSSTConfig, HSSTModel, use_fast_layers
from modeling_hsst.kernels import cpu_layer, cpu_products, switch
from modeling_hsst.kernels.cpu_layer import folded_layer
from modeling_hsst.kernels.cpu_layer import folds_layer as folds_tokens
from modeling_hsst.kernels.cpu_products import GradientSum, has_fused_products, multiply, pieces
from modeling_hsst.modeling_hsst import HSSTLayer, grid_places

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
    return use_fast_layers(layer.to(dtype))


def folds_layer(layer, tokens, attention_mask=None, output_attentions=None):
    """Whether a call of a layer is computed as a whole."""
    calls = []
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(switch, "folded_layer", lambda layer, tokens, mask, places: (calls.append(mask), tokens)[1])
        # What the usual form would make of it does not matter
        patch.setattr(HSSTLayer, "forward", lambda *_, **__: None)
        layer(tokens.flatten(1, 2), attention_mask, num_blocks=tokens.shape[1], output_attentions=output_attentions)
    return len(calls) == 1


def unfolded(layer, tokens, mask=None):
    """The layer in its usual form, with attention in full."""
    layer.attention.config._attn_implementation = "eager"
    output = layer(tokens.flatten(1, 2), mask, num_blocks=tokens.shape[1]).view(tokens.shape)
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


@pytest.mark.parametrize("axis", ["spatial", "spectral"])
def test_products_that_do_what_comes_after_them(axis, monkeypatch):
    layer, tokens = make_layer(axis, torch.float32), torch.randn(2, 20, 49, 24).bfloat16()
    with torch.no_grad():
        exact = unfolded(layer, tokens.float())
        layer = layer.bfloat16()
        fused = folded_layer(layer, tokens)
        monkeypatch.setattr(cpu_products, "has_fused_products", lambda dtype: False)
        monkeypatch.setattr(cpu_layer, "has_fused_products", lambda dtype: False)
        parts = folded_layer(layer, tokens)
    assert torch.equal(fused, parts) != has_fused_products(torch.bfloat16)
    # Less is rounded on the way
    assert (fused.float() - exact).norm() <= (parts.float() - exact).norm()


@pytest.mark.parametrize("failing", ["missing", "wrong"])
def test_products_are_tried_before_they_are_used(failing, monkeypatch):
    def without(*arguments):
        if failing == "missing":
            raise AttributeError
        return torch.zeros(4, 4, dtype=torch.bfloat16)

    has_fused_products.cache_clear()
    monkeypatch.setattr(cpu_products, "linear_add", without)
    assert not has_fused_products(torch.bfloat16) and not has_fused_products(torch.float32)
    has_fused_products.cache_clear()


def output_and_gradients(compute, layer, tokens):
    tokens = tokens.detach().requires_grad_()
    output = compute(layer, tokens)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad((output * weights.to(output.dtype)).sum(), [tokens, *layer.parameters()])
    names = ["output", "tokens", *(name for name, _ in layer.named_parameters())]
    return dict(zip(names, [output.detach(), *gradients], strict=True))


@pytest.mark.parametrize("hidden_act", ["gelu", "relu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("axis", ["spatial", "spectral"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_are_those_of_the_layer(shape, axis, hidden_act):
    layer = make_layer(axis, hidden_act=hidden_act)
    tokens = torch.randn(*shape, 24, dtype=torch.float64)
    assert folds_layer(layer, tokens, None, None)
    expected = output_and_gradients(unfolded, layer, tokens)
    for name, value in output_and_gradients(folded_layer, layer, tokens).items():
        torch.testing.assert_close(value, expected[name], atol=1e-9, rtol=1e-9, msg=name)


def some_places(shape, kind):
    """Rows and columns of tokens: the same ones everywhere, others in each window, or others in each sequence."""
    windows, blocks, positions = shape
    if kind == "everywhere":
        return grid_places(1, positions, torch.device("cpu"))
    sequences = blocks if kind == "by sequence" else 1
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 8, (windows, sequences, positions, 2), generator=generator)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["everywhere", "by window", "by sequence"])
@pytest.mark.parametrize("shape", [*SHAPES, (3, 2, 8)], ids=str)
def test_relative_positions(shape, kind, masked):
    """Outputs and gradients, wherever the tokens lie and whichever side of the scores comes first."""
    layer = make_layer(position_embedding_type="relative")
    tokens, places = torch.randn(*shape, 24, dtype=torch.float64), some_places(shape, kind)
    seen = torch.rand(shape[0] * shape[1], 1, 1, shape[2]) < 0.7
    seen[..., 0] = True
    mask = seen.expand(-1, -1, shape[2], -1) if masked else None

    def usual(layer, tokens):
        layer.attention.config._attn_implementation = "eager"
        added = None if mask is None else torch.where(mask, 0.0, float("-inf")).double()
        output = layer(tokens.flatten(1, 2), added, num_blocks=shape[1], places=places).view(tokens.shape)
        layer.attention.config._attn_implementation = "sdpa"
        return output

    expected = output_and_gradients(usual, layer, tokens)
    found = output_and_gradients(lambda layer, tokens: folded_layer(layer, tokens, mask, places), layer, tokens)
    assert "attention.position_bias.bias" in found
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-9, rtol=1e-9, msg=name)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("positions", [1, 2])
def test_a_token_that_is_alone_needs_one_head(positions, dropout, monkeypatch):
    seen = []
    usual = cpu_layer.SomeOfALayer.__init__
    monkeypatch.setattr(
        cpu_layer.SomeOfALayer, "__init__", lambda *given: (seen.append(given[2].query_key.shape), usual(*given))[1]
    )
    layer = make_layer(attention_probs_dropout_prob=dropout).train()
    folded_layer(layer, torch.randn(3, 4, positions, 24, dtype=torch.float64))
    # Dropout drops the weight of each head by itself
    assert seen == [(24 if positions == 1 and not dropout else 2 * 24, 24)]


@pytest.mark.parametrize("axis", ["spatial", "spectral"])
def test_hidden_tokens_are_not_seen(axis):
    layer, tokens = make_layer(axis), torch.randn(2, 20, 9, 24, dtype=torch.float64)
    length = 9 if axis == "spatial" else 20
    mask = torch.rand(360 // length, 1, 1, length) > 0.4
    mask[..., 0] = True
    mask = mask.expand(-1, -1, length, -1)
    added = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, float("-inf"))
    expected = output_and_gradients(lambda *arguments: unfolded(*arguments, added), layer, tokens)
    for name, value in output_and_gradients(lambda *some: folded_layer(*some, mask), layer, tokens).items():
        torch.testing.assert_close(value, expected[name], atol=1e-9, rtol=1e-9, msg=name)
    with torch.no_grad():
        called = layer(tokens.flatten(1, 2), mask, num_blocks=20).view(tokens.shape)
        assert torch.equal(called, folded_layer(layer, tokens, mask))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads(threads):
    """Threads with products of their own, where tokens can be shared out evenly."""
    usual = torch.get_num_threads()
    layer, tokens = make_layer(), torch.randn(2, 5, 7, 24, dtype=torch.float64)
    expected = output_and_gradients(unfolded, layer, tokens)
    try:
        torch.set_num_threads(threads)
        left, right = torch.randn(12, 5), torch.randn(5, 6)
        product, total = torch.empty(12, 6), GradientSum(torch.empty(5, 6))
        multiply(left, right, product)
        torch.testing.assert_close(product, left @ right)
        multiply(left, right, product, add=True)
        torch.testing.assert_close(product, 2 * left @ right)
        for rows in (12, 7):
            total.add_product(left[:rows], product[:rows])
        torch.testing.assert_close(total(), left.t() @ product + left[:7].t() @ product[:7])
        for name, value in output_and_gradients(folded_layer, layer, tokens).items():
            torch.testing.assert_close(value, expected[name], atol=1e-9, rtol=1e-9, msg=name)
    finally:
        torch.set_num_threads(usual)


def test_dropout():
    settings = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2}
    small = {"hidden_size": 6, "num_attention_heads": 2, "head_dim": 8, "intermediate_size": 5}
    layer = make_layer(**settings, **small).train()
    tokens = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    assert folds_layer(layer, tokens, None, None)
    parameters = tuple(layer.parameters())

    def dropped(tokens, *_):
        torch.manual_seed(3)
        return folded_layer(layer, tokens)

    assert torch.autograd.gradcheck(dropped, (tokens, *parameters))
    with torch.no_grad():
        assert not torch.equal(folded_layer(layer, tokens), folded_layer(layer, tokens))
        # Each of the same images has a dropout of its own
        many = tokens.repeat(3000, 1, 1, 1)
        several, usual = (form(layer, many).view(3000, *tokens.shape).mean(0) for form in (folded_layer, unfolded))
        plain = folded_layer(layer.eval(), tokens)
        # The MLP makes another mean of dropped tokens: the same as that of the usual form
        assert (several - usual).abs().max() < 0.05 * (plain - tokens).abs().max()


@pytest.mark.parametrize("name", ["attention", "hidden"])
def test_each_dropout(name):
    """Dropout in one place leaves the others as they are."""
    setting = {"attention": "attention_probs_dropout_prob", "hidden": "hidden_dropout_prob"}[name]
    layer = make_layer(**{setting: 0.999}).train()
    tokens = torch.randn(1, 2, 5, 24, dtype=torch.float64)
    with torch.no_grad():
        output = folded_layer(layer, tokens)
        layer.eval()
        if name == "hidden":
            # Nearly nothing is added to the tokens
            assert (output == tokens).double().mean() > 0.98
        else:
            layer.attention.o_proj.weight.zero_()
            close = torch.isclose(output, folded_layer(layer, tokens)).all(-1)
            assert close.double().mean() > 0.5


@pytest.mark.parametrize("axis", ["spatial", "spectral"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_in_half_precision(dtype, axis):
    layer = make_layer(axis, torch.float32)
    tokens = torch.randn(2, 20, 49, 24)
    exact = output_and_gradients(unfolded, layer, tokens)

    def errors(compute, layer, tokens):
        values = output_and_gradients(compute, layer, tokens)
        dtypes = {name: value.dtype for name, value in values.items()}
        return dtypes, {name: (value.float() - exact[name]).norm().item() for name, value in values.items()}

    for layer_dtype, tokens_dtype in ((torch.float32, torch.float32), (torch.float32, dtype), (dtype, dtype)):
        layer, tokens = layer.to(layer_dtype), tokens.to(tokens_dtype)
        with torch.autocast("cpu", dtype=dtype, enabled=layer_dtype != dtype):
            (dtypes, folded), (usual_dtypes, usual) = (
                errors(compute, layer, tokens) for compute in (folded_layer, unfolded)
            )
        assert dtypes == usual_dtypes
        for name, error in folded.items():
            assert error < 1.5 * usual[name] + 1e-3 * exact[name].norm(), name


def test_little_is_kept_for_the_backward_pass():
    layer, tokens = make_layer(), torch.randn(2, 20, 64, 24, dtype=torch.float64)
    saved = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.setdefault(tensor.data_ptr(), tensor.numel()) and tensor, lambda tensor: tensor
    ):
        folded_layer(layer, tokens.requires_grad_())
    parameters = sum(parameter.numel() for parameter in layer.parameters())
    assert 2 * tokens.numel() <= sum(saved.values()) <= 2 * tokens.numel() + 4 * parameters
    with torch.no_grad():
        assert folded_layer(layer, tokens).grad_fn is None


def test_backward_pass_may_be_repeated_and_others_may_come_between():
    layer, tokens = make_layer(), torch.randn(2, 2, 3, 4, 24, dtype=torch.float64, requires_grad=True)
    outputs = [folded_layer(layer, some) for some in tokens]
    first = torch.autograd.grad(outputs[0].square().sum(), tokens, retain_graph=True)[0]
    torch.autograd.grad(outputs[1].square().sum(), tokens)
    assert torch.equal(torch.autograd.grad(outputs[0].square().sum(), tokens)[0], first)


def test_frozen_weights():
    layer, tokens = make_layer(), torch.randn(2, 3, 4, 24, dtype=torch.float64)
    expected = output_and_gradients(folded_layer, layer, tokens)
    layer.requires_grad_(False)
    assert folded_layer(layer, tokens).grad_fn is None
    layer.mlp.fc1.weight.requires_grad_()
    weights = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (folded_layer(layer, tokens) * weights).sum().backward()
    torch.testing.assert_close(layer.mlp.fc1.weight.grad, expected["mlp.fc1.weight"])
    assert [name for name, weight in layer.named_parameters() if weight.grad is not None] == ["mlp.fc1.weight"]


def test_where_layers_are_folded():
    layer, tokens = make_layer(), torch.zeros(2, 3, 4, 24, dtype=torch.float64)
    assert folds_layer(layer, tokens, None, None)
    assert folds_layer(layer, tokens, torch.ones(6, 1, 4, 4, dtype=torch.bool), None)
    assert not folds_layer(layer, tokens, None, True)
    assert not folds_layer(layer, tokens.float(), None, None)  # an error in the usual form too
    assert not folds_layer(make_layer(qkv_bias=True), tokens, None, None)
    assert not folds_layer(make_layer(head_dim=2), tokens, None, None)  # folding does not pay
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    assert folds_layer(make_layer(**dropout).train(), tokens, None, None)
    assert folds_layer(make_layer(hidden_act="relu"), tokens, None, None)
    assert not folds_layer(make_layer(hidden_act="xielu"), tokens, None, None)  # an activation that learns
    assert not folds_tokens(layer, tokens.to("meta"))
    layer.attention.config._attn_implementation = "eager"
    assert not folds_layer(layer, tokens, None, None)


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_only_plain_modules_are_folded(kind):
    tokens = torch.zeros(2, 3, 4, 24, dtype=torch.float64)
    for name in [name for name, _ in make_layer().named_modules() if name]:
        layer = make_layer()
        handle = getattr(layer.get_submodule(name), f"register_{kind}")(lambda *_: None)
        assert not folds_layer(layer, tokens, None, None), name
        handle.remove()
        assert folds_layer(layer, tokens, None, None), name
        layer.get_submodule(name).__class__ = type("Adapter", (type(layer.get_submodule(name)),), {})
        if list(layer.get_submodule(name).parameters(recurse=False)):
            assert not folds_layer(layer, tokens, None, None), name


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_model(mode, monkeypatch):
    folded = []
    monkeypatch.setattr(switch, "folded_layer", lambda *arguments: (folded.append(1), folded_layer(*arguments))[1])
    torch.manual_seed(0)
    config = HSSTConfig(num_channels=40, image_size=7, num_spatial_layers=1, num_spectral_layers=1)
    model = use_fast_layers(HSSTModel(config).eval())
    pixel_values = torch.randn(2, 40, 7, 7)
    with mode():
        outputs = model(pixel_values, output_hidden_states=True)
        assert folded == [1, 1]
        model.set_attn_implementation("eager")
        expected = model(pixel_values, output_hidden_states=True)
    assert folded == [1, 1]
    for value, wanted in zip(outputs.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_training_of_a_model(reentrant):
    torch.manual_seed(0)
    config = HSSTConfig(num_channels=40, image_size=7, num_spatial_layers=1, num_spectral_layers=1)
    model = use_fast_layers(HSSTModel(config).train())
    if reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    pixel_values = torch.randn(2, 40, 7, 7)
    gradients = []
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        outputs = model(pixel_values)
        assert ("_FoldedLayer" in names_of_graph(outputs.last_hidden_state)) == (
            implementation == "sdpa" and not reentrant
        )
        outputs.last_hidden_state.square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-4, msg=name)


def names_of_graph(tensor):
    """Names of the functions that a tensor is computed with."""
    names, functions = "", [tensor.grad_fn]
    while functions:
        function = functions.pop()
        names += function.name() + " "
        functions += [following for following, _ in function.next_functions if following is not None]
        if len(names) > 10_000:
            break
    return names

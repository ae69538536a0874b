"""A layer in one kernel computes what the layer computes, where nothing else is asked of it."""

import pytest
import torch

from modeling_hsst import (
    HSSTBackbone,
    HSSTConfig,
    HSSTForSemanticSegmentation,
    HSSTModel,
    use_fast_layers,
)
from modeling_hsst.kernels import gpu_attention, gpu_layer, switch
from modeling_hsst.kernels.gpu_attention import HAS_TRITON, kernels_run_on
from modeling_hsst.kernels.gpu_layer import FastLayerNorm, fused_layer, launch_layer, plain_layer, split_width
from modeling_hsst.modeling_hsst import HSSTLayer, grid_places

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Kernels run on GPUs, and with TRITON_INTERPRET=1 anywhere
needs_kernels = pytest.mark.skipif(
    not kernels_run_on(torch.zeros(1, device=DEVICE)), reason="neither a GPU nor Triton's interpreter"
)
needs_cuda = pytest.mark.skipif(DEVICE == "cpu" or not HAS_TRITON, reason="needs a GPU and Triton")
# The interpreter multiplies the bits of bfloat16, and float32 is for it alone
DTYPES = [torch.float16, torch.bfloat16 if DEVICE == "cuda" else torch.float32]
TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

# windows, blocks, positions, width, heads, head_dim, intermediate_size, axis
SHAPES = [
    (1, 1, 1, 32, 1, 16, 16, 2),
    (1, 3, 5, 48, 2, 32, 64, 2),
    (2, 20, 7, 96, 2, 64, 64, 1),
    (1, 2, 64, 96, 8, 64, 64, 2),
    (3, 6, 16, 96, 3, 64, 128, 2),
    (1, 5, 16, 64, 2, 64, 32, 1),
    (1, 33, 3, 48, 4, 64, 64, 1),
]


SHAPES_AND_POSITIONS = [
    *((shape, "learned") for shape in SHAPES),
    *((shape, "relative") for shape in SHAPES if shape[3] % 12 == 0),
]


def random_layer(blocks, positions, width, heads, head_dim, intermediate_size, axis, position_type="learned"):
    config = HSSTConfig(
        position_embedding_type=position_type,
        wavelengths=[400.0 + number for number in range(10 * blocks)],
        num_channels=10 * blocks,
        image_size=(1, positions),
        hidden_size=width,
        num_attention_heads=heads,
        head_dim=head_dim,
        intermediate_size=intermediate_size,
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    layer = HSSTLayer(config, "spatial" if axis == 2 else "spectral")
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=1.5 * parameter.shape[1] ** -0.5)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return layer.eval()


def weights_of(layer):
    attention, mlp = layer.attention, layer.mlp
    bias = torch.empty(0)
    if attention.position_bias is not None:
        bias = attention.position_bias(grid_places(*attention.position_bias.grid_size, torch.device("cpu")))[0, 0]
    return (
        (layer.layernorm_before.weight, layer.layernorm_before.bias, 1e-5),
        (attention.qkv_proj.weight, attention.o_proj.weight, attention.o_proj.bias),
        (layer.layernorm_after.weight, layer.layernorm_after.bias, 1e-5),
        (mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias),
        bias.to(attention.o_proj.bias.device),
        attention.num_attention_heads,
        attention.scaling,
        2 if layer.axis == "spatial" else 1,
    )


def assert_close(value, wanted, tolerance):
    difference = (value.cpu().double() - wanted.cpu().double()).abs().max()
    assert difference <= tolerance * wanted.abs().max(), difference


@pytest.mark.parametrize(("shape", "positions"), SHAPES_AND_POSITIONS, ids=str)
@torch.no_grad()
def test_plain_form(shape, positions):
    layer = random_layer(*shape[1:], positions)
    tokens = torch.randn(*shape[:4])
    places = grid_places(1, shape[2], tokens.device)
    expected = layer(tokens.flatten(1, 2), None, num_blocks=shape[1], places=places).view(tokens.shape)
    assert_close(plain_layer(tokens, *weights_of(layer), torch.float32), expected, 2e-6)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "positions"), SHAPES_AND_POSITIONS, ids=str)
@torch.no_grad()
def test_kernel(shape, dtype, positions):
    layer = random_layer(*shape[1:], positions).to(DEVICE)
    for tokens_dtype in {dtype, torch.float32}:
        tokens = torch.randn(*shape[:4]).to(DEVICE, tokens_dtype)
        output = launch_layer(tokens, *weights_of(layer), dtype)
        assert output.dtype == tokens_dtype
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        expected = plain_layer(tokens.float(), *weights_of(layer), torch.float32)
        torch.set_float32_matmul_precision(precision)
        assert_close(output, expected, TOLERANCES[dtype])


def test_operator():
    layer = random_layer(*SHAPES[1][1:]).to(torch.bfloat16)
    tokens = torch.randn(*SHAPES[1][:4]).to(torch.bfloat16)
    before, attention, after, mlp, bias, *rest = weights_of(layer)
    arguments = (tokens, *before[:2], *attention, *after[:2], *mlp, bias, *rest[:2], before[2], after[2], rest[2])
    with torch.no_grad():
        torch.library.opcheck(gpu_layer._fused_layer, (*arguments, torch.bfloat16))
        assert fused_layer(layer, tokens[:0]).shape == (0, *tokens.shape[1:])


def test_widths():
    assert split_width(96) == (64, 32) and split_width(48) == (32, 16) and split_width(128) == (64, 64)
    assert [split_width(width) for width in (16, 24, 100, 112, 144, 192)] == 6 * [None]


@pytest.fixture
def anywhere(monkeypatch):
    """As if there were kernels for the model on any machine."""
    if DEVICE == "cpu":

        def replaces_sdpa(config, _):
            return config._attn_implementation == "sdpa"

        monkeypatch.setattr(gpu_layer, "replaces_sdpa", replaces_sdpa)
    fused = []
    for name in ("plain_layer", "launch_layer"):
        compute = getattr(gpu_layer, name)
        monkeypatch.setattr(
            gpu_layer,
            name,
            lambda *arguments, name=name, compute=compute: (fused.append(name), compute(*arguments))[1],
        )
    return fused


def small_config(**settings):
    defaults = {"num_channels": 30, "image_size": 6, "hidden_size": 48, "num_attention_heads": 2, "head_dim": 32}
    return HSSTConfig(**(defaults | {"num_spatial_layers": 1, "num_spectral_layers": 1} | settings))


def small_layer(dtype=torch.bfloat16, **settings):
    config = small_config(**settings)
    config._attn_implementation = "sdpa"
    return use_fast_layers(HSSTLayer(config, "spatial").to(DEVICE, dtype).eval())


def fuses_layer(layer, tokens, attention_mask=None, output_attentions=None):
    """Whether a call of a layer is computed in its kernel."""
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(switch, "fused_layer", lambda layer, tokens, places: (calls.append(1), tokens)[1])
        # What other ways would make of it does not matter
        patch.setattr(switch, "folds_layer", lambda *_: False)
        patch.setattr(HSSTLayer, "forward", lambda *_, **__: None)
        layer(tokens.flatten(1, 2), attention_mask, num_blocks=tokens.shape[1], output_attentions=output_attentions)
    return calls == [1]


def test_where_layers_are_fused(anywhere):
    tokens = torch.zeros(2, 3, 36, 48, dtype=torch.bfloat16, device=DEVICE)
    layer = small_layer()
    assert not fuses_layer(layer, tokens, None, None)  # gradients
    with torch.no_grad():
        assert fuses_layer(layer, tokens, None, None)
        assert fuses_layer(small_layer().train(), tokens, None, None)
        assert not fuses_layer(layer, tokens, torch.ones(6, 1, 36, 36), None)
        assert not fuses_layer(layer, tokens, None, True)
        assert not fuses_layer(layer, tokens.new_zeros(1, 3, 65, 48), None, None)
        assert not fuses_layer(small_layer(torch.float32), tokens.float(), None, None)
        # An error in the ordinary form too
        assert not fuses_layer(small_layer(torch.float32), tokens, None, None)
        assert not fuses_layer(small_layer(hidden_act="relu"), tokens, None, None)
        assert not fuses_layer(small_layer(qkv_bias=True), tokens, None, None)
        assert not fuses_layer(small_layer(intermediate_size=48), tokens, None, None)
        assert not fuses_layer(small_layer(hidden_size=36), tokens[..., :36], None, None)
        assert not fuses_layer(small_layer(hidden_dropout_prob=0.1).train(), tokens, None, None)
        assert not fuses_layer(small_layer(attention_probs_dropout_prob=0.1).train(), tokens, None, None)
        assert fuses_layer(small_layer(hidden_dropout_prob=0.1), tokens, None, None)
        layer.attention.config._attn_implementation = "eager"
        assert not fuses_layer(layer, tokens, None, None)


def test_only_plain_modules_are_fused(anywhere):
    tokens = torch.zeros(2, 3, 36, 48, dtype=torch.bfloat16, device=DEVICE)
    with torch.no_grad():
        names = [name for name, _ in small_layer().named_modules() if name]
        assert len(names) == 11
        for name in names:
            layer = small_layer()
            handle = layer.get_submodule(name).register_forward_hook(lambda *_: None)
            assert not fuses_layer(layer, tokens, None, None), name
            handle.remove()
            assert fuses_layer(layer, tokens, None, None), name
        for name in ("attention.qkv_proj", "mlp.fc2", "layernorm_after"):
            layer = small_layer()

            class Adapter(type(layer.get_submodule(name))):
                pass

            layer.get_submodule(name).__class__ = Adapter
            assert not fuses_layer(layer, tokens, None, None), name


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("autocast", [False, True], ids=["half", "autocast"])
def test_model(autocast, compiled, anywhere):
    torch.manual_seed(0)
    exact = HSSTModel(small_config()).to(DEVICE).eval()
    pixel_values = torch.randn(2, 30, 6, 6).to(DEVICE)
    exact.set_attn_implementation("eager")
    with torch.no_grad():
        expected = exact(pixel_values).last_hidden_state
    assert anywhere == []
    model = HSSTModel(exact.config).to(DEVICE).eval()
    model.load_state_dict(exact.state_dict())
    use_fast_layers(model)
    model.set_attn_implementation("sdpa")
    model = model if autocast else model.to(torch.bfloat16)
    torch.compiler.reset()
    backend = "inductor" if DEVICE == "cuda" else "aot_eager"
    run = torch.compile(model, fullgraph=True, dynamic=False, backend=backend) if compiled else model
    for mode in (torch.no_grad, torch.inference_mode):
        anywhere.clear()
        with mode(), torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=autocast):
            output = run(pixel_values)
        assert anywhere == 2 * ["plain_layer" if DEVICE == "cpu" else "launch_layer"]
        assert output.last_hidden_state.dtype == (torch.float32 if autocast else torch.bfloat16)
        assert_close(output.last_hidden_state, expected, 2e-2)


@torch.no_grad()
def test_hidden_states_are_recorded(anywhere):
    torch.manual_seed(0)
    backbone = HSSTBackbone(small_config(out_indices=[0, 1, 2])).to(DEVICE, torch.bfloat16).eval()
    use_fast_layers(backbone).set_attn_implementation("sdpa")
    pixel_values = torch.randn(2, 30, 6, 6).to(DEVICE, torch.bfloat16)
    for _ in range(2):
        feature_maps = backbone(pixel_values).feature_maps
        assert len(feature_maps) == 3 and len(anywhere) == 2
        anywhere.clear()
    backbone.set_attn_implementation("eager")
    for value, wanted in zip(feature_maps, backbone(pixel_values).feature_maps, strict=True):
        assert_close(value, wanted, 3e-2)


@needs_cuda
@pytest.mark.parametrize("mode", ["eager", "default", "reduce-overhead"])
@torch.no_grad()
def test_published_size_on_cuda(mode, anywhere):
    """Logits in bfloat16 come as close to those in float32 as those of the layers one operator at a time."""
    torch.manual_seed(0)
    model = HSSTForSemanticSegmentation(HSSTConfig(num_labels=8)).to(DEVICE).eval()
    pixel_values = torch.randn(5, 200, 8, 8, device=DEVICE)
    model.set_attn_implementation("eager")
    expected = model(pixel_values).logits
    model, pixel_values = model.to(torch.bfloat16), pixel_values.to(torch.bfloat16)
    ordinary = (model(pixel_values).logits.float() - expected).norm()
    use_fast_layers(model).set_attn_implementation("sdpa")
    torch.compiler.reset()
    settings = {} if mode == "default" else {"mode": mode}
    run = model if mode == "eager" else torch.compile(model, fullgraph=True, dynamic=False, **settings)
    for _ in range(3):
        error = (run(pixel_values).logits.float() - expected).norm()
        assert error < max(1.5 * ordinary, 1e-3 * expected.norm())
    # Graphs are recorded once and played from then on
    assert len(anywhere) >= 8 and set(anywhere) == {"launch_layer"}


def test_values_of_tokens_are_normalized_as_layernorm_does():
    class OnGPU(torch.Tensor):
        """A tensor that says it lies on a GPU."""

        @property
        def device(self):
            return torch.device("cuda")

    model = HSSTModel(small_config())
    layernorm = model.embeddings.patch_embeddings.layernorm_before
    torch.nn.init.normal_(layernorm.weight)
    torch.nn.init.normal_(layernorm.bias)
    values = 3 + torch.randn(2, 3, 4, 10)
    expected = layernorm(values)
    use_fast_layers(model)
    assert type(layernorm) is FastLayerNorm and torch.equal(layernorm(values), expected)
    result = layernorm(values.as_subclass(OnGPU)).as_subclass(torch.Tensor)
    torch.testing.assert_close(result, expected)
    seen = []
    layernorm.register_forward_hook(lambda *arguments: seen.append(arguments))
    layernorm(values.as_subclass(OnGPU))
    assert len(seen) == 1
    use_fast_layers(HSSTModel(small_config(normalize_token_values=False)))


@needs_cuda
@torch.no_grad()
def test_short_attention_serves_where_layers_are_not_fused(monkeypatch):
    layer = small_layer(torch.float32)
    tokens = torch.randn(2, 108, 48, device=DEVICE)
    launches = []
    launch = gpu_attention._launch
    monkeypatch.setattr(gpu_attention, "_launch", lambda *arguments: (launches.append(1), launch(*arguments))[1])
    output = layer(tokens, None, num_blocks=3)
    layer.attention.config._attn_implementation = "eager"
    assert_close(output, layer(tokens, None, num_blocks=3), 1e-3)
    assert launches == [1]

"""Attention among short sequences in one kernel computes what attention computes, forwards and backwards."""

import pytest
import torch

from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling, HSSTModel, use_fast_layers
from modeling_hsst.kernels import gpu_attention
from modeling_hsst.kernels.gpu_attention import (
    HAS_TRITON,
    fits_tile,
    launch_backward,
    launch_forward,
    plain_backward,
    plain_forward,
    runs_kernels,
    short_attention,
    short_attention_axis,
    tile_shape,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Kernels run on GPUs, and with TRITON_INTERPRET=1 anywhere
needs_kernels = pytest.mark.skipif(
    not runs_kernels(torch.zeros(1, 1, 16, 48, device=DEVICE), 1, 2), reason="neither a GPU nor Triton's interpreter"
)
needs_cuda = pytest.mark.skipif(DEVICE == "cpu" or not HAS_TRITON, reason="needs a GPU and Triton")
# The interpreter multiplies the bits of bfloat16
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE == "cuda" else [])
TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

# windows, blocks, positions, heads, head_dim, axis: lengths from 1 to 100, and last tiles that are full or not
SHAPES = [
    (1, 1, 1, 1, 16, 2),
    (2, 3, 1, 2, 16, 2),
    (3, 5, 7, 2, 16, 1),
    (2, 5, 16, 4, 64, 2),
    (2, 6, 19, 1, 32, 2),
    (1, 19, 6, 1, 32, 1),
    (2, 20, 9, 2, 64, 1),
    (1, 20, 1, 8, 64, 1),
    (1, 33, 2, 1, 16, 1),
    (1, 2, 64, 2, 64, 2),
    (1, 64, 3, 1, 64, 1),
]
LONG_SHAPES = [(1, 2, 100, 2, 16, 2), (1, 128, 2, 1, 64, 1), (1, 1, 64, 1, 128, 2)]


@pytest.fixture
def unrounded():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def random_inputs(windows, blocks, positions, heads, head_dim, dtype):
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(windows, blocks, positions, 3 * heads * head_dim, generator=generator)
    gradient = torch.randn(windows, blocks, positions, heads * head_dim, generator=generator)
    return qkv.to(DEVICE, dtype), gradient.to(DEVICE, dtype)


def biases(heads, length):
    """None, or a number for each head, query and key."""
    return [torch.empty(0), torch.randn(heads, length, length, generator=torch.Generator().manual_seed(1))]


def attention_by_autograd(qkv, gradient, heads, scaling, axis, bias):
    """The same in float64, written as in textbooks, one sequence and head after the other."""
    qkv = qkv.cpu().double().requires_grad_()
    bias = bias.double().requires_grad_()
    windows, blocks, positions, width = qkv.shape
    sequences = qkv if axis == 2 else qkv.transpose(1, 2)
    outputs = []
    for sequence in sequences.reshape(-1, qkv.shape[axis], 3, heads, width // (3 * heads)):
        for head in range(heads):
            query, key, value = sequence[:, :, head].unbind(1)
            scores = scaling * query @ key.T + (bias[head] if len(bias) else 0.0 * bias.sum())
            outputs.append(torch.softmax(scores, dim=1) @ value)
    output = torch.stack(outputs).unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)
    output = output.view(windows, -1, qkv.shape[axis], width // 3)
    output = output if axis == 2 else output.transpose(1, 2)
    return output.detach(), *torch.autograd.grad(output, (qkv, bias), gradient.cpu().double())


def assert_close(value, wanted, tolerance):
    if not wanted.numel():
        assert not value.numel()
        return
    difference = (value.cpu().double() - wanted.cpu().double()).abs().max()
    assert difference <= tolerance * wanted.abs().max(), difference


@pytest.mark.parametrize("shape", [*SHAPES, *LONG_SHAPES], ids=str)
def test_plain_form(shape):
    *sizes, axis = shape
    qkv, gradient = random_inputs(*sizes, torch.float64)
    scaling = sizes[-1] ** -0.5
    for bias in biases(sizes[3], qkv.shape[axis]):
        settings = sizes[3], scaling, axis, bias.double()
        output, *gradients = attention_by_autograd(qkv, gradient, *settings)
        assert_close(plain_forward(qkv, *settings), output, 1e-12)
        for value, wanted in zip(plain_backward(gradient, qkv, *settings), gradients, strict=True):
            assert_close(value, wanted, 1e-12)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, *LONG_SHAPES], ids=str)
def test_kernels(shape, dtype, unrounded):
    windows, blocks, positions, heads, head_dim, axis = shape
    if not fits_tile(shape[axis], head_dim, dtype):
        pytest.skip("no kernel")
    qkv, gradient = random_inputs(windows, blocks, positions, heads, head_dim, dtype)
    scaling = head_dim**-0.5
    qkv.requires_grad_()
    assert runs_kernels(qkv, heads, axis)
    for bias in biases(heads, shape[:3][axis]):
        here = bias.to(DEVICE).requires_grad_()
        output = short_attention(qkv, heads, scaling, axis, here if len(here) else None)
        inputs = (qkv, here) if len(here) else (qkv,)
        qkv_gradient, *bias_gradient = torch.autograd.grad(output, inputs, gradient)
        assert output.dtype == qkv_gradient.dtype == dtype and output.is_contiguous() and qkv_gradient.is_contiguous()
        expected = attention_by_autograd(qkv.detach(), gradient, heads, scaling, axis, bias)
        for value, wanted in zip((output, qkv_gradient, *bias_gradient), expected, strict=False):
            assert_close(value, wanted, TOLERANCES[dtype])


@needs_kernels
@pytest.mark.parametrize("rows", [16, 32, 64, 128])
def test_tiles_of_any_size(rows, unrounded):
    """Nothing depends on where tiles end."""
    qkv, gradient = random_inputs(1, 3, 11, 2, 16, torch.float16)
    for axis in (1, 2):
        for bias in biases(2, qkv.shape[axis]):
            settings = 2, 0.25, axis, bias.to(DEVICE)
            output = launch_forward(qkv, *settings, rows=rows, num_warps=4)
            assert_close(output, plain_forward(qkv.double(), *settings), 4e-3)
            gradients = launch_backward(gradient, qkv, *settings, rows=rows, num_warps=4)
            expected = plain_backward(gradient.double(), qkv.double(), *settings)
            for value, wanted in zip(gradients, expected, strict=True):
                assert_close(value, wanted, 4e-3)


@needs_kernels
def test_large_scores(unrounded):
    """Far beyond what exponentials hold."""
    qkv, gradient = random_inputs(1, 4, 5, 1, 16, torch.float32)
    qkv[..., :32] *= 100
    settings = 1, 1.0, 2, torch.empty(0, device=DEVICE)
    output = launch_forward(qkv, *settings)
    torch.testing.assert_close(output, plain_forward(qkv, *settings), atol=1e-3, rtol=1e-3)
    assert launch_backward(gradient, qkv, *settings)[0].isfinite().all()


def test_operator_without_kernels():
    """What no kernel fits is computed in the plain form, and PyTorch knows all it needs of the operator."""
    qkv = torch.randn(2, 3, 4, 3 * 2 * 5, dtype=torch.float64, requires_grad=True)
    for axis in (1, 2):
        assert torch.autograd.gradcheck(lambda packed, axis=axis: short_attention(packed, 2, 0.3, axis), qkv)
        bias = torch.randn(2, qkv.shape[axis], qkv.shape[axis], dtype=torch.float64, requires_grad=True)

        def with_bias(packed, bias, axis=axis):
            return short_attention(packed, 2, 0.3, axis, bias)

        assert torch.autograd.gradcheck(with_bias, (qkv, bias))
        for given in (bias, torch.empty(0, dtype=torch.float64)):
            torch.library.opcheck(gpu_attention._short_attention, (qkv, 2, 0.3, axis, given))
    strewn = qkv.detach().transpose(1, 2)
    torch.testing.assert_close(short_attention(strewn, 2, 0.3, 1), short_attention(strewn.contiguous(), 2, 0.3, 1))
    assert short_attention(torch.zeros(0, 3, 4, 30), 2, 0.3, 1).shape == (0, 3, 4, 10)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="`axis` 1 or 2 .* got 3"):
        short_attention(torch.zeros(1, 2, 3, 12), 2, 1.0, 3)
    with pytest.raises(ValueError, match=r"2 heads .* got 1 and \(1, 2, 3, 13\)"):
        short_attention(torch.zeros(1, 2, 3, 13), 2, 1.0, 1)


def test_what_fits():
    for length in range(1, 129):
        for dtype in (torch.float32, torch.bfloat16):
            if fits_tile(length, 64, dtype):
                assert tile_shape(length, dtype)[0] >= length
    assert (
        fits_tile(128, 64, torch.bfloat16) and fits_tile(64, 128, torch.bfloat16) and fits_tile(64, 64, torch.float32)
    )
    assert not fits_tile(129, 16, torch.bfloat16) and not fits_tile(65, 128, torch.bfloat16)
    assert not fits_tile(20, 128, torch.float32) and not fits_tile(65, 64, torch.float32)
    assert not fits_tile(20, 48, torch.float16) and not fits_tile(20, 64, torch.float64)


def small_config(**settings):
    defaults = {"num_channels": 30, "image_size": 6, "hidden_size": 24, "num_attention_heads": 2, "head_dim": 16}
    return HSSTConfig(**(defaults | {"num_spatial_layers": 1, "num_spectral_layers": 1} | settings))


def test_axis():
    config, tokens = small_config(), torch.zeros(2, 3, 5, 24)
    config._attn_implementation = "sdpa"
    assert short_attention_axis(config, tokens, None, 0.0, None) is None  # not on a CPU
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_attention, "replaces_sdpa", lambda *_: True)
        assert short_attention_axis(config, tokens, None, 0.0, None) == 2
        assert short_attention_axis(config, tokens.transpose(1, 2), None, 0.0, None) == 1
        assert short_attention_axis(config, torch.zeros(2, 24, 3, 5).movedim(1, 3), None, 0.0, None) == 2
        assert short_attention_axis(config, tokens, torch.ones(6, 1, 5, 5), 0.0, None) is None
        assert short_attention_axis(config, tokens, None, 0.1, None) is None
        assert short_attention_axis(config, tokens, None, 0.0, True) is None


@pytest.mark.parametrize("positions", ["learned", "relative"])
@pytest.mark.parametrize("compiled", [False, True])
def test_model_takes_it_in_place_of_sdpa(compiled, positions, monkeypatch, unrounded):
    """Also where projections are not plain ones."""
    torch.manual_seed(0)
    wavelengths = [400.0 + 10 * band for band in range(30)]
    model = HSSTModel(small_config(position_embedding_type=positions, wavelengths=wavelengths))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "position_bias" in name:
                parameter.normal_()
    model.set_attn_implementation("eager")
    calls = []
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and not compiled:
            module.register_forward_hook(lambda *_: calls.append(1))
    pixel_values = torch.randn(2, 30, 6, 6)
    expected = model(pixel_values).last_hidden_state
    num_calls = len(calls)
    use_fast_layers(model).set_attn_implementation("sdpa")
    monkeypatch.setattr(gpu_attention, "replaces_sdpa", lambda *_: True)
    monkeypatch.setattr("modeling_hsst.kernels.switch.folds_layer", lambda *_: False)
    taken = []
    forward = gpu_attention.plain_forward
    monkeypatch.setattr(gpu_attention, "runs_kernels", lambda *_: False)
    monkeypatch.setattr(
        gpu_attention, "plain_forward", lambda *arguments: (taken.append(arguments[3]), forward(*arguments))[1]
    )
    torch.compiler.reset()
    run = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager") if compiled else model
    output = run(pixel_values).last_hidden_state
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    assert taken == [2, 1] and len(calls) == 2 * num_calls
    gradients = torch.autograd.grad(output.square().sum(), list(model.parameters()))
    wanted = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    for pair in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(*pair, atol=1e-4, rtol=1e-4)


@needs_cuda
def test_many_tokens():
    """Beyond 2^31 values, and beyond the sequences that other dimensions of a grid hold."""
    qkv = torch.randn(1, 20, 71_000, 1536, device=DEVICE, dtype=torch.bfloat16)
    output = short_attention(qkv, 8, 0.125, 1)
    expected = plain_forward(qkv[:, :, -1000:].float(), 8, 0.125, 1, torch.empty(0, device=DEVICE))
    assert_close(output[:, :, -1000:], expected, 2e-2)


COMPILED = pytest.param(True, marks=needs_cuda, id="compiled")


@pytest.mark.parametrize("compiled", [pytest.param(False, id="eager"), COMPILED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mask_type", [None, "even", "tube", "grid"])
def test_pretraining_agrees_with_eager(mask_type, dtype, compiled, monkeypatch, unrounded):
    """Losses and gradients of all tokens or visible ones, with the published widths."""
    torch.manual_seed(0)
    settings = {} if mask_type is None else {"mask_type": mask_type, "visible_only": True}
    if mask_type == "tube":
        settings |= {"decoder_hidden_size": 48, "decoder_num_attention_heads": 4}
    config = HSSTConfig(num_spatial_layers=1, num_spectral_layers=1, position_embedding_type="sincos", **settings)
    model = use_fast_layers(HSSTForMaskedImageModeling(config).to(DEVICE))
    pixel_values = torch.randn(3 if DEVICE == "cuda" else 1, 200, 8, 8).to(DEVICE)
    if DEVICE == "cpu":
        monkeypatch.setattr(gpu_attention, "replaces_sdpa", lambda config, _: is_sdpa(config))
        monkeypatch.setattr("modeling_hsst.kernels.switch.folds_layer", lambda *_: False)
    in_kernels = []
    # In the interpreter it would take minutes
    check = gpu_attention.runs_kernels if DEVICE == "cuda" else lambda *_: False
    monkeypatch.setattr(
        gpu_attention,
        "runs_kernels",
        lambda *arguments: (in_kernels.append(check(*arguments)), in_kernels[-1])[1],
    )
    # Not a further version of what other tests compiled
    torch.compiler.reset()
    mask = None
    results = {}
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        is_compiled = compiled and implementation == "sdpa"
        run = torch.compile(model, fullgraph=True, dynamic=False) if is_compiled else model
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            outputs = run(pixel_values, bool_masked_pos=mask)
        mask = outputs.bool_masked_pos
        # Gradients of the loss itself jump where a prediction passes its target
        smooth = outputs.reconstruction.float().square().mean()
        used = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(smooth, used, allow_unused=True)
        results[implementation] = [outputs.loss.detach(), *(value for value in gradients if value is not None)]
    # Forward and backward, in the layers of the encoder and of the decoder
    assert in_kernels == 2 * (2 if mask_type is None else 4) * [DEVICE == "cuda"]
    assert len(results["sdpa"]) == len(results["eager"]) > 10
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    for value, wanted in zip(results["sdpa"], results["eager"], strict=True):
        assert (value - wanted).norm() <= tolerance * wanted.norm()


def is_sdpa(config):
    return config._attn_implementation == "sdpa"

"""
The model is the published one: the fixtures hold what the published implementation computed with small random weights.

Tolerances: 1e-9 absolute in float64 (classifiers), 1e-5 in float32 (masked image modeling).
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hsst.convert_maskedsst_checkpoint import model_from_published, rename_published_weights
from modeling_hsst import (
    HSSTConfig,
    HSSTForImageClassification,
    HSSTForMaskedImageModeling,
    HSSTForSemanticSegmentation,
)
from modeling_hsst.modeling_hsst import HSSTPositionEmbeddings, pixels_to_tokens

FIXTURES = Path(__file__).parent / "fixtures" / "parity"
CLASSIFIERS = sorted(path.stem for path in FIXTURES.glob("*.json") if not path.stem.startswith("mim_"))
MASKED_MODELS = sorted(path.stem for path in FIXTURES.glob("mim_*.json"))


def load_fixture(name):
    """The model with the fixture's weights, its settings and its tensors."""
    settings = json.loads((FIXTURES / f"{name}.json").read_text())
    tensors = load_file(FIXTURES / f"{name}.safetensors")
    weights = {key.removeprefix("weights."): tensors[key] for key in tensors if key.startswith("weights.")}
    # The settings in the words of the published training scripts
    settings |= {
        "patch_size": settings["spatial_patch_size"],
        "band_patch_size": settings["spectral_patch_size"],
        "n_bands": settings["channels"],
        "transformer_n_heads": settings["heads"],
    }
    return model_from_published(weights, settings), settings, tensors


def published_gradients(model, tensors, prefix):
    """The fixture's gradients under the names of our parameters."""
    gradients = {key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)}
    encoder_prefix = "encoder." if isinstance(model, HSSTForMaskedImageModeling) else ""
    return rename_published_weights(gradients, model.config, encoder_prefix)


def test_fixtures_are_complete():
    assert len(CLASSIFIERS) == 8 and len(MASKED_MODELS) == 8


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers(name, attention):
    model, settings, tensors = load_fixture(name)
    model.set_attn_implementation(attention)
    assert model.dtype == torch.float64
    assert isinstance(model, HSSTForImageClassification if settings.get("pixelwise") else HSSTForSemanticSegmentation)
    tokens = model.hsst(tensors["input"]).last_hidden_state
    torch.testing.assert_close(tokens, tensors["tokens"], atol=1e-9, rtol=0)

    logits = model(tensors["input"]).logits
    assert logits.shape == tensors["logits"].shape
    torch.testing.assert_close(logits, tensors["logits"], atol=1e-9, rtol=0)

    logits.square().mean().backward()
    expected = published_gradients(model, tensors, "grad_of_mean_square_logits.")
    actual = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert set(actual) == set(expected)
    for key, gradient in expected.items():
        torch.testing.assert_close(
            actual[key], gradient, atol=1e-9, rtol=0, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("name", MASKED_MODELS)
def test_masked_image_modeling(name):
    model, settings, tensors = load_fixture(name)
    pixel_values, mask = tensors["input"], tensors["mask"].bool()
    outputs = model(pixel_values, bool_masked_pos=mask)
    assert outputs.reconstruction.shape == pixel_values.shape

    def scored(pixels):
        tokens = pixels_to_tokens(pixels, model.config.band_patch_size, model.config.patch_size).flatten(1, 2)
        return tokens.gather(1, tensors["scored_index"][:, :, None].expand(-1, -1, tokens.shape[-1]))

    predictions = scored(outputs.reconstruction)
    torch.testing.assert_close(predictions, tensors["prediction_at_scored_tokens"], atol=1e-5, rtol=0)

    targets = scored(pixel_values)
    if name == "mim_published_settings":
        # The published index slip scores other tokens than the masked ones: only predictions compare
        assert not torch.equal(torch.zeros_like(mask).scatter(1, tensors["scored_index"], True), mask)
        torch.testing.assert_close(targets, tensors["target_at_scored_tokens"], atol=1e-5, rtol=0)
        return
    loss = outputs.loss
    if name == "mim_shared_patch_embedding":
        # The published target is the trainable, LayerNorm-ed token there; ours is always the input
        targets = model.hsst.embeddings.patch_embeddings.layernorm_before(targets)
        loss = (predictions - targets).abs().mean()
    torch.testing.assert_close(targets, tensors["target_at_scored_tokens"], atol=1e-5, rtol=0)

    # The published loss is divided by the number of scored tokens once more
    loss = loss / settings["scored_per_sample"]
    torch.testing.assert_close(loss.reshape(1), tensors["loss"], atol=1e-5, rtol=1e-5)
    loss.backward()
    expected = published_gradients(model, tensors, "grad_of_loss.")
    actual = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert set(actual) == set(expected)
    scale = max(gradient.abs().max() for gradient in expected.values())
    for key, gradient in expected.items():
        difference = (actual[key] - gradient).abs().max()
        assert difference < 1e-5 * max(scale, 1e-2), f"{key}: {difference}"


def test_sincos_tables():
    expected = load_file(FIXTURES / "sincos_as_initialised.safetensors")
    positions = HSSTPositionEmbeddings(HSSTConfig(position_embedding_type="sincos"))
    for name, table in expected.items():
        if name.startswith("spatial"):
            torch.testing.assert_close(positions.spatial_table(8, 8), table, atol=1e-6, rtol=0)
        elif name.startswith("spectral"):
            torch.testing.assert_close(positions.spectral_table(), table, atol=1e-6, rtol=0)
    model = HSSTForMaskedImageModeling(HSSTConfig(position_embedding_type="sincos"))
    combined = model.hsst.embeddings.position_embeddings((8, 8)).flatten(1, 2)
    name = next(name for name in expected if name.startswith("combined"))
    torch.testing.assert_close(combined, expected[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"num_labels": 8}, 1_821_564),
        ({"num_labels": 8, "position_embedding_type": "sincos"}, 1_703_324),
        ({"num_labels": 8, "blockwise_patch_embedding": False}, 1_801_500),
        ({"num_labels": 20, "num_channels": 50}, 1_714_728),
        ({"num_labels": 20, "num_channels": 50, "position_embedding_type": "sincos"}, 1_688_168),
        ({"num_labels": 8, "num_spatial_layers": 0}, 983_420),
        ({"num_labels": 8, "image_size": 7, "head_type": "center"}, 1_829_628),
        (None, 1_840_092),
    ],
)
def test_parameter_counts(arguments, expected):
    if arguments is None:
        model = HSSTForMaskedImageModeling(HSSTConfig())
    elif "head_type" in arguments:
        model = HSSTForImageClassification(HSSTConfig(**arguments))
    else:
        model = HSSTForSemanticSegmentation(HSSTConfig(**arguments))
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_spectral_positions_of_houston():
    wavelengths = [374.4 + 14.3 * band for band in range(48)]
    assert HSSTConfig(num_channels=48, wavelengths=wavelengths).spectral_positions == [0, 3, 5, 7, 9]
    assert HSSTConfig().spectral_positions == list(range(20))

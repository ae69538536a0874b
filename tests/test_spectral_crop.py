"""Training steps that see a part of the spectrum compute what a model of these blocks would."""

import pytest
import torch

from hsst.support.augmentations import SpectralCrop
from modeling_hsst import HSSTConfig, HSSTForSemanticSegmentation, adapt_to_wavelengths


def make_model(**options):
    torch.manual_seed(0)
    settings = {
        "hidden_size": 24,
        "num_spatial_layers": 1,
        "num_spectral_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
        "intermediate_size": 16,
        "num_channels": 23,  # the last block holds 3 bands of 5
        "band_patch_size": 5,
        "wavelengths": [450.0 + 20 * band for band in range(23)],
        "position_embedding_type": "wavelength",
        "image_size": 4,
        "num_labels": 3,
    }
    return HSSTForSemanticSegmentation(HSSTConfig(**settings | options)).eval()


@pytest.mark.parametrize("blocks", [(0, 2), (1, 4), (3, 5), (0, 5)])
def test_a_crop_is_the_model_of_its_blocks(blocks):
    model = make_model()
    first, end = blocks
    bands = slice(5 * first, 5 * end)
    pixel_values = torch.randn(2, 23, 4, 4)
    pixel_mask = torch.rand(2, 4, 4) < 0.8
    part = adapt_to_wavelengths(model, model.config.wavelengths[bands])
    expected = part(pixel_values[:, bands], pixel_mask=pixel_mask).logits
    crop = SpectralCrop(model, 1.0, seed=0)
    logits = crop(blocks, pixel_values, pixel_mask=pixel_mask).logits
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-5)
    logits.sum().backward()
    gradient = model.hsst.embeddings.patch_embeddings.weight.grad
    seen = torch.zeros(5, dtype=torch.bool)
    seen[first:end] = True
    assert torch.equal(gradient.abs().sum(dim=(1, 2)) > 0, seen)
    assert all(parameter.grad is None for parameter in crop.crops[blocks].parameters())
    assert model.head.classifier.weight.grad.abs().sum() > 0


def test_blocks_of_any_bands():
    wavelengths = [450.0 + 20 * band for band in range(6)]
    shared = {"band_patch_size": 2, "block_centers": [460.0, 500.0, 540.0]}
    model = make_model(num_channels=6, wavelengths=wavelengths, block_bands=[[0, 0], [3, 1], [5, 4]], **shared)
    usual = make_model(num_channels=6, wavelengths=wavelengths, **shared)
    usual.load_state_dict(model.state_dict())
    pixel_values = torch.randn(2, 6, 4, 4)
    expected = SpectralCrop(usual, 1.0, 0)((1, 3), pixel_values[:, [0, 0, 3, 1, 5, 4]]).logits
    torch.testing.assert_close(SpectralCrop(model, 1.0, 0)((1, 3), pixel_values).logits, expected)


def test_a_frozen_encoder_stays_in_evaluation_mode():
    model = make_model(hidden_dropout_prob=0.5).train()
    model.hsst.eval()
    crop = SpectralCrop(model, 1.0, 0)
    pixel_values = torch.randn(2, 23, 4, 4)
    first, second = (crop((1, 4), pixel_values).logits for _ in range(2))
    assert torch.equal(first, second)
    model.train()
    assert not torch.equal(crop((1, 4), pixel_values).logits, first)


def test_ranges_and_their_share():
    crop = SpectralCrop(make_model(), 0.5, seed=1)
    state = torch.get_rng_state()
    drawn = [crop.draw() for _ in range(400)]
    ranges = [blocks for blocks in drawn if blocks is not None]
    assert 150 < len(ranges) < 250
    assert all(0 <= first < end <= 5 for first, end in ranges)
    assert {end - first for first, end in ranges} == {1, 2, 3, 4, 5}
    assert len(set(ranges)) == 15
    crop.crop(0, 2)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"position_embedding_type": "learned"}, "encodes_wavelengths True, got False"),
        ({"blockwise_patch_embedding": False}, "blockwise_patch_embedding True, got False"),
        ({"head_type": "concat"}, "head_type mean, got concat"),
    ],
)
def test_models_whose_weights_depend_on_the_blocks(options, words):
    with pytest.raises(ValueError, match=words):
        SpectralCrop(make_model(**options), 0.5, 0)
    with pytest.raises(ValueError, match="encoder of HSST, got Linear"):
        SpectralCrop(torch.nn.Linear(2, 3), 0.5, 0)

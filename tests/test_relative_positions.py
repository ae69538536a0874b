"""Positions in the attention and not in the tokens: all ways to compute them agree, and none leaves a grid."""

import pytest
import torch

from hsst.experiments.baselines import take_encoder
from modeling_hsst import (
    HSSTConfig,
    HSSTForMaskedImageModeling,
    HSSTForSemanticSegmentation,
    HSSTModel,
    adapt_to_wavelengths,
    use_fast_layers,
)

WAVELENGTHS = [450.0 + 30 * band for band in range(20)]


def config(**settings):
    defaults = {
        "num_channels": 20,
        "band_patch_size": 5,
        "image_size": 8,
        "hidden_size": 24,
        "num_attention_heads": 2,
        "head_dim": 16,
        "intermediate_size": 16,
        "num_spatial_layers": 2,
        "num_spectral_layers": 1,
        "wavelengths": WAVELENGTHS,
        "position_embedding_type": "relative",
        "normalize_token_values": False,
    }
    return HSSTConfig(**(defaults | settings))


def with_bias(model):
    """A model whose biases are not the zeros that they begin with."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "position_bias" in name:
                parameter.normal_(generator=generator)
    return model.eval()


def model_of(kind, **settings):
    torch.manual_seed(0)
    return with_bias(kind(config(**settings)))


def test_no_place_is_added_to_tokens():
    """Pixels that are the same give features that are the same, wherever in the window they are."""
    model = model_of(HSSTModel)
    features = model(torch.randn(2, 20, 1, 1).expand(-1, -1, 8, 8)).last_hidden_state.unflatten(1, (4, 64))
    torch.testing.assert_close(features, features[:, :, :1].expand_as(features), atol=1e-5, rtol=1e-5)
    by_place = model_of(HSSTModel, position_embedding_type="wavelength")
    features = by_place(torch.randn(2, 20, 1, 1).expand(-1, -1, 8, 8)).last_hidden_state.unflatten(1, (4, 64))
    assert (features - features[:, :, :1]).abs().max() > 0.1


@pytest.mark.parametrize("size", [3, 8, 11])
def test_a_model_for_other_windows_computes_what_this_one_does(size):
    """On any window, as long as positions lie no farther apart than in its own."""
    trained, other = model_of(HSSTModel), HSSTForSemanticSegmentation(config(image_size=size, num_labels=3)).eval()
    take_encoder(other, trained)
    windows = torch.randn(2, 20, size, size)
    expected = trained(windows, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(other.hsst(windows).last_hidden_state, expected)


def test_attention_depends_on_distance():
    """The bias between two positions is that of their distance, whichever two they are."""
    bias = model_of(HSSTModel).spatial_layers[0].attention.position_bias
    places = torch.tensor([[0, 0], [2, 3], [5, 4], [7, 7]])
    found = bias(places[None, None])[0, 0]
    moved = bias(places[None, None] + torch.tensor([7, 20]))[0, 0]
    # (2, 3) and (5, 4) lie between two pairs each
    assert torch.equal(found, moved) and len(found[0].unique()) == 9
    assert not torch.equal(found[0], found[0].T)


def test_far_positions_count_as_the_farthest():
    model = model_of(HSSTModel)
    bias = model.spatial_layers[0].attention.position_bias
    places = torch.tensor([[0, 0], [7, 7], [40, 9]])
    found = bias(places[None, None])[0, 0]
    assert torch.equal(found[:, 0, 1], found[:, 0, 2])
    pixel_values = torch.randn(1, 20, 12, 10)
    assert model(pixel_values, interpolate_pos_encoding=True).last_hidden_state.shape == (1, 4 * 120, 24)


def test_features_move_with_the_scene():
    """A layer looks at all of a window; what it sees moves with it where the window wraps around nothing new."""
    model = model_of(HSSTModel)
    window = torch.zeros(1, 20, 8, 8)
    window[:, :, 2:4, 2:4] = torch.randn(20, 2, 2)
    mask = torch.zeros(1, 8, 8)
    mask[:, 1:5, 1:5] = 1
    before = model(window, mask).last_hidden_state.view(4, 8, 8, 24)[:, 1:5, 1:5]
    moved = torch.roll(window, (2, 3), (2, 3)), torch.roll(mask, (2, 3), (1, 2))
    after = model(*moved).last_hidden_state.view(4, 8, 8, 24)[:, 3:7, 4:8]
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_all_ways_agree(masked):
    model = model_of(HSSTModel)
    pixel_values = torch.randn(3, 20, 8, 8)
    pixel_mask = (torch.rand(3, 8, 8) < 0.8).float() if masked else None
    model.set_attn_implementation("eager")
    expected = model(pixel_values, pixel_mask).last_hidden_state
    model.set_attn_implementation("sdpa")
    sdpa = model(pixel_values, pixel_mask).last_hidden_state
    fast = use_fast_layers(model)(pixel_values, pixel_mask).last_hidden_state
    seen = torch.ones(3, 4, 64, dtype=torch.bool) if pixel_mask is None else pixel_mask.bool().view(3, 1, 64)
    for found in (sdpa, fast):
        difference = (found - expected).view(3, 4, 64, 24)[seen.expand(3, 4, 64)]
        assert difference.abs().max() < 1e-4


@pytest.mark.parametrize("mask_type", ["unit", "even", "block", "tube", "grid"])
@pytest.mark.parametrize("visible_only", [False, True])
def test_masked_image_modeling(visible_only, mask_type):
    """Losses and gradients, fast or not, whichever tokens are left."""
    losses, gradients = [], []
    for fast in (False, True):
        model = model_of(HSSTForMaskedImageModeling, visible_only=visible_only, mask_type=mask_type)
        if fast:
            use_fast_layers(model)
        torch.manual_seed(1)
        loss = model(torch.randn(2, 20, 8, 8)).loss
        loss.backward()
        losses.append(loss)
        gradients.append([parameter.grad for name, parameter in model.named_parameters() if "position_bias" in name])
    torch.testing.assert_close(*losses)
    assert len(gradients[0]) == (3 if visible_only else 2)
    for slow, fast in zip(*gradients, strict=True):
        assert slow.abs().max() > 0
        torch.testing.assert_close(slow, fast, atol=1e-6, rtol=1e-3)


def test_weights_of_other_positions_are_carried_over(tmp_path):
    """A model that added places to tokens goes on without them, from the biases of zero that change nothing else."""
    torch.manual_seed(0)
    HSSTModel(config(position_embedding_type="wavelength")).save_pretrained(tmp_path)
    model, loading = HSSTModel.from_pretrained(tmp_path, position_embedding_type="relative", output_loading_info=True)
    assert sorted(loading["missing_keys"]) == [
        f"spatial_layers.{layer}.attention.position_bias.bias" for layer in range(2)
    ]
    assert all(not layer.attention.position_bias.bias.any() for layer in model.spatial_layers)
    with_bias(model).save_pretrained(tmp_path / "relative")
    again = HSSTModel.from_pretrained(tmp_path / "relative").eval()
    pixel_values = torch.randn(1, 20, 8, 8)
    assert torch.equal(again(pixel_values).last_hidden_state, model(pixel_values).last_hidden_state)


def test_other_sensors():
    model = model_of(HSSTModel)
    adapted = adapt_to_wavelengths(model, [450.0 + 15 * band for band in range(39)])
    smooth = torch.linspace(-1, 1, 20)[None, :, None, None] * torch.randn(1, 1, 8, 8)
    dense = torch.linspace(-1, 1, 39)[None, :, None, None] * smooth[:, -1:] / 1.0
    expected = model(smooth).pooler_output
    torch.testing.assert_close(adapted(dense).pooler_output, expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention"])
def test_attention_without_numbers_to_add_is_refused(implementation):
    model = model_of(HSSTModel)
    model.config._attn_implementation = implementation
    with pytest.raises(ValueError, match=f"'relative' need attention that adds .* got '{implementation}'"):
        model(torch.randn(1, 20, 8, 8))


def test_wavelengths_are_needed():
    with pytest.raises(ValueError, match="type 'relative' need `wavelengths`"):
        config(wavelengths=None)

"""Encoding visible tokens only: the same tokens, nothing of the hidden ones, and a decoder that learns."""

import copy

import pytest
import torch

from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling, HSSTModel, draw_mask
from modeling_hsst.modeling_hsst_masked import visible_counts


def config_of(mask_type="tube", **settings):
    defaults = {
        "num_channels": 30,
        "image_size": 8,
        "hidden_size": 24,
        "head_dim": 16,
        "num_attention_heads": 2,
        "num_spatial_layers": 2,
        "num_spectral_layers": 2,
        "mask_patch_size": 2,
        "visible_only": True,
    }
    return HSSTConfig(**(defaults | {"mask_type": mask_type} | settings))


def masks(config, batch_size=3):
    return draw_mask(
        batch_size,
        config.num_blocks,
        config.grid_size,
        mask_type=config.mask_type,
        mask_ratio=config.mask_ratio,
        mask_patch_size=config.mask_patch_size,
    )


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("mask_type", ["tube", "grid"])
def test_counts_are_those_of_the_masks(mask_type, ratio):
    config = config_of(mask_type, mask_ratio=ratio)
    visible = ~masks(config, 20).unflatten(1, (3, 64))
    blocks, positions = visible_counts(3, (8, 8), mask_type=mask_type, mask_ratio=ratio, mask_patch_size=2)
    assert (visible.any(2).sum(1) == blocks).all() and (visible.any(1).sum(1) == positions).all()
    assert (visible.sum((1, 2)) == blocks * positions).all()


def test_counts_need_a_grid():
    with pytest.raises(ValueError, match="even, tube, grid only, got 'unit'"):
        visible_counts(3, (8, 8), mask_type="unit", mask_ratio=0.5)


@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_tokens_are_those_of_windows_without_data_elsewhere(positions):
    """Hidden positions of tube masks are to the visible ones what nodata positions are."""
    torch.manual_seed(0)
    config = config_of(position_embedding_type=positions)
    model = HSSTModel(config).eval()
    pixel_values, mask = torch.randn(3, 30, 8, 8), masks(config)
    pixel_mask = ~mask.unflatten(1, (3, 8, 8))[:, 0]
    everything = model(pixel_values, pixel_mask=pixel_mask).last_hidden_state
    masked = HSSTForMaskedImageModeling(config).eval()
    masked.hsst.load_state_dict(model.state_dict())
    visible = masked.visible_tokens(mask, (8, 8), "tube")
    tokens = masked.encode_visible(pixel_values, None, visible).last_hidden_state
    torch.testing.assert_close(tokens, everything[~mask].view_as(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("with_nodata", [False, True])
@pytest.mark.parametrize("mask_type", ["tube", "grid", "even"])
def test_few_tokens_are_computed_as_among_all(mask_type, with_nodata):
    """Short sequences of visible tokens, and all tokens with hidden ones kept out of the attention, are the same."""
    torch.manual_seed(0)
    config = config_of(mask_type, mask_ratio=2 / 3, position_embedding_type="sincos", image_size=6)
    model = HSSTForMaskedImageModeling(config).eval()
    pixel_values, mask = torch.randn(3, 30, 6, 6), masks(config)
    pixel_mask = torch.rand(3, 6, 6) > 0.2 if with_nodata else None
    few = model(pixel_values, mask, pixel_mask)
    among_all = model(pixel_values, mask, pixel_mask, mask_type="unit")
    torch.testing.assert_close(few.reconstruction, among_all.reconstruction, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(few.loss, among_all.loss)
    assert not torch.allclose(model(-pixel_values, mask, pixel_mask).reconstruction, few.reconstruction, atol=1e-3)


def test_even_masks_have_as_many_visible_tokens_everywhere():
    mask = draw_mask(50, 20, (8, 8), mask_type="even", mask_ratio=0.7).unflatten(1, (20, 64))
    assert ((~mask).sum(1) == 5).all() and ((~mask).sum(2) == 16).all()
    # ... and are random otherwise: two blocks of a position are visible together as often as chance has it
    together = torch.einsum("bnp,bmp->nm", (~mask).float(), (~mask).float()) / (50 * 64)
    apart = together[~torch.eye(20, dtype=torch.bool)]
    assert (apart - 5 * 4 / (20 * 19)).abs().max() < 0.02
    with pytest.raises(ValueError, match="got 9 positions and 7 blocks"):
        draw_mask(1, 7, (3, 3), mask_type="even", mask_ratio=0.5)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("mask_type", ["tube", "grid", "unit", "block"])
def test_hidden_values_leave_no_trace(mask_type, narrow):
    torch.manual_seed(0)
    settings = {"decoder_hidden_size": 12, "decoder_num_attention_heads": 1} if narrow else {}
    config = config_of(mask_type, position_embedding_type="sincos", **settings)
    model = HSSTForMaskedImageModeling(config).eval()
    pixel_values, mask = torch.randn(3, 30, 8, 8), masks(config)
    hidden = mask.view(3, 3, 1, 8, 8).expand(-1, -1, 10, -1, -1).reshape(3, 30, 8, 8)
    outputs = model(pixel_values, bool_masked_pos=mask)
    others = model(torch.where(hidden, torch.randn_like(pixel_values), pixel_values), bool_masked_pos=mask)
    assert outputs.reconstruction.shape == pixel_values.shape
    torch.testing.assert_close(outputs.reconstruction, others.reconstruction)
    assert not torch.isclose(outputs.loss, others.loss)
    expected = (outputs.reconstruction - pixel_values).abs()[hidden].mean()
    torch.testing.assert_close(outputs.loss, expected)
    # ... and visible ones do: where the window is hidden, too
    changed = model(torch.where(hidden, pixel_values, -pixel_values), bool_masked_pos=mask)
    assert ((changed.reconstruction - outputs.reconstruction).abs()[hidden] > 0).float().mean() > 0.9


@pytest.mark.parametrize("mask_type", ["tube", "grid", "unit"])
def test_nodata_takes_no_part(mask_type):
    torch.manual_seed(0)
    model = HSSTForMaskedImageModeling(config_of(mask_type)).eval()
    pixel_values, mask = torch.randn(3, 30, 8, 8), masks(model.config)
    pixel_mask = torch.rand(3, 8, 8) > 0.3
    pixel_mask[2] = False
    others = torch.where(pixel_mask[:, None], pixel_values, -32768.0)
    for values in (pixel_values, others):
        outputs = model(values, bool_masked_pos=mask, pixel_mask=pixel_mask)
        assert outputs.loss.isfinite()
    torch.testing.assert_close(outputs.loss, model(pixel_values, mask, pixel_mask).loss)


def test_every_parameter_learns():
    torch.manual_seed(0)
    model = HSSTForMaskedImageModeling(config_of("grid", num_decoder_layers=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    # Spectra of two ingredients, so that there is something to fill in
    shares, spectra = torch.rand(8, 2, 8, 8), torch.randn(2, 30)
    pixel_values = torch.einsum("bixy,ic->bcxy", shares, spectra)
    losses = []
    for _ in range(60):
        loss = model(pixel_values).loss
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            silent = [name for name, parameter in model.named_parameters() if parameter.grad is None]
            assert silent == []
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


def test_compiles_without_graph_breaks():
    torch.manual_seed(0)
    # Layers of a kind are the same code
    model = HSSTForMaskedImageModeling(config_of("grid", num_spatial_layers=1, num_spectral_layers=1))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    pixel_values, mask = torch.randn(2, 30, 8, 8), masks(model.config, 2)
    pixel_mask = torch.rand(2, 8, 8) > 0.2
    for arguments in ((pixel_values, mask), (pixel_values, mask, pixel_mask)):
        torch.testing.assert_close(compiled(*arguments).loss, model(*arguments).loss)


def test_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    model = HSSTForMaskedImageModeling(config_of("grid", decoder_hidden_size=12)).eval()
    pixel_values, mask = torch.randn(2, 30, 8, 8), masks(model.config, 2)
    expected = model(pixel_values, bool_masked_pos=mask).reconstruction
    assert torch.equal(copy.deepcopy(model)(pixel_values, bool_masked_pos=mask).reconstruction, expected)
    model.save_pretrained(tmp_path)
    again = HSSTForMaskedImageModeling.from_pretrained(tmp_path)
    assert again.config.decoder_hidden_size == 12
    assert torch.equal(again(pixel_values, bool_masked_pos=mask).reconstruction, expected)
    encoder = HSSTModel.from_pretrained(tmp_path)
    torch.testing.assert_close(
        encoder(pixel_values).last_hidden_state, model.hsst(pixel_values).last_hidden_state, atol=1e-6, rtol=1e-6
    )
    # The attention implementation of the decoder follows that of the model
    again.set_attn_implementation("eager")
    assert {layer.attention.config._attn_implementation for layer in again.decoder.layers} == {"eager"}
    torch.testing.assert_close(
        again(pixel_values, bool_masked_pos=mask).reconstruction, expected, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_decoder_layers": 0}, "`num_decoder_layers` 1 or more, got 0"),
        ({"decoder_hidden_size": 10}, "`decoder_hidden_size` 10 does not allow it"),
        ({"decoder_num_attention_heads": 0}, "`decoder_num_attention_heads` must be 1 or more, got 0"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        config_of(**settings)


def test_masks_that_do_not_fit():
    model = HSSTForMaskedImageModeling(config_of("tube"))
    pixel_values = torch.randn(2, 30, 8, 8)
    with pytest.raises(ValueError, match="must leave 3 blocks times 20 positions of each window visible"):
        model(pixel_values, bool_masked_pos=torch.rand(2, 192) < 0.7)
    fewer = draw_mask(2, 3, (8, 8), mask_type="tube", mask_ratio=0.5, mask_patch_size=2)
    with pytest.raises(ValueError, match="got others"):
        model(pixel_values, bool_masked_pos=fewer)

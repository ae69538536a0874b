"""The plain reference is the published model, and the model of this package computes the same."""

import pytest
import torch
from test_parity import load_fixture

from hsst.experiments.plain_reference import plain_reference
from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling, HSSTForSemanticSegmentation

CLASSIFIERS = (
    "learned_positions",
    "patch_2x2",
    "shared_patch_embedding",
    "spectral_only",
    "spectral_positions",
)
MASKED_MODELS = (
    "mim_unit_masks",
    "mim_unit_masks_per_block_decoder",
    "mim_block_masks",
    "mim_tube_masks_per_block_decoder",
    "mim_patch_2x2",
    "mim_spectral_positions",
)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers(name):
    model, _, tensors = load_fixture(name)
    plain = plain_reference(model)
    torch.testing.assert_close(plain.encoder(tensors["input"]), tensors["tokens"], atol=1e-9, rtol=0)
    torch.testing.assert_close(plain(tensors["input"]), tensors["logits"], atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", MASKED_MODELS)
def test_masked_image_modelling(name):
    model, settings, tensors = load_fixture(name)
    plain = plain_reference(model)
    mask = tensors["mask"].bool()
    loss, predictions = plain(tensors["input"], mask)
    # The published loss is divided by the number of scored tokens once more
    torch.testing.assert_close(
        (loss / settings["scored_per_sample"]).reshape(1), tensors["loss"], atol=1e-6, rtol=1e-5
    )
    order = torch.argsort(tensors["scored_index"], dim=1)
    published = tensors["prediction_at_scored_tokens"].gather(
        1, order[:, :, None].expand(-1, -1, predictions.shape[-1])
    )
    blocks = mask.unflatten(1, (model.config.num_blocks, -1))
    scattered = torch.zeros(*mask.shape, predictions.shape[-1])
    block, window, position = blocks.transpose(0, 1).nonzero(as_tuple=True)
    scattered[window, block * blocks.shape[2] + position] = predictions
    torch.testing.assert_close(scattered[mask].view_as(published), published, atol=1e-5, rtol=0)


@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_training_step_is_the_same(positions):
    torch.manual_seed(0)
    config = HSSTConfig(num_channels=30, image_size=4, hidden_size=24, head_dim=16, position_embedding_type=positions)
    model = HSSTForMaskedImageModeling(config).double()
    plain = plain_reference(model)
    pixel_values, mask = torch.randn(3, 30, 4, 4, dtype=torch.float64), torch.rand(3, 48) < 0.6
    loss, plain_loss = model(pixel_values, bool_masked_pos=mask).loss, plain(pixel_values, mask)[0]
    torch.testing.assert_close(loss, plain_loss, atol=1e-12, rtol=0)
    loss.backward()
    plain_loss.backward()
    for layer, plain_layer in zip(model.hsst.spectral_layers, plain.encoder.spectral_layers, strict=True):
        torch.testing.assert_close(layer.attention.qkv_proj.weight.grad, plain_layer.attention.to_qkv.weight.grad)
        torch.testing.assert_close(layer.mlp.fc2.bias.grad, plain_layer.mlp[3].bias.grad)
    torch.testing.assert_close(
        model.hsst.embeddings.patch_embeddings.weight.grad,
        torch.stack([layer.weight.grad for layer in plain.encoder.embeddings]),
    )


def test_what_the_published_model_lacks():
    with pytest.raises(ValueError, match="neither layers in its decoder"):
        plain_reference(HSSTForMaskedImageModeling(HSSTConfig(num_decoder_layers=1)))
    with pytest.raises(ValueError, match="heads other than 'mean'"):
        plain_reference(HSSTForSemanticSegmentation(HSSTConfig(head_type="concat")))

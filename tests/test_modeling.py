"""What the models promise beyond parity: nodata, window sizes, heads, losses, attention implementations, precision."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from modeling_hsst import (
    HSSTBackbone,
    HSSTConfig,
    HSSTForImageClassification,
    HSSTForMaskedImageModeling,
    HSSTForSemanticSegmentation,
    HSSTModel,
)
from modeling_hsst.modeling_hsst import pixels_to_tokens, tokens_to_pixels
from modeling_hsst.modeling_hsst_masked import hidden_values

POSITION_TYPES = ["learned", "sincos", "wavelength"]


def tiny_config(**arguments):
    settings = dict(
        num_channels=23,  # the last block holds 3 bands of 5
        wavelengths=[450.0 + 60 * band for band in range(23)],
        band_patch_size=5,
        hidden_size=24,
        num_spatial_layers=1,
        num_spectral_layers=1,
        num_attention_heads=2,
        head_dim=8,
        intermediate_size=16,
        num_labels=4,
        initializer_range=0.2,
    )
    return HSSTConfig(**settings | arguments)


def windows(size=8, bands=23, batch=3):
    return torch.randn(batch, bands, size, size, generator=torch.Generator().manual_seed(1))


def nodata_mask(size=8, batch=3):
    mask = torch.ones(batch, size, size, dtype=torch.long)
    mask[0, :3] = 0
    mask[1, :, 5:] = 0
    mask[2, 2, 2] = 0
    return mask


ALL_MODELS = [
    (HSSTModel, {}),
    (HSSTForMaskedImageModeling, {}),
    (HSSTForMaskedImageModeling, {"num_decoder_layers": 1, "patch_size": 2, "mask_type": "grid"}),
    (HSSTForImageClassification, {}),
    (HSSTForImageClassification, {"head_type": "concat"}),
    (HSSTForImageClassification, {"head_type": "center"}),
    (HSSTForSemanticSegmentation, {}),
    (HSSTForSemanticSegmentation, {"head_type": "concat", "patch_size": 2}),
    (HSSTBackbone, {}),
]


def tensors_of(outputs):
    for value in outputs.values():
        yield from (value if isinstance(value, tuple) else (value,))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("model_class", "arguments"), ALL_MODELS)
def test_values_under_nodata_change_nothing(model_class, arguments, attention):
    torch.manual_seed(0)
    model = model_class(tiny_config(**arguments)).eval()
    model.set_attn_implementation(attention)
    pixel_values, pixel_mask = windows(), nodata_mask()
    inputs = {"pixel_mask": pixel_mask}
    if model_class is HSSTForSemanticSegmentation:
        inputs["labels"] = torch.randint(0, 4, (3, 8, 8))
    elif model_class is HSSTForImageClassification:
        inputs["labels"] = torch.tensor([0, 3, 255])
    elif model_class is HSSTForMaskedImageModeling:
        positions = 64 // model.config.patch_size**2
        inputs["bool_masked_pos"] = torch.rand(3, 5 * positions) < 0.5

    changed = pixel_values.masked_fill(~pixel_mask.bool().unsqueeze(1), float("nan"))
    changed[2, :, 2, 2] = 1e4
    first, second = model(pixel_values, **inputs), model(changed, **inputs)
    for before, after in zip(tensors_of(first), tensors_of(second), strict=True):
        assert before.isfinite().all()
        assert torch.equal(before, after)
    # and valid values do change the outputs
    changed = pixel_values.clone()
    changed[2, :, 7, 7] += 1
    outputs = model(changed, **inputs)
    assert any(not torch.equal(a, b) for a, b in zip(tensors_of(first), tensors_of(outputs), strict=True))


def test_nodata_positions_take_no_part():
    """A window whose right half is nodata has the features, pooled output and loss of its left half alone."""
    torch.manual_seed(0)
    config = tiny_config(position_embedding_type="learned", image_size=(4, 8), mask_patch_size=4)
    model = HSSTForMaskedImageModeling(config).eval()
    half_config = tiny_config(position_embedding_type="learned", image_size=(4, 4), mask_patch_size=4)
    half = HSSTForMaskedImageModeling(half_config).eval()
    state = model.state_dict()
    name = "hsst.embeddings.position_embeddings.position_embeddings"
    positions, spare = state[name][:, :-1], state[name][:, -1:]
    state[name] = torch.cat([positions.view(1, 5, 4, 8, 24)[:, :, :, :4].reshape(1, 80, 24), spare], 1)
    half.load_state_dict(state)
    pixel_values = windows()[:, :, :4]
    mask = torch.rand(3, 5, 4, 8) < 0.5
    pixel_mask = torch.ones(3, 4, 8)
    pixel_mask[:, :, 4:] = 0
    whole = model(pixel_values, mask.flatten(1), pixel_mask)
    left = half(pixel_values[..., :4], mask[..., :4].flatten(1))
    torch.testing.assert_close(whole.loss, left.loss)
    torch.testing.assert_close(whole.reconstruction[..., :4], left.reconstruction)
    pooled = model.hsst(pixel_values, pixel_mask).pooler_output
    torch.testing.assert_close(pooled, half.hsst(pixel_values[..., :4]).pooler_output)


def test_a_window_without_any_data_stays_finite():
    config = tiny_config()
    pixel_values = torch.full((2, 23, 8, 8), float("nan"))
    outputs = HSSTForMaskedImageModeling(config)(pixel_values, pixel_mask=torch.zeros(2, 8, 8))
    assert outputs.loss == 0 and outputs.reconstruction.isfinite().all()
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    outputs = HSSTForSemanticSegmentation(config)(pixel_values, labels, pixel_mask=torch.zeros(2, 8, 8))
    assert outputs.loss == 0 and outputs.logits.isfinite().all()


def test_pixel_mask_of_another_shape():
    with pytest.raises(ValueError, match=r"\(batch, height, width\) \(3, 8, 8\) of `pixel_values`, got \(3, 4, 4\)"):
        HSSTModel(tiny_config())(windows(), torch.ones(3, 4, 4))


@pytest.mark.parametrize("patch_size", [1, 2])
def test_tokens_are_block_major_with_values_in_order_band_row_column(patch_size):
    pixels = torch.arange(2 * 10 * 4 * 6).view(2, 10, 4, 6)
    tokens = pixels_to_tokens(pixels, 5, patch_size)
    row, column, block = 1, 2, 1
    expected = pixels[
        1, 5:10, row * patch_size : (row + 1) * patch_size, column * patch_size : (column + 1) * patch_size
    ]
    assert torch.equal(tokens[1, block, row * (6 // patch_size) + column], expected.flatten())
    assert torch.equal(tokens_to_pixels(tokens, 10, (4 // patch_size, 6 // patch_size), patch_size), pixels)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_blocks_of_any_bands(tmp_path, patch_size):
    """As if the bands came in the order of the blocks; what several places hold is reconstructed as their mean."""
    torch.manual_seed(0)
    blocks = [[0, 0, 1], [4, 2, 1]]  # band 3 is in none
    settings = {"band_patch_size": 3, "patch_size": patch_size, "mask_type": "unit", "wavelengths": None}
    model = HSSTForMaskedImageModeling(tiny_config(num_channels=5, block_bands=blocks, **settings)).eval()
    in_order = HSSTForMaskedImageModeling(tiny_config(num_channels=6, **settings)).eval()
    in_order.load_state_dict(model.state_dict())
    model.save_pretrained(tmp_path)
    model = HSSTForMaskedImageModeling.from_pretrained(tmp_path).eval()
    pixel_values = torch.randn(2, 5, 8, 8)
    mask = torch.rand(2, model.config.num_blocks * model.config.num_positions) < 0.5
    with torch.no_grad():
        outputs = model(pixel_values, bool_masked_pos=mask)
        expected = in_order(pixel_values[:, [0, 0, 1, 4, 2, 1]], bool_masked_pos=mask)
    torch.testing.assert_close(outputs.loss, expected.loss)
    places = expected.reconstruction
    got = outputs.reconstruction
    assert got.shape == pixel_values.shape and not got[:, 3].any()
    torch.testing.assert_close(got[:, [4, 2]], places[:, [3, 4]])
    torch.testing.assert_close(got[:, 0], (places[:, 0] + places[:, 1]) / 2)
    torch.testing.assert_close(got[:, 1], (places[:, 2] + places[:, 5]) / 2)
    hidden, in_places = hidden_values(mask, pixel_values, model.config), hidden_values(mask, places, in_order.config)
    assert torch.equal(hidden[:, [0, 4, 2]], in_places[:, [0, 3, 4]])
    assert torch.equal(hidden[:, 1], in_places[:, 2] & in_places[:, 5]) and not hidden[:, 3].any()


def test_padding_of_the_last_block_is_never_scored():
    torch.manual_seed(0)
    model = HSSTForMaskedImageModeling(tiny_config())
    pixel_values = windows()
    mask = torch.ones(3, 5 * 64, dtype=torch.bool)
    outputs = model(pixel_values, mask)
    assert outputs.reconstruction.shape == pixel_values.shape
    torch.testing.assert_close(outputs.loss, (outputs.reconstruction - pixel_values).abs().mean())


def test_loss_is_the_mean_error_of_the_masked_values():
    torch.manual_seed(0)
    model = HSSTForMaskedImageModeling(tiny_config(num_channels=20, wavelengths=None))
    pixel_values = windows(bands=20)
    mask = torch.zeros(3, 4, 64, dtype=torch.bool)
    mask[0, 1, 5] = mask[2, 3, 63] = True
    outputs = model(pixel_values, mask.flatten(1))
    errors = (outputs.reconstruction - pixel_values).abs()
    expected = torch.cat([errors[0, 5:10, 0, 5], errors[2, 15:20, 7, 7]]).mean()
    torch.testing.assert_close(outputs.loss, expected)


def test_the_mask_is_drawn_by_the_configuration():
    model = HSSTForMaskedImageModeling(tiny_config(mask_type="unit", mask_ratio=0.3))
    outputs = model(windows())
    assert outputs.bool_masked_pos.shape == (3, 320)
    assert (outputs.bool_masked_pos.sum(1) == 96).all()


def test_masked_tokens_do_not_leak():
    torch.manual_seed(0)
    model = HSSTForMaskedImageModeling(tiny_config()).eval()
    mask = torch.zeros(3, 5, 64, dtype=torch.bool)
    mask[:, 2, 10:20] = True
    pixel_values = windows()
    changed = pixel_values.clone()
    changed[:, 10:15].flatten(2)[:, :, 10:20] += 3
    first, second = model(pixel_values, mask.flatten(1)), model(changed, mask.flatten(1))
    assert torch.equal(first.reconstruction, second.reconstruction)
    assert not torch.equal(first.loss, second.loss)


@pytest.mark.parametrize("size", [7, 16])
@pytest.mark.parametrize("position_type", POSITION_TYPES)
def test_other_window_sizes(position_type, size):
    torch.manual_seed(0)
    config = tiny_config(position_embedding_type=position_type, num_spectral_layers=1)
    model = HSSTForSemanticSegmentation(config).eval()
    outputs = model(windows(size), interpolate_pos_encoding=True, pixel_mask=nodata_mask(size))
    assert outputs.logits.shape == (3, 4, size, size) and outputs.logits.isfinite().all()
    with pytest.raises(ValueError, match=rf"8x8 pixels of the configuration .* got {size}x{size}"):
        model(windows(size))
    positions = model.hsst.embeddings.position_embeddings
    assert torch.equal(positions((8, 8)), positions((8, 8)))
    stretched = positions((size, size)).unflatten(2, (size, size))
    original = positions((8, 8)).unflatten(2, (8, 8))
    # Positions keep their meaning: the stretched grid averages to the trained one, corner by corner
    if size == 16 and position_type != "learned":
        pooled = stretched.unflatten(2, (8, 2)).unflatten(4, (8, 2)).mean(dim=(3, 5))
        assert (pooled - original).abs().max() < 0.25
        assert not torch.allclose(pooled.roll(1, 2), original, atol=0.25)
    # The model's own size is untouched by the flag
    assert torch.equal(model(windows(8), interpolate_pos_encoding=True).logits, model(windows(8)).logits)


def test_window_and_bands_are_checked():
    model = HSSTModel(tiny_config(patch_size=2))
    with pytest.raises(ValueError, match="23 bands of the configuration .* got 7 bands"):
        model(windows(bands=7))
    for wrong, got in ((None, "NoneType"), (windows()[0], r"Tensor \(23, 8, 8\)"), (windows().numpy(), "ndarray")):
        with pytest.raises(ValueError, match=rf"must be a tensor \(batch, bands, height, width\), got {got}"):
            model(wrong)
    with pytest.raises(ValueError, match="divisible by the patches of 2x2 pixels .* got 7x7"):
        model(windows(7), interpolate_pos_encoding=True)


def test_wavelength_positions_follow_the_wavelengths_alone():
    def spectral(wavelengths):
        config = tiny_config(
            num_channels=len(wavelengths), wavelengths=wavelengths, position_embedding_type="wavelength"
        )
        model = HSSTModel(config)
        assert not [name for name, _ in model.named_parameters() if "position" in name]
        return model.embeddings.position_embeddings.spectral_embeddings

    fine = spectral([500.0 + 10 * band for band in range(10)])
    coarse = spectral([500.0, 510.0, 520.0, 530.0, 540.0, 900.0, 910.0, 920.0, 930.0, 940.0])
    assert torch.equal(fine[:, 0], coarse[:, 0]) and not torch.equal(fine[:, 1], coarse[:, 1])


@pytest.mark.parametrize("position_type", POSITION_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load_gives_the_same_outputs(tmp_path, position_type, dtype):
    torch.manual_seed(0)
    model = HSSTForSemanticSegmentation(tiny_config(position_embedding_type=position_type)).eval().to(dtype)
    model.save_pretrained(tmp_path)
    loaded, info = HSSTForSemanticSegmentation.from_pretrained(tmp_path, dtype=dtype, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(loaded(windows()).logits, model(windows()).logits)


def test_an_encoder_moves_between_heads(tmp_path):
    torch.manual_seed(0)
    pretrained = HSSTForMaskedImageModeling(tiny_config(position_embedding_type="wavelength")).eval()
    pretrained.save_pretrained(tmp_path)
    expected = pretrained.hsst(windows()).last_hidden_state
    for model_class in (HSSTForSemanticSegmentation, HSSTForImageClassification, HSSTBackbone, HSSTModel):
        model, info = model_class.from_pretrained(tmp_path, output_loading_info=True, num_labels=4)
        assert all(key.startswith("head.") for key in info["missing_keys"])
        encoder = model if model_class is HSSTModel else model.hsst
        assert torch.equal(encoder(windows()).last_hidden_state, expected)


def test_hidden_states_and_attentions_are_recorded():
    model = HSSTModel(tiny_config(num_spatial_layers=2), use_mask_token=True).eval()
    model.set_attn_implementation("eager")
    outputs = model(windows(), output_hidden_states=True, output_attentions=True)
    assert [tuple(states.shape) for states in outputs.hidden_states] == [(3, 320, 24)] * 4
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    spatial, spectral = (15, 2, 64, 64), (192, 2, 5, 5)
    assert [tuple(weights.shape) for weights in outputs.attentions] == [spatial, spatial, spectral]
    assert outputs.pooler_output.shape == (3, 24)
    torch.testing.assert_close(outputs.pooler_output, outputs.last_hidden_state.mean(1))


def test_backbone_feature_maps():
    config = tiny_config(image_size=(8, 4), out_features=["stem", "stage2"])
    model = HSSTBackbone(config).eval()
    pixel_values = windows()[..., :4]
    outputs = model(pixel_values, output_hidden_states=True)
    assert [tuple(features.shape) for features in outputs.feature_maps] == [(3, 24, 8, 4)] * 2
    tokens = model.hsst(pixel_values).last_hidden_state.view(3, 5, 8, 4, 24)
    torch.testing.assert_close(outputs.feature_maps[1], tokens.mean(1).permute(0, 3, 1, 2))
    assert model.channels == [24, 24]


@pytest.mark.parametrize("arguments", [{"num_spatial_layers": 0}, {"num_spectral_layers": 0}])
def test_a_single_stack(arguments):
    torch.manual_seed(0)
    model = HSSTModel(tiny_config(**arguments)).eval()
    pixel_values = windows()
    before = model(pixel_values).last_hidden_state.view(3, 5, 64, 24)
    changed = pixel_values.clone()
    changed[:, 0, 0, 0] += 5  # block 0, position 0
    difference = (model(changed).last_hidden_state.view(3, 5, 64, 24) - before).abs().amax(dim=(0, 3)) > 1e-6
    expected = torch.zeros(5, 64, dtype=torch.bool)
    if arguments == {"num_spatial_layers": 0}:
        expected[:, 0] = True  # the blocks of one position see each other
    else:
        expected[0] = True  # the positions of one block do
    assert torch.equal(difference, expected)


def test_segmentation_loss_leaves_out_unlabelled_and_invalid_pixels():
    torch.manual_seed(0)
    model = HSSTForSemanticSegmentation(tiny_config()).eval()
    labels = torch.randint(0, 4, (3, 8, 8))
    labels[:, 4:] = 255
    pixel_mask = nodata_mask()
    outputs = model(windows(), labels, pixel_mask)
    kept = (labels != 255) & pixel_mask.bool()
    expected = torch.nn.functional.cross_entropy(outputs.logits.permute(0, 2, 3, 1)[kept], labels[kept])
    torch.testing.assert_close(outputs.loss, expected)
    # -1 and -100 mean none as well, as elsewhere
    for none in (-1, -100):
        torch.testing.assert_close(
            model(windows(), labels.masked_fill(labels == 255, none), pixel_mask).loss, expected
        )
    assert model(windows(), torch.full_like(labels, 255)).loss == 0


def test_classification_losses():
    model = HSSTForImageClassification(tiny_config())
    outputs = model(windows(), torch.tensor([1, 255, 2]))
    expected = torch.nn.functional.cross_entropy(outputs.logits[[0, 2]], torch.tensor([1, 2]))
    torch.testing.assert_close(outputs.loss, expected)
    assert model(windows(batch=1)).logits.shape == (1, 4)
    center = HSSTForImageClassification(tiny_config(head_type="center", image_size=7))
    assert center(windows(7, batch=1)).logits.shape == (1, 4)
    with pytest.raises(ValueError, match="all 49 positions"):
        center(windows(8), interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match="use HSSTForImageClassification"):
        HSSTForSemanticSegmentation(tiny_config(head_type="center"))


def test_bool_masked_pos_needs_a_mask_token():
    with pytest.raises(ValueError, match="needs a model with a mask token"):
        HSSTModel(tiny_config())(windows(), bool_masked_pos=torch.ones(3, 320))


def test_bool_masked_pos_of_another_shape():
    with pytest.raises(ValueError, match=r"\(batch, blocks \* positions\) \(3, 5 \* 64\), got \(2, 320\)"):
        HSSTForMaskedImageModeling(tiny_config())(windows(), torch.ones(2, 320))


def test_gradient_checkpointing_changes_no_gradient():
    torch.manual_seed(0)
    model = HSSTForMaskedImageModeling(tiny_config(num_decoder_layers=1)).train()
    mask = torch.rand(3, 320) < 0.5

    def gradients():
        model.zero_grad()
        model(windows(), mask, nodata_mask()).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    plain = gradients()
    model.gradient_checkpointing_enable()
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[name])


@pytest.mark.slow
@pytest.mark.parametrize("mask", [None, nodata_mask()])
def test_flex_attention_agrees(mask):
    torch.manual_seed(0)
    model = HSSTForMaskedImageModeling(tiny_config(head_dim=16)).eval()  # flex attention takes powers of 2 from 16 on
    hidden = torch.rand(3, 320) < 0.5
    with torch.no_grad():
        expected = model(windows(), hidden, mask)
        model.set_attn_implementation("flex_attention")
        actual = model(windows(), hidden, mask)
    torch.testing.assert_close(actual.reconstruction, expected.reconstruction)


def test_compiles_without_graph_breaks():
    torch.manual_seed(0)
    model = HSSTForMaskedImageModeling(tiny_config()).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    mask = torch.rand(3, 320) < 0.5
    for pixel_mask in (None, nodata_mask()):
        expected = model(windows(), mask, pixel_mask)
        actual = compiled(windows(), mask, pixel_mask)
        torch.testing.assert_close(actual.loss, expected.loss)
        torch.testing.assert_close(actual.reconstruction, expected.reconstruction)


def test_fine_tuning_with_trainer(tmp_path):
    torch.manual_seed(0)
    # Every pixel's class is the brightest of its first four bands
    images = torch.randn(64, 23, 8, 8)
    data = [{"pixel_values": image, "labels": image[:4].argmax(0)} for image in images]
    data[0]["labels"][:] = 255
    model = HSSTForSemanticSegmentation(tiny_config(num_spatial_layers=0))
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=60,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=0.02,
        use_cpu=True,
        logging_steps=10,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert 1.0 < losses[0] < 1.6  # about log(4): the mean, not the sum, of what is accumulated
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("model_class", [HSSTForImageClassification, HSSTForSemanticSegmentation])
def test_scores_are_of_full_precision(model_class):
    """Rounded to half precision, classes that lie close together would have the same score."""
    torch.manual_seed(0)
    model = model_class(tiny_config()).eval().requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        scores = [model(windows()).logits]
    scores.append(model.bfloat16()(windows().bfloat16()).logits)
    for logits in scores:
        assert logits.dtype == torch.float32
        assert not torch.equal(logits, logits.bfloat16().float())
    assert model.double()(windows().double()).logits.dtype == torch.float64
    # Shapes alone, without memory or arithmetic
    assert model.to("meta")(windows().double().to("meta")).logits.shape == logits.shape


def test_half_precision_counts_all_its_values():
    """More values are scored in a batch than float16 can count to."""
    torch.manual_seed(0)
    model = HSSTForMaskedImageModeling(tiny_config(num_channels=200, wavelengths=None)).eval()
    pixel_values, mask = windows(bands=200, batch=16), torch.rand(16, 40 * 64) < 0.75
    expected = model(pixel_values, mask).loss
    assert model.half()(pixel_values.half(), mask).loss.item() == pytest.approx(expected.item(), rel=1e-2)


def test_every_parameter_learns():
    model = HSSTForMaskedImageModeling(tiny_config(num_decoder_layers=1, position_embedding_type="sincos"))
    model(windows()).loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]

"""A model moved to other bands: exact where it can be, nearly so for smooth spectra, and honest about the rest."""

import copy
import logging

import pytest
import torch
from transformers import AutoModelForMaskedImageModeling, AutoModelForSemanticSegmentation
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from modeling_hsst import (
    HSSTBackbone,
    HSSTConfig,
    HSSTForImageClassification,
    HSSTForMaskedImageModeling,
    HSSTForSemanticSegmentation,
    HSSTImageProcessor,
    HSSTModel,
    adapt_processor,
    adapt_to_wavelengths,
    load_for_wavelengths,
)
from modeling_hsst.adaptation_hsst import WavelengthAdapter, check_bands

# 24 bands, 10 nm apart but for a gap, in blocks of 4; then as many SWIR bands, 20 nm apart
WAVELENGTHS = [500.0 + 10 * band for band in range(12)] + [700.0 + 10 * band for band in range(12)]
WAVELENGTHS += [1500.0 + 20 * band for band in range(24)]

CASES = {
    "wavelength": (HSSTModel, {}),
    "learned": (HSSTModel, {"position_embedding_type": "learned"}),
    "sincos": (HSSTModel, {"position_embedding_type": "sincos"}),
    "masked": (HSSTForMaskedImageModeling, {"mask_type": "unit"}),
    "masked, learned": (HSSTForMaskedImageModeling, {"position_embedding_type": "learned"}),
    "visible only": (HSSTForMaskedImageModeling, {"visible_only": True, "decoder_hidden_size": 12}),
    "visible only, sincos": (
        HSSTForMaskedImageModeling,
        {"visible_only": True, "mask_type": "grid", "position_embedding_type": "sincos"},
    ),
    "not normalized": (HSSTForMaskedImageModeling, {"normalize_token_values": False, "mask_type": "unit"}),
    "patches": (HSSTForMaskedImageModeling, {"patch_size": 2, "mask_patch_size": 1}),
    "padded": (HSSTForMaskedImageModeling, {"band_patch_size": 5, "mask_type": "unit"}),
    "segmentation": (HSSTForSemanticSegmentation, {"num_labels": 3}),
    "concat": (HSSTForSemanticSegmentation, {"num_labels": 3, "head_type": "concat"}),
    "center": (HSSTForImageClassification, {"num_labels": 3, "head_type": "center"}),
    "backbone": (HSSTBackbone, {"out_indices": [1, 2]}),
}


def tiny(model_class=HSSTModel, **options):
    """A model whose every weight, biases and LayerNorms included, means something."""
    torch.manual_seed(0)
    settings = {
        "hidden_size": 24,
        "num_spatial_layers": 1,
        "num_spectral_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
        "intermediate_size": 16,
        "image_size": 4,
        "num_channels": len(WAVELENGTHS),
        "band_patch_size": 4,
        "mask_patch_size": 2,
        "wavelengths": WAVELENGTHS,
        "position_embedding_type": "wavelength",
    }
    model = model_class(HSSTConfig(**settings | options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def smooth_pixels(wavelengths, size=4):
    """Windows (2, bands, size, size) of spectra that are straight lines between 450 and 2050 nm."""
    generator = torch.Generator().manual_seed(1)
    level, slope = torch.randn(2, 2, 1, size, size, generator=generator)
    place = (torch.tensor(wavelengths) - 900.0)[None, :, None, None] / 100.0
    return level + (0.5 + slope.abs()) * place


def outputs_of(model, pixel_values):
    torch.manual_seed(2)
    with torch.no_grad():
        outputs = model(pixel_values)
    if "feature_maps" in outputs:
        return list(outputs.feature_maps)
    return [value for value in outputs.values() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("case", CASES)
def test_its_own_wavelengths_change_nothing(case):
    model = tiny(CASES[case][0], **CASES[case][1])
    adapted, report = adapt_to_wavelengths(model, WAVELENGTHS, return_report=True)
    assert type(adapted) is type(model)
    assert report.band_patch_size == model.config.band_patch_size
    assert not (report.interpolated_bands or report.uncovered_bands or report.unused_blocks)
    pixel_values = torch.randn(2, len(WAVELENGTHS), 4, 4)
    for expected, got in zip(outputs_of(model, pixel_values), outputs_of(adapted, pixel_values), strict=True):
        torch.testing.assert_close(got, expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_another_sensor_of_any_class_and_size(case):
    """The outputs have the right shapes and are finite."""
    model = tiny(CASES[case][0], **CASES[case][1])
    wavelengths = [505.0 + 6.5 * band for band in range(43)]
    adapted, report = adapt_to_wavelengths(model, wavelengths, return_report=True)
    assert report.num_blocks == len(report.source_blocks) == adapted.config.num_blocks < model.config.num_blocks
    assert adapted.config.wavelengths == wavelengths
    outputs = outputs_of(adapted, torch.randn(2, 43, 4, 4))
    assert all(output.isfinite().all() for output in outputs)
    if model.config.position_embedding_type == "wavelength":
        embeddings = adapted.embeddings if isinstance(adapted, HSSTModel) else adapted.hsst.embeddings
        positions = embeddings.position_embeddings
        torch.testing.assert_close(positions.spectral_embeddings, positions.spectral_table())


def test_bands_split_in_two_give_nearly_the_same_tokens():
    model = tiny()
    halves = sorted(
        wavelength + side * spacing / 4
        for wavelength, spacing in zip(WAVELENGTHS, [10.0] * 24 + [20.0] * 24, strict=True)
        for side in (-1, 1)
    )
    adapted, report = adapt_to_wavelengths(model, halves, return_report=True)
    assert (report.band_patch_size, report.num_blocks, report.num_padded_bands) == (8, 12, 0)
    assert report.source_blocks == tuple(range(12)) and not report.uncovered_bands
    [expected, _], [got, _] = outputs_of(model, smooth_pixels(WAVELENGTHS)), outputs_of(adapted, smooth_pixels(halves))
    # Blocks of 8 bands have a standard deviation of their own, 1.6 % more than those of 4
    assert (got - expected).abs().max() < 0.05 * expected.std()
    # The scale for band density makes the difference
    with torch.no_grad():
        adapted.embeddings.patch_embeddings.weight *= 2
    assert (outputs_of(adapted, smooth_pixels(halves))[0] - expected).abs().max() > 0.2 * expected.std()


def test_bands_split_in_two_are_decoded_to_the_lines_between():
    model = tiny(HSSTForMaskedImageModeling, mask_type="unit")
    quarter = [5.0] * 12
    halves = [w + s for w, q in zip(WAVELENGTHS[:12], quarter, strict=True) for s in (-q / 2, q / 2)]
    adapted = adapt_to_wavelengths(model, halves)
    tokens = torch.randn(2, 3 * 16, 24)
    with torch.no_grad():
        trained = model.decoder(torch.cat([tokens, torch.zeros(2, 9 * 16, 24)], dim=1), None)[:, :3]
        got = adapted.decoder(tokens, None)
    between = trained[..., :-1].lerp(trained[..., 1:], 0.25)
    torch.testing.assert_close(got[..., 1:-1:2], between, atol=1e-5, rtol=0)


def test_whole_blocks_keep_their_embeddings():
    model = tiny()
    kept = [*WAVELENGTHS[4:12], *WAVELENGTHS[20:24]]
    adapted, report = adapt_to_wavelengths(model, kept, return_report=True)
    assert report.source_blocks == (1, 2, 5) and report.band_patch_size == 4
    pixel_values = torch.randn(2, len(WAVELENGTHS), 4, 4)
    bands = [*range(4, 12), *range(20, 24)]
    with torch.no_grad():
        expected = model.embeddings(pixel_values).unflatten(1, (12, 16))[:, [1, 2, 5]]
        got = adapted.embeddings(pixel_values[:, bands]).unflatten(1, (3, 16))
    assert torch.equal(got, expected)


def test_a_padded_block_is_carried_over_as_it_is():
    model = tiny(band_patch_size=5)  # the last of its 10 blocks has 3 bands
    adapted, report = adapt_to_wavelengths(model, WAVELENGTHS[40:], return_report=True)
    assert (report.source_blocks, report.num_padded_bands) == ((8, 9), 2)
    pixel_values = torch.randn(2, len(WAVELENGTHS), 4, 4)
    with torch.no_grad():
        expected = model.embeddings(pixel_values).unflatten(1, (10, 16))[:, 8:]
        got = adapted.embeddings(pixel_values[:, 40:]).unflatten(1, (2, 16))
    assert torch.equal(got, expected)


def test_what_cannot_be_carried_over_is_reported(caplog):
    model = tiny()
    wavelengths = [460.0, 470.0, *WAVELENGTHS[:12], 650.0, 660.0, *WAVELENGTHS[12:24]]
    adapted, report = adapt_to_wavelengths(model, wavelengths, return_report=True)
    assert report.uncovered_bands == (460.0, 470.0, 650.0, 660.0)
    assert (report.interpolated_bands, report.left_out_bands) == ((), report.uncovered_bands)
    assert report.unused_blocks == tuple((1500.0 + 80 * block, 1560.0 + 80 * block) for block in range(6))
    assert (
        "near, left out (460, 470, 650, 660 nm)" in str(report)
        and "1500-1560" in str(report)
        and "\n" not in str(report)
    )
    logger = logging.getLogger("transformers")
    logger.propagate = True
    logging.getLogger("modeling_hsst").propagate = True
    with caplog.at_level(logging.INFO):
        adapt_to_wavelengths(model, wavelengths)
    assert str(report) in caplog.text
    # As wide as this, it sees what the first trained band sees
    assert (
        adapt_to_wavelengths(model, [470.0, *WAVELENGTHS[1:8]], [40.0] * 8, return_report=True)[1].uncovered_bands
        == ()
    )


@pytest.mark.parametrize("kind", ["learned", "sincos"])
def test_trained_positions_stay_with_their_blocks(kind):
    model = tiny(position_embedding_type=kind)
    adapted, report = adapt_to_wavelengths(model, [540.0 + 5 * band for band in range(16)], return_report=True)
    with torch.no_grad():
        trained = model.embeddings.position_embeddings((4, 4))
        got = adapted.embeddings.position_embeddings((4, 4))
    assert report.source_blocks == (1, 2) and torch.equal(got, trained[:, 1:3])


@pytest.mark.parametrize("name", ["blockwise_patch_embedding", "blockwise_decoder"])
def test_models_whose_blocks_share_weights_cannot_be_adapted(name):
    with pytest.raises(ValueError, match="blocks share neither embedding nor decoder"):
        adapt_to_wavelengths(tiny(HSSTForMaskedImageModeling, **{name: False}), WAVELENGTHS)


@pytest.mark.parametrize("kind", ["wavelength", "learned", "sincos"])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_a_sensor_that_covers_all_gives_what_a_resampled_image_gives(kind, patch_size):
    """Whatever the spectrum, and though the blocks of the sensor hold from five to fifteen bands."""
    settings = {"position_embedding_type": kind, "patch_size": patch_size, "normalize_token_values": False}
    model = tiny(HSSTForSemanticSegmentation, num_labels=3, head_type="concat", **settings)
    wavelengths = [490.0 + 7.3 * band for band in range(210)]
    adapted, report = adapt_to_wavelengths(model, wavelengths, return_report=True)
    assert report.source_blocks == tuple(range(12)) and not report.unused_blocks
    numbers = [len(set(bands)) for bands in adapted.config.block_bands]
    assert min(numbers) < max(numbers) == report.band_patch_size
    assert all(sorted(bands) == bands for bands in adapted.config.block_bands)
    adapter = WavelengthAdapter(model.config, *check_bands(wavelengths, None))
    pixel_values = torch.randn(2, 210, 4, 4)
    resampled = torch.einsum("tb,nbhw->nthw", adapter.resampling.float(), pixel_values)
    [expected], [got] = outputs_of(model, resampled), outputs_of(adapted, pixel_values)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_bands_that_the_model_was_not_trained_near_are_left_out():
    model = tiny(normalize_token_values=False)
    wavelengths = [475.0, 488.0, *WAVELENGTHS[:12], 630.0, *[3000.0 + 10 * band for band in range(6)]]
    adapted, report = adapt_to_wavelengths(model, wavelengths, return_report=True)
    bands = adapted.config.block_bands
    assert [sorted(set(block)) for block in bands] == [[1, 2, 3, 4, 5], [6, 7, 8, 9], [10, 11, 12, 13, 14]]
    assert report.source_blocks == (0, 1, 2) and len(report.unused_blocks) == 9
    assert report.uncovered_bands == report.left_out_bands == (475.0, *wavelengths[15:])
    assert "7 bands that the model was not trained near, left out (475, 3000, " in str(report)
    assert adapted.config.block_wavelengths == pytest.approx([515.0, 555.0, 595.0])
    weight = adapted.embeddings.patch_embeddings.weight
    assert not weight[0, :, 0].any() and weight[0, :, 1].any()
    # Near one band each of two blocks that the sensor does not cover
    report = adapt_to_wavelengths(model, [*WAVELENGTHS[:8], 773.0, 775.0], return_report=True)[1]
    assert (report.source_blocks, report.uncovered_bands, report.left_out_bands) == ((0, 1), (), (773.0, 775.0))
    assert "; 2 bands left out" in str(report)
    # A sensor within a part of a block has it where it is near half of its bands
    assert adapt_to_wavelengths(model, [521.0, 522.0, 523.0], return_report=True)[1].source_blocks == (0,)
    with pytest.raises(ValueError, match="near half of the bands of a block .+, got 534 to 536 nm"):
        adapt_to_wavelengths(model, [534.0, 535.0, 536.0])


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("size", [4, 5])
def test_wavelengths_are_the_same_within_rounding(normalize, size):
    """Whatever fills the last block, and whatever lies far away beside them."""
    model = tiny(HSSTForMaskedImageModeling, mask_type="unit", normalize_token_values=normalize, band_patch_size=size)
    rounded = [wavelength + 0.004 * (-1) ** band for band, wavelength in enumerate(WAVELENGTHS)]
    pixel_values = torch.randn(2, len(WAVELENGTHS), 4, 4)
    expected = outputs_of(model, pixel_values)
    adapted, report = adapt_to_wavelengths(model, rounded, return_report=True)
    assert (adapted.config.block_bands, report.band_patch_size) == (None, size)
    for wanted, got in zip(expected, outputs_of(adapted, pixel_values), strict=True):
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-5)
    adapted, report = adapt_to_wavelengths(model, [*rounded, 4000.0, 4010.0], return_report=True)
    assert report.left_out_bands == (4000.0, 4010.0)
    if size == 4 or not normalize:
        more = torch.cat([pixel_values, torch.randn(2, 2, 4, 4)], dim=1)
        tokens = [network.hsst.embeddings(values) for network, values in ((model, pixel_values), (adapted, more))]
        torch.testing.assert_close(tokens[1], tokens[0], atol=1e-5, rtol=1e-5)


def test_one_block_is_carried_over_by_wavelength_too():
    model = tiny(normalize_token_values=False, num_channels=12, band_patch_size=12, wavelengths=WAVELENGTHS[:12])
    uneven = [498.0 + 3.0 * band + 0.3 * band**1.5 for band in range(30)]
    adapted = adapt_to_wavelengths(model, uneven)
    tokens = [
        network.embeddings(smooth_pixels(wavelengths))
        for network, wavelengths in ((model, WAVELENGTHS[:12]), (adapted, uneven))
    ]
    # The outermost bands reach beyond the sensor's
    torch.testing.assert_close(tokens[1], tokens[0], atol=0.01, rtol=0)


def test_a_lone_band_does_not_cover_what_lies_between():
    model = tiny(normalize_token_values=False)
    report = adapt_to_wavelengths(model, [*WAVELENGTHS[:24], 1975.0], [6.0] * 25, return_report=True)[1]
    assert report.source_blocks == (0, 1, 2, 3, 4, 5) and len(report.unused_blocks) == 6
    assert not report.complete


@pytest.mark.parametrize("normalize", [True, False])
def test_a_block_of_one_band_is_not_kept_where_a_layernorm_leaves_nothing_of_it(normalize):
    model = tiny(normalize_token_values=normalize)
    widths = [10.0] * 8 + [60.0]
    report = adapt_to_wavelengths(model, [*WAVELENGTHS[:8], 578.0], widths, return_report=True)[1]
    assert report.source_blocks == ((0, 1) if normalize else (0, 1, 2))


def test_blocks_in_any_order():
    blocks = [[8, 9, 10, 11], [4, 5, 6, 7], [0, 1, 2, 3]]
    settings = {"num_channels": 12, "wavelengths": WAVELENGTHS[:12], "block_bands": blocks, "num_labels": 3}
    model = tiny(HSSTForSemanticSegmentation, head_type="concat", **settings)
    adapted = adapt_to_wavelengths(model, WAVELENGTHS[:12])
    pixel_values = torch.randn(2, 12, 4, 4)
    torch.testing.assert_close(outputs_of(adapted, pixel_values), outputs_of(model, pixel_values))
    repeated = tiny(**settings | {"block_bands": [[0, 0, 0, 1], [4, 5, 6, 7]]})
    same = adapt_to_wavelengths(repeated, WAVELENGTHS[:12])
    torch.testing.assert_close(outputs_of(same, pixel_values), outputs_of(repeated, pixel_values))


def test_a_model_adapted_twice_is_what_it_was():
    """On smooth spectra, for blocks that both sensors cover."""
    model = tiny(HSSTForMaskedImageModeling, mask_type="unit", normalize_token_values=False)
    finer = [495.0 + 4.0 * band for band in range(380)]
    once = adapt_to_wavelengths(model, finer)
    same, report = adapt_to_wavelengths(once, finer, return_report=True)
    assert same.config.block_bands == once.config.block_bands and not report.interpolated_bands
    pixel_values = smooth_pixels(finer)
    for expected, got in zip(outputs_of(once, pixel_values), outputs_of(same, pixel_values), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    back = adapt_to_wavelengths(once, WAVELENGTHS)
    assert back.config.num_blocks == 12
    expected, got = (outputs_of(network, smooth_pixels(WAVELENGTHS)) for network in (model, back))
    torch.testing.assert_close(got[0], expected[0], atol=0.02, rtol=0)


def test_the_model_given_and_the_random_numbers_stay_as_they_are():
    model = tiny(HSSTForSemanticSegmentation, num_labels=3).to(torch.bfloat16).train()
    model.hsst.embeddings.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    adapted = adapt_to_wavelengths(model, WAVELENGTHS[:16])
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.config.num_channels == len(WAVELENGTHS)
    assert adapted.dtype == torch.bfloat16 and adapted.training
    assert not adapted.hsst.embeddings.patch_embeddings.weight.requires_grad
    assert adapted.head.classifier.weight.requires_grad
    assert torch.equal(adapted.head.classifier.weight, model.head.classifier.weight)
    assert adapted.config.id2label == model.config.id2label
    mask_token = adapt_to_wavelengths(HSSTModel(tiny().config, use_mask_token=True), WAVELENGTHS).embeddings.mask_token
    assert mask_token is not None


def test_adapted_models_train_and_save(tmp_path):
    adapted = adapt_to_wavelengths(tiny(HSSTForMaskedImageModeling), [500.0 + 7 * band for band in range(20)])
    assert adapted.config.block_bands is not None
    adapted(torch.randn(2, 20, 4, 4)).loss.backward()
    assert adapted.hsst.embeddings.patch_embeddings.weight.grad.abs().sum() > 0
    adapted.save_pretrained(tmp_path)
    loaded = HSSTForMaskedImageModeling.from_pretrained(tmp_path).eval()
    pixel_values = torch.randn(2, 20, 4, 4)
    for expected, got in zip(outputs_of(adapted.eval(), pixel_values), outputs_of(loaded, pixel_values), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("wavelengths", "fwhm", "words"),
    [
        ([510.0, 500.0, 520.0], None, ("ascending", "510 nm before 500 nm", "bands 0 and 1")),
        ([500.0, 500.0, 520.0], None, ("each once", "500 nm before 500 nm")),
        ([0.5, 0.51], None, ("nm", "0.5 to 0.51", "1000")),
        ([500.0, float("nan")], None, ("nm",)),
        ([], None, ("got none",)),
        (500.0, None, ("`wavelengths` must be a list of numbers, got 500",)),
        ([500.0, 510.0], 10.0, ("`fwhm` must be a list of numbers, got 10",)),
        ([500.0, 510.0], [5.0], ("2 bands", "got 1")),
        ([500.0, 510.0], [5.0, -1.0], ("positive", "-1")),
        ([500.0, 510.0], [5.0, float("inf")], ("positive", "inf")),
        ([500.0, 510.0], [], ("got none",)),
        ([5000.0, 5010.0], None, ("500 to 1960 nm", "5000 to 5010 nm")),
    ],
)
def test_wrong_bands_are_one_clear_error(wavelengths, fwhm, words):
    with pytest.raises(ValueError) as error:
        adapt_to_wavelengths(tiny(), wavelengths, fwhm)
    for word in words:
        assert word in str(error.value)


def test_only_models_with_weights_of_their_own_are_adapted():
    with pytest.raises(ValueError, match="`model` must be an HSST model, with any adapters merged, got str"):
        adapt_to_wavelengths("hsst", WAVELENGTHS)
    quantized = tiny()
    # Quantized layers state their type among their weights
    quantized.register_state_dict_post_hook(lambda module, state, prefix, _: state.update(dtype=torch.qint8))
    with pytest.raises(ValueError, match="floating-point weights, got quantized ones"):
        adapt_to_wavelengths(quantized, WAVELENGTHS)
    with pytest.raises(ValueError, match="`processor` must know the wavelengths"):
        adapt_processor("hsst", WAVELENGTHS)


def test_models_without_ascending_wavelengths_cannot_be_adapted():
    model = tiny(position_embedding_type="learned", wavelengths=None)
    with pytest.raises(ValueError, match="no `wavelengths`"):
        adapt_to_wavelengths(model, WAVELENGTHS)
    model = tiny(wavelengths=WAVELENGTHS[::-1])
    with pytest.raises(ValueError, match="ascend"):
        adapt_to_wavelengths(model, WAVELENGTHS)


def test_processors_are_adapted_by_wavelength():
    mean = [wavelength / 10_000 for wavelength in WAVELENGTHS]
    processor = HSSTImageProcessor(wavelengths=WAVELENGTHS, image_mean=mean, image_std=[0.1] * len(WAVELENGTHS))
    same = adapt_processor(processor, WAVELENGTHS)
    assert same.image_mean == pytest.approx(processor.image_mean) and same.wavelengths == processor.wavelengths
    adapted = adapt_processor(processor, [450.0, 505.0, 512.0], scale=1.0, nodata=-9999)
    assert adapted.image_mean == pytest.approx([0.05, 0.0505, 0.0512])  # level beyond the trained range
    assert adapted.image_std == pytest.approx([0.1] * 3)
    assert (adapted.scale, adapted.nodata, adapted.clip_range) == (1.0, -9999, processor.clip_range)
    assert adapted.band_indices is None and adapted.wavelength_tolerance == 3.5
    assert adapt_processor(processor, [500.0, 503.0, 506.0]).wavelength_tolerance == 1.5
    inputs = adapted(torch.full((3, 4, 4), 0.25))
    assert inputs["pixel_values"][0, :, 0, 0].tolist() == pytest.approx([2.0, 1.995, 1.988], abs=1e-5)
    with pytest.raises(ValueError, match="wavelengths"):
        adapt_processor(HSSTImageProcessor(), WAVELENGTHS)


def test_bands_of_overlapping_detectors_keep_what_is_theirs():
    """Two detectors whose bands of 10 nm lie 0.5 nm apart, and differ: none takes anything from the other."""
    wavelengths = [900.0 + 10 * (band // 2) + 0.5 * (band % 2) for band in range(48)]
    values = {"image_mean": [0.2, 0.3] * 24, "image_std": [0.1, 0.2] * 24}
    adapted = adapt_processor(HSSTImageProcessor(wavelengths=wavelengths, **values), wavelengths, [10.0] * 48)
    assert [*adapted.image_mean, *adapted.image_std] == [*values["image_mean"], *values["image_std"]]
    model = tiny(HSSTForMaskedImageModeling, wavelengths=wavelengths, mask_type="unit")
    without_last = adapt_to_wavelengths(model, wavelengths[:-1], [10.0] * 47)
    torch.testing.assert_close(without_last.decoder.weight[:11], model.decoder.weight[:11])
    torch.testing.assert_close(without_last.decoder.bias[:11], model.decoder.bias[:11])


def test_one_line_at_loading(tmp_path):
    tiny(HSSTForMaskedImageModeling).save_pretrained(tmp_path)
    processor = HSSTImageProcessor(
        wavelengths=WAVELENGTHS, image_mean=[0.2] * len(WAVELENGTHS), image_std=[0.1] * len(WAVELENGTHS)
    )
    processor.save_pretrained(tmp_path)
    wavelengths = [500.0 + 5 * band for band in range(24)]
    model = load_for_wavelengths(AutoModelForSemanticSegmentation, str(tmp_path), wavelengths, num_labels=5)
    processor = load_for_wavelengths(AutoImageProcessor, str(tmp_path), wavelengths)
    assert isinstance(model, HSSTForSemanticSegmentation) and model.config.num_labels == 5
    with torch.no_grad():
        assert model(**processor(torch.rand(24, 4, 4) * 5000)).logits.shape == (1, 5, 4, 4)
    masked = load_for_wavelengths(AutoModelForMaskedImageModeling, str(tmp_path), wavelengths)
    assert masked.config.wavelengths == wavelengths

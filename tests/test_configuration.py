"""Settings: defaults are the published ones, bad ones are refused in one sentence."""

import pytest

from modeling_hsst import ENMAP_WAVELENGTHS, HSSTConfig


def test_defaults_are_the_published_enmap_settings():
    config = HSSTConfig()
    published = dict(hidden_size=96, num_spatial_layers=4, num_spectral_layers=4, num_attention_heads=8, head_dim=64)
    published |= dict(intermediate_size=64, image_size=8, patch_size=1, num_channels=200, band_patch_size=10)
    published |= dict(mask_type="tube", mask_ratio=0.7, mask_patch_size=4, blockwise_decoder=True, head_type="mean")
    assert {name: getattr(config, name) for name in published} == published
    assert (config.num_blocks, config.num_positions, config.num_hidden_layers) == (20, 64, 8)
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.0
    assert config.wavelengths == list(ENMAP_WAVELENGTHS) and len(ENMAP_WAVELENGTHS) == 200


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_channels": 48},
        {"num_channels": 48, "wavelengths": [374.4 + 14.3 * band for band in range(48)]},
        {"wavelengths": None},
        {"position_embedding_type": "wavelength", "image_size": (16, 8), "patch_size": 2},
        {"num_spatial_layers": 0, "head_type": "concat", "mask_type": "grid", "num_labels": 5},
        {"out_features": ["stage2", "stage8"]},
        {"block_bands": [[0, 0, 1], [2, 1, 0]], "band_patch_size": 3, "block_centers": [500.0, 600.0]},
    ],
)
def test_round_trip(tmp_path, arguments):
    config = HSSTConfig(**arguments)
    config.save_pretrained(tmp_path)
    loaded = HSSTConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()


def test_wavelengths_belong_to_their_bands():
    assert HSSTConfig(num_channels=48).wavelengths is None
    with pytest.raises(ValueError, match="each of the 48 bands of `num_channels`, got 3"):
        HSSTConfig(num_channels=48, wavelengths=[400.0, 500.0, 600.0])
    config = HSSTConfig(num_channels=12, wavelengths=[400.0 + 10 * band for band in range(12)])
    assert config.block_wavelengths == [445.0, 505.0]  # the last block has two bands; padding is left out of the mean


def test_blocks_of_any_bands():
    settings = {"num_channels": 4, "band_patch_size": 2, "wavelengths": [400.0, 500.0, 600.0, 700.0]}
    config = HSSTConfig(**settings, block_bands=[[0, 0], [1, 3], [2, 3]])
    assert (config.num_blocks, config.block_wavelengths) == (3, [400.0, 600.0, 650.0])
    assert config.spectral_positions == [0, 3, 4]
    assert HSSTConfig(**settings, block_centers=[410.0, 690.0]).block_wavelengths == [410.0, 690.0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mask_ratio": 0.0}, "`mask_ratio` must lie between 0 and 1"),
        ({"mask_ratio": 1.0}, "`mask_ratio` must lie between 0 and 1"),
        ({"image_size": 9, "patch_size": 2}, "divisible by `patch_size`, got a window of 9x9"),
        ({"image_size": [8, 8, 8]}, "`image_size` must be one number, or height and width, got [8, 8, 8]"),
        ({"num_channels": 2, "wavelengths": [0.45, 0.6]}, "`wavelengths` must be in nm, got [0.45, 0.6]"),
        ({"num_channels": 2, "wavelengths": [450.0, float("nan")]}, "`wavelengths` must be in nm"),
        ({"mask_type": "cube"}, "unit, even, block, tube, grid, got 'cube'"),
        ({"head_type": "max"}, "`head_type` must be one of"),
        ({"position_embedding_type": "rotary"}, "`position_embedding_type` must be one of"),
        ({"spectral_positions": [0, 1]}, "each of the 20 blocks"),
        ({"block_centers": [500.0]}, "each of the 20 blocks, got 1"),
        ({"block_bands": []}, "one block or more, got none"),
        ({"block_bands": [[0, 1]]}, "`band_patch_size` 10 bands for each block, each between 0 and 199, got [0, 1]"),
        ({"block_bands": [[0, 200]], "band_patch_size": 2}, "each between 0 and 199, got [0, 200] for block 0"),
        ({"num_spatial_layers": 0, "num_spectral_layers": 0}, "not both 0"),
        ({"position_embedding_type": "sincos", "hidden_size": 32}, "12 and its multiples do"),
        ({"position_embedding_type": "wavelength", "num_channels": 48}, "48 band centers in nm, got none"),
    ],
)
def test_bad_settings(arguments, words):
    with pytest.raises(ValueError) as error:
        HSSTConfig(**arguments)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"patch_size": 0}, "`patch_size` must be 1 or more, got 0"),
        ({"band_patch_size": 0}, "`band_patch_size` must be 1 or more, got 0"),
        ({"mask_patch_size": 0}, "`mask_patch_size` must be 1 or more, got 0"),
        ({"image_size": -8}, "`image_size` must be 1 or more, got -8"),
        ({"hidden_size": -48}, "must not be negative, got -48"),
        ({"hidden_act": "nonsense"}, "an activation that transformers knows, got 'nonsense'"),
    ],
)
def test_sizes_must_make_sense(arguments, words):
    with pytest.raises(ValueError) as error:
        HSSTConfig(**arguments)
    assert words in str(error.value)

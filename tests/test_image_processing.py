"""From stored numbers to standardized windows: bands, nodata, clipping, statistics, and what is refused."""

import json

import numpy as np
import pytest
import torch
from transformers import pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # see modeling_hsst/__init__.py

from datasets_loading.sensors import ENMAP
from modeling_hsst import (
    ENMAP_WAVELENGTHS,
    HSSTConfig,
    HSSTForImageClassification,
    HSSTImageProcessor,
    image_processing_hsst,
)

WAVELENGTHS = [500.0, 600.0, 700.0, 800.0]
MEAN, STD = [0.1, 0.2, 0.3, 0.4], [0.05, 0.1, 0.2, 0.4]


@pytest.fixture
def processor():
    return HSSTImageProcessor(
        wavelengths=WAVELENGTHS, image_mean=MEAN, image_std=STD, band_indices=[0, 2, 3, 5], num_source_bands=6
    )


def image(bands=4, dtype=np.int16):
    return np.random.default_rng(0).integers(0, 9000, (bands, 5, 6)).astype(dtype)


def expected_values(stored):
    reflectance = np.clip(stored / 10000.0, -0.02, 1.0)
    return (reflectance - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_reflectance_is_standardized_per_band(processor, dtype):
    stored = image(dtype=dtype)
    outputs = processor(stored, return_tensors="pt")
    assert outputs.pixel_values.dtype == torch.float32 and outputs.pixel_values.shape == (1, 4, 5, 6)
    assert outputs.pixel_mask.dtype == torch.int64 and outputs.pixel_mask.all()
    np.testing.assert_allclose(outputs.pixel_values[0], expected_values(stored), atol=1e-5)
    np.testing.assert_allclose(processor.to_reflectance(outputs.pixel_values)[0], stored / 10000.0, atol=1e-6)


def test_single_images_batches_lists_numpy_and_torch_agree(processor):
    first, second = image(), image()[:, ::-1].copy()
    batch = np.stack([first, second])
    expected = processor(batch).pixel_values
    for images in (
        [first, second],
        torch.from_numpy(batch),
        [torch.from_numpy(first), torch.from_numpy(second)],
        [batch],
    ):
        assert torch.equal(processor(images).pixel_values, expected)
    as_numpy = processor(batch, return_tensors="np")
    assert isinstance(as_numpy.pixel_values, np.ndarray) and isinstance(as_numpy.pixel_mask, np.ndarray)


ARRAYS = {
    "other byte order": lambda stored: stored.astype(">i2"),
    "negative strides": lambda stored: stored[::-1, :, ::-1].copy()[::-1, :, ::-1],
    "uint16": lambda stored: stored.astype(np.uint16),
    "uint32 of the other byte order": lambda stored: stored.astype(">u4"),
    "float16": lambda stored: stored.astype(np.float16),
    "read only": lambda stored: np.broadcast_to(stored, stored.shape),
    "bfloat16 tensor": lambda stored: torch.from_numpy(stored).bfloat16(),
    "tensor with gradients": lambda stored: torch.from_numpy(stored.astype(np.float32)).requires_grad_(),
    "masked array": np.ma.masked_array,
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_every_kind_are_taken(processor, kind):
    stored = image() // 64 * 64  # so that half precision holds it
    stored = np.where(stored > 4096, 4096, stored).astype(np.int16)
    outputs = processor(ARRAYS[kind](stored))
    tolerance = 0.1 if kind == "bfloat16 tensor" else 1e-5
    np.testing.assert_allclose(outputs.pixel_values[0], expected_values(stored), atol=tolerance)
    assert not outputs.pixel_values.requires_grad


def test_masked_pixels_are_no_data(processor):
    mask = np.zeros((4, 5, 6), dtype=bool)
    mask[2, 1, 3] = True
    for dtype in (np.int16, np.float32):
        outputs = processor(np.ma.masked_array(image(dtype=dtype), mask))
        expected = np.ones((5, 6), dtype=int)
        expected[1, 3] = 0
        np.testing.assert_array_equal(outputs.pixel_mask[0], expected)
        assert (outputs.pixel_values[0, :, 1, 3] == 0).all()


def test_bands_are_picked_by_index_from_the_sensors_files(processor):
    stored = image(6)
    outputs = processor(stored)
    np.testing.assert_allclose(outputs.pixel_values[0], expected_values(stored[[0, 2, 3, 5]]), atol=1e-5)


def test_bands_are_picked_by_wavelength_in_any_order(processor):
    stored = image(7)
    centers = [798.0, 405.0, 601.5, 2200.0, 502.0, 703.0, 900.0]
    outputs = processor(stored, wavelengths=centers)
    np.testing.assert_allclose(outputs.pixel_values[0], expected_values(stored[[4, 2, 5, 0]]), atol=1e-5)
    for given in (np.array(centers), torch.tensor(centers)):
        assert torch.equal(processor(stored, wavelengths=given).pixel_values, outputs.pixel_values)


def test_the_bands_of_enmap_are_found_in_either_order_and_in_a_new_calibration():
    processor = HSSTImageProcessor(wavelengths=list(ENMAP_WAVELENGTHS))
    layouts = [list(ENMAP.wavelengths)]
    layouts.append([*np.roll(layouts[0], 100)])  # not ascending, as where the file holds VNIR before SWIR
    for centers in layouts:
        bands = processor.match_wavelengths(centers)
        np.testing.assert_allclose(np.array(centers)[bands], ENMAP_WAVELENGTHS)
    # The detectors overlap: bands of both, 0.2 nm apart, may be nearest to the same one after a calibration
    (pair,) = np.flatnonzero(np.diff(ENMAP_WAVELENGTHS) < 0.2)
    moved = np.array(ENMAP_WAVELENGTHS)
    moved[pair] -= 1.0
    moved[pair + 1] -= 0.1
    assert np.abs(moved - ENMAP_WAVELENGTHS[pair]).argmin() == pair + 1
    assert processor.match_wavelengths(moved.tolist()) == list(range(200))


def test_a_band_of_the_image_serves_one_band_of_the_model(processor):
    close = HSSTImageProcessor(wavelengths=[500.0, 504.0, 700.0])
    with pytest.raises(ValueError, match=r"500\.00 and 504\.00 nm\) both match image band 1 \(501\.50 nm\)"):
        close.match_wavelengths([700.0, 501.5, 900.0])
    assert close.match_wavelengths([700.0, 501.5, 508.0]) == [1, 2, 0]


@pytest.mark.parametrize("nodata", [-32768, np.nan, np.inf])
def test_nodata_is_a_mask_and_not_a_number(processor, nodata):
    stored = image(dtype=np.float32 if not np.isfinite(nodata) else np.int16)
    stored[:, 1, 2] = nodata
    stored[3, 4, 5] = nodata  # one band is enough
    outputs = processor(stored)
    mask = np.ones((5, 6), dtype=bool)
    mask[1, 2] = mask[4, 5] = False
    assert np.array_equal(outputs.pixel_mask[0].bool(), mask)
    assert (outputs.pixel_values[0, :, ~torch.from_numpy(mask)] == 0).all()
    np.testing.assert_allclose(outputs.pixel_values[0][:, mask], expected_values(stored)[:, mask], atol=1e-5)


@pytest.mark.parametrize(("dtype", "nodata"), [(np.uint8, -32768), (np.int8, 256), (np.int16, 65536)])
def test_nodata_beyond_the_type_of_the_image_is_none_of_its_numbers(processor, dtype, nodata):
    stored = np.arange(4 * 5 * 6).reshape(4, 5, 6).astype(dtype)  # 0 is what is left of these numbers
    outputs = processor(stored, scale=255.0, nodata=nodata)
    assert outputs.pixel_mask.all()
    assert torch.equal(outputs.pixel_values, processor(stored.astype(np.float32), scale=255.0).pixel_values)


def test_bands_the_model_does_not_use_may_lack_data(processor):
    stored = image(6)
    stored[1] = -32768
    assert processor(stored).pixel_mask.all()


def test_clipping_happens_in_reflectance_before_standardizing(processor):
    stored = image()
    stored[0, 0, 0], stored[1, 0, 0] = 20000, -5000
    values = processor(stored).pixel_values[0, :, 0, 0]
    assert values[0] == pytest.approx((1.0 - 0.1) / 0.05, rel=1e-5)
    assert values[1] == pytest.approx((-0.02 - 0.2) / 0.1, rel=1e-5)


def test_other_scales_and_nodata(processor):
    stored = image()
    reflectance = (stored / 10000.0).astype(np.float32)
    reflectance[:, 0, 0] = -1
    outputs = processor(reflectance, scale=1.0, nodata=-1)
    expected = processor(stored).pixel_values
    assert outputs.pixel_mask[0, 0, 0] == 0
    torch.testing.assert_close(outputs.pixel_values[..., 1:, :], expected[..., 1:, :])


def test_saved_statistics_come_back(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert set(content) == {
        "band_indices",
        "clip_range",
        "image_mean",
        "image_processor_type",
        "image_std",
        "nodata",
        "num_source_bands",
        "scale",
        "wavelength_tolerance",
        "wavelengths",
    }
    HSSTConfig().save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, HSSTImageProcessor)
    assert loaded.to_dict() == processor.to_dict()
    stored = image(6)
    assert torch.equal(loaded(stored).pixel_values, processor(stored).pixel_values)


@pytest.mark.parametrize("kind", [np.array, torch.tensor, tuple])
def test_settings_in_arrays_are_saved_as_lists(processor, tmp_path, kind):
    HSSTImageProcessor(wavelengths=kind(WAVELENGTHS), image_mean=kind(MEAN)).save_pretrained(tmp_path)
    loaded = HSSTImageProcessor.from_pretrained(tmp_path)
    assert loaded.wavelengths == WAVELENGTHS
    np.testing.assert_allclose(loaded.image_mean, MEAN, atol=1e-7)


def test_dark_images_are_told_and_taken(processor, caplog):
    """Percent under the scale of stored numbers are dark, as water is; snow and sun glint are bright."""
    image_processing_hsst.logger.addHandler(caplog.handler)
    dark = image() / 100
    assert processor(dark).pixel_mask.all() and "give `scale=100` if these are percent" in caplog.text
    image_processing_hsst.logger.removeHandler(caplog.handler)
    bright = np.full((4, 2, 2), 65535.0)
    assert processor(bright / 5).pixel_values.isfinite().all()
    bright[:, 0, 0] = 0.5
    assert processor(bright, scale=1, nodata=65535).pixel_mask.sum() == 1


@pytest.mark.parametrize(
    ("stored", "arguments", "words"),
    [
        (image(5), {}, ["the 4 bands of the model or all 6 bands of the sensor's files", "got 5 bands"]),
        (image(5), {"wavelengths": WAVELENGTHS}, ["each of the 5 bands of the image, got 4"]),
        (
            image(4),
            {"wavelengths": [500.0, 600.0, 706.0, 900.0]},
            ["within 5.0 nm", "2 have none: 700.0, 800.0 nm", "500.0 to 900.0 nm"],
        ),
        (np.full((4, 5, 6), -32768, np.int16), {}, ["at least one valid pixel", "image 0 of 1", "-32768"]),
        (np.stack([image(), np.full((4, 5, 6), -32768)]), {}, ["image 1 of 2"]),
        (image()[0], {}, ["(bands, height, width)", "got the shape (5, 6)"]),
        ([image(), image()[:, :3]], {}, ["must have one shape"]),
        ([], {}, ["no image"]),
        (image(), {"return_tensors": "tf"}, ["'pt' or 'np', got 'tf'"]),
        (image(), {"scale": "10000"}, ["`scale` must be a number, got '10000'"]),
        (image(), {"scale": 0}, ["`scale` must be positive, got 0"]),
        (image(), {"scale": float("nan")}, ["`scale` must be finite, got nan"]),
        (image() / 1e4, {}, ["`scale` 10000 means a reflectance of 1", "numbers up to 0.", "give the `scale`"]),
        (image(), {"scale": 1}, ["`scale` 1 means a reflectance of 1", "numbers up to 8"]),
        (image(), {"nodata": [0]}, ["`nodata` must be a number, got [0]"]),
        (image().astype(complex), {}, ["an image of numbers", "complex128"]),
        (torch.ones(4, 5, 6, dtype=torch.bool), {}, ["an image of real numbers", "torch.bool"]),
        (image().astype(str), {}, ["an image of numbers"]),
    ],
)
def test_bad_images(processor, stored, arguments, words):
    with pytest.raises(ValueError) as error:
        processor(stored, **arguments)
    for word in words:
        assert word in str(error.value)


def test_bad_settings():
    with pytest.raises(ValueError, match="one entry for each band"):
        HSSTImageProcessor(image_mean=[0.1, 0.2], image_std=[0.1])
    with pytest.raises(ValueError, match="must be positive"):
        HSSTImageProcessor(image_std=[0.1, 0.0])
    with pytest.raises(ValueError, match="`image_mean` must be a list of numbers, got 0.1"):
        HSSTImageProcessor(image_mean=0.1)
    with pytest.raises(ValueError, match="needs `num_source_bands`"):
        HSSTImageProcessor(band_indices=[0, 1])
    with pytest.raises(ValueError, match="does not know the wavelengths"):
        HSSTImageProcessor()(image(), wavelengths=WAVELENGTHS)


def test_image_classification_pipeline(processor):
    config = HSSTConfig(
        num_channels=4,
        band_patch_size=2,
        wavelengths=WAVELENGTHS,
        image_size=[5, 6],
        hidden_size=12,
        num_spatial_layers=1,
        num_spectral_layers=1,
        id2label={0: "forest", 1: "water", 2: "soil"},
    )
    model = HSSTForImageClassification(config)
    classify = pipeline("image-classification", model=model, image_processor=processor)
    results = classify(image(6))
    assert {result["label"] for result in results} == {"forest", "water", "soil"}
    assert sum(result["score"] for result in results) == pytest.approx(1, abs=1e-5)

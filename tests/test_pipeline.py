"""Whole scenes through a model: bands, windows and their blending, edges, chunks, and the pipeline's round trip."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin
from safetensors.torch import load_file, save_file
from transformers import pipeline

import modeling_hsst  # noqa: F401
from modeling_hsst import (
    HSSTConfig,
    HSSTForImageClassification,
    HSSTForMaskedImageModeling,
    HSSTForSemanticSegmentation,
    HSSTImageProcessor,
)
from modeling_hsst.hub_hsst import add_code
from modeling_hsst.pipeline_hsst import TASK, HSSTAutoModelForSceneClassification
from modeling_hsst.scene_prediction_hsst import (
    NO_CLASS,
    ArrayScene,
    ScenePredictor,
    blend_weight,
    prefetch,
    reflected,
    response_weights,
    select_bands,
    window_starts,
)

CENTERS = [500.0, 600.0, 700.0, 800.0, 900.0, 1000.0]
CLASSES = {0: "water", 1: "forest", 2: "soil"}


def config(**changes):
    arguments = {
        "hidden_size": 12,
        "num_spatial_layers": 1,
        "num_spectral_layers": 1,
        "num_attention_heads": 1,
        "head_dim": 8,
        "intermediate_size": 8,
        "image_size": 8,
        "num_channels": 6,
        "band_patch_size": 3,
        "wavelengths": CENTERS,
        # larger than in training, so that windows differ
        "initializer_range": 0.3,
        "id2label": CLASSES,
    }
    return HSSTConfig(**{**arguments, **changes})


@pytest.fixture
def processor():
    return HSSTImageProcessor(wavelengths=CENTERS, image_mean=[0.3] * 6, image_std=[0.2] * 6)


@pytest.fixture
def dense():
    torch.manual_seed(0)
    return HSSTForSemanticSegmentation(config()).eval()


@pytest.fixture
def center():
    torch.manual_seed(0)
    return HSSTForImageClassification(config(head_type="center", image_size=5)).eval()


def image(height=29, width=37, seed=0):
    """Smooth, so that neighboring windows are alike, with noise."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = np.stack([np.sin(rows / (4 + b) + b) + np.cos(columns / (5 + b) - b) for b in range(6)])
    return np.rint(3000 + 1200 * waves + generator.normal(0, 100, waves.shape)).astype(np.int16)


def scene(pixels, **changes):
    return ArrayScene(pixels, **{"wavelengths": CENTERS, **changes})


class MarkedScene(ArrayScene):
    """A scene that knows which of its pixels are cloud."""

    def __init__(self, pixels, cloud):
        super().__init__(pixels, CENTERS)
        self.cloud = cloud

    def read_excluded(self, rows, columns, kinds):
        return self.cloud[rows, columns] & ("cloud" in kinds)


def predicted(predictor, of):
    """Everything that a predictor says of a scene, laid together; every pixel must come exactly once."""
    height, width = of.shape
    number = len(predictor.class_names)
    probabilities, times = np.zeros((number, height, width), dtype=np.float32), np.zeros((height, width), dtype=int)
    classes = np.zeros((height, width), dtype=np.uint8)
    for part in predictor.predict(of):
        place = part.rows, part.columns
        probabilities[:, part.rows, part.columns] = part.probabilities
        classes[place] = part.classes
        times[place] += 1
    assert (times == 1).all()
    return classes, probabilities


def model_probabilities(model, processor, pixels):
    values, mask = processor.standardize(torch.as_tensor(np.ascontiguousarray(pixels))[None])
    with torch.inference_mode():
        return model(pixel_values=values, pixel_mask=mask).logits.softmax(dim=1)[0].numpy()


def test_single_windows_and_the_map_agree_where_nothing_is_blended(dense, processor):
    pixels = image(24, 40)
    classes, probabilities = predicted(ScenePredictor(dense, processor, stride=8, batch_size=4), scene(pixels))
    for row in range(0, 24, 8):
        for column in range(0, 40, 8):
            place = slice(row, row + 8), slice(column, column + 8)
            expected = model_probabilities(dense, processor, pixels[:, place[0], place[1]])
            np.testing.assert_allclose(probabilities[:, place[0], place[1]], expected, atol=1e-6)
            np.testing.assert_array_equal(classes[place], expected.argmax(axis=0))
    assert len(np.unique(classes)) > 1


def test_blending_is_the_weighted_mean_of_all_windows(dense, processor):
    pixels = image(15, 18)
    _, probabilities = predicted(ScenePredictor(dense, processor, stride=4), scene(pixels))
    weight = np.outer(*[np.sin(np.pi * (np.arange(8) + 0.5) / 8) ** 2] * 2)
    sums, weights = np.zeros_like(probabilities), np.zeros(pixels.shape[1:])
    for row in (0, 4, 7):
        for column in (0, 4, 8, 10):
            place = slice(row, row + 8), slice(column, column + 8)
            sums[:, place[0], place[1]] += weight * model_probabilities(
                dense, processor, pixels[:, place[0], place[1]]
            )
            weights[place] += weight
    np.testing.assert_allclose(probabilities, sums / weights, atol=1e-5)
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)


def test_light_and_calibration_of_a_scene_that_is_standardized_by_itself_do_not_matter(dense, processor):
    pixels = image(90, 50)
    pixels[:, 20:30, 3:9] = -32768
    cloud = np.zeros(pixels.shape[1:], dtype=bool)
    cloud[5:15, 5:25] = True
    factor, offset = np.linspace(0.5, 1.6, 6)[:, None, None], np.linspace(500, 0, 6)[:, None, None]
    other = np.where(pixels == -32768, pixels, np.rint(factor * pixels + offset)).astype(np.int16)
    scenes = []
    for values in (pixels, other):
        values[:, cloud] = np.random.default_rng(0).integers(8000, 10_000, values[:, cloud].shape)
        scenes.append(MarkedScene(values, cloud))
    predictor = ScenePredictor(dense, processor, scene_statistics=True, exclude=("cloud",), chunk_size=16)
    own = predictor.scene_processor(scenes[1], predictor.select_bands(scenes[1]))
    clear = other[:, ~cloud & (pixels[0] != -32768)] / 10_000
    np.testing.assert_allclose(own.image_mean, clear.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(own.image_std, clear.std(axis=1), rtol=1e-4)
    assert list(processor.image_mean) == [0.3] * 6  # as it was
    maps = [predicted(predictor, each)[0] for each in scenes]
    assert (maps[0] == maps[1]).mean() > 0.99 and len(np.unique(maps[0])) > 2
    usual = ScenePredictor(dense, processor, exclude=("cloud",))
    assert (predicted(usual, scenes[0])[0] == predicted(usual, scenes[1])[0]).mean() < 0.9
    assert predictor.settings != usual.settings


def test_statistics_of_scenes_without_any(dense, processor):
    predictor = ScenePredictor(dense, processor, scene_statistics=True)
    empty = scene(np.full((6, 10, 10), -32768, dtype=np.int16))
    assert predictor.scene_processor(empty, predictor.select_bands(empty)) is processor
    assert (predicted(predictor, empty)[0] == NO_CLASS).all()
    flat = scene(np.full((6, 10, 10), 2000, dtype=np.int16))
    assert np.isfinite(predicted(predictor, flat)[1]).all()
    bare = HSSTImageProcessor(wavelengths=CENTERS)  # neither mean nor deviation
    of_scene = ScenePredictor(dense, bare, scene_statistics=True).scene_processor(flat, predictor.select_bands(flat))
    np.testing.assert_allclose(of_scene.image_mean, 0.2, rtol=1e-6)
    np.testing.assert_allclose(of_scene.image_std, 1e-4)


@pytest.mark.parametrize("kind", ["dense", "center", "window"])
@pytest.mark.parametrize(("stride", "chunk_size"), [(None, 11), (2, 16), (5, 8), (3, 1)])
def test_chunks_leave_no_trace(request, processor, kind, stride, chunk_size):
    if kind == "window":
        model = HSSTForImageClassification(config()).eval()
    else:
        model = request.getfixturevalue(kind)
    pixels = image()
    pixels[:, 3:7, 5:20] = -32768
    whole = predicted(ScenePredictor(model, processor, stride=stride), scene(pixels))
    parts = predicted(ScenePredictor(model, processor, stride=stride, chunk_size=chunk_size), scene(pixels))
    np.testing.assert_allclose(parts[1], whole[1], atol=2e-5)
    assert (parts[0] == whole[0]).mean() > 0.999
    assert (parts[0][3:7, 5:20] == NO_CLASS).all() and (parts[0] != NO_CLASS).sum() == 29 * 37 - 60


def test_strips_are_read_over_their_full_width(dense, processor):
    strips = scene(image(64, 40))
    strips.block_shape = (1, 40)
    predictor = ScenePredictor(dense, processor, chunk_size=16)
    parts = list(predictor.predict(strips))
    assert all(part.columns == slice(0, 40) for part in parts) and len(parts) > 3
    np.testing.assert_allclose(
        np.concatenate([part.probabilities for part in parts], axis=1),
        predicted(ScenePredictor(dense, processor), scene(image(64, 40)))[1],
        atol=2e-5,
    )


def test_center_head_gives_each_pixel_the_class_of_its_own_window(center, processor):
    pixels = image(9, 11)
    _, probabilities = predicted(ScenePredictor(center, processor), scene(pixels))
    padded = np.pad(pixels, ((0, 0), (2, 2), (2, 2)), mode="reflect")
    for row, column in ((0, 0), (4, 5), (8, 10), (0, 7)):
        expected = model_probabilities(center, processor, padded[:, row : row + 5, column : column + 5])
        np.testing.assert_allclose(probabilities[:, row, column], expected, atol=1e-6)


def test_center_head_with_a_stride_fills_cells_around_the_seen_pixels(center, processor):
    pixels = image(10, 13)
    each = predicted(ScenePredictor(center, processor), scene(pixels))[1]
    coarse = predicted(ScenePredictor(center, processor, stride=3), scene(pixels))[1]
    np.testing.assert_allclose(coarse[:, 3:6, 6:9], np.broadcast_to(each[:, 4:5, 7:8], (3, 3, 3)), atol=1e-6)
    np.testing.assert_allclose(coarse[:, 9, 12], each[:, 9, 12], atol=1e-6)


def test_cells_of_a_center_head_are_no_larger_than_its_window(center, processor):
    whole = predicted(ScenePredictor(center, processor, stride=5), scene(image(10, 13)))[1]
    assert np.isfinite(whole).all()
    with pytest.raises(ValueError, match="`stride`.*windows of 5x5, got 6"):
        ScenePredictor(center, processor, stride=6)


def test_window_head_labels_the_window(processor):
    torch.manual_seed(0)
    model = HSSTForImageClassification(config()).eval()
    pixels = image(8, 16)
    _, probabilities = predicted(ScenePredictor(model, processor, stride=8), scene(pixels))
    expected = model_probabilities(model, processor, pixels[:, :, 8:])
    np.testing.assert_allclose(probabilities[:, 3, 9:15], np.repeat(expected[:, None], 6, axis=1), atol=1e-6)


def test_a_scene_shifted_by_half_a_window_gives_the_same_map_inside(dense, processor):
    pixels = image(40, 48)
    predictor = ScenePredictor(dense, processor)
    first = predicted(predictor, scene(pixels))[1]
    shifted = predicted(predictor, scene(pixels[:, 4:, 4:]))[1]
    # Half a window is the stride: but for the first windows, those of both grids are the same
    np.testing.assert_allclose(shifted[:, 4:, 4:], first[:, 8:, 8:], atol=1e-5)
    assert np.abs(shifted[:, :4] - first[:, 4:8, 4:]).max() > 1e-3


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 20), (7, 8), (8, 5)])
def test_scenes_smaller_than_a_window_are_padded_by_reflection(dense, center, processor, height, width):
    pixels = image(height, width)
    for model in (dense, center):
        classes, probabilities = predicted(ScenePredictor(model, processor), scene(pixels))
        assert classes.shape == (height, width) and (classes != NO_CLASS).all() and np.isfinite(probabilities).all()
    if (height, width) == (7, 8):
        padded = np.pad(pixels, ((0, 0), (0, 1), (0, 0)), mode="reflect")
        expected = model_probabilities(dense, processor, padded)[:, :7]
        _, probabilities = predicted(ScenePredictor(dense, processor), scene(pixels))
        np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def test_reflection_is_that_of_numpy():
    for length in (1, 2, 5, 9):
        padded = np.pad(np.arange(length), 11, mode="reflect")
        np.testing.assert_array_equal(reflected(np.arange(-11, length + 11), length), padded)


def test_windows_cover_everything_and_end_with_the_last_pixel():
    assert window_starts(16, 8, 4).tolist() == [0, 4, 8]
    assert window_starts(17, 8, 4).tolist() == [0, 4, 8, 9]
    assert window_starts(5, 8, 4).tolist() == [0]
    weight = blend_weight((8, 8))
    assert (weight > 0).all()
    np.testing.assert_allclose(weight[:4] + weight[4:], weight[:4].flip(0) + weight[4:].flip(0), atol=1e-6)
    row = weight[3] / weight[3].sum()
    np.testing.assert_allclose(row[:4] + row[4:], 0.25, atol=1e-6)  # neighbors half a window apart


@pytest.mark.parametrize("model", ["dense", "center"])
def test_nodata_and_cloud_get_no_class_and_are_not_seen(request, processor, model):
    pixels = image(24, 24)
    cloud = np.zeros((24, 24), dtype=bool)
    cloud[8:12, 8:12] = True
    changed = pixels.copy()
    changed[:, cloud] = 9000
    predictor = ScenePredictor(request.getfixturevalue(model), processor, exclude=["cloud"])
    classes, probabilities = predicted(predictor, MarkedScene(pixels, cloud))
    np.testing.assert_array_equal(classes == NO_CLASS, cloud)
    assert np.isnan(probabilities[:, cloud]).all()
    # Brightness under the cloud changes nothing beside it
    np.testing.assert_allclose(predicted(predictor, MarkedScene(changed, cloud))[1], probabilities, atol=1e-6)
    everything = ScenePredictor(predictor.model, processor, exclude=[])
    assert (predicted(everything, MarkedScene(changed, cloud))[0] != NO_CLASS).all()
    assert np.nanmax(np.abs(predicted(everything, MarkedScene(changed, cloud))[1] - probabilities)) > 1e-3


def test_nodata_of_a_scene_is_its_own(dense, processor):
    dark = (image(16, 16) % 50).astype(np.uint8)  # zeros are what is left of -32768 in 8 bits
    expected = predicted(ScenePredictor(dense, processor), scene(dark.astype(np.float32), scale=255.0))
    got = predicted(ScenePredictor(dense, processor), scene(dark, scale=255.0))
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    processor.nodata = 0
    got = predicted(ScenePredictor(dense, processor), scene(dark, scale=255.0, nodata=None))
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_scene_without_data_gives_a_map_without_classes(dense, processor):
    classes, probabilities = predicted(ScenePredictor(dense, processor), scene(np.full_like(image(), -32768)))
    assert (classes == NO_CLASS).all() and np.isnan(probabilities).all()
    nan = np.full((6, 10, 10), np.nan, dtype=np.float32)
    assert (predicted(ScenePredictor(dense, processor), scene(nan))[0] == NO_CLASS).all()


def test_bands_are_matched_in_any_order(dense, processor):
    pixels = image(16, 16)
    order = [4, 0, 5, 2, 1, 3]
    given = np.array(CENTERS)[order] + [1, -2, 0, 2, -1, 0]
    more = np.concatenate([pixels[order], pixels[:1]]), np.append(given, 2000.0)
    mixed = ArrayScene(more[0], more[1], [10.0] * 7)
    selection = select_bands(mixed, processor, 6)
    assert selection.bands == [1, 4, 3, 5, 0, 2] and selection.weights is None
    assert "at most 2.00 nm" in selection.description and "1 of the scene's 7 unused" in selection.description
    expected = predicted(ScenePredictor(dense, processor), scene(pixels))[1]
    np.testing.assert_array_equal(predicted(ScenePredictor(dense, processor), mixed)[1], expected)


def test_a_band_more_than_half_its_width_away_is_an_error(processor):
    shifted = np.array(CENTERS) + [0, 0, 6, 0, 0, 0]
    select_bands(ArrayScene(image(), shifted, [12.5] * 6), processor, 6)
    with pytest.raises(ValueError, match=r"1 have none: 700\.0 nm \(nearest 6\.0 nm away, 5\.5 allowed\)"):
        select_bands(ArrayScene(image(), shifted, [11.0] * 6), processor, 6)
    with pytest.raises(ValueError, match="5.0 allowed"):  # widths unknown: the processor's tolerance
        select_bands(ArrayScene(image(), shifted), processor, 6)
    select_bands(ArrayScene(image(), shifted, [11.0] * 6), processor, 6, resample=True)


def test_a_band_of_the_scene_serves_one_band_of_the_model(processor):
    pixels = image()
    shared = np.array(CENTERS)
    shared[3] = 2000.0
    wide = np.full(6, 250.0)
    words = r"700\.00 and 800\.00 nm\) both match image band 2 \(700\.00 nm\).*--resample"
    with pytest.raises(ValueError, match=words):
        select_bands(ArrayScene(pixels, shared, wide), processor, 6)
    more = ArrayScene(np.concatenate([pixels, pixels[:1]]), [*shared, 790.0], [*wide, 30.0])
    assert select_bands(more, processor, 6).bands == [0, 1, 2, 6, 4, 5]


def test_bands_without_data_are_not_matched(processor):
    pixels = np.concatenate([image(), image()[2:3]])
    pixels[2] = -32768
    twice = ArrayScene(pixels, [*CENTERS, 702.0], [10.0] * 7)
    assert select_bands(twice, processor, 6).bands == [0, 1, 6, 3, 4, 5]
    pixels[6] = -32768
    with pytest.raises(ValueError, match=r"700\.0 nm"):
        select_bands(ArrayScene(pixels, [*CENTERS, 702.0], [10.0] * 7), processor, 6)


def test_resampling_keeps_a_linear_spectrum_and_nodata(processor):
    fine = np.arange(300.0, 1200.0, 5.0)
    pixels = np.rint(fine[:, None, None] * 8 - 2000 + np.zeros((1, 9, 9))).astype(np.int16)
    pixels[np.abs(fine - 700).argmin(), 2, 3] = -32768
    pixels[np.abs(fine - 750).argmin(), 5, 5] = -32768
    selection = select_bands(ArrayScene(pixels, fine, [6.0] * len(fine)), processor, 6, resample=True)
    read = selection.read(ArrayScene(pixels, fine, [6.0] * len(fine)), slice(0, 9), slice(0, 9))
    np.testing.assert_allclose(read[:, 0, 0], np.array(CENTERS) * 8 - 2000, rtol=0.01)
    assert np.isnan(read[2, 2, 3]) and np.isfinite(read[[0, 4, 5], 2, 3]).all()
    assert "resampled" in selection.description


def test_responses_of_a_coarser_sensor_interpolate():
    weights = response_weights(np.array([650.0]), np.array([600.0, 700.0]), np.array([100.0]))
    np.testing.assert_allclose(weights, [[0.5, 0.5]])
    narrow = response_weights(np.array([603.0]), np.array([600.0, 700.0]), np.array([6.0]))
    np.testing.assert_allclose(narrow, [[1.0, 0.0]])


@pytest.mark.parametrize("given", [CENTERS[:1], [wavelength for wavelength in CENTERS for _ in range(2)]])
def test_resampling_needs_bands_of_different_wavelengths(processor, given):
    pixels = np.full((len(given), 9, 9), 1000, dtype=np.int16)
    with pytest.raises(ValueError, match=f"two or more bands.*got {len(given)} of"):
        select_bands(ArrayScene(pixels, given), processor, 6, resample=True)


def test_without_wavelengths_the_number_of_bands_must_fit(dense, processor):
    predictor = ScenePredictor(dense, processor)
    assert "taken by number" in predictor.select_bands(ArrayScene(image())).description
    with pytest.raises(ValueError, match="unknown.*6 bands of the model.*5 bands"):
        predictor.select_bands(ArrayScene(image()[:5]))
    with pytest.raises(ValueError, match="resampling needs wavelengths"):
        select_bands(ArrayScene(image()), processor, 6, resample=True)
    bare = HSSTImageProcessor()
    assert select_bands(ArrayScene(image()), bare, 6).bands == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="unknown: expected 6 bands as the model has, got 5"):
        select_bands(ArrayScene(image()[:5], CENTERS[:5]), HSSTImageProcessor(), 6)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"stride": 0}, "`stride`"),
        ({"stride": 9}, "`stride`"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"chunk_size": 0}, "`chunk_size`"),
    ],
)
def test_senseless_numbers(dense, processor, arguments, word):
    with pytest.raises(ValueError, match=word):
        ScenePredictor(dense, processor, **arguments)


def test_prefetching_hands_errors_on_and_stops_when_left():
    def numbers():
        yield 1
        raise ValueError("broken file")

    received = prefetch(numbers())
    assert next(received) == 1
    with pytest.raises(ValueError, match="broken file"):
        next(received)
    made = []
    endless = prefetch(made.append(number) or number for number in iter(int, 1))
    assert next(endless) == 0
    endless.close()
    assert len(made) < 5


def write_image(path, pixels):
    """The pixels as a GeoTIFF that states its wavelengths in micrometers."""
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype="int16", nodata=-32768,
        crs="EPSG:32633", transform=from_origin(500000, 5800000, 30, 30),
    ) as dataset:  # fmt: skip
        dataset.write(pixels)
        for band, center in enumerate(CENTERS, 1):
            dataset.update_tags(band, wavelength=str(center / 1000), wavelength_units="Micrometers")
    return path


def test_pipeline_takes_arrays_paths_and_lists(dense, processor, tmp_path):
    pixels = image()
    classify = pipeline(TASK, model=dense, image_processor=processor)
    outputs = classify(pixels, wavelengths=CENTERS, return_probabilities=True)
    classes, probabilities = predicted(ScenePredictor(dense, processor), scene(pixels))
    np.testing.assert_array_equal(outputs["classes"], classes)
    np.testing.assert_allclose(outputs["probabilities"], probabilities, atol=1e-6)
    np.testing.assert_allclose(outputs["confidence"], probabilities.max(axis=0), atol=1e-6)
    assert outputs["class_names"] == ["water", "forest", "soil"] and outputs["crs"] is None

    path = write_image(tmp_path / "scene.tif", pixels)
    from_file = classify(str(path), stride=8)
    np.testing.assert_array_equal(from_file["classes"], classify(pixels, wavelengths=CENTERS, stride=8)["classes"])
    assert from_file["crs"].to_epsg() == 32633 and from_file["transform"].a == 30
    both = classify([pixels, pixels[:, :10]], wavelengths=CENTERS)
    assert [one["classes"].shape for one in both] == [(29, 37), (10, 37)]
    torch_outputs = classify(torch.from_numpy(pixels), wavelengths=CENTERS)
    np.testing.assert_array_equal(torch_outputs["classes"], classes)


def test_pipeline_takes_arrays_of_every_kind(dense, processor):
    classify = pipeline(TASK, model=dense, image_processor=processor)
    pixels = image()
    expected = classify(pixels, wavelengths=CENTERS)["classes"]
    mask = np.zeros(pixels.shape, dtype=bool)
    mask[3, 4, 5] = True
    for array in (
        pixels.astype(">i2"),
        pixels[:, ::-1].copy()[:, ::-1],
        torch.from_numpy(pixels.astype(np.float32)).requires_grad_(),
        np.ma.masked_array(pixels, np.zeros(pixels.shape, dtype=bool)),
    ):
        np.testing.assert_array_equal(classify(array, wavelengths=CENTERS)["classes"], expected)
    assert classify(torch.from_numpy(pixels).bfloat16(), wavelengths=CENTERS)["classes"].shape == expected.shape
    masked = classify(np.ma.masked_array(pixels, mask), wavelengths=CENTERS)["classes"]
    assert masked[4, 5] == NO_CLASS and (masked == NO_CLASS).sum() == (expected == NO_CLASS).sum() + 1
    for one in classify([pixels, pixels], wavelengths=CENTERS, batch_size=2):
        np.testing.assert_array_equal(one["classes"], expected)
    for name, value in (("nodata", "none"), ("scale", [1])):
        with pytest.raises(ValueError, match=f"`{name}` must be a number"):
            classify(pixels, wavelengths=CENTERS, **{name: value})


def test_pipeline_says_what_is_wrong(dense, processor, tmp_path):
    classify = pipeline(TASK, model=dense, image_processor=processor)
    with pytest.raises(ValueError, match="bands, height, width"):
        classify(image()[0])
    with pytest.raises(ValueError, match="nowhere.tif"):
        classify(str(tmp_path / "nowhere.tif"))
    with pytest.raises(ValueError, match="stripe"):
        classify(image(), stripe=4)
    with pytest.raises(ValueError, match=r"one positive number \(nm\) for each of the 6 bands"):
        classify(image(), wavelengths=CENTERS[:4])
    for wavelengths in (["500 nm"] * 6, [np.nan] * 6):
        with pytest.raises(ValueError, match="`wavelengths` must hold"):
            classify(image(), wavelengths=wavelengths)
    with pytest.raises(ValueError, match="`scale` must be finite, got nan"):
        classify(image(), wavelengths=CENTERS, scale=np.nan)
    with pytest.raises(ValueError, match="`scale` 10000 means .*, got numbers up to 0.5"):
        classify(np.full((6, 9, 9), 0.5), wavelengths=CENTERS)
    with pytest.raises(ValueError, match="wavelengths: expected only with a path or an array"):
        classify(ArrayScene(image(), CENTERS), wavelengths=CENTERS)
    for wrong in ({"exclude": "cloud"}, {"chunk_size": 1.5}, {"stride": 1.5}, {"windows_per_batch": 2.5}):
        with pytest.raises(ValueError, match="`(exclude|chunk_size|stride|batch_size)` must be"):
            classify(image(), wavelengths=CENTERS, **wrong)
    with pytest.raises(TypeError, match="Expected a scene, got ndarray: `ArrayScene`"):
        next(ScenePredictor(dense, processor).predict(image()))
    with pytest.raises(ValueError, match="Expected the image processor of the model, got NoneType"):
        ScenePredictor(dense, None)
    with pytest.raises(ValueError, match="fine-tune"):
        pipeline(TASK, model=HSSTForMaskedImageModeling(config()), image_processor=processor)


def test_a_checkpoint_without_a_classification_head_is_refused(processor, tmp_path):
    HSSTForMaskedImageModeling(config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="HSSTForMaskedImageModeling; fine-tune it first"):
        HSSTAutoModelForSceneClassification.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: weights.clear(), "expected all weights of the model, found none for"),
        (lambda weights: weights.pop("head.classifier.bias"), "found none for head.classifier.bias"),
        (lambda weights: weights.update(more=torch.zeros(1)), "found more"),
        (lambda weights: weights["head.classifier.bias"].fill_(float("nan")), "finite weights, got NaN"),
        (lambda weights: weights.update({"head.classifier.bias": torch.zeros(1)}), "of shape .*, got .1,."),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused(dense, tmp_path, change, words):
    """Or new weights would give a map of noise."""
    dense.save_pretrained(tmp_path)
    weights = {name: value.clone() for name, value in load_file(tmp_path / "model.safetensors").items()}
    change(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=words):
        HSSTAutoModelForSceneClassification.from_pretrained(str(tmp_path))


@pytest.mark.parametrize("kind", ["dense", "center", "window"])
def test_a_checkpoint_is_loaded_with_the_class_it_was_saved_from(request, processor, tmp_path, kind):
    model = HSSTForImageClassification(config()) if kind == "window" else request.getfixturevalue(kind)
    model.eval().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    classify = pipeline(TASK, model=str(tmp_path))
    assert type(classify.model) is type(model)
    expected = pipeline(TASK, model=model, image_processor=processor)(image(), wavelengths=CENTERS)
    np.testing.assert_array_equal(classify(image(), wavelengths=CENTERS)["confidence"], expected["confidence"])


def test_round_trip_where_the_package_is_not_installed(dense, center, processor, tmp_path):
    torch.manual_seed(0)
    models = {"dense": dense, "center": center, "window": HSSTForImageClassification(config()).eval()}
    pipelines = {name: pipeline(TASK, model=model, image_processor=processor) for name, model in models.items()}
    for name, classify in pipelines.items():
        classify.save_pretrained(tmp_path / name)
    np.save(tmp_path / "image.npy", image())
    write_image(tmp_path / "image.tif", image())
    program = f"""
import sys
import numpy as np
sys.modules["modeling_hsst"] = None  # as good as not installed
from transformers import pipeline
for name in {list(models)}:
    classify = pipeline(model=name, trust_remote_code=True)
    outputs = classify(np.load("image.npy"), wavelengths={CENTERS})
    np.save(f"confidence_{{name}}.npy", outputs["confidence"])
    from_file = classify("image.tif")
    np.testing.assert_array_equal(from_file["classes"], outputs["classes"])
    assert from_file["crs"].to_epsg() == 32633 and len(np.unique(outputs["classes"])) > 1
"""
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    for name, classify in pipelines.items():
        expected = classify(image(), wavelengths=CENTERS)["confidence"]
        np.testing.assert_allclose(np.load(tmp_path / f"confidence_{name}.npy"), expected, atol=1e-6)


def test_memory_of_a_chunk_does_not_depend_on_the_scene(dense, processor):
    """What is read at once is bounded by the chunk and its margin."""
    largest = []

    class Watched(ArrayScene):
        def read(self, rows, columns, bands):
            largest.append((rows.stop - rows.start, columns.stop - columns.start))
            return super().read(rows, columns, bands)

    predictor = ScenePredictor(dense, processor, stride=8, chunk_size=16)
    for side in (32, 96):
        largest.clear()
        for _ in predictor.predict(Watched(image(side, side), CENTERS)):
            pass
        assert max(map(math.prod, largest)) <= (16 + 2 * 8) ** 2


def test_a_model_from_a_repository_with_code_is_loaded_without_a_question(dense, processor, tmp_path, monkeypatch):
    """The processor of a fine-tuned model may still name the code that lay beside the checkpoint."""

    def ask(*arguments):
        raise AssertionError("asked whether to run code that is not needed")

    monkeypatch.setattr("builtins.input", ask)
    dense.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    add_code(tmp_path)
    classify = pipeline(TASK, model=str(tmp_path))
    assert type(classify.image_processor) is HSSTImageProcessor


def test_code_of_another_kind_of_model_is_not_offered_to_run(dense, tmp_path, monkeypatch):
    dense.save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('run')\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *arguments: "y")
    with pytest.raises(ValueError, match="trust_remote_code"):
        HSSTAutoModelForSceneClassification.from_pretrained(str(tmp_path))

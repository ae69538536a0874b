"""Features of scenes, spectra and windows: the same however they are asked for, of any sensor, without seams."""

import pickle
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from conftest import assert_one_clear_line
from rasterio.transform import from_origin
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hsst import HSSTFeatures, extract_features
from hsst.support.features import features_as_colors, load_encoder
from modeling_hsst import (
    ArrayScene,
    HSSTConfig,
    HSSTForMaskedImageModeling,
    HSSTForSemanticSegmentation,
    HSSTImageProcessor,
    HSSTModel,
)

WAVELENGTHS = [450.0 + 30 * band for band in range(20)]
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pre-trained model, its decoder and all."""
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = HSSTConfig(
        num_channels=20,
        band_patch_size=5,
        image_size=8,
        hidden_size=24,
        num_attention_heads=2,
        head_dim=16,
        intermediate_size=16,
        num_spatial_layers=1,
        num_spectral_layers=1,
        wavelengths=WAVELENGTHS,
        position_embedding_type="relative",
        normalize_token_values=False,
    )
    HSSTForMaskedImageModeling(config).save_pretrained(path)
    statistics = {"image_mean": [0.2] * 20, "image_std": [0.1] * 20}
    HSSTImageProcessor(wavelengths=WAVELENGTHS, **statistics).save_pretrained(path)
    return str(path)


def test_pretrained_models_forget_the_place_in_the_window(folder, tmp_path):
    """Pixels that are alike have features that are alike; fine-tuned models stay as they are."""
    config = HSSTConfig.from_pretrained(folder, position_embedding_type="wavelength")
    for kind, forgets in ((HSSTForMaskedImageModeling, True), (HSSTForSemanticSegmentation, False)):
        torch.manual_seed(0)
        kind(config).save_pretrained(tmp_path / kind.__name__)
        HSSTImageProcessor.from_pretrained(folder).save_pretrained(tmp_path / kind.__name__)
        encoder, processor = load_encoder(str(tmp_path / kind.__name__))
        values = torch.randn(1, 20, 1, 1).expand(-1, -1, 8, 8)
        features = encoder(values).last_hidden_state.unflatten(1, (4, 64))
        assert torch.allclose(features, features[:, :, :1].expand_as(features), atol=1e-4) == forgets
        assert not any(layer.attention.position_bias.bias.any() for layer in encoder.spatial_layers if forgets)
        # A single pixel lies in the middle of its window: its features are those that were trained
        original = HSSTModel.from_pretrained(tmp_path / kind.__name__).eval()
        features, expected = (
            model(values[..., :1, :1], interpolate_pos_encoding=True).last_hidden_state
            for model in (encoder, original)
        )
        assert torch.allclose(features, expected, atol=1e-5)


def image(height=21, width=30, bands=20):
    return RANDOM.integers(500, 4000, (bands, height, width)).astype(np.int16)


@pytest.mark.parametrize(
    ("pooling", "brightness", "size"),
    [("mean", "kept", 24), ("blocks", "kept", 96), ("mean", "equal", 24), ("blocks", "both", 192)],
)
def test_single_pixels_are_the_same_in_scenes_and_for_scikit_learn(folder, pooling, brightness, size):
    pixels = image()
    pixels[:, 3, 4] = -32768
    settings = {"pooling": pooling, "brightness": brightness}
    features = extract_features(folder, pixels, wavelengths=WAVELENGTHS, window=1, **settings)
    assert features.shape == (size, 21, 30) and features.dtype == np.float32
    assert np.isnan(features[:, 3, 4]).all() and np.isfinite(features).sum() == size * (21 * 30 - 1)
    spectra = pixels.reshape(20, -1).T
    kept = (spectra != -32768).all(axis=1)
    found = HSSTFeatures(folder, WAVELENGTHS, **settings).fit_transform(spectra[kept])
    np.testing.assert_allclose(found, features.reshape(size, -1).T[kept], atol=1e-4)


def test_equal_brightness_leaves_the_shape_of_a_spectrum(folder):
    """Light makes no difference any more, down to the dark; both kinds stand side by side."""
    spectra = RANDOM.uniform(0.05, 0.4, (30, 20))
    kept, equal, both = (
        HSSTFeatures(folder, WAVELENGTHS, scale=1, brightness=brightness).fit(spectra)
        for brightness in ("kept", "equal", "both")
    )
    np.testing.assert_allclose(equal.transform(0.3 * spectra), equal.transform(spectra), atol=1e-4)
    assert np.abs(kept.transform(0.3 * spectra) - kept.transform(spectra)).max() > 0.01
    assert np.isfinite(equal.transform(np.zeros((1, 20)))).all()
    np.testing.assert_allclose(both.transform(spectra), np.hstack([kept.transform(spectra), equal.transform(spectra)]))
    # The mean spectrum of the processor has the brightness that all get
    mean = np.full((1, 20), 0.2)
    np.testing.assert_allclose(equal.transform(mean), kept.transform(mean), atol=1e-5)
    with pytest.raises(ValueError, match=re.escape("`brightness` must be one of 'kept', 'equal', 'both', got 'none'")):
        HSSTFeatures(folder, WAVELENGTHS, brightness="none").fit(spectra)


def test_windows_leave_neither_seams_nor_a_grid(folder):
    """A scene of one spectrum gives one vector, and a part of a scene far from edges what the whole gives."""
    flat = np.broadcast_to(image(1, 1), (20, 24, 40))
    features = extract_features(folder, flat, wavelengths=WAVELENGTHS)
    np.testing.assert_allclose(features, np.broadcast_to(features[:, :1, :1], features.shape), atol=1e-4)


def test_windows_for_scikit_learn(folder):
    """The pixel in the middle of each window; a scene of that size has the same one."""
    windows = np.stack([image(5, 5) for _ in range(3)])
    found = HSSTFeatures(folder, WAVELENGTHS, pooling="mean", brightness="kept", batch_size=50).fit_transform(windows)
    for window, values in zip(windows, found, strict=True):
        scene = extract_features(folder, window, wavelengths=WAVELENGTHS, window=5)
        np.testing.assert_allclose(values, scene[:, 2, 2], atol=1e-4)


def test_other_sensors_in_any_order_of_bands(folder):
    """A denser sensor sees the same spectra alike, whichever band comes first."""
    dense = np.arange(450.0, 1021, 10)
    ramp = RANDOM.uniform(0.1, 0.3, (50, 1)) + RANDOM.uniform(-1e-4, 1e-4, (50, 1)) * (dense - 700)
    coarse = np.stack([np.interp(WAVELENGTHS, dense, spectrum) for spectrum in ramp])
    expected = HSSTFeatures(folder, WAVELENGTHS, scale=1.0).fit_transform(coarse)
    order = RANDOM.permutation(len(dense))
    found = HSSTFeatures(folder, dense[order], scale=1.0).fit_transform(ramp[:, order])
    assert np.abs(found - expected).max() < 0.1 * expected.std()
    scene = extract_features(folder, ramp.T[order, :, None], wavelengths=dense[order], scale=1.0, window=1)
    assert scene.shape == (24, 50, 1)


def test_a_step_of_a_pipeline(folder):
    classes = RANDOM.integers(0, 2, 60)
    spectra = RANDOM.normal(2000, 100, (60, 20)) + 600 * classes[:, None] * np.linspace(0, 1, 20)
    pipeline = make_pipeline(HSSTFeatures(folder, WAVELENGTHS), StandardScaler(), LogisticRegression())
    assert pipeline.fit(spectra[:40], classes[:40]).score(spectra[40:], classes[40:]) > 0.9
    again = pickle.loads(pickle.dumps(pipeline))
    assert np.array_equal(again.predict_proba(spectra), pipeline.predict_proba(spectra))
    assert not hasattr(clone(pipeline)[0], "features_")
    assert clone(pipeline).fit(spectra[:40], classes[:40]).score(spectra[40:], classes[40:]) > 0.9


def test_data_frames(folder):
    """Columns mean what they meant in `fit`, numbers that name them are wavelengths, and features have names."""
    spectra = image(1, 6)[:, 0].T
    expected = HSSTFeatures(folder, WAVELENGTHS).fit_transform(spectra)
    order = RANDOM.permutation(20)
    frame = pd.DataFrame(spectra, columns=WAVELENGTHS).iloc[:, order]
    np.testing.assert_allclose(HSSTFeatures(folder).fit_transform(frame), expected, atol=1e-5)
    with pytest.raises(ValueError, match="wavelengths: expected those of the columns of X in their order"):
        HSSTFeatures(folder, WAVELENGTHS).fit(frame)
    numbered = pd.DataFrame(spectra)  # columns 0, 1, 2, ... are no wavelengths
    features = HSSTFeatures(folder).set_output(transform="pandas").fit(numbered)
    found = features.transform(numbered)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert list(found.columns) == list(features.get_feature_names_out()) and found.columns[1] == "hsstfeatures1"
    with pytest.raises(ValueError, match="X: expected the columns of fit in their order"):
        features.transform(numbered.iloc[:, order])


def test_loaded_models(folder):
    spectra = image(1, 6)[:, 0].T
    expected = HSSTFeatures(folder, WAVELENGTHS).fit_transform(spectra)
    for model in (Path(folder), load_encoder(folder)):
        assert np.array_equal(clone(HSSTFeatures(model, WAVELENGTHS)).fit_transform(spectra), expected)
        assert extract_features(model, image(4, 5), wavelengths=WAVELENGTHS).shape == (24, 4, 5)
    for model in (None, load_encoder(folder)[0], load_encoder(folder)[::-1]):
        with pytest.raises(ValueError, match=r"model: expected a folder, .* tuple \(model, image processor\), got"):
            extract_features(model, image(), wavelengths=WAVELENGTHS)


def test_the_example_of_the_readme(monkeypatch):
    root = Path(__file__).parents[1]
    monkeypatch.chdir(root)
    text = (root / "README.md").read_text(encoding="utf-8")
    (example,) = (code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "HSSTFeatures" in code)
    wavelengths = np.linspace(450, 2400, 60)
    labels = np.arange(30) % 2
    spectra = RANDOM.normal(2000, 50, (30, 60)) + 500 * labels[:, None] * np.linspace(0, 1, 60)
    names = {"wavelengths": wavelengths, "spectra": spectra, "labels": labels}
    exec(example, names)
    assert names["classifier"].score(spectra, labels) == 1


@pytest.mark.parametrize(
    ("arguments", "data", "error"),
    [
        ({"wavelengths": [9000.0 + band for band in range(20)]}, (4, 20), "must lie near half"),
        ({"wavelengths": WAVELENGTHS[:-1]}, (4, 20), "one for each of the 20 bands of the data, but there are 19"),
        ({"wavelengths": 500}, (4, 20), "`wavelengths` must be a list of numbers, got 500"),
        ({"wavelengths": [f"{w} nm" for w in WAVELENGTHS]}, (4, 20), "`wavelengths` must hold numbers in nm"),
        ({"wavelengths": [np.nan, *WAVELENGTHS[1:]]}, (4, 20), "`wavelengths` must hold one positive number"),
        ({"wavelengths": WAVELENGTHS, "fwhm": [0] * 20}, (4, 20), "`fwhm` must hold one positive number"),
        ({"wavelengths": WAVELENGTHS, "scale": np.nan}, (4, 20), "`scale` must be finite, got nan"),
        ({"wavelengths": WAVELENGTHS}, (4, 20), "`scale` 10000 means a reflectance of 1, got numbers up to 1:"),
        ({"wavelengths": WAVELENGTHS, "scale": 0.01}, (4, 20), "`scale` 0.01 means .*, got numbers up to 1:"),
        ({"wavelengths": WAVELENGTHS, "batch_size": 2.5}, (4, 20), "`batch_size` must be a whole number"),
        ({"wavelengths": WAVELENGTHS}, (20,), r"spectra \(pixels, bands\) or windows"),
        ({"wavelengths": WAVELENGTHS, "pooling": "most"}, (4, 20), "'mean', 'blocks', got 'most'"),
        ({"wavelengths": WAVELENGTHS}, (4, 20, 3), r"spectra \(pixels, bands\) or windows"),
    ],
)
def test_bad_input(folder, arguments, data, error):
    with pytest.raises(ValueError, match=error):
        HSSTFeatures(folder, **arguments).fit_transform(np.ones(data))


def test_bad_scenes(folder):
    with pytest.raises(ValueError, match="Wavelengths of the scene the array are unknown.*got 19 bands"):
        extract_features(folder, image(bands=19))
    with pytest.raises(ValueError, match="`window` must be a whole number, 1 or more, got 0"):
        extract_features(folder, image(), wavelengths=WAVELENGTHS, window=0)
    with pytest.raises(ValueError, match="model: expected a model"):
        extract_features(folder + "/..", image(), wavelengths=WAVELENGTHS)
    features = HSSTFeatures(folder, WAVELENGTHS).fit(np.ones((1, 20)))
    with pytest.raises(ValueError, match="finite numbers"):
        features.transform(np.full((2, 20), np.nan))
    spectra = image(1, 2)[:, 0].T
    with pytest.raises(ValueError, match="X: expected spectra with data in every band, got masked numbers"):
        features.transform(np.ma.masked_less(spectra, spectra.max()))
    spectra[1, 3] = -32768
    with pytest.raises(ValueError, match="X: expected spectra with data in every band, got nodata"):
        features.transform(spectra)
    with pytest.raises(TypeError, match="Expected a scene, got list: `ArrayScene`"):
        extract_features(folder, image().tolist())
    with pytest.raises(ValueError, match="wavelengths: expected only with a path or an array"):
        extract_features(folder, ArrayScene(image(), WAVELENGTHS), wavelengths=WAVELENGTHS)
    with pytest.raises(ValueError, match="got numbers up to 0.4: give the `scale`"):
        extract_features(folder, np.full((20, 5, 5), 0.4), wavelengths=WAVELENGTHS)


def test_arguments_of_arrays_count_for_files(folder, tmp_path):
    """A file that states no wavelengths and no scale is read with those given."""
    pixels, path = image(9, 9)[::-1], tmp_path / "scene.tif"
    with rasterio.open(path, "w", driver="GTiff", count=20, height=9, width=9, dtype="int16") as dataset:
        dataset.write(pixels)
    given = {"wavelengths": WAVELENGTHS[::-1], "scale": 10000}
    np.testing.assert_allclose(extract_features(folder, path, **given), extract_features(folder, pixels, **given))


def test_the_program_writes_a_raster_and_a_picture(folder, run_script, tmp_path, real_figures):
    """What `extract_features` gives, with the place of the scene, and nothing twice."""
    pixels = image(20, 33)
    pixels[:, :4, :9] = -32768
    scene, output = tmp_path / "scene.tif", tmp_path / "features.tif"
    profile = {"driver": "GTiff", "count": 20, "height": 20, "width": 33, "dtype": "int16", "nodata": -32768}
    with rasterio.open(scene, "w", crs="EPSG:32633", transform=from_origin(5, 9, 30, 30), **profile) as dataset:
        dataset.write(pixels)
        for band, wavelength in enumerate(WAVELENGTHS, start=1):
            dataset.update_tags(band, wavelength=str(wavelength))
    arguments = ("predict_scene.py", scene, "--model", folder, "--features", "--scale", 10000, "--output", output)
    result = run_script(*arguments)
    assert result.returncode == 0, result.stderr
    assert "24 features of 624 pixels" in result.stdout
    with rasterio.open(output) as dataset:
        assert dataset.crs.to_epsg() == 32633 and dataset.transform == from_origin(5, 9, 30, 30)
        found = dataset.read()
    np.testing.assert_allclose(found, extract_features(folder, pixels, wavelengths=WAVELENGTHS), atol=1e-5)
    assert np.isnan(found[:, :4, :9]).all()
    assert output.with_suffix(".png").stat().st_size > 3000
    assert "finished before" in run_script(*arguments).stdout
    assert_one_clear_line(run_script(*arguments, "--window", 2), output, "--overwrite")
    assert_one_clear_line(run_script(*arguments, "--html"), "--features: expected no flag of maps, got --html")
    assert run_script(*arguments, "--window", 2, "--overwrite").returncode == 0


def test_colors_are_those_of_the_directions():
    """Two kinds of pixels get two colors, whatever the features; pixels without any are transparent."""
    features = np.zeros((5, 4, 6))
    features[2, :, 3:] = 7
    features[:, 0, 0] = np.nan
    colors = features_as_colors(features)
    assert (colors[0, 0] == 0).all() and (colors[1:, :, 3] == 1).all()
    assert len({tuple(color) for color in colors[1:].reshape(-1, 4)}) == 2

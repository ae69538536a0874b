"""Figures: colours at the right wavelengths, pictures that are written whole."""

import numpy as np
import pytest

from datasets_loading.sensors import ENMAP
from hsst.support.figures import marked_pixels, plot_reconstruction, true_colour, true_colour_bands

pytestmark = pytest.mark.usefixtures("real_figures")


def test_true_colour_is_640_550_460_nm():
    bands = true_colour_bands(ENMAP.wavelengths, 224)
    assert np.abs(np.array(ENMAP.wavelengths)[bands] - (640, 550, 460)).max() < 4
    assert len(set(true_colour_bands(None, 8))) == 3


def test_true_colour_is_stretched_between_percentiles():
    reflectance = np.random.default_rng(0).uniform(0.02, 0.2, (224, 20, 20))
    reflectance[:, 0, 0] = np.nan
    picture, limits = true_colour(reflectance, ENMAP.wavelengths)
    assert picture.shape == (20, 20, 3) and picture.min() == 0 and picture.max() == 1
    assert (picture[0, 0] == 0).all()
    brighter, _ = true_colour(reflectance + 0.05, ENMAP.wavelengths, limits)
    assert brighter.mean() > picture.mean() + 0.1


@pytest.mark.parametrize("hidden_share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("wavelengths", [None, np.linspace(420, 2450, 30)])
def test_reconstruction_figure(tmp_path, hidden_share, wavelengths):
    generator = np.random.default_rng(0)
    reflectance = generator.uniform(0, 0.5, (30, 16, 24))
    hidden = generator.uniform(size=reflectance.shape) < hidden_share
    valid = np.ones((16, 24), dtype=bool)
    valid[:4] = False
    path = plot_reconstruction(
        tmp_path / "figures" / "figure.png",
        reflectance=reflectance,
        reconstruction=reflectance + 0.01,
        hidden=hidden,
        valid=valid,
        wavelengths=wavelengths,
        title="a test",
    )
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 20_000
    assert [entry.name for entry in path.parent.iterdir()] == ["figure.png"]


def test_marked_pixels_are_hidden_and_valid():
    reflectance = np.random.default_rng(0).uniform(0, 0.5, (30, 16, 16))
    hidden = np.zeros(reflectance.shape, dtype=bool)
    hidden[:, 8:, 8:] = True
    valid = np.ones((16, 16), dtype=bool)
    valid[12:] = False
    for row, column in marked_pixels(reflectance, hidden & valid, valid):
        assert 8 <= row < 12 and column >= 8

"""Figures: colors at the right wavelengths, pictures that are written whole."""

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_scene_report import WAVELENGTHS, scene

from datasets_loading.sensors import ENMAP
from datasets_loading.splits import SPLITS
from hsst.experiments.label_efficiency import plot_label_efficiency
from hsst.support.features import plot_features
from hsst.support.figures import marked_pixels, plot_reconstruction, true_color, true_color_bands
from hsst.support.reports import plot_confusion, plot_land_cover_map
from hsst.support.scene_report import SceneSummary, plot_quick_look

pytestmark = pytest.mark.usefixtures("real_figures")


def test_true_color_is_640_550_460_nm():
    bands = true_color_bands(ENMAP.wavelengths, 224)
    assert np.abs(np.array(ENMAP.wavelengths)[bands] - (640, 550, 460)).max() < 4
    assert len(set(true_color_bands(None, 8))) == 3


def test_true_color_is_stretched_between_percentiles():
    reflectance = np.random.default_rng(0).uniform(0.02, 0.2, (224, 20, 20))
    reflectance[:, 0, 0] = np.nan
    picture, limits = true_color(reflectance, ENMAP.wavelengths)
    assert picture.shape == (20, 20, 3) and picture.min() == 0 and picture.max() == 1
    assert (picture[0, 0] == 0).all()
    brighter, _ = true_color(reflectance + 0.05, ENMAP.wavelengths, limits)
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


def test_clouds_do_not_blacken_the_land():
    reflectance = np.random.default_rng(0).uniform(0.02, 0.2, (224, 20, 20))
    clear, limits = true_color(reflectance, ENMAP.wavelengths)
    reflectance[:, :6] = 0.9
    cloudy, others = true_color(reflectance, ENMAP.wavelengths)
    np.testing.assert_allclose(others, limits, atol=0.01)
    assert (cloudy[:6] == 1).all() and cloudy[6:].std() > 0.9 * clear[6:].std()
    assert (true_color(np.full((224, 1, 1), 0.1), ENMAP.wavelengths)[0] == 0.5).all()


SHAPES = [(20, 400), (400, 20), (1, 1), (60, 80)]
LONG_NAMES = [f"class {number} of a long name".ljust(40, "m") for number in range(20)]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *given, **named: [figures.append(self), save(self, *given, **named)]
    )
    return figures


def assert_nothing_is_cut(figure):
    figure.canvas.draw()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 >= -0.01 and box.y0 >= -0.01 and box.x1 <= width + 0.01 and box.y1 <= height + 0.01, box


def grid_of_classes(height, width):
    return (np.add.outer(np.arange(height), np.arange(width)) % len(LONG_NAMES)).astype(np.uint8)


@pytest.mark.parametrize("shape", SHAPES)
def test_maps_of_any_shape_are_whole(tmp_path, drawn, shape):
    classes = grid_of_classes(*shape)
    data = SimpleNamespace(
        class_names=LONG_NAMES,
        scenes=[SimpleNamespace(name="s", cube=np.ones((9, *shape)), labels=classes, valid=np.ones(shape, bool))],
        split=SimpleNamespace(codes={"s": np.full(shape, SPLITS.index("test"), np.uint8)}),
        wavelengths=np.linspace(420, 2450, 9),
    )
    plot_land_cover_map(tmp_path / "map.png", data, {"s": classes}, "A title of a model and its scores, " * 4)
    summary = SceneSummary(scene(*shape), LONG_NAMES, WAVELENGTHS, {"left out": "cloud, shadow"})
    pixels = np.full((len(WAVELENGTHS), *shape), 900, dtype=np.int16)
    summary.update(*map(slice, (0, 0), shape), classes, np.ones(shape, np.float32), pixels)
    plot_quick_look(tmp_path / "look.png", summary)
    for figure in drawn:
        assert_nothing_is_cut(figure)
    texts = {text.get_text() for figure in drawn for axes in figure.axes for text in axes.texts}
    assert "pale gray: cloud, shadow" in texts
    assert [text.get_text() for text in drawn[0].legends[0].texts][-1] == "no data, cloud or shadow"


@pytest.mark.parametrize("shape", SHAPES)
def test_reconstructions_of_any_shape_are_whole(tmp_path, drawn, shape):
    values, wavelengths = np.full((9, *shape), 0.1), np.linspace(420, 2450, 9)
    given = {"reflectance": values, "reconstruction": values, "hidden": values > 0, "valid": np.ones(shape, bool)}
    plot_reconstruction(tmp_path / "a.png", **given, wavelengths=wavelengths, title="a product of a long name " * 9)
    assert_nothing_is_cut(drawn[0])
    assert "white is without data" in drawn[0].get_supxlabel()


@pytest.mark.parametrize("shape", SHAPES)
def test_pictures_of_features_are_whole(tmp_path, drawn, shape):
    features = np.random.default_rng(0).random((4, *shape))
    plot_features(tmp_path / "a.png", features, "ENMAP01-____L2A-DT9000000041_20220710T084920Z_001_V010111_x00080")
    assert_nothing_is_cut(drawn[0])


@pytest.mark.parametrize("number", [2, 20])
def test_confusion_of_long_names_is_whole(tmp_path, drawn, number):
    matrix = np.ones((number, number), dtype=int)
    plot_confusion(tmp_path / "a.png", matrix, LONG_NAMES[:number], "A title of a model and its scores, " * 4)
    assert_nothing_is_cut(drawn[0])


def test_at_most_six_models_are_compared_in_one_place(tmp_path, drawn):
    score = {"mean": 0.5, "low": 0.4, "high": 0.6}
    common = {"overall_accuracy": score, "average_accuracy": score, "seeds": [0, 1, 2]}
    budgets = [{"budget": str(n), "budget_title": str(n), "labels": float(n)} for n in (5, 50)]
    models = [f"model {number}" for number in range(13)]
    results = [{"model": model, "title": model, **budget, **common} for model in models for budget in budgets]
    plot_label_efficiency(tmp_path / "a.png", {"results": results})
    assert_nothing_is_cut(drawn[0])
    shown = [axes.get_legend_handles_labels() for axes in drawn[0].axes]
    assert {name for _, names in shown for name in names} == set(models)
    for lines, names in shown:
        assert len(names) <= 6 and names[0] == models[0]
        assert len({line.get_marker() for line in lines}) == len({line.get_color() for line in lines}) == len(lines)

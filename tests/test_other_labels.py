"""A land-cover model as it is, beside labels of other classes."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import assert_one_clear_line
from small_land_cover import CLASS_NAMES, small_data, write_small_checkpoint, write_small_scene

from datasets_loading.splits import UNLABELLED
from hsst.experiments.baselines import run_model
from hsst.experiments.other_labels import OTHER, map_other_labels, other_labels_table
from hsst.support.matched_classes import matched_classes
from hsst.support.training_settings import FineTuningSettings, ModelOptions, settings_for


def test_classes_stand_for_those_of_their_name_or_that_they_are_merged_into():
    model, labels = ["oak", "pine", "water", "snow"], ["tree", "water"]
    assert matched_classes(model, labels, {"tree": ["oak", "pine"]}) == [0, 0, 1, 2]
    assert matched_classes(model, labels, {}) == [2, 2, 1, 2]
    assert matched_classes(model, labels, {"tree": ["water"]}) == [2, 2, 0, 2]
    for merged, words in (
        ({"wood": ["oak"]}, "labels (tree, water), got wood"),
        ({"tree": ["elm"]}, "tree: expected classes of the model (oak, pine, water, snow), got elm"),
        ({"tree": ["oak"], "water": ["oak"]}, "oak: expected one class that it stands for, got tree, water"),
    ):
        with pytest.raises(ValueError) as error:
            matched_classes(model, labels, merged)
        assert words in str(error.value)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(write_small_checkpoint(tmp_path_factory.mktemp("model"), class_names=CLASS_NAMES))


def test_maps_are_those_of_the_model_with_its_classes_renamed(checkpoint):
    data = small_data()
    settings = FineTuningSettings(use_cpu=True)
    untrained = replace(settings_for("hsst", {"use_cpu": True}), head_start="checkpoint", max_steps=0)
    own = run_model("hsst", data, untrained, ModelOptions(checkpoint))
    merged = {"b": [CLASS_NAMES[1]], "a": [CLASS_NAMES[0]]}
    others = replace(data, class_names=("b", "a", "c"))
    matrix, given, maps = map_other_labels(checkpoint, others, merged, settings)
    assert given.class_names == ("b", "a", "c", OTHER) and matrix.shape == (4, 4)
    renamed = np.array([1, 0, 3], np.uint8)
    for name, classes in own.maps.items():
        inside = data.split.mask(name, "test") & (classes != UNLABELLED) & data.split.mask(name, "test")
        seen = maps[name][inside] == renamed[classes[inside]]
        # At the edge of an area its own map sees less of the scene
        assert seen.mean() > 0.8
    labelled = sum(int((labels != UNLABELLED).sum()) for labels in data.labels.values())
    assert matrix.sum() == labelled and not matrix[3].any()
    assert matrix[:, 3].sum() == sum(
        int(((maps[name] == 3) & (labels != UNLABELLED)).sum()) for name, labels in data.labels.items()
    )
    with pytest.raises(ValueError, match="stands for one of the labels"):
        map_other_labels(checkpoint, others, {}, settings)


def test_scenes_standardised_by_their_own_pixels(checkpoint):
    """Light and calibration of the scenes do not matter then."""
    data, merged = small_data(), {"b": [CLASS_NAMES[1]], "a": [CLASS_NAMES[0]]}
    others = replace(data, class_names=("b", "a", "c"))
    factor = np.linspace(0.7, 1.3, others.num_bands)[:, None, None]
    changed = replace(
        others, scenes=[replace(scene, cube=np.rint(scene.cube * factor + 100)) for scene in others.scenes]
    )
    settings = FineTuningSettings(use_cpu=True)

    def maps_of(given, area_statistics):
        maps = map_other_labels(checkpoint, given, merged, settings, area_statistics=area_statistics)[2]
        return np.concatenate([classes.ravel() for classes in maps.values()])

    own = maps_of(others, True)
    assert (own == maps_of(changed, True)).mean() > 0.98
    assert (maps_of(others, False) == maps_of(changed, False)).mean() < 0.98
    assert len(np.unique(own)) > 2 and not np.array_equal(own, maps_of(others, False))


def test_command(tmp_path, run_script, checkpoint, real_figures):
    folder = write_small_scene(tmp_path / "data")
    arguments = ["experiments/other_labels.py", "--data_dir", folder, "--model", checkpoint, "--use_cpu"]
    arguments += ["--class_names", ",".join(CLASS_NAMES)]
    result = run_script(*arguments, "--output_dir", tmp_path / "out", "--title", "Small")
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "out" / "other_labels.json").read_text())
    assert written["title"] == "Small" and other_labels_table(written) in result.stdout
    assert sum(written["labelled_pixels"]) == np.sum(written["confusion_matrix"])
    area = written["area_statistics"]
    assert np.sum(area["confusion_matrix"]) == np.sum(written["confusion_matrix"])
    assert area["confusion_matrix"] != written["confusion_matrix"]
    assert f"{area['overall_accuracy']:.1%}; average {area['average_accuracy']:.1%} |" in result.stdout
    for name in ("confusion_matrix.png", "confusion_matrix_area.png", "other_labels_map.png"):
        assert (tmp_path / "out" / name).stat().st_size > 10_000
    for given, words in (
        (["--merge", "tree"], ["--merge", "tree"]),
        (["--merge", "tree=oak"], ["tree"]),
        (["--model", tmp_path / "none"], ["none"]),
        (["--data_dir", tmp_path / "nothing"], ["nothing"]),
        (["--model", write_small_checkpoint(tmp_path / "encoder")], ["encoder", "classifier of pixels"]),
    ):
        result = run_script(*arguments, "--output_dir", tmp_path / "bad", *given)
        assert_one_clear_line(result, *words)
        assert not (tmp_path / "bad").exists()
    (tmp_path / "bad").touch()
    assert_one_clear_line(run_script(*arguments, "--output_dir", tmp_path / "bad"), "bad", "got a file")

"""Classifiers on frozen features, heads that start from a checkpoint's, and what they weigh."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_land_cover import CLASS_NAMES, TINY, small_data, write_small_checkpoint

from hsst.experiments import baselines
from hsst.experiments.baselines import StartingPoint, build_network, remembered_features, run_model, training_processor
from hsst.experiments.pixel_classifiers import frozen_features, head_of
from hsst.support.few_labels import tuned
from hsst.support.fine_tuning import AreaTensors
from hsst.support.training_settings import FineTuningSettings, ModelOptions
from modeling_hsst import HSSTForSemanticSegmentation, HSSTImageProcessor

BANDS = list(range(12))
SETTINGS = FineTuningSettings(max_steps=2, batch_size=4, stride=5, use_cpu=True)


@pytest.fixture(scope="module")
def data():
    return small_data()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(write_small_checkpoint(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture(scope="module")
def area(data):
    return AreaTensors.of(data, "train", training_processor(data, BANDS), BANDS, 5)


def network_of(data, checkpoint, **changes):
    options = ModelOptions(None, TINY, 5, **changes)
    torch.manual_seed(0)
    return build_network("hsst-scratch", data, SETTINGS, options, StartingPoint(BANDS), 5)


def test_a_head_that_starts_as_that_of_a_checkpoint(data, tmp_path) -> None:
    """Classes are found by their names, whatever their numbers, and nothing need be trained."""
    names = ("rock", "sand", *CLASS_NAMES[:2])
    folder = write_small_checkpoint(tmp_path, class_names=names)
    settings = replace(SETTINGS, head_start="checkpoint", max_steps=0)
    outcome = run_model("hsst", data, settings, ModelOptions(str(folder)))
    assert outcome.training.steps == 0
    pretrained = HSSTForSemanticSegmentation.from_pretrained(folder).eval()
    assert torch.equal(outcome.model.head.classifier.weight, pretrained.head.classifier.weight[[2, 3, 0]])
    test = AreaTensors.of(data, "test", HSSTImageProcessor.from_pretrained(folder), BANDS, 5)
    windows = test.windows(test.own_pixels()[:50] - (0, 2, 2), "dense")
    with torch.no_grad():
        expected = pretrained(windows["pixel_values"], pixel_mask=windows["pixel_mask"]).logits
        logits = outcome.model(windows["pixel_values"], pixel_mask=windows["pixel_mask"]).logits
    torch.testing.assert_close(logits, expected[:, [2, 3, 0]])
    started, usual = (
        run_model(
            "hsst",
            data,
            replace(settings, max_steps=1, learning_rate=1e-9, head_start=start),
            ModelOptions(str(folder)),
        )
        for start in ("checkpoint", "random")
    )
    np.testing.assert_array_equal(started.confusion, outcome.confusion)
    assert (usual.confusion != outcome.confusion).any()


def test_classes_that_several_of_a_checkpoint_stand_for(data, tmp_path) -> None:
    """Their scores are the means of those."""
    first, second, third = CLASS_NAMES
    folder = write_small_checkpoint(tmp_path, class_names=("oak", third, "pine", second))
    settings = replace(SETTINGS, head_start="checkpoint", max_steps=0)
    options = ModelOptions(str(folder), merged={first: ["pine", "oak"]})
    head = run_model("hsst", data, settings, options).model.head.classifier
    theirs = HSSTForSemanticSegmentation.from_pretrained(folder).head.classifier
    for own, values in ((head.weight, theirs.weight), (head.bias, theirs.bias)):
        torch.testing.assert_close(own, torch.stack([(values[0] + values[2]) / 2, values[3], values[1]]))
    for merged, words in (
        ({}, f"--merge for other names.*got none for {first}"),
        ({first: ["elm"]}, f"{first}: expected classes of the model .+, got elm"),
        ({"wood": ["oak"]}, "expected a class of the labels .+, got wood"),
    ):
        with pytest.raises(ValueError, match=words):
            run_model("hsst", data, settings, replace(options, merged=merged))
    with pytest.raises(ValueError, match="--merge: expected --head_start checkpoint"):
        run_model("hsst", data, SETTINGS, options)


def test_heads_that_no_checkpoint_has_are_refused(data, checkpoint, tmp_path) -> None:
    settings = replace(SETTINGS, head_start="checkpoint")
    with pytest.raises(ValueError, match="expected a model with a classifier of pixels, got one without"):
        run_model("hsst", data, settings, ModelOptions(checkpoint))
    folder = str(write_small_checkpoint(tmp_path / "other", class_names=("meadow", "water", "stone")))
    with pytest.raises(ValueError, match="expected a classifier of the classes of the data .+, got none for rock"):
        run_model("hsst", data, settings, ModelOptions(folder))
    with pytest.raises(ValueError, match="expected a classifier of 36 features .+, got one of 12"):
        run_model("hsst", data, settings, ModelOptions(folder, head_type="concat"))
    for name in ("hsst-scratch", "vit"):
        with pytest.raises(ValueError, match=f"--head_start checkpoint: expected HSST from a checkpoint, got {name}"):
            run_model(name, data, settings, ModelOptions(None, TINY, 5))


def test_features_of_an_area_are_computed_once(data, area, checkpoint, monkeypatch) -> None:
    encoder = network_of(data, checkpoint).hsst.eval()
    calls = []
    monkeypatch.setattr(baselines, "_remembered", {})
    monkeypatch.setattr(
        baselines, "frozen_features", lambda *arguments: calls.append(1) or frozen_features(*arguments)
    )
    pixels = area.labelled_pixels()
    every = remembered_features(encoder, area, area.own_pixels(), SETTINGS)
    some = remembered_features(encoder, area, pixels[::3], SETTINGS)
    assert len(calls) == 1
    places = {tuple(pixel): number for number, pixel in enumerate(area.own_pixels().tolist())}
    np.testing.assert_array_equal(some, every[[places[tuple(pixel)] for pixel in pixels[::3].tolist()]])
    with torch.no_grad():
        next(encoder.parameters()).add_(1.0)
    assert not np.allclose(remembered_features(encoder, area, pixels[::3], SETTINGS), some) and len(calls) == 2


def test_concatenated_features_average_to_the_mean_ones(data, area, checkpoint) -> None:
    encoder = network_of(data, checkpoint).hsst.eval()
    pixels = area.labelled_pixels()[:20]
    mean = frozen_features(encoder, area, pixels)
    both = frozen_features(encoder, area, pixels, concatenated=True)
    blocks = both.reshape(20, encoder.config.num_blocks, -1)
    np.testing.assert_allclose(blocks.mean(1), mean, atol=1e-5)
    assert not np.allclose(blocks[:, 0], blocks[:, 1], atol=1e-3)


@pytest.mark.parametrize("name", ["random-forest", "svm", "logistic-regression"])
def test_balanced_classifiers_find_rare_classes(name) -> None:
    generator = np.random.default_rng(0)
    classes = (generator.random(600) < 0.07).astype(int)
    features = generator.normal(size=(600, 2)) + classes[:, None]
    groups = np.arange(600) // 30
    found = {}
    for balanced in (False, True):
        classifier = tuned(head_of(name, 0, balanced), [features], classes, groups, 0).classifier
        found[balanced] = (classifier.predict(features + 0.01)[classes == 1] == 1).mean()
    assert found[True] > found[False] + 0.1


def test_half_precision_changes_little(data) -> None:
    maps = {}
    for precision in ("float32", "bfloat16"):
        settings = replace(SETTINGS, max_steps=30, learning_rate=1e-2, precision=precision)
        maps[precision] = run_model("hsst-scratch", data, settings, ModelOptions(None, TINY, 5)).maps["scene"]
    assert (maps["float32"] == maps["bfloat16"]).mean() > 0.8
    assert (maps["float32"] != 255).any()

"""All models of the comparison on one small scene: they learn, never see the test area, and are alike in size."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_land_cover import CLASS_NAMES, TINY, small_cube, small_data, write_small_checkpoint
from transformers import AutoModelForImageClassification, AutoModelForSemanticSegmentation

from datasets_loading.land_cover_metric import land_cover_scores
from datasets_loading.splits import UNLABELLED, draw_labels
from hsst.experiments.baselines import (
    BaselineConfig,
    BaselineModel,
    StartingPoint,
    build_network,
    choose_bands,
    load_config,
    run_model,
    take_encoder,
    training_processor,
    warn_of_untrained_classes,
)
from hsst.experiments.pixel_classifiers import frozen_features
from hsst.support.augmentations import SpectralCrop
from hsst.support.fine_tuning import (
    AreaTensors,
    TrainingCorners,
    WindowCollator,
    confusion_of,
    covering_corners,
    fine_tune,
    parameter_groups,
    predict,
    turn_window,
)
from hsst.support.matched_classes import matched_classes
from hsst.support.model_sources import read_processor
from hsst.support.training_settings import MODELS, FineTuningSettings, ModelOptions, settings_for
from modeling_hsst import HSSTConfig, HSSTForSemanticSegmentation

NETWORKS = [name for name, entry in MODELS.items() if entry.kind in ("hsst", "network")]
BANDS = list(range(12))
FAST = FineTuningSettings(max_steps=12, batch_size=4, learning_rate=1e-2, stride=5, use_cpu=True)


@pytest.fixture(scope="module")
def data():
    return small_data()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(write_small_checkpoint(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture(scope="module")
def area(data):
    return AreaTensors.of(data, "train", training_processor(data, BANDS), BANDS, 5)


def options(name, checkpoint, **changes):
    overrides = {} if MODELS[name].needs_checkpoint else TINY
    path = checkpoint if MODELS[name].needs_checkpoint else None
    return ModelOptions(path, overrides, **{"window_size": 5, **changes})


@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns_what_can_be_learnt(name, data, checkpoint) -> None:
    outcome = run_model(name, data, replace(FAST, max_steps=30), options(name, checkpoint))
    test = data.split.labels_of(data.labels, "test")["scene"]
    assert outcome.confusion.sum() == (test != UNLABELLED).sum()
    assert np.trace(outcome.confusion) / outcome.confusion.sum() > 0.75
    # the map covers the whole test area and nothing else
    np.testing.assert_array_equal(outcome.maps["scene"] != UNLABELLED, data.split.mask("scene", "test"))
    if outcome.parameters is not None:
        assert outcome.model.config.id2label == dict(enumerate(CLASS_NAMES))


@pytest.mark.parametrize("name", ["hsst-scratch", "vit", "cnn-1d", "cnn-3d", "hsst"])
def test_center_pixels_can_be_classified_instead(name, data, checkpoint) -> None:
    outcome = run_model(name, data, replace(FAST, task="center", max_steps=40), options(name, checkpoint))
    assert np.trace(outcome.confusion) / outcome.confusion.sum() > 0.7


@pytest.mark.parametrize("name", ["hsst-scratch", "cnn-3d", "knn"])
@pytest.mark.parametrize("statistics", ["training", "area"])
def test_training_knows_nothing_of_the_test_area(name, statistics, data) -> None:
    cube, labels = small_cube()
    test = data.split.mask("scene", "test")
    other = small_data(
        cube=np.where(test, cube[::-1] + 500, cube), labels=np.where(test & (labels != 255), 2 - labels, labels)
    )
    chosen = ModelOptions(None, TINY, window_size=5, statistics=statistics)
    first, second = (run_model(name, given, replace(FAST, max_steps=3), chosen).model for given in (data, other))
    if name == "knn":
        trained = data.scenes[0].cube[:, ~test].T / 1e4
        np.testing.assert_array_equal(first.predict_proba(trained), second.predict_proba(trained))
    else:
        for parameter, same in zip(first.parameters(), second.parameters(), strict=True):
            torch.testing.assert_close(parameter, same, rtol=0, atol=0)


def test_windows_hide_pixels_of_other_splits(data) -> None:
    # areas of the split touch its buffer of 2 pixels, windows reach 7 pixels
    test = AreaTensors.of(data, "test", training_processor(data, BANDS), BANDS, 8)
    window = test.windows(test.own_pixels()[:1] - (0, 0, 7), "dense")
    columns = np.arange(28 - 7, 29)
    hidden = data.split.codes["scene"][0, columns] == 0
    assert hidden.any()
    np.testing.assert_array_equal(~window["pixel_mask"][0, 0].numpy(), hidden)
    assert (window["pixel_values"][0][:, 0, torch.from_numpy(hidden)] == 0).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_the_forward_of_hsst(name, data, checkpoint) -> None:
    for task in ("dense", "center"):
        settings = replace(FAST, task=task)
        base = load_config(checkpoint) if MODELS[name].needs_checkpoint else None
        network = build_network(name, data, settings, options(name, checkpoint), StartingPoint(BANDS, base), 5)
        labels = torch.randint(0, 3, (2, 5, 5) if task == "dense" else (2,))
        outputs = network(pixel_values=torch.randn(2, 12, 5, 5), labels=labels, pixel_mask=torch.ones(2, 5, 5))
        assert outputs.logits.shape == ((2, 3, 5, 5) if task == "dense" else (2, 3))
        wanted = torch.nn.functional.cross_entropy(outputs.logits, labels)
        torch.testing.assert_close(outputs.loss, wanted)


@pytest.mark.parametrize("task", ["dense", "center"])
@pytest.mark.parametrize("layers", [2, 4])
def test_vit_has_as_many_parameters_as_hsst(task, layers) -> None:
    data = small_data()
    settings, overrides = FineTuningSettings(task=task), {"num_spatial_layers": layers, "num_spectral_layers": layers}
    counts = [
        build_network(name, data, settings, ModelOptions(None, overrides), StartingPoint(BANDS), 7).num_parameters()
        for name in ("hsst-scratch", "vit")
    ]
    assert abs(counts[1] - counts[0]) <= 0.2 * counts[0]


@pytest.mark.parametrize("architecture", ["vit", "cnn-1d", "cnn-3d"])
def test_baselines_can_be_saved(architecture, tmp_path) -> None:
    for auto_class, per_pixel in ((AutoModelForSemanticSegmentation, True), (AutoModelForImageClassification, False)):
        config = BaselineConfig(
            architecture=architecture, num_channels=12, image_size=5, hidden_size=8, per_pixel=per_pixel, num_labels=3
        )
        model = BaselineModel(config).eval()
        model.save_pretrained(tmp_path)
        same = auto_class.from_pretrained(tmp_path).eval()
        values = torch.randn(2, 12, 5, 5)
        with torch.no_grad():
            torch.testing.assert_close(model(values).logits, same(values).logits)


def test_same_seed_same_map(data) -> None:
    chosen = ModelOptions(None, TINY, window_size=5)
    maps = [
        run_model("hsst-scratch", data, replace(FAST, max_steps=4, seed=seed, turns=True), chosen).model
        for seed in (0, 0, 1)
    ]
    weights = [model.head.classifier.weight for model in maps]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("task", ["dense", "center"])
def test_an_epoch_shows_each_labelled_pixel_once(task, area) -> None:
    corners = TrainingCorners(area, task, 0)
    epochs = [corners.epoch(np.random.default_rng(seed)) for seed in range(3)]
    pixels = area.labelled_pixels()
    for epoch in epochs:
        windows = area.windows(epoch, "dense")["labels"]
        if task == "dense":
            assert (windows != UNLABELLED).sum() == len(pixels)
            assert (windows != UNLABELLED).flatten(1).any(dim=1).all()
        else:
            np.testing.assert_array_equal(epoch + (0, 2, 2), pixels)
    if task == "dense":
        assert len({tuple(epoch[0] % 5) for epoch in epochs}) > 1  # offsets are drawn anew


@pytest.mark.parametrize(("max_steps", "num_epochs", "wanted"), [(2, None, 2), (2, 3, 3 * 12), (40, 3, 40)])
def test_epochs_are_made_where_they_take_more_than_the_least_steps(max_steps, num_epochs, wanted, data) -> None:
    settings = replace(FAST, task="center", max_steps=max_steps, num_epochs=num_epochs, batch_size=36)
    area = AreaTensors.of(data, "train", training_processor(data, BANDS), BANDS, 5)
    assert -(-len(area.labelled_pixels()) // 36) == 12
    model = build_network("cnn-1d", data, settings, ModelOptions(None, TINY), StartingPoint(BANDS), 5)
    assert fine_tune(model, area, settings).steps == wanted


def test_few_labels_are_all_that_is_trained_on(data) -> None:
    few = data.with_labels(draw_labels(data.labels, data.split, per_class=2))
    area = AreaTensors.of(few, "train", training_processor(data, BANDS), BANDS, 5)
    assert np.bincount(area.classes(area.labelled_pixels())).tolist() == [2, 2, 2]
    test = AreaTensors.of(few, "test", training_processor(data, BANDS), BANDS, 5)
    assert len(test.labelled_pixels()) == data.class_counts("test").sum()


@pytest.mark.parametrize("stride", [1, 3, 5])
def test_predicted_windows_cover_every_pixel(stride, area) -> None:
    pixels = area.labelled_pixels()
    corners = covering_corners(pixels, 5, stride)
    assert len(np.unique(corners, axis=0)) == len(corners)
    inside = (pixels[:, None, 1:] >= corners[None, :, 1:]) & (pixels[:, None, 1:] < corners[None, :, 1:] + 5)
    covered = inside.all(axis=2).sum(axis=1)
    assert covered.min() >= (5 // stride) ** 2
    with pytest.raises(ValueError, match="stride: expected 1 to 5 pixels"):
        covering_corners(pixels, 5, 6)


def test_turns_are_eight() -> None:
    window = torch.arange(24).view(2, 3, 4)
    turned = {tuple(turn_window(window, turn).flatten().tolist()) for turn in range(8)}
    assert len(turned) == 8 and torch.equal(turn_window(window, 0), window)


def test_augmentations_are_off_by_default_and_keep_labels_on_their_pixels(area) -> None:
    corners = [
        torch.from_numpy(corner) for corner in TrainingCorners(area, "dense", 0).epoch(np.random.default_rng(0))
    ]
    plain = area.windows(torch.stack(corners), "dense")
    unchanged = WindowCollator(area, FAST)(corners)
    assert set(unchanged) == set(plain) and all(torch.equal(unchanged[name], plain[name]) for name in plain)
    turned = WindowCollator(area, replace(FAST, turns=True))(corners)
    assert not torch.equal(turned["labels"], plain["labels"])
    # the spectrum of a labelled pixel still goes with its label
    for batch in (plain, turned):
        spectra = batch["pixel_values"].permute(0, 2, 3, 1)[batch["labels"] != UNLABELLED]
        slope = (spectra[:, -1] - spectra[:, 0]) * area.deviation[0] + 0 * spectra[:, 0]
        classes = batch["labels"][batch["labels"] != UNLABELLED]
        assert slope[classes == 0].min() > slope[classes == 1].max()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_steps_that_see_a_part_of_the_spectrum_train_the_whole_model(area, precision, monkeypatch) -> None:
    """With crops in every step, a model of all bands learns too."""
    torch.manual_seed(0)
    wavelengths = [500.0 + 20 * band for band in range(12)]
    config = HSSTConfig(
        **TINY | {"position_embedding_type": "wavelength"},
        num_channels=12,
        wavelengths=wavelengths,
        image_size=5,
        num_labels=3,
    )
    start = HSSTForSemanticSegmentation(config)
    assert config.num_blocks > 2
    settings = replace(FAST, max_steps=40, precision=precision, spectral_crop=1.0)
    model = deepcopy(start)
    crops = []
    usual = SpectralCrop.__call__
    monkeypatch.setattr(
        SpectralCrop, "__call__", lambda self, *given, **more: crops.append(given) or usual(self, *given, **more)
    )
    tuned = fine_tune(model, area, settings)
    assert len(crops) == 40 and len({blocks for blocks, *_ in crops}) > 2
    before = dict(start.named_parameters())
    changed = [not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters()]
    assert np.mean(changed) > 0.9
    assert land_cover_scores(confusion_of(predict(model, area, settings), area))["overall_accuracy"] > 0.6
    again = deepcopy(start)
    assert fine_tune(again, area, settings).loss == pytest.approx(tuned.loss)
    with pytest.raises(ValueError, match="spectral_crop: expected a model with the encoder of HSST"):
        fine_tune(again.head.classifier, area, settings)


def test_frozen_encoder_stays_and_the_classifier_has_its_rate(data, area) -> None:
    config = HSSTConfig(**TINY, num_channels=12, image_size=5, num_labels=3)
    model = HSSTForSemanticSegmentation(config)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    fine_tune(model, area, replace(FAST, max_steps=2, freeze_encoder=True))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("hsst.") or name.endswith("layernorm.bias"), (
            name
        )
    fine_tune(model, area, replace(FAST, max_steps=2))
    changed = [not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters()]
    assert np.mean(changed) > 0.9

    settings = replace(FAST, learning_rate=1.0, head_learning_rate=5.0)
    rates = {id(p): group["lr"] for group in parameter_groups(model, settings) for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == (5.0 if name.startswith("head.") else 1.0)


def test_class_weights_even_classes_out(data) -> None:
    """With three in four labels of one class and nothing to tell them by, only weights keep the others alive."""
    cube, labels = small_cube()
    rare = np.where((labels != 255) & (np.arange(labels.size).reshape(labels.shape) % 4 > 0), 0, labels)
    noise = np.random.default_rng(0).integers(1000, 2000, cube.shape).astype(np.int16)
    shares = []
    for weights in ("none", "balanced"):
        settings = replace(FAST, class_weights=weights, max_steps=40)
        outcome = run_model(
            "cnn-1d", small_data(cube=noise, labels=rare), settings, ModelOptions(None, TINY, window_size=5)
        )
        shares.append(outcome.confusion[:, 0].sum() / outcome.confusion.sum())
    assert shares[0] > 0.9 > shares[1]


def test_early_stopping_takes_the_best_weights_of_the_validation_area() -> None:
    data = small_data(train=(0, 24, 0, 12), validation=(0, 24, 14, 22))
    processor = training_processor(data, BANDS)
    training, validation = (AreaTensors.of(data, split, processor, BANDS, 5) for split in ("train", "validation"))
    settings = replace(FAST, max_steps=200, learning_rate=3e-2, early_stopping_patience=2, evaluation_steps=5)
    model = HSSTForSemanticSegmentation(HSSTConfig(**TINY, num_channels=12, image_size=5, num_labels=3))
    result = fine_tune(model, training, settings, validation=validation)
    assert result.steps < 200 and result.best_step == result.steps - 10
    matrix = confusion_of(predict(model, validation, settings), validation)
    accuracy = (np.diagonal(matrix) / matrix.sum(axis=1)).mean()
    assert accuracy == pytest.approx(max(result.validation.values()))
    with pytest.raises(ValueError, match="expected a validation area, got none"):
        fine_tune(model, training, settings)


@pytest.mark.parametrize("positions", ["learned", "sincos", "wavelength"])
def test_weights_of_other_windows_are_taken_with_their_positions_interpolated(positions, tmp_path, data) -> None:
    folder = str(write_small_checkpoint(tmp_path, window_size=4, position_embedding_type=positions))
    base = load_config(folder)
    network = build_network("hsst", data, FAST, ModelOptions(folder, window_size=6), StartingPoint(BANDS, base), 6)
    same = build_network("hsst", data, FAST, ModelOptions(folder, window_size=4), StartingPoint(BANDS, base), 4)
    assert network.config.grid_size == (6, 6)
    values = torch.randn(1, 12, 6, 6)
    with torch.no_grad():
        features = network.hsst.eval()(values).last_hidden_state
        if positions == "wavelength":  # nothing trained: a pixel is a step, whatever the window
            wanted = network.hsst.embeddings.position_embeddings.spatial_table(6, 6)
            torch.testing.assert_close(network.hsst.embeddings.position_embeddings.spatial_embeddings, wanted)
            return
        wanted = same.hsst.eval()(values, interpolate_pos_encoding=True).last_hidden_state
        torch.testing.assert_close(features, wanted)


def test_bands_are_those_of_the_checkpoint(data, tmp_path) -> None:
    folder = str(write_small_checkpoint(tmp_path / "few", wavelengths=data.wavelengths[2:10]))
    assert choose_bands(data, load_config(folder), read_processor(folder), folder) == list(range(2, 10))
    folder = str(write_small_checkpoint(tmp_path / "other", wavelengths=np.linspace(500, 900, 12)))
    with pytest.raises(ValueError, match="adapt_to_wavelengths"):
        choose_bands(data, load_config(folder), read_processor(folder), folder)


def test_statistics_are_those_of_the_training_area(data) -> None:
    processor = training_processor(data, BANDS)
    pixels = data.scenes[0].cube[:, data.split.mask("scene", "train")] / 1e4
    np.testing.assert_allclose(processor.image_mean, pixels.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(processor.image_std, pixels.std(axis=1), rtol=1e-6)
    own = AreaTensors.of(data, "test", processor, BANDS, 5, own_statistics=True)
    spectra = own.spectra(own.own_pixels())
    np.testing.assert_allclose(spectra.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(spectra.std(axis=0), 1, atol=1e-3)


def test_frozen_features_are_means_over_windows(checkpoint, data) -> None:
    encoder = build_network(
        "hsst", data, FAST, ModelOptions(checkpoint), StartingPoint(BANDS, load_config(checkpoint)), 5
    ).hsst.eval()
    area = AreaTensors.of(data, "test", read_processor(checkpoint), BANDS, 5)
    pixels = area.own_pixels()[[30, 200]]
    features = frozen_features(encoder, area, pixels)
    for (number, row, column), feature in zip(pixels.tolist(), features, strict=True):
        seen = []
        for corner in covering_corners(np.array([[number, row, column]]), 5, 2):
            window = area.windows(corner[None], "dense")
            with torch.no_grad():
                tokens = encoder(window["pixel_values"], window["pixel_mask"]).last_hidden_state
            seen.append(tokens.view(3, 5, 5, -1).mean(dim=0)[row - corner[1], column - corner[2]])
        assert len(seen) > 3
        np.testing.assert_allclose(feature, torch.stack(seen).mean(dim=0).numpy(), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_trained_is_refused(data, caplog, checkpoint) -> None:
    labels = data.labels["scene"]
    train = data.split.mask("scene", "train")
    one = small_data(labels=np.where(train & (labels != 255), 1, labels))
    with pytest.raises(ValueError, match=r"at least 2 classes, got 1 \(water\)"):
        run_model("random-forest", one, FAST)
    none = small_data(labels=np.where(train & (labels == 1), 255, labels))
    warn_of_untrained_classes(none)
    assert "class water has" in caplog.text and "no training pixel" in caplog.text
    with pytest.raises(ValueError, match="expected a checkpoint"):
        run_model("hsst", data, FAST)
    with pytest.raises(ValueError, match="expected a model among"):
        run_model("forest", data, FAST)
    with pytest.raises(ValueError, match="freeze_encoder: expected a model with the encoder of HSST"):
        run_model("cnn-1d", data, replace(FAST, freeze_encoder=True), ModelOptions(None, TINY, window_size=5))
    with pytest.raises(ValueError, match="odd number of pixels"):
        run_model("cnn-1d", data, replace(FAST, task="center"), ModelOptions(None, TINY, window_size=6))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("max_steps", [2, 4])
def test_training_that_diverges_is_refused(name, max_steps, data, checkpoint) -> None:
    """Also where nothing is infinite: weights of 1e30 after the last step, whose loss nobody computes."""
    settings = replace(FAST, learning_rate=1e30, max_steps=max_steps)
    with pytest.raises(ValueError, match=r"learning_rate: expected one with a finite loss, got 1e\+30"):
        run_model(name, data, settings, options(name, checkpoint))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("task", "pixel"), ("max_steps", 0), ("warmup_share", 1.0), ("spectral_crop", 1.5)],
)
def test_senseless_settings_are_refused(setting, value) -> None:
    with pytest.raises(ValueError, match=f"{setting}: expected .+, got {value!r}"):
        settings_for("hsst", {setting: value})


def test_missing_weights_are_not_replaced_by_random_ones(tmp_path, data) -> None:
    folder = write_small_checkpoint(tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if "spatial_layers.0.mlp.fc1.weight" not in name},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    network = build_network("hsst-scratch", data, FAST, ModelOptions(None, TINY), StartingPoint(BANDS), 5)
    with pytest.raises(ValueError, match="expected all weights of the model, found none for .*fc1.weight"):
        take_encoder(network, str(folder))


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

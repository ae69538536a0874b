"""Classifiers for few labels: chosen inside training folds, tested apart in space, mapped, and safe to load."""

import json
import socket
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import skops.io
from conftest import assert_one_clear_line
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import FunctionTransformer
from small_land_cover import CLASS_NAMES, small_cube, small_data, write_small_checkpoint, write_small_scene

from datasets_loading.splits import UNLABELLED
from hsst.support import few_labels
from hsst.support.few_labels import (
    Description,
    LabelledPixels,
    PixelPredictor,
    choose,
    inputs_of,
    save_classifier,
    score_in_folds,
    tuned,
    voting,
)
from modeling_hsst.scene_prediction_hsst import ArrayScene

SEEN = {"wavelengths": None, "image_mean": None, "image_std": None, "clip_range": [-10.0, 10.0]}


def none_near(count):
    """Places of pixels that are far from each other."""
    return np.arange(count)[:, None] * [0, 100, 0]


@pytest.fixture
def quick(monkeypatch):
    """Two heads in place of four, a small forest, and two penalties."""
    heads = {name: few_labels.HEADS[name] for name in ("ridge", "random forest")}
    heads["ridge"] = heads["ridge"]._replace(settings=({"alpha": 100.0}, {"alpha": 1.0}))
    heads["random forest"] = heads["random forest"]._replace(settings=({"min_samples_leaf": 1, "n_estimators": 10},))
    monkeypatch.setattr(few_labels, "HEADS", heads)


def test_pixels_and_their_blocks():
    cube, labels = small_cube()
    cube[3, 0, :4] = -32768
    labels[0, :4] = 1
    pixels = LabelledPixels.of(small_data(cube=cube, labels=labels), 8)
    assert len(pixels.classes) == (labels != UNLABELLED).sum() - 4
    assert len(np.unique(pixels.parts)) == 3 * 7 and pixels.spectra.max() < 1
    with pytest.raises(ValueError, match="several blocks of 64 pixels, to test apart in space, got all in one"):
        LabelledPixels.of(small_data(), 64)
    with pytest.raises(ValueError, match="labels of at least 2 classes, got 1"):
        LabelledPixels.of(small_data(labels=np.where(labels == 0, 0, UNLABELLED).astype(np.uint8)), 8)


def test_of_many_labels_some_of_each_class_are_drawn(monkeypatch):
    """As of a land-cover map, which has a label in every pixel: choosing among classifiers takes long then."""
    whole, drawn, others = (LabelledPixels.of(small_data(), 8, *few) for few in ((), (5, 1), (5, 2)))
    assert np.bincount(drawn.classes).tolist() == [5] * len(CLASS_NAMES)
    rows = {place: row for row, place in enumerate(map(tuple, whole.places))}
    kept = [rows[place] for place in map(tuple, drawn.places)]
    assert kept == sorted(kept) and not np.array_equal(drawn.places, others.places)
    for name in ("spectra", "means", "classes"):
        np.testing.assert_array_equal(getattr(drawn, name), getattr(whole, name)[kept])
    monkeypatch.setattr(few_labels, "MOST_LABELS", 20)
    with pytest.raises(
        ValueError, match=f"at most 20 labelled pixels, got {len(whole.classes):,}: --labels_per_class"
    ):
        LabelledPixels.of(small_data(), 8)
    LabelledPixels.of(small_data(), 8, 20 // len(CLASS_NAMES))


def test_folds_are_apart_in_space_and_see_no_test_pixel(quick, monkeypatch):
    """Every pixel is tested once, by a classifier that chose and learned without the block it lies in."""
    pixels = LabelledPixels.of(small_data(), 8)
    seen = []
    original = few_labels.tuned
    monkeypatch.setattr(few_labels, "tuned", lambda *given: seen.append(set(given[3])) or original(*given))
    result = score_in_folds(inputs_of(pixels, None), pixels, len(CLASS_NAMES), 4, 0)
    assert np.sum(result["confusion_matrix"]) == len(pixels.classes)
    assert len(result["folds"]) == 4 and result["overall_accuracy"] > 0.95
    parts = set(pixels.parts)
    for start in range(0, 8, 2):
        assert seen[start] == seen[start + 1] and len(seen[start]) < len(parts)
    assert set.intersection(*seen) == set()
    for score, (low, high) in result["interval"].items():
        assert low <= result[score] <= high


def test_folds_with_one_class_to_train_on_test_nothing(quick):
    pixels = LabelledPixels.of(small_data(), 8)
    two = np.minimum(pixels.classes, 1)
    variants = inputs_of(pixels, None)
    result = score_in_folds(variants, replace(pixels, parts=two), len(CLASS_NAMES), 2, 0)
    assert np.sum(result["confusion_matrix"]) == (two == 0).sum() and len(result["folds"]) == 1
    with pytest.raises(ValueError, match="2 classes outside a block, to test apart in space, got none"):
        score_in_folds(variants, replace(pixels, classes=two, parts=two), len(CLASS_NAMES), 2, 0)


def test_better_inputs_are_chosen(quick):
    generator = np.random.default_rng(0)
    classes, parts = np.arange(60) % 3, np.arange(60) // 6
    noise = generator.normal(size=(60, 20))
    tells = noise + 4 * np.eye(20)[classes]
    assert choose({"spectra": [noise], "features": [tells]}, classes, parts, 0).inputs == "features"
    choice = choose({"spectra": [noise, tells], "features": [noise]}, classes, parts, 0)
    assert choice.inputs == "spectra" and choice.tuned.preparation == 1 and len(choice.scores) == 4


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("head", few_labels.LINEAR)
def test_scores_of_spectra_and_features_are_added(head, num_classes):
    """Of more values than pixels and of fewer: one classifier of both side by side."""
    generator = np.random.default_rng(0)
    classes, parts = np.arange(60) % num_classes, np.arange(60) // 6
    spectra, features = (
        generator.normal(size=(60, size)) + generator.normal(size=(num_classes, size))[classes] for size in (20, 90)
    )
    alone = [tuned(head, [values], classes, parts, 0) for values in (spectra, features)]
    variants = {"spectra": [spectra], "features": [features]}
    both = voting(*alone, variants, classes, parts, 0)
    expected = sum(
        each.classifier.decision_function(values) for each, values in zip(alone, (spectra, features), strict=True)
    )
    side_by_side = np.hstack([spectra, features])
    np.testing.assert_allclose(both.classifier.decision_function(side_by_side), expected, atol=1e-8)
    assert (both.classifier.predict(side_by_side) == classes).mean() > 0.9 and 0 < both.score <= 1


def test_both_are_chosen_where_each_tells_a_part(quick):
    generator = np.random.default_rng(0)
    classes, parts = np.arange(120) % 4, np.arange(120) // 6
    noise = generator.normal(size=(2, 120, 10))
    spectra, features = noise[0] + 8 * np.eye(10)[classes // 2], noise[1] + 8 * np.eye(10)[classes % 2]
    choice = choose({"spectra": [spectra], "features": [features]}, classes, parts, 0)
    assert choice.inputs == few_labels.SPECTRA_AND_FEATURES
    seen = choice.seen({"spectra": [spectra], "features": [features]})
    assert (choice.tuned.classifier.predict(np.hstack(seen)) == classes).mean() > 0.9


@pytest.mark.parametrize("head", few_labels.HEADS)
def test_classes_are_as_likely_as_they_are_right(head, monkeypatch):
    """Of pixels that a classifier was not trained on, whatever numbers it gives; the classes stay."""
    tried = few_labels.HEADS[head]
    if head == "random forest":
        tried = tried._replace(settings=tuple({**setting, "n_estimators": 40} for setting in tried.settings))
    monkeypatch.setattr(few_labels, "HEADS", {head: tried})
    generator = np.random.default_rng(0)
    classes, parts = generator.integers(3, size=1200), np.arange(1200) // 10
    spectra = generator.normal(size=(1200, 8)) + np.eye(8)[classes]
    training, other = np.arange(300), np.arange(300, 1200)
    given = {"spectra": [spectra[training]]}, classes[training], parts[training], 0
    choice = choose(*given)
    temperature = choice.temperature(*given, none_near(300))
    found = few_labels.log_probabilities(choice.tuned.classifier, spectra[other], temperature)
    right = found.argmax(axis=1) == classes[other]
    assert 0.4 < right.mean() < 0.9
    assert np.exp(found).max(axis=1).mean() == pytest.approx(right.mean(), abs=0.06)
    # Pairs of an SVM's classes may be at odds with its scores
    assert (choice.tuned.classifier.predict(spectra[other]) == found.argmax(axis=1)).mean() > 0.98


def test_classes_that_are_always_right_are_nearly_certain(quick):
    classes, parts = np.arange(60) % 3, np.arange(60) // 6
    spectra = {"spectra": [np.eye(3)[classes]]}
    choice = choose(spectra, classes, parts, 0)
    temperature = choice.temperature(spectra, classes, parts, 0, none_near(60))
    found = few_labels.log_probabilities(choice.tuned.classifier, choice.seen(spectra)[0], temperature)
    assert np.exp(found).max(axis=1).min() > 0.99 and np.isfinite(found).all() and temperature > 0


@pytest.mark.parametrize("view", few_labels.VIEWS)
def test_a_map_sees_what_was_trained_on(view, tmp_path):
    """The surroundings of pixels at edges and beside pixels without data, too."""
    cube, labels = small_cube()
    cube[:, 3:5, 2] = -32768
    labels[3:5, 2] = UNLABELLED
    pixels = LabelledPixels.of(small_data(cube=cube, labels=labels), 8)
    seen = few_labels.seen_as(view, few_labels.as_they_are, pixels.spectra, pixels.means)
    classifier = RidgeClassifier(1e-3).fit(seen, np.arange(len(seen)) % 5)  # classes that depend on every number
    names = [f"class {number}" for number in range(5)]
    settings = {**SEEN, "wavelengths": pixels.wavelengths.tolist()}
    (tmp_path / "model").mkdir()
    description = Description("spectra", "as_they_are", names, len(pixels.bands), settings, spectra_of=view)
    save_classifier(tmp_path / "model", classifier, description)
    scene = ArrayScene(cube[pixels.bands], pixels.wavelengths)
    mapped = np.full(labels.shape, 255, dtype=np.uint8)
    for part in PixelPredictor(tmp_path / "model").predict(scene):
        mapped[part.rows, part.columns] = part.classes
    _, rows, columns = pixels.places.T
    agree = mapped[rows, columns] == classifier.predict(seen)
    assert agree.mean() > 0.999 and (mapped[3:5, 2] == 255).all()


def test_features_are_computed_of_what_is_seen_alone():
    """The model takes most of the time of a map."""
    asked = []
    pixel, mean = np.zeros((2, 3)), np.ones((2, 3))
    prepare = lambda values: asked.append(values) or values
    for view, parts in (("pixel", [pixel]), ("mean", [mean]), ("pixel and mean", [pixel, mean])):
        asked.clear()
        assert (few_labels.seen_as(view, prepare, pixel, mean) == np.hstack(parts)).all()
        assert len(asked) == len(parts)


def test_surroundings_of_training_pixels_touch_none_of_test_pixels():
    places = np.array([[0, 0, 0], [0, 0, 4], [0, 0, 5], [1, 0, 9], [0, 5, 9], [0, 14, 9]])
    assert few_labels.apart(places, np.array([[0, 0, 9]])).tolist() == [True, True, False, True, True, True]
    assert few_labels.apart(places, np.array([[0, 1, 9]])).tolist() == [True, True, False, True, False, True]


@pytest.mark.parametrize("view", few_labels.VIEWS)
def test_confidence_is_that_of_pixels_whose_surroundings_were_not_trained_on(view, monkeypatch):
    classes, parts = np.arange(120) % 2, np.arange(120) // 12
    places = np.arange(120)[:, None] * [0, 0, 1]
    columns = places[:, 2:].astype(float)
    distances = []
    original = few_labels.Tuned.again

    def again(self, seen, of_classes):
        distances.append(np.abs(np.setdiff1d(columns, seen[0])[:, None] - seen[0].ravel()).min(axis=1))
        return original(self, seen, of_classes)

    monkeypatch.setattr(few_labels.Tuned, "again", again)
    number = few_labels.SPECTRA.index((few_labels.PREPARATIONS[-1], view))
    variants = {"spectra": [columns] * len(few_labels.SPECTRA)}
    choice = few_labels.Choice("spectra", "ridge", tuned("ridge", [columns], classes, parts, 0), {})
    choice.tuned.preparation = number
    choice.temperature(variants, classes, parts, 0, places)
    # A pixel 4 columns from a block has surroundings that touch those of the block
    kept = {len(each) for each in distances}
    assert kept == ({12} if view == "pixel" else {12 + 4, 12 + 8}) and len(distances) == 10


@pytest.mark.parametrize("inputs", ["spectra", "features", "spectra and features"])
def test_from_labels_to_a_map(inputs, quick, run_script, tmp_path, monkeypatch):
    model = inputs != "spectra"
    scene = write_small_scene(tmp_path / "data")
    arguments = ["run_classification.py", "--data_dir", scene, "--model", "auto", "--block_size", 8, "--folds", 3]
    arguments += ["--class_names", ",".join(CLASS_NAMES), "--output_dir", tmp_path / "out"]
    if model:
        arguments += ["--model_name_or_path", write_small_checkpoint(tmp_path / "checkpoint")]
        original = few_labels.tuned

        def only_these(head, variants, *others):
            found = original(head, variants, *others)
            found.score = 2.0 if inputs == "features" and len(variants) == len(few_labels.VIEWS) else -1.0
            return found

        monkeypatch.setattr(few_labels, "tuned", only_these)
    result = run_script(*arguments)
    assert result.returncode == 0, result.stderr
    assert (
        "Tested apart in space: overall accuracy" in result.stdout
        and "pixels in 3 folds, 95 % interval over folds" in result.stdout
    )
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["chosen"].split(" on ")[1].startswith(inputs.split()[0]) and len(results["folds"]) == 3
    assert (" and features" in results["chosen"]) == (inputs == "spectra and features")
    assert "Finished before" in run_script(*arguments).stdout
    mapped = ["predict_scene.py", scene / "images" / "scene.tif", "--model", tmp_path / "out", "--confidence"]
    result = run_script(*mapped, "--output", tmp_path / "map.tif")
    assert result.returncode == 0, result.stderr
    _, labels = small_cube()
    with rasterio.open(tmp_path / "map.tif") as dataset:
        classes = dataset.read(1)
    known = labels != UNLABELLED
    assert (classes[known] == labels[known]).mean() > (0.6 if model else 0.95)
    assert "finished before" in run_script(*mapped, "--output", tmp_path / "map.tif").stdout


@pytest.mark.parametrize("model", ["random-forest", "svm"])
def test_classifiers_of_the_comparison_are_mapped_as_they_predicted(model, run_script, tmp_path):
    scene = write_small_scene(tmp_path / "data")
    arguments = ["run_classification.py", "--data_dir", scene, "--model", model, "--output_dir", tmp_path / "out"]
    areas = ["--train_area", "0,24,0,22", "--test_area", "0,24,28,52", "--class_names", ",".join(CLASS_NAMES)]
    assert run_script(*arguments, *areas).returncode == 0
    mapped = ["predict_scene.py", scene / "images" / "scene.tif", "--model", tmp_path / "out"]
    result = run_script(*mapped, "--output", tmp_path / "map.tif")
    assert result.returncode == 0, result.stderr
    _, labels = small_cube()
    with rasterio.open(tmp_path / "map.tif") as dataset:
        classes = dataset.read(1)[:, 28:]
    known = labels[:, 28:] != UNLABELLED
    accuracy = json.loads((tmp_path / "out" / "all_results.json").read_text())["overall_accuracy"]
    assert (classes[known] == labels[:, 28:][known]).mean() == pytest.approx(accuracy)


def test_rare_classes_are_named(quick, run_script, tmp_path):
    _, labels = small_cube()
    values = np.where(labels == 255, 0, labels + 1).astype(np.uint8)
    meadow = np.flatnonzero(values == 1)
    values.flat[meadow[:-9]] = 0
    scene = write_small_scene(tmp_path / "data", values=values)
    arguments = ["run_classification.py", "--data_dir", scene, "--model", "auto", "--block_size", 8, "--folds", 2]
    result = run_script(*arguments, "--class_names", ",".join(CLASS_NAMES), "--output_dir", tmp_path / "my maps")
    assert "fewer than 30 test pixels" in result.stdout and "meadow (9)" in result.stdout, result.stderr
    assert f"hsst predict SCENE --model '{tmp_path / 'my maps'}' --output" in result.stdout  # to be pasted


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--test_area", "0,9,0,9"], "--test_area: expected none with --model auto"),
        (["--learning_rate", 1e-3], "--learning_rate: expected none with --model auto"),
        (["--folds", 1], "--folds: expected at least 2, got 1"),
        (["--block_size", 100], "several blocks of 100 pixels"),
        (["--model_name_or_path", "/nothing/here"], "/nothing/here"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, words, run_script, tmp_path):
    scene = write_small_scene(tmp_path / "data")
    command = ["run_classification.py", "--data_dir", scene, "--model", "auto", "--block_size", 8, *arguments]
    assert_one_clear_line(run_script(*command, "--output_dir", tmp_path / "out"), words)
    assert not (tmp_path / "out").exists()


def test_a_hub_out_of_reach_is_no_model_without_weights(run_script, tmp_path, monkeypatch):
    """Said at once, before labels are read."""
    for module in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its attempts
    command = ["run_classification.py", "--data_dir", tmp_path, "--model", "auto", "--output_dir", tmp_path / "out"]
    result = run_script(*command, "--model_name_or_path", "hsg-aiml/hsst-enmap")
    assert_one_clear_line(result, "--model_name_or_path", "the Hub gave none", "connect")


def test_without_network_nobody_waits_for_the_hub(run_script, tmp_path, monkeypatch):
    def unknown(*arguments, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", unknown)
    monkeypatch.setattr("hsst.support.model_sources.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: pytest.fail("waited"))
    command = ["run_classification.py", "--data_dir", tmp_path, "--model", "auto", "--output_dir", tmp_path / "out"]
    result = run_script(*command, "--model_name_or_path", "hsg-aiml/hsst-enmap")
    assert_one_clear_line(result, "--model_name_or_path", "the Hub gave none", "connect")


def saved(folder, classifier, inputs="spectra"):
    folder.mkdir()
    save_classifier(folder, classifier, Description(inputs, "as_they_are", ["a", "b"], 5, SEEN))
    return folder


def test_files_of_classifiers_run_nothing_and_point_nowhere(tmp_path):
    spectra, classes = np.random.default_rng(0).normal(size=(40, 5)), np.arange(40) % 2
    forest = RandomForestClassifier(3, random_state=0).fit(spectra, classes)
    assert PixelPredictor(saved(tmp_path / "good", forest)).class_names == ["a", "b"]
    # A branch that leads out of its tree would be followed into any memory
    forest.estimators_[1].tree_.children_left[0] = 10**6
    with pytest.raises(ValueError, match="a tree whose branches lead nowhere"):
        PixelPredictor(saved(tmp_path / "leads_out", forest))
    with pytest.raises(ValueError, match="expected a classifier of scikit-learn alone"):
        PixelPredictor(saved(tmp_path / "code", FunctionTransformer(json.loads)))
    with pytest.raises(ValueError, match="expected classes below 2"):
        PixelPredictor(saved(tmp_path / "classes", DummyClassifier().fit(spectra, np.arange(40) % 3)))
    cut = saved(tmp_path / "cut", DummyClassifier().fit(spectra, classes)) / "classifier.skops"
    cut.write_bytes(cut.read_bytes()[:-40])
    with pytest.raises(ValueError, match="classifier.skops: expected a classifier of scikit-learn, got"):
        PixelPredictor(cut.parent)
    other = saved(tmp_path / "other", DummyClassifier().fit(spectra, classes)) / "classifier.json"
    other.write_text(json.dumps({"inputs": "spectra"}))
    with pytest.raises(ValueError, match="classifier.json: expected what a classifier sees, got"):
        PixelPredictor(other.parent)
    cold = saved(tmp_path / "cold", DummyClassifier().fit(spectra, classes)) / "classifier.json"
    for temperature in (0.0, -1.0, float("inf"), "1", None):
        cold.write_text(json.dumps({**json.loads(cold.read_text()), "temperature": temperature}))
        with pytest.raises(ValueError, match="classifier.json: expected a temperature above 0, got"):
            PixelPredictor(cold.parent)
    around = saved(tmp_path / "around", DummyClassifier().fit(spectra, classes)) / "classifier.json"
    for view in ("everything", [], None):
        around.write_text(json.dumps({**json.loads(around.read_text()), "spectra_of": view}))
        with pytest.raises(ValueError, match="classifier.json: expected views among pixel, mean, pixel and mean, got"):
            PixelPredictor(around.parent)
    assert zipfile.is_zipfile(tmp_path / "good" / "classifier.skops") and skops.io.get_untrusted_types

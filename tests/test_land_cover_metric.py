"""The metric of land-cover maps against scikit-learn, and what it does with missing labels and classes."""

from pathlib import Path

import evaluate
import numpy as np
import pytest
from sklearn import metrics

from datasets_loading.land_cover_metric import confusion_matrix, land_cover_scores


def drawn(seed: int, classes: int = 6, size: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Predictions that are right in about two of three pixels, and references of uneven classes."""
    generator = np.random.default_rng(seed)
    references = generator.choice(classes, size, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    wrong = generator.random(size) < 0.35
    return np.where(wrong, generator.integers(0, classes, size), references), references


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_scikit_learn(seed: int) -> None:
    predictions, references = drawn(seed)
    scores = land_cover_scores(confusion_matrix(predictions, references))
    exact = pytest.approx
    assert scores["overall_accuracy"] == exact(metrics.accuracy_score(references, predictions), abs=1e-12)
    assert scores["average_accuracy"] == exact(metrics.balanced_accuracy_score(references, predictions), abs=1e-12)
    assert scores["macro_f1"] == exact(metrics.f1_score(references, predictions, average="macro"), abs=1e-12)
    assert scores["mean_iou"] == exact(metrics.jaccard_score(references, predictions, average="macro"), abs=1e-12)
    assert scores["kappa"] == exact(metrics.cohen_kappa_score(references, predictions), abs=1e-12)
    np.testing.assert_array_equal(scores["confusion_matrix"], metrics.confusion_matrix(references, predictions))
    for name, score in (
        ("accuracy", metrics.recall_score),
        ("f1", metrics.f1_score),
        ("iou", metrics.jaccard_score),
    ):
        wanted = score(references, predictions, average=None)
        np.testing.assert_allclose(scores[f"{name}_per_class"], wanted, rtol=0, atol=1e-12)
    assert scores["support_per_class"] == np.bincount(references).tolist()


def test_parts_add_up_to_one_matrix() -> None:
    predictions, references = drawn(7)
    starts = range(0, 500, 90)
    parts = [np.s_[start : start + 90] for start in starts]
    matrices = [confusion_matrix(predictions[part], references[part], num_classes=6) for part in parts]
    np.testing.assert_array_equal(sum(matrices), confusion_matrix(predictions, references, num_classes=6))


def test_evaluate_collects_batches(tmp_path) -> None:
    path = Path(__file__).parents[1] / "datasets_loading" / "evaluate_land_cover.py"
    metric = evaluate.load(str(path), cache_dir=str(tmp_path))
    predictions, references = drawn(7)
    for start in range(0, 500, 90):
        part = np.s_[start : start + 90]
        metric.add_batch(predictions=predictions[part], references=references[part])
    assert metric.compute(num_classes=6) == land_cover_scores(confusion_matrix(predictions, references, num_classes=6))


def test_unlabelled_pixels_are_left_out_whatever_was_predicted_there() -> None:
    predictions, references = drawn(1)
    hidden = np.arange(500) % 3 == 0
    matrix = confusion_matrix(np.where(hidden, 255, predictions), np.where(hidden, 255, references), num_classes=6)
    np.testing.assert_array_equal(matrix, confusion_matrix(predictions[~hidden], references[~hidden], num_classes=6))


def test_classes_without_reference_pixels_take_no_part_in_averages() -> None:
    # class 2 is predicted and never there, class 3 is neither
    references = np.array([0, 0, 0, 0, 1, 1])
    predictions = np.array([0, 0, 0, 2, 1, 0])
    scores = land_cover_scores(confusion_matrix(predictions, references, num_classes=4))
    assert scores["average_accuracy"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert scores["accuracy_per_class"] == [0.75, 0.5, None, None]
    present = metrics.f1_score(references, predictions, labels=[0, 1], average="macro")
    assert scores["macro_f1"] == pytest.approx(present, abs=1e-12)
    assert scores["support_per_class"] == [4, 2, 0, 0]


def test_rare_classes_can_be_left_out_of_the_average() -> None:
    matrix = np.array([[40, 10, 0], [0, 50, 0], [1, 0, 0]])
    scores = land_cover_scores(matrix)
    assert scores["average_accuracy"] == pytest.approx((0.8 + 1 + 0) / 3)
    assert scores["average_accuracy_frequent"] == pytest.approx(0.9)
    assert land_cover_scores(matrix, min_support=51)["average_accuracy_frequent"] is None


@pytest.mark.parametrize("matrix", [[[0.9, 0.1], [2.0, 8.0]], [[9, -1], [2, 8]]])
def test_only_counts_are_scored(matrix: list[list[float]]) -> None:
    """Shares would be cut to 0."""
    with pytest.raises(ValueError, match="expected counts"):
        land_cover_scores(np.array(matrix))


def test_masked_references_are_left_out() -> None:
    references = np.ma.masked_array([1, 0, 0], mask=[0, 0, 1])
    assert confusion_matrix(np.array([1.0, 0.0, 1.0]), references).tolist() == [[1, 0], [0, 1]]


def test_one_class_alone_has_no_kappa() -> None:
    assert land_cover_scores(np.array([[5, 0], [0, 0]]))["kappa"] is None


@pytest.mark.parametrize(
    ("predictions", "references", "words"),
    [
        ([0, 1], [0], ("expected", "(1,)", "(2,)")),
        ([0, 7], [0, 1], ("predictions", "0 to 1", "7")),
        ([0, 1], [0, -1], ("references", "-1")),
        ([0, 1], [255, 255], ("labelled", "255")),
        ([0.2, 0.7], [0, 1], ("predictions", "whole numbers", "0.2")),
        ([0, 1], [0, np.nan], ("references", "whole numbers", "nan")),
        (np.ma.masked_equal([0, 1], 0), [0, 1], ("predictions", "masked")),
    ],
)
def test_bad_input_is_named(predictions: list[int], references: list[int], words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as error:
        confusion_matrix(np.asanyarray(predictions), np.array(references), num_classes=2)
    for word in words:
        assert word in str(error.value)

"""
Classifiers of single pixels for few labels: chosen among spectra and features by cross-validation, tested in folds
that are apart in space, trained on all labels, and saved as files that hold no code.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import skops.io
import torch
from scipy.optimize import brentq
from scipy.spatial import cKDTree
from scipy.special import log_softmax
from sklearn import config_context
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from skops.io.exceptions import UntrustedTypesFoundException
from tqdm.auto import tqdm

from datasets_loading.files import checksums, fingerprint, write_json
from datasets_loading.labelled_data import LabelledData
from datasets_loading.land_cover_metric import confusion_matrix, land_cover_scores
from datasets_loading.sensors import ENMAP
from datasets_loading.splits import UNLABELLED
from hsst.support.feature_transformer import HSSTFeatures
from hsst.support.features import load_encoder
from hsst.support.model_sources import weight_files
from hsst.support.reports import pooled_interval
from modeling_hsst import HSSTImageProcessor
from modeling_hsst.scene_prediction_hsst import ScenePredictor, reflected

FOLDS = 3
"""In which a classifier chooses its settings."""

CALIBRATION_FOLDS = 10
"""In which it is seen how sure it may be: more of them, for it is as good as with all pixels then."""

CLASSIFIER, DESCRIPTION = "classifier.skops", "classifier.json"


def as_they_are(spectra: np.ndarray) -> np.ndarray:
    return spectra


def unit_norm(spectra: np.ndarray) -> np.ndarray:
    """Brightness away."""
    return spectra / np.maximum(np.linalg.norm(spectra, axis=1, keepdims=True), 1e-6)


def both(spectra: np.ndarray) -> np.ndarray:
    return np.hstack([spectra, unit_norm(spectra)])


def with_derivatives(spectra: np.ndarray) -> np.ndarray:
    return np.hstack([both(spectra), np.diff(unit_norm(spectra), axis=1)])


PREPARATIONS = (as_they_are, unit_norm, both, with_derivatives)
"""What a classifier may be given of spectra (pixels, bands)."""

SURROUNDINGS = 5
"""Side of the square around a pixel, in pixels, whose mean spectrum classifiers may see."""

VIEWS = ("pixel", "mean", "pixel and mean")
"""What classifiers may see: a pixel, the mean of its surroundings, or both side by side."""

SPECTRA = (*((prepare, view) for view in VIEWS[:2] for prepare in PREPARATIONS), (PREPARATIONS[-1], VIEWS[-1]))
"""Of which there are these."""


class Head(NamedTuple):
    """A classifier of scikit-learn: what makes it from settings, those among which it chooses, and what it sees of the
    values: `"distances"` or products only, `"values"` that are standardized, or values `"as they are"`."""

    build: Callable[..., Any]
    settings: tuple[dict[str, Any], ...]
    sees: str = "distances"


def _grid(name: str, *values: Any) -> tuple[dict[str, Any], ...]:
    return tuple({name: value} for value in values)


HEADS: dict[str, Head] = {
    "ridge": Head(partial(RidgeClassifier, class_weight="balanced"), _grid("alpha", 1e4, 1e3, 1e2, 10.0, 1.0, 0.1)),
    "logistic regression": Head(
        partial(LogisticRegression, max_iter=300, class_weight="balanced"),
        _grid("C", 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0),
    ),
    "SVM": Head(partial(SVC, class_weight="balanced"), _grid("C", 0.1, 1.0, 10.0, 100.0, 1000.0)),
    "random forest": Head(
        partial(RandomForestClassifier, n_estimators=200, random_state=0, class_weight="balanced_subsample"),
        _grid("min_samples_leaf", 1, 3),
        sees="values",
    ),
}
"""Classifiers, each with the settings among which it chooses."""

SLOW_WITH_MANY_FEATURES = ("random forest",)

LOWEST_PROBABILITY = 1e-6
"""Forests give 0 to what none of their trees says."""

TEMPERATURES = 12.0
"""How far the logarithm of a temperature may lie from 0: strong penalties make scores of thousandths."""

LINEAR = ("ridge", "logistic regression")
"""Heads whose classifiers of spectra and of features may vote together."""

SPECTRA_AND_FEATURES = "spectra and features"

MOST_LABELS = 2_000
"""Labelled pixels by which classifiers are chosen: with so many, it takes a core many minutes."""


@dataclass
class Tuned:
    """A classifier that chose its preparation and settings, trained on all pixels it was given."""

    preparation: int  # index among the variants of the pixels
    classifier: Any  # of scikit-learn, with its standardizing
    settings: dict[str, Any]
    score: float  # macro F1 of the choice, mean over the folds; 0 where pixels were too few for folds
    voters: tuple[Tuned, ...] = ()  # one of spectra and one of features, where it adds their scores

    def again(self, seen: Sequence[np.ndarray], classes: np.ndarray) -> Any:
        """The same classifier, trained on other pixels, of which each voter sees one of `seen` (pixels, values)."""
        with many_fits():
            pipelines = [
                clone(each.classifier).fit(values, classes)
                for each, values in zip(self.voters or (self,), seen, strict=True)
            ]
        return added(pipelines, seen) if self.voters else pipelines[0]


@contextmanager
def many_fits() -> Iterator[None]:
    """
    Without warnings of classes that a fold lacks, and of weak penalties that would be followed for longer; and without
    checks of settings, which are ours: for few pixels, they take as long as the fits.
    """
    with warnings.catch_warnings(), config_context(skip_parameter_validation=True):
        warnings.simplefilter("ignore")
        yield


def tuned(
    head: str | Head, variants: Sequence[np.ndarray], classes: np.ndarray, parts: np.ndarray, seed: int
) -> Tuned:
    """
    The best of some variants of the same pixels (pixels, values) and settings of a head, one of `HEADS` or another, by
    macro F1 in folds of parts; the first of both where pixels are too few for folds.
    """
    build, settings, sees = HEADS[head] if isinstance(head, str) else head
    # A smaller forest ranks settings as well
    is_forest = getattr(build, "func", build) is RandomForestClassifier
    tried = partial(build, n_estimators=50) if is_forest else build
    scores = np.zeros((len(variants), len(settings)))
    folds = folds_of(classes, parts, seed)
    with many_fits():
        for number, variant in enumerate(variants):
            for training, test in folds:
                steps = seen_through(sees, len(training), variant.shape[1])
                pixels = steps.fit(variant[training]).transform(variant)
                for place, setting in enumerate(settings):
                    fitted = tried(**setting).fit(pixels[training], classes[training])
                    predicted = fitted.predict(pixels[test])
                    scores[number, place] += f1_score(classes[test], predicted, average="macro")
    best, place = divmod(int(scores.argmax()), len(settings))
    with many_fits():
        steps = seen_through(sees, *variants[best].shape)
        classifier = Pipeline([*steps.steps, ("classifier", build(**settings[place]))])
        classifier.fit(variants[best], classes)
    return Tuned(best, classifier, settings[place], float(scores.max()) / max(len(folds), 1))


def folds_of(
    classes: np.ndarray, parts: np.ndarray, seed: int, count: int = FOLDS
) -> list[tuple[np.ndarray, np.ndarray]]:
    """At most `count` folds of parts: training and test pixels of each; none where there are too few."""
    count = min(count, len(np.unique(parts)), int(np.unique(classes, return_counts=True)[1].max()))
    if count < 2:
        return []
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with many_fits():
        dealt = list(splitter.split(classes, classes, parts))
    return [fold for fold in dealt if len(set(classes[fold[0]])) > 1 and len(fold[1])]


def voting(
    of_spectra: Tuned,
    of_features: Tuned,
    variants: Mapping[str, Sequence[np.ndarray]],
    classes: np.ndarray,
    parts: np.ndarray,
    seed: int,
) -> Tuned:
    """
    Two linear classifiers of a head, of spectra and of features, whose scores are added: one classifier of both side
    by side, with its score in the folds in which both chose.
    """
    seen = [variants["spectra"][of_spectra.preparation], variants["features"][of_features.preparation]]
    settings = {"spectra": of_spectra.settings, "features": of_features.settings}
    classifier = added([of_spectra.classifier, of_features.classifier], seen)
    vote = Tuned(of_spectra.preparation, classifier, settings, 0.0, (of_spectra, of_features))
    found = []
    for training, test in folds_of(classes, parts, seed):
        again = vote.again([values[training] for values in seen], classes[training])
        found.append(f1_score(classes[test], again.predict(np.hstack(seen)[test]), average="macro"))
    vote.score = float(np.mean(found)) if found else 0.0
    return vote


def added(pipelines: Sequence[Pipeline], seen: Sequence[np.ndarray]) -> Pipeline:
    """
    The linear classifier whose scores are the sum of those of others, of what each was trained on (pixels, values),
    side by side: after standardizing, their coefficients side by side.
    """
    coefficients, intercept = [], 0.0
    for pipeline in pipelines:
        _, *rotation, last = (step for _, step in pipeline.steps)
        own, intercept = np.atleast_2d(last.coef_), intercept + last.intercept_
        for rotated in rotation:
            own = own @ rotated.components_
            intercept = intercept - own @ rotated.mean_
        coefficients.append(own)
    classifier = deepcopy(last)
    classifier.coef_, classifier.intercept_ = np.hstack(coefficients), intercept
    classifier.n_features_in_ = classifier.coef_.shape[1]
    return make_pipeline(StandardScaler().fit(np.hstack(seen)), classifier)


def seen_through(sees: str, num_pixels: int, num_values: int) -> Pipeline:
    """What comes before a head that `sees` pixels so, of that many to train on."""
    if sees == "as they are":
        return make_pipeline("passthrough")
    # Of more values than pixels, the directions in which the pixels differ: all that a linear head uses, in less time
    few = sees == "distances" and num_values > num_pixels
    return make_pipeline(StandardScaler(), PCA(svd_solver="full")) if few else make_pipeline(StandardScaler())


@dataclass
class LabelledPixels:
    """All labelled pixels of some scenes."""

    spectra: np.ndarray  # reflectance, float32 (pixels, bands)
    means: np.ndarray  # mean reflectance of their surroundings, float32 (pixels, bands)
    wavelengths: np.ndarray | None  # of the bands in nm, ascending
    bands: list[int]  # indices in the scenes
    classes: np.ndarray  # from 0, int64 (pixels,)
    parts: np.ndarray  # which block of a scene each lies in, int64 (pixels,)
    places: np.ndarray  # scene, row and column of each, int64 (pixels, 3)

    @classmethod
    def of(cls, data: LabelledData, block_size: int, per_class: int | None = None, seed: int = 0) -> LabelledPixels:
        """
        Those of labelled scenes, or some of each class, in blocks of `block_size` pixels; ValueError where there are
        fewer than two classes, all labels lie in one block, or there are more than `MOST_LABELS`.
        """
        bands = np.flatnonzero(data.valid_bands)
        if data.wavelengths is not None:
            bands = bands[np.unique(np.asarray(data.wavelengths)[bands], return_index=True)[1]]
        labelled = [np.argwhere(scene.labels != UNLABELLED) for scene in data.scenes]
        where = np.concatenate([np.insert(pixels, 0, number, axis=1) for number, pixels in enumerate(labelled)])
        of_scenes = [scene.labels[tuple(pixels.T)] for scene, pixels in zip(data.scenes, labelled, strict=True)]
        numbers = np.concatenate(of_scenes).astype(np.int64)
        present = np.unique(numbers)
        if per_class is not None:
            own = (
                np.random.default_rng((seed, label)).permutation(np.flatnonzero(numbers == label)) for label in present
            )
            kept = np.sort(np.concatenate([places[:per_class] for places in own]))
            where, numbers = where[kept], numbers[kept]
        if len(present) < 2:
            raise ValueError(f"expected labels of at least 2 classes, got {len(present)}")
        if len(numbers) > MOST_LABELS:
            got = f"at most {MOST_LABELS:,} labelled pixels, got {len(numbers):,}"
            advice = f"--labels_per_class {MOST_LABELS // len(present)} draws some, other models train on all"
            raise ValueError(f"--model auto is for few labels: expected {got}: {advice}")
        blocks = where // [1, block_size, block_size]
        parts = np.unique(blocks, axis=0, return_inverse=True)[1].reshape(-1)
        if len(np.unique(parts)) < 2:
            raise ValueError(
                f"expected labels in several blocks of {block_size} pixels, to test apart in space, got all in one "
                "(--block_size makes them smaller)"
            )
        spectra, means = [], []
        for number, scene in enumerate(data.scenes):
            rows, columns = where[where[:, 0] == number, 1:].T
            cube = np.asarray(scene.cube)[bands]
            stored = cube[:, rows, columns].T  # the scene has no labels where it has no data
            spectra.append(stored.astype(np.float32) / ENMAP.scale)
            means.append(mean_around(cube, rows, columns) / ENMAP.scale)
        wavelengths = None if data.wavelengths is None else np.asarray(data.wavelengths)[bands]
        of_pixels = np.concatenate(spectra), np.concatenate(means)
        return cls(*of_pixels, wavelengths, bands.tolist(), numbers, parts, where)


def mean_around(cube: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """
    Mean of what has data around some pixels of a cube (bands, height, width), which is reflected at its edges, float32
    (pixels, bands).
    """
    # Sums of a few stored numbers are whole in float32
    sums, counts = np.zeros((len(cube), len(rows)), dtype=np.float32), np.zeros(len(rows), dtype=np.float32)
    shifts = np.arange(SURROUNDINGS) - SURROUNDINGS // 2
    for down, right in product(shifts, shifts):
        near = cube[:, reflected(rows + down, cube.shape[1]), reflected(columns + right, cube.shape[2])]
        usable = (near != ENMAP.nodata).all(axis=0)
        sums += np.where(usable, near, 0)
        counts += usable
    return (sums / counts).T


def seen_as(view: str, prepare: Callable[[np.ndarray], np.ndarray], pixel: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """What `prepare` makes of one of `VIEWS` of pixels and their surroundings (pixels, values), and of no more."""
    return np.hstack([prepare({"pixel": pixel, "mean": mean}[part]) for part in view.split(" and ")])


@dataclass
class Choice:
    """What was chosen for some pixels."""

    inputs: str  # "spectra", "features" or `SPECTRA_AND_FEATURES`
    head: str  # one of `HEADS`
    tuned: Tuned
    scores: dict[str, float]  # macro F1 of each inputs and head that were tried, by which it was chosen

    @property
    def parts(self) -> dict[str, Tuned]:
        """Its classifiers by what they see."""
        votes = self.tuned.voters
        return dict(zip(("spectra", "features"), votes, strict=True)) if votes else {self.inputs: self.tuned}

    def seen(self, variants: Mapping[str, Sequence[np.ndarray]]) -> list[np.ndarray]:
        """What the classifier sees of pixels, side by side (pixels, values), of what there is of them."""
        return [variants[inputs][each.preparation] for inputs, each in self.parts.items()]

    def description(self) -> dict[str, str]:
        """What it sees, as a `Description` has it."""
        parts, names = self.parts, {"inputs": self.inputs, "preparation": as_they_are.__name__}
        if "spectra" in parts:
            prepare, names["spectra_of"] = SPECTRA[parts["spectra"].preparation]
            names["preparation"] = prepare.__name__
        if "features" in parts:
            names["features_of"] = VIEWS[parts["features"].preparation]
        return names

    def unseen(self, training: np.ndarray, test: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Training pixels that show nothing of test pixels: those `apart` where it sees surroundings, else all."""
        if not {*self.description().values()} & {*VIEWS[1:]}:
            return training
        return training[apart(places[training], places[test])]

    def temperature(
        self,
        variants: Mapping[str, Sequence[np.ndarray]],
        classes: np.ndarray,
        parts: np.ndarray,
        seed: int,
        places: np.ndarray,
    ) -> float:
        """
        The temperature at which the classes that it gives to pixels of folds that it was not trained on are as likely,
        on average, as they are right; 1 where pixels are too few for folds.
        """
        seen = self.seen(variants)
        scores, right = [], []
        for fold, test in folds_of(classes, parts, seed, CALIBRATION_FOLDS):
            training = self.unseen(fold, test, places)
            if len(np.unique(classes[training])) < 2:
                continue
            classifier = self.tuned.again([values[training] for values in seen], classes[training])
            scores.append(log_probabilities(classifier, np.hstack(seen)[test]))
            right.append(classifier.classes_[scores[-1].argmax(axis=1)] == classes[test])

        def excess(logarithm: float) -> float:
            found = [np.exp(log_softmax(each / np.exp(logarithm), axis=1)).max(axis=1) for each in scores]
            return float(np.concatenate(found).mean() - np.concatenate(right).mean())

        if not scores:
            return 1.0
        low, high = -TEMPERATURES, TEMPERATURES
        if excess(low) < 0 or excess(high) > 0:  # all right, or less often than by chance
            return float(np.exp(low if excess(low) < 0 else high))
        return float(np.exp(brentq(excess, low, high)))


def log_probabilities(classifier: Any, seen: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """
    Logarithms (pixels, classes) of a classifier's probabilities, or of the softmax of its scores where it has none
    (ridge, SVM). A higher temperature brings them closer together.
    """
    if hasattr(classifier, "predict_proba"):
        scores = np.log(np.maximum(classifier.predict_proba(seen), LOWEST_PROBABILITY))
    else:
        scores = classifier.decision_function(seen)
        scores = np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores
    return log_softmax(scores / temperature, axis=1)


def choose(variants: Mapping[str, Sequence[np.ndarray]], classes: np.ndarray, parts: np.ndarray, seed: int) -> Choice:
    """
    The best of all heads on spectra, of those quick with features, and of linear ones on both, by cross-validation in
    folds of parts.
    """
    tried: dict[tuple[str, str], Tuned] = {}
    for inputs, of_inputs in variants.items():
        for head in HEADS:
            if inputs == "spectra" or head not in SLOW_WITH_MANY_FEATURES:
                tried[inputs, head] = tuned(head, of_inputs, classes, parts, seed)
    for head in LINEAR if "features" in variants else ():
        if head in HEADS:
            pair = tried["spectra", head], tried["features", head]
            tried[SPECTRA_AND_FEATURES, head] = voting(*pair, variants, classes, parts, seed)
    best = max(tried, key=lambda name: tried[name].score)
    scores = {", ".join(name): round(entry.score, 4) for name, entry in tried.items()}
    return Choice(*best, tried[best], scores)


def inputs_of(pixels: LabelledPixels, model: str | None) -> dict[str, list[np.ndarray]]:
    """What classifiers may see of pixels: their spectra as `SPECTRA` says, and features of a model in all `VIEWS`."""
    spectra = [seen_as(view, prepare, pixels.spectra, pixels.means) for prepare, view in SPECTRA]
    if model is None:
        return {"spectra": spectra}
    transform = HSSTFeatures(model, pixels.wavelengths, scale=1.0).fit(pixels.spectra).transform
    pixel, mean = transform(pixels.spectra), transform(pixels.means)
    return {"spectra": spectra, "features": [seen_as(view, as_they_are, pixel, mean) for view in VIEWS]}


def score_in_folds(
    variants: Mapping[str, Sequence[np.ndarray]], pixels: LabelledPixels, num_classes: int, folds: int, seed: int
) -> dict[str, Any]:
    """
    What the choice and its classifier are worth: each fold of parts is predicted by what was chosen and trained on the
    others, less those not `apart` where surroundings are seen. Scores of all pixels tested together, and their
    interval over folds (`pooled_interval`). ValueError where no fold has another one with two classes to train on.
    """
    matrices: list[np.ndarray] = []
    of_folds: list[dict[str, Any]] = []
    dealt = folds_of(pixels.classes, pixels.parts, seed, folds)
    for training, test in tqdm(dealt, desc="testing in folds", unit="fold", disable=None):
        known = {name: [variant[training] for variant in of_inputs] for name, of_inputs in variants.items()}
        choice = choose(known, pixels.classes[training], pixels.parts[training], seed)
        classifier, seen = choice.tuned.classifier, choice.seen(variants)
        kept = choice.unseen(training, test, pixels.places)
        if len(kept) < len(training):
            if len(np.unique(pixels.classes[kept])) < 2:
                continue
            classifier = choice.tuned.again([values[kept] for values in seen], pixels.classes[kept])
        predicted = classifier.predict(np.hstack(seen)[test])
        part = confusion_matrix(predicted, pixels.classes[test].astype(np.uint8), num_classes=num_classes)
        matrices.append(part)
        scores = land_cover_scores(part)
        of_folds.append(
            {
                "pixels": len(test),
                "chosen": f"{choice.inputs}, {choice.head}",
                "overall_accuracy": scores["overall_accuracy"],
                "macro_f1": scores["macro_f1"],
            }
        )
    if not matrices:
        raise ValueError(
            "expected labels of at least 2 classes outside a block, to test apart in space, got none "
            "(--block_size makes blocks smaller)"
        )
    return {
        **land_cover_scores(np.sum(matrices, axis=0)),
        "folds": of_folds,
        "interval": {name: pooled_interval(matrices, name) for name in ("overall_accuracy", "macro_f1")},
    }


def apart(places: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of some places (pixels, 3) have surroundings that touch those of no others, bool (pixels,)."""
    scenes = 2 * SURROUNDINGS * np.array([1, 0, 0])  # far from each other
    distances, _ = cKDTree(others + others * scenes).query(places + places * scenes, p=np.inf)
    return distances >= SURROUNDINGS


@dataclass(frozen=True)
class Description:
    """What stands beside a saved classifier."""

    inputs: str  # "spectra", "features" of the model in the same folder, or `SPECTRA_AND_FEATURES`
    preparation: str  # of spectra, name of one of `PREPARATIONS`
    class_names: list[str]
    num_bands: int  # of the spectra
    processor: dict[str, Any]  # settings of the `HSSTImageProcessor` that gives spectra from stored numbers
    temperature: float = 1.0  # of its probabilities (`log_probabilities`)
    spectra_of: str = "pixel"  # one of `VIEWS`
    features_of: str = "pixel"  # one of `VIEWS`


def save_classifier(folder: Path, classifier: Any, description: Description, model: str | None = None) -> None:
    """Writes a classifier of pixels into a folder, for `PixelPredictor` and so `predict_scene.py`, and beside it the
    model whose features it sees."""
    skops.io.dump(classifier, folder / CLASSIFIER)
    write_json(folder / DESCRIPTION, asdict(description))
    if model is not None:
        encoder, processor = load_encoder(model)
        encoder.save_pretrained(folder)
        processor.save_pretrained(folder)


def processor_settings(processor: HSSTImageProcessor) -> dict[str, Any]:
    """What a `Description` holds of a processor."""
    names = ("wavelengths", "image_mean", "image_std", "clip_range")
    values = {name: getattr(processor, name) for name in names}
    return {name: None if value is None else list(value) for name, value in values.items()}


class PixelPredictor(ScenePredictor):
    """
    Maps scenes with a classifier of pixels and their surroundings, from a folder of `save_classifier`. Probabilities
    are those of the classifier, or of the softmax of its scores (ridge, SVM), at the temperature beside it. `place` is
    the device and dtype of a model that gives features. ValueError where files are missing, damaged, or of others.
    """

    def __init__(
        self, folder: str | Path, *, exclude: Sequence[str] = ("outside",), resample: bool = False, **place: Any
    ):
        folder = Path(folder)
        self.classifier = _load(folder / CLASSIFIER)
        try:
            self.description = Description(**json.loads((folder / DESCRIPTION).read_text(encoding="utf-8")))
            self.prepare = next(entry for entry in PREPARATIONS if entry.__name__ == self.description.preparation)
            self.processor = HSSTImageProcessor(**self.description.processor)
            names = [str(name) for name in self.description.class_names]
        except (OSError, ValueError, TypeError, StopIteration) as error:
            raise ValueError(f"{folder / DESCRIPTION}: expected what a classifier sees, got {error}") from None
        views = self.description.spectra_of, self.description.features_of
        if not all(view in VIEWS for view in views):
            raise ValueError(f"{folder / DESCRIPTION}: expected views among {', '.join(VIEWS)}, got {views}")
        if not (isinstance(self.description.temperature, float) and 0 < self.description.temperature < np.inf):
            got = self.description.temperature
            raise ValueError(f"{folder / DESCRIPTION}: expected a temperature above 0, got {got!r}")
        if not set(self.classifier.classes_) <= set(range(len(names))):
            raise ValueError(f"{folder / CLASSIFIER}: expected classes below {len(names)}")
        side = 1 if views == ("pixel", "pixel") else SURROUNDINGS
        self.window, self.stride, self.dense, self.center = (side, side), 1, side == 1, side > 1
        self.batch_size, self.chunk_size = 8192 // side**2, 256
        self.exclude, self.resample, self.scene_statistics = tuple(exclude), resample, False
        self.weight = torch.ones(1, 1)
        files = [folder / CLASSIFIER, folder / DESCRIPTION]
        num_bands = self.description.num_bands
        self.features = None
        if self.description.inputs != "spectra":
            self.features = HSSTFeatures(str(folder), self.processor.wavelengths, scale=1.0)
            self.features.fit(np.zeros((1, num_bands)))
            self.features.features_.model.to(**place)
            files += weight_files(str(folder))
        self.digest = fingerprint(*checksums(files).values())
        # What the mapping of a scene asks of a model
        config = SimpleNamespace(num_channels=num_bands, num_labels=len(names), id2label=dict(enumerate(names)))
        self.model = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32, config=config)

    @property
    def settings(self) -> dict[str, Any]:
        precision = "float32" if self.features is None else str(self.features.features_.model.dtype)
        own = {"exclude": sorted(self.exclude), "resample": self.resample, "scene_statistics": False}
        return {"weights": self.digest[:16], "precision": precision.removeprefix("torch."), "stride": 1, **own}

    def _run(self, values: torch.Tensor, pixel_mask: torch.Tensor) -> torch.Tensor:
        weights = pixel_mask[:, None].float()
        middle = values.shape[-1] // 2
        pixel = values[:, :, middle, middle].numpy()
        mean = ((values * weights).sum(dim=(2, 3)) / weights.sum(dim=(2, 3))).numpy()
        views = []
        if self.description.inputs != "features":
            views.append(seen_as(self.description.spectra_of, self.prepare, pixel, mean))
        if self.features is not None:
            views.append(seen_as(self.description.features_of, self.features.transform, pixel, mean))
        seen = np.hstack(views)
        found = np.exp(log_probabilities(self.classifier, seen, self.description.temperature))
        probabilities = torch.zeros(len(found), self.num_outputs)
        probabilities[:, torch.as_tensor(self.classifier.classes_)] = torch.as_tensor(found, dtype=torch.float32)
        return probabilities[:, :, None, None]


def _load(path: Path) -> Any:
    """A classifier of scikit-learn, without running code of the file."""
    try:
        trees = "sklearn.tree._tree.Tree"
        classifier = skops.io.load(path, trusted=[trees])
        last = classifier[-1] if hasattr(classifier, "steps") else classifier
        for estimator in getattr(last, "estimators_", ()):
            _check_tree(estimator.tree_)
        if not hasattr(classifier, "predict"):
            raise TypeError(f"a {type(classifier).__name__}")
        return classifier
    except UntrustedTypesFoundException as error:
        raise ValueError(f"{path}: expected a classifier of scikit-learn alone, got {error}") from None
    except Exception as error:  # a damaged archive fails in many ways
        raise ValueError(f"{path}: expected a classifier of scikit-learn, got {error}") from None


def _check_tree(tree: Any) -> None:
    """Raises ValueError where a tree points outside itself, which scikit-learn would follow into any memory."""
    nodes = np.arange(tree.node_count)
    inner = tree.children_left != -1
    for children in (tree.children_left, tree.children_right):
        if len(children) != len(nodes) or (children[inner] <= nodes[inner]).any() or (children >= len(nodes)).any():
            raise ValueError("a tree whose branches lead nowhere")
    if (tree.feature[inner] < 0).any() or (tree.feature >= tree.n_features).any():
        raise ValueError("a tree that asks for values that there are none of")


def is_classifier(model: str | Path) -> bool:
    """Whether a folder holds a classifier of `save_classifier`."""
    return (Path(model) / DESCRIPTION).is_file()

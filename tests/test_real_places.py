"""Features beside spectra in real places: splits apart in space, rows computed once, differences as they are."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import assert_one_clear_line
from small_land_cover import write_small_checkpoint

from hsst.experiments import real_places
from hsst.experiments.pixel_networks import PixelNetwork
from hsst.experiments.real_places import (
    Place,
    blocks,
    gain,
    gains_table,
    heads_table,
    places_table,
    split,
    summarize,
    surroundings,
    tuned,
)

WAVELENGTHS = np.linspace(450, 2300, 40)
RANDOM = np.random.default_rng(0)


def place(name, num_parts=12):
    """Three classes of spectra in many parts, each part with a light of its own."""
    random = np.random.default_rng(1)
    classes = np.tile(np.arange(3), 8 * num_parts)
    parts = np.repeat(np.arange(num_parts), 24)
    shapes = np.array([np.sin(WAVELENGTHS / (200 + 60 * number)) for number in range(3)])
    light = np.exp(random.normal(0, 0.5, num_parts))[parts]
    spectra = (0.3 + 0.1 * shapes[classes] + random.normal(0, 0.03, (len(classes), 40))) * light[:, None]
    spectra = spectra.astype(np.float32)
    return Place(name, spectra, WAVELENGTHS, classes.astype(np.int64), parts, means=spectra)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Of the intervals of gains, of which no test looks at more than their sides."""
    monkeypatch.setattr(real_places, "gain", functools.partial(real_places.gain, draws=200))


def test_blocks():
    rows, columns = np.array([0, 3, 4, 11]), np.array([0, 3, 3, 9])
    assert blocks(rows, columns, 4).tolist() == [0, 0, 1, 2]


def test_training_and_test_never_share_a_part():
    ours = place("a place")
    chosen = set()
    for seed in range(5):
        training, test = split(ours, 4, seed)
        assert not set(ours.parts[training]) & set(ours.parts[test])
        assert np.bincount(ours.classes[training]).tolist() == [4, 4, 4]
        chosen.add(tuple(sorted(set(ours.parts[test]))))
    assert len(chosen) > 1
    mask = ours.parts < 3
    training, test = split(replace(ours, training=mask), 4, 0)
    assert mask[training].all() and not mask[test].any()
    with pytest.raises(ValueError, match="a place: expected parts that can be kept apart, got one"):
        split(place("a place", 1), 4, 0)


@pytest.mark.parametrize("head", real_places.HEADS)
def test_heads_choose_the_inputs_that_tell_more(head):
    ours = place("a place")
    training, test = split(ours, 8, 0)
    noise = RANDOM.normal(size=(len(ours.classes), 50))
    variants = [noise[training], ours.spectra[training]]
    best = tuned(head, variants, ours.classes[training], ours.parts[training], 0)
    assert best.preparation == 1 and 0.5 < best.score <= 1
    assert (best.classifier.predict(ours.spectra[test]) == ours.classes[test]).mean() > 0.6


def row(place, inputs, head, seed, score):
    return {
        "place": place,
        "inputs": inputs,
        "window": 1,
        "head": head,
        "labels": 5,
        "seed": seed,
        "data": "",
        "macro_f1": score,
    }


def test_gains_are_over_the_best_head_on_spectra():
    rows = [row(name, "spectra", "ridge", seed, 0.5) for name in "ab" for seed in range(3)]
    rows += [row("a", "spectra", "SVM", seed, 0.6) for seed in range(3)]
    rows += [row(name, "untrained", "ridge", seed, 0.4) for name in "ab" for seed in range(3)]
    rows += [row(name, "hsst", "ridge", seed, 0.54 + 0.01 * seed) for name in "ab" for seed in range(3)]
    result = summarize(rows)
    (entry,) = (entry for entry in result["gains"] if entry["inputs"] == "hsst" and entry["to"] == "spectra")
    assert entry["mean"] == pytest.approx((0.55 - 0.6 + 0.55 - 0.5) / 2) and entry["better"] == 1
    assert entry["low"] < entry["mean"] < entry["high"]
    assert "| a | 5 | **0.600** (SVM) | 0.400 (ridge) | 0.550 (ridge) |" in places_table(result)
    assert "| hsst over the best on spectra | pixel | 5 |" in gains_table(result, ["hsst"])
    assert "| hsst | ridge | 0.550 |" in heads_table(result)
    assert gain([np.array([0.1, 0.1]), np.array([0.1, 0.1])])["low"] == pytest.approx(0.1)


def test_features_beside_spectra_have_a_control_of_their_own():
    scores = {"spectra": 0.5, "untrained": 0.4, "untrained and spectra": 0.55, "hsst": 0.52, "hsst and spectra": 0.58}
    rows = [row("a", inputs, "ridge", seed, score) for inputs, score in scores.items() for seed in range(2)]
    gains = {(entry["inputs"], entry["to"]): entry["mean"] for entry in summarize(rows)["gains"]}
    assert gains["hsst and spectra", "untrained and spectra"] == pytest.approx(0.03)
    assert gains["hsst and spectra", "spectra"] == pytest.approx(0.08)
    assert gains["hsst", "untrained"] == pytest.approx(0.12) and ("hsst and spectra", "untrained") not in gains


def test_a_head_with_fewer_seeds_is_compared_on_its_own():
    rows = [row("a", "spectra", "ridge", seed, value) for seed, value in enumerate([0.5, 0.5, 0.9])]
    rows += [row("a", "spectra", "1-D CNN", seed, 0.7) for seed in range(2)]
    (entry,) = summarize(rows)["scores"]
    assert entry["best"] == "ridge" and entry["macro_f1"]["ridge"] == pytest.approx(1.9 / 3)
    assert entry["shared"] == {"ridge": 0.5, "1-D CNN": pytest.approx(0.7)}


def test_surroundings_are_means_of_windows():
    image = RANDOM.random((7, 9, 3))
    found = surroundings(image)
    assert found.shape == image.shape
    np.testing.assert_allclose(found[3, 4], image[1:6, 2:7].mean(axis=(0, 1)))


@pytest.mark.parametrize("num_classes", [2, 3])
def test_networks_learn_classes_from_few_pixels(tmp_path, num_classes):
    ours = place("a place")
    training, test = (of_split[ours.classes[of_split] < num_classes] for of_split in split(ours, 8, 0))
    checkpoint = write_small_checkpoint(tmp_path / "model")
    cnn, untouched = PixelNetwork(steps=60), PixelNetwork(str(checkpoint), WAVELENGTHS, steps=0)
    for network in (cnn, untouched, PixelNetwork(str(checkpoint), WAVELENGTHS, learning_rate=1e-4, steps=20)):
        predicted = [
            network.fit(ours.spectra[training], ours.classes[training]).predict(ours.spectra[test]) for _ in range(2)
        ]
        assert np.array_equal(*predicted)  # the same from the same seed
        assert (predicted[0] == ours.classes[test]).mean() > 0.6
    # Fine-tuning moves the encoder
    weights = network.network_.encoder.state_dict()
    assert any(not value.equal(weights[name]) for name, value in untouched.network_.encoder.state_dict().items())


def test_command(run_script, tmp_path, monkeypatch, real_figures):
    """Computes each row once, whenever it is stopped."""
    checkpoint = write_small_checkpoint(tmp_path / "model")
    monkeypatch.setattr(
        real_places, "PLACES", {"first": lambda _: place("first"), "second": lambda _: place("second")}
    )
    arguments = ["experiments/real_places.py", "--data_dir", tmp_path, "--model", checkpoint, "--seeds", 1]
    arguments += ["--heads", "ridge", "SVM", "--labels", 3, "--output_dir", tmp_path / "out"]
    for head, settings in (("ridge", ({"alpha": 10.0}, {"alpha": 1.0})), ("SVM", ({"C": 1.0}, {"C": 100.0}))):
        monkeypatch.setitem(real_places.HEADS, head, real_places.HEADS[head]._replace(settings=settings))
    result = run_script(*arguments, "--places", "first")
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    # Spectra and features, trained and not, have both heads; of single pixels and of their surroundings; linear heads
    # vote with those on spectra of the same pixels
    assert len(rows) == 2 * (2 * 3 + 2) and {row["window"] for row in rows} == {1, 5}
    path = tmp_path / "out" / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:5]) + '{"place": "fir')
    # What is missing is computed, and is what it was; pixels alone, and then everything
    for window, wanted in ((1, [row for row in rows[5:] if row["window"] == 1]), (5, rows[5:])):
        assert run_script(*arguments, "--places", "first", "--windows", window).returncode == 0
        again = [json.loads(line) for line in path.read_text().splitlines()]
        assert again[:5] == rows[:5] and sorted(again[5:], key=str) == sorted(wanted, key=str)
    assert (tmp_path / "out" / "real_places.png").stat().st_size > 5000
    assert_one_clear_line(run_script(*arguments[:-1], tmp_path / "none", "--model", tmp_path / "no"), tmp_path / "no")

"""Splits that cannot leak: blocks, areas, scenes, buffers, the proof itself, label budgets, and files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_benchmarks import assert_one_clear_line, patchy_labels

from datasets_loading.splits import (
    FORMAT,
    NO_SPLIT,
    SPLITS,
    UNLABELLED,
    Area,
    Split,
    SplitError,
    box_counts,
    check_split,
    count_overlaps,
    draw_labels,
    read_split,
    split_by_areas,
    split_by_blocks,
    split_by_scenes,
    with_validation,
    write_split,
)


def some_labels(seed: int = 0) -> dict[str, np.ndarray]:
    """Two scenes of several classes, a third of their pixels unlabelled."""
    values = [0, 1, 2, 3, UNLABELLED, UNLABELLED]
    return {"north": patchy_labels(60, 90, values, seed), "south": patchy_labels(45, 50, values, seed + 1)}


def overlaps_pixel_by_pixel(codes: np.ndarray, window_size: int) -> dict[tuple[str, str], int]:
    """Cuts the window around every pixel, and collects the pixels of later splits that it shows."""
    before = window_size // 2
    padded = np.pad(codes, window_size, constant_values=NO_SPLIT)
    counts = {}
    for first in range(3):
        seen = np.zeros(padded.shape, dtype=bool)
        for row, column in np.argwhere(codes == first):
            top, left = row + window_size - before, column + window_size - before
            seen[top : top + window_size, left : left + window_size] = True
        for second in range(first + 1, 3):
            counts[SPLITS[first], SPLITS[second]] = int((seen & (padded == second)).sum())
    return counts


# The proof


@pytest.mark.parametrize("window_size", [1, 2, 3, 5, 8])
def test_overlaps_are_those_of_windows_cut_one_by_one(window_size: int):
    codes = np.random.default_rng(0).choice(np.array([0, 1, 2, 255], dtype=np.uint8), (17, 13), p=[0.1, 0.1, 0.1, 0.7])
    split = Split({"scene": codes}, 0, {})
    found = {pair: sum(counts.values()) for pair, counts in count_overlaps(split, window_size).items()}
    assert found == overlaps_pixel_by_pixel(codes, window_size)


@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 1), (0, 3), (30, 30)])
def test_box_counts(before: int, after: int):
    mask = np.random.default_rng(1).random((9, 11)) < 0.4
    counts = box_counts(mask, before, after)
    for row, column in np.ndindex(mask.shape):
        part = mask[max(row - before, 0) : row + after + 1, max(column - before, 0) : column + after + 1]
        assert counts[row, column] == part.sum()


def test_touching_areas_are_found_out():
    """A vertical border without buffer: windows of 8 reach 4 columns left and 3 right of their center."""
    codes = np.zeros((20, 30), dtype=np.uint8)
    codes[:, 15:] = 2
    split = Split({"scene": codes}, 0, {})
    assert_one_clear_line(lambda: check_split(split, 8), "got 60 touched test pixels", "scene: 60", "buffer of 4")
    codes[:, 11:15] = NO_SPLIT
    check_split(split, 8)
    check_split(split, 9)
    assert_one_clear_line(lambda: check_split(split, 10 + 1), "got 20 touched test pixels")


def test_random_pixels_are_found_out():
    labels = some_labels()
    generator = np.random.default_rng(0)
    codes = {name: generator.choice(np.array([0, 2], dtype=np.uint8), values.shape) for name, values in labels.items()}
    with pytest.raises(SplitError, match="touched test pixels"):
        check_split(Split(codes, 0, {}), 3)


def test_one_leaking_pixel_in_one_scene_is_found():
    labels = some_labels()
    split = split_by_blocks(labels, block_size=15, buffer=4)
    row, column = np.argwhere(split.mask("south", "test"))[7]
    split.codes["south"][row, column] = 0
    assert_one_clear_line(lambda: check_split(split, 8), "train", "test", "south")


# Blocks, areas, scenes


@pytest.mark.parametrize("window_size", [1, 4, 7, 8])
@pytest.mark.parametrize("seed", [0, 1])
def test_blocks_never_leak(window_size: int, seed: int):
    split = split_by_blocks(some_labels(), block_size=15, buffer=window_size // 2, seed=seed)
    check_split(split, window_size)
    for codes in split.codes.values():
        assert not any(overlaps_pixel_by_pixel(codes, window_size).values())


def test_without_buffer_blocks_leak():
    with pytest.raises(SplitError, match="touched"):
        check_split(split_by_blocks(some_labels(), block_size=15, buffer=0), 3)


def test_blocks_get_their_shares_of_each_class():
    labels = {"scene": patchy_labels(160, 160, [0, 0, 0, 1, 2, UNLABELLED])}
    split = split_by_blocks(labels, block_size=16, buffer=0, shares=(0.5, 0.25, 0.25))
    for label in range(3):
        total = (labels["scene"] == label).sum()
        for name, share in zip(SPLITS, (0.5, 0.25, 0.25), strict=True):
            own = (split.labels_of(labels, name)["scene"] == label).sum()
            assert own / total == pytest.approx(share, abs=0.05)


def test_blocks_follow_from_the_seed():
    first, again, other = (split_by_blocks(some_labels(), block_size=15, buffer=2, seed=seed) for seed in (3, 3, 4))
    assert all((first.codes[name] == again.codes[name]).all() for name in first.codes)
    assert any((first.codes[name] != other.codes[name]).any() for name in first.codes)


def test_a_share_of_nothing_gives_no_pixels():
    split = split_by_blocks(some_labels(), block_size=15, buffer=2, shares=(0.7, 0.0, 0.3))
    assert not any(split.mask(name, "validation").any() for name in split.codes)


def test_a_rare_class_gets_into_every_split():
    values = np.zeros((64, 64), dtype=np.uint8)
    for row, column in ((2, 2), (2, 50), (50, 2), (50, 50)):
        values[row : row + 4, column : column + 4] = 1
    labels = {"scene": values}
    split = split_by_blocks(labels, block_size=16, buffer=1)
    assert all((split.labels_of(labels, name)["scene"] == 1).any() for name in SPLITS)


def test_areas():
    labels = {"scene": patchy_labels(40, 40, [0, 1])}
    areas = {"train": [Area("scene", 0, 40, 0, 18)], "test": [Area("scene", 0, 40, 18, 36)]}
    split = split_by_areas(labels, areas, buffer=4)
    expected = np.full((40, 40), NO_SPLIT)
    expected[:, :14], expected[:, 18:36] = 0, 2
    np.testing.assert_array_equal(split.codes["scene"], expected)
    check_split(split, 8)


def test_scenes():
    labels = some_labels()
    split = split_by_scenes(labels, {"train": ["north"], "test": ["south"]}, buffer=4)
    assert (split.codes["north"] == 0).all() and (split.codes["south"] == 2).all()
    check_split(split, 64)


def test_validation_comes_from_the_training_area():
    labels = some_labels()
    split = split_by_scenes(labels, {"train": ["north"], "test": ["south"]}, buffer=3)
    carved = with_validation(split, labels, share=0.25, block_size=15)
    check_split(carved, 7)
    assert (carved.codes["south"] == 2).all()
    validation = (carved.labels_of(labels, "validation")["north"] != UNLABELLED).sum()
    assert validation / (labels["north"] != UNLABELLED).sum() == pytest.approx(0.25, abs=0.1)
    assert_one_clear_line(lambda: with_validation(carved, labels, share=0.25, block_size=15), "without validation")


def test_bad_areas_are_refused():
    labels = some_labels()
    north = Area("north", 0, 30, 0, 30)
    call = split_by_areas
    overlap = {"train": [north], "test": [Area("north", 20, 50, 20, 50)]}
    assert_one_clear_line(lambda: call(labels, overlap, buffer=0), "100 pixels of north", "train", "test")
    assert_one_clear_line(lambda: call(labels, {"train": [Area("north", 0, 61, 0, 5)]}, buffer=0), "60 x 90")
    assert_one_clear_line(lambda: call(labels, {"train": [Area("east", 0, 6, 0, 5)]}, buffer=0), "east")
    assert_one_clear_line(lambda: call(labels, {"training": [north]}, buffer=0), "training")
    assert_one_clear_line(lambda: split_by_scenes(labels, {"test": ["east"]}, buffer=0), "east")
    empty = {"north": np.full((60, 90), UNLABELLED, dtype=np.uint8), "south": labels["south"]}
    assert_one_clear_line(lambda: call(empty, {"train": [north]}, buffer=0), "labelled pixels in train")


def test_bad_blocks_are_refused():
    labels = some_labels()
    assert_one_clear_line(lambda: split_by_blocks(labels, block_size=200, buffer=0), "got none", "smaller blocks")
    assert_one_clear_line(lambda: split_by_blocks(labels, block_size=0, buffer=0), "at least 1 pixel")
    assert_one_clear_line(lambda: split_by_blocks(labels, block_size=9, buffer=-1), "buffer")
    assert_one_clear_line(lambda: split_by_blocks(labels, block_size=9, buffer=0, shares=(1, 1, 0)), "add up to 1")


# Label budgets


@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.1, 1.0])
def test_fractions_are_drawn_by_class(fraction: float):
    labels = some_labels()
    split = split_by_blocks(labels, block_size=15, buffer=2)
    drawn = draw_labels(labels, split, fraction=fraction, seed=5)
    for label in range(4):
        before = sum((values == label).sum() for values in split.labels_of(labels, "train").values())
        after = sum((values == label).sum() for values in split.labels_of(drawn, "train").values())
        assert after == max(1, round(fraction * before))
    for name in labels:
        elsewhere = ~split.mask(name, "train")
        np.testing.assert_array_equal(drawn[name][elsewhere], labels[name][elsewhere])
        kept = drawn[name] != UNLABELLED
        np.testing.assert_array_equal(drawn[name][kept], labels[name][kept])


def test_number_per_class_and_its_seed():
    labels = some_labels()
    split = split_by_blocks(labels, block_size=15, buffer=2)

    def places(per_class: int, seed: int) -> set[tuple[str, int]]:
        drawn = split.labels_of(draw_labels(labels, split, per_class=per_class, seed=seed), "train")
        return {(name, int(at)) for name, values in drawn.items() for at in np.flatnonzero(values != UNLABELLED)}

    assert len(places(5, 0)) == 20
    assert places(5, 0) == places(5, 0) != places(5, 1)
    assert places(5, 0) < places(20, 0)
    assert len(places(10**6, 0)) == sum(
        int((values != UNLABELLED).sum()) for values in split.labels_of(labels, "train").values()
    )


def test_bad_budgets_are_refused():
    labels = some_labels()
    split = split_by_blocks(labels, block_size=15, buffer=2)
    assert_one_clear_line(lambda: draw_labels(labels, split, fraction=0.0), "got 0.0")
    assert_one_clear_line(lambda: draw_labels(labels, split, fraction=1.5), "got 1.5")
    assert_one_clear_line(lambda: draw_labels(labels, split, per_class=0), "got 0")
    with pytest.raises(ValueError, match="either a fraction or a number"):
        draw_labels(labels, split)
    one_class = {name: np.where(values == 1, 1, UNLABELLED).astype(np.uint8) for name, values in labels.items()}
    assert_one_clear_line(lambda: draw_labels(one_class, split, per_class=1), "at least 2 classes", "got 1")


# Files


def test_written_and_read_back(tmp_path: Path):
    labels = some_labels()
    split = with_validation(
        split_by_areas(
            labels, {"train": [Area("north", 0, 60, 0, 60)], "test": [Area("south", 0, 45, 0, 50)]}, buffer=2
        ),
        labels,
        share=0.2,
        block_size=10,
    )
    path = write_split(split, tmp_path / "splits" / "mine", labels)
    read = read_split(path, labels)
    assert (read.buffer, read.settings) == (split.buffer, split.settings)
    for name in labels:
        assert read.codes[name].dtype == np.uint8
        np.testing.assert_array_equal(read.codes[name], split.codes[name])
    described = json.loads(path.read_text())
    counts = described["scenes"][0]["labelled_pixels"]
    assert counts["train"] == (split.labels_of(labels, "train")["north"] != UNLABELLED).sum()
    again = write_split(split, tmp_path / "again" / "mine", labels)
    assert again.read_bytes() == path.read_bytes()
    assert again.with_suffix(".npz").read_bytes() == path.with_suffix(".npz").read_bytes()


def test_changed_files_and_labels_are_refused(tmp_path: Path):
    labels = some_labels()
    split = split_by_blocks(labels, block_size=15, buffer=2)
    path = write_split(split, tmp_path / "mine.json", labels)
    assert_one_clear_line(lambda: read_split(path, some_labels(seed=7)), path, "labels of north")
    assert_one_clear_line(lambda: read_split(path, {"north": labels["north"]}), path, "scenes north")
    assert_one_clear_line(lambda: read_split(tmp_path / "none.json"), "none.json", "got none")
    other = Split({name: np.zeros_like(codes) for name, codes in split.codes.items()}, 2, {})
    write_split(other, tmp_path / "other.json", labels)
    codes_path = path.with_suffix(".npz")
    codes = codes_path.read_bytes()
    codes_path.write_bytes(tmp_path.joinpath("other.npz").read_bytes())
    assert_one_clear_line(lambda: read_split(path), codes_path, "got others")
    codes_path.write_bytes(codes[: len(codes) // 2])
    assert_one_clear_line(lambda: read_split(path), codes_path)
    codes_path.unlink()
    assert_one_clear_line(lambda: read_split(path), codes_path)
    path.write_text("{}")
    assert_one_clear_line(lambda: read_split(path), "hsst-split-1")
    path.write_text("not JSON")
    assert_one_clear_line(lambda: read_split(path), "JSON")


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        ({}, "without 'codes'"),
        ({"codes": "../a.npz", "scenes": [], "buffer": 1, "settings": {}}, "without Invalid"),
        ({"codes": "a.npz", "scenes": [5], "buffer": 1, "settings": {}}, "without 'int'"),
        ({"codes": "a.npz", "scenes": [], "buffer": "a", "settings": {}}, "without invalid"),
    ],
)
def test_split_files_of_others_are_refused_in_one_line(tmp_path, stated, reason):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"format": FORMAT, **stated}))
    assert_one_clear_line(lambda: read_split(path), path, reason)
    path.write_text("[" * 100_000)
    assert_one_clear_line(lambda: read_split(path), path, "JSON")

"""Windows of labelled scenes: what they hold, that they cover every label once, and that they refuse to leak."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from small_benchmarks import assert_one_clear_line, assert_windows_do_not_leak, patchy_labels, striped_cube

from datasets_loading.labelled_data import LabelledData, Scene
from datasets_loading.labelled_windows import LabelledWindows
from datasets_loading.sensors import ENMAP
from datasets_loading.splits import UNLABELLED, Area, Split, draw_labels, split_by_areas, split_by_blocks

NAMES = ("a", "b", "c")


def small_data(buffer: int = 4) -> LabelledData:
    """Two scenes, split by blocks."""
    scenes = [
        Scene("one", striped_cube(37, 50), patchy_labels(37, 50, [0, 1, 2, UNLABELLED])),
        Scene("two", striped_cube(24, 30, seed=9), patchy_labels(24, 30, [0, 1, 2, UNLABELLED], seed=1)),
    ]
    labels = {scene.name: scene.labels for scene in scenes}
    split = split_by_blocks(labels, block_size=12, buffer=buffer)
    return LabelledData(scenes, NAMES, np.array([450.0, 550.0, 650.0, 850.0]), split)


@pytest.mark.parametrize("window_size", [1, 4, 5, 8, 9])
def test_windows_do_not_leak_and_show_each_label_once(window_size: int):
    assert_windows_do_not_leak(small_data(buffer=window_size // 2), window_size)


@pytest.mark.parametrize("window_size", [5, 8])
def test_center_windows(window_size: int):
    data = small_data()
    windows = LabelledWindows(data, "test", window_size, "center")
    before = window_size // 2
    padded = [
        np.pad(scene.cube, ((0, 0), (window_size,) * 2, (window_size,) * 2), constant_values=ENMAP.nodata)
        for scene in data.scenes
    ]
    for index, (number, row, column, window) in enumerate(windows.own_pixels):
        assert index == window
        item = windows[index]
        top, left = row + window_size - before, column + window_size - before
        expected = padded[number][:, top : top + window_size, left : left + window_size]
        np.testing.assert_array_equal(item["pixels"].numpy(), expected)
        assert item["pixels"].dtype == torch.int16 and item["labels"].dtype == torch.int64
        assert item["labels"] == data.scenes[number].labels[row, column]
        assert item["window_index"] == index


@pytest.mark.parametrize("anchor", [(0, 0), (3, 5), (7, 1)])
def test_dense_windows_with_any_anchor(anchor: tuple[int, int]):
    data = small_data()
    windows = LabelledWindows(data, "train", 8, "dense", anchor=anchor)
    seen = {scene.name: np.full(scene.shape, UNLABELLED) for scene in data.scenes}
    for index, (number, row, column) in enumerate(windows.places):
        labels = windows[index]["labels"].numpy()
        assert labels.shape == (8, 8) and (labels != UNLABELLED).any()
        for y, x in np.argwhere(labels != UNLABELLED):
            place = data.scenes[number].name, row + y, column + x
            assert seen[place[0]][place[1:]] == UNLABELLED
            seen[place[0]][place[1:]] = labels[y, x]
    for name, expected in data.split.labels_of(data.labels, "train").items():
        np.testing.assert_array_equal(seen[name], expected)


def test_dense_windows_of_a_whole_scene_are_a_grid():
    labels = patchy_labels(16, 24, [0, 1])
    data = LabelledData(
        [Scene("one", striped_cube(16, 24), labels)], NAMES[:2], None, Split({"one": labels * 0}, 0, {})
    )
    windows = LabelledWindows(data, "train", 8, "dense")
    assert sorted(map(tuple, windows.places[:, 1:])) == [(row, column) for row in (0, 8) for column in (0, 8, 16)]
    np.testing.assert_array_equal(windows[4]["pixels"], striped_cube(16, 24)[:, 8:16, 8:16])


@pytest.mark.parametrize("task", ["dense", "center"])
def test_windows_refuse_to_leak(task: Literal["dense", "center"]):
    labels = {"one": patchy_labels(20, 30, [0, 1])}
    scene = Scene("one", striped_cube(20, 30), labels["one"])
    areas = {"train": [Area("one", 0, 20, 0, 15)], "test": [Area("one", 0, 20, 15, 30)]}
    touching = LabelledData([scene], NAMES[:2], None, split_by_areas(labels, areas, buffer=0))
    if task == "center":
        # Windows of 8 reach 3 pixels right of their centre and 4 left of it.
        assert_one_clear_line(lambda: LabelledWindows(touching, "train", 8, task), "got 60 in one", "buffer of 4")
        assert_one_clear_line(lambda: LabelledWindows(touching, "test", 8, task), "got 80 in one", "buffer of 4")
    else:
        # Windows that end at the border hold all of these pixels.
        assert_windows = LabelledWindows(touching, "train", 8, task)
        assert (assert_windows.places[:, 2] + 8 <= 15).all()
        areas = {"train": [Area("one", 0, 20, 0, 4)], "validation": [Area("one", 0, 20, 4, 9)]}
        areas["test"] = [Area("one", 0, 20, 9, 30)]
        narrow = touching.with_split(split_by_areas(labels, areas, buffer=0))
        assert_one_clear_line(lambda: LabelledWindows(narrow, "validation", 8, task), "got 100 in one")


def test_cubes_are_not_copied():
    data = small_data()
    few = data.with_labels(draw_labels(data.labels, data.split, per_class=2, seed=0))
    assert all(new.cube is old.cube for new, old in zip(few.scenes, data.scenes, strict=True))
    assert few.class_counts("train").tolist() == [2, 2, 2]
    np.testing.assert_array_equal(few.class_counts("test"), data.class_counts("test"))
    windows = LabelledWindows(few, "train", 8, "center")
    assert len(windows) == 6 and windows.data is few


def test_pixels_without_data_have_no_label(caplog: pytest.LogCaptureFixture):
    cube = striped_cube(16, 16)
    cube[:, 3, 3] = ENMAP.nodata
    cube[2, 5, 5] = ENMAP.nodata
    scene = Scene("one", cube, patchy_labels(16, 16, [0, 1]))
    assert scene.valid.sum() == 16 * 16 - 2
    assert scene.labels[3, 3] == scene.labels[5, 5] == UNLABELLED
    assert "2 labelled pixels lack data" in caplog.text


def test_bad_arguments_are_refused():
    data = small_data()
    assert_one_clear_line(lambda: LabelledWindows(data, "test", 8, "sparse"), "sparse")  # type: ignore[arg-type]
    assert_one_clear_line(lambda: LabelledWindows(data, "test", 0, "dense"), "got 0")
    unlabelled = {name: np.full_like(labels, UNLABELLED) for name, labels in data.labels.items()}
    assert_one_clear_line(lambda: LabelledWindows(data.with_labels(unlabelled), "test", 8, "dense"), "labelled test")

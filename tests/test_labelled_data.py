"""Labelled scenes in memory: pixels without data have no label, fewer labels share a cube, windows stay apart."""

import numpy as np
import pytest
from small_benchmarks import assert_windows_do_not_leak, patchy_labels, striped_cube

from datasets_loading.labelled_data import LabelledData, Scene
from datasets_loading.sensors import ENMAP
from datasets_loading.splits import UNLABELLED, draw_labels, split_by_blocks

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
def test_windows_do_not_leak(window_size: int):
    assert_windows_do_not_leak(small_data(buffer=window_size // 2), window_size)
    if window_size > 1:
        with pytest.raises(AssertionError):
            assert_windows_do_not_leak(small_data(buffer=0), window_size)


def test_cubes_are_not_copied():
    data = small_data()
    few = data.with_labels(draw_labels(data.labels, data.split, per_class=2, seed=0))
    assert all(new.cube is old.cube for new, old in zip(few.scenes, data.scenes, strict=True))
    assert few.class_counts("train").tolist() == [2, 2, 2]
    np.testing.assert_array_equal(few.class_counts("test"), data.class_counts("test"))


def test_pixels_without_data_have_no_label(caplog: pytest.LogCaptureFixture):
    cube = striped_cube(16, 16)
    cube[:, 3, 3] = ENMAP.nodata
    cube[2, 5, 5] = ENMAP.nodata
    scene = Scene("one", cube, patchy_labels(16, 16, [0, 1]))
    assert scene.valid.sum() == 16 * 16 - 2
    assert scene.labels[3, 3] == scene.labels[5, 5] == UNLABELLED
    assert "2 labelled pixels lack data" in caplog.text

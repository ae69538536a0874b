"""Windows follow from (seed, epoch, index): the same again after an interruption, others in every epoch."""

import numpy as np
import pytest
import torch

from datasets_loading.windows import EpochSampler, GridWindows, RandomWindows, tile_to_windows, windows_to_tile


@pytest.fixture
def tiles():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 10000, (3, 16, size)).astype(np.int16) for size in (16, 24, 16)]


def all_windows(windows):
    return torch.stack([windows[index]["pixels"] for index in range(len(windows))])


def test_windows_are_cut_from_their_tile(tiles):
    windows = RandomWindows(tiles, (8, 8), windows_per_tile=20)
    assert len(windows) == 60
    for index in range(len(windows)):
        pixels = windows[index]["pixels"].numpy()
        assert pixels.dtype == np.int16 and windows[index]["window_index"] == index
        tile = tiles[index // 20]
        turns = [np.rot90(side, turn, (1, 2)) for side in (pixels, pixels[:, :, ::-1]) for turn in range(4)]
        corners = [(turn, *place) for turn in turns for place in np.argwhere(tile[0] == turn[0, 0, 0])]
        assert any(np.array_equal(tile[:, row : row + 8, column : column + 8], turn) for turn, row, column in corners)


def test_offsets_flips_and_turns_all_occur():
    tile = np.arange(9 * 9).reshape(1, 9, 9).astype(np.int16)
    windows = RandomWindows([tile], (8, 8), windows_per_tile=400)
    corners = {tuple(windows[index]["pixels"][0, [0, 0, -1], [0, -1, 0]].tolist()) for index in range(400)}
    assert len(corners) == 4 * 8  # four offsets, eight flips and turns
    oblong = RandomWindows([tile], (4, 8), windows_per_tile=50)
    assert all(oblong[index]["pixels"].shape == (1, 4, 8) for index in range(50))


def test_seed_epoch_and_index_decide(tiles):
    windows = RandomWindows(tiles, (8, 8), seed=1)
    first = all_windows(windows)
    assert torch.equal(first, all_windows(windows))
    assert torch.equal(first, all_windows(RandomWindows(tiles, (8, 8), seed=1)))
    windows.set_epoch(1)
    assert not torch.equal(first, all_windows(windows))
    assert not torch.equal(first, all_windows(RandomWindows(tiles, (8, 8), seed=2)))
    assert windows.windows_per_tile == 16 * 24 // 64


def test_epoch_sampler(tiles):
    sampler = EpochSampler(30, seed=4)
    first = list(sampler)
    assert sorted(first) == list(range(30)) and list(sampler) == first
    sampler.set_epoch(1)
    assert sorted(sampler) == list(range(30)) and list(sampler) != first


def test_grid_windows_cover_once(tiles):
    windows = GridWindows(tiles, (8, 8))
    assert len(windows) == 4 + 6 + 4
    assert all_windows(windows)[:4].flatten().sort().values.equal(torch.from_numpy(tiles[0]).flatten().sort().values)


@pytest.mark.parametrize(("size", "count"), [((8, 8), 6), ((4, 8), 12), ((16, 24), 1), (8, 6), (7, 12), ((5, 24), 4)])
def test_tile_to_windows_and_back(tiles, size, count):
    windows = tile_to_windows(tiles[1], size)
    assert windows.shape == (count, 3, *((size, size) if isinstance(size, int) else size))
    assert np.array_equal(windows_to_tile(windows, tiles[1].shape[1:]).numpy(), tiles[1])


def test_windows_larger_than_a_tile_are_refused(tiles):
    with pytest.raises(ValueError, match="windows of 1 to 16 pixels along an axis of 16, got 17"):
        tile_to_windows(tiles[1], (17, 8))


def test_windows_that_do_not_fit(tiles):
    with pytest.raises(ValueError, match="at least 20x20 pixels.*tile 0 has 16x16"):
        RandomWindows(tiles, (20, 20))
    with pytest.raises(ValueError, match="got none"):
        GridWindows([], (8, 8))

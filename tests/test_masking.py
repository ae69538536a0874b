"""Masks hide what their type says, in the count that was asked for."""

import pytest
import torch

from modeling_hsst import HSSTConfig, draw_mask
from modeling_hsst.modeling_hsst_masked import visible_grid

BLOCKS, GRID = 20, (8, 8)


def masks(mask_type, ratio, patch=4, seed=0, batch=32, blocks=BLOCKS, grid=GRID):
    generator = torch.Generator().manual_seed(seed)
    mask = draw_mask(
        batch, blocks, grid, mask_type=mask_type, mask_ratio=ratio, mask_patch_size=patch, generator=generator
    )
    assert mask.dtype == torch.bool and mask.shape == (batch, blocks * grid[0] * grid[1])
    return mask.view(batch, blocks, *grid)


@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.5, 0.7, 0.75, 0.99])
def test_unit_masks_have_the_exact_count(ratio):
    mask = masks("unit", ratio, batch=2000)
    assert (mask.flatten(1).sum(1) == round(ratio * 1280)).all()
    # every token as often as any other: six standard deviations of 2000 draws
    assert (mask.float().mean(0) - ratio).abs().max() < 6 * (ratio * (1 - ratio) / 2000) ** 0.5


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7, 0.75])
def test_block_masks_have_the_exact_count_in_squares(ratio):
    mask = masks("block", ratio)
    squares = mask.view(32, BLOCKS, 2, 4, 2, 4).permute(0, 1, 2, 4, 3, 5).flatten(4)
    assert (squares.all(-1) == squares.any(-1)).all()
    assert (mask.flatten(1).float().mean(1) - ratio).abs().max() < 0.5 / 80 + 1e-6
    assert not (mask[:, 0] == mask[:, 1]).flatten(1).all(1).all()  # each block has its own squares


@pytest.mark.parametrize(("ratio", "realised"), [(0.7, 0.75), (0.5, 0.5), (0.3, 0.25), (0.05, 0.25), (0.95, 0.75)])
def test_tube_masks_take_the_nearest_count_and_are_shared_by_the_blocks(ratio, realised):
    mask = masks("tube", ratio)
    assert (mask == mask[:, :1]).all()
    assert (mask.flatten(1).float().mean(1) == realised).all()


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7, 0.9, 0.98])
def test_grid_masks_leave_a_full_grid_visible(ratio):
    mask = masks("grid", ratio)
    visible = ~mask.flatten(2)
    blocks, positions = visible.any(2), visible.any(1)
    assert torch.equal(visible, blocks.unsqueeze(2) & positions.unsqueeze(1))
    counts = visible.flatten(1).sum(1)
    assert (counts == counts[0]).all()
    assert abs(1 - counts[0].item() / 1280 - ratio) < 0.02
    num_blocks, num_positions = blocks.sum(1)[0].item(), positions.sum(1)[0].item()
    assert 0.45 < (num_blocks / 20) / (num_positions / 64) < 2.2


@pytest.mark.parametrize("mask_type", ["unit", "block", "tube", "grid"])
@pytest.mark.parametrize("ratio", [0.001, 0.999])
def test_something_is_hidden_and_something_visible(mask_type, ratio):
    for blocks, grid in ((20, (8, 8)), (2, (4, 8)), (1, (8, 8))):
        mask = masks(mask_type, ratio, blocks=blocks, grid=grid).flatten(1)
        assert mask.any(1).all() and not mask.all(1).any()


@pytest.mark.parametrize("mask_type", ["unit", "block", "tube", "grid"])
def test_a_seed_gives_the_same_masks(mask_type):
    assert torch.equal(masks(mask_type, 0.6, seed=3), masks(mask_type, 0.6, seed=3))
    assert not torch.equal(masks(mask_type, 0.6, seed=3), masks(mask_type, 0.6, seed=4))


def test_visible_grid_comes_near():
    for ratio in (0.25, 0.5, 0.7, 0.75, 0.9):
        blocks, positions = visible_grid(20, 64, ratio)
        assert abs(blocks * positions / 1280 - (1 - ratio)) < 0.01


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 1.5])
def test_ratio_out_of_range(ratio):
    with pytest.raises(ValueError, match="between 0 and 1"):
        masks("unit", ratio)


def test_squares_must_fit_the_window():
    with pytest.raises(ValueError, match="got 7x7 positions and squares of 4x4"):
        masks("tube", 0.5, grid=(7, 7))
    with pytest.raises(ValueError, match="must be one of unit, even, block, tube, grid"):
        masks("cube", 0.5)


def test_default_configuration():
    config = HSSTConfig()
    assert masks(config.mask_type, config.mask_ratio, config.mask_patch_size).float().mean() == 0.75

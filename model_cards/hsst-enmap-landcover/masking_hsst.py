"""Which tokens are hidden in masked image modelling: unit, even, block, tube and grid masks.

Unit, block and tube masks follow Scheibenreif et al. (2023), with exact counts wherever the grid of positions allows;
grid masks leave a random subset of positions times a random subset of spectral blocks visible, so that the visible
tokens still form a full grid. Even masks are unit masks that leave the same number of tokens visible in every block,
and at every position, so that an encoder of visible tokens has sequences of one length.
"""

from typing import Any

import torch

MASK_TYPES = ("unit", "even", "block", "tube", "grid")
COUNTED_MASK_TYPES = ("even", "tube", "grid")
"""Those whose visible tokens are as many in every visible block, and at every visible position."""


def draw_mask(
    batch_size: int,
    num_blocks: int,
    grid_size: tuple[int, int],
    *,
    mask_type: str,
    mask_ratio: float,
    mask_patch_size: int = 1,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """
    Draws one mask for each window of a batch.

    Args:
        batch_size: number of windows.
        num_blocks: number of spectral blocks.
        grid_size: rows and columns of positions.
        mask_type: `"unit"`, `"even"`, `"block"`, `"tube"` or `"grid"`.
        mask_ratio: share of the tokens to hide; the nearest count that the mask type allows is hidden, never none and
            never all.
        mask_patch_size: side of the squares of block and tube masks, in positions.
        device: where the mask is drawn.
        generator: source of randomness on `device`; PyTorch's default one where absent.

    Returns:
        Bool tensor (batch_size, num_blocks * rows * columns), True where a token is hidden, in block-major order.

    Raises:
        ValueError: the grid is not divisible by the squares, the mask ratio is not between 0 and 1, there is no token
            to hide beside a visible one, an even mask cannot be made on the grid, or the mask type is unknown.
    """
    if not 0 < mask_ratio < 1:
        raise ValueError(f"`mask_ratio` must lie between 0 and 1 (exclusive), got {mask_ratio}.")
    rows, columns = grid_size
    draw: dict[str, Any] = {"device": device, "generator": generator}

    def random_subset(subset_size: int | torch.Tensor, *shape: int) -> torch.Tensor:
        """True at `subset_size` random places along the last of the dimensions (batch_size, *shape)."""
        order = torch.rand(batch_size, *shape, **draw).argsort(dim=-1).argsort(dim=-1)
        return order < subset_size

    if mask_type == "unit":
        num_tokens = num_blocks * rows * columns
        return random_subset(nearest_count(num_tokens, mask_ratio), num_tokens)

    if mask_type == "even":
        visible_blocks, _ = visible_evenly(num_blocks, rows * columns, mask_ratio)
        # Groups of positions deal all blocks out among themselves, each position getting as many
        hands = torch.rand(batch_size, rows * columns * visible_blocks // num_blocks, num_blocks, **draw).argsort(-1)
        order = torch.rand(batch_size, rows * columns, **draw).argsort(-1)
        hands = hands.reshape(batch_size, rows * columns, visible_blocks).gather(
            1, order[:, :, None].expand(-1, -1, visible_blocks)
        )
        hidden = torch.ones(batch_size, rows * columns, num_blocks, dtype=torch.bool, device=device)
        return hidden.scatter(2, hands, False).transpose(1, 2).flatten(1)

    if mask_type in ("block", "tube"):
        if rows % mask_patch_size or columns % mask_patch_size:
            raise ValueError(
                f"Masks of type {mask_type!r} need a grid of positions divisible by `mask_patch_size`, got "
                f"{rows}x{columns} positions and squares of {mask_patch_size}x{mask_patch_size}."
            )
        square_rows, square_columns = rows // mask_patch_size, columns // mask_patch_size
        num_squares = square_rows * square_columns
        if mask_type == "tube":
            squares = random_subset(nearest_count(num_squares, mask_ratio), 1, num_squares)
            squares = squares.expand(-1, num_blocks, -1)
        else:
            # Every block hides the same number of squares, and random ones of them one more, so that the sum is exact
            per_block, remainder = divmod(nearest_count(num_blocks * num_squares, mask_ratio), num_blocks)
            hidden_in_block = per_block + random_subset(remainder, num_blocks).long()
            squares = random_subset(hidden_in_block.unsqueeze(-1), num_blocks, num_squares)
        squares = squares.reshape(batch_size, num_blocks, square_rows, square_columns)
        mask = squares.repeat_interleave(mask_patch_size, dim=2).repeat_interleave(mask_patch_size, dim=3)
        return mask.flatten(1)

    if mask_type == "grid":
        visible_blocks, visible_positions = visible_grid(num_blocks, rows * columns, mask_ratio)
        blocks = random_subset(visible_blocks, num_blocks)
        positions = random_subset(visible_positions, rows * columns)
        return ~(blocks.unsqueeze(2) & positions.unsqueeze(1)).flatten(1)

    raise ValueError(f"`mask_type` must be one of {', '.join(MASK_TYPES)}, got {mask_type!r}.")


def nearest_count(total: int, ratio: float) -> int:
    """The count nearest to `ratio * total` that leaves at least one hidden and one visible."""
    if total < 2:
        raise ValueError(f"A mask needs at least 2 units to hide one and show one, got {total}.")
    return min(max(round(ratio * total), 1), total - 1)


def visible_counts(
    num_blocks: int, grid_size: tuple[int, int], *, mask_type: str, mask_ratio: float, mask_patch_size: int = 1
) -> tuple[int, int]:
    """
    How many blocks and how many positions a tube or grid mask (see `draw_mask`) leaves visible; of an even mask, how
    many blocks at each position and how many positions in each block.

    Raises:
        ValueError: the mask is of another type, whose visible tokens are not as many everywhere.
    """
    rows, columns = grid_size
    if mask_type == "even":
        return visible_evenly(num_blocks, rows * columns, mask_ratio)
    if mask_type == "tube":
        squares = (rows // mask_patch_size) * (columns // mask_patch_size)
        return num_blocks, (squares - nearest_count(squares, mask_ratio)) * mask_patch_size**2
    if mask_type == "grid":
        return visible_grid(num_blocks, rows * columns, mask_ratio)
    raise ValueError(
        f"Visible tokens are as many everywhere under masks of type {', '.join(COUNTED_MASK_TYPES)} only, got "
        f"{mask_type!r}."
    )


def visible_evenly(num_blocks: int, num_positions: int, mask_ratio: float) -> tuple[int, int]:
    """
    How many blocks an even mask leaves visible at each position, and how many positions in each block.

    A number of blocks that divides them is taken, the one that comes nearest to the asked share.

    Raises:
        ValueError: the positions cannot deal the blocks out evenly.
    """
    counts = [
        count for count in range(1, num_blocks) if num_blocks % count == 0 and num_positions * count % num_blocks == 0
    ]
    if not counts:
        raise ValueError(
            f"Even masks need a number of positions that shares the blocks out, got {num_positions} positions and "
            f"{num_blocks} blocks; masks of type unit fit any."
        )
    visible = min(counts, key=lambda count: abs(count / num_blocks - (1 - mask_ratio)))
    return visible, num_positions * visible // num_blocks


def visible_grid(num_blocks: int, num_positions: int, mask_ratio: float) -> tuple[int, int]:
    """
    How many blocks and how many positions a grid mask leaves visible.

    Blocks and positions are thinned about equally (each by the square root of the visible share); among the nearly
    even ways the one whose product comes nearest to the asked share is taken.
    """
    num_tokens = num_blocks * num_positions
    wanted = num_tokens - nearest_count(num_tokens, mask_ratio)
    even = num_blocks * (wanted / num_tokens) ** 0.5
    best: tuple[float, float, int, int] | None = None
    for blocks in range(max(1, int(0.8 * even)), min(num_blocks, int(1.25 * even) + 1) + 1):
        positions = min(max(round(wanted / blocks), 1), num_positions)
        if blocks * positions == num_tokens:
            positions -= 1
        if positions < 1:
            continue
        candidate = (abs(blocks * positions - wanted), abs(blocks - even), blocks, positions)
        best = candidate if best is None else min(best, candidate)
    if best is None:
        raise ValueError(f"No grid of {num_blocks} blocks and {num_positions} positions hides {mask_ratio:.0%}.")
    return best[2], best[3]


__all__ = ["COUNTED_MASK_TYPES", "MASK_TYPES", "draw_mask"]

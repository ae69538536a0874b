"""Splits of labelled scenes that cannot leak: areas apart in space, a buffer between them, and the proof.

Training and test pixels of one scene are kept apart by blocks or areas with a buffer of at least the radius of the
windows that will be cut, never drawn as random pixels, whose neighbors a model would already have seen (Liang et al.
2017, arXiv 1605.05829; Nalepa et al. 2019, arXiv 1811.03707).

A split holds, for every pixel of every scene, a code: 0 train, 1 validation, 2 test, 255 none of them (a buffer, or
outside the chosen areas). Scenes are taken to lie apart from each other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from datasets_loading.files import write_text, written_whole
from datasets_loading.raster_file import ProductError, read_text_file

SPLITS = ("train", "validation", "test")
"""Names of the splits; the position of a name is its code."""

NO_SPLIT = 255
"""Code of a pixel in no split."""

UNLABELLED = 255
"""Label of a pixel without one."""

FORMAT = "hsst-split-1"

# Blocks are dealt several times and the best dealing is taken: more often where there are fewer pixels to look at.
_MOST_DEALINGS, _FEWEST_DEALINGS, _DEALT_PIXELS = 200, 20, 10_000_000

Labels = Mapping[str, np.ndarray]
"""Labels of each scene by its name, uint8 (height, width), `UNLABELLED` where there is none."""


class SplitError(ValueError):
    """A split that leaks, is empty, or does not belong to the labels. The message is one line."""


@dataclass(frozen=True)
class Area:
    """A rectangle of a scene: rows and columns from the first to before the last."""

    scene: str
    first_row: int
    last_row: int
    first_column: int
    last_column: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.first_row, self.last_row), slice(self.first_column, self.last_column)


@dataclass(eq=False)
class Split:
    """Which pixel belongs to which split.

    Attributes:
        codes: codes of each scene by its name, uint8 (height, width).
        buffer: pixels between two splits are at least this many pixels apart, counting along rows and columns.
        settings: how the split was made, as JSON can hold it.
    """

    codes: dict[str, np.ndarray]
    buffer: int
    settings: dict[str, Any]

    def mask(self, scene: str, split: str) -> np.ndarray:
        """Pixels of a scene that belong to a split, bool (height, width)."""
        return np.equal(self.codes[scene], SPLITS.index(split))

    def labels_of(self, labels: Labels, split: str) -> dict[str, np.ndarray]:
        """Labels of one split: those of all other pixels are `UNLABELLED`."""
        return {name: np.where(self.mask(name, split), values, UNLABELLED) for name, values in labels.items()}


def split_by_blocks(
    labels: Labels, *, block_size: int, buffer: int, shares: Sequence[float] = (0.6, 0.2, 0.2), seed: int = 0
) -> Split:
    """Cuts scenes into square blocks and shares these out, so that every split gets its share of every class.

    Blocks are dealt class by class, the rarest first, to the split that lacks most of it (iterative stratification,
    Sechidis et al. 2011). Blocks without labels go to training; those at the right and lower edge may be smaller.

    Args:
        buffer: radius of the largest window that will be cut, in pixels; training pixels as near as that to another
            split, and validation pixels as near to the test blocks, are given up.
        shares: shares of the labels for training, validation and test; may be 0.

    Raises:
        SplitError: a split with a share gets no labelled pixel.
    """
    _check_shares(shares)
    if block_size < 1:
        raise ValueError(f"expected blocks of at least 1 pixel, got {block_size}")
    codes: dict[str, np.ndarray] = {name: np.zeros(values.shape, dtype=np.uint8) for name, values in labels.items()}
    settings = {"kind": "blocks", "block_size": block_size, "shares": list(shares), "seed": seed}
    split = Split(_deal_blocks(labels, codes, block_size, shares, buffer, seed), buffer, settings)
    _check_not_empty(split, labels, [name for name, share in zip(SPLITS, shares, strict=True) if share > 0])
    return split


def split_by_areas(labels: Labels, areas: Mapping[str, Sequence[Area]], *, buffer: int) -> Split:
    """Splits by given rectangles; pixels in none of them belong to no split.

    Args:
        areas: rectangles of each split, by the names in `SPLITS`.
        buffer: as in `split_by_blocks`; test areas stay whole.

    Raises:
        SplitError: areas of two splits overlap (the pixels are counted), an area reaches beyond its scene, or a named
            split has no labelled pixel.
    """
    unknown = set(areas) - set(SPLITS)
    if unknown:
        raise SplitError(f"expected splits among {', '.join(SPLITS)}, got {', '.join(sorted(map(str, unknown)))}")
    codes: dict[str, np.ndarray] = {
        name: np.full(values.shape, NO_SPLIT, dtype=np.uint8) for name, values in labels.items()
    }
    for split_name in areas:
        for area in areas[split_name]:
            if area.scene not in codes:
                raise SplitError(f"expected areas of the scenes {', '.join(codes)}, got one of {area.scene!r}")
            height, width = codes[area.scene].shape
            rows, columns = area.slices
            inside = 0 <= area.first_row < area.last_row <= height
            if not (inside and 0 <= area.first_column < area.last_column <= width):
                raise SplitError(f"expected areas inside the {height} x {width} pixels of {area.scene}, got {area}")
            part = codes[area.scene][rows, columns]
            taken = (part != NO_SPLIT) & (part != SPLITS.index(split_name))
            if taken.any():
                other = SPLITS[int(part[taken][0])]
                raise SplitError(
                    f"expected areas that do not overlap, got {int(taken.sum())} pixels of {area.scene} in both "
                    f"{other} and {split_name}"
                )
            part[:] = SPLITS.index(split_name)
    listed = {name: [list(astuple(area)) for area in areas[name]] for name in areas}
    settings = {"kind": "areas", "areas": listed}
    split = Split(_with_buffer(codes, buffer), buffer, settings)
    _check_not_empty(split, labels, list(areas))
    return split


def split_by_scenes(labels: Labels, scenes: Mapping[str, Sequence[str]], *, buffer: int) -> Split:
    """Splits by whole scenes, named for each split; arguments and errors as in `split_by_areas`."""
    missing = {name for names in scenes.values() for name in names} - set(labels)
    if missing:
        raise SplitError(f"expected scenes among {', '.join(labels)}, got {', '.join(sorted(missing))}")
    areas = {
        split_name: [Area(name, 0, labels[name].shape[0], 0, labels[name].shape[1]) for name in names]
        for split_name, names in scenes.items()
    }
    split = split_by_areas(labels, areas, buffer=buffer)
    return replace(split, settings={"kind": "scenes", "scenes": {name: list(scenes[name]) for name in scenes}})


def with_validation(split: Split, labels: Labels, *, share: float, block_size: int, seed: int = 0) -> Split:
    """Turns blocks with a share of the training labels (0 to 1) into a validation area, with the same buffer around.

    Raises:
        SplitError: the split has validation pixels, or training or validation ends up without labelled pixels.
    """
    if not 0 < share < 1:
        raise ValueError(f"expected a share of validation between 0 and 1, got {share}")
    if any(split.mask(name, "validation").any() for name in split.codes):
        raise SplitError("expected a split without validation pixels, got one with them")
    codes = _deal_blocks(labels, split.codes, block_size, (1 - share, share, 0.0), split.buffer, seed)
    settings = {**split.settings, "validation": {"share": share, "block_size": block_size, "seed": seed}}
    result = Split(codes, split.buffer, settings)
    _check_not_empty(result, labels, ["train", "validation"])
    return result


def draw_labels(
    labels: Labels, split: Split, *, fraction: float | None = None, per_class: int | None = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """Keeps few of the training labels, drawn by class; labels of other splits stay as they are.

    With the same seed a smaller budget is part of a larger one.

    Args:
        fraction: share of the training labels of each class, rounded, at least one label; 1 keeps all.
        per_class: number of labels of each class instead; a class with fewer keeps what it has.

    Returns:
        Labels of all scenes, uint8 (height, width); training pixels that were not drawn are `UNLABELLED`.

    Raises:
        ValueError: not exactly one budget, or a budget of nothing.
        SplitError: fewer than two classes have training labels.
    """
    if (fraction is None) == (per_class is None):
        raise ValueError("expected either a fraction or a number of labels per class")
    if fraction is not None and not 0 < fraction <= 1:
        raise ValueError(f"expected a fraction of the labels above 0 and up to 1, got {fraction}")
    if per_class is not None and per_class < 1:
        raise ValueError(f"expected at least 1 label per class, got {per_class}")
    training = split.labels_of(labels, "train")
    flat = np.concatenate([values.ravel() for values in training.values()])
    classes = np.setdiff1d(np.unique(flat), [UNLABELLED])
    if len(classes) < 2:
        raise SplitError(f"expected training labels of at least 2 classes, got {len(classes)}")
    drawn = np.full(len(flat), UNLABELLED, dtype=np.uint8)
    for label in classes:
        # A generator of its own for each class: another class's pixels do not change the draw of this one.
        places = np.random.default_rng((seed, int(label))).permutation(np.flatnonzero(flat == label))
        count = min(per_class, len(places)) if per_class is not None else max(1, round((fraction or 0) * len(places)))
        drawn[places[:count]] = label
    kept = {}
    start = 0
    for name, values in labels.items():
        own = drawn[start : start + values.size].reshape(values.shape)
        kept[name] = np.where(split.mask(name, "train"), own, values)
        start += values.size
    return kept


def window_margins(window_size: int) -> tuple[int, int]:
    """Pixels of a window before and after its center, which is its pixel (size // 2, size // 2)."""
    return window_size // 2, window_size - 1 - window_size // 2


def count_overlaps(split: Split, window_size: int) -> dict[tuple[str, str], dict[str, int]]:
    """Pixels of one split inside windows that are centered on pixels of another, `window_size` pixels wide and high.

    Returns:
        For each pair, ("train", "validation"), ("train", "test") and ("validation", "test"), the number of pixels of
        the second that windows of the first touch, by scene; scenes without overlap are left out.
    """
    before, after = window_margins(window_size)
    overlaps: dict[tuple[str, str], dict[str, int]] = {}
    for first, second in combinations(SPLITS, 2):
        counts = {}
        for scene in split.codes:
            # A window holds this pixel where its center lies up to `after` pixels before or `before` pixels after it.
            seen = box_counts(split.mask(scene, first), after, before) > 0
            counts[scene] = int((seen & split.mask(scene, second)).sum())
        overlaps[first, second] = {scene: count for scene, count in counts.items() if count}
    return overlaps


def all_for_test(labels: Labels) -> Split:
    """Every pixel for test: for models that are not trained on any."""
    codes = {name: np.full(values.shape, SPLITS.index("test"), dtype=np.uint8) for name, values in labels.items()}
    return Split(codes, 0, {"kind": "all for test"})


def check_split(split: Split, window_size: int) -> None:
    """Proves that no window centered on a training pixel touches a test or validation pixel, nor one of validation a
    test pixel; `window_size` is the side of the largest window that will be cut, in pixels.

    Raises:
        SplitError: windows overlap; the message counts the touched pixels.
    """
    for (first, second), counts in count_overlaps(split, window_size).items():
        if counts:
            scenes = ", ".join(f"{scene}: {count}" for scene, count in list(counts.items())[:4])
            raise SplitError(
                f"expected no {first} window of {window_size} x {window_size} pixels to touch a {second} pixel, got "
                f"{sum(counts.values())} touched {second} pixels ({scenes}{', ...' if len(counts) > 4 else ''}): a "
                f"buffer of {window_size // 2} pixels is needed, this split has {split.buffer}"
            )


def write_split(split: Split, path: str | Path, labels: Labels) -> Path:
    """Writes a split as `path`, whose ending becomes `.json`, and the codes beside it (`.npz`); gives the JSON file.

    The JSON holds `format`, `buffer`, `settings`, `codes` (the name of the file of codes) and `scenes`: for each one
    its name, shape, SHA-256 of codes and of labels, and the number of labelled pixels of each split. The codes are
    uint8 arrays `scene_0`, `scene_1`, ... in that order.
    """
    path = Path(path).with_suffix(".json")
    codes_path = path.with_suffix(".npz")
    entries = [
        {
            "name": name,
            "shape": list(codes.shape),
            "codes_sha256": _checksum(codes),
            "labels_sha256": _checksum(labels[name]),
            "labelled_pixels": {
                part: int((split.mask(name, part) & (labels[name] != UNLABELLED)).sum()) for part in SPLITS
            },
        }
        for name, codes in split.codes.items()
    ]
    description = {
        "format": FORMAT,
        "buffer": split.buffer,
        "settings": split.settings,
        "codes": codes_path.name,
        "scenes": entries,
    }
    arrays: dict[str, Any] = {f"scene_{number}": codes for number, codes in enumerate(split.codes.values())}
    with written_whole(codes_path) as partial:
        np.savez_compressed(partial, **arrays)
    return write_text(path, json.dumps(description, indent=1) + "\n")


def read_split(path: str | Path, labels: Labels | None = None) -> Split:
    """Reads a split that `write_split` wrote, and checks that labels, where given, are those it was made for.

    Raises:
        SplitError: a file is missing, damaged or changed, or the labels or scenes are others.
    """
    path = Path(path)
    try:
        description = json.loads(read_text_file(path, "a split file"))
    except ProductError as error:
        raise SplitError(str(error)) from None
    except (ValueError, RecursionError) as error:
        raise SplitError(f"{path}: expected JSON, got something else ({error})") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise SplitError(f"{path}: expected a split file with the format {FORMAT}, got something else")
    try:
        codes_path, entries = path.with_name(description["codes"]), description["scenes"]
        buffer, settings = int(description["buffer"]), description["settings"]
        texts = [entry[key] for entry in entries for key in ("name", "codes_sha256", "labels_sha256")]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("names and checksums that are no texts")
    except (KeyError, TypeError, ValueError) as error:  # the last one of a name with slashes, too
        raise SplitError(f"{path}: expected a split file of the format {FORMAT}, got one without {error}") from None
    try:
        with np.load(codes_path) as file:
            codes = {entry["name"]: file[f"scene_{number}"] for number, entry in enumerate(entries)}
    except Exception as error:  # a damaged archive raises errors of zipfile, zlib or NumPy
        reason = " ".join(str(error).split())
        raise SplitError(f"{codes_path}: expected the codes of {path.name}, got nothing readable ({reason})") from None
    if labels is not None and set(labels) != set(codes):
        raise SplitError(f"{path}: expected a split of the scenes {', '.join(labels)}, got {', '.join(codes)}")
    for entry in entries:
        if _checksum(codes[entry["name"]]) != entry["codes_sha256"]:
            raise SplitError(f"{codes_path}: expected the codes that {path.name} describes, got others")
        if labels is not None and _checksum(labels[entry["name"]]) != entry["labels_sha256"]:
            raise SplitError(f"{path}: expected the labels of {entry['name']} that the split was made for, got others")
    return Split(codes, buffer, settings)


def box_counts(mask: np.ndarray, before: int, after: int) -> np.ndarray:
    """Number of true pixels within `before` pixels up and left and `after` pixels down and right of each pixel.

    The pixel itself counts, too; int64 (height, width) of a mask of the same shape, beyond which nothing is true.
    """
    height, width = mask.shape
    sums = np.zeros((height + 1, width + 1), dtype=np.int64)
    sums[1:, 1:] = mask.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    top, bottom = (np.clip(np.arange(height) + shift, 0, height) for shift in (-before, after + 1))
    left, right = (np.clip(np.arange(width) + shift, 0, width) for shift in (-before, after + 1))
    return (
        sums[np.ix_(bottom, right)] - sums[np.ix_(top, right)] - sums[np.ix_(bottom, left)] + sums[np.ix_(top, left)]
    )


def _with_buffer(codes: dict[str, np.ndarray], buffer: int) -> dict[str, np.ndarray]:
    """Codes in which training gives way to validation and test, and validation to test; test stays whole."""
    if buffer < 0:
        raise ValueError(f"expected a buffer of at least 0 pixels, got {buffer}")
    train, validation, test = range(3)
    buffered = {}
    for name, values in codes.items():
        kept = values.copy()
        for code, stronger in ((train, (validation, test)), (validation, (test,))):
            near = box_counts(np.isin(values, stronger), buffer, buffer) > 0
            kept[(values == code) & near] = NO_SPLIT
        buffered[name] = kept
    return buffered


def _deal_blocks(
    labels: Labels, codes: Mapping[str, np.ndarray], block_size: int, shares: Sequence[float], buffer: int, seed: int
) -> dict[str, np.ndarray]:
    """Codes in which the training pixels of `codes` were dealt by blocks, and buffers laid.

    How many labels a buffer costs is only known afterwards: of several dealings that is taken whose shares of each
    class, buffers off, come nearest to those wanted.
    """
    training = Split(dict(codes), buffer, {}).labels_of(labels, "train")
    num_classes = (
        max((int(values[values != UNLABELLED].max(initial=0)) for values in training.values()), default=0) + 1
    )
    blocks = []
    for name, values in training.items():
        for row in range(0, values.shape[0], block_size):
            for column in range(0, values.shape[1], block_size):
                part = np.s_[row : row + block_size, column : column + block_size]
                blocks.append((name, part, np.bincount(values[part].ravel(), minlength=256)[:num_classes]))
    table = np.array([counts for _, _, counts in blocks], dtype=np.float64).reshape(len(blocks), num_classes)
    wanted = np.asarray(shares, dtype=np.float64)[:, None] * table.sum(axis=0)
    expected = (np.asarray(shares)[:, None] > 0) & table.any(axis=0)
    num_pixels = sum(values.size for values in codes.values())
    best, smallest_error = dict(codes), np.inf
    for attempt in range(int(np.clip(_DEALT_PIXELS // num_pixels, _FEWEST_DEALINGS, _MOST_DEALINGS))):
        dealt = {name: np.array(values) for name, values in codes.items()}
        generator = np.random.default_rng((seed, attempt))
        for (name, part, _), code in zip(blocks, _stratify(table, np.asarray(shares), generator), strict=True):
            dealt[name][part][codes[name][part] == 0] = code
        dealt = _with_buffer(dealt, buffer)
        kept = np.array(
            [
                sum(np.bincount(training[name][dealt[name] == code], minlength=256)[:num_classes] for name in dealt)
                for code in range(len(SPLITS))
            ]
        )
        # A class that a split lacks altogether cannot be tested there, which is worse than any other share of it.
        error = float((np.abs(kept - wanted) / np.maximum(table.sum(axis=0), 1) + (expected & (kept == 0))).sum())
        if error < smallest_error:
            best, smallest_error = dealt, error
    return best


def _stratify(counts: np.ndarray, shares: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Split of each block, int64 (blocks,), so that splits get their shares of `counts` (blocks, classes)."""
    wanted = shares[:, None] * counts.sum(axis=0)  # (splits, classes)
    wanted[shares == 0] = -np.inf
    dealt = np.zeros(len(counts), dtype=np.int64)
    # The blocks with most of a class come first, give or take: with chance in it, dealings differ.
    weights = counts * generator.uniform(0.25, 1.0, (len(counts), 1))
    left = np.array(counts.any(axis=1))
    while left.any():
        remaining = counts[left].sum(axis=0)
        rarest = int(np.where(remaining > 0, remaining, np.inf).argmin())
        block = int(np.where(left, weights[:, rarest], -1.0).argmax())
        lacking = wanted[:, rarest]
        candidates = np.flatnonzero(lacking == lacking.max())
        split = candidates[wanted[candidates].sum(axis=1).argmax()]
        wanted[split] -= counts[block]
        dealt[block] = split
        left[block] = False
    return dealt


def _check_shares(shares: Sequence[float]) -> None:
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"expected shares of train, validation and test that add up to 1, got {tuple(shares)}")


def _check_not_empty(split: Split, labels: Labels, names: Sequence[str]) -> None:
    for part in names:
        if all((values == UNLABELLED).all() for values in split.labels_of(labels, part).values()):
            raise SplitError(
                f"expected labelled pixels in {part}, got none: smaller blocks, a smaller buffer or other areas are "
                "needed"
            )


def _checksum(values: np.ndarray) -> str:
    return hashlib.sha256(repr(values.shape).encode() + values.astype(np.uint8).tobytes()).hexdigest()

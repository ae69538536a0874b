"""How what is frozen in golden.json is written, and when it counts as the same.

* Floats are written in hexadecimal, several in a string. Processors round differently: each may be off by `TOLERANCE`
  times the largest of its string.
* "... pixels" are pictures of classes, a letter for each. `PIXEL_TOLERANCE` of them may be of another class.
* `bits` are hashes of what rounding decides in the end; they are compared where every bit is.
* All else has to be equal: hashes of names and of integers, confusion matrices.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

TOLERANCE = 1e-4
PIXEL_TOLERANCE = 5e-3


def floats(values: Any) -> str:
    """Floats in hexadecimal, which keeps every bit."""
    return " ".join(float(value).hex() for value in values)


def summary(values: torch.Tensor) -> dict[str, str]:
    """Sum, sum of magnitudes, and 32 of the values, from all over the tensor."""
    flat = values.detach().double().flatten()
    places = torch.linspace(0, len(flat) - 1, 32).long()
    # The sum is as exact as the sum of magnitudes beside it, however much of it cancels out
    return {"sum, sum of magnitudes": floats([flat.sum(), flat.abs().sum()]), "values": floats(flat[places])}


def sha256(*parts: Any) -> str:
    """Of arrays with their types and shapes, and of what Python writes in one way only."""
    digest = hashlib.sha256()
    for part in parts:
        is_array = isinstance(part, np.ndarray)
        digest.update(f"{part.dtype} {part.shape} ".encode() + part.tobytes() if is_array else repr(part).encode())
    return digest.hexdigest()


def picture(classes: np.ndarray) -> list[str]:
    """Classes (height, width) as rows of letters, 255 as a dot."""
    return ["".join("." if number == 255 else chr(ord("A") + number) for number in row) for row in classes.tolist()]


def differences(expected: Any, found: Any, exact: bool = False, place: str = "") -> Iterator[str]:
    """A line for each value that is not what it was."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in [*expected, *(key for key in found if key not in expected)]:
            if exact or key != "bits":
                yield from differences(expected.get(key), found.get(key), exact, f"{place}/{key}")
    elif expected != found and (exact or not agree(expected, found, place.endswith("pixels"))):
        yield f"{place}: expected {expected}, got {found}"


def agree(expected: Any, found: Any, are_pixels: bool) -> bool:
    """Whether pictures, or floats, differ by no more than rounding may bring about."""
    if expected is None or found is None:
        return False
    if are_pixels:
        same_shape = [len(row) for row in expected] == [len(row) for row in found]
        pairs = list(zip("".join(expected), "".join(found), strict=False))
        return same_shape and sum(old != new for old, new in pairs) <= PIXEL_TOLERANCE * len(pairs)
    if not all(isinstance(text, str) and "0x" in text for text in (expected, found)):
        return False
    old, new = ([float.fromhex(number) for number in text.split()] for text in (expected, found))
    return len(old) == len(new) and bool(np.abs(np.subtract(old, new)).max() <= TOLERANCE * np.abs(old).max())

"""The code computes what it did when `tests/golden/golden.json` was written."""

import copy
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from golden import make
from golden.comparison import PIXEL_TOLERANCE, TOLERANCE, differences, floats

EXPECTED = json.loads(make.GOLDEN.read_text(encoding="utf-8"))
SLOW = ("confusion",)

compute = cache(make.compute)


@pytest.mark.parametrize(
    "section", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in make.SECTIONS]
)
def test_code_computes_what_it_did(section: str) -> None:
    assert list(differences(EXPECTED[section], compute(section))) == []


def test_fast_layers_are_fast() -> None:
    """They compute what plain layers do, to rounding: without any they would not have been in use."""
    found = compute("losses")
    for name in ("as published", "visible only"):
        plain, fast = found[f"{name}: plain"], found[f"{name}: fast"]
        assert list(differences(plain, fast)) == []
        assert plain != fast


def leaves(content: dict[str, Any], *place: str) -> Iterator[tuple[str, ...]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from leaves(value, *place, key)
        else:
            yield (*place, key)


def changed(place: tuple[str, ...], tolerances: float) -> dict[str, Any]:
    """What was expected with one value changed, floats and pixels by a multiple of what is tolerated."""
    content = copy.deepcopy(EXPECTED)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    value = inner[place[-1]]
    if place[-1].endswith("pixels"):
        others = round(tolerances * PIXEL_TOLERANCE * sum(map(len, value)))
        inner[place[-1]] = ["z" * others + value[0][others:], *value[1:]]
    elif isinstance(value, str) and "0x" in value:
        numbers = [float.fromhex(number) for number in value.split()]
        numbers[-1] += tolerances * TOLERANCE * max(map(abs, numbers))
        inner[place[-1]] = floats(numbers)
    else:
        inner[place[-1]] = None
    return content


@pytest.mark.parametrize("section", make.SECTIONS)
def test_every_value_is_compared(section: str) -> None:
    for place in leaves(EXPECTED[section], section):
        assert len(list(differences(EXPECTED, changed(place, 2.0), exact=True))) == 1
        assert len(list(differences(EXPECTED, changed(place, 2.0)))) == int("bits" not in place)
        if place[-1].endswith(("pixels", "values", "loss")):
            assert len(list(differences(EXPECTED, changed(place, 0.5), exact=True))) == 1
            assert list(differences(EXPECTED, changed(place, 0.5))) == []

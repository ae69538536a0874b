"""Programs that are killed at random and started again end as if nothing had been: soak.py, in short and at length."""

import pytest
from soak import PROGRAMS, soak


@pytest.mark.parametrize(
    ("name", "kills"),
    [("pretraining", 1), *(pytest.param(name, 25, marks=pytest.mark.slow) for name in PROGRAMS)],
)
def test_killed_programs_end_as_undisturbed_ones(tmp_path, name, kills):
    result = soak(name, kills, 0, tmp_path)
    assert result["messages"] == [] and result["kills"] == kills
    assert result["equal"] == result["finished"] > 0

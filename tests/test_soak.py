"""Programs that are killed at random and started again end as if nothing had been: soak.py at length."""

import pytest
from soak import PROGRAMS, soak


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_killed_programs_end_as_undisturbed_ones(tmp_path, name):
    result = soak(name, 25, 0, tmp_path)
    assert result["messages"] == [] and result["kills"] == 25
    assert result["equal"] == result["finished"] > 0

"""Bad input of every kind: refused in a line or harmless, never a traceback, a hang, a guess, code that runs."""

import pytest
from faults.harness import GOOD_OUTCOMES, PROCESSES, Fault, in_own_process, try_fault


def bad_outcomes(groups, every=1):
    tried = in_own_process(groups, every)
    assert tried
    return [entry for entry in tried if entry.outcome not in GOOD_OUTCOMES]


@pytest.mark.parametrize("groups", PROCESSES, ids=" and ".join)
def test_a_sample_of_faults_is_refused_or_harmless(groups):
    """Some of each kind."""
    assert bad_outcomes(groups, every=40) == []


@pytest.mark.slow
@pytest.mark.parametrize("groups", PROCESSES, ids=" and ".join)
def test_every_fault_is_refused_or_harmless(groups):
    assert bad_outcomes(groups) == []


def raises(error):
    def read(folder):
        raise error

    return read


def connects(folder):
    import urllib.request

    urllib.request.urlopen("http://example.org")


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda folder: "right", "harmless"),
        (lambda folder: "wrong", "silent"),
        (raises(ValueError("a.tif: expected a raster, got text")), "refused"),
        (raises(ValueError("no raster")), "unnamed"),
        (raises(KeyError("band")), "traceback"),
        (lambda folder: bytearray(2**31), "memory"),
        (lambda folder: (folder.parent / "executed").touch(), "executed"),
        (lambda folder: (folder.parent / "precious.json").unlink(), "outside"),
        (lambda folder: (folder / "beside").touch(), "outside"),
        (connects, "fetched"),
    ],
)
def test_the_harness_sees_what_went_wrong(read, expected):
    fault = Fault("a fault", "a kind", lambda folder: (folder / "a.tif").touch(), read, "right", "a.tif")
    assert try_fault(fault).outcome == expected

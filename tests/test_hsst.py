"""The package `hsst`: one import for all public names, one command for all programs."""

import subprocess
import sys

import pytest

import hsst
from hsst.__main__ import PROGRAMS


@pytest.mark.parametrize("name", hsst.__all__)
def test_every_public_name_is_there(name):
    assert callable(getattr(hsst, name)) and name in dir(hsst)
    # A program of this name would take its place as soon as it is imported
    assert name not in PROGRAMS


def test_other_names_are_not():
    with pytest.raises(AttributeError, match="module 'hsst' has no attribute 'nothing'"):
        hsst.nothing  # noqa: B018


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "hsst", *arguments], capture_output=True, text=True)


def test_import_and_overview_load_nothing_heavy():
    code = "import sys, hsst; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    listed = run("--help").stdout
    assert all(program in listed for program in PROGRAMS) and {"run_mim", "predict_scene", "publish"} <= set(PROGRAMS)


def test_a_program_runs_by_its_name():
    shown = run("inspect_images", "--help")
    assert shown.returncode == 0 and shown.stdout.startswith("usage: hsst inspect_images")


def test_an_unknown_program_is_one_line():
    process = run("predict")
    assert process.returncode == 2 and process.stderr.count("\n") == 1
    assert "expected a program among" in process.stderr and process.stderr.rstrip().endswith("got predict")

"""The package `hsst`: one import for all public names, one command for all programs."""

import importlib
import subprocess
import sys

import pytest

import hsst
from hsst.__main__ import COMMANDS, PROGRAMS


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
    programs = {program for program, _ in COMMANDS.values()}
    assert all(name in listed for name in {*COMMANDS, *PROGRAMS} - programs)


def test_a_program_runs_by_its_name():
    shown = run("inspect_images", "--help")
    assert shown.returncode == 0 and shown.stdout.startswith("usage: hsst inspect_images")


def test_an_unknown_program_is_one_line():
    process = run("paint")
    assert process.returncode == 2 and process.stderr.count("\n") == 1
    assert "expected a command among" in process.stderr and process.stderr.rstrip().endswith("got paint")


def test_commands_run_the_scripts(tmp_path):
    assert run("--version").stdout == f"hsst {hsst.__version__}\n"
    assert {program for program, _ in COMMANDS.values()} <= set(PROGRAMS)
    shown = run("predict", "--help")
    assert shown.returncode == 0 and shown.stdout.startswith("usage: hsst predict")
    refused = run("features", tmp_path / "scene.tif", "--model", "none", "--output", tmp_path / "x.tif", "--html")
    assert refused.returncode == 2
    assert refused.stderr == "hsst features: error: --features: expected no flag of maps, got --html\n"
    assert "invalid choice" in run("features", "x", "--model", "m", "--output", "y", "--features", "all").stderr


def test_help_and_refusals_of_maps_do_not_wait_for_torch(tmp_path):
    code = "import sys; from hsst.__main__ import main; sys.argv[1:] = {}\n"
    code += "try: main()\nfinally: print('torch' in sys.modules)"
    for arguments in (
        ["predict", "--help"],
        ["predict", str(tmp_path / "none.tif"), "--model", "m", "--output", "o.tif"],
    ):
        process = subprocess.run([sys.executable, "-c", code.format(arguments)], capture_output=True, text=True)
        assert process.stdout.rstrip().endswith("False"), process.stderr


def test_a_missing_package_is_named_with_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "prosail", None)
    with pytest.raises(ModuleNotFoundError) as lacking:
        importlib.import_module("prosail")
    assert hsst.missing_package(lacking.value) == 'needs prosail, which is not installed: pip install "hsst[simulate]"'
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    monkeypatch.delitem(sys.modules, "hsst.support.feature_transformer", raising=False)
    with pytest.raises(
        ModuleNotFoundError, match='needs scikit-learn, which is not installed: pip install "scikit-learn"'
    ):
        hsst.HSSTFeatures  # noqa: B018
    assert hsst.missing_package(ModuleNotFoundError("No module named 'hsst.paint'", name="hsst.paint")) is None

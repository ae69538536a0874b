"""The package `hsst`: one import for all public names, one command for all programs."""

import importlib
import subprocess
import sys

import pytest

import hsst
from hsst.__main__ import COMMANDS, PROGRAMS, main


@pytest.mark.parametrize("name", hsst.__all__)
def test_every_public_name_is_there(name):
    assert callable(getattr(hsst, name)) and name in dir(hsst)
    # A program of this name would take its place as soon as it is imported
    assert name not in PROGRAMS


def test_other_names_are_not():
    with pytest.raises(AttributeError, match="module 'hsst' has no attribute 'nothing'"):
        hsst.nothing  # noqa: B018


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command in this process; gives exit code, output and errors."""

    def run_command(*arguments):
        monkeypatch.setattr(sys, "argv", ["hsst", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        return code, *capsys.readouterr()

    return run_command


def test_import_and_overview_load_nothing_heavy(run):
    code = "import sys, hsst; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    _, listed, _ = run("--help")
    programs = {program for program, _ in COMMANDS.values()}
    assert all(name in listed for name in {*COMMANDS, *PROGRAMS} - programs)


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "hsst", "inspect_images", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True)
    assert shown.returncode == 0 and shown.stdout.startswith("usage: hsst inspect_images")


def test_an_unknown_program_is_one_line(run):
    code, _, said = run("paint")
    assert code == 2 and said.count("\n") == 1
    assert "expected a command among" in said and said.rstrip().endswith("got paint")


def test_commands_run_the_scripts(tmp_path, run):
    assert run("--version") == (0, f"hsst {hsst.__version__}\n", "")
    assert {program for program, _ in COMMANDS.values()} <= set(PROGRAMS)
    code, shown, _ = run("predict", "--help")
    assert code == 0 and shown.startswith("usage: hsst predict")
    code, _, said = run(
        "features", tmp_path / "scene.tif", "--model", "none", "--output", tmp_path / "x.tif", "--html"
    )
    assert (code, said) == (2, "hsst features: error: --features: expected no flag of maps, got --html\n")
    assert "invalid choice" in run("features", "x", "--model", "m", "--output", "y", "--features", "all")[2]


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

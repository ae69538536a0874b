"""Fixtures that many tests share."""

import gc
import importlib
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import transformers
from accelerate.state import AcceleratorState
from matplotlib.figure import Figure

SCRIPTS = Path(__file__).parents[1] / "scripts"


@dataclass
class ScriptResult:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run_script(monkeypatch, capfd):
    """
    Runs a script of scripts/ with arguments in this process, which saves the seconds that importing torch takes. What
    a program would show its user, tracebacks included, is in the result.
    """

    def run(name, *arguments):
        # Settings of an earlier run in this process would bind the next one
        AcceleratorState._reset_state(reset_partial_state=True)
        transformers.utils.logging.enable_progress_bar()
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capfd.readouterr()
        returncode = 0
        verbosity = transformers.utils.logging.get_verbosity()
        try:
            importlib.import_module("hsst." + name.removesuffix(".py").replace("/", ".")).main()
        except SystemExit as exit:
            returncode = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
            if isinstance(exit.code, str):
                print(exit.code, file=sys.stderr)
        except Exception:
            traceback.print_exc()
            returncode = 1
        finally:
            transformers.utils.logging.set_verbosity(verbosity)
        captured = capfd.readouterr()
        return ScriptResult(returncode, captured.out, captured.err)

    return run


@pytest.fixture
def real_figures() -> None:
    """For tests that look at figures."""


@pytest.fixture(autouse=True)
def quick_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are laid out and not drawn, which takes most of the time of a short run, but for `real_figures`."""
    if "real_figures" not in request.fixturenames:
        draw = Figure.savefig

        def savefig(self: Figure, target: Any, **given: Any) -> None:
            if given.get("format") == "png":
                Path(target).write_bytes(b"\x89PNG\r\n\x1a\n")
            else:
                draw(self, target, **given)

        monkeypatch.setattr(Figure, "savefig", savefig)


def assert_one_clear_line(result, *words):
    """The way every script says that its input is bad."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1, result.stderr
    for word in words:
        assert str(word) in lines[0], lines[0]


LONGEST = (
    "test_corpus.py", "test_faults.py", "test_run_mim.py", "test_space.py", "test_structure.py", "test_tutorials.py"
)  # fmt: skip


def pytest_collection_finish() -> None:
    """What is imported by now stays: collecting garbage, as `Trainer` does at its end, need not look through it."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that no core is left with one of them at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)

"""Help of every program: it waits for nothing, and states what runs."""

import subprocess
import sys

from transformers import SchedulerType

from hsst.support import choices
from modeling_hsst import configuration_hsst

HELP_OF_ALL = """
import importlib, sys
from hsst.__main__ import PROGRAMS
for program in PROGRAMS:
    sys.argv = [program, "--help"]
    try:
        importlib.import_module(f"hsst.{program}").main()
    except SystemExit as end:
        assert end.code == 0, program
    loaded = {"torch", "transformers", "sklearn"} & sys.modules.keys()
    assert not loaded, f"{program}: {loaded}"
"""


def test_help_does_not_wait_for_torch() -> None:
    process = subprocess.run([sys.executable, "-c", HELP_OF_ALL], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def test_choices_are_those_of_the_modules_with_torch() -> None:
    assert choices.MASK_TYPES == configuration_hsst.MASK_TYPES
    with_metrics = {SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY}
    assert set(choices.SCHEDULERS) == {entry.value for entry in set(SchedulerType) - with_metrics}

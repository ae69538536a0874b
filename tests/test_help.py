"""Help of every program: it waits for nothing, and states what runs."""

import argparse
import contextlib
import importlib
import subprocess
import sys

import pytest
import torch
from conftest import SCRIPTS
from transformers import SchedulerType, get_scheduler

from hsst.support import choices
from hsst.support.command_line import stated
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


REFUSED = """
import importlib, sys
for program, *arguments in (
    ["run_mim", "--output_dir", "nowhere"],
    ["run_classification", "--output_dir", "nowhere", "--model", "hsst"],
    ["run_classification", "--output_dir", "nowhere", "--batch_size", "0"],
    ["run_classification", "--output_dir", "nowhere", "--model", "auto", "--window_size", "8"],
    ["run_classification", "--output_dir", "nowhere", "--model", "auto", "--labels_per_class", "-1"],
    ["predict_scene", "nowhere.tif", "--model", "m", "--output", "o.tif"],
    ["predict_scene", ".", "--model", "./nowhere", "--output", "o.tif"],
    ["run_classification", "--output_dir", "nowhere", "--model", "auto", "--model_name_or_path", "/nowhere"],
    ["run_mim", "--output_dir", "nowhere", "--train_dir", ".", "--model_name_or_path", "./nowhere"],
    ["plot_reconstruction", "scene", "--model", "nowhere", "--output", "picture.jpg"],
    ["publish", "nowhere"],
):
    sys.argv = [program, *arguments]
    try:
        importlib.import_module(f"hsst.{program}").main()
    except SystemExit as end:
        assert end.code == 2, program
    assert "torch" not in sys.modules, f"{program}: {arguments}"
"""


@pytest.mark.parametrize("program", [HELP_OF_ALL, REFUSED], ids=["help", "refusals"])
def test_what_needs_no_torch_does_not_wait_for_it(program: str) -> None:
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def test_choices_are_those_of_the_modules_with_torch() -> None:
    assert choices.MASK_TYPES == configuration_hsst.MASK_TYPES
    with_metrics = {SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY}
    settings = {SchedulerType.WARMUP_STABLE_DECAY: {"num_decay_steps": 2}}  # of --decay_share
    works = set()
    for kind in set(SchedulerType) - with_metrics:
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
        with contextlib.suppress(ValueError):  # a setting is missing
            get_scheduler(kind, optimizer, 1, 8, settings.get(kind, {}))
            works.add(kind.value)
    assert set(choices.SCHEDULERS) == works


PROGRAMS = [
    str(path.relative_to(SCRIPTS).with_suffix("")).replace("/", ".")
    for path in (*SCRIPTS.glob("*.py"), *(SCRIPTS / "experiments").glob("*.py"))
    if not path.stem.startswith("_") and "ArgumentParser(" in path.read_text(encoding="utf-8")
]


class ParserMadeError(Exception):
    """Thrown with a program's parser, in place of parsing."""


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_states_what_runs(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every argument has a text, and it states the default, or that all there is of its kind is taken."""

    def give_parser(parser: argparse.ArgumentParser, *given: object) -> None:
        raise ParserMadeError(parser)

    for name in ("parse_args", "parse_known_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, give_parser)
    with pytest.raises(ParserMadeError) as thrown:
        importlib.import_module(f"hsst.{program}").main()
    parser = thrown.value.args[0]
    for action in parser._actions:
        shown = parser._get_formatter()._expand_help(action) if action.help else ""
        assert shown, f"{action.dest}: no text"
        if not isinstance(action.default, bool) and action.default not in (None, "", [], argparse.SUPPRESS):
            default = stated(action.default)
            assert shown.endswith((f"({default})", f" {default})", "(all)")) or f" ({default}: " in shown, shown

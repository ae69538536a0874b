"""What pages show exists: commands are read by the programs' own parsers, flags are flags, scripts of jobs run."""

import argparse
import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import rasterio
from accelerate.commands.launch import launch_command_parser
from small_products import write_small_product
from test_predict_scene import save_model
from torch.distributed.run import get_args_parser

from hsst.__main__ import ADDED, COMMANDS, PROGRAMS

ROOT = Path(__file__).parents[1]
MANUAL = ROOT / "docs" / "manual"
PAGES = [ROOT / "README.md", *sorted(MANUAL.rglob("*.md"))]
OTHER_PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs" / "lab").glob("*.md"))]
OTHER_PAGES += sorted((ROOT / "model_cards").glob("*/README.md"))

OTHERS = {
    "bash": "scripts of this repository, looked for",
    "cd": "the shell's",
    "cp": "the shell's",
    "source": "the shell's",
    "pip": "installs",
    "python -m pip": "installs",
    "hf": "the command of huggingface_hub",
    "pre-commit": "installed by who wants it",
    "sbatch": "SLURM's",
    "python spaces/app.py": "needs gradio; tests/test_space.py parses its arguments",
}
"""Commands of pages that no parser of ours reads, with the reason."""


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def commands_in(script: str) -> list[list[str]]:
    """The words of each command of a shell script, without comments, loops and what assigns variables."""
    found = []
    for line in script.replace("\\\n", "").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"\w+=.*", words[0], flags=re.S):
            words = words[1:]
        if words:
            found.append(words)
    return found


def commands_of(page: Path) -> list[list[str]]:
    """Commands of this version; those of another commit, whose programs may be gone, stand in blocks of "console"."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return [command for block in blocks for command in commands_in(block)]


def parse(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads arguments as the program does; SystemExit where it refuses them. "..." stands for more of them."""
    given = [argument for argument in arguments if argument != "..."]
    refuse = argparse.ArgumentParser.error

    def error(parser: argparse.ArgumentParser, message: str) -> None:
        if given == arguments or "required" not in message:
            refuse(parser, message)
        raise Incomplete

    monkeypatch.setattr(sys, "argv", [module, *given])
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "error", error)
        try:
            importlib.import_module(module).parse_arguments()
        except Incomplete:
            pass


class Incomplete(Exception):
    """A command with "..." lacks arguments that are required."""


def parse_launched(launcher: argparse.ArgumentParser, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads the launcher's arguments by its parser, and the rest by that of the script."""
    launched = launcher.parse_args(words)
    parse(module_of(launched.training_script), launched.training_script_args, monkeypatch)


def module_of(script: str) -> str:
    assert script.startswith("scripts/") and (ROOT / script).is_file(), script
    return "hsst." + script.removeprefix("scripts/").removesuffix(".py").replace("/", ".")


def check(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads a command by the parsers of its programs, or looks it up among those of others."""
    if words[:2] == ["accelerate", "launch"]:
        parse_launched(launch_command_parser(), words[2:], monkeypatch)
    elif words[0] == "torchrun":
        parse_launched(get_args_parser(), words[1:], monkeypatch)
    elif words[0] == "python" and words[1].startswith("scripts/"):
        parse(module_of(words[1]), words[2:], monkeypatch)
    elif words[0] == "hsst":
        name = words[1]
        assert name in COMMANDS or name in PROGRAMS, name
        parse(f"hsst.{COMMANDS[name][0] if name in COMMANDS else name}", words[2:] + ADDED.get(name, []), monkeypatch)
    else:
        assert {words[0], " ".join(words[:2]), " ".join(words[:3])} & OTHERS.keys(), words
        if words[0] == "bash":
            assert (ROOT / words[1]).is_file(), words


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES], ids=relative)
def test_commands_are_read_by_their_programs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = []
    for words in commands_of(page):
        try:
            check(words, monkeypatch)
        except SystemExit:
            refused.append(shlex.join(words))
    assert refused == []


def test_a_flag_that_a_program_lacks_is_found(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    good = "predict SCENE --model MODEL --output map.tif"
    for command in ("hsst {}", "python scripts/predict_scene.py {}", "accelerate launch scripts/predict_scene.py {}"):
        words = shlex.split(command.format(good.removeprefix("predict ") if "scripts" in command else good))
        check(words, monkeypatch)
        with pytest.raises(SystemExit):
            check([*words, "--dask_scheduler", "tcp://host:8786"], monkeypatch)
    with pytest.raises(SystemExit):  # none of the required arguments
        check(["hsst", "predict", "SCENE"], monkeypatch)
    check(["hsst", "predict", "SCENE", "..."], monkeypatch)
    with pytest.raises(AssertionError):
        check(["rm", "-r", "products"], monkeypatch)


class Parser(Exception):
    """Carries a program's parser out of it."""


def options_of(module: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    def leave(parser: argparse.ArgumentParser) -> None:
        raise Parser(parser)

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", leave)
        program = importlib.import_module(module)
        try:
            getattr(program, "parse_arguments", program.main)()
        except Parser as parser:
            return set(parser.args[0]._option_string_actions)
    raise AssertionError(f"{module} has no parser")


def test_flags_in_sentences_are_flags_of_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between code blocks as well, where a flag stands alone and may be any program's."""
    experiments = (ROOT / "scripts" / "experiments").glob("*.py")
    modules = [f"hsst.{name}" for name in PROGRAMS]
    modules += [
        f"hsst.experiments.{path.stem}"
        for path in experiments
        if "ArgumentParser(" in path.read_text(encoding="utf-8")
    ]
    known = set().union(*(options_of(module, monkeypatch) for module in modules))
    known |= set(get_args_parser()._option_string_actions) | set(launch_command_parser()._option_string_actions)
    known |= {"--no-deps", "--dependency", "--ntasks-per-node", "--array", "--signal"}  # pip's, SLURM's
    unknown = {}
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
        flags = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) - known
        if page.name == "space.md":  # spaces/app.py
            flags -= {"--landcover", "--cache", "--host", "--port", "--example_size"}
        if flags:
            unknown[relative(page)] = sorted(flags)
    assert unknown == {}


CLUSTER = MANUAL / "cluster"
JOB = {
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_NNODES": "2",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_CPUS_PER_TASK": "16",
    "SLURM_JOB_ID": "7",
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_ARRAY_TASK_MIN": "1",
    "SLURM_ARRAY_TASK_COUNT": "16",
}


def run_as_job(script: Path, folder: Path, programs: dict[str, str], *arguments: str, **changes: str) -> None:
    """Runs a script as SLURM would, with programs of the given contents in place of those of the same name."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    for name, content in programs.items():
        program = folder / ".venv" / "bin" / name
        program.write_text(f"#!/usr/bin/env bash\n{content}\n")
        program.chmod(0o755)
    path = os.pathsep.join([str(folder / ".venv" / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | JOB | {"PATH": path} | changes
    process = subprocess.run(
        ["bash", script, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, f"{process.stdout}\n{process.stderr}"


@pytest.mark.parametrize("script", sorted(CLUSTER.glob("*.sh")), ids=relative)
def test_jobs_start_what_their_programs_understand(script: Path, tmp_path: Path, monkeypatch) -> None:
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    head = re.match(r"#!.*\n(#.*\n)+", script.read_text(encoding="utf-8"))
    assert head and head[0].count("#SBATCH --") == script.read_text(encoding="utf-8").count("#SBATCH")
    note = f'printf "%s\\n" "$(basename "$0")" "$@" > {tmp_path}/words; echo "$RANK $WORLD_SIZE" > {tmp_path}/share'
    # More names than a pipe holds: the job reads the first one and does not end with the rest
    names = '[ "$*" = "show hostnames node[1-2]" ] && printf "node%d\\n" {1..20000}'
    programs = {"srun": note, "hsst": note, "scontrol": names}
    added = ["--seed", "5"] if script.name == "pretrain.sh" else ["--html"]
    run_as_job(script, tmp_path, programs, *added)
    name, *words = (tmp_path / "words").read_text().splitlines()
    if name == "srun":
        assert words[:3] == ["--kill-on-bad-exit=1", "--cpus-per-task=16", "torchrun"]
        check(words[2:], monkeypatch)
        launched = get_args_parser().parse_args(words[3:])
        assert (launched.nnodes, launched.nproc_per_node, launched.rdzv_endpoint) == ("2", "4", "node1:10007")
        assert launched.training_script_args[-2:] == added
    else:
        check([name, *words], monkeypatch)
        assert words[-1:] == added and (tmp_path / "share").read_text() == "2 16\n"


def test_jobs_of_the_page_take_arguments_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands behind a script in an `sbatch` command goes to the program that the script starts."""
    programs = {"pretrain.sh": ("hsst.run_mim", ["--train_dir", "corpus", "--output_dir", "outputs/hsst"])}
    jobs = [words for words in commands_of(MANUAL / "cluster.md") if words[0] == "sbatch"]
    assert len(jobs) >= 5
    for words in jobs:
        (place,) = [number for number, word in enumerate(words) if word.endswith(".sh")]
        assert (ROOT / words[place]).is_file()
        if words[place + 1 :]:
            module, given = programs[Path(words[place]).name]
            parse(module, [*given, *words[place + 1 :]], monkeypatch)


@pytest.mark.slow
def test_pretraining_on_two_nodes(tmp_path: Path, run_script) -> None:
    """Two nodes that are one machine: the job trains, is submitted again with another number of GPUs, and goes on."""
    write_small_product(tmp_path / "products")
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    corpus = ("--data_dir", tmp_path / "products", "--output_dir", tmp_path / "corpus", "--tile_size", 32)
    assert run_script("prepare_enmap.py", *corpus).returncode == 0
    programs = {
        "srun": '"${@:3}" & first=$!; "${@:3}" & second=$!; wait $first && wait $second',
        "scontrol": "echo 127.0.0.1",
    }
    model = "hidden_size=24,num_spatial_layers=1,num_spectral_layers=1,num_attention_heads=2,head_dim=8"
    arguments = ["--bands", "valid", "--config_overrides", f"{model},intermediate_size=16,band_patch_size=5"]
    arguments += ["--per_device_train_batch_size", "8", "--max_train_steps", "4", "--checkpointing_steps", "2"]
    arguments += ["--dataloader_num_workers", "0", "--train_val_split", "0.4"]
    changes = {"SLURM_GPUS_ON_NODE": "1", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    run_as_job(CLUSTER / "pretrain.sh", tmp_path, programs, *arguments, **changes)
    results = json.loads((tmp_path / "outputs" / "hsst" / "all_results.json").read_text())
    assert (results["steps"], results["windows_seen"], results["run"]["num_processes"]) == (4, 64, 2)
    arguments += ["--max_train_steps", "6", "--gradient_accumulation_steps", "2", "--allow_changed_run"]
    shutil.rmtree(tmp_path / ".venv")
    run_as_job(
        CLUSTER / "pretrain.sh",
        tmp_path,
        {**programs, "srun": '"${@:3}"'},
        *arguments,
        **{**changes, "SLURM_NNODES": "1"},
    )
    results = json.loads((tmp_path / "outputs" / "hsst" / "all_results.json").read_text())
    assert (results["steps"], results["steps_timed"], results["run"]["num_processes"]) == (6, 2, 1)
    longer = [*arguments, "--max_train_steps", "8", "--output_dir", "outputs/longer"]
    longer += ["--resume_from_checkpoint", "outputs/hsst/step_4"]
    shutil.rmtree(tmp_path / ".venv")
    programs["srun"] = '"${@:3}"'
    run_as_job(CLUSTER / "pretrain.sh", tmp_path, programs, *longer, **{**changes, "SLURM_NNODES": "1"})
    results = json.loads((tmp_path / "outputs" / "longer" / "all_results.json").read_text())
    assert (results["steps"], results["steps_timed"]) == (8, 4)


class StandIn:
    """Of a class of QGIS: keeps what it is made with."""

    def __init__(self, *given):
        self.given = given


class Algorithm:
    """Of QgsProcessingAlgorithm: hands out parameters as they are."""

    def __init__(self):
        self.parameters = []

    def addParameter(self, parameter):  # noqa: N802
        self.parameters.append(parameter.given[0])

    def value(self, parameters, name, context):
        return parameters[name]

    parameterAsString = parameterAsBoolean = parameterAsOutputLayer = value  # noqa: N815


@pytest.fixture
def qgis_script(monkeypatch: pytest.MonkeyPatch):
    core = ModuleType("qgis.core")
    for name in re.findall(r"^    (Qgs\w+),$", (MANUAL / "qgis" / "hsst_map.py").read_text(), flags=re.M):
        setattr(core, name, type(name, (StandIn,), {}))
    core.QgsProcessingAlgorithm = Algorithm
    core.QgsProcessingException = type("QgsProcessingException", (Exception,), {})
    core.QgsProcessingContext.LayerDetails = StandIn
    monkeypatch.setitem(sys.modules, "qgis", ModuleType("qgis"))
    monkeypatch.setitem(sys.modules, "qgis.core", core)
    specification = importlib.util.spec_from_file_location("hsst_map", MANUAL / "qgis" / "hsst_map.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_qgis_script_maps_a_scene(qgis_script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the program in another process, as in QGIS; and its command is one that the program understands."""
    model = save_model(tmp_path / "model")
    scene, output = write_small_product(tmp_path / "scenes"), tmp_path / "map.tif"
    (metadata,) = scene.glob("*METADATA.XML")
    output.write_text("a map of before")
    loaded, lines, styled = [], [], []
    context = SimpleNamespace(
        project=lambda: "project",
        addLayerToLoadOnCompletion=lambda *given: loaded.append(given),
        willLoadLayerOnCompletion=lambda path: path == str(output),
        layerToLoadOnCompletionDetails=lambda path: SimpleNamespace(setPostProcessor=styled.append),
    )
    feedback = SimpleNamespace(pushInfo=lines.append, isCanceled=lambda: False)
    for name in ("PYTHONHOME", "PROJ_LIB", "PROJ_DATA"):
        monkeypatch.setenv(name, str(tmp_path))  # QGIS's own
    program = Path(sys.executable).with_name("hsst")
    parameters = dict(SCENE=metadata, MODEL=model, PROGRAM=program, CONFIDENCE=True, OUTPUT=output)
    parameters = {name: str(value) if name != "CONFIDENCE" else value for name, value in parameters.items()}
    algorithm = qgis_script.HsstMap().createInstance()
    algorithm.initAlgorithm()
    assert set(algorithm.parameters) == set(parameters)
    assert algorithm.processAlgorithm(parameters, context, feedback) == {"OUTPUT": str(output)}
    with rasterio.open(output) as dataset:
        assert dataset.read(1).min() < 255
        assert dataset.crs.to_string().startswith("EPSG:")
    (style,) = styled
    style.postProcessLayer(SimpleNamespace(loadDefaultStyle=lambda: loaded.append(["style"])), context, feedback)
    assert loaded.pop() == ["style"]
    assert [given[0] for given in loaded] == [str(tmp_path / "map_confidence.tif")]
    assert Path(loaded[0][0]).is_file() and output.with_suffix(".qml").is_file()
    assert any("pixels/s" in line for line in lines)
    check(["hsst", *qgis_script.command_of("hsst", "SCENE", "MODEL", "map.tif", True)[1:]], monkeypatch)


def test_qgis_script_hands_on_errors_and_cancels(qgis_script, tmp_path: Path) -> None:
    python = [sys.executable, "-c"]
    with pytest.raises(RuntimeError, match="^expected a scene$"):
        qgis_script.run([*python, "print('reading'); raise SystemExit('expected a scene')"], lambda line: None)
    with pytest.raises(RuntimeError, match="cannot be started"):
        qgis_script.run([str(tmp_path / "hsst"), "predict"])
    lines = []
    endless = "import time\nwhile True: print('window', flush=True); time.sleep(0.01)"
    qgis_script.run([*python, endless], lines.append, lambda: len(lines) > 2)
    assert lines == ["window"] * 3
    feedback = SimpleNamespace(pushInfo=print, isCanceled=lambda: False)
    parameters = dict(SCENE="a", MODEL="b", PROGRAM=str(tmp_path / "hsst"), CONFIDENCE=False, OUTPUT="map.tif")
    for changes, words in (({}, "cannot be started"), ({"OUTPUT": "map.gpkg"}, "expected a GeoTIFF")):
        with pytest.raises(qgis_script.QgsProcessingException, match=words):
            qgis_script.HsstMap().processAlgorithm({**parameters, **changes}, None, feedback)

"""Bad checkpoints of run_mim.py: damaged, of other programs, and made by somebody who wants more than to be read."""

import hashlib
import json
import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from soak import pretraining, write_tiles

import hsst.support.pretraining_run  # noqa: F401  once, before processes are forked
from faults.harness import Fault, good_folder, losses
from hsst import run_mim

STEPS = 4


@cache
def good_run() -> Path:
    """A folder with tiles and a run of some steps, made once, in a process of its own."""
    folder = good_folder()
    write_tiles(folder / "tiles")
    child = os.fork()  # it has imported by now what a new program would wait seconds for
    if child == 0:
        try:
            os.chdir(folder)
            with (folder / "printed").open("w") as printed, redirect_stdout(printed), redirect_stderr(printed):
                resume(folder)
        except BaseException:
            (folder / "error").write_text(traceback.format_exc())
        os._exit((folder / "error").exists())
    _, status = os.waitpid(child, 0)
    if status:
        error = folder / "error"
        raise RuntimeError(error.read_text() if error.exists() else f"the run ended with status {status}")
    return folder


def program():
    """Pre-training of a few steps with a checkpoint after each second one."""
    changed = {"--max_train_steps": STEPS, "--checkpointing_steps": 2, "--validation_steps": 100}

    def command(data: Path, output: Path) -> list[object]:
        words = pretraining(1).command(data, output)
        for flag, value in changed.items():
            words[words.index(flag) + 1] = value
        return words

    return pretraining(1).__class__(command, pretraining(1).result, 10.0)


def resume(folder: Path, checkpoint: str | None = None) -> str:
    """Goes on from a checkpoint, or from the latest, in this process, and returns a digest of what comes out."""
    torch.set_num_threads(1)
    sys.argv = [str(word) for word in program().command(Path("tiles"), Path("out"))][1:]
    if checkpoint is not None:
        sys.argv[sys.argv.index("latest")] = str(folder / checkpoint)
    run_mim.main()
    return program().result(folder / "out")


def from_given(folder: Path) -> str:
    return resume(folder, "given/step_2")


def copy_run(folder: Path, name: str = "given") -> Path:
    """Tiles and checkpoints in a folder; returns the checkpoint of step 2."""
    shutil.copytree(good_run() / "tiles", folder / "tiles")
    shutil.copytree(good_run() / "out" / "step_2", folder / name / "step_2")
    return folder / name / "step_2"


def damages() -> Iterator[tuple[str, Callable[[Path], object]]]:
    """What happens to a file: on a disk, in a copy, by hand."""
    yield from losses()
    for seed in range(4):
        yield f"a bit flipped, {seed}", lambda path, seed=seed: flip(path, seed)
    yield "a folder", lambda path: (path.unlink(), path.mkdir())
    yield "a link in a circle", lambda path: (path.unlink(), path.symlink_to(path.name))
    yield (
        "a pickle",
        lambda path: path.write_bytes(
            b"cos\nsystem\n(S'touch " + str(path.parents[3] / "executed").encode() + b"'\ntR."
        ),
    )
    yield "grown", lambda path: path.write_bytes(path.read_bytes() + b"\0" * 100)


def flip(path: Path, seed: int) -> None:
    content = bytearray(path.read_bytes())
    content[random.Random(seed).randrange(len(content))] ^= 1 << seed % 8
    path.write_bytes(content)


def sealed(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """A change whose maker gave the manifest the checksums of it."""

    def make(folder: Path) -> None:
        checkpoint = copy_run(folder)
        change(checkpoint)
        names = [path.name for path in checkpoint.iterdir() if path.name != "manifest.json"]
        checksums = {name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in names}
        (checkpoint / "manifest.json").write_text(json.dumps(checksums))

    return make


def changed_tensors(file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(checkpoint: Path) -> None:
        path = checkpoint / f"{file}.safetensors"
        tensors = {name: value.clone() for name, value in load_file(path).items()}
        change(tensors)
        path.unlink()
        save_file(tensors, path)

    return apply


def changed_state(*keys: str, to: object) -> Callable[[Path], None]:
    def apply(checkpoint: Path) -> None:
        content = json.loads((checkpoint / "state.json").read_text())
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to
        (checkpoint / "state.json").write_text(json.dumps(content))

    return apply


def fill(value: float, number: int = 0) -> Callable[[dict[str, torch.Tensor]], object]:
    """One number of a tensor becomes another."""
    return lambda tensors: sorted(tensors.items())[number][1].view(-1)[:1].fill_(value)


def replace(make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], object]:
    """The largest tensor becomes another."""

    def apply(tensors: dict[str, torch.Tensor]) -> None:
        name = max(tensors, key=lambda name: tensors[name].numel())
        tensors[name] = make(tensors[name]).contiguous()

    return apply


def declared(header: dict[str, object], content: bytes = b"") -> Callable[[Path], object]:
    """Weights whose header says something else than what follows."""
    text = json.dumps(header).encode()
    return lambda checkpoint: (checkpoint / "model.safetensors").write_bytes(
        len(text).to_bytes(8, "little") + text + content
    )


def sealed_changes() -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Content that checksums say nothing against."""
    for value in (float("nan"), float("inf"), -float("inf")):
        yield f"a weight is {value}", changed_tensors("model", fill(value))
        yield f"a moment is {value}", changed_tensors("optimizer", fill(value, 1))
    for file in ("model", "optimizer"):
        yield f"{file}: another shape", changed_tensors(file, replace(lambda tensor: tensor.flatten()[:-1]))
        yield f"{file}: another type", changed_tensors(file, replace(torch.Tensor.double))
        yield (
            f"{file}: no tensor",
            changed_tensors(file, dict.clear)
            if file == "model"
            else changed_tensors(file, lambda tensors: tensors.update({"0.none": torch.zeros(1)})),
        )
        yield f"{file}: a name too many", changed_tensors(file, lambda tensors: tensors.update(more=torch.zeros(1)))
    yield (
        "optimizer: a parameter that is none",
        changed_tensors("optimizer", lambda tensors: tensors.update({"9999.step": torch.zeros(())})),
    )
    yield "progress: no losses", changed_tensors("progress", lambda tensors: tensors.pop("losses"))
    yield "progress: no windows", changed_tensors("progress", lambda tensors: tensors.pop("windows"))
    yield (
        "progress: losses that are none",
        changed_tensors("progress", lambda tensors: tensors.update(losses=torch.zeros(2, 2, 2, dtype=torch.int64))),
    )
    yield (
        "a header of 2**60 bytes",
        lambda checkpoint: (checkpoint / "model.safetensors").write_bytes((2**60).to_bytes(8, "little")),
    )
    yield "a tensor of 2**40 numbers", declared({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})
    yield (
        "offsets that overlap",
        declared({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, b"\0" * 4),
    )
    for value in (0, -1, STEPS + 1, 2**70, 1.5, "2", None, [], {}, True):
        yield f"the step {value!r}", changed_state("state", "progress", "completed_steps", to=value)
    for value in ("a", None, [1], {"eval_loss": "low"}, {"eval_loss": [1]}):
        yield f"results {value!r}", changed_state("state", "progress", "results", to=value)
    for keys in (("state",), ("run",), ("state", "progress"), ("run", "seed")):
        for value in (None, [], "a"):
            yield f"{'.'.join(keys)} is {value!r}", changed_state(*keys, to=value)
    yield "state.json: a list", lambda checkpoint: (checkpoint / "state.json").write_text("[]")
    yield "state.json: 100,000 brackets", lambda checkpoint: (checkpoint / "state.json").write_text("[" * 100_000)
    yield "state.json: no text", lambda checkpoint: (checkpoint / "state.json").write_bytes(b"\xff\xfe\x00\x80")
    yield "history: no text", lambda checkpoint: (checkpoint / "log_history.jsonl").write_bytes(b"\xff\xfe\x00\x80")
    yield "a file too many", lambda checkpoint: (checkpoint / "custom_checkpoint_0.pkl").write_bytes(b"cos\nsystem\n.")


def manifests() -> Iterator[tuple[str, str]]:
    yield "a list", "[]"
    yield "a number", "1"
    yield "brackets", "[" * 100_000
    yield "a file above", json.dumps({"../../tiles/tile_0.tif": "0"})
    yield (
        "no checksums",
        json.dumps(
            dict.fromkeys(
                (
                    "model.safetensors",
                    "optimizer.safetensors",
                    "progress.safetensors",
                    "state.json",
                    "log_history.jsonl",
                )
            )
        ),
    )


def faults() -> Iterator[Fault]:
    """All of them."""
    names = ("manifest.json", "state.json", "log_history.jsonl")
    names += tuple(f"{part}.safetensors" for part in ("model", "optimizer", "progress"))
    for name in names:
        for damage, apply in damages():

            def make(folder: Path, name=name, apply=apply) -> None:
                apply(copy_run(folder) / name)

            yield Fault(f"{name}: {damage}", "checkpoint, damaged", make, from_given, None, "given/step_2")
    for change, apply in sealed_changes():
        yield Fault(change, "checkpoint, of somebody else", sealed(apply), from_given, None, "given/step_2")
    for text, content in manifests():

        def write(folder: Path, content=content) -> None:
            (copy_run(folder) / "manifest.json").write_text(content)

        yield Fault(f"manifest: {text}", "checkpoint, of somebody else", write, from_given, None, "given/step_2")
    # The latest one is damaged, and the one before is there: the run ends as if nothing had been
    for name in names[::2]:
        for damage, apply in list(damages())[::3]:

            def damage_latest(folder: Path, name=name, apply=apply) -> None:
                for part in ("tiles", "out"):
                    shutil.copytree(good_run() / part, folder / part)
                (folder / "out" / "model.safetensors").unlink()
                apply(folder / "out" / f"step_{STEPS}" / name)

            good = program().result(good_run() / "out")
            label = f"{name}: {damage}"
            yield Fault(label, "checkpoint, the latest of several", damage_latest, resume, good, "step_4")

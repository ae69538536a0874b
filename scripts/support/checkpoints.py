"""
Checkpoints of a training run: safetensors and JSON, which run no code when they are read, under checksums that are
verified; a damaged one is passed over for the one before.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from datasets_loading.files import checksums, written_folder

MANIFEST = "manifest.json"
STATE = "state.json"
HISTORY = "log_history.jsonl"
TENSORS = ("model", "optimizer", "progress")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a step."""

    model: Mapping[str, torch.Tensor]  # weights and buffers by name
    moments: Mapping[int, Mapping[str, torch.Tensor]]  # of the optimizer, by the parameter's number and a name
    progress: Mapping[str, torch.Tensor]  # of the run's own, by name
    state: Mapping[str, Any]  # what JSON can hold of the run
    run: Mapping[str, Any]  # the arguments that make two runs the same
    history: str  # what was logged, a JSON object a line

    def save(self, folder: Path) -> None:
        """Writes the checkpoint whole and to the disk, in place of an earlier one of that name; OSError where that
        cannot be, ValueError where a weight is not finite."""
        moments = {f"{n}.{name}": value for n, kept in self.moments.items() for name, value in kept.items()}
        tensors = {"model": self.model, "optimizer": moments, "progress": self.progress}
        _check_finite(folder, tensors)
        state = {"run": self.run, "state": self.state}
        with written_folder(folder) as partial:
            for name in TENSORS:
                save_file({key: value.contiguous() for key, value in tensors[name].items()}, partial / _file(name))
            (partial / STATE).write_text(json.dumps(state, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            (partial / HISTORY).write_text(self.history, encoding="utf-8")
            manifest = checksums(sorted(partial.iterdir()))
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Checkpoint:
        """Reads and verifies a checkpoint; ValueError, which names file and finding, where it is none, or a damaged
        one, or a weight is not finite."""
        contents = _verified_files(folder)
        try:
            tensors = {name: load(contents[_file(name)]) for name in TENSORS}
            content = json.loads(contents[STATE])
            moments: dict[int, dict[str, torch.Tensor]] = {}
            for key, value in tensors["optimizer"].items():
                number, _, name = key.partition(".")
                moments.setdefault(int(number), {})[name] = value
            checkpoint = cls(
                model=tensors["model"],
                moments=moments,
                progress=tensors["progress"],
                state={**content["state"]},
                run={**content["run"]},
                history=contents[HISTORY].decode(),
            )
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{folder}: expected a checkpoint of this program, got {error!r}") from None
        _check_finite(folder, tensors)
        return checkpoint

    def restore(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Gives a model its weights, and its optimizer what it keeps of them; rates and decays stay as they are.
        ValueError where they are of another model or optimizer."""
        weights = model.state_dict()
        if set(weights) != set(self.model):
            differing = sorted(set(weights) ^ set(self.model))
            raise ValueError(f"expected the weights of this model, got others: {', '.join(differing[:3])}")
        for name, value in self.model.items():
            _check_alike(name, value, weights[name])
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for number, kept in self.moments.items():
            if not 0 <= number < len(parameters) or set(kept) != {"step", "exp_avg", "exp_avg_sq"}:
                raise ValueError(f"expected moments of the {len(parameters)} parameters, got {number}: {sorted(kept)}")
            for name, value in kept.items():
                _check_alike(
                    f"{name} of {number}", value, value.new_empty(()) if name == "step" else parameters[number]
                )
        model.load_state_dict(self.model)
        optimizer.load_state_dict({"state": self.moments, "param_groups": optimizer.state_dict()["param_groups"]})


def step_folders(output_dir: Path) -> list[Path]:
    """The checkpoints `step_N` of a run, the latest first."""
    folders = [path for path in output_dir.glob("step_*") if re.fullmatch(r"step_\d+", path.name)]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("step_")), reverse=True)


def latest_checkpoint(output_dir: Path, say: Callable[[str], object]) -> tuple[Path, Checkpoint] | None:
    """The latest checkpoint of a run that is whole; None where there is none at all, ValueError where all are damaged.
    `say` is told of each one that is passed over."""
    folders = step_folders(output_dir)
    for folder in folders:
        try:
            return folder, Checkpoint.read(folder)
        except (ValueError, OSError) as error:
            say(f"passed over: {error}")
    if folders:
        raise ValueError(f"{output_dir}: expected a whole checkpoint to go on from, got {len(folders)} damaged ones")
    return None


def _file(name: str) -> str:
    return f"{name}.safetensors"


def _verified_files(folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint by their names, each held against the manifest."""
    expected = f"{folder}: expected a checkpoint with its {MANIFEST}"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{expected}, found none") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{expected}, got {error}") from None
    names = {STATE, HISTORY, *map(_file, TENSORS)}
    if not isinstance(manifest, dict) or set(manifest) != names:
        raise ValueError(f"{expected} of {', '.join(sorted(names))}, got another one")
    contents = {}
    for name in sorted(names):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name}: expected a file of the checkpoint, found none")
        contents[name] = (folder / name).read_bytes()
        if hashlib.sha256(contents[name]).hexdigest() != manifest[name]:
            raise ValueError(f"{folder / name}: expected the file that was saved, got a damaged one (SHA-256 differs)")
    return contents


def _check_finite(folder: Path, tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    for part in ("model", "optimizer"):
        for name, value in tensors[part].items():
            if not bool(torch.isfinite(value.sum())):  # a sum shows them all, and needs no memory
                raise ValueError(f"{folder}: expected finite values, got others in {part} {name}")


def _check_alike(name: str, value: torch.Tensor, expected: torch.Tensor) -> None:
    if (value.shape, value.dtype) != (expected.shape, expected.dtype):
        wanted, got = (f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in (expected, value))
        raise ValueError(f"expected {name} to be {wanted}, got {got}")

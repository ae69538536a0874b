"""
Kills programs at random moments, starts them again by the same command, and looks whether what they end with is what
an undisturbed run ends with, bit for bit: weights, every logged loss, corpora.

    cd tests && python soak.py --output ../docs/results/soak.json             25 kills of each, twice
    cd tests && python soak.py --programs pretraining --kills 5 --seeds 1

A run that ends before its kill is compared, and another one begins in an empty folder, until all kills were made.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin
from tqdm import tqdm

SCRIPTS = Path(__file__).parents[1] / "scripts"
NUM_BANDS = 20
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# What a program answers to a signal, or to the launcher of it; torchrun has exit codes of its own
EXPECTED = {signal.SIGKILL: (-9,), signal.SIGTERM: (143, -15, 1), signal.SIGINT: (130, -2, 1)}


@dataclass(frozen=True)
class Program:
    """
    A command line that is repeated until it succeeds.

    Attributes:
        command: of a data and an output folder.
        result: digest of what an output folder holds in the end.
        seconds: the longest wait for a kill.
    """

    command: Callable[[Path, Path], list[object]]
    result: Callable[[Path], str]
    seconds: float


def write_tiles(folder: Path) -> None:
    """Eight tiles of 16x16 pixels."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    profile = {"driver": "GTiff", "count": NUM_BANDS, "height": 16, "width": 16, "dtype": "int16", "nodata": -32768}
    for number in range(8):
        image = generator.integers(0, 4000, (NUM_BANDS, 16, 16)).astype(np.int16)
        with rasterio.open(
            folder / f"tile_{number}.tif", "w", crs="EPSG:32633", transform=from_origin(0, 0, 30, 30), **profile
        ) as dataset:
            dataset.write(image)
            for band in range(NUM_BANDS):
                dataset.update_tags(band + 1, wavelength=str(450 + 30 * band))


def pretraining(processes: int) -> Program:
    """Pre-training, with dropout, accumulated gradients, masks of two kinds and data workers."""

    def command(data: Path, output: Path) -> list[object]:
        launcher: list[object] = [sys.executable]
        if processes > 1:
            launcher += ["-m", "torch.distributed.run", "--nproc_per_node", processes, "--master_port", 29641]
        model = "hidden_size=24,num_spatial_layers=1,num_spectral_layers=1,num_attention_heads=2,head_dim=8"
        return [
            *(*launcher, SCRIPTS / "run_mim.py", "--train_dir", data, "--output_dir", output, "--bands", "valid"),
            *("--config_overrides", f"{model},intermediate_size=16,band_patch_size=5", "--mask_types", "tube", "unit"),
            *("--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2, "--windows_per_tile", 16),
            *("--max_train_steps", 120, "--checkpointing_steps", 7, "--validation_steps", 40, "--seed", 5),
            *("--train_val_split", 0.25, "--resume_from_checkpoint", "latest"),
        ]

    def result(output: Path) -> str:
        files = (output / name for name in ("model.safetensors", "preprocessor_config.json", "log_history.jsonl"))
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()

    return Program(command, result, 14.0)


def corpus() -> Program:
    """Preparation of a corpus."""

    def command(data: Path, output: Path) -> list[object]:
        script = SCRIPTS / "prepare_enmap.py"
        return [sys.executable, script, "--data_dir", data, "--output_dir", output, "--num_workers", 2]

    def result(output: Path) -> str:
        files = sorted(path for path in output.rglob("*") if path.is_file() and path.name != ".lock")
        return hashlib.sha256(
            b"".join(str(f.relative_to(output)).encode() + f.read_bytes() for f in files)
        ).hexdigest()

    return Program(command, result, 6.0)


PROGRAMS = {"pretraining": pretraining(1), "pretraining in two processes": pretraining(2), "corpus": corpus()}


def run(
    program: Program, data: Path, output: Path, kill: tuple[float, int] | None = None, place: Path | None = None
) -> tuple[int | None, str]:
    """
    One life of a program in a folder `place`, killed after some seconds by a signal or not.

    Returns:
        its exit code, None where it was killed; and what it printed.
    """
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [str(part) for part in program.command(data, output)]
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(
            command, stdout=printed, stderr=subprocess.STDOUT, env=environment, start_new_session=True, cwd=place
        )
        code = None
        try:
            code = process.wait(kill[0] if kill else None)
        except subprocess.TimeoutExpired:
            # The launcher alone for SIGKILL: what it started has to end by itself
            process.send_signal(kill[1])
            ended = process.wait(60)
            if ended not in (*EXPECTED[kill[1]], 0):
                code = ended
        _wait_for_orphans(output)
        printed.seek(0)
        return code, printed.read()


def _wait_for_orphans(output: Path, seconds: float = 60) -> None:
    """Waits until nothing runs any more that writes to a folder; processes whose launcher died end by themselves."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        alive = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if os.fsencode(output) in (entry / "cmdline").read_bytes().split(b"\0"):
                    alive.append(int(entry.name))
        if not alive:
            return
        time.sleep(0.05)
    for number in alive:
        os.kill(number, signal.SIGKILL)
    raise RuntimeError(f"processes lived on {seconds:.0f} s after their launcher had been killed")


def soak(name: str, kills: int, seed: int, folder: Path) -> dict[str, object]:
    """Kills one program so many times, and says how many runs ended as an undisturbed one."""
    program, generator = PROGRAMS[name], random.Random(seed)
    data = folder / "tiles"
    write_tiles(data)
    code, printed = run(program, data, folder / "undisturbed")
    if code != 0:
        raise RuntimeError(printed)
    expected = program.result(folder / "undisturbed")
    counts: Counter[str] = Counter()
    finished = equal = 0
    messages: list[str] = []
    output = folder / "killed-0"
    with tqdm(total=kills, desc=name, unit="kill") as bar:
        interrupted = False
        while bar.n < kills or interrupted:
            kill = (generator.uniform(0.5, program.seconds), generator.choice(SIGNALS)) if bar.n < kills else None
            code, printed = run(program, data, output, kill)
            if code not in (None, 0):
                messages.append(printed[-20000:])
                break
            if code is None:
                counts[signal.Signals(kill[1]).name] += 1
                interrupted = True
                bar.update()
                continue
            interrupted = False
            finished += 1
            equal += program.result(output) == expected
            output = folder / f"killed-{finished}"
    return {
        "program": name,
        "seed": seed,
        "kills": counts.total(),
        "signals": dict(sorted(counts.items())),
        "finished": finished,
        "equal": equal,
        "messages": messages,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", nargs="+", choices=tuple(PROGRAMS), default=tuple(PROGRAMS))
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1), help="all kills are made for each")
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    arguments = parser.parse_args()
    results = []
    for name in arguments.programs:
        for seed in arguments.seeds:
            with tempfile.TemporaryDirectory() as folder:
                results.append(soak(name, arguments.kills, seed, Path(folder)))
            print(json.dumps(results[-1]), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps({"programs": results}, indent=1) + "\n")
    sys.exit(any(entry["equal"] != entry["finished"] or entry["kills"] != arguments.kills for entry in results))


if __name__ == "__main__":
    main()

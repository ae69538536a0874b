"""
Tries bad input, each in a process of its own with limits of memory and time, and says what came of it.

    cd tests && python -m faults.harness --output ../docs/results/faults.json        all of it
    cd tests && python -m faults.harness --groups readers corpora --every 8          every eighth of two groups

A group is a module of this folder with a function `faults()` that yields `Fault`s.
"""

from __future__ import annotations

import argparse
import atexit
import hashlib
import importlib
import io
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

from hsst.support.command_line import one_line_errors

GROUPS = ("readers", "corpora", "model_folders", "checkpoints")
# Those of models wait for the same imports, and leave no thread behind
PROCESSES = (("readers",), ("corpora",), ("model_folders", "checkpoints"))
MEMORY = 2**30  # bytes that one input may make a program ask for
SECONDS = 30
# What is right: bad input is refused in a line, or it did no harm and the result is that of good input
GOOD_OUTCOMES = ("refused", "harmless")


@dataclass(frozen=True)
class Fault:
    """
    One bad input.

    Attributes:
        name: what is wrong; no two are the same.
        kind: of what file, as in a table.
        make: writes the input into an empty folder.
        read: reads it from that folder, as a program does, and returns a digest of what it understood; it may write
            into `folder / "out"` only. What it raises is treated as the scripts do (`one_line_errors`), so it may call
            a script's `main`, too.
        good: the digest of what is right to understand; None where the input has to be refused.
        named: what the line of a refusal has to name, usually the file.
    """

    name: str
    kind: str
    make: Callable[[Path], object]
    read: Callable[[Path], str]
    good: str | None
    named: str


@dataclass(frozen=True)
class Outcome:
    """
    What became of a fault: "refused", "harmless"; or "silent" (taken as if it were right), "unnamed" (refused without
    a word of what), "traceback", "memory", "hang", "died", "executed", "fetched", "outside" (wrote elsewhere).
    """

    name: str
    kind: str
    outcome: str
    message: str
    seconds: float


def digest(folder: Path) -> str:
    """SHA-256 of the names and contents of all files of a folder."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        total.update(str(path.relative_to(folder)).encode())
        if path.is_file():
            total.update(path.read_bytes())
    return total.hexdigest()


def losses() -> Iterator[tuple[str, Callable[[Path], object]]]:
    """What a file may lose: names, and what does it to a file."""
    yield "missing", Path.unlink
    yield "empty", lambda path: path.write_bytes(b"")
    for share in (0.1, 0.5, 0.99):
        yield (
            f"cut at {share:.0%}",
            lambda path, share=share: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)]),
        )


def try_fault(fault: Fault) -> Outcome:
    """Tries one. What the input may try to run should make a file `executed` in the folder's parent."""
    with tempfile.TemporaryDirectory(prefix="fault-") as temporary:
        place = Path(temporary)
        folder, report = place / "tried", place / "report.json"
        folder.mkdir()
        (place / "precious.json").write_text("{}")
        fault.make(folder)
        (folder / "out").mkdir(exist_ok=True)
        before = {path for path in place.rglob("*") if (folder / "out") not in path.parents}
        started = time.perf_counter()
        child = os.fork()
        if child == 0:
            _child(fault, folder, report)
        outcome, message = _wait(child, report)
        seconds = time.perf_counter() - started
        after = {path for path in place.rglob("*") if (folder / "out") not in path.parents} - {report}
        if (place / "executed").exists():
            outcome = "executed"
        elif before != after or (place / "precious.json").read_text() != "{}":
            outcome = "outside"
            message = str(sorted(path.name for path in before ^ after))
        return Outcome(fault.name, fault.kind, outcome, message.replace(temporary, ""), round(seconds, 2))


def _wait(child: int, report: Path) -> tuple[str, str]:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if report.is_file():
                answer = json.loads(report.read_text())
                return answer["outcome"], answer["message"]
            return "died", f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {status}"
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hang", f"after {SECONDS} s"


def _child(fault: Fault, folder: Path, report: Path) -> None:
    """Reads the bad input, and ends the process."""
    text = io.StringIO()
    understood = fetched = None
    code: int | str | None = 0
    try:
        fetched = _forbid_network()
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, in_use + MEMORY))
        os.chdir(folder)
        with redirect_stdout(text), redirect_stderr(text), one_line_errors("faults"):
            understood = fault.read(folder)
    except SystemExit as exit:
        code = exit.code
    except BaseException:
        code = 1
        text.write(traceback.format_exc())
    lines = [line for line in text.getvalue().splitlines() if line.strip()]
    message = lines[-1] if lines else ""
    if fetched:
        outcome, message = "fetched", str(fetched)
    elif "Traceback (most recent call last)" in text.getvalue():
        outcome = "memory" if "MemoryError" in message else "traceback"
    elif code == 2:
        outcome = "memory" if "out of memory" in message else "refused" if fault.named in message else "unnamed"
    elif code not in (0, None):
        outcome = "died"
    else:
        outcome = "harmless" if fault.good is not None and understood == fault.good else "silent"
        message = message if outcome == "silent" else ""
    report.write_text(json.dumps({"outcome": outcome, "message": message}))
    os._exit(0)


def good_folder() -> Path:
    """A new folder for good input, which goes when this process ends, but not with those forked from it."""
    folder = Path(tempfile.mkdtemp(prefix="good-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _forbid_network() -> list[str]:
    """Lets no socket connect but to this machine, and returns the list of what was tried."""
    tried: list[str] = []
    connect = socket.socket.connect

    def only_here(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):  # type: ignore[index]
            tried.append(str(address))
            raise OSError("no network")
        connect(self, address)  # type: ignore[arg-type]

    def only_known(host: str, *arguments: object, **settings: object) -> list:
        tried.append(str(host))
        raise OSError("no network")

    socket.socket.connect = only_here  # type: ignore[method-assign,assignment]
    socket.getaddrinfo = only_known  # type: ignore[assignment]
    return tried


def faults_of(groups: tuple[str, ...] | list[str], every: int = 1) -> Iterator[Fault]:
    """The faults of some groups, or every so many of each kind."""
    for group in groups:
        counts: Counter[str] = Counter()
        for fault in importlib.import_module(f"faults.{group}").faults():
            if counts[fault.kind] % every == 0:
                yield fault
            counts[fault.kind] += 1


def in_own_process(groups: Sequence[str], every: int = 1) -> list[Outcome]:
    """
    Outcomes of groups of one of `PROCESSES`. Libraries that another group used may have left threads, which processes
    that are forked for this one would wait for.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "outcomes.json"
        words = [sys.executable, "-m", "faults.harness", "--groups", *groups, "--every", every, "--output", output]
        printed = subprocess.run(
            list(map(str, words)), cwd=Path(__file__).parents[1], capture_output=True, text=True, errors="replace"
        )
        if not output.is_file():
            raise RuntimeError(f"{groups}: {printed.stderr[-3000:]}")
        return [Outcome(**entry) for entry in json.loads(output.read_text())["faults"]]


def table(outcomes: list[Outcome]) -> str:
    """How many of each kind came to what, as Markdown."""
    columns = [*GOOD_OUTCOMES, *sorted({entry.outcome for entry in outcomes} - set(GOOD_OUTCOMES))]
    lines = ["| " + " | ".join(("what", "tried", *columns)) + " |", "|---|" + "---:|" * (len(columns) + 1)]
    for kind in dict.fromkeys(entry.kind for entry in outcomes):
        counts = Counter(entry.outcome for entry in outcomes if entry.kind == kind)
        lines.append("| " + " | ".join((kind, str(counts.total()), *(str(counts[name]) for name in columns))) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--every", type=int, default=1, help="try every so many of each kind only")
    parser.add_argument("--output", type=Path, help="JSON file of all outcomes")
    arguments = parser.parse_args()
    processes = [[name for name in names if name in arguments.groups] for names in PROCESSES]
    if sum(map(bool, processes)) > 1:
        outcomes = [entry for groups in processes if groups for entry in in_own_process(groups, arguments.every)]
    else:
        outcomes = [try_fault(fault) for fault in faults_of(arguments.groups, arguments.every)]
    for entry in outcomes:
        if entry.outcome not in GOOD_OUTCOMES:
            print(f"{entry.outcome}: {entry.kind}: {entry.name}: {entry.message}", flush=True)
    print(table(outcomes))
    if arguments.output:
        content = {"faults": [asdict(outcome) for outcome in outcomes]}
        arguments.output.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    sys.exit(any(outcome.outcome not in GOOD_OUTCOMES for outcome in outcomes))


if __name__ == "__main__":
    main()

"""What the scripts share: one clear line and exit code 2 on bad input, and one line when they are interrupted."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from tqdm.auto import tqdm


def _launcher() -> int | None:
    """The process above this one, where it is one that starts the processes of a run and passes signals on."""
    parent = os.getppid()
    try:
        words = Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\0")
    except OSError:  # no Linux
        return None
    return parent if LAUNCHERS & {os.path.basename(word) for word in words} else None


GRACE_SECONDS = 30.0
LAUNCHERS = {b"torchrun", b"torch.distributed.run", b"accelerate", b"accelerate-launch", b"accelerate.commands.launch"}
_LAUNCHER = _launcher()  # as early as can be, for it may die
if _LAUNCHER is None and "TORCHELASTIC_RUN_ID" in os.environ:
    _LAUNCHER = -1  # it died before it was looked at: another process is above this one


class Terminated(KeyboardInterrupt):
    """SIGTERM, which schedulers send some seconds before they take a machine away."""


def _launcher_died() -> bool:
    return _LAUNCHER is not None and os.getppid() != _LAUNCHER


def _end_with_launcher(grace: float) -> None:
    """
    Ends this process when its launcher has died: as after SIGTERM, or at once where that has not helped. A process
    that waits for others, which died too or belong to the next run by now, does not listen to signals.
    """
    while not _launcher_died():
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS if StopRequest.is_open else grace)
    os._exit(143)


@contextmanager
def one_line_errors(program: str, grace: float = GRACE_SECONDS) -> Iterator[None]:
    """
    Turns errors about files and arguments into one line on standard error and exit code 2, and an interruption into
    one line and the exit code that shells give it: 130 after Ctrl-C (SIGINT), 143 after SIGTERM. What was half written
    is removed on the way, as after any error. A process whose launcher (`torchrun`, `accelerate launch`) died ends
    within `grace` seconds.
    """
    if sys.argv[0].startswith("hsst "):  # as the user called it
        program = sys.argv[0]
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGTERM, _terminate) if in_main_thread else None
    if in_main_thread and _LAUNCHER is not None:
        threading.Thread(target=_end_with_launcher, args=(grace,), daemon=True, name="launcher watch").start()
    try:
        yield
    except (ValueError, OSError, MemoryError) as error:
        stop(program, f"error: {shown(_reason(error))}", 2)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        stop(program, "error: a process that reads the data was killed; most often memory ran out", 2)
    except Terminated as request:
        stop(program, ": ".join(("terminated", *request.args)), 143)
    except KeyboardInterrupt as request:
        stop(program, ": ".join(("interrupted", *request.args)), 130)
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)


class StopRequest:
    """
    Inside `with`, SIGTERM, Ctrl-C and the death of the launcher (`torchrun`, `accelerate launch`) do not end the
    program: it looks at `made` after each piece of work, saves, and ends itself by `grant`. Where no launcher passes
    signals on, a second one ends it at once.
    """

    is_open = False

    def __enter__(self) -> StopRequest:
        self.signal: int | None = None
        StopRequest.is_open = True
        self._handlers = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        StopRequest.is_open = False
        for number, handler in self._handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)

    @property
    def made(self) -> bool:
        return self.signal is not None or _launcher_died()

    def grant(self, message: str) -> NoReturn:
        """Ends the program with the exit code of the signal, and a line."""
        raise (KeyboardInterrupt if self.signal == signal.SIGINT else Terminated)(message)

    def _note(self, number: int, frame: Any) -> None:
        if self.signal is not None and _LAUNCHER is None:
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated
        self.signal = number


def leave_signals_to_parent(worker: int) -> None:
    """
    For workers of a DataLoader (`worker_init_fn`): SLURM, `torchrun` and terminals send signals to all processes of a
    run, but only the one that trains is to end itself, and its workers must live until then. SIGTERM from that one
    still ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_by_parent, daemon=True).start()


def _end_by_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def stop(program: str, message: str, exit_code: int) -> NoReturn:
    """Ends a program with a line."""
    tqdm.write(f"{program}: {message}", file=sys.stderr)  # not behind a progress bar
    raise SystemExit(exit_code) from None


def shown(text: str) -> str:
    """A text in one line, without what would move the cursor or color a terminal."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in " ".join(text.split()))


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"out of memory: {error}"
    # One that a worker of a DataLoader met comes with its traceback, and at the end as it was
    name = type(error).__name__
    return re.split(rf"\n[\w.]*{name}: ", str(error))[-1].strip() or name


def _terminate(signal_number: int, frame: Any) -> None:
    raise Terminated


def stated(default: Any) -> str:
    """A default as a user would give it."""
    return " ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help that states the default of each argument, but where the text has it in parentheses at its end."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if isinstance(action.default, bool) or action.default in (None, "", [], argparse.SUPPRESS):
            return text
        default = stated(action.default).replace("%", "%%")
        return text if text.endswith(")") else f"{text} ({default})"


def check_least(arguments: argparse.Namespace, least: float, *names: str) -> None:
    """Raises ValueError where an argument is given that is smaller, or not a number."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and not value >= least:
            raise ValueError(f"--{name}: expected at least {least}, got {value}")


def check_source(source: str | None, flag: str) -> None:
    """Raises ValueError where the source of a model, if there is one, is neither a folder nor may be on the Hub."""
    folder = Path(source or ".")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{flag}: expected the folder of a model, but {source} is a file")
    is_path = folder.is_absolute() or str(source).startswith((".", "~")) or len(folder.parts) > 2
    if not folder.is_dir() and is_path:
        raise ValueError(f"{missing_source(source, flag)}, and repositories have names like owner/model")


def missing_source(source: str | None, flag: str) -> str:
    return f"{flag}: expected a folder or the name of a repository of the Hub, but there is no folder {source}"


def parse_named(flag: str, form: str, texts: Sequence[str]) -> dict[str, str]:
    """Arguments of a repeated flag, NAME=VALUE each (`form` says of what), by their names."""
    named: dict[str, str] = {}
    for text in texts:
        name, _, value = (part.strip() for part in text.partition("="))
        if not name or not value or name in named:
            raise ValueError(f"--{flag}: expected {form} with names that differ, got {text}")
        named[name] = value
    return named


def add_scene_arguments(parser: argparse.ArgumentParser, fate: str) -> None:
    """How a scene is read; `fate` says what becomes of excluded pixels."""
    # Here, for scripts that read no scenes need no rasterio
    from datasets_loading.scenes import EXCLUDABLE

    parser.add_argument(
        "--exclude",
        nargs="*",
        choices=EXCLUDABLE,
        default=["outside", "cloud", "shadow"],
        help=f"pixels of EnMAP products {fate}; nothing after it: none",
    )
    add_reading_arguments(parser)
    parser.add_argument(
        "--sensor_geometry",
        action="store_true",
        help="leave an EMIT image as it was taken, in place of on its map grid",
    )
    parser.add_argument("--resample", action="store_true", help="resample spectra to the model's bands")


def add_reading_arguments(parser: Any, with_variable: bool = True) -> None:
    """How images are read that do not say so themselves; `reading_of` gives them."""
    parser.add_argument("--wavelengths", type=Path, help="file with band centers in nm, and widths, one band a line")
    parser.add_argument(
        "--scale", type=float, help="stored number of a reflectance of 1, in place of what an image states"
    )
    parser.add_argument(
        "--nodata",
        type=float,
        help="stored number of pixels without data, in place of what an image states; nan: none",
    )
    if with_variable:
        parser.add_argument("--variable", help="array of a MATLAB, NumPy, HDF5 or NetCDF file that holds several")
    parser.add_argument("--radiance", action="store_true", help="take radiance as it is, for a model trained on such")


def reading_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """How to open an image, as for `datasets_loading.rasters.open_raster`."""
    reading = {name: getattr(arguments, name, None) for name in ("wavelengths", "scale", "nodata", "variable")}
    given = {name: value for name, value in reading.items() if value is not None}
    if getattr(arguments, "sensor_geometry", False):
        given["orthorectified"] = False
    return {**given, "radiance": arguments.radiance}

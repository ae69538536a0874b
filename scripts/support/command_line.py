"""What the scripts share: one clear line and exit code 2 on bad input, and one line when they are interrupted."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm


@contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """
    Turns errors about files and arguments into one line on standard error and exit code 2, and an interruption
    (SIGINT, Ctrl-C) into one line and the exit code 130 that shells give it.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        tqdm.write(f"{program}: error: {message}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        tqdm.write(f"{program}: interrupted", file=sys.stderr)  # not behind a progress bar
        raise SystemExit(130) from None


def check_least(arguments: argparse.Namespace, least: float, *names: str) -> None:
    """Raises ValueError where an argument is given that is smaller, or not a number."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and not value >= least:
            raise ValueError(f"--{name}: expected at least {least}, got {value}")


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
        help=f"pixels of EnMAP products {fate} (outside cloud shadow); nothing after it: none",
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
    parser.add_argument("--wavelengths", type=Path, help="file with band centres in nm, and widths, one band a line")
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

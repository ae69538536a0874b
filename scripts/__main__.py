"""Runs a program of this package: `python -m hsst predict_scene ...`, or `hsst predict_scene ...`."""

import importlib
import sys
from pathlib import Path

PROGRAMS = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def main() -> None:
    """Runs the program that the first argument names, with the arguments after it."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(f"usage: hsst PROGRAM ...\n\nprograms: {', '.join(PROGRAMS)}\n\nhsst PROGRAM --help says what each does")
        return
    if name not in PROGRAMS:
        print(f"hsst: error: expected a program among {', '.join(PROGRAMS)}, got {name}", file=sys.stderr)
        raise SystemExit(2)
    sys.argv = [f"hsst {name}", *sys.argv[2:]]
    importlib.import_module(f"hsst.{name}").main()


if __name__ == "__main__":
    main()

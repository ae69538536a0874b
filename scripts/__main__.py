"""
One command for all programs: `hsst predict ...`, or `python -m hsst predict ...`, runs `scripts/predict_scene.py`, and
so on. The names of the scripts serve as well.
"""

import importlib
import sys
from pathlib import Path

from hsst import missing_package

PROGRAMS = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))

COMMANDS = {
    "find": ("find_enmap", "search the EnMAP archive, and fetch scenes or parts of them"),
    "explore": ("explore_scene", "draw features, land cover and a spectrum of a small scene"),
    "inspect": ("inspect_images", "show how files are read: bands, numbers, nodata"),
    "predict": ("predict_scene", "map the land cover of scenes with a fine-tuned model"),
    "features": ("predict_scene", "write the features that a model gives for each pixel of a scene"),
    "finetune": ("run_classification", "train on labels of a scene: rasters, points, polygons"),
    "prepare": ("prepare_enmap", "cut products into tiles for pre-training"),
    "pretrain": ("run_mim", "pre-train on products, tiles or images without labels"),
    "simulate": ("simulate_enmap", "write scenes in the official format, with labels"),
    "reconstruct": ("plot_reconstruction", "draw what a pre-trained model makes of hidden values"),
    "convert": ("convert_maskedsst_checkpoint", "turn checkpoints of the paper's code into model folders"),
    "export": ("export_onnx", "write a model as ONNX, for programs without PyTorch"),
    "publish": ("publish", "check a model and its card, and upload them to the Hub"),
}
"""The script of each command, and what it does."""

ADDED = {"features": ["--features"]}
"""Arguments that make a script do what the command says; they go last, where they cannot take another's value."""


def overview() -> str:
    """Names and purposes of all commands."""
    lines = [f"  {name:<12} {purpose}" for name, (_, purpose) in COMMANDS.items()]
    others = [name for name in PROGRAMS if name not in {program for program, _ in COMMANDS.values()}]
    return "\n".join(
        [
            "usage: hsst COMMAND ...",
            "",
            *lines,
            "",
            f"also, by the names of their scripts: {', '.join(others)}",
            "hsst COMMAND --help says how each is used; hsst --version which this is",
        ]
    )


def main() -> None:
    """Runs the command that the first argument names, with the arguments after it."""
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in ("-h", "--help"):
        print(overview())
        return
    if name == "--version":
        print(f"hsst {importlib.import_module('hsst').__version__}")
        return
    program = COMMANDS[name][0] if name in COMMANDS else name
    if program not in PROGRAMS:
        print(f"hsst: error: expected a command among {', '.join(COMMANDS)}, got {name}", file=sys.stderr)
        raise SystemExit(2)
    added = ADDED.get(name, [])
    given = any(argument.split("=")[0] in added for argument in arguments)
    sys.argv = [f"hsst {name}", *arguments, *([] if given else added)]
    try:
        importlib.import_module(f"hsst.{program}").main()
    except ModuleNotFoundError as error:
        message = missing_package(error)
        if message is None:
            raise
        print(f"hsst {name}: error: {message}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()

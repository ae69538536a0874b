"""
Draw what the models make of a scene: features as colors, land cover, and a spectrum with its hidden bands filled in.

    python scripts/explore_scene.py SCENE --output picture.png

Beside the picture stands the land-cover map as a GeoTIFF (picture_map.tif). The published models are the default. For
scenes of up to some hundred pixels along a side; predict_scene.py is for larger ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets_loading.scenes import open_scene
from hsst.support.choices import published_model
from hsst.support.command_line import add_reading_arguments, check_least, one_line_errors, reading_of

if TYPE_CHECKING:  # what needs torch is imported where it is used
    from hsst.support.explored_scene import Explored


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", help="a scene")
    parser.add_argument("--output", type=Path, required=True, help="picture to write (.png)")
    for flag, name, kind in (
        ("model", "hsst-enmap", "pre-trained"),
        ("landcover", "hsst-enmap-landcover", "fine-tuned"),
    ):
        parser.add_argument(f"--{flag}", default=published_model(name), help=f"{kind} model ({published_model(name)})")
    parser.add_argument("--row", type=int, help="of the pixel whose spectrum is drawn (in the middle)")
    parser.add_argument("--column", type=int, help="of that pixel (in the middle)")
    add_reading_arguments(parser)
    return parser.parse_args()


def draw(explored: Explored, row: int, column: int, path: Path) -> None:
    """Draws three pictures of a scene, with the legend of the last, above the spectrum of a pixel."""
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    from hsst.support.explored_scene import BACKGROUND, NO_CLASS, draw_pixel
    from hsst.support.figures import save_figure
    from hsst.support.map_writer import class_colors

    figure = Figure(figsize=(13, 8.5), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    above, below = halves
    titles = ("true color", "features: the three directions they differ most in", "land cover")
    axes = above.subplots(1, 3)
    for axis, picture, title in zip(axes, explored.pictures, titles, strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.plot(column, row, marker="s", markersize=9, markerfacecolor="none", markeredgecolor="white")
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    names = [str(name) for name in explored.class_names]
    counts = np.bincount(explored.classes[explored.classes != NO_CLASS], minlength=len(names))
    colors = class_colors(names)
    handles = [Patch(color=colors[code], label=names[code]) for code in np.argsort(-counts) if counts[code]]
    handles += [Patch(color=BACKGROUND, label="no data, cloud or shadow")] * bool((explored.classes == NO_CLASS).any())
    above.legend(handles=handles, loc="outside right center", frameon=False, fontsize=9)
    above.suptitle(f"{explored.name[0]}, {explored.name[1]}", fontsize=9)
    draw_pixel(below.subplots(), explored, row, column)
    save_figure(path, figure)


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("explore_scene.py"):
        if arguments.output.suffix.lower() != ".png":
            raise ValueError(f"--output: expected a file ending in .png, got {arguments.output}")
        check_least(arguments, 0, "row", "column")
        with open_scene(arguments.scene, **reading_of(arguments)) as scene:
            for name, side in zip(("row", "column"), scene.shape, strict=True):
                if (value := getattr(arguments, name)) is not None and value >= side:
                    raise ValueError(f"--{name}: expected less than {side}, got {value}")
            from tqdm import tqdm
            from transformers.utils import logging

            from hsst.support.explored_scene import explore, first_pixel, load_models

            logging.set_verbosity_error()
            logging.disable_progress_bar()
            models = load_models(arguments.model, arguments.landcover)
            map_path = arguments.output.with_name(f"{arguments.output.stem}_map.tif")
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            with tqdm(total=100, bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}") as bar:

                def report(share: float, what: str) -> None:
                    bar.set_description(what)
                    bar.update(round(100 * share) - bar.n)

                explored = explore(scene, models, map_path, report)
        row, column = first_pixel(explored)
        step = int(explored.step)
        row = row if arguments.row is None else arguments.row // step
        column = column if arguments.column is None else arguments.column // step
        draw(explored, row, column, arguments.output)
        print(f"{arguments.output}\n{map_path}")


if __name__ == "__main__":
    main()

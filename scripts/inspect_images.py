"""Show what is read of images: their bands, their numbers as reflectance, how much of them is data, and a picture.

    python scripts/inspect_images.py scene.hdr products/* --output_dir outputs/images

prints a row for each image, or why it is refused. With --output_dir, `images.json` holds the same, and `images.png`
draws all of them in true color. Exit code 2: an image cannot be read.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from datasets_loading.files import write_json
from datasets_loading.scenes import Scene, find_scenes, open_scene
from hsst.support.command_line import HelpFormatter, add_reading_arguments, one_line_errors, reading_of
from hsst.support.figures import save_figure, true_color
from hsst.support.reports import markdown_table

LARGEST_PICTURE = 512
"""Pixels along a side of the middle of a scene that is shown, and that its numbers are taken from."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("images", nargs="+", help="images and products, or patterns of them in quotes")
    parser.add_argument("--output_dir", type=Path, help="folder of images.json and images.png (none)")
    add_reading_arguments(parser)
    return parser.parse_args()


def describe(title: str, scene: Scene) -> tuple[dict[str, Any], np.ndarray]:
    """What a table says of a scene, and its picture (height, width, 3)."""
    starts = [max(0, (length - LARGEST_PICTURE) // 2) for length in scene.shape]
    rows, columns = (slice(start, start + LARGEST_PICTURE) for start in starts)
    stored = scene.read(rows, columns)
    has_data = stored != scene.nodata
    good = scene.valid_bands
    values = stored[good][has_data[good]] / scene.scale
    low, high = np.percentile(values, (1, 99)) if values.size else (np.nan, np.nan)
    wavelengths = scene.wavelengths
    reflectance = np.where(has_data, stored / scene.scale, np.nan)[good]
    picture, _ = true_color(reflectance, None if wavelengths is None else wavelengths[good])
    about = scene.raster.metadata
    return {
        "title": title,
        "format": "EnMAP" if scene.product else about.get("format", about.get("sensor", "")),
        "bands": len(good),
        "bands_with_data": int(good.sum()),
        "wavelengths": None if wavelengths is None else [float(wavelengths[0]), float(wavelengths[-1])],
        "widths": scene.fwhm is not None,
        "shape": list(scene.shape),
        "numbers": scene.raster.scale_note,
        "reflectance": [float(low), float(high)],
        "valid_share": float(has_data[good].mean()) if good.any() else 0.0,
        "notes": list(scene.raster.notes),
    }, picture


def images_table(rows: list[dict[str, Any]]) -> str:
    """A table in Markdown, one row for each image."""
    columns = ("image", "bands (with data)", "nm", "pixels", "numbers", "reflectance, 1 to 99 %", "data")
    cells = []
    for row in rows:
        if "refused" in row:
            cells.append([row["title"], *[""] * 6, f"refused: {row['refused']}"])
            continue
        span = "unknown" if row["wavelengths"] is None else "{:.0f} to {:.0f}".format(*row["wavelengths"])
        bands, size = f"{row['bands']} ({row['bands_with_data']})", "{} x {}".format(*row["shape"])
        reflectance, share = "{:.3f} to {:.3f}".format(*row["reflectance"]), f"{row['valid_share']:.1%}"
        notes = "; ".join(row["notes"])
        cells.append([row["title"], bands, span, size, row["numbers"], reflectance, share, notes])
    return markdown_table([*columns, "assumed, or refused"], cells)


def plot(path: Path, rows: list[dict[str, Any]], pictures: list[np.ndarray]) -> None:
    """All images in true color, side by side."""
    shown = [row for row in rows if "refused" not in row]
    num_columns = min(6, max(1, len(shown)))
    num_rows = max(1, -(-len(shown) // num_columns))
    figure = Figure(figsize=(2.6 * num_columns, 3.1 * num_rows))
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, row, picture in zip(axes.flat, shown, pictures, strict=False):
        axis.imshow(picture, interpolation="nearest")
        span = "bands by number" if row["wavelengths"] is None else "{:.0f}-{:.0f} nm".format(*row["wavelengths"])
        lines = [*textwrap.wrap(row["title"], 30), f"{row['bands_with_data']} bands, {span}"]
        axis.set_title("\n".join(lines), fontsize=8)
    figure.tight_layout()
    save_figure(path, figure)


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("inspect_images.py"):
        paths = find_scenes(arguments.images)
        rows: list[dict[str, Any]] = []
        pictures = []
        for path in tqdm(paths, desc="reading", unit="image"):
            title = Path(path).name
            try:
                with open_scene(path, **reading_of(arguments)) as scene:
                    row, picture = describe(title, scene)
                pictures.append(picture)
            except ValueError as error:
                row = {"title": title, "refused": str(error).replace(f"{path}: ", "")}
            rows.append(row)
        print(images_table(rows))
        refused = [row["title"] for row in rows if "refused" in row]
        if arguments.output_dir is not None:
            arguments.output_dir.mkdir(parents=True, exist_ok=True)
            write_json(arguments.output_dir / "images.json", {"images": rows})
            plot(arguments.output_dir / "images.png", rows, pictures)
            print(f"{arguments.output_dir / 'images.png'}: {len(pictures)} images")
    if refused:
        print(
            f"inspect_images.py: {len(refused)} of {len(rows)} cannot be read: {', '.join(refused)}", file=sys.stderr
        )
        sys.exit(2)


if __name__ == "__main__":
    main()

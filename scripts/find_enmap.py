"""Find EnMAP scenes in the archive that serves them, look at them, and fetch them, whole or a window of each.

    python scripts/find_enmap.py --bbox 11.2 47.9 11.8 48.3 --date 2024-06-01/2024-08-31 --max_cloud 10
    python scripts/find_enmap.py --bbox 11.2 47.9 11.8 48.3 --output_dir outputs/found
    python scripts/find_enmap.py --products outputs/found/products.txt --download products --jobs 4
    python scripts/find_enmap.py --products outputs/found/products.txt --download windows --window 400 600 256 256

prints a row for each scene. --output_dir gets a picture of the footprints, the names and the STAC items; --download a
folder for each product, which prepare_enmap.py, run_mim.py and predict_scene.py read. Searching needs no account;
files need a login in ~/.netrc (docs/manual/find.md). The same command goes on where it was interrupted. Exit code 2:
no scene was found, or one could not be fetched.
"""

from __future__ import annotations

import argparse
import io
import math
import re
import sys
from collections.abc import Sequence
from datetime import date
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from hsst.support.command_line import check_least, one_line_errors, shown

if TYPE_CHECKING:
    from PIL.Image import Image

    from datasets_loading.archive import Archive
    from datasets_loading.stac_items import Item

CATALOGUE = "https://geoservice.dlr.de/eoc/ogc/stac/v1"
MOST_PICTURES = 20
"""Thumbnails that are shown; further scenes have their footprint alone."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    box = ("WEST", "SOUTH", "EAST", "NORTH")
    parser.add_argument("--bbox", nargs=4, type=float, metavar=box, help="box in degrees that scenes touch")
    parser.add_argument("--date", metavar="FROM/TO", help="first and last day (2024-06-01/2024-08-31), or one day")
    parser.add_argument("--max_cloud", type=float, metavar="PERCENT", help="largest cloud cover of a scene")
    parser.add_argument("--limit", type=int, default=100, help="scenes of a search at most (100)")
    parser.add_argument("--products", type=Path, metavar="FILE", help="names of products, one a line, not a search")
    parser.add_argument("--collection", default="ENMAP_HSI_L2A", help="collection of the catalogue (ENMAP_HSI_L2A)")
    parser.add_argument("--catalogue", default=CATALOGUE, metavar="URL", help=f"address of the STAC API ({CATALOGUE})")
    parser.add_argument("--output_dir", type=Path, help="folder of footprints.png, products.txt and the items")
    parser.add_argument("--download", type=Path, metavar="DIR", help="folder for a folder of each product")
    window = ("ROW", "COLUMN", "HEIGHT", "WIDTH")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--window", nargs=4, type=int, metavar=window, help="fetch these pixels of each scene alone")
    part.add_argument("--crop", action="store_true", help="fetch the pixels in --bbox alone")
    parser.add_argument("--jobs", type=int, default=4, help="files that are fetched at the same time, up to 16 (4)")
    return parser.parse_args()


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raises ValueError where arguments are senseless, before anything is imported that takes time."""
    check_least(arguments, 1, "limit", "jobs")
    check_least(arguments, 0, "max_cloud")
    if arguments.jobs > 16:
        raise ValueError(f"--jobs: expected at most 16, which the archive may bear, got {arguments.jobs}")
    if arguments.products is None and arguments.bbox is None and arguments.date is None:
        raise ValueError("expected --bbox or --date to search for, or --products")
    if arguments.products is not None and (arguments.date or arguments.max_cloud is not None):
        raise ValueError("--products: expected no --date and no --max_cloud beside it, which are for a search")
    if arguments.bbox is not None:
        west, south, east, north = arguments.bbox
        if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
            numbers = " ".join(f"{number:g}" for number in arguments.bbox)
            raise ValueError(f"--bbox: expected degrees with WEST < EAST and SOUTH < NORTH, got {numbers}")
    if (arguments.crop or arguments.window) and arguments.download is None:
        raise ValueError("--window and --crop: expected --download with them, got none")
    if arguments.crop and arguments.bbox is None:
        raise ValueError("--crop: expected --bbox with it, got none")
    if arguments.window and (min(arguments.window) < 0 or min(arguments.window[2:]) < 1):
        raise ValueError(f"--window: expected a place from 0 and sides from 1, got {arguments.window}")
    if "@" in arguments.catalogue:
        raise ValueError("--catalogue: expected an address without a login in it: that stands in ~/.netrc")
    address = urlsplit(arguments.catalogue)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ValueError(f"--catalogue: expected an address that begins with https://, got {arguments.catalogue}")
    if arguments.date is not None:
        ends = arguments.date.split("/")
        days = [date.fromisoformat(day) if re.fullmatch(r"\d{4}-\d\d-\d\d", day) else None for day in ends]
        if len(ends) > 2 or None in days or days != sorted(days):  # type: ignore[type-var]
            raise ValueError(f"--date: expected YYYY-MM-DD, or two with / between, got {arguments.date}")


def found(archive: Archive, arguments: argparse.Namespace) -> list[Item]:
    """The scenes that are named, or those of the search with few clouds."""
    from datasets_loading.raster_file import read_text_file

    if arguments.products is not None:
        lines = read_text_file(arguments.products, "a list of products").decode("utf-8-sig", "replace").splitlines()
        return list(archive.items(dict.fromkeys(line.strip() for line in lines if line.strip() and line[0] != "#")))
    items, unknown = [], 0
    for item in archive.search(arguments.bbox, arguments.date):
        cover = item.number("eo:cloud_cover")
        unknown += arguments.max_cloud is not None and cover is None
        if arguments.max_cloud is None or (cover is not None and cover <= arguments.max_cloud):
            items.append(item)
        if len(items) == arguments.limit:
            print(f"find_enmap.py: the first {arguments.limit} scenes; there may be more (--limit)", file=sys.stderr)
            break
    if unknown:
        print(f"find_enmap.py: scenes left out whose cloud cover is unknown: {unknown}", file=sys.stderr)
    return items


def footprint(item: Item) -> list[tuple[float, float]]:
    """Corners of a scene in degrees (longitude, latitude); empty where the item states none."""
    try:
        corners = [(float(point[0]), float(point[1])) for point in item.content["geometry"]["coordinates"][0]]
    except (KeyError, IndexError, TypeError, ValueError):
        return []
    return corners if all(map(math.isfinite, chain(*corners))) else []


def row_of(item: Item) -> list[str]:
    """What the table says of a scene."""
    covers = (
        item.number(name) for name in ("eo:cloud_cover", "enmap:haze_cover", "eo:snow_cover", "enmap:water_cover")
    )
    try:
        day, sun = f"{item.acquisition_time:%Y-%m-%d}", f"{item.sun_elevation:.0f}"
    except ValueError:
        day, sun = "?", "?"
    season = shown(str(item.content["properties"].get("enmap:season") or "?"))[:20]
    return [item.name, day, *("?" if cover is None else f"{cover:.0f}" for cover in covers), sun, season]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text with aligned columns, numbers to the right."""
    header = ["", "name", "date", "cloud %", "haze %", "snow %", "water %", "sun °", "season"]
    columns = list(zip(header, *([str(number), *row] for number, row in enumerate(rows, start=1)), strict=True))
    for place, cells in enumerate(columns):
        width = max(map(len, cells))
        columns[place] = tuple(cell.rjust(width) if 3 <= place <= 7 else cell.ljust(width) for cell in cells)
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def thumbnail_of(content: bytes | None) -> Image | None:
    """The picture that a file holds, of a size that a thumbnail may have; None where it holds none."""
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(content or b""), formats=("JPEG", "PNG"))
        return picture.convert("RGB") if max(picture.size) <= 4096 else None
    except (OSError, ValueError):
        return None


def draw(path: Path, items: Sequence[Item], pictures: Sequence[Image | None], box: Sequence[float] | None) -> None:
    """Footprints with the numbers of the table, and beside them the thumbnails that there are."""
    from matplotlib.figure import Figure

    from hsst.support.figures import save_figure

    shown_ones = [(number, picture) for number, picture in enumerate(pictures, start=1) if picture is not None]
    num_columns = min(5, len(shown_ones))
    num_lines = max(1, -(-len(shown_ones) // max(1, num_columns)))
    figure = Figure(figsize=(6.5 + 2.2 * num_columns, max(4.5, 2.2 * num_lines)), layout="constrained")
    ratios = (6.5, *([2.2 * num_columns] if num_columns else []))
    parts = figure.subfigures(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
    axis = parts[0].subplots()
    middle = 0.0
    for number, item in enumerate(items, start=1):
        ring = footprint(item)
        if ring:
            xs, ys = zip(*ring, strict=True)
            middle = (min(ys) + max(ys)) / 2
            axis.fill(xs, ys, facecolor="#1b6ca833", edgecolor="#1b6ca8")
            label = {"ha": "center", "va": "center", "fontsize": 9}
            background = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1}
            axis.text((min(xs) + max(xs)) / 2, middle, str(number), bbox=background, **label)
    if box is not None:
        west, south, east, north = box
        axis.plot([west, east, east, west, west], [south, south, north, north, south], color="#d1495b", lw=1.8)
    axis.set_aspect(1 / max(0.1, math.cos(math.radians(middle))))
    axis.set_xlabel("longitude (°)")
    axis.set_ylabel("latitude (°)")
    axis.grid(alpha=0.25)
    axis.set_title("footprints" + (", and the box in red" if box is not None else ""), fontsize=11)
    panels = list(parts[1].subplots(num_lines, num_columns, squeeze=False).flat) if shown_ones else []
    for panel in panels:
        panel.axis("off")
    for panel, (number, picture) in zip(panels, shown_ones, strict=False):
        _, day, cloud, *_ = row_of(items[number - 1])
        panel.imshow(picture)
        panel.set_title(f"{number}: {day}, cloud {cloud} %", fontsize=8)
    save_figure(path, figure)


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("find_enmap.py"):
        check_arguments(arguments)
        try:
            from datasets_loading.archive import Archive
        except ImportError as error:
            if error.name not in ("pystac", "pystac_client", "requests", "urllib3"):
                raise
            raise ValueError(f"expected the package {error.name}, got none: pip install pystac-client") from None
        from rasterio.windows import Window

        from datasets_loading.files import write_json, write_text

        archive = Archive(arguments.catalogue, arguments.collection)
        items = found(archive, arguments)
        if not items:
            raise ValueError(f"expected scenes in {arguments.collection} at {arguments.catalogue}, got none")
        print(table([row_of(item) for item in items]))
        if arguments.output_dir is not None:
            for item in items:
                write_json(arguments.output_dir / "items" / f"{item.name}.json", item.content)
            write_text(arguments.output_dir / "products.txt", "".join(f"{item.name}\n" for item in items))
            pictures = [thumbnail_of(archive.thumbnail(item)) for item in items[:MOST_PICTURES]]
            draw(arguments.output_dir / "footprints.png", items, pictures, arguments.bbox)
            print(arguments.output_dir / "footprints.png")
        if arguments.download is None:
            return
        if not re.search("L2A", arguments.collection):
            print("find_enmap.py: warning: not of level L2A, so radiance (--radiance of readers)", file=sys.stderr)
        place = arguments.bbox if arguments.crop else None
        if arguments.window:
            row, column, height, width = arguments.window
            place = Window(column, row, width, height)
        results = archive.download(items, arguments.download, jobs=arguments.jobs, place=place)
        for result in results.values():
            print(shown(str(result)) if isinstance(result, Path) else f"not fetched: {shown(str(result))}")
        failures = [str(result) for result in results.values() if not isinstance(result, Path)]
        years = sorted({row_of(item)[1][:4] for item in items if isinstance(results[item.name], Path)})
        if years:
            print(f"Contains modified EnMAP data (c) DLR {', '.join(years)}; not to be redistributed")
        if failures:
            raise ValueError(f"{len(failures)} of {len(results)} scenes not fetched, the first: {failures[0]}")


if __name__ == "__main__":
    main()

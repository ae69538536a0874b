"""Cut EnMAP L2A products and other images into a corpus for training: Parquet files that `load_dataset` reads.

    python scripts/prepare_enmap.py --data_dir products --output_dir corpus --num_workers 4
    python scripts/prepare_enmap.py --data_dir products --output_dir corpus --dask_scheduler tcp://host:8786

Products are cut into tiles of 64 x 64 pixels; those mostly off the swath or under cloud are left out. Interrupted, the
same command goes on with the products that are not finished; given more products, it adds them. What could not be used
is listed at the end. Exit code 2: nothing could be used, or nothing can be written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from datasets_loading.corpus import CutSettings, cluster_executor, prepare_corpus
from datasets_loading.workers import local_executor
from hsst.support.command_line import HelpFormatter, add_reading_arguments, check_least, one_line_errors, reading_of


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of products and images, or one product")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the corpus")
    parser.add_argument("--tile_size", type=int, default=64, help="side of a tile in pixels")
    parser.add_argument(
        "--max_nodata", type=float, default=0.5, metavar="SHARE", help="largest share of a tile without data"
    )
    parser.add_argument(
        "--max_cloud", type=float, default=0.1, metavar="SHARE", help="largest share of a tile under cloud"
    )
    add_reading_arguments(parser)
    workers = parser.add_mutually_exclusive_group()
    workers.add_argument("--num_workers", type=int, default=1, help="processes on this machine")
    workers.add_argument(
        "--dask_scheduler", metavar="tcp://HOST:PORT", help="Dask cluster whose workers see the same folders"
    )
    parser.add_argument("--strict", action="store_true", help="stop at the first product that cannot be used")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("prepare_enmap.py"):
        check_least(arguments, 1, "num_workers")
        reading = reading_of(arguments)
        if "wavelengths" in reading:
            reading["wavelength_file"] = str(reading.pop("wavelengths").resolve())
        settings = CutSettings(arguments.tile_size, arguments.max_nodata, arguments.max_cloud, **reading)
        workers = (
            cluster_executor(arguments.dask_scheduler)
            if arguments.dask_scheduler
            else local_executor(arguments.num_workers)
        )
        with workers as executor:
            report = prepare_corpus(
                arguments.data_dir, arguments.output_dir, settings, executor=executor, strict=arguments.strict
            )
    print(
        f"{report.num_tiles} tiles of {report.num_sources} sources in {arguments.output_dir}; {report.num_skipped} "
        "windows without enough clear pixels left out"
    )
    for error in report.errors:
        print(f"prepare_enmap.py: not used: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()

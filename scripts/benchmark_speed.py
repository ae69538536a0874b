"""Measure how fast the parts of the package are, on this machine.

    python scripts/benchmark_speed.py data --data_dir corpus --output_dir outputs/speed

`data`: reading tiles of a corpus (prepare_enmap.py) as GeoTIFF files one by one, by number and as a stream, in one
process and two. Variants take turns; figures are medians. Prints a table, and writes it as JSON with a chart.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from pathlib import Path

from command_line import one_line_errors

from datasets_loading.data_speed import measure_reading, plot_reading, write_result


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    data = parts.add_parser("data", help="reading tiles")
    data.add_argument("--data_dir", type=Path, required=True, help="corpus written by prepare_enmap.py")
    data.add_argument("--output_dir", type=Path, required=True, help="folder for data_speed.json and data_speed.png")
    data.add_argument("--num_tiles", type=int, default=128, help="tiles to read (128)")
    data.add_argument("--turns", type=int, default=5, help="times each variant is measured (5)")
    data.set_defaults(run=benchmark_data)
    arguments = parser.parse_args()
    for name in ("num_tiles", "turns"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}: expected at least 1, got {getattr(arguments, name)}")
    return arguments


def benchmark_data(arguments: argparse.Namespace) -> None:
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".speed-", dir=arguments.output_dir) as workplace:
        result = measure_reading(arguments.data_dir, workplace, num_tiles=arguments.num_tiles, turns=arguments.turns)
    result["command"] = shlex.join(["python", *sys.argv])
    print(f"{'':32} processes  tiles/s     MB/s   x GeoTIFF  x uncompressed  MB of memory")
    for rate in result["rates"]:
        peak = result["peak_memory_mb"][rate["way"]]
        print(
            f"{rate['way']:32} {rate['num_processes']:9} {rate['tiles_per_second']:8,.0f} "
            f"{rate['megabytes_per_second']:8,.0f} {rate['ratio']:11.1f} {rate['ratio_to_uncompressed']:15.1f} "
            f"{'?' if peak is None else format(peak, '13,.0f')}"
        )
    for way, rate in result["windows_per_second"].items():
        print(f"training windows, {way}, one process: {rate:,.0f} per second")
    write_result(arguments.output_dir / "data_speed.json", result)
    plot_reading(arguments.output_dir / "data_speed.png", result)
    print(arguments.output_dir / "data_speed.png")


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("benchmark_speed.py"):
        arguments.run(arguments)


if __name__ == "__main__":
    main()

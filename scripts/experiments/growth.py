"""
Measure how time and memory grow with the size of a scene, of a corpus, and with the number of processes.

    python scripts/experiments/growth.py scenes --output_dir outputs/growth
    python scripts/experiments/growth.py corpus --output_dir outputs/growth
    python scripts/experiments/growth.py processes --output_dir outputs/growth

Every figure is of a program in a process of its own, its start included: seconds, processor time, and the most memory
that it held. Scenes and products are simulated and have few bands, and the model that maps is tiny, so that the work
around it is what is seen. --output_dir gets growth.json, a part or some of its sizes at a time, and growth.png.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from datasets_loading.files import write_json
from datasets_loading.resampling import ENMAP_BANDS_WITH_DATA
from datasets_loading.sensors import ENMAP, ENMAP_DETECTORS
from datasets_loading.simulation.product_writer import write_enmap_product, write_raster
from datasets_loading.simulation.scene import simulate_scene, write_scene
from hsst.support.command_line import HelpFormatter, one_line_errors
from hsst.support.figures import save_figure
from hsst.support.reports import markdown_table

SIZES = {
    "scenes": ("sides in pixels", [256, 512, 1024, 2048, 4096, 8192]),
    "corpus": ("numbers of products", [10, 100, 1000, 10000]),
    "processes": ("numbers of processes", [1, 2]),
}
BANDS = list(ENMAP_BANDS_WITH_DATA[:200:10])
"""Bands of EnMAP that scenes and products have."""

PATTERN_SIDE, PRODUCT_SIDE = 256, 16
BATCH = 16
"""Windows of each process in a training step."""

PUBLISHED = Path(__file__).parents[2] / "model_cards" / "hsst-enmap"
MODELS = {
    "small": (40, "--config_overrides", "hidden_size=24,num_spatial_layers=1,num_spectral_layers=1"),
    "published": (8,),
}
"""Training steps, and options of `scripts/run_mim.py`; a second run takes twice as many steps."""

CORPUS_STAGES = ("prepare", "prepare again", "open", "open and draw windows")
OPEN = """
from datasets_loading.corpus import read_corpus
tiles = read_corpus({!r}, streaming=True)
"""
DRAW = """
from datasets_loading.windows import GroupedSampler, RandomWindows
windows = RandomWindows(tiles, (8, 8))
for number in GroupedSampler(tiles.groups, windows.windows_per_tile, 0, groups_at_once=tiles.groups_at_once):
    windows[number]
"""
MARKERS = "osD^"
RATES = (10, 100)
"""Rates of a network in Gbit/s that gradients are counted for."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("part", choices=SIZES, help="what grows")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of results, made if missing")
    usual = "; ".join(f"{part}: {title}, {' '.join(map(str, sizes))}" for part, (title, sizes) in SIZES.items())
    parser.add_argument("--sizes", type=int, nargs="+", help=f"what to measure ({usual})")
    return parser.parse_args()


MEASURE = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
code = subprocess.run(sys.argv[2:], stdout=sys.stderr).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
found = time.perf_counter() - started, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6
print(json.dumps(dict(zip(sys.argv[1].split(), found))))
sys.exit(code)
"""
"""What starts a program to be measured: small, for a process counts the memory of the one that started it."""


def measured(*command: object, **environment: object) -> dict[str, float]:
    """Runs Python with these arguments in a process of its own: what it and those that it starts take."""
    variables = {name: str(value) for name, value in {"OMP_NUM_THREADS": 1, **environment}.items()}
    names = "seconds processor_seconds peak_megabytes"
    words = [sys.executable, "-c", MEASURE, names, sys.executable, *map(str, command)]
    process = subprocess.run(words, capture_output=True, text=True, env=os.environ | variables)
    if process.returncode:
        raise ValueError(f"{' '.join(words[4:])}: {process.stderr[-1000:]}")
    return json.loads(process.stdout)


def call(function: Callable[[Path], None], path: Path) -> tuple[str, str]:
    """Arguments of Python that call a function of this file with a path."""
    return "-c", f"from hsst.experiments.growth import *; {function.__name__}(Path({str(path)!r}))"


@cache
def simulated(side: int) -> Any:
    """A cloudless scene, simulated, of all bands of EnMAP."""
    return simulate_scene(side, side, seed=0, cloud_cover=0, haze_cover=0, cirrus_cover=0, swath=False)


def write_model(folder: Path) -> None:
    """A model with one layer of each kind, of random weights, that sees 64 x 64 pixels in 16 patches."""
    from hsst.support.model_sources import parse_overrides
    from modeling_hsst import HSSTConfig, HSSTForSemanticSegmentation, HSSTImageProcessor

    wavelengths = [ENMAP.wavelengths[band] for band in BANDS]
    text = "image_size=64,patch_size=16,num_channels=20,band_patch_size=20,hidden_size=8,intermediate_size=8"
    settings = parse_overrides(f"{text},num_spatial_layers=1,num_spectral_layers=1,num_attention_heads=1,head_dim=8")
    config: Any = HSSTConfig(**settings, wavelengths=wavelengths)
    config.num_labels = 8
    HSSTForSemanticSegmentation(config).save_pretrained(folder)
    statistics = {"image_mean": [0.2] * len(BANDS), "image_std": [0.1] * len(BANDS)}
    HSSTImageProcessor(wavelengths=wavelengths, **statistics).save_pretrained(folder)


def write_large_scene(path: Path) -> None:
    """A square scene, its side in its name, of a small simulated one again and again."""
    side = int(path.parent.name)
    scene = simulated(min(side, PATTERN_SIDE))
    repeats = -(-side // scene.cube.shape[1])
    cube = np.tile(scene.cube[BANDS], (1, repeats, repeats))[:, :side, :side]
    write_raster(path, cube, scene.crs, scene.transform, nodata=ENMAP.nodata)
    lines = (f"{ENMAP.wavelengths[band]} {ENMAP.fwhm[band]}\n" for band in BANDS)
    path.with_name("wavelengths.txt").write_text("".join(lines), encoding="utf-8")


def measure_scenes(sides: list[int], folder: Path) -> Iterator[dict[str, Any]]:
    """From file to map, with `scripts/predict_scene.py`."""
    measured(*call(write_model, folder / "model"))
    for side in sides:
        path = folder / str(side) / "scene.tif"
        path.parent.mkdir()
        measured(*call(write_large_scene, path))
        command = ["-m", "hsst.predict_scene", path, "--model", folder / "model", "--output", folder / f"{side}.tif"]
        yield {"size": side, "megapixels": side**2 / 1e6, "map": measured(*command)}
        path.unlink()


def write_products(folder: Path, numbers: range) -> None:
    """Products that are links to the rasters of a single one, each with a name and metadata of its own."""
    name = "ENMAP01-____L2A-DT{:010d}_20220701T103000Z_001_V010000_20220702T000000Z"
    scene, first = simulated(PRODUCT_SIDE), name.format(0)
    template = folder / "template" / first
    if not template.exists():
        write_enmap_product(
            template.parent,
            first,
            scene.cube[BANDS],
            wavelengths=np.array(ENMAP.wavelengths)[BANDS],
            fwhm=np.array(ENMAP.fwhm)[BANDS],
            detectors=[ENMAP_DETECTORS[band] for band in BANDS],
            **{key: getattr(scene, key) for key in ("transform", "crs", "acquisition_time", "sun_elevation")},
            quality={},
        )
    files = list(template.iterdir())
    for own in map(name.format, numbers):
        product = folder / "products" / own
        product.mkdir(parents=True)
        for file in files:
            copy = product / file.name.replace(first, own)
            if file.suffix == ".XML":
                copy.write_text(file.read_text(encoding="utf-8").replace(first, own), encoding="utf-8")
            else:
                copy.hardlink_to(file)


def measure_corpus(numbers: list[int], folder: Path) -> Iterator[dict[str, Any]]:
    """From products to a corpus, with `scripts/prepare_enmap.py`, and from it to windows."""
    done = 0
    for number in numbers:
        write_products(folder, range(done, number))
        done, corpus = number, folder / f"corpus_{number}"
        prepare = ["-m", "hsst.prepare_enmap", "--data_dir", folder / "products", "--output_dir", corpus]
        prepare += ["--tile_size", PRODUCT_SIDE]
        commands = [prepare, prepare, *(("-c", code.format(str(corpus))) for code in (OPEN, OPEN + DRAW))]
        costs = [measured(*command) for command in commands]
        yield {"size": number, **dict(zip(CORPUS_STAGES, costs, strict=True))}


def measure_processes(numbers: list[int], folder: Path) -> Iterator[dict[str, Any]]:
    """Training steps of `scripts/run_mim.py`: what a run takes more than one of half as many steps."""
    write_scene(simulated(PATTERN_SIDE // 2), folder / "products")
    for number in numbers:
        for model, (first_steps, *options) in MODELS.items():
            runs = []
            for steps in (first_steps, 2 * first_steps):
                output = folder / f"{model}_{number}_{steps}"
                command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", number, "-m"]
                command += ["hsst.run_mim", "--train_dir", folder / "products", "--output_dir", output]
                command += ["--config_name_or_path", PUBLISHED, *options, "--validation_steps", 1000]
                command += ["--per_device_train_batch_size", BATCH, "--max_train_steps", steps]
                costs = measured(*command, ACCELERATE_USE_CPU="true")
                results = json.loads((output / "all_results.json").read_text(encoding="utf-8"))
                runs.append(costs | {"parameters": results["parameters"]})
            step = (runs[1]["processor_seconds"] - runs[0]["processor_seconds"]) / first_steps
            yield {"size": number, "model": model, **runs[1], "processor_seconds": step}


def costs_table(rows: list[dict[str, Any]], stages: Sequence[str], work: str = "size", unit: str = "product") -> str:
    """
    Markdown of what each stage takes at each size; processor time for each unit of work that one size has more than
    the one before, where it is not lost in the start.
    """
    lines = []
    for stage in stages:
        more = ["–"]
        for before, row in pairwise(rows):
            low, high = (costs[stage]["processor_seconds"] for costs in (before, row))
            more.append(f"{1000 * (high - low) / (row[work] - before[work]):,.1f}" if high > 1.2 * low else "–")
        shown = {"seconds": "seconds", "processor_seconds": "processor seconds", "peak_megabytes": "memory in MB"}
        for name, title in shown.items():
            digits = 0 if name == "peak_megabytes" else 1
            lines.append([f"{stage}: {title}", *(f"{row[stage][name]:,.{digits}f}" for row in rows)])
        lines.insert(-1, [f"{stage}: milliseconds of the processor for each more {unit}", *more])
    return markdown_table(["", *(f"{row['size']:,}" for row in rows)], lines)


def processes_table(result: dict[str, Any]) -> str:
    """Markdown of the training steps that were measured."""
    header = ["model", "parameters", "processes", "processor seconds", "of a window", "memory of a process"]
    lines = []
    for row in sorted(result["processes"], key=itemgetter("parameters", "size")):
        used = row["processor_seconds"]
        cells = [row["model"], f"{row['parameters']:,}", str(row["size"]), f"{used:.2f}"]
        lines.append([*cells, f"{1000 * used / BATCH / row['size']:.0f} ms", f"{row['peak_megabytes']:,.0f} MB"])
    return markdown_table(header, lines)


def moved_bytes(parameters: int, processes: int) -> float:
    """Bytes that each process sends in a ring all-reduce of gradients in float32."""
    return 4 * parameters * 2 * (processes - 1) / processes


def network_seconds(result: dict[str, Any], rate: float) -> dict[int, float]:
    """Seconds that gradients of the largest model take at a rate in Gbit/s, by the number of processes."""
    parameters = max(row["parameters"] for row in result["processes"])
    return {number: 8 * moved_bytes(parameters, number) / (rate * 1e9) for number in (2, 4, 8, 16, 32, 64)}


def network_table(result: dict[str, Any]) -> str:
    """Markdown of the time of gradients on the network, on paper."""
    times = {rate: network_seconds(result, rate) for rate in RATES}
    header = ["processes", "each sends", *(f"at {rate} Gbit/s" for rate in RATES)]
    lines = []
    for number, seconds in times[RATES[0]].items():
        cells = [str(number), f"{seconds * RATES[0] * 1e9 / 8e6:.1f} MB"]
        lines.append([*cells, *(f"{1000 * times[rate][number]:.2f} ms" for rate in RATES)])
    return markdown_table(header, lines)


def plot_growth(path: Path, result: dict[str, Any]) -> Path:
    """Time and memory over the size of scenes, of corpora, and the number of processes, on logarithmic axes."""
    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots(2, 3, sharex="col")
    parts = (("scenes", "megapixels", ("map",)), ("corpus", "size", CORPUS_STAGES))
    for column, (part, work, stages) in enumerate(parts):
        rows = result[part]
        for stage, marker in zip(stages, MARKERS, strict=False):
            for axis, name in zip(axes[:, column], ("processor_seconds", "peak_megabytes"), strict=True):
                values = [row[stage][name] for row in rows]
                axis.plot([row[work] for row in rows], values, f"{marker}-", label=stage, alpha=0.8)
    for model, marker in zip(MODELS, MARKERS, strict=False):
        rows = [row for row in result["processes"] if row["model"] == model]
        numbers = [row["size"] for row in rows]
        used = [row["processor_seconds"] / row["size"] for row in rows]
        axes[0, 2].plot(numbers, used, f"{marker}-", label=f"processor, {model} model")
        axes[1, 2].plot(numbers, [row["peak_megabytes"] for row in rows], f"{marker}-", label=model)
    for rate, line in zip(RATES, ("k:", "k--"), strict=True):
        times, label = network_seconds(result, rate), f"network at {rate} Gbit/s, on paper"
        axes[0, 2].plot(list(times), list(times.values()), line, label=label)
    for axis, label in zip(axes[1], ("pixels of the scene in millions", "products", "processes"), strict=True):
        axis.set_xlabel(label)
    labels = (
        "processor time in s",
        "",
        "time of a process in a step in s",
        "most memory in MB",
        "",
        "of a process in MB",
    )
    for axis, label in zip(axes.flat, labels, strict=True):
        axis.set(xscale="log", yscale="log", ylabel=label)
        for one in (axis.xaxis, axis.yaxis):
            one.set_major_formatter("{x:,g}")
            one.set_minor_formatter("")
        axis.grid(alpha=0.25, which="both")
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[1]:
        axis.set_ylim(100, 3000)
    for axis, lowest in zip(axes[0], (1, 1, 1e-4), strict=True):
        axis.set_ylim(lowest, 1000)
        axis.legend(frameon=False, fontsize=9)
    return save_figure(path, figure)


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("growth.py"):
        sizes = arguments.sizes or SIZES[arguments.part][1]
        path = arguments.output_dir / "growth.json"
        result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        measure = {"scenes": measure_scenes, "corpus": measure_corpus, "processes": measure_processes}
        rows = [row for row in result.get(arguments.part, []) if row["size"] not in sizes]
        with tempfile.TemporaryDirectory() as folder:
            for row in measure[arguments.part](sorted(sizes), Path(folder)):
                print(json.dumps(row), flush=True)
                rows.append(row)
                result[arguments.part] = sorted(rows, key=itemgetter("size"))
                write_json(path, result)  # after each: the largest ones take long
        if result.keys() == SIZES.keys():
            plot_growth(path.with_suffix(".png"), result)


if __name__ == "__main__":
    main()

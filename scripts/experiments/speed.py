"""
Measure how fast the model trains and maps: plain, with PyTorch's attention, and with fast layers.

    python scripts/experiments/speed.py train --output_dir outputs/speed
    python scripts/experiments/speed.py inference --model model_cards/hsst-enmap-landcover --output_dir outputs/speed
    python scripts/experiments/speed.py scene --model model_cards/hsst-enmap-landcover --output_dir outputs/speed

Variants of one model take turns on the same inputs in one process, so that ratios between them hold on a machine that
does other things, too; a time is the median of its turns. A scene is mapped from file to map by predict_scene.py,
windows side by side, in processes of their own. --output_dir gets speed_PART_DEVICE.json.
"""

import argparse
import json
import math
import platform
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import rasterio
import torch
import transformers
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from datasets_loading.files import write_json
from datasets_loading.simulation.scene import write_scene
from datasets_loading.splits import UNLABELLED
from hsst.experiments.growth import measured, simulated
from hsst.support.command_line import HelpFormatter, check_least, one_line_errors
from hsst.support.model_sources import OTHER_PARTS, load_model, parse_overrides, read_config
from hsst.support.reports import markdown_table
from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling, HSSTForSemanticSegmentation, use_fast_layers

CLASSES = 12


@dataclass(frozen=True)
class Variant:
    """
    One way to compute the model.

    Attributes:
        attention: attention implementation of transformers.
        fast: whether the layers are those of `use_fast_layers`.
        dtype: `"float32"` or `"bfloat16"`: autocast in training, the weights themselves in inference.
        visible_only: only visible tokens are encoded (training).
        compiled: whether each layer is compiled.
    """

    attention: str = "sdpa"
    fast: bool = False
    dtype: str = "float32"
    visible_only: bool = False
    compiled: bool = False


VARIANTS = {
    "plain": Variant("eager"),
    "sdpa": Variant(),
    "fast": Variant(fast=True),
    "fast, bfloat16": Variant(fast=True, dtype="bfloat16"),
    "fast, visible only": Variant(fast=True, visible_only=True),
    "fast, bfloat16, compiled": Variant(fast=True, dtype="bfloat16", compiled=True),
    "fast, bfloat16, compiled, visible only": Variant(fast=True, dtype="bfloat16", visible_only=True, compiled=True),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("part", choices=("train", "inference", "scene"), help="what to measure")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of results, made if missing")
    parser.add_argument("--model", help="a model with its weights (inference), or random ones of --config_overrides")
    parser.add_argument("--config_overrides", default="", help="NAME=VALUE,... of the configuration")
    parser.add_argument(
        "--variants", default="", help=f"names with ; between them, the first is compared with: {list(VARIANTS)}"
    )
    parser.add_argument("--window", type=int, help="side of windows in pixels, 1 for single pixels (the model's)")
    parser.add_argument("--batch_size", type=int, default=16, help="windows")
    parser.add_argument("--side", type=int, default=1024, help="side of the simulated scene in pixels")
    parser.add_argument("--turns", type=int, default=5, help="times each variant is measured")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to compute")
    return parser.parse_args()


def chosen_variants(text: str, part: str, device: str) -> dict[str, Variant]:
    """The variants of a part, or those of a list of names."""
    default = [
        name
        for name, variant in VARIANTS.items()
        if (part == "train" or not variant.visible_only) and (device != "cpu" or not variant.compiled)
        if part != "scene" or variant.fast
    ]
    names = [name.strip() for name in text.split(";")] if text else default
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise ValueError(f"--variants: expected names among {'; '.join(VARIANTS)}, got {'; '.join(unknown)}")
    return {name: VARIANTS[name] for name in names}


def build(variant: Variant, part: str, config: HSSTConfig, model: str | None, device: str) -> torch.nn.Module:
    """The model as a variant computes it; all variants of one form have the same weights."""
    config = HSSTConfig.from_dict({**config.to_dict(), "visible_only": variant.visible_only or config.visible_only})
    config._attn_implementation = variant.attention
    model_class: Any = HSSTForMaskedImageModeling if part == "train" else HSSTForSemanticSegmentation
    torch.manual_seed(0)
    if model is None:
        built = model_class(config)
    else:
        # Parts that the checkpoint does without are new: they take as long
        built = load_model(model_class, model, config, new=OTHER_PARTS, unused=OTHER_PARTS)
    built.to(device).train(part == "train")
    if part == "inference":
        built.requires_grad_(False).to(getattr(torch, variant.dtype))
    if variant.fast:
        use_fast_layers(built)
    if variant.compiled:
        for layer in (*built.hsst.spatial_layers, *built.hsst.spectral_layers):
            layer.compile(dynamic=False)
    return built


def one_pass(model: Any, variant: Variant, part: str, pixel_values: torch.Tensor) -> Callable[[], Any]:
    """What is timed: a step of training, its optimizer included, or a prediction."""
    if part == "inference":

        def predict() -> torch.Tensor:
            with torch.inference_mode():
                return model(pixel_values=pixel_values.to(model.dtype), interpolate_pos_encoding=True).logits

        return predict
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)
    half = variant.dtype == "bfloat16"

    def train() -> None:
        with torch.autocast(pixel_values.device.type, torch.bfloat16, enabled=half):
            loss = model(pixel_values=pixel_values, interpolate_pos_encoding=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return train


KINDS = {
    "products": ("mm", "bmm", "addmm", "addmm_", "baddbmm", "baddbmm_", "_linear_pointwise"),
    "softmax": ("_softmax", "_softmax_backward_data"),
    "LayerNorm": ("native_layer_norm", "native_layer_norm_backward"),
    "GELU": ("gelu", "gelu_backward"),
    "copies": ("copy_",),
}
"""Kinds of operators, by PyTorch's names of them."""


def where_time_goes(run: Callable[[], Any]) -> dict[str, float]:
    """The share of the time of one pass on a CPU that operators of each kind take; the rest is Python's."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        with torch.profiler.record_function("pass"):
            run()
    events = {event.key.split("::")[-1]: event for event in profiled.key_averages()}
    whole = events.pop("pass").cpu_time_total
    operators = {name: event.self_cpu_time_total / whole for name, event in events.items() if "::" in event.key}
    shares = {kind: sum(operators.pop(name, 0.0) for name in names) for kind, names in KINDS.items()}
    return shares | {"other operators": sum(operators.values())}


def products_counter() -> FlopCounterMode:
    """Counts the operations of matrix products, those in place and oneDNN's, which it does not know by itself, too."""
    in_place = dict.fromkeys(
        (torch.ops.aten.addmm_, torch.ops.aten.baddbmm_),
        lambda total, left, *_, out_shape, **__: 2 * math.prod(out_shape) * left[-1],
    )
    linear = {
        torch.ops.mkldnn._linear_pointwise: lambda rows, *_, out_shape, **__: 2 * math.prod(out_shape) * rows[-1]
    }
    return FlopCounterMode(display=False, custom_mapping=in_place | linear)


LARGE = {"cuda": 8192, "cpu": 1024}
"""Sides of square matrices by whose product the rate of a device is measured."""


@cache
def matrix_rate(dtype: torch.dtype, device: str) -> float:
    """Operations a second in the product of two large square matrices."""
    size = LARGE[device]
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    timer = Timer("left @ right", globals={"left": left, "right": right}, num_threads=torch.get_num_threads())
    return 2 * size**3 / timer.timeit(5).median


def measure(
    part: str,
    variants: dict[str, Variant],
    config: HSSTConfig,
    model: str | None,
    window: tuple[int, int],
    batch_size: int,
    turns: int,
    device: str,
) -> list[dict[str, Any]]:
    """
    A row for each variant: `windows_per_second`, `ratio` to the first one, and the share of the `matrix_rate` of the
    same run, with the arithmetic of the first one, whatever a variant saves of it, and its own `arithmetic` as a share
    of that; on a CPU, what operators of each of `KINDS` take of its time (`time_shares`); of inference, the
    `largest_difference` of a logit from the first one's, as a share of its largest, and the share of pixels with the
    `same_class`; on a GPU, `megabytes_per_window` at the peak.
    """
    torch.manual_seed(1)
    pixel_values = torch.randn(batch_size, config.num_channels, *window, device=device)
    passes, rows, reference, operations = {}, [], None, 0
    for name, variant in tqdm(variants.items(), desc="warming up", leave=False, disable=None):
        passes[name] = one_pass(build(variant, part, config, model, device), variant, part, pixel_values)
        with products_counter() as counted:
            outputs = passes[name]()
        operations = operations or counted.get_total_flops()
        passes[name]()
        row: dict[str, Any] = {"name": name, "variant": asdict(variant)}
        row["arithmetic"] = counted.get_total_flops() / operations
        if part == "inference":
            logits = outputs.float()
            reference = logits if reference is None else reference
            row["largest_difference"] = ((logits - reference).abs().max() / reference.abs().max()).item()
            row["same_class"] = (logits.argmax(1) == reference.argmax(1)).float().mean().item()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            passes[name]()
            row["megabytes_per_window"] = torch.cuda.max_memory_allocated() / batch_size / 1e6
        rows.append(row)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    repeats = 20 if device == "cuda" else 1
    for _ in tqdm(range(turns), desc="turns", leave=False, disable=None):
        for name, run in passes.items():
            timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
            seconds[name].append(timer.timeit(repeats).mean)
    slowest = statistics.median(seconds[rows[0]["name"]])
    for row in rows:
        times = seconds[row["name"]]
        row |= {"seconds": times, "windows_per_second": batch_size / statistics.median(times)}
        row["ratio"] = slowest / statistics.median(times)
        rate = matrix_rate(getattr(torch, variants[row["name"]].dtype), device)
        row["matrix_rate"] = operations / statistics.median(times) / rate
        if device == "cpu":
            row["time_shares"] = where_time_goes(passes[row["name"]])
    return rows


def measure_scene(
    variants: dict[str, Variant], config: HSSTConfig, model: str, batch_size: int, side: int, turns: int
) -> list[dict[str, Any]]:
    """
    A row for each variant: `windows_per_second` from file to map on the CPU, and the share of the `matrix_rate`, taken
    before each turn, as `measure` gives it; processor time, the most memory, and the share of pixels with the
    `same_class` as the first variant's. The start of the program counts.
    """
    plain = build(VARIANTS["plain"], "inference", config, None, "cpu")
    with FlopCounterMode(display=False) as counted:
        one_pass(plain, VARIANTS["plain"], "inference", torch.randn(1, config.num_channels, *config.window_size))()
    threads, window = torch.get_num_threads(), config.window_size[0]
    rows: list[dict[str, Any]] = [{"name": name, "turns": []} for name in variants]
    with tempfile.TemporaryDirectory() as folder:
        scene = write_scene(simulated(side), folder)
        for turn in tqdm(range(turns), desc="turns", leave=False, disable=None):
            for row, (name, variant) in zip(rows, variants.items(), strict=True):
                matrix_rate.cache_clear()
                rate = matrix_rate(getattr(torch, variant.dtype), "cpu")
                output = Path(folder) / f"{name} {turn}.tif"
                command = ["-m", "hsst.predict_scene", scene, "--model", model, "--output", output, "--stride", window]
                command += ["--precision", variant.dtype, "--batch_size", batch_size]
                row["turns"].append(measured(*command, OMP_NUM_THREADS=threads) | {"rate": rate})
        maps = []
        for name in variants:
            with rasterio.open(Path(folder) / f"{name} 0.tif") as dataset:
                maps.append(dataset.read(1))
    valid = maps[0] != UNLABELLED
    for row, classes in zip(rows, maps, strict=True):
        windows = valid.sum() / window**2
        shares = [counted.get_total_flops() * windows / turn["seconds"] / turn["rate"] for turn in row["turns"]]
        seconds, used, memory = (
            statistics.median(turn[key] for turn in row["turns"])
            for key in ("seconds", "processor_seconds", "peak_megabytes")
        )
        row |= {"windows_per_second": windows / seconds, "pixels": int(valid.sum()), "whole_seconds": seconds}
        row |= {"processor_seconds": used, "peak_megabytes": memory, "matrix_rate": statistics.median(shares)}
        row["same_class"] = float((classes == maps[0])[valid].mean())
        row["ratio"] = row["windows_per_second"] / rows[0]["windows_per_second"]
    return rows


def speed_table(result: dict[str, Any]) -> str:
    """Markdown of a result file."""
    columns = {
        "whole_seconds": ("seconds", "{:,.0f}"),
        "processor_seconds": ("of the processor", "{:,.0f}"),
        "peak_megabytes": ("memory", "{:,.0f} MB"),
        "windows_per_second": ("windows/s", "{:,.1f}"),
        "ratio": (f"to {result['rows'][0]['name']}", "{:.2f}x"),
        "matrix_rate": ("of the matrix rate", "{:.0%}"),
        "largest_difference": ("largest difference of a logit", "{:.1%}"),
        "same_class": ("same class", "{:.2%}"),
        "megabytes_per_window": ("memory of a window", "{:,.1f} MB"),
    }
    shown = {name: column for name, column in columns.items() if name in result["rows"][0]}
    rows = [[row["name"], *(shape.format(row[name]) for name, (_, shape) in shown.items())] for row in result["rows"]]
    table = markdown_table(["", *(title for title, _ in shown.values())], rows)
    about = f"{result['device']}, {result['threads']} threads, torch {result['torch']}, {result['turns']} turns"
    if "side" in result:
        about += (
            f", a scene of {result['side']} x {result['side']} pixels, {result['rows'][0]['pixels']:,} of them mapped"
        )
    windows = f"{result['batch_size']} windows" + (f" of {result['window']}" if "window" in result else "")
    return f"{table}\n\n{about}, batches of {windows}, {result['parameters']:,} parameters."


def shares_table(result: dict[str, Any]) -> str:
    """Markdown of where the time goes, and of the arithmetic that is done, in a result file of a CPU."""
    kinds = list(result["rows"][0]["time_shares"])
    rows = []
    for row in result["rows"]:
        shares = row["time_shares"]
        parts = [shares[kind] for kind in kinds] + [1 - sum(shares.values()), row["arithmetic"]]
        done = row["matrix_rate"] * row["arithmetic"]
        rows.append([row["name"], *(f"{part:.0%}" for part in [*parts, done, done / shares["products"]])])
    titles = ["Python", "arithmetic", "its share of the matrix rate", "in products alone"]
    return markdown_table(["", *kinds, *titles], rows)


def main() -> None:
    arguments = parse_arguments()
    transformers.utils.logging.set_verbosity_error()
    with one_line_errors("speed.py"):
        check_least(arguments, 1, "batch_size", "turns", "side", *(["window"] if arguments.window is not None else []))
        variants = chosen_variants(arguments.variants, arguments.part, arguments.device)
        if arguments.model and arguments.config_overrides:
            raise ValueError("--config_overrides: expected none beside --model, got both")
        overrides = parse_overrides(arguments.config_overrides) if arguments.config_overrides else {}
        config: Any = HSSTConfig(**overrides)
        config.num_labels = CLASSES
        if arguments.model:
            config = read_config(arguments.model, "--model")
        device, size, turns = arguments.device, arguments.batch_size, arguments.turns
        window = config.window_size if arguments.window is None else (arguments.window, arguments.window)
        if arguments.part == "scene":
            if not arguments.model or device != "cpu" or not all(variant.fast for variant in variants.values()):
                raise ValueError("scene: expected a --model, fast variants and --device cpu")
            rows = measure_scene(variants, config, arguments.model, size, arguments.side, turns)
        else:
            rows = measure(arguments.part, variants, config, arguments.model, window, size, turns, device)
        plain = build(VARIANTS["plain"], arguments.part, config, None, "cpu")
        result = {
            "part": arguments.part,
            "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "batch_size": size,
            "window": "x".join(map(str, window)),
            "turns": turns,
            "parameters": sum(parameter.numel() for parameter in plain.parameters()),
            "config": json.loads(config.to_json_string()),
            "rows": rows,
            **({"side": arguments.side} if arguments.part == "scene" else {}),
        }
        pixels = "_pixels" if arguments.window == 1 else ""
        path = write_json(arguments.output_dir / f"speed_{arguments.part}{pixels}_{device}.json", result)
    print(speed_table(result))
    if "time_shares" in rows[0]:
        print(shares_table(result))
    print(path)


if __name__ == "__main__":
    main()

"""
Write the tables of README.md and docs/ from the result files in docs/results/.

    python scripts/experiments/update_tables.py          rewrite them
    python scripts/experiments/update_tables.py --check  only say whether they are up to date (exit code 2 if not)

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME is a function below.
"""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from hsst.build_model_card import sources_table, training_runs, validation_table
from hsst.experiments.ablation import ladder_rows, mask_rows, text_table
from hsst.experiments.label_efficiency import label_efficiency_table, percent
from hsst.experiments.other_labels import other_labels_table, trials_table
from hsst.experiments.reconstruction_tables import reconstruction_table
from hsst.experiments.sensor_comparison import crop_table, sensor_table
from hsst.experiments.speed import layer_traffic
from hsst.inspect_images import images_table
from hsst.support.command_line import one_line_errors
from modeling_hsst import HSSTConfig

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"


def result(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"{path.relative_to(ROOT)}: expected the result file of a table, found none")
    return json.loads(path.read_text(encoding="utf-8"))


def pretraining_on_potsdam() -> str:
    """Masked pre-training on the real EnMAP tiles of Potsdam, one row for each run."""
    rows = [
        "| masks | hidden | parameters | windows seen | before | after | band mean | mean of visible tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(RESULTS.glob("pretraining_potsdam_*.json")):
        run = result(path.stem)
        rows.append(
            f"| {run['run']['mask_type'] or 'tube'} | {run['realised_mask_ratio']:.0%} | {run['parameters']:,} | "
            f"{run['windows_seen']:,} | {run['start_eval_loss']:.3f} | **{run['eval_loss']:.3f}** | "
            f"{run['eval_band_mean_loss']:.3f} | {run['eval_visible_mean_loss']:.3f} |"
        )
    return "\n".join(rows)


def realism() -> str:
    """Simulated scenes beside real tiles."""
    figures = result("realism")
    variance = figures["explained_variance"]
    rows = ["| | simulated | real |", "|---|---|---|"]
    rows.append(f"| pixels compared | {figures['pixels']['simulated']:,} | {figures['pixels']['real']:,} |")
    for count in (1, 2, 3, 5, 10, 20):
        simulated, real = variance["simulated"][count - 1], variance["real"][count - 1]
        noun = "component" if count == 1 else "components"
        rows.append(f"| variance explained by {count} principal {noun} | {simulated:.4f} | {real:.4f} |")
    error, ratio = figures["mean_reflectance_error"], figures["deviation_ratio_simulated_to_real"]
    rows += [
        "",
        "| | |",
        "|---|---|",
        f"| error of the band means, root mean square (largest) | {error['root_mean_square']:.4f} "
        f"({error['largest']:.4f}) reflectance |",
        f"| standard deviation of a band, simulated to real, median (5th to 95th percentile of bands) | "
        f"{ratio['median']:.2f} ({ratio['p5']:.2f} to {ratio['p95']:.2f}) |",
    ]
    names = {"all_bands": "all bands", "window_bands": "bands outside gas absorption"}
    for bands, angles in figures["spectral_angle_degrees"].items():
        simulated, real = angles["real_to_simulated"], angles["real_to_other_real_block"]
        rows.append(
            f"| angle of a real pixel to its nearest simulated one, {names[bands]}, median (95th percentile) | "
            f"{simulated['median']:.2f}° ({simulated['p95']:.2f}°) |"
        )
        rows.append(
            f"| the same to its nearest in another real block, {names[bands]} | "
            f"{real['median']:.2f}° ({real['p95']:.2f}°) |"
        )
    return "\n".join(rows)


def data_speed() -> str:
    """How fast tiles are read, and what a batch costs beside a training step."""
    figures = result("data_speed")
    rows = [
        "| reading | processes | tiles/s | MB/s | to deflate | to uncompressed | memory of a process |",
        "|---|---|---|---|---|---|---|",
    ]
    for rate in figures["rates"]:
        peak = figures["peak_memory_mb"][rate["way"]]
        rows.append(
            f"| {rate['way']} | {rate['num_processes']} | {rate['tiles_per_second']:,.0f} | "
            f"{rate['megabytes_per_second']:,.0f} | {rate['ratio']:.1f}x | {rate['ratio_to_uncompressed']:.1f}x | "
            f"{'?' if peak is None else f'{peak:,.0f} MB'} |"
        )
    training = figures["training"]
    step = f"training step (CPU, threads: {training['torch_threads']})"
    rows += ["", f"| a batch of {training['batch_size']} windows | time | share of a {step} |", "|---|---|---|"]
    for way, times in training["ways"].items():
        rows.append(f"| {way} | {1000 * times['data_seconds']:.1f} ms | {times['share']:.1%} |")
    return "\n".join(rows)


def speed_rows(figures: dict[str, Any]) -> list[str]:
    """One row for each variant, training or inference."""
    has_memory = any(row.get("megabytes_per_window") is not None for row in figures["rows"])
    training = figures["part"] == "train"
    header = ["variant", "windows/s", "to plain", "GFLOP/s", "of the matrix rate"]
    header += ["forward / backward"] if training else ["largest difference of a logit", "same class"]
    header += ["memory of a window"] if has_memory else []
    rows = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for row in figures["rows"]:
        cells = [
            row["variant"]["name"],
            f"{row['windows_per_second']:,.1f}",
            f"{row['ratio']:.2f}x" if "ratio" in row else "",
            f"{row['gigaflops_per_second']:,.0f}",
            f"{row['share_of_matrix_rate']:.0%}",
        ]
        if training and row["variant"].get("batch_factor") is not None:
            windows = figures["batch_size"] * row["variant"]["batch_factor"]
            forward, backward = (1e6 * row["stages"][stage] / windows for stage in ("forward", "backward"))
            cells.append(f"{forward:.0f} / {backward:.0f} µs a window")
        elif training:
            cells.append(f"{row['stages']['forward']:.2f} s / {row['stages']['backward']:.2f} s")
        else:
            cells += [f"{row['agreement']['relative_difference']:.2g}", f"{row['agreement']['same_class']:.2%}"]
        if has_memory:
            memory = row["megabytes_per_window"]
            cells.append(f"{memory:.0f} MB" if memory >= 2 else f"{memory:.1f} MB")
        rows.append(f"| {' | '.join(cells)} |")
    machine = figures["machine"]
    rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in figures["matrix_gigaflops_per_second"].items())
    copied = figures.get("copy_gigabytes_per_second")
    larger = any(row["variant"].get("batch_factor", 1) > 1 for row in figures["rows"])
    rows += [
        "",
        f"{machine['device']}, {machine['threads']} threads ({machine['capability']}), torch {machine['torch']}; "
        f"batches of {figures['batch_size']} windows{', of bfloat16 four times as many' if larger else ''}, "
        f"{figures['turns']} turns; matrix products: {rates} GFLOP/s"
        f"{f'; copies: {copied:,.0f} GB/s, read and written' if copied else ''}. `{figures['command']}`",
    ]
    return rows


def rows_by_name(name: str) -> dict[str, dict[str, Any]]:
    return {row["variant"]["name"]: row for row in result(name)["rows"]}


def gpu_floors() -> str:
    """How far the fastest forms are from the arithmetic and from the memory traffic that they cannot do without."""
    config = HSSTConfig()
    tokens = config.num_blocks * config.num_positions
    layers = config.num_hidden_layers
    fused = 4 * config.hidden_size
    rows = [
        "| a window of the published model | arithmetic | memory | the larger of them | measured | reached |",
        "|---|---|---|---|---|---|",
    ]
    for title, name, traffic in (
        ("training, bfloat16, compiled layers", "train", sum(layer_traffic(config))),
        ("inference, bfloat16, compiled layers", "inference", fused),
    ):
        figures = result(f"{name}_speed_cuda")
        row = rows_by_name(f"{name}_speed_cuda")["bfloat16, compiled layers"]
        arithmetic = 1e6 * figures["flops_per_window"] / figures["matrix_gigaflops_per_second"]["bfloat16"] / 1e9
        memory = 1e6 * traffic * tokens * layers / figures["copy_gigabytes_per_second"] / 1e9
        measured = 1e6 / row["windows_per_second"]
        floor = max(arithmetic, memory)
        rows.append(
            f"| {title} | {figures['flops_per_window'] / 1e9:.1f} GFLOP, {arithmetic:.1f} µs | "
            f"{traffic * tokens * layers / 1e6:,.0f} MB, {memory:.1f} µs | {1e6 / floor:,.0f} windows/s | "
            f"{measured:.1f} µs | {floor / measured:.0%} |"
        )
    return "\n".join(rows)


def gpu_kernels() -> str:
    """Where the time of a training step goes on a GPU, and what the attention kernels move."""
    figures = result("train_speed_cuda")
    row = rows_by_name("train_speed_cuda")["bfloat16, compiled layers"]
    config = HSSTConfig()
    windows = figures["batch_size"] * row["variant"]["batch_factor"]
    values = windows * config.num_blocks * config.num_positions * config.num_attention_heads * config.head_dim
    moved = {"forward_kernel": 4, "backward_kernel": 7}  # times the width of all heads
    rows = ["| kernel | runs | share of the time | moved |", "|---|---|---|---|"]
    for kernel in row["kernels"][:10]:
        name = kernel["kernel"]
        rate = ""
        if name in moved:
            rate = f"{2 * moved[name] * values * kernel['calls'] / kernel['seconds'] / 1e9:,.0f} GB/s"
            name = f"attention, {name.removesuffix('_kernel')}"
        else:
            name = f"`{name[:60]}`"
        rows.append(f"| {name} | {kernel['calls']} | {kernel['share']:.1%} | {rate} |")
    return "\n".join(rows)


def gpu_versions() -> str:
    """What each step of the work brought on a GPU."""
    first, last = rows_by_name("train_speed_cuda_first"), rows_by_name("train_speed_cuda")
    first_inference, last_inference = rows_by_name("inference_speed_cuda_first"), rows_by_name("inference_speed_cuda")

    def rate(row: dict[str, Any]) -> str:
        return f"{row['windows_per_second']:,.0f} windows/s"

    compiled = "bfloat16, compiled layers"
    rows = [
        ("training, float32", "plain form", rate(last["plain"])),
        ("", "this package, the attention kernel", rate(last["float32"])),
        ("training, bfloat16", "eager, the attention kernel", rate(first["bfloat16"])),
        ("", "compiled layers, PyTorch's attention", rate(first[compiled])),
        ("", "compiled layers, the attention kernel, values of tokens normalised apart", rate(last[compiled])),
        ("inference, bfloat16", "compiled layers, PyTorch's attention", rate(first_inference[compiled])),
        ("", "eager, the layer kernel", rate(first_inference["bfloat16"])),
        ("", "the same, values of tokens normalised apart", rate(last_inference["bfloat16"])),
        ("", "compiled embeddings, the layer kernel", rate(last_inference[compiled])),
    ]
    return "\n".join(["| | version | outcome |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def speed(name: str) -> Callable[[], str]:
    return lambda: "\n".join(speed_rows(result(name)))


def speed_goals() -> str:
    """What was aimed at, beside what was measured."""
    training, inference = rows_by_name("train_speed_cpu"), rows_by_name("inference_speed_cpu")
    again = rows_by_name("train_speed_cpu_again")

    def reached(row: dict[str, Any], with_share: bool = False) -> str:
        share = f", {row['share_of_matrix_rate']:.0%} of the matrix rate" if with_share else ""
        return f"{row['ratio']:.1f}x{share}"

    def reached_twice(name: str, with_share: bool = False) -> str:
        return f"{reached(training[name], with_share)}; again {reached(again[name], with_share)}"

    half, on_scene = inference["bfloat16"], result("scene_agreement")["half_precision"]
    memory = training["plain"]["megabytes_per_window"]
    kept, checkpointed = (
        training[name]["megabytes_per_window"] / memory for name in ("float32", "float32, gradient checkpointing")
    )
    rows = [
        ("training step, float32, CPU", "3x, or 75 % of the matrix rate", reached_twice("float32", True)),
        ("with dropout 0.1 on both sides", "2x", reached_twice("float32, dropout 0.1")),
        ("training step, visible only, CPU", "6x", reached_twice("float32, visible only")),
        ("the same with a narrower decoder", "8x", reached_twice("float32, visible only, narrow decoder")),
        ("inference, CPU, float32", "3.2x, or 85 % of the matrix rate", reached(inference["float32"], True)),
        (
            "inference, CPU, bfloat16",
            "8x, logits within 2 % of the largest, same class on 99.5 % of pixels",
            f"{reached(half)}, {half['agreement']['relative_difference']:.1%}, {half['agreement']['same_class']:.1%} "
            f"(random weights; {on_scene['same_class']:.2%} of a scene with trained ones)",
        ),
        (
            "memory of a window in training, to the plain reference",
            "a third",
            f"{kept:.2f}; {checkpointed:.2f} with gradient checkpointing",
        ),
    ]
    gpu, gpu_inference = rows_by_name("train_speed_cuda"), rows_by_name("inference_speed_cuda")

    def on_gpu(row: dict[str, Any]) -> str:
        return f"{row['ratio']:.1f}x, {row['windows_per_second']:,.0f} windows/s"

    compiled = gpu["bfloat16, compiled layers"]
    narrow = gpu["bfloat16, compiled layers, visible only, narrow decoder"]
    over_own = compiled["windows_per_second"] / gpu["float32"]["windows_per_second"]
    rows += [
        (
            "training, H200, bfloat16, compiled",
            "10x over float32 eager, 15,000 windows/s and 30 % of the matrix rate",
            f"{on_gpu(compiled)}, {compiled['share_of_matrix_rate']:.0%} of the matrix rate "
            f"({over_own:.1f}x over this package in float32)",
        ),
        (
            "training, H200, visible only",
            "25x, 40,000 windows/s",
            f"{on_gpu(gpu['bfloat16, compiled layers, visible only'])}; with a narrow decoder {on_gpu(narrow)}",
        ),
        ("inference, H200", "15x, 50,000 windows/s", on_gpu(gpu_inference["bfloat16, compiled layers"])),
        (
            "memory of a window in training, H200",
            "a third",
            f"{compiled['megabytes_per_window'] / gpu['plain']['megabytes_per_window']:.2f}; "
            f"{narrow['megabytes_per_window'] / gpu['plain']['megabytes_per_window']:.2f} visible only, narrow "
            "decoder",
        ),
    ]
    return "\n".join(["| | goal | measured |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def training_speed_cpu_spread() -> str:
    """Ratios to the plain form in two runs of one machine."""
    runs = [rows_by_name(name) for name in ("train_speed_cpu", "train_speed_cpu_again")]
    rows = ["| | above | a second run |", "|---|---|---|"]
    plain = (f"{run['plain']['windows_per_second']:.1f} windows/s" for run in runs)
    rows.append(f"| plain | {' | '.join(plain)} |")
    for name in runs[0]:
        if name.startswith(("float32", "bfloat16")):
            ratios = (f"{run[name]['ratio']:.2f}x" for run in runs)
            rows.append(f"| {name} | {' | '.join(ratios)} |")
    return "\n".join(rows)


def simulated_scenes_trials() -> str:
    """Land-cover models on the same simulated scenes."""
    rows = ["| model | overall accuracy | average | macro F1 |", "|---|---|---|---|"]
    for trial in result("simulated_scenes_trials")["trials"]:
        scores = (f"{trial[name]:.1%}" for name in ("overall_accuracy", "average_accuracy", "macro_f1"))
        rows.append(f"| {trial['trial']} | {' | '.join(scores)} |")
    return "\n".join(rows)


def loss_curves() -> str:
    """The same training in every precision: the last fifty steps, and how far means of twenty are apart."""
    figures = result("loss_curves")
    rows = [
        f"| | first loss | mean of the last 50 of {figures['num_steps']} steps | largest difference of a mean of 20 |",
        "|---|---|---|---|",
    ]
    plain, *_ = figures["losses"].values()
    for name, losses in figures["losses"].items():
        differences = [loss - other for loss, other in zip(losses, plain, strict=True)]
        largest = max(abs(fmean(differences[step : step + 20])) for step in range(len(differences) - 19))
        rows.append(f"| {name} | {losses[0]:.6f} | {fmean(losses[-50:]):.4f} | {largest:.3f} |")
    return "\n".join([*rows, "", f"`{figures['command']}`"])


def pretraining_hsst_enmap() -> str:
    """How the weights of hsst-enmap were trained: data, settings, and errors of tiles left out."""
    results = result("pretraining_hsst_enmap")
    parts = []
    for run in training_runs(results):
        settings = run["settings"]
        rows = ["| tiles | share of the windows | windows seen | SHA-256 of the numbers |", "|---|---|---|---|"]
        total = sum(source["weight"] for source in run["data"])
        for source in run["data"]:
            count, bands, height, width = source["tiles"]
            kind = f"{count:,} of {height} x {width} pixels, {bands} bands"
            rows.append(
                f"| {source['name']}: {kind} | {source['weight'] / total:.0%} | "
                f"{run['windows_by_source'][source['name']]:,} | `{source['sha256'][:16]}…` |"
            )
        told = (
            f"{run['steps']:,} steps of {settings['batch_size']} windows, {run['windows_seen']:,} in all, in "
            f"{run['seconds'] / 60:,.0f} minutes; learning rate {settings['learning_rate']:g}, masks "
            f"{', '.join(settings['mask_types'])} ({run['realised_mask_ratio']:.0%} of the tokens), "
            f"{settings['precision']}, seed {settings['seed']}, torch {run['versions']['torch']}, transformers "
            f"{run['versions']['transformers']}; "
            f"{run['parameters']:,} parameters, {run['encoder_parameters']:,} of them in the encoder."
        )
        parts += ["\n".join(rows), told]
    return "\n\n".join([*parts, validation_table(results)])


def few_labels_rows(name: str) -> str:
    """The first model, the same from scratch, and the best others in each score, for each budget."""
    figures = result(name)
    first = figures["results"][0]["model"]
    shown = []
    for budget in dict.fromkeys(entry["budget"] for entry in figures["results"]):
        entries = {entry["model"]: entry for entry in figures["results"] if entry["budget"] == budget}
        others = [entry for model, entry in entries.items() if model != first]
        best = [
            max(others, key=lambda entry: entry[score]["mean"])["model"]
            for score in ("overall_accuracy", "average_accuracy", "average_accuracy_trained", "macro_f1")
        ]
        shown += [entries[model] for model in dict.fromkeys([first, f"{first}-scratch", *best])]
    return label_efficiency_table({**figures, "results": shown})


def comparison_rows(name: str, only: str | None = None) -> str:
    """Models, or only one, against the best baseline and against themselves from scratch, seed by seed, in points."""
    figures = result(name)
    titles = {entry["model"]: entry["title"] for entry in figures["results"]}
    budgets = {entry["budget"]: entry["budget_title"] for entry in figures["results"]}
    rows = ["| labels | score | difference of | points | better in |", "|---|---|---|---|---|"]
    for entry in (*figures["comparisons"], *figures["comparisons_to_scratch"]):
        if entry["score"] not in ("average_accuracy", "macro_f1") or only not in (None, entry["model"]):
            continue
        difference = entry["difference"]
        text = f"{100 * difference['mean']:+.1f}"
        if difference["low"] is not None:
            text += f" ({100 * difference['low']:+.1f} to {100 * difference['high']:+.1f})"
        rows.append(
            f"| {budgets[entry['budget']]} | {entry['score'].replace('_', ' ').replace('f1', 'F1')} | "
            f"{titles[entry['model']]} – {titles[entry['baseline']]} | {text} | "
            f"{entry['better_in']} of {entry['seeds']} |"
        )
    return "\n".join(rows)


def label_efficiency_landcover_start() -> str:
    """What the start is worth before it has seen a label, from a run of no steps."""
    (entry,) = result("label_efficiency_landcover_start")["results"]
    scores = ("overall accuracy", "average accuracy", "macro F1")
    values = ", ".join(f"{name} {100 * entry[name.replace(' ', '_').lower()]['mean']:.1f}" for name in scores)
    return f"The same without a label of the place (`--max_steps 0`): {values}."


def augmentation() -> str:
    """Models trained with one augmentation beside the same without, seed by seed."""
    figures = result("augmentation")
    rows = [
        "| augmentation | model | seeds | average accuracy without | with | points | overall accuracy, points |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in figures["runs"]:
        average, overall = run["average_accuracy"], run["overall_accuracy"]
        cells = [f"`{run['augmentation']}`", run["model"], str(run["seeds"])]
        cells += [percent(average[name]) for name in ("without", "with", "difference")]
        rows.append(f"| {' | '.join([*cells, percent(overall['difference'])])} |")
    return "\n".join(rows)


def experiment_visible_only_scale() -> str:
    """Checkpoints by the size of their tokens, and what land cover makes of them."""
    figures = result("experiment_visible_only_scale")
    rows = ["| pre-training | windows seen | error | norm of embeddings | norm of tokens |", "|---|---|---|---|---|"]
    for name, run in figures["pretraining"].items():
        rows.append(
            f"| {name} | {run['windows_seen']:,} | {run['eval_loss']:.3f} | {run['norm_of_embeddings']:.0f} | "
            f"{run['norm_of_tokens']:.0f} |"
        )
    rows += ["", "| pre-training | way | overall accuracy | average accuracy | macro F1 |", "|---|---|---|---|---|"]
    for run in figures["runs"]:
        scores = " | ".join(f"{100 * run[name]:.1f}" for name in ("overall_accuracy", "average_accuracy", "macro_f1"))
        rows.append(f"| {run['pretraining']} | {run['way']} | {scores} |")
    return "\n".join(rows)


def scene_agreement() -> str:
    """Maps that should be the same, pixel by pixel."""
    figures = result("scene_agreement")
    rows = [
        "| map | beside it | where | pixels | same class | mean (largest) difference of a probability |",
        "|---|---|---|---|---|---|",
    ]

    def row(*cells: str, told: dict[str, Any]) -> str:
        agreement = f"{told['pixels']:,} | {told['same_class']:.2%}"
        return (
            f"| {' | '.join(cells)} | {agreement} | {told['mean_difference']:.1e} ({told['largest_difference']:.1e}) |"
        )

    single = figures["single_windows"]
    side = figures["window"][0]
    rows.append(row(f"stride {side}", f"{single['windows']} windows, one at a time", "everywhere", told=single))
    for shifted in figures["shifted"]:
        beside = f"the scene cut {shifted['shift']} rows and columns later"
        for name, place in (("everywhere", "everywhere"), ("inside", "a window or more from the edges")):
            rows.append(row(f"stride {shifted['stride']}", beside, place, told=shifted[name]))
    half = figures["half_precision"]
    rows.append(row(f"stride {side}", f"the same model in {half['precision']}", "everywhere", told=half))
    height, width = figures["window"]
    rows += [
        "",
        f"{figures['side']} x {figures['side']} pixels, windows of {height} x {width}, {figures['parameters']:,} "
        f"parameters. `{figures['command']}`",
    ]
    return "\n".join(rows)


def scene_areas() -> str:
    """Classes of two maps, largest first."""
    rows = ["| scene | classes by their share of the mapped area | without a pixel |", "|---|---|---|"]
    for name, title in (("simulated", "simulated"), ("potsdam", "Potsdam")):
        figures = result(f"scene_areas_{name}")
        classes = sorted(figures["classes"], key=lambda row: -row["share"])
        found = ", ".join(f"{row['name']} {row['share']:.1%}" for row in classes if row["pixels"])
        absent = ", ".join(row["name"] for row in classes if not row["pixels"])
        rows.append(f"| {title}, {figures['height']:,} x {figures['width']:,} | {found} | {absent or 'none'} |")
    return "\n".join(rows)


def scene_speed() -> str:
    """Time and memory from a scene's file to its map."""
    header = "| scene | parameters | precision | stride | time | pixels/s | in the model | most memory |"
    rows = [header, "|---|---|---|---|---|---|---|---|"]
    commands = []
    all_figures = [result(path.stem) for path in RESULTS.glob("scene_speed_*.json")]
    for figures in sorted(all_figures, key=lambda figures: (figures["parameters"], figures["shape"])):
        height, width = figures["shape"]
        kind = (
            "product" if figures["repeat"] is None else f"GeoTIFF of {figures['repeat']} x {figures['repeat']} copies"
        )
        rows.append(
            f"| {height:,} x {width:,}, {kind} | {figures['parameters']:,} | {figures['precision']} | "
            f"{figures['stride']} | {figures['seconds']:,.0f} s | {figures['pixels_per_second']:,.0f} | "
            f"{figures['share_in_model']:.0%} | {figures['peak_memory_mb']:,.0f} MB |"
        )
        machine = figures["machine"]
        commands.append(
            f"* {machine['device']}, threads: {machine['threads']}, torch {machine['torch']}: `{figures['command']}`"
        )
    small, large = (result(f"scene_speed_cpu_tiny_{repeat}") for repeat in (1, 4))
    memory = large["peak_memory_mb"] / small["peak_memory_mb"] - 1
    names = [" x ".join(f"{side:,}" for side in figures["shape"]) for figures in (small, large)]
    told = f"Memory from {names[0]} to {names[1]} pixels, both GeoTIFF: {memory:+.1%}."
    return "\n".join([*rows, "", told, "", *commands])


TABLES: dict[str, Callable[[], str]] = {
    "reconstruction": lambda: reconstruction_table(result("reconstruction")),
    "sensors": lambda: sensor_table(result("sensors")),
    "sensors_landcover": lambda: sensor_table(result("sensors_landcover")),
    "sensors_landcover_average": lambda: sensor_table(result("sensors_landcover"), "average_accuracy"),
    "spectral_crop": lambda: crop_table(result("sensors_landcover_uncropped"), result("sensors_landcover_cropped")),
    "other_labels": lambda: other_labels_table(result("other_labels")),
    "other_labels_trials": lambda: trials_table(result("other_labels_trials")["trials"]),
    "simulated_scenes_trials": simulated_scenes_trials,
    "training_sources": sources_table,
    "label_efficiency": lambda: label_efficiency_table(result("label_efficiency")),
    "pretraining_hsst_enmap": pretraining_hsst_enmap,
    "label_efficiency_comparison": lambda: comparison_rows("label_efficiency"),
    "label_efficiency_landcover": lambda: few_labels_rows("label_efficiency_landcover"),
    "label_efficiency_landcover_comparison": lambda: comparison_rows("label_efficiency_landcover", only="hsst"),
    "label_efficiency_landcover_start": label_efficiency_landcover_start,
    "label_efficiency_landcover_rate": lambda: label_efficiency_table(result("label_efficiency_landcover_rate")),
    "ablation_ladder": lambda: text_table(*ladder_rows(result("ablation"))),
    "ablation_masks": lambda: text_table(*mask_rows(result("ablation"))),
    "label_efficiency_windows": lambda: label_efficiency_table(result("label_efficiency_windows")),
    "label_efficiency_mixing": lambda: label_efficiency_table(result("label_efficiency_mixing")),
    "augmentation": augmentation,
    "label_efficiency_first": lambda: label_efficiency_table(result("label_efficiency_first")),
    "pretraining_on_potsdam": pretraining_on_potsdam,
    "realism": realism,
    "data_speed": data_speed,
    "images": lambda: images_table(result("images")["images"]),
    "training_speed_cpu": speed("train_speed_cpu"),
    "training_speed_cpu_spread": training_speed_cpu_spread,
    "inference_speed_cpu": speed("inference_speed_cpu"),
    "training_speed_cuda": speed("train_speed_cuda"),
    "inference_speed_cuda": speed("inference_speed_cuda"),
    "gpu_floors": gpu_floors,
    "gpu_kernels": gpu_kernels,
    "gpu_versions": gpu_versions,
    "speed_goals": speed_goals,
    "loss_curves": loss_curves,
    "scene_agreement": scene_agreement,
    "scene_areas": scene_areas,
    "scene_speed": scene_speed,
    "experiment_visible_only_scale": experiment_visible_only_scale,
}


def filled(text: str, path: Path) -> str:
    """The text of a page with its tables as the result files have them."""

    def table(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in TABLES:
            raise ValueError(f"{path}: expected a table among {', '.join(TABLES)}, got {name}")
        return f"<!-- table: {name} -->\n{TABLES[name]()}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", table, text, flags=re.S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit code 2 where a table is out of date"
    )
    arguments = parser.parse_args()
    with one_line_errors("update_tables.py"):
        for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
            text = path.read_text(encoding="utf-8")
            wanted = filled(text, path)
            if wanted != text and arguments.check:
                raise ValueError(f"{path.relative_to(ROOT)}: tables differ from docs/results; run update_tables.py")
            path.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()

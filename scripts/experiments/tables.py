"""
Write the tables of README.md and docs/ from the result files in docs/results/.

    python scripts/experiments/tables.py          rewrite them
    python scripts/experiments/tables.py --check  only say whether they are up to date (exit code 2 if not)

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME is a function below.
"""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hsst.build_model_card import sources_table, training_runs, validation_table
from hsst.experiments.ablation import ladder_table, mask_table
from hsst.experiments.label_efficiency import label_efficiency_table
from hsst.experiments.other_labels import other_labels_table
from hsst.experiments.real_places import places_table
from hsst.experiments.reconstruction import reconstruction_table
from hsst.experiments.sensors import sensor_table
from hsst.experiments.speed import speed_table
from hsst.inspect_images import images_table
from hsst.support.command_line import one_line_errors
from hsst.support.reports import markdown_table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"


def result(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"{path.relative_to(ROOT)}: expected the result file of a table, found none")
    return json.loads(path.read_text(encoding="utf-8"))


def pretraining_on_potsdam() -> str:
    """Masked pre-training on the real EnMAP tiles of Potsdam, one row for each run."""
    header = ("masks", "hidden", "parameters", "windows seen", "before", "after", "band mean")
    rows = []
    for path in sorted(RESULTS.glob("pretraining_potsdam_*.json")):
        run = result(path.stem)
        about = [run["run"]["mask_type"] or "tube", f"{run['realised_mask_ratio']:.0%}"]
        counts = [f"{run[name]:,}" for name in ("parameters", "windows_seen")]
        errors = [
            f"{run[f'{name}_loss']:.3f}" for name in ("start_eval", "eval", "eval_band_mean", "eval_visible_mean")
        ]
        errors[1] = f"**{errors[1]}**"
        rows.append([*about, *counts, *errors])
    return markdown_table([*header, "mean of visible tokens"], rows)


def realism() -> str:
    """Simulated scenes beside real tiles."""
    figures = result("realism")
    counts, variance = figures["pixels"], figures["explained_variance"]
    shares = [["pixels compared", *(f"{counts[name]:,}" for name in ("simulated", "real"))]]
    for count in (1, 2, 3, 5, 10, 20):
        noun = "component" if count == 1 else "components"
        values = [f"{variance[name][count - 1]:.4f}" for name in ("simulated", "real")]
        shares.append([f"variance explained by {count} principal {noun}", *values])
    error, ratio = figures["mean_reflectance_error"], figures["deviation_ratio_simulated_to_real"]
    rest = [
        [
            "error of the band means, root mean square (largest)",
            f"{error['root_mean_square']:.4f} ({error['largest']:.4f}) reflectance",
        ],
        [
            "standard deviation of a band, simulated to real, median (5th to 95th percentile of bands)",
            f"{ratio['median']:.2f} ({ratio['p5']:.2f} to {ratio['p95']:.2f})",
        ],
    ]
    names = {"all_bands": "all bands", "window_bands": "bands outside gas absorption"}
    for bands, angles in figures["spectral_angle_degrees"].items():
        for kind, text in (
            (
                "real_to_simulated",
                f"angle of a real pixel to its nearest simulated one, {names[bands]}, median (95th percentile)",
            ),
            ("real_to_other_real_block", f"the same to its nearest in another real block, {names[bands]}"),
        ):
            rest.append([text, f"{angles[kind]['median']:.2f}° ({angles[kind]['p95']:.2f}°)"])
    return markdown_table(("", "simulated", "real"), shares) + "\n\n" + markdown_table(("", ""), rest)


def pretraining_hsst_enmap() -> str:
    """How the weights of hsst-enmap were trained: data, settings, and errors of tiles left out."""
    results = result("pretraining_hsst_enmap")
    parts = []
    for run in training_runs(results):
        settings = run["settings"]
        rows = []
        total = sum(source["weight"] for source in run["data"])
        for source in run["data"]:
            count, bands, height, width = source["tiles"]
            title = f"{source['name']}: {count:,} of {height} x {width} pixels, {bands} bands"
            seen = f"{run['windows_by_source'][source['name']]:,}"
            rows.append([title, f"{source['weight'] / total:.0%}", seen, f"`{source['sha256'][:16]}…`"])
        about = (
            f"{run['steps']:,} steps of {settings['batch_size']} windows, {run['windows_seen']:,} in all, in "
            f"{run['seconds'] / 60:,.0f} minutes; learning rate {settings['learning_rate']:g}, masks "
            f"{', '.join(settings['mask_types'])} ({run['realised_mask_ratio']:.0%} of the tokens), "
            f"{settings['precision']}, seed {settings['seed']}, torch {run['versions']['torch']}, transformers "
            f"{run['versions']['transformers']}; "
            f"{run['parameters']:,} parameters, {run['encoder_parameters']:,} of them in the encoder."
        )
        header = ("tiles", "share of the windows", "windows seen", "SHA-256 of the numbers")
        parts += [markdown_table(header, rows), about]
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
    rows = []
    for entry in (*figures["comparisons"], *figures["comparisons_to_scratch"]):
        if entry["score"] not in ("average_accuracy", "macro_f1") or only not in (None, entry["model"]):
            continue
        difference = entry["difference"]
        points = f"{100 * difference['mean']:+.1f}"
        if difference["low"] is not None:
            points += f" ({100 * difference['low']:+.1f} to {100 * difference['high']:+.1f})"
        score = entry["score"].replace("_", " ").replace("f1", "F1")
        both = f"{titles[entry['model']]} – {titles[entry['baseline']]}"
        better = f"{entry['better_in']} of {entry['seeds']}"
        rows.append([budgets[entry["budget"]], score, both, points, better])
    return markdown_table(("labels", "score", "difference of", "points", "better in"), rows)


def soak() -> str:
    """Programs that were killed and started again."""
    header = ("program", "seed", "kills", "by", "runs that ended", "as an undisturbed one")
    rows = []
    for entry in result("soak")["programs"]:
        signals = ", ".join(f"{count} {name}" for name, count in entry["signals"].items())
        counts = [str(entry[name]) for name in ("seed", "kills", "finished", "equal")]
        rows.append([entry["program"], *counts[:2], signals, *counts[2:]])
    return markdown_table(header, rows)


def faults() -> str:
    """Bad input of each kind, and what came of it."""
    entries = result("faults")["faults"]
    wrong = ("silent", "unnamed", "traceback", "memory", "hang", "died", "executed", "fetched", "outside")
    rows = []
    for kind in [*dict.fromkeys(entry["kind"] for entry in entries), "together"]:
        of_kind = [entry["outcome"] for entry in entries if kind in (entry["kind"], "together")]
        counts = [of_kind.count("refused"), of_kind.count("harmless"), sum(of_kind.count(name) for name in wrong)]
        rows.append([kind, *map(str, (len(of_kind), *counts))])
    return markdown_table(["what", "tried", "refused", "harmless", "anything else"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "reconstruction": lambda: reconstruction_table(result("reconstruction")),
    "sensors": lambda: sensor_table(result("sensors")),
    "sensors_landcover": lambda: sensor_table(result("sensors_landcover")),
    "sensors_landcover_average": lambda: sensor_table(result("sensors_landcover"), "average_accuracy"),
    "other_labels": lambda: other_labels_table(result("other_labels")),
    "training_sources": sources_table,
    "label_efficiency": lambda: label_efficiency_table(result("label_efficiency")),
    "pretraining_hsst_enmap": pretraining_hsst_enmap,
    "label_efficiency_comparison": lambda: comparison_rows("label_efficiency"),
    "label_efficiency_landcover": lambda: few_labels_rows("label_efficiency_landcover"),
    "label_efficiency_landcover_comparison": lambda: comparison_rows("label_efficiency_landcover", only="hsst"),
    "ablation_ladder": lambda: ladder_table(result("ablation")),
    "ablation_masks": lambda: mask_table(result("ablation")),
    "label_efficiency_windows": lambda: label_efficiency_table(result("label_efficiency_windows")),
    "label_efficiency_mixing": lambda: label_efficiency_table(result("label_efficiency_mixing")),
    "label_efficiency_first": lambda: label_efficiency_table(result("label_efficiency_first")),
    "pretraining_on_potsdam": pretraining_on_potsdam,
    "realism": realism,
    "real_places": lambda: places_table(result("real_places")),
    "soak": soak,
    "faults": faults,
    "speed_train_cpu": lambda: speed_table(result("speed_train_cpu")),
    "speed_inference_cpu": lambda: speed_table(result("speed_inference_cpu")),
    "images": lambda: images_table(result("images")["images"]),
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
    with one_line_errors("tables.py"):
        for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
            text = path.read_text(encoding="utf-8")
            wanted = filled(text, path)
            if wanted != text and arguments.check:
                raise ValueError(f"{path.relative_to(ROOT)}: tables differ from docs/results; run tables.py")
            path.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()

"""
Write the tables of README.md and docs/ from the result files in docs/results/.

    python scripts/update_tables.py          rewrite them
    python scripts/update_tables.py --check  only say whether they are up to date (exit code 2 if not)

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME is a function below.
"""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from command_line import one_line_errors

ROOT = Path(__file__).parents[1]
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


def label_efficiency() -> str:
    """Land cover from few labels: percent, mean over seeds with its 95 % interval, the best of each budget in bold."""
    summary = result("label_efficiency")
    scores = {"overall_accuracy": "overall accuracy", "average_accuracy": "average accuracy", "macro_f1": "macro F1"}
    rows = [f"| labels | model | {' | '.join(scores.values())} |", "|---|---|" + "---|" * len(scores)]
    for budget in dict.fromkeys(entry["budget"] for entry in summary["results"]):
        entries = [entry for entry in summary["results"] if entry["budget"] == budget]
        for entry in entries:
            cells = []
            for name in scores:
                score = entry[name]
                text = f"{100 * score['mean']:.1f}"
                if score["mean"] == max(other[name]["mean"] for other in entries):
                    text = f"**{text}**"
                if score["low"] is not None:
                    text += f" ({100 * score['low']:.1f}–{100 * score['high']:.1f})"
                cells.append(text)
            rows.append(
                f"| {entry['budget_title']} ({entry['labels']:,.0f}) | {entry['title']} | {' | '.join(cells)} |"
            )
    return "\n".join(rows)


TABLES: dict[str, Callable[[], str]] = {
    "label_efficiency": label_efficiency,
    "pretraining_on_potsdam": pretraining_on_potsdam,
    "realism": realism,
    "data_speed": data_speed,
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

"""
Write the tables of README.md and docs/ from the result files in docs/results/.

    python scripts/experiments/tables.py          rewrite them
    python scripts/experiments/tables.py --check  only say whether they are up to date (exit code 2 if not)

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME is a function below.
"""

import argparse
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hsst.build_model_card import sources_table
from hsst.experiments.growth import CORPUS_STAGES, costs_table, network_table, processes_table
from hsst.experiments.label_efficiency import label_efficiency_table
from hsst.experiments.real_places import SURROUNDINGS, gains_table, heads_table, places_table
from hsst.experiments.speed import shares_table, speed_table
from hsst.inspect_images import images_table
from hsst.support.card_tables import other_labels_table, reconstruction_table, sensor_table
from hsst.support.command_line import HelpFormatter, one_line_errors
from hsst.support.reports import markdown_table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"


def of_pixels(places: Mapping[str, Any]) -> dict[str, Any]:
    """The gains of single pixels in `real_places.json`."""
    return {"gains": [entry for entry in places["gains"] if entry["window"] == 1]}


def result(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"{path.relative_to(ROOT)}: expected the result file of a table, found none")
    return json.loads(path.read_text(encoding="utf-8"))


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
    "label_efficiency_windows": lambda: label_efficiency_table(result("label_efficiency_windows")),
    "label_efficiency_mixing": lambda: label_efficiency_table(result("label_efficiency_mixing")),
    "label_efficiency_first": lambda: label_efficiency_table(result("label_efficiency_first")),
    "real_places": lambda: places_table(result("real_places")),
    "real_places_windows": lambda: places_table(result("real_places"), SURROUNDINGS),
    "real_places_all_gains": lambda: gains_table(result("real_places")),
    "real_places_surroundings": lambda: gains_table(result("real_places"), of="surroundings"),
    "real_places_heads": lambda: heads_table(result("real_places")),
    "real_places_gains": lambda: gains_table(of_pixels(result("real_places")), ["hsst-enmap"]),
    "soak": soak,
    "faults": faults,
    "speed_train_cpu": lambda: speed_table(result("speed_train_cpu")),
    "speed_inference_cpu": lambda: speed_table(result("speed_inference_cpu")),
    "speed_train_cpu_shares": lambda: shares_table(result("speed_train_cpu")),
    "speed_inference_cpu_shares": lambda: shares_table(result("speed_inference_cpu")),
    "speed_scene_cpu": lambda: speed_table(result("speed_scene_cpu")),
    "speed_scene_amx_cpu": lambda: speed_table(result("speed_scene_amx_cpu")),
    "speed_inference_pixels_cpu": lambda: speed_table(result("speed_inference_pixels_cpu")),
    "growth_scenes": lambda: costs_table(result("growth")["scenes"], ("map",), "megapixels", "million pixels"),
    "growth_corpus": lambda: costs_table(result("growth")["corpus"], CORPUS_STAGES),
    "growth_processes": lambda: processes_table(result("growth")),
    "growth_network": lambda: network_table(result("growth")),
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
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

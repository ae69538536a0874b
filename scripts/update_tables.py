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


TABLES: dict[str, Callable[[], str]] = {"pretraining_on_potsdam": pretraining_on_potsdam}


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

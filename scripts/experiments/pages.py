"""Reports as one HTML file each, that needs no other file: tables, and figures as they are or straight from disk."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402

from datasets_loading.files import written_whole

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0 2em; font-size: 13px; }
th, td { padding: 3px 10px; text-align: right; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #888; } td:nth-child(-n+2), th:nth-child(-n+2) { text-align: left; }
img { max-width: 100%; }
"""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as HTML; the text of its cells is escaped."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def picture(source: str | Path | Any, description: str) -> str:
    """A PNG file, or a figure of matplotlib, which is closed, as an image within the page."""
    if isinstance(source, (str, Path)):
        content = Path(source).read_bytes()
    else:
        buffer = BytesIO()
        try:
            source.savefig(buffer, format="png", dpi=110)
        finally:
            plt.close(source)
        content = buffer.getvalue()
    data = base64.b64encode(content).decode("ascii")
    return f'<img alt="{html.escape(description, quote=True)}" src="data:image/png;base64,{data}">'


def write_page(path: str | Path, title: str, body: str) -> Path:
    """Writes a page of HTML; `body` is HTML already."""
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{html.escape(title)}</h1>
{body}
</body></html>
"""
    with written_whole(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return Path(path)

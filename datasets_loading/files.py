"""Files that appear whole or not at all, and checksums of what they are made from."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """
    Gives the name to write a file under, which then appears as `path`, whole and on the disk; an error leaves nothing.
    The name is hidden, lies beside `path`, ends as it does, and no other writer takes it.

    Raises:
        OSError: the file cannot be written; the message names it.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        reason = error.__cause__ or error.strerror or error
        raise OSError(f"{path}: expected a file that can be written, got: {reason}") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Writes a text file whole."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | Path, content: Mapping[str, Any]) -> Path:
    """Writes a JSON file whole."""
    return write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def fingerprint(*parts: bytes | str | np.ndarray) -> str:
    """SHA-256 of some parts, arrays with their shapes and types, hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype} {part.shape}".encode())
            part = np.ascontiguousarray(part).tobytes()
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()

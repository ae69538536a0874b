"""Files and folders that appear whole or not at all, for one writer at a time, and checksums of what is in them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError


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
        with _errors_name(path, "file"):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            _to_disk(partial)
            partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def written_folder(path: str | Path) -> Iterator[Path]:
    """
    Gives an empty folder to write files into, which then appears as `path`, whole and on the disk, in place of an
    earlier folder; an error leaves that one, and nothing else.

    Raises:
        OSError: it cannot be written; the message names `path`.
    """
    path = Path(path)
    partial, earlier = (path.with_name(f".{path.name}.{uuid.uuid4().hex}.{kind}") for kind in ("partial", "earlier"))
    try:
        with _errors_name(path, "folder"):
            partial.mkdir(parents=True)
            yield partial
            for file in (*filter(Path.is_file, partial.rglob("*")), partial):
                _to_disk(file)
            if path.exists():
                path.rename(earlier)
            partial.rename(path)
            _to_disk(path.parent)
    finally:
        for folder in (partial, earlier):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def written_into(folder: str | Path, last: str) -> Iterator[Path]:
    """
    Gives an empty folder to write files into, which are then moved into `folder` beside what is there, each whole and
    on the disk, `last` at the end: where that one is, all are. An error before leaves nothing.

    Raises:
        OSError: a file cannot be written; the message names `folder`.
    """
    folder = Path(folder)
    partial = folder / f".{uuid.uuid4().hex}.partial"
    try:
        with _errors_name(folder, "folder"):
            partial.mkdir(parents=True)
            yield partial
            for file in partial.iterdir():
                _to_disk(file)
            for file in sorted(partial.iterdir(), key=lambda file: file.name == last):
                file.replace(folder / file.name)
            _to_disk(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_writable(folder: str | Path) -> None:
    """Raises OSError, which names the folder, where no file can be written into it, or it cannot be made."""
    folder = Path(folder)
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    with _errors_name(folder, "folder"), tempfile.TemporaryFile(dir=existing):
        pass


@contextmanager
def only_writer(folder: str | Path, name: str = ".lock") -> Iterator[None]:
    """
    Makes a folder, of which this is the only process to write into it, or to write what `name` stands for; a folder
    that is new and stays empty goes again. The lock of a process that died holds nobody up.

    Raises:
        ValueError: another process writes there, or it is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder to write into, got a file")
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"{folder}: expected to be the only process that writes there, got another one") from None
    try:
        yield
    finally:
        # Removed while it is held, so that nobody who holds it loses it
        with suppress(OSError):
            (folder / name).unlink(missing_ok=True)
            if is_new:
                folder.rmdir()  # fails where something was written
        lock.release()


@contextmanager
def _errors_name(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.__cause__ or getattr(error, "strerror", None) or error
        raise OSError(f"{path}: expected a {kind} that can be written, got: {reason}") from None


def _to_disk(path: Path) -> None:
    """Has what was written survive a power cut, and files be readable as the user's others are."""
    if path.is_file():
        umask = os.umask(0o077)
        os.umask(umask)
        path.chmod(0o666 & ~umask)  # safetensors lets its owner alone read
    with suppress(PermissionError):  # of a folder, on Windows
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: str | Path, text: str) -> Path:
    """Writes a text file whole."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | Path, content: Mapping[str, Any]) -> Path:
    """Writes a JSON file whole."""
    return write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """
    What `append_row` wrote; a last line that was cut off in writing is removed from the file.

    Raises:
        ValueError: a line is no JSON object.
    """
    path = Path(path)
    content = path.read_bytes() if path.is_file() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with written_whole(path) as partial:
            partial.write_bytes(whole)
    rows = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            rows.append({**json.loads(line)})
        except (ValueError, TypeError):
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {line[:100]!r}") from None
    return rows


def append_row(path: str | Path, row: Mapping[str, Any]) -> None:
    """Adds a JSON object as a line at the end of a file, and waits until the disk has it."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def fingerprint(*parts: bytes | str | np.ndarray) -> str:
    """SHA-256 of some parts, arrays with their shapes and types, hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype} {part.shape}".encode())
            part = np.ascontiguousarray(part).tobytes()
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def checksums(files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files by their names."""
    sums = {}
    for path in files:
        with path.open("rb") as file:
            sums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums

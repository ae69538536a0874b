"""transformers' own model tests, obtained from PyPI at test time: in the source distribution, not in the wheel."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from types import ModuleType

import transformers

CACHE = Path(__file__).parent.parent.parent / ".cache"
PACKAGE = "transformers_tests"

# The distribution holds the top level of tests/ only. What that imports from further down does not concern this model:
# export to other formats, generation of text, text generation's entries of a configuration.
STUBS = {
    "__init__.py": "",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/__init__.py": "",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}


class SourceUnavailable(Exception):
    """The source distribution could not be had, for the reason given."""


def obtain() -> Path:
    """Folder that holds the tests of the installed transformers as a package; downloaded when it is not there yet."""
    folder = CACHE / f"transformers-{transformers.__version__}"
    if (folder / PACKAGE).is_dir():
        return folder
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        unpack(download(Path(scratch)), Path(scratch) / PACKAGE)
        folder.mkdir(exist_ok=True)
        try:
            (Path(scratch) / PACKAGE).rename(folder / PACKAGE)
        except OSError:  # another run of the tests was faster
            if not (folder / PACKAGE).is_dir():
                raise
    return folder


def download(folder: Path) -> Path:
    """The source distribution, by pip, which knows how PyPI is reached from here."""
    requirement = f"transformers=={transformers.__version__}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", "transformers", "--retries", "1", "--timeout", "20", "--dest", str(folder), requirement]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        raise SourceUnavailable(f"the source distribution of {requirement} did not come from PyPI in 120 s") from None
    archives = sorted(folder.glob("transformers-*.tar.gz"))
    if process.returncode or not archives:
        reason = (process.stderr.strip().splitlines() or ["no output"])[-1]
        raise SourceUnavailable(f"the source distribution of {requirement} could not be had from PyPI: {reason}")
    return archives[0]


def unpack(archive: Path, package: Path) -> None:
    """Makes a package of the test modules in an archive."""
    package.mkdir()
    with tarfile.open(archive) as members:
        for member in members:
            path = PurePosixPath(member.name)
            if path.parts[1:-1] == ("tests",) and path.suffix == ".py":
                source = members.extractfile(member)
                assert source is not None
                with source, (package / path.name).open("wb") as target:
                    shutil.copyfileobj(source, target)
    for name, content in STUBS.items():
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text(content)


def load(name: str) -> ModuleType:
    """One module of transformers' tests, e.g. `test_modeling_common`."""
    folder = str(obtain())
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(f"{PACKAGE}.{name}")

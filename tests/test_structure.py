"""Rules of the house that no behavior shows: which way imports go, tools find nothing, bounds have reasons."""

import ast
import configparser
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from transformers.dynamic_module_utils import get_imports

from modeling_hsst.hub_hsst import code_files

ROOT = Path(__file__).parent.parent
MODEL_FILES = sorted((ROOT / "modeling_hsst").rglob("*.py"))
# Their imports may be relative: no checkpoint carries them, nor the file that imports them
KERNEL_FILES = set((ROOT / "modeling_hsst" / "kernels").rglob("*.py"))
FLAT_FILES = [path for path in MODEL_FILES if path not in KERNEL_FILES and path.name != "__init__.py"]
DATA_FILES = sorted((ROOT / "datasets_loading").rglob("*.py"))

# torch and transformers, and what transformers cannot be installed without
MODEL_MAY_IMPORT = {"torch", "transformers", "huggingface_hub", "numpy", "safetensors"} | set(sys.stdlib_module_names)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """All import statements of a file, those within functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def imported_packages(path: Path) -> set[str]:
    """The packages a file imports by absolute names, optional ones included."""
    packages = set()
    for statement in imports(path):
        if isinstance(statement, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in statement.names}
        elif not statement.level and statement.module is not None:
            packages.add(statement.module.split(".")[0])
    return packages


@pytest.mark.parametrize("path", MODEL_FILES, ids=relative)
def test_model_needs_torch_and_transformers_only(path: Path) -> None:
    # The Hub's own view: imports within `try` are optional
    assert set(get_imports(path)) <= MODEL_MAY_IMPORT


@pytest.mark.parametrize("path", FLAT_FILES, ids=relative)
def test_model_files_are_flat(path: Path) -> None:
    """Checkpoint repositories carry copies of these files, where only `from .x import y` finds the next one."""
    for statement in imports(path):
        if isinstance(statement, ast.ImportFrom) and statement.level:
            assert statement.level == 1, f"line {statement.lineno}"
            assert statement.module and "." not in statement.module, f"line {statement.lineno}"
            assert (path.parent / f"{statement.module}.py").is_file(), f"line {statement.lineno}"


def test_the_hub_gets_no_kernels() -> None:
    """Fast layers are the package's: what checkpoints carry is the model and its processor, and reads in one go."""
    assert [path.name for path in code_files()] == [
        "bands_hsst.py",
        "configuration_hsst.py",
        "image_processing_hsst.py",
        "modeling_hsst.py",
        "modeling_hsst_masked.py",
    ]


@pytest.mark.parametrize("path", MODEL_FILES, ids=relative)
def test_model_knows_neither_itself_by_name_nor_data_nor_scripts(path: Path) -> None:
    assert not imported_packages(path) & {"modeling_hsst", "datasets_loading", "hsst", "scripts"}


@pytest.mark.parametrize("path", DATA_FILES, ids=relative)
def test_data_knows_neither_model_nor_scripts(path: Path) -> None:
    assert not imported_packages(path) & {"hsst", "scripts"}
    # What the same band is, is said once, in a file that checkpoint repositories carry along
    modules = [statement.module for statement in imports(path) if isinstance(statement, ast.ImportFrom)]
    of_the_model = [module for module in modules if module and module.startswith("modeling_hsst")]
    assert set(of_the_model) <= {"modeling_hsst.bands_hsst"}


def test_files_are_opened_in_one_place() -> None:
    """Pixels enter by `datasets_loading.rasters`: nobody else opens an image of a user."""
    own_files = {
        "scripts/support/explored_scene.py": "what it wrote itself",
        "scripts/support/map_writer.py": "maps are written",
        "scripts/support/scene_maps.py": "a map of an earlier run",
        "datasets_loading/simulation/product_writer.py": "simulated products and tiles are written",
        "datasets_loading/simulation/scene.py": "labels of simulated scenes are written",
        "datasets_loading/splits.py": "splits of ours",
        "datasets_loading/raster_formats.py": "the one place",
        "scripts/experiments/speed.py": "maps that it made itself",
        "scripts/experiments/real_places.py": "benchmarks, whose files hold labels beside pixels",
    }
    opening = re.compile(r"rasterio\.open\(|DatasetReader\(|h5py\.File\(|loadmat\(|np\.load\(")
    folders = ("datasets_loading", "modeling_hsst", "scripts")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = {relative(path) for path in files if opening.search(path.read_text(encoding="utf-8"))}
    assert found == set(own_files)


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "--no-cache", "--quiet", "--output-format", "concise", "."],
        ["ruff", "format", "--no-cache", "--check", "--quiet", "."],
        ["mypy"],
        # the structural rules of transformers
        ["mlinter", "--no-progress", "--no-cache", "modeling_hsst"],
    ],
    ids=" ".join,
)
def test_tool_finds_nothing(command: list[str]) -> None:
    process = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, f"{process.stdout}\n{process.stderr}"


def requirement_lines() -> list[tuple[str, str]]:
    """Each requirement of setup.cfg with the line above it."""
    lines = [line.strip() for line in (ROOT / "setup.cfg").read_text(encoding="utf-8").splitlines()]
    pattern = re.compile(r"^[A-Za-z0-9_-]+>=[0-9.]+$")
    return [(line, above) for above, line in zip(lines, lines[1:], strict=False) if pattern.match(line)]


def test_every_package_is_installed() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = set(config["options"]["packages"].split())
    folders = {"modeling_hsst": "modeling_hsst", "datasets_loading": "datasets_loading", "scripts": "hsst"}
    found = {
        str(path.parent.relative_to(ROOT)).replace("/", ".").replace(room, name, 1)
        for room, name in folders.items()
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert listed == found
    suffixes = {
        path.suffix for room in folders for path in (ROOT / room).rglob("*.*") if "__pycache__" not in str(path)
    }
    shipped = set(config["options.package_data"]["*"].split(", "))
    assert {f"*{suffix}" for suffix in suffixes - {".py", ".sh", ".typed"}} <= shipped


def test_every_bound_has_a_reason() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    groups = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    requirements = [line for group in groups for line in group.split("\n") if line and not line.startswith("hsst[")]
    assert sorted(requirements) == sorted(line for line, _ in requirement_lines())
    assert [line for line, above in requirement_lines() if not above.startswith("#")] == []


def test_known_good_versions_satisfy_the_bounds() -> None:
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pinned[name.lower().replace("_", "-")] = version
    for line, _ in requirement_lines():
        requirement = Requirement(line)
        assert pinned[requirement.name.lower().replace("_", "-")] in requirement.specifier, line


def test_readme_for_pypi_has_no_link_that_leads_nowhere() -> None:
    convert = runpy.run_path(str(ROOT / "setup.py"))["readme_for_pypi"]
    text = "![A scene](docs/a.png) [data](docs/data.md#bands), [Hub](https://huggingface.co)"
    assert convert(text, "") == " data, [Hub](https://huggingface.co)"
    at = "https://example.org/hsst/blob/main/"
    assert convert(text, at) == (
        "![A scene](https://example.org/hsst/raw/main/docs/a.png) "
        f"[data]({at}docs/data.md#bands), [Hub](https://huggingface.co)"
    )
    assert re.findall(r"\]\((?!https?://)", convert((ROOT / "README.md").read_text(encoding="utf-8"))) == []

"""What a folder must be before it becomes a Hub repository, and what publishing it changes there.

`check_model_folder` and `check_dataset_folder` look at a folder as a user of the Hub will: models are loaded in clean
processes, with the package and without it. `planned_changes` compares the folder with the repository by the hashes
that the Hub keeps, and `publish` uploads what differs: an interrupted upload that is repeated sends what is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi, ModelCard, RepoFile

# The errors of the client's HTTP library, which is another one in another release
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm

import modeling_hsst
from hsst.support.training_sources import check_sources
from modeling_hsst.hub_hsst import AUTO_MAP, PROCESSOR_AUTO_MAP, add_code, code_files

REPOSITORY_TYPES = ("model", "dataset")

CARD_NAME = "README.md"
MODEL_FILES = ("config.json", "preprocessor_config.json", CARD_NAME)
MODEL_SUFFIXES = (".safetensors", ".json", ".md", ".py", ".png", ".svg", ".csv", ".txt", "LICENSE")
MODEL_METADATA = ("license", "library_name", "pipeline_tag", "tags", "training_sources")
MODEL_SECTIONS = ("load", "intended use", "training data", "limits", "citation")
DATASET_SUFFIXES = (".parquet", ".json", ".md", "LICENSE")
DATASET_METADATA = ("license", "pretty_name", "configs")
DATASET_SECTIONS = ("licence", "citation")

# What training leaves beside weights. Pickles run code when they are loaded; optimizer states are of no use to others
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
TRAINING_STATE = re.compile(r"optimizer|scheduler|rng_state|random_states|training_args|exp_avg|custom_checkpoint")
# Data takes of simulated products; those of the satellite count from 1
SIMULATED_PRODUCT = re.compile(r"ENMAP01-____L2A-DT9\d{9}_")

# The Hub recommends no more files in one commit
FILES_PER_COMMIT = 100

# The package may be installed in place: nothing but a finder before all others keeps it out
_WITHOUT_PACKAGE = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_hsst", "datasets_loading", "hsst"):
            raise ModuleNotFoundError(f"{name} is kept out of this process")
sys.meta_path.insert(0, Blocker())
options = {"trust_remote_code": True}
"""
_WITH_PACKAGE = """
import sys
sys.path.insert(0, sys.argv[2])
import modeling_hsst
options = {}
"""
# AutoBackbone is left out: transformers asks the Hub for it even where it is given a folder
_LOAD = """
import json
import torch
import transformers
from transformers import AutoConfig
from transformers.models.auto.image_processing_auto import AutoImageProcessor
folder = sys.argv[1]
config = AutoConfig.from_pretrained(folder, **options)
processor = AutoImageProcessor.from_pretrained(folder, **options)
image = torch.arange(config.num_channels, dtype=torch.float32)[:, None, None] * 10 + torch.randint(
    0, 3000, (config.num_channels, *config.window_size), generator=torch.Generator().manual_seed(0)
)
inputs = processor(image)
report = {"classes": {}}
for name in ("AutoModel", "AutoModelForMaskedImageModeling", "AutoModelForImageClassification",
             "AutoModelForSemanticSegmentation"):
    if name == "AutoModelForSemanticSegmentation" and config.head_type == "center":
        continue
    model, loading = getattr(transformers, name).from_pretrained(folder, output_loading_info=True, **options)
    report["classes"][type(model).__name__] = sorted(
        [*loading["missing_keys"], *loading["unexpected_keys"], *map(str, loading["mismatched_keys"])]
    )
    if name == "AutoModel":
        with torch.no_grad():
            report["tokens"] = model.eval()(**inputs).last_hidden_state.double().abs().sum().item()
print(json.dumps(report))
"""


@dataclass(frozen=True)
class FileHashes:
    """A file of a folder to publish: its size in bytes, its SHA-256 and its Git hash (hexadecimal)."""

    path: Path
    size: int
    sha256: str
    git: str


@dataclass(frozen=True)
class Change:
    """What publishing does to one file: `kind` is "add", "change", "delete" or "keep"."""

    kind: str
    name: str
    file: FileHashes | None


def folder_files(folder: str | Path) -> dict[str, FileHashes]:
    """
    The files of a folder with their hashes, by their names in the repository.

    Raises:
        ValueError: there is no such folder, it is empty, or holds links.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder to publish, found {'a file' if folder.exists() else 'nothing'}")
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    # Left behind by the preparation of a corpus
    paths = [path for path in paths if path != folder / ".lock"]
    links = [path for path in paths if path.is_symlink()]
    if links:
        raise ValueError(f"{links[0]}: expected files, found a link, which the Hub does not keep")
    if not paths:
        raise ValueError(f"{folder}: expected files to publish, found none")
    return {
        path.relative_to(folder).as_posix(): _hashes(path)
        for path in tqdm(paths, desc="Hashing", unit="file", leave=False, disable=None)
    }


def _hashes(path: Path) -> FileHashes:
    size = path.stat().st_size
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            sha256.update(part)
            git.update(part)
    return FileHashes(path, size, sha256.hexdigest(), git.hexdigest())


def stage_model_folder(folder: str | Path, target: str | Path) -> Path:
    """
    Copies a model's folder, as it lies in `model_cards` or as training saved it, to a new folder `target`, and adds
    the code and the auto maps that its Hub repository has beside them.

    Raises:
        ValueError: there is no such folder, it holds links, it lacks a configuration or has one that is not JSON, or
            `target` exists.
    """
    names = folder_files(folder)
    missing = [name for name in MODEL_FILES if name not in names]
    if missing:
        raise ValueError(f"{folder}: not ready to be published: {'; '.join(f'{name} is missing' for name in missing)}")
    if Path(target).exists():
        raise ValueError(f"{target}: expected a folder that does not exist yet")
    shutil.copytree(folder, target)
    try:
        return add_code(target)
    except ValueError:
        shutil.rmtree(target)
        raise


def check_model_folder(folder: str | Path) -> None:
    """
    Checks that a folder is a complete model repository: a card with metadata and sections, weights in safetensors
    only, all finite, the package's own flat code, nothing that training leaves behind; and that every class loads from
    it in a clean process, with the package and without it, to the same numbers.

    Raises:
        ValueError: it is not; the message names every file that is wrong, and how.
    """
    folder = Path(folder)
    names = sorted(folder_files(folder))
    problems = [f"{name} is missing" for name in MODEL_FILES if name not in names]
    problems += _unwanted_files(names, MODEL_SUFFIXES)
    weights = [name for name in names if name.endswith(".safetensors")]
    if not weights:
        problems.append("weights (*.safetensors) are missing")
    for name in weights:
        problems += _weight_problems(folder / name)
    problems += _code_problems(folder, names)
    if CARD_NAME in names:
        card_problems = _card_problems(folder / CARD_NAME, ModelCard, MODEL_METADATA, MODEL_SECTIONS)
        problems += card_problems or _source_problems(folder / CARD_NAME)
    for name, auto_map in (("config.json", AUTO_MAP), ("preprocessor_config.json", PROCESSOR_AUTO_MAP)):
        if name in names:
            problems += _auto_map_problems(folder / name, auto_map)
    # What is wrong already would be an error of the loading, too, in less clear words
    if not problems:
        problems = _loading_problems(folder)
    _raise_problems(folder, problems)


def check_dataset_folder(folder: str | Path) -> None:
    """
    Checks that a folder is a corpus that may be published: a card with metadata and sections, as many tiles in its
    shards as the card says, and simulated products only, since EnMAP's data may not be re-published.

    Raises:
        ValueError: it is not; the message names every file that is wrong, and how.
    """
    import pyarrow.parquet

    folder = Path(folder)
    names = sorted(folder_files(folder))
    problems = [] if CARD_NAME in names else [f"{CARD_NAME} is missing (is the corpus finished?)"]
    problems += _unwanted_files(names, DATASET_SUFFIXES)
    products: set[str | None] = set()
    num_tiles = 0
    for name in tqdm([name for name in names if name.endswith(".parquet")], unit="shard", leave=False, disable=None):
        try:
            with pyarrow.parquet.ParquetFile(folder / name) as shard:
                num_tiles += shard.metadata.num_rows
                products |= set(shard.read(columns=["product"]).column("product").to_pylist())
        except (pyarrow.ArrowException, KeyError, OSError) as error:
            problems.append(f"{name} is no shard of tiles ({error})")
    if not num_tiles:
        problems.append("shards with tiles (*.parquet) are missing")
    foreign = sorted(str(product) for product in products if not SIMULATED_PRODUCT.match(product or ""))
    if foreign:
        problems.append(f"only simulated products may be published, it holds tiles of {_some(foreign)}")
    if CARD_NAME in names:
        card_problems = _card_problems(folder / CARD_NAME, DatasetCard, DATASET_METADATA, DATASET_SECTIONS)
        problems += card_problems
        if not card_problems:
            stated = _stated_tiles(DatasetCard.load(folder / CARD_NAME).data.to_dict().get("dataset_info"))
            if stated != num_tiles:
                problems.append(f"{CARD_NAME} states {stated} tiles, the shards hold {num_tiles}")
    _raise_problems(folder, problems)


def _stated_tiles(dataset_info: Any) -> int:
    """How many tiles a card states, in all splits of all configurations; 0 where it does not."""
    stated = 0
    for configuration in dataset_info if isinstance(dataset_info, list) else [dataset_info]:
        splits = configuration.get("splits") if isinstance(configuration, dict) else None
        for split in splits if isinstance(splits, list) else []:
            number = split.get("num_examples") if isinstance(split, dict) else None
            stated += number if isinstance(number, int) else 0
    return stated


def _raise_problems(folder: Path, problems: Sequence[str]) -> None:
    if problems:
        raise ValueError(f"{folder}: not ready to be published: {'; '.join(problems)}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _unwanted_files(names: Sequence[str], suffixes: tuple[str, ...]) -> list[str]:
    problems = []
    for name in names:
        if TRAINING_STATE.search(name):
            problems.append(f"{name} is a state of training")
        elif name.endswith(PICKLES):
            problems.append(f"{name} is a pickle or array file: weights are published as safetensors only")
        elif not name.endswith(suffixes) or any(part.startswith(".") for part in name.split("/")):
            problems.append(f"{name} has no place in the repository")
    return problems


def _weight_problems(path: Path) -> list[str]:
    problems = []
    try:
        with safe_open(path, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118 (not a dictionary)
                if TRAINING_STATE.search(key):
                    problems.append(f"{path.name} holds a state of training ({key})")
                elif not torch.isfinite(weights.get_tensor(key)).all():
                    problems.append(f"{path.name} holds numbers that are not finite ({key})")
    except (SafetensorError, OSError) as error:
        problems.append(f"{path.name} is no safetensors file ({error})")
    return problems


def _code_problems(folder: Path, names: Sequence[str]) -> list[str]:
    expected = {path.name: path for path in code_files()}
    problems = [f"{name} is missing" for name in sorted(expected) if name not in names]
    for name in (name for name in names if name.endswith(".py")):
        if name not in expected:
            problems.append(f"{name} is no code of the model")
        elif (folder / name).read_bytes() != expected[name].read_bytes():
            problems.append(f"{name} differs from the package's: export the model again")
    return problems


def _card_problems(
    path: Path, kind: type[ModelCard] | type[DatasetCard], metadata: Sequence[str], sections: Sequence[str]
) -> list[str]:
    try:
        card = kind.load(path)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        return [f"{path.name} has no readable metadata ({' '.join(str(error).split())})"]
    values = card.data.to_dict()
    problems = [f"{path.name} states no `{name}` in its metadata" for name in metadata if not values.get(name)]
    headings = [line.lstrip("#").strip().lower() for line in card.text.splitlines() if line.startswith("#")]
    problems += [
        f"{path.name} has no section on {section}"
        for section in sections
        if not any(section in heading for heading in headings)
    ]
    return problems


def _source_problems(path: Path) -> list[str]:
    sources = ModelCard.load(path).data.to_dict()["training_sources"]
    if isinstance(sources, str):
        sources = [sources]
    if not isinstance(sources, list) or not all(isinstance(source, str) for source in sources):
        return [f"{path.name}: `training_sources` must be a list of names, got {sources}"]
    try:
        check_sources(sources, path.name)
    except ValueError as error:
        return [str(error)]
    return []


def _auto_map_problems(path: Path, auto_map: dict[str, str]) -> list[str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return [f"{path.name} is not JSON ({error})"]
    found = content.get("auto_map") if isinstance(content, dict) else None
    if not isinstance(found, dict):
        found = {}
    missing = sorted(name for name, reference in auto_map.items() if found.get(name) != reference)
    return [f"{path.name} does not map {', '.join(missing)}"] if missing else []


def _loading_problems(folder: Path) -> list[str]:
    architectures = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    problems, tokens = [], {}
    for way, program in (("with the package", _WITH_PACKAGE), ("without the package", _WITHOUT_PACKAGE)):
        try:
            report = _run_clean(program + _LOAD, folder)
        except ValueError as error:
            problems.append(f"does not load {way} ({error})")
            continue
        tokens[way] = report["tokens"]
        for name in architectures:
            if name not in report["classes"]:
                problems.append(f"config.json names the architecture {name}, which no Auto class loads")
            elif report["classes"][name]:
                problems.append(f"{name} does not load {way} as it was saved: {_some(report['classes'][name])}")
    if len(tokens) == 2 and len(set(tokens.values())) != 1:
        problems.append(f"gives other numbers with the package than without it: {tokens}")
    return problems


def _run_clean(program: str, folder: Path) -> Any:
    """What an isolated program prints as JSON, in an empty folder, with an empty cache and without the Hub."""
    own = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "PYTHON")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    with tempfile.TemporaryDirectory() as empty:
        process = subprocess.run(
            [sys.executable, "-I", "-c", program, str(folder.resolve()), str(Path(modeling_hsst.__file__).parents[1])],
            cwd=empty,
            env=inherited | {"HF_HOME": f"{empty}/cache", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"},
            capture_output=True,
            text=True,
        )
    if process.returncode:
        lines = process.stderr.strip().splitlines()
        raise ValueError(lines[-1] if lines else f"exit code {process.returncode}")
    return json.loads(process.stdout.splitlines()[-1])


@contextmanager
def clear_hub_errors(hub_model_id: str, endpoint: str) -> Iterator[None]:
    """Errors of the Hub and of the network as a `ValueError` of one sentence."""
    try:
        yield
    except LocalTokenNotFoundError:
        raise ValueError(
            f"{hub_model_id}: publishing needs a token of the Hub, found none: run `hf auth login`, or set HF_TOKEN"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status == 401:
            raise ValueError(f"{hub_model_id}: the Hub does not accept the token (401): run `hf auth login`") from None
        if status == 403:
            raise ValueError(f"{hub_model_id}: the token may not write to this repository (403)") from None
        message = " ".join((error.server_message or str(error)).split())
        raise ValueError(f"{hub_model_id}: the Hub refused the request ({status}): {message}") from None
    except (HTTPError, ConnectionError) as error:
        raise ValueError(f"{hub_model_id}: {endpoint} cannot be reached: {error or type(error).__name__}") from None


def check_owner(api: HfApi, hub_model_id: str) -> None:
    """
    Checks that the token's user may own a repository of this name.

    Raises:
        ValueError: the name is not OWNER/NAME, there is no token, or the owner is somebody else.
    """
    if hub_model_id.count("/") != 1 or not all(hub_model_id.split("/")):
        raise ValueError(f"--hub_model_id: expected OWNER/NAME, got {hub_model_id!r}")
    user = api.whoami()
    owners = [user["name"], *(organisation["name"] for organisation in user.get("orgs", []))]
    owner = hub_model_id.split("/")[0]
    if owner not in owners:
        raise ValueError(
            f"{hub_model_id}: belongs to somebody else: expected a repository of {' or '.join(owners)}, got {owner}"
        )


def planned_changes(
    api: HfApi, hub_model_id: str, files: dict[str, FileHashes], repo_type: str = "model"
) -> tuple[list[Change], bool]:
    """
    What publishing would do to a repository as it is.

    Returns:
        A change for each file here or there, by name, and whether the repository exists. What the Hub itself keeps
        (.gitattributes) is left out.
    """
    remote: dict[str, RepoFile] = {}
    exists = True
    try:
        for entry in api.list_repo_tree(hub_model_id, recursive=True, repo_type=repo_type):
            if isinstance(entry, RepoFile) and entry.path != ".gitattributes":
                remote[entry.path] = entry
    except RepositoryNotFoundError:
        exists = False
    changes = []
    for name in sorted({*files, *remote}):
        local = files.get(name)
        if local is None:
            kind = "delete"
        elif name not in remote:
            kind = "add"
        else:
            large = remote[name].lfs
            same = local.git == remote[name].blob_id if large is None else local.sha256 == large.sha256
            kind = "keep" if same else "change"
        changes.append(Change(kind, name, local))
    return changes, exists


def publish(
    api: HfApi, hub_model_id: str, changes: Sequence[Change], repo_type: str = "model", private: bool = False
) -> int:
    """
    Creates the repository where it is missing and makes the changes, the card last. Files whose content the Hub has
    already, as after an interrupted upload, are not sent again; a commit appears whole or not at all.

    Returns:
        The number of commits.
    """
    api.create_repo(hub_model_id, repo_type=repo_type, private=private, exist_ok=True)
    operations: list[CommitOperationAdd | CommitOperationDelete] = []
    for change in sorted(changes, key=lambda change: (change.name == CARD_NAME, change.name)):
        if change.kind == "delete":
            operations.append(CommitOperationDelete(change.name))
        elif change.kind in ("add", "change") and change.file is not None:
            operations.append(CommitOperationAdd(change.name, change.file.path))
    parts = [operations[start : start + FILES_PER_COMMIT] for start in range(0, len(operations), FILES_PER_COMMIT)]
    for number, part in enumerate(parts, start=1):
        message = "Publish" if len(parts) == 1 else f"Publish, part {number} of {len(parts)}"
        api.create_commit(hub_model_id, part, commit_message=message, repo_type=repo_type)
    return len(parts)

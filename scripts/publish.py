"""
Check a model's folder or a simulated corpus, and make a repository of the Hugging Face Hub the same as it.

    python scripts/publish.py model_cards/hsst-enmap --stage outputs/staged
    python scripts/publish.py model_cards/hsst-enmap --hub_model_id hsg-aiml/hsst-enmap --dry_run
    python scripts/publish.py corpus --hub_model_id hsg-aiml/simulated-enmap --repo_type dataset

A model's folder holds card, weights and configuration. It is staged first: copied, with the code that models run
where this package is not installed. What is checked, shown by --stage and uploaded is that copy. Files of the
repository that the folder does not have are deleted. The same command repeats an interrupted upload.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from huggingface_hub import DatasetCard, HfApi, ModelCard

# The errors of the client's HTTP library, which is another one in another release
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open

from hsst.support.command_line import HelpFormatter, one_line_errors, shown

SOURCES = Path(__file__).parent / "support" / "training_sources.yaml"
CARD_NAME = "README.md"
MODEL_FILES = ("config.json", "preprocessor_config.json", CARD_NAME)
SUFFIXES = {
    "model": (".safetensors", ".json", ".md", ".png", ".svg", ".csv", ".txt", "LICENSE"),
    "dataset": (".parquet", ".json", ".md", "LICENSE"),
}
METADATA = {
    "model": ("license", "library_name", "pipeline_tag", "tags", "training_sources"),
    "dataset": ("license", "pretty_name", "configs"),
}
SECTIONS = {
    "model": ("load", "intended use", "training data", "limits", "citation"),
    "dataset": ("licence", "citation"),
}
# What training leaves beside weights. Pickles run code when they are loaded; optimizer states are of no use to others
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
TRAINING_STATE = re.compile(r"optimizer|scheduler|rng_state|random_states|training_args|exp_avg|custom_checkpoint")
# Data takes of simulated products; those of the satellite count from 1
SIMULATED_PRODUCT = re.compile(r"ENMAP01-____L2A-DT9\d{9}_")

# What must not leave a machine by accident. Roots of folders that are not of a person's machine may be in a text
TOKEN = re.compile(r"\b(hf_[A-Za-z0-9]{10,}|gh[opsru]_\w{20,}|github_pat_\w{20,}|AKIA[0-9A-Z]{16}|sk-[\w-]{20,})")
LOCAL_PATH = re.compile(
    r"(?<![\w.:/~-])/(?:home|root|Users|mnt|media|tmp|var|work|workspace|data|scratch|srv|opt|gpfs|lustre)/[^\s\"'`<>)]+"
    r"|\b[A-Za-z]:\\[^\s\"'`<>)]+|file:///[^\s\"'`<>)]+"
)

# First without the package, then with it, for a process starts for seconds. The package may be installed in place:
# nothing but a finder before all others keeps it out. AutoBackbone is left out: transformers asks the Hub for it even
# where it is given a folder
_LOAD = """
import json
import sys
import traceback
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_hsst", "datasets_loading", "hsst"):
            raise ModuleNotFoundError(f"{name} is kept out of this process")
sys.meta_path.insert(0, Blocker())
import torch
import transformers
from transformers import AutoConfig
from transformers.models.auto.image_processing_auto import AutoImageProcessor
folder, package = sys.argv[1:]
def load(**options):
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
        for used in (config, processor, model):
            if type(used).__module__.startswith("modeling_hsst.") == options["trust_remote_code"]:
                raise ImportError(f"{type(used).__name__} is that of {type(used).__module__}")
    return report
def attempt(**options):
    try:
        return load(**options)
    except Exception as error:
        return {"error": "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]}
without = attempt(trust_remote_code=True)
del sys.meta_path[0]
sys.path.insert(0, package)
import modeling_hsst
print(json.dumps({"with the package": attempt(trust_remote_code=False), "without the package": without}))
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to publish")
    parser.add_argument("--hub_model_id", help="OWNER/NAME of the repository")
    parser.add_argument("--stage", type=Path, metavar="DIR", help="check, write a model's repository to DIR, and end")
    parser.add_argument("--repo_type", choices=tuple(SUFFIXES), default="model", help="what the folder holds")
    parser.add_argument("--private", action="store_true", help="whether a new repository is private")
    parser.add_argument("--dry_run", action="store_true", help="check, list what would change, and change nothing")
    arguments = parser.parse_args()
    if (arguments.hub_model_id is None) == (arguments.stage is None):
        parser.error("expected one of --hub_model_id and --stage")
    if arguments.stage is not None and arguments.repo_type != "model":
        parser.error("--stage: expected a model, got --repo_type dataset, which is published as it is")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("publish.py"), tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder
        if arguments.repo_type == "model":
            folder = Path(temporary) / "staged"
            try:
                check_model_folder(stage_model_folder(arguments.folder, folder))
            except ValueError as error:
                raise ValueError(str(error).replace(str(folder), str(arguments.folder))) from None
        else:
            check_dataset_folder(folder)
        if arguments.stage is not None:
            stage_model_folder(arguments.folder, arguments.stage)
            print(f"Staged: {arguments.stage}")
            return
        with clear_hub_errors(arguments.hub_model_id, HfApi().endpoint):
            upload(folder, arguments)


def upload(folder: Path, arguments: argparse.Namespace) -> None:
    """Makes the repository the same as a folder that is ready, in one commit, or lists what would be done."""
    api, repository, repo_type = HfApi(), arguments.hub_model_id, arguments.repo_type
    # What would change in a public repository can be seen without a token
    if not arguments.dry_run:
        check_owner(api, repository)
    try:
        there = {name for name in api.list_repo_files(repository, repo_type=repo_type) if name != ".gitattributes"}
        state = ""
    except RepositoryNotFoundError:
        there, state = set(), " (new)"
    here = set(file_names(folder))
    for kind, names in (("add", here - there), ("replace", here & there), ("delete", there - here)):
        for name in sorted(names):
            print(f"{kind:<7}  {shown(name)}")
    print(f"{repository}{state}: {len(here)} files, {len(there - here)} to delete")
    if arguments.dry_run:
        print("Nothing was changed (--dry_run).")
        return
    api.create_repo(repository, repo_type=repo_type, private=arguments.private, exist_ok=True)
    api.upload_folder(
        repo_id=repository,
        repo_type=repo_type,
        folder_path=folder,
        commit_message="Publish",
        delete_patterns="*",
        ignore_patterns=".lock",
    )
    print(f"Published: {api.endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{repository}")


def file_names(folder: str | Path) -> list[str]:
    """
    The files of a folder by their names in the repository, in order. ValueError where there is no such folder, it is
    empty, or holds links.
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
    return [path.relative_to(folder).as_posix() for path in paths]


def stage_model_folder(folder: str | Path, target: str | Path) -> Path:
    """
    Copies a model's folder, as it lies in `model_cards` or as training saved it, to a new folder `target`, and adds
    the code and the auto maps that its Hub repository has beside them. ValueError where there is no such folder, it
    holds links, it lacks a configuration or has one that is not JSON, or `target` exists.
    """
    from modeling_hsst.hub_hsst import add_code  # here, for help and refusals need not wait for torch

    names = file_names(folder)
    raise_problems(folder, [f"{name} is missing" for name in MODEL_FILES if name not in names])
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
    Checks that a staged folder is a complete model repository: a card with metadata and sections, weights in
    safetensors only, all finite, no code but the package's, nothing that training leaves behind; and that every class
    loads from it in a clean process, with the package and without it, to the same numbers. ValueError where it is not;
    the message names every file that is wrong, and how.
    """
    from modeling_hsst.hub_hsst import code_files

    folder = Path(folder)
    names = file_names(folder)
    code = {path.name for path in code_files()}
    problems = [f"{name} is no code of the model" for name in names if name.endswith(".py") and name not in code]
    problems += unwanted_files([name for name in names if not name.endswith(".py")], SUFFIXES["model"])
    problems += private_problems(folder, names)
    weights = [name for name in names if name.endswith(".safetensors")]
    if not weights:
        problems.append("weights (*.safetensors) are missing")
    for name in weights:
        problems += weight_problems(folder / name)
    card_problems, metadata = read_card(folder / CARD_NAME, "model")
    problems += card_problems or source_problems(CARD_NAME, metadata["training_sources"])
    # What is wrong already would be an error of the loading, too, in less clear words
    raise_problems(folder, problems or loading_problems(folder))


def check_dataset_folder(folder: str | Path) -> None:
    """
    Checks that a folder is a corpus that may be published: a card with metadata and sections, as many tiles in its
    files as the card says, and simulated products only, since EnMAP's data may not be re-published. ValueError where
    it is not; the message names every file that is wrong, and how.
    """
    import pyarrow.parquet

    folder = Path(folder)
    names = file_names(folder)
    problems = [] if CARD_NAME in names else [f"{CARD_NAME} is missing (is the corpus finished?)"]
    problems += unwanted_files(names, SUFFIXES["dataset"])
    problems += private_problems(folder, names)
    products: set[str | None] = set()
    num_tiles = 0
    for name in (name for name in names if name.endswith(".parquet")):
        try:
            with pyarrow.parquet.ParquetFile(folder / name) as shard:
                num_tiles += shard.metadata.num_rows
                products |= set(shard.read(columns=["product"]).column("product").to_pylist())
        except (pyarrow.ArrowException, KeyError, OSError) as error:
            problems.append(f"{name} is no file of tiles ({error})")
    if not num_tiles:
        problems.append("files with tiles (*.parquet) are missing")
    foreign = sorted(str(product) for product in products if not SIMULATED_PRODUCT.match(product or ""))
    if foreign:
        problems.append(f"only simulated products may be published, it holds tiles of {some_of(foreign)}")
    if CARD_NAME in names:
        card_problems, metadata = read_card(folder / CARD_NAME, "dataset")
        problems += card_problems
        if not card_problems and (stated := stated_tiles(metadata.get("dataset_info"))) != num_tiles:
            problems.append(f"{CARD_NAME} states {stated} tiles, the files hold {num_tiles}")
    raise_problems(folder, problems)


def stated_tiles(dataset_info: Any) -> int:
    """How many tiles a card states, in all splits of all configurations; 0 where it does not."""
    stated = 0
    for configuration in dataset_info if isinstance(dataset_info, list) else [dataset_info]:
        splits = configuration.get("splits") if isinstance(configuration, dict) else None
        for split in splits if isinstance(splits, list) else []:
            number = split.get("num_examples") if isinstance(split, dict) else None
            stated += number if isinstance(number, int) else 0
    return stated


def raise_problems(folder: str | Path, problems: Sequence[str]) -> None:
    if problems:
        raise ValueError(f"{folder}: not ready to be published: {'; '.join(problems)}")


def some_of(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def unwanted_files(names: Sequence[str], suffixes: tuple[str, ...]) -> list[str]:
    problems = []
    for name in names:
        if TRAINING_STATE.search(name):
            problems.append(f"{name} is a state of training")
        elif name.endswith(PICKLES):
            problems.append(f"{name} is a pickle or array file: weights are published as safetensors only")
        elif not name.endswith(suffixes) or any(part.startswith(".") for part in name.split("/")):
            problems.append(f"{name} has no place in the repository")
    return problems


def private_problems(folder: Path, names: Sequence[str]) -> list[str]:
    """Tokens, which are not repeated, and paths of this machine in names, texts and the notes of weights."""
    problems = []
    for name in names:
        text = name
        if name.endswith(".safetensors"):
            with suppress(SafetensorError, OSError), safe_open(folder / name, framework="pt") as weights:
                text += f"\n{weights.metadata()}"
        elif not name.endswith((".png", ".parquet")):
            text += "\n" + (folder / name).read_text(encoding="utf-8", errors="replace")
        if token := TOKEN.search(text):
            problems.append(f"{name} holds what looks like a token ({token[0][:5]}...)")
        if path := LOCAL_PATH.search(text):
            problems.append(f"{name} holds a path of this machine ({path[0]})")
    return problems


def weight_problems(path: Path) -> list[str]:
    import torch

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


def read_card(path: Path, repo_type: str) -> tuple[list[str], dict[str, Any]]:
    """What is wrong with a card, and its metadata."""
    kind = ModelCard if repo_type == "model" else DatasetCard
    try:
        card = kind.load(path)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        return [f"{path.name} has no readable metadata ({' '.join(str(error).split())})"], {}
    values = card.data.to_dict()
    missing = [name for name in METADATA[repo_type] if not values.get(name)]
    problems = [f"{path.name} states no `{name}` in its metadata" for name in missing]
    headings = "\n".join(line.lower() for line in card.text.splitlines() if line.startswith("#"))
    problems += [f"{path.name} has no section on {name}" for name in SECTIONS[repo_type] if name not in headings]
    return problems, values


def source_problems(card: str, sources: Any) -> list[str]:
    if isinstance(sources, str):
        sources = [sources]
    if not isinstance(sources, list) or not all(isinstance(source, str) for source in sources):
        return [f"{card}: `training_sources` must be a list of names, got {sources}"]
    try:
        check_sources(sources, card)
    except ValueError as error:
        return [str(error)]
    return []


def training_sources() -> dict[str, Mapping[str, Any]]:
    """Where training pixels come from: title, terms, `publishable`, reason and, where asked for, attribution."""
    return yaml.safe_load(SOURCES.read_text(encoding="utf-8"))


def check_sources(names: Sequence[str], where: str) -> None:
    """Checks that weights trained on these keys of `training_sources` may be published; ValueError, which begins with
    `where`, where there is none, or one is unknown or may not be used."""
    sources = training_sources()
    if not names:
        raise ValueError(f"{where}: expected the sources of the training pixels, got none")
    for name in names:
        if name not in sources:
            raise ValueError(f"{where}: expected sources among {', '.join(sources)}, got {name}")
        if not sources[name]["publishable"]:
            allowed = ", ".join(name for name, source in sources.items() if source["publishable"])
            terms, reason = sources[name]["terms"], sources[name]["reason"]
            raise ValueError(f"{where}: expected sources among {allowed}, got {name}: {terms}. {reason}")


def loading_problems(folder: Path) -> list[str]:
    architectures = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    problems, tokens = [], {}
    try:
        reports = run_clean(_LOAD, folder)
    except ValueError as error:
        return [f"does not load ({error})"]
    for way, report in reports.items():
        if "error" in report:
            problems.append(f"does not load {way} ({report['error']})")
            continue
        tokens[way] = report["tokens"]
        for name in architectures:
            if name not in report["classes"]:
                problems.append(f"config.json names the architecture {name}, which no Auto class loads")
            elif report["classes"][name]:
                problems.append(f"{name} does not load {way} as it was saved: {some_of(report['classes'][name])}")
    if len(tokens) == 2 and len(set(tokens.values())) != 1:
        problems.append(f"gives other numbers with the package than without it: {tokens}")
    return problems


def run_clean(program: str, folder: Path) -> Any:
    """What an isolated program prints as JSON, in an empty folder, with an empty cache and without the Hub."""
    model = importlib.util.find_spec("modeling_hsst")
    assert model is not None
    own = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "PYTHON")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    with tempfile.TemporaryDirectory() as empty:
        process = subprocess.run(
            [sys.executable, "-I", "-c", program, str(folder.resolve()), str(Path(str(model.origin)).parents[1])],
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
    Checks that the token's user may own a repository of this name. ValueError where the name is not OWNER/NAME, there
    is no token, or the owner is somebody else.
    """
    if hub_model_id.count("/") != 1 or not all(hub_model_id.split("/")):
        raise ValueError(f"--hub_model_id: expected OWNER/NAME, got {hub_model_id!r}")
    user = api.whoami()
    owners = [user["name"], *(organization["name"] for organization in user.get("orgs", []))]
    owner = hub_model_id.split("/")[0]
    if owner not in owners:
        raise ValueError(
            f"{hub_model_id}: belongs to somebody else: expected a repository of {' or '.join(owners)}, got {owner}"
        )


if __name__ == "__main__":
    main()

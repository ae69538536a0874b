"""Folders are published whole, or not at all and with a reason; an interrupted upload is repeated."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from conftest import SCRIPTS, assert_one_clear_line
from loopback_hub import LoopbackHub, use_hub
from safetensors.torch import load_file, save_file
from small_products import NAME, small_cube, small_quality, write_small_product
from test_hub_roundtrip import ROOT, tiny_model, tiny_processor

import hsst.publish
from datasets_loading.corpus import CutSettings, prepare_corpus
from hsst.publish import check_model_folder, file_names
from modeling_hsst.hub_hsst import export_for_hub

MODEL_ID, DATASET_ID = "hsg-aiml/hsst-tiny", "hsg-aiml/simulated-tiny"
SIMULATED = NAME.replace("DT0000006195", "DT9000000001")
CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-feature-extraction
tags: [hyperspectral]
training_sources: [simulated]
---
# tiny
## Load
## Intended use
## Training data
## Limits
## Citation
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = export_for_hub(tiny_model(), tiny_processor(), tmp_path_factory.mktemp("model") / "hsst-tiny")
    (folder / "README.md").write_text(CARD)
    (folder / "reconstruction.png").write_bytes(b"\x89PNG of this test")
    return folder


@pytest.fixture
def model_folder(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / "hsst-tiny"))


def corpus_of(parent, name):
    """A corpus of two products, 32 tiles in two files."""
    for number in range(2):
        quality = {**small_quality(), "cloud": np.zeros((150, 170), dtype=np.uint8)}
        product = name.replace("_003_", f"_{number:03d}_")
        write_small_product(parent / "products", product, cube=small_cube(number), quality=quality)
    settings = CutSettings(tile_size=32, max_nodata=0.5, max_cloud=0.1)
    prepare_corpus(parent / "products", parent / "corpus", settings, progress=False)
    return parent / "corpus"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return corpus_of(tmp_path_factory.mktemp("simulated"), SIMULATED)


@pytest.fixture
def corpus(prepared, tmp_path):
    return Path(shutil.copytree(prepared, tmp_path / "corpus"))


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def publish(hub, monkeypatch, tmp_path, run_script):
    """Runs publish.py against the loopback Hub; loading in clean processes, a matter of seconds, has its own test."""
    monkeypatch.setattr(hsst.publish, "loading_problems", lambda folder: [])
    use_hub(hub, monkeypatch, tmp_path)

    def run(folder, repository=MODEL_ID, *arguments):
        return run_script("publish.py", folder, "--hub_model_id", repository, *arguments)

    return run


def contents(folder):
    return {name: (folder / name).read_bytes() for name in file_names(folder)}


def kinds(stdout):
    """What is listed for each file."""
    return {line.split()[1]: line.split()[0] for line in stdout.splitlines() if line[:7].strip() in KINDS}


KINDS = ("add", "replace", "delete")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "all_results.json",
            '{"token": "hf_abcdefghijklmnopqrstuvwxyz"}',
            ["holds what looks like a token (hf_ab...)"],
        ),
        ("all_results.json", '{"data_dir": "/home/somebody/tiles"}', ["path of this machine (/home/somebody/tiles)"]),
        ("trainer_state.json", r'{"folder": "C:\\Users\\somebody"}', ["path of this machine (C:"]),
        ("README.md", CARD + "Trained from `/mnt/disk/corpus`.", ["README.md holds a path of this machine"]),
        ("notes.txt", "export HF_TOKEN=hf_abcdefghijklmnopqrstuvwxyz", ["notes.txt holds what looks like a token"]),
    ],
)
def test_tokens_and_local_paths_stay_here(publish, hub, model_folder, name, text, words):
    (model_folder / name).write_text(text)
    result = publish(model_folder)
    assert_one_clear_line(result, "hsst-tiny", *words)
    assert "abcdefghij" not in result.stderr and not hub.repositories


def test_notes_of_weights_are_read_too(publish, model_folder):
    path = model_folder / "model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt", "from": "/home/somebody/run"})
    assert_one_clear_line(publish(model_folder), "model.safetensors holds a path of this machine")


def test_a_model_is_published_and_updated(publish, hub, model_folder):
    result = publish(model_folder, MODEL_ID, "--dry_run")
    assert result.returncode == 0, result.stderr
    assert set(kinds(result.stdout).values()) == {"add"} and f"{MODEL_ID} (new): 1" in result.stdout
    assert "Nothing was changed" in result.stdout and not hub.repositories

    result = publish(model_folder)
    assert result.returncode == 0, result.stderr
    repository = hub.repositories[MODEL_ID]
    assert repository.files == contents(model_folder) and repository.commits == 1

    result = publish(model_folder)
    assert set(kinds(result.stdout).values()) == {"replace"}
    assert repository.files == contents(model_folder) and repository.commits == 1

    (model_folder / "README.md").write_text(CARD + "More.\n")
    (model_folder / "reconstruction.png").unlink()
    (model_folder / "all_results.json").write_text("{}")
    repository.files[".gitattributes"] = b"the Hub's own"
    result = publish(model_folder, MODEL_ID, "--dry_run")
    changed = {name: kind for name, kind in kinds(result.stdout).items() if kind != "replace"}
    assert changed == {"reconstruction.png": "delete", "all_results.json": "add"}
    assert repository.commits == 1
    assert publish(model_folder).returncode == 0
    assert repository.files == contents(model_folder) | {".gitattributes": b"the Hub's own"}
    assert repository.commits == 2


@pytest.mark.slow
def test_a_complete_model_is_ready(exported):
    check_model_folder(exported)


def test_models_are_loaded_with_and_without_the_package(model_folder):
    """A weight is missing, and nothing else is wrong."""
    folder = model_folder
    weights = load_file(folder / "model.safetensors")
    del weights["decoder.bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError) as error:
        check_model_folder(folder)
    ways = ("with the package", "without the package")
    problems = [f"HSSTForMaskedImageModeling does not load {way} as it was saved: decoder.bias" for way in ways]
    assert str(error.value) == f"{folder}: not ready to be published: {'; '.join(problems)}"


def spoil_weights(folder, key, value):
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {key: value}, folder / "model.safetensors", metadata={"format": "pt"})


def edit_card(folder, text, instead):
    card = (folder / "README.md").read_text()
    assert text in card
    (folder / "README.md").write_text(card.replace(text, instead))


def append(folder, name, text):
    with (folder / name).open("a") as file:
        file.write(text)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "optimizer.bin").write_bytes(b""), ("optimizer.bin is a state of training",)),
        (lambda folder: (folder / "pytorch_model.bin").write_bytes(b""), ("pytorch_model.bin", "safetensors only")),
        (lambda folder: (folder / "secret.env").write_bytes(b""), ("secret.env has no place",)),
        (lambda folder: (folder / ".token.json").write_bytes(b""), (".token.json has no place",)),
        (lambda folder: (folder / "model.safetensors").unlink(), ("weights (*.safetensors) are missing",)),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), ("model.safetensors is no safetensors",)),
        (
            lambda folder: spoil_weights(folder, "decoder.bias", torch.tensor([float("nan")])),
            ("decoder.bias", "finite"),
        ),
        (lambda folder: spoil_weights(folder, "x.exp_avg", torch.zeros(1)), ("x.exp_avg", "state of training")),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), ("preprocessor_config.json is missing",)),
        (lambda folder: (folder / "config.json").write_text("[]"), ("config.json: expected a JSON object, got list",)),
        (lambda folder: (folder / "config.json").write_text("{"), ("config.json: expected JSON",)),
        (lambda folder: append(folder, "own.py", "#"), ("own.py is no code of the model",)),
        (lambda folder: (folder / "README.md").unlink(), ("README.md is missing",)),
        (lambda folder: (folder / "README.md").write_text("---\n: :\n---\n"), ("README.md",)),
        (
            lambda folder: (folder / "README.md").write_text(CARD.replace("license: apache-2.0\n", "")),
            ("README.md states no `license`",),
        ),
        (
            lambda folder: (folder / "README.md").write_text(CARD.replace("## Limits\n", "")),
            ("README.md has no section on limits",),
        ),
        (
            lambda folder: (folder / "README.md").write_text(CARD.replace("[simulated]", "[simulated, enmap]")),
            ("README.md: expected sources among simulated, neon, got enmap",),
        ),
        (
            lambda folder: (folder / "README.md").write_text(CARD.replace("[simulated]", "{simulated: 1}")),
            ("README.md: `training_sources` must be a list of names",),
        ),
        (
            lambda folder: (folder / "README.md").write_text(CARD.replace("training_sources: [simulated]\n", "")),
            ("README.md states no `training_sources`",),
        ),
        (lambda folder: (folder / "link.json").symlink_to("config.json"), ("link.json", "link")),
        (shutil.rmtree, ("expected a folder", "nothing")),
    ],
)
def test_what_is_not_ready_is_not_published(publish, hub, model_folder, spoil, words):
    spoil(model_folder)
    assert_one_clear_line(publish(model_folder), model_folder, *words)
    assert not hub.requests


def test_a_simulated_corpus_is_published(publish, hub, corpus):
    (corpus / ".lock").touch()
    result = publish(corpus, DATASET_ID, "--repo_type", "dataset")
    assert result.returncode == 0, result.stderr
    assert hub.repositories[DATASET_ID].files == contents(corpus)
    assert "data" in result.stdout and f"/datasets/{DATASET_ID}" in result.stdout


def test_real_products_are_not_published(publish, hub, tmp_path):
    folder = corpus_of(tmp_path, NAME)
    result = publish(folder, DATASET_ID, "--repo_type", "dataset")
    assert_one_clear_line(result, folder, "only simulated products", "DT0000006195")
    assert not hub.requests


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "README.md").unlink(), ("README.md is missing", "finished")),
        (lambda folder: sorted(folder.glob("data/*"))[0].unlink(), ("states 32 tiles, the files hold 16",)),
        (lambda folder: sorted(folder.glob("data/*"))[0].write_bytes(b"no"), ("is no file of tiles",)),
        (lambda folder: shutil.rmtree(folder / "data"), ("files with tiles", "missing")),
        (lambda folder: (folder / "data" / ".x.partial").touch(), (".x.partial has no place",)),
        (lambda folder: edit_card(folder, "num_examples: 32", "num_examples:"), ("states 0 tiles",)),
        (lambda folder: edit_card(folder, "splits:", "splits:\n  other:"), ("states 0 tiles",)),
    ],
)
def test_an_incomplete_corpus_is_not_published(publish, hub, corpus, spoil, words):
    spoil(corpus)
    assert_one_clear_line(publish(corpus, DATASET_ID, "--repo_type", "dataset"), corpus, *words)
    assert not hub.requests


def test_an_interrupted_upload_is_repeated(publish, hub, corpus, tmp_path):
    """Killed when its second shard arrives; the same command sends that one, and not the first again."""
    processes = []

    def kill(stored):
        if stored == 1:
            os.kill(processes[0].pid, signal.SIGKILL)
            processes[0].wait()
            raise ConnectionError("the sender is gone")

    hub.before_upload = kill
    hub.server.handle_error = lambda request, address: None
    arguments = [str(corpus), "--hub_model_id", DATASET_ID, "--repo_type", "dataset"]
    environment = hub.client_environment(tmp_path / "cache") | {"PYTHONPATH": str(ROOT)}
    processes.append(
        subprocess.Popen(
            [sys.executable, str(SCRIPTS / "publish.py"), *arguments],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    )
    assert processes[0].wait(timeout=120) == -signal.SIGKILL
    assert len(hub.uploads) == 1 and not hub.repositories[DATASET_ID].files  # nothing is half-published

    hub.before_upload = None
    hub.requests.clear()
    result = publish(corpus, DATASET_ID, "--repo_type", "dataset")
    assert result.returncode == 0, result.stderr
    assert hub.repositories[DATASET_ID].files == contents(corpus)
    assert sum(request.startswith('"PUT ') for request in hub.requests) == 1


def test_without_a_token(publish, hub, model_folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert_one_clear_line(publish(model_folder), MODEL_ID, "token", "hf auth login")
    assert not hub.repositories
    assert publish(model_folder, MODEL_ID, "--dry_run").returncode == 0


def test_with_a_token_that_the_hub_does_not_know(publish, model_folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert_one_clear_line(publish(model_folder), MODEL_ID, "does not accept the token")


def test_a_repository_of_somebody_else(publish, hub, model_folder):
    assert_one_clear_line(publish(model_folder, "others/hsst"), "others/hsst", "hsg-aiml", "somebody else")
    assert not hub.repositories
    hub.refuse_writing = True
    assert_one_clear_line(publish(model_folder), MODEL_ID, "may not write", "403")


def test_a_network_that_is_away(publish, model_folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its attempts
    for arguments in ((), ("--dry_run",)):
        assert_one_clear_line(publish(model_folder, MODEL_ID, *arguments), MODEL_ID, "cannot be reached")


@pytest.mark.parametrize("name", ["hsst", "a/b/c", "hsg-aiml/"])
def test_a_name_without_owner(publish, model_folder, name):
    assert_one_clear_line(publish(model_folder, name), "--hub_model_id", "OWNER/NAME", name)

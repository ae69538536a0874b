"""Published checkpoints become folders that the Auto classes load, and can do nothing while they are read."""

import os
import pickle
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import assert_one_clear_line
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForSemanticSegmentation,
)

from hsst.convert_maskedsst_checkpoint import read_published_checkpoint

PARITY = Path(__file__).parent / "fixtures" / "parity"


@pytest.fixture
def convert(run_script):
    def run(checkpoint, output):
        return run_script("convert_maskedsst_checkpoint.py", "--checkpoint", checkpoint, "--output", output)

    return run


def test_pretraining_checkpoint(tmp_path, convert):
    result = convert(PARITY / "pretrain_checkpoint_as_published.pth", tmp_path / "model")
    assert result.returncode == 0, result.stderr
    expected = load_file(PARITY / "pretrain_checkpoint_as_published.safetensors")

    model, info = AutoModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        tokens = model(expected["input"]).last_hidden_state
    torch.testing.assert_close(tokens, expected["tokens"], atol=1e-5, rtol=0)

    masked_model, info = AutoModelForMaskedImageModeling.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "mismatched_keys", "unexpected_keys"))
    assert (masked_model.config.mask_type, masked_model.config.mask_ratio) == ("tube", 0.7)


def test_finetuning_checkpoint(tmp_path, convert):
    result = convert(PARITY / "finetune_checkpoint_as_published.pth", tmp_path / "model")
    assert result.returncode == 0, result.stderr
    expected = load_file(PARITY / "finetune_checkpoint_as_published.safetensors")
    model, info = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "mismatched_keys", "unexpected_keys"))
    with torch.no_grad():
        logits = model(expected["input"]).logits
    torch.testing.assert_close(logits, expected["logits"], atol=1e-5, rtol=0)
    assert model.config.num_labels == 5


def test_finetuning_checkpoint_of_a_center_pixel_model(tmp_path, convert):
    tensors = load_file(PARITY / "center_pixel_head.safetensors")
    weights = {name.removeprefix("weights."): tensors[name] for name in tensors if name.startswith("weights.")}
    config = {"image_size": 7, "patch_size": 1, "band_patch_size": 10, "n_bands": 40, "transformer_n_heads": 2}
    torch.save({"model_state_dict": weights, "config": config}, tmp_path / "center.pth")
    result = convert(tmp_path / "center.pth", tmp_path / "model")
    assert result.returncode == 0, result.stderr
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "model", dtype=torch.float64)
    with torch.no_grad():
        logits = model(tensors["input"]).logits
    torch.testing.assert_close(logits, tensors["logits"], atol=1e-9, rtol=0)


class Attack:
    """Calls something when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.system, eval, exec, subprocess.check_output])
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_file_runs(tmp_path, function, zipped, convert):
    trace = tmp_path / "trace"
    harm = f"open({str(trace)!r}, 'w').close()"
    argument = f"touch {trace}" if function is os.system else harm
    arguments = (["touch", str(trace)],) if function is subprocess.check_output else (argument,)
    content = {"model_state_dict": {}, "config": Attack(function, *arguments)}
    path = tmp_path / "attack.pth"
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))

    # The file does run when it is read carelessly, or this test would show nothing
    torch.load(path, weights_only=False) if zipped else pickle.loads(path.read_bytes())
    assert trace.exists()
    trace.unlink()

    result = convert(path, tmp_path / "model")
    assert not trace.exists()
    assert_one_clear_line(
        result, path, "published", *(["blocked", "GLOBAL"] if function is os.system and zipped else [])
    )
    assert "weights_only" not in result.stderr  # no advice to load it all the same
    assert not (tmp_path / "model").exists()


def test_unknown_classes_become_inert_records():
    weights, settings = read_published_checkpoint(PARITY / "pretrain_checkpoint_as_published.pth")
    assert type(settings) is dict and settings["transformer_dim"] == 24
    assert all(isinstance(tensor, torch.Tensor) for tensor in weights.values())


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint", b"PK\x03\x04 neither", "truncated", {"weights": 1}, {"model_state_dict": {}}]
)
def test_other_files_give_one_clear_line(tmp_path, content, convert):
    path = tmp_path / "file.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "truncated":
        whole = (PARITY / "pretrain_checkpoint_as_published.pth").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    else:
        torch.save(content, path)
    result = convert(path, tmp_path / "model")
    assert_one_clear_line(result, path, "expected")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("kind", ["packed", "expanded", "sparse"])
def test_a_small_file_takes_little_memory(tmp_path, kind, convert):
    weights, settings = read_published_checkpoint(PARITY / "pretrain_checkpoint_as_published.pth")
    huge = torch.zeros(1).expand(2**30) if kind == "expanded" else torch.zeros(2, 2).to_sparse()
    path = tmp_path / "small.pth"
    torch.save({"model_state_dict": weights if kind == "packed" else {**weights, "a": huge}, "config": settings}, path)
    if kind == "packed":
        with zipfile.ZipFile(path) as plain:
            parts = {name: plain.read(name) for name in plain.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, content in {**parts, "archive/data/0": bytes(2**22)}.items():
                packed.writestr(name, content)
    words = ["bytes are packed into"] if kind == "packed" else ["`a` is no plain tensor"]
    assert_one_clear_line(convert(path, tmp_path / "model"), path, *words)


def test_missing_file(tmp_path, convert):
    result = convert(tmp_path / "none.pth", tmp_path / "model")
    assert_one_clear_line(result, "none.pth")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (None, ["`config` holds NoneType"]),
        ({"patch_size": 0}, ["`patch_size`", "1 or more, got 0"]),
        ({"image_size": "8"}, ["`image_size`", "got '8'"]),
        ({"transformer_n_heads": 2.5}, ["`transformer_n_heads`", "got 2.5"]),
        ({"n_bands": None}, ["`n_bands`", "got None"]),
        ({"transformer_n_heads": 10**6}, ["head_dim"]),
        ({"image_size": 10**9}, ["position embeddings", "got 257"]),
        ({"band_patch_size": 7}, ["do not fit their settings"]),
        ({"mim_masking_ratio": "most"}, ["mask_ratio"]),
        ({"mim_mask_patch_size": None}, ["mim_mask_patch_size"]),
    ],
)
def test_odd_settings_give_one_clear_line(tmp_path, change, words, convert):
    weights, settings = read_published_checkpoint(PARITY / "pretrain_checkpoint_as_published.pth")
    path = tmp_path / "odd.pth"
    torch.save({"model_state_dict": weights, "config": None if change is None else settings | change}, path)
    assert_one_clear_line(convert(path, tmp_path / "model"), path, *words)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("damage", ["no weights", "unknown weight", "a lost block", "a flat table", "a lost norm"])
def test_odd_weights_give_one_clear_line(tmp_path, damage, convert):
    weights, settings = read_published_checkpoint(PARITY / "pretrain_checkpoint_as_published.pth")
    if damage == "no weights":
        weights = {}
    elif damage == "unknown weight":
        weights["encoder.spatial_spectral_transformer.1.layers.0.9.weight"] = torch.zeros(2)
    elif damage == "a lost block":
        del weights["encoder.to_patch_embedding.blockwise_embed.1.weight"]
    elif damage == "a flat table":
        weights["encoder.pos_embedding"] = torch.zeros(3)
    else:
        del weights["encoder.spatial_spectral_transformer.1.layers.0.0.norm.weight"]
    torch.save({"model_state_dict": weights, "config": settings}, tmp_path / "odd.pth")
    assert_one_clear_line(convert(tmp_path / "odd.pth", tmp_path / "model"), tmp_path / "odd.pth", "checkpoint")


def test_masks_are_read_from_pretraining_files_only(tmp_path, convert):
    weights, settings = read_published_checkpoint(PARITY / "finetune_checkpoint_as_published.pth")
    settings |= {"mim_masking_ratio": 0.9, "mim_mask_patch_size": 99}
    torch.save({"model_state_dict": weights, "config": settings}, tmp_path / "finetuned.pth")
    result = convert(tmp_path / "finetuned.pth", tmp_path / "model")
    assert result.returncode == 0, result.stderr
    config = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "model").config
    assert (config.mask_ratio, config.mask_patch_size) == (0.7, 4)

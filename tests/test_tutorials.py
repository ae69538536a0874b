"""The code of docs/manual/tutorials runs, as it stands there (slow) and at a small size."""

import functools
import re
import shlex
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import rasterio
import torch

import datasets_loading.simulation.scene
from datasets_loading.simulation.spectra import simulate_spectral_library
from modeling_hsst import HSSTBackbone, HSSTConfig, HSSTForMaskedImageModeling, HSSTForSemanticSegmentation

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT / "docs" / "manual" / "tutorials"
# A forest is not small: it chooses among six settings, by growing five hundred trees for each
SMALL = {"steps = 200": "steps = 2", "steps = 100": "steps = 2", '"random-forest"': '"knn"'}


# As small as they can be: windows of a quarter of the side, patches of 32 pixels
SIDES = {"segmentation_heads.md": 32, "fine_tune_with_trainer.md": 32}
# Looks at maps of eight layers
DEEP = ("test_segmentation_heads",)


def code_of(name, small):
    """The Python blocks of a tutorial, and its commands."""
    text = (TUTORIALS / name).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.S | re.M)
    assert {language for language, _ in blocks} <= {"python", "bash", "text"}  # text: not run
    python = [block for language, block in blocks if language == "python"]
    side = SIDES.get(name, 24)
    for there, instead in {"size = 128": f"size = {side}", **SMALL}.items() if small else ():
        python = [block.replace(there, instead) for block in python]
    return python, [block for language, block in blocks if language == "bash"]


def run(name, small):
    """Runs the blocks one after another, as a reader would, and returns what they leave behind."""
    python, _ = code_of(name, small)
    # Twice where that is quick: what the first time left is in nobody's way
    for _ in range(2 if small else 1):
        names = {"__name__": "tutorial"}
        for number, block in enumerate(python):
            exec(compile(block, f"{name}, block {number + 1}", "exec"), names)
    return names


def write_shallow(folder):
    """The published models with one layer of each kind of their four, which takes a fourth of the time."""
    for name, model_class in (
        ("hsst-enmap", HSSTForMaskedImageModeling),
        ("hsst-enmap-landcover", HSSTForSemanticSegmentation),
    ):
        config = HSSTConfig.from_pretrained(ROOT / "model_cards" / name).to_dict()
        settings = {key: value for key, value in config.items() if not key.startswith(("out_", "stage_"))}
        config = HSSTConfig(**{**settings, "num_spatial_layers": 1, "num_spectral_layers": 1})
        model_class.from_pretrained(ROOT / "model_cards" / name, config=config).save_pretrained(folder / name)
        shutil.copy(ROOT / "model_cards" / name / "preprocessor_config.json", folder / name)


@pytest.fixture(params=["small", pytest.param("whole", marks=pytest.mark.slow)])
def small(request, tmp_path_factory, monkeypatch):
    """Whether the tutorial runs at its small size; the working directory is an empty one with the model cards."""
    folder = tmp_path_factory.mktemp("tutorials")
    if request.param == "small" and request.function.__name__ not in DEEP:
        write_shallow(folder / "model_cards")
    else:
        (folder / "model_cards").symlink_to(ROOT / "model_cards")
    monkeypatch.chdir(folder)
    matplotlib.use("Agg")
    if request.param == "small":
        few = functools.partial(simulate_spectral_library, spectra_per_material=4)
        monkeypatch.setattr(datasets_loading.simulation.scene, "simulate_spectral_library", few)
    return request.param == "small"


def test_embed_a_scene(small, capsys):
    names = run("embed_a_scene.md", small)
    size = 24 if small else 128
    assert names["vectors"].shape == (96, size, size) and np.isfinite(names["vectors"]).all()
    assert len(np.unique(names["groups"])) == 8
    assert Path("outputs/tutorials/embedding.png").stat().st_size > 10_000
    found = names["found"]
    assert len(set(found.tolist())) == 100 and names["query"] not in found
    assert names["accuracy"] > 0.4
    assert capsys.readouterr().out.count("%") == (6 if small else 3)


def test_fine_tune_and_map_a_scene(small, capfd, run_script):
    names = run("fine_tune.md", small)
    assert names["data"].class_counts("train").sum() == 100
    assert names["outcome"].confusion.sum() == names["data"].class_counts("test").sum() > 100
    assert "fine-tuned: overall accuracy" in capfd.readouterr().out

    names = run("map_a_scene.md", small)
    valid = names["classes"] != 255
    assert valid.any() and not valid.all()  # clouds, and what is off the swath
    with rasterio.open("outputs/tutorials/map_from_python.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), names["classes"])
    command = code_of("map_a_scene.md", small)[1][0].replace("\\\n", " ")
    words = shlex.split(command)
    assert words[:2] == ["python", "scripts/predict_scene.py"]
    arguments = [
        file for word in words[2:] for file in (sorted(map(str, Path().glob(word))) if "*" in word else [word])
    ]
    assert str(names["product"]) in arguments
    for _ in range(2):
        result = run_script("predict_scene.py", *arguments)
        assert result.returncode == 0, result.stderr
    assert "finished before" in result.stdout
    assert Path("outputs/tutorials/map.html").is_file() and Path("outputs/tutorials/map_confidence.tif").is_file()


def test_fine_tune_with_trainer(small, capfd):
    names = run("fine_tune_with_trainer.md", small)
    assert names["trainer"].state.global_step == names["steps"]
    assert names["land_cover"]["classes"].shape == names["scene"].labels.shape
    assert "eval_macro_f1" in capfd.readouterr().out
    assert Path("outputs/tutorials/with_trainer/preprocessor_config.json").is_file()


def test_lora_compile_onnx(small, run_script, monkeypatch):
    """Each block, and the command before the one that reads what it wrote; twice at its own size."""
    for package in ("peft", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    if small:
        monkeypatch.setattr(torch, "compile", lambda model: model)  # compiling takes most of the time
    python, (command,) = code_of("lora_compile_onnx.md", small)
    names = {"__name__": "tutorial"}
    for block in python[:-1] * (1 if small else 2):
        exec(block, names)
    assert names["losses"][-1] < names["losses"][0] and names["agree"] > 0.98 and names["difference"] < 1e-5
    words = shlex.split(command)
    assert words[:2] == ["python", "scripts/export_onnx.py"]
    for _ in range(1 if small else 2):
        result = run_script("export_onnx.py", *words[2:])
        assert result.returncode == 0 and "standard deviations at most" in result.stdout, result.stderr
    exec(python[-1], names)
    with torch.inference_mode():
        expected = names["merged"](names["windows"]).logits.numpy()
    np.testing.assert_allclose(names["logits"], expected, atol=1e-4)


def test_segmentation_heads(small, capfd):
    names = run("segmentation_heads.md", small)
    assert names["classes"].shape == names["test"][1].shape == ((8, 32, 32) if not small else (8, 8, 8))
    assert names["agree"] == 1 and np.isfinite(names["loss"].item())
    plain = HSSTBackbone.from_pretrained("model_cards/hsst-enmap", out_indices=[8]).eval()
    window = names["image"][None, :, 8:16, 16:24]
    with torch.inference_mode():
        joined = names["backbone"](names["image"][None]).feature_maps[-1]
        # each window is seen by itself, and lies where it came from
        torch.testing.assert_close(joined[..., 8:16, 16:24], plain(window).feature_maps[0], atol=1e-3, rtol=0)
    assert small or names["accuracy"] > 0.5
    assert "of the pixels of the right half" in capfd.readouterr().out


def test_every_tutorial_is_run():
    tested = set(re.findall(r'(?:run|code_of)\("(\w+\.md)"', Path(__file__).read_text(encoding="utf-8")))
    assert tested == {path.name for path in TUTORIALS.glob("*.md")}

"""The whole way of a checkpoint: export, push to a Hub, load by its name with and without this package."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from loopback_hub import LoopbackHub

from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling, HSSTImageProcessor
from modeling_hsst.hub_hsst import export_for_hub

REPOSITORY = "hsg-aiml/hsst-enmap"
ROOT = Path(__file__).parent.parent
WAVELENGTHS = [float(wavelength) for wavelength in range(450, 850, 50)]

PUSH = """
import sys
from huggingface_hub import HfApi
api = HfApi()
api.create_repo(sys.argv[1], exist_ok=True)
api.upload_folder(repo_id=sys.argv[1], folder_path=sys.argv[2])
"""

# What a user of the package does; prints everything the test compares, a line for each name
LOAD = """
import json, os, sys
import numpy as np
import torch
from transformers import (
    AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification,
    AutoModelForMaskedImageModeling, AutoModelForSemanticSegmentation,
)
if type(AutoImageProcessor).__name__ == "DummyObject":  # transformers 5.17 exports it beside torchvision only
    from transformers.models.auto.image_processing_auto import AutoImageProcessor
*names, image_file, trust = sys.argv[1:]
options = {"trust_remote_code": True} if trust == "trust" else {}
for name in names:
    processor = AutoImageProcessor.from_pretrained(name, **options)
    inputs = processor(np.load(image_file), return_tensors="pt")
    config = AutoConfig.from_pretrained(name, **options)
    report = {"config": type(config).__name__, "processor": type(processor).__name__}
    for auto_class in (
        AutoModel, AutoModelForMaskedImageModeling, AutoModelForImageClassification,
        AutoModelForSemanticSegmentation, AutoBackbone,
    ):
        if auto_class is AutoBackbone and os.path.isdir(name):
            continue  # transformers 5.23 asks the Hub even for a folder: AutoBackbone takes names only
        model, loading = auto_class.from_pretrained(name, output_loading_info=True, **options)
        model.eval()
        with torch.no_grad():
            outputs = model(**inputs)
        report[auto_class.__name__] = {
            "class": type(model).__name__,
            "module": type(model).__module__,
            "missing": sorted(loading["missing_keys"]),
            "mismatched": sorted(map(str, loading["mismatched_keys"])),
            "shape": list((outputs.feature_maps[-1] if "feature_maps" in outputs else outputs[0]).shape),
        }
        if auto_class is AutoModel:
            report["tokens"] = outputs.last_hidden_state.double().sum().item()
    report["imported"] = sorted(module for module in sys.modules if module.split(".")[0] == "modeling_hsst")
    print(json.dumps(report))
"""

PUSH_OF_THE_LIBRARY = """
source, target = names[0], "hsg-aiml/hsst-copy"
model = AutoModelForMaskedImageModeling.from_pretrained(source)
model.push_to_hub(target)
AutoImageProcessor.from_pretrained(source).push_to_hub(target)
loaded = AutoModelForMaskedImageModeling.from_pretrained(target)
assert all(weight.equal(loaded.state_dict()[name]) for name, weight in model.state_dict().items())
assert list(AutoImageProcessor.from_pretrained(target).image_mean) == [0.2] * 8
"""

# The package may be installed in place: nothing but a finder before all others keeps it out
BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_hsst", "datasets_loading"):
            raise ModuleNotFoundError(f"{name} is kept out of this process")
sys.meta_path.insert(0, Blocker())
"""


def tiny_model() -> HSSTForMaskedImageModeling:
    torch.manual_seed(0)
    config = HSSTConfig(
        hidden_size=24,
        num_spatial_layers=1,
        num_spectral_layers=1,
        num_attention_heads=2,
        head_dim=8,
        intermediate_size=16,
        image_size=4,
        num_channels=8,
        band_patch_size=4,
        mask_patch_size=2,
        wavelengths=WAVELENGTHS,
    )
    return HSSTForMaskedImageModeling(config).eval()


def tiny_processor() -> HSSTImageProcessor:
    return HSSTImageProcessor(wavelengths=WAVELENGTHS, image_mean=[0.2] * 8, image_std=[0.1] * 8)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Stored numbers (bands, height, width)."""
    return np.random.default_rng(0).integers(0, 5000, (8, 4, 4)).astype(np.int16)


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def pushed(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder whose copy the Hub now holds."""
    folder = export_for_hub(tiny_model(), tiny_processor(), tmp_path_factory.mktemp("export") / "hsst-enmap")
    run_client(hub, tmp_path_factory.mktemp("pusher"), PUSH, REPOSITORY, str(folder))
    return folder


def run_client(hub: LoopbackHub, folder: Path, program: str, *arguments: str) -> str:
    """What a program prints that runs in an empty folder, sees the loopback Hub only and has an empty cache."""
    process = subprocess.run(
        [sys.executable, "-I", "-c", program, *arguments],
        cwd=folder,
        env=hub.client_environment(folder / "cache"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr + "\n".join(hub.requests[-20:])
    return process.stdout


def check_report(report: dict, image: np.ndarray) -> None:
    assert report["config"] == "HSSTConfig"
    assert report["processor"] == "HSSTImageProcessor"
    shapes = {
        "AutoModel": ("HSSTModel", [1, 32, 24]),
        "AutoModelForMaskedImageModeling": ("HSSTForMaskedImageModeling", []),
        "AutoModelForImageClassification": ("HSSTForImageClassification", [1, 2]),
        "AutoModelForSemanticSegmentation": ("HSSTForSemanticSegmentation", [1, 2, 4, 4]),
        "AutoBackbone": ("HSSTBackbone", [1, 24, 4, 4]),
    }
    assert shapes.keys() - report.keys() <= {"AutoBackbone"}
    for auto_class, (name, shape) in shapes.items():
        if auto_class not in report:
            continue
        loaded = report[auto_class]
        assert loaded["class"] == name
        assert loaded["shape"] == shape
        assert not loaded["mismatched"]
        # Classifiers are new, since the checkpoint has none; every weight of the encoder comes from the checkpoint
        assert all(key.startswith("head.") for key in loaded["missing"]), loaded["missing"]
        assert bool(loaded["missing"]) == ("Classification" in name or "Segmentation" in name)
    with torch.no_grad():
        tokens = tiny_model().hsst(**tiny_processor()(image)).last_hidden_state
    assert report["tokens"] == pytest.approx(tokens.double().sum().item(), abs=1e-4)


def test_export_is_complete_and_flat(pushed: Path) -> None:
    assert {path.name for path in pushed.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "configuration_hsst.py",
        "modeling_hsst.py",
        "modeling_hsst_masked.py",
        "image_processing_hsst.py",
    }
    assert all(path.is_file() for path in pushed.iterdir())
    auto_map = json.loads((pushed / "config.json").read_text())["auto_map"]
    auto_map |= json.loads((pushed / "preprocessor_config.json").read_text())["auto_map"]
    for reference in auto_map.values():
        module, name = reference.split(".")
        assert f"class {name}(" in (pushed / f"{module}.py").read_text()


def test_the_hub_holds_what_was_exported(hub: LoopbackHub, pushed: Path) -> None:
    files = hub.repositories[REPOSITORY].files
    assert {path.name: path.read_bytes() for path in pushed.iterdir()} == {
        name: content for name, content in files.items() if name != ".gitattributes"
    }


@pytest.fixture(scope="module")
def with_the_package(
    hub: LoopbackHub, pushed: Path, image: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """What a client with the package prints, which then pushes what it loaded. One, for it starts for seconds."""
    folder = tmp_path_factory.mktemp("with_the_package")
    np.save(folder / "image.npy", image)
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import modeling_hsst\n" + LOAD + PUSH_OF_THE_LIBRARY
    return run_client(hub, folder, program, REPOSITORY, "image.npy", "no")


def test_load_by_name_after_importing_the_package(with_the_package: str, image: np.ndarray) -> None:
    report = json.loads(with_the_package.splitlines()[-1])
    check_report(report, image)
    assert "AutoBackbone" in report
    assert report["AutoModel"]["module"] == "modeling_hsst.modeling_hsst"


def test_load_without_the_package(hub: LoopbackHub, pushed: Path, image: np.ndarray, tmp_path: Path) -> None:
    """By name, and from a folder."""
    np.save(tmp_path / "image.npy", image)
    printed = run_client(hub, tmp_path, BLOCK + LOAD, REPOSITORY, str(pushed), "image.npy", "trust")
    by_name, from_folder = (json.loads(line) for line in printed.splitlines()[-2:])
    for report in (by_name, from_folder):
        check_report(report, image)
        assert report["imported"] == []
        assert report["AutoModel"]["module"].startswith("transformers_modules.")
    assert "AutoBackbone" in by_name


def test_push_to_hub_of_the_library(hub: LoopbackHub, with_the_package: str) -> None:
    """`model.push_to_hub` and `processor.push_to_hub`, which know nothing of the export, load with the package."""
    assert "model.safetensors" in hub.repositories["hsg-aiml/hsst-copy"].files

"""
The layout of a checkpoint repository that also loads where this package is not installed: weights, configuration,
processor, and the code beside them as flat files (`trust_remote_code=True`).
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

# Complete and explicit: saving one class by itself records that class only, and the other Auto classes then fail.
AUTO_MAP = {
    "AutoConfig": "configuration_hsst.HSSTConfig",
    "AutoModel": "modeling_hsst.HSSTModel",
    "AutoModelForMaskedImageModeling": "modeling_hsst_masked.HSSTForMaskedImageModeling",
    "AutoModelForImageClassification": "modeling_hsst.HSSTForImageClassification",
    "AutoModelForSemanticSegmentation": "modeling_hsst.HSSTForSemanticSegmentation",
    "AutoBackbone": "modeling_hsst.HSSTBackbone",
}
PROCESSOR_AUTO_MAP = {"AutoImageProcessor": "image_processing_hsst.HSSTImageProcessor"}


def load_whole(
    model_class: Any, name: str | Path, *, new: tuple[str, ...] = (), unused: tuple[str, ...] = (), **kwargs: Any
) -> Any:
    """
    `model_class.from_pretrained(name, **kwargs)` for a model that has to be as it was saved: by itself, that gives
    random numbers to weights that are not there.

    Args:
        model_class: a class of model, or an Auto class.
        name: folder or repository of the Hub.
        new: how the names of weights begin that may be missing.
        unused: how the names of weights begin that may be there beside those of the model.

    Raises:
        ValueError: weights are missing, superfluous, of another shape, or not finite.
    """
    model, info = model_class.from_pretrained(
        name, **{**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True}
    )
    keys = {kind: sorted(map(str, info[f"{kind}_keys"])) for kind in ("missing", "unexpected")}
    missing = [key for key in keys["missing"] if not key.startswith(new)]
    unexpected = [key for key in keys["unexpected"] if not key.startswith(unused)]
    not_finite = [key for key, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if info["mismatched_keys"]:
        key, stored, own = sorted(info["mismatched_keys"])[0]
        raise ValueError(f"{name}: expected the weights `{key}` of shape {tuple(own)}, got {tuple(stored)}.")
    for keys_of_kind, expected in (
        (missing, "all weights of the model, found none for"),
        (unexpected, "no weights but those that config.json describes, found"),
        (not_finite, "finite weights, got NaN or infinity in"),
    ):
        if keys_of_kind:
            more = f" and {len(keys_of_kind) - 3} more" if len(keys_of_kind) > 3 else ""
            raise ValueError(f"{name}: expected {expected} {', '.join(keys_of_kind[:3])}{more}.")
    return model


def export_for_hub(model: PreTrainedModel, processor: BaseImageProcessor, folder: str | Path) -> Path:
    """
    Saves an HSST model and the image processor that belongs to its weights as a checkpoint repository, ready for
    `huggingface_hub.HfApi.upload_folder`. The folder is created if missing; other files in it are left alone.
    """
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return add_code(folder)


def add_code(folder: str | Path) -> Path:
    """
    Adds to a saved model and processor the code that they run with where this package is not installed, and the auto
    maps by which transformers finds it.

    Raises:
        ValueError: a configuration is not a JSON object.
    """
    folder = Path(folder)
    for name, auto_map in ((CONFIG_NAME, AUTO_MAP), (IMAGE_PROCESSOR_NAME, PROCESSOR_AUTO_MAP)):
        path = folder / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: expected JSON ({error})") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
        content["auto_map"] = auto_map
        path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for code_file in code_files():
        shutil.copyfile(code_file, folder / code_file.name)
    return folder


def code_files() -> list[Path]:
    """The modules that the auto maps name, and those that they import."""
    source = Path(__file__).parent
    entry_names = {reference.split(".")[0] for reference in (*AUTO_MAP.values(), *PROCESSOR_AUTO_MAP.values())}
    entry_files = [source / f"{name}.py" for name in entry_names]
    imported_files = [Path(file) for entry in entry_files for file in get_relative_import_files(entry)]
    return sorted({*entry_files, *imported_files})


__all__ = ["add_code", "export_for_hub", "load_whole"]

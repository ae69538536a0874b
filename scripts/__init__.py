"""
HSST in one import: spatial-spectral transformers for hyperspectral images, the data, and the programs of scripts/.

    from hsst import ScenePredictor, open_scene
    hsst predict SCENE --model FINE_TUNED --output map.tif

Names are imported when they are first used, so that `import hsst` takes no time.
"""

import importlib
import importlib.metadata
import re
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "modeling_hsst": (
        "HSSTBackbone",
        "HSSTConfig",
        "HSSTForImageClassification",
        "HSSTForMaskedImageModeling",
        "HSSTForSemanticSegmentation",
        "HSSTImageProcessor",
        "HSSTModel",
        "ScenePredictor",
        "adapt_processor",
        "adapt_to_wavelengths",
        "use_fast_layers",
    ),
    "datasets_loading.enmap_product": ("EnMAPProduct",),
    "datasets_loading.scenes": ("open_scene",),
    "datasets_loading.corpus": ("EnMAPCorpus",),
    "datasets_loading.labelled_scene": ("LabelledScene",),
    "datasets_loading.enmap_dfc": ("EnMAPDFC",),
    "datasets_loading.houston2018": ("Houston2018",),
    "datasets_loading.land_cover_metric": ("land_cover_scores",),
    "datasets_loading.simulation.scene": ("simulate_scene",),
    "hsst.support.features": ("extract_features",),
    "hsst.support.feature_transformer": ("HSSTFeatures",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'hsst' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    except ModuleNotFoundError as error:
        message = missing_package(error)
        if message is None:
            raise
        raise ModuleNotFoundError(f"hsst.{name} {message}", name=error.name) from error


def missing_package(error: ModuleNotFoundError) -> str | None:
    """
    Which package an import lacked, and how to install it: with the extra of this one that lists it, where one does.
    None where a module of this package itself is not there.
    """
    module = (error.name or "").split(".")[0]
    if not module or module in ("hsst", "modeling_hsst", "datasets_loading"):
        return None
    package = {"sklearn": "scikit-learn", "pystac_client": "pystac-client"}.get(module, module)
    try:
        listed = importlib.metadata.requires("hsst") or []
    except importlib.metadata.PackageNotFoundError:  # a clone that was not installed
        listed = []
    extras = (
        found[1]
        for line in listed
        if re.match(rf"{re.escape(package)}\b(?!-)", line) and (found := re.search(r"extra == ['\"](\w+)['\"]", line))
    )
    extra = next((name for name in extras if name != "dev"), None)  # the others came with this package
    wanted = package if extra is None else f"hsst[{extra}]"
    return f'needs {package}, which is not installed: pip install "{wanted}"'


def __dir__() -> list[str]:
    return [*globals(), *__all__]

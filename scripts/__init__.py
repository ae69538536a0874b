"""
HSST in one import: spatial-spectral transformers for hyperspectral images, the data, and the programs of scripts/.

    from hsst import ScenePredictor, open_scene
    python -m hsst predict_scene SCENE --model FINE_TUNED --output map.tif

Names are imported when they are first used, so that `import hsst` takes no time.
"""

import importlib
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
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]

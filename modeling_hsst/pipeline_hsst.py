# Copyright 2026 The HSST authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
The land cover of whole scenes as a transformers pipeline: `pipeline("hyperspectral-scene-classification", model=...)`.
"""

import importlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSemanticSegmentation, PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.pipelines import Pipeline

from .hub_hsst import export_for_hub, load_whole
from .scene_prediction_hsst import CLASSIFIERS, NO_CLASS, ArrayScene, ScenePredictor

TASK = "hyperspectral-scene-classification"

# Parameters of a call: how a file or an array is read, and how it is predicted
READING = "wavelengths fwhm scale nodata radiance".split()
PREDICTING = (
    "stride windows_per_batch exclude resample chunk_size scene_statistics progress return_probabilities".split()
)

AUTO_CLASSES = {
    "HSSTForSemanticSegmentation": AutoModelForSemanticSegmentation,
    "HSSTForImageClassification": AutoModelForImageClassification,
}


class HSSTAutoModelForSceneClassification:
    """Loads a checkpoint with the class it was saved from."""

    @classmethod
    def from_pretrained(cls, name: str, **kwargs: Any) -> PreTrainedModel:
        """
        Loads a folder or a repository of the Hub, with the arguments of `AutoModel.from_pretrained`. Raises
        ValueError for a checkpoint without a classification head, or without some of its weights: new ones would give
        a map of noise.
        """
        kwargs.setdefault("trust_remote_code", False)  # or transformers would ask
        config = kwargs.get("config")
        if config is None:
            hub_arguments = ("trust_remote_code", "revision", "token", "cache_dir", "local_files_only", "subfolder")
            config = AutoConfig.from_pretrained(name, **{key: kwargs[key] for key in hub_arguments if key in kwargs})
        architecture = (config.architectures or ["nothing"])[0]
        if architecture not in AUTO_CLASSES:
            raise ValueError(
                f"{name}: expected a model with a classification head ({' or '.join(CLASSIFIERS)}), got "
                f"{architecture}; fine-tune it first."
            )
        return load_whole(AUTO_CLASSES[architecture], name, **kwargs)


class HSSTSceneClassificationPipeline(Pipeline):
    """
    Land cover of whole scenes.

    A scene is a path that `datasets_loading.scenes.open_scene` opens (EnMAP products, images of any format), an array
    of stored numbers (bands, height, width), or any object that reads like
    `modeling_hsst.scene_prediction_hsst.SceneReader`.

    ```python
    >>> import modeling_hsst  # registers the task
    >>> from transformers import pipeline

    >>> classify = pipeline("hyperspectral-scene-classification", model="outputs/finetuned")
    >>> land_cover = classify(image, wavelengths=wavelengths)["classes"]
    ```

    Parameters of a call:
        wavelengths: band centers in nm of an array, or of an image that does not state them.
        fwhm: full width at half maximum of each band in nm.
        scale, nodata: stored numbers that mean a reflectance of 1 and no data; by default the file's, or for arrays
            the processor's.
        radiance: take files of radiance as they are.
        stride, windows_per_batch (its `batch_size`), exclude, resample, chunk_size, scene_statistics: as for
            `ScenePredictor`.
        return_probabilities: whether to give the probabilities of all classes, too.
        progress: show a progress bar.

    Returns:
        For each scene a dictionary: `classes`, uint8 (height, width), 255 = none; `confidence`, float32 (height,
        width), NaN = none; `class_names`; `bands`, how the model's bands were found; `crs` and `transform`, None where
        unknown; and, if asked for, `probabilities`, float32 (classes, height, width).
    """

    # The base class declares them as None
    _load_processor: Any = False
    _load_image_processor: Any = True
    _load_feature_extractor: Any = False
    _load_video_processor: Any = False
    _load_tokenizer: Any = False
    image_processor: Any

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        architecture = (self.model.config.architectures or [type(self.model).__name__])[0]
        if type(self.model).__name__ not in CLASSIFIERS or architecture not in CLASSIFIERS:
            raise ValueError(f"Expected a model with a classification head, got {architecture}: fine-tune it first.")
        if self.image_processor is None:
            raise ValueError("Expected the image processor that belongs to the model (`image_processor`), got none.")

    def __call__(self, inputs: Any, *args: Any, batch_size: int | None = None, **kwargs: Any) -> Any:
        """
        Predicts a scene, or each of a list of scenes. `batch_size` has no effect: scenes are predicted one after the
        other, and `windows_per_batch` decides how much the model sees at once.
        """
        return super().__call__(inputs, *args, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        unknown = set(kwargs).difference(READING, PREDICTING)
        if unknown:
            raise ValueError(f"Expected parameters among {', '.join(READING + PREDICTING)}, got {', '.join(unknown)}.")
        reading = {name: value for name, value in kwargs.items() if name in READING}
        return reading, {name: value for name, value in kwargs.items() if name in PREDICTING}, {}

    def preprocess(self, scene: Any, **reading: Any) -> dict[str, Any]:  # type: ignore[override]
        reading = {name: value for name, value in reading.items() if value is not None}
        if isinstance(scene, (str, Path)):
            scene = open_scene(scene, **reading)
        elif isinstance(scene, (np.ndarray, torch.Tensor)):
            reading.pop("radiance", None)
            stored = {"scale": self.image_processor.scale, "nodata": self.image_processor.nodata}
            scene = ArrayScene(scene, **stored | reading)
        elif not hasattr(scene, "read_excluded"):
            raise ValueError(
                f"Expected a path, an array (bands, height, width) or a scene reader, got {type(scene).__name__}."
            )
        elif reading:
            raise ValueError(f"{', '.join(reading)}: expected only with a path or an array, a scene has its own.")
        return {"scene": scene}

    def _forward(  # type: ignore[override]
        self,
        inputs: dict[str, Any],
        windows_per_batch: int = 64,
        progress: bool = False,
        return_probabilities: bool = False,
        **predicting: Any,
    ) -> dict[str, Any]:
        scene = inputs["scene"]
        predictor = ScenePredictor(self.model, self.image_processor, batch_size=windows_per_batch, **predicting)
        outputs: dict[str, Any] = {
            "classes": np.full(scene.shape, NO_CLASS, dtype=np.uint8),
            "confidence": np.full(scene.shape, np.nan, dtype=np.float32),
            "class_names": predictor.class_names,
            "bands": predictor.select_bands(scene).description,
            "crs": getattr(scene, "crs", None),
            "transform": getattr(scene, "transform", None),
        }
        maps = ["classes", "confidence"]
        if return_probabilities:
            maps.append("probabilities")
            outputs["probabilities"] = np.full((len(predictor.class_names), *scene.shape), np.nan, dtype=np.float32)
        for part in predictor.predict(scene, progress=progress):
            for name in maps:
                outputs[name][..., part.rows, part.columns] = getattr(part, name)
        return outputs

    def postprocess(self, model_outputs: Any, **kwargs: Any) -> dict[str, Any]:
        return model_outputs

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """
        Saves model, processor and code, so that `pipeline(model=folder, trust_remote_code=True)` works where this
        package is not installed. Raises RuntimeError where this pipeline itself was loaded from such a folder, whose
        code stands in several places then.
        """
        if __name__.startswith("transformers_modules"):
            raise RuntimeError("Saving again needs the package `hsst`; or copy the folder that this was loaded from.")
        architecture = type(self.model).__name__
        implementation = f"{Path(__file__).stem}.{type(self).__name__}"
        task = {"impl": implementation, "pt": [AUTO_CLASSES[architecture].__name__], "type": "image"}
        self.model.config.custom_pipelines = {TASK: task}
        folder = export_for_hub(self.model, self.image_processor, Path(save_directory))
        for code_file in (__file__, *get_relative_import_files(__file__)):
            shutil.copyfile(code_file, folder / Path(code_file).name)


def open_scene(path: str | Path, **reading: Any) -> Any:
    """
    Opens a file by `datasets_loading.scenes.open_scene`, found by name: the model's package imports nothing but torch
    and transformers. Raises ImportError where that package is not installed, ValueError for a file of no use.
    """
    try:
        scenes = importlib.import_module("datasets_loading.scenes")
    except ImportError as error:
        raise ImportError(
            f"{path}: reading a file needs the package hsst (pip install hsst), or pass an array."
        ) from error
    return scenes.open_scene(path, **reading)


__all__ = ["HSSTAutoModelForSceneClassification", "HSSTSceneClassificationPipeline"]

"""
HSST: masked vision transformers for hyperspectral images as a Hugging Face transformers model.

Importing this package registers the classes, after which `AutoModel.from_pretrained("hsg-aiml/hsst-enmap")` and the
other Auto classes know them.
"""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForSemanticSegmentation,
)

# From its own module: transformers 5.17 exports it beside torchvision only, which this package does not need
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .adaptation_hsst import AdaptationReport, adapt_processor, adapt_to_wavelengths, load_for_wavelengths
from .configuration_hsst import ENMAP_WAVELENGTHS, HSSTConfig
from .image_processing_hsst import HSSTImageProcessor
from .kernels import use_fast_layers
from .modeling_hsst import (
    HSSTBackbone,
    HSSTForImageClassification,
    HSSTForSemanticSegmentation,
    HSSTModel,
    HSSTPreTrainedModel,
)
from .modeling_hsst_masked import HSSTForMaskedImageModeling, draw_mask
from .pipeline_hsst import TASK as SCENE_CLASSIFICATION_TASK
from .pipeline_hsst import HSSTAutoModelForSceneClassification, HSSTSceneClassificationPipeline
from .scene_prediction_hsst import ArrayScene, ScenePredictor

AutoConfig.register("hsst", HSSTConfig)
AutoModel.register(HSSTConfig, HSSTModel)
AutoModelForMaskedImageModeling.register(HSSTConfig, HSSTForMaskedImageModeling)
AutoModelForImageClassification.register(HSSTConfig, HSSTForImageClassification)
AutoModelForSemanticSegmentation.register(HSSTConfig, HSSTForSemanticSegmentation)
AutoBackbone.register(HSSTConfig, HSSTBackbone)
# One class for both keys: it computes in torch and needs neither PIL nor torchvision
AutoImageProcessor.register(
    HSSTConfig, image_processor_classes={"pil": HSSTImageProcessor, "torchvision": HSSTImageProcessor}
)
PIPELINE_REGISTRY.register_pipeline(
    SCENE_CLASSIFICATION_TASK,
    HSSTSceneClassificationPipeline,
    pt_model=HSSTAutoModelForSceneClassification,
    type="image",
)

__all__ = [
    "ENMAP_WAVELENGTHS",
    "AdaptationReport",
    "ArrayScene",
    "HSSTBackbone",
    "HSSTConfig",
    "HSSTForImageClassification",
    "HSSTForMaskedImageModeling",
    "HSSTForSemanticSegmentation",
    "HSSTImageProcessor",
    "HSSTModel",
    "HSSTPreTrainedModel",
    "HSSTSceneClassificationPipeline",
    "ScenePredictor",
    "adapt_processor",
    "adapt_to_wavelengths",
    "draw_mask",
    "load_for_wavelengths",
    "use_fast_layers",
]

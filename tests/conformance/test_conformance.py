"""transformers' own model tests on all classes of HSST.

Laid out like `tests/models/vit/test_modeling_vit.py` of transformers; what is skipped or overridden beyond that file
says why. The pipeline tests of that file need tiny models of the Hub and modules that are not in the distribution.
"""

from __future__ import annotations

import unittest
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn
from transformers.models.auto import modeling_auto

from modeling_hsst import (
    HSSTBackbone,
    HSSTConfig,
    HSSTForImageClassification,
    HSSTForMaskedImageModeling,
    HSSTForSemanticSegmentation,
    HSSTModel,
)

from .transformers_source import SourceUnavailable, load

try:
    test_modeling_common = load("test_modeling_common")
    test_configuration_common = load("test_configuration_common")
    test_backbone_common = load("test_backbone_common")
except SourceUnavailable as unavailable:
    pytest.skip(str(unavailable), allow_module_level=True)

floats_tensor = test_modeling_common.floats_tensor
ids_tensor = test_modeling_common.ids_tensor
torch_device = test_modeling_common.torch_device

# transformers' tests look up here which inputs and labels a class takes; registering a class does not add it
MAPPING_NAMES = {
    "MODEL_MAPPING_NAMES": "HSSTModel",
    "MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES": "HSSTForMaskedImageModeling",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES": "HSSTForImageClassification",
    "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES": "HSSTForSemanticSegmentation",
    "MODEL_FOR_BACKBONE_MAPPING_NAMES": "HSSTBackbone",
}


class HSSTModelTester:
    """A tiny model and its inputs."""

    def __init__(
        self,
        parent: unittest.TestCase,
        batch_size: int = 13,
        image_size: int = 8,
        patch_size: int = 2,
        num_channels: int = 10,
        band_patch_size: int = 4,
        is_training: bool = True,
        use_labels: bool = True,
        hidden_size: int = 24,
        num_spatial_layers: int = 1,
        num_spectral_layers: int = 1,
        num_attention_heads: int = 4,
        head_dim: int = 8,
        intermediate_size: int = 37,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        type_sequence_label_size: int = 10,
        initializer_range: float = 0.02,
        mask_patch_size: int = 2,
        attn_implementation: str = "eager",
        **variant: Any,
    ) -> None:
        self.parent = parent
        self.batch_size = batch_size
        self.image_size = image_size
        self.patch_size = patch_size
        self.num_channels = num_channels
        self.band_patch_size = band_patch_size
        self.is_training = is_training
        self.use_labels = use_labels
        self.hidden_size = hidden_size
        self.num_spatial_layers = num_spatial_layers
        self.num_spectral_layers = num_spectral_layers
        self.num_hidden_layers = num_spatial_layers + num_spectral_layers
        self.num_attention_heads = num_attention_heads
        self.head_dim = head_dim
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.type_sequence_label_size = type_sequence_label_size
        self.initializer_range = initializer_range
        self.mask_patch_size = mask_patch_size
        self.attn_implementation = attn_implementation
        self.variant = variant

        # in HSST, hidden states hold one token for each block of bands at each position; 10 bands make 3 blocks of 4
        self.num_positions = (image_size // patch_size) ** 2
        self.num_blocks = -(-num_channels // band_patch_size)
        self.seq_length = self.num_blocks * self.num_positions
        self.num_masks = self.seq_length // 2
        self.mask_length = self.seq_length

    def prepare_config_and_inputs(self) -> tuple[HSSTConfig, torch.Tensor, torch.Tensor | None]:
        pixel_values = floats_tensor([self.batch_size, self.num_channels, self.image_size, self.image_size])
        labels = ids_tensor([self.batch_size], self.type_sequence_label_size) if self.use_labels else None
        return self.get_config(), pixel_values, labels

    def get_config(self) -> HSSTConfig:
        return HSSTConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            num_channels=self.num_channels,
            band_patch_size=self.band_patch_size,
            hidden_size=self.hidden_size,
            num_spatial_layers=self.num_spatial_layers,
            num_spectral_layers=self.num_spectral_layers,
            num_attention_heads=self.num_attention_heads,
            head_dim=self.head_dim,
            intermediate_size=self.intermediate_size,
            hidden_act=self.hidden_act,
            hidden_dropout_prob=self.hidden_dropout_prob,
            attention_probs_dropout_prob=self.attention_probs_dropout_prob,
            initializer_range=self.initializer_range,
            mask_patch_size=self.mask_patch_size,
            attn_implementation=self.attn_implementation,
            **self.variant,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[HSSTConfig, dict[str, torch.Tensor]]:
        config, pixel_values, _ = self.prepare_config_and_inputs()
        return config, {"pixel_values": pixel_values}

    def draw_bool_masked_pos(self) -> torch.Tensor:
        """Every other token; always the same, because tests compare two runs."""
        return (torch.arange(self.seq_length, device=torch_device) % 2).repeat(self.batch_size, 1)

    def create_and_check_model(self, config: HSSTConfig, pixel_values: torch.Tensor, labels: torch.Tensor) -> None:
        model = HSSTModel(config).to(torch_device).eval()
        result = model(pixel_values)
        self.parent.assertEqual(result.last_hidden_state.shape, (self.batch_size, self.seq_length, self.hidden_size))
        self.parent.assertEqual(result.pooler_output.shape, (self.batch_size, self.hidden_size))

    def create_and_check_for_masked_image_modeling(
        self, config: HSSTConfig, pixel_values: torch.Tensor, labels: torch.Tensor
    ) -> None:
        model = HSSTForMaskedImageModeling(config).to(torch_device).eval()
        result = model(pixel_values)
        self.parent.assertEqual(result.reconstruction.shape, pixel_values.shape)
        self.parent.assertEqual(result.loss.shape, ())

    def create_and_check_for_image_classification(
        self, config: HSSTConfig, pixel_values: torch.Tensor, labels: torch.Tensor
    ) -> None:
        config.num_labels = self.type_sequence_label_size
        model = HSSTForImageClassification(config).to(torch_device).eval()
        result = model(pixel_values, labels=labels)
        self.parent.assertEqual(result.logits.shape, (self.batch_size, self.type_sequence_label_size))

    def create_and_check_for_semantic_segmentation(
        self, config: HSSTConfig, pixel_values: torch.Tensor, labels: torch.Tensor
    ) -> None:
        config.num_labels = self.type_sequence_label_size
        model = HSSTForSemanticSegmentation(config).to(torch_device).eval()
        labels = ids_tensor([self.batch_size, self.image_size, self.image_size], self.type_sequence_label_size)
        result = model(pixel_values, labels=labels)
        self.parent.assertEqual(
            result.logits.shape,
            (self.batch_size, self.type_sequence_label_size, self.image_size, self.image_size),
        )


class HSSTModelTest(test_modeling_common.ModelTesterMixin, unittest.TestCase):  # type: ignore[misc, name-defined]
    """
    As with ViT, some of the tests of test_modeling_common.py are overwritten, as HSST does not use input_ids,
    inputs_embeds, attention_mask and seq_length.
    """

    all_model_classes = (
        HSSTModel,
        HSSTForMaskedImageModeling,
        HSSTForImageClassification,
        HSSTForSemanticSegmentation,
        HSSTBackbone,
    )

    # as in ViT's tests
    test_resize_embeddings = False
    test_torch_exportable = True
    # not left out for want of a year in the first lines of a file, by which the shared test tells new models
    test_can_init_all_missing_weights_before_2023 = True

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        for mapping, class_name in MAPPING_NAMES.items():
            cls.enterClassContext(patch.dict(getattr(modeling_auto, mapping), {"hsst": class_name}))

    # what this class's models have besides the tester's defaults
    variant: dict[str, Any] = {}

    def setUp(self) -> None:
        self.model_tester = HSSTModelTester(self, **self.variant)
        self.config_tester = test_configuration_common.ConfigTester(
            self, config_class=HSSTConfig, has_text_modality=False, hidden_size=36
        )

    def _prepare_for_class(
        self, inputs_dict: dict[str, Any], model_class: type[nn.Module], return_labels: bool = False
    ) -> dict[str, Any]:
        given = inputs_dict.get("bool_masked_pos")
        inputs_dict = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if model_class is HSSTForMaskedImageModeling and given is None:
            # The mask is one of tokens, not of positions; without labels it is given, too, as one is drawn otherwise
            inputs_dict["bool_masked_pos"] = self.model_tester.draw_bool_masked_pos()
        return inputs_dict

    @unittest.skip(reason="Skipped for ViT as well: makes later tests fail with CUDA errors")
    def test_multi_gpu_data_parallel_forward(self) -> None:
        pass

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    @unittest.skip(reason="Skipped for ViT as well: HSST does not use inputs_embeds")
    def test_inputs_embeds(self) -> None:
        pass

    def test_model_get_set_embeddings(self) -> None:
        # as in ViT's tests: the embeddings are no nn.Embedding
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config)
            self.assertIsInstance(model.get_input_embeddings(), nn.Module)
            output_embeddings = model.get_output_embeddings()
            self.assertTrue(output_embeddings is None or isinstance(output_embeddings, nn.Linear))

    def test_attention_outputs(self) -> None:
        # Attention is factorised: the first layer attends among positions only, while hidden states hold all tokens.
        # The shared test knows one length for both, and takes this one, where it is given, for attentions alone.
        self.model_tester.encoder_seq_length = self.model_tester.num_positions
        super().test_attention_outputs()

    def test_model(self) -> None:
        self.model_tester.create_and_check_model(*self.model_tester.prepare_config_and_inputs())

    def test_for_masked_image_modeling(self) -> None:
        self.model_tester.create_and_check_for_masked_image_modeling(*self.model_tester.prepare_config_and_inputs())

    def test_for_image_classification(self) -> None:
        self.model_tester.create_and_check_for_image_classification(*self.model_tester.prepare_config_and_inputs())

    def test_for_semantic_segmentation(self) -> None:
        self.model_tester.create_and_check_for_semantic_segmentation(*self.model_tester.prepare_config_and_inputs())


class HSSTWavelengthModelTest(HSSTModelTest):
    """The other side of every choice of the configuration; positions are buffers here, not parameters."""

    variant = {
        "position_embedding_type": "wavelength",
        "wavelengths": [420.0 + 200.0 * band for band in range(10)],
        "blockwise_patch_embedding": False,
        "blockwise_decoder": False,
        "num_decoder_layers": 1,
        "head_type": "concat",
        "mask_type": "grid",
        "qkv_bias": True,
    }


class HSSTBackboneTest(test_backbone_common.BackboneTesterMixin, unittest.TestCase):  # type: ignore[misc, name-defined]
    all_model_classes = (HSSTBackbone,)
    config_class = HSSTConfig

    def setUp(self) -> None:
        self.model_tester = HSSTModelTester(self)

"""A small labelled scene whose classes differ in their spectra, in memory and as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_benchmarks import write_raster

from datasets_loading.labelled_data import LabelledData, Scene
from datasets_loading.splits import Area, split_by_areas
from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling, HSSTForSemanticSegmentation, HSSTImageProcessor

CLASS_NAMES = ("meadow", "water", "rock")
WAVELENGTHS = tuple(float(wavelength) for wavelength in np.linspace(450, 2400, 12).round(1))
HEIGHT, WIDTH = 24, 52
TRAIN, TEST = (0, 24, 0, 22), (0, 24, 28, 52)
TINY = {
    "hidden_size": 12,
    "num_attention_heads": 2,
    "head_dim": 6,
    "intermediate_size": 12,
    "num_spatial_layers": 1,
    "num_spectral_layers": 1,
    "band_patch_size": 4,
}


def small_cube(seed: int = 0, noise: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Stored numbers, int16 (12, 24, 52), and labels in patches of 4 x 4 pixels, a fifth of them 255, uint8."""
    generator = np.random.default_rng(seed)
    patches = generator.integers(0, len(CLASS_NAMES), (HEIGHT // 4, WIDTH // 4))
    labels = np.kron(patches, np.ones((4, 4), dtype=np.uint8)).astype(np.uint8)
    spectra = np.array([np.linspace(300, 3000, 12), np.linspace(900, 100, 12), np.full(12, 2000)])
    cube = spectra[labels].transpose(2, 0, 1) + noise * generator.standard_normal((12, HEIGHT, WIDTH))
    labels[generator.random(labels.shape) < 0.2] = 255
    return cube.astype(np.int16), labels


def small_data(**changes: Any) -> LabelledData:
    """The scene, trained on its left part and tested on its right part, with a buffer of 4 pixels or more."""
    cube, labels = small_cube()
    cube, labels = changes.get("cube", cube), changes.get("labels", labels)
    scene = Scene("scene", cube, labels)
    areas = {"train": [Area("scene", *changes.get("train", TRAIN))], "test": [Area("scene", *TEST)]}
    if "validation" in changes:
        areas["validation"] = [Area("scene", *changes["validation"])]
    split = split_by_areas({"scene": labels}, areas, buffer=2)
    return LabelledData([scene], CLASS_NAMES, np.array(WAVELENGTHS), split)


def write_small_scene(folder: Path, **changes: Any) -> Path:
    """The scene as files: `images/scene.tif` and `labels/scene.tif`, whose labels count from 1."""
    cube, labels = small_cube()
    image = changes.get("image", cube)
    values = changes.get("values", np.where(labels == 255, 0, labels + 1).astype(np.uint8))
    write_raster(
        folder / "images" / "scene.tif",
        image,
        band_tags=lambda band: {"wavelength": str(WAVELENGTHS[band]), "wavelength_units": "nanometers"},
        nodata=-32768,
    )
    write_raster(folder / "labels" / "scene.tif", values)
    return folder


def write_small_checkpoint(folder: Path, window_size: int = 5, **changes: Any) -> Path:
    """A pre-trained model, of random weights, with its processor; with `class_names` one that classifies pixels."""
    bands = changes.pop("wavelengths", WAVELENGTHS)
    class_names = changes.pop("class_names", None)
    config = HSSTConfig(
        **{**TINY, "num_channels": len(bands), "wavelengths": list(bands), "image_size": window_size, **changes}
    )
    if class_names is not None:
        config.id2label = dict(enumerate(class_names))
        config.label2id = {name: number for number, name in enumerate(class_names)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if class_names is None:
            HSSTForMaskedImageModeling(config).save_pretrained(folder)
        else:
            model = HSSTForSemanticSegmentation(config)
            torch.nn.init.normal_(model.head.classifier.weight)
            model.save_pretrained(folder)
    HSSTImageProcessor(
        wavelengths=list(bands), image_mean=[0.15] * len(bands), image_std=[0.1] * len(bands)
    ).save_pretrained(folder)
    return folder

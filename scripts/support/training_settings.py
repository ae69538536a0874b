"""
The models that can be trained on labels, what they are made of, and the settings of fine-tuning: without torch, for
help and refusals of arguments need not wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

TASKS = ("dense", "center")
STATISTICS = ("training", "checkpoint", "area")
CLASS_WEIGHTS = ("none", "balanced")
PRECISIONS = ("float32", "bfloat16")
HEAD_STARTS = ("random", "checkpoint")


def setting(default: Any, text: str, choices: Sequence[str] | None = None) -> Any:
    """A setting with what `--help` says of it."""
    return field(default=default, metadata={"help": text} | ({} if choices is None else {"choices": choices}))


@dataclass(frozen=True)
class FineTuningSettings:
    """
    How a network is fine-tuned and how it predicts; the fields say what each setting is, `run_classification.py
    --help`, too. Augmentations are off by default. ValueError where a setting is out of its range; the message names
    it.
    """

    task: str = setting("dense", "label every pixel of a window (dense), or the center pixel of an odd one", TASKS)
    max_steps: int = setting(300, "optimization steps; 0 leaves a network with a checkpoint's classifier as it is")
    num_epochs: int | None = setting(None, "passes over the labels, where they take more than --max_steps")
    batch_size: int = setting(8, "windows in a step")
    learning_rate: float = setting(1e-3, "of the encoder")
    head_learning_rate: float | None = setting(None, "of the classifier; that of the encoder if not given")
    weight_decay: float = setting(0.05, "of weight matrices, not of biases, norms and positions")
    warmup_share: float = setting(0.05, "share of the steps in which the rate rises; it then falls as a cosine")
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm, with 0 to none")
    freeze_encoder: bool = setting(False, "train the classifier only")
    head_start: str = setting("random", "start the classifier as a checkpoint's that has the classes", HEAD_STARTS)
    class_weights: str = setting("none", "weigh classes by their training pixels, inversely", CLASS_WEIGHTS)
    early_stopping_patience: int | None = setting(
        None, "evaluations on the validation area without a better average accuracy before training stops"
    )
    evaluation_steps: int = setting(50, "steps between two evaluations on the validation area")
    turns: bool = setting(False, "augmentation: turn windows by quarters and flip them")
    path_radiance: float = setting(
        0.0, "augmentation: deviation of a reflectance at 550 nm added to a window, less towards longer wavelengths"
    )
    calibration: float = setting(
        0.0, "augmentation: deviation of a factor on a window, and of one that changes along the spectrum"
    )
    spectral_crop: float = setting(0.0, "augmentation: share of the steps that see a range of HSST's blocks only")
    stride: int | None = setting(None, "pixels between the windows of a dense prediction; half a window if not given")
    eval_batch_size: int = setting(64, "windows in a step of prediction")
    seed: int = setting(0, "of weights, windows and augmentation")
    precision: str = setting("float32", "of networks", PRECISIONS)
    use_cpu: bool = setting(False, "stay on the CPU")

    def __post_init__(self) -> None:
        for entry in fields(self):
            allowed = entry.metadata.get("choices")
            if allowed is not None and getattr(self, entry.name) not in allowed:
                raise ValueError(
                    f"{entry.name}: expected one of {', '.join(allowed)}, got {getattr(self, entry.name)!r}"
                )
        ones = "num_epochs batch_size eval_batch_size evaluation_steps early_stopping_patience stride"
        zeros = "max_steps learning_rate head_learning_rate weight_decay max_grad_norm path_radiance calibration seed"
        for minimum, names in ((1, ones), (0, zeros)):
            for name in names.split():
                value = getattr(self, name)
                if value is not None and not value >= minimum:
                    raise ValueError(f"{name}: expected at least {minimum}, got {value}")
        if self.max_steps < 1 and self.head_start != "checkpoint":
            raise ValueError(f"max_steps: expected at least 1, got {self.max_steps}")
        if not 0 <= self.spectral_crop <= 1:
            raise ValueError(f"spectral_crop: expected a share from 0 to 1, got {self.spectral_crop}")
        if not 0 <= self.warmup_share < 1:
            raise ValueError(f"warmup_share: expected a share from 0 to below 1, got {self.warmup_share}")


@dataclass(frozen=True)
class ModelEntry:
    """A model of the comparison. Its kind is "hsst" (also without weights), "network", "pixels" (scikit-learn on
    spectra) or "features" (scikit-learn on features of a frozen HSST)."""

    kind: str
    title: str  # for people
    needs_checkpoint: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)  # of fine-tuning that suit it, in place of the defaults
    options: Mapping[str, Any] = field(default_factory=dict)  # make it what it is, whatever `ModelOptions` say


# Windows hold up to 64 labelled pixels each, so that a step sees as many labels as one of 32 single pixels, or more
WINDOWS: dict[str, Any] = {"settings": {"batch_size": 4}}
PRETRAINED_WINDOWS: dict[str, Any] = {"settings": {"batch_size": 4, "learning_rate": 5e-4}}
SINGLE_PIXELS: dict[str, Any] = {
    "settings": {"batch_size": 32, "eval_batch_size": 512},
    "options": {"window_size": 1, "head_type": "mean"},
}

PRETRAINED_PIXELS: dict[str, Any] = SINGLE_PIXELS | {
    "settings": {**SINGLE_PIXELS["settings"], "learning_rate": 5e-4}  # the published one of fine-tuning
}

MODELS: dict[str, ModelEntry] = {
    "hsst": ModelEntry("hsst", "HSST, pre-trained", needs_checkpoint=True, **PRETRAINED_WINDOWS),
    "hsst-scratch": ModelEntry("hsst", "HSST from scratch", **WINDOWS),
    "hsst-pixels": ModelEntry(
        "hsst", "HSST on single pixels, pre-trained", needs_checkpoint=True, **PRETRAINED_PIXELS
    ),
    "hsst-pixels-scratch": ModelEntry("hsst", "HSST on single pixels, from scratch", **SINGLE_PIXELS),
    "sequence-transformer": ModelEntry("hsst", "HSST without spatial layers", **WINDOWS),
    "vit": ModelEntry("network", "ViT", **WINDOWS),
    "cnn-1d": ModelEntry("network", "1-D CNN", **WINDOWS),
    "cnn-3d": ModelEntry("network", "3-D CNN", **WINDOWS),
    "random-forest": ModelEntry("pixels", "random forest"),
    "svm": ModelEntry("pixels", "SVM (RBF)"),
    "logistic-regression": ModelEntry("pixels", "logistic regression"),
    "knn": ModelEntry("pixels", "nearest neighbors, spectra"),
    "knn-features": ModelEntry("features", "nearest neighbors, HSST features", needs_checkpoint=True),
    "linear-probe": ModelEntry("features", "linear probe, HSST features", needs_checkpoint=True),
    "linear-probe-pixels": ModelEntry(
        "features",
        "linear probe, HSST features of single pixels",
        needs_checkpoint=True,
        options=SINGLE_PIXELS["options"],
    ),
}
"""Every model by its name."""


@dataclass(frozen=True)
class ModelOptions:
    """What a model is made of, beside the settings of its training; None keeps the configuration's."""

    checkpoint: str | None = None  # folder or Hub name of a pre-trained HSST
    config_overrides: Mapping[str, Any] = field(default_factory=dict)  # of HSSTConfig, without a checkpoint's weights
    window_size: int | None = None  # side in pixels; of the checkpoint, or 8 for "dense" and 7 for "center"
    dropout: float | None = None  # of HSST's attention and layers
    head_type: str | None = None  # a pixel is seen as the "mean" over the spectral blocks, or their "concat"enation
    # Mean and deviation of the "training" area, of the "checkpoint" (pre-trained models), or of each "area" by its own
    statistics: str | None = None
    adapt_bands: bool = False  # by wavelength, where the data lack bands of the checkpoint
    # For classes of the data those of the checkpoint that stand for them, where the classifier starts as its own
    merged: Mapping[str, Sequence[str]] = field(default_factory=dict)


def settings_for(name: str, settings: Mapping[str, Any]) -> FineTuningSettings:
    """The settings of a model: given ones before its own, its own before the defaults."""
    return FineTuningSettings(**{**model_entry(name).settings, **settings})


def model_entry(name: str) -> ModelEntry:
    """A model by its name; ValueError where there is none."""
    if name not in MODELS:
        raise ValueError(f"expected a model among {', '.join(MODELS)}, got {name}")
    return MODELS[name]


def check_model(name: str, settings: FineTuningSettings, options: ModelOptions) -> None:
    """Raises ValueError where a model needs a checkpoint, or the settings ask for what it does not have: all that can
    be known before data are read."""
    entry = model_entry(name)
    if entry.needs_checkpoint and options.checkpoint is None:
        raise ValueError(f"{name}: expected a checkpoint (--model_name_or_path), got none")
    if entry.needs_checkpoint and options.config_overrides:
        raise ValueError("--config_overrides: expected no checkpoint, whose configuration cannot be changed, got both")
    if options.statistics == "checkpoint" and options.checkpoint is None:
        raise ValueError("--statistics checkpoint: expected a checkpoint to take them from, got none")
    if entry.kind == "network" and settings.freeze_encoder:
        raise ValueError(f"--freeze_encoder: expected a model with the encoder of HSST, got {name}")
    if entry.kind == "network" and settings.spectral_crop:
        raise ValueError(f"--spectral_crop: expected a model with the encoder of HSST, got {name}")
    if settings.head_start == "checkpoint" and not (entry.kind == "hsst" and entry.needs_checkpoint):
        raise ValueError(f"--head_start checkpoint: expected HSST from a checkpoint, got {name}")
    if options.merged and settings.head_start != "checkpoint":
        raise ValueError("--merge: expected --head_start checkpoint, whose classes are merged, got none")

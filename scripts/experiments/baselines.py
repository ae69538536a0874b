"""All models that are compared, by name, on the same pixels with the same bands.

    outcome = run_model("cnn-3d", data, FineTuningSettings())
    land_cover_scores(outcome.confusion)

Networks take (pixel_values, labels, pixel_mask) as HSST's heads do and are trained alike; classifiers of single pixels
come from scikit-learn.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
    ViTConfig,
    ViTModel,
    set_seed,
)
from transformers.modeling_outputs import ImageClassifierOutput, SemanticSegmenterOutput

from datasets_loading.files import fingerprint
from datasets_loading.labelled_data import LabelledData
from datasets_loading.sensors import ENMAP
from datasets_loading.splits import SPLITS, UNLABELLED
from hsst.experiments.pixel_classifiers import fold_groups, frozen_features, head_of, map_of
from hsst.support.few_labels import tuned
from hsst.support.fine_tuning import AreaTensors, FineTuned, confusion_of, fine_tune, predict
from hsst.support.matched_classes import matched_classes
from hsst.support.model_sources import OTHER_PARTS, check_sizes, load_model, read_config, read_processor
from hsst.support.training_settings import STATISTICS, FineTuningSettings, ModelOptions, check_model, model_entry
from modeling_hsst import (
    ENMAP_WAVELENGTHS,
    HSSTConfig,
    HSSTForImageClassification,
    HSSTForSemanticSegmentation,
    HSSTImageProcessor,
    HSSTModel,
    use_fast_layers,
)
from modeling_hsst.adaptation_hsst import AdaptationReport, adapt_processor, adapt_to_wavelengths
from modeling_hsst.modeling_hsst import labelled_cross_entropy
from modeling_hsst.scene_prediction_hsst import SMALLEST_DEVIATION

logger = logging.getLogger(__name__)

PARAMETER_TOLERANCE = 0.2
"""The ViT has as many parameters as HSST, give or take this share."""


class BaselineConfig(PreTrainedConfig):
    """Configuration of the networks that HSST is compared with; sizes of layers are the ViT's."""

    model_type = "hsst-baseline"

    architecture: str = "vit"  # or "cnn-1d", "cnn-3d"
    num_channels: int = 200  # input bands
    image_size: int = 8  # side of a window in pixels
    hidden_size: int = 96
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    per_pixel: bool = True  # a class for each pixel, or for the center of a window


class ViTEncoder(nn.Module):
    """transformers' ViT on a window, all bands as channels, patches of one pixel: (B, bands, H, W) to (B, D, H, W)."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        shared = ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "num_channels")
        sizes = {name: getattr(config, name) for name in shared}
        vit_config = ViTConfig(**sizes, intermediate_size=4 * config.hidden_size, patch_size=1)
        self.vit = ViTModel(vit_config, add_pooling_layer=False)
        self.num_features = config.hidden_size * (1 if config.per_pixel else config.image_size**2)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        tokens = self.vit(pixel_values).last_hidden_state[:, 1:]  # without the class token
        return tokens.transpose(1, 2).unflatten(2, pixel_values.shape[-2:])


class CNN1D(nn.Module):
    """A convolution along the spectrum of each pixel (Hu et al. 2015, 10.1155/2015/258619), 100 features."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        kernel = max(config.num_channels // 9, 1)
        pool = max(kernel // 5, 1)
        self.convolution = nn.Conv1d(1, 20, kernel)
        self.pool = nn.MaxPool1d(pool)
        self.linear = nn.Linear(20 * ((config.num_channels - kernel + 1) // pool), 100)
        self.num_features = 100
        self.per_pixel = config.per_pixel

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if not self.per_pixel:
            center = pixel_values.shape[-1] // 2
            pixel_values = pixel_values[:, :, center : center + 1, center : center + 1]
        batch_size, bands, rows, columns = pixel_values.shape
        spectra = pixel_values.permute(0, 2, 3, 1).reshape(-1, 1, bands)
        features = torch.tanh(self.linear(self.pool(torch.tanh(self.convolution(spectra))).flatten(1)))
        return features.view(batch_size, rows, columns, -1).permute(0, 3, 1, 2)


class CNN3D(nn.Module):
    """Two convolutions over spectrum and space, 16 of 7x3x3 and 32 of 3x3x3 (Li et al. 2017, 10.3390/rs9010067).

    Per pixel, windows are padded by a zero pixel for each convolution; for the center pixel they are not.
    """

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        if config.num_channels < 9 or config.image_size < 5:
            raise ValueError(
                "cnn-3d: expected at least 9 bands and windows of 5 pixels, got "
                f"{config.num_channels} bands and {config.image_size} pixels"
            )
        padding = (0, 1, 1) if config.per_pixel else 0
        self.first = nn.Conv3d(1, 16, (7, 3, 3), padding=padding)
        self.second = nn.Conv3d(16, 32, (3, 3, 3), padding=padding)
        positions = 1 if config.per_pixel else (config.image_size - 4) ** 2
        self.num_features = 32 * (config.num_channels - 8) * positions

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(torch.relu(self.first(pixel_values.unsqueeze(1))))).flatten(1, 2)


class BaselineModel(PreTrainedModel):
    """A network and a linear classifier of every pixel of a window, or of its center pixel, as HSST's heads are."""

    config_class = BaselineConfig
    config: BaselineConfig
    main_input_name = "pixel_values"
    accepts_loss_kwargs = False
    _no_split_modules: list[str] = []

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config)
        builders: dict[str, Callable[[BaselineConfig], Any]] = {"vit": ViTEncoder, "cnn-1d": CNN1D, "cnn-3d": CNN3D}
        if config.architecture not in builders:
            raise ValueError(f"architecture: expected one of {', '.join(builders)}, got {config.architecture!r}")
        self.encoder = builders[config.architecture](config)
        # pixel by pixel, a convolution of one pixel is the linear layer
        num_features, num_labels = self.encoder.num_features, int(config.num_labels or 0)
        self.head = nn.Conv2d(num_features, num_labels, 1) if config.per_pixel else nn.Linear(num_features, num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # those of torch stay for convolutions and linear layers; the ViT initializes itself
        pass

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SemanticSegmenterOutput | ImageClassifierOutput:
        """Of pixel_values (windows, bands, rows, columns), with labels from 0, int64 (windows, rows, columns), or
        (windows,) of center pixels, 255 = unlabelled, and pixel_mask (windows, rows, columns), 0 without data."""
        if pixel_mask is not None:
            pixel_values = pixel_values.masked_fill(~pixel_mask.bool().unsqueeze(1), 0.0)
        features = self.encoder(pixel_values)
        logits = self.head(features if self.config.per_pixel else features.flatten(1))
        loss = None if labels is None else labelled_cross_entropy(logits, labels, UNLABELLED)
        output_class = SemanticSegmenterOutput if self.config.per_pixel else ImageClassifierOutput
        return output_class(loss=loss, logits=logits)


AutoConfig.register("hsst-baseline", BaselineConfig)
AutoModelForSemanticSegmentation.register(BaselineConfig, BaselineModel)
AutoModelForImageClassification.register(BaselineConfig, BaselineModel)


def vit_width(target: int, config: BaselineConfig) -> tuple[int, int]:
    """Width of the ViT whose parameters come nearest to `target`, a multiple of its heads, and how near they come."""
    widths = range(config.num_attention_heads, 1025, config.num_attention_heads)
    # counted without building: per layer 12 D^2 + 13 D, embeddings, positions, class token, last norm, head
    positions = config.image_size**2

    def distance(width: int) -> int:
        layers = config.num_hidden_layers * (12 * width**2 + 13 * width)
        embeddings = (config.num_channels + 1 + positions + 1 + 1 + 2) * width
        head_width = width if config.per_pixel else width * positions
        return abs(layers + embeddings + (head_width + 1) * int(config.num_labels or 0) - target)

    best = min(widths, key=distance)
    return best, distance(best)


@dataclass
class Outcome:
    """What a model made of a test area."""

    maps: dict[str, np.ndarray]  # classes by the scene's name, uint8 (height, width), 255 where none was predicted
    confusion: np.ndarray  # labelled test pixels by reference and prediction, int64 (classes, classes)
    model: Any  # the trained network, or classifier of scikit-learn
    processor: HSSTImageProcessor  # standardizes its input
    bands: list[int]  # indices of those that it saw in the scenes
    train_seconds: float
    predict_seconds: float
    parameters: int | None = None  # of a network
    training: FineTuned | None = None  # of a network
    chosen: dict[str, Any] = field(default_factory=dict)  # settings that a classifier chose by cross-validation
    adaptation: AdaptationReport | None = None  # of a checkpoint to the bands of the data


def run_model(
    name: str,
    data: LabelledData,
    settings: FineTuningSettings,
    options: ModelOptions = ModelOptions(),  # noqa: B008 (frozen)
    *,
    labelled_only: bool = False,
    progress: bool = False,
) -> Outcome:
    """Trains one of `MODELS` on the training area and predicts the test area, once; with `labelled_only`, only what is
    scored. ValueError where the data do not fit the model, or it cannot be trained on them."""
    entry = model_entry(name)
    check_model(name, settings, options)
    options = replace(options, **entry.options)
    if "window_size" in entry.options:
        settings = replace(settings, stride=None)  # one given for windows of other sizes
    check_classes(data)
    start = starting_point(data, options)
    base, bands = start.config, start.bands
    window_size = choose_window_size(settings, options, base)
    statistics = options.statistics or ("checkpoint" if entry.needs_checkpoint else "training")
    if statistics not in STATISTICS:
        raise ValueError(f"statistics: expected one of {', '.join(STATISTICS)}, got {statistics}")
    processor = start.processor
    if processor is None or statistics != "checkpoint":
        processor = training_processor(data, bands, processor)
    make_area: Callable[[str], AreaTensors] = lambda split: AreaTensors.of(
        data, split, processor, bands, window_size, own_statistics=statistics == "area"
    )
    training = make_area("train")
    set_seed(settings.seed)
    started = time.perf_counter()
    if entry.kind in ("hsst", "network"):
        network = build_network(name, data, settings, options, start, window_size)
        if settings.head_start == "checkpoint":
            assert options.checkpoint is not None  # check_model looks
            start_from_head(network, options.checkpoint, settings, options.merged)
        stops_early = data.class_counts("validation").any() and settings.early_stopping_patience is not None
        validation = make_area("validation") if stops_early else None
        fine_tuned = fine_tune(network, training, settings, validation=validation, progress=progress)
        trained = time.perf_counter()
        test = make_area("test")
        maps = predict(network, test, settings, labelled_only=labelled_only, progress=progress)
        results: dict[str, Any] = {"model": network, "parameters": network.num_parameters(), "training": fine_tuned}
    else:
        features: Callable[[AreaTensors, np.ndarray], np.ndarray] = lambda area, pixels: area.spectra(pixels)
        if entry.kind == "features":
            assert options.checkpoint is not None and base is not None
            encoder = HSSTForSemanticSegmentation(
                HSSTConfig(**own_settings(base, {"image_size": window_size, "head_type": options.head_type or "mean"}))
            )
            take_encoder(encoder, start.encoder or options.checkpoint)
            encoder = use_fast_layers(encoder.hsst.eval())
            if torch.cuda.is_available() and not settings.use_cpu:
                encoder = encoder.to("cuda")
            features = lambda area, pixels: remembered_features(encoder, area, pixels, settings)
        pixels = training.labelled_pixels()
        head = head_of(name, settings.seed, settings.class_weights == "balanced")
        seen, classes = [features(training, pixels)], training.classes(pixels)
        fitted = tuned(head, seen, classes, fold_groups(pixels), settings.seed)
        trained = time.perf_counter()
        test = make_area("test")
        wanted = test.labelled_pixels() if labelled_only else test.own_pixels()
        maps = map_of(test, wanted, fitted.classifier.predict(features(test, wanted)))
        results = {"model": fitted.classifier, "chosen": fitted.settings}
    return Outcome(
        maps=maps,
        confusion=confusion_of(maps, test),
        processor=processor,
        bands=bands,
        train_seconds=trained - started,
        predict_seconds=time.perf_counter() - trained,
        adaptation=start.adaptation,
        **results,
    )


_remembered: dict[str, np.ndarray] = {}
"""Features of whole areas by what they depend on: seeds and budgets of an experiment share them."""


def remembered_features(
    encoder: Any, area: AreaTensors, pixels: np.ndarray, settings: FineTuningSettings
) -> np.ndarray:
    """`frozen_features` of all pixels of an area, computed once for the same encoder and area; of `pixels` then."""
    every, concatenated = area.own_pixels(), encoder.config.head_type == "concat"
    tensors = (*encoder.state_dict().values(), *area.pixel_values, *area.pixel_mask, *area.own)
    arrays = [tensor.detach().cpu().numpy() for tensor in tensors]
    key = fingerprint(f"{settings.precision} {area.window_size} {concatenated}", *arrays)
    if key not in _remembered:
        if len(_remembered) >= 8:
            _remembered.pop(next(iter(_remembered)))
        _remembered[key] = frozen_features(
            encoder, area, every, settings.eval_batch_size, settings.precision, concatenated
        )
    places = {tuple(pixel): number for number, pixel in enumerate(every.tolist())}
    return _remembered[key][[places[tuple(pixel)] for pixel in pixels.tolist()]]


@torch.no_grad()
def start_from_head(
    network: Any, checkpoint: str, settings: FineTuningSettings, merged: Mapping[str, Sequence[str]]
) -> None:
    """
    Initializes the classifier of a network from a checkpoint, matching classes by name. Where several checkpoint
    classes map to one class, their weights are averaged so that it gets no advantage from their number. ValueError
    where the network is not one of HSST, its classifier does not see single pixels, or the checkpoint has no such
    classifier or does not know a class.
    """
    if not hasattr(network, "hsst") or settings.task != "dense" or network.config.patch_size != 1:
        raise ValueError(
            "head_start: expected HSST for the task dense with patches of one pixel to start from a checkpoint's "
            f"head, got {type(network).__name__}, {settings.task}"
        )
    config: Any = load_config(checkpoint)
    if config.architectures != [HSSTForSemanticSegmentation.__name__]:
        raise ValueError(f"{checkpoint}: expected a model with a classifier of pixels, got one without")
    pretrained = load_model(HSSTForSemanticSegmentation, checkpoint, config)
    state, own = pretrained.head.state_dict(), network.head.state_dict()
    if pretrained.config.patch_size != 1 or state["classifier.weight"].shape[1] != own["classifier.weight"].shape[1]:
        raise ValueError(
            f"{checkpoint}: expected a classifier of {own['classifier.weight'].shape[1]} features of single pixels "
            f"(--head_start checkpoint), got one of {state['classifier.weight'].shape[1]}"
        )
    names = [network.config.id2label[number] for number in range(network.config.num_labels)]
    stands_for = matched_classes([config.id2label[number] for number in range(len(config.id2label))], names, merged)
    known = [[number for number, stands in enumerate(stands_for) if stands == own] for own in range(len(names))]
    unknown = [name for name, numbers in zip(names, known, strict=True) if not numbers]
    if unknown:
        raise ValueError(
            f"{checkpoint}: expected a classifier of the classes of the data (--head_start checkpoint; --merge for "
            f"other names), got none for {', '.join(unknown)}"
        )
    network.head.load_state_dict(
        {
            name: torch.stack([value[rows].mean(dim=0) for rows in known]) if name.startswith("classifier.") else value
            for name, value in state.items()
        }
    )


def check_classes(data: LabelledData) -> None:
    """Raises ValueError where fewer than two classes have training pixels, or nothing is there to be tested."""
    counts = {split: data.class_counts(split) for split in SPLITS}
    trained = [name for name, count in zip(data.class_names, counts["train"], strict=True) if count]
    if len(trained) < 2:
        raise ValueError(
            f"expected training labels of at least 2 classes, got {len(trained)} ({', '.join(trained) or 'none'})"
        )
    if not counts["test"].any():
        raise ValueError("expected labelled test pixels, got none")


def untrained_of(data: LabelledData) -> dict[str, int]:
    """Classes that are tested but never trained, with their test pixels."""
    counts = zip(data.class_names, data.class_counts("train"), data.class_counts("test"), strict=True)
    return {name: int(tested) for name, trained, tested in counts if tested and not trained}


def warn_of_untrained_classes(data: LabelledData) -> None:
    for name, tested in untrained_of(data).items():
        logger.warning("class %s has %d test pixels and no training pixel: none of them can be right", name, tested)


def load_config(checkpoint: str) -> HSSTConfig:
    """The configuration of a checkpoint; networks of its size are built before its weights are read."""
    config = read_config(checkpoint, "--model_name_or_path")
    check_sizes(HSSTModel, checkpoint, config)
    return config


def choose_window_size(settings: FineTuningSettings, options: ModelOptions, base: HSSTConfig | None) -> int:
    """Side of a window in pixels; ValueError where the center of one of even size is asked for, or a stride that
    leaves pixels out."""
    size = options.window_size
    if size is None:
        if base is not None and base.window_size[0] == base.window_size[1]:
            size = base.window_size[0]
            size -= settings.task == "center" and size % 2 == 0
        else:
            size = 8 if settings.task == "dense" else 7
    if settings.task == "center" and size % 2 == 0:
        raise ValueError(f"window_size: expected an odd number of pixels for the task center, got {size}")
    if settings.task == "dense" and settings.stride is not None and settings.stride > size:
        raise ValueError(f"stride: expected 1 to {size} pixels, the window's side, got {settings.stride}")
    return size


@dataclass(frozen=True)
class StartingPoint:
    """What a model starts from on the data: some of their bands, and configuration and processor of the checkpoint,
    where there is one; the encoder only where it was adapted to the bands, as the others were then."""

    bands: list[int]
    config: HSSTConfig | None = None
    processor: HSSTImageProcessor | None = None
    encoder: HSSTModel | None = None
    adaptation: AdaptationReport | None = None


def starting_point(data: LabelledData, options: ModelOptions) -> StartingPoint:
    """The checkpoint, adapted to the bands of the data where that is asked for and needed; ValueError where they do
    not fit, and it cannot or shall not be adapted."""
    if options.checkpoint is None:
        if options.adapt_bands:
            raise ValueError("--adapt_bands: expected a checkpoint to adapt (--model_name_or_path), got none")
        return StartingPoint(choose_bands(data, None, None, None))
    config = load_config(options.checkpoint)
    processor = read_processor(options.checkpoint, config)
    try:
        return StartingPoint(choose_bands(data, config, processor, options.checkpoint), config, processor)
    except ValueError:
        if not options.adapt_bands:
            raise
    if data.wavelengths is None:
        raise ValueError("--adapt_bands: expected data whose wavelengths are known, got data without wavelengths")
    bands = np.flatnonzero(data.valid_bands).tolist()
    wavelengths = data.wavelengths[bands].tolist()
    try:
        encoder, report = adapt_to_wavelengths(pretrained_encoder(options.checkpoint), wavelengths, return_report=True)
        adapted_processor = adapt_processor(processor, wavelengths)
    except ValueError as error:
        raise ValueError(f"--adapt_bands: {options.checkpoint}: {error}") from None
    return StartingPoint(bands, encoder.config, adapted_processor, encoder, report)


def choose_bands(
    data: LabelledData, base: HSSTConfig | None, processor: HSSTImageProcessor | None, checkpoint: str | None
) -> list[int]:
    """Band indices of the data: those of a checkpoint; or else the 200 of EnMAP's models where they are there and hold
    data; or else all that hold data. ValueError where the data lack a band of the checkpoint, or hold nothing in it.
    """
    valid = data.valid_bands
    if base is None:
        if data.wavelengths is not None:
            finder = HSSTImageProcessor(wavelengths=list(ENMAP_WAVELENGTHS))
            with contextlib.suppress(ValueError):
                return finder.match_wavelengths(data.wavelengths, valid)
        return np.flatnonzero(valid).tolist()
    advice = "adapt the checkpoint to these bands (--adapt_bands, or adapt_to_wavelengths)"
    if data.wavelengths is not None and processor is not None and processor.wavelengths is not None:
        try:
            bands = processor.match_wavelengths(data.wavelengths, valid)
        except ValueError as error:
            raise ValueError(f"{checkpoint}: {str(error).rstrip('.')}: {advice}") from None
    elif data.num_bands == base.num_channels:
        bands = list(range(data.num_bands))
    elif int(valid.sum()) == base.num_channels:
        bands = np.flatnonzero(valid).tolist()
    else:
        raise ValueError(
            f"{checkpoint}: expected data of the {base.num_channels} bands of the checkpoint, got "
            f"{data.num_bands} bands: {advice}"
        )
    if not valid[bands].all():
        missing = int((~valid[bands]).sum())
        raise ValueError(
            f"{checkpoint}: expected data in each of its {base.num_channels} bands, got {missing} without any: "
            f"{advice}"
        )
    return bands


def training_processor(
    data: LabelledData, bands: list[int], pretrained: HSSTImageProcessor | None = None
) -> HSSTImageProcessor:
    """A processor with the statistics of the pixels of the training area, labelled or not.

    Its scale is that of a checkpoint, or 10000; or, where more than 1 % of the training values lie above that
    (numbers that are not reflectance), their 99.9th percentile.
    """
    parts = []
    for scene in data.scenes:
        pixels = data.split.mask(scene.name, "train") & scene.valid
        rows, columns = pixels.nonzero()
        parts.append(scene.cube[:, rows, columns][bands])
    spectra = np.concatenate(parts, axis=1)
    scale = ENMAP.scale if pretrained is None else float(pretrained.scale)
    if pretrained is None and (spectra > scale).mean() > 0.01:
        scale = float(np.percentile(spectra, 99.9))
    low, high = HSSTImageProcessor.clip_range if pretrained is None else pretrained.clip_range
    mean, deviation = np.empty(len(bands)), np.empty(len(bands))
    for number, band in enumerate(spectra):
        reflectance = np.clip(band.astype(np.float64) / scale, low, high)
        mean[number], deviation[number] = reflectance.mean(), reflectance.std()
    picks_bands = bands != list(range(data.num_bands))
    return HSSTImageProcessor(
        image_mean=mean.tolist(),
        image_std=np.maximum(deviation, SMALLEST_DEVIATION).tolist(),
        wavelengths=None if data.wavelengths is None else data.wavelengths[bands].tolist(),
        band_indices=bands if picks_bands else None,
        num_source_bands=data.num_bands if picks_bands else None,
        scale=scale,
        nodata=ENMAP.nodata,
        clip_range=[low, high],
    )


def build_network(
    name: str,
    data: LabelledData,
    settings: FineTuningSettings,
    options: ModelOptions,
    start: StartingPoint,
    window_size: int,
) -> PreTrainedModel:
    """A network with weights of its own or of the checkpoint, adapted where it was, and a new head."""
    config = hsst_config(data, settings, options, start, window_size)
    model_class = HSSTForSemanticSegmentation if settings.task == "dense" else HSSTForImageClassification
    if name == "sequence-transformer":
        layers = config.num_hidden_layers
        config = HSSTConfig(**own_settings(config, {"num_spatial_layers": 0, "num_spectral_layers": layers}))
        return model_class(_with_labels(config, data))
    if model_entry(name).kind == "hsst":
        network = model_class(config)
        if model_entry(name).needs_checkpoint:
            assert options.checkpoint is not None
            take_encoder(network, start.encoder or options.checkpoint)
        return network
    baseline = _with_labels(
        BaselineConfig(
            architecture=name,
            num_channels=len(start.bands),
            image_size=window_size,
            num_hidden_layers=config.num_hidden_layers,
            per_pixel=settings.task == "dense",
        ),
        data,
    )
    if name == "vit":
        with torch.device("meta"):
            target = model_class(config).num_parameters()
        # heads are few where the model is so small that multiples of four are too far apart
        for heads in (4, 2, 1):
            baseline.num_attention_heads = heads
            baseline.hidden_size, distance = vit_width(target, baseline)
            if distance <= PARAMETER_TOLERANCE * target:
                break
        else:
            raise ValueError(
                f"vit: expected a width with {target:,} parameters, give or take {PARAMETER_TOLERANCE:.0%}, got none"
            )
    return BaselineModel(baseline)


def hsst_config(
    data: LabelledData, settings: FineTuningSettings, options: ModelOptions, start: StartingPoint, window_size: int
) -> HSSTConfig:
    """The configuration of HSST for the data: the checkpoint's, or the default one with the overrides."""
    changes: dict[str, Any] = {"image_size": window_size}
    if start.config is None:
        wavelengths = None if data.wavelengths is None else data.wavelengths[start.bands].tolist()
        changes |= {"num_channels": len(start.bands), "wavelengths": wavelengths, "spectral_positions": None}
    changes |= options.config_overrides
    if options.head_type is not None:
        changes["head_type"] = options.head_type
    if options.dropout is not None:
        changes |= {"hidden_dropout_prob": options.dropout, "attention_probs_dropout_prob": options.dropout}
    changes["head_type"] = "center" if settings.task == "center" else changes.get("head_type", "mean")
    return _with_labels(HSSTConfig(**own_settings(start.config or HSSTConfig(), changes)), data)


def own_settings(config: HSSTConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a configuration, some of them changed, without those of a task."""
    names = [name for name in HSSTConfig.__annotations__ if not name.startswith("_") and name != "model_type"]
    return {**{name: getattr(config, name) for name in names}, **changes}


def _with_labels(config: Any, data: LabelledData) -> Any:
    config.id2label = dict(enumerate(data.class_names))
    config.label2id = {name: number for number, name in enumerate(data.class_names)}
    return config


def pretrained_encoder(checkpoint: str) -> HSSTModel:
    """The encoder of a checkpoint, whole; ValueError where it is not."""
    return load_model(HSSTModel, checkpoint, load_config(checkpoint), unused=OTHER_PARTS)


def take_encoder(model: Any, checkpoint: str | HSSTModel) -> None:
    """Gives the encoder of an HSST model with a head, for the same bands, the weights of a checkpoint or of its
    encoder; position embeddings are interpolated to its windows. ValueError where weights are missing."""
    pretrained: Any = pretrained_encoder(checkpoint) if isinstance(checkpoint, str) else checkpoint
    state = pretrained.state_dict()
    positions = pretrained.embeddings.position_embeddings
    grid = model.config.grid_size
    if grid != pretrained.config.grid_size:
        prefix = "embeddings.position_embeddings."
        with torch.no_grad():
            if pretrained.config.position_embedding_type == "learned":
                table = positions.position_embeddings
                tokens = positions.interpolate(table[:, :-1].unflatten(1, (model.config.num_blocks, -1)), grid)
                resized = torch.cat([tokens.flatten(1, 2), table[:, -1:]], dim=1)
                state[f"{prefix}position_embeddings"] = resized
            elif pretrained.config.position_embedding_type == "sincos":
                table = positions.interpolate(positions.spatial_embeddings.unsqueeze(1), grid)
                state[f"{prefix}spatial_embeddings"] = table.squeeze(1)
            elif pretrained.config.position_embedding_type == "relative":
                for number, layer in enumerate(pretrained.spatial_layers):
                    name = f"spatial_layers.{number}.attention.position_bias.bias"
                    state[name] = layer.attention.position_bias.for_grid(grid)
    model.hsst.load_state_dict(state)


def save_network(outcome: Outcome, folder: str | Path) -> None:
    """Writes a trained network and its processor, for `from_pretrained`."""
    outcome.model.to("cpu").save_pretrained(folder)
    outcome.processor.save_pretrained(folder)

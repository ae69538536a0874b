"""Fine-tuning on few labelled pixels, and maps of whole areas, for every network with the face of HSST's heads.

Scenes with labels are small: their standardized pixels stay in memory, windows are cut by index, and training is
transformers' `Trainer` without its files. Pixels of other splits are hidden in every window (`pixel_mask` 0, value 0),
so that whatever is cut shows nothing of the area that is scored.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import count
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import IterableDataset
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from datasets_loading.labelled_data import LabelledData
from datasets_loading.land_cover_metric import confusion_matrix, land_cover_scores
from datasets_loading.sensors import ENMAP
from datasets_loading.splits import NO_SPLIT, SPLITS, UNLABELLED, window_margins
from hsst.support.augmentations import CorrectionErrors, SpectralCrop
from hsst.support.training_settings import FineTuningSettings
from modeling_hsst import HSSTImageProcessor, use_fast_layers
from modeling_hsst.scene_prediction_hsst import SMALLEST_DEVIATION

LARGEST_WEIGHT = 1e6
"""Weights of networks that learn are of the order of 1: beyond this, what is computed with them means nothing."""


@dataclass(eq=False)
class AreaTensors:
    """Pixels of one split in memory, standardized once, with a margin of one window on every side; lists hold one
    entry for each scene with pixels of the split."""

    data: LabelledData
    split: str  # "train", "validation" or "test"
    window_size: int  # side of the windows that will be cut, in pixels
    pixel_values: list[torch.Tensor]  # float32 (bands, rows, columns)
    pixel_mask: list[torch.Tensor]  # bool (rows, columns); False without data, and at pixels of other splits
    labels: list[torch.Tensor]  # int64 (rows, columns); 255 = unlabelled or not of this split
    own: list[torch.Tensor]  # bool (rows, columns): pixels of the split with data
    places: list[tuple[int, int, int]]  # number of the scene, row and column of the first pixel; may be negative
    mean: torch.Tensor  # reflectance that is 0, float32 (bands,)
    deviation: torch.Tensor  # difference of reflectance that is 1, float32 (bands,)
    wavelengths: np.ndarray | None = None  # band centers in nm, float64 (bands,)

    @classmethod
    def of(
        cls,
        data: LabelledData,
        split: str,
        processor: HSSTImageProcessor,
        bands: Sequence[int],
        window_size: int,
        *,
        own_statistics: bool = False,
    ) -> AreaTensors:
        """Cuts the area of a split out of the scenes; ValueError where it has no labelled pixel.

        The processor's bands are `bands` of the scenes. With `own_statistics`, mean and deviation are those of the
        area's own pixels, labelled or not, in place of the processor's.
        """
        code = SPLITS.index(split)
        area = cls(data, split, window_size, [], [], [], [], [], torch.zeros(len(bands)), torch.ones(len(bands)))
        if data.wavelengths is not None:
            area.wavelengths = data.wavelengths[list(bands)]
        for number, scene in enumerate(data.scenes):
            codes = data.split.codes[scene.name]
            rows, columns = np.nonzero(codes == code)
            if not len(rows) or not (scene.labels[rows, columns] != UNLABELLED).any():
                continue
            first = rows.min() - window_size, columns.min() - window_size
            last = rows.max() + 1 + window_size, columns.max() + 1 + window_size
            pixels = _cut(scene.cube[list(bands)], first, last, ENMAP.nodata)
            own_codes = _cut(codes[None], first, last, NO_SPLIT)[0]
            values, valid = processor.standardize(torch.from_numpy(pixels)[None], nodata=ENMAP.nodata)
            hidden = torch.from_numpy((own_codes != code) & (own_codes != NO_SPLIT))
            valid = valid[0] & ~hidden
            own = torch.from_numpy(own_codes == code) & valid
            labels = torch.from_numpy(_cut(scene.labels[None], first, last, UNLABELLED)[0].astype(np.int64))
            area.pixel_values.append(values[0].masked_fill(~valid, 0.0))
            area.pixel_mask.append(valid)
            area.labels.append(labels.masked_fill(~own, UNLABELLED))
            area.own.append(own)
            area.places.append((number, int(first[0]), int(first[1])))
        if not any((labels != UNLABELLED).any() for labels in area.labels):
            raise ValueError(f"expected labelled {split} pixels with data, got none")
        if processor.image_mean is not None:
            area.mean = torch.tensor(processor.image_mean, dtype=torch.float32)
        if processor.image_std is not None:
            area.deviation = torch.tensor(processor.image_std, dtype=torch.float32)
        if own_statistics:
            area._standardize_again()
        return area

    def _standardize_again(self) -> None:
        spectra = torch.cat([values[:, own] for values, own in zip(self.pixel_values, self.own, strict=True)], dim=1)
        smallest = SMALLEST_DEVIATION / self.deviation
        shift, factor = spectra.mean(dim=1), torch.maximum(spectra.std(dim=1, unbiased=False), smallest)
        for values, valid in zip(self.pixel_values, self.pixel_mask, strict=True):
            values.sub_(shift[:, None, None]).div_(factor[:, None, None]).masked_fill_(~valid, 0.0)
        self.mean, self.deviation = self.mean + shift * self.deviation, self.deviation * factor

    def labelled_pixels(self) -> np.ndarray:
        """Number of the tensor, row and column of each labelled pixel, int64 (pixels, 3)."""
        return self._pixels([labels != UNLABELLED for labels in self.labels])

    def own_pixels(self) -> np.ndarray:
        """Number of the tensor, row and column of each pixel of the split with data, int64 (pixels, 3)."""
        return self._pixels(self.own)

    @staticmethod
    def _pixels(masks: Sequence[torch.Tensor]) -> np.ndarray:
        places = [np.insert(mask.nonzero().numpy(), 0, number, axis=1) for number, mask in enumerate(masks)]
        return np.concatenate(places).astype(np.int64)

    def spectra(self, pixels: np.ndarray) -> np.ndarray:
        """Standardized values of pixels (`labelled_pixels`), float32 (pixels, bands)."""
        numbers, rows, columns = pixels.T
        spectra = np.empty((len(pixels), len(self.mean)), dtype=np.float32)
        for number, values in enumerate(self.pixel_values):
            here = numbers == number
            spectra[here] = values.numpy()[:, rows[here], columns[here]].T
        return spectra

    def classes(self, pixels: np.ndarray) -> np.ndarray:
        """Labels of pixels, int64 (pixels,)."""
        return np.array([int(self.labels[number][row, column]) for number, row, column in pixels], dtype=np.int64)

    def windows(self, corners: np.ndarray | torch.Tensor, task: str) -> dict[str, torch.Tensor]:
        """Windows by number of the tensor, row and column of their upper left pixel, (windows, 3): pixel_values
        float32 (windows, bands, size, size), pixel_mask bool (windows, size, size), and labels int64, (windows, size,
        size) for "dense", (windows,) for "center"."""
        size = self.window_size
        values, masks, labels = [], [], []
        for number, row, column in np.asarray(corners).tolist():
            rows, columns = slice(row, row + size), slice(column, column + size)
            values.append(self.pixel_values[number][:, rows, columns])
            masks.append(self.pixel_mask[number][rows, columns])
            labels.append(self.labels[number][rows, columns])
        windows = {"pixel_values": torch.stack(values), "pixel_mask": torch.stack(masks)}
        label_windows = torch.stack(labels)
        windows["labels"] = label_windows if task == "dense" else label_windows[:, size // 2, size // 2]
        return windows

    def to_scenes(self, maps: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Maps of the tensors laid on their scenes, uint8 (height, width), 255 outside the area, by scene."""
        laid = {}
        for values, own, (number, first_row, first_column) in zip(maps, self.own, self.places, strict=True):
            scene = self.data.scenes[number]
            full = np.full(scene.shape, UNLABELLED, dtype=np.uint8)
            rows, columns = own.numpy().nonzero()
            full[rows + first_row, columns + first_column] = values[rows, columns]
            laid[scene.name] = full
        return laid


def _cut(values: np.ndarray, first: tuple[int, int], last: tuple[int, int], fill: int) -> np.ndarray:
    """Rows and columns from `first` to before `last` of (..., height, width); `fill` beyond the edges."""
    height, width = values.shape[1:]
    cut = np.full((len(values), last[0] - first[0], last[1] - first[1]), fill, dtype=values.dtype)
    top, left = max(first[0], 0), max(first[1], 0)
    bottom, right = min(last[0], height), min(last[1], width)
    cut[:, top - first[0] : bottom - first[0], left - first[1] : right - first[1]] = values[:, top:bottom, left:right]
    return cut


class TrainingCorners(IterableDataset):
    """Corners of training windows without end: epoch after epoch each labelled pixel once, in new places.

    For "dense", an epoch is a grid of windows whose offset is drawn anew, as far as they hold labelled pixels; for
    "center", a window around each labelled pixel.
    """

    def __init__(self, area: AreaTensors, task: str, seed: int) -> None:
        self.pixels = area.labelled_pixels()
        self.window_size = area.window_size
        self.task = task
        self.seed = seed

    def __iter__(self) -> Iterator[torch.Tensor]:
        for epoch in count():
            generator = np.random.default_rng((self.seed, epoch))
            yield from torch.from_numpy(generator.permutation(self.epoch(generator)))

    def epoch(self, generator: np.random.Generator) -> np.ndarray:
        """Corners of one epoch, int64 (windows, 3)."""
        before, _ = window_margins(self.window_size)
        if self.task == "center":
            return self.pixels - (0, before, before)
        # at most a window's side above the first pixel, which the margin of the tensors allows
        offset = np.array([0, *generator.integers(0, self.window_size, 2)])
        cells = np.array([1, self.window_size, self.window_size])
        return np.unique((self.pixels + offset) // cells, axis=0) * cells - offset


class WindowCollator:
    """Cuts the windows of a batch and augments them as the settings ask."""

    def __init__(self, area: AreaTensors, settings: FineTuningSettings) -> None:
        self.area = area
        self.settings = settings
        self.generator = torch.Generator().manual_seed(settings.seed)
        if settings.turns and settings.task == "center" and area.window_size % 2 == 0:
            raise ValueError(f"turns: expected windows of odd size, which have a center, got {area.window_size}")
        self.errors = None
        if settings.path_radiance or settings.calibration:
            if area.wavelengths is None:
                raise ValueError("path_radiance, calibration: expected scenes with wavelengths, got none")
            self.errors = CorrectionErrors(area.wavelengths.tolist(), settings.path_radiance, settings.calibration)

    def __call__(self, corners: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        batch = self.area.windows(torch.stack(list(corners)), self.settings.task)
        count = len(batch["labels"])
        if self.settings.turns:
            turns = torch.randint(0, 8, (count,), generator=self.generator).tolist()
            for name, tensor in batch.items():
                if tensor.ndim > 1:
                    turned = [turn_window(window, turn) for window, turn in zip(tensor, turns, strict=True)]
                    batch[name] = torch.stack(turned)
        values = batch["pixel_values"]
        if self.errors is not None:
            factor, added = self.errors.draw(count, self.generator)
            dark = (self.area.mean / self.area.deviation)[:, None, None]
            values = (values + dark) * factor[:, :, None, None] - dark
            values = values + (added / self.area.deviation)[:, :, None, None]
        batch["pixel_values"] = values.masked_fill(~batch["pixel_mask"].unsqueeze(1), 0.0)
        return batch


def turn_window(window: torch.Tensor, turn: int) -> torch.Tensor:
    """A window (..., rows, columns) turned by `turn % 4` quarters, and flipped before that if `turn` is 4 or more."""
    return torch.rot90(window.flip(-1) if turn >= 4 else window, turn % 4, (-2, -1))


@dataclass
class FineTuned:
    """What fine-tuning did."""

    steps: int  # taken; fewer than asked for where training was stopped early
    seconds: float  # of training, wall-clock
    loss: float  # mean over training
    best_step: int | None = None  # whose weights were taken, where a validation area decided
    validation: dict[int, float] = field(default_factory=dict)  # average accuracy on the validation area by step


def fine_tune(
    model: nn.Module,
    training: AreaTensors,
    settings: FineTuningSettings,
    *,
    validation: AreaTensors | None = None,
    progress: bool = False,
) -> FineTuned:
    """
    Trains a model in place on the labelled pixels of an area; it is left in evaluation mode, on its device.

    The model takes (pixel_values, pixel_mask) and returns `logits`, (windows, classes, rows, columns) for "dense",
    (windows, classes) for "center"; its classifier's parameters are named `head...`. The validation area decides when
    to stop. ValueError where fewer than two classes have training pixels, the settings need what is not there, or
    training diverged.
    """
    if settings.max_steps == 0 and settings.num_epochs is None:
        on_device(model, settings).eval()
        return FineTuned(0, 0.0, math.nan)
    counts = np.bincount(training.classes(training.labelled_pixels()), minlength=len(training.data.class_names))
    if (counts > 0).sum() < 2:
        raise ValueError(f"expected training labels of at least 2 classes, got {int((counts > 0).sum())}")
    if settings.early_stopping_patience is not None and validation is None:
        raise ValueError("early_stopping_patience: expected a validation area, got none")
    weights = None
    if settings.class_weights == "balanced":
        present = counts > 0
        inverse = np.where(present, counts.sum() / np.maximum(counts, 1) / present.sum(), 0.0)
        weights = torch.tensor(inverse, dtype=torch.float32)
    if settings.freeze_encoder and not hasattr(model, "hsst"):
        raise ValueError(f"freeze_encoder: expected a model with the encoder of HSST, got {type(model).__name__}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head.") or not settings.freeze_encoder)
    if hasattr(model, "hsst"):
        use_fast_layers(model)
    corners = TrainingCorners(training, settings.task, settings.seed)
    if settings.num_epochs is not None:
        steps_of_an_epoch = math.ceil(len(corners.epoch(np.random.default_rng(settings.seed))) / settings.batch_size)
        settings = replace(settings, max_steps=max(settings.max_steps, settings.num_epochs * steps_of_an_epoch))
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=settings.max_steps,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            lr_scheduler_type="cosine",
            warmup_steps=math.ceil(settings.warmup_share * settings.max_steps),
            logging_steps=settings.max_steps,
            save_strategy="no",
            report_to="none",
            seed=settings.seed,
            bf16=settings.precision == "bfloat16",
            use_cpu=settings.use_cpu or not torch.accelerator.is_available(),
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            disable_tqdm=not progress,
        )
        # A window is little work: one process uses one device, others take other runs
        arguments._n_gpu = min(arguments.n_gpu, 1)
        trainer = FineTuner(
            settings,
            weights,
            model=model,
            args=arguments,
            train_dataset=corners,
            data_collator=WindowCollator(training, settings),
            optimizers=(torch.optim.AdamW(parameter_groups(model, settings), lr=settings.learning_rate), None),
        )
        trainer.remove_callback(PrinterCallback)
        stopping = None
        if settings.early_stopping_patience is not None and validation is not None:
            stopping = EarlyStopping(validation, settings)
            trainer.add_callback(stopping)
        started = time.perf_counter()
        output = trainer.train()
    result = FineTuned(output.global_step, time.perf_counter() - started, float(output.training_loss))
    if has_diverged(model, result.loss):
        raise ValueError(f"learning_rate: expected one with a finite loss, got {settings.learning_rate} (diverged)")
    if stopping is not None and stopping.best_state is not None:
        model.load_state_dict(stopping.best_state)
        result.best_step, result.validation = stopping.best_step, stopping.scores
    model.eval()
    return result


def on_device(model: nn.Module, settings: FineTuningSettings) -> nn.Module:
    """The model on the accelerator, where there is one and the settings do not ask for the CPU."""
    accelerator = None if settings.use_cpu else torch.accelerator.current_accelerator(check_available=True)
    # Not `.to` of the class, whose decorated signature type checkers misread
    return nn.Module.to(model, device=accelerator or torch.device("cpu"))


def has_diverged(model: nn.Module, loss: float) -> bool:
    """Whether training blew a network up: its loss is not finite, or a weight is not or is beyond `LARGEST_WEIGHT`."""
    # NaN is in no order, so that it is not below either
    return not math.isfinite(loss) or not all(bool((p.abs() < LARGEST_WEIGHT).all()) for p in model.parameters())


class FineTuner(Trainer):
    """`Trainer` with class weights and spectral crops."""

    def __init__(self, settings: FineTuningSettings, class_weights: torch.Tensor | None, **kwargs: Any) -> None:
        self.settings = settings
        self.class_weights = class_weights
        super().__init__(**kwargs)
        model: Any = self.model
        self.crop = SpectralCrop(model, settings.spectral_crop, settings.seed) if settings.spectral_crop else None
        # the loss is a mean over the labelled pixels of the batch, so that Trainer has nothing to divide by
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        if self.settings.freeze_encoder:
            # an encoder that does not learn gives the same features every time: without dropout
            self.accelerator.unwrap_model(model).hsst.eval()
        windows = {name: inputs[name] for name in ("pixel_values", "pixel_mask")}
        blocks = None if self.crop is None else self.crop.draw()
        if self.crop is None or blocks is None:
            outputs = model(**windows)
        else:
            with self.accelerator.autocast():
                outputs = self.crop(blocks, **windows)
        labels, weights = inputs["labels"], self.class_weights
        weights = None if weights is None else weights.to(outputs.logits.device)
        losses = nn.functional.cross_entropy(
            outputs.logits.float(), labels, weight=weights, ignore_index=UNLABELLED, reduction="none"
        )
        labelled = labels != UNLABELLED
        total = labelled.float() if weights is None else weights[labels.masked_fill(~labelled, 0)] * labelled
        loss = losses.sum() / total.sum().clamp(min=1e-6)
        return (loss, outputs) if return_outputs else loss


def parameter_groups(model: nn.Module, settings: FineTuningSettings) -> list[dict[str, Any]]:
    """Parameters that learn, with their learning rates and weight decay."""
    head_rate = settings.learning_rate if settings.head_learning_rate is None else settings.head_learning_rate
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = head_rate if name.startswith("head.") else settings.learning_rate
            decays = parameter.ndim > 1 and not re.search(r"norm|bias|position_embeddings|_token", name)
            groups.setdefault((rate, settings.weight_decay if decays else 0.0), []).append(parameter)
    return [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]


class EarlyStopping(TrainerCallback):
    """Keeps the weights with the best average accuracy on the validation area, and stops when none follows."""

    def __init__(self, validation: AreaTensors, settings: FineTuningSettings) -> None:
        self.validation = validation
        self.settings = settings
        self.scores: dict[int, float] = {}
        self.best_step: int | None = None
        self.best_state: dict[str, torch.Tensor] | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.settings.evaluation_steps and state.global_step != self.settings.max_steps:
            return
        model = kwargs["model"]
        maps = predict(model, self.validation, self.settings, labelled_only=True)
        score = land_cover_scores(confusion_of(maps, self.validation))["average_accuracy"]
        model.train()
        self.scores[state.global_step] = score
        if self.best_step is None or score > self.scores[self.best_step]:
            self.best_step, self.best_state = state.global_step, deepcopy(model.state_dict())
        waited = (state.global_step - self.best_step) // self.settings.evaluation_steps
        if waited >= (self.settings.early_stopping_patience or 0):
            control.should_training_stop = True


@torch.no_grad()
def predict(
    model: nn.Module,
    area: AreaTensors,
    settings: FineTuningSettings,
    *,
    labelled_only: bool = False,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """
    Classes of all pixels of an area by the scene's name, uint8 (height, width), 255 where nothing was predicted. For
    "dense", windows overlap and their probabilities are averaged; for "center", every pixel has its own window.
    `labelled_only` leaves out windows without labelled pixels, where no map is wanted.
    """
    model.eval()
    device = next(model.parameters()).device
    size = area.window_size
    pixels = area.labelled_pixels() if labelled_only else area.own_pixels()
    before, _ = window_margins(size)
    if settings.task == "center":
        corners = pixels - (0, before, before)
    else:
        corners = covering_corners(pixels, size, settings.stride or max(size // 2, 1))
    num_classes = len(area.data.class_names)
    sums = [torch.zeros((num_classes, *own.shape)) for own in area.own]
    batches = range(0, len(corners), settings.eval_batch_size)
    for start in tqdm(batches, desc="predicting", disable=not progress):
        batch_corners = corners[start : start + settings.eval_batch_size]
        batch = area.windows(batch_corners, settings.task)
        values, mask = batch["pixel_values"].to(device), batch["pixel_mask"].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            logits = model(pixel_values=values, pixel_mask=mask).logits
        probabilities = logits.float().softmax(dim=1).cpu()
        for (number, row, column), window in zip(batch_corners.tolist(), probabilities, strict=True):
            if settings.task == "dense":
                sums[number][:, row : row + size, column : column + size] += window
            else:
                sums[number][:, row + before, column + before] = window
    maps = []
    for total in sums:
        classes = total.argmax(dim=0).to(torch.uint8).numpy()
        maps.append(np.where((total > 0).any(dim=0).numpy(), classes, UNLABELLED).astype(np.uint8))
    return area.to_scenes(maps)


def covering_corners(pixels: np.ndarray, window_size: int, stride: int) -> np.ndarray:
    """Corners of all windows on a grid of `stride` pixels that hold one of the pixels, int64 (windows, 3); ValueError
    where the stride is larger than a window, so that pixels would be left out."""
    if not 1 <= stride <= window_size:
        raise ValueError(f"stride: expected 1 to {window_size} pixels, the window's side, got {stride}")
    reach = -(-window_size // stride)
    steps = np.array([(0, row, column) for row in range(reach) for column in range(reach)]) * stride
    last = pixels // (1, stride, stride) * (1, stride, stride)
    corners = (last[:, None] - steps[None]).reshape(-1, 3)
    repeated = np.repeat(pixels, len(steps), axis=0)
    holds = (repeated[:, 1:] - corners[:, 1:] < window_size).all(axis=1) & (corners[:, 1:] >= 0).all(axis=1)
    return np.unique(corners[holds], axis=0)


def confusion_of(maps: dict[str, np.ndarray], area: AreaTensors) -> np.ndarray:
    """Confusion matrix over all labelled pixels of an area, int64 (classes, classes); ValueError where one was not
    predicted."""
    references = area.data.split.labels_of(area.data.labels, area.split)
    predicted = np.concatenate([maps[name].ravel() for name in maps])
    wanted = np.concatenate([references[name].ravel() for name in maps])
    matrix = confusion_matrix(predicted, wanted, num_classes=len(area.data.class_names))
    total = sum(int((labels != UNLABELLED).sum()) for labels in references.values())
    if matrix.sum() != total:
        raise ValueError(f"expected a prediction for each of {total} labelled pixels, got {matrix.sum()}")
    return matrix

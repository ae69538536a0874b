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
A whole scene through a classification head, window by window, in memory that does not grow with the scene.

A scene is cut into chunks. Each chunk is read with the margin that its windows need, while the model works on the one
before, and comes out as a `ScenePart`. Windows overlap and are blended by a smooth weight; the grid of windows is that
of the scene, so that chunks meet without seams.
"""

import copy
import hashlib
import importlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from .bands_hsst import describe_shared_band, match_bands, response_weights, widest_spacing
from .image_processing_hsst import (
    HSSTImageProcessor,
    as_list,
    as_numbers,
    check_number,
    check_scale,
    check_stored,
    holds_data,
)

logger = logging.get_logger(__name__)

NO_CLASS = 255
"""Class of a pixel without data, or excluded."""

CLASSIFIERS = ("HSSTForSemanticSegmentation", "HSSTForImageClassification")

ROWS_OF_A_STRIP = 64
"""Rows whose statistics are computed at once, to save memory."""

SMALLEST_DEVIATION = 1e-4
"""Least standard deviation of a band of a scene (reflectance): a band that never changes must not be divided by 0."""

Item = TypeVar("Item")


class SceneReader(Protocol):
    """What is asked of a scene. Bands are indices into `wavelengths`."""

    @property
    def name(self) -> str: ...
    @property
    def wavelengths(self) -> np.ndarray | None: ...  # band centers in nm, float64 (bands,)
    @property
    def fwhm(self) -> np.ndarray | None: ...  # full width at half maximum of each band in nm, float64 (bands,)
    @property
    def valid_bands(self) -> np.ndarray: ...  # which bands hold data, bool (bands,)
    @property
    def shape(self) -> tuple[int, int]: ...  # (height, width) in pixels
    @property
    def block_shape(self) -> tuple[int, int]: ...  # (height, width) of the blocks in which the pixels are stored
    @property
    def scale(self) -> float: ...  # stored number that means a reflectance of 1
    @property
    def nodata(self) -> float | None: ...  # stored number that means no data

    def read(self, rows: slice, columns: slice, bands: Sequence[int]) -> np.ndarray:
        """Stored numbers (bands, height, width)."""

    def read_excluded(self, rows: slice, columns: slice, kinds: Sequence[str]) -> np.ndarray:
        """Pixels of any of these kinds ("outside", "cloud", ...), bool (height, width)."""


class ArrayScene:
    """
    An image in memory as a scene: stored numbers (bands, height, width), and what `SceneReader` says of them. Without
    `wavelengths` the bands must be the model's. NaN and infinity always mean no data.
    """

    def __init__(
        self,
        image: np.ndarray | torch.Tensor,
        wavelengths: Sequence[float] | np.ndarray | None = None,
        fwhm: Sequence[float] | np.ndarray | None = None,
        scale: float = 10000.0,
        nodata: float | None = -32768,
        name: str = "image",
    ):
        self.image = as_numbers(image).cpu().numpy()
        check_scale(scale)
        if nodata is not None:
            check_number("nodata", nodata)
        if self.image.ndim != 3 or not self.image.size:
            raise ValueError(f"Expected an image (bands, height, width), got the shape {self.image.shape}.")
        self.wavelengths = self._of_bands("wavelengths", wavelengths)
        self.fwhm = self._of_bands("fwhm", fwhm)
        self.scale, self.nodata, self.name = scale, nodata, name
        self.shape = self.image.shape[1], self.image.shape[2]
        self.block_shape = self.shape
        self.valid_bands = np.array([has_data(band, nodata).any() for band in self.image])
        if not self.valid_bands.any():
            self.valid_bands[:] = True  # an image of nodata gives a map of nodata

    def _of_bands(self, name: str, values: Sequence[float] | np.ndarray | None) -> np.ndarray | None:
        """Positive numbers in nm, float64 (bands,), if they are such."""
        if values is None:
            return None
        try:
            numbers = np.array(as_list(name, values), dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`{name}` must hold numbers in nm: {error}") from None
        if numbers.shape != (len(self.image),) or not (np.isfinite(numbers) & (numbers > 0)).all():
            raise ValueError(
                f"`{name}` must hold one positive number (nm) for each of the {len(self.image)} bands of the image, "
                f"got {len(numbers)} from {numbers.min(initial=np.inf):g} to {numbers.max(initial=-np.inf):g}."
            )
        return numbers

    def read(self, rows: slice, columns: slice, bands: Sequence[int] | np.ndarray) -> np.ndarray:
        return self.image[np.asarray(bands), rows, columns]

    def read_excluded(self, rows: slice, columns: slice, kinds: Sequence[str]) -> np.ndarray:
        return np.zeros(self.image[0, rows, columns].shape, dtype=bool)


def check_count(name: str, value: Any) -> None:
    """Raises ValueError where an argument is no whole number of 1 or more."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"`{name}` must be a whole number, 1 or more, got {value!r}.")


def has_data(values: np.ndarray, nodata: float | None) -> np.ndarray:
    """True where a value is neither nodata nor NaN or infinity."""
    valid = np.isfinite(values)
    return valid if nodata is None else valid & (values != nodata)


@dataclass(frozen=True)
class BandSelection:
    """How the model's bands come from a scene's."""

    bands: list[int]  # those of the scene to read: the model's in their order, or with `weights` those that contribute
    weights: np.ndarray | None  # share of each read band in each of the model's, float32 (model bands, bands)
    description: str  # one line for people

    def read(self, scene: SceneReader, rows: slice, columns: slice) -> np.ndarray:
        """Stored numbers of the model's bands (bands, height, width)."""
        values = scene.read(rows, columns, self.bands)
        if self.weights is None:
            return values
        valid = has_data(values, scene.nodata)
        resampled = np.tensordot(self.weights, np.where(valid, values, 0).astype(np.float32), axes=1)
        missing = np.tensordot((self.weights > 0).astype(np.float32), (~valid).astype(np.float32), axes=1) > 0
        return np.where(missing, np.float32(np.nan), resampled)


def select_bands(
    scene: SceneReader, processor: HSSTImageProcessor, num_channels: int, resample: bool = False
) -> BandSelection:
    """
    Finds the `num_channels` bands of the model, whose wavelengths the processor states, in a scene by wavelength and
    width. With `resample`, each comes from all bands that it overlaps, by Gaussian band responses, rather than from
    the nearest one.

    Raises:
        ValueError: a band of the model is more than half a band's width away from every band of the scene that holds
            data, or would have to share one with another, or wavelengths are unknown and the number of bands is
            another one.
    """
    if not hasattr(scene, "read_excluded"):
        raise TypeError(f"Expected a scene, got {type(scene).__name__}: `ArrayScene` makes one of an array.")
    num_bands = len(scene.valid_bands)
    if scene.wavelengths is None or processor.wavelengths is None:
        unknown = f"scene {scene.name}" if scene.wavelengths is None else "model"
        if resample:
            raise ValueError(f"Spectral resampling needs wavelengths, and those of the {unknown} are unknown.")
        try:
            bands = processor.find_bands(num_bands)
        except ValueError as error:
            raise ValueError(f"Wavelengths of the {unknown} are unknown. {error}") from None
        bands = list(range(num_bands)) if bands is None else bands
        if len(bands) != num_channels:
            raise ValueError(
                f"Wavelengths of the {unknown} are unknown: expected {num_channels} bands as the model has, got "
                f"{len(bands)}."
            )
        description = f"{num_channels} bands taken by number: wavelengths of the {unknown} unknown"
        return BandSelection(bands, None, description)

    candidates = np.flatnonzero(scene.valid_bands)
    given, wanted = scene.wavelengths[candidates], np.asarray(processor.wavelengths, dtype=np.float64)
    distances = np.abs(wanted[:, None] - given)
    nearest, apart = distances.argmin(axis=1), distances.min(axis=1)
    if scene.fwhm is None:
        widths, given_reach = widest_spacing(given), np.full(len(given), processor.wavelength_tolerance)
    else:
        widths = scene.fwhm[candidates]
        given_reach = widths / 2
    # Between the bands of a coarser sensor a response still overlaps some of them
    response_widths = np.maximum(widest_spacing(wanted), widths[nearest])
    reach = np.maximum(given_reach[nearest], response_widths) if resample else given_reach[nearest]
    far = np.flatnonzero(apart > reach)
    if len(far):
        named = ", ".join(f"{wanted[band]:.1f}" for band in far[:5]) + (", ..." if len(far) > 5 else "")
        hint = "" if resample else "; spectral resampling (--resample) reaches farther"
        raise ValueError(
            f"{scene.name}: expected a band with data within half its width of each of the model's {len(wanted)} "
            f"bands, but {len(far)} have none: {named} nm (nearest {apart[far[0]]:.1f} nm away, "
            f"{reach[far[0]]:.1f} allowed); the scene has {len(given)} bands with data from {given.min():.1f} to "
            f"{given.max():.1f} nm{hint}."
        )
    if not resample:
        matched = match_bands(wanted, given, given_reach)
        if (matched < 0).any():
            message = describe_shared_band(wanted, given, matched, candidates)
            raise ValueError(f"{scene.name}: {message} Spectral resampling (--resample) shares bands.")
        apart = np.abs(given[matched] - wanted)
        description = (
            f"{len(wanted)} bands matched by wavelength, at most {apart.max():.2f} nm apart "
            f"({(apart / (2 * given_reach[matched])).max():.2f} of a band's width); {num_bands - len(wanted)} of the "
            f"scene's {num_bands} unused"
        )
        return BandSelection(candidates[matched].tolist(), None, description)

    spacing = widest_spacing(given)
    if not np.isfinite(spacing).all() or not spacing.all():
        raise ValueError(
            f"{scene.name}: spectral resampling expects two or more bands with data, each of another wavelength, got "
            f"{len(given)} of {len(np.unique(given))} wavelengths."
        )
    weights = response_weights(wanted, given, response_widths)
    used = np.flatnonzero(weights.any(axis=0))
    description = (
        f"{len(wanted)} bands resampled by Gaussian responses from {len(used)} of the scene's {num_bands}, "
        f"{(weights > 0).sum(axis=1).mean():.1f} for each on average"
    )
    return BandSelection(candidates[used].tolist(), weights[:, used].astype(np.float32), description)


def window_starts(length: int, window: int, stride: int) -> np.ndarray:
    """First pixels of windows that cover `length` pixels, int64; the last window ends with the last pixel."""
    if length <= window:
        return np.zeros(1, dtype=np.int64)
    starts = np.arange(0, length - window + 1, stride)
    return starts if starts[-1] == length - window else np.append(starts, length - window)


def reflected(positions: np.ndarray, length: int) -> np.ndarray:
    """Positions on an axis of `length` pixels, those beyond its ends reflected (without repeating the end)."""
    period = max(2 * (length - 1), 1)
    folded = np.abs(positions) % period
    return np.minimum(folded, period - folded) if length > 1 else np.zeros_like(positions)


def blend_weight(window: tuple[int, int]) -> torch.Tensor:
    """Positive weight (height, width), a squared sine along both axes: windows half a window apart sum to 1."""
    rows, columns = (
        torch.sin(torch.pi * (torch.arange(size, dtype=torch.float64) + 0.5) / size) ** 2 for size in window
    )
    return (rows[:, None] * columns).float()


def prefetch(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, each made in a thread while the one before is used."""
    iterator = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="scene reader") as thread:
        pending = thread.submit(next, iterator, None)
        while (item := pending.result()) is not None:
            pending = thread.submit(next, iterator, None)
            yield item


@dataclass
class Chunk:
    """Part of a scene with the windows that touch it; `pixels` and `usable` have the margin that these need."""

    rows: slice
    columns: slice
    row_starts: np.ndarray
    column_starts: np.ndarray
    pixels: np.ndarray
    usable: np.ndarray


@dataclass
class ScenePart:
    """The prediction for a part of a scene."""

    rows: slice
    columns: slice
    classes: np.ndarray  # most probable class, uint8 (height, width), 255 at pixels without data and excluded ones
    probabilities: np.ndarray  # of each class, float32 (classes, height, width), NaN where there is no class
    pixels: np.ndarray  # stored numbers of the model's bands (bands, height, width)

    @property
    def confidence(self) -> np.ndarray:
        """Probability of the most probable class, float32 (height, width), NaN where there is no class."""
        return self.probabilities.max(axis=0)


def standardized(
    pixels: torch.Tensor, scene: SceneReader, processor: HSSTImageProcessor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `processor.standardize` makes of stored numbers of a scene."""
    # A scene may have no number that means no data; the processor would take its own for None
    nodata = torch.nan if scene.nodata is None else scene.nodata
    return processor.standardize(pixels, scale=scene.scale, nodata=nodata)


def with_fast_layers(model: PreTrainedModel) -> PreTrainedModel:
    """
    The model after `use_fast_layers`; as it is where a checkpoint brought this file, which has no kernels beside it.
    By name, for transformers copies what is imported to checkpoints.
    """
    if __name__.startswith("transformers_modules"):
        return model
    return importlib.import_module(".kernels", __package__).use_fast_layers(model)


class ScenePredictor:
    """
    Predicts the land cover of whole scenes.

    Heads for every pixel see windows `stride` pixels apart, blended; a head for the window's center pixel sees one
    window for each cell of `stride` x `stride` pixels; a head for whole windows gives its class to all their pixels.

    Args:
        model: HSSTForSemanticSegmentation or HSSTForImageClassification, on its device, of any floating type; it
            computes with fast layers from then on (see `use_fast_layers`).
        processor: the processor that belongs to its weights.
        stride: pixels from one window to the next; by default half a window, and 1 for a head of type "center".
        batch_size: windows that the model sees at once.
        exclude: kinds of pixels that get no class and are hidden from the model: "outside", "cloud", "shadow", ... as
            the scene knows them.
        resample: make the model's bands by spectral resampling.
        chunk_size: side of the parts in pixels; memory grows with its square.
        scene_statistics: standardize a scene by mean and deviation of its own usable pixels, in place of those of the
            training, so that light, haze and calibration of the scene do not matter. It is read twice, and should hold
            more than one kind of land cover.

    Raises:
        ValueError: the model has no classification head, or a number is out of range.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: HSSTImageProcessor,
        *,
        stride: int | None = None,
        batch_size: int = 64,
        exclude: Sequence[str] = ("outside",),
        resample: bool = False,
        chunk_size: int = 512,
        scene_statistics: bool = False,
    ):
        self.check_model(model)
        if not hasattr(processor, "standardize"):
            raise ValueError(f"Expected the image processor of the model, got {type(processor).__name__}.")
        self.model: Any = with_fast_layers(model.eval())
        self.processor = processor
        self.window = self.window_size()
        self.dense = type(model).__name__ != "HSSTForImageClassification"
        # CODEPATH: the published pixel-wise variant labels the center of each window only
        self.center = not self.dense and model.config.head_type == "center"
        default_stride = 1 if self.center else max(min(self.window) // 2, 1)
        self.stride: int = default_stride if stride is None else stride
        for name, value in (("batch_size", batch_size), ("chunk_size", chunk_size), ("stride", self.stride)):
            check_count(name, value)
        if self.stride > min(self.window):
            raise ValueError(
                f"`stride` must leave no pixel between windows of {self.window[0]}x{self.window[1]}, got {stride}."
            )
        if isinstance(exclude, str):
            raise ValueError(f"`exclude` must be a list of kinds of pixels, got {exclude!r}: [{exclude!r}] is one.")
        self.batch_size, self.exclude, self.resample = batch_size, tuple(exclude), resample
        self.chunk_size, self.scene_statistics = chunk_size, scene_statistics
        self.weight = blend_weight(self.window).to(model.device)

    def check_model(self, model: PreTrainedModel) -> None:
        """Raises ValueError where a model does not predict what this does."""
        if type(model).__name__ not in CLASSIFIERS:
            raise ValueError(f"Expected a model with a classification head, got {type(model).__name__}.")
        if (model.config.num_labels or 0) >= NO_CLASS:
            raise ValueError(f"Expected fewer than {NO_CLASS} classes, got {model.config.num_labels}.")

    def window_size(self) -> tuple[int, int]:
        """Rows and columns of the windows that the model sees."""
        return tuple(self.model.config.window_size)

    @property
    def num_outputs(self) -> int:
        """Numbers that the model gives for each pixel."""
        return self.model.config.num_labels

    @property
    def class_names(self) -> list[str]:
        """Name of each class."""
        config = self.model.config
        return [str(config.id2label.get(index, f"class {index}")) for index in range(config.num_labels)]

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the prediction of a scene, ready for JSON; equal settings give equal maps."""
        # Names the weights and their processor, whatever their folder
        digest = hashlib.sha256(self.processor.to_json_string().encode())
        for name, values in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return {
            "weights": digest.hexdigest()[:16],
            "precision": str(self.model.dtype).removeprefix("torch."),
            "stride": self.stride,
            "exclude": sorted(self.exclude),
            "resample": self.resample,
            "scene_statistics": self.scene_statistics,
        }

    def select_bands(self, scene: SceneReader) -> BandSelection:
        """How the model's bands come from the scene's; raises ValueError as the function `select_bands` does."""
        return select_bands(scene, self.processor, self.model.config.num_channels, self.resample)

    def chunks(self, scene: SceneReader) -> Iterator[tuple[slice, slice, np.ndarray, np.ndarray]]:
        """Rows and columns of each part of a scene, and the first rows and columns of the windows that touch it."""
        height, width = scene.shape
        chunk_rows = chunk_columns = self.chunk_size
        if scene.block_shape[1] >= width > self.chunk_size:
            # Stored in strips: as many pixels, but never a strip read for the sake of a part of it
            chunk_rows, chunk_columns = max(self.chunk_size**2 // width, self.window[0]), width
        if self.center:
            chunk_rows, chunk_columns = (-(-size // self.stride) * self.stride for size in (chunk_rows, chunk_columns))
        for row in range(0, height, chunk_rows):
            rows = slice(row, min(row + chunk_rows, height))
            row_starts = self.touching(height, rows, 0)
            for column in range(0, width, chunk_columns):
                columns = slice(column, min(column + chunk_columns, width))
                yield rows, columns, row_starts, self.touching(width, columns, 1)

    def touching(self, length: int, part: slice, axis: int) -> np.ndarray:
        """First pixels of the windows that touch a part of an axis (0 rows, 1 columns); negative ones lie outside."""
        window = self.window[axis]
        if self.center:
            centers = np.minimum(np.arange(0, length, self.stride) + self.stride // 2, length - 1)
            return centers[part.start // self.stride : -(-part.stop // self.stride)] - window // 2
        starts = window_starts(length, window, self.stride)
        return starts[(starts < part.stop) & (starts + window > part.start)]

    def predict(self, scene: SceneReader, progress: bool = False) -> Iterator[ScenePart]:
        """
        Predicts a scene, read in another thread, part by part from its upper left corner on, row by row. Raises
        ValueError where it lacks the model's bands, or cannot be read.
        """
        selection = self.select_bands(scene)
        if isinstance(scene, ArrayScene):
            check_stored(torch.from_numpy(scene.image), scene.scale, scene.nodata, self.processor.clip_range[1])
        processor = self.scene_processor(scene, selection, progress) if self.scene_statistics else self.processor
        parts = list(self.chunks(scene))
        chunks = prefetch(self.read_chunk(scene, selection, *part) for part in parts)
        num_windows = sum(len(row_starts) * len(column_starts) for _, _, row_starts, column_starts in parts)
        # As long as products' names are, they would leave no room for the time left
        name = scene.name if len(scene.name) <= 32 else scene.name[:31] + "…"
        label = "".join(sign for sign in name if sign.isprintable())  # names of files may move a terminal's cursor
        with logging.tqdm(total=num_windows, desc=label, unit="window", disable=not progress) as bar:
            for chunk in chunks:
                yield self.predict_chunk(chunk, scene, processor, bar)

    def read_chunk(
        self,
        scene: SceneReader,
        selection: BandSelection,
        rows: slice,
        columns: slice,
        row_starts: np.ndarray,
        column_starts: np.ndarray,
    ) -> Chunk:
        """Reads a part as `chunks` yields it, with the margin of its windows, reflected beyond the scene's edges."""
        height, width = scene.shape
        row_numbers = np.arange(row_starts[0], row_starts[-1] + self.window[0])
        column_numbers = np.arange(column_starts[0], column_starts[-1] + self.window[1])
        wanted_rows, wanted_columns = reflected(row_numbers, height), reflected(column_numbers, width)
        read_rows = slice(int(wanted_rows.min()), int(wanted_rows.max()) + 1)
        read_columns = slice(int(wanted_columns.min()), int(wanted_columns.max()) + 1)
        pixels = selection.read(scene, read_rows, read_columns)
        usable = ~scene.read_excluded(read_rows, read_columns, self.exclude)
        if row_numbers[0] < 0 or row_numbers[-1] >= height:
            pixels, usable = (values.take(wanted_rows - read_rows.start, axis=-2) for values in (pixels, usable))
        if column_numbers[0] < 0 or column_numbers[-1] >= width:
            pixels, usable = (values.take(wanted_columns - read_columns.start, axis=-1) for values in (pixels, usable))
        return Chunk(rows, columns, row_starts, column_starts, pixels, usable)

    @torch.inference_mode()
    def scene_processor(
        self, scene: SceneReader, selection: BandSelection, progress: bool = False
    ) -> HSSTImageProcessor:
        """The processor with mean and deviation of a scene's usable pixels; as it is where there are none."""
        sums = torch.zeros(2, self.model.config.num_channels, dtype=torch.float64)
        count = 0
        parts = list(self.chunks(scene))
        for rows, columns, _, _ in logging.tqdm(parts, desc="statistics", unit="part", disable=not progress):
            all_pixels = torch.as_tensor(selection.read(scene, rows, columns))
            all_usable = torch.as_tensor(~scene.read_excluded(rows, columns, self.exclude))
            strips = zip(all_pixels.split(ROWS_OF_A_STRIP, dim=1), all_usable.split(ROWS_OF_A_STRIP), strict=True)
            for pixels, usable in strips:
                values, valid = standardized(pixels[None], scene, self.processor)
                spectra = values[0][:, valid[0] & usable]
                sums += torch.stack([spectra.sum(dim=1), spectra.square().sum(dim=1)])
                count += spectra.shape[1]
        if count == 0:
            return self.processor
        mean, square = sums / count
        deviation = (square - mean.square()).clamp(min=0).sqrt()
        old_mean, old_deviation = (
            torch.full_like(mean, default) if values is None else torch.tensor(values, dtype=torch.float64)
            for values, default in ((self.processor.image_mean, 0.0), (self.processor.image_std, 1.0))
        )
        processor = copy.copy(self.processor)
        processor.image_mean = (old_mean + mean * old_deviation).tolist()
        processor.image_std = (deviation * old_deviation).clamp(min=SMALLEST_DEVIATION).tolist()
        return processor

    @torch.inference_mode()
    def predict_chunk(self, chunk: Chunk, scene: SceneReader, processor: HSSTImageProcessor, bar: Any) -> ScenePart:
        """Runs the windows of a chunk through the model and blends what comes out."""
        device, num_outputs = self.model.device, self.num_outputs
        pixels = torch.as_tensor(chunk.pixels).to(device)
        usable = torch.as_tensor(chunk.usable).to(device)
        for band in pixels:  # band by band: no copy of all
            usable &= holds_data(band, scene.nodata)
        window_rows, window_columns = self.window
        window_pixels = pixels.unfold(1, window_rows, 1).unfold(2, window_columns, 1)
        window_usable = usable.unfold(0, window_rows, 1).unfold(1, window_columns, 1)
        row_offsets = torch.as_tensor(chunk.row_starts - chunk.row_starts[0], device=device)
        column_offsets = torch.as_tensor(chunk.column_starts - chunk.column_starts[0], device=device)
        cells = torch.cartesian_prod(
            torch.arange(len(row_offsets), device=device), torch.arange(len(column_offsets), device=device)
        ).view(-1, 2)
        tops, lefts = row_offsets[cells[:, 0]], column_offsets[cells[:, 1]]
        worth = window_usable[tops, lefts]
        if self.center and self.stride == 1:
            worth = worth[:, window_rows // 2, window_columns // 2]
        else:
            worth = worth.flatten(1).any(dim=1)
        kept = worth.nonzero().flatten()
        grid = (len(row_offsets), len(column_offsets)) if self.center else tuple(usable.shape)
        sums = torch.zeros(grid[0] * grid[1], num_outputs, device=device)
        weights = torch.zeros(grid[0] * grid[1], 1, device=device)
        inside_rows, inside_columns = (torch.arange(size, device=device) for size in self.window)
        inside = inside_rows[:, None] * grid[1] + inside_columns
        bar.update(len(cells) - len(kept))
        for batch in kept.split(self.batch_size) if len(kept) else ():
            top, left = tops[batch], lefts[batch]
            windows = window_pixels[:, top, left].transpose(0, 1)
            values, pixel_mask = standardized(windows, scene, processor)
            pixel_mask = pixel_mask & window_usable[top, left]
            outputs = self._run(values, pixel_mask)
            if self.center:
                index = cells[batch, 0] * grid[1] + cells[batch, 1]
                sums[index] = outputs[:, :, 0, 0]
                weights[index] = 1.0
            else:
                index = ((top * grid[1] + left)[:, None, None] + inside).flatten()
                weighted = outputs.permute(0, 2, 3, 1) * self.weight[..., None]
                sums.index_add_(0, index, weighted.reshape(-1, num_outputs))
                weights.index_add_(0, index, self.weight.expand(len(batch), -1, -1).reshape(-1, 1))
            bar.update(len(batch))
        blended = (sums / weights).T.view(num_outputs, *grid)  # NaN where no window was worth a look

        # Without the margin
        height, width = chunk.rows.stop - chunk.rows.start, chunk.columns.stop - chunk.columns.start
        first_row, first_column = chunk.rows.start - chunk.row_starts[0], chunk.columns.start - chunk.column_starts[0]
        inner = slice(first_row, first_row + height), slice(first_column, first_column + width)
        if self.center:
            blended = blended.repeat_interleave(self.stride, dim=1).repeat_interleave(self.stride, dim=2)
            blended = blended[:, :height, :width]
        else:
            blended = blended[:, inner[0], inner[1]]
        usable = usable[inner]
        blended = blended.masked_fill(~usable, torch.nan)
        usable = usable & blended[0].isfinite()
        classes = blended.nan_to_num(nan=0.0).argmax(dim=0).masked_fill(~usable, NO_CLASS)
        return ScenePart(
            rows=chunk.rows,
            columns=chunk.columns,
            classes=classes.to(torch.uint8).cpu().numpy(),
            probabilities=blended.cpu().numpy(),
            pixels=chunk.pixels[:, inner[0], inner[1]],
        )

    def _run(self, values: torch.Tensor, pixel_mask: torch.Tensor) -> torch.Tensor:
        """Probabilities of windows, float32 (batch, classes, height, width), 1 x 1 of a head of type center."""
        inputs = {"pixel_values": values.to(self.model.dtype)}
        # Fast layers know no mask, and most batches have nothing to hide
        if not pixel_mask.all():
            inputs["pixel_mask"] = pixel_mask
        logits = self.model(**inputs).logits
        if self.model.config.num_labels == 1:
            probabilities = torch.ones_like(logits, dtype=torch.float32)
        else:
            probabilities = logits.float().softmax(dim=1)
        if not self.dense:
            size = (1, 1) if self.center else self.window
            probabilities = probabilities[:, :, None, None].expand(-1, -1, *size)
        return probabilities


class SceneFeatures(ScenePredictor):
    """
    What a model of any kind, with a head or without, makes of every pixel of a scene: the tokens of its last layer,
    in windows that overlap and are blended. `predict` gives them as the `probabilities` of its parts, float32
    (features, height, width), NaN where there are no data.

    Args:
        model, processor: as for `ScenePredictor`; a head is not used.
        pooling: `"mean"` over the spectral blocks, `hidden_size` features; or all `"blocks"` side by side, as many
            times that.
        window: side of the windows in pixels, 1 for single pixels; by default that of the model.
        brightness: `"kept"`, spectra as they are; `"equal"`, each pixel's spectrum scaled to the root mean square of
            the processor's mean spectrum, which leaves its shape; or the features of `"both"` side by side.
        settings: the others of `ScenePredictor`.

    Raises:
        ValueError: the model is none of HSST, or a setting is out of range.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: HSSTImageProcessor,
        *,
        pooling: str = "mean",
        window: int | None = None,
        brightness: str = "kept",
        **settings: Any,
    ):
        for name, value, known in (
            ("pooling", pooling, ("mean", "blocks")),
            ("brightness", brightness, ("kept", "equal", "both")),
        ):
            if value not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(map(repr, known))}, got {value!r}.")
        self.pooling, self.wanted_window, self.brightness = pooling, window, brightness
        self.check_model(model)
        patch_size = model.config.patch_size
        if window is not None:
            check_count("window", window)
        if window is not None and window % patch_size:
            raise ValueError(
                f"`window` must be one or more patches of {patch_size}x{patch_size} pixels, got {window}."
            )
        super().__init__(getattr(model, "hsst", model), processor, **settings)

    def check_model(self, model: PreTrainedModel) -> None:
        """Raises ValueError where a model is none of HSST."""
        if not hasattr(getattr(model, "hsst", model), "spectral_layers"):
            raise ValueError(f"Expected a model of HSST, got {type(model).__name__}.")

    def window_size(self) -> tuple[int, int]:
        """Rows and columns of the windows that the model sees."""
        return super().window_size() if self.wanted_window is None else (self.wanted_window, self.wanted_window)

    @property
    def num_outputs(self) -> int:
        """Features of a pixel."""
        config = self.model.config
        # CODEPATH: no choice between checkpoints but of what a caller wants of their features
        num_pooled = config.num_blocks if self.pooling == "blocks" else 1
        return config.hidden_size * num_pooled * (2 if self.brightness == "both" else 1)

    def _run(self, values: torch.Tensor, pixel_mask: torch.Tensor) -> torch.Tensor:
        """Features of windows, float32 (batch, features, height, width)."""
        views = [values] if self.brightness != "equal" else []
        if self.brightness != "kept":
            views.append(self._equally_bright(values, pixel_mask))
        return torch.cat([self._features(view, pixel_mask) for view in views], dim=1)

    def _equally_bright(self, values: torch.Tensor, pixel_mask: torch.Tensor) -> torch.Tensor:
        """Standardized values (batch, bands, height, width) of the same spectra, all of the same brightness."""
        reflectance = self.processor.to_reflectance(values)
        typical = 1.0 if self.processor.image_mean is None else np.square(self.processor.image_mean).mean() ** 0.5
        # Below this, a spectrum is dark to the last bit, and has no shape
        brightness = reflectance.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-4)
        equal = self.processor.from_reflectance(reflectance * (typical / brightness))
        return equal.masked_fill(~pixel_mask.unsqueeze(1), 0.0)

    def _features(self, values: torch.Tensor, pixel_mask: torch.Tensor) -> torch.Tensor:
        inputs = {"pixel_values": values.to(self.model.dtype)}
        if not pixel_mask.all():
            inputs["pixel_mask"] = pixel_mask
        config = self.model.config
        tokens = self.model(**inputs, interpolate_pos_encoding=True).last_hidden_state.float()
        rows = values.shape[-2] // config.patch_size
        tokens = tokens.unflatten(1, (config.num_blocks, rows, -1))  # (B, N, rows, columns, D)
        tokens = tokens.mean(dim=1) if self.pooling == "mean" else tokens.permute(0, 2, 3, 1, 4).flatten(3)
        features = tokens.permute(0, 3, 1, 2)
        return features.repeat_interleave(config.patch_size, dim=2).repeat_interleave(config.patch_size, dim=3)


__all__ = [
    "NO_CLASS",
    "ArrayScene",
    "BandSelection",
    "SceneFeatures",
    "ScenePart",
    "ScenePredictor",
    "SceneReader",
    "select_bands",
]

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
A model for one sensor made into one for another: embeddings, decoder and positions carried over by wavelength.

A linear embedding is a sum over the values of its bands. Where a spectrum is smooth, the value of a trained band is a
weighted mean of those of the new bands around it, and putting this into the sum gives the weights of the new bands:
what the model makes of a spectrum stays the same, however densely it is sampled. A decoder gives the values of the
trained bands, from which those of the new bands are interpolated. Where LayerNorms standardize the values of a token
(`normalize_token_values`), all of this holds nearly: mean and spread of a token depend on how densely it is sampled.

The blocks stay those of the trained model as far as the sensor covers them: each is given the bands around its trained
ones, be they few or many, so that its tokens mean what they meant in training, and a sensor that covers everything
gives what an image resampled to the trained bands would give.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from .bands_hsst import interpolation_weights, nearest_spacing
from .configuration_hsst import HSSTConfig
from .image_processing_hsst import HSSTImageProcessor, as_list

logger = logging.get_logger(__name__)

ModelType = TypeVar("ModelType", bound=PreTrainedModel)

# Bands nearer than this are the same band: calibrations of one sensor differ by more
SAME_BAND_NANOMETERS = 0.01
LARGEST_GAP = 3.0
# A band of the trained model whose width is that of a new one, but for so much, is that band
SAME_WIDTH_SHARE = 0.01


@dataclass(frozen=True)
class AdaptationReport:
    """What became of a model's weights in `adapt_to_wavelengths`. `str(report)` is one line."""

    # Places for bands in a block of the adapted model; where a block has fewer bands, some fill several places
    band_patch_size: int
    num_blocks: int
    num_padded_bands: int  # zeros that fill its last block
    # For each block the trained block that it was
    source_blocks: tuple[int, ...]
    # Band centers in nm that blocks hold and that are no band of the trained model
    interpolated_bands: tuple[float, ...]
    # Those farther than their own width from every trained band: beyond the trained range, or in a gap of it
    uncovered_bands: tuple[float, ...]
    # Those that no block holds, so that the model does not see them: of these, and of trained blocks not kept
    left_out_bands: tuple[float, ...]
    # First and last band center in nm of the trained blocks that the sensor covers less than half of
    unused_blocks: tuple[tuple[float, float], ...]

    @property
    def complete(self) -> bool:
        """Whether everything was carried over."""
        return not (self.uncovered_bands or self.unused_blocks or self.num_padded_bands)

    def __str__(self) -> str:
        parts = [f"{self.num_blocks} blocks of up to {self.band_patch_size} bands"]
        if self.num_padded_bands:
            parts.append(f"the last one padded with {self.num_padded_bands}")
        parts.append(f"{len(self.interpolated_bands)} bands interpolated")
        if self.uncovered_bands:
            named = ", ".join(f"{wavelength:.0f}" for wavelength in self.uncovered_bands[:5])
            named += ", ..." if len(self.uncovered_bands) > 5 else ""
            left_out = ", left out" if self.left_out_bands == self.uncovered_bands else ""
            parts.append(
                f"{len(self.uncovered_bands)} bands that the model was not trained near{left_out} ({named} nm)"
            )
        if self.left_out_bands and self.left_out_bands != self.uncovered_bands:
            parts.append(f"{len(self.left_out_bands)} bands left out")
        if self.unused_blocks:
            named = ", ".join(f"{first:.0f}-{last:.0f}" for first, last in self.unused_blocks)
            parts.append(f"{len(self.unused_blocks)} trained blocks that the sensor does not cover ({named} nm)")
        return "; ".join(parts)


def adapt_to_wavelengths(
    model: ModelType,
    wavelengths: Sequence[float],
    fwhm: Sequence[float] | None = None,
    *,
    return_report: bool = False,
) -> Any:
    """
    Makes a model for another sensor out of a trained one, before any training.

    Each trained block of which the sensor covers half or more stays a block, of the new bands in and around it
    (`config.block_bands`); bands that the model was not trained near are left out. Weights of embedding and decoder
    are carried over by wavelength (see the module's first lines), a block keeps its position, everything else is
    copied. The model given is left as it is.

    Args:
        model ([`PreTrainedModel`]): any HSST model whose configuration has `wavelengths`, and whose blocks have
            embeddings and decoders of their own.
        wavelengths (`Sequence[float]`): band centers of the sensor in nm, ascending, each once.
        fwhm (`Sequence[float]`, *optional*): full width at half maximum of each band in nm. By default a band is as
            wide as it is far from the next one, up to three times what is usual among them.
        return_report (`bool`, *optional*, defaults to `False`): whether to return a report as well. Otherwise it is
            logged in one line, as a warning where something could not be carried over.

    Returns:
        A model of the same class, dtype, device and mode, or the model and an [`AdaptationReport`].

    Raises:
        ValueError: the model's configuration has no wavelengths, or its blocks share weights; the new ones are not
            ascending, not in nm or all farther from the trained bands than they are wide; the widths are not one
            positive number for each band; or the sensor covers less than half of each block.
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "model_type", None) != HSSTConfig.model_type or not isinstance(model, PreTrainedModel):
        raise ValueError(f"`model` must be an HSST model, with any adapters merged, got {type(model).__name__}.")
    if not all(isinstance(values, torch.Tensor) for values in model.state_dict().values()):
        raise ValueError("`model` must have floating-point weights, got quantized ones: adapt it before.")
    if config.wavelengths is None:
        raise ValueError(
            f"Carrying weights over needs the band centers of the {config.num_channels} bands that the model was "
            "trained on: its configuration has no `wavelengths`."
        )
    centers, widths = check_bands(wavelengths, fwhm)
    adapter = WavelengthAdapter(config, centers, widths)
    report = adapter.report()

    values = copy.deepcopy(config.to_dict())
    values.update(
        wavelengths=centers.tolist(),
        num_channels=len(centers),
        band_patch_size=adapter.band_patch_size,
        block_bands=adapter.block_bands,
        block_centers=adapter.block_centers,
        spectral_positions=[float(config.spectral_positions[block]) for block in report.source_blocks],
    )
    new_config = type(config).from_dict(values)
    new_config._attn_implementation = config._attn_implementation
    has_mask_token = getattr(getattr(model, "embeddings", None), "mask_token", None) is not None
    # Random numbers that a caller draws later do not depend on weights that are replaced at once
    with torch.random.fork_rng(devices=[]):
        adapted = type(model)(new_config, **({"use_mask_token": True} if has_mask_token else {}))
    adapted.load_state_dict(adapter.state_dict(model.state_dict()))
    # Not `.to` of the class, whose decorated signature type checkers misread
    torch.nn.Module.to(adapted, device=model.device, dtype=model.dtype)
    adapted.train(model.training)
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_(trained[name])

    if return_report:
        return adapted, report
    logger.log(logging.INFO if report.complete else logging.WARNING, f"Adapted to other wavelengths: {report}.")
    return adapted


def check_bands(wavelengths: Sequence[float], fwhm: Sequence[float] | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Band centers and widths in nm as float64 tensors (bands,), if they are such."""
    centers = torch.tensor([*map(float, as_list("wavelengths", wavelengths))], dtype=torch.float64)
    if not len(centers):
        raise ValueError("`wavelengths` must hold one band center (nm) or more, got none.")
    if not centers.isfinite().all() or centers.min() < 100.0:
        raise ValueError(
            f"`wavelengths` must be in nm, as the model's are, got {centers.min():g} to {centers.max():g}: multiply "
            "micrometers by 1000."
        )
    wrong = (centers.diff() <= 0).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"`wavelengths` must be in ascending order, each once, got {centers[wrong[0]]:g} nm before "
            f"{centers[wrong[0] + 1]:g} nm (bands {wrong[0]} and {wrong[0] + 1}): sort the bands of the images alike."
        )
    widths = torch.from_numpy(nearest_spacing(centers))
    # A band far from all others does not see what lies between
    widths = widths.clamp(max=LARGEST_GAP * float(widths.median()))
    if fwhm is not None:
        given = torch.tensor([*map(float, as_list("fwhm", fwhm))], dtype=torch.float64)
        if len(given) != len(centers) or not (given.isfinite() & (given > 0)).all():
            got = f"{len(given)} from {given.min():g} to {given.max():g}" if len(given) else "none"
            raise ValueError(
                f"`fwhm` must hold one positive width (nm) for each of the {len(centers)} bands, got {got}."
            )
        # Between bands a spectrum is interpolated, which blurs it as much as wide bands would
        widths = torch.maximum(widths, given)
    return centers, widths


class WavelengthAdapter:
    """
    Carries the weights of a model of a configuration with wavelengths over to bands of other centers and widths in nm
    (float64 tensors (bands,), centers ascending).
    """

    def __init__(self, config: Any, centers: torch.Tensor, widths: torch.Tensor):
        self.config = config
        self.centers, self.widths = centers, widths
        self.trained_centers = torch.tensor(config.wavelengths, dtype=torch.float64)
        self.trained_widths = torch.from_numpy(nearest_spacing(self.trained_centers))
        self.trained_means = torch.tensor(config.block_wavelengths, dtype=torch.float64)
        if (self.trained_centers.diff() <= 0).any():
            raise ValueError("Carrying weights over needs a model whose own `wavelengths` ascend, each once.")
        # CODEPATH: blocks that share weights, a variant of the paper, cannot differ in what their places mean
        if not (config.blockwise_patch_embedding and config.blockwise_decoder):
            raise ValueError("Carrying weights over needs a model whose blocks share neither embedding nor decoder.")
        self.trained_blocks = _even_blocks(len(self.trained_centers), config.band_patch_size)
        if config.block_bands is not None:
            self.trained_blocks = [list(bands) for bands in config.block_bands]
        distances = (self.centers[:, None] - self.trained_centers[None, :]).abs()
        # Values at the trained bands from those at the new ones
        weights = interpolation_weights(centers, widths, self.trained_centers, self.trained_widths)
        self.resampling = torch.from_numpy(weights)
        same = distances <= SAME_BAND_NANOMETERS
        same &= widths[:, None] >= (1 - SAME_WIDTH_SHARE) * self.trained_widths[None, :]
        self.resampling[same.any(dim=0)] = same.double().T[same.any(dim=0)]
        self.is_same_sensor = same.shape[0] == same.shape[1] and bool(same.diagonal().all())
        # Nothing was learned of bands that the trained model left out
        unseen = sorted(set(range(len(self.trained_centers))).difference(*self.trained_blocks))
        left_out = (distances[:, unseen] <= SAME_BAND_NANOMETERS).any(dim=1)
        distances[:, unseen] = torch.inf
        # A band is near another within the width of either
        self.near = distances <= torch.maximum(self.widths[:, None], self.trained_widths[None, :])
        self.near[left_out] = False
        self.nearest_bands = distances.argmin(dim=1)
        covered = self.near.any(dim=0)
        self.covered_blocks = [
            index
            for index, bands in enumerate(self.trained_blocks)
            if covered[bands].double().mean() >= 0.5 and not self._is_constant(bands)
        ]
        if not self.covered_blocks:
            raise ValueError(
                "`wavelengths` must lie near half of the bands of a block that the model was trained on "
                f"({config.wavelengths[0]:.0f} to {config.wavelengths[-1]:.0f} nm), got {centers[0]:.0f} to "
                f"{centers[-1]:.0f} nm."
            )
        self._keep_trained_blocks()
        # Whether every new block is a trained block, place by place, so that there is nothing to interpolate
        if self.is_same_sensor and self.block_bands is not None:
            self.is_subset = self.block_bands == [self.trained_blocks[index] for index in self.source_blocks.tolist()]
        else:
            in_place = self.block_bands is None or all(len(bands) == self.band_patch_size for bands in self.blocks)
            self.is_subset = in_place and self._are_trained_blocks()

    def _is_constant(self, trained: list[int]) -> bool:
        """Whether a block would be of one band, in which a LayerNorm of its values leaves nothing to tell."""
        bands = self.resampling[trained].sum(dim=0).count_nonzero()
        return bool(self.config.normalize_token_values and self.config.patch_size == 1 and bands < 2)

    def _keep_trained_blocks(self) -> None:
        """The trained blocks that the sensor covers, each of the bands that give the values of its trained ones."""
        block_of_band = {band: index for index, bands in enumerate(self.trained_blocks) for band in bands}
        found = {
            index: set(self.resampling[self.trained_blocks[index]].sum(dim=0).nonzero().flatten().tolist())
            for index in self.covered_blocks
        }
        for band in sorted(set(range(len(self.centers))).difference(*found.values())):
            block = block_of_band[int(self.nearest_bands[band])]
            # Its weights are zeros until training, but a LayerNorm sees it at once
            if block in found and self.near[band].any() and not self.config.normalize_token_values:
                found[block].add(band)
        self.source_blocks = torch.tensor(self.covered_blocks)
        self.blocks = [sorted(found[index]) for index in self.covered_blocks]
        self.means = self.trained_means[self.source_blocks]
        self.band_patch_size = max(len(bands) for bands in self.blocks)
        # Bands over at least as many places, each over about as many as the others
        places = range(self.band_patch_size)
        self.block_bands: list[list[int]] | None
        self.block_bands = [[bands[place * len(bands) // len(places)] for place in places] for bands in self.blocks]
        # The same bands stay in the same places, whichever these are
        if self.is_same_sensor and self.config.block_bands is not None:
            self.band_patch_size = self.config.band_patch_size
            self.block_bands = [self.trained_blocks[index] for index in self.covered_blocks]
        self.block_centers: list[float] | None = self.means.tolist()
        even = _even_blocks(len(self.centers), self.band_patch_size)
        # The configuration need not say what it takes for granted
        if self.blocks == even and (self._are_trained_blocks() or self.block_bands == even):
            self.block_bands = None
            means = torch.stack([self.centers[bands].mean() for bands in self.blocks])
            if (self.means - means).abs().max() <= SAME_BAND_NANOMETERS:
                self.block_centers = None

    def report(self) -> AdaptationReport:
        """What can be carried over and what cannot."""
        nearest = self.trained_centers[self.nearest_bands]
        interpolated = (self.centers - nearest).abs() > SAME_BAND_NANOMETERS
        left_out = sorted(set(range(len(self.centers))).difference(*self.blocks))
        interpolated[left_out] = False
        unused = [
            (float(self.trained_centers[bands[0]]), float(self.trained_centers[bands[-1]]))
            for index, bands in enumerate(self.trained_blocks)
            if index not in self.covered_blocks
        ]
        padded = 0 if self.block_bands else self.band_patch_size * len(self.blocks) - len(self.centers)
        return AdaptationReport(
            band_patch_size=self.band_patch_size,
            num_blocks=len(self.blocks),
            num_padded_bands=padded,
            source_blocks=tuple(self.source_blocks.tolist()),
            interpolated_bands=tuple(self.centers[interpolated].tolist()),
            uncovered_bands=tuple(self.centers[~self.near.any(dim=1)].tolist()),
            left_out_bands=tuple(self.centers[left_out].tolist()),
            unused_blocks=tuple(unused),
        )

    def _are_trained_blocks(self) -> bool:
        """Whether every new block has the bands of a trained block, and as many places."""
        trained = [self.trained_centers[bands] for bands in self.trained_blocks]

        def is_trained(centers: torch.Tensor) -> bool:
            alike = [other for other in trained if len(other) == len(centers)]
            return any(bool(((centers - other).abs() <= SAME_BAND_NANOMETERS).all()) for other in alike)

        same_size = self.band_patch_size == self.config.band_patch_size
        return same_size and all(is_trained(self.centers[bands]) for bands in self.blocks)

    def state_dict(self, trained: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The adapted model's weights (on the CPU) from the trained model's."""
        adapted = {}
        for name, tensor in trained.items():
            # Sums over many bands, and MPS devices know no float64
            values = tensor.detach().cpu().double()
            prefix, _, kind = name.rpartition(".")
            if kind == "spectral_embeddings":  # (1, blocks, width)
                values = values[:, self.source_blocks]
            elif kind == "position_embeddings":  # (1, blocks * positions and a spare one, width)
                tokens = values[0, :-1].unflatten(0, (len(self.trained_blocks), -1))
                values = torch.cat([tokens[self.source_blocks].flatten(0, 1), values[0, -1:]])[None]
            elif prefix.rpartition(".")[2] == "decoder":
                values = self._decoder(values)
            adapted[name] = values.to(tensor.dtype)
        for name in trained:
            if name.endswith("patch_embeddings.weight"):
                adapted.update(self._embeddings(name.removesuffix(".weight"), trained))
        # CODEPATH: heads of the other types see a mean over blocks, whatever their number
        if "head.layernorm.weight" in trained and self.config.head_type == "concat":
            adapted.update(self._concat_head(trained))
        return adapted

    def _embeddings(self, prefix: str, trained: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Linear embeddings and the LayerNorm before them, whose weights are multiplied into the linear ones."""
        names = [f"{prefix}.{name}" for name in ("weight", "bias", "layernorm_before.weight", "layernorm_before.bias")]
        if self.is_subset:
            return {name: trained[name].detach().cpu()[self.source_blocks] for name in names[:2]}
        # Without a LayerNorm values are taken as they are
        num_values = trained[names[0]].shape[2]
        given = {names[2]: torch.ones(num_values), names[3]: torch.zeros(num_values)} | trained
        weight, bias, scale, shift = (given[name].detach().cpu().double() for name in names)
        bias = bias + weight @ shift
        bands = (weight * scale).unflatten(2, (self.config.band_patch_size, -1))  # (blocks, width, band, pixel)
        new_bias = bias[self.source_blocks]
        new_weight = torch.zeros(len(self.blocks), weight.shape[1], self.band_patch_size, bands.shape[3]).double()
        for new, source in enumerate(self.source_blocks.tolist()):
            resampling = self._embedded_bands(new, self.trained_blocks[source])
            carried = torch.einsum("wbp,bk->wkp", bands[source, :, : len(resampling)], resampling)
            new_weight[new, :, : carried.shape[1]] = carried
        ones = torch.ones(new_weight.shape[2] * new_weight.shape[3])
        values = zip(names, (new_weight.flatten(2), new_bias, ones, torch.zeros_like(ones)), strict=True)
        return {name: value.to(trained[name].dtype) for name, value in values if name in trained}

    def _embedded_bands(self, new: int, source: list[int]) -> torch.Tensor:
        """Weights (trained bands, places) that give the values of a trained block from those of a new one."""
        bands = self.blocks[new]
        resampling = self.resampling[source][:, bands]
        if self.block_bands is None:
            return resampling
        # A band in several places counts as one
        places = torch.tensor(self.block_bands[new])
        shares = torch.bincount(places, minlength=len(self.centers))[places].double()
        columns = torch.tensor([bands.index(band) for band in places.tolist()])
        return resampling[:, columns] / shares

    def _decoder(self, values: torch.Tensor) -> torch.Tensor:
        """A decoder's weight (blocks, values, width) or bias (blocks, values)."""
        bands = values.unflatten(1, (self.config.band_patch_size, -1))  # (blocks, band, pixel, ...)
        if self.is_subset:
            return values[self.source_blocks]
        adapted = torch.zeros(len(self.blocks), self.band_patch_size, *bands.shape[2:], dtype=values.dtype)
        for new, trained in enumerate(self.source_blocks.tolist()):
            target = self.blocks[new] if self.block_bands is None else self.block_bands[new]
            source, places = torch.tensor(self.trained_blocks[trained]).unique(return_inverse=True)
            source_bands = self.trained_centers[source], self.trained_widths[source]
            weights = _weights_of_trained(*source_bands, self.centers[target], self.widths[target])
            # A band in several places has the mean of their values
            resampling = weights[:, places] / torch.bincount(places)[places]
            carried = torch.tensordot(resampling, bands[trained, : resampling.shape[1]], dims=1)
            adapted[new, : len(carried)] = carried
        return adapted.flatten(1, 2)

    def _concat_head(self, trained: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A classifier of concatenated blocks, which is a sum over blocks as an embedding is one over bands."""
        names = ["head.classifier.weight", "head.classifier.bias", "head.layernorm.weight", "head.layernorm.bias"]
        weight, bias, scale, shift = (trained[name].detach().cpu().double() for name in names)
        bias = bias + weight @ shift
        blocks = (weight * scale).unflatten(1, (len(self.trained_blocks), -1))  # (classes, blocks, width)
        new_weight = blocks[:, self.source_blocks].flatten(1)
        ones = torch.ones(new_weight.shape[1])
        values = (new_weight, bias, ones, torch.zeros_like(ones))
        return {name: value.to(trained[name].dtype) for name, value in zip(names, values, strict=True)}


def _even_blocks(num_bands: int, band_patch_size: int) -> list[list[int]]:
    """Blocks of consecutive bands, the last one of those that are left."""
    starts = range(0, num_bands, band_patch_size)
    return [list(range(start, min(start + band_patch_size, num_bands))) for start in starts]


def _weights_of_trained(
    trained_centers: torch.Tensor, trained_widths: torch.Tensor, centers: torch.Tensor, widths: torch.Tensor
) -> torch.Tensor:
    """Weights (bands, trained bands) that give what belongs to bands from what belongs to the trained ones."""
    weights = torch.from_numpy(interpolation_weights(trained_centers, trained_widths, centers, widths))
    # Where two detectors overlap, a width reaches over bands of the other one, which differ
    same = ((centers[:, None] - trained_centers[None, :]).abs() <= SAME_BAND_NANOMETERS).double()
    known = same.any(dim=1)
    weights[known] = same[known] / same[known].sum(dim=1, keepdim=True)
    return weights


def adapt_processor(
    processor: HSSTImageProcessor,
    wavelengths: Sequence[float],
    fwhm: Sequence[float] | None = None,
    *,
    scale: float | None = None,
    nodata: float | None = None,
) -> HSSTImageProcessor:
    """
    Makes an image processor for another sensor: mean and standard deviation of each band by wavelength, level beyond
    the trained range. Radiance, or reflectance of quite another world, needs statistics of its own instead.

    Args:
        processor ([`HSSTImageProcessor`]): the processor that belongs to the weights.
        wavelengths, fwhm (`Sequence[float]`): bands of the sensor in nm, as in `adapt_to_wavelengths`.
        scale, nodata (`float`, *optional*): stored numbers that mean a reflectance of 1 and no data; by default the
            processor's.

    Returns:
        A processor whose images have exactly these bands, or others of nearly the same `wavelengths`.

    Raises:
        ValueError: the processor has no wavelengths, or the new ones are wrong as in `adapt_to_wavelengths`.
    """
    if not hasattr(processor, "standardize") or processor.wavelengths is None:
        raise ValueError("`processor` must know the wavelengths of its bands, as processors of trained models do.")
    centers, widths = check_bands(wavelengths, fwhm)
    trained_centers = torch.tensor([float(wavelength) for wavelength in processor.wavelengths], dtype=torch.float64)
    spacing = torch.from_numpy(nearest_spacing(trained_centers))
    weights = _weights_of_trained(trained_centers, spacing, centers, widths)
    statistics = {
        name: None if values is None else (weights @ torch.tensor(values, dtype=torch.float64)).tolist()
        for name, values in (("image_mean", processor.image_mean), ("image_std", processor.image_std))
    }
    # Otherwise one band of an image may stand in for two bands of the model
    tolerance = processor.wavelength_tolerance
    if len(centers) > 1:
        tolerance = min(tolerance, 0.5 * float(centers.diff().median()))
    return type(processor)(
        **statistics,
        wavelengths=centers.tolist(),
        wavelength_tolerance=tolerance,
        scale=processor.scale if scale is None else scale,
        nodata=processor.nodata if nodata is None else nodata,
        clip_range=processor.clip_range,
    )


def load_for_wavelengths(
    auto_class: Any,
    pretrained_model_name_or_path: str,
    wavelengths: Sequence[float],
    fwhm: Sequence[float] | None = None,
    **kwargs: Any,
) -> Any:
    """
    `auto_class.from_pretrained(...)` for another sensor, model or image processor in one line.

    ```python
    model = load_for_wavelengths(AutoModelForSemanticSegmentation, "hsg-aiml/hsst-enmap", wavelengths, num_labels=8)
    processor = load_for_wavelengths(AutoImageProcessor, "hsg-aiml/hsst-enmap", wavelengths)
    ```

    Args:
        auto_class: an Auto class or a class of this package, anything with `from_pretrained`.
        pretrained_model_name_or_path (`str`): a repository's name or a folder.
        wavelengths, fwhm: as in `adapt_to_wavelengths`, whose ValueErrors are raised.
        kwargs: for `from_pretrained`.
    """
    loaded = auto_class.from_pretrained(pretrained_model_name_or_path, **kwargs)
    if hasattr(loaded, "image_mean"):
        return adapt_processor(loaded, wavelengths, fwhm)
    return adapt_to_wavelengths(loaded, wavelengths, fwhm)


__all__ = ["AdaptationReport", "adapt_processor", "adapt_to_wavelengths", "load_for_wavelengths"]

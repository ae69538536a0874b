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
trained bands, from which those of the new bands are interpolated. Where LayerNorms standardise the values of a token
(`normalize_token_values`), all of this holds nearly: mean and spread of a token depend on how densely it is sampled.

The blocks stay those of the trained model as far as the sensor covers them: each is given the bands around its trained
ones, be they few or many, so that its tokens mean what they meant in training, and a sensor that covers everything
gives what an image resampled to the trained bands would give. Blocks of the same number of bands, on request, cover
other parts of the spectrum; they take the embedding of the trained block that is nearest by mean wavelength.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from .bands_hsst import interpolation_weights, nearest_spacing
from .configuration_hsst import HSSTConfig
from .image_processing_hsst import HSSTImageProcessor

logger = logging.get_logger(__name__)

ModelType = TypeVar("ModelType", bound=PreTrainedModel)

# Bands nearer than this are the same band: calibrations of one sensor differ by more
SAME_BAND_NANOMETRES = 0.01
LARGEST_GAP = 3.0
# A band of the trained model whose width is that of a new one, but for so much, is that band
SAME_WIDTH_SHARE = 0.01
# What one band of padding counts when blocks are formed, beside the logarithm of how much wider or narrower they are
PADDING_COST = 1.0


@dataclass(frozen=True)
class AdaptationReport:
    """
    What became of a model's weights in `adapt_to_wavelengths`. `str(report)` is one line.

    Attributes:
        band_patch_size (`int`): places for bands in a block of the adapted model; where a block has fewer bands, some
            fill several places.
        num_blocks (`int`): its blocks.
        num_padded_bands (`int`): zeros that fill its last block.
        source_blocks (`tuple[int, ...]`): for each block the trained block that it was, or whose mean wavelength is
            nearest.
        interpolated_bands (`tuple[float, ...]`): band centres in nm that blocks hold and that are no band of the
            trained model.
        uncovered_bands (`tuple[float, ...]`): those that lie farther than their own width from every trained band:
            beyond the trained range, or in a gap of it.
        left_out_bands (`tuple[float, ...]`): those that no block holds, so that the model does not see them: of these,
            and of trained blocks that were not kept.
        unused_blocks (`tuple[tuple[float, float], ...]`): first and last band centre in nm of the trained blocks that
            the sensor covers less than half of.
        exact_positions (`bool`): whether positions were computed (`"wavelength"`) rather than interpolated.
    """

    band_patch_size: int
    num_blocks: int
    num_padded_bands: int
    source_blocks: tuple[int, ...]
    interpolated_bands: tuple[float, ...]
    uncovered_bands: tuple[float, ...]
    left_out_bands: tuple[float, ...]
    unused_blocks: tuple[tuple[float, float], ...]
    exact_positions: bool

    @property
    def complete(self) -> bool:
        """Whether everything was carried over."""
        return not (self.uncovered_bands or self.unused_blocks or self.num_padded_bands) and self.exact_positions

    def __str__(self) -> str:
        parts = [f"{self.num_blocks} blocks of up to {self.band_patch_size} bands"]
        if self.num_padded_bands:
            parts.append(f"the last one padded with {self.num_padded_bands}")
        parts.append(f"{len(self.interpolated_bands)} bands interpolated")
        if self.uncovered_bands:
            named = ", ".join(f"{wavelength:.0f}" for wavelength in self.uncovered_bands[:5])
            more = ", ..." if len(self.uncovered_bands) > 5 else ""
            left_out = ", left out" if self.left_out_bands == self.uncovered_bands else ""
            parts.append(
                f"{len(self.uncovered_bands)} bands that the model was not trained near{left_out} ({named}{more} nm)"
            )
        if self.left_out_bands and self.left_out_bands != self.uncovered_bands:
            parts.append(f"{len(self.left_out_bands)} bands left out")
        if self.unused_blocks:
            named = ", ".join(f"{first:.0f}-{last:.0f}" for first, last in self.unused_blocks)
            parts.append(f"{len(self.unused_blocks)} trained blocks that the sensor does not cover ({named} nm)")
        if not self.exact_positions:
            parts.append("positions interpolated between trained ones")
        return "; ".join(parts)


def adapt_to_wavelengths(
    model: ModelType,
    wavelengths: Sequence[float],
    fwhm: Sequence[float] | None = None,
    *,
    band_patch_size: int | None = None,
    return_report: bool = False,
) -> Any:
    """
    Makes a model for another sensor out of a trained one, before any training.

    Each trained block of which the sensor covers half or more stays a block, of the new bands in and around it
    (`config.block_bands`); bands that the model was not trained near are left out. Weights of embedding and decoder
    are carried over by wavelength (see the module's first lines), a block keeps its position, everything else is
    copied. The model given is left as it is.

    Models whose blocks share one embedding or one decoder get blocks of the same number of bands instead, of as many
    as make them cover about what the trained blocks cover, and so do sensors that cover less than half of each block.

    Args:
        model ([`PreTrainedModel`]): any HSST model whose configuration has `wavelengths`.
        wavelengths (`Sequence[float]`): band centres of the sensor in nm, ascending, each once.
        fwhm (`Sequence[float]`, *optional*): full width at half maximum of each band in nm. By default a band is as
            wide as it is far from the next one, up to three times what is usual among them.
        band_patch_size (`int`, *optional*): bands of a block, for blocks of all bands of the sensor in their order, as
            many in each.
        return_report (`bool`, *optional*, defaults to `False`): whether to return a report as well. Otherwise it is
            logged in one line, as a warning where something could not be carried over.

    Returns:
        A model of the same class, dtype, device and mode, or the model and an [`AdaptationReport`].

    Raises:
        ValueError: the model's configuration has no wavelengths; the new ones are not ascending, not in nm or all
            farther from the trained bands than they are wide; the widths are not one positive number for each band; or
            blocks would have no band.
    """
    config = model.config
    if getattr(config, "model_type", None) != HSSTConfig.model_type:
        raise ValueError(f"`model` must be an HSST model, got {type(model).__name__}.")
    if config.wavelengths is None:
        raise ValueError(
            f"Carrying weights over needs the band centres of the {config.num_channels} bands that the model was "
            "trained on: its configuration has no `wavelengths`."
        )
    adapter = WavelengthAdapter(config, *check_bands(wavelengths, fwhm), band_patch_size)
    report = adapter.report()
    if len(report.uncovered_bands) == len(adapter.centres):
        raise ValueError(
            f"`wavelengths` must lie near bands that the model was trained on ({config.wavelengths[0]:.0f} to "
            f"{config.wavelengths[-1]:.0f} nm), got {adapter.centres[0]:.0f} to {adapter.centres[-1]:.0f} nm."
        )

    values = copy.deepcopy(config.to_dict())
    values.update(
        wavelengths=adapter.centres.tolist(),
        num_channels=len(adapter.centres),
        band_patch_size=adapter.band_patch_size,
        block_bands=adapter.block_bands,
        block_centers=adapter.block_centers,
        spectral_positions=adapter.between_blocks(torch.tensor(config.spectral_positions).double()).tolist(),
    )
    new_config = type(config).from_dict(values)
    new_config._attn_implementation = config._attn_implementation
    # Random numbers that a caller draws later do not depend on weights that are replaced at once
    with torch.random.fork_rng(devices=[]):
        options = {}
        if getattr(getattr(model, "embeddings", None), "mask_token", None) is not None:
            options["use_mask_token"] = True
        adapted = type(model)(new_config, **options)
    adapted.load_state_dict(adapter.state_dict(model.state_dict()))
    # Not `.to` of the class, whose decorated signature type checkers misread
    torch.nn.Module.to(adapted, device=model.device, dtype=model.dtype)
    adapted.train(model.training)
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_(trained[name])

    if not report.exact_positions:
        logger.warning(
            f"Positions of type {config.position_embedding_type!r} are interpolated between those of the trained "
            "blocks; models with `position_embedding_type='wavelength'` move to other sensors better."
        )
    if return_report:
        return adapted, report
    logger.log(logging.INFO if report.complete else logging.WARNING, f"Adapted to other wavelengths: {report}.")
    return adapted


def check_bands(wavelengths: Sequence[float], fwhm: Sequence[float] | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Band centres and widths in nm as float64 tensors (bands,), if they are such."""
    centres = torch.tensor([float(wavelength) for wavelength in wavelengths], dtype=torch.float64)
    if not len(centres):
        raise ValueError("`wavelengths` must hold one band centre (nm) or more, got none.")
    if not centres.isfinite().all() or centres.min() < 100.0:
        raise ValueError(
            f"`wavelengths` must be in nm, as the model's are, got {centres.min():g} to {centres.max():g}: multiply "
            "micrometres by 1000."
        )
    wrong = (centres.diff() <= 0).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"`wavelengths` must be in ascending order, each once, got {centres[wrong[0]]:g} nm before "
            f"{centres[wrong[0] + 1]:g} nm (bands {wrong[0]} and {wrong[0] + 1}): sort the bands of the images alike."
        )
    widths = band_spacing(centres)
    # A band far from all others does not see what lies between
    widths = widths.clamp(max=LARGEST_GAP * float(widths.median()))
    if fwhm is not None:
        given = torch.tensor([float(width) for width in fwhm], dtype=torch.float64)
        if len(given) != len(centres) or not (given.isfinite() & (given > 0)).all():
            got = f"{len(given)} from {given.min():g} to {given.max():g}" if len(given) else "none"
            raise ValueError(
                f"`fwhm` must hold one positive width (nm) for each of the {len(centres)} bands, got {got}."
            )
        # Between bands a spectrum is interpolated, which blurs it as much as wide bands would
        widths = torch.maximum(widths, given)
    return centres, widths


def band_spacing(centres: torch.Tensor) -> torch.Tensor:
    """`bands_hsst.nearest_spacing` of a tensor (bands,), float64."""
    return torch.from_numpy(nearest_spacing(centres.numpy()))


def resampling_weights(
    centres: torch.Tensor, widths: torch.Tensor, target_centres: torch.Tensor, target_widths: torch.Tensor
) -> torch.Tensor:
    """`bands_hsst.interpolation_weights` of tensors, float64 (targets, bands)."""
    return torch.from_numpy(
        interpolation_weights(centres.numpy(), widths.numpy(), target_centres.numpy(), target_widths.numpy())
    )


class WavelengthAdapter:
    """
    Carries the weights of a model over to other bands.

    Args:
        config ([`HSSTConfig`]): the trained model's, with wavelengths.
        centres (`torch.Tensor` of shape `(bands,)`, float64): new band centres in nm, ascending.
        widths (`torch.Tensor` of shape `(bands,)`, float64): their widths in nm.
        band_patch_size (`int`, *optional*): bands of a new block; chosen where absent.
    """

    def __init__(
        self, config: Any, centres: torch.Tensor, widths: torch.Tensor, band_patch_size: int | None = None
    ) -> None:
        self.config = config
        self.centres, self.widths = centres, widths
        self.trained_centres = torch.tensor(config.wavelengths, dtype=torch.float64)
        self.trained_widths = band_spacing(self.trained_centres)
        if (self.trained_centres.diff() <= 0).any():
            raise ValueError(
                "Carrying weights over needs a model whose own `wavelengths` ascend, each once; its configuration's "
                "do not."
            )
        if band_patch_size is not None and not 1 <= band_patch_size <= len(centres):
            raise ValueError(
                f"`band_patch_size` must lie between 1 and the {len(centres)} bands of the sensor, got "
                f"{band_patch_size}."
            )
        self.trained_blocks = _blocks(config, len(self.trained_centres))
        self.trained_means = torch.tensor(config.block_wavelengths, dtype=torch.float64)
        distances = (self.centres[:, None] - self.trained_centres[None, :]).abs()
        # Values at the trained bands from those at the new ones
        self.resampling = resampling_weights(centres, widths, self.trained_centres, self.trained_widths)
        same = distances <= SAME_BAND_NANOMETRES
        same &= widths[:, None] >= (1 - SAME_WIDTH_SHARE) * self.trained_widths[None, :]
        self.resampling[same.any(dim=0)] = same.double().T[same.any(dim=0)]
        self.is_same_sensor = same.shape[0] == same.shape[1] and bool(same.diagonal().all())
        # Nothing was learned of bands that the trained model left out
        unseen = sorted(set(range(len(self.trained_centres))).difference(*self.trained_blocks))
        left_out = (distances[:, unseen] <= SAME_BAND_NANOMETRES).any(dim=1)
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
        shares_weights = not (config.blockwise_patch_embedding and config.blockwise_decoder)
        # CODEPATH: blocks that share weights cannot differ in what their places mean
        self.keeps_blocks = band_patch_size is None and not shares_weights and len(self.covered_blocks) > 0
        if self.keeps_blocks:
            self._keep_trained_blocks()
        else:
            self._form_even_blocks(band_patch_size or self._choose_band_patch_size())

    def _is_constant(self, trained: list[int]) -> bool:
        """Whether a block would be of one band, in which a LayerNorm of its values leaves nothing to tell."""
        bands = self.resampling[trained].sum(dim=0).count_nonzero()
        return bool(self.config.normalize_token_values and self.config.patch_size == 1 and bands < 2)

    @staticmethod
    def _means(blocks: list[list[int]], centres: torch.Tensor) -> torch.Tensor:
        return torch.stack([centres[bands].mean() for bands in blocks])

    def _form_even_blocks(self, band_patch_size: int) -> None:
        """Blocks of consecutive bands, each the block of the trained one whose mean wavelength is nearest."""
        if (self.trained_means.diff() <= 0).any():
            raise ValueError(
                "Blocks of consecutive bands need a model whose own blocks ascend by wavelength; its configuration's "
                "(`block_bands`, `block_centers`) do not."
            )
        self.band_patch_size = band_patch_size
        self.blocks = _even_blocks(len(self.centres), band_patch_size)
        self.block_bands: list[list[int]] | None = None
        self.block_centers: list[float] | None = None
        self.means = self._means(self.blocks, self.centres)
        self.source_blocks = (self.means[:, None] - self.trained_means[None, :]).abs().argmin(dim=1)
        # For positions and the decoder: the two trained blocks between whose means a new one lies, and their shares
        self.block_weights = resampling_weights(
            self.trained_means, band_spacing(self.trained_means), self.means, torch.zeros_like(self.means)
        )

    def _keep_trained_blocks(self) -> None:
        """The trained blocks that the sensor covers, each of the bands that give the values of its trained ones."""
        block_of_band = {band: index for index, bands in enumerate(self.trained_blocks) for band in bands}
        found = {
            index: set(self.resampling[self.trained_blocks[index]].sum(dim=0).nonzero().flatten().tolist())
            for index in self.covered_blocks
        }
        for band in sorted(set(range(len(self.centres))).difference(*found.values())):
            block = block_of_band[int(self.nearest_bands[band])]
            # Its weights are zeros until training, but a LayerNorm sees it at once
            if block in found and self.near[band].any() and not self.config.normalize_token_values:
                found[block].add(band)
        self.source_blocks = torch.tensor(self.covered_blocks)
        self.blocks = [sorted(found[index]) for index in self.covered_blocks]
        self.means = self.trained_means[self.source_blocks]
        self.block_weights = torch.eye(len(self.trained_blocks), dtype=torch.float64)[self.source_blocks]
        self.band_patch_size = max(len(bands) for bands in self.blocks)
        self.block_bands = [_spread(bands, self.band_patch_size) for bands in self.blocks]
        # The same bands stay in the same places, whichever these are
        if self.is_same_sensor and self.config.block_bands is not None:
            self.band_patch_size = self.config.band_patch_size
            self.block_bands = [self.trained_blocks[index] for index in self.covered_blocks]
        self.block_centers = self.means.tolist()
        even = _even_blocks(len(self.centres), self.band_patch_size)
        # The configuration need not say what it takes for granted
        if self.blocks == even and (self._are_trained_blocks() or self.block_bands == even):
            self.block_bands = None
            if (self.means - self._means(self.blocks, self.centres)).abs().max() <= SAME_BAND_NANOMETRES:
                self.block_centers = None

    def _choose_band_patch_size(self) -> int:
        """The number of bands with which blocks cover most nearly what the nearest trained blocks cover."""
        trained_spans = torch.stack([self.trained_widths[list(set(bands))].sum() for bands in self.trained_blocks])
        # Not the widths of the bands, which may overlap
        spacing = band_spacing(self.centres)

        def cost(size: int) -> float:
            blocks = _even_blocks(len(self.centres), size)
            differences = []
            for bands in blocks:
                nearest = int((self.trained_means - self.centres[bands].mean()).abs().argmin())
                differences.append(abs(log(float(spacing[bands].sum() / trained_spans[nearest]))))
            padded = size * len(blocks) - len(self.centres)
            return sum(differences) / len(blocks) + PADDING_COST * padded / (size * len(blocks))

        sizes = range(1, len(self.centres) + 1)
        trained_size = self.config.band_patch_size
        return min(sizes, key=lambda size: (round(cost(size), 6), abs(size - trained_size)))

    def report(self) -> AdaptationReport:
        """What can be carried over and what cannot."""
        nearest = self.trained_centres[self.nearest_bands]
        interpolated = (self.centres - nearest).abs() > SAME_BAND_NANOMETRES
        left_out = sorted(set(range(len(self.centres))).difference(*self.blocks))
        interpolated[left_out] = False
        unused = [bands for index, bands in enumerate(self.trained_blocks) if index not in self.covered_blocks]
        padded = 0 if self.block_bands else self.band_patch_size * len(self.blocks) - len(self.centres)
        # CODEPATH: positions of wavelengths are computed, those of other types kept or interpolated
        exact = self.config.position_embedding_type == "wavelength" or self.is_subset or self.keeps_blocks
        return AdaptationReport(
            band_patch_size=self.band_patch_size,
            num_blocks=len(self.blocks),
            num_padded_bands=padded,
            source_blocks=tuple(self.source_blocks.tolist()),
            interpolated_bands=tuple(self.centres[interpolated].tolist()),
            uncovered_bands=tuple(self.centres[~self.near.any(dim=1)].tolist()),
            left_out_bands=tuple(self.centres[left_out].tolist()),
            unused_blocks=tuple(
                (float(self.trained_centres[bands[0]]), float(self.trained_centres[bands[-1]])) for bands in unused
            ),
            exact_positions=exact,
        )

    @property
    def is_subset(self) -> bool:
        """Whether every new block is a trained block, place by place, so that there is nothing to interpolate."""
        if self.is_same_sensor and self.block_bands is not None:
            return self.block_bands == [self.trained_blocks[index] for index in self.source_blocks.tolist()]
        in_place = self.block_bands is None or all(len(bands) == self.band_patch_size for bands in self.blocks)
        return in_place and self._are_trained_blocks()

    def _are_trained_blocks(self) -> bool:
        """Whether every new block has the bands of a trained block, and as many places."""
        return self.band_patch_size == self.config.band_patch_size and all(
            any(self._same_bands(new, trained) for trained in self.trained_blocks) for new in self.blocks
        )

    def _same_bands(self, new: list[int], trained: list[int]) -> bool:
        first, second = self.centres[new], self.trained_centres[trained]
        return len(first) == len(second) and bool(((first - second).abs() <= SAME_BAND_NANOMETRES).all())

    def state_dict(self, trained: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The adapted model's weights (on the CPU) from the trained model's."""
        adapted = {}
        for name, tensor in trained.items():
            # Sums over many bands, and MPS devices know no float64
            values = tensor.detach().cpu().double()
            prefix, _, kind = name.rpartition(".")
            place = prefix.rpartition(".")[2]
            if kind in ("position_embeddings", "spectral_embeddings"):
                values = self._positions(kind, values)
            elif place == "decoder":
                values = self._decoder(values)
            adapted[name] = values.to(tensor.dtype)
        for name in trained:
            prefix, _, kind = name.rpartition(".")
            if prefix.endswith("patch_embeddings") and kind == "weight":
                adapted.update(self._embeddings(prefix, trained))
        # CODEPATH: heads of the other types see a mean over blocks, whatever their number
        if "head.layernorm.weight" in trained and self.config.head_type == "concat":
            adapted.update(self._concat_head(trained))
        return adapted

    def between_blocks(self, values: torch.Tensor) -> torch.Tensor:
        """Values (trained blocks, ...) interpolated to the mean wavelengths of the new blocks (blocks, ...)."""
        return torch.tensordot(self.block_weights, values, dims=1)

    def _positions(self, kind: str, positions: torch.Tensor) -> torch.Tensor:
        if kind == "spectral_embeddings":  # (1, blocks, width)
            return self.between_blocks(positions[0])[None]
        tokens = positions[0, :-1].unflatten(0, (len(self.trained_blocks), -1))  # (blocks, positions, width)
        return torch.cat([self.between_blocks(tokens).flatten(0, 1), positions[0, -1:]])[None]

    def _embeddings(self, prefix: str, trained: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Linear embeddings and the LayerNorm before them, whose weights are multiplied into the linear ones."""
        names = [f"{prefix}.{name}" for name in ("weight", "bias", "layernorm_before.weight", "layernorm_before.bias")]
        if names[2] not in trained:
            # Without a LayerNorm values are taken as they are
            weight = trained[names[0]]
            as_they_are = {names[2]: weight.new_ones(weight.shape[2]), names[3]: weight.new_zeros(weight.shape[2])}
            adapted = self._embeddings(prefix, trained | as_they_are)
            return {name: value for name, value in adapted.items() if name in trained}
        if self.is_subset and self.config.blockwise_patch_embedding:
            return {name: trained[name].detach().cpu()[self.source_blocks] for name in names[:2]}
        if self.is_subset:
            return {}
        weight, bias, scale, shift = (trained[name].detach().cpu().double() for name in names)
        bias = bias + weight @ shift
        bands = (weight * scale).unflatten(2, (self.config.band_patch_size, -1))  # (blocks, width, band, pixel)
        # CODEPATH: one embedding for all blocks is the paper's variant
        if not self.config.blockwise_patch_embedding:
            resampling = _resample_places(self.band_patch_size, self.config.band_patch_size)
            new_weight, new_bias = torch.einsum("nwbp,bk->nwkp", bands, resampling), bias
        else:
            # A mean of two blocks would be a token of a kind that no layer was trained on
            new_bias = bias[self.source_blocks]
            new_weight = torch.zeros(len(self.blocks), weight.shape[1], self.band_patch_size, bands.shape[3]).double()
            for new, source in enumerate(self.source_blocks.tolist()):
                resampling = self._embedded_bands(new, self.trained_blocks[source])
                carried = torch.einsum("wbp,bk->wkp", bands[source, :, : len(resampling)], resampling)
                new_weight[new, :, : carried.shape[1]] = carried
        num_values = new_weight.shape[2] * new_weight.shape[3]
        values = (
            new_weight.flatten(2),
            new_bias,
            torch.ones(num_values),
            torch.zeros(num_values),
        )
        return {name: value.to(trained[name].dtype) for name, value in zip(names, values, strict=True)}

    def _embedded_bands(self, new: int, source: list[int]) -> torch.Tensor:
        """Weights (trained bands, places) that give the values of a trained block from those of a new one."""
        bands = self.blocks[new]
        if self.keeps_blocks:
            resampling = self.resampling[source][:, bands]
        else:
            # Level beyond the bands of the block
            resampling = resampling_weights(
                self.centres[bands], self.widths[bands], self.trained_centres[source], self.trained_widths[source]
            )
        if self.block_bands is None:
            return resampling
        # A band in several places counts as one
        places = torch.tensor(self.block_bands[new])
        shares = torch.bincount(places, minlength=len(self.centres))[places].double()
        columns = torch.tensor([bands.index(band) for band in places.tolist()])
        return resampling[:, columns] / shares

    def _decoder(self, values: torch.Tensor) -> torch.Tensor:
        """A decoder's weight (blocks, values, width) or bias (blocks, values)."""
        bands = values.unflatten(1, (self.config.band_patch_size, -1))  # (blocks, band, pixel, ...)
        if self.is_subset:
            return values[self.source_blocks] if self.config.blockwise_decoder else values
        # CODEPATH: one decoder for all blocks is the paper's variant
        if not self.config.blockwise_decoder:
            resampling = _resample_places(self.config.band_patch_size, self.band_patch_size)
            return torch.tensordot(resampling, bands[0], dims=1).flatten(0, 1)[None]
        adapted = torch.zeros(len(self.blocks), self.band_patch_size, *bands.shape[2:], dtype=values.dtype)
        for new, trained in self.block_weights.nonzero().tolist():
            target = self.blocks[new] if self.block_bands is None else self.block_bands[new]
            source, places = torch.tensor(self.trained_blocks[trained]).unique(return_inverse=True)
            resampling = resampling_weights(
                self.trained_centres[source], self.trained_widths[source], self.centres[target], self.widths[target]
            )
            # A band in several places has the mean of their values
            resampling = resampling[:, places] / torch.bincount(places)[places]
            carried = torch.tensordot(resampling, bands[trained, : resampling.shape[1]], dims=1)
            adapted[new, : len(carried)] += self.block_weights[new, trained] * carried
        return adapted.flatten(1, 2)

    def _concat_head(self, trained: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A classifier of concatenated blocks, which is a sum over blocks as an embedding is one over bands."""
        names = ["head.classifier.weight", "head.classifier.bias", "head.layernorm.weight", "head.layernorm.bias"]
        weight, bias, scale, shift = (trained[name].detach().cpu().double() for name in names)
        bias = bias + weight @ shift
        blocks = (weight * scale).unflatten(1, (len(self.trained_blocks), -1))  # (classes, blocks, width)
        resampling = resampling_weights(
            self.means, band_spacing(self.means), self.trained_means, band_spacing(self.trained_means)
        )
        if self.keeps_blocks:
            resampling = self.block_weights.T
        else:
            # A sensor without SWIR has nothing to say in place of SWIR blocks
            distances = (self.trained_means[:, None] - self.means[None, :]).abs().min(dim=1).values
            resampling[distances > band_spacing(self.trained_means)] = 0.0
        new_weight = torch.einsum("cbw,bk->ckw", blocks, resampling).flatten(1)
        ones = torch.ones(new_weight.shape[1])
        values = (new_weight, bias, ones, torch.zeros_like(ones))
        return {name: value.to(trained[name].dtype) for name, value in zip(names, values, strict=True)}


def _blocks(config: Any, num_bands: int) -> list[list[int]]:
    """The bands of each block of a configuration, padding left out."""
    if config.block_bands is not None:
        return [list(bands) for bands in config.block_bands]
    return _even_blocks(num_bands, config.band_patch_size)


def _even_blocks(num_bands: int, band_patch_size: int) -> list[list[int]]:
    """Blocks of consecutive bands, the last one of those that are left."""
    return [
        list(range(index * band_patch_size, min((index + 1) * band_patch_size, num_bands)))
        for index in range(ceil(num_bands / band_patch_size))
    ]


def _spread(bands: list[int], places: int) -> list[int]:
    """Bands over at least as many places, each over about as many as the others."""
    return [bands[place * len(bands) // places] for place in range(places)]


def _resample_places(num_values: int, num_targets: int) -> torch.Tensor:
    """Weights (targets, values) between evenly spaced places of a block: for layers that all blocks share."""
    centres = (torch.arange(num_values, dtype=torch.float64) + 0.5) / num_values
    targets = (torch.arange(num_targets, dtype=torch.float64) + 0.5) / num_targets
    widths = torch.full_like(centres, 1 / num_values)
    return resampling_weights(centres, widths, targets, torch.full_like(targets, 1 / num_targets))


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
        wavelengths (`Sequence[float]`): band centres of the sensor in nm, ascending, each once.
        fwhm (`Sequence[float]`, *optional*): full width at half maximum of each band in nm.
        scale (`float`, *optional*): stored number that means a reflectance of 1; by default the processor's.
        nodata (`float`, *optional*): stored number that means no data; by default the processor's.

    Returns:
        A processor whose images have exactly these bands, or others of nearly the same `wavelengths`.

    Raises:
        ValueError: the processor does not know its wavelengths, or the new ones are wrong as in
            `adapt_to_wavelengths`.
    """
    if processor.wavelengths is None:
        raise ValueError("`processor` must know the wavelengths of its bands, as processors of trained models do.")
    centres, widths = check_bands(wavelengths, fwhm)
    trained_centres = torch.tensor([float(wavelength) for wavelength in processor.wavelengths], dtype=torch.float64)
    weights = resampling_weights(trained_centres, band_spacing(trained_centres), centres, widths)
    statistics = {
        name: None if values is None else (weights @ torch.tensor(values, dtype=torch.float64)).tolist()
        for name, values in (("image_mean", processor.image_mean), ("image_std", processor.image_std))
    }
    # Otherwise one band of an image may stand in for two bands of the model
    tolerance = processor.wavelength_tolerance
    if len(centres) > 1:
        tolerance = min(tolerance, 0.5 * float(centres.diff().median()))
    return type(processor)(
        **statistics,
        wavelengths=centres.tolist(),
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
    *,
    band_patch_size: int | None = None,
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
        wavelengths (`Sequence[float]`): band centres of the sensor in nm, ascending, each once.
        fwhm (`Sequence[float]`, *optional*): full width at half maximum of each band in nm.
        band_patch_size (`int`, *optional*): as in `adapt_to_wavelengths`.
        kwargs: for `from_pretrained`.

    Returns:
        The model or processor, adapted.

    Raises:
        ValueError: as `adapt_to_wavelengths` and `adapt_processor`.
    """
    loaded = auto_class.from_pretrained(pretrained_model_name_or_path, **kwargs)
    if hasattr(loaded, "image_mean"):
        return adapt_processor(loaded, wavelengths, fwhm)
    return adapt_to_wavelengths(loaded, wavelengths, fwhm, band_patch_size=band_patch_size)


__all__ = ["AdaptationReport", "adapt_processor", "adapt_to_wavelengths", "load_for_wavelengths"]

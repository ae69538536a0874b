"""Augmentations for models that will meet other scenes and sensors: errors of the correction, parts of the spectrum.

Haze that is missed adds light to a scene, and haze that is corrected too much takes some away, most in the blue.
Aerosol, sunlight and calibration leave a factor, on all of the spectrum and slowly changing along it. Every scene has
its own such errors, so that a model which saw a few scenes takes theirs for properties of the ground.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from modeling_hsst import HSSTConfig, HSSTModel
from modeling_hsst.modeling_hsst import bands_to_blocks

REFERENCE_WAVELENGTH = 550.0
"""nm, at which path radiance is stated."""

SMALLEST_EXPONENT, LARGEST_EXPONENT = 0.5, 3.0
"""Of the wavelength in path radiance: from coarse aerosol to nearly clean air (4)."""

CURVE_STEP = 250.0
"""nm between the points of a curve along the spectrum."""


class CorrectionErrors:
    """Draws a factor and an added reflectance for each window, by wavelengths in nm (bands,): `path_radiance` is the
    standard deviation of what is added at `REFERENCE_WAVELENGTH`, `calibration` that of a factor that is the same in
    all bands, and of one that changes along the spectrum, smoothly over `CURVE_STEP`."""

    def __init__(self, wavelengths: Sequence[float], path_radiance: float, calibration: float) -> None:
        self.wavelengths = torch.tensor(wavelengths, dtype=torch.float32)
        self.path_radiance = path_radiance
        self.calibration = calibration
        first, last = self.wavelengths.min(), self.wavelengths.max()
        points = torch.linspace(float(first), float(last), max(2, 1 + round(float(last - first) / CURVE_STEP)))
        # Weights of a point fall linearly to 0 at its neighbors (points, bands)
        apart = torch.clamp(points[1] - points[0], min=1.0)
        self.curves = (1 - (points[:, None] - self.wavelengths[None]).abs() / apart).clamp(min=0)

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors on the reflectance and reflectance added after them, both float32 (count, bands)."""
        common = torch.randn((count, 1), generator=generator)
        along = torch.randn((count, len(self.curves)), generator=generator) @ self.curves
        factor = (1 + self.calibration * (common + along)).clamp(min=0.1)
        exponent = SMALLEST_EXPONENT + (LARGEST_EXPONENT - SMALLEST_EXPONENT) * torch.rand(
            (count, 1), generator=generator
        )
        fall = (REFERENCE_WAVELENGTH / self.wavelengths)[None] ** exponent
        return factor, self.path_radiance * torch.randn((count, 1), generator=generator) * fall


SMALLEST_SHARE = 0.25
"""Of the blocks of a model, in a crop."""


class SpectralCrop:
    """Runs a model on a random range of its blocks, as if it had no others.

    A sensor that ends at 1,000 nm has half the blocks of EnMAP. A model that was always shown all of them has not
    learned to do without. `share` is that of the steps that see a part only. ValueError where the model has not
    positions of type "wavelength" or "relative", blockwise embeddings and a head of type "mean", whose weights do not
    depend on which blocks there are.
    """

    def __init__(self, model: Any, share: float, seed: int) -> None:
        config = getattr(model, "config", None)
        if not isinstance(config, HSSTConfig) or type(getattr(model, "hsst", None)) is not HSSTModel:
            raise ValueError(f"spectral_crop: expected a model with the encoder of HSST, got {type(model).__name__}")
        needed = {"encodes_wavelengths": True, "blockwise_patch_embedding": True, "head_type": "mean"}
        for name, wanted in needed.items():
            if getattr(config, name) != wanted:
                raise ValueError(f"spectral_crop: expected a model with {name} {wanted}, got {getattr(config, name)}")
        self.model, self.config, self.share = model, config, share
        self.generator = torch.Generator().manual_seed(seed)
        self.crops: dict[tuple[int, int], nn.Module] = {}

    def draw(self) -> tuple[int, int] | None:
        """
        First block of a step's range and the one behind its last, every length from a quarter of all blocks on alike;
        None where the step sees all.
        """
        if torch.rand((), generator=self.generator) >= self.share:
            return None
        num_blocks = self.config.num_blocks
        smallest = max(1, round(SMALLEST_SHARE * num_blocks))
        length = int(torch.randint(smallest, num_blocks + 1, (1,), generator=self.generator))
        first = int(torch.randint(0, num_blocks - length + 1, (1,), generator=self.generator))
        return first, first + length

    def crop(self, first: int, end: int) -> nn.Module:
        """A model of some blocks, without weights of its own."""
        if (first, end) not in self.crops:
            config = self.config
            changes = {
                "num_channels": (end - first) * config.band_patch_size,
                "wavelengths": None,
                "block_bands": None,
                "block_centers": (config.block_wavelengths or [])[first:end],
                "spectral_positions": list(config.spectral_positions or [])[first:end],
            }
            cropped_config = HSSTConfig.from_dict(copy.deepcopy(config.to_dict()) | changes)
            cropped_config._attn_implementation = config._attn_implementation
            with torch.random.fork_rng(devices=[]):
                cropped = type(self.model)(cropped_config)
            # There are many ranges, and the model's weights take the place of these
            for parameter in cropped.parameters():
                parameter.data = parameter.data.new_empty(0)
            self.crops[first, end] = cropped.to(next(self.model.parameters()).device)
        cropped = self.crops[first, end]
        # An encoder that is frozen may be in evaluation mode, and its head not
        for name, module in cropped.named_modules():
            module.training = self.model.get_submodule(name).training
        return cropped

    def __call__(self, blocks: tuple[int, int], pixel_values: torch.Tensor, **inputs: Any) -> Any:
        """What the model makes of windows (batch, bands, height, width) of which it sees a range of blocks."""
        first, end = blocks
        size = self.config.band_patch_size
        pixel_values = bands_to_blocks(pixel_values, self.model.hsst.embeddings.band_index)
        pixel_values = F.pad(pixel_values, (0, 0, 0, 0, 0, self.config.num_blocks * size - pixel_values.shape[1]))
        parameters = {
            name: value[first:end] if name.endswith(("patch_embeddings.weight", "patch_embeddings.bias")) else value
            for name, value in self.model.named_parameters()
        }
        inputs["pixel_values"] = pixel_values[:, first * size : end * size]
        return functional_call(self.crop(first, end), parameters, (), inputs)

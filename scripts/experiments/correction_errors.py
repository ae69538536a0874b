"""An augmentation for models that will meet other scenes: what correction of the atmosphere leaves over, drawn anew.

Haze that is missed adds light to a scene, and haze that is corrected too much takes some away, most in the blue.
Aerosol, sunlight and calibration leave a factor, on all of the spectrum and slowly changing along it. Every scene has
its own such errors, so that a model which saw a few scenes takes theirs for properties of the ground.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

REFERENCE_WAVELENGTH = 550.0
"""nm, at which path radiance is stated."""

SMALLEST_EXPONENT, LARGEST_EXPONENT = 0.5, 3.0
"""Of the wavelength in path radiance: from coarse aerosol to nearly clean air (4)."""

CURVE_STEP = 250.0
"""nm between the points of a curve along the spectrum."""


class CorrectionErrors:
    """Draws a factor and an added reflectance for each window.

    Args:
        wavelengths: band centres in nm, (bands,).
        path_radiance: standard deviation of the added reflectance at `REFERENCE_WAVELENGTH`.
        calibration: standard deviation of a factor that is the same in all bands, and of one that changes along the
            spectrum, smoothly over `CURVE_STEP`.
    """

    def __init__(self, wavelengths: Sequence[float], path_radiance: float, calibration: float) -> None:
        self.wavelengths = torch.tensor(wavelengths, dtype=torch.float32)
        self.path_radiance = path_radiance
        self.calibration = calibration
        first, last = self.wavelengths.min(), self.wavelengths.max()
        points = torch.linspace(float(first), float(last), max(2, 1 + round(float(last - first) / CURVE_STEP)))
        # Weights of a point fall linearly to 0 at its neighbours (points, bands)
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

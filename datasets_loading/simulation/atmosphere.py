"""What stands between a simulated ground and its product: gases, noise, detectors, clouds.

An L2A product is corrected for the atmosphere, so only what the correction leaves over is simulated: path radiance,
gas bands a little off, spectral smile and stripes of the detectors, and the noise of the instrument, which is
specified as a signal-to-noise ratio for radiance at the sensor (EnMAP: Guanter et al. 2015).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter1d, map_coordinates

from datasets_loading.sensors import Sensor
from datasets_loading.simulation.landscape import FloatImage, fractal_noise
from datasets_loading.simulation.materials import FloatArray
from datasets_loading.simulation.spectra import SPECTRUM_WAVELENGTHS, band_response

REFERENCE_ALBEDO = 0.3
REFERENCE_SUN_ZENITH = 30.0
SPECIFIED_SIGNAL_TO_NOISE = {495.0: 500.0, 2200.0: 150.0}
"""Specified signal-to-noise ratio of EnMAP at wavelengths in nm, over the reference albedo and under that sun."""

PIXEL_SIZE = 30.0


def gas_optical_depth() -> FloatArray:
    """Optical depth (2101,) of water vapour, oxygen and carbon dioxide, down and up, with their fine structure."""
    # Center and width in nm and depth of the absorption bands between 400 and 2500 nm, for 2 cm of water vapour.
    bands = (
        (591.0, 4.0, 0.04), (650.0, 4.0, 0.03), (687.5, 2.5, 0.5), (697.0, 6.0, 0.06), (724.0, 8.0, 0.28),
        (761.0, 3.0, 1.6), (764.5, 4.0, 0.6), (817.0, 9.0, 0.22), (905.0, 8.0, 0.15), (938.0, 13.0, 1.1),
        (965.0, 14.0, 0.45), (1120.0, 11.0, 1.1), (1140.0, 14.0, 1.1), (1160.0, 14.0, 0.3), (1268.0, 5.0, 0.12),
        (1360.0, 28.0, 7.0), (1405.0, 28.0, 6.0), (1465.0, 22.0, 0.9), (1575.0, 6.0, 0.05), (1605.0, 6.0, 0.05),
        (1770.0, 12.0, 0.25), (1820.0, 26.0, 4.0), (1880.0, 30.0, 9.0), (1930.0, 22.0, 4.0), (1958.0, 13.0, 0.9),
        (2006.0, 7.0, 0.7), (2060.0, 7.0, 0.4), (2300.0, 18.0, 0.07), (2350.0, 22.0, 0.18), (2430.0, 35.0, 0.6),
        (2500.0, 40.0, 1.6),
    )  # fmt: skip
    depth = np.zeros_like(SPECTRUM_WAVELENGTHS)
    for center, width, peak in bands:
        depth += peak * np.exp(-0.5 * ((SPECTRUM_WAVELENGTHS - center) / width) ** 2)
    # Lines cluster within a band; their pattern is a property of the gas and the same in every scene.
    lines = gaussian_filter1d(np.random.default_rng(20150129).standard_normal(depth.size), 2.5)
    return depth * np.exp(0.45 * lines / lines.std())


@dataclass(frozen=True)
class NoiseModel:
    """Noise of reflectance, in each band: variance = `constant` + `growth` x reflectance.

    Attributes:
        constant, growth: (bands,) float32.
    """

    constant: NDArray[np.float32]
    growth: NDArray[np.float32]

    def deviation(self, reflectance: FloatArray) -> FloatArray:
        """Standard deviation of the noise; reflectance and result are (bands, ...)."""
        trailing = (...,) + (None,) * (reflectance.ndim - 1)
        return np.sqrt(self.constant[trailing] + self.growth[trailing] * reflectance.clip(0))


def noise_model(sensor: Sensor, detectors: tuple[str, ...], sun_zenith: float) -> NoiseModel:
    """The noise that meets the specification (`SPECIFIED_SIGNAL_TO_NOISE`) under the sun of a scene.

    Light is counted in electrons: their number follows the sun's spectrum, the gases and the band's width; its noise
    is Poisson's and that of the read-out. Each detector's efficiency is set by the specification at its wavelength.
    """
    wavelengths, widths = np.asarray(sensor.wavelengths), np.asarray(sensor.fwhm)
    micrometers = SPECTRUM_WAVELENGTHS / 1000.0
    photons = micrometers**-4 / np.expm1(14388.0 / (micrometers * 5772.0))  # Planck's law, as a number of photons
    response = band_response(sensor)
    light = ((photons * np.exp(-gas_optical_depth())) @ response) * widths
    light = np.maximum(light, 1e-4 * light.max())
    scattered = ((photons * 0.08 * (SPECTRUM_WAVELENGTHS / 450.0) ** -3.5) @ response) * widths
    is_shortwave = np.array([detector == "SWIR" for detector in detectors])
    constant, growth = np.empty(len(wavelengths)), np.empty(len(wavelengths))
    reference_cosine = np.cos(np.deg2rad(REFERENCE_SUN_ZENITH))
    cosine = np.cos(np.deg2rad(sun_zenith))
    for mask, (wavelength, ratio), dark in zip(
        (~is_shortwave, is_shortwave), SPECIFIED_SIGNAL_TO_NOISE.items(), (0.05, 0.35), strict=True
    ):
        if not mask.any():
            continue
        at = int(np.argmin(np.where(mask, np.abs(wavelengths - wavelength), np.inf)))
        # Signal S from the ground and noise² = S + scattered light + dark, `dark` being a share of S at the specified
        # wavelength; efficiency makes S / noise the specified ratio there.
        signal = REFERENCE_ALBEDO * reference_cosine * light[at]
        efficiency = ratio**2 * (signal + reference_cosine * scattered[at] + dark * signal) / signal**2
        per_reflectance = efficiency * cosine * light[mask]
        background = efficiency * (cosine * scattered[mask] + dark * signal)
        growth[mask] = 1.0 / per_reflectance
        constant[mask] = background / per_reflectance**2
    return NoiseModel(constant.astype(np.float32), growth.astype(np.float32))


@dataclass(frozen=True)
class Residuals:
    """What correction and calibration leave over, as factors on reflectance and light added to it.

    Attributes:
        gain: (bands, columns) float32, for each column of the detector.
        offset: (bands, columns) float32, reflectance.
        vapour: (bands,) float32, relative change of reflectance per unit of water vapour missed by the correction.
        path: (bands,) float32, reflectance added by a unit of haze missed by the correction.
        diffuse: (bands,) float32, share of the skylight in the light on level ground.
        adjacency: (bands,) float32, share of light from the surroundings left in a pixel.
        misregistration: pixels along rows and columns by which the SWIR detector sees the ground beside the VNIR one.
    """

    gain: NDArray[np.float32]
    offset: NDArray[np.float32]
    vapour: NDArray[np.float32]
    path: NDArray[np.float32]
    diffuse: NDArray[np.float32]
    adjacency: NDArray[np.float32]
    misregistration: tuple[float, float]


def simulate_residuals(
    generator: np.random.Generator, sensor: Sensor, detectors: tuple[str, ...], columns: int
) -> Residuals:
    """Draw the residuals of one acquisition; `columns` is the width of the swath in pixels."""
    wavelengths = np.asarray(sensor.wavelengths)
    response = band_response(sensor)
    depth = gas_optical_depth()
    transmittance = np.exp(-depth)
    seen = (transmittance @ response).clip(1e-3)
    moved = (np.roll(transmittance, -1) @ response).clip(1e-3)
    log_slope = (np.log(moved) - np.log(seen)).clip(-0.25, 0.25)  # per nm
    is_shortwave = np.array([detector == "SWIR" for detector in detectors])
    shift = np.where(is_shortwave, generator.normal(0.0, 0.35), generator.normal(0.0, 0.30))
    smile = generator.normal(0.0, 0.15, 2)[is_shortwave.astype(int)]
    across = np.linspace(-1.0, 1.0, columns)
    bow = across**2 - 1 / 3
    # Vapour is more often over- than underestimated over vegetation, whose own water absorbs beside it.
    missed_vapour = generator.normal(0.008, 0.012)
    # What the lines within a band do at a resolution of 10 nm is never matched quite: neighbors are off either way.
    unmatched = generator.normal(0.0, 0.045, len(wavelengths))
    missed_gas = np.exp(((missed_vapour + unmatched) * -np.log(seen)).clip(-0.5, 0.8))
    gain = missed_gas[:, None] * np.exp(log_slope[:, None] * (shift[:, None] + smile[:, None] * bow))
    # Aerosol, the wings of gas bands and radiometric calibration leave broad errors of some percent, and a step
    # between the detectors.
    knots = np.linspace(400.0, 2500.0, 15)
    smooth = PchipInterpolator(knots, generator.normal(0.0, 0.022, knots.size))(wavelengths)
    smooth += is_shortwave * generator.normal(0.0, 0.012)
    # Where the two detectors meet, both are at the weak end of their range and disagree from band to band.
    weak = np.exp(-0.5 * ((wavelengths - 950.0) / 35.0) ** 2)
    band_to_band = generator.normal(0.0, 1.0, len(wavelengths)) * (0.003 + 0.018 * weak)
    gain *= (1.0 + smooth + band_to_band)[:, None]
    gain *= 1.0 + generator.normal(0.0, 0.0015, (len(wavelengths), columns))
    brightness = np.exp(-((wavelengths - 400.0) / 700.0))
    offset = 0.0008 * brightness[:, None] * generator.standard_normal((len(wavelengths), columns)) * 0.4
    path = (550.0 / wavelengths) ** generator.uniform(0.8, 2.0)
    offset += generator.normal(0.002, 0.004) * path[:, None]
    return Residuals(
        gain=gain.clip(0.3, 3.0).astype(np.float32),
        offset=offset.astype(np.float32),
        vapour=(-np.log(seen)).clip(0.0, 3.0).astype(np.float32),
        path=path.astype(np.float32),
        diffuse=(0.30 * (wavelengths / 450.0) ** -1.6).clip(0.0, 0.5).astype(np.float32),
        adjacency=(0.10 * (wavelengths / 450.0) ** -1.1).clip(0.0, 0.2).astype(np.float32),
        misregistration=(float(generator.uniform(0.0, 0.3)), float(generator.uniform(0.0, 0.3))),
    )


def illumination(elevation: FloatImage, sun_zenith: float, sun_azimuth: float, correction: float) -> FloatImage:
    """Direct sunlight (height, width) on terrain as a share of that on level ground, shadows of mountains included.

    Args:
        elevation: (height, width) meters, rows from north to south, pixels of 30 m.
        sun_azimuth: degrees from north, clockwise.
        correction: share of the effect that the product's terrain correction took away, 0 to 1.
    """
    zenith, azimuth = np.deg2rad(sun_zenith), np.deg2rad(sun_azimuth)
    down = np.gradient(elevation / np.float32(PIXEL_SIZE), axis=0)
    right = np.gradient(elevation / np.float32(PIXEL_SIZE), axis=1)
    # Normal of the surface (east, north, up) = (-right, down, 1) / length, as rows count southwards.
    cosine = (
        -right * np.sin(zenith) * np.sin(azimuth) + down * np.sin(zenith) * np.cos(azimuth) + np.cos(zenith)
    ) / np.sqrt(1.0 + right**2 + down**2)
    light = (cosine / np.cos(zenith)).clip(0.0, 2.0)
    step_row, step_column = -np.cos(azimuth), np.sin(azimuth)  # towards the sun
    rise = PIXEL_SIZE / np.tan(zenith) if zenith > 1e-3 else np.inf
    reach = int(min(40.0, (elevation.max() - elevation.min()) / rise))
    rows = np.arange(elevation.shape[0], dtype=np.float32)[:, None]
    columns = np.arange(elevation.shape[1], dtype=np.float32)[None, :]
    for distance in range(1, reach + 1, 2):
        row = np.broadcast_to(rows + np.float32(distance * step_row), elevation.shape)
        column = np.broadcast_to(columns + np.float32(distance * step_column), elevation.shape)
        towards_sun = map_coordinates(elevation, (row, column), order=1, mode="nearest")
        light = np.where(towards_sun > elevation + distance * rise, 0.0, light)
    return (1.0 + (1.0 - correction) * (light - 1.0)).astype(np.float32)


@dataclass(frozen=True)
class Clouds:
    """Clouds over a scene, all (height, width) float32.

    Attributes:
        opacity: share of the ground hidden by clouds, 0 to 1.
        shadow: share of direct sunlight that clouds keep from the ground.
        haze: optical thickness of haze, in the units of `Residuals.path`.
        cirrus: reflectance of cirrus above the scene.
    """

    opacity: FloatImage
    shadow: FloatImage
    haze: FloatImage
    cirrus: FloatImage


def simulate_clouds(
    generator: np.random.Generator,
    height: int,
    width: int,
    *,
    cloud_cover: float,
    haze_cover: float,
    cirrus_cover: float,
    sun_zenith: float,
    sun_azimuth: float,
) -> Clouds:
    """Clouds that cover a share of the scene, their shadows on the side away from the sun, haze and cirrus."""
    region = min(120.0, max(height, width) / 2.0)
    base = float(generator.uniform(700.0, 2200.0))  # meters above ground
    throw = base * np.tan(np.deg2rad(sun_zenith)) / PIXEL_SIZE
    azimuth = np.deg2rad(sun_azimuth)
    # A cloud at (row, column) shades the ground at (row + down, column + right): away from the sun.
    down, right = round(throw * np.cos(azimuth)), round(-throw * np.sin(azimuth))
    margin_row, margin_column = abs(down), abs(right)
    shape = (height + 2 * margin_row, width + 2 * margin_column)
    inside = (slice(margin_row, margin_row + height), slice(margin_column, margin_column + width))
    shaded = (
        slice(margin_row - down, margin_row - down + height),
        slice(margin_column - right, margin_column - right + width),
    )

    def cover(field: FloatImage, share: float, softness: float) -> FloatImage:
        if share <= 0.0:
            return np.zeros(field.shape, dtype=np.float32)
        threshold = np.quantile(field[inside], 1.0 - share)
        return ((field - threshold) / np.float32(softness) + np.float32(0.5)).clip(0.0, 1.0)

    opacity = cover(fractal_noise(generator, shape, region * 0.5, 6, 0.6), cloud_cover, 0.35)
    haze = cover(fractal_noise(generator, shape, region * 1.5, 4, 0.5), haze_cover, 1.2)
    cirrus_field = fractal_noise(generator, shape, region * 1.5, 4, 0.5)
    cirrus = cover(cirrus_field, cirrus_cover, 1.5)
    return Clouds(
        opacity=opacity[inside],
        shadow=np.float32(0.92) * opacity[shaded],
        haze=(haze * np.float32(generator.uniform(0.03, 0.08)))[inside],
        cirrus=(cirrus * np.float32(generator.uniform(0.015, 0.05)))[inside],
    )

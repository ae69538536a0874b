"""Spectra of a simulated land surface from 400 to 2500 nm in steps of 1 nm, and what a sensor's bands make of them.

Vegetation is PROSPECT-D (Feret et al. 2017) in 4SAIL (Verhoef et al. 2007), both from the `prosail` package; soils are
the dry and wet soil of PROSAIL with absorption features of iron oxides, clay, carbonate and organic matter; water
follows the bio-optical model of Lee et al. (1998, 1999); snow the asymptotic theory of Kokhanovsky and Zege (2004);
built-up surfaces and rocks are smooth continua with their known absorption features. All numbers are reflectance, from
0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.sparse import csr_matrix

from datasets_loading.sensors import Sensor
from datasets_loading.simulation.materials import (
    CANOPIES,
    CLASS_NAMES,
    SOILS,
    SURFACES,
    WATERS,
    Canopy,
    FloatArray,
    Spread,
    Surface,
    feature_depth,
)

SPECTRUM_WAVELENGTHS: FloatArray = np.arange(400.0, 2501.0)
"""Wavelengths in nm of every spectrum before it is seen through a sensor's bands."""


@dataclass(frozen=True)
class SpectralLibrary:
    """Spectra of one place and date, seen through the bands of one sensor.

    Attributes:
        reflectance: (spectra, bands) float32.
        materials: name of the material of each spectrum, such as "maize" or "asphalt".
        classes: (spectra,) uint8, the land cover of each spectrum, an index into `CLASS_NAMES`.
    """

    reflectance: NDArray[np.float32]
    materials: tuple[str, ...]
    classes: NDArray[np.uint8]

    def spectra_of(self, material: str) -> NDArray[np.int64]:
        """Positions of a material's spectra."""
        return np.flatnonzero(np.asarray(self.materials) == material)


@dataclass(frozen=True)
class SunAndView:
    """Angles in degrees of the sun and the sensor from the zenith, and of the sensor from the sun's azimuth."""

    sun_zenith: float
    view_zenith: float = 0.0
    relative_azimuth: float = 90.0


def _import_prosail() -> ModuleType:
    try:
        import prosail
    except ImportError as error:
        raise ImportError('the simulator needs the prosail package: pip install "hsst[simulate]"') from error
    return prosail


def _absorption(center: float | FloatArray, width: float, depth: FloatArray) -> FloatArray:
    """Factors (count, 2101) of absorptions by their depths (count,), at one center or one for each."""
    center, depth = np.reshape(center, (-1, 1)), depth[:, None]
    return 1.0 - depth * np.exp(-0.5 * ((SPECTRUM_WAVELENGTHS - center) / width) ** 2)


def _smooth_continuum(points: dict[int, float]) -> FloatArray:
    joined = np.interp(SPECTRUM_WAVELENGTHS, list(points), list(points.values()))
    return gaussian_filter1d(joined, 25.0, mode="nearest")


def simulate_surface(surface: Surface, generator: np.random.Generator, count: int) -> FloatArray:
    """Spectra (count, 2101) of a surface without leaves."""
    continuum = _smooth_continuum(surface.continuum)
    position = (SPECTRUM_WAVELENGTHS - 1200.0) / 2100.0
    spectra = surface.brightness.draw(generator, count)[:, None] * continuum
    spectra = spectra * (1.0 + surface.tilt.draw(generator, count)[:, None] * position)
    for center, width, depth in surface.features:
        shift = generator.normal(0.0, 0.08 * width, count)
        spectra *= _absorption(center + shift, width, depth.draw(generator, count))
    return spectra.clip(0.005, 0.95)


def simulate_soil(soil: str, generator: np.random.Generator, count: int) -> FloatArray:
    """Spectra (count, 2101) of one of `SOILS`: PROSAIL's dry and wet soil, with the features of a soil's minerals."""
    brightness, iron, clay, carbonate, humus, moisture = {
        "sandy soil": ((0.80, 0.14), 0.25, 0.04, 0.01, 0.10, 0.20),
        "loamy soil": ((0.62, 0.12), 0.45, 0.10, 0.02, 0.25, 0.35),
        "chalky soil": ((0.88, 0.12), 0.20, 0.05, 0.12, 0.10, 0.25),
        "humous soil": ((0.50, 0.10), 0.20, 0.06, 0.01, 0.70, 0.45),
    }[soil]
    library = _import_prosail().spectral_lib.soil
    dry, wet = np.asarray(library.rsoil1, dtype=np.float64), np.asarray(library.rsoil2, dtype=np.float64)
    level = Spread(*brightness, 0.3, 1.2).draw(generator, count)[:, None]
    wetness = Spread(moisture, 0.2, 0.0, 0.9).draw(generator, count)[:, None]
    oxide = Spread(iron, 0.15, 0.0, 0.9).draw(generator, count)[:, None]
    organic = Spread(humus, 0.15, 0.0, 1.0).draw(generator, count)[:, None]
    spectra = level * (wetness * wet + (1.0 - wetness) * dry)
    # Iron oxide takes blue and green away below its charge-transfer edge and leaves a shallow band near 870-900 nm.
    edge = 1.0 / (1.0 + np.exp((SPECTRUM_WAVELENGTHS - 560.0) / 38.0))
    spectra = spectra * (1.0 - 0.75 * oxide * edge)
    spectra *= 1.0 - 0.12 * oxide * np.exp(-0.5 * ((SPECTRUM_WAVELENGTHS - 885.0) / 70.0) ** 2)
    # Organic matter makes the rise from the visible to 1300 nm concave.
    spectra *= 1.0 - 0.55 * organic * np.exp(-((SPECTRUM_WAVELENGTHS - 400.0).clip(0) / 700.0))
    for center, width, depth in (
        (1415.0, 16.0, feature_depth(0.6 * clay)),
        (1915.0, 28.0, feature_depth(1.2 * clay)),
        (2205.0, 17.0, feature_depth(clay)),
        (2340.0, 26.0, feature_depth(carbonate)),
    ):
        spectra *= _absorption(center, width, depth.draw(generator, count))
    return spectra.clip(0.005, 0.95)


def _litter(generator: np.random.Generator, count: int) -> FloatArray:
    """Spectra (count, 2101) of dead plant matter with the absorptions of cellulose and lignin at 2100 and 2300 nm."""
    points = {
        400: 0.06, 500: 0.10, 600: 0.16, 700: 0.22, 800: 0.29, 1000: 0.37, 1300: 0.44, 1700: 0.42, 2000: 0.34,
        2200: 0.35, 2500: 0.24,
    }  # fmt: skip
    spectra = Spread(0.8, 0.16, 0.4, 1.2).draw(generator, count)[:, None] * _smooth_continuum(points)
    for center, width, depth in (
        (1200.0, 35.0, 0.03),
        (1450.0, 40.0, 0.10),
        (1730.0, 22.0, 0.04),
        (1930.0, 45.0, 0.14),
        (2100.0, 38.0, 0.12),
        (2300.0, 32.0, 0.08),
    ):
        spectra = spectra * _absorption(center, width, feature_depth(depth).draw(generator, count))
    return spectra


def simulate_canopy(
    canopy: Canopy, soils: FloatArray, angles: SunAndView, generator: np.random.Generator, count: int
) -> FloatArray:
    """Spectra (count, 2101) of vegetation over ground that is drawn from `soils`, (soils, 2101)."""
    run_prosail = _import_prosail().run_prosail
    chlorophyll = canopy.chlorophyll.draw(generator, count)
    carotenoids = 1.5 + 0.17 * chlorophyll * generator.uniform(0.8, 1.3, count)
    parameters = {
        "n": canopy.structure.draw(generator, count),
        "cab": chlorophyll,
        "car": carotenoids,
        "cbrown": canopy.brown_pigment.draw(generator, count),
        "cw": canopy.water.draw(generator, count),
        "cm": canopy.dry_matter.draw(generator, count),
        "lai": canopy.leaf_area_index.draw(generator, count),
        "lidfa": canopy.leaf_angle.draw(generator, count),
        "hspot": generator.uniform(0.02, 0.25, count),
        "ant": canopy.anthocyanin.draw(generator, count),
    }
    ground = soils[generator.integers(len(soils), size=count)]
    spectra = np.stack(
        [
            run_prosail(
                **{name: float(values[index]) for name, values in parameters.items()},
                tts=angles.sun_zenith,
                tto=angles.view_zenith,
                psi=angles.relative_azimuth,
                prospect_version="D",
                typelidf=2,
                rsoil0=ground[index],
            )
            for index in range(count)
        ]
    )
    litter = canopy.litter.draw(generator, count)[:, None]
    spectra = (1.0 - litter) * spectra + litter * _litter(generator, count)
    # Shadow under crowns is lit by the sky and by light that passed through leaves, so it keeps some near infrared.
    shade = canopy.shade.draw(generator, count)[:, None]
    return spectra * (1.0 - shade * (1.0 - 0.25 * spectra.clip(0.0, 1.0)))


def simulate_water(water: str, generator: np.random.Generator, count: int) -> FloatArray:
    """Spectra (count, 2101) of one of `WATERS` just above its surface, after Lee et al. (1998, 1999)."""
    # Chlorophyll in mg/m³, dissolved organic matter as absorption at 440 nm in 1/m, sediment in g/m³, depth in m.
    chlorophyll_range, dissolved_range, sediment_range, depth_range = {
        "clear water": ((0.5, 4.0), (0.05, 0.4), (0.2, 2.0), (1.0, 25.0)),
        "green water": ((8.0, 70.0), (0.3, 1.5), (2.0, 10.0), (1.5, 15.0)),
        "brown water": ((3.0, 30.0), (1.0, 5.0), (1.0, 8.0), (1.0, 10.0)),
        "turbid water": ((3.0, 25.0), (0.3, 1.5), (6.0, 40.0), (0.8, 8.0)),
    }[water]

    def between(limits: tuple[float, float]) -> FloatArray:
        return np.exp(generator.uniform(np.log(limits[0]), np.log(limits[1]), count))[:, None]

    chlorophyll, dissolved = between(chlorophyll_range), between(dissolved_range)
    sediment, depth = between(sediment_range), between(depth_range)
    wavelengths = SPECTRUM_WAVELENGTHS
    pure_absorption = 100.0 * np.asarray(_import_prosail().spectral_lib.prospectd.kw, dtype=np.float64)  # 1/cm to 1/m
    pigment_shape = (
        np.exp(-0.5 * ((wavelengths - 438.0) / 32.0) ** 2)
        + 0.45 * np.exp(-0.5 * ((wavelengths - 490.0) / 30.0) ** 2)
        + 0.16 * np.exp(-0.5 * ((wavelengths - 625.0) / 25.0) ** 2)
        + 0.50 * np.exp(-0.5 * ((wavelengths - 676.0) / 13.0) ** 2)
    )
    absorption = (
        pure_absorption
        + 0.06 * chlorophyll**0.65 * pigment_shape
        + dissolved * np.exp(-generator.uniform(0.013, 0.018, (count, 1)) * (wavelengths - 440.0))
        + 0.02 * sediment * np.exp(-0.011 * (wavelengths - 440.0))
    )
    backscattering = 0.0011 * (500.0 / wavelengths) ** 4.3 + (0.006 * sediment + 0.0006 * chlorophyll) * (
        550.0 / wavelengths
    ) ** generator.uniform(0.2, 1.2, (count, 1))
    attenuation = absorption + backscattering
    share = backscattering / attenuation
    deep = (0.084 + 0.17 * share) * share
    bottom = generator.uniform(0.5, 1.5, (count, 1)) * (0.08 + 0.12 * (wavelengths - 400.0) / 600.0).clip(0.08, 0.2)
    path_water = 1.03 * np.sqrt(1.0 + 2.4 * share)
    path_bottom = 1.04 * np.sqrt(1.0 + 5.4 * share)
    below_surface = deep * (1.0 - np.exp(-(1.0 + path_water) * attenuation * depth)) + bottom / np.pi * np.exp(
        -(1.0 + path_bottom) * attenuation * depth
    )
    above_surface = np.pi * 0.518 * below_surface / (1.0 - 1.562 * below_surface)
    glint = generator.exponential(0.003, (count, 1))
    return above_surface + glint


def simulate_snow(generator: np.random.Generator, count: int) -> FloatArray:
    """Spectra (count, 2101) of snow after Kokhanovsky and Zege (2004): grains of 0.1 to 1 mm with some soot."""
    # Imaginary part of the refractive index of ice at some wavelengths (nm), after Warren and Brandt (2008).
    ice = {
        400: 2e-11, 500: 6e-10, 600: 5.7e-9, 700: 2.9e-8, 800: 1.34e-7, 900: 4.2e-7, 980: 1.5e-6, 1030: 2.33e-6,
        1100: 1.8e-6, 1180: 6.5e-6, 1270: 1.33e-5, 1310: 1.24e-5, 1400: 1.95e-5, 1440: 1.2e-4, 1500: 5.5e-4,
        1600: 2.7e-4, 1700: 1.8e-4, 1800: 1.15e-4, 1860: 1.1e-4, 1950: 9e-4, 2000: 1.6e-3, 2100: 8e-4, 2240: 2.1e-4,
        2400: 7e-4, 2500: 8e-4,
    }  # fmt: skip
    index = np.exp(np.interp(SPECTRUM_WAVELENGTHS, list(ice), np.log(list(ice.values()))))
    grain = np.exp(generator.uniform(np.log(1e-4), np.log(1e-3), (count, 1)))  # m
    impurity = np.exp(generator.uniform(np.log(1e-8), np.log(2e-7), (count, 1))) * 500.0 / SPECTRUM_WAVELENGTHS
    absorption = 4.0 * np.pi * (index + impurity) / (SPECTRUM_WAVELENGTHS * 1e-9)
    return np.exp(-3.6 * np.sqrt(absorption * grain))


def cloud_reflectance() -> FloatArray:
    """Reflectance (2101,) of a thick cloud: white, darkened in the shortwave infrared by its droplets."""
    water = 100.0 * np.asarray(_import_prosail().spectral_lib.prospectd.kw, dtype=np.float64)
    return 0.78 * np.exp(-4.5 * np.sqrt(water * 1e-5))


def band_response(sensor: Sensor) -> FloatArray:
    """Weights (2101, bands) by which spectra become a sensor's bands: Gaussians of the bands' centers and widths."""
    centers, widths = np.asarray(sensor.wavelengths), np.asarray(sensor.fwhm)
    if centers.min() < SPECTRUM_WAVELENGTHS[0] or centers.max() > SPECTRUM_WAVELENGTHS[-1]:
        raise ValueError(
            f"sensor {sensor.name}: the simulator covers {SPECTRUM_WAVELENGTHS[0]:g} to "
            f"{SPECTRUM_WAVELENGTHS[-1]:g} nm, got bands from {centers.min():g} to {centers.max():g} nm"
        )
    # Here, for the package of the model needs torch, which takes seconds to load
    from modeling_hsst.bands_hsst import gaussian_response

    return gaussian_response(SPECTRUM_WAVELENGTHS, centers, widths)


def simulate_spectral_library(
    generator: np.random.Generator, sensor: Sensor, angles: SunAndView, spectra_per_material: int = 48
) -> SpectralLibrary:
    """Draw the spectra of one place and date: at 48 for each material about 2,000, in about two seconds."""
    soils = {name: simulate_soil(name, generator, spectra_per_material) for name in SOILS}
    ground = np.concatenate(list(soils.values()))
    parts: list[tuple[str, str, FloatArray]] = [(name, "bare soil", spectra) for name, spectra in soils.items()]
    for name, canopy in CANOPIES.items():
        spectra = simulate_canopy(canopy, ground, angles, generator, spectra_per_material)
        parts.append((name, canopy.class_name, spectra))
    for name, surface in SURFACES.items():
        parts.append((name, surface.class_name, simulate_surface(surface, generator, spectra_per_material)))
    parts += [(name, "water", simulate_water(name, generator, spectra_per_material)) for name in WATERS]
    parts.append(("snow", "snow", simulate_snow(generator, spectra_per_material)))
    response = band_response(sensor)
    seen = csr_matrix(response.T) @ np.concatenate([spectra for _, _, spectra in parts]).T
    return SpectralLibrary(
        reflectance=np.ascontiguousarray(seen.T, dtype=np.float32),
        materials=tuple(name for name, _, spectra in parts for _ in range(len(spectra))),
        classes=np.concatenate(
            [np.full(len(spectra), CLASS_NAMES.index(class_name), dtype=np.uint8) for _, class_name, spectra in parts]
        ),
    )

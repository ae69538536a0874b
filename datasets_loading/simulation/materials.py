"""What a simulated land surface is made of: the tables from which `simulation_spectra` draws its spectra.

Parameters of canopies are those of PROSPECT-D (Feret et al. 2017) and 4SAIL (Verhoef et al. 2007), spread as is
plausible within a type of vegetation of the mid-latitudes. Absorption features of rocks and building materials lie
where spectroscopy finds them: iron oxides at 480, 530 and 870 nm, Al-OH of clay at 2205 nm, carbonate at 2340 nm,
hydrocarbons at 1725 and 2310 nm, water and hydroxyl at 1415 and 1915 nm. Reflectance is from 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

FloatArray = NDArray[np.floating]

CLASS_NAMES = (
    "broadleaf forest",
    "needleleaf forest",
    "shrubland",
    "grassland",
    "cropland",
    "dry vegetation",
    "bare soil",
    "rock and gravel",
    "roof",
    "pavement",
    "water",
    "snow",
)
"""Land cover of a simulated scene; the position in this list is the number in the label map."""


@dataclass(frozen=True)
class Spread:
    """A normal distribution cut off at both ends: mean, standard deviation, smallest and largest value."""

    mean: float
    deviation: float
    low: float
    high: float

    def draw(self, generator: np.random.Generator, count: int) -> FloatArray:
        low, high = ndtr((np.array([self.low, self.high]) - self.mean) / self.deviation)
        return self.mean + self.deviation * ndtri(generator.uniform(low, high, count))


@dataclass(frozen=True)
class Canopy:
    """How the parameters of PROSPECT-D and 4SAIL spread within one type of vegetation.

    Attributes:
        structure: leaf layers (PROSPECT's N).
        chlorophyll, anthocyanin: µg/cm². Carotenoids follow the chlorophyll.
        brown_pigment: share, 0 to 1 and above.
        water, dry_matter: g/cm².
        leaf_area_index: m² leaf per m² ground.
        leaf_angle: average inclination of the leaves in degrees (Campbell's ellipsoidal distribution).
        shade: share of the view in the shadow of crowns and rows, which a flat canopy of 4SAIL lacks.
        litter: share of dead matter among the leaves (straw, twigs, bark).
    """

    class_name: str
    structure: Spread
    chlorophyll: Spread
    water: Spread
    dry_matter: Spread
    leaf_area_index: Spread
    leaf_angle: Spread
    brown_pigment: Spread = Spread(0.03, 0.05, 0.0, 0.3)
    anthocyanin: Spread = Spread(1.0, 1.0, 0.0, 5.0)
    shade: Spread = Spread(0.03, 0.03, 0.0, 0.1)
    litter: Spread = Spread(0.05, 0.05, 0.0, 0.2)


CANOPIES = {
    "broadleaf forest": Canopy(
        "broadleaf forest",
        structure=Spread(1.7, 0.2, 1.3, 2.3),
        chlorophyll=Spread(42, 9, 20, 70),
        water=Spread(0.013, 0.003, 0.006, 0.022),
        dry_matter=Spread(0.009, 0.002, 0.004, 0.015),
        leaf_area_index=Spread(4.2, 1.1, 1.8, 7.0),
        leaf_angle=Spread(48, 8, 30, 65),
        shade=Spread(0.16, 0.06, 0.04, 0.35),
        litter=Spread(0.07, 0.04, 0.0, 0.2),
    ),
    "broadleaf forest in autumn": Canopy(
        "broadleaf forest",
        structure=Spread(1.8, 0.2, 1.3, 2.4),
        chlorophyll=Spread(15, 8, 3, 35),
        water=Spread(0.009, 0.003, 0.004, 0.018),
        dry_matter=Spread(0.009, 0.002, 0.004, 0.015),
        leaf_area_index=Spread(2.6, 1.0, 0.6, 5.0),
        leaf_angle=Spread(48, 8, 30, 65),
        brown_pigment=Spread(0.3, 0.25, 0.0, 1.0),
        anthocyanin=Spread(4.0, 3.0, 0.0, 12.0),
        shade=Spread(0.22, 0.07, 0.08, 0.4),
        litter=Spread(0.2, 0.1, 0.02, 0.5),
    ),
    "needleleaf forest": Canopy(
        "needleleaf forest",
        structure=Spread(1.9, 0.25, 1.4, 2.6),
        chlorophyll=Spread(48, 9, 28, 75),
        water=Spread(0.021, 0.005, 0.010, 0.035),
        dry_matter=Spread(0.015, 0.003, 0.008, 0.024),
        leaf_area_index=Spread(3.4, 0.9, 1.4, 5.5),
        leaf_angle=Spread(57, 6, 45, 70),
        brown_pigment=Spread(0.08, 0.07, 0.0, 0.4),
        shade=Spread(0.38, 0.08, 0.2, 0.6),
        litter=Spread(0.12, 0.06, 0.0, 0.3),
    ),
    "young forest": Canopy(
        "shrubland",
        structure=Spread(1.6, 0.2, 1.2, 2.2),
        chlorophyll=Spread(36, 9, 15, 60),
        water=Spread(0.012, 0.003, 0.006, 0.02),
        dry_matter=Spread(0.008, 0.002, 0.004, 0.014),
        leaf_area_index=Spread(2.6, 0.9, 0.8, 4.8),
        leaf_angle=Spread(52, 8, 35, 68),
        shade=Spread(0.1, 0.05, 0.0, 0.25),
        litter=Spread(0.12, 0.08, 0.0, 0.35),
    ),
    "shrubs": Canopy(
        "shrubland",
        structure=Spread(1.7, 0.2, 1.3, 2.4),
        chlorophyll=Spread(32, 9, 12, 55),
        water=Spread(0.011, 0.004, 0.005, 0.02),
        dry_matter=Spread(0.012, 0.003, 0.006, 0.02),
        leaf_area_index=Spread(1.6, 0.7, 0.4, 3.6),
        leaf_angle=Spread(58, 7, 40, 72),
        brown_pigment=Spread(0.15, 0.12, 0.0, 0.6),
        shade=Spread(0.12, 0.05, 0.02, 0.28),
        litter=Spread(0.2, 0.1, 0.02, 0.5),
    ),
    "meadow": Canopy(
        "grassland",
        structure=Spread(1.55, 0.15, 1.2, 2.0),
        chlorophyll=Spread(36, 9, 15, 60),
        water=Spread(0.013, 0.004, 0.006, 0.026),
        dry_matter=Spread(0.0055, 0.0015, 0.003, 0.01),
        leaf_area_index=Spread(3.0, 1.1, 0.8, 6.0),
        leaf_angle=Spread(60, 7, 42, 75),
        brown_pigment=Spread(0.1, 0.1, 0.0, 0.5),
        litter=Spread(0.12, 0.08, 0.0, 0.4),
    ),
    "dry grass": Canopy(
        "grassland",
        structure=Spread(1.7, 0.2, 1.3, 2.3),
        chlorophyll=Spread(22, 8, 6, 42),
        water=Spread(0.007, 0.003, 0.002, 0.015),
        dry_matter=Spread(0.006, 0.002, 0.003, 0.011),
        leaf_area_index=Spread(1.7, 0.8, 0.3, 4.0),
        leaf_angle=Spread(60, 7, 42, 75),
        brown_pigment=Spread(0.3, 0.2, 0.0, 1.0),
        litter=Spread(0.35, 0.15, 0.05, 0.75),
    ),
    "lawn": Canopy(
        "grassland",
        structure=Spread(1.5, 0.12, 1.2, 1.9),
        chlorophyll=Spread(34, 8, 15, 55),
        water=Spread(0.011, 0.003, 0.005, 0.02),
        dry_matter=Spread(0.005, 0.001, 0.003, 0.008),
        leaf_area_index=Spread(2.4, 0.9, 0.6, 4.5),
        leaf_angle=Spread(52, 8, 35, 70),
        brown_pigment=Spread(0.12, 0.12, 0.0, 0.6),
        litter=Spread(0.2, 0.12, 0.0, 0.5),
    ),
    "young crop": Canopy(
        "cropland",
        structure=Spread(1.45, 0.12, 1.2, 1.8),
        chlorophyll=Spread(40, 8, 20, 60),
        water=Spread(0.013, 0.003, 0.007, 0.022),
        dry_matter=Spread(0.0045, 0.001, 0.0025, 0.008),
        leaf_area_index=Spread(1.1, 0.6, 0.2, 2.6),
        leaf_angle=Spread(50, 9, 30, 70),
        litter=Spread(0.02, 0.03, 0.0, 0.12),
    ),
    "green cereal": Canopy(
        "cropland",
        structure=Spread(1.45, 0.12, 1.2, 1.8),
        chlorophyll=Spread(50, 8, 30, 70),
        water=Spread(0.016, 0.004, 0.009, 0.028),
        dry_matter=Spread(0.0045, 0.001, 0.0025, 0.008),
        leaf_area_index=Spread(4.2, 1.2, 1.8, 7.0),
        leaf_angle=Spread(65, 6, 50, 78),
    ),
    "ripening cereal": Canopy(
        "cropland",
        structure=Spread(1.7, 0.2, 1.3, 2.2),
        chlorophyll=Spread(14, 8, 3, 32),
        water=Spread(0.006, 0.003, 0.002, 0.014),
        dry_matter=Spread(0.006, 0.0015, 0.003, 0.01),
        leaf_area_index=Spread(3.0, 0.9, 1.2, 5.2),
        leaf_angle=Spread(62, 7, 45, 76),
        brown_pigment=Spread(0.4, 0.2, 0.05, 1.0),
        litter=Spread(0.4, 0.15, 0.1, 0.75),
    ),
    "maize": Canopy(
        "cropland",
        structure=Spread(1.45, 0.12, 1.2, 1.8),
        chlorophyll=Spread(52, 8, 30, 72),
        water=Spread(0.017, 0.004, 0.009, 0.03),
        dry_matter=Spread(0.0055, 0.0012, 0.003, 0.009),
        leaf_area_index=Spread(3.4, 1.2, 0.8, 6.0),
        leaf_angle=Spread(58, 6, 42, 70),
        shade=Spread(0.06, 0.04, 0.0, 0.18),
    ),
    "beet and potato": Canopy(
        "cropland",
        structure=Spread(1.4, 0.12, 1.2, 1.8),
        chlorophyll=Spread(44, 7, 25, 62),
        water=Spread(0.020, 0.005, 0.01, 0.034),
        dry_matter=Spread(0.005, 0.001, 0.003, 0.008),
        leaf_area_index=Spread(3.6, 1.1, 1.0, 6.0),
        leaf_angle=Spread(38, 8, 20, 55),
    ),
    "rapeseed and legumes": Canopy(
        "cropland",
        structure=Spread(1.5, 0.12, 1.2, 1.9),
        chlorophyll=Spread(38, 8, 18, 58),
        water=Spread(0.015, 0.004, 0.008, 0.026),
        dry_matter=Spread(0.005, 0.001, 0.003, 0.008),
        leaf_area_index=Spread(3.4, 1.1, 1.0, 6.0),
        leaf_angle=Spread(48, 8, 30, 65),
    ),
    "orchard and vineyard": Canopy(
        "cropland",
        structure=Spread(1.6, 0.15, 1.3, 2.0),
        chlorophyll=Spread(40, 8, 20, 60),
        water=Spread(0.012, 0.003, 0.006, 0.02),
        dry_matter=Spread(0.008, 0.002, 0.004, 0.013),
        leaf_area_index=Spread(1.5, 0.6, 0.4, 3.2),
        leaf_angle=Spread(50, 8, 35, 65),
        shade=Spread(0.12, 0.05, 0.02, 0.28),
    ),
    "straw and stubble": Canopy(
        "dry vegetation",
        structure=Spread(2.0, 0.25, 1.5, 2.6),
        chlorophyll=Spread(2.5, 2.0, 0.2, 8),
        water=Spread(0.0015, 0.001, 0.0003, 0.004),
        dry_matter=Spread(0.006, 0.0015, 0.003, 0.01),
        leaf_area_index=Spread(1.5, 0.7, 0.4, 3.2),
        leaf_angle=Spread(56, 9, 35, 75),
        brown_pigment=Spread(0.7, 0.3, 0.1, 1.5),
        anthocyanin=Spread(0.3, 0.3, 0.0, 1.5),
        litter=Spread(0.65, 0.15, 0.3, 0.95),
    ),
    "dead grass": Canopy(
        "dry vegetation",
        structure=Spread(1.9, 0.25, 1.4, 2.5),
        chlorophyll=Spread(5, 3.5, 0.5, 14),
        water=Spread(0.003, 0.0015, 0.0005, 0.007),
        dry_matter=Spread(0.006, 0.0015, 0.003, 0.01),
        leaf_area_index=Spread(1.4, 0.6, 0.3, 3.0),
        leaf_angle=Spread(58, 8, 40, 75),
        brown_pigment=Spread(0.6, 0.3, 0.1, 1.4),
        litter=Spread(0.6, 0.15, 0.25, 0.95),
    ),
}


@dataclass(frozen=True)
class Surface:
    """A surface without leaves: a smooth continuum and the absorption features of its material.

    Attributes:
        continuum: reflectance at some wavelengths in nm, joined smoothly.
        brightness: factor on the continuum.
        features: centre and standard deviation in nm of each absorption, its depth as a share of the continuum.
        tilt: relative rise of the continuum from 400 to 2500 nm, besides the continuum's own.
    """

    class_name: str
    continuum: dict[int, float]
    brightness: Spread
    features: tuple[tuple[float, float, Spread], ...] = ()
    tilt: Spread = Spread(0.0, 0.06, -0.15, 0.15)


def feature_depth(mean: float) -> Spread:
    """How the depth of an absorption feature spreads around its mean."""
    deviation = mean / 2.5
    return Spread(mean, deviation, 0.0, mean + 3 * deviation)


_HYDROCARBON = (
    (1210.0, 18.0, feature_depth(0.02)),
    (1725.0, 16.0, feature_depth(0.05)),
    (2310.0, 18.0, feature_depth(0.07)),
)
_CALCITE = ((2340.0, 28.0, feature_depth(0.12)), (2160.0, 25.0, feature_depth(0.02)))
_CLAY = ((1415.0, 16.0, feature_depth(0.08)), (1915.0, 28.0, feature_depth(0.14)), (2205.0, 17.0, feature_depth(0.08)))
_HYDROXYL = ((1430.0, 35.0, feature_depth(0.06)), (1940.0, 45.0, feature_depth(0.15)))
_IRON = ((480.0, 40.0, feature_depth(0.18)), (530.0, 45.0, feature_depth(0.25)), (870.0, 70.0, feature_depth(0.12)))

SURFACES = {
    "limestone": Surface(
        "rock and gravel",
        {400: 0.22, 500: 0.29, 700: 0.37, 1000: 0.42, 1600: 0.45, 2200: 0.42, 2500: 0.36},
        Spread(0.9, 0.18, 0.5, 1.35),
        (*_CALCITE, *_HYDROXYL, (480.0, 40.0, feature_depth(0.04))),
    ),
    "sandstone and quartz sand": Surface(
        "rock and gravel",
        {400: 0.12, 500: 0.20, 600: 0.30, 800: 0.37, 1200: 0.42, 1700: 0.46, 2500: 0.43},
        Spread(0.9, 0.18, 0.5, 1.35),
        (*_IRON, *_CLAY),
    ),
    "granite and gneiss": Surface(
        "rock and gravel",
        {400: 0.13, 600: 0.20, 900: 0.23, 1500: 0.26, 2100: 0.26, 2500: 0.23},
        Spread(0.9, 0.2, 0.5, 1.5),
        (*_CLAY, (1000.0, 120.0, feature_depth(0.06)), (2330.0, 24.0, feature_depth(0.05))),
    ),
    "basalt": Surface(
        "rock and gravel",
        {400: 0.06, 600: 0.085, 900: 0.09, 1500: 0.11, 2100: 0.12, 2500: 0.11},
        Spread(1.0, 0.2, 0.5, 1.6),
        ((1010.0, 130.0, feature_depth(0.12)), *_HYDROXYL, (2320.0, 25.0, feature_depth(0.04))),
    ),
    "clay pit": Surface(
        "rock and gravel",
        {400: 0.14, 500: 0.22, 600: 0.33, 800: 0.42, 1200: 0.50, 1700: 0.52, 2500: 0.38},
        Spread(0.85, 0.15, 0.5, 1.2),
        (
            *_IRON,
            (1415.0, 16.0, feature_depth(0.15)),
            (1915.0, 28.0, feature_depth(0.25)),
            (2205.0, 18.0, feature_depth(0.2)),
        ),
    ),
    "gypsum": Surface(
        "rock and gravel",
        {400: 0.40, 600: 0.52, 900: 0.56, 1300: 0.54, 1700: 0.46, 2200: 0.36, 2500: 0.22},
        Spread(0.8, 0.15, 0.45, 1.1),
        (
            (1450.0, 30.0, feature_depth(0.3)),
            (1750.0, 20.0, feature_depth(0.15)),
            (1945.0, 35.0, feature_depth(0.45)),
            (2215.0, 22.0, feature_depth(0.12)),
        ),
    ),
    "gravel": Surface(
        "rock and gravel",
        {400: 0.12, 500: 0.16, 700: 0.22, 1000: 0.25, 1600: 0.28, 2200: 0.27, 2500: 0.24},
        Spread(0.95, 0.2, 0.5, 1.5),
        (*_CLAY, (2340.0, 28.0, feature_depth(0.05)), (530.0, 50.0, feature_depth(0.05))),
    ),
    "red roof tile": Surface(
        "roof",
        {
            400: 0.06,
            480: 0.07,
            540: 0.09,
            600: 0.17,
            700: 0.23,
            800: 0.27,
            1000: 0.31,
            1300: 0.36,
            1700: 0.40,
            2200: 0.40,
            2500: 0.38,
        },
        Spread(0.75, 0.18, 0.35, 1.15),
        ((530.0, 40.0, feature_depth(0.06)), (870.0, 60.0, feature_depth(0.08)), *_HYDROXYL),
    ),
    "dark roof tile": Surface(
        "roof",
        {400: 0.06, 600: 0.08, 900: 0.095, 1500: 0.12, 2200: 0.13, 2500: 0.12},
        Spread(1.0, 0.25, 0.45, 1.7),
        ((900.0, 70.0, feature_depth(0.03)), (2205.0, 20.0, feature_depth(0.03))),
    ),
    "bitumen roof": Surface(
        "roof",
        {400: 0.07, 600: 0.085, 900: 0.10, 1500: 0.125, 2200: 0.13, 2500: 0.12},
        Spread(1.1, 0.3, 0.5, 2.0),
        _HYDROCARBON,
    ),
    "gravel roof": Surface(
        "roof",
        {400: 0.12, 500: 0.15, 700: 0.20, 1000: 0.22, 1600: 0.25, 2200: 0.245, 2500: 0.22},
        Spread(0.95, 0.2, 0.5, 1.5),
        (*_HYDROCARBON, (2205.0, 18.0, feature_depth(0.03)), (2340.0, 28.0, feature_depth(0.04))),
    ),
    "metal roof": Surface(
        "roof",
        {400: 0.26, 500: 0.31, 700: 0.34, 900: 0.35, 1100: 0.37, 1600: 0.43, 2500: 0.47},
        Spread(0.9, 0.3, 0.35, 1.6),
        ((1020.0, 140.0, feature_depth(0.1)),),
        Spread(0.0, 0.12, -0.3, 0.3),
    ),
    "white membrane roof": Surface(
        "roof",
        {400: 0.12, 420: 0.40, 450: 0.60, 600: 0.68, 1000: 0.66, 1300: 0.58, 1700: 0.44, 2200: 0.30, 2500: 0.20},
        Spread(0.8, 0.15, 0.45, 1.1),
        (
            (1190.0, 20.0, feature_depth(0.05)),
            (1720.0, 22.0, feature_depth(0.22)),
            (2145.0, 20.0, feature_depth(0.08)),
            (2310.0, 25.0, feature_depth(0.25)),
        ),
    ),
    "solar and glass roof": Surface(
        "roof",
        {400: 0.07, 500: 0.055, 900: 0.055, 1000: 0.08, 1150: 0.15, 1700: 0.18, 2200: 0.16, 2500: 0.14},
        Spread(0.8, 0.2, 0.4, 1.4),
        ((2210.0, 40.0, feature_depth(0.05)),),
    ),
    "asphalt": Surface(
        "pavement",
        {400: 0.065, 500: 0.085, 700: 0.115, 1000: 0.135, 1600: 0.165, 2200: 0.165, 2500: 0.15},
        Spread(1.0, 0.28, 0.45, 1.8),
        (*_HYDROCARBON, (2340.0, 25.0, feature_depth(0.02))),
    ),
    "concrete": Surface(
        "pavement",
        {400: 0.15, 500: 0.21, 650: 0.26, 1000: 0.30, 1350: 0.33, 1700: 0.34, 2200: 0.30, 2500: 0.24},
        Spread(0.9, 0.2, 0.45, 1.5),
        (*_HYDROXYL, (2340.0, 30.0, feature_depth(0.06)), (530.0, 60.0, feature_depth(0.03))),
    ),
    "cobbles and brick": Surface(
        "pavement",
        {400: 0.08, 500: 0.11, 600: 0.16, 800: 0.20, 1200: 0.24, 1700: 0.27, 2500: 0.24},
        Spread(0.95, 0.22, 0.5, 1.5),
        (*_CLAY, (530.0, 45.0, feature_depth(0.08)), (870.0, 60.0, feature_depth(0.05))),
    ),
}

SOILS = ("sandy soil", "loamy soil", "chalky soil", "humous soil")
WATERS = ("clear water", "green water", "brown water", "turbid water")

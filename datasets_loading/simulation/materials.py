"""What a simulated land surface is made of: the tables from which `spectra` draws.

Parameters of canopies are those of PROSPECT-D (Feret et al. 2017) and 4SAIL (Verhoef et al. 2007), spread as is
plausible within a type of vegetation of the mid-latitudes. Absorption features of rocks and building materials lie
where spectroscopy finds them: iron oxides at 480, 530 and 870 nm, Al-OH of clay at 2205 nm, carbonate at 2340 nm,
hydrocarbons at 1725 and 2310 nm, water and hydroxyl at 1415 and 1915 nm. Reflectance is from 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]
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


@dataclass(frozen=True)
class Surface:
    """A surface without leaves: a smooth continuum and the absorption features of its material.

    Attributes:
        continuum: reflectance at some wavelengths in nm, joined smoothly.
        brightness: factor on the continuum.
        features: center and standard deviation in nm of each absorption, its depth as a share of the continuum.
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


def _read_materials() -> tuple[dict[str, Canopy], dict[str, Surface]]:
    """Canopies and surfaces by name, as `materials.yaml` states them."""
    content = yaml.safe_load(Path(__file__).with_name("materials.yaml").read_text(encoding="utf-8"))
    canopies, surfaces = {}, {}
    for name, entry in content["canopies"].items():
        class_name = entry.pop("class_name")
        canopies[name] = Canopy(class_name, **{key: Spread(*numbers) for key, numbers in entry.items()})
    for name, entry in content["surfaces"].items():
        features = tuple((center, width, feature_depth(depth)) for center, width, depth in entry.pop("features", ()))
        spreads: dict[str, Any] = {key: Spread(*entry.pop(key)) for key in ("brightness", "tilt") if key in entry}
        surfaces[name] = Surface(**entry, **spreads, features=features)
    return canopies, surfaces


CANOPIES, SURFACES = _read_materials()
SOILS = ("sandy soil", "loamy soil", "chalky soil", "humous soil")
WATERS = ("clear water", "green water", "brown water", "turbid water")

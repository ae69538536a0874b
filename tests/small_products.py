"""Small EnMAP products for the tests: 12 bands, 150 x 170 pixels, an edge off the swath, one cloud, one band empty."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine

from datasets_loading.sensors import ENMAP, ENMAP_DETECTORS
from datasets_loading.simulation.product_writer import write_enmap_product

NAME = "ENMAP01-____L2A-DT0000006195_20221203T172049Z_003_V010303_20230922T131826Z"
HEIGHT, WIDTH = 150, 170
# Where the detectors overlap, bands of both stand in turn; 130 lies in a water vapour window.
BANDS = np.array([5, 27, 44, 79, 80, 81, 82, 120, 130, 180, 200, 220])
EMPTY_BAND = 8
FIRST_COLUMN = 40
WAVELENGTHS = np.array(ENMAP.wavelengths)[BANDS]
FWHM = np.array(ENMAP.fwhm)[BANDS]
DETECTORS = tuple(ENMAP_DETECTORS[band] for band in BANDS)
CLOUD = (slice(0, 64), slice(64, 128))
TRANSFORM = Affine(30.0, 0.0, 366015.0, 0.0, -30.0, 5809965.0)
ACQUISITION_TIME = datetime(2022, 12, 3, 17, 20, 49, 250000, tzinfo=UTC)


def small_cube(seed: int = 0) -> np.ndarray:
    """Stored numbers in ascending wavelength, int16 (12, 150, 170); each band around 100 times its number."""
    generator = np.random.default_rng(seed)
    cube = generator.integers(-20, 20, (len(BANDS), HEIGHT, WIDTH), dtype=np.int16)
    cube += 1000 + 100 * np.arange(len(BANDS), dtype=np.int16)[:, None, None]
    cube[:, :, :FIRST_COLUMN] = ENMAP.nodata
    cube[EMPTY_BAND] = ENMAP.nodata
    return cube


def small_quality() -> dict[str, np.ndarray]:
    """A cloud, its shadow, some of every other layer, and water in the lower half."""
    layers = {
        name: np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        for name in ("classes", "cloud", "cloud_shadow", "haze", "cirrus", "snow", "test_flags")
    }
    layers["classes"][:] = 1
    layers["classes"][75:] = 2
    layers["classes"][:, :FIRST_COLUMN] = 3
    layers["cloud"][CLOUD] = 1
    layers["cloud_shadow"][100:110, 100:120] = 1
    layers["haze"][5:10, 50:60] = 1
    layers["cirrus"][20:30, 50:60] = 2
    layers["cirrus"][30:40, 50:60] = 3
    layers["snow"][140:, 140:] = 1
    return layers


def write_small_product(parent: Path, name: str = NAME, order: np.ndarray | None = None, **changes: Any) -> Path:
    """Writes the small product; `order` gives the ascending band that stands at each place of the file."""
    order = np.arange(len(BANDS)) if order is None else order
    arguments: dict[str, Any] = {
        "cube": small_cube()[order],
        "wavelengths": WAVELENGTHS[order],
        "fwhm": FWHM[order],
        "detectors": [DETECTORS[band] for band in order],
        "transform": TRANSFORM,
        "crs": "EPSG:32633",
        "acquisition_time": ACQUISITION_TIME,
        "sun_elevation": 38.5,
        "quality": small_quality(),
    }
    return write_enmap_product(parent, name, **{**arguments, **changes})


def part(product: Path, name: str) -> Path:
    """The file of a part, such as "SPECTRAL_IMAGE", in a product's folder."""
    (file,) = product.rglob(f"*-{name}.*")
    return file


def edit_metadata(product: Path, pattern: str, replacement: str) -> None:
    """Replaces the first match of a pattern in METADATA.XML, which must be there."""
    file = part(product, "METADATA")
    text, count = re.subn(pattern, replacement, file.read_text(), count=1, flags=re.DOTALL)
    assert count == 1
    file.write_text(text)

"""Simulated EnMAP scenes with known land cover, written as official L2A products.

A scene is a landscape of 10 m cells (`landscape`) whose spectra (`spectra`) mix within pixels
of 30 m, are lit by the sun over terrain, blurred by optics and air, covered by clouds, and recorded with noise and
with what the correction of the atmosphere leaves over (`atmosphere`). The spectra of a scene are expressed
in a few dozen orthogonal ones, so that all work on pixels is done on these and one matrix product makes the bands.

Everything comes from one seed: the same seed gives the same bytes, whatever the number of workers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from scipy.ndimage import gaussian_filter
from scipy.sparse import csr_matrix

from datasets_loading.files import written_whole
from datasets_loading.sensors import ENMAP, ENMAP_DETECTORS, ENMAP_WATER_VAPOUR_BANDS, Sensor
from datasets_loading.simulation.atmosphere import (
    PIXEL_SIZE,
    Clouds,
    NoiseModel,
    Residuals,
    illumination,
    noise_model,
    simulate_clouds,
    simulate_residuals,
)
from datasets_loading.simulation.landscape import (
    CELLS_PER_PIXEL,
    FloatImage,
    Landscape,
    fractal_noise,
    simulate_landscape,
    strips,
)
from datasets_loading.simulation.materials import CLASS_NAMES
from datasets_loading.simulation.product_writer import check_no_other, write_enmap_product
from datasets_loading.simulation.spectra import (
    SpectralLibrary,
    SunAndView,
    band_response,
    cloud_reflectance,
    simulate_spectral_library,
)
from datasets_loading.splits import UNLABELLED

EMPTY_BANDS = {"010111": ENMAP_WATER_VAPOUR_BANDS, "010302": tuple(range(129, 135))}
"""Bands of `ENMAP` without data, by version of the processor: as in products of 2022 and 2023, and as later."""

OPTICS_DEVIATION = 0.42
"""Blur of the optics on top of the pixel's own aperture, standard deviation in pixels."""

ADJACENCY_DEVIATION = 12.0
"""Reach of light scattered from the surroundings into a pixel, standard deviation in pixels."""

CLOUD_OPACITY, SHADOW_DEPTH, HAZE_THICKNESS = 0.25, 0.3, 0.015
"""From where on the quality layers call a pixel cloud, cloud shadow, haze (`Clouds`)."""

CIRRUS_LEVELS = (0.004, 0.012, 0.025)
"""Reflectance of cirrus from where on it is thin, medium and thick."""

_SPECTRAL_RANK = 40
_ROWS_PER_STRIP = 32


@dataclass(frozen=True)
class SimulatedScene:
    """A scene and everything that is known of it.

    Attributes:
        cube: (bands, height, width) int16, reflectance x `sensor.scale`, `sensor.nodata` where there are no data.
        labels: (height, width) uint8, dominant land cover as an index into `class_names`, or `UNLABELLED`.
        class_names: land cover classes.
        class_fractions: (classes, height, width) float32, share of each land cover within the pixel.
        quality: official quality layers, uint8 (height, width): "classes" (1 land, 2 water, 3 off the swath), "cloud",
            "cloud_shadow", "haze", "snow" (0 or 1), "cirrus" (0 none to 3 thick).
        sensor, detectors, empty_bands: bands of the cube, "VNIR" or "SWIR" for each, and those without data.
        noise: the noise that is in the cube.
        transform, crs: from (column, row) to meters, and the UTM zone.
        acquisition_time: UTC.
        sun_elevation, sun_azimuth: degrees, the azimuth from north, clockwise.
        processor_version: as in the product's name.
    """

    cube: NDArray[np.int16]
    labels: NDArray[np.uint8]
    class_names: tuple[str, ...]
    class_fractions: NDArray[np.float32]
    quality: Mapping[str, NDArray[np.uint8]]
    sensor: Sensor
    detectors: tuple[str, ...]
    empty_bands: tuple[int, ...]
    noise: NoiseModel
    transform: Affine
    crs: CRS
    acquisition_time: datetime
    sun_elevation: float
    sun_azimuth: float
    processor_version: str
    seed: int

    @property
    def name(self) -> str:
        """Name of the scene's product, after the official pattern."""
        processed = self.acquisition_time + timedelta(days=1)
        return (
            f"ENMAP01-____L2A-DT{9_000_000_000 + self.seed % 1_000_000_000:010d}_"
            f"{self.acquisition_time:%Y%m%dT%H%M%SZ}_001_V{self.processor_version}_{processed:%Y%m%dT%H%M%SZ}"
        )

    @property
    def clear(self) -> NDArray[np.bool_]:
        """Pixels (height, width) on the swath and without cloud, shadow, haze and cirrus."""
        covered = self.quality["classes"] == 3
        for layer in ("cloud", "cloud_shadow", "haze", "cirrus"):
            covered = covered | (self.quality[layer] > 0)
        return ~covered


@dataclass(frozen=True)
class _Place:
    """Where and when a scene is taken; angles in degrees."""

    latitude: float
    longitude: float
    acquisition_time: datetime
    sun_elevation: float
    sun_azimuth: float


def _sun_position(latitude: float, longitude: float, time: datetime) -> tuple[float, float]:
    """Elevation and azimuth of the sun in degrees, to about 2 and 5, for noon is taken to be at 12 all year."""
    day = time.timetuple().tm_yday
    declination = np.deg2rad(-23.44) * np.cos(2.0 * np.pi * (day + 10) / 365.0)
    solar_hour = time.hour + time.minute / 60.0 + longitude / 15.0
    hour_angle = np.deg2rad(15.0 * (solar_hour - 12.0))
    phi = np.deg2rad(latitude)
    sine = np.sin(phi) * np.sin(declination) + np.cos(phi) * np.cos(declination) * np.cos(hour_angle)
    azimuth = np.arctan2(-np.sin(hour_angle), np.tan(declination) * np.cos(phi) - np.sin(phi) * np.cos(hour_angle))
    return float(np.rad2deg(np.arcsin(sine))), float(np.rad2deg(azimuth) % 360.0)


def _draw_place(generator: np.random.Generator, acquisition_time: datetime | None) -> _Place:
    latitude, longitude = float(generator.uniform(36.0, 57.0)), float(generator.uniform(-9.0, 40.0))
    day = int(95 + 210 * generator.beta(2.0, 2.0))
    solar_hour = generator.uniform(10.6, 11.4)
    if acquisition_time is None:
        start_of_year = datetime(int(generator.integers(2022, 2025)), 1, 1, tzinfo=UTC)
        seconds = int(3600 * (solar_hour - longitude / 15.0))
        acquisition_time = start_of_year + timedelta(days=day - 1, seconds=seconds)
    elevation, azimuth = _sun_position(latitude, longitude, acquisition_time)
    return _Place(latitude, longitude, acquisition_time, max(elevation, 15.0), azimuth)


def _georeference(generator: np.random.Generator, place: _Place) -> tuple[Affine, CRS]:
    zone = int((place.longitude + 180.0) // 6.0) + 1
    easting = PIXEL_SIZE * generator.integers(10_000, 22_000)
    northing = PIXEL_SIZE * round(place.latitude * 110_950.0 / PIXEL_SIZE)
    return Affine(PIXEL_SIZE, 0.0, float(easting), 0.0, -PIXEL_SIZE, float(northing)), CRS.from_epsg(32600 + zone)


def _swath(
    generator: np.random.Generator, height: int, width: int, tilted: bool
) -> tuple[NDArray[np.bool_], NDArray[np.int32], int]:
    """Pixels on the swath (height, width), the detector's column that saw each of them, and the number of columns.

    A tilted swath is the rectangle whose bounding box is the raster: the orbit descends towards south-south-west.
    """
    tilt = np.deg2rad(generator.uniform(9.0, 13.0))
    tilt = min(tilt, 0.5 * np.arctan(min(height, width) / max(height, width))) if tilted else 0.0
    cosine, sine = np.cos(tilt), np.sin(tilt)
    across, along = np.linalg.solve(np.array([[cosine, sine], [sine, cosine]]), np.array([width, height]))
    row, column = np.indices((height, width), dtype=np.float32)
    row, column = row - (height - 1) / 2, column - (width - 1) / 2
    from_center = column * cosine + row * sine
    inside = (np.abs(from_center) <= across / 2) & (np.abs(row * cosine - column * sine) <= along / 2)
    count = int(np.ceil(across)) + 1
    return inside, (from_center + across / 2).astype(np.int32).clip(0, count - 1), count


@dataclass(frozen=True)
class _Mixture:
    """Pixels as sums of the library's orthogonal spectra.

    Attributes:
        total, lit: (rank, height, width) float32, with all of the ground counted, and with its share of direct light.
        class_fractions: (classes, height, width) float32.
    """

    total: NDArray[np.float32]
    lit: NDArray[np.float32]
    class_fractions: NDArray[np.float32]


def _mix(landscape: Landscape, coefficients: NDArray[np.float32], library: SpectralLibrary, workers: int) -> _Mixture:
    """Sum the spectra of each pixel's cells by their shares; `coefficients` is (spectra, rank)."""
    height, width = landscape.elevation.shape
    rank = coefficients.shape[1]
    is_class = (library.classes[:, None] == np.arange(len(CLASS_NAMES))).astype(np.float32)
    table = np.concatenate([coefficients, is_class], axis=1)
    total = np.empty((rank, height, width), dtype=np.float32)
    lit = np.empty_like(total)
    fractions = np.empty((len(CLASS_NAMES), height, width), dtype=np.float32)
    cells_per_pixel = CELLS_PER_PIXEL**2

    def fill(rows: slice) -> None:
        cells = slice(rows.start * CELLS_PER_PIXEL, rows.stop * CELLS_PER_PIXEL)
        count = rows.stop - rows.start

        def by_pixel(values: NDArray[np.generic]) -> NDArray[np.generic]:
            grid = values.reshape(count, CELLS_PER_PIXEL, width, CELLS_PER_PIXEL)
            return grid.transpose(0, 2, 1, 3).reshape(count * width, cells_per_pixel)

        secondary, intruder = landscape.secondary_share[cells], landscape.intruder_share[cells]
        shares = (1.0 - secondary - intruder, secondary, intruder)
        spectra = (landscape.primary[cells], landscape.secondary[cells], landscape.intruder[cells])
        weights = np.concatenate([by_pixel(share) for share in shares], axis=1) / np.float32(cells_per_pixel)
        positions = np.concatenate([by_pixel(which) for which in spectra], axis=1).astype(np.int32)
        starts = np.arange(0, positions.size + 1, positions.shape[1], dtype=np.int32)
        light = np.tile(by_pixel(landscape.lit[cells]), (1, 3))
        shape = (count * width, len(table))
        sums = csr_matrix((weights.ravel(), positions.ravel(), starts), shape=shape) @ table
        bright = csr_matrix(((weights * light).ravel(), positions.ravel(), starts), shape=shape) @ coefficients
        total[:, rows] = sums[:, :rank].T.reshape(rank, count, width)
        fractions[:, rows] = sums[:, rank:].T.reshape(-1, count, width)
        lit[:, rows] = bright.T.reshape(rank, count, width)

    def blur(component: int) -> None:
        for field in (total, lit):
            gaussian_filter(field[component], OPTICS_DEVIATION, output=field[component], mode="nearest", truncate=3.0)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(fill, strips(height, _ROWS_PER_STRIP)))
        list(pool.map(blur, range(rank)))
    return _Mixture(total, lit, fractions)


def _surroundings(total: NDArray[np.float32], workers: int) -> NDArray[np.float32]:
    """Wide average (rank, rows / 4, columns / 4) of the ground around pixels."""
    step = 4
    rank, height, width = total.shape
    rows, columns = -(-height // step), -(-width // step)
    wide = np.empty((rank, rows, columns), dtype=np.float32)

    def fill(component: int) -> None:
        padded = np.pad(total[component], ((0, rows * step - height), (0, columns * step - width)), mode="edge")
        coarse = padded.reshape(rows, step, columns, step).mean(axis=(1, 3))
        gaussian_filter(coarse, ADJACENCY_DEVIATION / step, output=wide[component], mode="nearest", truncate=2.5)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(fill, range(rank)))
    return wide


def _quality_layers(
    clouds: Clouds, fractions: NDArray[np.float32], inside: NDArray[np.bool_]
) -> dict[str, NDArray[np.uint8]]:
    cloud = (clouds.opacity > CLOUD_OPACITY) & inside
    cirrus = np.digitize(clouds.cirrus, CIRRUS_LEVELS)
    water = fractions[CLASS_NAMES.index("water")] > 0.5
    layers = {
        "classes": np.where(inside, np.where(water, 2, 1), 3),
        "cloud": cloud,
        "cloud_shadow": (clouds.shadow > SHADOW_DEPTH) & ~cloud & inside,
        "haze": (clouds.haze > HAZE_THICKNESS) & ~cloud & inside,
        "cirrus": np.where(inside & ~cloud, cirrus, 0),
        "snow": (fractions[CLASS_NAMES.index("snow")] > 0.5) & ~cloud & inside,
    }
    return {name: layer.astype(np.uint8) for name, layer in layers.items()}


@dataclass(frozen=True)
class _Recorder:
    """Makes stored numbers of a mixture, strip by strip."""

    mixture: _Mixture
    surroundings: NDArray[np.float32]
    basis: NDArray[np.float32]  # (rank, bands)
    light: FloatImage
    vapour: FloatImage
    clouds: Clouds
    cloud_spectrum: NDArray[np.float32]
    cirrus_spectrum: NDArray[np.float32]
    residuals: Residuals
    noise: NoiseModel
    detector_columns: NDArray[np.int32]
    inside: NDArray[np.bool_]
    is_shortwave: NDArray[np.bool_]
    sensor: Sensor

    def components(self) -> NDArray[np.float32]:
        """(bands, parts) spectra of direct light, skylight, surroundings, clouds, haze and cirrus."""
        spectra = self.basis.T
        diffuse, adjacency = self.residuals.diffuse[:, None], self.residuals.adjacency[:, None]
        alone = np.stack([self.cloud_spectrum, self.residuals.path, self.cirrus_spectrum], axis=1)
        return np.concatenate([(1 - diffuse) * spectra, diffuse * spectra, adjacency * spectra, alone], axis=1)

    def _parts(self, rows: slice, shift: tuple[float, float]) -> NDArray[np.float32]:
        """(parts, pixels) amounts of `components` in a strip, for a detector that sees the ground shifted."""
        height, width = self.light.shape
        count = rows.stop - rows.start
        rank = len(self.basis)

        def shifted(field: NDArray[np.float32]) -> NDArray[np.float32]:
            down, right = (np.float32(part) for part in shift)
            strip = field[:, rows]
            if down:
                below = np.arange(rows.start + 1, rows.stop + 1).clip(max=height - 1)
                strip = (1 - down) * strip + down * field[:, below]
            if right:
                beside = np.arange(1, width + 1).clip(max=width - 1)
                strip = (1 - right) * strip + right * strip[:, :, beside]
            return strip

        lit, total = shifted(self.mixture.lit), shifted(self.mixture.total)
        opacity = self.clouds.opacity[rows]
        through = 1.0 - opacity
        wide_rows = np.arange(rows.start, rows.stop) // 4
        around = self.surroundings[:, wide_rows][:, :, np.arange(width) // 4]
        parts = np.empty((3 * rank + 3, count, width), dtype=np.float32)
        np.multiply(lit, self.light[rows] * through, out=parts[:rank])
        np.multiply(total, through, out=parts[rank : 2 * rank])
        np.subtract(around, total, out=parts[2 * rank : 3 * rank])
        parts[2 * rank : 3 * rank] *= through
        parts[3 * rank] = opacity
        parts[3 * rank + 1] = self.clouds.haze[rows] * through
        parts[3 * rank + 2] = self.clouds.cirrus[rows]
        return parts.reshape(len(parts), -1)

    def record(
        self, rows: slice, components: NDArray[np.float32], seed: np.random.SeedSequence, cube: NDArray[np.int16]
    ) -> None:
        count, width = rows.stop - rows.start, cube.shape[2]
        reflectance = np.empty((len(cube), count * width), dtype=np.float32)
        shifts = ((~self.is_shortwave, (0.0, 0.0)), (self.is_shortwave, self.residuals.misregistration))
        for bands, shift in shifts:
            reflectance[bands] = components[bands] @ self._parts(rows, shift)
        columns = self.detector_columns[rows].ravel()
        scratch = np.multiply(self.residuals.vapour[:, None], self.vapour[rows].ravel())
        scratch += 1.0
        reflectance *= scratch
        reflectance *= np.take(self.residuals.gain, columns, axis=1, out=scratch)
        reflectance += np.take(self.residuals.offset, columns, axis=1, out=scratch)
        deviation = np.maximum(reflectance, 0.0)
        deviation *= self.noise.growth[:, None]
        deviation += self.noise.constant[:, None]
        np.sqrt(deviation, out=deviation)
        np.random.default_rng(seed).standard_normal(dtype=np.float32, out=scratch)
        deviation *= scratch
        reflectance += deviation
        reflectance *= np.float32(self.sensor.scale)
        np.rint(reflectance, out=reflectance)
        # The processor stores no reflectance below zero.
        np.clip(reflectance, 0.0, 32767.0, out=reflectance)
        stored = reflectance.astype(np.int16).reshape(-1, count, width)
        stored[:, ~self.inside[rows]] = self.sensor.nodata
        cube[:, rows] = stored


def simulate_scene(
    height: int,
    width: int,
    *,
    seed: int,
    sensor: Sensor = ENMAP,
    cloud_cover: float | None = None,
    haze_cover: float | None = None,
    cirrus_cover: float | None = None,
    swath: bool = True,
    processor_version: str = "010111",
    acquisition_time: datetime | None = None,
    workers: int | None = None,
) -> SimulatedScene:
    """Simulate a scene of the northern mid-latitudes.

    Args:
        height, width: size of the raster in pixels of 30 m.
        seed: decides everything that is not given.
        cloud_cover, haze_cover, cirrus_cover: share of the raster, 0 to 1; None draws it, often 0.
        swath: tilt the swath as the orbit does, so that about a quarter of the raster lies off it, without data.
        processor_version: decides the bands without data, a key of `EMPTY_BANDS`; of no effect for other sensors.
        acquisition_time: decides the season and, with the place, the sun; None draws a day from April to October.
        workers: threads; by default one for each processor this process may use.
    """
    if height < 8 or width < 8:
        raise ValueError(f"a scene has at least 8 x 8 pixels, got {height} x {width}")
    if seed < 0:
        raise ValueError(f"the seed is a whole number from 0 on, got {seed}")
    if processor_version not in EMPTY_BANDS:
        raise ValueError(f"processor versions are {', '.join(EMPTY_BANDS)}, got {processor_version}")
    given = {"cloud_cover": cloud_cover, "haze_cover": haze_cover, "cirrus_cover": cirrus_cover}
    for name, share in given.items():
        if share is not None and not 0.0 <= share <= 1.0:
            raise ValueError(f"{name} is a share from 0 to 1, got {share}")
    workers = _usable_processors() if workers is None else workers
    seeds = np.random.SeedSequence(seed).spawn(8)
    for_place, for_spectra, for_land, for_swath, for_air, for_clouds, for_light, for_noise = seeds
    generator = np.random.default_rng(for_place)
    place = _draw_place(generator, acquisition_time)
    transform, crs = _georeference(generator, place)
    angles = SunAndView(90.0 - place.sun_elevation, abs(generator.normal(0.0, 5.0)), generator.uniform(0.0, 180.0))
    library = simulate_spectral_library(np.random.default_rng(for_spectra), sensor, angles)
    day = place.acquisition_time.timetuple().tm_yday
    landscape = simulate_landscape(np.random.default_rng(for_land), height, width, library, day, workers)

    generator = np.random.default_rng(for_clouds)
    drawn = {
        "cloud_cover": generator.beta(0.7, 6.0) if generator.random() < 0.6 else 0.0,
        "haze_cover": generator.beta(1.0, 3.0) if generator.random() < 0.25 else 0.0,
        "cirrus_cover": generator.beta(1.0, 3.0) if generator.random() < 0.25 else 0.0,
    }
    covers = {name: drawn[name] if share is None else share for name, share in given.items()}
    clouds = simulate_clouds(
        generator, height, width, **covers, sun_zenith=angles.sun_zenith, sun_azimuth=place.sun_azimuth
    )

    spectra = library.reflectance.astype(np.float64)
    _, directions = np.linalg.eigh(spectra.T @ spectra)
    basis = directions[:, ::-1][:, :_SPECTRAL_RANK].T.astype(np.float32)
    mixture = _mix(landscape, library.reflectance @ basis.T, library, workers)

    inside, detector_columns, columns = _swath(np.random.default_rng(for_swath), height, width, swath)
    detectors = ENMAP_DETECTORS if sensor is ENMAP else _detectors(sensor)
    generator = np.random.default_rng(for_light)
    correction = generator.uniform(0.3, 0.8)
    light = illumination(landscape.elevation, angles.sun_zenith, place.sun_azimuth, correction) * (1.0 - clouds.shadow)
    generator = np.random.default_rng(for_air)
    residuals = simulate_residuals(generator, sensor, detectors, columns)
    wavelengths = np.asarray(sensor.wavelengths)
    recorder = _Recorder(
        mixture=mixture,
        surroundings=_surroundings(mixture.total, workers),
        basis=basis,
        light=light,
        vapour=np.float32(0.012) * fractal_noise(generator, (height, width), min(100.0, max(height, width) / 2), 4),
        clouds=clouds,
        cloud_spectrum=(cloud_reflectance() @ band_response(sensor)).astype(np.float32),
        cirrus_spectrum=((wavelengths / 550.0) ** -0.3).astype(np.float32),
        residuals=residuals,
        noise=noise_model(sensor, detectors, angles.sun_zenith),
        detector_columns=detector_columns,
        inside=inside,
        is_shortwave=np.array([detector == "SWIR" for detector in detectors]),
        sensor=sensor,
    )
    cube = np.empty((sensor.num_bands, height, width), dtype=np.int16)
    components = recorder.components()
    parts = strips(height, _ROWS_PER_STRIP)
    with ThreadPoolExecutor(workers) as pool:
        jobs = zip(parts, for_noise.spawn(len(parts)), strict=True)
        list(pool.map(lambda job: recorder.record(job[0], components, job[1], cube), jobs))
    empty_bands = EMPTY_BANDS[processor_version] if sensor is ENMAP else ()
    cube[list(empty_bands)] = sensor.nodata

    quality = _quality_layers(clouds, mixture.class_fractions, inside)
    labels = mixture.class_fractions.argmax(axis=0).astype(np.uint8)
    labels[~inside | (quality["cloud"] > 0)] = UNLABELLED
    return SimulatedScene(
        cube=cube,
        labels=labels,
        class_names=CLASS_NAMES,
        class_fractions=mixture.class_fractions,
        quality=quality,
        sensor=sensor,
        detectors=detectors,
        empty_bands=empty_bands,
        noise=recorder.noise,
        transform=transform,
        crs=crs,
        acquisition_time=place.acquisition_time,
        sun_elevation=place.sun_elevation,
        sun_azimuth=place.sun_azimuth,
        processor_version=processor_version,
        seed=seed,
    )


def _usable_processors() -> int:
    # Not everywhere can a process be bound to some of the processors.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _detectors(sensor: Sensor) -> tuple[str, ...]:
    """Silicon sees up to about 1000 nm."""
    return tuple("VNIR" if wavelength < 1000.0 else "SWIR" for wavelength in sensor.wavelengths)


def labels_path(parent: str | Path, name: str) -> Path:
    """Where `write_scene` puts the labels of a product: beside it."""
    return Path(parent) / f"{name}_labels.tif"


def write_scene(scene: SimulatedScene, parent: str | Path, as_zip: bool = False) -> Path:
    """Write a scene as an official L2A product, and its labels beside it (`labels_path`).

    The labels are a GeoTIFF, uint8, `UNLABELLED` as nodata, with the names of the classes as tags `class_0`, ... Gives
    the folder or ZIP of the product, whose name is the scene's.

    Raises:
        ValueError: there is another product or other labels of this name; the same are written once more.
    """
    name, parent = scene.name, Path(parent)
    with written_whole(labels_path(parent, name)) as unfinished:
        _write_labels(scene, unfinished)
        check_no_other(labels_path(parent, name), unfinished)
        product = write_enmap_product(
            parent,
            name,
            scene.cube,
            wavelengths=scene.sensor.wavelengths,
            fwhm=scene.sensor.fwhm,
            detectors=scene.detectors,
            transform=scene.transform,
            crs=scene.crs,
            acquisition_time=scene.acquisition_time,
            sun_elevation=scene.sun_elevation,
            quality=scene.quality,
            as_zip=as_zip,
        )
    return product


def _write_labels(scene: SimulatedScene, path: Path) -> None:
    # Not by write_raster: other bytes than those of earlier versions would be refused as another scene
    height, width = scene.labels.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=height,
        width=width,
        count=1,
        dtype="uint8",
        nodata=UNLABELLED,
        crs=scene.crs,
        transform=scene.transform,
        compress="deflate",
    ) as dataset:
        dataset.write(scene.labels, 1)
        dataset.set_band_description(1, "land cover")
        dataset.update_tags(1, **{f"class_{index}": class_name for index, class_name in enumerate(scene.class_names)})

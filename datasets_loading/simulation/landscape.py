"""What lies where in a simulated scene: terrain, fields, forests, towns, lakes, rivers and roads at several scales.

The ground is laid out in cells of 10 m, nine to a pixel of EnMAP, so that borders, roads and houses mix within pixels.
A cell names three spectra of a `SpectralLibrary` and their shares: the object's own, a second of the same material
(the variation within the object), and an intruder (soil between rows, grass between roofs). Widths and heights are
meters, spacings are cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label as label_connected
from scipy.sparse import csr_matrix

from datasets_loading.simulation.materials import SOILS, WATERS
from datasets_loading.simulation.spectra import SpectralLibrary

FloatImage = NDArray[np.float32]

CELL_SIZE = 10.0
"""Side of a cell in meters."""

CELLS_PER_PIXEL = 3
"""Cells along the side of a 30 m pixel."""

ROCKS = ("limestone", "sandstone and quartz sand", "granite and gneiss", "basalt", "clay pit", "gypsum", "gravel")
_KEYS = 1 << 14


@dataclass(frozen=True)
class Landscape:
    """The ground of a scene of height x width pixels in cells (3 height, 3 width).

    Attributes:
        primary, secondary, intruder: (cells, cells) int16, positions in the spectral library.
        secondary_share, intruder_share: (cells, cells) float32; the primary spectrum has the rest.
        lit: (cells, cells) float32, direct sunlight that reaches the cell's surface, as a share of an open level field
            (crowns and houses cast shadows).
        elevation: (height, width) float32, meters.
    """

    primary: NDArray[np.int16]
    secondary: NDArray[np.int16]
    intruder: NDArray[np.int16]
    secondary_share: FloatImage
    intruder_share: FloatImage
    lit: FloatImage
    elevation: FloatImage


@dataclass(frozen=True)
class Cover:
    """A kind of ground: what its objects are made of.

    Attributes:
        materials: weights of the materials, of which each object has one.
        intruders: weights of the materials found between or under it.
        intruder_share: mean share of the intruder, drawn per object from 0 to twice this.
        roughness: relative spread of the light on single cells (crowns and gaps, roofs and their shadows).
    """

    materials: Mapping[str, float]
    intruders: Mapping[str, float]
    intruder_share: float
    roughness: float


def _weighted(names: Sequence[str], weights: Iterable[float]) -> dict[str, float]:
    return {name: float(weight) for name, weight in zip(names, weights, strict=True)}


def _bell(day: int, peak: float, width: float) -> float:
    return float(np.exp(-0.5 * ((day - peak) / width) ** 2))


def crop_calendar(day: int) -> dict[str, float]:
    """Weights of what stands on arable land of the northern mid-latitudes on a day of the year; soil is "soil"."""
    return {
        "green cereal": 1.0 * _bell(day, 135, 28) + 0.05,
        "ripening cereal": 0.9 * _bell(day, 188, 16),
        "straw and stubble": 0.8 * _bell(day, 222, 24),
        "rapeseed and legumes": 0.35 * _bell(day, 140, 45) + 0.08,
        "maize": 0.7 * _bell(day, 225, 32),
        "beet and potato": 0.35 * _bell(day, 215, 42),
        "young crop": 0.35 * _bell(day, 100, 25) + 0.3 * _bell(day, 150, 20) + 0.4 * _bell(day, 290, 30),
        "meadow": 0.22,
        "dry grass": 0.1,
        "orchard and vineyard": 0.06,
        "soil": 0.55 * _bell(day, 95, 28) + 0.5 * _bell(day, 265, 32) + 0.06,
    }


def covers_of_season(generator: np.random.Generator, day: int) -> dict[str, Cover]:
    """The kinds of ground of a scene, on a day of the year, with soils, woods and dryness of the scene's own."""
    soils = _weighted(SOILS, generator.dirichlet([0.8] * len(SOILS)))
    dryness = generator.beta(1.5, 2.5) * (0.4 + 0.6 * _bell(day, 215, 50))
    autumn = float(np.clip((day - 270) / 40, 0.0, 1.0)) + float(np.clip((115 - day) / 25, 0.0, 1.0))
    rocks = _weighted(ROCKS, generator.dirichlet([0.6] * len(ROCKS)))
    broadleaf = {"broadleaf forest": 1.0 - autumn + 0.02, "broadleaf forest in autumn": autumn + 0.01}
    grass = {"meadow": 1.05 - dryness, "dry grass": 0.25 + dryness, "dead grass": 0.6 * dryness}
    lawn = {"lawn": 1.05 - dryness, "dry grass": 0.9 * dryness + 0.1}
    crops = crop_calendar(day)
    bare = crops.pop("soil")
    total = sum(crops.values()) + bare
    fields = {**crops, **{name: bare * weight for name, weight in soils.items()}}
    tiles = generator.uniform(0.2, 1.0)

    def mixed(*parts: tuple[float, Mapping[str, float]]) -> dict[str, float]:
        weights: dict[str, float] = {}
        for share, part in parts:
            whole = sum(part.values())
            for name, weight in part.items():
                weights[name] = weights.get(name, 0.0) + share * weight / whole
        return weights

    pitched = {"red roof tile": tiles, "dark roof tile": 1.2 - tiles, "bitumen roof": 0.2}
    flat = {"bitumen roof": 1.0, "gravel roof": 0.9, "metal roof": 0.5}
    flat |= {"white membrane roof": 0.12, "solar and glass roof": 0.15}
    paving = {"asphalt": 1.0, "concrete": 0.5, "cobbles and brick": 0.5, "gravel": 0.12}
    trees = mixed((0.8, broadleaf), (0.2, {"needleleaf forest": 1.0}))
    lakes = _weighted(WATERS, generator.dirichlet([1.0, 0.8, 0.8, 0.2]))
    return {
        "field": Cover({name: weight / total for name, weight in fields.items()}, soils, 0.08, 0.02),
        "broadleaf wood": Cover(broadleaf, {"needleleaf forest": 1.0, "young forest": 1.0}, 0.10, 0.16),
        "needleleaf wood": Cover({"needleleaf forest": 1.0}, mixed((0.6, broadleaf), (0.4, grass)), 0.10, 0.20),
        "young wood": Cover({"young forest": 1.0}, mixed((0.5, grass), (0.5, broadleaf)), 0.2, 0.10),
        "grassland": Cover(grass, mixed((0.5, soils), (0.5, trees)), 0.08, 0.04),
        "shrubland": Cover({"shrubs": 1.0}, mixed((0.5, soils), (0.5, grass)), 0.25, 0.10),
        "bare ground": Cover(mixed((0.65, rocks), (0.35, soils)), mixed((0.6, soils), (0.4, grass)), 0.12, 0.06),
        "houses": Cover(
            mixed((0.28, pitched), (0.18, paving), (0.24, lawn), (0.26, trees), (0.04, soils)), lawn, 0.12, 0.16
        ),
        "old town": Cover(
            mixed((0.42, pitched), (0.12, flat), (0.26, paving), (0.14, trees), (0.06, lawn)), paving, 0.12, 0.22
        ),
        "apartments": Cover(
            mixed((0.24, flat), (0.06, pitched), (0.26, paving), (0.20, lawn), (0.24, trees)), lawn, 0.12, 0.18
        ),
        "industry": Cover(
            mixed((0.42, flat), (0.36, paving), (0.08, lawn), (0.06, grass), (0.08, soils)), paving, 0.12, 0.10
        ),
        "park": Cover(mixed((0.55, trees), (0.45, lawn)), paving, 0.05, 0.14),
        "street": Cover({"asphalt": 1.0, "cobbles and brick": 0.15}, mixed((0.5, lawn), (0.5, trees)), 0.22, 0.10),
        "country road": Cover({"asphalt": 1.0, "gravel": 0.25}, grass, 0.35, 0.05),
        "motorway": Cover({"asphalt": 0.7, "concrete": 0.3}, grass, 0.1, 0.03),
        "lake": Cover(lakes, dict.fromkeys(WATERS, 1.0), 0.04, 0.0),
        "river": Cover(_weighted(WATERS, (0.2, 1.0, 1.0, 0.4)), grass, 0.03, 0.0),
        "snow": Cover({"snow": 1.0}, {"granite and gneiss": 1.0, "shrubs": 0.5}, 0.08, 0.05),
    }


def value_noise(generator: np.random.Generator, shape: tuple[int, int], spacing: float) -> FloatImage:
    """Smooth noise of unit variance (rows, columns): random values every `spacing` cells under a cubic B-spline."""
    weights, counts = [], []
    for length in shape:
        position = np.arange(length) / spacing + generator.random()
        first = np.floor(position).astype(np.int32)
        beyond = position - first
        inner = 3 * beyond**3 - 6 * beyond**2 + 4, -3 * beyond**3 + 3 * beyond**2 + 3 * beyond + 1
        cubic = np.stack([(1 - beyond) ** 3, *inner, beyond**3], axis=1)
        count = int(first[-1]) + 4
        neighbors = first[:, None] + np.arange(4, dtype=np.int32)
        starts = np.arange(0, 4 * length + 1, 4, dtype=np.int32)
        entries = (cubic.ravel() / 6).astype(np.float32)
        weights.append(csr_matrix((entries, neighbors.ravel(), starts), shape=(length, count)))
        counts.append(count)
    values = generator.standard_normal((counts[0], counts[1]), dtype=np.float32)
    # Under a cubic B-spline the variance of white noise shrinks to 0.479 per axis on average.
    across = np.ascontiguousarray((weights[1] @ values.T).T) / np.float32(0.479)
    return weights[0] @ across


def fractal_noise(
    generator: np.random.Generator, shape: tuple[int, int], spacing: float, octaves: int, persistence: float = 0.5
) -> FloatImage:
    """Noise of unit variance with detail down to `spacing` / 2^(octaves - 1) cells."""
    amplitudes = persistence ** np.arange(octaves)
    total = np.zeros(shape, dtype=np.float32)
    for octave, amplitude in enumerate(amplitudes):
        scale = spacing / 2**octave
        if scale < 2.0:
            break
        total += np.float32(amplitude) * value_noise(generator, shape, scale)
    return (total / np.float32(np.sqrt((amplitudes**2).sum()))).astype(np.float32, copy=False)


def _hash(values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Scatter whole numbers evenly over 32 bits."""
    values = (values ^ (values >> np.uint32(16))) * np.uint32(0x7FEB352D)
    values = (values ^ (values >> np.uint32(15))) * np.uint32(0x846CA68B)
    return values ^ (values >> np.uint32(16))


def strips(length: int, rows: int = 192) -> list[slice]:
    """Parts of so many rows, of which threads take one after the other."""
    return [slice(start, min(start + rows, length)) for start in range(0, length, rows)]


def voronoi_cells(
    generator: np.random.Generator, shape: tuple[int, int], spacing: float, warp: FloatImage | None, workers: int
) -> tuple[NDArray[np.uint32], FloatImage]:
    """Divide the plane among points strewn one to a square of `spacing` cells.

    Gives for every cell the number of its nearest point, and the distance to the border in cells. `warp` is a
    displacement in cells (rows, columns) that makes the borders wind.
    """
    rows, columns = (int(np.ceil(length / spacing)) + 5 for length in shape)
    jitter = generator.random((2, rows, columns), dtype=np.float32)
    points_y = ((np.arange(rows, dtype=np.float32)[:, None] - 2 + jitter[0]) * np.float32(spacing)).ravel()
    points_x = ((np.arange(columns, dtype=np.float32)[None, :] - 2 + jitter[1]) * np.float32(spacing)).ravel()
    owner = np.empty(shape, dtype=np.uint32)
    border = np.empty(shape, dtype=np.float32)

    def fill(strip: slice) -> None:
        y = np.broadcast_to(
            np.arange(strip.start, strip.stop, dtype=np.float32)[:, None], (strip.stop - strip.start, shape[1])
        )
        x = np.broadcast_to(np.arange(shape[1], dtype=np.float32)[None, :], y.shape)
        if warp is not None:
            y, x = y + warp[strip], x - warp[strip]
        row = (np.floor(y / np.float32(spacing)).astype(np.int32) + 2).clip(1, rows - 2)
        column = (np.floor(x / np.float32(spacing)).astype(np.int32) + 2).clip(1, columns - 2)
        base = row * columns + column
        nearest = np.full(y.shape, np.inf, dtype=np.float32)
        second = nearest.copy()
        number = np.zeros(y.shape, dtype=np.int32)
        for step in (-columns - 1, -columns, -columns + 1, -1, 0, 1, columns - 1, columns, columns + 1):
            candidate = base + np.int32(step)
            distance = (y - points_y[candidate]) ** 2 + (x - points_x[candidate]) ** 2
            closer = distance < nearest
            np.minimum(second, np.where(closer, nearest, distance), out=second)
            np.minimum(nearest, distance, out=nearest)
            np.copyto(number, candidate, where=closer)
        owner[strip] = number.astype(np.uint32)
        border[strip] = (np.sqrt(second) - np.sqrt(nearest)) / 2

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(fill, strips(shape[0])))
    return owner, border


def _parcels(
    generator: np.random.Generator,
    blocks: NDArray[np.uint32],
    width: tuple[float, float],
    length: tuple[float, float],
    workers: int,
) -> NDArray[np.uint32]:
    """Evenly spread keys of the rectangles in blocks, each with a direction and sizes (meters, from-to) of its own."""
    count = int(blocks.max()) + 1
    angle = generator.uniform(0.0, np.pi, count).astype(np.float32)
    cosine, sine = np.cos(angle), np.sin(angle)
    across = (np.exp(generator.uniform(np.log(width[0]), np.log(width[1]), count)) / CELL_SIZE).astype(np.float32)
    along = (np.exp(generator.uniform(np.log(length[0]), np.log(length[1]), count)) / CELL_SIZE).astype(np.float32)
    keys = np.empty(blocks.shape, dtype=np.uint32)

    def fill(strip: slice) -> None:
        block = blocks[strip]
        y = np.arange(strip.start, strip.stop, dtype=np.float32)[:, None]
        x = np.arange(blocks.shape[1], dtype=np.float32)[None, :]
        row = np.floor((x * cosine[block] + y * sine[block]) / across[block]).astype(np.int32).astype(np.uint32)
        row_key = _hash(row ^ (block * np.uint32(0x9E3779B1)))
        start = (row_key >> np.uint32(8)).astype(np.float32) / np.float32(2**24)
        column = (
            np.floor((y * cosine[block] - x * sine[block]) / along[block] + start).astype(np.int32).astype(np.uint32)
        )
        keys[strip] = _hash(row_key + column * np.uint32(0x85EBCA6B))

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(fill, strips(blocks.shape[0])))
    return keys


def _above(field: FloatImage, share: float) -> NDArray[np.bool_]:
    """The highest `share` of a field's cells."""
    if share <= 0.0:
        return np.zeros(field.shape, dtype=bool)
    return field > np.quantile(field[::4, ::4], 1.0 - min(share, 1.0))


def _line(field: FloatImage, width: float) -> NDArray[np.bool_]:
    """Cells within half a width (meters) of the line where a smooth field passes through zero."""
    slope_y, slope_x = np.gradient(field)
    return np.abs(field) < np.hypot(slope_y, slope_x) * np.float32(width / CELL_SIZE / 2)


def _draw_spectra(
    generator: np.random.Generator, library: SpectralLibrary, weights: Mapping[str, float]
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """For each key two spectra of one material, materials drawn by their weights."""
    names = [name for name, weight in weights.items() if weight > 0]
    share = np.array([weights[name] for name in names])
    choice = generator.choice(len(names), size=_KEYS, p=share / share.sum())
    positions = [library.spectra_of(name) for name in names]
    counts = np.array([len(position) for position in positions])
    table = np.zeros((len(names), counts.max()), dtype=np.int16)
    for index, position in enumerate(positions):
        table[index, : len(position)] = position
    pairs = [table[choice, (generator.random(_KEYS) * counts[choice]).astype(np.int64)] for _ in range(2)]
    return pairs[0], pairs[1]


def simulate_landscape(
    generator: np.random.Generator, height: int, width: int, library: SpectralLibrary, day: int, workers: int
) -> Landscape:
    """Lay out a scene of height x width pixels on a day of the year."""
    shape = (height * CELLS_PER_PIXEL, width * CELLS_PER_PIXEL)
    # Regions some kilometers wide; narrower in a small scene, so that it too shows more than one kind of ground.
    region = min(300.0, max(shape) / 2.2)
    relief = float(np.exp(generator.uniform(np.log(8.0), np.log(350.0))))  # standard deviation in meters
    elevation = np.float32(relief) * fractal_noise(generator, (height, width), 150.0, 6, 0.42)
    elevation -= elevation.min()
    covers = covers_of_season(generator, day)
    names = list(covers)
    number = {name: index for index, name in enumerate(names)}

    wind = value_noise(generator, shape, 25.0) * np.float32(5.0) + value_noise(generator, shape, 6.0) * np.float32(1.2)
    farm_spacing = generator.uniform(45.0, 110.0)
    bend = value_noise(generator, shape, 70.0) * np.float32(9.0)
    farm, farm_border = voronoi_cells(generator, shape, farm_spacing, bend, workers)
    town, town_border = voronoi_cells(generator, shape, generator.uniform(9.0, 14.0), None, workers)
    stand, _ = voronoi_cells(generator, shape, generator.uniform(18.0, 35.0), wind, workers)
    field_width = generator.uniform(60.0, 220.0)
    field_length = (2.0 * field_width, 5.0 * field_width)
    field_key = _parcels(generator, farm, (field_width, 2.0 * field_width), field_length, workers)
    plot_key = _parcels(generator, town, (14.0, 24.0), (16.0, 40.0), workers)
    hall_key = _parcels(generator, town, (40.0, 80.0), (50.0, 130.0), workers)
    stand_key = _hash(stand)

    def per_block(blocks: NDArray[np.uint32], spread: float) -> FloatImage:
        values = generator.normal(0.0, spread, int(blocks.max()) + 1).astype(np.float32)
        return values[blocks]

    # What the land is used for: regions, whose borders follow fields and blocks in part.
    forest_share = generator.beta(2.5, 4.0)
    zone = np.full(shape, number["field"], dtype=np.uint8)
    key = field_key

    def settle(mask: NDArray[np.bool_], cover: NDArray[np.uint8] | str, keys: NDArray[np.uint32]) -> None:
        nonlocal key
        np.copyto(zone, np.uint8(number[cover]) if isinstance(cover, str) else cover, where=mask)
        key = np.where(mask, keys, key)

    def cover_of_keys(keys: NDArray[np.uint32], weights: Mapping[str, float]) -> NDArray[np.uint8]:
        share = np.array(list(weights.values()))
        table = generator.choice([number[name] for name in weights], size=_KEYS, p=share / share.sum())
        return table.astype(np.uint8)[keys % np.uint32(_KEYS)]

    grass_field = fractal_noise(generator, shape, region * 0.5, 4, 0.6)
    settle(_above(grass_field + per_block(farm, 0.5), generator.beta(2.0, 9.0)), "grassland", field_key)
    shrub_field = fractal_noise(generator, shape, region * 0.4, 4, 0.6)
    settle(_above(shrub_field, generator.beta(1.2, 20.0)), "shrubland", stand_key)
    forest_field = fractal_noise(generator, shape, region * 0.8, 5, 0.55) + per_block(farm, 0.45)
    needle_share = generator.beta(1.2, 1.5)
    woods = {"broadleaf wood": 1.05 - needle_share, "needleleaf wood": 0.05 + needle_share}
    kind_of_wood = cover_of_keys(stand_key, woods | {"young wood": 0.1, "grassland": 0.02})
    settle(_above(forest_field, forest_share), kind_of_wood, stand_key)
    bare_field = fractal_noise(generator, shape, region * 0.2, 4, 0.6)
    settle(_above(bare_field, generator.beta(1.0, 70.0)), "bare ground", stand_key)

    roads = (farm_border < 0.4) & (per_block(farm, 1.0) > 0.3)
    settle(roads, "country road", stand_key)

    # Towns: blocks between streets, of one style each; the core of a town is denser.
    urban_field = fractal_noise(generator, shape, region * 0.7, 4, 0.5) + per_block(town, 0.25)
    urban_share = generator.beta(1.6, 8.0)
    urban = _above(urban_field, urban_share)
    core = _above(urban_field, 0.25 * urban_share)
    block_key = _hash(town * np.uint32(0x9E3779B1))
    quarter_key = _hash(farm + np.uint32(77))
    suburb = cover_of_keys(block_key, {"houses": 0.78, "apartments": 0.1, "park": 0.09, "grassland": 0.03})
    works = cover_of_keys(block_key, {"industry": 0.85, "park": 0.08, "grassland": 0.07})
    center = cover_of_keys(block_key, {"old town": 0.55, "apartments": 0.32, "park": 0.08, "industry": 0.05})
    is_works = urban & ~core & (quarter_key % np.uint32(100) < np.uint32(18))
    settle(urban, suburb, plot_key)
    settle(core, center, plot_key)
    settle(is_works, works, hall_key)
    settle(urban & (zone == number["park"]), "park", stand_key)
    settle(urban & (town_border < 0.5), "street", block_key)
    for _ in range(int(generator.integers(0, 3))):
        line_of_road = fractal_noise(generator, shape, region * 1.4, 1) + np.float32(generator.normal(0.0, 0.3))
        settle(_line(line_of_road, generator.uniform(12.0, 30.0)), "motorway", block_key)

    lake_field = fractal_noise(generator, shape, region * 0.45, 5, 0.45)
    lakes = _above(lake_field, generator.beta(1.0, 30.0))
    lake_number = label_connected(lakes)[0].astype(np.uint32)
    settle(lakes, "lake", _hash(lake_number + generator.integers(1 << 31, dtype=np.uint32)))
    for _ in range(int(generator.integers(0, 3))):
        course = fractal_noise(generator, shape, region * 1.2, 4, 0.3) + np.float32(generator.normal(0.0, 0.3))
        river_key = np.full(shape, generator.integers(1 << 32, dtype=np.uint32))
        settle(_line(course, float(np.exp(generator.uniform(np.log(10.0), np.log(120.0))))), "river", river_key)
    snow_line = 300.0 + 1500.0 * float(np.sin(np.pi * np.clip((day + 10) / 365, 0, 1)) ** 2)
    if elevation.max() > snow_line:
        fine = np.repeat(np.repeat(elevation, CELLS_PER_PIXEL, axis=0), CELLS_PER_PIXEL, axis=1)
        settle(fine + np.float32(40.0) * wind / 5 > snow_line, "snow", stand_key)

    return _fill(generator, library, [covers[name] for name in names], zone, key, elevation)


def _fill(
    generator: np.random.Generator,
    library: SpectralLibrary,
    covers: list[Cover],
    zone: NDArray[np.uint8],
    key: NDArray[np.uint32],
    elevation: FloatImage,
) -> Landscape:
    """Give every cell its spectra, by the kind of its ground and the key of its object."""
    own = [_draw_spectra(generator, library, cover.materials) for cover in covers]
    intruders = [_draw_spectra(generator, library, cover.intruders)[0] for cover in covers]
    mean_intruder = [generator.beta(1.5, 1.5, _KEYS) * 2.0 * cover.intruder_share for cover in covers]
    index = zone.astype(np.int32) * _KEYS + (key % np.uint32(_KEYS)).astype(np.int32)
    roughness = np.array([cover.roughness for cover in covers], dtype=np.float32)[zone]
    shape = zone.shape
    patchy = np.float32(0.22) * value_noise(generator, shape, 25.0)
    patchy = patchy + np.float32(0.16) * value_noise(generator, shape, 6.0)
    scatter = np.float32(0.1) * generator.standard_normal(shape, dtype=np.float32)
    secondary_share = (np.float32(0.3) + patchy + scatter).clip(0, 0.8)
    sparse = np.float32(1.0) + np.float32(0.5) * value_noise(generator, shape, 12.0)
    sparse += np.float32(0.4) * generator.standard_normal(shape, dtype=np.float32)
    intruder_share = np.concatenate(mean_intruder).astype(np.float32)[index] * sparse
    intruder_share = intruder_share.clip(0, 0.9)
    secondary_share *= 1.0 - intruder_share
    lit = np.float32(1.0) - roughness * np.abs(generator.standard_normal(shape, dtype=np.float32))
    lit += np.float32(0.25) * roughness * value_noise(generator, shape, 8.0)
    return Landscape(
        primary=np.concatenate([pair[0] for pair in own])[index],
        secondary=np.concatenate([pair[1] for pair in own])[index],
        intruder=np.concatenate(intruders)[index],
        secondary_share=secondary_share,
        intruder_share=intruder_share,
        lit=lit.clip(0.2, 1.3),
        elevation=elevation,
    )

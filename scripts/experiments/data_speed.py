"""How fast tiles are read: GeoTIFF files one by one, and a corpus by number and as a stream, in one process and two.

Every way of reading gives the same tiles as int16 arrays and copies each into one buffer, so that all its bytes are
touched. The ways take turns in readers that stay alive; a rate is the median over the turns. Files are in the page
cache by then: what is compared is the work of reading, not the disk. Memory is measured apart, in a process of its own
for each way.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import rasterio
import torch
from datasets.distributed import split_dataset_by_node
from rasterio.transform import from_origin
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from datasets_loading.enmap_corpus import CorpusTiles, EnMAPCorpus, read_corpus
from datasets_loading.sensors import ENMAP
from datasets_loading.shards import (
    SCHEMA,
    SETTINGS_NAME,
    ShardWriter,
    SourceRecord,
    one_line_per_entry,
    tile_image,
    write_statistics_and_card,
    write_text,
)
from datasets_loading.windows import GroupedSampler, RandomWindows

GEOTIFF = "GeoTIFF, deflate"
BASELINES = (GEOTIFF, "GeoTIFF, uncompressed")
MAP_STYLE = "map-style (Arrow cache)"
STREAM = "streaming (IterableDataset)"
SHARDS = "streaming (shards by number)"
WAYS = (*BASELINES, MAP_STYLE, STREAM, SHARDS)
"""Ways of reading; the first is what ratios are taken to."""

SECONDS_PER_TURN = 0.5


@dataclass(frozen=True)
class Rate:
    """How fast one way of reading is with one number of processes.

    Attributes:
        way: one of `WAYS`.
        num_processes: readers at a time, each with its share of the tiles.
        tiles_per_second: median over the turns, of all readers together.
        megabytes_per_second: the same in int16 pixels, 10^6 bytes.
        ratio: to reading GeoTIFF files compressed with deflate, with as many processes.
        ratio_to_uncompressed: to reading GeoTIFF files without compression.
        turns: tiles per second of each turn.
    """

    way: str
    num_processes: int
    tiles_per_second: float
    megabytes_per_second: float
    ratio: float
    ratio_to_uncompressed: float
    turns: tuple[float, ...]


def measure_reading(
    corpus: str | Path, workplace: str | Path, *, num_tiles: int = 128, turns: int = 5, progress: bool = True
) -> dict[str, Any]:
    """Measures all `WAYS` of reading the same tiles, with one process and with two.

    Args:
        corpus: a folder written by scripts/prepare_enmap.py.
        workplace: an empty folder for copies of the tiles in every form, about four times their size.
        num_tiles: how many of its tiles to read, 32 or more; fewer where it has fewer.
        turns: how often each way is measured.
        progress: show a progress bar.

    Returns:
        `rates` (`Rate` as dictionaries), `peak_memory_mb` of each way (what a reader holds beyond the start of the
        program; null where the system does not say), `windows_per_second` of cutting training windows, and what was
        read by what machine.

    Raises:
        ValueError: the corpus has fewer than 32 tiles, tiles of different sizes, or is none.
    """
    workplace = Path(workplace)
    tile_shape, num_tiles = _write_forms(read_corpus(corpus, streaming=True), workplace, num_tiles)
    tile_megabytes = int(np.prod(tile_shape)) * 2 / 1e6
    measured: dict[tuple[str, int], list[float]] = {}
    readers = [_Reader(workplace) for _ in range(2)]
    try:
        steps = [(way, count) for _ in range(turns) for count in (1, 2) for way in WAYS]
        for way, count in tqdm(steps, desc="measuring", unit="turn", disable=not progress):
            measured.setdefault((way, count), []).append(sum(_Reader.measure(readers[:count], way)))
    finally:
        for reader in readers:
            reader.close()
    medians = {key: statistics.median(turns_of_key) for key, turns_of_key in measured.items()}
    table = [
        Rate(
            way=way,
            num_processes=count,
            tiles_per_second=medians[way, count],
            megabytes_per_second=medians[way, count] * tile_megabytes,
            ratio=medians[way, count] / medians[GEOTIFF, count],
            ratio_to_uncompressed=medians[way, count] / medians[BASELINES[1], count],
            turns=tuple(measured[way, count]),
        )
        for way, count in medians
    ]
    peaks, windows = {}, {}
    for way in tqdm(WAYS, desc="memory", unit="way", disable=not progress):
        reader = _Reader(workplace)
        try:
            peaks[way] = reader.ask("memory", way)
            if way in (MAP_STYLE, SHARDS):
                windows[way] = reader.ask("windows", way)
        finally:
            reader.close()
    return {
        "rates": [asdict(rate) for rate in table],
        "peak_memory_mb": peaks,
        "windows_per_second": windows,
        "num_tiles": num_tiles,
        "tile_shape": list(tile_shape),
        "tile_megabytes": tile_megabytes,
        "turns": turns,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cpu_count": os.cpu_count(),
            "python": platform.python_version(),
            "datasets": datasets.__version__,
            "rasterio": rasterio.__version__,
            "torch": torch.__version__,
        },
    }


def measure_data_share(
    workplace: str | Path,
    bands: Sequence[int],
    standardize: Callable[[torch.Tensor], Any],
    train: Callable[[Any], None],
    *,
    batch_size: int = 16,
    window_size: tuple[int, int] = (8, 8),
    turns: int = 5,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Measures what getting a batch costs beside training on it, in one process.

    Every turn times an epoch of batches (windows cut, turned, batched and standardised), then one training step.

    Args:
        workplace: the folder that `measure_reading` was given, which left the tiles there.
        bands: indices of the model's bands, in ascending wavelength.
        standardize: turns stored numbers, int16 (batch, bands, height, width), into what `train` takes.
        train: one training step, finished when it returns.
        batch_size: windows of a batch.
        window_size: height and width of a window in pixels.
        turns: how often each is measured.
        progress: show a progress bar.

    Returns:
        For reading by number from the Arrow cache and from shards: `data_seconds` and `step_seconds` of a batch
        (medians over the turns), `share`, the median of their ratio in each turn, and `turns`, these ratios.
    """
    measured: dict[str, dict[str, list[float]]] = {}
    ways = (MAP_STYLE, SHARDS)
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = Path(workplace) / "cache"
    try:
        corpora = {way: read_corpus(Path(workplace) / "corpus", streaming=way == SHARDS) for way in ways}
    finally:
        datasets.config.HF_DATASETS_CACHE = before
    steps = [(turn, way) for turn in range(-1, turns) for way in ways]
    for turn, way in tqdm(steps, desc="data beside training", unit="turn", disable=not progress):
        tiles = corpora[way]
        windows = RandomWindows(tiles, window_size, bands=bands)
        sampler = GroupedSampler(tiles.groups, windows.windows_per_tile, turn + 1, groups_at_once=tiles.groups_at_once)
        num_batches, started = 0, time.perf_counter()
        for batch in DataLoader(windows, batch_size, sampler=sampler, drop_last=True):
            inputs = standardize(batch["pixels"])
            num_batches += 1
            if turn < 0:
                break
        data_seconds = (time.perf_counter() - started) / num_batches
        started = time.perf_counter()
        train(inputs)
        step_seconds = time.perf_counter() - started
        if turn >= 0:  # the first turn warms caches and allocators
            entry = measured.setdefault(way, {"data_seconds": [], "step_seconds": [], "share": []})
            for name, value in zip(entry, (data_seconds, step_seconds, data_seconds / step_seconds), strict=True):
                entry[name].append(value)
    return {
        way: {name: statistics.median(values) for name, values in entry.items()} | {"turns": entry["share"]}
        for way, entry in measured.items()
    }


def plot_reading(path: Path, result: dict[str, Any]) -> Path:
    """Bars of MB/s for each way of reading, on a logarithmic axis, with the ratios to GeoTIFF files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    for number, (count, colour) in enumerate(((1, "#1b6ca8"), (2, "#e0a100"))):
        rates = {rate["way"]: rate for rate in result["rates"] if rate["num_processes"] == count}
        places = np.arange(len(WAYS)) + 0.4 * number
        bars = axes.barh(places, [rates[way]["megabytes_per_second"] for way in WAYS], 0.38, color=colour)
        labels = [f" {rates[way]['megabytes_per_second']:,.0f} MB/s, {rates[way]['ratio']:.1f}x" for way in WAYS]
        axes.bar_label(bars, labels, fontsize=8)
        bars.set_label("1 process" if count == 1 else f"{count} processes")
    axes.set_yticks(np.arange(len(WAYS)) + 0.2, WAYS)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.4)
    axes.set_xlabel("MB/s of int16 pixels (page cache warm)")
    bands, height, width = result["tile_shape"]
    axes.set_title(f"Reading {result['num_tiles']} tiles of {bands} bands and {height} x {width} pixels", fontsize=10)
    axes.legend(loc="lower right", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def _write_forms(tiles: CorpusTiles, workplace: Path, num_tiles: int) -> tuple[tuple[int, int, int], int]:
    """Writes the tiles as GeoTIFF files and as a corpus of their own; gives the shape of a tile and their number."""
    # Two processes share a stream by row groups: whole ones, and as many for each.
    num_tiles = min(num_tiles, len(tiles)) // 32 * 32
    if not num_tiles:
        raise ValueError(f"expected a corpus of at least 32 tiles, got {len(tiles)}")
    shapes = np.unique(tiles.shapes[:num_tiles], axis=0)
    if len(shapes) > 1:
        raise ValueError(f"expected tiles of one size, got {shapes.tolist()}")
    tile_shape = (tiles.num_bands, int(shapes[0, 0]), int(shapes[0, 1]))
    corpus = workplace / "corpus"
    for folder in (corpus / "data", corpus / "sources", *(workplace / way for way in BASELINES)):
        folder.mkdir(parents=True)
    profile: dict[str, Any] = dict(zip(("count", "height", "width"), tile_shape, strict=True))
    profile |= {"driver": "GTiff", "dtype": "int16", "nodata": ENMAP.nodata, "interleave": "band"}
    profile |= {"crs": "EPSG:32633", "transform": from_origin(0, 0, 30, 30)}
    wavelengths = None if tiles.wavelengths is None else tiles.wavelengths.tolist()
    record = SourceRecord("tiles", [], wavelengths, None, valid_bands=tiles.valid_bands.tolist())
    with ShardWriter(corpus, record) as writer:
        for number in range(num_tiles):
            image = tiles[number]
            row = {name: None for name in SCHEMA.names} | {"name": f"{number:05d}", "wavelengths": wavelengths}
            writer.write(row | dict(zip(("num_bands", "height", "width"), tile_shape, strict=True)) | {"image": image})
            for way in BASELINES:
                compression = {"compress": "deflate"} if way == GEOTIFF else {}
                with rasterio.open(workplace / way / f"{number:05d}.tif", "w", **profile, **compression) as dataset:
                    dataset.write(image)
    record.write(corpus)
    settings = {"tile_size": tile_shape[1], "max_nodata": 1.0, "max_cloud": 1.0}
    write_text(corpus / SETTINGS_NAME, one_line_per_entry(settings))
    write_statistics_and_card(corpus, [record], settings)
    return tile_shape, num_tiles


def open_way(way: str, workplace: Path, share: int, num_shares: int) -> Callable[[], Iterator[np.ndarray]]:
    """What reads a share of the tiles once, each time it is called."""
    if way in BASELINES:
        paths = sorted((workplace / way).glob("*.tif"))[share::num_shares]
        return lambda: map(_read_geotiff, paths)
    if way == STREAM:
        stream = EnMAPCorpus(data_dir=str(workplace / "corpus")).as_streaming_dataset(split="train")
        part = stream if num_shares == 1 else split_dataset_by_node(stream, share, num_shares)
        return lambda: map(tile_image, part)

    def open_share() -> CorpusTiles:
        tiles = read_corpus(workplace / "corpus", streaming=way == SHARDS)
        per_share = len(tiles) // num_shares
        return tiles.select(range(share * per_share, (share + 1) * per_share))

    if way == MAP_STYLE:
        tiles = open_share()
        return lambda: iter(tiles)
    # Opened anew each time: the row groups of the last time would still be at hand.
    return lambda: iter(open_share())


def _read_geotiff(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read()


class _Reader:
    """A process that reads when it is asked to."""

    def __init__(self, workplace: Path) -> None:
        # Started afresh: threads of the raster and Parquet libraries do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, workplace, SECONDS_PER_TURN), daemon=True)
        self.process.start()
        theirs.close()

    @staticmethod
    def measure(readers: list[_Reader], way: str) -> list[float]:
        """Tiles per second of readers that start at the same time, each with its share."""
        for share, reader in enumerate(readers):
            reader.connection.send(("prepare", way, share, len(readers)))
        for reader in readers:
            reader.receive()
        for reader in readers:
            reader.connection.send(("read",))
        return [reader.receive() for reader in readers]

    def ask(self, *request: Any) -> Any:
        self.connection.send(request)
        return self.receive()

    def receive(self) -> Any:
        try:
            return self.connection.recv()
        except EOFError:
            raise OSError("expected a reading process to answer, but it ended; see what it wrote above") from None

    def close(self) -> None:
        self.connection.close()
        self.process.join(10)


def _serve(connection: Connection, workplace: Path, seconds: float) -> None:
    datasets.disable_progress_bars()
    # All copies of the tiles are of one moment: nothing of them belongs into the user's own cache.
    datasets.config.HF_DATASETS_CACHE = workplace / "cache"
    torch.set_num_threads(1)
    read: Callable[[], Iterator[np.ndarray]] | None = None
    try:
        while True:
            request, *arguments = connection.recv()
            if request == "prepare":
                read = open_way(arguments[0], workplace, *arguments[1:])
                for _ in read():
                    pass
                connection.send("ready")
            elif request == "read":
                assert read is not None
                connection.send(_tiles_per_second(read, seconds))
            elif request == "memory":
                connection.send(_peak_memory(arguments[0], workplace))
            else:
                tiles = read_corpus(workplace / "corpus", streaming=arguments[0] == SHARDS)
                connection.send(_windows_per_second(tiles, 4 * seconds))
    except EOFError:
        # Nobody asks any more.
        return


def _tiles_per_second(read: Callable[[], Iterator[np.ndarray]], seconds: float) -> float:
    buffer: np.ndarray | None = None
    num_tiles, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        for tile in read():
            if buffer is None:
                buffer = np.empty_like(tile)
            buffer[:] = tile
            num_tiles += 1
    return num_tiles / elapsed


def _peak_memory(way: str, workplace: Path) -> float | None:
    """Private memory in 10^6 bytes that reading all tiles once takes at most, seen after each tile."""
    before = _private_memory()
    if before is None:
        return None
    peak = before
    for tile in open_way(way, workplace, 0, 1)():
        tile.sum()
        peak = max(peak, _private_memory() or 0)
    return (peak - before) / 1e6


def _private_memory() -> int | None:
    """Memory in bytes that is this process's own: without the pages of files, which the system takes back at need."""
    try:
        match = re.search(r"RssAnon:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


def _windows_per_second(tiles: CorpusTiles, seconds: float, window_size: int = 8, batch_size: int = 64) -> float:
    """Training windows cut, turned and batched by one process, in the order of training."""
    windows = RandomWindows(tiles, (window_size, window_size), bands=np.flatnonzero(tiles.valid_bands).tolist())
    sampler = GroupedSampler(tiles.groups, windows.windows_per_tile, 0, groups_at_once=tiles.groups_at_once)
    num_windows, started = 0, time.perf_counter()
    for batch in DataLoader(windows, batch_size, sampler=sampler):
        num_windows += len(batch["pixels"])
        if (elapsed := time.perf_counter() - started) > seconds:
            break
    return num_windows / elapsed

"""Corpora of EnMAP tiles as Hugging Face datasets, and as tiles to cut training windows from.

    from datasets_loading.enmap_corpus import EnMAPCorpus

    builder = EnMAPCorpus(data_dir="corpus")        # a folder of prepare_enmap.py, or of EnMAP L2A products
    builder.download_and_prepare(num_proc=2)        # once: into the Arrow cache, whose tiles are read without decoding
    tiles = builder.as_dataset(split="train")
    stream = builder.as_streaming_dataset(split="train")

`read_corpus` gives the same tiles as int16 arrays by number (`CorpusTiles`), none of them in memory before it is used:
from the Arrow cache, or, with `streaming=True`, from the shards themselves, which takes no room on the disk.

EnMAP pixels cannot be published, so there is nothing to download: obtain products from https://www.enmap.org (free
after registration), or simulate some with scripts/simulate_enmap.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Features, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher

from datasets_loading.preparation import Bands, CutSettings, Source, Tally, first_bands, plan_sources, source_rows
from datasets_loading.raster_file import ProductError
from datasets_loading.sensors import ENMAP
from datasets_loading.shards import (
    CITATION,
    COLUMNS,
    LICENCE_NOTE,
    SCHEMA,
    TILES_PER_ROW_GROUP,
    CorpusStatistics,
    check_shards,
    is_corpus,
    read_records,
    row_groups,
)
from datasets_loading.tiles import band_statistics, find_sources
from datasets_loading.wavelengths import WAVELENGTH_TOLERANCE

FEATURES = Features.from_arrow_schema(SCHEMA)
"""Columns of a corpus; `datasets_loading.shards.COLUMNS` says what they hold."""

ROW_GROUPS_AT_ONCE = 16
"""Row groups of shards whose windows are mixed when streaming: 256 tiles, 470 MB of memory in each reader."""

TILES_AT_ONCE = 1024
"""Tiles of the Arrow cache whose windows are mixed, so that the page cache needs to hold no more: 1.9 GB."""


@dataclass
class EnMAPCorpusConfig(datasets.BuilderConfig):
    """How products are cut into tiles, as in `CutSettings`; the tiles of a prepared corpus stay as they are."""

    tile_size: int = 64
    max_nodata: float = 0.5
    max_cloud: float = 0.1

    def create_config_id(self, config_kwargs: dict[str, Any], custom_features: Features | None = None) -> str:
        # The name of the cache: another one when the files in the folder have changed.
        if self.data_dir is not None:
            config_kwargs = {**config_kwargs, "content": _content_hash(Path(self.data_dir))}
        return super().create_config_id(config_kwargs, custom_features)


class EnMAPCorpus(datasets.GeneratorBasedBuilder):
    """Tiles of EnMAP L2A products with place, time and cloud share, for pre-training.

    Args:
        data_dir: a folder written by scripts/prepare_enmap.py, or a folder of products and GeoTIFF tiles.
        tile_size, max_nodata, max_cloud: how products are cut (`CutSettings`).

    Row by row `datasets_loading.shards.tile_image` gives the image as int16 (bands, height, width).

    Raises:
        ValueError: no `data_dir`, or a corpus that was not finished.
        ProductError: there is nothing to read, or a product is damaged; prepare_enmap.py leaves such products out.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = EnMAPCorpusConfig
    # A batch of 16 tiles is 29 MB; the default of 1000 would be 1.8 GB.
    DEFAULT_WRITER_BATCH_SIZE = TILES_PER_ROW_GROUP

    def _info(self) -> datasets.DatasetInfo:
        columns = "\n".join(f"- {name}: {meaning}" for name, meaning in COLUMNS.items())
        return datasets.DatasetInfo(
            description=f"Tiles of EnMAP L2A products.\n\n{columns}",
            features=FEATURES,
            citation=CITATION,
            homepage="https://www.enmap.org",
            license=LICENCE_NOTE,
        )

    @cached_property
    def wavelengths(self) -> np.ndarray | None:
        """Band centres in nm, ascending, float64 (bands,), or None where no tile states them."""
        folder = self._folder()
        if is_corpus(folder):
            return CorpusStatistics.read(folder).wavelengths
        wavelengths = first_bands(self._sources(), self._settings).wavelengths
        return None if wavelengths is None else np.array(wavelengths)

    @property
    def _settings(self) -> CutSettings:
        return CutSettings(self.config.tile_size, self.config.max_nodata, self.config.max_cloud)

    def _folder(self) -> Path:
        if self.config.data_dir is None:
            raise ValueError(
                "EnMAPCorpus: expected data_dir, a folder written by scripts/prepare_enmap.py or a folder of EnMAP "
                "L2A products (free after registration, https://www.enmap.org), got none"
            )
        return Path(self.config.data_dir)

    def _sources(self) -> list[Source]:
        folder = self._folder()
        sources, outcomes = plan_sources(folder, find_sources(folder), self._settings, progress=False)
        errors = [error for outcome in outcomes for error in outcome.errors]
        if errors:
            raise ProductError(errors[0])
        return sources

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        folder = self._folder()
        # One list entry is the unit that processes share, and that a stream shuffles.
        if is_corpus(folder):
            CorpusStatistics.read(folder)
            records = read_records(folder)
            check_shards(folder, records)
            units: dict[str, Any] = {"places": [(path, number) for path, number, _ in row_groups(folder, records)]}
        else:
            sources = self._sources()
            units = {"sources": sources, "bands": first_bands(sources, self._settings)}
        return [datasets.SplitGenerator(name=datasets.Split.TRAIN, gen_kwargs=units)]

    def _generate_examples(
        self, places: Sequence[tuple[str, int]] = (), sources: Sequence[Source] = (), bands: Bands | None = None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for path, row_group in places:
            for row in _rows(read_row_group(path, row_group, SCHEMA.names)):
                yield row["name"], row
        settings = self._settings
        for source in sources:
            assert bands is not None
            tally = Tally()
            for row in source_rows(source, settings, bands, tally):
                yield row["name"], {name: None for name in SCHEMA.names} | row | {"image": row["image"].tobytes()}
            if tally.errors:
                raise ProductError(tally.errors[0])


def read_row_group(path: str | Path, row_group: int, columns: Sequence[str]) -> pa.Table:
    """Columns of a row group of a shard; ValueError where the file is damaged."""
    try:
        with pq.ParquetFile(path) as file:
            return file.read_row_group(row_group, columns=columns, use_threads=False)
    except (OSError, pa.ArrowException, IndexError) as error:
        raise ValueError(f"{path}: expected a whole shard, got {' '.join(str(error).split())}") from None


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for row, image in zip(table.drop_columns("image").to_pylist(), table.column("image"), strict=True):
        yield {**row, "image": image.as_py()}


def _one_array(column: pa.ChunkedArray) -> pa.BinaryArray:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


class _Storage(Protocol):
    """Where the tiles of a corpus are."""

    groups: np.ndarray
    groups_at_once: int
    shapes: np.ndarray

    def names(self, rows: np.ndarray) -> list[str]: ...

    def image(self, row: int) -> np.ndarray: ...


class CorpusTiles:
    """Tiles of a corpus by number, read from the disk when they are asked for (see `datasets_loading.tiles.Tiles`).

    An array may be a read-only view of the disk's pages: copy it to change it.

    Attributes:
        statistics: of all tiles of the corpus.
        groups_at_once: how many groups of tiles a reader keeps at hand.
    """

    def __init__(self, storage: _Storage, statistics: CorpusStatistics, rows: np.ndarray | None = None) -> None:
        self.statistics = statistics
        self.wavelengths = statistics.wavelengths
        self.fwhm = statistics.fwhm
        self.valid_bands = statistics.valid_bands
        self.nodata = statistics.nodata
        self.scale = statistics.scale
        self.groups_at_once = storage.groups_at_once
        self._storage = storage
        self._rows = np.arange(len(storage.shapes)) if rows is None else rows

    @property
    def num_bands(self) -> int:
        return len(self.valid_bands)

    @property
    def names(self) -> list[str]:
        return self._storage.names(self._rows)

    @property
    def shapes(self) -> np.ndarray:
        return self._storage.shapes[self._rows]

    @property
    def groups(self) -> np.ndarray:
        return self._storage.groups[self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._storage.image(int(self._rows[index]))

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[number] for number in range(len(self)))

    def select(self, numbers: Sequence[int]) -> CorpusTiles:
        """Some of the tiles, with the statistics of the whole corpus."""
        return CorpusTiles(self._storage, self.statistics, self._rows[np.asarray(numbers, dtype=np.int64)])

    def band_statistics(self, minimum: float, maximum: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each band's reflectance set to `minimum` to `maximum`, float64 (bands,) each.

        Those of the whole corpus where they were taken for that range; otherwise all tiles are read once.
        """
        if (minimum, maximum) == self.statistics.clip_range:
            return self.statistics.mean, self.statistics.std
        return band_statistics(self, minimum, maximum)


class _ArrowStorage:
    """Tiles of a `Dataset`: the pages of its Arrow files are the arrays."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.groups = np.arange(len(dataset))
        self.groups_at_once = TILES_AT_ONCE
        self.is_binary = "height" in dataset.column_names
        if self.is_binary:
            sizes = dataset.with_format("numpy", columns=["num_bands", "height", "width"])[:]
            self.num_bands = sizes["num_bands"].astype(np.int64)
            self.shapes = np.stack([sizes["height"], sizes["width"]], axis=1).astype(np.int64)
        else:
            shape = dataset.features["image"].shape
            self.num_bands = np.full(len(dataset), shape[0])
            self.shapes = np.tile(np.array(shape[1:]), (len(dataset), 1))
            self.dataset = dataset.with_format("numpy", dtype=np.int16, columns=["image"], output_all_columns=True)

    @cached_property
    def _images(self) -> tuple[list[pa.Array], np.ndarray]:
        """Chunks of the column, and the row at which each begins."""
        chunks = self.dataset.data.column("image").chunks
        return chunks, np.cumsum([0, *(len(chunk) for chunk in chunks)])

    def __getstate__(self) -> dict[str, Any]:
        # A copy in another process opens the files itself; the chunks would be sent as a copy of the corpus.
        return {name: value for name, value in self.__dict__.items() if name != "_images"}

    def names(self, rows: np.ndarray) -> list[str]:
        if "name" not in self.dataset.column_names:
            return [str(row) for row in rows]
        names = self.dataset.with_format(None).select_columns("name")[:]["name"]
        return [str(names[row]) for row in rows]

    def image(self, row: int) -> np.ndarray:
        if not self.is_binary:
            return self.dataset[row]["image"]
        chunks, starts = self._images
        number = int(np.searchsorted(starts, row, side="right")) - 1
        return _view(chunks[number], row - int(starts[number]), (int(self.num_bands[row]), *self.shapes[row].tolist()))


def _view(images: pa.BinaryArray, number: int, shape: tuple[int, int, int]) -> np.ndarray:
    """An image of a column without a copy, which Arrow's own access to one value would make; it cannot be written to.

    Raises:
        ValueError: the value has not as many bytes as the shape says.
    """
    _, offsets, values = images.buffers()
    start, end = np.frombuffer(offsets, np.int32, 2, 4 * (images.offset + number)).tolist()
    count = shape[0] * shape[1] * shape[2]
    if end - start != 2 * count:
        raise ValueError(f"expected an image of {2 * count} bytes as its size {shape} says, got {end - start}")
    image = np.frombuffer(values, "<i2", count, start).reshape(shape)
    # Pages of a file that is open for reading: writing to them would end the process.
    image.flags.writeable = False
    return image


class _ShardStorage:
    """Tiles of Parquet shards; the row groups used last are kept in memory."""

    def __init__(self, folder: Path, num_bands: int) -> None:
        self.num_bands = num_bands
        self.groups_at_once = ROW_GROUPS_AT_ONCE
        self._names: list[str] = []
        self.places: list[tuple[str, int]] = []
        shapes, groups, offsets = [], [], []
        records = read_records(folder)
        check_shards(folder, records)
        for path, row_group, tiles in row_groups(folder, records):
            for offset, (name, height, width) in enumerate(tiles):
                self._names.append(name)
                shapes.append((height, width))
                groups.append(len(self.places))
                offsets.append(offset)
            self.places.append((path, row_group))
        self.shapes = np.array(shapes, dtype=np.int64).reshape(-1, 2)
        self.groups = np.array(groups, dtype=np.int64)
        self.offsets = np.array(offsets, dtype=np.int64)
        self._cache: OrderedDict[int, pa.Array] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}

    def names(self, rows: np.ndarray) -> list[str]:
        return [self._names[row] for row in rows]

    def image(self, row: int) -> np.ndarray:
        group = int(self.groups[row])
        if group not in self._cache:
            # Room first: the memory of one row group is what a reader can be sure to have.
            while len(self._cache) >= self.groups_at_once:
                self._cache.popitem(last=False)
            self._cache[group] = _one_array(read_row_group(*self.places[group], ["image"]).column("image"))
        self._cache.move_to_end(group)
        return _view(self._cache[group], int(self.offsets[row]), (self.num_bands, *self.shapes[row].tolist()))


def read_corpus(name: str | Path, *, streaming: bool = False, split: str = "train") -> CorpusTiles:
    """Tiles of a corpus by number, on disk.

    Args:
        name: a folder written by scripts/prepare_enmap.py; or, with a column `image` of tiles and a column
            `wavelengths`, a dataset of the Hub or a folder written by `Dataset.save_to_disk`.
        streaming: read the shards of such a folder themselves, instead of an Arrow copy in the cache of `datasets`.
        split: split of a dataset of the Hub, or of a folder of `Dataset.save_to_disk`.

    Raises:
        ValueError: the corpus cannot be found, was not finished, is damaged, lacks a column, or its tiles differ in
            their bands.
        OSError: the Arrow copy cannot be written, as on a full disk.
    """
    folder = Path(name)
    if is_corpus(folder):
        statistics = CorpusStatistics.read(folder)
        if streaming:
            return CorpusTiles(_ShardStorage(folder, len(statistics.valid_bands)), statistics)
        builder = EnMAPCorpus(data_dir=str(folder.resolve()))
        try:
            builder.download_and_prepare()
        except DatasetGenerationError as error:
            raise error.__cause__ if isinstance(error.__cause__, ValueError | OSError) else error from None
        return CorpusTiles(_ArrowStorage(builder.as_dataset(split="train")), statistics)
    if streaming:
        raise ValueError(f"{name}: expected a folder written by prepare_enmap.py to stream from, got something else")
    try:
        dataset = load_dataset(str(name), split=split)
    except ValueError:  # load_dataset's way of saying that this is a folder of save_to_disk
        saved = load_from_disk(str(name))
        dataset = saved[split] if isinstance(saved, DatasetDict) else saved
    missing = {"image", "wavelengths"} - set(dataset.column_names)
    if missing:
        raise ValueError(f"{name}: expected columns `image` and `wavelengths`, got {', '.join(dataset.column_names)}")
    storage = _ArrowStorage(dataset)
    return CorpusTiles(storage, _measure(str(name), dataset, storage))


def _measure(name: str, dataset: Dataset, storage: _ArrowStorage) -> CorpusStatistics:
    """Statistics of a dataset that carries none: all tiles are read once."""
    wavelengths: np.ndarray | None = None
    for number, row in enumerate(dataset.with_format(None).select_columns("wavelengths")):
        given = np.asarray(row["wavelengths"], dtype=np.float64)
        wavelengths = given if wavelengths is None else wavelengths
        if given.shape != wavelengths.shape or np.abs(given - wavelengths).max() > WAVELENGTH_TOLERANCE:
            raise ValueError(
                f"{name}: expected the {len(wavelengths)} bands of the first tile, tile {number} has others"
            )
    assert wavelengths is not None
    valid_bands = np.ones(len(wavelengths), dtype=bool)
    for row in range(len(dataset)):
        valid_bands &= (storage.image(row) != ENMAP.nodata).any(axis=(1, 2))
    unknown = np.full(len(wavelengths), np.nan)
    return CorpusStatistics(
        num_tiles=len(dataset),
        wavelengths=wavelengths,
        fwhm=None,
        valid_bands=valid_bands,
        mean=unknown,
        std=unknown,
        clip_range=(np.nan, np.nan),
        nodata=ENMAP.nodata,
        scale=ENMAP.scale,
    )


def _content_hash(folder: Path) -> str:
    """Changes with the names, sizes and times of the files in a folder."""
    files: Mapping[str, tuple[int, int]] = {
        path.relative_to(folder).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
    return Hasher.hash(files)

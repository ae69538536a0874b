"""A corpus of tiles: how it is prepared, how it lies on disk, and how it is read.

A corpus on disk: sharded Parquet of int16 tiles, what each source gave, statistics of the bands, a dataset card.

    corpus/
        README.md               dataset card; plain `load_dataset("corpus")` reads the folder by it
        band_statistics.json    mean, standard deviation, range and validity of each band over all tiles
        settings.json           how tiles were cut, and the bands that they must have
        data/                   <source>-00000.parquet, ...: up to 256 tiles each
        sources/                <source>.json: tiles, statistics and shards of one product or group of GeoTIFF tiles

A source is finished when its file under `sources/` is there, which is written after its shards; the statistics and the
card are written after all sources. Every file appears whole, by a rename. `datasets_loading.corpus` fills the
folder, `datasets_loading.corpus` reads it.

From EnMAP products and GeoTIFF tiles to a corpus of sharded tiles, by one process, several, or a Dask cluster.

`prepare_corpus` finds the sources under a folder, hands those that are not finished yet to workers (`local_executor`,
`cluster_executor`), and writes statistics and dataset card at the end. A worker holds a row of windows of one product
in memory, never a scene. What stands on disk at the end (`datasets_loading.corpus`) does not depend on the number of
workers, nor on how often the work was interrupted.

Corpora of EnMAP tiles as Hugging Face datasets, and as tiles to cut training windows from.

    from datasets_loading.corpus import EnMAPCorpus

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

import json
import logging
import math
import os
import re
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
from affine import Affine
from datasets import Dataset, DatasetDict, Features, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher
from filelock import FileLock, Timeout
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.transform import xy as pixel_coordinates
from rasterio.warp import transform as transform_coordinates
from rasterio.windows import Window
from rasterio.windows import transform as window_transform
from tqdm.auto import tqdm

from datasets_loading.enmap_product import EnMAPProduct
from datasets_loading.raster_file import ProductError
from datasets_loading.rasters import Raster
from datasets_loading.sensors import ENMAP
from datasets_loading.tiles import (
    Notes,
    RunningStatistics,
    Sources,
    band_statistics,
    cut_product,
    find_sources,
    open_image,
)
from datasets_loading.wavelengths import WAVELENGTH_TOLERANCE, check_same_bands

# One binary value per tile: read 4 to 5 times faster than nested lists (`Array3D`), and without a copy once it is in
# Arrow. Half the columns are missing in a GeoTIFF tile that states neither product nor place.
SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("image", pa.binary()),
        ("num_bands", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("product", pa.string()),
        ("row", pa.int32()),
        ("column", pa.int32()),
        ("acquisition_time", pa.timestamp("us", tz="UTC")),
        ("sun_elevation", pa.float64()),
        ("crs", pa.string()),
        ("transform", pa.list_(pa.float64())),
        ("longitude", pa.float64()),
        ("latitude", pa.float64()),
        ("cloud_share", pa.float64()),
        ("nodata_share", pa.float64()),
        ("wavelengths", pa.list_(pa.float64())),
        ("fwhm", pa.list_(pa.float64())),
    ]
)
"""Columns of a shard."""

COLUMNS = {
    "name": "name of the tile: that of its product, with the column and row of its upper left pixel",
    "image": "stored numbers, little-endian int16, in the order (bands, height, width), bands in ascending wavelength",
    "num_bands": "bands of the image",
    "height": "height of the image in pixels",
    "width": "width of the image in pixels",
    "product": "name of the product; null for a GeoTIFF tile",
    "row": "first row in the product, or in the GeoTIFF tile",
    "column": "first column in the product, or in the GeoTIFF tile",
    "acquisition_time": "start of the product's acquisition, UTC; null for a GeoTIFF tile",
    "sun_elevation": "sun elevation at the centre of the product in degrees; null for a GeoTIFF tile",
    "crs": "coordinate reference system, as an EPSG code or WKT; null where the file has none",
    "transform": "a, b, c, d, e, f: x = a * column + b * row + c and y = d * column + e * row + f, in the tile",
    "longitude": "longitude of the tile's centre in degrees (WGS 84)",
    "latitude": "latitude of the tile's centre in degrees (WGS 84)",
    "cloud_share": "share of the pixels classified as cloud; null for a GeoTIFF tile",
    "nodata_share": "share of the pixels off the swath or without data",
    "wavelengths": "band centres in nm, ascending; null where the file states none",
    "fwhm": "full width at half maximum of each band in nm",
}
"""What the columns hold."""

TILES_PER_ROW_GROUP = 16
"""Tiles that are compressed together, and so read together: 29 MB of 224 bands and 64 x 64 pixels."""

TILES_PER_SHARD = 256
"""At most 470 MB of such tiles, about two thirds of it compressed."""

CLIP_RANGE = (-0.02, 1.0)
"""Reflectance is set to this range before means and deviations are taken, as HSST's image processor does."""

CITATION = """\
@article{storch2023enmap,
  title = {The {EnMAP} imaging spectroscopy mission towards operations},
  author = {Storch, Tobias and others},
  journal = {Remote Sensing of Environment},
  volume = {294},
  pages = {113632},
  year = {2023}
}
"""

LICENCE_NOTE = (
    "EnMAP data (c) DLR. They are free after registration and may not be re-published as they are: share the recipe "
    "(product names and the command), not the pixels. Tiles of simulated products may be shared."
)


def tile_image(row: Mapping[str, Any]) -> np.ndarray:
    """The image of a row that `datasets` gives, int16 (bands, height, width): a read-only view of its bytes."""
    return np.frombuffer(row["image"], dtype="<i2").reshape(row["num_bands"], row["height"], row["width"])


def write_whole(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Writes a file that appears under its name only when it is whole, and is on the disk by then.

    Raises:
        OSError: the file cannot be written, as on a full disk; nothing of it is left.
    """
    unfinished = unfinished_name(path)
    try:
        with unfinished.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def unfinished_name(path: Path) -> Path:
    """A hidden name beside `path` that no other writer, on this machine or another, takes."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole, as `write_whole` does."""
    write_whole(path, lambda file: _write_bytes(file, text.encode()))


def _write_bytes(file: IO[bytes], content: bytes) -> None:
    file.write(content)


@dataclass(eq=False)
class SourceRecord:
    """What one source, a product or a group of GeoTIFF tiles, gave to a corpus.

    Attributes:
        name: name of the source, safe as a file name.
        files: files of a group of tiles with their sizes in bytes; empty for a product, which its name identifies.
        shards: its files under `data/`, with their sizes in bytes, and name, height and width of each of their tiles.
        num_skipped: windows that were left out, being outside the swath or cloudy.
        errors: a line for every file of a group that could not be used.
        wavelengths: band centres in nm (bands,), or None.
        fwhm: full width at half maximum in nm (bands,), or None.
        valid_bands: which bands hold data (bands,).
        minimum: smallest stored number of each band, where there are data (bands,).
        maximum: largest stored number of each band (bands,).
        statistics: of the reflectance clipped to `CLIP_RANGE`, as `RunningStatistics.to_dict` gives them.
    """

    name: str
    files: list[list[Any]]
    wavelengths: list[float] | None
    fwhm: list[float] | None
    shards: list[dict[str, Any]] = field(default_factory=list)
    num_skipped: int = 0
    errors: list[str] = field(default_factory=list)
    valid_bands: list[bool] = field(default_factory=list)
    minimum: list[int] = field(default_factory=list)
    maximum: list[int] = field(default_factory=list)
    statistics: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def num_tiles(self) -> int:
        return sum(len(shard["tiles"]) for shard in self.shards)

    def write(self, folder: Path) -> None:
        """Writes `sources/<name>.json`: from then on the source is finished."""
        write_text(folder / "sources" / f"{self.name}.json", json.dumps(asdict(self)) + "\n")

    @classmethod
    def read(cls, path: Path) -> SourceRecord:
        """Raises ValueError where the file is not one of these."""
        try:
            return cls(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: expected what prepare_enmap.py writes, got {error}") from None


def read_records(folder: Path) -> list[SourceRecord]:
    """The finished sources of a corpus, in the order of their names; ValueError where a file is damaged."""
    return [SourceRecord.read(path) for path in sorted((folder / "sources").glob("[!.]*.json"))]


def row_groups(folder: Path, records: Iterable[SourceRecord]) -> Iterator[tuple[str, int, list[list[Any]]]]:
    """Every row group: path of its shard, its number there, and name, height and width of its tiles."""
    for record in records:
        for shard in record.shards:
            size = shard["tiles_per_row_group"]
            for number, start in enumerate(range(0, len(shard["tiles"]), size)):
                yield str(folder / "data" / shard["file"]), number, shard["tiles"][start : start + size]


def check_shards(folder: Path, records: Iterable[SourceRecord]) -> None:
    """Raises ValueError where a shard is missing or has not the size that it was written with."""
    for record in records:
        for shard in record.shards:
            path = folder / "data" / shard["file"]
            size = path.stat().st_size if path.is_file() else None
            if size != shard["bytes"]:
                got = "none" if size is None else f"{size}"
                raise ValueError(f"{path}: expected a whole shard of {shard['bytes']} bytes, got {got}")


def are_whole(folder: Path, record: SourceRecord) -> bool:
    """Whether all shards of a source are there, with the sizes that they were written with."""
    try:
        check_shards(folder, [record])
    except ValueError:
        return False
    return True


class ShardWriter(AbstractContextManager["ShardWriter"]):
    """Writes the tiles of one source into shards.

    As a context manager: where the block ends with an error, nothing is left; otherwise every shard has its name.
    The same tiles give the same bytes.

    Args:
        folder: folder of the corpus.
        record: the source; its shards, statistics and ranges of bands are filled in.
    """

    def __init__(self, folder: Path, record: SourceRecord) -> None:
        self.folder = folder
        self.record = record
        self._unfinished: list[tuple[Path, Path]] = []
        self._rows: list[dict[str, Any]] = []
        self._file: IO[bytes] | None = None
        self._writer: pq.ParquetWriter | None = None
        self._statistics: RunningStatistics | None = None

    def write(self, row: dict[str, Any]) -> None:
        """Takes in a tile: a row of `SCHEMA`, with the image as int16 (bands, height, width).

        Raises:
            OSError: it cannot be written, as on a full disk.
        """
        image = row["image"]
        if self._statistics is None:
            self._statistics = RunningStatistics(len(image))
            self._minimum = np.full(len(image), np.iinfo(np.int16).max, dtype=np.int16)
            self._maximum = np.full(len(image), ENMAP.nodata, dtype=np.int16)
        has_data = image != ENMAP.nodata
        self._statistics.update(np.clip(image / ENMAP.scale, *CLIP_RANGE), has_data)
        lowest = image.min(axis=(1, 2), where=has_data, initial=np.iinfo(np.int16).max)
        self._minimum = np.minimum(self._minimum, lowest)
        self._maximum = np.maximum(self._maximum, image.max(axis=(1, 2)))
        if not self.record.shards or len(self.record.shards[-1]["tiles"]) == TILES_PER_SHARD:
            self._start_shard()
        self.record.shards[-1]["tiles"].append([row["name"], row["height"], row["width"]])
        # A copy as bytes: pyarrow (26) never frees what it was given as a memoryview.
        self._rows.append({**row, "image": np.asarray(image, dtype="<i2").tobytes()})
        if len(self._rows) == TILES_PER_ROW_GROUP:
            self._write_rows()

    def _start_shard(self) -> None:
        self._end_shard()
        file_name = f"{self.record.name}-{len(self.record.shards):05d}.parquet"
        path = self.folder / "data" / file_name
        unfinished = unfinished_name(path)
        self._unfinished.append((unfinished, path))
        self._file = unfinished.open("wb")
        others = [name for name in SCHEMA.names if name != "image"]
        # Levels above 1 win 2 % of the size and cost a fifth of the reading speed. Statistics of an image would be
        # its first and last bytes.
        self._writer = pq.ParquetWriter(
            self._file,
            SCHEMA,
            compression="zstd",
            compression_level=1,
            use_dictionary=others,
            write_statistics=others,
        )
        self.record.shards.append({"file": file_name, "tiles_per_row_group": TILES_PER_ROW_GROUP, "tiles": []})

    def _write_rows(self) -> None:
        if self._rows:
            assert self._writer is not None
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=SCHEMA))
            self._rows.clear()

    def _end_shard(self) -> None:
        if self._writer is not None and self._file is not None:
            self._write_rows()
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._writer = self._file = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._end_shard()
                for shard, (unfinished, path) in zip(self.record.shards, self._unfinished, strict=True):
                    shard["bytes"] = unfinished.stat().st_size
                    unfinished.rename(path)
                if self._statistics is not None:
                    self.record.statistics = self._statistics.to_dict()
                    self.record.minimum, self.record.maximum = self._minimum.tolist(), self._maximum.tolist()
        finally:
            if self._writer is not None:
                self._abandon()
            for unfinished, _ in self._unfinished:
                unfinished.unlink(missing_ok=True)

    def _abandon(self) -> None:
        assert self._file is not None
        self._writer = None
        try:
            self._file.close()
        except OSError:
            # What was buffered does not fit on the disk either; the file is removed anyway.
            pass


@dataclass(eq=False)
class CorpusStatistics:
    """What `band_statistics.json` says of the tiles of a corpus.

    Attributes:
        num_tiles: number of tiles.
        wavelengths: band centres in nm, ascending, float64 (bands,), or None where no tile states them.
        fwhm: full width at half maximum in nm, float64 (bands,), or None.
        valid_bands: which bands hold data in every source, bool (bands,).
        mean: mean reflectance of each band, clipped to `clip_range`, float64 (bands,); NaN without data.
        std: its standard deviation, float64 (bands,); NaN without data.
        clip_range: reflectance was set to this range before.
        nodata: stored number of a pixel without data.
        scale: stored number of a reflectance of 1.
    """

    num_tiles: int
    wavelengths: np.ndarray | None
    fwhm: np.ndarray | None
    valid_bands: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    clip_range: tuple[float, float]
    nodata: int
    scale: float

    @classmethod
    def read(cls, folder: Path) -> CorpusStatistics:
        """Raises ValueError where the folder is not a finished corpus."""
        path = folder / STATISTICS_NAME
        try:
            content = json.loads(path.read_text())
            numbers = {
                name: None if content[name] is None else np.array(content[name], dtype=np.float64)
                for name in ("wavelengths", "fwhm", "mean", "std")
            }
            return cls(
                num_tiles=content["num_tiles"],
                valid_bands=np.array(content["valid_bands"], dtype=bool),
                clip_range=tuple(content["clip_range"]),
                nodata=content["nodata"],
                scale=content["scale"],
                **numbers,  # type: ignore[arg-type]
            )
        except FileNotFoundError:
            raise ValueError(
                f"{folder}: expected a finished corpus, got none with a {STATISTICS_NAME}; "
                "run prepare_enmap.py to its end"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: expected what prepare_enmap.py writes, got {error}") from None


STATISTICS_NAME = "band_statistics.json"
CARD_NAME = "README.md"
SETTINGS_NAME = "settings.json"


def is_corpus(folder: str | Path) -> bool:
    """Whether a folder is a corpus, finished or not."""
    return (Path(folder) / SETTINGS_NAME).is_file()


def write_statistics_and_card(folder: Path, records: Iterable[SourceRecord], settings: Mapping[str, Any]) -> None:
    """Finishes a corpus: writes `band_statistics.json` from the statistics of its sources, and the dataset card.

    The same records in the same order give the same bytes.

    Raises:
        OSError: a file cannot be written.
    """
    records = list(records)
    first = records[0]
    merged = RunningStatistics(len(first.valid_bands))
    for record in records:
        merged.merge(RunningStatistics.from_dict(record.statistics))
    minimum = np.min([record.minimum for record in records], axis=0)
    maximum = np.max([record.maximum for record in records], axis=0)
    # A band with one number in all pixels of all tiles holds a filling, not data.
    valid_bands = np.all([record.valid_bands for record in records], axis=0) & (minimum < maximum)
    has_data = merged.count > 0
    content = {
        "num_tiles": sum(record.num_tiles for record in records),
        "num_sources": len(records),
        "scale": ENMAP.scale,
        "nodata": ENMAP.nodata,
        "clip_range": list(CLIP_RANGE),
        "wavelengths": first.wavelengths,
        "fwhm": first.fwhm,
        "valid_bands": valid_bands.tolist(),
        "mean": _with_null(merged.mean),
        "std": _with_null(merged.std),
        "minimum": _with_null(np.where(has_data, minimum, np.nan)),
        "maximum": _with_null(np.where(has_data, maximum, np.nan)),
        "count": merged.count.tolist(),
    }
    write_text(folder / STATISTICS_NAME, one_line_per_entry(content))
    write_text(folder / CARD_NAME, _card(records, settings, valid_bands))


def one_line_per_entry(content: Mapping[str, Any]) -> str:
    """JSON in which lists of bands stay on one line."""
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in content.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _with_null(values: np.ndarray) -> list[float | None]:
    """Numbers for JSON, which knows no NaN."""
    return [None if math.isnan(value) else value for value in values.tolist()]


def _card(records: list[SourceRecord], settings: Mapping[str, Any], valid_bands: np.ndarray) -> str:
    tiles = [tile for record in records for shard in record.shards for tile in shard["tiles"]]
    num_bytes = sum(2 * len(valid_bands) * height * width for _, height, width in tiles)
    features = "\n".join(f"  - name: {column.name}\n    " + _feature(column.type) for column in SCHEMA)
    columns = "\n".join(f"| `{name}` | {meaning} |" for name, meaning in COLUMNS.items())
    size = settings["tile_size"]
    wavelengths = records[0].wavelengths
    span = f" from {wavelengths[0]:g} to {wavelengths[-1]:g} nm" if wavelengths else ""
    return f"""\
---
pretty_name: EnMAP tiles
license: other
tags:
- hyperspectral
- remote-sensing
- EnMAP
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
dataset_info:
  features:
{features}
  splits:
  - name: train
    num_bytes: {num_bytes}
    num_examples: {len(tiles)}
---
# EnMAP tiles

{len(tiles)} tiles of {len(records)} sources (EnMAP L2A products, or groups of GeoTIFF tiles) with {len(valid_bands)}
bands{span}, {int(valid_bands.sum())} of which hold data in every source. Tiles have at most {size} x {size} pixels.
Those with more than {settings["max_nodata"]:.0%} of their pixels without data, or more than
{settings["max_cloud"]:.0%} under cloud, were left out.

```python
import numpy as np
from datasets import load_dataset

row = load_dataset("path/to/this/folder", split="train")[0]
image = np.frombuffer(row["image"], dtype="<i2").reshape(row["num_bands"], row["height"], row["width"])
reflectance = np.where(image == {ENMAP.nodata}, np.nan, image / {ENMAP.scale:g})
```
With the package `hsst`: `datasets_loading.corpus.tile_image(row)`, and `datasets_loading.corpus.EnMAPCorpus` for
reading faster than that.

| column | content |
|---|---|
{columns}

`{STATISTICS_NAME}` holds mean, standard deviation, smallest and largest number and validity of each band over
all tiles (reflectance set to {CLIP_RANGE[0]:g} to {CLIP_RANGE[1]:g} before); `sources/` holds the same for each
source, and the names of its tiles.

## Licence
{LICENCE_NOTE}

## Citation
```bibtex
{CITATION}```
"""


def _feature(kind: pa.DataType) -> str:
    """A column's type in the words of a dataset card."""
    if pa.types.is_list(kind):
        return f"list: {_value_name(kind.value_type)}"
    return f"dtype: {_value_name(kind)}"


def _value_name(kind: pa.DataType) -> str:
    return {"double": "float64", "float": "float32"}.get(str(kind), str(kind))


logger = logging.getLogger(__name__)

TILE_FILES_PER_SOURCE = 256
"""GeoTIFF tiles of one folder that are prepared, and after an interruption prepared anew, together."""

_LARGEST_BLOCK_CACHE = 512_000_000


@dataclass(frozen=True)
class CutSettings:
    """How sources are cut into tiles.

    Attributes:
        tile_size: side of a tile in pixels; smaller GeoTIFF tiles stay as they are.
        max_nodata: largest share of a tile's pixels off the swath or without data.
        max_cloud: largest share of a tile's pixels classified as cloud.
        wavelength_file, scale, nodata, variable, radiance: how to read images that do not say so themselves, as for
            `datasets_loading.rasters.open_raster`.

    Raises:
        ValueError: a number is out of its range.
    """

    tile_size: int = 64
    max_nodata: float = 0.5
    max_cloud: float = 0.1
    wavelength_file: str | None = None
    scale: float | None = None
    nodata: float | None = None
    variable: str | None = None
    radiance: bool = False

    @property
    def reading(self) -> dict[str, Any]:
        """How to open an image."""
        return {
            "wavelengths": self.wavelength_file,
            "scale": self.scale,
            "nodata": self.nodata,
            "variable": self.variable,
            "radiance": self.radiance,
        }

    def __post_init__(self) -> None:
        if self.tile_size < 1:
            raise ValueError(f"tile_size: expected at least 1 pixel, got {self.tile_size}")
        for name in ("max_nodata", "max_cloud"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share from 0 to 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Bands:
    """The bands that all tiles of a corpus have.

    Attributes:
        num_bands: their number.
        wavelengths: their centres in nm, ascending, or None where tiles state none.
        first_source: path of the source they were taken from.
    """

    num_bands: int
    wavelengths: tuple[float, ...] | None
    first_source: str

    def check(self, num_bands: int, wavelengths: np.ndarray | None, path: Path) -> None:
        """Raises ProductError where the source at `path` has other bands."""
        expected = None if self.wavelengths is None else np.array(self.wavelengths)
        check_same_bands(path, num_bands, wavelengths, self.num_bands, expected, self.first_source)


@dataclass(frozen=True)
class Source:
    """A product, or a group of GeoTIFF tiles of one folder.

    Attributes:
        name: name of the product, or of the group; safe as a file name.
        paths: what to open: one product, or each tile.
        is_product: which of the two it is.
        root: folder that the names of tiles are relative to.
    """

    name: str
    paths: tuple[Path, ...]
    is_product: bool
    root: Path


@dataclass(eq=False)
class Tally:
    """What a source turned out to be, besides its tiles; filled in while they are read.

    Attributes:
        wavelengths: band centres in nm, float64 (bands,), or None.
        fwhm: full width at half maximum in nm, float64 (bands,), or None.
        valid_bands: bands that hold data in every GeoTIFF tile, or in any tile of the product, bool (bands,).
        num_skipped: windows left out, being outside the swath or cloudy.
        errors: a line for each GeoTIFF tile that could not be used.
    """

    wavelengths: np.ndarray | None = None
    fwhm: np.ndarray | None = None
    valid_bands: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    num_skipped: int = 0
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What became of a source: its tiles, the windows left out, and a line for each file that could not be used."""

    source: str
    num_tiles: int
    num_skipped: int
    errors: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What became of a corpus.

    Attributes:
        num_tiles: tiles in the corpus, with those of earlier runs.
        num_sources: products and groups of tiles in it.
        num_skipped: windows left out.
        errors: a line for each product or tile that could not be used.
    """

    num_tiles: int
    num_sources: int
    num_skipped: int
    errors: tuple[str, ...]


def prepare_corpus(
    data_dir: str | Path,
    output_dir: str | Path,
    settings: CutSettings | None = None,
    *,
    executor: Executor | None = None,
    strict: bool = False,
    progress: bool = True,
) -> Report:
    """Makes a corpus of everything that can be trained on under a folder, or adds to it what is not there yet.

    Args:
        data_dir: a folder of EnMAP products (folders or ZIPs) and GeoTIFF tiles at any depth, or one product.
        output_dir: folder of the corpus; made where it does not exist. Products finished by an earlier run are kept.
        settings: how to cut; the defaults of `CutSettings` if not given.
        executor: where sources are prepared; this process by default.
        strict: stop at the first source that cannot be used, instead of leaving it out.
        progress: show a progress bar.

    Returns:
        What the corpus holds, and what could not be used.

    Raises:
        ProductError: no source can be used, or one cannot and `strict` is set.
        ValueError: the folder holds something else, was cut otherwise, or is being written by another run.
        OSError: a file cannot be written, as on a full disk, or a worker died. Nothing half-written is left; what was
            finished stays, and a later run goes on from there.
    """
    settings = CutSettings() if settings is None else settings
    data_dir, output_dir = Path(data_dir).resolve(), Path(output_dir).resolve()
    found = find_sources(data_dir)
    _make_folders(output_dir)
    lock = FileLock(output_dir / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"{output_dir}: expected no other run that writes there, got one") from None
    try:
        records = _remove_leftovers(output_dir)
        sources, outcomes = plan_sources(data_dir, found, settings, progress)
        _stop_at_error(outcomes, strict)
        bands = _settle_bands(output_dir, settings, sources, records)
        todo = []
        for source in sources:
            record = records.get(source.name)
            if record is None:
                todo.append(source)
            elif record.files != _sizes(source):
                outcomes.append(_other_files(source, output_dir))
        _stop_at_error(outcomes, strict)
        if todo:
            for name in (CARD_NAME, STATISTICS_NAME):
                (output_dir / name).unlink(missing_ok=True)
        with tqdm(total=len(sources), initial=len(sources) - len(todo), unit="source", disable=not progress) as bar:
            bar.set_description("preparing")
            for outcome in _run(todo, output_dir, settings, bands, executor):
                outcomes.append(outcome)
                bar.update()
                bar.set_postfix(tiles=sum(done.num_tiles for done in outcomes))
                _stop_at_error([outcome], strict)
        finished = read_records(output_dir)
        errors = tuple(error for outcome in sorted(outcomes, key=_by_source) for error in outcome.errors)
        if not finished:
            raise ProductError(_nothing_usable(data_dir, errors))
        write_statistics_and_card(output_dir, finished, asdict(settings))
    finally:
        lock.release()
    return Report(
        num_tiles=sum(record.num_tiles for record in finished),
        num_sources=len(finished),
        num_skipped=sum(record.num_skipped for record in finished),
        errors=errors,
    )


@contextmanager
def local_executor(num_workers: int) -> Iterator[Executor | None]:
    """Processes of this machine, or None for one worker, which is the calling process itself.

    Raises:
        OSError: a worker was killed, as for lack of memory.
    """
    if num_workers <= 1:
        yield None
        return
    # Started afresh: threads of the raster and Parquet libraries do not survive a fork.
    with ProcessPoolExecutor(num_workers, get_context("spawn"), initializer=_end_with_parent) as executor:
        try:
            yield executor
        except BrokenExecutor:
            raise OSError(
                "expected workers to stay alive, but one was killed, perhaps for lack of memory: run again with a "
                "lower --num_workers"
            ) from None
        finally:
            executor.shutdown(cancel_futures=True)


@contextmanager
def cluster_executor(scheduler: str) -> Iterator[Executor]:
    """Workers of a Dask cluster, which must see the same folders under the same paths and have this package.

    Args:
        scheduler: address of the scheduler, as `tcp://host:8786`.

    Raises:
        ValueError: dask is not installed.
        OSError: the scheduler does not answer, or workers die again and again.
    """
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise ValueError(
            '--dask_scheduler: expected the package distributed, got none: pip install "hsst[cluster]"'
        ) from None
    with Client(scheduler, set_as_default=False) as client:
        try:
            yield client.get_executor(pure=False)
        except KilledWorker as error:
            raise OSError(f"{scheduler}: expected workers to stay alive, but they died: {error}") from None


def prepare_source(source: Source, folder: Path, settings: CutSettings, bands: Bands) -> Outcome:
    """Writes the shards of one source and, after them, its record. The work of one worker.

    Raises:
        OSError: a file cannot be written; nothing half-written is left.
    """
    tally = Tally()
    record = SourceRecord(source.name, _sizes(source), None, None)
    try:
        with ShardWriter(folder, record) as writer:
            for row in source_rows(source, settings, bands, tally):
                writer.write(row)
    except ProductError as error:
        return Outcome(source.name, 0, tally.num_skipped, (*tally.errors, str(error)))
    except OSError as error:
        raise _with_place(error, folder, source) from error
    if not record.num_tiles:
        if not tally.errors:
            tally.errors.append(_none_passes(source, settings, tally.num_skipped))
        return Outcome(source.name, 0, tally.num_skipped, tuple(tally.errors))
    record.wavelengths = None if tally.wavelengths is None else tally.wavelengths.tolist()
    record.fwhm = None if tally.fwhm is None else tally.fwhm.tolist()
    record.valid_bands = tally.valid_bands.tolist()
    record.num_skipped, record.errors = tally.num_skipped, tally.errors
    try:
        record.write(folder)
    except OSError as error:
        for shard in record.shards:
            (folder / "data" / shard["file"]).unlink(missing_ok=True)
        raise _with_place(error, folder, source) from error
    return Outcome(source.name, record.num_tiles, record.num_skipped, tuple(record.errors))


def source_rows(source: Source, settings: CutSettings, bands: Bands, tally: Tally) -> Iterator[dict[str, Any]]:
    """Rows of `datasets_loading.corpus.SCHEMA` with the image as an int16 array, in an order that names decide.

    Args:
        source: the product or group of tiles.
        settings: how to cut.
        bands: the bands it must have.
        tally: is filled in on the way.

    Raises:
        ProductError: the product is damaged or has other bands. A tile in that state is left out.
    """
    return (_product_rows if source.is_product else _tile_rows)(source, settings, bands, tally)


def _with_place(error: OSError, folder: Path, source: Source) -> OSError:
    return OSError(error.errno, error.strerror or str(error), str(folder / "data" / source.name))


def _product_rows(source: Source, settings: CutSettings, bands: Bands, tally: Tally) -> Iterator[dict[str, Any]]:
    (path,) = source.paths
    with EnMAPProduct.open(path, radiance=settings.radiance) as product:
        bands.check(product.num_bands, product.wavelengths, path)
        if product.notes:
            logger.warning("%s: %s", path, "; ".join(product.notes))
        tally.wavelengths, tally.fwhm = product.wavelengths, product.fwhm
        tally.valid_bands = np.zeros(product.num_bands, dtype=bool)
        cuts = cut_product(product, settings.tile_size, settings.max_nodata, settings.max_cloud)
        block_cache = _block_cache(product, settings.tile_size)
        while True:
            # The raster library would keep up to a twentieth of the machine's memory: as much of a scene as fits.
            with rasterio.Env(GDAL_CACHEMAX=block_cache):
                tiles, num_skipped = next(cuts, (None, 0))
            if tiles is None:
                return
            tally.num_skipped += num_skipped
            for tile in tiles:
                tally.valid_bands |= product.valid_bands & (tile.image != ENMAP.nodata).any(axis=(1, 2))
                yield {
                    "name": tile.name,
                    "image": tile.image,
                    "product": product.name,
                    "row": tile.row,
                    "column": tile.column,
                    "acquisition_time": product.acquisition_time,
                    "sun_elevation": product.sun_elevation,
                    "cloud_share": tile.cloud_share,
                    "nodata_share": tile.outside_share,
                    "wavelengths": product.wavelengths,
                    "fwhm": product.fwhm,
                    **_size_and_place(tile.image, tile.row, tile.column, product.crs, product.transform),
                }


def _tile_rows(source: Source, settings: CutSettings, bands: Bands, tally: Tally) -> Iterator[dict[str, Any]]:
    notes = Notes()
    for path in source.paths:
        num_rows = 0
        try:
            with open_image(path, **settings.reading) as raster:
                notes.add(path, raster.notes)
                bands.check(raster.num_bands, raster.wavelengths, path)
                name = path.relative_to(source.root).with_suffix("").as_posix()
                for row in _image_rows(raster, name, settings, tally):
                    num_rows += 1
                    yield row
        except ProductError as error:
            kept = f"; {num_rows} tiles before the damage are kept" if num_rows else ""
            tally.errors.append(f"{error}{kept}")
    notes.tell(source.root)


def _image_rows(raster: Raster, name: str, settings: CutSettings, tally: Tally) -> Iterator[dict[str, Any]]:
    """Tiles of an image, of which no more than a row of them is held in memory."""
    if not tally.valid_bands.size:
        tally.wavelengths, tally.fwhm = raster.wavelengths, raster.fwhm
        tally.valid_bands = np.ones(raster.num_bands, dtype=bool)
    height, width = (min(settings.tile_size, side) for side in raster.shape[1:])
    any_data = False
    for row in range(0, raster.height - height + 1, height):
        strip = raster.read_stored(Window(0, row, raster.width, height))
        for column in range(0, raster.width - width + 1, width):
            image = np.ascontiguousarray(strip[:, :, column : column + width])
            has_data = image != ENMAP.nodata
            nodata_share = float(1 - has_data.any(axis=0).mean())
            any_data |= nodata_share < 1
            if nodata_share > settings.max_nodata or nodata_share == 1:
                tally.num_skipped += 1
                continue
            tally.valid_bands &= has_data.any(axis=(1, 2))
            yield {
                "name": name if image.shape == raster.shape else f"{name}_x{column:05d}_y{row:05d}",
                "image": image,
                "row": row,
                "column": column,
                "nodata_share": nodata_share,
                "wavelengths": raster.wavelengths,
                "fwhm": raster.fwhm,
                **_size_and_place(image, row, column, raster.crs, raster.transform),
            }
    if not any_data:
        pixels = raster.height * raster.width
        raise ProductError(f"{raster.path}: expected pixels with data, got nodata in all {pixels} pixels")


def _size_and_place(
    image: np.ndarray, row: int, column: int, crs: CRS | None, source_transform: Affine | None
) -> dict[str, Any]:
    num_bands, height, width = image.shape
    size = {"num_bands": num_bands, "height": height, "width": width}
    if not crs or source_transform is None:
        return size
    transform = window_transform(Window(column, row, width, height), source_transform)
    x, y = pixel_coordinates(transform, height / 2, width / 2, offset="ul")
    try:
        longitudes, latitudes = transform_coordinates(crs, "EPSG:4326", [x], [y])[:2]
        centre = {"longitude": longitudes[0], "latitude": latitudes[0]}
    except CRSError:
        # As of a local grid, which has no place on Earth.
        centre = {}
    return {**size, **centre, "crs": crs.to_string(), "transform": list(transform)[:6]}


def _block_cache(product: EnMAPProduct, tile_size: int) -> int:
    """Bytes of the blocks that a row of windows lies in, so that none is decoded twice; bounded all the same."""
    block_height = min(product.block_shape[0], product.shape[0])
    blocks = -(-tile_size // block_height)
    if block_height % tile_size and tile_size % block_height:
        blocks += 1
    needed = blocks * block_height * (product.shape[1] + product.block_shape[1]) * product.num_bands * 2
    return min(needed + 16_000_000, _LARGEST_BLOCK_CACHE)


def plan_sources(
    data_dir: Path, found: Sources, settings: CutSettings, progress: bool
) -> tuple[list[Source], list[Outcome]]:
    """Sources in an order that paths decide, and what is known to be unusable before any raster is read."""
    sources: dict[str, Source] = {}
    outcomes = [
        Outcome(path.name, 0, 0, (f"{path}: expected products or images, got an archive: unpack it first",))
        for path in found.archives
    ]
    for path in tqdm(found.products, desc="reading metadata", unit="product", disable=not progress, leave=False):
        try:
            with EnMAPProduct.open(path, radiance=settings.radiance) as product:
                name = _safe_name(product.name)
            if name in sources:
                raise ProductError(f"{path}: expected each product once, got {name} in {sources[name].paths[0]} too")
            sources[name] = Source(name, (path,), True, data_dir)
        except ProductError as error:
            outcomes.append(Outcome(path.name, 0, 0, (str(error),)))
    folders: dict[Path, list[Path]] = {}
    for path in found.images:
        folders.setdefault(path.parent, []).append(path)
    for folder, files in folders.items():
        inner = folder.relative_to(data_dir).parts if folder != data_dir else (folder.name,)
        for number, start in enumerate(range(0, len(files), TILE_FILES_PER_SOURCE)):
            name = _safe_name("-".join(("tiles", *inner, f"{number:05d}")))
            group = tuple(files[start : start + TILE_FILES_PER_SOURCE])
            if name in sources:
                # As of the folders "a/b" and "a-b".
                reason = (
                    f"{folder}: expected folders that differ in letters or digits, got {sources[name].paths[0].parent}"
                )
                outcomes.append(Outcome(name, 0, 0, (reason,)))
            else:
                sources[name] = Source(name, group, False, data_dir)
    return list(sources.values()), outcomes


def _settle_bands(
    folder: Path, settings: CutSettings, sources: Sequence[Source], records: dict[str, SourceRecord]
) -> Bands:
    """The bands of the corpus: those of its first run, else of the first source that can be read."""
    path = folder / SETTINGS_NAME
    if records and path.is_file():
        content = json.loads(path.read_text())
        # As text, for the nodata value NaN is not equal to itself
        own = {name: json.dumps(value) for name, value in asdict(settings).items()}
        usual = asdict(CutSettings())
        cut = {name: json.dumps(content.get(name, usual[name])) for name in own}
        if cut != own:
            changed = ", ".join(f"{name} {cut[name]}" for name in cut if cut[name] != own[name])
            raise ValueError(
                f"{folder}: expected the settings of its first run ({changed}), got others: use another --output_dir"
            )
        wavelengths = content["wavelengths"]
        return Bands(content["num_bands"], wavelengths and tuple(wavelengths), content["first_source"])
    bands = first_bands(sources, settings)
    write_text(path, one_line_per_entry({**asdict(settings), **asdict(bands)}))
    return bands


def first_bands(sources: Sequence[Source], settings: CutSettings) -> Bands:
    """The bands of the first source that can be read."""
    for source in sources:
        for path in source.paths:
            try:
                opened: EnMAPProduct | Raster
                if source.is_product:
                    opened = EnMAPProduct.open(path, radiance=settings.radiance)
                else:
                    opened = open_image(path, **settings.reading)
                with opened:
                    wavelengths = None if opened.wavelengths is None else tuple(opened.wavelengths.tolist())
                    return Bands(opened.num_bands, wavelengths, str(path))
            except ProductError:
                # Said when its turn comes.
                continue
    return Bands(0, None, "")


def _run(
    sources: Sequence[Source], folder: Path, settings: CutSettings, bands: Bands, executor: Executor | None
) -> Iterator[Outcome]:
    """Outcomes in the order in which workers are done."""
    if executor is None:
        for source in sources:
            yield prepare_source(source, folder, settings, bands)
        return
    futures = [executor.submit(prepare_source, source, folder, settings, bands) for source in sources]
    try:
        for future in as_completed(futures):
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


def _make_folders(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder to write into, got a file")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "sources").is_dir():
        raise ValueError(f"{folder}: expected an empty folder, or a corpus to add to, got something else")
    for name in ("sources", "data"):
        (folder / name).mkdir(parents=True, exist_ok=True)


def _remove_leftovers(folder: Path) -> dict[str, SourceRecord]:
    """Removes what an interrupted run left, and what has to be tried anew; gives the finished sources by name."""
    records = {}
    for record in read_records(folder):
        if not record.errors and are_whole(folder, record):
            records[record.name] = record
        else:
            (folder / "sources" / f"{record.name}.json").unlink()
    finished = {shard["file"] for record in records.values() for shard in record.shards}
    for path in (folder / "data").glob("[!.]*.parquet"):
        if path.name not in finished:
            path.unlink()
    for path in folder.rglob(".*.partial"):
        path.unlink(missing_ok=True)
    return records


def _end_with_parent() -> None:
    """Ends this worker when the process that started it is gone, so that a later run has the folder for itself."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _stop_at_error(outcomes: Sequence[Outcome], strict: bool) -> None:
    errors = [error for outcome in outcomes for error in outcome.errors]
    if strict and errors:
        raise ProductError(errors[0])


def _none_passes(source: Source, settings: CutSettings, num_windows: int) -> str:
    size = settings.tile_size
    return (
        f"{source.paths[0]}: expected a window of {size} x {size} pixels with at most {settings.max_nodata:.0%} "
        f"without data and {settings.max_cloud:.0%} cloud, got none among {num_windows}"
    )


def _other_files(source: Source, folder: Path) -> Outcome:
    error = (
        f"{source.paths[0].parent}: expected the GeoTIFF tiles that {folder}/sources/{source.name}.json lists, got "
        "others; choose another --output_dir, or remove that file to prepare them anew"
    )
    return Outcome(source.name, 0, 0, (error,))


def _nothing_usable(data_dir: Path, errors: Sequence[str]) -> str:
    if len(errors) == 1:
        return errors[0]
    return (
        f"{data_dir}: expected a product or tile that can be used, got none; the first of {len(errors)}: {errors[0]}"
    )


def _sizes(source: Source) -> list[list[Any]]:
    """Files of a group of tiles with their sizes, by which a later run knows them again."""
    return [] if source.is_product else [[str(path), path.stat().st_size] for path in source.paths]


def _safe_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")


def _by_source(outcome: Outcome) -> str:
    return outcome.source


FEATURES = Features.from_arrow_schema(SCHEMA)
"""Columns of a corpus; `datasets_loading.corpus.COLUMNS` says what they hold."""

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

    Row by row `datasets_loading.corpus.tile_image` gives the image as int16 (bands, height, width).

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

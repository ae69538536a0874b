"""A corpus on disk: sharded Parquet of int16 tiles, what each source gave, statistics of the bands, a dataset card.

    corpus/
        README.md               dataset card; plain `load_dataset("corpus")` reads the folder by it
        band_statistics.json    mean, standard deviation, range and validity of each band over all tiles
        settings.json           how tiles were cut, and the bands that they must have
        data/                   <source>-00000.parquet, ...: up to 256 tiles each
        sources/                <source>.json: tiles, statistics and shards of one product or group of GeoTIFF tiles

A source is finished when its file under `sources/` is there, which is written after its shards; the statistics and the
card are written after all sources. Every file appears whole, by a rename. `datasets_loading.preparation` fills the
folder, `datasets_loading.enmap_corpus` reads it.
"""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets_loading.sensors import ENMAP
from datasets_loading.tiles import RunningStatistics

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
With the package `hsst`: `datasets_loading.shards.tile_image(row)`, and `datasets_loading.enmap_corpus.EnMAPCorpus` for
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

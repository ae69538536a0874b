"""A corpus of tiles for pre-training: prepared from products and images, stored as Parquet, read as tiles by number.

    corpus/
        README.md               dataset card; plain `load_dataset("corpus")` reads the folder by it
        band_statistics.json    mean, standard deviation, range and validity of each band over all tiles
        settings.json           how tiles were cut, and the bands that they must have
        data/                   <source>.parquet: the int16 tiles of one product or group of images

A source is finished when its file is there. What it gave besides tiles (`SourceSummary`) is JSON in the metadata of
that file. Statistics and card are written after all sources. Every file appears whole, by a rename.

`prepare_corpus` finds the sources under a folder, hands those that are not finished yet to workers (`local_executor`
of `workers.py`, `cluster_executor`), and writes statistics and card at the end. A worker holds a row of windows of one
product in memory, never a scene. What stands on disk at the end does not depend on the number of workers, nor on how
often the work was interrupted.

`read_corpus` gives the tiles as int16 arrays by number (`Tiles`), none of them in memory before it is used: from
the Arrow cache of `datasets`, or, with `streaming=True`, from the Parquet files, which takes no room on the disk.
`EnMAPCorpus` is the same as a builder of `datasets`.

EnMAP pixels cannot be published, so there is nothing to download: obtain products from https://www.enmap.org (free
after registration), or simulate some with scripts/simulate_enmap.py.
"""

from __future__ import annotations

import json
import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from pathlib import Path
from string import Template
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
from datasets import Dataset, Features, load_dataset, load_from_disk
from datasets.builder import Key
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.parquet.parquet import Parquet
from rasterio.errors import CRSError
from rasterio.transform import xy as pixel_coordinates
from rasterio.warp import transform as transform_coordinates
from rasterio.windows import Window
from rasterio.windows import transform as window_transform
from tqdm.auto import tqdm

from datasets_loading.enmap_product import EnMAPProduct
from datasets_loading.files import fingerprint, only_writer, write_text, written_whole
from datasets_loading.raster_file import ProductError, fail, read_text_file
from datasets_loading.rasters import Raster
from datasets_loading.sensors import ENMAP
from datasets_loading.tiles import (
    Bands,
    Moments,
    Notes,
    RunningStatistics,
    Sources,
    Tiles,
    cut_product,
    find_sources,
    open_image,
)
from datasets_loading.wavelengths import LONGEST, SHORTEST, WAVELENGTH_TOLERANCE, in_range

STATISTICS_NAME = "band_statistics.json"
CARD_NAME = "README.md"
SETTINGS_NAME = "settings.json"
CARD_TEMPLATE = Path(__file__).with_name("corpus_card.md")

SUMMARY_KEY = "hsst_source"
"""Entry in the metadata of a Parquet file under which its `SourceSummary` stands."""

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
"""Columns of a corpus; its card, which corpus_card.md is the template of, says what they hold."""


TILES_PER_ROW_GROUP = 16
"""Tiles that are compressed together, and so read together: 29 MB of 224 bands and 64 x 64 pixels."""

TILE_FILES_PER_SOURCE = 256
"""GeoTIFF tiles of one folder that are prepared, and after an interruption prepared anew, together."""

ROW_GROUPS_AT_ONCE = 16
"""Row groups whose windows are mixed when streaming: 256 tiles, 470 MB of memory in each reader."""

TILES_AT_ONCE = 1024
"""Tiles of the Arrow cache whose windows are mixed, so that the page cache needs to hold no more: 1.9 GB."""

CLIP_RANGE = (-0.02, 1.0)
"""Reflectance is set to this range before means and deviations are taken, as HSST's image processor does."""

CITATION = """\
@article{storch2023enmap,
  title = {The {EnMAP} imaging spectroscopy mission towards operations},
  author = {Storch, Tobias and others}, journal = {Remote Sensing of Environment},
  volume = {294}, pages = {113632}, year = {2023}
}
"""

LICENCE_NOTE = (
    "EnMAP data (c) DLR. They are free after registration and may not be re-published as they are: share the recipe "
    "(product names and the command), not the pixels. Tiles of simulated products may be shared."
)

_LARGEST_BLOCK_CACHE = 512_000_000
_LONGEST_NAME = 180


@dataclass(frozen=True)
class CutSettings:
    """How sources are cut into tiles.

    Attributes:
        tile_size: side of a tile in pixels; smaller images stay as they are.
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

    def open(self, path: Path, is_product: bool) -> EnMAPProduct | Raster:
        """Opens a product, or an image."""
        if is_product:
            return EnMAPProduct.open(path, radiance=self.radiance)
        given = {name: getattr(self, name) for name in ("scale", "nodata", "variable", "radiance")}
        return open_image(path, wavelengths=self.wavelength_file, **given)

    def __post_init__(self) -> None:
        if self.tile_size < 1:
            raise ValueError(f"tile_size: expected at least 1 pixel, got {self.tile_size}")
        for name in ("max_nodata", "max_cloud"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share from 0 to 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Source:
    """A product (one path), or a group of images of one folder.

    `name` is safe as a file name; names of tiles are relative to `root`.
    """

    name: str
    paths: tuple[Path, ...]
    is_product: bool
    root: Path

    @property
    def files(self) -> list[list[Any]]:
        """Images with their sizes, by which a later run knows them again; a product is known by its name."""
        return [] if self.is_product else [[str(path), path.stat().st_size] for path in self.paths]


@dataclass(frozen=True)
class Outcome:
    """What became of a source, with a line for each file that could not be used, and what was assumed of others."""

    source: str
    errors: tuple[str, ...]
    num_tiles: int = 0
    notes: Notes = field(default_factory=Notes)


@dataclass(frozen=True)
class Report:
    """What is in a corpus, earlier runs included, with a line for each file that could not be used."""

    num_tiles: int
    num_sources: int
    num_skipped: int
    errors: tuple[str, ...]


@dataclass(eq=False)
class SourceSummary:
    """What a source gave besides the rows of its tiles; filled in while they are read, and stored in its file.

    Attributes:
        files: files of a group of images with their sizes in bytes; empty for a product, which its name identifies.
        wavelengths, fwhm: band centers and full widths at half maximum in nm (bands,), or None.
        valid_bands: bands that hold data in every image, or in any tile of the product, bool (bands,).
        minimum, maximum: smallest and largest stored number of each band, where there are data, int16 (bands,) each.
        statistics: of the reflectance clipped to `CLIP_RANGE`.
        num_tiles, num_pixels: tiles it gave, and the pixels of all of them.
        num_skipped: windows left out, being outside the swath or cloudy.
        errors: a line for each image that could not be used.
    """

    files: list[list[Any]]
    wavelengths: list[float] | None = None
    fwhm: list[float] | None = None
    valid_bands: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    minimum: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int16))
    maximum: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int16))
    statistics: RunningStatistics = field(default_factory=lambda: RunningStatistics(0))
    num_tiles: int = 0
    num_pixels: int = 0
    num_skipped: int = 0
    errors: list[str] = field(default_factory=list)

    def start(self, opened: EnMAPProduct | Raster, valid: bool) -> None:
        """Takes the bands of the first image; `valid` says whether they hold data until tiles show otherwise."""
        self.wavelengths, self.fwhm = (
            None if values is None else values.tolist() for values in (opened.wavelengths, opened.fwhm)
        )
        self.valid_bands = np.full(opened.num_bands, valid)
        self.minimum = np.full(opened.num_bands, np.iinfo(np.int16).max, dtype=np.int16)
        self.maximum = np.full(opened.num_bands, ENMAP.nodata, dtype=np.int16)
        self.statistics = RunningStatistics(opened.num_bands)

    def add(self, image: np.ndarray) -> None:
        """Takes in the numbers of a tile, int16 (bands, height, width)."""
        has_data = image != ENMAP.nodata
        self.statistics.update(np.clip(image / ENMAP.scale, *CLIP_RANGE), has_data)
        lowest = image.min(axis=(1, 2), where=has_data, initial=np.iinfo(np.int16).max)
        self.minimum = np.minimum(self.minimum, lowest)
        self.maximum = np.maximum(self.maximum, image.max(axis=(1, 2)))
        self.num_tiles += 1
        self.num_pixels += image[0].size

    def to_json(self) -> str:
        numbers = {name: getattr(self, name).tolist() for name in ("valid_bands", "minimum", "maximum")}
        return json.dumps(vars(self) | numbers | {"statistics": self.statistics.to_dict()})

    @classmethod
    def read(cls, path: Path) -> SourceSummary:
        """The summary in a file; ValueError where that was cut short, or `prepare_corpus` did not write it."""
        with _damage(path), pq.ParquetFile(path) as file:
            stored = file.metadata.metadata or {}
            if SUMMARY_KEY.encode() not in stored or not file.schema_arrow.equals(SCHEMA):
                raise ValueError("other columns or no summary of its source")
            summary = cls(**json.loads(stored[SUMMARY_KEY.encode()]))
            summary.statistics = RunningStatistics.from_dict(summary.statistics)  # type: ignore[arg-type]
            if not all(isinstance(flag, bool) for flag in summary.valid_bands):
                raise ValueError("valid_bands that are neither true nor false")
            if not all(isinstance(path, str) and isinstance(size, int) for path, size in summary.files):
                raise ValueError("files that are no paths with sizes")
            if not isinstance(summary.errors, list) or not all(isinstance(error, str) for error in summary.errors):
                raise ValueError("errors that are no texts")
            summary.valid_bands = np.array(summary.valid_bands, dtype=bool)
            summary.minimum = np.array(summary.minimum, dtype=np.int16)
            summary.maximum = np.array(summary.maximum, dtype=np.int16)
            _check_bands(summary.wavelengths, summary.fwhm, len(summary.valid_bands))
            counts = summary.num_tiles, summary.num_pixels, summary.num_skipped
            if any(type(count) is not int or count < 0 for count in counts):
                raise ValueError(f"counts {counts}")
            shapes = {values.shape for values in (summary.valid_bands, summary.minimum, summary.maximum)}
            if shapes != {summary.statistics.mean.shape} or summary.num_tiles != file.metadata.num_rows:
                raise ValueError("a summary of other bands or tiles")
            return summary


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turns what goes wrong in reading a file of a corpus into a ValueError that names it."""
    try:
        yield
    except (OSError, pa.ArrowException, ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: expected a whole Parquet file of prepare_enmap.py, got {reason}") from None


def _check_bands(wavelengths: Any, fwhm: Any, num_bands: int) -> None:
    """Raises ValueError where wavelengths or widths cannot be those of so many bands."""
    if num_bands < 1:
        raise ValueError("no bands")
    for name, values in (("wavelengths", wavelengths), ("fwhm", fwhm)):
        if values is None:
            continue
        numbers = np.array(values, dtype=np.float64)
        if numbers.shape != (num_bands,) or not ((numbers > 0) & (numbers <= LONGEST)).all():
            raise ValueError(f"{name} that are not {num_bands} numbers from 0 to {LONGEST:g} nm")
        if name == "wavelengths" and not (np.diff(numbers) > 0).all():
            raise ValueError("wavelengths that do not ascend")


def _read_json(path: Path) -> dict[str, Any]:
    """What a file of a corpus holds; ValueError where it is none."""
    try:
        content = json.loads(read_text_file(path, "a file of prepare_enmap.py"))
    except RecursionError:
        raise ValueError("brackets without end") from None
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__}")
    return content


def tile_image(row: Mapping[str, Any]) -> np.ndarray:
    """The image of a row that `datasets` gives, int16 (bands, height, width): a read-only view of its bytes."""
    return np.frombuffer(row["image"], dtype="<i2").reshape(row["num_bands"], row["height"], row["width"])


def is_corpus(folder: str | Path) -> bool:
    """Whether a folder is a corpus, finished or not."""
    return (Path(folder) / SETTINGS_NAME).is_file()


def is_saved_dataset(folder: str | Path) -> bool:
    """Whether a folder was written by `save_to_disk` of `datasets`."""
    return any((Path(folder) / name).is_file() for name in ("state.json", "dataset_dict.json"))


def source_files(folder: Path) -> list[Path]:
    """Files of the finished sources of a corpus, in the order of their names: those that the folder lists."""
    return sorted(path for path in (folder / "data").glob("[!.]*.parquet") if path.is_file())


# From products and images to a corpus


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
        data_dir: a folder of EnMAP products (folders or ZIPs) and images at any depth, or one product.
        output_dir: folder of the corpus; made where it does not exist. Sources finished by an earlier run are kept,
            unless their files are damaged or some of their images could not be used.
        executor: where sources are prepared; this process by default.
        strict: stop at the first source that cannot be used, instead of leaving it out.

    Raises:
        ProductError: no source can be used, or one cannot and `strict` is set.
        ValueError: the folder holds something else, was cut otherwise, is being written by another run, or a file in
            it is damaged and not of a source under `data_dir`.
        OSError: a file cannot be written, as on a full disk, or a worker died. Nothing half-written is left; what was
            finished stays, and a later run goes on from there.
    """
    settings = CutSettings() if settings is None else settings
    data_dir, output_dir = Path(data_dir).resolve(), Path(output_dir).resolve()
    found = find_sources(data_dir)
    with only_writer(output_dir):
        _make_folders(output_dir)
        if is_corpus(output_dir):
            _read_settings(output_dir)  # before anything is removed: many programs have a settings.json
        for unfinished in (*output_dir.glob(".*.partial*"), *(output_dir / "data").glob(".*.partial*")):
            unfinished.unlink()
        sources, outcomes = _plan_sources(data_dir, found, settings, progress)
        _stop_at_error(outcomes, strict)
        finished = _finished_sources(output_dir, sources)
        if finished:
            content, bands = _read_settings(output_dir)
            _check_settings(output_dir, settings, content)
        else:
            bands = _first_bands(sources, settings)
            write_text(output_dir / SETTINGS_NAME, one_line_per_entry({**_stated(settings), **asdict(bands)}))
        todo = []
        for source in sources:
            summary = finished.get(source.name)
            if summary is None or summary.errors:
                todo.append(source)
            elif summary.files != source.files:
                reason = (
                    f"{source.paths[0].parent}: expected the images that {source_file(output_dir, source)} was made "
                    "of, got others; choose another --output_dir, or remove that file to prepare them again"
                )
                outcomes.append(Outcome(source.name, (reason,)))
        _stop_at_error(outcomes, strict)
        if todo:
            for name in (CARD_NAME, STATISTICS_NAME):
                (output_dir / name).unlink(missing_ok=True)
        with (
            Notes().told() as notes,
            tqdm(total=len(sources), initial=len(sources) - len(todo), unit="source", disable=not progress) as bar,
        ):
            bar.set_description("preparing")
            num_tiles = 0
            for outcome in _run(todo, output_dir, settings, bands, executor):
                outcomes.append(outcome)
                notes.join(outcome.notes)
                bar.update()
                num_tiles += outcome.num_tiles
                bar.set_postfix(tiles=num_tiles)
                _stop_at_error([outcome], strict)
        errors = tuple(error for outcome in sorted(outcomes, key=attrgetter("source")) for error in outcome.errors)
        for source in todo:
            finished.pop(source.name, None)
        summaries = [finished.get(path.stem) or SourceSummary.read(path) for path in source_files(output_dir)]
        if not summaries:
            if len(errors) == 1:
                raise ProductError(errors[0])
            fail(data_dir, "a product or tile that can be used", f"none; the first of {len(errors)}: {errors[0]}")
        write_statistics_and_card(output_dir, summaries, settings)
    return Report(
        num_tiles=sum(summary.num_tiles for summary in summaries),
        num_sources=len(summaries),
        num_skipped=sum(summary.num_skipped for summary in summaries),
        errors=errors,
    )


def _make_folders(folder: Path) -> None:
    data = folder / "data"
    # A run that was killed early leaves an empty data/ and hidden files.
    visible = [path for path in (*folder.glob("[!.]*"), *data.glob("[!.]*")) if path != data]
    if visible and not is_corpus(folder):
        raise ValueError(f"{folder}: expected an empty folder, or a corpus to add to, got something else")
    if data.is_symlink():
        raise ValueError(f"{data}: expected a folder to write into, got a link, which may lead anywhere")
    data.mkdir(parents=True, exist_ok=True)


def _read_settings(folder: Path) -> tuple[dict[str, Any], Bands]:
    """What settings.json holds, and the bands in it; ValueError where it is of another program."""
    path = folder / SETTINGS_NAME
    try:
        content = _read_json(path)
        wavelengths = content["wavelengths"]
        if type(content["num_bands"]) is not int or not isinstance(content["first_source"], str):
            raise ValueError("num_bands or first_source of another type")
        if content["num_bands"]:
            _check_bands(wavelengths, None, content["num_bands"])
        return content, Bands(content["num_bands"], wavelengths and tuple(wavelengths), content["first_source"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected what prepare_enmap.py writes, got {error!r}") from None


def _finished_sources(folder: Path, sources: Sequence[Source]) -> dict[str, SourceSummary]:
    """Summaries of the sources whose files are whole, by name; ValueError for a damaged file of none of `sources`."""
    known = {source.name for source in sources}
    finished = {}
    for path in source_files(folder):
        try:
            finished[path.stem] = SourceSummary.read(path)
        except ValueError as error:
            # Nothing is removed: a run makes the file of its own source again, and another file may be anyone's.
            if path.stem not in known:
                raise ValueError(f"{error}; its source is not under --data_dir: add it, or remove the file") from None
    return finished


def _plan_sources(
    data_dir: Path, found: Sources, settings: CutSettings, progress: bool
) -> tuple[list[Source], list[Outcome]]:
    """Sources in an order that paths decide, and what is known to be unusable before any raster is read."""
    sources: dict[str, Source] = {}
    outcomes = [
        Outcome(path.name, (f"{path}: expected products or images, got an archive: unpack it first",))
        for path in found.archives
    ]
    for path in tqdm(found.products, desc="reading metadata", unit="product", disable=not progress, leave=False):
        try:
            with EnMAPProduct.open(path, radiance=settings.radiance) as product:
                name = _safe_name(product.name)
            if name in sources:
                raise ProductError(f"{path}: expected each product once, got {name} in {sources[name].paths[0]} too")
            sources[name] = Source(name, (path,), True, data_dir)
        except (ProductError, MemoryError) as error:
            outcomes.append(Outcome(path.name, (_reason(error, path),)))
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
                other = sources[name].paths[0].parent
                reason = f"{folder}: expected folders that differ in letters or digits, got {other}"
                outcomes.append(Outcome(name, (reason,)))
            else:
                sources[name] = Source(name, group, False, data_dir)
    return list(sources.values()), outcomes


def _stated(settings: CutSettings) -> dict[str, Any]:
    """Settings as a corpus states them: it may be published, and paths tell of the machine it was made on."""
    file = settings.wavelength_file
    return {**asdict(settings), "wavelength_file": None if file is None else Path(file).name}


def _check_settings(folder: Path, settings: CutSettings, content: Mapping[str, Any]) -> None:
    """Raises ValueError where the settings of a corpus are others than those in its settings.json."""
    # As text, for the nodata value NaN is not equal to itself.
    own = {name: json.dumps(value) for name, value in _stated(settings).items()}
    usual = asdict(CutSettings())
    cut = {name: json.dumps(content.get(name, usual[name])) for name in own}
    if cut != own:
        changed = ", ".join(f"{name} {cut[name]}" for name in cut if cut[name] != own[name])
        raise ValueError(
            f"{folder}: expected the settings of its first run ({changed}), got others: use another --output_dir"
        )


def _first_bands(sources: Sequence[Source], settings: CutSettings) -> Bands:
    """The bands of the first source that can be read."""
    for source in sources:
        for path in source.paths:
            # What is wrong is said when its turn comes.
            with suppress(ProductError, MemoryError), settings.open(path, source.is_product) as opened:
                return Bands.of(opened, path.name)
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


def _stop_at_error(outcomes: Sequence[Outcome], strict: bool) -> None:
    errors = [error for outcome in outcomes for error in outcome.errors]
    if strict and errors:
        raise ProductError(errors[0])


def _reason(error: ProductError | MemoryError, path: Path) -> str:
    """Why a source cannot be used."""
    if isinstance(error, ProductError):
        return str(error)
    return f"{path}: expected a source that can be cut in the free memory, got a larger one ({error})"


def _safe_name(name: str) -> str:
    """A name that a file can have, of a product or of folders inside each other."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".") or "_"
    return safe if len(safe) <= _LONGEST_NAME else f"{safe[:_LONGEST_NAME]}-{fingerprint(name)[:16]}"


# The work of one worker


def source_file(folder: Path, source: Source) -> Path:
    """Where the tiles of a source lie in a corpus."""
    return folder / "data" / f"{source.name}.parquet"


def prepare_source(source: Source, folder: Path, settings: CutSettings, bands: Bands) -> Outcome:
    """Writes the file of one source, which is finished when that file appears; an error leaves nothing."""
    summary, notes = SourceSummary(source.files), Notes()
    path = source_file(folder, source)
    rows = (_product_rows if source.is_product else _image_rows)(source, settings, bands, summary, notes)
    try:
        with written_whole(path) as unfinished:
            _write_tiles(unfinished, rows, summary)
            if summary.errors and not summary.num_tiles:
                raise ProductError(summary.errors.pop())
            if not summary.num_tiles:
                size = f"{settings.tile_size} x {settings.tile_size}"
                shares = f"{settings.max_nodata:.0%} without data and {settings.max_cloud:.0%} cloud"
                wanted = f"a window of {size} pixels with at most {shares}"
                fail(source.paths[0], wanted, f"none among {summary.num_skipped}")
    except (ProductError, MemoryError) as error:
        # What an earlier run made of it, when some of its images could be used.
        path.unlink(missing_ok=True)
        return Outcome(source.name, (*summary.errors, _reason(error, source.paths[0])), notes=notes)
    return Outcome(source.name, tuple(summary.errors), summary.num_tiles, notes)


def _write_tiles(path: Path, rows: Iterable[dict[str, Any]], summary: SourceSummary) -> None:
    """Writes rows of `SCHEMA` with images as int16 arrays (bands, height, width); the same ones give the same bytes.

    The summary, which the rows fill in, is written after them.
    """
    others = [name for name in SCHEMA.names if name != "image"]
    # Levels above 1 win 2 % of the size and cost a fifth of the reading speed. Statistics of an image would be its
    # first and last bytes.
    with (
        path.open("wb") as file,
        pq.ParquetWriter(
            file, SCHEMA, compression="zstd", compression_level=1, use_dictionary=others, write_statistics=others
        ) as writer,
    ):
        group: list[dict[str, Any]] = []
        for row in rows:
            summary.add(row["image"])
            # A copy as bytes: pyarrow (26) never frees what it was given as a memoryview.
            group.append({**row, "image": np.asarray(row["image"], dtype="<i2").tobytes()})
            if len(group) == TILES_PER_ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
                group.clear()
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
        writer.add_key_value_metadata({SUMMARY_KEY: summary.to_json()})


def _product_rows(
    source: Source, settings: CutSettings, bands: Bands, summary: SourceSummary, notes: Notes
) -> Iterator[dict[str, Any]]:
    """Rows of `SCHEMA` with the image as an int16 array; fills in the summary, and what was assumed."""
    (path,) = source.paths
    with EnMAPProduct.open(path, radiance=settings.radiance) as product:
        bands.check(product, path)
        notes.add(path, product.notes)
        summary.start(product, valid=False)
        cuts = cut_product(product, settings.tile_size, settings.max_nodata, settings.max_cloud)
        block_cache = _block_cache(product, settings.tile_size)
        while True:
            # The raster library would keep up to a twentieth of the machine's memory: as much of a scene as fits.
            with rasterio.Env(GDAL_CACHEMAX=block_cache):
                tiles, num_skipped = next(cuts, (None, 0))
            if tiles is None:
                return
            summary.num_skipped += num_skipped
            for tile in tiles:
                summary.valid_bands |= product.valid_bands & (tile.image != ENMAP.nodata).any(axis=(1, 2))
                yield {
                    **_row(tile.name, tile.image, tile.row, tile.column, tile.outside_share, product),
                    "product": product.name,
                    "acquisition_time": product.acquisition_time,
                    "sun_elevation": product.sun_elevation,
                    "cloud_share": tile.cloud_share,
                }


def _image_rows(
    source: Source, settings: CutSettings, bands: Bands, summary: SourceSummary, notes: Notes
) -> Iterator[dict[str, Any]]:
    """Rows of a group of images, as `_product_rows` gives them; an image that cannot be used is left out."""
    for path in source.paths:
        before = summary.num_tiles
        try:
            with settings.open(path, is_product=False) as raster:
                assert isinstance(raster, Raster)
                notes.add(path, raster.notes)
                bands.check(raster, path)
                if not summary.valid_bands.size:
                    summary.start(raster, valid=True)
                name = path.relative_to(source.root).with_suffix("").as_posix()
                yield from _cut_image(raster, name, settings, summary)
        except (ProductError, MemoryError) as error:
            kept, reason = summary.num_tiles - before, _reason(error, path)
            summary.errors.append(f"{reason}; {kept} tiles before the damage are kept" if kept else reason)


def _cut_image(raster: Raster, name: str, settings: CutSettings, summary: SourceSummary) -> Iterator[dict[str, Any]]:
    """Rows of an image, of which no more than a row of tiles is held in memory."""
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
                summary.num_skipped += 1
                continue
            summary.valid_bands &= has_data.any(axis=(1, 2))
            place = "" if image.shape == raster.shape else f"_x{column:05d}_y{row:05d}"
            yield _row(name + place, image, row, column, nodata_share, raster)
    if not any_data:
        pixels = raster.height * raster.width
        fail(raster.path, "pixels with data", f"nodata in all {pixels} pixels")


def _row(
    name: str, image: np.ndarray, row: int, column: int, nodata_share: float, opened: EnMAPProduct | Raster
) -> dict[str, Any]:
    """What products and images say of a tile alike."""
    num_bands, height, width = image.shape
    entries = {"name": name, "image": image, "num_bands": num_bands, "height": height, "width": width}
    entries |= {"row": row, "column": column, "nodata_share": nodata_share}
    entries |= {"wavelengths": opened.wavelengths, "fwhm": opened.fwhm}
    if opened.crs and opened.transform is not None:
        transform = window_transform(Window(column, row, width, height), opened.transform)
        entries |= {"crs": opened.crs.to_string(), "transform": list(transform)[:6]}
        x, y = pixel_coordinates(transform, height / 2, width / 2, offset="ul")
        # A local grid has no place on Earth.
        with suppress(CRSError):
            longitudes, latitudes = transform_coordinates(opened.crs, "EPSG:4326", [x], [y])[:2]
            entries |= {"longitude": longitudes[0], "latitude": latitudes[0]}
    return entries


def _block_cache(product: EnMAPProduct, tile_size: int) -> int:
    """Bytes of the blocks that a row of windows lies in, so that none is decoded twice; bounded all the same."""
    block_height = min(product.block_shape[0], product.shape[0])
    blocks = -(-tile_size // block_height)
    if block_height % tile_size and tile_size % block_height:
        blocks += 1
    needed = blocks * block_height * (product.shape[1] + product.block_shape[1]) * product.num_bands * 2
    return min(needed + 16_000_000, _LARGEST_BLOCK_CACHE)


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


# Statistics and card


@dataclass(eq=False)
class CorpusStatistics:
    """What `band_statistics.json` says of the tiles of a corpus.

    All but these are what they are of `Tiles`.

    Attributes:
        mean, std: of the reflectance clipped to `clip_range`, float64 (bands,) each; NaN without data.
    """

    num_tiles: int
    wavelengths: np.ndarray | None
    fwhm: np.ndarray | None
    valid_bands: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    clip_range: tuple[float, float]
    nodata: int = ENMAP.nodata
    scale: float = ENMAP.scale

    @classmethod
    def read(cls, folder: Path) -> CorpusStatistics:
        """Raises ValueError where the folder is not a finished corpus."""
        path = folder / STATISTICS_NAME
        try:
            if not path.exists():
                raise FileNotFoundError
            content = _read_json(path)
            kept = {name: content[name] for name in cls.__annotations__}
            for name in ("wavelengths", "fwhm", "mean", "std"):
                kept[name] = None if kept[name] is None else np.array(kept[name], dtype=np.float64)
            valid_bands, clip_range = np.array(kept["valid_bands"], dtype=bool), tuple(kept["clip_range"])
            statistics = cls(**{**kept, "valid_bands": valid_bands, "clip_range": clip_range})
            statistics._check(content["valid_bands"])
            return statistics
        except FileNotFoundError:
            raise ValueError(
                f"{folder}: expected a finished corpus, got none with a {STATISTICS_NAME}; "
                "run prepare_enmap.py to its end"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: expected what prepare_enmap.py writes, got {error}") from None

    def tiles(self, images: Any, names: list[str], shapes: np.ndarray, groups: np.ndarray, at_once: int) -> Tiles:
        """The tiles of a corpus with these statistics, in the order of their rows."""
        bands = self.wavelengths, self.fwhm, self.valid_bands
        moments = Moments(self.clip_range, self.mean, self.std)
        rows = np.arange(len(names))
        return Tiles(images, names, shapes, *bands, groups, at_once, rows, moments, self.nodata, self.scale)

    def _check(self, stated_validity: list[Any]) -> None:
        """Raises ValueError where a number cannot be."""
        num_bands, valid = len(self.valid_bands), self.valid_bands
        _check_bands(self.wavelengths, self.fwhm, num_bands)
        if not all(isinstance(flag, bool) for flag in stated_validity) or self.mean.shape != valid.shape:
            raise ValueError(f"valid_bands or means of other than {num_bands} bands")
        if self.std.shape != valid.shape or not np.isfinite([self.mean[valid], self.std[valid]]).all():
            raise ValueError("a mean or standard deviation that is no number in a band with data")
        if not (self.std[valid] > 0).all():
            raise ValueError("a standard deviation that is not above 0 in a band with data")
        low, high = self.clip_range
        if not (low < high and np.isfinite([low, high, self.scale]).all() and self.scale > 0):
            raise ValueError(f"clip_range {self.clip_range} and scale {self.scale}")
        if type(self.num_tiles) is not int or self.num_tiles < 1 or self.nodata != ENMAP.nodata:
            raise ValueError(f"num_tiles {self.num_tiles!r} and nodata {self.nodata!r}")


def write_statistics_and_card(folder: Path, summaries: Sequence[SourceSummary], settings: CutSettings) -> None:
    """Writes `band_statistics.json` and the dataset card: the same summaries in the same order give the same bytes."""
    first = summaries[0]
    merged = RunningStatistics(len(first.valid_bands))
    for summary in summaries:
        merged.merge(summary.statistics)
    minimum = np.min([summary.minimum for summary in summaries], axis=0)
    maximum = np.max([summary.maximum for summary in summaries], axis=0)
    # A band with one number in all pixels of all tiles holds a filling, not data.
    valid_bands = np.all([summary.valid_bands for summary in summaries], axis=0) & (minimum < maximum)
    numbers = {"mean": merged.mean, "std": merged.std, "minimum": minimum, "maximum": maximum}
    num_tiles = sum(summary.num_tiles for summary in summaries)
    content = {
        "num_tiles": num_tiles,
        "num_sources": len(summaries),
        "scale": ENMAP.scale,
        "nodata": ENMAP.nodata,
        "clip_range": list(CLIP_RANGE),
        "wavelengths": first.wavelengths,
        "fwhm": first.fwhm,
        "valid_bands": valid_bands.tolist(),
        # JSON knows no NaN.
        **{
            name: [number if count else None for number, count in zip(values.tolist(), merged.count, strict=True)]
            for name, values in numbers.items()
        },
        "count": merged.count.tolist(),
    }
    write_text(folder / STATISTICS_NAME, one_line_per_entry(content))
    wavelengths = first.wavelengths
    card = Template(CARD_TEMPLATE.read_text(encoding="utf-8")).substitute(
        num_bytes=2 * len(valid_bands) * sum(summary.num_pixels for summary in summaries),
        num_tiles=num_tiles,
        num_sources=len(summaries),
        num_bands=len(valid_bands),
        span=f" from {wavelengths[0]:g} to {wavelengths[-1]:g} nm" if wavelengths else "",
        num_valid_bands=int(valid_bands.sum()),
        tile_size=settings.tile_size,
        max_nodata=f"{settings.max_nodata:.0%}",
        max_cloud=f"{settings.max_cloud:.0%}",
        nodata=ENMAP.nodata,
        scale=f"{ENMAP.scale:g}",
        clip_range=f"{CLIP_RANGE[0]:g} to {CLIP_RANGE[1]:g}",
        summary_key=SUMMARY_KEY,
        licence=LICENCE_NOTE,
        citation=CITATION,
    )
    write_text(folder / CARD_NAME, card)


def one_line_per_entry(content: Mapping[str, Any]) -> str:
    """JSON in which lists of bands stay on one line."""
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in content.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


# Reading


def finished_files(folder: Path) -> list[Path]:
    """Files of a finished corpus, in the order in which its tiles are numbered.

    Raises:
        ValueError: the corpus was not finished, or a file is damaged or missing.
    """
    statistics = CorpusStatistics.read(folder)
    files = source_files(folder)
    num_tiles = sum(SourceSummary.read(path).num_tiles for path in files)
    if num_tiles != statistics.num_tiles:
        raise ValueError(
            f"{folder / 'data'}: expected {statistics.num_tiles} tiles as {STATISTICS_NAME} says, got {num_tiles}; "
            "run prepare_enmap.py again"
        )
    return files


class EnMAPCorpus(Parquet):
    """A corpus as a builder of `datasets`; row by row `tile_image` gives the image.

        builder = EnMAPCorpus(data_dir="corpus")        # a folder written by scripts/prepare_enmap.py
        builder.download_and_prepare(num_proc=2)        # once: into the Arrow cache, which is read without decoding
        tiles = builder.as_dataset(split="train")
        stream = builder.as_streaming_dataset(split="train")

    Args:
        data_dir: folder of the corpus.
        options: of `datasets.DatasetBuilder`, as `cache_dir`.

    Raises:
        ValueError: there is no corpus in the folder, or it was not finished or is damaged.
    """

    def __init__(self, data_dir: str | Path | None = None, **options: Any) -> None:
        if data_dir is None or not is_corpus(data_dir):
            raise ValueError(
                f"EnMAPCorpus: expected data_dir to be a folder written by scripts/prepare_enmap.py, got {data_dir}: "
                "run that on EnMAP L2A products (free after registration, https://www.enmap.org)"
            )
        files = finished_files(Path(data_dir).resolve())
        # As they are, not as patterns, where brackets would stand for something. Times and sizes name the cache.
        states = [(path.stat().st_mtime_ns, path.stat().st_size) for path in files]
        listed = DataFilesDict({"train": DataFilesList([str(path) for path in files], states)})
        super().__init__(data_files=listed, dataset_name="enmap_corpus", **options)

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="Tiles of EnMAP L2A products; the README.md beside them describes the columns.",
            features=Features.from_arrow_schema(SCHEMA),
            citation=CITATION,
            homepage="https://www.enmap.org",
            license=LICENCE_NOTE,
        )

    def _generate_tables(
        self, files: Sequence[str], row_groups_list: Sequence[Sequence[int] | None]
    ) -> Iterator[tuple[Key, pa.Table]]:
        # The threads of the packaged reader now and then abort the process at its end, and its errors name no file.
        for number, (path, row_groups) in enumerate(zip(files, row_groups_list, strict=True)):
            with _damage(Path(path)), pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups) if row_groups is None else row_groups:
                    yield Key(number, group), _checked(file.read_row_group(group, use_threads=False))


def _tiles_of_dataset(dataset: Dataset, statistics: CorpusStatistics) -> Tiles:
    """Tiles of a `Dataset`: the pages of its Arrow files are the arrays. Only reading shows how large arrays are."""
    sides = ["height", "width"]
    if getattr(dataset.features["image"], "dtype", None) == "binary":
        sizes = dataset.with_format("numpy", columns=sides)[:]
        shapes = np.stack([sizes[side] for side in sides], axis=1).astype(np.int64)
        images: Any = _ArrowImages(dataset, np.insert(shapes, 0, len(statistics.valid_bands), axis=1))
    else:
        images = _Arrays(dataset.with_format("numpy", columns=["image"]), len(statistics.valid_bands))
        shapes = np.zeros((len(dataset), 2), dtype=np.int64)
    has_names = "name" in dataset.column_names
    names = dataset.with_format(None)["name"][:] if has_names else [str(row) for row in range(len(dataset))]
    return statistics.tiles(images, names, shapes, np.arange(len(dataset)), TILES_AT_ONCE)


@dataclass
class _Arrays:
    """Images of a dataset whose rows hold arrays; ValueError where one is none of stored numbers."""

    dataset: Dataset
    num_bands: int

    def __getitem__(self, row: int) -> np.ndarray:
        image = np.asarray(self.dataset[row]["image"])
        if image.dtype.kind not in "iuf" or image.ndim != 3 or len(image) != self.num_bands or not image.size:
            raise ValueError(
                f"expected an image ({self.num_bands} bands, height, width) in every row, got {image.dtype} "
                f"{image.shape} in row {row}"
            )
        if image.dtype == np.int16:
            return image
        limits = np.iinfo(np.int16)
        fitting = (image >= limits.min) & (image <= limits.max) & (image == np.round(image))
        if not fitting.all():
            raise ValueError(
                f"expected images as reflectance x 10000, whole numbers of int16 with nodata {ENMAP.nodata}, got "
                f"{image[~fitting][0]:g} in row {row}"
            )
        return image.astype(np.int16)


@dataclass
class _ArrowImages:
    """Images of a dataset whose rows hold bytes, of shapes (bands, height, width) that are given."""

    dataset: Dataset
    shapes: np.ndarray

    def __getitem__(self, row: int) -> np.ndarray:
        with _damage(Path(self.dataset.cache_files[0]["filename"] if self.dataset.cache_files else "corpus")):
            return _view(self.dataset.data.column("image"), row, self.shapes[row])


def _tiles_of_files(files: Sequence[Path], statistics: CorpusStatistics) -> Tiles:
    """Tiles of Parquet files, of which a reader keeps some row groups in memory."""
    columns: dict[str, list[Any]] = {"name": [], "height": [], "width": []}
    places: list[tuple[Path, int, int]] = []
    sizes = []
    for path in files:
        with _damage(path), pq.ParquetFile(path) as file:
            for name, values in _checked(file.read(columns=list(columns), use_threads=False)).to_pydict().items():
                columns[name] += values
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                places += [(path, group, offset) for offset in range(size)]
                sizes.append(size)
    shapes = np.array([columns["height"], columns["width"]], dtype=np.int64).T
    groups = np.repeat(np.arange(len(sizes)), sizes)
    images = _RowGroups(places, np.insert(shapes, 0, len(statistics.valid_bands), axis=1))
    return statistics.tiles(images, columns["name"], shapes, groups, ROW_GROUPS_AT_ONCE)


class _RowGroups:
    """
    Images of row groups, `ROW_GROUPS_AT_ONCE` of which are kept, those used last; `places` gives the file, row group
    and place of each tile, `shapes` its (bands, height, width).
    """

    def __init__(self, places: list[tuple[Path, int, int]], shapes: np.ndarray) -> None:
        self.places, self.shapes = places, shapes
        self._cache: OrderedDict[tuple[Path, int], pa.ChunkedArray] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}

    def __getitem__(self, row: int) -> np.ndarray:
        path, group, offset = self.places[row]
        if (path, group) not in self._cache:
            # Room first: the memory of one row group is what a reader can be sure to have.
            while len(self._cache) >= ROW_GROUPS_AT_ONCE:
                self._cache.popitem(last=False)
            self._cache[path, group] = read_row_group(path, group)
        self._cache.move_to_end((path, group))
        with _damage(path):
            return _view(self._cache[path, group], offset, self.shapes[row])


def _checked(rows: pa.Table) -> pa.Table:
    """The rows, if none of them lacks what every tile has."""
    for name in {"name", "image", "height", "width"} & set(rows.column_names):
        if rows.column(name).null_count:
            raise ValueError(f"a row without {name}")
    return rows


def read_row_group(path: Path, row_group: int) -> pa.ChunkedArray:
    """The images of a row group, as they are stored; ValueError where the file is damaged."""
    with _damage(path), pq.ParquetFile(path) as file:
        return file.read_row_group(row_group, columns=["image"], use_threads=False).column("image")


def _view(images: pa.ChunkedArray, number: int, shape: np.ndarray) -> np.ndarray:
    """An image of a column, int16 (bands, height, width), without the copy that Arrow's own access makes."""
    one = images.slice(number, 1).chunk(0)
    _, offsets, values = one.buffers()
    start, end = np.frombuffer(offsets, np.int32, 2, 4 * one.offset).tolist()
    count = math.prod(shape.tolist())
    if min(shape) < 1 or end - start != 2 * count:
        raise ValueError(f"an image of {end - start} bytes and the size {shape.tolist()}")
    image = np.frombuffer(values, "<i2", count, start).reshape(shape)
    # Pages of a file that is open for reading: writing to them would end the process.
    image.flags.writeable = False
    return image


def read_corpus(name: str | Path, *, streaming: bool = False) -> Tiles:
    """Tiles of a corpus by number, on disk.

    Args:
        name: a folder written by scripts/prepare_enmap.py; or, with a column `image` of tiles and a column
            `wavelengths`, a dataset of the Hub or a folder written by `Dataset.save_to_disk`.
        streaming: read the Parquet files of such a folder themselves, instead of an Arrow copy in the cache of
            `datasets`.

    Raises:
        ValueError: the corpus cannot be found, was not finished, is damaged, lacks a column, or its tiles differ in
            their bands.
        OSError: the Arrow copy cannot be written, as on a full disk.
    """
    folder = Path(name)
    if is_corpus(folder):
        statistics = CorpusStatistics.read(folder)
        if streaming:
            return _tiles_of_files(finished_files(folder), statistics)
        builder = EnMAPCorpus(folder)
        try:
            builder.download_and_prepare()
        except DatasetGenerationError as error:
            raise error.__cause__ if isinstance(error.__cause__, ValueError | OSError) else error from None
        return _tiles_of_dataset(builder.as_dataset(split="train"), statistics)
    if streaming:
        got = "another one" if folder.is_dir() else "no such folder"
        raise ValueError(f"{name}: expected a folder written by prepare_enmap.py to stream from, got {got}")
    try:
        loaded = load_from_disk(str(name)) if is_saved_dataset(folder) else load_dataset(str(name))
    except IndexError:  # of an empty table
        raise ValueError(f"{name}: expected tiles, got a dataset without rows") from None
    # a damaged file, or a script, which is not run
    except (DatasetGenerationError, RuntimeError, pa.ArrowInvalid) as error:
        raise ValueError(f"{name}: expected a dataset of tiles, got {error.__cause__ or error}") from None
    if "train" not in loaded and not isinstance(loaded, Dataset):
        raise ValueError(f"{name}: expected a split `train`, got {', '.join(map(str, loaded))}")
    dataset = loaded if isinstance(loaded, Dataset) else loaded["train"]
    missing = {"image", "wavelengths"} - set(dataset.column_names)
    if missing:
        raise ValueError(f"{name}: expected columns `image` and `wavelengths`, got {', '.join(dataset.column_names)}")
    return _measured(str(name), dataset)


def _measured(name: str, dataset: Dataset) -> Tiles:
    """Tiles of a dataset that carries no statistics: all are read once."""
    if not len(dataset):
        raise ValueError(f"{name}: expected tiles, got a dataset without rows")
    wavelengths: np.ndarray | None = None
    for number, row in enumerate(dataset.with_format(None).select_columns("wavelengths")):
        given = np.asarray(row["wavelengths"], dtype=np.float64)
        if given.ndim != 1 or not given.size or not in_range(given) or not (np.diff(given) > 0).all():
            raise ValueError(
                f"{name}: expected wavelengths in nm, ascending from {SHORTEST:g} to {LONGEST:g} at most, got "
                f"{row['wavelengths']} in row {number}"
            )
        wavelengths = given if wavelengths is None else wavelengths
        if given.shape != wavelengths.shape or np.abs(given - wavelengths).max() > WAVELENGTH_TOLERANCE:
            raise ValueError(
                f"{name}: expected the {len(wavelengths)} bands of the first tile, tile {number} has others"
            )
    assert wavelengths is not None
    unknown = np.full(len(wavelengths), np.nan)
    valid_bands = np.ones(len(wavelengths), dtype=bool)
    statistics = CorpusStatistics(len(dataset), wavelengths, None, valid_bands, unknown, unknown, (np.nan, np.nan))
    try:
        tiles = _tiles_of_dataset(dataset, statistics)
        for number, tile in enumerate(tiles):
            valid_bands &= (tile != ENMAP.nodata).any(axis=(1, 2))
            tiles.shapes[number] = tile.shape[1:]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return tiles

"""From EnMAP products and GeoTIFF tiles to a corpus of sharded tiles, by one process, several, or a Dask cluster.

`prepare_corpus` finds the sources under a folder, hands those that are not finished yet to workers (`local_executor`,
`cluster_executor`), and writes statistics and dataset card at the end. A worker holds a row of windows of one product
in memory, never a scene. What stands on disk at the end (`datasets_loading.shards`) does not depend on the number of
workers, nor on how often the work was interrupted.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
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
from datasets_loading.shards import (
    CARD_NAME,
    SETTINGS_NAME,
    STATISTICS_NAME,
    ShardWriter,
    SourceRecord,
    are_whole,
    one_line_per_entry,
    read_records,
    write_statistics_and_card,
    write_text,
)
from datasets_loading.tiles import Notes, Sources, cut_product, find_sources, open_image
from datasets_loading.wavelengths import check_same_bands

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
    """Rows of `datasets_loading.shards.SCHEMA` with the image as an int16 array, in an order that names decide.

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

"""Corpora: what they carry, restarts that end byte-identical, workers, bad input, and three ways of reading them."""

import argparse
import errno
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from types import SimpleNamespace

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import rasterio.warp
from conftest import SCRIPTS, assert_one_clear_line
from datasets import Array3D, Dataset, DatasetDict, Features, List, Value, load_dataset
from datasets.distributed import split_dataset_by_node
from small_products import (
    ACQUISITION_TIME,
    CLOUD,
    FWHM,
    NAME,
    TRANSFORM,
    WAVELENGTHS,
    edit_metadata,
    part,
    small_cube,
    small_quality,
    write_small_product,
)

import datasets_loading.corpus
from datasets_loading.corpus import (
    SCHEMA,
    SUMMARY_KEY,
    CorpusStatistics,
    CutSettings,
    EnMAPCorpus,
    SourceSummary,
    _write_tiles,
    is_corpus,
    prepare_corpus,
    read_corpus,
    tile_image,
    write_statistics_and_card,
)
from datasets_loading.enmap_product import EnMAPProduct
from datasets_loading.raster_file import ProductError
from datasets_loading.simulation.product_writer import write_enmap_product
from datasets_loading.tiles import band_statistics, read_tile_set
from datasets_loading.windows import GridWindows, GroupedSampler, RandomWindows
from datasets_loading.workers import local_executor
from hsst.support.pretraining_data import load_tiles

SETTINGS = CutSettings(tile_size=32)
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1"}


def product_name(number):
    return NAME.replace("_003_", f"_{number:03d}_")


def other_cloud(number):
    """Quality layers that leave another tile of each product out."""
    quality = small_quality()
    quality["cloud"][:] = 0
    quality["cloud"][32 : 32 + 8 * number, 64:96] = 1
    return quality


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """Four products, one of them a ZIP."""
    folder = tmp_path_factory.mktemp("products")
    for number in range(4):
        write_small_product(
            folder,
            product_name(number),
            cube=small_cube(number),
            quality=other_cloud(number),
            as_zip=number == 2,
        )
    return folder


@pytest.fixture(scope="module")
def corpus(products, tmp_path_factory):
    """The corpus of those products, made by one process without interruption."""
    folder = tmp_path_factory.mktemp("corpus") / "corpus"
    prepare_corpus(products, folder, SETTINGS, progress=False)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def prepare(data_dir, output_dir, **options):
    return prepare_corpus(data_dir, output_dir, SETTINGS, progress=False, **options)


def test_files_that_stay_are_read_once(products, corpus, tmp_path, monkeypatch):
    shutil.copytree(corpus, tmp_path / "corpus")
    (tmp_path / "corpus" / "data" / f"{product_name(0)}.parquet").unlink()
    read, read_one = [], SourceSummary.read
    monkeypatch.setattr(SourceSummary, "read", lambda path: read.append(path.stem) or read_one(path))
    prepare_corpus(products, tmp_path / "corpus", SETTINGS, progress=False)
    assert sorted(read) == [product_name(number) for number in range(4)]
    assert contents(tmp_path / "corpus") == contents(corpus)


def test_workers_are_at_least_one(products, tmp_path, run_script):
    arguments = ["--data_dir", products, "--output_dir", tmp_path / "corpus", "--num_workers", 0]
    assert_one_clear_line(run_script("prepare_enmap.py", *arguments), "--num_workers: expected at least 1, got 0")
    assert not (tmp_path / "corpus").exists()


def test_counting_tiles_does_not_start_again_at_each_source(products, corpus, tmp_path, monkeypatch):
    read = []

    class Counted(datasets_loading.corpus.Outcome):
        def __getattribute__(self, name):
            read.extend([name] * (name == "num_tiles"))
            return super().__getattribute__(name)

    shutil.copytree(corpus, tmp_path / "corpus")
    outcomes = [Counted(str(number), (), 1) for number in range(50)]
    monkeypatch.setattr("datasets_loading.corpus._run", lambda *arguments: iter(outcomes))
    prepare_corpus(products, tmp_path / "corpus", SETTINGS)
    assert len(read) == len(outcomes)


def contents(folder):
    """Every file of a corpus with its bytes; the lock of a run is no part of it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def write_tile(path, image, **options):
    profile = dict(driver="GTiff", count=len(image), height=image.shape[1], width=image.shape[2], dtype="int16")
    profile |= dict(nodata=-32768, crs="EPSG:32633", transform=TRANSFORM) | options
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(image)
        for band in range(len(image)):
            dataset.update_tags(band + 1, wavelength=str(WAVELENGTHS[band]), fwhm=str(FWHM[band]))


# What a corpus holds


def test_plain_load_dataset_reads_the_folder(corpus):
    dataset = load_dataset(str(corpus), split="train")
    assert dataset.features == Features.from_arrow_schema(SCHEMA)
    described = re.findall(r"^\| `(\w+)` \|", (corpus / "README.md").read_text(), re.MULTILINE)
    assert described == dataset.column_names == SCHEMA.names
    statistics = CorpusStatistics.read(corpus)
    assert len(dataset) == statistics.num_tiles > 40
    stream = load_dataset(str(corpus), split="train", streaming=True)
    assert [row["name"] for row in stream] == dataset["name"][:]


def test_every_tile_carries_where_and_when(tmp_path):
    write_small_product(tmp_path / "product")
    prepare_corpus(tmp_path / "product", tmp_path / "corpus", CutSettings(64, 1.0, 1.0), progress=False)
    rows = {(row["row"], row["column"]): row for row in load_dataset(str(tmp_path / "corpus"), split="train")}
    assert sorted(rows) == [(0, 0), (0, 64), (64, 0), (64, 64)]
    row = rows[0, 64]
    assert row["name"] == f"{NAME}_x00064_y00000" and row["product"] == NAME
    assert row["acquisition_time"].astimezone(UTC) == ACQUISITION_TIME
    assert row["sun_elevation"] == 38.5
    assert row["wavelengths"] == WAVELENGTHS.tolist() and row["fwhm"] == FWHM.tolist()
    assert row["crs"] == "EPSG:32633"
    assert row["transform"] == [30.0, 0.0, TRANSFORM.c + 64 * 30, 0.0, -30.0, TRANSFORM.f]
    x, y = TRANSFORM.c + 96 * 30, TRANSFORM.f - 32 * 30
    longitude, latitude = rasterio.warp.transform("EPSG:32633", "EPSG:4326", [x], [y])
    assert (row["longitude"], row["latitude"]) == pytest.approx((longitude[0], latitude[0]), abs=1e-9)
    assert (row["cloud_share"], row["nodata_share"]) == (1.0, 0.0)
    assert (rows[64, 0]["cloud_share"], rows[64, 0]["nodata_share"]) == (0.0, 40 / 64)


def test_statistics_are_those_of_all_tiles(products, corpus):
    tiles = read_tile_set(products, 32, progress=False)
    statistics = CorpusStatistics.read(corpus)
    mean, std = tiles.band_statistics(*statistics.clip_range)
    np.testing.assert_allclose(statistics.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(statistics.std, std, rtol=1e-9)
    np.testing.assert_array_equal(statistics.valid_bands, tiles.valid_bands)
    np.testing.assert_array_equal(statistics.wavelengths, WAVELENGTHS)
    content = json.loads((corpus / "band_statistics.json").read_text())
    stack = np.stack(list(tiles))
    data = np.ma.masked_equal(stack, -32768)
    assert content["minimum"] == data.min(axis=(0, 2, 3)).tolist()
    assert content["maximum"] == data.max(axis=(0, 2, 3)).tolist()
    assert content["count"] == data.count(axis=(0, 2, 3)).tolist()


def test_row_groups_are_small(products, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets_loading.corpus, "TILES_PER_ROW_GROUP", 6)
    report = prepare(products / product_name(0), tmp_path / "corpus")
    (path,) = (tmp_path / "corpus" / "data").iterdir()
    assert path.name == f"{product_name(0)}.parquet"
    metadata = pq.ParquetFile(path).metadata
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    assert sizes == [6, 6, 4] and report.num_tiles == 16


def test_geotiff_tiles(tmp_path):
    cube = small_cube()[:, :, 40:]
    write_tile(tmp_path / "tiles" / "small.tif", cube[:, :20, :24])
    write_tile(tmp_path / "tiles" / "deeper" / "large.tif", cube[:, :64, :70])
    write_tile(tmp_path / "tiles" / "small_labels.tif", cube[:1, :20, :24])
    report = prepare(tmp_path / "tiles", tmp_path / "corpus")
    assert (report.num_tiles, report.num_sources, report.errors) == (5, 2, ())
    rows = {row["name"]: row for row in load_dataset(str(tmp_path / "corpus"), split="train")}
    assert sorted(rows) == ["deeper/large_x00000_y00000", "deeper/large_x00000_y00032", "deeper/large_x00032_y00000",
                            "deeper/large_x00032_y00032", "small"]  # fmt: skip
    np.testing.assert_array_equal(tile_image(rows["small"]), cube[:, :20, :24])
    lower = rows["deeper/large_x00032_y00032"]
    np.testing.assert_array_equal(tile_image(lower), cube[:, 32:64, 32:64])
    assert lower["transform"][2] == TRANSFORM.c + 32 * 30
    assert lower["product"] is None and lower["cloud_share"] is None and lower["acquisition_time"] is None


def test_folders_of_tiles_that_would_share_a_name(tmp_path):
    for folder in ("a/b", "a-b"):
        write_tile(tmp_path / "tiles" / folder / "tile.tif", small_cube()[:, :20, 40:60])
    report = prepare(tmp_path / "tiles", tmp_path / "corpus")
    assert report.num_tiles == 1 and "expected folders that differ" in report.errors[0]


def test_what_is_assumed_is_said_once_for_all_folders(tmp_path, caplog):
    """As of patches in a folder each; an error at the end of the block does not take the line away."""
    for number in range(3):
        write_tile(tmp_path / "tiles" / f"{number}" / "tile.tif", small_cube()[:, :20, 40 + number : 60 + number])
    write_tile(tmp_path / "tiles" / "3" / "tile.tif", np.full((3, 20, 20), 50, dtype=np.int16))
    with pytest.raises(ProductError, match=re.escape(str(tmp_path / "tiles" / "3" / "tile.tif"))):
        prepare(tmp_path / "tiles", tmp_path / "corpus", strict=True)
    (line,) = [record.getMessage() for record in caplog.records if "no scale stated" in record.getMessage()]
    assert line.startswith(str(tmp_path / "tiles" / "0" / "tile.tif")) and line.endswith("and 2 other files")


def test_places_may_be_unknown(tmp_path):
    write_tile(tmp_path / "tiles" / "tile.tif", small_cube()[:, :20, 40:60], crs=None)
    prepare(tmp_path / "tiles", tmp_path / "corpus")
    (row,) = load_dataset(str(tmp_path / "corpus"), split="train")
    assert row["crs"] is row["longitude"] is row["transform"] is None


# Restarts and workers


@pytest.fixture(scope="module")
def large_products(tmp_path_factory):
    """Three products, which take a while."""
    folder = tmp_path_factory.mktemp("large")
    cube, quality = np.tile(small_cube(), (1, 6, 5)), {k: np.tile(v, (6, 5)) for k, v in small_quality().items()}
    for product in range(3):
        write_small_product(folder, product_name(product), cube=cube, quality=quality)
    return folder


@pytest.mark.parametrize("way", ["Ctrl-C while workers start", "Ctrl-C", "SIGTERM to the workers first"])
def test_a_signal_to_all_processes_is_one_true_line(large_products, tmp_path, way):
    number = signal.SIGTERM if "SIGTERM" in way else signal.SIGINT
    command = [sys.executable, "-m", "hsst", "prepare", "--data_dir", large_products, "--output_dir", "corpus"]
    process = subprocess.Popen(
        [*command, "--num_workers", "2"],
        cwd=tmp_path,
        env={**ENVIRONMENT, "PYTHONPATH": f"{Path(__file__).parents[1]}"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    begun = "corpus/settings.json" if "start" in way else "corpus/data/.*.partial*"
    while not list(tmp_path.glob(begun)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(0.5 * ("start" in way))
    if "first" in way:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), number)
        time.sleep(0.3)
        process.send_signal(number)
    else:
        os.killpg(process.pid, number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "hsst prepare: " + ("terminated" if number == signal.SIGTERM else "interrupted") in error
    assert "Traceback" not in error and "memory" not in error


def test_two_processes_write_the_same_bytes(products, corpus, tmp_path):
    with local_executor(2) as executor:
        report = prepare(products, tmp_path / "corpus", executor=executor)
    assert report.num_sources == 4
    assert contents(tmp_path / "corpus") == contents(corpus)


def test_a_second_run_does_nothing_and_more_products_are_added(products, corpus, tmp_path):
    one = tmp_path / "products"
    one.mkdir()
    shutil.copytree(products / product_name(1), one / "renamed")
    prepare(one, tmp_path / "corpus")
    shard = next((tmp_path / "corpus" / "data").iterdir())
    written = shard.stat().st_mtime_ns
    assert prepare(one, tmp_path / "corpus").num_sources == 1
    assert prepare(products, tmp_path / "corpus").num_sources == 4
    assert shard.stat().st_mtime_ns == written
    with_other_first = contents(tmp_path / "corpus")
    assert with_other_first.pop("settings.json") != contents(corpus)["settings.json"]
    assert with_other_first == {name: value for name, value in contents(corpus).items() if name != "settings.json"}


def kill_and_restart(products, corpus, folder, kills, seed):
    """Runs the script, kills it at random moments, and lets a last run come to its end; asserts the same bytes."""
    command = [sys.executable, SCRIPTS / "prepare_enmap.py", "--data_dir", products, "--tile_size", "32"]
    started = time.perf_counter()
    subprocess.run([*command, "--output_dir", folder / "timed"], env=ENVIRONMENT, check=True, capture_output=True)
    duration = time.perf_counter() - started
    generator, killed = random.Random(seed), 0
    for number in range(kills):
        with_workers = ["--num_workers", "2"] if number % 2 else []
        process = subprocess.Popen(
            [*command, "--output_dir", folder / "killed", *with_workers],
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(generator.uniform(0.5, 1.0) * duration)
        killed += process.poll() is None
        # Every other time the workers are left behind: they must end by themselves.
        if number % 4 == 1:
            process.send_signal(signal.SIGKILL)
        elif process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if number % 3 == 2 and (folder / "killed").is_dir():
            # Begin anew, or the last runs would have nothing left to do.
            shutil.rmtree(folder / "killed", ignore_errors=True)
    last = subprocess.run(
        [*command, "--output_dir", folder / "killed"], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert last.returncode == 0, last.stderr
    assert contents(folder / "killed") == contents(folder / "timed") == contents(corpus)
    return killed


def test_killed_runs_end_byte_identical(products, corpus, tmp_path):
    kill_and_restart(products, corpus, tmp_path, kills=2, seed=0)


@pytest.mark.slow
def test_ten_killed_runs_end_byte_identical(products, corpus, tmp_path):
    assert kill_and_restart(products, corpus, tmp_path, kills=10, seed=1) >= 5


MOMENTS = {
    "tile": (SourceSummary, "add", lambda arguments, number: number == 20),
    "rename": (Path, "replace", lambda arguments, _: "_002_" in str(arguments[1])),
    "settings": (datasets_loading.corpus, "write_text", lambda arguments, _: arguments[0].name == "settings.json"),
    "statistics": (datasets_loading.corpus, "write_text", lambda arguments, _: "statistics" in arguments[0].name),
    "card": (datasets_loading.corpus, "write_text", lambda arguments, _: arguments[0].name == "README.md"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_interrupted_at_any_step_the_next_run_completes(products, corpus, tmp_path, monkeypatch, moment):
    class Interrupted(BaseException):
        """As a signal would, at a place that is known."""

    owner, name, is_moment = MOMENTS[moment]
    original, calls = getattr(owner, name), []

    def wrapped(*arguments):
        calls.append(arguments)
        if is_moment(arguments, len(calls)):
            raise Interrupted
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, wrapped)
        with pytest.raises(Interrupted):
            prepare(products, tmp_path / "corpus")
    assert not list((tmp_path / "corpus").rglob("*.partial*"))
    (tmp_path / "corpus" / ".settings.0.partial.json").write_bytes(b"half")
    (tmp_path / "corpus" / "data" / ".half.0.partial.parquet").write_bytes(b"half")
    assert prepare(products, tmp_path / "corpus").num_sources == 4
    assert contents(tmp_path / "corpus") == contents(corpus)


def test_an_unfinished_corpus_is_not_taken_for_a_finished_one(products, corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "corpus")
    for name in ("README.md", "band_statistics.json"):
        (tmp_path / "corpus" / name).unlink()
    assert is_corpus(tmp_path / "corpus")
    with pytest.raises(ValueError, match="expected a finished corpus"):
        CorpusStatistics.read(tmp_path / "corpus")


def without_summary(path):
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)


def with_other_summary(path):
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({SUMMARY_KEY: '{"files": []}'}), path)


DAMAGES = {
    "lost": Path.unlink,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "no Parquet": lambda path: path.write_text("none"),
    "no summary": without_summary,
    "another summary": with_other_summary,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_again_and_refused_by_readers(products, corpus, tmp_path, damage):
    shutil.copytree(corpus, tmp_path / "corpus")
    path = sorted((tmp_path / "corpus" / "data").iterdir())[1]
    DAMAGES[damage](path)
    for streaming in (True, False):
        with pytest.raises(ValueError, match=re.escape(str(path.parent if damage == "lost" else path))):
            read_corpus(tmp_path / "corpus", streaming=streaming)
    if damage != "lost":
        # Not where it cannot be made again: the file may be another's.
        before = contents(tmp_path / "corpus")
        with pytest.raises(ValueError, match=re.escape(f"{path}: expected a whole Parquet file")):
            prepare(products / product_name(0), tmp_path / "corpus")
        assert contents(tmp_path / "corpus") == before
    prepare(products, tmp_path / "corpus")
    assert contents(tmp_path / "corpus") == contents(corpus)


def test_a_corpus_of_a_stranger_leads_nowhere_else(products, corpus, tmp_path):
    """Names of files are those of the folder, whatever the files say, and a linked folder is not written to."""
    shutil.copytree(corpus, tmp_path / "corpus")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.parquet").write_text("mine")
    path = sorted((tmp_path / "corpus" / "data").iterdir())[1]
    table = pq.read_table(path)
    summary = json.loads(pq.read_metadata(path).metadata[SUMMARY_KEY.encode()])
    summary |= {"files": [["../../mine/a.parquet", 4]], "errors": ["../../mine/a.parquet"]}
    pq.write_table(table.replace_schema_metadata({SUMMARY_KEY: json.dumps(summary)}), path)
    prepare(products, tmp_path / "corpus")
    assert contents(tmp_path / "corpus") == contents(corpus)
    shutil.rmtree(tmp_path / "corpus" / "data")
    (tmp_path / "corpus" / "data").symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match="got a link"):
        prepare(products, tmp_path / "corpus")
    assert contents(tmp_path / "mine") == {"a.parquet": b"mine"}


def test_one_run_at_a_time(products, tmp_path, run_script):
    from filelock import FileLock

    prepare(products, tmp_path / "corpus")
    with FileLock(tmp_path / "corpus" / ".lock"):
        result = run_script(
            *("prepare_enmap.py", "--data_dir", products, "--output_dir", tmp_path / "corpus", "--tile_size", 32)
        )
    assert_one_clear_line(result, tmp_path / "corpus", "expected to be the only process that writes there")


@pytest.mark.slow
def test_dask_cluster_writes_the_same_bytes(products, corpus, tmp_path):
    """A scheduler and two workers on this machine, each a process of its own as on a cluster."""
    scheduler_file = tmp_path / "scheduler.json"
    python = [sys.executable, "-m"]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT, cwd=tmp_path)
    scheduler = ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    worker = ["distributed.cli.dask_worker", "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1"]
    processes = [
        subprocess.Popen([*python, *command, "--scheduler-file", scheduler_file], **quiet)
        for command in (scheduler, worker, worker)
    ]
    try:
        deadline = time.monotonic() + 60
        while not scheduler_file.exists() or not scheduler_file.stat().st_size:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        address = json.loads(scheduler_file.read_text())["address"]
        command = [sys.executable, SCRIPTS / "prepare_enmap.py", "--data_dir", products, "--tile_size", "32"]
        command += ["--output_dir", tmp_path / "corpus", "--dask_scheduler", address]
        result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        assert contents(tmp_path / "corpus") == contents(corpus)
        bad = tmp_path / "bad"
        write_small_product(bad, product_name(7), quality={**small_quality(), "cloud": np.ones((150, 170))})
        command[command.index(products)] = bad
        result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0 and "expected a window of 32 x 32 pixels" in result.stderr, result.stderr
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(30)


def test_no_scheduler_there(products, tmp_path, run_script, monkeypatch):
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        result = run_script(
            *("prepare_enmap.py", "--data_dir", products, "--output_dir", tmp_path / "corpus"),
            *("--dask_scheduler", "tcp://127.0.0.1:9"),
        )
    assert_one_clear_line(result, "tcp://127.0.0.1:9")
    assert not (tmp_path / "corpus").exists()


# Not of resource.getrusage, in which a process begins with what its parent had.
PEAK = """
import re, sys
from datasets_loading.corpus import CutSettings, prepare_corpus
prepare_corpus(sys.argv[1], sys.argv[2], CutSettings(tile_size=32), progress=False)
print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
def test_memory_is_bounded_by_a_window(tmp_path):
    """A scene four times as high takes no more memory than is allowed here for chance."""
    peaks = []
    generator = np.random.default_rng(0)
    for height in (1024, 4096):
        cube = np.tile(generator.integers(0, 5000, (60, 256, 128), dtype=np.int16), (1, height // 256, 1))
        wavelengths = 450.0 + 20 * np.arange(60)
        write_enmap_product(
            tmp_path / f"{height}",
            NAME,
            cube,
            wavelengths=wavelengths,
            fwhm=np.full(60, 7.0),
            detectors=["VNIR"] * 60,
            transform=TRANSFORM,
            crs="EPSG:32633",
            acquisition_time=ACQUISITION_TIME,
            sun_elevation=40.0,
            quality={},
        )
        command = [sys.executable, "-c", PEAK, tmp_path / f"{height}", tmp_path / f"corpus-{height}"]
        result = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
        assert result.returncode == 0, result.stderr
        peaks.append(int(result.stdout) / 1024)
    assert cube.nbytes * 3 / 4 == 45 * 2**20
    assert peaks[1] - peaks[0] < 20


# Bad input


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def truncated_zip(folder):
    write_small_product(folder, product_name(9), as_zip=True)
    truncate(next(folder.glob("*_009_*.ZIP")))


def truncated_image(folder):
    truncate(part(write_small_product(folder, product_name(9)), "SPECTRAL_IMAGE"))


def no_band_list(folder):
    product = write_small_product(folder, product_name(9))
    edit_metadata(product, "<bandCharacterisation>.*</bandCharacterisation>", "")


def duplicate_wavelengths(folder):
    wavelengths = WAVELENGTHS.copy()
    wavelengths[3] = wavelengths[4]
    write_small_product(folder, product_name(9), wavelengths=wavelengths)


def other_bands(folder):
    write_small_product(folder, product_name(9), wavelengths=WAVELENGTHS + 4)


def all_cloud(folder):
    quality = {**small_quality(), "cloud": np.ones((150, 170), dtype=np.uint8)}
    write_small_product(folder, product_name(9), quality=quality)


def no_metadata(folder):
    part(write_small_product(folder, product_name(9)), "METADATA").unlink()


def twice_the_same(folder):
    shutil.copytree(folder / product_name(1), folder / "z-copy")


DEFECTS = {
    truncated_zip: "a whole ZIP",
    truncated_image: "a whole GeoTIFF",
    no_band_list: "a list of bands",
    duplicate_wavelengths: "wavelengths that differ",
    other_bands: "expected 444.549 nm in band 0 as in",
    all_cloud: "expected a window of 32 x 32 pixels with at most 50% without data and 10% cloud, got none among 20",
    no_metadata: "METADATA.XML",
    twice_the_same: "expected each product once",
}


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_defective_products_are_left_out_and_listed(products, tmp_path, run_script, defect):
    folder = tmp_path / "products"
    folder.mkdir()
    shutil.copytree(products / product_name(1), folder / product_name(1))
    defect(folder)
    arguments = ["prepare_enmap.py", "--data_dir", folder, "--output_dir", tmp_path / "corpus", "--tile_size", 32]
    result = run_script(*arguments)
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "not used:" in line]
    assert DEFECTS[defect] in line and str(folder) in line
    assert "tiles of 1 sources" in result.stdout
    assert len(list((tmp_path / "corpus" / "data").iterdir())) == 1
    # Later runs, which find the good product finished, list the other one again.
    again = run_script(*arguments)
    assert again.returncode == 0 and line in again.stderr.splitlines()
    strict = run_script(*arguments, "--strict")
    assert_one_clear_line(strict, DEFECTS[defect])


def test_nothing_usable(tmp_path, run_script):
    all_cloud(tmp_path / "products")
    arguments = ["prepare_enmap.py", "--data_dir", tmp_path / "products", "--output_dir", tmp_path / "corpus"]
    result = run_script(*arguments, "--tile_size", 32)
    assert_one_clear_line(result, DEFECTS[all_cloud])
    assert not any((tmp_path / "corpus" / "data").iterdir())
    truncated_zip(tmp_path / "products")
    assert_one_clear_line(run_script(*arguments), "the first of 2")


def test_a_bad_tile_is_left_out_until_it_is_repaired(tmp_path):
    cube = small_cube()[:, :, 40:]
    for number in range(3):
        write_tile(tmp_path / "tiles" / f"tile_{number}.tif", cube[:, :20, number : number + 20])
    whole = (tmp_path / "tiles" / "tile_1.tif").read_bytes()
    truncate(tmp_path / "tiles" / "tile_1.tif")
    report = prepare(tmp_path / "tiles", tmp_path / "corpus")
    assert report.num_tiles == 2 and len(report.errors) == 1 and "tile_1.tif" in report.errors[0]
    with pytest.raises(ProductError, match="tile_1.tif"):
        prepare(tmp_path / "tiles", tmp_path / "strict", strict=True)
    (tmp_path / "tiles" / "tile_1.tif").write_bytes(whole)
    report = prepare(tmp_path / "tiles", tmp_path / "corpus")
    assert report.num_tiles == 3 and report.errors == ()
    write_tile(tmp_path / "tiles" / "tile_3.tif", cube[:, :20, 3:23])
    report = prepare(tmp_path / "tiles", tmp_path / "corpus")
    assert report.num_tiles == 3 and "choose another --output_dir" in report.errors[0]


def test_full_disk_leaves_nothing_half_written(products, corpus, tmp_path, run_script):
    arguments = ["prepare_enmap.py", "--data_dir", products, "--output_dir", tmp_path / "corpus", "--tile_size", 32]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(len(content) for content in contents(corpus).values())
    # No file may grow beyond this size: the same errors as on a full disk, from the same calls.
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, hard))
    try:
        result = run_script(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_one_clear_line(result, os.strerror(errno.EFBIG), "data/ENMAP01")
    assert "Exception ignored" not in result.stderr
    assert not list((tmp_path / "corpus").rglob("*.partial*"))
    assert not list((tmp_path / "corpus" / "data").iterdir())
    assert run_script(*arguments).returncode == 0
    assert contents(tmp_path / "corpus") == contents(corpus)


@pytest.mark.parametrize("name", ["band_statistics.json", "README.md"])
def test_full_disk_at_a_small_file(products, corpus, tmp_path, run_script, monkeypatch, name):
    whole = datasets_loading.corpus.write_text

    def full(path, text):
        if path.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return whole(path, text)

    arguments = ["prepare_enmap.py", "--data_dir", products, "--output_dir", tmp_path / "corpus", "--tile_size", 32]
    with monkeypatch.context() as patch:
        patch.setattr(datasets_loading.corpus, "write_text", full)
        assert_one_clear_line(run_script(*arguments), os.strerror(errno.ENOSPC))
    assert run_script(*arguments).returncode == 0
    assert contents(tmp_path / "corpus") == contents(corpus)


def test_other_settings_than_those_of_the_first_run(products, corpus, tmp_path, run_script):
    shutil.copytree(corpus, tmp_path / "corpus")
    result = run_script("prepare_enmap.py", "--data_dir", products, "--output_dir", tmp_path / "corpus")
    assert_one_clear_line(result, tmp_path / "corpus", "tile_size 32")
    assert contents(tmp_path / "corpus") == contents(corpus)


def test_a_folder_that_holds_something_else_is_left_alone(products, tmp_path, run_script):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.parquet").write_text("mine")
    result = run_script("prepare_enmap.py", "--data_dir", products, "--output_dir", tmp_path / "photos")
    assert_one_clear_line(result, "expected an empty folder")
    # Many programs have a settings.json.
    (tmp_path / "photos" / "settings.json").write_text("{}")
    (tmp_path / "photos" / "README.md").write_text("mine")
    before = contents(tmp_path / "photos")
    result = run_script("prepare_enmap.py", "--data_dir", products, "--output_dir", tmp_path / "photos")
    assert_one_clear_line(result, "settings.json: expected what prepare_enmap.py writes")
    assert contents(tmp_path / "photos") == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data_dir", "nowhere"], "got nothing there"),
        (["--tile_size", 0], "tile_size: expected at least 1"),
        (["--max_cloud", 1.5], "max_cloud: expected a share"),
    ],
)
def test_bad_arguments(products, tmp_path, run_script, arguments, words):
    result = run_script("prepare_enmap.py", "--data_dir", products, "--output_dir", tmp_path / "corpus", *arguments)
    assert_one_clear_line(result, words)


def test_cloud_decides_which_tiles_are_kept(tmp_path):
    assert CLOUD == (slice(0, 64), slice(64, 128))
    write_small_product(tmp_path / "product")
    kept = {}
    for max_cloud in (0.0, 1.0):
        folder = tmp_path / f"corpus-{max_cloud}"
        prepare_corpus(tmp_path / "product", folder, CutSettings(64, 0.5, max_cloud), progress=False)
        kept[max_cloud] = load_dataset(str(folder), split="train")["name"][:]
    assert kept == {0.0: [f"{NAME}_x00064_y00064"], 1.0: [f"{NAME}_x00064_y00000", f"{NAME}_x00064_y00064"]}


def test_schema_is_plain(corpus):
    (file, *_) = sorted((corpus / "data").iterdir())
    schema = pq.read_schema(file)
    assert schema.equals(SCHEMA) and schema.field("image").type == pa.binary()


# Reading


CUT = dict(tile_size=32, max_nodata=0.5, max_cloud=0.1)


@pytest.fixture(scope="module")
def cloudless_products(tmp_path_factory):
    folder = tmp_path_factory.mktemp("products")
    for number in range(3):
        name = NAME.replace("_003_", f"_{number:03d}_")
        quality = {**small_quality(), "cloud": np.zeros((150, 170), dtype=np.uint8)}
        write_small_product(folder, name, cube=small_cube(number), quality=quality)
    return folder


@pytest.fixture(scope="module")
def cloudless_corpus(cloudless_products, tmp_path_factory):
    """48 tiles in three shards; four tiles to a row group, so that a few tiles make many."""
    folder = tmp_path_factory.mktemp("corpora") / "corpus"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets_loading.corpus, "TILES_PER_ROW_GROUP", 4)
        prepare_corpus(cloudless_products, folder, CutSettings(**CUT), progress=False)
    return folder


@pytest.fixture(autouse=True)
def small_row_groups(monkeypatch):
    monkeypatch.setattr("datasets_loading.corpus.ROW_GROUPS_AT_ONCE", 3)


@pytest.fixture(scope="module")
def expected(cloudless_products):
    tiles = read_tile_set(cloudless_products, 32, progress=False)
    return dict(zip(tiles.names, tiles, strict=True))


def assert_same_rows(rows, expected):
    rows = list(rows)
    assert sorted(row["name"] for row in rows) == sorted(expected)
    for row in rows:
        assert set(row) == set(SCHEMA.names)
        np.testing.assert_array_equal(tile_image(row), expected[row["name"]])


# The builder


@pytest.mark.parametrize("num_proc", [None, 2])
def test_builder_of_shards(cloudless_corpus, expected, num_proc):
    builder = EnMAPCorpus(data_dir=str(cloudless_corpus))
    builder.download_and_prepare(num_proc=num_proc)
    dataset = builder.as_dataset(split="train")
    assert dataset.features == Features.from_arrow_schema(SCHEMA)
    assert_same_rows(dataset, expected)
    assert_same_rows(builder.as_streaming_dataset(split="train"), expected)
    assert "@article{storch2023enmap" in builder.info.citation
    assert "may not be re-published" in builder.info.license


def test_builder_and_load_dataset_agree(cloudless_corpus):
    stream = EnMAPCorpus(data_dir=str(cloudless_corpus)).as_streaming_dataset(split="train")
    for ours, plain in zip(stream, load_dataset(str(cloudless_corpus), split="train"), strict=True):
        assert ours == plain


def test_the_cache_follows_the_folder(cloudless_corpus, cloudless_products, expected, tmp_path):
    shutil.copytree(cloudless_corpus, tmp_path / "corpus")

    def num_rows():
        builder = EnMAPCorpus(data_dir=str(tmp_path / "corpus"))
        builder.download_and_prepare()
        return builder.as_dataset(split="train").num_rows

    assert num_rows() == len(expected) == 48
    name = NAME.replace("_003_", "_009_")
    write_small_product(tmp_path / "more", name)
    added = prepare_corpus(tmp_path / "more", tmp_path / "corpus", CutSettings(**CUT), progress=False)
    assert num_rows() == added.num_tiles > 48


def test_streams_of_two_nodes_hold_every_tile_once(cloudless_corpus, expected):
    stream = EnMAPCorpus(data_dir=str(cloudless_corpus)).as_streaming_dataset(split="train")
    assert stream.num_shards == 3
    parts = [[row["name"] for row in split_dataset_by_node(stream, node, 2)] for node in range(2)]
    assert [len(part) for part in parts] == [24, 24]
    assert sorted(parts[0] + parts[1]) == sorted(expected)
    shuffled = stream.shuffle(seed=3, buffer_size=8)
    parts = [[row["name"] for row in split_dataset_by_node(shuffled, node, 2)] for node in range(2)]
    assert sorted(parts[0] + parts[1]) == sorted(expected)


def test_stream_goes_on_where_it_was_stopped(cloudless_corpus):
    def stream():
        return EnMAPCorpus(data_dir=str(cloudless_corpus)).as_streaming_dataset(split="train")

    names = [row["name"] for row in stream()]
    first = stream()
    seen = []
    for row in first:
        seen.append(row["name"])
        if len(seen) == 19:
            state = json.loads(json.dumps(first.state_dict()))
            break
    second = stream()
    second.load_state_dict(state)
    assert seen + [row["name"] for row in second] == names


def test_builder_says_what_is_missing(tmp_path, cloudless_products, cloudless_corpus):
    for options in ({}, {"data_dir": str(cloudless_products)}):
        with pytest.raises(ValueError, match=r"expected data_dir .*prepare_enmap.py.*https://www.enmap.org"):
            EnMAPCorpus(**options)
    shutil.copytree(cloudless_corpus, tmp_path / "corpus")
    (tmp_path / "corpus" / "band_statistics.json").unlink()
    with pytest.raises(ValueError, match="expected a finished corpus"):
        EnMAPCorpus(data_dir=str(tmp_path / "corpus"))


def test_names_of_folders_are_no_patterns(tmp_path, cloudless_corpus):
    shutil.copytree(cloudless_corpus, tmp_path / "corpus [1]*")
    assert len(read_corpus(tmp_path / "corpus [1]*")) == 48


# Tiles by number


@pytest.mark.parametrize("streaming", [False, True])
def test_tiles_are_those_of_the_products(cloudless_corpus, cloudless_products, expected, streaming):
    tiles = read_corpus(cloudless_corpus, streaming=streaming)
    in_memory = read_tile_set(cloudless_products, 32, progress=False)
    assert len(tiles) == 48 and sorted(tiles.names) == sorted(expected)
    for name, tile, number in zip(tiles.names, tiles, range(48), strict=True):
        assert tile.dtype == np.int16 and tile.shape == (12, 32, 32)
        np.testing.assert_array_equal(tile, expected[name])
        np.testing.assert_array_equal(tile, tiles[number])
    assert not tiles[0].flags.writeable
    assert tiles.num_bands == 12 and tiles.nodata == -32768 and tiles.scale == 10000
    np.testing.assert_array_equal(tiles.wavelengths, WAVELENGTHS)
    np.testing.assert_array_equal(tiles.valid_bands, in_memory.valid_bands)
    np.testing.assert_array_equal(tiles.shapes, [[32, 32]] * 48)
    for low, high in ((-0.02, 1.0), (0.0, 0.1)):
        for ours, theirs in zip(tiles.band_statistics(low, high), band_statistics(in_memory, low, high), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    some = tiles.select([40, 3])
    assert some.names == [tiles.names[40], tiles.names[3]]
    np.testing.assert_array_equal(some[0], tiles[40])
    np.testing.assert_array_equal(some.select([1])[0], tiles[3])
    elsewhere = pickle.loads(pickle.dumps(some))
    np.testing.assert_array_equal(elsewhere[1], tiles[3])


@pytest.mark.parametrize("streaming", [False, True])
def test_windows_of_chosen_bands(cloudless_corpus, cloudless_products, streaming):
    on_disk, in_memory = (
        read_corpus(cloudless_corpus, streaming=streaming),
        read_tile_set(cloudless_products, 32, progress=False),
    )
    assert on_disk.names == in_memory.names
    bands = [7, 0, 3]
    for cut in (RandomWindows, GridWindows):
        ours = cut(on_disk, (8, 8), bands=bands)
        theirs = cut(replace(in_memory, images=[tile[bands] for tile in in_memory]), (8, 8))
        assert len(ours) == len(theirs)
        for index in range(0, len(ours), 37):
            np.testing.assert_array_equal(ours[index]["pixels"], theirs[index]["pixels"])
    # What a window is made into must not reach the disk, nor the next window.
    whole = GridWindows(on_disk, (32, 32))[0]["pixels"]
    whole += 1
    np.testing.assert_array_equal(whole - 1, GridWindows(on_disk, (32, 32))[0]["pixels"])


def test_stream_keeps_few_row_groups(cloudless_corpus, monkeypatch):
    from datasets_loading import corpus as enmap_corpus

    reads = []
    read = enmap_corpus.read_row_group
    monkeypatch.setattr(enmap_corpus, "read_row_group", lambda *place: reads.append(place) or read(*place))
    tiles = read_corpus(cloudless_corpus, streaming=True)
    sampler = GroupedSampler(tiles.groups, 5, seed=0, groups_at_once=tiles.groups_at_once)
    for window in sampler:
        tiles[window // 5]
    assert len(reads) == len(set(reads)) == 12  # each row group once in an epoch


def corpus_of(folder, num_tiles, num_bands=224):
    """A corpus of random tiles of 64 x 64 pixels, without a product."""
    (folder / "data").mkdir(parents=True)
    generator = np.random.default_rng(0)
    wavelengths = 400 + 9.0 * np.arange(num_bands)
    summary = SourceSummary([])
    summary.start(SimpleNamespace(num_bands=num_bands, wavelengths=wavelengths, fwhm=None), valid=True)
    sizes = {"num_bands": num_bands, "height": 64, "width": 64, "wavelengths": wavelengths}
    rows = (
        {"name": str(number), "image": generator.integers(0, 5000, (num_bands, 64, 64), dtype=np.int16), **sizes}
        for number in range(num_tiles)
    )
    _write_tiles(folder / "data" / "made-up.parquet", rows, summary)
    (folder / "settings.json").write_text("{}")
    write_statistics_and_card(folder, [summary], CutSettings(**CUT))
    return folder


MEMORY = """
import re, sys
import datasets
datasets.disable_progress_bars()
from datasets_loading import corpus as enmap_corpus
enmap_corpus.ROW_GROUPS_AT_ONCE = 1
def private():
    return int(re.search(r"RssAnon:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) // 1024
for streaming in (False, True):
    tiles = enmap_corpus.read_corpus(sys.argv[1], streaming=streaming)
    before, most, total, size = private(), 0, 0, 0
    for tile in tiles:
        total += int(tile.sum())
        size += tile.nbytes
        most = max(most, private())
    print(most - before, size // 2**20, total > 0)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
def test_tiles_are_not_held_in_memory(tmp_path):
    corpus_of(tmp_path / "corpus", 128)
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", MEMORY, tmp_path / "corpus"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    # A row group is 29 MB and as many when it is decompressed
    for line, allowed in zip(result.stdout.splitlines(), (20, 150), strict=True):
        growth, size, read = line.split()
        assert (size, read) == ("224", "True")
        assert int(growth) < allowed, allowed


@pytest.mark.parametrize("form", ["Array3D", "saved", "folder of plain Parquet"])
def test_other_datasets_of_tiles(tmp_path, form):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 5000, (4, 3, 16, 16), dtype=np.int16)
    images[2, 1] = -32768
    features = Features({"image": Array3D((3, 16, 16), "int16"), "wavelengths": List(Value("float64"))})
    wavelengths = [500.0, 600.0, 700.0]
    dataset = Dataset.from_dict({"image": list(images), "wavelengths": [wavelengths] * 4}, features=features)
    if form == "saved":
        dataset.save_to_disk(tmp_path / "data")
    else:
        (tmp_path / "data").mkdir()
        dataset.to_parquet(tmp_path / "data" / "train.parquet")
    tiles = read_corpus(tmp_path / "data")
    for tile, image in zip(tiles, images, strict=True):
        assert tile.dtype == np.int16
        np.testing.assert_array_equal(tile, image)
    assert tiles.valid_bands.tolist() == [True, False, True] and tiles.names == ["0", "1", "2", "3"]
    mean, _ = tiles.band_statistics(0.0, 1.0)
    np.testing.assert_allclose(mean[0], images[:, 0].mean() / 10000)
    with pytest.raises(ValueError, match="expected a folder written by prepare_enmap.py"):
        read_corpus(tmp_path / "data", streaming=True)
    with pytest.raises(ValueError, match="nowhere: .* got no such folder"):
        read_corpus(tmp_path / "nowhere", streaming=True)


def test_other_datasets_must_have_the_columns_and_one_set_of_bands(tmp_path):
    Dataset.from_dict({"image": [[1]]}).to_parquet(tmp_path / "a" / "train.parquet")
    with pytest.raises(ValueError, match="expected columns `image` and `wavelengths`, got image"):
        read_corpus(tmp_path / "a")
    features = Features({"image": Array3D((2, 4, 4), "int16"), "wavelengths": List(Value("float64"))})
    rows = {"image": list(np.ones((2, 2, 4, 4), np.int16)), "wavelengths": [[500.0, 600.0], [500.0, 650.0]]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "b" / "train.parquet")
    with pytest.raises(ValueError, match="expected the 2 bands of the first tile, tile 1 has others"):
        read_corpus(tmp_path / "b")


IMAGE = np.arange(48, dtype=np.int16).reshape(3, 4, 4)
NANOMETERS = [500.0, 600.0, 700.0]


@pytest.mark.parametrize(
    ("images", "wavelengths", "message"),
    [
        (IMAGE.astype(np.float32) / 10000, NANOMETERS, "reflectance x 10000.* got 0.0001 in row 0"),
        (np.where(IMAGE == 5, np.nan, IMAGE), NANOMETERS, "reflectance x 10000.* got nan in row 0"),
        (np.where(IMAGE == 5, np.uint16(65535), IMAGE), NANOMETERS, "nodata -32768, got 65535 in row 0"),
        (
            IMAGE.transpose(1, 2, 0),
            NANOMETERS,
            r"an image \(3 bands, .*\(4, 4, 3\) in row 0",
        ),
        (IMAGE, NANOMETERS[::-1], "wavelengths in nm, ascending .* got .*700.* in row 0"),
        (IMAGE, [0.5, 0.6, 0.7], "wavelengths in nm, ascending from 300 to 2600"),
        (IMAGE, None, "wavelengths in nm, ascending .* got None"),
    ],
)
def test_other_datasets_must_hold_what_corpora_hold(tmp_path, images, wavelengths, message):
    Dataset.from_dict({"image": [images.tolist()], "wavelengths": [wavelengths]}).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match=f"data: expected.*{message}"):
        read_corpus(tmp_path / "data")


def test_saved_datasets_of_lists_and_of_splits(tmp_path):
    larger = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    rows = {"image": [IMAGE.tolist(), larger.tolist()], "wavelengths": [NANOMETERS] * 2}
    DatasetDict(train=Dataset.from_dict(rows)).save_to_disk(tmp_path / "train")
    tiles = read_corpus(tmp_path / "train")
    assert tiles.shapes.tolist() == [[4, 4], [4, 5]] and tiles[1].dtype == np.int16
    np.testing.assert_array_equal(tiles[1], larger)
    DatasetDict(test=Dataset.from_dict(rows)).save_to_disk(tmp_path / "test")
    with pytest.raises(ValueError, match="expected a split `train`, got test"):
        read_corpus(tmp_path / "test")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "train.parquet").write_bytes(b"PAR1 nothing PAR1")
    (tmp_path / "script.py").touch()
    for other in ("damaged", "script.py"):
        with pytest.raises(ValueError, match=f"{other}: expected a dataset of tiles"):
            read_corpus(tmp_path / other)
    Dataset.from_dict({name: [] for name in rows}).save_to_disk(tmp_path / "empty")
    with pytest.raises(ValueError, match="expected tiles, got a dataset without rows"):
        read_corpus(tmp_path / "empty")
    arguments = argparse.Namespace(dataset_name=None, train_dir=tmp_path / "train", validation_dir=None)
    vars(arguments).update(streaming=False, train_val_split=0.5, seed=0)
    assert [len(part) for part in load_tiles(arguments, progress=False)] == [1, 1]


def test_damage_is_one_clear_line(cloudless_corpus, tmp_path, run_script):
    shutil.copytree(cloudless_corpus, tmp_path / "corpus")
    path = sorted((tmp_path / "corpus" / "data").iterdir())[1]
    path.write_bytes(path.read_bytes()[:-2000])
    corpus = ["--train_dir", tmp_path / "corpus", "--streaming", "--bands", "valid"]
    result = run_script("run_mim.py", *corpus, "--output_dir", tmp_path / "model")
    assert_one_clear_line(result, path, "expected a whole Parquet file")


@pytest.mark.parametrize("streaming", [False, True])
def test_damage_that_shows_only_when_tiles_are_read(cloudless_corpus, tmp_path, streaming):
    shutil.copytree(cloudless_corpus, tmp_path / "corpus")
    path = sorted((tmp_path / "corpus" / "data").iterdir())[1]
    content = bytearray(path.read_bytes())
    content[20000:30000] = bytes(10000)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path}: expected a whole Parquet file")):
        list(read_corpus(tmp_path / "corpus", streaming=streaming))


# The order in which windows are taken


def test_grouped_sampler_takes_every_window_once_and_groups_together():
    groups = np.repeat(np.arange(10), 4)[np.random.default_rng(0).permutation(40)]
    sampler = GroupedSampler(groups, 3, seed=5, groups_at_once=2)
    order = list(sampler)
    assert len(sampler) == 120 and sorted(order) == list(range(120))
    assert list(sampler) == order
    for start in range(0, 120, 24):
        assert len({groups[window // 3] for window in order[start : start + 24]}) == 2
    assert len({groups[window // 3] for window in order[:6]}) == 2  # and the two are mixed
    sampler.set_epoch(1)
    assert list(sampler) != order and sorted(sampler) == list(range(120))
    assert list(GroupedSampler(groups, 3, seed=6, groups_at_once=2)) != order


@pytest.mark.parametrize("num_consumers", [2, 3, 4])
def test_consumers_share_few_groups(num_consumers):
    groups = np.repeat(np.arange(30), 4)
    arguments = dict(groups_at_once=3, batch_size=10, num_consumers=num_consumers)
    order = list(GroupedSampler(groups, 5, seed=1, **arguments))
    assert sorted(order) == list(range(600))
    batches = [order[start : start + 10] for start in range(0, 600, 10)]
    of_consumer = [
        {groups[window // 5] for batch in batches[consumer::num_consumers] for window in batch}
        for consumer in range(num_consumers)
    ]
    # Two that follow each other may share the groups that are mixed where one ends and the next begins.
    assert sum(len(of_one) for of_one in of_consumer) <= 30 + 3 * (num_consumers - 1)


# Training from a corpus

SMALL_MODEL = (
    "hidden_size=24,num_spatial_layers=1,num_spectral_layers=1,num_attention_heads=2,head_dim=8,intermediate_size=16,"
    "band_patch_size=11"
)
TRAINING = ["--bands", "valid", "--config_overrides", SMALL_MODEL, "--per_device_train_batch_size", 4]


def last_epoch(folder):
    lines = (folder / "log_history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if "distinct_tiles" in line][-1]


@pytest.mark.parametrize("streaming", [False, True])
def test_run_mim_sees_every_tile_once(cloudless_corpus, cloudless_products, tmp_path, run_script, streaming):
    write_small_product(tmp_path / "validation")
    result = run_script(
        *(
            "run_mim.py",
            "--train_dir",
            cloudless_corpus,
            "--validation_dir",
            tmp_path / "validation",
            "--tile_size",
            32,
        ),
        *("--output_dir", tmp_path / "model", "--windows_per_tile", 1, "--num_train_epochs", 2, *TRAINING),
        *("--per_device_train_batch_size", 16),
        *(["--streaming", "--validation_dir", cloudless_corpus] if streaming else []),
    )
    assert result.returncode == 0, result.stderr
    assert last_epoch(tmp_path / "model") == {
        "step": 6,
        "windows": 48,
        "distinct_windows": 48,
        "distinct_tiles": 48,
    }


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_see_every_tile_once(cloudless_corpus, tmp_path, streaming, workers):
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    environment |= {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", 29600 + workers]
    command += [SCRIPTS / "run_mim.py", "--train_dir", cloudless_corpus, "--validation_dir", cloudless_corpus]
    command += ["--output_dir", tmp_path / "model", "--windows_per_tile", 1, "--num_train_epochs", 1, *TRAINING]
    command += ["--dataloader_num_workers", workers, *(["--streaming"] if streaming else [])]
    result = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert last_epoch(tmp_path / "model") == {
        "step": 6,
        "windows": 48,
        "distinct_windows": 48,
        "distinct_tiles": 48,
    }


@pytest.mark.parametrize("streaming", [False, True])
def test_resumed_run_is_the_same_run(cloudless_corpus, tmp_path, run_script, streaming):
    arguments = [
        *("run_mim.py", "--train_dir", cloudless_corpus, "--windows_per_tile", 1, "--max_train_steps", 4, *TRAINING),
        *("--checkpointing_steps", 2, "--dropout", 0.1, *(["--streaming"] if streaming else [])),
    ]
    assert run_script(*arguments, "--output_dir", tmp_path / "whole").returncode == 0
    shutil.copytree(tmp_path / "whole" / "step_2", tmp_path / "resumed" / "step_2")
    arguments += ["--output_dir", tmp_path / "resumed", "--resume_from_checkpoint", "latest"]
    result = run_script(*arguments)
    assert result.returncode == 0, result.stderr
    whole, resumed = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "resumed"))
    assert whole == resumed


def test_streaming_needs_shards(cloudless_products, tmp_path, run_script):
    result = run_script(
        *(
            "run_mim.py",
            "--train_dir",
            cloudless_products,
            "--output_dir",
            tmp_path / "model",
            "--streaming",
            *TRAINING,
        )
    )
    assert_one_clear_line(result, "expected a folder written by prepare_enmap.py")


def test_card_shows_how_to_read_a_row(cloudless_corpus, tmp_path):
    card = (cloudless_corpus / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("path/to/this/folder", str(cloudless_corpus))
    names = {}
    exec(code, names)
    assert names["image"].shape == (12, 32, 32) and np.nanmax(names["reflectance"]) < 1


def test_a_source_that_memory_ran_out_for_is_named_and_the_others_go_on(tmp_path, monkeypatch):
    for number in (3, 4):
        write_small_product(tmp_path / "products", product_name(number))

    def read_cloud(self, window=None, usual=EnMAPProduct.read_cloud):
        if self.name == product_name(3):
            raise MemoryError("unable to allocate 9 GiB")
        return usual(self, window)

    monkeypatch.setattr(EnMAPProduct, "read_cloud", read_cloud)
    report = prepare_corpus(tmp_path / "products", tmp_path / "corpus", SETTINGS, progress=False)
    assert report.num_sources == 1 and [path.stem for path in (tmp_path / "corpus" / "data").iterdir()] == [
        product_name(4)
    ]
    (error,) = report.errors
    assert product_name(3) in error and "in the free memory, got a larger one (unable to allocate 9 GiB)" in error


def test_folders_of_long_names_have_sources_of_their_own(tmp_path):
    names = [datasets_loading.corpus._safe_name("a" * 300 + end) for end in "bc"]
    assert names[0] != names[1] and max(map(len, names)) < 230
    assert datasets_loading.corpus._safe_name("..") == "_"

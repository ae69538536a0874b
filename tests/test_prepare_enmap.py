"""Preparing a corpus: what tiles carry, restarts that end byte-identical, workers, and bad input."""

import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC
from pathlib import Path

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import rasterio.warp
from conftest import SCRIPTS, assert_one_clear_line
from datasets import Features, load_dataset
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
    SourceSummary,
    is_corpus,
    local_executor,
    prepare_corpus,
    read_corpus,
    tile_image,
)
from datasets_loading.raster_file import ProductError
from datasets_loading.simulation.product_writer import write_enmap_product
from datasets_loading.tiles import read_tile_set

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


def test_tiles_are_those_of_the_products(products, corpus):
    rows = load_dataset(str(corpus), split="train").sort("name")
    expected = read_tile_set(products, 32, max_cloud=0.1, progress=False)
    by_name = dict(zip(expected.names, expected.tiles, strict=True))
    assert rows["name"][:] == sorted(by_name)
    for row in rows:
        image = tile_image(row)
        assert image.dtype == np.int16
        np.testing.assert_array_equal(image, by_name[row["name"]])


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
    stack = np.stack(tiles.tiles)
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


def test_places_may_be_unknown(tmp_path):
    write_tile(tmp_path / "tiles" / "tile.tif", small_cube()[:, :20, 40:60], crs=None)
    prepare(tmp_path / "tiles", tmp_path / "corpus")
    (row,) = load_dataset(str(tmp_path / "corpus"), split="train")
    assert row["crs"] is row["longitude"] is row["transform"] is None


# Restarts and workers


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
    assert_one_clear_line(result, tmp_path / "corpus", "expected no other run")


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

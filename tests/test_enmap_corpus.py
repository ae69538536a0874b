"""Corpora as Hugging Face datasets and as tiles by number: the same pixels each way, and never all in memory."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import SCRIPTS, assert_one_clear_line
from datasets import Array3D, Dataset, Features, List, Value, load_dataset
from datasets.distributed import split_dataset_by_node
from small_products import NAME, WAVELENGTHS, small_cube, small_quality, write_small_product

import datasets_loading.corpus
from datasets_loading.corpus import (
    SCHEMA,
    CutSettings,
    EnMAPCorpus,
    SourceSummary,
    _write_tiles,
    prepare_corpus,
    read_corpus,
    tile_image,
    write_statistics_and_card,
)
from datasets_loading.tiles import band_statistics, read_tile_set
from datasets_loading.windows import GridWindows, GroupedSampler, RandomWindows

CUT = dict(tile_size=32, max_nodata=0.5, max_cloud=0.1)


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    folder = tmp_path_factory.mktemp("products")
    for number in range(3):
        name = NAME.replace("_003_", f"_{number:03d}_")
        quality = {**small_quality(), "cloud": np.zeros((150, 170), dtype=np.uint8)}
        write_small_product(folder, name, cube=small_cube(number), quality=quality)
    return folder


@pytest.fixture(scope="module")
def corpus(products, tmp_path_factory):
    """48 tiles in three shards; four tiles to a row group, so that a few tiles make many."""
    folder = tmp_path_factory.mktemp("corpora") / "corpus"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets_loading.corpus, "TILES_PER_ROW_GROUP", 4)
        prepare_corpus(products, folder, CutSettings(**CUT), progress=False)
    return folder


@pytest.fixture(autouse=True)
def small_row_groups(monkeypatch):
    monkeypatch.setattr("datasets_loading.corpus.ROW_GROUPS_AT_ONCE", 3)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def expected(products):
    tiles = read_tile_set(products, 32, progress=False)
    return dict(zip(tiles.names, tiles.tiles, strict=True))


def assert_same_rows(rows, expected):
    rows = list(rows)
    assert sorted(row["name"] for row in rows) == sorted(expected)
    for row in rows:
        assert set(row) == set(SCHEMA.names)
        np.testing.assert_array_equal(tile_image(row), expected[row["name"]])


# The builder


@pytest.mark.parametrize("num_proc", [None, 2])
def test_builder_of_shards(corpus, expected, num_proc):
    builder = EnMAPCorpus(data_dir=str(corpus))
    builder.download_and_prepare(num_proc=num_proc)
    dataset = builder.as_dataset(split="train")
    assert dataset.features == Features.from_arrow_schema(SCHEMA)
    assert_same_rows(dataset, expected)
    assert_same_rows(builder.as_streaming_dataset(split="train"), expected)
    assert "@article{storch2023enmap" in builder.info.citation
    assert "may not be re-published" in builder.info.license


def test_builder_and_load_dataset_agree(corpus):
    stream = EnMAPCorpus(data_dir=str(corpus)).as_streaming_dataset(split="train")
    for ours, plain in zip(stream, load_dataset(str(corpus), split="train"), strict=True):
        assert ours == plain


def test_the_cache_follows_the_folder(corpus, products, expected, tmp_path):
    shutil.copytree(corpus, tmp_path / "corpus")

    def num_rows():
        builder = EnMAPCorpus(data_dir=str(tmp_path / "corpus"))
        builder.download_and_prepare()
        return builder.as_dataset(split="train").num_rows

    assert num_rows() == len(expected) == 48
    name = NAME.replace("_003_", "_009_")
    write_small_product(tmp_path / "more", name)
    added = prepare_corpus(tmp_path / "more", tmp_path / "corpus", CutSettings(**CUT), progress=False)
    assert num_rows() == added.num_tiles > 48


def test_streams_of_two_nodes_hold_every_tile_once(corpus, expected):
    stream = EnMAPCorpus(data_dir=str(corpus)).as_streaming_dataset(split="train")
    assert stream.num_shards == 3
    parts = [[row["name"] for row in split_dataset_by_node(stream, node, 2)] for node in range(2)]
    assert [len(part) for part in parts] == [24, 24]
    assert sorted(parts[0] + parts[1]) == sorted(expected)
    shuffled = stream.shuffle(seed=3, buffer_size=8)
    parts = [[row["name"] for row in split_dataset_by_node(shuffled, node, 2)] for node in range(2)]
    assert sorted(parts[0] + parts[1]) == sorted(expected)


def test_stream_goes_on_where_it_was_stopped(corpus):
    def stream():
        return EnMAPCorpus(data_dir=str(corpus)).as_streaming_dataset(split="train")

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


def test_builder_says_what_is_missing(tmp_path, products, corpus):
    for options in ({}, {"data_dir": str(products)}):
        with pytest.raises(ValueError, match=r"expected data_dir .*prepare_enmap.py.*https://www.enmap.org"):
            EnMAPCorpus(**options)
    shutil.copytree(corpus, tmp_path / "corpus")
    (tmp_path / "corpus" / "band_statistics.json").unlink()
    with pytest.raises(ValueError, match="expected a finished corpus"):
        EnMAPCorpus(data_dir=str(tmp_path / "corpus"))


def test_names_of_folders_are_no_patterns(tmp_path, corpus):
    shutil.copytree(corpus, tmp_path / "corpus [1]*")
    assert len(read_corpus(tmp_path / "corpus [1]*")) == 48


# Tiles by number


@pytest.mark.parametrize("streaming", [False, True])
def test_tiles_are_those_of_the_products(corpus, products, expected, streaming):
    tiles = read_corpus(corpus, streaming=streaming)
    in_memory = read_tile_set(products, 32, progress=False)
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
def test_windows_of_chosen_bands(corpus, products, streaming):
    on_disk, in_memory = read_corpus(corpus, streaming=streaming), read_tile_set(products, 32, progress=False)
    assert on_disk.names == in_memory.names
    bands = [7, 0, 3]
    for cut in (RandomWindows, GridWindows):
        ours = cut(on_disk, (8, 8), bands=bands)
        theirs = cut(in_memory.select_bands(bands), (8, 8))
        assert len(ours) == len(theirs)
        for index in range(0, len(ours), 37):
            np.testing.assert_array_equal(ours[index]["pixels"], theirs[index]["pixels"])
    # What a window is made into must not reach the disk, nor the next window.
    whole = GridWindows(on_disk, (32, 32))[0]["pixels"]
    whole += 1
    np.testing.assert_array_equal(whole - 1, GridWindows(on_disk, (32, 32))[0]["pixels"])


def test_stream_keeps_few_row_groups(corpus, monkeypatch):
    from datasets_loading import corpus as enmap_corpus

    reads = []
    read = enmap_corpus.read_row_group
    monkeypatch.setattr(enmap_corpus, "read_row_group", lambda *place: reads.append(place) or read(*place))
    tiles = read_corpus(corpus, streaming=True)
    sampler = GroupedSampler(tiles.groups, 5, seed=0, groups_at_once=tiles.groups_at_once)
    for window in sampler:
        tiles[window // 5]
    assert len(reads) == len(set(reads)) == 12  # each row group once in an epoch


def corpus_of(folder, num_tiles, num_bands=224):
    """A corpus of random tiles of 64 x 64 pixels, without a product."""
    (folder / "data").mkdir(parents=True)
    generator = np.random.default_rng(0)
    wavelengths = 450 + 10.0 * np.arange(num_bands)
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
tiles = enmap_corpus.read_corpus(sys.argv[1], streaming=sys.argv[2] == "True")
before, most, total = private(), 0, 0
for tile in tiles:
    total += int(tile.astype("int64").sum())
    most = max(most, private())
print(most - before, sum(tile.nbytes for tile in tiles) // 2**20, total > 0)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
def test_tiles_are_not_held_in_memory(tmp_path):
    corpus_of(tmp_path / "corpus", 128)
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    # A tile as int64 is 7 MB, a row group 29 MB and as many when it is decompressed.
    for streaming, allowed in ((False, 20), (True, 150)):
        command = [sys.executable, "-c", MEMORY, tmp_path / "corpus", str(streaming)]
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr
        growth, size, read = result.stdout.split()
        assert (size, read) == ("224", "True")
        assert int(growth) < allowed, streaming


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


def test_other_datasets_must_have_the_columns_and_one_set_of_bands(tmp_path):
    Dataset.from_dict({"image": [[1]]}).to_parquet(tmp_path / "a" / "train.parquet")
    with pytest.raises(ValueError, match="expected columns `image` and `wavelengths`, got image"):
        read_corpus(tmp_path / "a")
    features = Features({"image": Array3D((2, 4, 4), "int16"), "wavelengths": List(Value("float64"))})
    rows = {"image": list(np.ones((2, 2, 4, 4), np.int16)), "wavelengths": [[500.0, 600.0], [500.0, 650.0]]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "b" / "train.parquet")
    with pytest.raises(ValueError, match="expected the 2 bands of the first tile, tile 1 has others"):
        read_corpus(tmp_path / "b")


@pytest.mark.parametrize("streaming", [False, True])
def test_damaged_shard(corpus, tmp_path, run_script, streaming):
    shutil.copytree(corpus, tmp_path / "corpus")
    shard = sorted((tmp_path / "corpus" / "data").iterdir())[1]
    shard.write_bytes(shard.read_bytes()[:-2000])
    result = run_script(
        *("run_mim.py", "--train_dir", tmp_path / "corpus", "--output_dir", tmp_path / "model", "--bands", "valid"),
        *(["--streaming"] if streaming else []),
        *("--per_device_train_batch_size", 4),
    )
    assert_one_clear_line(result, shard, "expected a whole Parquet file")


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
def test_run_mim_sees_every_tile_once(corpus, products, tmp_path, run_script, streaming):
    write_small_product(tmp_path / "validation")
    result = run_script(
        *("run_mim.py", "--train_dir", corpus, "--validation_dir", tmp_path / "validation", "--tile_size", 32),
        *("--output_dir", tmp_path / "model", "--windows_per_tile", 1, "--num_train_epochs", 2, *TRAINING),
        *(["--streaming", "--validation_dir", corpus] if streaming else []),
    )
    assert result.returncode == 0, result.stderr
    assert last_epoch(tmp_path / "model") == {
        "step": 24,
        "windows": 48,
        "distinct_windows": 48,
        "distinct_tiles": 48,
    }


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_see_every_tile_once(corpus, tmp_path, streaming, workers):
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    environment |= {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", 29600 + workers]
    command += [SCRIPTS / "run_mim.py", "--train_dir", corpus, "--validation_dir", corpus]
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
def test_resumed_run_is_the_same_run(corpus, tmp_path, run_script, streaming):
    arguments = [
        *("run_mim.py", "--train_dir", corpus, "--windows_per_tile", 1, "--max_train_steps", 13, *TRAINING),
        *("--checkpointing_steps", 7, "--dropout", 0.1, *(["--streaming"] if streaming else [])),
    ]
    assert run_script(*arguments, "--output_dir", tmp_path / "whole").returncode == 0
    shutil.copytree(tmp_path / "whole" / "step_7", tmp_path / "resumed" / "step_7")
    arguments += ["--output_dir", tmp_path / "resumed", "--resume_from_checkpoint", "latest"]
    result = run_script(*arguments)
    assert result.returncode == 0, result.stderr
    whole, resumed = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "resumed"))
    assert whole == resumed


def test_streaming_needs_shards(products, tmp_path, run_script):
    result = run_script(
        *("run_mim.py", "--train_dir", products, "--output_dir", tmp_path / "model", "--streaming", *TRAINING)
    )
    assert_one_clear_line(result, "expected a folder written by prepare_enmap.py")


def test_card_shows_how_to_read_a_row(corpus, tmp_path):
    card = (corpus / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("path/to/this/folder", str(corpus))
    names = {}
    exec(code, names)
    assert names["image"].shape == (12, 32, 32) and np.nanmax(names["reflectance"]) < 1

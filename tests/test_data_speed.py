"""The benchmark of reading: every way reads the same pixels, and the figures are what they say."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_one_clear_line
from test_enmap_corpus import corpus_of

from datasets_loading.enmap_corpus import read_corpus
from hsst.experiments import data_speed
from hsst.experiments.data_speed import BASELINES, GEOTIFF, MAP_STYLE, SHARDS, WAYS, open_way, plot_reading

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return corpus_of(tmp_path_factory.mktemp("corpora") / "corpus", 40, num_bands=6)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_every_way_reads_the_same_tiles(corpus, tmp_path):
    tiles = read_corpus(corpus, streaming=True)
    shape, num_tiles = data_speed._write_forms(tiles, tmp_path, 39)
    assert (shape, num_tiles) == ((6, 64, 64), 32)
    expected = sorted(tile.tobytes() for tile in tiles.select(range(32)))
    for way in WAYS:
        for num_shares in (1, 2):
            read = [open_way(way, tmp_path, share, num_shares) for share in range(num_shares)]
            for _ in range(2):
                shares = [[tile.tobytes() for tile in read_share()] for read_share in read]
                assert {len(share) for share in shares} == {32 // num_shares}
                assert sorted(sum(shares, [])) == expected


def test_rate_is_tiles_by_time():
    def read():
        for _ in range(4):
            time.sleep(0.01)
            yield np.zeros((2, 3, 3), dtype=np.int16)

    assert 50 < data_speed._tiles_per_second(read, 0.2) <= 100


GREEDY = """
from pathlib import Path
import numpy as np
from hsst.experiments import data_speed

def open_greedy(*_):
    kept = []
    return lambda: (kept.append(np.ones((100, 125, 125), np.int16)) or kept[-1] for _ in range(20))

data_speed.open_way = open_greedy
print(data_speed._peak_memory("greedy", Path()))
"""


def test_memory_of_what_is_held():
    if data_speed._private_memory() is None:
        pytest.skip("needs Linux's account of memory")
    # In a process of its own, as it is used: here, memory that earlier tests have freed would be taken first
    process = subprocess.run([sys.executable, "-c", GREEDY], capture_output=True, text=True, cwd=ROOT, check=True)
    assert float(process.stdout) == pytest.approx(20 * 3.125, rel=0.2)


def test_data_share_is_time_by_time(corpus, tmp_path):
    data_speed._write_forms(read_corpus(corpus, streaming=True), tmp_path, 32)
    seen = []

    def standardize(pixels):
        time.sleep(0.002)
        return pixels

    def train(pixels):
        seen.append(tuple(pixels.shape))
        time.sleep(0.05)

    shares = data_speed.measure_data_share(
        tmp_path, [1, 3, 4], standardize, train, batch_size=16, window_size=(32, 16), turns=2
    )
    assert set(shares) == {MAP_STYLE, SHARDS} and seen == [(16, 3, 32, 16)] * 6
    for times in shares.values():
        assert 0.05 <= times["step_seconds"] < 0.1 and 0.002 <= times["data_seconds"] < 0.05
        assert 0.02 < times["share"] < 1


def test_command_writes_table_json_and_chart(corpus, tmp_path, run_script, monkeypatch):
    monkeypatch.setattr(data_speed, "SECONDS_PER_TURN", 0.05)
    output = tmp_path / "speed"
    result = run_script(
        *(
            "experiments/benchmark_speed.py",
            "data",
            "--data_dir",
            corpus,
            "--output_dir",
            output,
            "--num_tiles",
            32,
            "--turns",
            1,
        )
    )
    assert result.returncode == 0, result.stderr
    content = json.loads((output / "data_speed.json").read_text())
    rates = {(rate["way"], rate["num_processes"]): rate for rate in content["rates"]}
    assert set(rates) == {(way, count) for way in WAYS for count in (1, 2)}
    for (way, count), rate in rates.items():
        assert rate["turns"] == [rate["tiles_per_second"]]
        assert rate["megabytes_per_second"] == pytest.approx(rate["tiles_per_second"] * 6 * 64 * 64 * 2 / 1e6)
        ratio = rate["tiles_per_second"] / rates[GEOTIFF, count]["tiles_per_second"]
        assert rate["ratio"] == pytest.approx(ratio)
        assert f"{way:32} {count:9}" in result.stdout
    assert rates[MAP_STYLE, 1]["ratio"] > 2
    assert set(content["peak_memory_mb"]) == set(WAYS)
    assert all(rate > 0 for rate in content["windows_per_second"].values())
    training = content["training"]
    assert training["batch_size"] == 16 and set(training["ways"]) == {MAP_STYLE, SHARDS}
    for way, times in training["ways"].items():
        assert times["turns"] == [times["share"]]
        assert times["share"] == pytest.approx(times["data_seconds"] / times["step_seconds"])
        assert (
            f"{way}: {1000 * times['data_seconds']:.1f} ms, {times['share']:.1%} of a training step" in result.stdout
        )
    assert content["command"].startswith("python") and content["num_tiles"] == 32
    assert (output / "data_speed.png").stat().st_size > 10_000
    assert sorted(path.name for path in output.iterdir()) == ["data_speed.json", "data_speed.png"]
    assert plot_reading(tmp_path / "again.png", content).is_file()
    assert BASELINES[0] == GEOTIFF


def test_bad_input(corpus, tmp_path, run_script):
    few = corpus_of(tmp_path / "few", 3, num_bands=2)
    for folder, words in ((few, "at least 32 tiles, got 3"), (tmp_path / "nothing", "expected a folder written by")):
        arguments = [
            "experiments/benchmark_speed.py",
            "data",
            "--data_dir",
            folder,
            "--output_dir",
            tmp_path / "speed",
        ]
        assert_one_clear_line(run_script(*arguments), words)
    (tmp_path / "few" / "band_statistics.json").unlink()
    arguments[arguments.index(folder)] = few
    assert_one_clear_line(run_script(*arguments), "expected a finished corpus")
    assert_one_clear_line(run_script(*arguments, "--turns", 0), "--turns: expected at least 1")

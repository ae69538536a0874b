"""The program that measures how time and memory grow: what it counts is so, and what it makes is read."""

import math
from pathlib import Path
from typing import Any

import pytest

from datasets_loading.corpus import CutSettings, prepare_corpus
from datasets_loading.scenes import open_scene
from hsst.experiments import growth


def test_memory_is_that_of_the_program_and_not_of_its_parent():
    here = bytearray(300_000_000)
    small, large = growth.measured("-c", "pass"), growth.measured("-c", "bytearray(100_000_000)")
    assert len(here) and 100 < large["peak_megabytes"] < 200 and small["peak_megabytes"] < 100
    assert small["seconds"] > 0 and small["processor_seconds"] > 0
    with pytest.raises(ValueError, match="nothing to see"):
        growth.measured("-c", "raise SystemExit('nothing to see')")


def test_scenes_and_products_are_read(tmp_path: Path):
    path = tmp_path / str(growth.PRODUCT_SIDE) / "scene.tif"
    path.parent.mkdir()
    growth.write_large_scene(path)
    with open_scene(path) as scene:
        assert scene.shape == (16, 16) and len(scene.wavelengths) == len(growth.BANDS)
    growth.write_products(tmp_path, range(2))
    growth.write_products(tmp_path, range(2, 3))
    corpus, read = tmp_path / "corpus", {}
    report = prepare_corpus(tmp_path / "products", corpus, CutSettings(growth.PRODUCT_SIDE), progress=False)
    assert (report.num_sources, report.num_tiles, report.errors) == (3, 3, ())
    exec((growth.OPEN + growth.DRAW).format(str(corpus)), read)
    assert len(read["windows"]) == 12


def test_tables_and_figure(tmp_path: Path):
    def costs(seconds: float) -> dict[str, float]:
        return {"seconds": 2 * seconds, "processor_seconds": seconds, "peak_megabytes": 500}

    rows = [{"size": size, **{stage: costs(1 + size / 100) for stage in growth.CORPUS_STAGES}} for size in (10, 1000)]
    step = {"parameters": 1_000_000, **costs(1)}
    scenes = [{"size": size, "megapixels": size**2 / 1e6, "map": costs(size / 100)} for size in (256, 512)]
    result: dict[str, Any] = {"scenes": scenes, "corpus": rows}
    result |= {"processes": [{"size": 1, "model": model, **step} for model in growth.MODELS]}
    table = growth.costs_table(rows, growth.CORPUS_STAGES)
    assert table.startswith("|  | 10 | 1,000 |") and table.count("for each more product | – | 10.0 |") == 4
    assert "| small | 1,000,000 | 1 | 1.00 | 62 ms | 500 MB |" in growth.processes_table(result)
    assert growth.moved_bytes(1_000_000, 2) == 4_000_000 and math.isclose(growth.moved_bytes(1_000_000, 64), 7_875_000)
    assert "| 2 | 4.0 MB | 3.20 ms | 0.32 ms |" in growth.network_table(result)
    assert growth.plot_growth(tmp_path / "growth.png", result).is_file()

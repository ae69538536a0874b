"""The same pixels give the same map and the same tiles, whatever layout of files they come in."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from datasets import load_dataset
from small_layouts import LAYOUTS, write_layout
from small_products import EMPTY_BAND, WAVELENGTHS, write_small_product
from test_predict_scene import save_model

from datasets_loading.scenes import open_scene


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_product(tmp_path_factory.mktemp("product"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bands_numbers_and_place_are_the_same(product: Path, tmp_path: Path, layout: str):
    with open_scene(product) as scene:
        expected = scene.read(), scene.wavelengths, scene.crs, scene.transform
    with open_scene(write_layout(layout, product, tmp_path / "files")) as scene:
        np.testing.assert_array_equal(scene.read(), expected[0])
        np.testing.assert_allclose(scene.wavelengths, expected[1], atol=1e-3)
        np.testing.assert_array_equal(np.flatnonzero(~scene.valid_bands), [EMPTY_BAND])
        assert scene.crs == expected[2]
        np.testing.assert_allclose(tuple(scene.transform or ()), tuple(expected[3] or ()))
        assert scene.fwhm is not None and len(scene.fwhm) == len(WAVELENGTHS)


def test_one_map_from_all_layouts(product: Path, model: Path, tmp_path: Path, run_script: Any):
    maps = {}
    for layout in ("portal folder", *LAYOUTS[3:]):
        scene = write_layout(layout, product, tmp_path / layout)
        output = tmp_path / f"{layout}.tif"
        # Only EnMAP products know clouds
        result = run_script("predict_scene.py", scene, "--model", model, "--output", output, "--exclude")
        assert result.returncode == 0, result.stderr
        with rasterio.open(output) as dataset:
            maps[layout] = dataset.read(1)
            assert dataset.crs.to_epsg() == 32633
    for layout, classes in maps.items():
        np.testing.assert_array_equal(classes, maps["portal folder"], err_msg=layout)
    assert set(np.unique(maps["EMIT"])) > {255} and len(np.unique(maps["EMIT"])) >= 3


def test_one_corpus_from_all_layouts(product: Path, tmp_path: Path, run_script: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    hashes = {}
    for layout in ("portal folder", "portal ZIP", "portal nested", "archive", "PRISMA", "EMIT", "DESIS", "ENVI"):
        write_layout(layout, product, tmp_path / layout)
        corpus = tmp_path / f"corpus of {layout}"
        arguments = ["--data_dir", tmp_path / layout, "--output_dir", corpus, "--tile_size", 32, "--max_cloud", 1]
        result = run_script("prepare_enmap.py", *arguments)
        assert result.returncode == 0 and "not used" not in result.stderr, result.stderr
        tiles = load_dataset(str(corpus), split="train", cache_dir=str(tmp_path / "cache" / layout))
        hashes[layout] = sorted(hashlib.sha256(image).hexdigest() for image in tiles["image"])
    assert len(hashes["PRISMA"]) == 16
    for layout, found in hashes.items():
        assert found == hashes["portal folder"], layout

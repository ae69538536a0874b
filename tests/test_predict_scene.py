"""Mapping scenes as a command: the files it writes, what it leaves alone, many scenes, and bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from conftest import SCRIPTS, assert_one_clear_line
from PIL import Image
from small_products import CLOUD, EMPTY_BAND, HEIGHT, TRANSFORM, WAVELENGTHS, WIDTH, small_quality, write_small_product

from datasets_loading.files import only_writer
from modeling_hsst import (
    ArrayScene,
    HSSTConfig,
    HSSTForImageClassification,
    HSSTForMaskedImageModeling,
    HSSTForSemanticSegmentation,
    HSSTImageProcessor,
    ScenePredictor,
)

BANDS = [band for band in range(12) if band != EMPTY_BAND]
CENTERS = WAVELENGTHS[BANDS].tolist()
PROGRAM_ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(SCRIPTS.parent),
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "true",
    "HF_HUB_OFFLINE": "1",
}


def save_model(folder, architecture=HSSTForSemanticSegmentation, seed=0, **changes):
    torch.manual_seed(seed)
    config = HSSTConfig(
        hidden_size=12,
        num_spatial_layers=1,
        num_spectral_layers=1,
        num_attention_heads=1,
        head_dim=8,
        intermediate_size=8,
        num_channels=11,
        band_patch_size=4,
        wavelengths=CENTERS,
        initializer_range=0.3,
        id2label={0: "water", 1: "forest", 2: "soil"},
        **changes,
    )
    processor = HSSTImageProcessor(wavelengths=CENTERS, image_mean=[0.15] * 11, image_std=[0.003] * 11)
    architecture(config).eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def product(tmp_path):
    return write_small_product(tmp_path / "products")


def write_image(path, product, bands=BANDS, rows=20, columns=30, georeferenced=True, wavelengths=WAVELENGTHS):
    """A part of the product as a GeoTIFF with tags."""
    (image,) = product.glob("*-SPECTRAL_IMAGE.TIF")
    with rasterio.open(image) as dataset:
        cube = dataset.read()[bands, 60 : 60 + rows, 60 : 60 + columns]
    place = {"crs": "EPSG:32633", "transform": TRANSFORM} if georeferenced else {}
    with rasterio.open(
        path, "w", driver="GTiff", count=len(bands), height=rows, width=columns, dtype="int16", nodata=-32768, **place
    ) as dataset:
        dataset.write(cube)
        if wavelengths is not None:
            for number, band in enumerate(bands, 1):
                dataset.update_tags(number, wavelength=str(wavelengths[band]), fwhm="8")
    return cube


def predict_library(model, cube):
    """What the library makes of an image in memory."""
    predictor = ScenePredictor(
        HSSTForSemanticSegmentation.from_pretrained(model), HSSTImageProcessor.from_pretrained(model)
    )
    (part,) = predictor.predict(ArrayScene(cube, CENTERS))
    return part


def test_product_to_all_files(run_script, product, model, tmp_path, real_figures):
    output = tmp_path / "out" / "map.tif"
    options = ["--confidence", "--probabilities", "float32", "--html"]
    result = run_script("predict_scene.py", product, "--model", model, "--output", output, *options)
    assert result.returncode == 0, result.stderr
    assert "11 bands matched by wavelength" in result.stdout and "pixels/s" in result.stdout
    names = ["map.html", "map.png", "map.qml", "map.tif", "map.tif.aux.xml", "map_areas.csv", "map_areas.json"]
    names += ["map_confidence.tif", "map_probabilities.tif"]
    assert sorted(file.name for file in output.parent.iterdir()) == sorted(names)
    layers = small_quality()
    excluded = (layers["classes"] == 3) | (layers["cloud"] == 1) | (layers["cloud_shadow"] == 1)
    with rasterio.open(output) as dataset:
        classes = dataset.read(1)
        assert dataset.transform == TRANSFORM and dataset.crs.to_epsg() == 32633
    np.testing.assert_array_equal(classes == 255, excluded)
    with rasterio.open(output.with_name("map_probabilities.tif")) as dataset:
        probabilities = dataset.read()
        assert dataset.descriptions == ("water", "forest", "soil")
    np.testing.assert_array_equal(np.isnan(probabilities), np.broadcast_to(excluded, (3, HEIGHT, WIDTH)))
    np.testing.assert_array_equal(probabilities.argmax(axis=0)[~excluded], classes[~excluded])
    with rasterio.open(output.with_name("map_confidence.tif")) as dataset:
        confidence = dataset.read(1) / 250
    np.testing.assert_allclose(confidence[~excluded], probabilities.max(axis=0)[~excluded], atol=0.0021)
    areas = json.loads(output.with_name("map_areas.json").read_text())
    assert areas["pixels_without_class"] == excluded.sum()
    assert areas["model_metadata"]["left out"] == "outside, cloud, shadow, pixels without data"
    assert [row["pixels"] for row in areas["classes"]] == [int((classes == number).sum()) for number in range(3)]
    assert Image.open(output.with_suffix(".png")).size[0] > 2000


def test_what_is_excluded_is_asked_for(run_script, product, model, tmp_path):
    result = run_script("predict_scene.py", product, "--model", model, "--output", tmp_path / "m.tif", "--exclude")
    assert result.returncode == 0, result.stderr
    with rasterio.open(tmp_path / "m.tif") as dataset:
        assert (dataset.read(1)[CLOUD] != 255).all()


@pytest.mark.skipif(shutil.which("gdalinfo") is None, reason="needs gdalinfo")
def test_gdalinfo_confirms_the_georeference(run_script, product, model, tmp_path):
    run_script("predict_scene.py", product, "--model", model, "--output", tmp_path / "m.tif", "--stride", 8)
    told = json.loads(subprocess.check_output(["gdalinfo", "-json", tmp_path / "m.tif"]))
    assert told["geoTransform"] == [366015.0, 30.0, 0.0, 5809965.0, 0.0, -30.0] and told["size"] == [WIDTH, HEIGHT]
    assert 'ID["EPSG",32633]' in told["coordinateSystem"]["wkt"]
    band = told["bands"][0]
    assert band["noDataValue"] == 255 and band["colorInterpretation"] == "Palette"
    assert band["colorTable"]["count"] == 256
    text = subprocess.check_output(["gdalinfo", tmp_path / "m.tif"], text=True)
    assert re.search(r"Categories:\s+0: water\s+1: forest\s+2: soil", text)


def test_a_map_made_again_leaves_nothing_of_the_one_before(run_script, product, model, tmp_path):
    write_image(tmp_path / "image.tif", product)
    arguments = ["predict_scene.py", tmp_path / "image.tif", "--model", model, "--output", tmp_path / "out" / "m.tif"]
    assert run_script(*arguments, "--confidence", "--html").returncode == 0
    (tmp_path / "out" / "notes.html").write_text("mine")
    assert run_script(*arguments, "--overwrite").returncode == 0
    assert (tmp_path / "out" / "m_confidence.tif").exists()  # from the same settings: it still belongs to the map
    assert run_script(*arguments, "--stride", 8, "--overwrite", "--html").returncode == 0
    names = ["m.html", "m.png", "m.qml", "m.tif", "m.tif.aux.xml", "m_areas.csv", "m_areas.json", "notes.html"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)


@pytest.mark.parametrize("kind", ["GeoTIFF", "wavelengths from a file", "ENVI", "order of the bands"])
def test_scenes_of_every_format_give_the_same_map(run_script, product, model, tmp_path, kind):
    cube = write_image(tmp_path / "image.tif", product)
    scene, options = tmp_path / "image.tif", []
    if kind == "wavelengths from a file":
        write_image(scene, product, wavelengths=None)
        (tmp_path / "bands.txt").write_text("".join(f"{center} 8\n" for center in CENTERS))
        options = ["--wavelengths", tmp_path / "bands.txt"]
    if kind == "ENVI":
        with rasterio.open(scene) as dataset:
            profile = {**dataset.profile, "driver": "ENVI"}
        with rasterio.open(tmp_path / "cube.img", "w", **profile) as dataset:
            dataset.write(cube)
        scene = tmp_path / "cube.hdr"
        scene.write_text(
            scene.read_text() + f"wavelength units = nm\nwavelength = {{{', '.join(map(str, CENTERS))}}}\n"
        )
    if kind == "order of the bands":
        write_image(scene, product, bands=BANDS[::-1])
    result = run_script("predict_scene.py", scene, "--model", model, "--output", tmp_path / "m.tif", *options)
    assert result.returncode == 0, result.stderr
    assert "11 bands matched by wavelength" in result.stdout
    with rasterio.open(tmp_path / "m.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), predict_library(model, cube).classes)


def test_zipped_product_gives_the_map_of_its_folder(run_script, product, model, tmp_path):
    zipped = write_small_product(tmp_path / "zipped", as_zip=True)
    assert zipped.suffix == ".ZIP"
    maps = []
    for scene in (product, zipped):
        output = tmp_path / f"map of {scene.name}.tif"
        result = run_script("predict_scene.py", scene, "--model", model, "--output", output, "--stride", 8)
        assert result.returncode == 0, result.stderr
        with rasterio.open(output) as dataset:
            maps.append(dataset.read(1))
    np.testing.assert_array_equal(*maps)


def test_resampling_takes_a_scene_of_other_bands(run_script, product, model, tmp_path):
    centers = np.array(CENTERS)
    finer = np.sort(np.concatenate([centers - 4, centers + 4]))
    with rasterio.open(
        tmp_path / "fine.tif", "w", driver="GTiff", count=len(finer), height=20, width=30, dtype="int16"
    ) as dataset:
        dataset.write(np.broadcast_to(np.rint(finer)[:, None, None], (len(finer), 20, 30)).astype(np.int16))
        for number, center in enumerate(finer, 1):
            dataset.update_tags(number, wavelength=str(center), fwhm="6")
    arguments = ["predict_scene.py", tmp_path / "fine.tif", "--model", model, "--output", tmp_path / "m.tif"]
    assert_one_clear_line(run_script(*arguments), "within half its width", "--resample")
    result = run_script(*arguments, "--resample")
    assert result.returncode == 0, result.stderr
    assert "11 bands resampled by Gaussian responses from" in result.stdout
    with rasterio.open(tmp_path / "m.tif") as dataset:
        assert (dataset.read(1) < 3).all()


def test_progress_is_shown_with_the_time_left(run_script, product, model, tmp_path):
    result = run_script("predict_scene.py", product, "--model", model, "--output", tmp_path / "m.tif", "--stride", 8)
    assert re.search(r"100%.*418/418 \[\d\d:\d\d<\d\d:\d\d, .*window", result.stderr), result.stderr


def test_a_scene_standardized_by_its_own_pixels(run_script, model, product, tmp_path):
    """A scene under other light gives the same map, and the map of the same scene says how it was made."""
    cube = write_image(tmp_path / "scene.tif", product)
    factor, maps = np.linspace(0.6, 1.5, len(cube))[:, None, None], []
    for name, values in (("scene", cube), ("bright", np.where(cube == -32768, cube, np.rint(cube * factor)))):
        with rasterio.open(tmp_path / "scene.tif") as source:
            profile, tags = source.profile, [source.tags(number) for number in source.indexes]
        with rasterio.open(tmp_path / f"{name}.tif", "w", **profile) as dataset:
            dataset.write(values.astype(np.int16))
            for number, of_band in enumerate(tags, 1):
                dataset.update_tags(number, **of_band)
        for option in ([], ["--scene_statistics"]):
            output = tmp_path / f"{name}{len(option)}.tif"
            arguments = ["predict_scene.py", tmp_path / f"{name}.tif", "--model", model, "--output", output]
            result = run_script(*arguments, *option)
            assert result.returncode == 0, result.stderr
            areas = json.loads(output.with_name(f"{output.stem}_areas.json").read_text())
            assert areas["model_metadata"]["standardized by"].startswith("the scene" if option else "the model")
            with rasterio.open(output) as dataset:
                maps.append(dataset.read(1))
    usual, own, usual_bright, own_bright = maps
    assert (own == own_bright).mean() > 0.98 and (usual == usual_bright).mean() < 0.98
    assert not np.array_equal(usual, own)
    # A map made so is not taken for one made otherwise
    assert "finished before" in run_script(*arguments, "--scene_statistics").stdout
    assert "finished before" not in run_script(*arguments).stdout


def test_bfloat16(run_script, product, model, tmp_path):
    cube = write_image(tmp_path / "image.tif", product)
    arguments = ["predict_scene.py", tmp_path / "image.tif", "--model", model, "--output", tmp_path / "m.tif"]
    result = run_script(*arguments, "--precision", "bfloat16", "--probabilities", "float32")
    assert result.returncode == 0, result.stderr
    assert_one_clear_line(run_script(*arguments, "--probabilities", "float32"), "m.tif", "--overwrite")
    with rasterio.open(tmp_path / "m_probabilities.tif") as dataset:
        difference = np.abs(dataset.read() - predict_library(model, cube).probabilities).max()
    assert 0 < difference < 0.05


def test_center_head(run_script, product, tmp_path):
    folder = save_model(tmp_path / "center", HSSTForImageClassification, head_type="center", image_size=5)
    write_image(tmp_path / "image.tif", product)
    for stride in ([], ["--stride", 3]):
        result = run_script(
            "predict_scene.py", tmp_path / "image.tif", "--model", folder, "--output", tmp_path / "m.tif",
            "--overwrite", *stride,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        with rasterio.open(tmp_path / "m.tif") as dataset:
            assert (dataset.read(1) < 3).all()


def test_without_georeference_it_works_and_says_so(run_script, product, model, tmp_path):
    write_image(tmp_path / "image.tif", product, georeferenced=False)
    result = run_script(
        "predict_scene.py", tmp_path / "image.tif", "--model", model, "--output", tmp_path / "m.tif", "--html"
    )
    assert result.returncode == 0 and "no georeference" in result.stderr
    areas = json.loads((tmp_path / "m_areas.json").read_text())
    assert areas["classes"][0]["area_ha"] is None and areas["crs"] is None
    assert areas["model_metadata"]["left out"] == "pixels without data"  # such files mark no clouds


def test_scene_smaller_than_a_window(run_script, product, model, tmp_path):
    write_image(tmp_path / "image.tif", product, rows=5, columns=3)
    result = run_script("predict_scene.py", tmp_path / "image.tif", "--model", model, "--output", tmp_path / "m.tif")
    assert result.returncode == 0, result.stderr
    with rasterio.open(tmp_path / "m.tif") as dataset:
        assert dataset.shape == (5, 3) and (dataset.read(1) < 3).all()


def test_all_nodata_is_a_map_of_nodata_and_a_warning(run_script, product, model, tmp_path):
    write_image(tmp_path / "image.tif", product)
    with rasterio.open(tmp_path / "image.tif", "r+") as dataset:
        dataset.write(np.full((11, 20, 30), -32768, dtype=np.int16))
    result = run_script(
        "predict_scene.py", tmp_path / "image.tif", "--model", model, "--output", tmp_path / "m.tif", "--html"
    )
    assert result.returncode == 0 and "no pixel with data" in result.stderr
    with rasterio.open(tmp_path / "m.tif") as dataset:
        assert (dataset.read(1) == 255).all()


def test_many_scenes_are_dealt_out_and_none_is_done_twice(run_script, product, model, tmp_path, monkeypatch):
    for name in "abc":
        write_image(tmp_path / f"{name}.tif", product)
    arguments = ["predict_scene.py", tmp_path / "*.tif", "--model", model, "--output", tmp_path / "maps"]
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert run_script(*arguments).returncode == 0
    assert sorted(file.name for file in (tmp_path / "maps").glob("*.tif")) == ["b.tif"]
    monkeypatch.setenv("RANK", "2")  # as of jobs numbered from one: the first scene would be nobody's
    assert_one_clear_line(run_script(*arguments), "RANK", "WORLD_SIZE=2", "got 2")
    written = (tmp_path / "maps" / "b.tif").stat().st_mtime_ns
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name)
    (tmp_path / "maps" / "c.png").mkdir(parents=True)  # what cannot be written keeps the others from nothing
    result = run_script(*arguments[:1], tmp_path / "a.tif", tmp_path / "b.tif", tmp_path / "c.tif", *arguments[2:])
    assert_one_clear_line(result, "1 of 3 scenes failed", "c.png")
    assert "b.tif: finished before" in result.stdout
    assert (tmp_path / "maps" / "b.tif").stat().st_mtime_ns == written
    assert sorted(file.name for file in (tmp_path / "maps").glob("[!.]*.tif")) == ["a.tif", "b.tif"]
    other = run_script(*arguments[:1], tmp_path / "a.tif", *arguments[2:], "--stride", 8)
    assert_one_clear_line(other, "a.tif", "--overwrite")


def test_a_finished_map_is_of_this_scene_and_this_model(run_script, product, model, tmp_path, real_figures):
    for name in "ab":
        write_image(tmp_path / f"{name}.tif", product)
    trained_again = save_model(tmp_path / "model", seed=1)
    output = ["--output", tmp_path / "m.tif"]
    assert run_script("predict_scene.py", tmp_path / "a.tif", "--model", model, *output).returncode == 0
    written = (tmp_path / "m.tif").stat().st_mtime_ns
    again = run_script("predict_scene.py", tmp_path / "a.tif", "--model", model, *output)
    assert again.returncode == 0 and "finished before" in again.stdout
    for scene, folder, options in (
        ("b.tif", model, []),
        ("a.tif", trained_again, []),
        ("a.tif", model, ["--nodata", 900]),
    ):
        other = run_script("predict_scene.py", tmp_path / scene, "--model", folder, *output, *options)
        assert_one_clear_line(other, "m.tif", "--overwrite")
    assert (tmp_path / "m.tif").stat().st_mtime_ns == written
    # Another scene of the same name
    (tmp_path / "other").mkdir()
    write_image(tmp_path / "other" / "a.tif", product, rows=19)
    other = run_script("predict_scene.py", tmp_path / "other" / "a.tif", "--model", model, *output)
    assert_one_clear_line(other, "m.tif", "--overwrite")
    # As after an interruption between the files, or damage to one
    picture = (tmp_path / "m.png").read_bytes()
    for name, damage in (
        ("m.png", Path.unlink),
        ("m.png", lambda path: path.write_bytes(path.read_bytes()[:99])),
        ("m.qml", lambda path: path.write_text("<qgis>")),
        ("m_areas.json", lambda path: path.write_text("[]")),
    ):
        damage(tmp_path / name)
        result = run_script("predict_scene.py", tmp_path / "a.tif", "--model", model, *output)
        assert result.returncode == 0 and "finished before" not in result.stdout, name
        assert (tmp_path / "m.png").read_bytes() == picture
        again = run_script("predict_scene.py", tmp_path / "a.tif", "--model", model, *output)
        assert "finished before" in again.stdout
    assert str(tmp_path) not in (tmp_path / "m_areas.json").read_text()


def test_one_map_has_one_writer(run_script, product, model, tmp_path):
    write_image(tmp_path / "a.tif", product)
    with only_writer(tmp_path, ".m.lock"):
        result = run_script("predict_scene.py", tmp_path / "a.tif", "--model", model, "--output", tmp_path / "m.tif")
    assert_one_clear_line(result, "expected to be the only process that writes there")
    assert not (tmp_path / "m.tif").exists()


@pytest.mark.parametrize(
    "kind",
    [
        "other bands",
        "no wavelengths",
        "headless",
        "no model",
        "damaged weights",
        "no scene",
        "unwritable",
        "folder in the way",
        "several into a file",
        "onto the scene",
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run_script, product, model, tmp_path, kind, monkeypatch):
    scenes, folder, output, words = [tmp_path / "image.tif"], model, tmp_path / "out" / "m.tif", []
    write_image(tmp_path / "image.tif", product)
    if kind == "other bands":
        write_image(tmp_path / "image.tif", product, wavelengths=WAVELENGTHS + 30)
        words = ["expected a band with data within half its width", "--resample"]
    if kind == "no wavelengths":
        write_image(tmp_path / "image.tif", product, bands=BANDS[:5], wavelengths=None)
        words = ["Wavelengths of the scene", "5 bands"]
    if kind == "headless":
        folder = save_model(tmp_path / "headless", HSSTForMaskedImageModeling)
        words = ["classification head", "HSSTForMaskedImageModeling"]
    if kind == "no model":
        folder, words = tmp_path / "nowhere", ["nowhere"]
    if kind == "no scene":
        scenes, words = [tmp_path / "missing.ZIP"], ["missing.ZIP"]
    if kind == "unwritable":
        (tmp_path / "out").write_text("in the way")
        folder = tmp_path / "not loaded"
        words = ["out: expected a folder that can be written"]
    if kind == "folder in the way":  # found out before the model starts
        monkeypatch.setattr(ScenePredictor, "predict", lambda *scene, **options: (pytest.fail() for _ in "x"))
        (tmp_path / "out" / "m.png").mkdir(parents=True)
        words = ["m.png", "folder"]
    if kind == "onto the scene":
        output = tmp_path / "image.tif"
        words = ["--output", "image.tif"]
    if kind == "damaged weights":
        folder = save_model(tmp_path / "damaged")
        (folder / "model.safetensors").write_bytes(b"no weights")
        words = ["damaged"]
    if kind == "several into a file":
        scenes, words = [tmp_path / "image.tif", product], ["--output", "2 scenes"]
    before = (tmp_path / "image.tif").read_bytes()
    result = run_script("predict_scene.py", *scenes, "--model", folder, "--output", output)
    assert_one_clear_line(result, *words)
    assert (tmp_path / "image.tif").read_bytes() == before
    assert not [path for path in (tmp_path / "out").glob("**/*") if path.is_file()]


def test_an_interrupted_run_leaves_no_file_under_a_final_name(run_script, product, model, tmp_path, monkeypatch):
    def interrupted(path, summary):
        raise KeyboardInterrupt

    monkeypatch.setattr("hsst.support.scene_maps.plot_quick_look", interrupted)
    result = run_script("predict_scene.py", product, "--model", model, "--output", tmp_path / "m.tif", "--confidence")
    assert result.returncode == 130
    assert not list(tmp_path.glob("*.tif")) and not list(tmp_path.glob(".m*"))


@pytest.mark.slow
@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_leaves_no_file_under_a_final_name_and_can_be_repeated(product, model, tmp_path, way):
    output = tmp_path / "out" / "m.tif"
    command = [sys.executable, SCRIPTS / "predict_scene.py", product, "--model", model, "--output", output]
    command += ["--confidence", "--html"]
    slowly = [*command, "--batch_size", "1", "--stride", "1"]
    process = subprocess.Popen(
        slowly,
        stderr=subprocess.PIPE,
        text=True,
        env=PROGRAM_ENVIRONMENT,
        # Tests that run in the background of a shell ignore interruptions, and what they start would, too
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while "window" not in process.stderr.read(64):  # the progress bar: writers are open, the model runs
            assert process.poll() is None
        process.send_signal(way)
        errors = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    final = [path.name for path in output.parent.iterdir() if not path.name.startswith(".")]
    assert final == []
    if way == signal.SIGINT:
        assert process.returncode == 130 and "Traceback" not in errors
        assert errors.splitlines()[-1] == "predict_scene.py: interrupted"
        assert list(output.parent.iterdir()) == []
    again = subprocess.run([*command, "--stride", "8"], env=PROGRAM_ENVIRONMENT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert output.exists() and not [path.name for path in output.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_two_processes_share_the_scenes(product, model, tmp_path):
    for name in "abc":
        write_image(tmp_path / f"{name}.tif", product)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", SCRIPTS / "predict_scene.py"]
    command += [tmp_path / "*.tif", "--model", model, "--output", tmp_path / "maps"]
    for word, times in ((" pixels in ", 3), ("finished before", 3)):
        result = subprocess.run(command, env=PROGRAM_ENVIRONMENT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count(word) == times, result.stdout
        assert sorted(path.name for path in (tmp_path / "maps").glob("*.tif")) == ["a.tif", "b.tif", "c.tif"]


def test_reconstruction_figure(run_script, product, tmp_path, real_figures):
    folder = save_model(tmp_path / "pretrained", HSSTForMaskedImageModeling)
    arguments = ["plot_reconstruction.py", product, "--model", folder, "--output", tmp_path / "figure.png"]
    result = run_script(*arguments, "--size", 24, "--row", 60, "--column", 90, "--mask_type", "unit")
    assert result.returncode == 0, result.stderr
    assert Image.open(tmp_path / "figure.png").size[0] > 1000
    assert_one_clear_line(run_script(*arguments, "--size", 24, "--row", 60, "--column", 8), "--column")
    assert_one_clear_line(run_script(*arguments, "--row", 140), "--row")
    assert_one_clear_line(run_script(*arguments, "--size", 4), "--size")
    headed = save_model(tmp_path / "headed")
    assert_one_clear_line(
        run_script("plot_reconstruction.py", product, "--model", headed, "--output", tmp_path / "f.png"), "--model"
    )

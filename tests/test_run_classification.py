"""The command for land cover from few labels: what it leaves behind, and what it says to bad input."""

import csv
import json
import os
import signal

import numpy as np
import pytest
import rasterio
import torch
from conftest import assert_one_clear_line
from rasterio.warp import transform as transform_coordinates
from small_benchmarks import write_houston, write_raster
from small_land_cover import CLASS_NAMES, TINY, WAVELENGTHS, small_cube, write_small_checkpoint, write_small_scene
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from datasets_loading.files import only_writer, written_whole
from datasets_loading.land_cover_metric import land_cover_scores
from hsst.support.fine_tuning import FineTuner
from hsst.support.reports import plot_land_cover_map

SCRIPT = "run_classification.py"
AREAS = ("--train_area", "0,24,0,22", "--test_area", "0,24,28,52")
NAMES = ("--class_names", ",".join(CLASS_NAMES))
OVERRIDES = ",".join(f"{name}={value}" for name, value in TINY.items())
FAST = ("--window_size", 5, "--max_steps", 20, "--batch_size", 4, "--learning_rate", "1e-2", "--use_cpu")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def scene(tmp_path):
    return write_small_scene(tmp_path / "scene")


def test_what_a_run_leaves_behind(run_script, scene, tmp_path, real_figures) -> None:
    torch.manual_seed(0)  # of the checkpoint's weights
    checkpoint, output = write_small_checkpoint(tmp_path / "checkpoint"), tmp_path / "output"
    result = run_script(
        SCRIPT, "--data_dir", scene, *NAMES, *AREAS, *FAST, "--max_steps", 60,
        "--model_name_or_path", checkpoint, "--output_dir", output,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    results = json.loads((output / "all_results.json").read_text())
    assert str(tmp_path) not in (output / "all_results.json").read_text()
    assert results["overall_accuracy"] > 0.8 and results["class_names"] == list(CLASS_NAMES)
    assert results["run"]["settings"]["max_steps"] == 60 and results["training"]["steps"] == 60
    assert results["labelled_pixels"]["test"] == results["support_per_class"]
    with (output / "confusion_matrix.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == list(CLASS_NAMES)
    matrix = np.array([row[1:] for row in rows[1:]], dtype=int)
    assert matrix.tolist() == results["confusion_matrix"]
    assert land_cover_scores(matrix)["mean_iou"] == results["mean_iou"]
    for name in ("confusion_matrix.png", "land_cover_map.png"):
        assert (output / name).stat().st_size > 10_000
    assert not list(output.glob(".*"))  # nothing unfinished

    # what was saved maps the scene as the command did
    model = AutoModelForSemanticSegmentation.from_pretrained(output)
    processor = AutoImageProcessor.from_pretrained(output)
    assert model.config.id2label == dict(enumerate(CLASS_NAMES))
    cube, labels = small_cube()
    inputs = processor(cube[:, :5, 40:45])
    with torch.no_grad():
        predicted = model(**inputs).logits.argmax(dim=1)[0].numpy()
    labelled = labels[:5, 40:45] != 255
    assert (predicted == labels[:5, 40:45])[labelled].mean() > 0.7


def test_the_same_command_again_is_finished_before(run_script, scene, tmp_path) -> None:
    checkpoint, output = write_small_checkpoint(tmp_path / "checkpoint"), tmp_path / "output"
    command = [SCRIPT, "--data_dir", scene, *NAMES, *AREAS, *FAST, "--max_steps", 4, "--output_dir", output]
    command += ["--model_name_or_path", checkpoint]
    first = run_script(*command)
    assert first.returncode == 0, first.stderr
    assert "the classifier starts from new ones" in first.stdout
    weights = (output / "model.safetensors").read_bytes()
    assert "Finished before" in run_script(*command).stdout
    for change in (
        lambda: (output / "land_cover_map.png").unlink(),
        lambda: (output / "model.safetensors").write_bytes(weights[:-4]),
        lambda: (output / "all_results.json").write_text("[]"),
    ):
        change()
        again = run_script(*command)
        assert again.returncode == 0 and "Finished before" not in again.stdout, again.stderr
        assert (output / "model.safetensors").read_bytes() == weights  # the same seed, the same weights
    write_small_checkpoint(checkpoint, window_size=5, initializer_range=0.1)
    assert "Finished before" not in run_script(*command).stdout
    with only_writer(output):
        assert_one_clear_line(run_script(*command), "expected to be the only process that writes there")


def test_a_stopped_run_leaves_the_earlier_one(run_script, scene, tmp_path, monkeypatch) -> None:
    """SIGTERM in the middle of training ends it with a line; the same command begins it again."""
    output = tmp_path / "output"
    words = [SCRIPT, "--data_dir", scene, *NAMES, *AREAS, *FAST, "--max_steps", 10**6]
    words += ["--model", "hsst-scratch", "--config_overrides", OVERRIDES, "--output_dir", output]
    step, steps = FineTuner.training_step, []

    def with_signal(*given):
        steps.append(None)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*given)

    monkeypatch.setattr(FineTuner, "training_step", with_signal)
    result = run_script(*words)
    assert result.returncode == 143 and len(steps) == 3 and "Traceback" not in result.stderr
    assert "run_classification.py: terminated" in result.stderr
    assert not output.exists()


def test_local_files_need_no_network(run_script, scene, tmp_path, monkeypatch) -> None:
    """Pre-training from a folder, fine-tuning, and a map with what comes out: nothing is asked of the Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asked = []

    def refuse(*arguments):
        asked.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    checkpoint, output = write_small_checkpoint(tmp_path / "checkpoint"), tmp_path / "output"
    images = scene / "images"
    result = run_script(
        "run_mim.py", "--train_dir", images, "--validation_dir", images, "--model_name_or_path", checkpoint,
        "--max_train_steps", 2, "--per_device_train_batch_size", 4, "--config_overrides", "mask_type=unit",
        "--output_dir", tmp_path / "pretrained",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    result = run_script(
        SCRIPT, "--data_dir", scene, *NAMES, *AREAS, *FAST, "--max_steps", 2,
        "--model_name_or_path", checkpoint, "--output_dir", output,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    result = run_script(
        "predict_scene.py", images / "scene.tif", "--model", output, "--output", tmp_path / "map.tif", "--html"
    )
    assert result.returncode == 0, result.stderr
    assert asked == []


@pytest.mark.parametrize("arguments", [("--task", "center"), ("--labels_per_class", 3), ("--turns",)])
def test_other_ways_to_train(arguments, run_script, scene, tmp_path) -> None:
    given = ("--model", "hsst-scratch", "--config_overrides", OVERRIDES, "--output_dir", tmp_path / "output")
    result = run_script(SCRIPT, "--data_dir", scene, *NAMES, *AREAS, *FAST, *given, *arguments)
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "output" / "all_results.json").read_text())
    if "--labels_per_class" in arguments:
        assert results["labelled_pixels"]["train"] == [3, 3, 3]
    else:
        assert results["overall_accuracy"] > 0.6


def test_blocks_without_areas_and_a_validation_area(run_script, scene, tmp_path) -> None:
    arguments = ("--block_size", 6, "--early_stopping_patience", 2, "--evaluation_steps", 5, "--max_steps", 40)
    given = ("--model", "cnn-1d", "--output_dir", tmp_path / "output")
    result = run_script(SCRIPT, "--data_dir", scene, *FAST, *arguments, *given)
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "output" / "all_results.json").read_text())
    assert results["split"]["kind"] == "blocks" and results["training"]["best_step"]
    assert results["class_names"] == ["class 1", "class 2", "class 3"]


def test_known_data_sets(run_script, tmp_path) -> None:
    folder = write_houston(tmp_path / "houston")
    given = ("--dataset", "houston2018", "--data_dir", folder, "--model", "knn", "--output_dir", tmp_path / "output")
    result = run_script(SCRIPT, *given, "--window_size", 5)
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "output" / "all_results.json").read_text())
    assert results["bands"] == 48 and len(results["class_names"]) == 20 and results["parameters"] is None


def test_classes_without_training_pixels_are_named(run_script, tmp_path, caplog) -> None:
    _, labels = small_cube()
    values = np.where(labels == 255, 0, labels + 1).astype(np.uint8)
    values[:, :24][values[:, :24] == 2] = 0
    scene = write_small_scene(tmp_path / "scene", values=values)
    given = ("--model", "knn", "--window_size", 5, "--output_dir", tmp_path / "output")
    assert run_script(SCRIPT, "--data_dir", scene, *NAMES, *AREAS, *given).returncode == 0
    assert "class water has" in caplog.text


def test_points_in_a_vector_file_train_a_model_that_maps_the_scene(run_script, tmp_path) -> None:
    folder = write_small_scene(tmp_path / "scene")
    _, labels = small_cube()
    with rasterio.open(folder / "images" / "scene.tif") as dataset:
        crs, transform = dataset.crs, dataset.transform
    generator = np.random.default_rng(0)
    rows, columns = np.nonzero(labels != 255)
    drawn = generator.choice(len(rows), 60, replace=False)
    features = []
    for row, column in zip(rows[drawn], columns[drawn], strict=True):
        x, y = transform @ (column + generator.uniform(), row + generator.uniform())
        (longitude,), (latitude,) = transform_coordinates(crs, "EPSG:4326", [x], [y])
        geometry = {"type": "Point", "coordinates": [longitude, latitude]}
        properties = {"cover": CLASS_NAMES[labels[row, column]], "surveyor": "someone"}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    points = tmp_path / "points.geojson"
    points.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    given = ["--data_dir", folder, "--images", "images/scene.tif", "--labels", points, "--class_column", "cover"]
    output = tmp_path / "output"
    arguments = [*given, *AREAS, "--model", "hsst", "--model_name_or_path", write_small_checkpoint(tmp_path / "hsst")]
    result = run_script(SCRIPT, *arguments, "--max_steps", 120, "--learning_rate", "1e-2", "--output_dir", output)
    assert result.returncode == 0, result.stderr
    results = json.loads((output / "all_results.json").read_text())
    assert results["class_names"] == sorted(CLASS_NAMES)
    counts = np.array([results["labelled_pixels"][split] for split in ("train", "test")])
    train, test = columns[drawn] < 22, columns[drawn] >= 28
    assert counts.sum(axis=1).tolist() == [train.sum(), test.sum()] and results["overall_accuracy"] > 0.6
    image = folder / "images" / "scene.tif"
    result = run_script("predict_scene.py", image, "--model", output, "--output", tmp_path / "map.tif")
    assert result.returncode == 0, result.stderr
    with rasterio.open(tmp_path / "map.tif") as dataset:
        classes = dataset.read(1)
    in_order = np.array([sorted(CLASS_NAMES).index(name) for name in CLASS_NAMES])
    known = labels != 255
    assert (classes[known] == in_order[labels[known]]).mean() > 0.6
    result = run_script(SCRIPT, *given[:-2], *AREAS, "--model", "knn", "--output_dir", tmp_path / "none")
    assert_one_clear_line(result, points, "cover", "surveyor")


def bad_inputs():
    _, labels = small_cube()
    values = np.where(labels == 255, 0, labels + 1).astype(np.uint8)
    one_class = values.copy()
    one_class[:, :24][one_class[:, :24] > 0] = 1
    overlapping = ("--train_area", "0,24,0,30", "--test_area", "0,24,28,52")
    return {
        "one class": ({"values": one_class}, AREAS, ("at least 2 classes", "got 1 (meadow)")),
        "labels outside the list": ({"values": np.where(values == 3, 9, values)}, AREAS, ("scene.tif", "got 9")),
        "overlap": ({}, overlapping, ("do not overlap", "48 pixels")),
        "no test area": ({}, ("--train_area", "0,24,0,22"), ("--test_area", "got none")),
        "senseless area": ({}, ("--train_area", "0,a,0,22", "--test_area", "0,24,28,52"), ("0,a,0,22",)),
        "senseless setting": ({}, (*AREAS, "--spectral_crop", 2), ("spectral_crop", "got 2")),
        "no data": ({}, ("--data_dir", "/nowhere"), ("/nowhere",)),
        "no checkpoint": ({}, (*AREAS, "--model", "hsst"), ("expected a checkpoint", "--model_name_or_path")),
        "wide stride": ({}, (*AREAS, "--stride", 6), ("stride", "expected 1 to 5", "got 6")),
        "frozen encoder": ({}, (*AREAS, "--freeze_encoder"), ("--freeze_encoder", "got cnn-1d")),
        "learning rate": ({}, (*AREAS, "--learning_rate", "1e30", "--max_steps", 2), ("learning_rate", "1e+30")),
        "configuration": ({}, (*AREAS, "--dataset_config", "paper"), ("--dataset_config", "got paper")),
        "even window": ({}, (*AREAS, "--task", "center", "--window_size", 6), ("odd", "got 6")),
    }


@pytest.mark.parametrize("name", bad_inputs())
def test_bad_input_is_one_clear_line(name, run_script, tmp_path) -> None:
    changes, arguments, words = bad_inputs()[name]
    scene = write_small_scene(tmp_path / "scene", **changes)
    given = ("--data_dir", scene, *NAMES, "--model", "cnn-1d", *FAST, "--output_dir", tmp_path / "output")
    result = run_script(SCRIPT, *given, *arguments)
    assert_one_clear_line(result, *words)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "settings", [{"hidden_size": "wide"}, {"hidden_size": 36}, None], ids=["type", "size", "file"]
)
def test_damaged_checkpoint_is_one_clear_line(settings, run_script, scene, tmp_path) -> None:
    checkpoint = write_small_checkpoint(tmp_path / "checkpoint")
    if settings is None:
        (checkpoint / "model.safetensors").write_bytes(b"no tensors")
    else:
        config = checkpoint / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    given = ("--model", "hsst", "--model_name_or_path", checkpoint, "--output_dir", tmp_path / "output")
    result = run_script(SCRIPT, "--data_dir", scene, *NAMES, *AREAS, *FAST, *given)
    assert_one_clear_line(result, checkpoint)
    assert not (tmp_path / "output").exists()


def test_missing_checkpoint_is_one_clear_line(run_script, scene, tmp_path) -> None:
    given = ("--model", "hsst", "--model_name_or_path", tmp_path / "nowhere", "--output_dir", tmp_path / "output")
    result = run_script(SCRIPT, "--data_dir", scene, *NAMES, *AREAS, *FAST, *given)
    assert_one_clear_line(result, tmp_path / "nowhere", "there is no folder")


def test_checkpoint_for_other_bands_is_refused(run_script, scene, tmp_path) -> None:
    checkpoint = write_small_checkpoint(tmp_path / "checkpoint", wavelengths=np.linspace(500, 900, 6))
    given = ("--model_name_or_path", checkpoint, "--output_dir", tmp_path / "output")
    result = run_script(SCRIPT, "--data_dir", scene, *NAMES, *AREAS, *given)
    assert_one_clear_line(result, "adapt_to_wavelengths", "--adapt_bands", checkpoint)


def write_scene_of_twenty_bands(folder, tagged=True):
    """The small scene on 20 bands between those of a checkpoint for 30."""
    cube, labels = small_cube()
    centers = np.linspace(465, 2380, 20).round(1)
    positions = np.interp(centers, WAVELENGTHS, np.arange(len(WAVELENGTHS)))
    below = np.minimum(positions.astype(int), len(WAVELENGTHS) - 2)
    share = (positions - below)[:, None, None]
    image = ((1 - share) * cube[below] + share * cube[below + 1]).astype(np.int16)
    tags = (lambda band: {"wavelength": str(centers[band]), "wavelength_units": "nanometers"}) if tagged else None
    write_raster(folder / "images" / "scene.tif", image, band_tags=tags, nodata=-32768)
    write_raster(folder / "labels" / "scene.tif", np.where(labels == 255, 0, labels + 1).astype(np.uint8))
    return folder, centers


@pytest.mark.parametrize("model", ["hsst", "linear-probe"])
def test_checkpoint_is_adapted_to_the_bands_of_another_sensor(model, run_script, tmp_path) -> None:
    trained = np.linspace(450, 2400, 30)
    torch.manual_seed(0)
    checkpoint = write_small_checkpoint(tmp_path / "checkpoint", wavelengths=trained)
    scene, centers = write_scene_of_twenty_bands(tmp_path / "scene")
    output = tmp_path / "output"
    given = ("--data_dir", scene, *NAMES, *AREAS, *FAST, "--model", model, "--model_name_or_path", checkpoint)
    assert_one_clear_line(run_script(SCRIPT, *given, "--output_dir", output), "--adapt_bands", checkpoint)
    assert not output.exists()

    result = run_script(SCRIPT, *given, "--adapt_bands", "--output_dir", output)
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("Adapted")]
    assert "to 20 bands: 8 blocks of up to 4 bands" in line and str(checkpoint) in line
    results = json.loads((output / "all_results.json").read_text())
    assert line.endswith(results["adaptation"]) and results["bands"] == 20 and results["overall_accuracy"] > 0.6
    if model == "hsst":
        network = AutoModelForSemanticSegmentation.from_pretrained(output)
        assert network.config.num_channels == 20 and network.config.id2label == dict(enumerate(CLASS_NAMES))
        np.testing.assert_allclose(network.config.wavelengths, centers)
        np.testing.assert_allclose(AutoImageProcessor.from_pretrained(output).wavelengths, centers)


def test_nothing_is_adapted_where_the_bands_fit(run_script, scene, tmp_path) -> None:
    checkpoint = write_small_checkpoint(tmp_path / "checkpoint")
    given = ("--data_dir", scene, *NAMES, *AREAS, *FAST, "--model_name_or_path", checkpoint, "--adapt_bands")
    result = run_script(SCRIPT, *given, "--max_steps", 1, "--output_dir", tmp_path / "output")
    assert result.returncode == 0, result.stderr
    assert "Adapted" not in result.stdout
    assert json.loads((tmp_path / "output" / "all_results.json").read_text())["adaptation"] is None


def test_what_cannot_be_adapted(run_script, tmp_path) -> None:
    far = write_small_checkpoint(tmp_path / "far", wavelengths=np.linspace(8000, 12000, 30))
    scene, _ = write_scene_of_twenty_bands(tmp_path / "scene")
    untagged, _ = write_scene_of_twenty_bands(tmp_path / "untagged", tagged=False)
    for data, arguments, words in (
        (scene, ("--model_name_or_path", far), ("--adapt_bands", far, "8000 to 12000 nm")),
        (untagged, ("--model_name_or_path", far), ("--adapt_bands", "without wavelengths")),
        (scene, ("--model", "cnn-1d"), ("--adapt_bands", "--model_name_or_path", "got none")),
    ):
        output = tmp_path / "output"
        given = ("--data_dir", data, *NAMES, *AREAS, *FAST, *arguments, "--adapt_bands", "--output_dir", output)
        assert_one_clear_line(run_script(SCRIPT, *given), *words)
        assert not output.exists()


def test_files_are_written_whole_or_not_at_all(tmp_path) -> None:
    path = tmp_path / "folder" / "file.txt"
    with pytest.raises(OSError, match=f"{path}: expected a file that can be written, got: .*disk full"):
        with written_whole(path) as partial:
            partial.write_text("half")
            raise OSError(28, "disk full")
    assert list(path.parent.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), written_whole(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == []
    with written_whole(path) as partial:
        partial.write_text("whole")
        assert partial.suffix == ".txt" and not path.exists()
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


def test_map_is_drawn_for_several_scenes(tmp_path, real_figures) -> None:
    from small_land_cover import small_data

    data = small_data()
    path = plot_land_cover_map(tmp_path / "map.png", data, {"scene": data.labels["scene"]}, "reference as prediction")
    assert path.stat().st_size > 10_000

"""Sensors made from one scene, images with a checkpoint's bands, and the three ways beside each other."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import rasterio
from conftest import assert_one_clear_line
from small_land_cover import CLASS_NAMES, small_data, write_small_checkpoint, write_small_scene

from datasets_loading.labelled_scene import LabelledScene
from datasets_loading.land_cover_metric import land_cover_scores
from datasets_loading.sensors import ENMAP, Sensor
from datasets_loading.simulation.spectra import simulate_spectral_library
from hsst.experiments.baselines import run_model
from hsst.experiments.sensors import (
    ADAPTED,
    FINE_CENTRES,
    RESAMPLED,
    SCRATCH,
    SIMULATED_SENSORS,
    SensorData,
    compare_ways,
    make_sensor,
    resampled_to_checkpoint,
    seen_by,
    sensor_table,
    simulate_sensors,
)
from hsst.support.training_settings import ModelOptions, settings_for

SETTINGS = {"max_steps": 2, "batch_size": 4, "use_cpu": True}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model of 12 bands that the sensors of these tests have between theirs."""
    return str(write_small_checkpoint(tmp_path_factory.mktemp("model"), window_size=5))


def test_simulated_sensors_are_those_of_their_names():
    for name, (count, first, last) in SIMULATED_SENSORS.items():
        sensor = make_sensor(name)
        assert f"{sensor.num_bands} bands, {sensor.wavelengths[0]:.0f} to {sensor.wavelengths[-1]:.0f} nm" == name
        assert (sensor.num_bands, sensor.wavelengths[0], sensor.wavelengths[-1]) == (count, first, last)


def test_a_sensor_sees_the_spectrum_of_the_scene():
    cube = np.rint(2.0 * FINE_CENTRES[:, None, None] + np.arange(6).reshape(2, 3)).astype(np.int16)
    cube[:, 1, 2] = ENMAP.nodata
    sensor = Sensor("coarse", (374.0, 600.0, 900.0, 1400.0, 2490.0), (14.0,) * 5)
    seen = seen_by(cube, sensor)
    offsets = np.arange(6).reshape(2, 3)
    # Constant below the first band, straight in between, nothing where water vapour absorbs
    for band, expected in ((0, 800.0), (1, 1200.0), (2, 1800.0)):
        assert np.abs(seen[band] - expected - offsets)[offsets < 5].max() <= 1
    assert np.abs(seen[4] - 4980 - offsets)[offsets < 5].max() <= 8  # the last band reaches beyond the end
    assert (seen[3] == ENMAP.nodata).all() and (seen[:, 1, 2] == ENMAP.nodata).all()


def test_the_same_scene_for_every_sensor(monkeypatch):
    few = functools.partial(simulate_spectral_library, spectra_per_material=4)
    monkeypatch.setattr("datasets_loading.simulation.scene.simulate_spectral_library", few)
    given = {"size": 40, "block_size": 8, "window_size": 4}
    first, second = simulate_sensors(list(SIMULATED_SENSORS)[:2], seed=5, num_scenes=2, **given)
    [alone] = simulate_sensors(list(SIMULATED_SENSORS)[:1], seed=6, **given)
    assert not alone.other_scenes and len(first.other_scenes) == len(second.other_scenes) == 1
    assert np.array_equal(alone.data.scenes[0].cube, first.other_scenes[0].scenes[0].cube)
    assert first.data.split is second.data.split
    np.testing.assert_array_equal(first.data.scenes[0].labels, second.data.scenes[0].labels)
    assert first.data.num_bands == 48 and second.data.num_bands == 120
    # 500 nm is in both
    bands = [int(np.abs(data.data.wavelengths - 500).argmin()) for data in (first, second)]
    images = [data.data.scenes[0].cube[band].astype(float) for data, band in zip((first, second), bands, strict=True)]
    assert np.corrcoef(images[0].ravel(), images[1].ravel())[0, 1] > 0.98
    for split in ("train", "test"):
        assert first.data.class_counts(split).sum() > 100


def test_bands_beyond_the_sensor_hold_the_mean(checkpoint):
    data = small_data()
    data.scenes[0].cube[8:] = ENMAP.nodata  # a sensor that ends at 1690 nm
    resampled, num_missing = resampled_to_checkpoint(SensorData("short", data, np.full(12, 177.0)), checkpoint)
    assert num_missing == 4 and resampled.num_bands == 12
    cube = resampled.scenes[0].cube
    np.testing.assert_array_equal(cube[:8], data.scenes[0].cube[:8])  # the checkpoint has the very same bands
    assert (cube[8:] == 1500).all()  # image_mean 0.15


def test_bands_at_a_gap_are_not_as_wide_as_the_gap(checkpoint):
    """Widths that a file does not state are distances to the nearest band."""
    data = small_data()
    data.scenes[0].cube[4:8] = ENMAP.nodata
    resampled, num_missing = resampled_to_checkpoint(SensorData("gap", data, None), checkpoint)
    assert num_missing == 4
    assert (resampled.scenes[0].cube[4:8] == 1500).all()  # image_mean 0.15
    data = small_data()
    data.scenes[0].cube[1:] = ENMAP.nodata
    with pytest.raises(ValueError, match="wavelengths: expected at least two"):
        resampled_to_checkpoint(SensorData("one", data, None), checkpoint)


def test_a_sensor_without_any_band_of_the_checkpoint_is_refused(tmp_path):
    far = write_small_checkpoint(tmp_path, wavelengths=tuple(np.linspace(2500, 2600, 12)))
    with pytest.raises(ValueError, match="short: expected bands"):
        resampled_to_checkpoint(SensorData("short", small_data(), np.full(12, 5.0)), str(far))


def compare(folder, checkpoint, sensor_data, **changes):
    arguments = {"budgets": ["2", "100%"], "seeds": [0], "settings": SETTINGS, "options": ModelOptions(checkpoint)}
    arguments |= {"description": {"labels": "these"}, **changes}
    return compare_ways(sensor_data, folder, **arguments)


@pytest.fixture(scope="module")
def shifted():
    """A sensor whose bands lie between those of the checkpoint."""
    data = small_data()
    data.wavelengths = data.wavelengths[:10] + 60.0
    data.scenes[0].cube = data.scenes[0].cube[:10]
    return SensorData("10 bands", data, np.full(10, 177.0))


@pytest.fixture(scope="module")
def compared(tmp_path_factory, checkpoint, shifted):
    folder = tmp_path_factory.mktemp("sensors")
    return folder, compare(folder, checkpoint, shifted)


def test_three_ways(compared):
    folder, result = compared
    assert list(result["ways"]) == [SCRATCH, RESAMPLED, ADAPTED]
    assert result["bands"] == 10 and result["filled_bands"] > 0 and "band" in result["adaptation"]
    experiments = {way: json.loads((folder / way / "experiment.json").read_text()) for way in result["ways"]}
    assert {experiment["way"] for experiment in experiments.values()} == set(result["ways"])
    for way, entries in result["ways"].items():
        assert [entry["budget"] for entry in entries] == ["2", "100%"]
        assert entries[0]["model"] == ("hsst-scratch" if way == SCRATCH else "hsst")
        assert entries[0]["seeds"] == [0] and entries[0]["labels"] == 6
    # Same architecture with and without weights; the resampled image has more bands
    parameters = {way: entries[0]["parameters"] for way, entries in result["ways"].items()}
    assert parameters[SCRATCH] == parameters[ADAPTED] != parameters[RESAMPLED]
    expected = [
        result["ways"][ADAPTED][1]["overall_accuracy"]["mean"] - result["ways"][way][1]["overall_accuracy"]["mean"]
        for way in (SCRATCH, RESAMPLED)
    ]
    assert [result["differences"][way]["100%"]["mean"] for way in (SCRATCH, RESAMPLED)] == pytest.approx(expected)


def test_runs_that_are_done_are_not_repeated(compared, checkpoint, shifted, monkeypatch):
    folder, result = compared
    monkeypatch.setattr("hsst.experiments.label_efficiency.run_model", lambda *a, **k: pytest.fail("trained again"))
    assert compare(folder, checkpoint, shifted) == result


def test_runs_on_something_else_are_not_mixed_in(compared, checkpoint, shifted):
    folder, _ = compared
    with pytest.raises(ValueError, match="labels these"):
        compare(folder, checkpoint, shifted, description={"labels": "others"})


def test_numbers_that_are_no_reflectance_are_standardised_by_the_training_area(
    tmp_path, checkpoint, shifted, monkeypatch
):
    seen = []
    monkeypatch.setattr(
        "hsst.experiments.sensors.run_experiment",
        lambda experiment, *a, **k: seen.append(experiment.options.statistics) or [],
    )
    compare(tmp_path, checkpoint, shifted)
    compare(tmp_path, checkpoint, SensorData("radiance", shifted.data, shifted.fwhm, is_reflectance=False))
    assert seen == ["training", None, None, "training", "training", "training"]


def test_table(compared):
    result = {"sensors": [compared[1]]}
    lines = sensor_table(result).splitlines()
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert lines[2].startswith("| 10 bands | 2 per class (6) |") and "**" in lines[2]
    mean = 100 * compared[1]["ways"][ADAPTED][0]["overall_accuracy"]["mean"]
    assert f"{mean:.1f}" in lines[2]
    assert lines[-1].startswith("\\* Bands of the model")


def test_without_labels(tmp_path, shifted):
    """A model that knows the classes is compared before it has seen a label of the sensor."""
    checkpoint = str(write_small_checkpoint(tmp_path / "model", class_names=CLASS_NAMES))
    # A scene whose labels are those of another class is harder
    wrong = {name: np.where(labels < 3, (labels + 1) % 3, labels) for name, labels in shifted.data.labels.items()}
    both = replace(shifted, other_scenes=(shifted.data.with_labels(wrong),))
    result = compare(
        tmp_path / "out", checkpoint, both, settings=SETTINGS | {"head_start": "checkpoint"}, budgets=["2"]
    )
    assert list(result["unlabelled"]["ways"]) == [RESAMPLED, ADAPTED] and result["unlabelled"]["scenes"] == 2
    options = ModelOptions(checkpoint, adapt_bands=True)
    settings = replace(settings_for("hsst", SETTINGS), head_start="checkpoint", max_steps=0)
    scores = [
        land_cover_scores(run_model("hsst", data, settings, options).confusion)["overall_accuracy"]
        for data in (shifted.data, *both.other_scenes)
    ]
    assert scores[0] != scores[1]
    mean = result["unlabelled"]["ways"][ADAPTED]["overall_accuracy"]["mean"]
    assert mean == pytest.approx(sum(scores) / 2)
    assert result["unlabelled"]["difference"]["mean"] == pytest.approx(
        mean - result["unlabelled"]["ways"][RESAMPLED]["overall_accuracy"]["mean"]
    )
    lines = sensor_table({"sensors": [result]}).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:5]] == [
        "none (2 scenes)",
        "none, the scene of the labels",
        "2 per class (6)",
    ]
    assert f"{100 * mean:.1f}" in lines[2] and f"{100 * scores[0]:.1f}" in lines[3]
    average = sensor_table({"sensors": [result]}, "average_accuracy").splitlines()
    assert len(average) == len(lines) and average[0] == lines[0]
    for line, values in (
        (average[2], result["unlabelled"]["ways"][ADAPTED]["average_accuracy"]["mean"]),
        (average[3], result["unlabelled"]["ways"][ADAPTED]["average_of_scenes"][0]),
        (average[4], result["ways"][SCRATCH][0]["average_accuracy"]["mean"]),
    ):
        assert f"{100 * values:.1f}" in line
    differences = result["average_differences"][RESAMPLED]["2"]
    assert differences["mean"] == pytest.approx(
        result["ways"][ADAPTED][0]["average_accuracy"]["mean"]
        - result["ways"][RESAMPLED][0]["average_accuracy"]["mean"]
    )


def test_smaller_steps_from_the_checkpoint(tmp_path, compared, shifted):
    """With steps of no size the ways from the checkpoint stay what they were without labels, and scratch learns."""
    checkpoint = str(write_small_checkpoint(tmp_path / "model", class_names=CLASS_NAMES))
    settings = SETTINGS | {"head_start": "checkpoint"}
    result = compare(tmp_path / "out", checkpoint, shifted, settings=settings, checkpoint_learning_rate=0.0)
    for way in (RESAMPLED, ADAPTED):
        scores = [entry["overall_accuracy"]["mean"] for entry in result["ways"][way]]
        unlabelled = result["unlabelled"]["ways"][way]["overall_accuracy"]["mean"]
        assert scores == pytest.approx([unlabelled] * 2)
    scratch = [entry["overall_accuracy"]["mean"] for entry in result["ways"][SCRATCH]]
    assert scratch == [entry["overall_accuracy"]["mean"] for entry in compared[1]["ways"][SCRATCH]]


def test_command(tmp_path, run_script, checkpoint):
    folder = write_small_scene(tmp_path / "data")
    arguments = ["--model_name_or_path", checkpoint, "--sensors", "--real", f"small={folder}", "--radiance", "small"]
    arguments += ["--budgets", "2", "--seeds", "1", "--max_steps", "1", "--block_size", "8", "--use_cpu"]
    result = run_script("experiments/sensors.py", *arguments, "--output_dir", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "out" / "sensors.json").read_text())
    assert [sensor["title"] for sensor in written["sensors"]] == ["small"]
    assert "| small (radiance) | 2 per class" in result.stdout
    # The same files as reflectance are something else
    arguments.remove("--radiance")
    arguments.remove("small")
    assert_one_clear_line(run_script("experiments/sensors.py", *arguments, "--output_dir", tmp_path / "out"), "out")


def test_a_sensor_that_cannot_be_is_refused_before_any_is_trained(tmp_path, run_script, checkpoint):
    good, bad = (write_small_scene(tmp_path / name) for name in ("good", "bad"))
    for file in bad.glob("images/*"):
        with rasterio.open(file, "r+") as dataset:
            for band in range(1, dataset.count + 1):
                dataset.update_tags(band, wavelength="")
    arguments = ["--model_name_or_path", checkpoint, "--sensors", "--real", f"good={good}", "--real", f"bad={bad}"]
    arguments += ["--budgets", "2", "--seeds", "1", "--max_steps", "1", "--block_size", "8", "--use_cpu"]
    result = run_script("experiments/sensors.py", *arguments, "--output_dir", tmp_path / "out")
    assert_one_clear_line(result, "bad", "wavelength")
    assert not (tmp_path / "out").exists()
    arguments = [*arguments[:5], *arguments[7:]]
    for given, words in (
        (["--head_start", "checkpoint"], ["classes of the data"]),
        (["--merge", "meadow=oak"], ["--merge", "--head_start checkpoint"]),
    ):
        result = run_script("experiments/sensors.py", *arguments, *given, "--output_dir", tmp_path / "out")
        assert_one_clear_line(result, *words)
        assert not (tmp_path / "out").exists()


def test_classes_that_stand_for_those_of_the_labels(tmp_path, run_script):
    """From scratch there is nothing to merge."""
    folder = write_small_scene(tmp_path / "data")
    first, *others = LabelledScene(data_dir=folder, window_size=5, block_size=8).data.class_names
    model = write_small_checkpoint(tmp_path / "model", class_names=("oak", "pine", *others))
    arguments = ["--model_name_or_path", model, "--sensors", "--real", f"small={folder}"]
    arguments += ["--head_start", "checkpoint", "--merge", f"{first}=oak,pine"]
    arguments += ["--budgets", "2", "--seeds", "1", "--max_steps", "1", "--block_size", "8", "--use_cpu"]
    result = run_script("experiments/sensors.py", *arguments, "--output_dir", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    (sensor,) = json.loads((tmp_path / "out" / "sensors.json").read_text())["sensors"]
    assert set(sensor["ways"]) == {SCRATCH, RESAMPLED, ADAPTED}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--sensors"], ["--real", "none"]),
        (["--seeds", "0"], ["--seeds"]),
        (["--scenes", "0"], ["--scenes"]),
        (["--scenes", "2"], ["--scenes", "--head_start checkpoint"]),
        (["--checkpoint_learning_rate", "-1"], ["--checkpoint_learning_rate", "at least 0", "-1.0"]),
        (["--budgets", "many"], ["budgets", "many"]),
        (["--adapt_bands"], ["--adapt_bands"]),
        (["--radiance", "moon"], ["--radiance", "moon"]),
        (["--real", "salinas"], ["--real", "salinas"]),
        (["--real", "a=/nowhere"], ["/nowhere"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, run_script, checkpoint, given, words):
    result = run_script(
        "experiments/sensors.py", "--model_name_or_path", checkpoint, *given, "--output_dir", tmp_path / "out"
    )
    assert_one_clear_line(result, *words)
    assert not (tmp_path / "out").exists()

"""Cards of both kinds of models say what the result files say, and their folders are ready to be published."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from conftest import SCRIPTS, assert_one_clear_line
from small_land_cover import CLASS_NAMES, write_small_checkpoint, write_small_scene

import hsst.publish
from hsst.build_model_card import model_card, validation_table, without_folders
from hsst.publish import check_model_folder, stage_model_folder
from hsst.support.card_tables import ADAPTED, RESAMPLED, WAYS
from modeling_hsst import HSSTConfig, HSSTForSemanticSegmentation

RESULTS = {
    "eval_loss": 0.25,
    "eval_band_mean_loss": 0.75,
    "eval_visible_mean_loss": 0.5,
    "start_eval_loss": None,
    "steps": 10,
    "windows_seen": 640,
    "training_tiles": 7,
    "validation_tiles": 2,
    "realised_mask_ratio": 0.7,
    "parameters": 1234,
    "run": {"seed": 3, "train_dir": "/somewhere/on/a/machine/tiles"},
    "versions": {"torch": "9.9"},
}


def masks(model_error, other_error):
    """A result of one type of masks with two predictors."""
    predictors = {
        name: {"overall": error, "regions": {"VNIR": error, "SWIR1": error}}
        for name, error in (("model", model_error), ("interpolation", other_error))
    }
    ratio = {"ratio": model_error / other_error, "low": None, "high": None}
    return {"predictors": predictors, "model_to": {"interpolation": ratio}, "hidden": 0.7, "tiles": ["a", "b"]}


def card(sources=("simulated",), **changes):
    final = changes.pop("final", True)
    return model_card(HSSTConfig(), RESULTS, list(sources), "hsg-aiml/hsst-test", final=final, evaluations=changes)


def test_a_source_that_was_used_is_named_and_attributed():
    text = card(["simulated", "neon"])
    assert "training_sources:\n- simulated\n- neon\n" in text
    assert "National Ecological Observatory Network" in text and "Neither endorses" in text
    assert "It has seen simulated pixels only" not in text
    alone = card(["simulated"])
    assert "National Ecological Observatory Network" not in alone and "It has seen simulated pixels only" in alone


def test_a_placeholder_says_so_and_a_resumed_run_too():
    assert "A placeholder" in card(final=False) and "A placeholder" not in card()
    assert "| validation tiles | 0.250 | not measured |" in card()
    assert "from the same scenes as the training tiles" in card()


def test_errors_of_several_kinds_of_masks_are_told_before_and_after():
    def errors(error):
        return {"error": error, "band_mean": 0.9, "visible_mean": 0.5}

    history = [
        {
            "step": step,
            "validation": {"real.safetensors/unit": errors(error), "real.safetensors/tube": errors(error + 0.1)},
        }
        for step, error in ((0, 0.7), (9, 0.2))
    ]
    table = validation_table({"history": history})
    assert "| real, unit masks | 0.200 | 0.700 | 0.900 | 0.500 |" in table
    assert "| real, tube masks | 0.300 | 0.800 | 0.900 | 0.500 |" in table
    # A run that went on from another begins where that one began
    later = [{"step": 4, "validation": {name: errors(0.1) for name in history[0]["validation"]}}]
    table = validation_table({"history": later, "earlier": {"history": history}})
    assert "| real, unit masks | 0.100 | 0.700 | 0.900 | 0.500 |" in table


def test_runs_that_went_on_from_others_are_told_together():
    later = RESULTS | {"earlier": RESULTS | {"run": {"seed": 1}, "windows_seen": 1000, "steps": 20}}
    later["versions"] = {"torch": "10.0"}
    text = model_card(HSSTConfig(), later, ["simulated"], "hsg-aiml/hsst-test")
    assert "| windows seen | 1,640 in 20 + 10 steps |" in text
    assert "| seed | 1, then 3 |" in text and "| versions | torch 9.9, then torch 10.0 |" in text
    assert "| windows seen | 640 in 10 steps |" in card() and "| versions | torch 9.9 |" in card()


def test_what_was_not_measured_is_a_limit_and_not_a_result():
    text = card()
    for words in ("Reconstruction of real tiles was not measured", "few labels was not measured"):
        assert words in text
    assert "### On real tiles" not in text and "## Other sensors" not in text
    text = card(reconstruction={"masks": {"unit": masks(0.2, 0.4), "tube": masks(0.5, 0.4)}})
    assert "### On real tiles" in text and "2 real EnMAP tiles" in text and "| this model | **0.200** |" in text
    assert "Under tube masks, a predictor without a network is better" in text
    assert "Reconstruction of real tiles was not measured" not in text
    assert "tuned on the real tiles of Potsdam" in text


DESCRIBED = {"mean": 0.5, "low": 0.4, "high": 0.6}
ENTRY = {
    **{"budget": "5", "budget_title": "5 per class", "labels": 30, "title": "HSST", "seeds": [0, 1, 2]},
    **dict.fromkeys(("overall_accuracy", "average_accuracy", "macro_f1"), DESCRIBED),
}
SENSOR = {
    **{"title": "48 bands", "is_reflectance": True, "filled_bands": 3, "ways": {way: [ENTRY] for way in WAYS}},
    "differences": {way: {"5": DESCRIBED} for way in WAYS},
}


def test_every_result_that_is_given_has_its_table():
    text = card(label_efficiency={"results": [ENTRY], "directions": ["a to b"]}, sensors={"sensors": [SENSOR]})
    assert "| 5 per class (30) | HSST | 3 | **50.0** (40.0–60.0) |" in text and "(a to b)" in text
    assert "| 48 bands | 5 per class (30) | **50.0** (40.0–60.0) | **50.0** (40.0–60.0) * |" in text
    assert "few labels was not measured" not in text and "other sensors was not measured" not in text
    assert "without labels" not in text


def test_a_model_that_is_better_everywhere_is_not_said_to_be_worse():
    assert "better than this model" not in card(reconstruction={"masks": {"unit": masks(0.2, 0.4)}})


def test_folders_of_a_machine_do_not_go_into_a_repository():
    assert without_folders(RESULTS)["run"] == {"seed": 3, "train_dir": "tiles"}
    assert without_folders({"a": ["/x/y", "x/y", 1.5, None]}) == {"a": ["y", "x/y", 1.5, None]}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """An output folder of run_mim.py with its evaluations."""
    folder = write_small_checkpoint(tmp_path_factory.mktemp("pretrained") / "run")
    (folder / "all_results.json").write_text(json.dumps(RESULTS))
    (folder / "figures").mkdir()
    picture = np.zeros((4, 4, 3))
    matplotlib.image.imsave(folder / "figures" / "reconstruction_step_0000010.png", picture)
    (folder / "reconstruction.json").write_text(json.dumps({"masks": {"unit": masks(0.2, 0.4)}, "model": "/m/n"}))
    matplotlib.image.imsave(folder / "reconstruction_spectra.png", picture)
    return folder


@pytest.fixture
def quick_check(monkeypatch):
    """Publication's check but for loading in clean processes, a matter of seconds."""
    monkeypatch.setattr(hsst.publish, "loading_problems", lambda folder: [])
    return check_staged


def check_staged(folder):
    with tempfile.TemporaryDirectory() as temporary:
        check_model_folder(stage_model_folder(folder, Path(temporary) / "staged"))


def test_a_pre_trained_model_becomes_a_folder_that_is_ready(tmp_path, run_script, pretrained, quick_check):
    arguments = ["--model", pretrained, "--sources", "simulated", "neon", "--reconstruction", pretrained, "--final"]
    result = run_script("build_model_card.py", *arguments, "--output", tmp_path / "card")
    assert result.returncode == 0, result.stderr
    quick_check(tmp_path / "card")
    text = (tmp_path / "card" / "README.md").read_text()
    assert (
        "hsg-aiml/hsst-enmap" in text
        and "| validation tiles | 0.250 |" in text
        and "reconstruction_spectra.png" in text
    )
    assert json.loads((tmp_path / "card" / "reconstruction.json").read_text())["model"] == "n"
    assert "/somewhere" not in (tmp_path / "card" / "all_results.json").read_text()
    # In place, from its own results; and again without them
    arguments[arguments.index("--reconstruction") + 1] = tmp_path / "card"
    result = run_script("build_model_card.py", *arguments, "--output", tmp_path / "card")
    assert result.returncode == 0 and (tmp_path / "card" / "README.md").read_text() == text
    result = run_script("build_model_card.py", "--model", pretrained, "--output", tmp_path / "card")
    assert result.returncode == 0 and not list((tmp_path / "card").glob("reconstruction_spectra*"))
    assert not (tmp_path / "card" / "reconstruction.json").exists()


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory):
    return tmp_path_factory.mktemp("fine_tuned")


@pytest.fixture
def land_cover(fine_tuned, run_script):
    """A folder built from a model that run_classification.py fine-tuned."""
    if not (fine_tuned / "card").exists():
        scene = write_small_scene(fine_tuned / "scene")
        checkpoint = write_small_checkpoint(fine_tuned / "checkpoint")
        arguments = ["--data_dir", scene, "--class_names", ",".join(CLASS_NAMES), "--max_steps", 2, "--use_cpu"]
        arguments += ["--train_area", "0,24,0,22", "--test_area", "0,24,28,52", "--model_name_or_path", checkpoint]
        result = run_script("run_classification.py", *arguments, "--output_dir", fine_tuned / "run")
        assert result.returncode == 0, result.stderr
        result = run_script(
            "build_model_card.py", "--model", fine_tuned / "run", "--output", fine_tuned / "card", "--final"
        )
        assert result.returncode == 0, result.stderr
    return fine_tuned / "card"


def test_a_land_cover_model_becomes_a_folder_that_is_ready(land_cover, quick_check):
    quick_check(land_cover)
    text = (land_cover / "README.md").read_text()
    results = json.loads((land_cover / "all_results.json").read_text())
    assert "base_model: hsg-aiml/hsst-enmap\n" in text and "hsg-aiml/hsst-enmap-landcover" in text
    assert f"{results['overall_accuracy']:.1%}" in text
    for number, name in enumerate(CLASS_NAMES):
        counts = results["labelled_pixels"]
        row = f"| {number} | {name} | {counts['train'][number]:,} | {counts['test'][number]:,} |"
        assert row in text
    model = HSSTForSemanticSegmentation.from_pretrained(land_cover)
    assert tuple(model.config.id2label.values()) == CLASS_NAMES


def test_fine_tuning_that_went_on_from_another(land_cover, fine_tuned, tmp_path, run_script):
    first = json.loads((land_cover / "all_results.json").read_text())
    assert "earlier" not in first  # the pre-trained checkpoint had no fine-tuning
    arguments = ["--data_dir", fine_tuned / "scene", "--class_names", ",".join(CLASS_NAMES), "--max_steps", 3]
    arguments += ["--train_area", "0,20,0,22", "--test_area", "0,24,28,52", "--use_cpu"]
    arguments += ["--model_name_or_path", fine_tuned / "run", "--head_start", "checkpoint"]
    result = run_script("run_classification.py", *arguments, "--output_dir", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    result = run_script("build_model_card.py", "--model", tmp_path / "run", "--output", tmp_path / "card")
    assert result.returncode == 0, result.stderr
    text, results = (
        (tmp_path / "card" / "README.md").read_text(),
        json.loads((tmp_path / "card" / "all_results.json").read_text()),
    )
    assert results["earlier"]["training"] == first["training"]
    pixels = [sum(run["labelled_pixels"]["train"]) for run in (first, results)]
    assert pixels[0] > pixels[1] and f"| {pixels[0]:,} + {pixels[1]:,} to train, " in text
    assert "| steps | 2 + 3 |" in text and "one run went on from the other" in text
    assert "one run went on" not in (land_cover / "README.md").read_text()


def test_a_land_cover_model_and_a_few_labels(fine_tuned, tmp_path, run_script, quick_check):
    experiment = {"settings": {"learning_rate": 1e-4}, "options": {"merged": {"wood": ["oak", "pine"]}}}
    entry = ENTRY | {"average_accuracy_trained": DESCRIBED}
    summary = {"results": [entry], "directions": ["a to b"], "experiment": experiment, "untrained_classes": ["water"]}
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "label_efficiency.json").write_text(json.dumps(summary))
    arguments = ["build_model_card.py", "--model", fine_tuned / "run", "--output", tmp_path / "card", "--final"]
    result = run_script(*arguments, "--label_efficiency", tmp_path / "labels")
    assert result.returncode == 0, result.stderr
    quick_check(tmp_path / "card")
    text = " ".join((tmp_path / "card" / "README.md").read_text().split())
    assert "| 5 per class (30) | HSST | 3 | **50.0** (40.0–60.0) |" in text and "(a to b)" in text
    assert "Of water there is no training pixel" in text
    assert '"HSST" is this model' in text and "learning rate of 0.0001" in text and "(wood: oak, pine)" in text
    assert "seen no simulated label" in text


def test_a_land_cover_model_on_other_sensors(land_cover, fine_tuned, tmp_path, run_script, quick_check):
    score = {"mean": 0.25, "low": None, "high": None}
    ways = {way: {"overall_accuracy": score, "of_scenes": [0.25, 0.25]} for way in (RESAMPLED, ADAPTED)}
    sensor = SENSOR | {"unlabelled": {"scenes": 2, "ways": ways, "difference": score | {"mean": 0.0}}}
    (tmp_path / "sensors").mkdir()
    (tmp_path / "sensors" / "sensors.json").write_text(json.dumps({"sensors": [sensor]}))
    arguments = ["build_model_card.py", "--model", fine_tuned / "run", "--output", tmp_path / "card", "--final"]
    result = run_script(*arguments, "--sensors", tmp_path / "sensors")
    assert result.returncode == 0, result.stderr
    quick_check(tmp_path / "card")
    text = (tmp_path / "card" / "README.md").read_text()
    assert "| 48 bands | none (2 scenes) | – | **25.0** * | **25.0** | – | 0.0 |" in text
    assert "without labels of the sensor" in text
    assert "## Other sensors" not in (land_cover / "README.md").read_text()
    result = run_script(*arguments, "--reconstruction", tmp_path / "sensors")
    assert_one_clear_line(result, "--reconstruction", "pre-trained model", "land cover")


def test_a_land_cover_model_on_other_labels(fine_tuned, pretrained, tmp_path, run_script, quick_check):
    scores = {"accuracy_per_class": [0.5, None], "overall_accuracy": 0.5, "average_accuracy": 0.5}
    labels = {"class_names": ["tree", "none of these"], "stand_for": {"tree": ["oak", "pine"]}, "title": "Some tiles"}
    # A result file may hold a sentence on the data, by hand
    remark = {"remark": "They were looked at before."}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "other_labels.json").write_text(
        json.dumps({**scores, **labels, **remark, "labelled_pixels": [7, 0], "area_statistics": scores})
    )
    matplotlib.image.imsave(tmp_path / "other" / "other_labels_map.png", np.zeros((4, 4, 3)))
    build = ["build_model_card.py", "--output", tmp_path / "card", "--final", "--other_labels", tmp_path / "other"]
    result = run_script(*build, "--model", fine_tuned / "run")
    assert result.returncode == 0, result.stderr
    quick_check(tmp_path / "card")
    text = (tmp_path / "card" / "README.md").read_text()
    assert "Some tiles: labels of other classes" in text and "![The area in true color" in text
    assert "They were looked at before.\n\n![" in text
    assert "| tree | oak, pine | 7 | 50.0% | 50.0% |" in text
    assert "says little of real ones" in text and "`--scene_statistics` standardizes a scene" in text
    result = run_script(*build, "--model", pretrained)
    assert_one_clear_line(result, "--other_labels", "expected one fine-tuned for land cover", "pre-trained")


def test_a_land_cover_folder_maps_a_scene(land_cover, fine_tuned, tmp_path, run_script):
    scene = fine_tuned / "scene" / "images" / "scene.tif"
    result = run_script("predict_scene.py", scene, "--model", land_cover, "--output", tmp_path / "map.tif")
    assert result.returncode == 0, result.stderr
    areas = (tmp_path / "map_areas.csv").read_text()
    assert "custom code" not in result.stdout and any(name in areas for name in CLASS_NAMES)


@pytest.mark.slow
def test_both_kinds_of_folders_load_with_and_without_the_package(land_cover, pretrained, tmp_path, run_script):
    check_staged(land_cover)
    result = run_script("build_model_card.py", "--model", pretrained, "--output", tmp_path / "card")
    assert result.returncode == 0, result.stderr
    check_staged(tmp_path / "card")


def build_land_cover(*arguments, **environment):
    """Runs the shell script, with this Python."""
    return subprocess.run(
        ["bash", str(SCRIPTS / "build_land_cover.sh"), *map(str, arguments)],
        env={**os.environ, "HSST_PYTHON": sys.executable, "PYTHONPATH": str(SCRIPTS.parent), **environment},
        capture_output=True,
        text=True,
    )


def test_the_land_cover_script_says_what_it_expects(tmp_path):
    for process, words in (
        (build_land_cover(tmp_path), "expected a pre-trained model and an output folder, got 1"),
        (build_land_cover(tmp_path, tmp_path / "card", LAND_COVER_SCENES="2"), "at least 3, got 2"),
        (build_land_cover(tmp_path, tmp_path / "card", LAND_COVER_HELD_OUT="0"), "at least 1, got 0"),
        (
            build_land_cover(tmp_path, tmp_path / "card", LAND_COVER_HELD_OUT="4", LAND_COVER_SCENES="8"),
            "at least 9, got 8",
        ),
        (build_land_cover(tmp_path, tmp_path / "card"), f"{tmp_path}: expected a model with its card"),
    ):
        assert process.returncode == 2 and words in process.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_land_cover_script_builds_a_folder_that_is_ready(tmp_path):
    few = {"LAND_COVER_SCENES": "3", "LAND_COVER_SIZE": "64", "LAND_COVER_STEPS": "2"}
    folders = tmp_path / "work", SCRIPTS.parent / "model_cards" / "hsst-enmap", tmp_path / "card"
    process = build_land_cover(*folders[1:], "--use_cpu", LAND_COVER_WORK=str(folders[0]), **few)
    assert process.returncode == 0, process.stderr
    check_staged(tmp_path / "card")


def without(name):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "arguments", "words"),
    [
        (None, ["--sources", "simulated", "enmap"], ["--sources", "enmap", "DLR"]),
        (None, ["--sources", "moon"], ["--sources", "moon"]),
        (None, ["--sensors", "nowhere"], ["nowhere", "sensors.py", "sensors.json"]),
        (without("all_results.json"), [], ["all_results.json"]),
        (without("config.json"), [], ["config.json"]),
        (lambda folder: shutil.rmtree(folder / "figures"), [], ["figures", "run_mim.py"]),
        (lambda folder: (folder / "all_results.json").write_text("{"), [], ["all_results.json", "JSON"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, run_script, pretrained, spoil, arguments, words):
    folder = shutil.copytree(pretrained, tmp_path / "run")
    if spoil is not None:
        spoil(folder)
    result = run_script("build_model_card.py", "--model", folder, *arguments, "--output", tmp_path / "card")
    assert_one_clear_line(result, *words)
    assert not (tmp_path / "card").exists()

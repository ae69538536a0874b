"""model_cards/hsst-enmap, staged, is the Hub repository: complete, in step with the package, loadable in every way."""

import filecmp
import json

import numpy as np
import pytest
from conftest import assert_one_clear_line
from test_hub_roundtrip import REPOSITORY, ROOT
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from hsst.experiments.label_efficiency import label_efficiency_table
from hsst.experiments.real_places import gains_table
from hsst.publish import loading_problems, stage_model_folder
from hsst.support.card_tables import reconstruction_table, sensor_table
from modeling_hsst import HSSTForMaskedImageModeling, HSSTForSemanticSegmentation, HSSTImageProcessor
from modeling_hsst.hub_hsst import code_files

FOLDER = ROOT / "model_cards" / "hsst-enmap"
LAND_COVER = ROOT / "model_cards" / "hsst-enmap-landcover"


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    return stage_model_folder(FOLDER, tmp_path_factory.mktemp("staged") / "hsst-enmap")


def test_loads_with_and_without_the_package(staged):
    assert loading_problems(staged) == []


@pytest.mark.parametrize("folder", [FOLDER, LAND_COVER], ids=lambda folder: folder.name)
def test_code_is_in_what_is_published_and_not_in_git(folder, tmp_path):
    assert not list(folder.glob("*.py"))
    staged = stage_model_folder(folder, tmp_path / "staged")
    names = {path.name for path in code_files()}
    assert names == {path.name for path in staged.glob("*.py")}
    for name in ("config.json", "preprocessor_config.json"):
        there, here = (json.loads((place / name).read_text()) for place in (staged, folder))
        assert there.pop("auto_map") and there == here
    others = {path.name for path in folder.iterdir()}
    assert others == {path.name for path in staged.iterdir()} - names
    _, changed, unread = filecmp.cmpfiles(folder, staged, others, shallow=False)
    assert sorted(changed) == ["config.json", "preprocessor_config.json"] and not unread


def test_what_was_saved_after_loading_names_no_code(staged, tmp_path):
    """A fine-tuned model of `Trainer` or `save_pretrained` has no code beside it, so that it must not ask for it."""
    AutoModelForSemanticSegmentation.from_pretrained(staged).save_pretrained(tmp_path)
    AutoImageProcessor.from_pretrained(staged).save_pretrained(tmp_path)
    assert "auto_map" in (staged / "config.json").read_text()
    assert not [path.name for path in tmp_path.iterdir() if b"auto_map" in path.read_bytes()]
    assert AutoModelForSemanticSegmentation.from_pretrained(tmp_path).num_parameters() > 10_000


def test_the_land_cover_model_is_ready_for_scenes():
    model = HSSTForSemanticSegmentation.from_pretrained(LAND_COVER)
    results = json.loads((LAND_COVER / "all_results.json").read_text())
    card = (LAND_COVER / "README.md").read_text()
    assert f"| parameters | {sum(parameter.numel() for parameter in model.parameters()):,} |" in card
    assert f"| {results['overall_accuracy']:.1%} | {results['average_accuracy']:.1%} |" in card
    assert "water" in model.config.id2label.values() and "training_sources:\n- simulated\n- neon" in card
    inputs = HSSTImageProcessor.from_pretrained(LAND_COVER)(np.full((200, 8, 8), 2000, dtype=np.int16))
    assert model(**inputs).logits.shape == (1, len(model.config.id2label), 8, 8)


def test_holds_what_a_repository_needs_and_nothing_else():
    extra = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "all_results.json"}
    extra |= {"reconstruction.png", "reconstruction.json", "reconstruction_spectra.png"}
    extra |= {"label_efficiency.json", "real_places.json", "sensors.json"}
    assert {path.name for path in FOLDER.iterdir()} == extra


def test_card_says_what_the_result_file_says():
    card = (FOLDER / "README.md").read_text()
    results = json.loads((FOLDER / "all_results.json").read_text())
    model = HSSTForMaskedImageModeling.from_pretrained(FOLDER)
    assert results["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    runs = [results]
    while "earlier" in runs[0]:
        runs.insert(0, runs[0]["earlier"])
    steps = " + ".join(f"{run['steps']:,}" for run in runs)
    before, after = runs[0]["history"][0]["validation"], results["history"][-1]["validation"]
    assert len(after) == 6
    for number in (
        *(f"| {values['error']:.3f} | {before[name]['error']:.3f} |" for name, values in after.items()),
        f"| parameters | {results['parameters']:,} |",
        f"{sum(run['windows_seen'] for run in runs):,} in {steps} steps",
    ):
        assert number in card
    assert "\nlicense: apache-2.0\n" in card and REPOSITORY in card
    assert "placeholder" not in card and "neon" in card
    assert "from the same scenes as the training tiles" not in card  # they were files of their own
    real = json.loads((FOLDER / "reconstruction.json").read_text())
    assert reconstruction_table(real) in card
    land_cover = json.loads((FOLDER / "label_efficiency.json").read_text())
    assert label_efficiency_table(land_cover) in card
    assert sensor_table(json.loads((FOLDER / "sensors.json").read_text())) in card


def test_the_card_is_built_by_its_script(tmp_path, run_script):
    """From the model folder as it is, the script writes the very same card."""
    model = tmp_path / "model"
    (model / "figures").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "preprocessor_config.json", "all_results.json"):
        (model / name).write_bytes((FOLDER / name).read_bytes())
    (model / "figures" / "step_1.png").write_bytes((FOLDER / "reconstruction.png").read_bytes())
    names = ("reconstruction", "label_efficiency", "real_places", "sensors")
    evaluations = [word for name in names for word in (f"--{name}", FOLDER)]
    sources = ("--sources", "simulated", "neon", "--final")
    result = run_script("build_model_card.py", "--model", model, *evaluations, *sources, "--output", tmp_path / "card")
    assert result.returncode == 0, result.stderr
    for path in FOLDER.iterdir():
        if path.name != "config.json":  # names the architecture
            assert (tmp_path / "card" / path.name).read_bytes() == path.read_bytes(), path.name


def test_an_unfinished_run_has_no_card(tmp_path, run_script):
    result = run_script("build_model_card.py", "--model", tmp_path, "--output", tmp_path / "card")
    assert_one_clear_line(result, tmp_path, "all_results.json")
    assert not (tmp_path / "card").exists()


def test_docs_and_card_tell_the_same_result():
    there = json.loads((ROOT / "docs" / "results" / "reconstruction.json").read_text())
    assert there == json.loads((FOLDER / "reconstruction.json").read_text())
    assert (ROOT / "docs" / "figures" / "reconstruction_spectra.png").read_bytes() == (
        FOLDER / "reconstruction_spectra.png"
    ).read_bytes()


def test_docs_and_card_tell_the_same_land_cover():
    there = json.loads((ROOT / "docs" / "results" / "label_efficiency.json").read_text())
    assert there == json.loads((FOLDER / "label_efficiency.json").read_text())
    pretraining = json.loads((ROOT / "docs" / "results" / "pretraining_hsst_enmap.json").read_text())
    assert pretraining == json.loads((FOLDER / "all_results.json").read_text())


def test_tables_are_up_to_date(run_script):
    result = run_script("experiments/tables.py", "--check")
    assert result.returncode == 0, result.stderr


def test_docs_and_card_tell_the_same_of_other_sensors():
    there = json.loads((ROOT / "docs" / "results" / "sensors.json").read_text())
    assert there == json.loads((FOLDER / "sensors.json").read_text())
    few_labels = json.loads((ROOT / "docs" / "results" / "label_efficiency_landcover.json").read_text())
    assert few_labels == json.loads((LAND_COVER / "label_efficiency.json").read_text())
    assert label_efficiency_table(few_labels) in (LAND_COVER / "README.md").read_text()
    of_land_cover = json.loads((ROOT / "docs" / "results" / "sensors_landcover.json").read_text())
    assert of_land_cover == json.loads((LAND_COVER / "sensors.json").read_text())


def test_docs_and_cards_tell_the_same_of_real_places():
    there = json.loads((ROOT / "docs" / "results" / "real_places.json").read_text())
    for folder in (FOLDER, LAND_COVER):
        assert there == json.loads((folder / "real_places.json").read_text())
        assert gains_table(there, [folder.name]) in (folder / "README.md").read_text()


def test_docs_and_card_tell_the_same_of_other_labels():
    there = json.loads((ROOT / "docs" / "results" / "other_labels.json").read_text())
    assert there == json.loads((LAND_COVER / "other_labels.json").read_text())
    figure = ROOT / "docs" / "figures" / "other_labels_map.png"
    assert figure.read_bytes() == (LAND_COVER / "other_labels_map.png").read_bytes()

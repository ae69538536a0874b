"""The ablation: each rung changes one thing, pre-training sees the training area alone, nothing is done twice."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_one_clear_line
from small_land_cover import CLASS_NAMES, TINY, small_cube, small_data, write_small_checkpoint, write_small_scene

from datasets_loading.splits import NO_SPLIT
from hsst.experiments.ablation import (
    LADDER,
    Ablation,
    Mask,
    PretrainingSettings,
    pretrain_on_area,
    training_corners,
)
from hsst.experiments.baselines import StartingPoint, build_network, hsst_config, own_settings, training_processor
from hsst.experiments.joint_attention import JointAttentionModel
from hsst.experiments.label_efficiency import Experiment, read_rows
from hsst.support.fine_tuning import AreaTensors
from hsst.support.training_settings import ModelOptions, settings_for
from modeling_hsst import HSSTConfig, HSSTModel

SCRIPT = "experiments/ablation.py"
BANDS = list(range(12))
OVERRIDES = ",".join(f"{name}={value}" for name, value in TINY.items())
QUICK = PretrainingSettings(steps=3, batch_size=4, use_cpu=True)
MASK = Mask("tube", 0.5, 2)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def ablation(folder, **changes):
    options = ModelOptions(None, TINY, window_size=4)
    settings = {"max_steps": 2, "batch_size": 2, "use_cpu": True}
    whole = Ablation(
        Experiment({"left to right": small_data()}, changes.pop("options", options), settings, {"labels": "these"}),
        QUICK,
        folder,
        ("ladder", "masks"),
        ("100%",),
        MASK,
        (MASK, Mask("unit", 0.9, 2)),
        "5",
    )
    return replace(whole, **changes)


def model_pair(**changes):
    """A factorised and a joint model with the same weights."""
    config = HSSTConfig(**{**TINY, "num_channels": 12, "image_size": 4, **changes})
    torch.manual_seed(0)
    factorised, joint = HSSTModel(config).eval(), JointAttentionModel(config).eval()
    joint.load_state_dict(factorised.state_dict())
    return factorised, joint


def changed_tokens(model):
    """Tokens (blocks, positions) that another value in the first block of the first position changes."""
    values = torch.randn(1, 12, 4, 4, generator=torch.Generator().manual_seed(1))
    other = values.clone()
    other[:, :2, 0, 0] += 1.0
    with torch.no_grad():
        tokens, others = (model(each).last_hidden_state for each in (values, other))
    return ((tokens - others).abs().amax(dim=-1) > 1e-7).view(3, 16)


def test_joint_attention_lets_every_token_see_every_other() -> None:
    factorised, joint = model_pair(num_spatial_layers=1, num_spectral_layers=0)
    assert changed_tokens(joint).all()
    reached = changed_tokens(factorised)
    assert reached[0].all() and not reached[1:].any()


def test_joint_attention_leaves_out_pixels_without_data() -> None:
    """Whatever their tokens are, in every block: here they lie elsewhere."""
    _, joint = model_pair()
    values, mask = torch.randn(1, 12, 4, 4), torch.ones(1, 4, 4)
    mask[0, 0, 1] = 0
    table, places = joint.embeddings.position_embeddings.position_embeddings, [1, 17, 33]
    before = table[0, places].detach().clone()

    def tokens(pixel_mask, shift):
        with torch.no_grad():
            table[0, places] = before + shift
            return joint(values, pixel_mask).last_hidden_state.view(3, 16, -1)[:, 2:]

    torch.testing.assert_close(tokens(mask, 0.0), tokens(mask, torch.randn(3, 12)))
    assert not torch.allclose(tokens(None, 0.0), tokens(None, torch.randn(3, 12)))


def test_one_block_is_a_plain_transformer() -> None:
    """Joint and factorised attention are the same where a position is one token: the lowest rung."""
    factorised, joint = model_pair(band_patch_size=12, num_spatial_layers=2, num_spectral_layers=0)
    values = torch.randn(2, 12, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(factorised(values).last_hidden_state, joint(values).last_hidden_state)


def test_each_rung_changes_one_thing(tmp_path) -> None:
    whole = ablation(tmp_path, options=ModelOptions(None, {}, window_size=8), mask=Mask("tube", 0.7, 2))
    data = small_data()
    settings = settings_for("hsst-scratch", {})
    configs, joint, counts = [], [], []
    for name in LADDER:
        variant = whole.experiment.variants[name]
        (options,) = variant.options.values()
        base = whole.pretraining_config(whole.mask) if name == "masked-pre-training" else None
        assert (variant.model == "hsst") == (base is not None) == (options.checkpoint is not None)
        config = hsst_config(data, settings, options, StartingPoint(BANDS, base), 8)
        network = build_network("hsst-scratch", data, settings, options, StartingPoint(BANDS, base), 8)
        configs.append({key: value for key, value in own_settings(config, {}).items() if "mask" not in key})
        joint.append(isinstance(network.hsst, JointAttentionModel))
        counts.append(network.num_parameters())
        assert (options.statistics, options.window_size) == ("training", 8)
    changes = [
        {key for key in first if first[key] != second[key]}
        for first, second in zip(configs, configs[1:], strict=False)
    ]
    # one block has neither spectral layers nor positions of blocks; its depth is the same
    assert changes[0] == {"band_patch_size", "spectral_positions", "num_spatial_layers", "num_spectral_layers"}
    assert {each["num_spatial_layers"] + each["num_spectral_layers"] for each in configs} == {8}
    assert changes[1:] == [set(), {"position_embedding_type"}, set()]
    assert joint == [False, True, False, False, False]
    assert counts[1] == counts[2] and counts[3] == counts[4]
    assert max(counts) < 1.1 * min(counts)


def test_published_size_stays_comparable_over_the_rungs() -> None:
    config = HSSTConfig(position_embedding_type="sincos")
    one_block = HSSTConfig(band_patch_size=200, num_spatial_layers=8, num_spectral_layers=0)
    with torch.device("meta"):
        counts = [HSSTModel(each).num_parameters() for each in (one_block, HSSTConfig(), config)]
        assert JointAttentionModel(HSSTConfig()).num_parameters() == counts[1]
    assert max(counts) < 1.1 * min(counts)


def pretrained(data, **changes):
    config = HSSTConfig(
        **{**TINY, "num_channels": 12, "image_size": 4, "mask_patch_size": 2, "position_embedding_type": "sincos"}
    )
    return pretrain_on_area(data, config, training_processor(data, BANDS), BANDS, replace(QUICK, **changes))


@pytest.mark.parametrize("train", [(0, 24, 0, 22), (0, 24, 10, 13)], ids=["windows inside", "narrower than a window"])
def test_pretraining_sees_the_training_area_alone(train) -> None:
    data = small_data(train=train)
    cube, labels = small_cube()
    outside = ~data.split.mask("scene", "train")
    assert (data.split.codes["scene"][outside] == NO_SPLIT).any()  # the buffer, too
    relabelled = np.where(labels == 1, 2, labels)
    other = small_data(train=train, cube=np.where(outside, cube[::-1] + 500, cube), labels=relabelled)
    for parameter, same in zip(pretrained(data)[0].parameters(), pretrained(other)[0].parameters(), strict=True):
        torch.testing.assert_close(parameter, same, rtol=0, atol=0)
    changed = small_data(train=train, cube=np.where(outside, cube, cube[::-1]))
    assert not torch.equal(pretrained(data)[0].decoder.weight, pretrained(changed)[0].decoder.weight)


def test_pretraining_learns_and_says_where_it_does_not() -> None:
    data = small_data()
    assert pretrained(data, steps=150)[1] < 0.9 * pretrained(data, steps=1)[1]
    with pytest.raises(ValueError, match="--pretraining_learning_rate: expected one with a finite loss, got 1e"):
        pretrained(data, learning_rate=1e30)


def test_pretraining_windows_lie_in_the_area_where_any_can() -> None:
    data = small_data()
    for size in (1, 4, 30):  # no window of 30 pixels fits
        area = AreaTensors.of(data, "train", training_processor(data, BANDS), BANDS, size)
        corners = training_corners(area)
        own = area.own[0].numpy()
        shares = [own[row : row + size, column : column + size].mean() for _, row, column in corners]
        cut = area.windows(corners[[0, -1]], "dense")["pixel_mask"]
        assert cut.shape == (2, size, size)
        if size < 30:
            assert min(shares) == 1.0 and len(corners) == (24 - size + 1) * (22 - size + 1)
        else:
            assert min(shares) > 0


def test_pretrained_models_are_made_once(tmp_path) -> None:
    whole = ablation(tmp_path / "output")
    runs = whole.runs(range(1))
    whole.pretrain_missing(runs)
    weights = sorted(tmp_path.rglob("model.safetensors"))
    assert len(weights) == 2  # the ladder's mask is one of the table's
    times = [file.stat().st_mtime_ns for file in weights]
    whole.pretrain_missing(runs)
    assert [file.stat().st_mtime_ns for file in weights] == times
    whole.pretrain_missing([run for run in runs if run.model == "standard-vit"])
    other = replace(whole, pretraining=replace(QUICK, steps=4))
    other.pretrain_missing(runs)
    assert all(file.stat().st_mtime_ns > time for file, time in zip(weights, times, strict=True))
    assert not list(tmp_path.rglob(".partial*"))


def test_only_needed_models_are_pretrained(tmp_path) -> None:
    whole = ablation(tmp_path / "output")
    runs = [run for run in whole.runs(range(1)) if run.model.startswith("unit")]
    whole.pretrain_missing(runs)
    assert [path.parent.name for path in tmp_path.rglob("model.safetensors")] == ["unit-0.9-left-to-right"]


def made_up_rows(whole, accuracies):
    """Rows in which the models of one budget and seed are right in so many of 100 pixels of each class."""
    rows = []
    for run in whole.runs(range(3)):
        right = accuracies.get(run.model, 50) + run.seed
        matrix = [[right, 100 - right, 0], [0, 100, 0], [0, 0, 100]]
        rows.append(
            {
                **{name: getattr(run, name) for name in ("model", "budget", "seed", "direction")},
                **{"labels": 9, "train_seconds": 1.0, "parameters": 10, "confusion_matrix": matrix},
            }
        )
    return rows


def test_rungs_are_compared_with_the_one_before(tmp_path) -> None:
    whole = ablation(tmp_path)
    rows = made_up_rows(whole, {"blockwise-embedding": 59, "masked-pre-training": 41})
    summary = whole.summary(rows)
    assert [entry["model"] for entry in summary["ladder"]] == list(LADDER)
    steps = [entry["to_rung_before"] for entry in summary["ladder"]]
    assert steps[0] is None
    assert [step["overall_accuracy"]["difference"]["mean"] for step in steps[1:]] == pytest.approx(
        [0.03, -0.03, 0, -0.03]
    )
    assert [step["overall_accuracy"]["better_in"] for step in steps[1:]] == [3, 0, 0, 0]
    assert [(entry["mask_type"], entry["way"]) for entry in summary["masks"]] == [
        (kind, way) for kind in ("tube", "unit") for way in ("fine-tuned", "linear-probe")
    ]
    # of four squares, two; of 48 tokens, 43
    assert [entry["realised_mask_ratio"] for entry in summary["masks"][::2]] == pytest.approx([0.5, 43 / 48])
    assert json.loads(json.dumps(summary))["ladder"][0]["title"] == "standard ViT"


def script_arguments(folder):
    write_small_scene(folder / "scene")
    return [
        *("--data_dir", folder / "scene", "--class_names", ",".join(CLASS_NAMES), "--block_size", 6),
        *("--window_size", 4, "--max_steps", 2, "--batch_size", 2, "--use_cpu", "--seeds", 1),
        *("--pretraining_steps", 2, "--pretraining_batch_size", 2, "--budgets", "50%", "--mask_budget", "50%"),
        *("--mask_types", "unit", "--mask_ratios", 0.7, "--output_dir", folder / "output"),
    ]


def test_command_fills_the_table_and_goes_on(run_script, tmp_path) -> None:
    given = [*script_arguments(tmp_path), "--config_overrides", OVERRIDES]
    first = run_script(SCRIPT, *given, "--parts", "ladder")
    assert first.returncode == 0, first.stderr
    rows = read_rows(tmp_path / "output" / "runs.csv")
    assert [row["model"] for row in rows] == list(LADDER)
    result = run_script(SCRIPT, *given)
    assert result.returncode == 0, result.stderr
    all_rows = read_rows(tmp_path / "output" / "runs.csv")
    assert all_rows[:5] == rows and [row["model"] for row in all_rows[5:]] == [
        "unit-0.7-fine-tuned",
        "unit-0.7-linear-probe",
    ]
    summary = json.loads((tmp_path / "output" / "ablation.json").read_text())
    assert len(summary["ladder"]) == 5 and len(summary["masks"]) == 2
    assert all(loss > 0 for loss in summary["masks"][0]["pretraining_loss"].values())
    for words in ("standard ViT", "+ masked pre-training", "linear probe"):
        assert words in result.stdout


def test_last_rung_starts_from_a_given_checkpoint(run_script, tmp_path) -> None:
    torch.manual_seed(0)
    settings = {"window_size": 4, "position_embedding_type": "sincos"}
    checkpoint = write_small_checkpoint(tmp_path / "checkpoint", **settings)
    given = [*script_arguments(tmp_path), "--parts", "ladder", "--model_name_or_path", checkpoint]
    result = run_script(SCRIPT, *given)
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "output" / "pretrained").exists()
    parameters = {row["model"]: row["parameters"] for row in read_rows(tmp_path / "output" / "runs.csv")}
    assert parameters["spectral-positions"] == parameters["masked-pre-training"]
    assert len(set(parameters.values())) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--pretraining_steps", 0), ("--pretraining_steps", "at least 1, got 0")),
        (("--mask_ratios", 1.2), ("mask unit-1.2", "got 1.2")),
        (("--mask_patch_size", 3), ("mask tube-0.7", "3x3")),
        (("--config_overrides", f"{OVERRIDES},blockwise_patch_embedding=false"), ("blockwise_patch_embedding",)),
        (("--config_overrides", f"{OVERRIDES},position_embedding_type=learned"), ("sincos", "got learned")),
        (("--config_overrides", f"{OVERRIDES},num_spatial_layers=0"), ("num_spatial_layers", "got 0")),
        (("--config_overrides", f"{OVERRIDES},band_patch_size=12"), ("spectral block", "got 1")),
        (("--pretraining_learning_rate", "1e30"), ("--pretraining_learning_rate", "1e+30")),
        (("--mask_budget", "many"), ("budgets", "many")),
        (("--stride", 5), ("stride", "got 5")),
        (("--statistics", "checkpoint"), ("--statistics", "expected a checkpoint")),
    ],
)
def test_bad_input_is_one_clear_line(arguments, words, run_script, tmp_path) -> None:
    result = run_script(SCRIPT, *script_arguments(tmp_path), "--config_overrides", OVERRIDES, *arguments)
    assert_one_clear_line(result, *words)
    assert not (tmp_path / "output").exists()


def test_learned_positions_cannot_be_taken_away_from_a_checkpoint(run_script, tmp_path) -> None:
    checkpoint = write_small_checkpoint(tmp_path / "checkpoint", window_size=4)
    result = run_script(SCRIPT, *script_arguments(tmp_path), "--model_name_or_path", checkpoint)
    assert_one_clear_line(result, checkpoint, "sincos or wavelength", "got learned")
    assert not (tmp_path / "output").exists()

"""
What each part of HSST is worth: the paper's ablation on a labelled scene, each area being the test area once.

    python scripts/experiments/ablation.py --data_dir potsdam --area west=0,64,0,96 --area east=64,128,96,160 \\
        --output_dir outputs/ablation

The ladder goes from a standard ViT over blockwise embedding, factorised attention and spectral positions to masked
pre-training. Each rung changes one thing of the rung before; all have the same width, depth, layers, head, bands,
statistics, labels and training. The table of masks pre-trains a model for each mask type and ratio and judges it by
fine-tuning and by a linear probe. Models are pre-trained here, on the training area of each direction alone and
without its labels; with --model_name_or_path, the ladder's last rung starts from that checkpoint, and all rungs have
its configuration. Every run is a row of `runs.csv` as soon as it is done: the same command resumes where it was
interrupted. At the end, the tables are printed, and `ablation.json` holds the results.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup, set_seed

from datasets_loading.files import write_json
from datasets_loading.labelled_data import LabelledData
from datasets_loading.splits import box_counts
from hsst.experiments.baselines import StartingPoint, hsst_config, own_settings, starting_point, training_processor
from hsst.experiments.label_efficiency import (
    COMPARED_SCORES,
    Budget,
    Experiment,
    Run,
    Variant,
    add_area_arguments,
    add_run_arguments,
    paired_difference,
    parse_budgets,
    percent,
    plan_runs,
    pooled_scores,
    quiet_libraries,
    run_experiment,
    set_up,
    summarise,
)
from hsst.support.command_line import HelpFormatter, check_least, one_line_errors
from hsst.support.fine_tuning import AreaTensors, has_diverged, turn_window
from hsst.support.pretraining import NotFinite, parameter_groups, train_steps
from hsst.support.reports import markdown_table
from hsst.support.training_settings import ModelOptions, settings_for
from modeling_hsst import HSSTConfig, HSSTForMaskedImageModeling, HSSTImageProcessor, draw_mask, use_fast_layers

PARTS = ("ladder", "masks")
MASK_TYPES = ("unit", "block", "tube", "grid")
PRETRAINING_NAME = "pretraining.json"
PRETRAINING_ARGUMENTS = ("steps", "batch_size", "learning_rate")
WEIGHT_DECAY, WARMUP_SHARE = 0.05, 0.05
LOSS_STEPS = 50
"""The loss that is reported is the mean of this number of last steps."""

LADDER = {
    "standard-vit": "standard ViT",
    "blockwise-embedding": "+ blockwise embedding",
    "factorised-attention": "+ factorised attention",
    "spectral-positions": "+ spectral positions",
    "masked-pre-training": "+ masked pre-training",
}
"""Title of every rung by its name, from the lowest one; docs/manual/evaluation.md explains what each changes."""

WAYS = {"fine-tuned": "hsst", "linear-probe": "linear-probe"}
"""How a pre-trained model of the table of masks is judged, and the entry of `MODELS` that does it."""


@dataclass(frozen=True)
class Mask:
    """How tokens are hidden in pre-training: by type, share of the tokens, and side of squares in positions."""

    mask_type: str
    mask_ratio: float
    mask_patch_size: int

    @property
    def name(self) -> str:
        return f"{self.mask_type}-{self.mask_ratio:g}"


@dataclass(frozen=True)
class PretrainingSettings:
    """How a model is pre-trained on an area: AdamW, a cosine after a warm-up, by default at the published rate."""

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 8e-3
    seed: int = 0
    use_cpu: bool = False


def training_corners(area: AreaTensors) -> np.ndarray:
    """Number of the tensor, row and column of the upper left pixel, int64 (windows, 3), of all windows that lie in the
    training area wholly; where none does, of all that hold a pixel of it."""
    size = area.window_size
    for least in (size**2, 1):
        found = []
        for number, own in enumerate(area.own):
            # A window that reaches beyond the margin of its tensor cannot be cut
            counts = box_counts(own.numpy(), 0, size - 1)[: len(own) - size + 1, : own.shape[1] - size + 1]
            found.append(np.insert(np.argwhere(counts >= least), 0, number, axis=1))
        corners = np.concatenate(found).astype(np.int64)
        if len(corners):
            break
    return corners


def pretrain_on_area(
    data: LabelledData,
    config: HSSTConfig,
    processor: HSSTImageProcessor,
    bands: Sequence[int],
    settings: PretrainingSettings,
    *,
    progress: bool = False,
) -> tuple[HSSTForMaskedImageModeling, float]:
    """Pre-trains a model from scratch on the pixels of the training area, labelled or not.

    All other pixels are hidden in every window, those in no split too: nothing of the test area, or of the buffer
    around it, is seen.

    Returns:
        The model on the CPU, in evaluation mode, and the mean absolute error of hidden values (in standard deviations
        of their band) over the last `LOSS_STEPS` steps.
    """
    area = AreaTensors.of(data, "train", processor, bands, config.window_size[0])
    # The model hides what is not valid; fine-tuning lets the buffer be seen, which belongs to no split
    area = replace(area, pixel_mask=area.own)
    corners, generator = training_corners(area), np.random.default_rng(settings.seed)
    set_seed(settings.seed)
    accelerator = None if settings.use_cpu else torch.accelerator.current_accelerator(check_available=True)
    device = accelerator or torch.device("cpu")
    model: Any = use_fast_layers(HSSTForMaskedImageModeling(config))
    model.to(device).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, WEIGHT_DECAY), lr=settings.learning_rate)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(WARMUP_SHARE * settings.steps), settings.steps)

    def draw(seed: int) -> tuple[torch.Tensor, torch.Tensor, None]:
        windows = area.windows(generator.choice(corners, settings.batch_size), "dense")
        turns = generator.integers(8, size=settings.batch_size).tolist()
        values, valid = (
            torch.stack([turn_window(*each) for each in zip(windows[name], turns, strict=True)]).to(device)
            for name in ("pixel_values", "pixel_mask")
        )
        return values, valid, None

    losses = []
    steps = train_steps(model, optimizer, schedule, draw, settings.steps, seed=settings.seed)
    try:
        for loss in tqdm(steps, desc="pre-training", total=settings.steps, leave=False, disable=not progress):
            losses.append(loss.item())
    except NotFinite:
        losses.append(math.nan)
    last = float(np.mean(losses[-LOSS_STEPS:]))
    if has_diverged(model, last):
        raise ValueError(
            f"--pretraining_learning_rate: expected one with a finite loss, got {settings.learning_rate} (diverged)"
        )
    return model.cpu().eval(), last


@dataclass(frozen=True)
class Ablation:
    """
    What is compared, and on what: data and fine-tuning (`base`, perhaps with a checkpoint for the last rung, whose
    configuration is that of all rungs then), pre-training, output folder, which of `PARTS`, budgets of the ladder, the
    mask of its last rung, and masks and budget of the table of masks.
    """

    base: Experiment
    pretraining: PretrainingSettings
    folder: Path
    parts: Sequence[str]
    budgets: Sequence[str]
    mask: Mask
    masks: Sequence[Mask]
    mask_budget: str

    @cached_property
    def scratch_options(self) -> ModelOptions:
        """What HSST without pre-trained weights is made of: the last rung but one."""
        options, overrides = self.base.options, dict(self.base.options.config_overrides)
        if options.checkpoint is None:
            # learned is the default of a configuration, but has nothing of the spectrum
            overrides.setdefault("position_embedding_type", "sincos")
        return replace(options, config_overrides=overrides, statistics=options.statistics or "training")

    @cached_property
    def start(self) -> StartingPoint:
        """The checkpoint on the data, and the bands, which are the same for all models and directions."""
        return starting_point(next(iter(self.base.directions.values())), self.base.options)

    @cached_property
    def config(self) -> HSSTConfig:
        """The configuration of the last rung but one."""
        data, size = next(iter(self.base.directions.values())), self.base.options.window_size
        assert size is not None
        settings = settings_for("hsst-scratch", self.base.settings)
        return hsst_config(data, settings, self.scratch_options, self.start, size)

    def pretraining_config(self, mask: Mask) -> HSSTConfig:
        return HSSTConfig(**own_settings(self.config, asdict(mask)))

    def realised_ratio(self, mask: Mask) -> float:
        """The share of tokens that a mask hides: the nearest that its type and squares allow."""
        generator = torch.Generator().manual_seed(0)
        drawn = draw_mask(8, self.config.num_blocks, self.config.grid_size, **asdict(mask), generator=generator)
        return float(drawn.float().mean())

    @property
    def used_masks(self) -> list[Mask]:
        """Masks that models have to be pre-trained with."""
        needed = [self.mask] if "ladder" in self.parts and self.base.options.checkpoint is None else []
        return list(dict.fromkeys([*needed, *(self.masks if "masks" in self.parts else ())]))

    def check(self) -> None:
        """Raises ValueError where a rung has nothing to take away, or masks do not fit the windows or the model."""
        config, positions = self.config, self.config.position_embedding_type
        for name, found, is_there in (
            ("blockwise_patch_embedding", config.blockwise_patch_embedding, config.blockwise_patch_embedding),
            ("position_embedding_type sincos or wavelength", positions, positions != "learned"),
            ("num_spatial_layers above 0", config.num_spatial_layers, config.num_spatial_layers),
            ("num_spectral_layers above 0", config.num_spectral_layers, config.num_spectral_layers),
            ("more than 1 spectral block", config.num_blocks, config.num_blocks > 1),
        ):
            if "ladder" in self.parts and not is_there:
                source = self.base.options.checkpoint or "--config_overrides"
                raise ValueError(f"{source}: expected a model with {name}, which a rung adds, got {found}")
        for mask in self.used_masks:
            try:
                self.realised_ratio(mask)
                self.pretraining_config(mask)
            except ValueError as error:
                raise ValueError(f"mask {mask.name}: {error}") from None

    def checkpoint_path(self, mask: Mask, direction: str) -> Path:
        """Folder of the model that is pre-trained with a mask on the training area of a direction."""
        return self.folder / "pretrained" / f"{mask.name}-{re.sub(r'[^A-Za-z0-9]+', '-', direction).strip('-')}"

    def pretrained(self, model: str, mask: Mask) -> Variant:
        """A model of `MODELS` that starts from weights that are pre-trained here."""
        options = replace(self.scratch_options, config_overrides={}, adapt_bands=False)
        directions = self.base.directions
        return Variant(
            model, {name: replace(options, checkpoint=str(self.checkpoint_path(mask, name))) for name in directions}
        )

    @cached_property
    def experiment(self) -> Experiment:
        """What all runs share, with every model as a variant."""
        options, variants = self.scratch_options, {}
        if "ladder" in self.parts:
            learned = {"position_embedding_type": "learned"}
            one_block = {
                "band_patch_size": self.config.num_channels,
                **dict.fromkeys(("block_bands", "block_centers", "spectral_positions")),
                "num_spatial_layers": self.config.num_hidden_layers,
                "num_spectral_layers": 0,
            }
            for name, changes in (
                ("standard-vit", {**learned, **one_block}),
                ("blockwise-embedding", learned),
                ("factorised-attention", learned),
                ("spectral-positions", {}),
            ):
                overrides, joint = {**options.config_overrides, **changes}, name == "blockwise-embedding"
                of_rung = replace(options, config_overrides=overrides, joint_attention=joint)
                variants[name] = Variant("hsst-scratch", dict.fromkeys(self.base.directions, of_rung))
            variants["masked-pre-training"] = self.pretrained("hsst", self.mask)
            if options.checkpoint is not None:
                given = dict.fromkeys(self.base.directions, replace(options, config_overrides={}))
                variants["masked-pre-training"] = Variant("hsst", given)
        if "masks" in self.parts:
            for mask in self.masks:
                variants |= {f"{mask.name}-{way}": self.pretrained(model, mask) for way, model in WAYS.items()}
        own = {"pretraining": asdict(self.pretraining), "mask": None if options.checkpoint else asdict(self.mask)}
        return replace(self.base, description={**self.base.description, "ablation": own}, variants=variants)

    def runs(self, seeds: Sequence[int]) -> list[Run]:
        """All runs, seed by seed."""
        names = [f"{mask.name}-{way}" for mask in self.masks for way in WAYS]
        planned = {"ladder": (list(LADDER), self.budgets), "masks": (names, [self.mask_budget])}
        runs = [run for part in self.parts for run in plan_runs(*planned[part], seeds, list(self.base.directions))]
        return sorted(runs, key=lambda run: run.seed)

    def pretrain_missing(self, left: Sequence[Run], *, progress: bool = False) -> None:
        """Pre-trains the models that runs need and that are not there yet, and writes each one whole."""
        needed = {str(self.experiment.model_of(run)[1].checkpoint) for run in left}
        for direction, data in self.base.directions.items():
            for mask in self.used_masks:
                path = self.checkpoint_path(mask, direction)
                identity = json.loads(json.dumps({"mask": asdict(mask), "experiment": self.experiment.description}))
                found = _read_json(path / PRETRAINING_NAME)
                if str(path) not in needed or found == {**found, **identity}:
                    continue
                config, bands = self.pretraining_config(mask), self.start.bands
                processor = training_processor(data, bands)
                model, loss = pretrain_on_area(data, config, processor, bands, self.pretraining, progress=progress)
                path.parent.mkdir(parents=True, exist_ok=True)
                with TemporaryDirectory(prefix=".partial-", dir=path.parent) as folder:
                    partial = Path(folder) / path.name
                    model.save_pretrained(partial)
                    processor.save_pretrained(partial)
                    write_json(partial / PRETRAINING_NAME, {"loss": loss, **identity})
                    shutil.rmtree(path, ignore_errors=True)
                    partial.rename(path)

    def summary(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the rows say, as JSON can hold it.

        Returns:
            ladder: for each budget and rung the scores as `label_efficiency.summarise` gives them, with `title` and
                `to_rung_before`, the paired difference of each score to the rung before (None for the first one).
            masks: for each mask and way of judging it the scores, with `mask_type`, `mask_ratio`,
                `realised_mask_ratio`, `way`, and `pretraining_loss` of each direction.
        """
        directions = list(self.base.directions)
        whole = summarise(rows, directions, self.base.class_names, self.experiment.description)
        pooled = pooled_scores(rows, directions)
        entries = {(entry["model"], entry["budget"]): entry for entry in whole["results"]}
        ladder, masks = [], []
        for budget in self.budgets if "ladder" in self.parts else ():
            below: dict[int, dict[str, Any]] = {}
            for name, title in LADDER.items():
                own = {key[2]: scores for key, scores in pooled.items() if key[:2] == (name, budget)}
                shared = own.keys() & below.keys()
                steps = {score: paired_difference(own, below, score) for score in COMPARED_SCORES if shared}
                ladder.append({**entries[name, budget], "title": title, "to_rung_before": steps or None})
                below = own
        for mask in self.masks if "masks" in self.parts else ():
            paths = {direction: self.checkpoint_path(mask, direction) for direction in directions}
            losses = {direction: _read_json(path / PRETRAINING_NAME).get("loss") for direction, path in paths.items()}
            about = {**asdict(mask), "realised_mask_ratio": self.realised_ratio(mask), "pretraining_loss": losses}
            for way in WAYS:
                title = f"{mask.mask_type} masks, {mask.mask_ratio:.0%}, {way.replace('-', ' ')}"
                entry = entries[f"{mask.name}-{way}", self.mask_budget]
                masks.append({**entry, "title": title, **about, "way": way})
        shared_keys = {name: whole[name] for name in ("class_names", "directions", "runs")}
        return {**shared_keys, "ladder": ladder, "masks": masks, "experiment": whole["experiment"]}


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def ladder_table(summary: Mapping[str, Any]) -> str:
    header = ["labels", "model", "parameters", "seeds", "overall accuracy", "average accuracy", "to the rung before"]
    rows = []
    for entry in summary["ladder"]:
        difference = (entry["to_rung_before"] or {}).get("overall_accuracy")
        step = "–"
        if difference is not None:
            step = f"{percent(difference['difference'])}, better in {difference['better_in']} of {difference['seeds']}"
        scores = [percent(entry[name]) for name in ("overall_accuracy", "average_accuracy")]
        cells = [f"{entry['budget_title']} ({entry['labels']:,.0f})", entry["title"], f"{entry['parameters']:,}"]
        rows.append([*cells, str(len(entry["seeds"])), *scores, step])
    return markdown_table(header, rows)


def mask_table(summary: Mapping[str, Any]) -> str:
    """A row for each mask, a column for each way."""
    header = ["masks", "asked for", "hidden", "pre-training error", *(way.replace("-", " ") for way in WAYS)]
    rows: dict[tuple[str, float], list[str]] = {}
    for entry in summary["masks"]:
        losses = [loss for loss in entry["pretraining_loss"].values() if loss is not None]
        error = f"{sum(losses) / len(losses):.3f}" if losses else "–"
        start = [entry["mask_type"], f"{entry['mask_ratio']:.0%}", f"{entry['realised_mask_ratio']:.0%}", error]
        rows.setdefault((entry["mask_type"], entry["mask_ratio"]), start).append(percent(entry["overall_accuracy"]))
    return markdown_table(header, rows.values())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="(ladder masks)")
    add_run_arguments(parser, "10%,100%", "of the ladder: ")
    add_area_arguments(parser)
    masks = parser.add_argument_group("masks")
    masks.add_argument("--mask_type", choices=MASK_TYPES, default="tube", help="of the ladder's last rung")
    masks.add_argument("--mask_ratio", type=float, default=0.7, help="of the ladder's last rung")
    masks.add_argument("--mask_types", nargs="+", choices=MASK_TYPES, default=MASK_TYPES[:3], help="(unit block tube)")
    masks.add_argument("--mask_ratios", nargs="+", type=float, default=[0.5, 0.7, 0.9], help="(0.5 0.7 0.9)")
    text = "side of the squares of block and tube masks, in positions (2: of the published 4, 8x8 positions hold four)"
    masks.add_argument("--mask_patch_size", type=int, default=2, help=text)
    masks.add_argument("--mask_budget", default="10%", help="labels that masks are judged with")
    pretraining = parser.add_argument_group("pre-training")
    for name in PRETRAINING_ARGUMENTS:
        default = getattr(PretrainingSettings, name)
        pretraining.add_argument(f"--pretraining_{name}", type=type(default), default=default, help=f"({default})")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    quiet_libraries()
    with one_line_errors("ablation.py"):
        check_least(arguments, 1, "pretraining_steps", "pretraining_batch_size")
        check_least(arguments, 0, "pretraining_learning_rate")
        pretraining = {name: getattr(arguments, f"pretraining_{name}") for name in PRETRAINING_ARGUMENTS}
        budgets, mask_budget = parse_budgets(arguments.budgets), Budget.parse(arguments.mask_budget).name
        base, seeds = set_up(arguments, ["hsst"] if arguments.model_name_or_path else [])
        size, types, ratios = arguments.mask_patch_size, arguments.mask_types, arguments.mask_ratios
        ablation = Ablation(
            base,
            PretrainingSettings(**pretraining, use_cpu=bool(arguments.use_cpu)),
            arguments.output_dir,
            [part for part in PARTS if part in arguments.parts],
            budgets,
            Mask(arguments.mask_type, arguments.mask_ratio, size),
            [Mask(kind, ratio, size) for kind in dict.fromkeys(types) for ratio in dict.fromkeys(ratios)],
            mask_budget,
        )
        ablation.check()
        rows = run_experiment(
            ablation.experiment,
            ablation.runs(seeds),
            arguments.output_dir,
            processes=arguments.processes,
            prepare=lambda left: ablation.pretrain_missing(left, progress=True),
        )
        summary = ablation.summary(rows)
        for part, table in (("ladder", ladder_table), ("masks", mask_table)):
            if summary[part]:
                print(f"\n{table(summary)}")
        path = write_json(arguments.output_dir / "ablation.json", summary)
    print(f"\nResults: {path}")


if __name__ == "__main__":
    main()

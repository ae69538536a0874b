"""The paper's ablation on any labelled scene: a ladder from a standard ViT to HSST, and mask ratio by mask type.

Each rung of the ladder changes one thing of the rung before, and all have the same width, depth, layers, head, bands,
statistics, labels and training. Models are pre-trained on the training area of each direction alone, without labels,
and nothing is known of the test area. Runs, rows and interruptions are those of `label_efficiency`.
"""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib
import torch

matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

from datasets_loading.files import write_json, written_whole
from datasets_loading.labelled_data import LabelledData  # noqa: E402
from hsst.experiments.area_pretraining import PretrainingSettings, pretrain_on_area  # noqa: E402
from hsst.experiments.baselines import (  # noqa: E402
    ModelOptions,
    StartingPoint,
    hsst_config,
    own_settings,
    settings_for,
    starting_point,
    training_processor,
)
from hsst.experiments.label_efficiency import (  # noqa: E402
    COLOURS,
    COMPARED_SCORES,
    MAIN_COLOUR,
    Budget,
    Experiment,
    Run,
    Variant,
    paired_difference,
    percent,
    plan_runs,
    pooled_scores,
    summarise,
)
from hsst.experiments.pages import picture, table, write_page  # noqa: E402
from modeling_hsst import HSSTConfig, draw_mask  # noqa: E402

PARTS = ("ladder", "masks")
PRETRAINED_FOLDER = "pretrained"
PRETRAINING_NAME = "pretraining.json"


@dataclass(frozen=True)
class Rung:
    """A model of the ladder: its name for people, and what it changes of the rung before."""

    title: str
    change: str


LADDER = {
    "standard-vit": Rung("standard ViT", "a token is a position with all its bands"),
    "blockwise-embedding": Rung(
        "+ blockwise embedding",
        "what each spectral block adds to the embedding stays a token of its own; all tokens attend to each other",
    ),
    "factorised-attention": Rung(
        "+ factorised attention", "positions of a block attend to each other, then blocks of a position"
    ),
    "spectral-positions": Rung(
        "+ spectral positions", "a token's position is one in space and one in the spectrum, not a vector of its own"
    ),
    "masked-pre-training": Rung("+ masked pre-training", "weights are pre-trained, not drawn at random"),
}
"""Every rung by its name, from the lowest one."""

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
class Ablation:
    """What is compared, and on what.

    Attributes:
        directions: the data of each direction, by its name: same scenes, other splits.
        options: windows, configuration, statistics, and perhaps a checkpoint for the last rung; its configuration is
            that of all rungs then.
        settings: given settings of fine-tuning.
        pretraining: how models are pre-trained.
        folder: output folder; holds the pre-trained models.
        parts: "ladder", "masks", or both.
        budgets: label budgets of the ladder.
        mask: of the ladder's last rung.
        masks: of the table of masks, one model for each.
        mask_budget: label budget of the table of masks.
    """

    directions: Mapping[str, LabelledData]
    options: ModelOptions
    settings: Mapping[str, Any]
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
        overrides = dict(self.options.config_overrides)
        if self.options.checkpoint is None:
            # learned is the default of a configuration, but knows nothing of the spectrum
            overrides.setdefault("position_embedding_type", "sincos")
        return replace(self.options, config_overrides=overrides, statistics=self.options.statistics or "training")

    @cached_property
    def start(self) -> StartingPoint:
        """The checkpoint on the data, and the bands, which are the same for all models and directions."""
        return starting_point(self._data, self.options)

    @cached_property
    def config(self) -> HSSTConfig:
        """The configuration of the last rung but one."""
        assert self.options.window_size is not None
        settings, size = settings_for("hsst-scratch", self.settings), self.options.window_size
        return hsst_config(self._data, self.start.bands, settings, self.scratch_options, self.start.config, size)

    @property
    def _data(self) -> LabelledData:
        return next(iter(self.directions.values()))

    @property
    def used_masks(self) -> list[Mask]:
        """Masks that models have to be pre-trained with."""
        needed = [self.mask] if "ladder" in self.parts and self.options.checkpoint is None else []
        return list(dict.fromkeys([*needed, *(self.masks if "masks" in self.parts else ())]))

    def check(self) -> None:
        """Checks what can be known before anything is trained.

        Raises:
            ValueError: a checkpoint with changes to its configuration, a configuration that has nothing to take away
                from, or masks that do not fit the windows or the model.
        """
        if self.options.checkpoint is not None and self.options.config_overrides:
            raise ValueError(
                "--config_overrides: expected no checkpoint, whose configuration cannot be changed, got both"
            )
        source = self.options.checkpoint or "--config_overrides"
        config = self.config
        for name, found, wanted in (
            ("blockwise_patch_embedding", config.blockwise_patch_embedding, config.blockwise_patch_embedding),
            ("position_embedding_type sincos or wavelength", config.position_embedding_type, self._has_spectrum),
            ("num_spatial_layers above 0", config.num_spatial_layers, config.num_spatial_layers),
            ("num_spectral_layers above 0", config.num_spectral_layers, config.num_spectral_layers),
            ("more than 1 spectral block", config.num_blocks, config.num_blocks > 1),
        ):
            if "ladder" in self.parts and not wanted:
                raise ValueError(f"{source}: expected a model with {name}, which a rung adds, got {found}")
        for mask in self.used_masks:
            try:
                self.realised_ratio(mask)
                self.pretraining_config(mask)
            except ValueError as error:
                raise ValueError(f"mask {mask.name}: {error}") from None

    @property
    def _has_spectrum(self) -> bool:
        return self.config.position_embedding_type != "learned"

    def realised_ratio(self, mask: Mask) -> float:
        """The share of tokens that a mask hides: the nearest that its type and squares allow."""
        drawn = draw_mask(
            8,
            self.config.num_blocks,
            self.config.grid_size,
            **asdict(mask),
            generator=torch.Generator().manual_seed(0),
        )
        return float(drawn.float().mean())

    def pretraining_config(self, mask: Mask) -> HSSTConfig:
        return HSSTConfig(**own_settings(self.config, asdict(mask)))

    @cached_property
    def variants(self) -> dict[str, Variant]:
        """Every model by its name."""
        variants = {}
        if "ladder" in self.parts:
            learned = {"position_embedding_type": "learned"}
            one_block = {
                "band_patch_size": self.config.num_channels,
                "block_bands": None,
                "block_centers": None,
                "spectral_positions": None,
                "num_spatial_layers": self.config.num_hidden_layers,
                "num_spectral_layers": 0,
            }
            changes: dict[str, dict[str, Any]] = {
                "standard-vit": {**learned, **one_block},
                "blockwise-embedding": learned,
                "factorised-attention": learned,
                "spectral-positions": {},
            }
            for name, change in changes.items():
                options = replace(
                    self.scratch_options,
                    config_overrides={**self.scratch_options.config_overrides, **change},
                    joint_attention=name == "blockwise-embedding",
                )
                variants[name] = Variant("hsst-scratch", LADDER[name].title, dict.fromkeys(self.directions, options))
            name = "masked-pre-training"
            variants[name] = Variant("hsst", LADDER[name].title, self._pretrained_options(self.mask, True))
        if "masks" in self.parts:
            for mask in self.masks:
                for way, model in WAYS.items():
                    title = f"{mask.mask_type} masks, {mask.mask_ratio:.0%}, {way.replace('-', ' ')}"
                    variants[_row_name(mask, way)] = Variant(model, title, self._pretrained_options(mask, False))
        return variants

    def _pretrained_options(self, mask: Mask, is_ladder: bool) -> dict[str, ModelOptions]:
        """What pre-trained models are made of in each direction."""
        if is_ladder and self.options.checkpoint is not None:
            return dict.fromkeys(self.directions, replace(self.scratch_options, config_overrides={}))
        return {
            direction: replace(
                self.scratch_options,
                checkpoint=str(self.checkpoint_path(mask, direction)),
                config_overrides={},
                adapt_bands=False,
            )
            for direction in self.directions
        }

    def checkpoint_path(self, mask: Mask, direction: str) -> Path:
        """Folder of the model that is pre-trained with a mask on the training area of a direction."""
        return self.folder / PRETRAINED_FOLDER / f"{mask.name}-{re.sub(r'[^A-Za-z0-9]+', '-', direction).strip('-')}"

    def experiment(self, description: Mapping[str, Any]) -> Experiment:
        """What all runs share; `description` says what was asked for, beside what the ablation adds."""
        own = {
            "pretraining": asdict(self.pretraining),
            "mask": asdict(self.mask) if self.options.checkpoint is None else None,
        }
        return Experiment(
            self.directions, self.options, self.settings, {**description, "ablation": own}, self.variants
        )

    def runs(self, seeds: Sequence[int]) -> list[Run]:
        """All runs, seed by seed."""
        runs = []
        names = {"ladder": list(LADDER), "masks": [_row_name(mask, way) for mask in self.masks for way in WAYS]}
        budgets = {"ladder": self.budgets, "masks": [self.mask_budget]}
        for part in self.parts:
            runs += plan_runs(names[part], budgets[part], seeds, list(self.directions))
        return sorted(runs, key=lambda run: run.seed)

    def pretrain_missing(self, experiment: Experiment, left: Sequence[Run], *, progress: bool = False) -> None:
        """Pre-trains the models that runs need and that are not there yet, and writes each one whole.

        Raises:
            ValueError: training diverged.
        """
        needed = {str(experiment.model_of(run)[1].checkpoint) for run in left}
        for direction, data in self.directions.items():
            for mask in self.used_masks:
                path = self.checkpoint_path(mask, direction)
                identity = {"mask": asdict(mask), "experiment": json.loads(json.dumps(experiment.description))}
                if str(path) not in needed or _is_pretrained(path, identity):
                    continue
                processor = training_processor(data, self.start.bands)
                model, loss = pretrain_on_area(
                    data,
                    self.pretraining_config(mask),
                    processor,
                    self.start.bands,
                    self.pretraining,
                    progress=progress,
                )
                path.parent.mkdir(parents=True, exist_ok=True)
                with TemporaryDirectory(prefix=".partial-", dir=path.parent) as folder:
                    partial = Path(folder) / path.name
                    model.save_pretrained(partial)
                    processor.save_pretrained(partial)
                    write_json(partial / PRETRAINING_NAME, {"loss": loss, **identity})
                    shutil.rmtree(path, ignore_errors=True)
                    partial.rename(path)

    def summary(self, rows: Sequence[Mapping[str, Any]], experiment: Experiment) -> dict[str, Any]:
        """What the rows say, as JSON can hold it.

        Returns:
            ladder: for each budget and rung the scores as `label_efficiency.summarise` gives them, with `title`,
                `change`, and `to_rung_before`, the paired difference of each score to the rung before (None for the
                first one).
            masks: for each mask and way of judging it the scores, with `mask_type`, `mask_ratio`,
                `realised_mask_ratio`, `way`, and `pretraining_loss` of each direction.
        """
        directions = list(self.directions)
        whole = summarise(rows, directions, experiment.class_names, experiment.description)
        pooled = pooled_scores(rows, directions)
        entries = {(entry["model"], entry["budget"]): entry for entry in whole["results"]}
        ladder: list[dict[str, Any]] = []
        masks: list[dict[str, Any]] = []
        for budget in [Budget.parse(budget).name for budget in self.budgets] if "ladder" in self.parts else ():
            below: dict[int, dict[str, Any]] = {}
            for name, rung in LADDER.items():
                own = {
                    seed: scores for (model, size, seed), scores in pooled.items() if (model, size) == (name, budget)
                }
                shared = sorted(set(own) & set(below))
                differences = {score: paired_difference(own, below, score) for score in COMPARED_SCORES if shared}
                entry = {**entries[name, budget], "title": rung.title, "change": rung.change}
                ladder.append({**entry, "to_rung_before": differences or None})
                below = own
        for mask in self.masks if "masks" in self.parts else ():
            losses = {
                direction: _read_json(self.checkpoint_path(mask, direction) / PRETRAINING_NAME).get("loss")
                for direction in directions
            }
            for way in WAYS:
                name = _row_name(mask, way)
                entry = {**entries[name, Budget.parse(self.mask_budget).name], "title": self.variants[name].title}
                own_columns = {
                    "realised_mask_ratio": self.realised_ratio(mask),
                    "pretraining_loss": losses,
                    "way": way,
                }
                masks.append({**entry, **asdict(mask), **own_columns})
        return {
            **{name: whole[name] for name in ("class_names", "directions", "runs")},
            "ladder": ladder,
            "masks": masks,
            "experiment": whole["experiment"],
        }


def _row_name(mask: Mask, way: str) -> str:
    return f"{mask.name}-{way}"


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _is_pretrained(path: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a folder holds a model that was pre-trained in just this way."""
    found = _read_json(path / PRETRAINING_NAME)
    return all(found.get(name) == value for name, value in identity.items())


def ladder_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the ladder's table."""
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
    return header, rows


def mask_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of masks: a row for each mask, a column for each way."""
    header = ["masks", "asked for", "hidden", "pre-training error", *(way.replace("-", " ") for way in WAYS)]
    rows: dict[tuple[str, float], list[str]] = {}
    for entry in summary["masks"]:
        losses = [loss for loss in entry["pretraining_loss"].values() if loss is not None]
        error = f"{sum(losses) / len(losses):.3f}" if losses else "–"
        start = [entry["mask_type"], f"{entry['mask_ratio']:.0%}", f"{entry['realised_mask_ratio']:.0%}", error]
        rows.setdefault((entry["mask_type"], entry["mask_ratio"]), start).append(percent(entry["overall_accuracy"]))
    return header, list(rows.values())


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its columns in line."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def plot_ablation(path: str | Path, summary: Mapping[str, Any]) -> Path:
    """Draws overall accuracy as PNG: over the rungs of the ladder, a line for each budget, and over the hidden share
    of tokens, a line for each mask type and way; bars are 95 % intervals."""
    parts = [part for part in PARTS if summary[part]]
    figure, axes = plt.subplots(1, len(parts), figsize=(7.2 * len(parts), 5.4), layout="constrained", squeeze=False)
    for axis, part in zip(axes[0], parts, strict=True):
        entries = summary[part]
        if part == "ladder":
            names = list(dict.fromkeys(entry["title"] for entry in entries))
            lines = {budget: [e for e in entries if e["budget_title"] == budget] for budget in _budgets(entries)}
            for number, (label, line) in enumerate(lines.items()):
                places = [float(names.index(entry["title"])) for entry in line]
                _draw_line(axis, places, line, label, COLOURS[number % 10], "-", 0.06 * number)
            axis.set_xticks(range(len(names)), names, rotation=25, ha="right", fontsize=9)
            axis.set_title("One thing added at a time", fontsize=11)
            axis.legend(title="training labels", fontsize=9, frameon=False)
        else:
            types = list(dict.fromkeys(entry["mask_type"] for entry in entries))
            for number, (kind, way) in enumerate((kind, way) for kind in types for way in WAYS):
                line = sorted(
                    (entry for entry in entries if (entry["mask_type"], entry["way"]) == (kind, way)),
                    key=lambda entry: entry["realised_mask_ratio"],
                )
                places = [entry["realised_mask_ratio"] for entry in line]
                style = "-" if way == "fine-tuned" else "--"
                colour = [MAIN_COLOUR, *COLOURS][types.index(kind) % 10]
                _draw_line(axis, places, line, f"{kind}, {way.replace('-', ' ')}", colour, style, 0.003 * number)
            axis.set_xlabel("share of the tokens that is hidden in pre-training")
            axis.xaxis.set_major_formatter(lambda value, position: f"{value:.0%}")
            axis.set_title(f"Masks (training labels: {entries[0]['budget_title']})", fontsize=11)
            axis.legend(fontsize=9, frameon=False)
        axis.set_ylabel("overall accuracy")
        axis.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
        axis.yaxis.set_major_formatter(lambda value, position: f"{value:.0%}")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    seeds = max(len(entry["seeds"]) for part in parts for entry in summary[part])
    noun = "seed" if seeds == 1 else "seeds"
    intervals = "; bars: 95 % interval" if seeds > 2 else ""
    figure.suptitle(f"Ablation, test area never trained on (mean of {seeds} {noun}{intervals})", fontsize=12)
    try:
        with written_whole(path) as partial:
            figure.savefig(partial, dpi=110)
        return Path(path)
    finally:
        plt.close(figure)


def _budgets(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(entry["budget_title"] for entry in entries))


def _draw_line(
    axis: Any,
    places: Sequence[float],
    entries: Sequence[Mapping[str, Any]],
    label: str,
    colour: Any,
    style: str,
    shift: float,
) -> None:
    """Means with their intervals, a little to the right so that intervals of several lines can be told apart."""
    scores = [entry["overall_accuracy"] for entry in entries]
    means = [score["mean"] for score in scores]
    reach = None
    if all(score["low"] is not None for score in scores):
        reach = [[s["mean"] - s["low"] for s in scores], [s["high"] - s["mean"] for s in scores]]
    axis.errorbar(
        [place + shift for place in places],
        means,
        yerr=reach,
        fmt="o",
        linestyle=style,
        color=colour,
        capsize=3,
        ms=4,
        lw=1.5,
        label=label,
    )


def write_ablation_reports(summary: Mapping[str, Any], folder: str | Path) -> list[Path]:
    """Writes `ablation.json`, `.png` and `.html`."""
    folder = Path(folder)
    figure = plot_ablation(folder / "ablation.png", summary)
    body = f"""<p>{summary["runs"]} runs; directions: {html.escape("; ".join(summary["directions"]))}. Every area is
the test area once; predictions of all directions are pooled. Percent, mean over seeds with its 95&nbsp;% interval
(Student's t); models are compared seed by seed.</p>
{picture(figure, "Accuracy over the rungs of the ladder, and over masks")}
"""
    if summary["ladder"]:
        changes = {entry["title"]: entry["change"] for entry in summary["ladder"]}
        listed = "".join(f"<li>{html.escape(f'{title}: {change}')}</li>" for title, change in changes.items())
        body += f"<h2>One thing at a time</h2><ul>{listed}</ul>{table(*ladder_rows(summary))}\n"
    if summary["masks"]:
        body += f"<h2>Masks</h2>{table(*mask_rows(summary))}\n"
    body += (
        f"<h2>Settings</h2><pre>{html.escape(json.dumps(summary['experiment'], indent=1, ensure_ascii=False))}</pre>"
    )
    return [
        write_json(folder / "ablation.json", summary),
        figure,
        write_page(folder / "ablation.html", "Ablation", body),
    ]

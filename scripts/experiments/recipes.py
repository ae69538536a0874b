"""The paper's two benchmarks as settings of label-efficiency experiments: official areas, published fine-tuning.

After Scheibenreif, Mommert and Borth 2023 (Masked Vision Transformers for Hyperspectral Image Classification). What
cannot be followed exactly is said in docs/manual/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_PUBLISHED: dict[str, Any] = {
    "models": "hsst,hsst-scratch,cnn-3d",
    "budgets": "0.1%,1%,10%,100%",
    "seeds": 5,
    "task": "dense",
    "window_size": 8,
    "num_epochs": 100,
    "learning_rate": 5e-4,
    "head_learning_rate": 5e-3,
    "weight_decay": 5e-3,
}


@dataclass(frozen=True)
class Recipe:
    """A benchmark.

    Attributes:
        title: name for people.
        arguments: defaults of the arguments of `run_label_efficiency.py` by their names; given ones go before.
        adapt_bands: whether a checkpoint is adapted to the bands of the data where they lack some of its bands.
    """

    title: str
    arguments: Mapping[str, Any]
    adapt_bands: bool = False


RECIPES = {
    "enmap_dfc": Recipe(
        "EnMAP, Mexico City, with DFC2020 labels: the paper's tiles and its test tiles",
        {**_PUBLISHED, "dataset": "enmap_dfc", "dataset_config": "paper", "max_steps": 1000, "batch_size": 2},
    ),
    # The published checkpoints were made for EnMAP
    "houston2018": Recipe(
        "Houston 2018: the contest's training and test areas",
        {**_PUBLISHED, "dataset": "houston2018", "max_steps": 2000, "batch_size": 32},
        adapt_bands=True,
    ),
}
"""Every recipe by its name."""


def recipe_defaults(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of arguments that a recipe sets.

    Args:
        name: one of `RECIPES`.
        given: arguments of the user; None where one was not given.
    """
    recipe = RECIPES[name]
    defaults = dict(recipe.arguments)
    if given["max_steps"] is not None:
        # Epochs would go beyond the steps that were asked for
        del defaults["num_epochs"]
    if recipe.adapt_bands and given["model_name_or_path"] is not None:
        defaults["adapt_bands"] = True
    return defaults

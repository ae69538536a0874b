"""Names that arguments may take, of modules that need torch: help and refusals of arguments need not wait for it."""

from pathlib import Path

MASK_TYPES = ("unit", "even", "block", "tube", "grid")
"""Those of `modeling_hsst.configuration_hsst`."""

SCHEDULERS = (
    *("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"),
    "warmup_stable_decay",
)
"""Those of `transformers.SchedulerType` that follow the step alone and have no settings that no argument gives."""


def published_model(name: str) -> str:
    """A published model: its folder where a program is called in a clone, or its name on the Hub."""
    folder = Path("model_cards") / name
    return str(folder) if folder.is_dir() else f"hsg-aiml/{name}"

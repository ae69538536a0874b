"""Names that arguments may take, of modules that need torch: help and refusals of arguments need not wait for it."""

MASK_TYPES = ("unit", "even", "block", "tube", "grid")
"""Those of `modeling_hsst.configuration_hsst`."""

SCHEDULERS = (
    *("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"),
    "warmup_stable_decay",
)
"""Those of `transformers.SchedulerType` that follow the step alone and have no settings that no argument gives."""

"""Names that arguments may take, of modules that need torch: help and refusals of arguments need not wait for it."""

MASK_TYPES = ("unit", "even", "block", "tube", "grid")
"""Those of `modeling_hsst.configuration_hsst`."""

SCHEDULERS = (
    *("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"),
    *("cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay"),
)
"""Those of `transformers.SchedulerType` that follow the step alone."""

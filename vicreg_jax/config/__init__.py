"""What a run or an evaluation is told: fields with their limits; no behaviour."""

from vicreg_jax.config.evaluation import Evaluation
from vicreg_jax.config.pretraining import (
    MOST_CHANNELS,
    NEEDS_PATH,
    Augment,
    Config,
    Crop,
    Data,
    Evaluate,
    Every,
    Guard,
    Model,
    Optimizer,
    Prepare,
    Where,
    parse,
)
from vicreg_jax.config.study import Study

__all__ = [
    "MOST_CHANNELS",
    "NEEDS_PATH",
    "Augment",
    "Config",
    "Crop",
    "Data",
    "Evaluate",
    "Evaluation",
    "Every",
    "Guard",
    "Model",
    "Optimizer",
    "Prepare",
    "Study",
    "Where",
    "parse",
]

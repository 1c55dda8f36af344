"""Pretraining: `run` does it from a config, `make_train_step` is one step of it.

`replay` computes a step of a run again.
"""

from vicreg_jax.train.pretrain import Trained, run, untrained
from vicreg_jax.train.replaying import replay
from vicreg_jax.train.step import dropout_key, make_train_step

__all__ = ["Trained", "dropout_key", "make_train_step", "replay", "run", "untrained"]

"""The state of a pretraining run: everything that a checkpoint holds, no behaviour."""

from typing import Any

import flax.struct
import jax
import optax


@flax.struct.dataclass
class TrainState:
    """What one step turns into the next. `step` is the only clock of a run."""

    step: jax.Array  # int32 [], number of finished steps
    params: optax.Params
    batch_stats: Any  # running means and variances of the BatchNorm layers
    opt_state: optax.OptState
    probe: Any = ()  # of a linear classifier that watches the run, if there is one

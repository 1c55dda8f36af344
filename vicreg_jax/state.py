"""The state of a pretraining run: everything that a checkpoint holds, no behaviour."""

from typing import Any

import flax.struct
import jax
import numpy as np
import optax


@flax.struct.dataclass
class TrainState:
    """What one step turns into the next. `step` is the only clock of a run."""

    step: jax.Array  # int32 [], number of finished steps
    params: optax.Params
    batch_stats: Any  # running means and variances of the BatchNorm layers
    opt_state: optax.OptState
    # int32 [2]: steps skipped as not finite, in a row until now and in all
    skipped: jax.Array = flax.struct.field(
        default_factory=lambda: np.zeros(2, np.int32)
    )
    probe: Any = ()  # of a linear classifier that watches the run, if there is one

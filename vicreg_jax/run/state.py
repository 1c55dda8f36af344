"""The state of training: everything that a checkpoint holds, and how it moves on."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

__all__ = ["TrainState"]


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
    target: Any = ()  # what follows the parameters without a gradient, if there is any

    def others(self) -> dict[str, Any]:
        """Returns the collections of variables beside "params"."""
        target = {} if self.target == () else {"target": self.target}
        return {"batch_stats": self.batch_stats, **target}

    def after(
        self,
        good: jax.Array,
        params: Any,
        batch_stats: Any,
        opt_state: Any,
        target: Any = (),
    ) -> "TrainState":
        """Returns the next state; where the step is not `good` it only counts that."""
        learned = self.replace(
            params=params, batch_stats=batch_stats, opt_state=opt_state, target=target
        )
        new = jax.tree.map(lambda a, b: jnp.where(good, a, b), learned, self)
        bad = (~good).astype(jnp.int32)
        row, total = self.skipped
        skipped = jnp.stack([(row + 1) * bad, total + bad])
        return new.replace(step=self.step + 1, skipped=skipped)

    def counts(self) -> dict[str, jax.Array]:
        """Returns the steps skipped until now, as metrics."""
        return {"skipped_in_a_row": self.skipped[0], "skipped_steps": self.skipped[1]}

"""One pretraining step: views in, terms, gradients and the next state out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vicreg_jax.devices import sharding
from vicreg_jax.methods import Method, Outputs
from vicreg_jax.run.state import TrainState

__all__ = ["dropout_key", "make_train_step", "several"]


def make_train_step(
    method: Method,
    tx: optax.GradientTransformation,
    *,
    mesh: Mesh,
    seed: int = 0,
    render: Callable[[Any], jax.Array] = lambda views: views,
    batch_sharding: Any = None,
    state_sharding: Any = None,
    steps: int = 1,
) -> Callable[[TrainState, Any], tuple[TrainState, dict, Outputs]]:
    """Returns a jitted `(state, batch) -> (state, metrics, outputs)`.

    The step donates the state. Where loss, gradient or update is not finite it leaves
    all that is learned as it is, and counts that. Its metrics are the unweighted terms
    of the method, "loss" (their weighted sum), "grad_norm" and the steps skipped,
    "skipped_in_a_row" and "skipped_steps"; its outputs are the representation and
    embedding of the first view. All views of a size go through the network in one pass,
    where it allows that, each with its own BatchNorm statistics; running statistics
    follow in the order of the views, as after a pass for each.

    Args:
      method: what is trained, such as `methods.Vicreg(encoder, expander)`.
      tx: any optax transformation.
      mesh: of one axis, "data".
      seed: of what is random in a step: dropout, directions of a sketch.
      render: batch -> views, see `Method.forward`; by default the batch is that.
      batch_sharding: of the batch, or of its parts; by default the leading axis of
        everything is divided over the mesh.
      state_sharding: of the state; by default every device holds all of it.
      steps: of one call. With several the batch is (what all of them share, a tree of
        leading axes [n, steps]), and metrics and outputs are those of the last.
    """

    update = optax.with_extra_args_support(tx).update
    grad_fn = jax.value_and_grad(method.objective, has_aux=True)

    def train_step(state, batch):
        with jax.named_scope("views"):
            views = render(batch)
        with jax.named_scope("loss_and_gradients"):
            (loss, (terms, outputs, batch_stats)), grads = grad_fn(
                state.params, state.others(), views, key=dropout_key(seed, state.step)
            )
        with jax.named_scope("update"):
            updates, opt_state = update(
                grads, state.opt_state, state.params, value=loss
            )
            params = optax.apply_updates(state.params, updates)
            target = method.after_step(state.target, params, state.step + 1)
        values = {"loss": loss, **terms, "grad_norm": optax.tree.norm(grads)}
        norms = jnp.stack([loss, values["grad_norm"], optax.tree.norm(updates)])
        good = jnp.all(jnp.isfinite(norms))
        new = state.after(good, params, batch_stats, opt_state, target)
        first = Outputs(outputs.representations[:, 0], outputs.embeddings[:, 0])
        return new, values | new.counts(), first

    whole, split = sharding.whole(mesh), sharding.split(mesh)
    return jax.jit(
        train_step if steps == 1 else several(train_step),
        in_shardings=(state_sharding or whole, batch_sharding or split),
        out_shardings=(state_sharding or whole, whole, split),
        donate_argnums=0,
    )


def dropout_key(seed: int, step: jax.Array) -> jax.Array:
    """Returns the random key of a step; flax makes another of it for each view."""
    return jax.random.fold_in(jax.random.key(seed), step)


def several(step_fn: Callable) -> Callable:
    """Returns a function of (state, (shared, batches)) that takes one step of each.

    The batches are a tree of leading axes [n, steps]; metrics and outputs are those of
    the last step.
    """

    def steps(state, batch):
        shared, batches = batch
        batches = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), batches)

        def one(carry, part):
            return step_fn(carry[0], (shared, part)), None

        first = jax.tree.map(lambda x: x[0], batches)
        like = jax.eval_shape(step_fn, state, (shared, first))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like[1:])
        return jax.lax.scan(one, (state, *zeros), batches)[0]

    return steps

"""One pretraining step: views in, terms, gradients and the next state out."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vicreg_jax import losses, sharding
from vicreg_jax.state import TrainState


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    weights: Mapping[str, float],
    mesh: Mesh,
    seed: int = 0,
    render: Callable[[Any], tuple[jax.Array, ...]] = tuple,
    batch_sharding: Any = None,
    state_sharding: Any = None,
    steps: int = 1,
) -> Callable[[TrainState, Any], tuple[TrainState, dict, tuple[jax.Array, jax.Array]]]:
    """Returns a jitted `(state, batch) -> (state, metrics, outputs)`.

    The step donates the state. Where loss, gradient or update is not finite it leaves
    parameters, BatchNorm statistics and optimizer as they are, and counts that. Its
    metrics are the unweighted terms, "loss" (their weighted sum), "grad_norm" and the
    steps skipped, "skipped_in_a_row" and "skipped_steps"; its outputs are the
    representation and embedding of the first view. Each view has its own pass and
    BatchNorm statistics, and running statistics follow in order, as in the authors'
    code.

    Args:
      model: images -> (representation, embedding), such as `models.JointEmbedding`.
      tx: any optax transformation.
      weights: of the fields of `losses.VicregTerms`, all of them.
      mesh: of one axis, "data".
      seed: of dropout, should the model have any.
      render: batch -> images of the views, [n, h, w, c] each; by default the batch is
        a sequence of them.
      batch_sharding: of the batch, or of its parts; by default the leading axis of
        everything is divided over the mesh.
      state_sharding: of the state; by default every device holds all of it.
      steps: of one call. With several the batch is (what all of them share, a tree of
        leading axes [n, steps]), and metrics and outputs are those of the last.

    Raises:
      ValueError: the weights do not name the terms.
    """
    terms = set(losses.VicregTerms.__dataclass_fields__)
    if set(weights) != terms:
        raise ValueError(
            f"weights must name {', '.join(sorted(terms))}; got {', '.join(weights)}"
        )

    def loss_fn(params, batch_stats, images, step):
        outputs = []
        for i, view in enumerate(images):
            variables = {"params": params, "batch_stats": batch_stats}
            dropout = jax.random.fold_in(jax.random.key(seed), 2 * step + i)
            output, updated = model.apply(
                variables,
                view,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout},
            )
            batch_stats = updated.get("batch_stats", batch_stats)
            outputs.append(output)
        terms = losses.vicreg(*(embedding for _, embedding in outputs))
        terms = {name: getattr(terms, name) for name in weights}
        loss = sum(weights[name] * terms[name] for name in weights)
        return loss, (batch_stats, terms, outputs[0])

    def train_step(state, batch):
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        images = render(batch)
        (loss, aux), grads = grad_fn(
            state.params, state.batch_stats, images, state.step
        )
        batch_stats, terms, outputs = aux
        update = optax.with_extra_args_support(tx).update
        updates, opt_state = update(grads, state.opt_state, state.params, value=loss)
        params = optax.apply_updates(state.params, updates)
        values = {"loss": loss, **terms, "grad_norm": optax.tree.norm(grads)}
        norms = jnp.stack([loss, values["grad_norm"], optax.tree.norm(updates)])
        good = jnp.all(jnp.isfinite(norms))
        new = state.after(good, params, batch_stats, opt_state)
        return new, values | new.counts(), outputs

    def several(state, batch):
        shared, parts = batch
        parts = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), parts)

        def one(carry, part):
            return train_step(carry[0], (shared, part)), None

        first = jax.tree.map(lambda x: x[0], parts)
        like = jax.eval_shape(train_step, state, (shared, first))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like[1:])
        return jax.lax.scan(one, (state, *zeros), parts)[0]

    whole, split = sharding.whole(mesh), sharding.split(mesh)
    return jax.jit(
        train_step if steps == 1 else several,
        in_shardings=(state_sharding or whole, batch_sharding or split),
        out_shardings=(state_sharding or whole, whole, split),
        donate_argnums=0,
    )

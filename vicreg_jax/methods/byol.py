"""BYOL: a prediction from one view meets what a slow copy makes of the other."""

import jax
import jax.numpy as jnp

from vicreg_jax.methods.directions import Directions

__all__ = ["Byol"]


class Byol(Directions):
    """Minimizes |p_i / |p_i| - t_j / |t_j||^2 of both orders of two views i, j, added.

    The t are of the target: copies of encoder and expander that move by
    t <- m t + (1 - m) p after each step, m = `target_momentum(step)` of the steps done
    before it. In train mode, as it is here, it needs no running statistics. With more
    than two views the loss is twice the mean over ordered pairs. The target sees the
    global views alone.

    Source: arXiv:2006.07733, eq. 1 and 2.
    """

    title = "BYOL"
    weights = {"distance": 1.0}
    takes_predictor = True
    takes_second = False  # the target is that

    def init(self, key, views):
        variables = super().init(key, views)
        return variables | {"target": self._copied(variables["params"], jnp.copy)}

    def forward(self, variables, views, *, key, capture=False):
        own = {name: x for name, x in variables.items() if name != "target"}
        outputs, kept = super().forward(own, views, key=key, capture=capture)
        follower = self.module.clone(predictor=None)
        (_, targets), _ = follower.apply(
            own | {"params": variables["target"]},
            views[0] if isinstance(views, tuple) else views,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.fold_in(key, 1)},
        )
        return outputs._replace(targets=jax.lax.stop_gradient(targets)), kept

    def loss(self, outputs):
        aims = self.views_of(outputs, "targets")
        return {"distance": 4 * (1 - self.mean_cosine(self.predicted(outputs), aims))}

    def after_step(self, target, params, step):
        share = self.target_momentum(step - 1)
        followed = self._copied(params, lambda x: x)
        return jax.tree.map(lambda t, p: share * t + (1 - share) * p, target, followed)

    def _copied(self, params, copy):
        names = [name for name in params if name != "predictor"]
        return {name: jax.tree.map(copy, params[name]) for name in names}

"""SimSiam: a prediction from one view meets the embedding of the other, held still."""

import jax

from vicreg_jax.methods.directions import Directions

__all__ = ["Simsiam"]


class Simsiam(Directions):
    """Minimizes -cos(p_i, stop(z_j)), averaged over ordered pairs of views i, j.

    Of these j is no local view. Without a predictor p is z, without `stop_gradient`
    stop(z) is z; then it collapses unless a regularizer holds it apart.

    Source: arXiv:2011.10566, eq. 1 to 4.
    """

    title = "SimSiam"
    weights = {"distance": 1.0}
    takes_predictor = True
    stops_gradient = True

    def loss(self, outputs):
        aims = self.global_views_of(outputs)
        if self.stop_gradient:
            aims = jax.lax.stop_gradient(aims)
        return {"distance": -self.mean_cosine(self.predicted(outputs), aims)}

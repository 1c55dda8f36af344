"""SimSiam: a prediction from one view meets the embedding of the other, held still."""

import jax

from vicreg_jax.methods.directions import Directions

__all__ = ["Simsiam"]


class Simsiam(Directions):
    """Minimizes -cos(p_i, stop(z_j)), averaged over ordered pairs of views i, j.

    Without a predictor p is z; then it collapses, and the paper has that row, too.

    Source: arXiv:2011.10566, eq. 1 to 4.
    """

    title = "SimSiam"
    weights = {"distance": 1.0}
    takes_predictor = True

    def loss(self, outputs):
        aims = jax.lax.stop_gradient(self.views_of(outputs))
        return {"distance": -self.mean_cosine(self.predicted(outputs), aims)}

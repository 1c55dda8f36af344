"""Barlow Twins: the cross-correlation of the embeddings of views becomes identity."""

from vicreg_jax import losses
from vicreg_jax.methods.method import Method

__all__ = ["BarlowTwins"]


class BarlowTwins(Method):
    """Correlates each dimension with itself over the views, and with no other.

    Source: arXiv:2103.03230 and its authors' code, whose weight of 0.0051 this is.
    """

    title = "Barlow Twins"
    weights = {"on_diagonal": 1.0, "off_diagonal": 0.0051}

    def loss(self, outputs):
        views, own = self.views_of(outputs), outputs.global_views
        return vars(losses.barlow_twins(*views, global_views=own))

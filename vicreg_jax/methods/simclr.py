"""SimCLR: each embedding is told from all others by the other view of its image."""

from vicreg_jax import losses
from vicreg_jax.methods.directions import Directions

__all__ = ["Simclr"]


class Simclr(Directions):
    """Contrasts the views of an image with all other images of the batch.

    Source: arXiv:2002.05709; `losses.simclr` has the temperature.
    """

    title = "SimCLR"
    weights = {"contrast": 1.0}

    def loss(self, outputs):
        views, own = self.views_of(outputs), outputs.global_views
        return vars(losses.simclr(*views, global_views=own))

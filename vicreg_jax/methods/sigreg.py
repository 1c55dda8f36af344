"""LeJEPA: views meet in their mean, and SIGReg makes embeddings Gaussian."""

from vicreg_jax import losses
from vicreg_jax.methods.sketched import Sketched

__all__ = ["Sigreg"]


class Sigreg(Sketched):
    """Pulls the views together; compares characteristic functions with that of N(0, 1).

    Source: arXiv:2511.08544; `losses.sigreg` says which of its constants these are.
    """

    title = "SIGReg (LeJEPA)"
    weights = {"prediction": 0.95, "sigreg": 0.05}
    slices = 1024

    def loss(self, outputs):
        options = dict(key=outputs.key, slices=self.slices)
        options["global_views"] = outputs.global_views
        return vars(losses.sigreg(*self.views_of(outputs), **options))

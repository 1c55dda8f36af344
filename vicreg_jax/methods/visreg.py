"""VISReg: VICReg whose covariance is a sliced Wasserstein distance from a Gaussian."""

from vicreg_jax import losses
from vicreg_jax.methods.sketched import Sketched

__all__ = ["Visreg"]


class Visreg(Sketched):
    """Pulls the views together, to standard deviation 1, to Gaussian shape, to zero.

    Source: arXiv:2606.02572; `losses.visreg` says which of its constants these are.
    """

    title = "VISReg"
    weights = {"prediction": 0.1, "scale": 0.9, "shape": 0.9, "center": 0.9}
    slices = 4096

    def loss(self, outputs):
        options = dict(key=outputs.key, slices=self.slices)
        options["global_views"] = outputs.global_views
        return vars(losses.visreg(*self.views_of(outputs), **options))

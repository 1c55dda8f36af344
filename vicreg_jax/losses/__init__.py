"""Self-supervised losses: pure functions of embeddings, no models, no optimizers.

Each returns its terms unweighted, as statistics of the global batch, and works eagerly,
under jit, on batches sharded over a mesh and, with `axis_name`, inside shard_map.
"""

from vicreg_jax.losses._barlow_twins import BarlowTwinsTerms, barlow_twins
from vicreg_jax.losses._directions import SimclrTerms, agreement, simclr, unit
from vicreg_jax.losses._sketched import SigregTerms, VisregTerms, sigreg, visreg
from vicreg_jax.losses._vicreg import (
    VicregTerms,
    covariance,
    invariance,
    variance,
    vicreg,
)

__all__ = [
    "BarlowTwinsTerms",
    "SigregTerms",
    "SimclrTerms",
    "VicregTerms",
    "VisregTerms",
    "agreement",
    "barlow_twins",
    "covariance",
    "invariance",
    "sigreg",
    "simclr",
    "unit",
    "variance",
    "vicreg",
    "visreg",
]

"""Methods: what a pretraining step trains, by name. No data, no optimizer, no loop.

A method of your own is a subclass of `Method`:

    class Distance(methods.Method):
        weights = {"distance": 1.0}

        def loss(self, outputs):
            a, b = self.views_of(outputs)
            return {"distance": jnp.mean((a - b) ** 2)}

    train.run(config, workdir, method=Distance)
"""

from vicreg_jax.methods.barlow_twins import BarlowTwins
from vicreg_jax.methods.byol import Byol
from vicreg_jax.methods.health import Verdict
from vicreg_jax.methods.method import REGULARIZERS, SECOND, Method, Outputs
from vicreg_jax.methods.sigreg import Sigreg
from vicreg_jax.methods.simclr import Simclr
from vicreg_jax.methods.simsiam import Simsiam
from vicreg_jax.methods.vicreg import Vicreg
from vicreg_jax.methods.visreg import Visreg
from vicreg_jax.refusals import Refusal

__all__ = [
    "METHODS",
    "REGULARIZERS",
    "SECOND",
    "BarlowTwins",
    "Byol",
    "Method",
    "Outputs",
    "Sigreg",
    "Simclr",
    "Simsiam",
    "Verdict",
    "Vicreg",
    "Visreg",
    "named",
]

METHODS: dict[str, type[Method]] = {
    "vicreg": Vicreg,
    "barlow_twins": BarlowTwins,
    "simclr": Simclr,
    "simsiam": Simsiam,
    "byol": Byol,
    "sigreg": Sigreg,
    "visreg": Visreg,
}


def named(name: str) -> type[Method]:
    """Returns the method of a name.

    Raises:
      Refusal: there is none of this name.

    >>> named("barlow_twins").weights
    {'on_diagonal': 1.0, 'off_diagonal': 0.0051}
    """
    if name not in METHODS:
        raise Refusal(f"no method {name!r}; there are {', '.join(METHODS)}")
    return METHODS[name]

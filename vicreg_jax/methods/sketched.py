"""What methods share that look at embeddings along random directions."""

from typing import ClassVar

from vicreg_jax.methods import health
from vicreg_jax.methods.method import Method
from vicreg_jax.refusals import Refusal

__all__ = ["Sketched"]


class Sketched(Method):
    """A method that asks for N(0, 1) along `slices` directions, drawn for each step.

    They are a function of (seed, step), the same for all views and on any devices.

    Raises:
      Refusal: the expander divides embeddings by their length.
    """

    slices: ClassVar[int]

    def __init__(self, *parts, **options):
        super().__init__(*parts, **options)
        if self.has_unit_length:
            raise Refusal(
                f"{type(self).__name__} asks for embeddings of standard deviation 1,"
                " which those of length 1 cannot have; set config.model.embedding_norm"
                " to none or batch"
            )

    @classmethod
    def health(cls, start, now, weights):
        return health.judge(start, now, target=1.0)

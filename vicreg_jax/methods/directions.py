"""What methods share that see only the directions of embeddings."""

import jax
import jax.numpy as jnp

from vicreg_jax import losses
from vicreg_jax.methods import health
from vicreg_jax.methods.method import Method, ordered_pairs

__all__ = ["Directions"]


class Directions(Method):
    """A method whose loss does not see how long embeddings are.

    So their own standard deviation tells nothing of a collapse. That of their
    directions does: "direction_std", the mean over dimensions, times sqrt(d), is 1
    where they point everywhere and 0 where all are one. Source: arXiv:2011.10566,
    sec. 4.1.
    """

    def mean_cosine(self, ours: list[jax.Array], theirs: list[jax.Array]) -> jax.Array:
        """Returns the cosine of each of ours and each other view of theirs, averaged.

        Args:
          ours, theirs: [n, d] of each view; theirs without the local ones.
        """
        pairs = ordered_pairs(ours, theirs)
        return sum(losses.agreement(*pair) for pair in pairs) / len(pairs)

    def predicted(self, outputs) -> list[jax.Array]:
        """Returns the predictions of each view; without a predictor its embedding."""
        made = outputs.predictions is not None
        return self.views_of(outputs, "predictions" if made else "embeddings")

    def statistics(self, representation, embedding, terms):
        z = losses.unit(embedding.astype(jnp.float32))
        std = jnp.mean(jnp.std(z, axis=0, ddof=1))
        return {"direction_std": std * z.shape[1] ** 0.5}

    @classmethod
    def health(cls, start, now, weights):
        # The rows of a log have it from the first on.
        first, last = ({**x, "embedding_std": x["direction_std"]} for x in (start, now))
        return health.judge(first, last, what="std of the directions of embeddings")

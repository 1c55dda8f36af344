"""What tells a healthy run from a collapsing one: statistics and a verdict on them."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["Verdict", "judge", "mean_correlation", "rankme", "statistics"]

LIMIT = 1024  # rows or dimensions that the dearer statistics look at


def statistics(representation: jax.Array, embedding: jax.Array) -> dict[str, jax.Array]:
    """Returns scalar statistics of one view, float32.

    `*_std` is the mean over dimensions of the standard deviation over the batch,
    `embedding_std_least` and `embedding_std_greatest` are those of single dimensions,
    `embedding_correlation` is the mean absolute off-diagonal correlation of embeddings,
    `*_rank` RankMe. All are meant for looking at, none for a gradient.

    Args:
      representation: [n, f]; embedding: [n, d]; any float dtype.
    """
    y, z = representation.astype(jnp.float32), embedding.astype(jnp.float32)
    std = jnp.std(z, axis=0, ddof=1)
    return {
        "representation_std": jnp.mean(jnp.std(y, axis=0, ddof=1)),
        "embedding_std": jnp.mean(std),
        "embedding_std_least": jnp.min(std),
        "embedding_std_greatest": jnp.max(std),
        "embedding_correlation": mean_correlation(z),
        "representation_rank": rankme(y),
        "embedding_rank": rankme(z),
    }


def mean_correlation(z: jax.Array) -> jax.Array:
    """Returns the mean absolute correlation of two different dimensions of z [n, d].

    Of the first 1,024 dimensions at most, for the d x d matrix.
    """
    z = z[:, :LIMIT]
    d = z.shape[1]
    z = z - jnp.mean(z, axis=0, keepdims=True)
    std = jnp.sqrt(jnp.sum(z**2, axis=0, keepdims=True))
    z = z / jnp.maximum(std, jnp.finfo(z.dtype).tiny)
    r = jnp.matmul(z.T, z, precision=jax.lax.Precision.HIGHEST)
    total = jnp.sum(jnp.abs(r)) - jnp.sum(jnp.abs(jnp.diag(r)))
    return total / max(d * (d - 1), 1)


def rankme(z: jax.Array) -> jax.Array:
    """Returns the effective rank of z [n, d]: exp of the entropy of singular values.

    Of the first 1,024 rows at most. Scale-free: it stays high while everything shrinks.
    Source: arXiv:2210.02885, eq. 1 (after Roy and Vetterli, 2007), with its eps.
    """
    values = jnp.linalg.svd(z[:LIMIT], compute_uv=False)
    p = values / jnp.maximum(jnp.sum(values), jnp.finfo(z.dtype).tiny) + 1e-7
    return jnp.exp(-jnp.sum(p * jnp.log(p)))


class Verdict(NamedTuple):
    healthy: bool
    reason: str


def judge(
    start: Mapping[str, float],
    now: Mapping[str, float],
    *,
    target: float | None = None,
    share: float = 0.1,
    least: float = 0.0,
    cause: str = "look at the weights of the loss and the learning rate",
    what: str = "mean embedding std",
) -> Verdict:
    """Returns whether the embeddings have collapsed or are on the way, and why.

    Judged by the absolute standard deviation of the embeddings against its start and,
    if there is one, its target. (The rank is shown beside it; being scale-free, it
    cannot tell.)

    Args:
      start, now: metrics at the first step and now.
      target: standard deviation that the loss asks for, if it asks for one.
      share: of the start, or of the target where the start is above it, below which
        they collapse.
      least: standard deviation below which they have collapsed whatever the start was.
      cause: the likely one, if they do.
      what: is judged, under the name "embedding_std".
    """
    std, first = now["embedding_std"], start["embedding_std"]
    aim = "" if target is None else f", target {target:g}"
    found = f"{what} {std:.3g} (start {first:.3g}{aim})"
    found += f", rank {now['embedding_rank']:.0f}"
    if std < max(share * min(first, target or math.inf), least):
        return Verdict(False, f"{found}: the embeddings collapse; {cause}")
    if target is not None and std < 0.8 * first:
        return Verdict(True, f"{found}: narrower than at first, it should rise")
    return Verdict(True, f"{found}: the embeddings are spread out")

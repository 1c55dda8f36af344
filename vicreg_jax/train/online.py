"""Watches a run by its labels, and changes nothing: a linear probe, nearest neighbours.

The encoder's training never sees a label: both take what it returns.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vicreg_jax.config import Config
from vicreg_jax.data.labels import NO_LABEL, exist, known
from vicreg_jax.data.source import Source, count_classes
from vicreg_jax.devices import sharding
from vicreg_jax.evaluate import heads, neighbours
from vicreg_jax.evaluate.features import Whole, stream
from vicreg_jax.evaluate.inputs import balanced
from vicreg_jax.refusals import Refusal

__all__ = ["Probe", "check", "nearest_neighbours"]

QUERIES, BANK, NEIGHBOURS = 10_000, 50_000, 20  # at most
RATE, MOMENTUM = 0.1, 0.9  # of the probe
MEMORY = 0.99  # a step is forgotten after about 100


def check(source: Source, config: Config) -> None:
    """Raises Refusal where the config asks to watch what has no labels."""
    asked = [
        f"config.evaluate.{name}"
        for name in ("knn_epochs", "probe")
        if getattr(config.evaluate, name)
    ]
    if asked and not exist(source.labels):
        raise Refusal(
            f"{' and '.join(asked)} need labels of the training images; there are none"
        )


class Probe:
    """A linear classifier with BatchNorm that learns on the representations of views.

    An image without a label counts for BatchNorm alone.

    Args:
      source: the training images, which have labels.
      width: of the representation.
    """

    def __init__(self, source: Source, *, width: int, mesh: Mesh, seed: int):
        self._source = source
        self._classes = count_classes(source)
        self._width, self._seed = width, seed
        whole, split = sharding.whole(mesh), sharding.split(mesh)
        self.init = jax.jit(self._init, out_shardings=whole)
        self.like = jax.eval_shape(self.init)
        self.step = jax.jit(
            self._step,
            in_shardings=(whole, split, split),
            out_shardings=(whole, whole),
            donate_argnums=0,
        )

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Returns the labels of a step's images, of substitutes where files broke."""
        indices = self._source.chosen(indices)
        return np.asarray(self._source.labels[indices], np.int32)

    def _init(self):
        params, stats = heads.init(
            jax.random.key(self._seed),
            {"0": self._width},
            heads=1,
            classes=self._classes,
            norm=True,
        )
        learned = {"params": params, "stats": stats}
        momenta = jax.tree.map(jnp.zeros_like, params)
        zero = jnp.zeros([])  # "weight" is of what is remembered: a mean without bias
        return learned | {"momenta": momenta, "right": zero, "weight": zero}

    def _step(self, state, representation, labels):
        x = {"0": representation.astype(jnp.float32)}

        def loss_fn(params):
            scores, stats = heads.logits(params, state["stats"], x, train=True)
            return heads.losses(scores, labels)[0], (scores[0], stats)

        grads, (scores, stats) = jax.grad(loss_fn, has_aux=True)(state["params"])
        params, momenta = heads.sgd(
            state["params"],
            state["momenta"],
            grads,
            rates=jax.tree.map(lambda _: RATE, grads),
            decays=jax.tree.map(lambda _: 0.0, grads),
            momentum=MOMENTUM,
            nesterov=False,
        )
        right = jnp.mean((jnp.argmax(scores, axis=1) == labels).astype(jnp.float32))
        share = jnp.mean((labels != NO_LABEL).astype(jnp.float32))
        right = MEMORY * state["right"] + (1 - MEMORY) * right
        weight = MEMORY * state["weight"] + (1 - MEMORY) * share
        learned = {"params": params, "stats": stats}
        new = learned | {"momenta": momenta, "right": right, "weight": weight}
        return new, {"probe_top1": 100 * right / weight}


def nearest_neighbours(
    encoder: nn.Module, source: Source, config: Config, mesh: Mesh
) -> Callable[[Any], dict[str, float]]:
    """Returns a function: variables -> the k-NN accuracy of training images.

    A tenth of those with labels, at most 10,000, are asked, and up to 50,000 others
    answer: the test images stay unseen.
    """
    rows, seed = known(source.labels), config.seed
    labels = np.asarray(source.labels)[rows]
    asked = min(0.1, QUERIES / len(labels))
    queries = balanced(labels, asked, seed, purpose="knn_queries")
    others = np.setdiff1d(np.arange(len(labels)), queries)
    if not len(others):
        raise Refusal("config.evaluate.knn_epochs needs two images or more of a class")
    share = min(1.0, BANK / len(others))
    bank = others[balanced(labels[others], share, seed, purpose="knn_bank")]
    apply = partial(encoder.apply, train=False)
    classes = int(labels.max()) + 1

    def features(variables, chosen):
        whole = Whole(source, config.data, rows[chosen])
        return np.concatenate(list(stream(apply, variables, whole, mesh=mesh)))

    def accuracy(variables):
        right = neighbours.accuracy(
            features(variables, queries),
            labels[queries],
            features(variables, bank),
            labels[bank],
            neighbours=(min(NEIGHBOURS, len(bank)),),
            mesh=mesh,
            classes=classes,
        )
        ((top1, _),) = (v for (_, kind), v in right.items() if kind == "weighted")
        return {"knn_top1": top1}

    return accuracy

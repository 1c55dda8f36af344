"""The shape of a method: what a pretraining step needs to know of what it trains."""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vicreg_jax import losses, models
from vicreg_jax.methods import health
from vicreg_jax.refusals import Refusal

__all__ = ["REGULARIZERS", "SECOND", "Method", "Outputs", "ordered_pairs"]

# What a step logs beside the terms.
TAKEN = ("step", "loss", "grad_norm", "skipped_in_a_row", "skipped_steps")
# Terms of the embeddings that every method can be given a weight for.
REGULARIZERS = {"variance": losses.variance, "covariance": losses.covariance}
# Their parts of the second, fourth, ... view, where those have a weight of their own.
SECOND = {f"second_{name}": name for name in REGULARIZERS}


class Outputs(NamedTuple):
    """What the views of n images become; v views each, the local ones last."""

    # [n, v, f], of the encoder: what is used afterwards. With a second branch they are
    # of the first one's views alone.
    representations: jax.Array
    embeddings: jax.Array  # [n, v, d], of the expander: what a loss sees
    predictions: jax.Array | None = None  # [n, v, d], of the predictor, if there is one
    # [n, v, d], of the target, if there is one: of the global views alone.
    targets: jax.Array | None = None
    key: jax.Array | None = None  # of what a loss draws in a step
    global_views: int | None = None  # of the v, if some are local


class Method:
    """One encoder and one expander for all views; a subclass says what they minimize.

    A subclass names its terms in `weights` and computes them in `loss`. Given a weight,
    "variance" and "covariance" of the embeddings are terms of any method, averaged and
    added over the views as in `losses.vicreg`. Given a weight for "second_variance",
    that is the part of the second, fourth, ... view, and "variance" what is left; the
    two add up to the term of all views. So does "second_covariance".

    With local views a global view is compared with any other, and no two local ones:
    arXiv:2104.14294, eq. 3. What is said of single views is of all of them.

    A subclass may also have a `title` for tables, and override how variables begin
    (`init`), what the views become (`forward`), what follows a step (`after_step`), and
    what is worth logging or a warning (`statistics`, `health`).

    Args:
      encoder: images [n, h, w, c] -> representations [n, f].
      expander: representations -> embeddings, like `models.Expander`.
      weights: of some terms, instead of the published ones.
      predictor: embeddings -> predictions, for the methods that take one.
      stop_gradient: of what is predicted, for the methods that stop one.
      second: encoder and expander of a second branch, for the second, fourth, ... view,
        with weights of its own; it has a predictor like that of the first.
      frozen_norm, microbatches: see `models.JointEmbedding`.

    Raises:
      Refusal: a weight is negative or for a term that the method does not have, all of
        them are zero, or the method takes no predictor or no second branch, or stops no
        gradient.
    """

    # By default the name of the class.
    title: ClassVar[str]
    # Of the terms in the total, as published.
    weights: ClassVar[Mapping[str, float]] = {}
    takes_predictor: ClassVar[bool] = False
    stops_gradient: ClassVar[bool] = False
    takes_second: ClassVar[bool] = True
    # Step -> the share of itself that a target keeps; a run sets its schedule.
    target_momentum: Callable[[jax.Array], Any] = staticmethod(lambda step: 0.99)

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        cls.title = vars(cls).get("title", cls.__name__)

    def __init__(
        self,
        encoder: nn.Module,
        expander: nn.Module,
        weights: Mapping[str, float] | None = None,
        *,
        predictor: nn.Module | None = None,
        stop_gradient: bool = True,
        second: tuple[nn.Module, nn.Module] | None = None,
        frozen_norm: bool = False,
        microbatches: int = 1,
    ):
        if predictor is not None and not self.takes_predictor:
            raise Refusal(
                f"{type(self).__name__} takes no predictor; leave"
                " config.model.predictor empty, or take vicreg, simsiam or byol"
            )
        if not (stop_gradient or self.stops_gradient):
            raise Refusal(
                f"{type(self).__name__} stops no gradient; leave config.stop_gradient"
                " True, or take simsiam"
            )
        if second is not None and not self.takes_second:
            raise Refusal(
                f"{type(self).__name__} takes no second branch; leave"
                " config.model.second_encoder empty, or take another method"
            )
        if second is not None:  # copies, as flax shares the weights of one object
            parts = [x and x.clone() for x in (*second, predictor)]
            second = models.JointEmbedding(*parts, microbatches=microbatches)
        self.encoder = encoder
        self.expander = expander
        self.stop_gradient = stop_gradient
        self.module = models.JointEmbedding(
            encoder, expander, predictor, second, frozen_norm, microbatches
        )
        self.weights = self.weighed(weights or {})

    @classmethod
    def weighed(cls, given: Mapping[str, float]) -> dict[str, float]:
        """Returns the weights of all terms: the given ones, else the published."""
        known = {**cls.weights, **dict.fromkeys([*REGULARIZERS, *SECOND], 0.0)}
        unknown = [name for name in given if name not in known]
        if unknown:
            raise Refusal(
                f"config.loss.{unknown[0]} is not a term of {cls.__name__}; it has"
                f" {', '.join(known)}"
            )
        weights = {**cls.weights, **given}
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise Refusal(f"config.loss.{name} must be zero or more; got {weight}")
        # A regularizer without a weight is as good as not named: it costs nothing. One
        # of the second branch takes its views from the other, whatever its weight.
        kept = {*cls.weights, *SECOND}
        weights = {k: x for k, x in weights.items() if x or k in kept}
        if not any(weights.values()):
            raise Refusal(
                f"config.loss: all weights of {cls.__name__} are zero"
                f" ({', '.join(weights) or 'it names no terms'}); nothing would be"
                " learned"
            )
        return weights

    def init(self, key: jax.Array, views: jax.Array) -> dict[str, Any]:
        """Returns the variables of step 0: "params", "batch_stats", perhaps "target".

        The target is what follows the parameters without a gradient: see `after_step`.

        Args:
          views: [n, v, h, w, c], of which only the shape counts.
        """
        return self.module.init(key, views, train=False)

    def forward(
        self,
        variables: Mapping[str, Any],
        views: jax.Array | tuple[jax.Array, jax.Array],
        *,
        key: jax.Array,
        capture: bool = False,
    ) -> tuple[Outputs, dict[str, Any]]:
        """Returns the outputs in train mode, and the collections that changed.

        Args:
          views: [n, v, h, w, c]; or a pair of that, the global and the local ones, of
            different h and w.
          key: of what is random in a step: dropout, if there is any, and what the loss
            draws.
          capture: also keeps the output of every layer, as "intermediates".
        """
        outputs, kept = self.module.apply(
            variables,
            views,
            train=True,
            mutable=["batch_stats", "intermediates"] if capture else ["batch_stats"],
            capture_intermediates=capture,
            rngs={"dropout": key},
        )
        first = views[0].shape[1] if isinstance(views, tuple) else None
        # 1 is that of a target's dropout.
        key = jax.random.fold_in(key, 2)
        return Outputs(*outputs, key=key, global_views=first), kept

    def loss(self, outputs: Outputs) -> dict[str, jax.Array]:
        """Returns the unweighted terms by name: scalars of the global batch.

        Those without a weight are logged, and no part of the sum.
        """
        raise Refusal(f"{type(self).__name__} has no loss(outputs); write one")

    def objective(
        self,
        params: Any,
        others: Mapping[str, Any],
        views: jax.Array | tuple[jax.Array, jax.Array],
        *,
        key: jax.Array,
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Outputs, Any]]:
        """Returns what a step differentiates: the weighted sum of the terms.

        Args:
          params: what is learned; others: all other collections of the variables.
          views, key: see `forward`.

        Returns:
          the sum, and (terms, outputs, updated BatchNorm statistics).
        """
        variables = {"params": params, **others}
        outputs, kept = self.forward(variables, views, key=key)
        terms = self.terms(outputs)
        total = sum(self.weights[name] * terms[name] for name in self.weights)
        batch_stats = kept.get("batch_stats", others.get("batch_stats", {}))
        return total, (terms, outputs, batch_stats)

    def terms(self, outputs: Outputs) -> dict[str, jax.Array]:
        """Returns what `loss` does, and the regularizers that have a weight."""
        terms = self._checked(self.loss(outputs))
        views = self.views_of(outputs)
        for name, second in zip(REGULARIZERS, SECOND, strict=True):
            parts = {name: views}
            if second in self.weights:
                parts = {name: views[::2], second: views[1::2]}
                terms.pop(name, None)
            for part, seen in parts.items():
                if part in self.weights and part not in terms:
                    factor = 2 if name == "covariance" else 1  # as in `losses.vicreg`
                    total = sum(self.regularizer(name, z) for z in seen)
                    terms[part] = factor * total / len(views)
        return terms

    def regularizer(self, name: str, z: jax.Array) -> jax.Array:
        """Returns the variance or covariance of the embeddings [n, d] of one view."""
        return REGULARIZERS[name](z)

    def _checked(self, terms):
        name = type(self).__name__
        if not isinstance(terms, Mapping):
            raise Refusal(
                f"{name}.loss returns a {type(terms).__name__}; expected a dict of the"
                f" terms {', '.join(self.weights)}"
            )
        lacking = [term for term in type(self).weights if term not in terms]
        taken = [term for term in terms if term in TAKEN]
        if lacking or taken:
            raise Refusal(
                f"{name}.loss returns {', '.join(terms) or 'nothing'}; "
                + (f"it lacks {lacking[0]}" if lacking else f"rename {taken[0]}, which")
                + (", which has a weight" if lacking else " is logged already")
            )
        for term, value in terms.items():
            if jnp.shape(value) or not jnp.issubdtype(
                jnp.result_type(value), jnp.floating
            ):
                raise Refusal(
                    f"the term {term} of {name}.loss must be a float scalar; it is"
                    f" {jnp.result_type(value)} {list(jnp.shape(value))}"
                )
        return dict(terms)

    def after_step(self, target: Any, params: Any, step: jax.Array) -> Any:
        """Returns the target after a step, such as a moving average of parameters.

        Args:
          target: as `init` gave it, () where it gave none.
          params: the new ones. step: int32 [], the number of finished steps.
        """
        del params, step
        return target

    def statistics(
        self,
        representation: jax.Array,
        embedding: jax.Array,
        terms: Mapping[str, jax.Array],
    ) -> dict[str, jax.Array]:
        """Returns scalars to be logged beside the terms and `health.statistics`.

        Args:
          representation, embedding: of the first view, [n, f] and [n, d].
          terms: the unweighted ones that have a weight.
        """
        del representation, embedding, terms
        return {}

    @classmethod
    def health(
        cls,
        start: Mapping[str, float],
        now: Mapping[str, float],
        weights: Mapping[str, float],
    ) -> health.Verdict:
        """Returns whether the embeddings have collapsed or are on the way, and why.

        Args:
          start, now: what was logged at the first step and now.
          weights: of the terms.
        """
        return health.judge(start, now, target=1.0 if weights.get("variance") else None)

    def views_of(self, outputs: Outputs, name: str = "embeddings") -> list[jax.Array]:
        """Returns the embeddings of each view, or other outputs by name: [n, d]."""
        return list(jnp.unstack(getattr(outputs, name), axis=1))

    def global_views_of(
        self, outputs: Outputs, name: str = "embeddings"
    ) -> list[jax.Array]:
        """Returns what `views_of` does, without the local views."""
        return self.views_of(outputs, name)[: outputs.global_views]

    @property
    def has_unit_length(self) -> bool:
        """Whether the expander divides embeddings by their length."""
        return getattr(self.expander, "norm", "none") == "l2"


def ordered_pairs(
    ours: list[jax.Array], theirs: list[jax.Array]
) -> list[tuple[jax.Array, jax.Array]]:
    """Returns each of ours with each other view of theirs, perhaps the first ones."""
    return [(a, b) for i, a in enumerate(ours) for j, b in enumerate(theirs) if i != j]

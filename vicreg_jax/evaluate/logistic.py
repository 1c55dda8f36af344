"""Multinomial logistic regression on features; it encodes none, chooses no penalty."""

import warnings
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vicreg_jax.refusals import Refusal

__all__ = ["Fit", "fit", "predict"]


class Fit(NamedTuple):
    """A fitted linear classifier: logits are features @ weights + bias."""

    weights: np.ndarray  # float64 [f, c]
    bias: np.ndarray  # float64 [c]
    objective: float
    gap: float  # (objective - minimum) / objective, at most about this
    steps: int


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    C: float = 1.0,
    tolerance: float = 1e-5,
    max_steps: int = 1000,
) -> Fit:
    """Returns the weights W and bias b that minimize C * sum of losses + ||W||^2 / 2.

    The losses are cross-entropies of the softmax; the bias is not penalized. This is
    the objective of scikit-learn's LogisticRegression for three or more classes (for
    two it fits a single vector, which has the same minimum where its C is twice ours).

    L-BFGS from zero, compiled, on the default device in float64, which holds the
    features: 8 n f bytes. In float32 rounding stops it short of the minimum where C is
    large. It descends on features centred and divided by their overall standard
    deviation, with the penalty converted, which saves most steps and moves no minimum.

    Args:
      features: [n, f], any float dtype. labels: int [n].
      classes: their number c; labels are 0 to c - 1, each of them present.
      C: inverse strength of the penalty.
      tolerance: of the gap, see `Fit`.
      max_steps: after which it stops; it warns if the gap is then above the tolerance.

    Raises:
      Refusal: shapes that do not fit, features that are not finite, labels out of
        range, a class without examples, fewer than two classes, C <= 0.
    """
    features, labels = np.asarray(features), np.asarray(labels)
    _check(features, labels, classes, C)
    features, n = features.astype(np.float64), len(features)
    mean = features.mean(axis=0)
    scale = np.sqrt(features.var(axis=0).mean()) or 1.0
    penalty = 1 / (C * n * scale**2)  # of scaled weights, per example
    curvature = min(penalty, np.bincount(labels).min() / n)
    x, y = (features - mean) / scale, labels.astype(np.int64)
    # optax adds int32 counts to int64 ones, which strict promotion forbids.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        found = _descend(
            x, y, penalty, curvature, tolerance, max_steps, classes=classes
        )
        (weights, bias), value, gap, steps = jax.device_get(found)
    if not gap <= tolerance:
        warnings.warn(
            f"logistic regression has not converged: after {steps} steps its objective"
            f" is an estimated {100 * gap:.2g} % above the minimum, expected"
            f" {100 * tolerance:.2g} %; raise max_steps or lower C",
            RuntimeWarning,
            stacklevel=2,
        )
    weights = weights / scale
    bias = bias - mean @ weights
    return Fit(weights, bias, float(value) * C * n, float(gap), int(steps))


def predict(fitted: Fit, features: np.ndarray) -> np.ndarray:
    """Returns the most probable classes, int64 [n], of features [n, f].

    Raises:
      Refusal: features of another width.
    """
    f = len(fitted.weights)
    if np.ndim(features) != 2 or np.shape(features)[1] != f:
        raise Refusal(
            f"the classifier was fitted to {f} features; got shape {np.shape(features)}"
        )
    return np.argmax(features @ fitted.weights + fitted.bias, axis=1)


@partial(jax.jit, static_argnames="classes")
def _descend(x, labels, penalty, curvature, tolerance, max_steps, *, classes):
    """Returns parameters, objective per example, gap and steps.

    Where an objective curves by m or more, its minimum lies at most ||g||^2 / (2 m)
    below a point of gradient g. Here m is the penalty for the weights, and `curvature`
    for the bias, which has no penalty: the share of the rarest class where that is
    less.
    """

    def objective(params):
        weights, bias = params
        logits = jnp.matmul(x, weights, precision=jax.lax.Precision.HIGHEST)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits + bias[None, :], labels
        )
        return jnp.mean(losses) + penalty / 2 * jnp.sum(weights**2)

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)

    def gap(state):
        value, (weights, bias) = (optax.tree.get(state, k) for k in ("value", "grad"))
        excess = jnp.sum(weights**2) / penalty + jnp.sum(bias**2) / curvature
        return excess / 2 / value

    def unfinished(carry):
        _, state, steps = carry
        return (steps == 0) | ((steps < max_steps) & (gap(state) > tolerance))

    def step(carry):
        params, state, steps = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = optimizer.update(
            grad, state, params, value=value, grad=grad, value_fn=objective
        )
        return optax.apply_updates(params, updates), state, steps + 1

    params = jnp.zeros((x.shape[1], classes)), jnp.zeros(classes)
    start = params, optimizer.init(params), 0
    params, state, steps = jax.lax.while_loop(unfinished, step, start)
    return params, optax.tree.get(state, "value"), gap(state), steps


def _check(features, labels, classes, C):
    if features.ndim != 2 or labels.shape != features.shape[:1] or not features.size:
        raise Refusal(
            "logistic regression needs features [n, f] and labels [n]; got"
            f" {features.shape} and {labels.shape}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise Refusal(f"labels must be integers; got {labels.dtype}")
    if classes < 2:
        raise Refusal(f"logistic regression needs two classes or more; got {classes}")
    if not 0 <= labels.min() <= labels.max() < classes:
        raise Refusal(
            f"labels must be from 0 to {classes - 1}; got {labels.min()} to"
            f" {labels.max()}"
        )
    empty = np.flatnonzero(np.bincount(labels, minlength=classes) == 0)
    if len(empty):
        raise Refusal(
            f"{len(empty)} of the {classes} classes have no examples, first class"
            f" {empty[0]}; every class needs one"
        )
    wrong = np.count_nonzero(~np.isfinite(features).all(axis=1))
    if wrong:
        raise Refusal(f"{wrong} of the {len(features)} rows are not finite")
    if not C > 0:
        raise Refusal(f"C must be > 0; got {C}")

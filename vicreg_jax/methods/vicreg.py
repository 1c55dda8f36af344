"""VICReg: variance, invariance and covariance of the embeddings of views."""

from vicreg_jax import losses
from vicreg_jax.methods import health
from vicreg_jax.methods.method import Method, ordered_pairs

__all__ = ["Vicreg"]


class Vicreg(Method):
    """Pulls the views together, spreads every dimension, decorrelates them.

    With a predictor the invariance is that of each prediction and the embedding of each
    other global view; the other two terms stay with the embeddings. Where embeddings
    are of length 1 the standard deviation asked for is 1 / sqrt(d).

    Source: arXiv:2105.04906, with the scaling of the terms that `losses.vicreg` states;
    for the predictor its table 4, for the length its table 8.
    """

    title = "VICReg"
    weights = {"invariance": 25.0, "variance": 25.0, "covariance": 1.0}
    takes_predictor = True

    def loss(self, outputs):
        z = self.views_of(outputs)
        options = dict(gamma=self._gamma(z[0]), global_views=outputs.global_views)
        terms = vars(losses.vicreg(*z, **options))
        if outputs.predictions is None:
            return terms
        p = self.views_of(outputs, "predictions")
        pairs = ordered_pairs(p, self.global_views_of(outputs))
        distance = sum(losses.invariance(*pair) for pair in pairs) / len(pairs)
        return terms | {"invariance": distance}

    def regularizer(self, name, z):
        if name == "variance":
            return losses.variance(z, gamma=self._gamma(z))
        return super().regularizer(name, z)

    def _gamma(self, z):
        return z.shape[1] ** -0.5 if self.has_unit_length else 1.0

    def statistics(self, representation, embedding, terms):
        if "covariance" not in terms:
            return {}
        n, d = embedding.shape
        floor = 2 * max(d - 1, 1) / (n - 1)  # of two uncorrelated views
        found = terms["covariance"] + terms.get("second_covariance", 0.0)
        return {"covariance_over_noise": found / floor}

    @classmethod
    def health(cls, start, now, weights):
        invariance, variance = (
            weights.get(name, 0.0) for name in ("invariance", "variance")
        )
        # Half of the start is usual during warm-up, but not if nothing pulls upwards.
        share = 0.25 if variance else 0.8
        if not variance:
            cause = "loss.variance is 0, so nothing keeps the embeddings apart"
        elif variance < invariance:
            cause = (
                f"loss.variance ({variance:g}) is below loss.invariance"
                f" ({invariance:g}); the paper needs the two equal"
            )
        else:
            cause = "the learning rate may be too high; lower optimizer.base_lr"
        # sqrt(eps) = 0.01 is as good as nothing.
        return health.judge(
            start, now, target=1.0, share=share, least=0.02, cause=cause
        )

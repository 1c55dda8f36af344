"""Variance and covariance in other methods: table 4 of the paper, a row at a time.

python -m vicreg_jax.main --config=configs/paper/table4.py:byol+variance \
    --config.data.path=IMAGENET/train

The variant is a row, alone (none), or with +variance or +covariance (variance, too):
byol, simsiam, simsiam_plain (no BatchNorm), simsiam_bare (no predictor either),
vicreg_predictor_plain, vicreg_predictor, vicreg, vicreg_plain.

Cost: not measured here.
Result: published linear top-1 in docs/methods.md; not yet reproduced here.

The paper gives weights of 1 and 0.01, and no widths of predictors: those here are of
the methods' own papers. Its SimSiam keeps the rate of the predictor; ours all decay.
"""

from configs import imagenet_100ep

ROWS = {
    "byol": ("byol", True, (4096,)),
    "simsiam": ("simsiam", True, (512,)),
    "simsiam_plain": ("simsiam", False, (512,)),
    "simsiam_bare": ("simsiam", False, ()),
    "vicreg_predictor_plain": ("vicreg", False, (8192,)),
    "vicreg_predictor": ("vicreg", True, (8192,)),
    "vicreg": ("vicreg", True, ()),
    "vicreg_plain": ("vicreg", False, ()),
}
TERMS = ("none", "variance", "covariance")


def get_config(variant="vicreg+covariance"):
    row, _, terms = variant.partition("+")
    terms = terms or "none"
    if row not in ROWS or terms not in TERMS:
        raise ValueError(
            f"no variant {variant!r}; there are {', '.join(ROWS)}, each alone or with"
            " +variance or +covariance"
        )
    c = imagenet_100ep.get_config()
    c.method, c.model.expander_norm, c.model.predictor = ROWS[row]
    both = {"none": (0, 0), "variance": (1, 0), "covariance": (1, 1)}[terms]
    weights = (25.0, 1.0) if c.method == "vicreg" else (1.0, 0.01)
    c.loss = {
        name: on * weight
        for name, on, weight in zip(
            ("variance", "covariance"), both, weights, strict=True
        )
    }
    if c.method == "vicreg" and not any(both):
        c.loss.invariance = 1.0  # the only term; it collapses
    if c.method == "byol":
        c.data.batch_size = 4096
        c.model.expander = (4096, 256)
        c.optimizer.base_lr = 0.45
        c.target_momentum = 0.99
    if c.method == "simsiam":
        c.model.expander = (2048, 2048, 2048)
        c.model.embedding_norm = "batch" if c.model.expander_norm else "none"
        c.optimizer = dict(name="sgd", base_lr=0.05, weight_decay=1e-4)
    return c

"""Computes a step of a run again: terms, norms of layers, the images that weigh.

python -m vicreg_jax.main --config=configs/replay.py --workdir=RUN --config.step=1234
python -m vicreg_jax.main --config=configs/replay.py --config.batch=RUN/not_finite_9.npz

It starts at the checkpoint before that step and writes nothing. On a CPU the step is
the recorded one bit for bit.

Cost: the steps since that checkpoint.
Result: tables.
"""

import ml_collections


def get_config():
    c = ml_collections.ConfigDict()
    c.task = "replay"
    return c

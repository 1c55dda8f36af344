"""Writes the page of a run: what was trained, curves, evaluations, what features find.

python -m vicreg_jax.main --config=configs/report.py --workdir=RUN

One file, RUN/report.html, that needs no network; its figures are in RUN/report, too.
Results of evaluations below RUN/eval are in it.

Cost: half a minute.
Result: the page.
"""

import ml_collections


def get_config():
    c = ml_collections.ConfigDict()
    c.task = "report"
    return c

"""Lists the runs in a folder: how far each is, whether healthy; the best first.

python -m vicreg_jax.main --config=configs/ls.py --workdir=runs \
    --config.by="knn: 20-NN top-1"

The workdir is the folder, by default runs. Any value of the runs orders them: what is
logged (embedding_std, knn_top1), accuracies of few labels ("1-NN, 5 labels") and of
evaluations (as above); a name that there is not gets the list of all.

Cost: seconds.
Result: a table on the terminal.
"""

import ml_collections


def get_config():
    c = ml_collections.ConfigDict()
    c.task = "ls"
    return c

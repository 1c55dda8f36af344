"""Fine-tuning of the whole network on all labels; a start for a task of your own.

python -m vicreg_jax.main --config=configs/eval/finetune.py --config.checkpoint=RUN

Encoder and head learn at rates of their own, BatchNorm in train mode, by SGD with a
cosine by the epoch. With config.data.fraction or config.data.names on some labels.

Cost: 20 epochs of training.
Result: the paper has none with all labels.
"""

import ml_collections


def get_config():
    c = ml_collections.ConfigDict()
    c.task = "finetune"
    c.epochs = 20
    c.head = dict(rates=(0.1,), weight_decay=(0.0,))
    return c

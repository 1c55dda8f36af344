"""Fine-tuning of the whole network on all labels; a start for a task of your own.

python -m vicreg_jax.main --config=configs/eval/finetune.py --config.checkpoint=RUN

Encoder and head learn at rates of their own, BatchNorm in train mode, by SGD with a
cosine by the epoch. With config.data.fraction or config.data.names on some labels.

Cost: 20 epochs of training.
Result: the paper has none with all labels.
"""

from configs.eval import linear


def get_config():
    c = linear.get_config()
    c.task = "finetune"
    c.epochs = 20
    c.head.rates = (0.1,)
    c.head.weight_decay = (0.0,)
    c.finetune = dict(encoder_rate=0.01)
    return c

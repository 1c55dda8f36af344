"""The ImageNet step on noise: for speed and memory of a machine, without data.

python -m vicreg_jax.main --config=configs/fake.py --config.data.batch_size=256

Cost: 200 steps.
Result: nothing is learned; `images_per_second` in metrics.jsonl is the result.
"""

from configs import imagenet


def get_config():
    c = imagenet.get_config()
    c.epochs = 20
    c.data.update(name="fake", batch_size=256)
    c.optimizer = dict(warmup_epochs=2.0)
    c.every = dict(log_steps=20, checkpoint_epochs=20)
    return c

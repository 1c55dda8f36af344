"""What a bank of linear heads costs over a single head: steps of the linear protocol.

    python -m benchmarks.bank [--heads=12] [--classes=1000] [--rounds=9]
        [--out=FILE.json]

Both train heads on the frozen encoder from the same images on the device, without
loading or augmentation, which are the same for both. The two take turns, five steps a
turn; times are medians over the rounds, the ratio is the median of the rounds' ratios.
On a CPU they are of processor time, which a busy machine hardly changes.
A GPU or TPU gets ResNet-50 with 256 images of 224 pixels, a CPU ResNet-18 with 64 of
32, whose encoder hides less.
"""

import argparse
import datetime
import json
import os
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks.machine import processor
from vicreg_jax import config as configs
from vicreg_jax import models
from vicreg_jax.config import evaluation
from vicreg_jax.evaluate import supervised

STEPS = 5
CPU = dict(name="resnet18", stem="cifar"), 64, 32
ACCELERATOR = dict(name="resnet50", dtype=jnp.bfloat16), 256, 224


def turns(heads: int, classes: int):
    """Returns a function that trains `heads` heads for STEPS steps; it has compiled."""
    options, batch, size = CPU if jax.default_backend() == "cpu" else ACCELERATOR
    encoder = models.create(**options)
    images = jax.random.normal(jax.random.key(0), (batch, size, size, 3))
    variables = jax.jit(encoder.init, static_argnames="train")(
        jax.random.key(1), images[:2], train=False
    )
    rates = tuple(0.01 * 2**i for i in range(heads))
    given = evaluation.parse(
        dict(task="linear", checkpoint="run", head=dict(rates=rates))
    )
    model = supervised.Frozen(given, encoder, classes, 100)
    config = configs.parse(dict(data=dict(image_size=size)))
    state = [model.init(variables, config=config)]
    labels = jnp.arange(batch, dtype=jnp.int32) % classes
    step = jax.jit(model.step, donate_argnums=1)

    def turn():
        for _ in range(STEPS):
            state[0], values = step(variables, state[0], images, labels)
        jax.block_until_ready(values)

    turn()
    return turn


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rivals = {n: turns(n, options.classes) for n in (1, options.heads)}
    on_cpu = jax.default_backend() == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    times = {n: [] for n in rivals}
    for _ in range(options.rounds):
        for n, turn in rivals.items():
            start = clock()
            turn()
            times[n].append((clock() - start) / STEPS)
    ratios = [b / a for a, b in zip(*times.values(), strict=True)]
    out = f" --out={options.out}" if options.out else ""
    results = {
        "command": f"python -m benchmarks.bank{out}",
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
        "devices": [device.device_kind for device in jax.devices()],
        "processor": f"{os.cpu_count()} cores of {processor()}",
        "classes": options.classes,
        "rounds": options.rounds,
        "clock": clock.__name__,
        "ms_per_step": {n: 1000 * statistics.median(t) for n, t in times.items()},
        "ratio": statistics.median(ratios),
        "ratios_of_rounds": ratios,
    }
    print(json.dumps(results, indent=1))
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

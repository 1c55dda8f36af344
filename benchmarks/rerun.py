"""What it costs to compute a step twice and compare the two by bits.

    python -m benchmarks.rerun [--steps=20] [--out=FILE.json]

The small ResNet-18 step of `benchmarks.loop` on a CPU, the ImageNet step on a GPU or
TPU, on one batch. Single steps, and steps with `guard.rerun_steps=1`, take turns in one
process; what is printed is the median over the turns of the second by the first, of
the clock and of the processor seconds of all threads.
"""

import argparse
import datetime
import json
import time
from dataclasses import replace

import jax
import numpy as np

from benchmarks.loop import recipe
from benchmarks.machine import processor
from vicreg_jax.data.index_cache import IndexCache
from vicreg_jax.devices import sharding
from vicreg_jax.run.session import Session
from vicreg_jax.train.pretrain import Pretraining

WARM_UP = 3  # turns, which compile and are not counted


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out")
    for name in ("encoder", "image_size", "batch_size", "dtype"):
        parser.set_defaults(**{name: None})
    args = parser.parse_args()
    config = recipe(args)
    job = Pretraining(config, None, None, None, None, IndexCache())
    session, state = Session(job, None), job.init()
    split = sharding.split(job.mesh)
    batch = jax.tree.map(lambda x: sharding.place(x, split), job.make(range(1)))
    seconds = {0: [], 1: []}
    for _ in range(WARM_UP + args.steps):
        for every, found in seconds.items():
            guard = replace(config.guard, rerun_steps=every)
            job.config = replace(config, guard=guard)
            begin = time.perf_counter(), time.process_time()
            state, *_ = jax.block_until_ready(session._computed(state, batch, range(1)))
            found.append(np.subtract((time.perf_counter(), time.process_time()), begin))
    once, twice = (np.array(x[WARM_UP:]) for x in seconds.values())
    ratios = np.quantile(twice / once, [0.25, 0.5, 0.75], axis=0).round(3)
    found = {
        "command": f"python -m benchmarks.rerun --steps={args.steps}",
        "date": f"{datetime.date.today():%Y-%m-%d}",
        "jax": jax.__version__,
        "devices": [x.device_kind for x in jax.devices()],
        "processor": processor(),
        "encoder": config.model.encoder,
        "batch_size": config.data.batch_size,
        "image_size": config.data.image_size,
        "median_seconds_of_a_step": round(float(np.median(once[:, 0])), 4),
        "ratio_quartiles": ratios[:, 0].tolist(),
        "ratio_of_processor_seconds_quartiles": ratios[:, 1].tolist(),
    }
    print(json.dumps(found, indent=1))
    if args.out:
        with open(args.out, "w") as file:
            file.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What the whole pretraining loop costs over the bare train step on the same images.

    python -m benchmarks.loop [--encoder=resnet18] [--image_size=32] [--batch_size=8]
        [--dtype=float32] [--steps=40] [--rounds=7] [--out=FILE.json]

The two take turns in one process, and the ratio is of the loop's rate to the mean of
the turns before and after it:

    bare step  the jitted step alone, on the first 20 batches again and again, which lie
               on the device; it donates its state, and the host stays one step ahead
    loop       `train.run` on fake images with all that a run does: planning, making
               and sending batches, metrics every 20 steps with metrics.jsonl and
               TensorBoard, progress, watchdog, skipped steps. Its rate is that of its
               own metrics.jsonl, from step 20 on, so without compiling

Both compute the same program, views and augmentation included, one step a dispatch:
the loop takes several at once only of images that the device holds, which fake ones
are not. The checkpoint at the end of a run is not in the rate. By default a GPU or TPU
gets the ImageNet step, a CPU a small one, whose cores also do the host's part.

The machine must do nothing else. Where others use its cores, rates say little. For such
times there is also the ratio of the processor seconds of all threads, which others
lengthen less; it means something only where the processor does all the work.
"""

import argparse
import datetime
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.machine import processor
from vicreg_jax import config as configs
from vicreg_jax import devices, train
from vicreg_jax.data import batches, plan
from vicreg_jax.data.augment import draw
from vicreg_jax.data.source import Arrays
from vicreg_jax.data.sources.fake import Noise
from vicreg_jax.devices import sharding
from vicreg_jax.train import build

LOG = 20  # steps between two lines of metrics, and those that are not counted
AHEAD = 3  # batches that are made before the loop takes the first
GOAL = 0.97  # of the bare step's rate
SMALL = 64  # pixels, below which a ResNet gets the stem for small images
DEFAULTS = {"encoder": "resnet50", "image_size": 224, "batch_size": 512}
DEFAULTS |= {"dtype": "bfloat16", "expander": (8192, 8192, 8192)}
ON_CPU = {"encoder": "resnet18", "image_size": 32, "batch_size": 8}
ON_CPU |= {"dtype": "float32", "expander": (512, 512, 512)}


def recipe(args: argparse.Namespace) -> configs.Config:
    """Returns the config of a run of fake images."""
    sizes = ON_CPU if jax.default_backend() == "cpu" else DEFAULTS
    given = {k: v for k, v in vars(args).items() if k in sizes and v is not None}
    sizes = sizes | given
    data = {name: sizes[name] for name in ("batch_size", "image_size")}
    model = {name: sizes[name] for name in ("encoder", "dtype", "expander")}
    model["stem"] = "cifar" if sizes["image_size"] < SMALL else "imagenet"
    epochs = (LOG + args.steps) // 10  # fake images make ten steps
    return configs.parse(
        dict(
            epochs=epochs,
            data=data | dict(name="fake"),
            model=model,
            optimizer=dict(warmup_epochs=1),
            every=dict(log_steps=LOG, checkpoint_epochs=epochs),
        )
    )


class Fake(Noise):
    """Fake images that note the processor time as each batch is made."""

    def __init__(self, data: configs.Data):
        super().__init__(
            examples=10 * data.batch_size,
            image_size=data.image_size,
            channels=len(data.mean),
            seed=0,
        )
        self.times = []

    def __getitem__(self, indices):
        self.times.append(time.process_time())
        return super().__getitem__(indices)


class Bare:
    """The loop's step without the loop."""

    def __init__(self, config: configs.Config):
        images = Arrays(Fake(config.data))
        mesh = devices.mesh(config.data.batch_size)
        made = batches.Batches(images, config, mesh)
        planner = plan.Planner(
            seed=config.seed,
            examples=len(images),
            batch_size=config.data.batch_size,
            views=2,
            numbers=draw.NUMBERS,
        )
        method = build.method(config, None, None)
        _, tx = build.optimizer(config, planner.steps_per_epoch)
        on_cpu = jax.default_backend() == "cpu"
        whole, split = sharding.whole(mesh), sharding.split(mesh)
        self._step = train.make_train_step(
            method,
            tx,
            mesh=mesh,
            seed=config.seed,
            render=lambda batch: made.render(*batch),
        )
        self._one_by_one = on_cpu and mesh.size > 1  # as the loop does there
        init = build.initializer(method, tx, config)
        self._state = jax.jit(init, out_shardings=whole)()
        # Several, as what augmentation costs a CPU depends on its parameters.
        self._batches = [
            jax.device_put(made.make(planner, step, slice(None)), split)
            for step in range(LOG)
        ]

    def seconds(self, steps: int) -> tuple[float, float]:
        """Returns the seconds and processor seconds of a step, of so many."""
        behind = None
        begin, used = time.perf_counter(), time.process_time()
        for i in range(steps):
            batch = (), self._batches[i % LOG]
            self._state, values, _ = self._step(self._state, batch)
            if self._one_by_one:
                jax.block_until_ready(self._state)
            if behind:
                int(behind["skipped_in_a_row"])
            behind = values
        jax.block_until_ready(self._state)
        end = time.perf_counter()
        return (end - begin) / steps, (time.process_time() - used) / steps


def loop(config: configs.Config) -> tuple[float, float, float]:
    """Returns what `Bare.seconds` does of a run, and the share of time it waited."""
    images = Fake(config.data)
    with tempfile.TemporaryDirectory() as workdir:
        train.run(config, workdir, source=images)
        text = (Path(workdir) / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    lines = [line for line in lines if line["step"] > LOG]
    seconds = [config.data.batch_size / x["images_per_second"] for x in lines]
    waited = [t * x["data_wait"] for t, x in zip(seconds, lines, strict=True)]
    # Batches are made some steps ahead, of which the last ones have none to follow.
    used = np.mean(np.diff(images.times[-len(lines) * LOG + AHEAD :]))
    return float(np.mean(seconds)), float(used), sum(waited) / sum(seconds)


def measure(config: configs.Config, steps: int, rounds: int) -> dict:
    """Returns both times, and the ratios of the rates."""
    bare = Bare(config)
    bare.seconds(LOG)  # compiles
    turns, loops = [bare.seconds(steps)], []
    for _ in range(rounds):
        loops.append(loop(config))
        turns.append(bare.seconds(steps))
    turns = np.array(turns)
    alone, alone_used = ((turns[1:] + turns[:-1]) / 2).T
    whole, whole_used, waited = np.array(loops).T

    def ms(x):
        return (1e3 * x).round(2).tolist()

    return {
        **around("ratio", alone / whole),
        "goal": GOAL,
        "bare_step_ms": ms(np.median(alone)),
        "loop_step_ms": ms(np.median(whole)),
        "overhead_ms": ms(np.median(whole - alone)),
        "waited_for_data": round(float(np.median(waited)), 4),
        **around("ratio_of_processor_time", alone_used / whole_used),
        "overhead_processor_ms": ms(np.median(whole_used - alone_used)),
        "bare_step_ms_of_turns": ms(turns[:, 0]),
        "loop_step_ms_of_turns": ms(whole),
    }


def around(name: str, values: np.ndarray) -> dict:
    """Returns the median, the quartiles and all values."""
    return {
        name: round(float(np.median(values)), 4),
        f"{name}_quartiles": np.quantile(values, (0.25, 0.75)).round(4).tolist(),
        f"{name}_of_rounds": values.round(4).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--encoder")
    parser.add_argument("--image_size", type=int, help="in pixels")
    parser.add_argument("--batch_size", type=int, help="over all devices")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--steps", type=int, default=40, help="of a turn, by 20")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="writes the result as JSON")
    args = parser.parse_args()
    if args.steps < LOG or args.steps % LOG:
        parser.error(f"--steps is a multiple of {LOG}; got {args.steps}")
    config = recipe(args)
    result = {
        "command": " ".join(["python -m benchmarks.loop", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
        "devices": [device.device_kind for device in jax.devices()],
        "processor": f"{os.cpu_count()} cores of {processor()}",
        "encoder": config.model.encoder,
        "expander": list(config.model.expander),
        "image_size": config.data.image_size,
        "batch_size": config.data.batch_size,
        "dtype": config.model.dtype,
        "steps": args.steps,
        "rounds": args.rounds,
        **measure(config, args.steps, args.rounds),
    }
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

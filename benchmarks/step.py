"""What a training step takes, beside the same step in PyTorch where that is installed.

    python -m benchmarks.step [--batch 16 64] [--dtype float32 bfloat16] [--turns=9]
        [--method vicreg] [--encoder=resnet18] [--stem=cifar] [--image_size=32]
        [--expander=2048,2048,2048] [--microbatches=1] [--no_torch] [--out=FILE.json]

By default a ResNet-18 with the stem for CIFAR, SGD, views that are at hand. The step
here and PyTorch's take turns in one process; PyTorch has VICReg, as published, on that
encoder alone. Printed are medians over the turns of the seconds of a step and of their
ratio, TFLOP by XLA's count, the share of it after the encoder and in the loss, MB that
the compiled step needs, seconds of compiling, and how many kernels a step has.
"""

import argparse
import datetime
import importlib.util
import json
import re
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.machine import processor
from vicreg_jax import config as configs
from vicreg_jax import methods, train
from vicreg_jax.devices import sharding
from vicreg_jax.train import build

WARM_UP = 2  # turns that are not counted
KERNEL = re.compile(
    r"= \S+ (fusion|convolution|dot|custom-call|reduce|call|sort|scatter|copy)\("
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--method", nargs="+", default=["vicreg"])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--stem", default="cifar")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--expander", default="2048,2048,2048")
    parser.add_argument("--microbatches", type=int, default=1)
    parser.add_argument("--no_torch", action="store_true")
    parser.add_argument("--out")
    args = parser.parse_args()
    rows = [
        measured(args, method=method, dtype=dtype, batch=batch)
        for method in args.method
        for dtype in args.dtype
        for batch in args.batch
    ]
    commit = ["git", "rev-parse", "--short", "HEAD"]
    found = {
        "date": f"{datetime.date.today():%Y-%m-%d}",
        "commit": subprocess.run(commit, capture_output=True, text=True).stdout.strip(),
        "options": {k: x for k, x in vars(args).items() if k != "out"},
        "jax": jax.__version__,
        "devices": [x.device_kind for x in jax.devices()],
        "processor": processor(),
        "steps": rows,
    }
    print(json.dumps(found, indent=1))
    if args.out:
        with open(args.out, "w") as file:
            file.write(json.dumps(found, indent=1) + "\n")


def measured(args, *, method, dtype, batch):
    """Returns what a step takes, and PyTorch's beside it."""
    widths = tuple(map(int, args.expander.split(",")))
    config = configs.parse(
        {
            "method": method,
            "data": dict(name="fake", batch_size=batch, image_size=args.image_size),
            "model": dict(
                encoder=args.encoder,
                stem=args.stem,
                expander=widths,
                dtype=dtype,
                microbatches=args.microbatches,
                predictor=(512,) if method in ("simsiam", "byol") else (),
            ),
        }
    )
    made, tx = build.method(config, None, None), optax.sgd(1e-3, momentum=0.9)
    mesh = sharding.data_mesh()
    state = jax.jit(build.initializer(made, tx, config))()
    state = sharding.replicate(state, mesh)
    shape = (batch, 2, args.image_size, args.image_size, 3)
    views = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    images = jax.device_put(views, sharding.split(mesh))
    step = train.make_train_step(made, tx, mesh=mesh)
    begin = time.perf_counter()
    compiled = step.lower(state, images).compile()
    compiling = time.perf_counter() - begin
    memory = compiled.memory_analysis()
    flops = _flops(compiled)
    row = {
        "method": method,
        "dtype": dtype,
        "batch": batch,
        "microbatches": args.microbatches,
        "tflop": round(flops / 1e12, 4),
        "shares": {k: round(x / flops, 4) for k, x in _parts(made, state, batch)},
        "mb": round((memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 1e6),
        "compiling_seconds": round(compiling, 1),
        "kernels": len(KERNEL.findall(compiled.as_text().partition("ENTRY")[2])),
    }

    def ours():
        nonlocal state
        state, values, _ = compiled(state, images)
        return float(values["loss"])

    steps = {"here": ours}
    like = args.encoder == "resnet18" and args.stem == "cifar" and method == "vicreg"
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    if like and not args.no_torch and importlib.util.find_spec("torch"):
        import torch

        from benchmarks.torch_step import step_of

        options = dict(bfloat16=dtype == "bfloat16", device=device)
        steps[f"torch {torch.__version__}"] = step_of(views, widths, **options)
    seconds = {name: [] for name in steps}
    for turn in range(WARM_UP + args.turns):
        for name, take in steps.items():
            begin = time.perf_counter()
            take()
            if turn >= WARM_UP:
                seconds[name].append(time.perf_counter() - begin)
    here, *others = (np.array(x) for x in seconds.values())
    row["seconds"] = {k: round(float(np.median(x)), 4) for k, x in seconds.items()}
    row["images_per_second"] = round(batch / float(np.median(here)), 1)
    if others:
        quartiles = np.quantile(here / others[0], [0.25, 0.5, 0.75])
        row["ratio_quartiles"] = quartiles.round(3).tolist()
    return row


def _parts(method, state, batch):
    """Yields FLOP of expander and loss, forward and backward, both views."""
    if method.module.predictor is not None:  # whose outputs the loss needs
        return
    params, stats = state.params["expander"], state.batch_stats["expander"]

    def embedded(params, y):
        variables = {"params": params, "batch_stats": stats}
        z, _ = method.expander.apply(variables, y, train=True, mutable=["batch_stats"])
        return z

    def summed(params, y):
        return jnp.sum(embedded(params, y).astype(jnp.float32))

    def loss(z, y):
        terms = method.terms(methods.Outputs(y, z, key=jax.random.key(0)))
        return sum(weight * terms[name] for name, weight in method.weights.items())

    width = params["linear0"]["kernel"].shape[0]
    y = jax.ShapeDtypeStruct((batch, 2, width), method.expander.dtype)
    z = jax.eval_shape(embedded, params, y)
    head = jax.jit(jax.grad(summed, argnums=(0, 1)))
    yield "expander", _flops(head.lower(params, y).compile())
    yield "loss", _flops(jax.jit(jax.grad(loss)).lower(z, y).compile())


def _flops(compiled):
    return compiled.cost_analysis()["flops"]


if __name__ == "__main__":
    main()

"""Computes what one device of many does in a pretraining step; it runs no step.

    python -m benchmarks.scaling [--tpu]

Everything is computed, not measured: the step of configs/imagenet.py, its views given
as arrays, is compiled for 1 to 512 virtual CPU devices, each number of them in a
process of its own, and the program that XLA makes for one device is read. So is the
loss alone, with both gradients, in three formulas. FLOPs are XLA's count; bytes are
what a device sends in the usual ring algorithms (collectives.wire_bytes), 16-bit sums
counted as such, as accelerators send them (the compiler for CPUs widens them). Memory
is that of the program for CPUs, which computes in float32 what an accelerator computes
in bfloat16.

With --tpu the step is also compiled by the compiler of TPUs, which need not be there:
`pip install "vicreg_jax[tpu]"`. On two cores the virtual devices take 8 minutes and 2
GB, the TPUs 9 minutes and 5 GB. Writes results/scaling.json.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.sharding import Mesh, PartitionSpec  # noqa: E402

from benchmarks.collectives import collectives, wire_bytes  # noqa: E402
from benchmarks.machine import processor  # noqa: E402
from vicreg_jax import config as configs  # noqa: E402
from vicreg_jax import losses  # noqa: E402
from vicreg_jax.command import recipes  # noqa: E402
from vicreg_jax.devices import sharding  # noqa: E402
from vicreg_jax.train import build  # noqa: E402
from vicreg_jax.train.step import make_train_step  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "scaling.json"
DEVICES, BATCH = (1, 8, 32, 128, 512), 2048
IMAGES_PER_DEVICE = 8, 16, 64  # with the batch growing with the devices
TPUS = "v5e:2x4", "v5e:4x8", "v5e:8x16", "v5p:8x8x8"


class Chip(NamedTuple):
    """Specifications of one device, per second; docs/scaling.md has their sources."""

    bf16: float  # FLOPs
    f32: float  # FLOPs of products at full precision
    link: float  # bytes one way, all links together
    near: int  # devices that such links connect
    network: float = 0.0  # bytes one way of a device's share of what lies beyond


# A TPU makes one product of full precision from six in bfloat16.
CHIPS = {
    "TPU v5e": Chip(197e12, 197e12 / 6, 200e9, 256),
    "TPU v5p": Chip(459e12, 459e12 / 6, 600e9, 8960),
    "H200": Chip(989e12, 67e12, 450e9, 8, 50e9),
}


def cost(compiled: jax.stages.Compiled, devices: int) -> dict:
    """Returns what a compiled program costs each device."""
    found = collectives(compiled.as_text(), devices)
    payloads, wire = Counter(), 0.0
    for kind, payload, group, times in found:
        payloads[kind] += times * payload
        wire += times * wire_bytes(kind, payload, group)
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    peak = held - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    return {
        "GFLOP": compiled.cost_analysis()["flops"] / 1e9,
        "sent_MB": wire / 1e6,
        "payload_MB": {kind: size / 1e6 for kind, size in payloads.items()},
        "collectives": sum(c.times for c in found),
        "memory_GB": peak / 1e9,
    }


def ours(za, zb):
    terms = losses.vicreg(za, zb)
    return 25 * terms.invariance + 25 * terms.variance + terms.covariance


def distance(za, zb):
    return 25 * jnp.mean((za - zb) ** 2)


def spread(z):
    """Variance and covariance of one view, from the d x d matrix as published."""
    n, d = z.shape
    z = z - jnp.mean(z, axis=0, keepdims=True)
    std = jnp.sqrt(jnp.sum(z**2, axis=0) / (n - 1) + 1e-4)
    c = z.T @ z / (n - 1)
    off_diagonal = c.flatten()[:-1].reshape(d - 1, d + 1)[:, 1:]
    return 25 * jnp.mean(jax.nn.relu(1 - std)) / 2 + jnp.sum(off_diagonal**2) / d


def direct(za, zb):
    return distance(za, zb) + spread(za) + spread(zb)


@jax.custom_vjp
def gathered(z):
    return jax.lax.all_gather(z, "data", tiled=True)


def gathered_backward(n, gradient):
    everyone = jax.lax.psum(gradient, "data")
    return (jax.lax.dynamic_slice_in_dim(everyone, jax.lax.axis_index("data") * n, n),)


gathered.defvjp(lambda z: (gathered(z), z.shape[0]), gathered_backward)


def published(za, zb):
    """What a device of the official code computes: its rows' distance, all the rest."""
    return distance(za, zb) + spread(gathered(za)) + spread(gathered(zb))


def published_on(mesh: Mesh):
    """Returns loss and gradients as the official code has them on every device."""

    def function(za, zb):
        value, gradients = jax.value_and_grad(published, (0, 1))(za, zb)
        # Gradients are averaged over the devices, with those of the parameters.
        mean = jax.lax.pmean(value, "data")
        return mean, jax.tree.map(lambda g: g / mesh.size, gradients)

    rows, whole = PartitionSpec("data"), PartitionSpec()
    return jax.shard_map(
        function, mesh=mesh, in_specs=rows, out_specs=(whole, rows), check_vma=False
    )


def loss_programs(n: int, d: int, mesh: Mesh) -> dict[str, jax.stages.Compiled]:
    """Returns the loss of two views [n, d] and its gradients, compiled three ways."""
    formulas = {
        "ours": jax.value_and_grad(ours, (0, 1)),
        "direct": jax.value_and_grad(direct, (0, 1)),
        "published": published_on(mesh),
    }
    whole, split = sharding.whole(mesh), sharding.split(mesh)
    view = jax.ShapeDtypeStruct((n, d), jnp.float32, sharding=split)
    return {
        name: jax.jit(f, out_shardings=(whole, split)).lower(view, view).compile()
        for name, f in formulas.items()
    }


def step_program(config: configs.Config, mesh: Mesh) -> jax.stages.Compiled:
    """Returns the training step of a config, compiled for the mesh."""
    n, size = config.data.batch_size, config.data.image_size
    method = build.method(config, None, None)
    _, tx = build.optimizer(config, steps_per_epoch=1_281_167 // n)
    step = make_train_step(method, tx, mesh=mesh)

    def placed(where, x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    state = jax.eval_shape(build.initializer(method, tx, config))
    state = jax.tree.map(partial(placed, sharding.whole(mesh)), state)
    shape = (n, config.data.views, size, size, len(config.data.mean))
    views = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding.split(mesh))
    return step.lower(state, views).compile()


def recipe(batch_size: int) -> configs.Config:
    config = recipes.read("imagenet").config
    return replace(config, data=replace(config.data, batch_size=batch_size))


def on_virtual_devices() -> list[dict]:
    """Returns the rows of the devices that this process has."""
    mesh = sharding.data_mesh()
    devices = mesh.size
    sizes = dict.fromkeys((BATCH, *(devices * images for images in IMAGES_PER_DEVICE)))
    rows = []
    for n in sizes:
        config = recipe(n)
        d = config.model.expander[-1]
        programs = {"step": step_program(config, mesh), **loss_programs(n, d, mesh)}
        costs = {name: cost(program, devices) for name, program in programs.items()}
        rows.append({"devices": devices, "batch": n, **costs})
    return rows


def on_tpu(name: str) -> list[dict]:
    """Returns what the TPU compiler makes of the step; the TPU need not be there."""
    from jax.experimental import topologies

    tpu = topologies.get_topology_desc(platform="tpu", topology_name=name)
    mesh = sharding.data_mesh(tpu.devices)
    row = {"TPU": name, "devices": mesh.size, "batch": BATCH}
    return [{**row, "step": cost(step_program(recipe(BATCH), mesh), mesh.size)}]


def sending_ms(chip: Chip, payloads: dict[str, float], devices: int) -> float:
    """Returns the milliseconds that sending takes at least, latency apart.

    Beyond the devices that fast links connect, each such node sends its part of a ring
    of nodes through the ports of all its devices.
    """

    def seconds(group, bandwidth):
        sent = sum(wire_bytes(k, 1e6 * mb, group) for k, mb in payloads.items())
        return sent / bandwidth

    if devices <= chip.near:
        return 1e3 * seconds(devices, chip.link)
    across = seconds(devices // chip.near, chip.near * chip.network)
    return 1e3 * max(across, seconds(chip.near, chip.link))


def bounds(rows: list[dict]) -> list[dict]:
    """Returns for each chip the least times of the rows, in milliseconds.

    Our loss multiplies in float32; its rivals at the rate of bfloat16, as the official
    code runs in half precision.
    """
    found = []
    for (name, chip), row in itertools.product(CHIPS.items(), rows):
        devices = row["devices"]
        if devices == 1 or devices > chip.near and not chip.network:
            continue
        rates = {"ours": chip.f32, "direct": chip.bf16, "published": chip.bf16}
        work = {k: 1e12 * row[k]["GFLOP"] / rate for k, rate in rates.items()}
        rest = row["step"]["GFLOP"] - row["ours"]["GFLOP"]
        sending = {
            k: sending_ms(chip, row[k]["payload_MB"], devices) for k in ("step", *rates)
        }
        found.append(
            {
                "chip": name,
                "devices": devices,
                "batch": row["batch"],
                "computing_ms": 1e12 * rest / chip.bf16 + work["ours"],
                "sending_ms": sending["step"],
                **{f"{k}_ms": work[k] + sending[k] for k in rates},
            }
        )
    return found


def in_a_process(*arguments: str) -> list[dict]:
    """Returns the rows that this module prints in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scaling", *arguments]
    # Without these the TPU compiler looks for the machine that it is for.
    machine = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    environment = {**os.environ, **machine, "TPU_ACCELERATOR_TYPE": "v5litepod-8"}
    run = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    return json.loads(run.stdout)


def show(title, rows, columns):
    """Prints some columns, "step GFLOP" being `row["step"]["GFLOP"]`."""

    def text(row, column):
        value = reduce(lambda part, key: part[key], column.split(), row)
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    table = [columns, *([text(row, column) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print(f"\n{title} (computed, not measured)")
    for line in table:
        cells = zip(line, widths, strict=True)
        print("  ".join(cell.rjust(width) for cell, width in cells))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tpu", action="store_true", help="compile for TPUs, too")
    parser.add_argument("--devices", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--topology", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.devices:
        jax.config.update("jax_num_cpu_devices", options.devices)
        return print(json.dumps(on_virtual_devices()))
    if options.topology:
        return print(json.dumps(on_tpu(options.topology)))
    if options.tpu and not importlib.util.find_spec("libtpu"):
        parser.error('--tpu needs their compiler: pip install "vicreg_jax[tpu]"')

    about = {
        "what": "computed by compiling, not measured: no step was run",
        "command": "python -m benchmarks.scaling" + " --tpu" * options.tpu,
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
        "machine": f"{os.cpu_count()} cores of {processor()}, no accelerator",
    }
    if options.tpu:
        about["libtpu"] = importlib.metadata.version("libtpu")
    print("\n".join(f"{key}: {value}" for key, value in about.items()))
    rows = [row for n in DEVICES for row in in_a_process(f"--devices={n}")]
    both = ["devices", "batch"]
    figures = "GFLOP", "sent_MB", "collectives", "memory_GB"
    show("The step, of each device", rows, both + [f"step {x}" for x in figures])
    names = "step", "ours", "direct", "published"
    for x in ("GFLOP", "sent_MB"):
        show(f"{x} of the loss alone", rows, both + [f"{name} {x}" for name in names])
    results = {"virtual_devices": rows, "bounds": bounds(rows)}
    columns = [*both, "computing_ms", "sending_ms", *(f"{x}_ms" for x in names[1:])]
    show("Least times by specification", results["bounds"], ["chip", *columns])
    if options.tpu:
        tpus = [row for name in TPUS for row in in_a_process(f"--topology={name}")]
        columns = ["TPU", *both, *(f"step {x}" for x in figures)]
        show("The step by the compiler for TPUs", tpus, columns)
        results["tpu_compiler"] = tpus
    RESULTS.write_text(json.dumps({**about, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()

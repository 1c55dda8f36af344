"""Measures the covariance term against the formulas that it replaces; trains nothing.

    python -m benchmarks.covariance [--quick]

Everything is the term of two views with both gradients, float32, on one core, to which
the script pins itself; times are processor seconds, which others on the core do not
lengthen much. The rivals take turns, so that a busy minute meets all of them: times are
medians over the rounds, ratios are medians of the ratios of each round. The full run
takes about four minutes and 3 GB and writes results/covariance.json; --quick prints
the same tables from three rounds and writes nothing.
"""

import argparse
import datetime
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

if hasattr(os, "sched_setaffinity"):  # before JAX counts the cores for its threads
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.machine import processor  # noqa: E402
from vicreg_jax import losses  # noqa: E402
from vicreg_jax.devices import sharding  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "covariance.json"
ROWS, DIMENSIONS = (64, 256, 1024, 4096), (512, 2048, 8192)
POINTS = ((64, 8192), (256, 2048), (960, 1024), (1024, 1024), (4096, 512))
DEVICES, MESH_SHAPE = 8, (512, 2048)


def centred(z):
    return z - jnp.mean(z, axis=0, keepdims=True)


def published(z):
    """The official code, line by line: all but the diagonal is cut out by reshapes."""
    n, d = z.shape
    z = centred(z)
    c = (z.T @ z) / (n - 1)
    off_diagonal = c.flatten()[:-1].reshape(d - 1, d + 1)[:, 1:].flatten()
    return jnp.sum(off_diagonal**2) / d


def masked(z):
    """The same with a mask, which XLA fuses."""
    n, d = z.shape
    z = centred(z)
    c = jnp.where(jnp.eye(d, dtype=bool), 0, z.T @ z / (n - 1))
    return jnp.sum(c**2) / d


def direct_forward(z):
    n, d = z.shape
    z = centred(z)
    c = jnp.where(jnp.eye(d, dtype=bool), 0, z.T @ z / (n - 1))
    return jnp.sum(c**2) / d, (z, c)


def direct_backward(residuals, slope):
    z, c = residuals
    n, d = z.shape
    return (4 / (n - 1) / d * slope * (z @ c),)


def gram_forward(z):
    n, d = z.shape
    z = centred(z)
    g = z @ z.T / (n - 1)
    v = jnp.sum(z**2, axis=0) / (n - 1)
    return (jnp.sum(g**2) - jnp.sum(v**2)) / d, (z, g, v)


def gram_backward(residuals, slope):
    z, g, v = residuals
    n, d = z.shape
    return (4 / (n - 1) / d * slope * (g @ z - z * v),)


direct = jax.custom_vjp(lambda z: direct_forward(z)[0])
direct.defvjp(direct_forward, direct_backward)
gram = jax.custom_vjp(lambda z: gram_forward(z)[0])
gram.defvjp(gram_forward, gram_backward)


def with_gradients(covariance):
    return jax.value_and_grad(lambda a, b: covariance(a) + covariance(b), (0, 1))


def compiled(covariance, n, d, sharding=None):
    view = jax.ShapeDtypeStruct((n, d), jnp.float32, sharding=sharding)
    return jax.jit(with_gradients(covariance)).lower(view, view).compile()


def embeddings(n, d):
    return tuple(jax.random.normal(jax.random.key(0), (2, n, d)))


def seconds(function, views):
    """Returns the median time of three calls or more; it fills a tenth of a second.

    The first call after one of 800 MB pays for getting its memory back from the system:
    85 ms where the others take 20.
    """
    times = []
    while len(times) < 3 or sum(times) < 0.1:
        start = time.process_time()
        jax.block_until_ready(function(*views))
        times.append(time.process_time() - start)
    return statistics.median(times)


def in_turns(functions, views, rounds):
    """Returns for each function its times, one for each round."""
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(seconds(function, views))
    return times


def median_ratio(above, below):
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def against_the_old_formulas(rounds, n=256, d=8192):
    rivals = {"ours": losses.covariance, "masked": masked, "published": published}
    functions = {name: compiled(f, n, d) for name, f in rivals.items()}
    times = in_turns(functions, embeddings(n, d), rounds)
    return [
        {
            "formula": name,
            "n": n,
            "d": d,
            "milliseconds": 1e3 * statistics.median(times[name]),
            "times_ours": median_ratio(times[name], times["ours"]),
            "temporary_MB": f.memory_analysis().temp_size_in_bytes / 1e6,
            "GFLOP": f.cost_analysis()["flops"] / 1e9,
        }
        for name, f in functions.items()
    ]


def against_the_better_form(rounds):
    rows = []
    for n, d in POINTS:
        rivals = {"ours": losses.covariance, "direct": direct, "gram": gram}
        functions = {name: compiled(f, n, d) for name, f in rivals.items()}
        times = in_turns(functions, embeddings(n, d), rounds)
        middle = {name: 1e3 * statistics.median(t) for name, t in times.items()}
        better = min("direct", "gram", key=middle.get)
        rows.append(
            {
                "n": n,
                "d": d,
                **{f"{name}_milliseconds": t for name, t in middle.items()},
                "better": better,
                "ratio": median_ratio(times["ours"], times[better]),
            }
        )
    return rows


def operations():
    rows = []
    for n in ROWS:
        for d in DIMENSIONS:
            forms = losses.covariance, direct, gram
            ours, *others = (compiled(f, n, d).cost_analysis()["flops"] for f in forms)
            lesser = min(others)
            row = {"n": n, "d": d, "GFLOP": ours / 1e9, "lesser_GFLOP": lesser / 1e9}
            rows.append({**row, "ratio": ours / lesser})
    return rows


def collectives(program):
    """Returns the count and the MB of the results of each kind of collective."""
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-[a-z]+"
    found = {}
    for line in program.as_text().splitlines():
        if match := re.search(rf" = (.+?) ({kinds})(-start)?\(", line):
            shapes = re.findall(r"f32\[([\d,]*)\]", match[1])
            sizes = [math.prod(map(int, filter(None, s.split(",")))) for s in shapes]
            count, size = found.get(match[2], (0, 0))
            found[match[2]] = count + 1, size + 4e-6 * sum(sizes)
    return ", ".join(f"{n} {kind} {size:.2f} MB" for kind, (n, size) in found.items())


def on_eight_devices():
    """Prints as JSON what one of eight devices does; runs in a process of its own."""
    split = sharding.split(sharding.data_mesh())
    views = embeddings(*MESH_SHAPE)
    one = jax.device_put(views, jax.devices()[0])
    rows = []
    rivals = {
        "ours": losses.covariance,
        "direct, own gradient": direct,
        "masked": masked,
        "published": published,
    }
    for name, covariance in rivals.items():
        program = compiled(covariance, *MESH_SHAPE, sharding=split)
        _, got = jax.block_until_ready(program(*jax.device_put(views, split)))
        _, want = jax.jit(with_gradients(covariance))(*one)
        got, want = np.asarray(got), np.asarray(want)
        rows.append(
            {
                "formula": name,
                "GFLOP_per_device": program.cost_analysis()["flops"] / 1e9,
                "temporary_MB": program.memory_analysis().temp_size_in_bytes / 1e6,
                "collectives": collectives(program),
                "gradient_error": float(
                    np.linalg.norm(got - want) / np.linalg.norm(want)
                ),
            }
        )
    print(json.dumps(rows))


def from_eight_devices():
    # More threads than virtual devices: a collective waits for all of them at once.
    command = [sys.executable, "-m", "benchmarks.covariance", "--devices", str(DEVICES)]
    environment = {**os.environ, "NPROC": "16"}
    run = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    return json.loads(run.stdout)


def judged(results):
    """Returns the targets with what was measured."""
    ours, masked, published = results["old_formulas"]
    memory = ours["temporary_MB"] / masked["temporary_MB"]
    slowest = max(row["ratio"] for row in results["better_form"])
    most = max(row["ratio"] for row in results["operations"])
    device = results["eight_devices"][0]["GFLOP_per_device"]
    targets = (
        ("times faster than masked", masked["times_ours"], ">=", 35),
        ("times faster than published", published["times_ours"], ">=", 50),
        ("temporary memory of masked", memory, "<=", 0.1),
        ("time of the better form, at most", slowest, "<=", 1.15),
        ("operations of the lesser form, at most", most, "<=", 1.02),
        ("GFLOP per device", device, "<=", 0.65),
    )
    rows = []
    for what, measured, sign, target in targets:
        met = measured >= target if sign == ">=" else measured <= target
        row = {"what": what, "measured": measured, "target": f"{sign} {target}"}
        rows.append({**row, "met": met})
    return rows


def show(title, rows):
    def text(value):
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    table = [list(rows[0]), *([text(v) for v in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print(f"\n{title}")
    for line in table:
        cells = zip(line, widths, strict=True)
        print("  ".join(cell.ljust(width) for cell, width in cells).rstrip())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 rounds, not 11")
    parser.add_argument("--devices", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.devices:
        jax.config.update("jax_num_cpu_devices", options.devices)
        return on_eight_devices()

    rounds = 3 if options.quick else 11
    about = {
        "command": "python -m benchmarks.covariance",
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
        "processor": f"one core of {processor()}",
        "rounds": rounds,
    }
    print(", ".join(f"{key}: {value}" for key, value in about.items()))
    results = {}
    results["old_formulas"] = against_the_old_formulas(rounds)
    show("Against the formulas it replaces", results["old_formulas"])
    results["better_form"] = against_the_better_form(rounds)
    show("Time against the better of two forms", results["better_form"])
    results["operations"] = operations()
    show("Operations against the lesser of the two forms", results["operations"])
    results["eight_devices"] = from_eight_devices()
    n, d = MESH_SHAPE
    show(f"One of {DEVICES} devices, n = {n}, d = {d}", results["eight_devices"])
    results["targets"] = judged(results)
    show("Targets", results["targets"])
    if not options.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({**about, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Is the gradient that training takes on several processes that of the whole batch?

python -m benchmarks.exactness [--out=FILE]

Every library's loss is computed on embeddings z = x M of 64 rows by 1, 2 and 4 CPU
processes (gloo) that hold equal parts of them, in float32, and the gradients of M are
averaged over the processes as data-parallel training does. The reference is the same
loss in float64 by one process. "ratio" is that of the lengths of the two gradients,
"angle" the one between them, in degrees: 1 and 0 are exact. Writes
results/exactness.json and prints a table.

The peers are the extra `peers`; where one cannot be imported the table says so. Only
the files of the losses are imported, without what else their packages want. Random
directions are drawn in advance, for all processes and both precisions alike.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import socket
import subprocess
import sys
import types
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.machine import processor

OUT = Path(__file__).parent / "results" / "exactness.json"
WORLDS = (1, 2, 4)
ROWS, INPUTS, D, SLICES = 64, 24, 16, 64
# Packages whose own __init__ would import all the rest of them,
NOT_RUN = {
    "lightly": ("loss",),
    "solo": ("", "losses"),
    "stable_pretraining": ("", "backbone", "losses", "methods", "utils"),
}
# and what their files of losses import and no loss calls.
NOT_CALLED = ("loguru", "timm", "transformers", "transformers.utils")

# The environment of a process; torch warns of names that the peers call.
ALONE = dict(JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="1", PYTHONWARNINGS="ignore")


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Returns x [3, rows, inputs] of three views, and M [inputs, d], in float64."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, ROWS, INPUTS)) + 0.3 * rng.normal(size=(3, ROWS, INPUTS))
    return x + rng.normal(size=INPUTS), rng.normal(scale=0.15, size=(INPUTS, D))


def mine(rank: int, world: int, port: int) -> dict[str, dict[str, dict]]:
    """Returns the gradients of our losses, as one of the processes finds them."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from vicreg_jax import losses
    from vicreg_jax.devices import sharding

    if world > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", world, rank)
    sketch = dict(key=jax.random.key(0), slices=SLICES)
    published = {
        "VICReg": (losses.vicreg, (25.0, 25.0, 1.0)),
        "Barlow Twins": (losses.barlow_twins, (1.0, 0.0051)),
        "SIGReg": (partial(losses.sigreg, **sketch), (0.95, 0.05)),
        "VISReg": (partial(losses.visreg, **sketch), (0.1, 0.9, 0.9, 0.9)),
    }
    mesh = sharding.data_mesh()
    split, whole = NamedSharding(mesh, P(None, "data")), NamedSharding(mesh, P())
    own = slice(rank * ROWS // world, (rank + 1) * ROWS // world)

    def gradients(dtype):
        x, m = (a.astype(dtype) for a in inputs())
        x = jax.make_array_from_process_local_data(split, x[:, own])
        m = jax.make_array_from_process_local_data(whole, m)
        found = {}
        for name, (loss, weights) in published.items():

            def total(m, x, loss=loss, weights=weights):
                z = jnp.matmul(x, m, precision="highest")
                terms = vars(loss(*z)).values()
                return sum(w * term for w, term in zip(weights, terms, strict=True))

            gradient = jax.jit(jax.grad(total), out_shardings=whole)(m, x)
            found[name] = np.asarray(gradient, np.float64).ravel().tolist()
        return found

    found = {"float32": gradients(np.float32)}
    if world == 1:
        with jax.enable_x64(True):
            found["float64"] = gradients(np.float64)
    return {"vicreg_jax": found}


class StandIn(types.ModuleType):
    """A module that is not run, or not here: what is asked of it is an empty class."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def only_losses() -> None:
    """Makes the peers' losses importable without all else of their packages."""
    sys.modules.update({name: StandIn(name) for name in NOT_CALLED})
    for package, parts in NOT_RUN.items():
        found = importlib.util.find_spec(package)
        for part in parts if found else ():
            name = f"{package}.{part}".rstrip(".")
            sys.modules[name] = StandIn(name)
            sys.modules[name].__path__ = [str(Path(found.origin).parent / part)]


def lightly() -> dict[str, Callable]:
    """Returns the losses of lightly, as functions of three views."""
    loss = partial(importlib.import_module, package="lightly.loss")
    vicreg, barlow = loss(".vicreg_loss"), loss(".barlow_twins_loss")
    lejepa, visreg = loss(".lejepa_loss"), loss(".visreg_loss")
    found = {}
    for word, gather in (("", False), (", gather_distributed", True)):
        kw = dict(gather_distributed=gather)
        pair = vicreg.VICRegLoss(**kw)
        cross = barlow.BarlowTwinsLoss(**kw)
        sketch = lejepa.LeJEPALoss(sigreg_num_vectors=SLICES, **kw)
        sliced = visreg.VISRegLoss(num_slices=SLICES, **kw)
        found[f"VICReg{word}"] = lambda z, f=pair: f(z[0], z[1])
        found[f"Barlow Twins{word}"] = lambda z, f=cross: f(z[0], z[1])
        for name, f in (("SIGReg", sketch), ("VISReg", sliced)):
            found[f"{name}{word}"] = lambda z, f=f: f(
                global_proj=z[:2], local_proj=z[2:]
            )
    return found


def solo_learn() -> dict[str, Callable]:
    """Returns the losses of solo-learn, as functions of three views."""
    vicreg = importlib.import_module("solo.losses.vicreg").vicreg_loss_func
    barlow = importlib.import_module("solo.losses.barlow").barlow_loss_func
    return {
        "VICReg": lambda z: vicreg(z[0], z[1]),
        "Barlow Twins": lambda z: barlow(z[0], z[1]),
    }


def stable_pretraining() -> dict[str, Callable]:
    """Returns the losses of stable-pretraining, as functions of three views."""
    import torch

    shared = importlib.import_module("stable_pretraining.utils.distributed")
    vars(sys.modules["stable_pretraining.utils"]).update(vars(shared))
    joint = importlib.import_module("stable_pretraining.losses.joint_embedding")
    lejepa = importlib.import_module("stable_pretraining.methods.lejepa")
    vicreg, barlow = joint.VICRegLoss(), joint.BarlowTwinsLoss()

    def mean(x, op):  # gloo has no AVG
        return torch.distributed.nn.functional.all_reduce(x) / shared.get_world_size()

    lejepa.all_reduce = mean

    def sigreg(z):
        sketch = lejepa.SlicedEppsPulley(num_slices=SLICES).to(z.dtype)
        return lejepa.LeJEPA._compute_loss(z, 2, sketch, 0.02)[0]

    return {
        "VICReg": lambda z: vicreg(z[0], z[1]),
        "Barlow Twins": lambda z: barlow(z[0], z[1]),
        "SIGReg": sigreg,
    }


PEERS = {
    "lightly": lightly,
    "solo-learn": solo_learn,
    "stable-pretraining": stable_pretraining,
}


def theirs(rank: int, world: int, port: int) -> dict[str, dict[str, list] | str]:
    """Returns the gradients of each peer's losses, or why there are none."""
    try:
        import torch
        import torch.distributed as dist
    except ImportError as error:
        return dict.fromkeys(PEERS, f"not imported: {error}")
    only_losses()
    torch.set_num_threads(1)
    if world > 1:
        where = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", where, rank=rank, world_size=world)
    drawn = np.random.default_rng(1).normal(size=(D, SLICES))
    own = slice(rank * ROWS // world, (rank + 1) * ROWS // world)

    def randn(*shape, dtype=None, **options):
        assert shape == drawn.shape, shape
        return torch.tensor(drawn, dtype=dtype or torch.get_default_dtype())

    torch.randn = randn

    def gradients(made, dtype):
        torch.set_default_dtype(dtype)
        x, m = (torch.tensor(a, dtype=dtype) for a in inputs())
        found = {}
        for name, loss in made().items():
            weights = m.clone().requires_grad_()
            loss(x[:, own] @ weights).backward()
            if world > 1:
                dist.all_reduce(weights.grad)
            found[name] = (weights.grad / world).double().ravel().tolist()
        return found

    found = {}
    for peer, made in PEERS.items():
        try:
            found[peer] = {"float32": gradients(made, torch.float32)}
        except ImportError as error:
            found[peer] = f"not imported: {error}"
            continue
        if world == 1:
            found[peer]["float64"] = gradients(made, torch.float64)
    return found


def compare(gradient: list[float], reference: list[float]) -> dict[str, float]:
    """Returns the ratio of two gradients' lengths and the angle between them."""
    a, b = np.asarray(gradient), np.asarray(reference)
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    a, b = a / lengths[0], b / lengths[1]
    # As exact for small angles as for large ones.
    angle = 2 * np.degrees(np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b)))
    return {"ratio": float(lengths[0] / lengths[1]), "angle": float(angle)}


def together(who: str, world: int) -> dict:
    """Returns what the first of so many processes has found."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.exactness", "--process", who]
    started = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(port)],
            stdout=subprocess.PIPE,
            env=os.environ | ALONE,
        )
        for rank in range(world)
    ]
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit(f"a process of {world} failed")
    return json.loads(said[0].splitlines()[-1])


def version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def table(libraries: dict) -> str:
    """Returns the rows as Markdown: ratio and angle for each number of processes."""
    rows = [f"| library | loss | {' | '.join(f'{w}' for w in WORLDS)} |"]
    rows.append("|---" * (2 + len(WORLDS)) + "|")
    for library, found in libraries.items():
        name = f"{library} {found['version']}"
        if "why_not" in found:
            rows.append(f"| {name} | {found['why_not']} |" + " |" * len(WORLDS))
        for loss, by_world in found.get("losses", {}).items():
            cells = [f"{x['ratio']:.3f}, {x['angle']:.2f}°" for x in by_world.values()]
            rows.append(f"| {name} | {loss} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--process", nargs=4, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.process:
        who, *numbers = flags.process
        print(json.dumps({"ours": mine, "peers": theirs}[who](*map(int, numbers))))
        return
    found = {w: together("ours", w) | together("peers", w) for w in WORLDS}
    libraries = {}
    for library, alone in found[1].items():
        libraries[library] = {"version": version(library)}
        if isinstance(alone, str):
            libraries[library]["why_not"] = alone
            continue
        libraries[library]["losses"] = {
            loss: {w: compare(found[w][library]["float32"][loss], want) for w in WORLDS}
            for loss, want in alone["float64"].items()
        }
    result = {
        "command": "python -m benchmarks.exactness",
        "date": f"{date.today():%Y-%m-%d}",
        "processor": processor(),
        "rows, d, slices": [ROWS, D, SLICES],
        "versions": {name: version(name) for name in ("jax", "torch")},
        "libraries": libraries,
    }
    flags.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(libraries))


if __name__ == "__main__":
    main()

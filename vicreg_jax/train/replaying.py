"""A step of a run once more: from the checkpoint before it, to look at it closely."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from vicreg_jax import files
from vicreg_jax.config import Config
from vicreg_jax.data.index_cache import IndexCache
from vicreg_jax.devices import sharding
from vicreg_jax.methods import Method
from vicreg_jax.refusals import Refusal, Unusable, one_line
from vicreg_jax.run import checkpoints, json_lines, workdirs
from vicreg_jax.run.checkpoints import Checkpoints
from vicreg_jax.run.prefetch import Feed
from vicreg_jax.train import not_finite
from vicreg_jax.train.pretrain import Pretraining
from vicreg_jax.train.step import dropout_key

__all__ = ["Image", "Norms", "Replayed", "of_batch", "replay", "show"]

SHOWN = 5  # images


class Norms(NamedTuple):
    """L2 norms of a layer's arrays, in a step."""

    parameters: float  # before it
    gradient: float
    update: float


class Image(NamedTuple):
    """An image of the batch, and what share of the gradient at the pixels it has."""

    position: int  # in the batch
    index: int  # in the data
    name: str
    share: float


class Replayed(NamedTuple):
    """What a step is found to be."""

    step: int
    start: int  # the step of the checkpoint that it was computed from; 0: from none
    metrics: dict[str, float]  # terms of the loss and what else every step gives
    recorded: dict[str, float]  # what metrics.jsonl has of it, perhaps nothing
    layers: dict[str, Norms]
    images: list[Image]  # those of the largest share, if all is finite
    not_finite: str  # in words, what is not finite first; "" where all is
    state: Any  # after the step


def replay(
    workdir: str | Path,
    step: int,
    *,
    encoder: nn.Module | None = None,
    method: Callable[..., Method] | None = None,
    source: Any = None,
    tx: optax.GradientTransformation | None = None,
    variables: Mapping[str, Any] | None = None,
) -> Replayed:
    """Computes a step of a run again; writes nothing.

    On a CPU, with the same versions and devices, it is the step bit for bit.

    Args:
      step: from 1 on.
      encoder, method, source, tx, variables: those that the run was given: see
        `train.run`.

    Raises:
      Refusal: there is no such run or step, or the checkpoints are of something else.
    """
    workdir = files.expanded(workdir).absolute()
    config = workdirs.config_of_run(workdir, Config)
    if config is None:
        raise Refusal(f"{workdir} holds no run; give its folder as --workdir")
    saved = workdir / "checkpoints"
    earlier = any(x < step for x in Checkpoints(saved, read_only=True).steps())
    recorded = checkpoints.facts_of(saved) or {}
    given = encoder, method, source, tx, IndexCache(workdir), variables
    job = Pretraining(config, *given, recorded if earlier else None)
    if job.facts.get("weights") != recorded.get("weights", job.facts.get("weights")):
        raise Refusal(
            f"{workdir} did not start from these weights; give those that it started"
            " from: variables="
        )
    if not 1 <= step <= job.total:
        raise Refusal(f"the steps of {workdir} are 1 to {job.total}; got {step}")
    reader = Checkpoints(saved, facts=job.facts, other_data=True, read_only=True)
    found = reader.restore(job.like, before=step) if earlier else None
    start, state = found or (0, job.init())
    spans = [range(i, i + 1) for i in range(start, step)]
    for span, batch in Feed(job.make, spans, sharding=sharding.split(job.mesh)):
        before = jax.tree.map(jnp.copy, state)
        state, values, _ = job.step(state, batch, len(span))
    metrics = {name: float(x) for name, x in jax.device_get(values).items()}
    wrong, layers, images = _examined(job, before, state, batch, step)
    lines, _ = json_lines.read(workdir / "metrics.jsonl", lambda x: "step" in x)
    recorded = next((line for line in lines if line["step"] == step), {})
    known = {name: recorded[name] for name in metrics if name in recorded}
    return Replayed(step, start, metrics, known, layers, images, wrong, state)


def of_batch(path: str | Path) -> tuple[Path, int]:
    """Returns the workdir and the step of a file not_finite_STEP.npz.

    Raises:
      Unusable: it is no such file.
    """
    path = files.expanded(path).absolute()
    named = re.fullmatch(r"not_finite_(\d+)\.npz", path.name)
    if not named or not path.is_file():
        raise Unusable(f"{path} is no file not_finite_STEP.npz of a run")
    return path.parent, int(named[1])


def _examined(job, before, after, batch, step):
    """Returns what is not finite, the norms of layers, and the images that weigh."""
    batch, _ = batch
    views = job.views(batch)
    params, others = before.params, before.others()
    key = dropout_key(job.config.seed, before.step)

    def objective(params, views):
        return job.method.objective(params, others, views, key=key)[0]

    grads, pixels = jax.jit(jax.grad(objective, argnums=(0, 1)))(params, views)
    change = jax.tree.map(jnp.subtract, after.params, params)
    trees = [_layers(tree) for tree in (params, grads, change)]
    layers = {name: Norms(*(tree[name] for tree in trees)) for name in trees[0]}
    if int(after.skipped[0]):
        try:
            wrong = not_finite.explain(job.method, params, others, views)
        except Exception as error:  # in a method of the user's own
            wrong = f"not known ({type(error).__name__}: {one_line(error)})"
        return wrong, layers, []
    squares = [jnp.sum(x**2, axis=(1, 2, 3, 4)) for x in jax.tree.leaves(pixels)]
    each = np.asarray(sum(squares))
    shares = each / max(each.sum(), np.finfo(np.float32).tiny)
    indices = job.images.chosen(job.plan(step - 1).indices)
    names = job.images.names
    images = [
        Image(
            i,
            int(indices[i]),
            "" if names is None else str(names[indices[i]]),
            float(shares[i]),
        )
        for i in np.argsort(-shares, kind="stable")[:SHOWN].tolist()
    ]
    return "", layers, images


def _layers(tree):
    """Returns the norm of each layer, named like encoder/conv1."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path[:-1], simple=True, separator="/")
        found.setdefault(name, []).append(leaf)
    return {name: float(optax.tree.norm(leaves)) for name, leaves in found.items()}


def show(workdir: Path, found: Replayed) -> None:
    """Prints what was found of a step."""
    console = Console()
    begin = f"from the checkpoint of step {found.start}" if found.start else "from 0"
    title = f"step {found.step} of {workdir}, computed again {begin}"
    console.print(title, highlight=False, markup=False, soft_wrap=True)
    table = Table("", "again", "recorded", "")
    for name, value in found.metrics.items():
        known = found.recorded.get(name)
        same = "" if known is None else "equal" if known == value else "DIFFERS"
        table.add_row(
            name, f"{value:.9g}", "" if known is None else f"{known:.9g}", same
        )
    console.print(table)
    table = Table("layer", "parameters", "gradient", "update")
    for name, norms in found.layers.items():
        table.add_row(name, *(f"{x:.4g}" for x in norms))
    console.print(table)
    if found.not_finite:
        line = f"not finite first: {found.not_finite}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for image in found.images:
        line = f"{image.share:.1%} of the gradient at the pixels: batch position"
        line += f" {image.position}, image {image.index} {image.name}".rstrip()
        console.print(line, highlight=False, markup=False, soft_wrap=True)

"""The evaluations by name: from a protocol and a checkpoint to a result on disk."""

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress

from vicreg_jax import devices, files
from vicreg_jax.config import Augment, Evaluation
from vicreg_jax.data import plan
from vicreg_jax.evaluate import (
    diagnostics,
    features,
    heads,
    logistic,
    multilabel,
    neighbours,
    results,
    supervised,
)
from vicreg_jax.evaluate.augmented import augmented
from vicreg_jax.evaluate.features import Features
from vicreg_jax.evaluate.inputs import (
    Inputs,
    held_out,
    inputs,
    multilabel_inputs,
    need_labels,
)
from vicreg_jax.run import workdirs
from vicreg_jax.weights import Encoder, contents, loading

DIAGNOSED = 25_600  # images at most, as many as RankMe's authors take


def run(protocol: Evaluation, workdir: Path, *, name: str) -> None:
    """Does the protocol's task, or goes on with it; a finished one is only shown.

    Of several processes (`jax.distributed`) each calls it alike, with a workdir that
    all see; the first writes and speaks.

    Args:
      name: of the config file, for the result.

    Raises:
      ValueError, FileNotFoundError: what is wrong with the checkpoint, the data or the
        workdir, before anything is written.
    """
    devices.mesh()
    loaded = loading.load(protocol.checkpoint)
    choose = multilabel_inputs if protocol.task == "svm" else inputs
    size = protocol.data.image_size or loaded.known_size()
    sized = replace(protocol, data=replace(protocol.data, image_size=size))
    found = choose(sized, loaded.config, mean=loaded.mean, std=loaded.std)
    if protocol.task != "features":
        need_labels(found)
    workdir = workdirs.claim(workdir, protocol)
    finished = results.read(workdir)
    if finished and finished["step"] != loaded.step:
        raise ValueError(
            f"{workdir} has the result of step {finished['step']}, the checkpoint is"
            f" now at step {loaded.step}; choose another --workdir, or remove it"
        )
    if finished:
        if _is_first():
            results.show(finished)
        return
    TASKS[protocol.task](protocol, workdir, loaded, found, name)


def linear(protocol, workdir, loaded, found, name):
    outcome = supervised.fit(protocol, workdir, loaded.module, loaded.variables, found)
    bank = heads.combinations(protocol.head)
    test = _top(outcome.test[outcome.chosen], found)
    notes = []
    if len(bank) > 1:
        layer, rate, decay = bank[outcome.chosen]
        notes.append(
            f"Of {len(bank)} heads: rate {rate:g}, weight decay {decay:g}, layer"
            f" {layer}, with {outcome.held_out[outcome.chosen][0]:.1f} % of the images"
            " held out."
        )
    if outcome.maximum is not None:
        for key, value in _top(outcome.maximum, found).items():
            test[f"{key}, maximum over epochs"] = value
        notes.append("The maximum is over test accuracies of all epochs: optimistic.")
    task = protocol.task
    if task == "finetune":
        share = 100 * len(found.kept) / len(found.train)
        task = f"finetune {share:.0f} %"
        notes.append(f"Trained on {len(found.kept)} of {len(found.train)} images.")
    _finish(protocol, workdir, loaded, found, name, test, task=task, notes=notes)


def knn(protocol, workdir, loaded, found, name):
    given, mesh = protocol.knn, devices.mesh()
    if max(given.neighbours) > len(found.kept):
        raise ValueError(
            f"config.knn.neighbours asks for {max(given.neighbours)}; there are"
            f" {len(found.kept)} training images"
        )
    train, test = _both(protocol, workdir, loaded, found)
    right = neighbours.accuracy(
        test.representations,
        test.labels,
        train.representations,
        train.labels,
        neighbours=given.neighbours,
        temperature=given.temperature,
        mesh=mesh,
        classes=found.classes,
    )
    table = {}
    for (k, kind), accuracies in right.items():
        if kind == "plain":
            table[f"{k}-NN top-1, plain votes"] = accuracies[0]
        else:
            for key, value in _top(accuracies, found).items():
                table[f"{k}-NN {key}"] = value
    notes = [
        f"Votes weighted by exp(cosine similarity / {given.temperature:g}), or plain."
    ]
    _finish(protocol, workdir, loaded, found, name, table, notes=notes)


def logistic_regression(protocol, workdir, loaded, found, name):
    train, test = _both(protocol, workdir, loaded, found)
    mean, scale = train.representations.mean(axis=0), train.representations.std()
    a, b = ((x.representations - mean) / scale for x in (train, test))
    candidates, notes = protocol.logistic.c, []
    c = candidates[0]
    fitted = partial(_fitted, classes=found.classes, notes=notes)
    if len(candidates) > 1:
        everything = np.arange(len(a))
        fit, aside = held_out(everything, train.labels, 0.1, protocol.seed)
        right = []
        for c in candidates:
            model = fitted(a[fit], train.labels[fit], c)
            guess = logistic.predict(model, a[aside])
            right.append(100 * np.mean(guess == train.labels[aside]))
        c = candidates[int(np.argmax(right))]
        notes.append(
            f"C = {c:g}, with {max(right):.1f} % of a tenth of the training images"
        )
    model = fitted(a, train.labels, c)
    guess = logistic.predict(model, b)
    table = {"top-1": 100 * float(np.mean(guess == test.labels))}
    _finish(protocol, workdir, loaded, found, name, table, notes=notes)


def _fitted(x, labels, c, *, classes, notes):
    """Returns the regression; that it has not converged is worth a note."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        model = logistic.fit(x, labels, classes=classes, C=c)
    notes += [f"C = {c:g}: {warning.message}" for warning in caught]
    return model


def svm(protocol, workdir, loaded, found, name):
    train, test = _both(protocol, workdir, loaded, found)
    scores = multilabel.fit_and_score(
        train.representations,
        train.labels,
        test.representations,
        test.labels,
        costs=protocol.svm.costs,
        folds=protocol.svm.folds,
        seed=protocol.seed,
    )
    classes = found.train.classes
    table = {"mean average precision": scores.mean}
    table |= dict(zip(classes, scores.average_precision, strict=True))
    notes = ["Area under precision and recall; difficult images are left out."]
    _finish(protocol, workdir, loaded, found, name, table, notes=notes)


def write_features(protocol, workdir, loaded, found, name):
    del name
    how = dict(apply=_with_embeddings(loaded) if loaded.expander else None)
    chosen = np.sort(_drawn(protocol, len(found.kept), DIAGNOSED))
    sample, start = [], 0
    for part in _parts(protocol, workdir, "train", loaded, found, **how):
        own = chosen[(start <= chosen) & (chosen < start + len(part["names"]))] - start
        sample.append(
            {k: part[k][own] for k in ("representations", "embeddings") if k in part}
        )
        start += len(part["names"])
    if found.test is not None:
        for _ in _parts(protocol, workdir, "test", loaded, found, **how):
            pass
    joined = {k: np.concatenate([x[k] for x in sample]) for k in sample[0]}
    pairs = _views(protocol, loaded, found) if protocol.lidar.images else None
    if not _is_first():
        return
    facts = {"images": len(chosen)}
    seen = joined["representations"], joined.get("embeddings")
    facts |= diagnostics.diagnose(*seen, pairs=pairs)
    files.write_json(workdir / "diagnostics.json", facts)
    console = Console()
    for key, value in facts.items():
        if not isinstance(value, list):
            shown = f"{value:.4g}" if isinstance(value, float) else value
            console.print(f"{key}: {shown}", highlight=False, markup=False)
    console.print(f"features are in {workdir / 'features'}", highlight=False)


TASKS: dict[str, Callable] = {
    "linear": linear,
    "finetune": linear,
    "knn": knn,
    "logistic": logistic_regression,
    "svm": svm,
    "features": write_features,
}


def _is_first() -> bool:
    """Tells whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def _both(protocol, workdir, loaded, found) -> tuple[Features, Features]:
    """Returns the features of the training and the test images."""
    both = (
        features.joined(_parts(protocol, workdir, part, loaded, found))
        for part in ("train", "test")
    )
    return tuple(both)


def _drawn(protocol, count, at_most):
    """Returns some of `count` images, drawn by the seed."""
    return plan.permutation(protocol.seed, 0, count)[:at_most]


def _views(protocol, loaded: Encoder, found: Inputs) -> np.ndarray:
    """Returns representations [n, q, f] of views, augmented as in the encoder's run."""
    augment = loaded.config.augment if loaded.config else Augment()
    if found.train.names is None:
        augment = replace(augment, colour="device")
    rows = found.kept[_drawn(protocol, len(found.kept), protocol.lidar.images)]
    with _bar("views for LiDAR", len(rows) * protocol.lidar.views) as progress:
        return augmented(
            partial(loaded.module.apply, train=False),
            loaded.variables,
            found.train,
            replace(found.config, augment=augment),
            rows=rows,
            count=protocol.lidar.views,
            mesh=devices.mesh(),
            progress=progress,
        )


@contextlib.contextmanager
def _bar(text, total):
    """Gives a function that shows how many of `total` are done."""
    columns, console = Progress.get_default_columns(), Console(stderr=True)
    with Progress(*columns, console=console, disable=not _is_first()) as bar:
        task = bar.add_task(text, total=total)
        yield lambda done: bar.update(task, completed=done)


def _parts(protocol, workdir, part, loaded: Encoder, found: Inputs, *, apply=None):
    """Yields the features of a part of the data, kept in the workdir."""
    if _is_first():
        workdirs.write_config(workdir, protocol)
    images = getattr(found, part)
    rows = found.kept if part == "train" else np.arange(len(images))
    variables = loaded.variables
    if apply is None:

        def apply(variables, views):
            y = loaded.module.apply(variables, views, train=False)
            return {"representations": y}

    else:
        variables = (loaded.variables, loaded.expander)
    with _bar(f"{part} features", len(rows)) as progress:
        yield from features.parts(
            apply,
            variables,
            images,
            found.config.data,
            workdir / "features" / part,
            rows=rows,
            shorter_side=found.shorter_side,
            mesh=devices.mesh(),
            source=loaded.source,
            progress=progress,
        )


def _with_embeddings(loaded):
    expander = contents.expander_of(loaded.expander)

    def apply(variables, views):
        encoder, rest = variables
        y = loaded.module.apply(encoder, views, train=False)
        return {
            "representations": y,
            "embeddings": expander.apply(rest, y, train=False),
        }

    return apply


def _top(right, found) -> dict[str, float]:
    """Returns top-1 and, with more than five classes, top-5."""
    named = {"top-1": float(right[0]), "top-5": float(right[1])}
    return named if found.classes > 5 else {"top-1": named["top-1"]}


def _finish(protocol, workdir, loaded, found, name, table, *, task="", notes=()):
    if not _is_first():
        return
    data = found.config.data
    results.write(
        workdir,
        name,
        protocol,
        table,
        data=data.dataset if data.name == "tfds" else data.path or data.name,
        tested=len(found.test),
        step=loaded.step,
        published=results.published(task or protocol.task, loaded.module, found),
        notes=notes,
    )

"""The tasks by name: what the program does once it knows its config."""

import dataclasses
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vicreg_jax import devices, evaluate, files, methods, report, train
from vicreg_jax.command import studies
from vicreg_jax.config import Config, Evaluation, Study
from vicreg_jax.data import preparing
from vicreg_jax.data.index_cache import IndexCache
from vicreg_jax.data.source import describe
from vicreg_jax.data.sources.load import load_splits
from vicreg_jax.evaluate import gallery
from vicreg_jax.evaluate import tasks as evaluations
from vicreg_jax.refusals import Diverged, Refusal
from vicreg_jax.report import comparison, listing
from vicreg_jax.report import study as report_of_study
from vicreg_jax.run import workdirs
from vicreg_jax.run.progress import counted
from vicreg_jax.train import replaying
from vicreg_jax.weights import export, hub, loading

__all__ = [
    "compare",
    "judge",
    "list_runs",
    "prepare",
    "pretrain",
    "replay",
    "run",
    "study",
    "write_export",
    "write_report",
]


def pretrain(config: Config, workdir: Path) -> None:
    """Trains, then prints the table of few-label probes if the config asks for it."""
    if not config.evaluate.draws:
        train.run(config, workdir)
        return
    evaluate.check_installed()
    splits = load_splits(config.data, seed=config.seed, cache=IndexCache(workdir))
    evaluate.check(splits, config)
    trained = train.run(config, workdir)
    encoders = {
        "untrained encoder": train.untrained(config),
        methods.named(config.method).title: trained.encoder,
    }
    table = evaluate.few_labels(splits, encoders, config)
    if jax.process_index() == 0:  # all have computed it, with all devices
        evaluate.save(table, workdir / "few_labels.json")
        evaluate.show(table)


def prepare(config: Config, workdir: Path) -> None:
    """Writes a data set into the workdir as ArrayRecord files."""
    _need_one_process("a prepared data set")
    images = load_splits(config.data, seed=config.seed).train
    if images.names is None:
        raise Refusal(
            f"config.data.name {config.data.name!r} gives arrays, which are read as"
            " they are; the task prepare is for image files"
        )
    print(f"preparing {describe(images)} in {workdir}", file=sys.stderr)
    with workdirs.held(workdir), counted("preparing", len(images)) as done:
        preparing.prepare(
            images,
            workdir,
            **dataclasses.asdict(config.prepare),
            progress=lambda count, total: done(count),
        )
    print(
        f"{workdir} is prepared; train with --config.data.name=prepared"
        f" --config.data.path={workdir}",
        file=sys.stderr,
    )


def judge(config: Evaluation, workdir: Path, *, name: str) -> None:
    """Evaluates an encoder; `name` is the recipe's, for the result."""
    if config.task not in ("linear", "finetune"):
        # Others save what they have as they go. Of several processes jax would keep the
        # signal, for those that ask it whether to stop.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    evaluations.run(config, workdir, name=name)


def write_report(config: Evaluation, workdir: Path) -> None:
    """Writes the page of a run into its folder."""
    _need_one_process("a report")
    report.check_installed()
    print(f"reporting on {workdir}", file=sys.stderr)
    page = report.write(workdir, gallery=gallery.of_run(workdir))
    print(f"{page} is written; open it in a browser", file=sys.stderr)


def compare(config: Evaluation, workdir: Path) -> None:
    """Writes the page that compares runs into the workdir."""
    _need_one_process("a comparison")
    report.check_installed()
    comparison.read(config.runs)  # refuses them before a folder is made
    with workdirs.held(workdir):
        page = report.compare(config.runs, workdir / "comparison.html")
    print(f"{page} is written; open it in a browser", file=sys.stderr)


def study(config: Study, workdir: Path) -> None:
    """Trains the runs of a study that have not finished, and writes its table."""
    _need_one_process("a study")
    report.check_installed()
    planned = studies.plan(config, workdir)
    found = {run.folder: studies.finished(run) for run in planned}
    table = ""
    with workdirs.held(workdir):
        # Runs of a row compile alike.
        if not (jax.config.jax_compilation_cache_dir or files.in_bucket(workdir)):
            jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
        for i, run in enumerate(planned, 1):
            if found[run.folder] is None:
                print(f"run {i} of {len(planned)}: {run.folder}", file=sys.stderr)
                diverged = False
                try:
                    pretrain(run.config, run.folder)
                    for name, evaluation in run.evaluations.items():
                        judge(evaluation, run.folder / "eval" / name, name=name)
                except Diverged as error:  # a result, of a row of a study
                    print(f"it diverged: {error}", file=sys.stderr)
                    diverged = True
                studies.remember(run, diverged=diverged)
                found[run.folder] = studies.finished(run)
            runs = [found[x.folder] for x in planned if found[x.folder]]
            table = report_of_study.write(config, runs, workdir)
    print(table)
    print(f"{workdir / 'study.html'} is written; open it in a browser", file=sys.stderr)


def list_runs(config: Evaluation, workdir: Path) -> None:
    """Prints the runs in a folder, and in the folders within."""
    listing.show(workdir, by=config.by)


def write_export(config: Evaluation, workdir: Path) -> None:
    """Writes an encoder for others, and checks what they would compute with it."""
    _need_one_process("an export")
    if config.export.hub and files.in_bucket(workdir):
        raise Refusal(
            f"an export is pushed from a disk, by --config.export.hub; got {workdir}"
        )
    devices.mesh()
    encoder = loading.load(config.checkpoint, stem=config.model.stem)
    options = config.export
    size = options.image_size or encoder.known_size()
    encoder = dataclasses.replace(encoder, image_size=size)
    print(f"exporting {encoder.source} to {workdir}", file=sys.stderr)
    with workdirs.held(workdir):
        export.write(encoder, workdir, formats=options.formats)
    shape = (4, size, size, encoder.channels)
    images = np.random.default_rng(config.seed).normal(size=shape).astype(np.float32)
    export.show(export.agreement(encoder, workdir, images), formats=options.formats)
    if options.hub:
        print(hub.push(workdir, options.hub), file=sys.stderr)


def replay(config: Evaluation, workdir: Path) -> None:
    """Computes a step of a run again, and prints what it finds."""
    _need_one_process("a replay")
    step = config.step
    if config.batch:
        workdir, step = replaying.of_batch(config.batch)
    replaying.show(workdir, train.replay(workdir, step))


TASKS: dict[str, Callable[[Any, Path], None]] = {
    "pretrain": pretrain,
    "prepare": prepare,
    "export": write_export,
    "report": write_report,
    "compare": compare,
    "study": study,
    "ls": list_runs,
    "replay": replay,
}


def run(config: Config | Evaluation | Study, workdir: str | None, *, name: str) -> None:
    """Does the task of a config.

    Args:
      workdir: by default runs/NAME; of an evaluation of a run RUN/eval/NAME.
      name: of the recipe.
    """
    folder = Path("runs") if config.task == "ls" else Path("runs", name)
    if config.task in ("report", "replay") and not (workdir or config.batch):
        raise Refusal(f"--workdir is missing: the folder of the run to {config.task}")
    if config.task in evaluations.TASKS:
        trained = files.expanded(config.checkpoint)
        if (trained / "config.json").is_file():
            folder = trained / "eval" / name
    folder = files.expanded(workdir) if workdir else folder
    if config.task in evaluations.TASKS:
        judge(config, folder, name=name)
    else:
        TASKS[config.task](config, folder)


def _need_one_process(article):
    if jax.process_count() > 1:
        raise Refusal(
            f"one process makes {article}, and jax.distributed has"
            f" {jax.process_count()}; start it once, or set JAX_NUM_PROCESSES=1"
        )

"""The command line: flags, refusals in one line, dispatch by task."""

import dataclasses
import re
import signal
import sys
import traceback
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from rich.console import Console
from rich.progress import Progress

from vicreg_jax import (
    checkpoint,
    devices,
    distributed,
    evaluate,
    export,
    fields,
    hub,
    protocol,
    report,
    train,
)
from vicreg_jax import config as configs
from vicreg_jax.data import shards
from vicreg_jax.data.sources import load_splits
from vicreg_jax.evaluate import tasks
from vicreg_jax.gallery import gallery

CONFIG = config_flags.DEFINE_config_file("config", None, "File with a get_config().")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; by default runs/NAME of the config file."
)
USAGE = (
    "python -m vicreg_jax.main --config=configs/digits.py [--workdir=DIR]"
    " [--config.data.batch_size=256 ...]"
)


def pretrain(config: configs.Config, workdir: Path) -> None:
    """Trains, then prints the table of few-label probes if the config asks for it."""
    if not config.evaluate.draws:
        train.run(config, workdir)
        return
    evaluate.check_installed()
    splits = load_splits(config.data, seed=config.seed)
    evaluate.check(splits, config)
    trained = train.run(config, workdir, source=splits.train)
    encoders = {
        "untrained encoder": train.untrained(config),
        "VICReg": trained.variables,
    }
    table = evaluate.few_labels(splits, trained.encoder, encoders, config)
    if jax.process_index() == 0:  # all have computed it, with all devices
        evaluate.save(table, workdir / "few_labels.json")
        evaluate.show(table)


def prepare(config: configs.Config, workdir: Path) -> None:
    """Writes a data set into the workdir as ArrayRecord files."""
    images = load_splits(config.data, seed=config.seed).train
    if images.names is None:
        raise ValueError(
            f"config.data.name {config.data.name!r} gives arrays, which are read as"
            " they are; the task prepare is for image files"
        )
    with Progress(*Progress.get_default_columns(), console=Console(stderr=True)) as bar:
        task = bar.add_task("preparing", total=len(images))
        shards.prepare(
            images,
            workdir,
            **dataclasses.asdict(config.prepare),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print(
        f"{workdir} is prepared; train with --config.data.name=prepared"
        f" --config.data.path={workdir}",
        file=sys.stderr,
    )


TASKS = {"pretrain": pretrain, "prepare": prepare}


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    if distributed.start():
        distributed.check_devices()
    name = Path(flags.FLAGS["config"].config_filename).stem
    if CONFIG.value.get("task") in protocol.READS:
        judge(protocol.parse(CONFIG.value), name)
        return
    config = configs.parse(CONFIG.value)
    workdir = Path(WORKDIR.value or f"runs/{name}").expanduser()
    TASKS[config.task](config, workdir)


def judge(given: protocol.Protocol, name: str) -> None:
    """Evaluates, exports or reports what was trained.

    An evaluation's workdir is by default a folder of the run.
    """
    if given.task in ("report", "export") and jax.process_count() > 1:
        article = "an export" if given.task == "export" else "a report"
        raise ValueError(
            f"one process makes {article}, and jax.distributed has"
            f" {jax.process_count()}; start it once, or set JAX_NUM_PROCESSES=1"
        )
    if given.task == "report":
        write_report(given)
        return
    if given.task == "export":
        write_export(given, Path(WORKDIR.value or f"runs/{name}").expanduser())
        return
    if given.task not in ("linear", "finetune"):
        # Others save what they have as they go. Of several processes jax would keep the
        # signal, for those that ask it whether to stop.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    run = Path(given.checkpoint).expanduser()
    beside = run / "eval" / name if (run / "config.json").is_file() else f"runs/{name}"
    tasks.run(given, Path(WORKDIR.value or beside).expanduser(), name=name)


def write_report(given: protocol.Protocol) -> None:
    """Writes the page of a run into its folder."""
    if not WORKDIR.value:
        raise ValueError("--workdir is missing: the folder of the run to report on")
    run = Path(WORKDIR.value).expanduser()
    report.figures.check_installed()
    page = report.write(run, gallery=gallery(run))
    print(f"{page} is written; open it in a browser", file=sys.stderr)


def write_export(given: protocol.Protocol, folder: Path) -> None:
    """Writes an encoder for others, and checks what they would compute with it."""
    devices.mesh()
    loaded, options = checkpoint.load(given.checkpoint), given.export
    size = loaded.config.data.image_size if loaded.config else 224
    size = options.image_size or size
    how = dict(image_size=size, mean=loaded.mean, std=loaded.std)
    export.write(loaded, folder, formats=options.formats, **how)
    shape = (4, size, size, len(loaded.mean))
    images = np.random.default_rng(given.seed).normal(size=shape).astype(np.float32)
    export.show(export.agreement(loaded, folder, images), formats=options.formats)
    if options.hub:
        print(hub.push(folder, options.hub), file=sys.stderr)


def parse_flags(argv: list[str]) -> list[str]:
    """Returns what absl leaves of argv; raises in one line where it is wrong."""
    file = None
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        override = re.match(r"--?config\.([\w.]+)", word)
        if override:
            fields.check_name(override[1], [configs.Config, protocol.Protocol])
        if re.match("--?config(=|$)", word):
            file = word.partition("=")[2] or following
    if file is None and not any("help" in word for word in argv):
        raise ValueError(f"--config is missing; usage: {USAGE}")
    if file:
        path = Path(file.partition(":")[0])
        if not path.is_file():
            raise ValueError(f"--config: there is no file {str(path)!r}")
        # So that a config finds its base, `from configs import ...`, from any folder.
        sys.path.append(str(path.resolve().parent.parent))
    try:
        rest = flags.FLAGS(argv)
        if not isinstance(CONFIG.value, ConfigDict):
            raise TypeError("get_config() returned no ConfigDict")
    except flags.Error as error:
        first, *others = [x.strip() for x in str(error).splitlines() if x.strip()]
        reason = f"{first} {others[-1]}" if others else first
        raise ValueError(f"{reason}; usage: {USAGE}") from error
    except (AttributeError, KeyError, TypeError, ImportError, SyntaxError) as error:
        raise ValueError(
            f"--config={file}: {type(error).__name__}: {error}; a config file has a"
            " function get_config() that returns a ConfigDict with every field that is"
            " overridden"
        ) from error
    if len(rest) > 1:
        raise ValueError(f"expected --flag=value; got {rest[1]!r}; usage: {USAGE}")
    return rest


def is_refusal(error: Exception) -> bool:
    """Tells a message to the user from a defect: this package itself raised it."""
    expected = ValueError | OSError | ModuleNotFoundError | FloatingPointError
    frames = traceback.extract_tb(error.__traceback__)
    home = str(Path(__file__).parent)
    return isinstance(error, expected) and frames[-1].filename.startswith(home)


def console() -> None:
    """Runs `main`; a refusal is one line on standard error and exit status 2."""
    try:
        app.run(main, flags_parser=parse_flags)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        status = 2 if is_refusal(error) else 1
        if status == 2:
            sys.stderr.write(f"vicreg_jax: {error}\n")  # in one piece: others may write
        else:
            traceback.print_exc()
        distributed.leave(status)


if __name__ == "__main__":
    console()

"""The folder of a run: whose it is, and what is written there besides metrics."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax

from vicreg_jax import files
from vicreg_jax.config import Config, Evaluation, fields
from vicreg_jax.devices import processes
from vicreg_jax.refusals import NotFound, Refusal, Unusable
from vicreg_jax.run import code, json_lines
from vicreg_jax.run.lock import Lease, Lock

__all__ = [
    "Claimed",
    "agree",
    "claimed",
    "config_of_run",
    "held",
    "list_broken",
    "read_config",
    "write_config",
]


class Claimed(NamedTuple):
    """A workdir that this process, or the first of several, may write into."""

    path: Path | files.Place
    before: Config | Evaluation | None  # of what it continues


def agree(workdir: str | os.PathLike, config: Config | Evaluation) -> None:
    """Raises Refusal on every process where they have not the same to do."""
    if jax.process_count() == 1:
        return
    given = {f"config.{name}": value for name, value in fields.flat(config).items()}
    on_disk = not files.in_bucket(workdir)
    here = {
        "the workdir": os.path.abspath(workdir) if on_disk else str(workdir),
        "the version of jax": jax.__version__,
    }
    processes.agree(given | here | {"the code of vicreg_jax": code.of_package()})


@contextlib.contextmanager
def held(workdir: str | os.PathLike) -> Iterator[Path]:
    """Gives a workdir, created, that no other process writes into meanwhile.

    Of several processes (`jax.distributed`) each makes the same call.

    Raises:
      Refusal: it is in another kind of bucket than gs:// and s3://, or another process
        holds it.
      Unusable: it cannot be made or written to.
    """
    if elsewhere := files.elsewhere(workdir):
        raise Refusal(
            "the workdir must be a folder on a disk, of a mounted bucket perhaps, or"
            f" gs://BUCKET/FOLDER or s3://BUCKET/FOLDER; got {elsewhere}"
        )
    workdir = files.expanded(workdir)
    with contextlib.ExitStack() as until:
        with processes.all_or_none(Refusal, of=Refusal):
            try:
                workdir.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise Unusable(
                    f"the workdir {workdir} cannot be made: {error.strerror}"
                ) from error
            if jax.process_index() == 0:
                kind = Lease if files.in_bucket(workdir) else Lock
                until.enter_context(kind(workdir))
                files.remove_drafts(workdir)
        yield workdir


@contextlib.contextmanager
def claimed(
    workdir: str | os.PathLike, config: Config | Evaluation
) -> Iterator[Claimed]:
    """Gives a workdir for this config: see `held`.

    Raises:
      Refusal: as `held`, or it holds another run.
      Unusable: as `held`, or its config.json is missing or damaged.
    """
    with held(workdir) as path:
        with processes.all_or_none(Refusal, of=Refusal):
            before = config_of_run(path, type(config))
            differences = before.differences(config) if before else []
            if differences:
                raise Refusal(
                    f"{path} holds another run: {'; '.join(differences)}. Choose"
                    " another --workdir, or give the old values to continue it"
                )
        yield Claimed(path, before)


def config_of_run(
    workdir: Path, kind: type[Config | Evaluation]
) -> Config | Evaluation | None:
    """Returns the config of what was begun in a folder, None where nothing was.

    Raises:
      Unusable: config.json is missing or damaged.
    """
    path = workdir / "config.json"
    begun = any(workdir.glob("checkpoints/[0-9]*"))
    begun = begun or _holds(workdir / "metrics.jsonl")
    begun = begun or any((workdir / x).exists() for x in ("result.json", "features"))
    if not begun:
        return None
    if not path.exists():
        raise Unusable(f"{workdir} holds a run, but its config.json is missing")
    return read_config(workdir, kind)


def _holds(path):
    """Tells whether there is a file, and something in it."""
    try:
        return bool(files.read(str(path), 0, 1))
    except NotFound:
        return False


def read_config(workdir: Path, kind: type[Config | Evaluation] = Config) -> Any:
    """Returns the config that a run, or an evaluation, has left in its folder.

    Raises:
      NotFound: there is no config.json.
      Unusable: it is damaged, or no such config.
    """
    path = workdir / "config.json"
    content = files.read_json(path, {})
    try:
        return kind.parse(content)
    except Refusal as error:
        raise Unusable(f"{path}: {error}") from error


def write_config(workdir: Path, config: Config | Evaluation) -> None:
    """Writes config.json, whole or not at all. Raises: as `files.write`."""
    files.write_json(workdir / "config.json", asdict(config))


def list_broken(source: Any, workdir: Path, note: Callable[[str], None]) -> None:
    """Adds the files that had to be replaced to bad_examples.jsonl, each once.

    Of several processes each has a file for those that it met.

    Raises:
      Unusable: the file cannot be read or written.
    """
    broken = source.broken
    if not broken:
        return
    number = jax.process_index()
    path = workdir / f"bad_examples{f'_{number}' if number else ''}.jsonl"
    known, damaged = json_lines.read(path, lambda x: isinstance(x.get("name"), str))
    names = {line["name"] for line in known}
    for i in sorted(broken):
        if (name := str(source.names[i])) not in names:
            known.append({"name": name, "reason": broken[i]})
    json_lines.write(path, known)
    more = f"; {damaged} damaged lines of it are dropped" if damaged else ""
    note(f"{len(broken)} images could not be read; {path} lists them{more}")

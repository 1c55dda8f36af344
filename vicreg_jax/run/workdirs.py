"""The folder of a run: whose it is, and what is written there besides metrics."""

import os
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from vicreg_jax import files
from vicreg_jax.config import Config, Evaluation
from vicreg_jax.refusals import Refusal, Unusable
from vicreg_jax.run import json_lines

__all__ = ["claim", "list_broken", "read_config", "write_config"]


def claim(workdir: str | os.PathLike, config: Config | Evaluation) -> Path:
    """Returns the workdir, created, for this config.

    Raises:
      Refusal: it is in a bucket, or holds another run.
      Unusable: it cannot be made, or its config.json is missing or damaged.
    """
    if re.match(r"\w{2,}:/", str(workdir)):
        whole = re.sub(":/+", "://", str(workdir), count=1)  # a Path has lost a slash
        raise Refusal(
            f"the workdir must be a folder, of a mounted bucket perhaps; got {whole}"
        )
    workdir = files.expanded(workdir)
    try:
        old = _config_of_run(workdir, type(config))
        workdir.mkdir(parents=True, exist_ok=True)
    except Unusable:
        raise
    except OSError as error:
        raise Unusable(
            f"the workdir {workdir} cannot be made: {error.strerror}"
        ) from error
    differences = old.differences(config) if old else []
    if differences:
        raise Refusal(
            f"{workdir} holds another run: {'; '.join(differences)}. Choose another"
            " --workdir, or give the old values to continue it"
        )
    return workdir


def _config_of_run(workdir, kind):
    """Returns the config of what was begun in a folder, None where nothing was."""
    path, record = workdir / "config.json", workdir / "metrics.jsonl"
    begun = any(workdir.glob("checkpoints/[0-9]*"))
    begun = begun or (record.exists() and record.stat().st_size > 0)
    begun = begun or any((workdir / x).exists() for x in ("result.json", "features"))
    if not begun:
        return None
    if not path.exists():
        raise Unusable(f"{workdir} holds a run, but its config.json is missing")
    return read_config(workdir, kind)


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

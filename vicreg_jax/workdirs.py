"""The folder of a run: whose it is, and what is written there besides metrics."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from vicreg_jax import config as configs
from vicreg_jax.config import Config
from vicreg_jax.protocol import Protocol


def claim(
    workdir: str | os.PathLike, config: Config | Protocol, *, schema: Any = configs
) -> Path:
    """Returns the workdir, created, for this config; refuses one of another run.

    Args:
      schema: the module of the config, `config` or `protocol`.
    """
    if re.match(r"\w{2,}:/", str(workdir)):  # a Path has lost the second slash
        raise ValueError(
            f"the workdir must be a folder, of a mounted bucket perhaps; got {workdir}"
        )
    workdir = Path(workdir).expanduser()
    path, record = workdir / "config.json", workdir / "metrics.jsonl"
    begun = any(workdir.glob("checkpoints/[0-9]*"))
    begun = begun or (record.exists() and record.stat().st_size > 0)
    begun = begun or any((workdir / x).exists() for x in ("result.json", "features"))
    if path.exists() and begun:
        try:
            old = schema.parse(json.loads(path.read_text()))
        except ValueError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        differences = schema.differences(old, config)
        if differences:
            raise ValueError(
                f"{workdir} holds another run: {'; '.join(differences)}. Choose another"
                " --workdir, or give the old values to continue it"
            )
    elif begun:
        raise ValueError(f"{workdir} holds a run, but its config.json is missing")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"the workdir {workdir} cannot be made: {error.strerror}"
        ) from error
    return workdir


def write_config(workdir: Path, config: Config | Protocol) -> None:
    """Writes config.json, whole or not at all."""
    write_json(workdir / "config.json", asdict(config))


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(draft, path)


def list_broken(source: Any, workdir: Path, note: Callable[[str], None]) -> None:
    """Adds the files that had to be replaced to bad_examples.jsonl, each once.

    Of several processes each has a file for those that it met.
    """
    broken = source.broken
    if not broken:
        return
    number = jax.process_index()
    path = workdir / f"bad_examples{f'_{number}' if number else ''}.jsonl"
    known = set()
    if path.exists():
        known = {json.loads(line)["name"] for line in path.read_text().splitlines()}
    with path.open("a") as file:
        for i in sorted(broken):
            name = str(source.names[i])
            if name not in known:
                line = {"name": name, "reason": broken[i]}
                file.write(json.dumps(line) + "\n")
    note(f"{len(broken)} images could not be read; {path} lists them")

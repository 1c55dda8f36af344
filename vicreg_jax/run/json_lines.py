"""Files of JSON lines: read in spite of damage, appended, rewritten; none is its own.

A process that is killed leaves half a line, a disk that fails leaves other bytes.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vicreg_jax import files
from vicreg_jax.refusals import NotFound

__all__ = ["append", "read", "write"]


def read(
    path: Path, is_usable: Callable[[dict[str, Any]], bool]
) -> tuple[list[dict[str, Any]], int]:
    """Returns the usable lines, and how many others there are; where no file is, none.

    Args:
      is_usable: tells whether an object has what will be asked of it.

    Raises:
      Unusable: the file cannot be read.
    """
    try:
        content = files.read(str(path))
    except NotFound:
        return [], 0
    found = [_parsed(text) for text in content.splitlines()]
    usable = [x for x in found if isinstance(x, dict) and is_usable(x)]
    return usable, len(found) - len(usable)


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line, which is on disk afterwards.

    Raises:
      Unusable: the disk is full, or the file cannot be written.
    """
    with files.writing(path), path.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def write(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Replaces the file, whole or not at all. Raises: as `append`."""
    files.write(path, "".join(json.dumps(line) + "\n" for line in lines))


def _parsed(text):
    try:
        return files.parse_json(text)
    except ValueError:
        return None

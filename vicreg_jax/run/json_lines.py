"""Files of JSON lines: read in spite of damage, grown, rewritten; none is its own.

A process that is killed leaves half a line, a disk that fails leaves other bytes.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vicreg_jax import files
from vicreg_jax.refusals import NotFound

__all__ = ["Lines", "append", "read", "write"]

SECONDS = 10.0  # between two writes of a file in a bucket, at least


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


class Lines:
    """A file that grows by lines, which are written at once where that is cheap.

    In a bucket nothing can be appended, so that the whole file is written anew: every
    10 seconds at most, and by `flush`. What it lacks after a kill is of steps that no
    checkpoint has, if there is a `flush` before each.

    Args:
      path: of the file, perhaps in a bucket.
      lines: what it is to hold; on a disk it does so already.
    """

    def __init__(self, path: Path | files.Place, lines: Sequence[dict[str, Any]]):
        self._path, self.lines = path, list(lines)
        self._late, self._written = False, time.monotonic()

    def append(self, line: dict[str, Any]) -> None:
        """Adds a line. Raises: as `append`."""
        self.lines.append(line)
        if files.in_bucket(self._path):
            self.rewrite()
        else:
            append(self._path, line)

    def rewrite(self) -> None:
        """Writes all lines once that is due, as some changed. Raises: as above."""
        self._late = True
        recent = time.monotonic() < self._written + SECONDS
        if not (recent and files.in_bucket(self._path)):
            self.flush()

    def flush(self) -> None:
        """Writes what is not written yet. Raises: as above."""
        if self._late:
            write(self._path, self.lines)
            self._late, self._written = False, time.monotonic()


def _parsed(text):
    try:
        return files.parse_json(text)
    except ValueError:
        return None

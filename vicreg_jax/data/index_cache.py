"""What takes long to find out about a data set, kept in a workdir for later starts."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from vicreg_jax import files
from vicreg_jax.refusals import NotFound, Unusable

__all__ = ["IndexCache"]

FOLDER = "data_index"
SEAL = "seal"


class IndexCache:
    """Arrays that are found out once, and read ever after.

    Nothing is written before `write`, when the workdir is known to be one's own. What
    is damaged is found out again.

    Args:
      workdir: of a run or an evaluation, on a disk or in a bucket; None keeps nothing.

    Attributes:
      folder: where it is kept, or None.
    """

    def __init__(self, workdir: Path | files.Place | str | None = None):
        self.folder = None if workdir is None else files.expanded(workdir) / FOLDER
        self._new = {}

    def arrays(
        self, key: Sequence[Any], make: Callable[[], Mapping[str, np.ndarray]]
    ) -> Mapping[str, np.ndarray]:
        """Returns what `make` returns, or has returned for this key at another start.

        Args:
          key: JSON of all that the arrays depend on, such as names and versions.
        """
        text = json.dumps(key).encode()
        name = f"{files.digest(text)}.npz"
        if self.folder is not None:
            with suppress(NotFound, Unusable):
                found = files.read_npz(self.folder / name)
                seal = found.pop(SEAL, np.empty(0, np.uint8))
                if seal.tobytes() == _seal(text, found):
                    return found
        found = make()
        self._new[name] = {**found, SEAL: np.frombuffer(_seal(text, found), np.uint8)}
        return found

    def write(self) -> None:
        """Keeps what was found out; of several processes the first does.

        Raises:
          Unusable: the disk is full, or the folder cannot be written to.
          Unreachable: the bucket refuses, or does not answer.
        """
        import jax  # `prepare` reads the same sources without

        new, self._new = self._new, {}
        if jax.process_index():
            return
        for name, arrays in new.items():
            with files.writing(self.folder):
                self.folder.mkdir(exist_ok=True)
            files.write_npz(self.folder / name, arrays)


def _seal(key, arrays):
    parts = [np.ascontiguousarray(arrays[name]).reshape(-1) for name in sorted(arrays)]
    kinds = [[name, str(arrays[name].dtype), arrays[name].shape] for name in arrays]
    held = json.dumps([key.decode(), sorted(kinds)]).encode()
    return files.digest(held, *(x.view(np.uint8).data for x in parts)).encode()

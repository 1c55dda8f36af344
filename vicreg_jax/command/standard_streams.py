"""Standard output and error that never end a run; it decides nothing else.

Behind `| head -1` the reader leaves, a disk is full, or a launcher has closed them.
What cannot be shown is dropped then, and the task goes on.
"""

import io
import os
import sys

__all__ = ["keep"]


def keep() -> None:
    """Replaces both streams by such as drop what cannot be written.

    Those that somebody else has put there, such as a notebook or a test, stay.
    """
    for number, name, errors in (
        (1, "stdout", "replace"),  # ASCII has no ±
        (2, "stderr", "backslashreplace"),
    ):
        old = getattr(sys, name)
        if old is getattr(sys, f"__{name}__"):
            setattr(sys, name, _stream(number, old, errors))


class _Lasting(io.FileIO):
    """A file descriptor that leads nowhere once it cannot be written to."""

    def write(self, data):
        try:
            return super().write(data)
        except OSError:
            _lead_nowhere(self.fileno())
            return memoryview(data).nbytes


def _stream(number, old, errors):
    try:
        os.fstat(number)
    except OSError:  # closed: the next file to be opened would get its number
        _lead_nowhere(number)
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(number, "w", closefd=False)),
        encoding=old.encoding if old else "utf-8",
        errors=errors,
        line_buffering=number == 2 or bool(old and old.line_buffering),
        write_through=bool(old and old.write_through),
    )


def _lead_nowhere(number):
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)

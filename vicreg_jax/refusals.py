"""Refusals: what the user's input does not allow, each said in one line.

`main` shows them as one line and exits with status 2, "do not start again". Every other
error is a defect and shows its traceback.
"""

import importlib
from types import ModuleType

__all__ = [
    "Diverged",
    "NotFound",
    "NotInstalled",
    "Refusal",
    "Unusable",
    "one_line",
    "printable",
    "require",
]


class Refusal(ValueError):
    """Bad input: the message says what was found, what was expected and what to do.

    It is one line, whatever the names of files in it. The kinds below are also the
    built-in errors that a caller in Python expects.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class NotFound(Refusal, FileNotFoundError):
    """There is no such file, folder or bucket."""


class NotInstalled(Refusal, ModuleNotFoundError):
    """A package that only some people need is missing."""


class Unusable(Refusal, OSError):
    """A file, disk, bucket or port is there and cannot be used."""


class Diverged(Refusal, FloatingPointError):
    """Loss or gradient stay not finite: a lower rate may help, a restart does not."""


def require(module: str, purpose: str, *, install: str) -> ModuleType:
    """Returns an imported module of a package that only some people need.

    Args:
      module: its full name, such as "safetensors.numpy".
      purpose: what it is for, the subject of the message: "reading x.safetensors".
      install: what pip is to install: a package, or "vicreg_jax[EXTRA]".

    Raises:
      NotInstalled: one line that names what is missing and the command to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        raise NotInstalled(
            f"{purpose} needs {missing}, which is not installed; run: pip install"
            f' "{install}"'
        ) from error


def one_line(error: BaseException, most: int = 300) -> str:
    """Returns what an error says in one short line; its kind if it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def printable(text: str) -> str:
    """Returns a text with escapes for what is no part of a line: a newline as \\n.

    Names of files may have any bytes; those that are no UTF-8 become \\udc80 or so.
    """
    return "".join(
        x if x.isprintable() else x.encode("unicode_escape").decode() for x in text
    )

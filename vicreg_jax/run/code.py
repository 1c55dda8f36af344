"""What the code of a run is, by digests: of this package, of a class of the user's."""

import ast
import functools
import inspect
import textwrap
from pathlib import Path

import vicreg_jax
from vicreg_jax import files

__all__ = ["of_class", "of_package"]


@functools.cache
def of_package() -> str:
    """Returns a digest of the modules of vicreg_jax as they lie on this disk."""
    root = Path(vicreg_jax.__file__).parent
    parts = []
    for path in sorted(root.rglob("*.py")):
        parts += [path.relative_to(root).as_posix().encode(), path.read_bytes()]
    return files.digest(*parts)


def of_class(kind: type) -> str:
    """Returns a digest of what a class and its bases compute, "" of this package's own.

    Layout, comments and docstrings do not count; nor does what it calls elsewhere. Of
    code that is in no file or cell, the names alone.
    """
    own = [x for x in kind.__mro__[:-1] if not x.__module__.startswith("vicreg_jax.")]
    return files.digest(*(_computes(x).encode() for x in own)) if own else ""


def _computes(kind):
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, SyntaxError, TypeError):
        return kind.__qualname__
    for node in ast.walk(tree):
        kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)

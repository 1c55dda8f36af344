"""The words of a command line, sorted; and what --help says about them."""

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from vicreg_jax.command import recipes

__all__ = ["USAGE", "Words", "of_program", "of_recipe", "sort"]


USAGE = "vicreg-jax --config=NAME [--workdir=DIR] [--config.FIELD=VALUE ...]"
_PROGRAM = f"""{USAGE}

NAME is one of the recipes below, or the path of a config file of your own. The workdir
is by default runs/NAME, of an evaluation RUN/eval/NAME; the same command again goes on
with what is there. For the fields of a recipe add --help:

  vicreg-jax --config=digits --help
"""
_RECIPE = f"""
{USAGE}

Fields, with the values that they have unless you give others:
"""


class Words(NamedTuple):
    """A command line, sorted."""

    config: str  # name or path, perhaps with :VARIANT; "" if there is none
    changes: dict[str, str]  # dotted field -> its last word, --config.epochs=5
    rest: list[str]


def sort(argv: Sequence[str]) -> Words:
    """Sorts the words after the program's name."""
    config, changes, rest = "", {}, []
    words = list(argv)
    while words:
        word = words.pop(0)
        found = re.match(r"--?(no)?config(?:\.([\w.]+))?(=|$)", word)
        if not found:
            rest.append(word)
            continue
        no, name, given = found.groups()
        if not (no or given) and words and not re.match("--?[a-z]", words[0]):
            word = f"{word}={words.pop(0)}"
        if name:
            # A group replaces what was said of its fields; the order is what counts.
            overruled = [x for x in changes if f"{x}.".startswith(f"{name}.")]
            for other in overruled:
                del changes[other]
            changes[name] = word
        else:
            config = word.partition("=")[2]
    return Words(config, changes, rest)


def of_program() -> str:
    """Returns the usage, and the first line of each recipe."""
    listed = (
        f"  {name:22}  {recipes.read(name).doc.splitlines()[0]}"
        for name in recipes.names()
    )
    return "\n".join([_PROGRAM, *listed])


def of_recipe(recipe: recipes.Recipe) -> str:
    """Returns what a recipe says of itself, and its fields with their values."""
    comments = dict(_comments(type(recipe.config)))
    listed = []
    for name, value in recipes.values(recipe.config).items():
        text = str(tuple(value) if isinstance(value, list) else value)
        if not isinstance(value, str):
            text = text.replace(", ", ",").replace(": ", ":")  # one word
        word = f"  --config.{name}={text}"
        listed.append(f"{word:44}  {comments.get(name, '')}".rstrip())
    return "\n".join([recipe.doc.rstrip(), _RECIPE, *listed])


def _comments(kind: type) -> Iterator[tuple[str, str]]:
    """Yields dotted names of a dataclass's fields, and what stands beside them."""
    sources = "".join(inspect.getsource(x) for x in reversed(kind.__mro__[:-1]))
    beside = dict(re.findall(r"^    (\w+): .*?  # (.*)$", sources, re.M))
    hints = typing.get_type_hints(kind)
    for name in (field.name for field in dataclasses.fields(kind)):
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            yield from ((f"{name}.{x}", comment) for x, comment in _comments(hint))
            continue
        options = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
        said = [" | ".join(filter(None, options)), beside.get(name)]
        yield name, "; ".join(filter(None, said))

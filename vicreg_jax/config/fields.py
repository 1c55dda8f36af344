"""Configs as trees of dataclasses: built, checked, compared; no field of its own."""

import dataclasses
import difflib
import json
import math
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar

from vicreg_jax.refusals import Refusal

__all__ = [
    "Distinct",
    "Finite",
    "Limit",
    "NotNegative",
    "Pair",
    "Positive",
    "Probability",
    "Seed",
    "Settings",
    "Some",
    "at_least",
    "at_most",
    "below",
    "between",
    "build",
    "check_name",
    "flat",
    "names",
]


class Limit(NamedTuple):
    """What a value must be, beside the type of its field: `Annotated[int, limit]`."""

    holds: Callable[[Any], bool]
    expected: str  # is said after the field's name


def at_least(least: float) -> Limit:
    return Limit(lambda x: x >= least, f"must be {least} or more")


def at_most(most: float) -> Limit:
    return Limit(lambda x: x <= most, f"must be {most} or less")


def below(bound: float) -> Limit:
    return Limit(lambda x: x < bound, f"must be below {bound}")


def between(least: float, most: float) -> Limit:
    return Limit(lambda x: least <= x <= most, f"must be between {least} and {most}")


LARGEST = 2**53  # of integers; a float has their every digit
T = TypeVar("T")
# None of these holds for nan, or for what is infinite.
Positive = Annotated[T, Limit(lambda x: 0 < x < math.inf, "must be positive")]
NotNegative = Annotated[T, Limit(lambda x: 0 <= x < math.inf, "must be zero or more")]
Probability = Annotated[T, between(0, 1)]
Finite = Annotated[T, Limit(math.isfinite, "must be finite")]
Seed = Annotated[NotNegative[int], below(2**32)]  # jax.random.key folds larger ones
Pair = Annotated[
    tuple[T, ...],
    Limit(lambda x: len(x) == 2 and x[0] <= x[1], "is a pair (least, most)"),
]
Some = Annotated[tuple[T, ...], Limit(len, "needs one value or more")]
Distinct = Annotated[
    Some[T], Limit(lambda x: len(set(x)) == len(x), "has a value twice")
]


class Settings:
    """A whole config: a tree of frozen dataclasses with limits beside their fields."""

    # How the names begin that may differ without making it another job.
    CHANGEABLE: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def parse(cls, given: Self | Mapping[str, Any]) -> Self:
        """Returns the config of a (nested) mapping; what it leaves out has its default.

        Raises:
          Refusal: a field that does not exist, of another type, or an impossible value;
            the message is one line that names it.

        >>> from vicreg_jax.config import Config
        >>> config = Config.parse({"epochs": 50, "data": {"batch_size": 256}})
        >>> config.epochs, config.data.batch_size, config.method
        (50, 256, 'vicreg')
        """
        config = given if isinstance(given, cls) else build(cls, given)
        _check(cls, config, "")
        for message in config.mistakes():
            raise Refusal(message)
        return config

    def mistakes(self) -> Iterator[str]:
        """Yields a line for each rule that several fields break together."""
        yield from ()

    def differences(self, new: "Settings") -> list[str]:
        """Returns a line for each field that makes `new` another job than this."""
        a, b = flat(self), flat(new)
        return [
            f"{name} was {a.get(name)}, is {b.get(name)}"
            for name in a | b
            if not name.startswith(self.CHANGEABLE) and a.get(name) != b.get(name)
        ]


def build(kind: type, given: Mapping[str, Any]) -> Any:
    """Returns the dataclass `kind` of a (nested) mapping, with no limits checked.

    Raises:
      Refusal: a field that does not exist, or is of another type; in one line.
    """
    return _build(kind, given, "", kind)


def flat(config: Any) -> dict[str, Any]:
    """Returns dotted field names and their values, tuples as lists like in JSON."""
    nested = json.loads(json.dumps(dataclasses.asdict(config)))
    return {
        f"{name}.{key}" if isinstance(value, dict) else name: entry
        for name, value in nested.items()
        for key, entry in (value.items() if isinstance(value, dict) else [("", value)])
    }


def names(kind: type) -> Iterator[str]:
    """Yields the dotted names of a dataclass's fields."""
    hints = typing.get_type_hints(kind)
    for name in (field.name for field in dataclasses.fields(kind)):
        if dataclasses.is_dataclass(hints[name]):
            yield from (f"{name}.{inner}" for inner in names(hints[name]))
        else:
            yield name


def check_name(name: str, known: Iterable[str]) -> None:
    """Refuses a name that is none of the known fields, and no group of them.

    Raises:
      Refusal: it is not; with the nearest name, or those that there are.
    """
    known = list(known)
    groups = {field.partition(".")[0] for field in known if "." in field}
    if name in known or name in groups:
        return
    group, _, last = name.rpartition(".")
    if group in groups:
        options = [f for f in known if f.startswith(f"{group}.")]
    else:
        options = [f for f in known if f.endswith(f".{last}")]
        options = options or [f for f in known if "." not in f] + sorted(groups)
    lasts = [field.rpartition(".")[2] for field in options]
    close = difflib.get_close_matches(last, lasts, n=1)
    if close:
        hint = f"did you mean config.{options[lasts.index(close[0])]}?"
    else:
        hint = f"there are {', '.join(options)}"
    raise Refusal(f"config.{name} is not a field; {hint}")


def _check(hint, value, name, shown=None):
    """Refuses what the limits in a type do not allow; `shown` is of the whole field."""
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    shown = value if shown is None else shown
    limits = ()
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint, include_extras=True)
        for field in dataclasses.fields(hint):
            inner = getattr(value, field.name)
            _check(hints[field.name], inner, f"{name}.{field.name}")
    elif kind is Annotated:
        hint, *limits = arguments
        _check(hint, value, name, shown)
    elif kind is Literal:
        options = ", ".join(filter(None, arguments))
        limits = [Limit(arguments.__contains__, f"must be one of {options}")]
    elif kind is tuple:
        for x in value:
            _check(arguments[0], x, name, shown)
    elif kind is dict:
        for key, x in value.items():
            _check(arguments[1], x, f"{name}.{key}")
    for limit in limits:
        if not limit.holds(value):
            raise Refusal(f"config{name} {limit.expected}; got {shown}")


def _build(kind, given, prefix, root):
    given = given.to_dict() if hasattr(given, "to_dict") else given
    if not isinstance(given, Mapping):
        name = f"config.{prefix}".rstrip(".")
        raise Refusal(f"{name} is a mapping of fields; got {given!r}")
    hints = typing.get_type_hints(kind)
    values = {}
    for name, value in given.items():
        check_name(f"{prefix}{name}", names(root))
        if name not in hints:
            raise Refusal(f"config.{prefix}{name}: give nested mappings, not dots")
        wanted = hints[name]
        if dataclasses.is_dataclass(wanted):
            values[name] = _build(wanted, value, f"{prefix}{name}.", root)
        else:
            values[name] = _converted(wanted, value, prefix + name)
    return kind(**values)


def _converted(wanted, value, name):
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is dict:
        if isinstance(value, Mapping):
            kind = arguments[1]
            return {k: _converted(kind, x, f"{name}.{k}") for k, x in value.items()}
        raise Refusal(f"config.{name} is a mapping of fields; got {value!r}")
    kind = type(arguments[0]) if origin is Literal else wanted
    expected = kind.__name__
    if origin is tuple:
        kind = arguments[0]
        if isinstance(value, list | tuple):
            try:
                return tuple(_converted(kind, x, name) for x in value)
            except Refusal:
                pass  # what follows names the whole value
        kind = type(typing.get_args(kind)[0]) if typing.get_args(kind) else kind
        expected = f"tuple of {kind.__name__}"
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) < LARGEST:
            return float(value)
        return math.inf if value > 0 else -math.inf
    elif isinstance(value, bool) == (kind is bool) and isinstance(value, kind):
        if kind is int and abs(value) >= LARGEST:
            raise Refusal(f"config.{name} must be between -{LARGEST} and {LARGEST}")
        if kind is str and "\0" in value:  # no path and no name has it
            raise Refusal(f"config.{name} has a null byte: {value!r}")
        return value
    raise Refusal(f"config.{name} is of type {expected}; got {value!r}")

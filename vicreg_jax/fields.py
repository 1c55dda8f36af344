"""Configs as nested dataclasses: from mappings, named fields; no field of its own."""

import dataclasses
import difflib
import json
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


def build(kind: type, given: Mapping[str, Any]) -> Any:
    """Returns the dataclass `kind` of a (nested) mapping; the rest has its default.

    Raises:
      ValueError: a field that does not exist, or is of another type; in one line.
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


def differences(old: Any, new: Any, *, changeable: tuple[str, ...]) -> list[str]:
    """Returns a line for each field that differs and does not start like these."""
    a, b = flat(old), flat(new)
    fixed = (name for name in b if not name.startswith(changeable))
    return [
        f"{name} was {a[name]}, is {b[name]}" for name in fixed if a[name] != b[name]
    ]


def check_name(name: str, kinds: Sequence[type]) -> None:
    """Raises ValueError if no field or group of these dataclasses has this name."""
    known = list(dict.fromkeys(field for kind in kinds for field in flat(kind())))
    groups = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    groups -= set(known)
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
    raise ValueError(f"config.{name} is not a field; {hint}")


def each(
    values: Mapping[str, Any],
    names: Iterable[str],
    good: Callable[[Any], bool],
    expected: str,
) -> None:
    """Raises ValueError where one of the named values, or an element of it, is bad."""
    for name in names:
        found = values[name]
        for x in found if isinstance(found, list) else [found]:
            if not good(x):
                raise ValueError(f"config.{name} must be {expected}; got {found}")


def choices(values: Mapping[str, Any], known: Mapping[str, Sequence[str]]) -> None:
    """Raises ValueError where a named value is none of the known ones."""
    for name, options in known.items():
        each(values, [name], options.__contains__, f"one of {', '.join(options)}")


def _build(kind, given, prefix, root):
    if not isinstance(given, Mapping):
        given = given.to_dict() if hasattr(given, "to_dict") else given
    if not isinstance(given, Mapping):
        name = f"config.{prefix}".rstrip(".")
        raise ValueError(f"{name} is a mapping of fields; got {given!r}")
    hints = typing.get_type_hints(kind)
    values = {}
    for name, value in given.items():
        check_name(prefix + name, [root])
        if name not in hints:
            raise ValueError(f"config.{prefix}{name}: give nested mappings, not dots")
        wanted = hints[name]
        if dataclasses.is_dataclass(wanted):
            values[name] = _build(wanted, value, f"{prefix}{name}.", root)
        else:
            values[name] = _converted(wanted, value, prefix + name)
    return kind(**values)


def _converted(wanted, value, name):
    if typing.get_origin(wanted) is tuple:
        kind = typing.get_args(wanted)[0]
        try:
            if isinstance(value, list | tuple):
                return tuple(_converted(kind, x, name) for x in value)
        except ValueError:
            pass  # what follows names the whole value
        kind = f"tuple of {kind.__name__}"
    elif typing.get_origin(wanted) is dict:
        return {k: _converted(float, x, f"{name}.{k}") for k, x in dict(value).items()}
    elif wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, bool) == (wanted is bool) and isinstance(value, wanted):
        return value
    else:
        kind = wanted.__name__
    raise ValueError(f"config.{name} is of type {kind}; got {value!r}")

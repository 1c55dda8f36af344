"""Recipes, the config files: found by name or path, read, overridden; not run."""

import dataclasses
import difflib
import importlib.util
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

import vicreg_jax
from vicreg_jax import files, methods
from vicreg_jax.config import Config, Study, fields
from vicreg_jax.config.evaluation import READS, Evaluation
from vicreg_jax.refusals import NotFound, Refusal, one_line

__all__ = ["Recipe", "changed", "find", "names", "override", "read", "values"]


# In an installed package they are in it, in a checkout beside it.
_PACKAGE = Path(vicreg_jax.__file__).parent
FOLDER = next(
    x for x in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if x.is_dir()
)


class Recipe(NamedTuple):
    name: str  # of the file, without folder and .py
    doc: str
    config: Config | Evaluation | Study  # whole, with no limits checked


def names() -> list[str]:
    """Returns the names of the recipes that come with the package."""
    files = (x.relative_to(FOLDER).with_suffix("") for x in FOLDER.rglob("*.py"))
    return sorted((str(x) for x in files), key=lambda x: ("/" in x, x))


def find(name: str) -> Path:
    """Returns the file of a recipe: its name, such as eval/knn, or the path of any.

    Raises:
      NotFound: there is none; in one line with the nearest name and all that there are.
      Refusal: it is a file of another kind.
    """
    here = files.expanded(name)
    if here.is_file():
        if here.suffix == ".py":
            return here
        raise Refusal(f"--config: {name!r} is no config file, whose name ends in .py")
    bare = name.removeprefix("configs/").removesuffix(".py")
    if bare in names():
        return FOLDER / f"{bare}.py"
    lasts = {x.rpartition("/")[2]: x for x in names()}
    close = difflib.get_close_matches(bare.rpartition("/")[2], lasts, n=1)
    hint = f"did you mean {lasts[close[0]]}? " if close else ""
    raise NotFound(
        f"--config: {name!r} is no file of yours and no recipe; {hint}There are"
        f" {', '.join(names())}"
    )


def read(text: str, *, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Returns a recipe over the defaults of its task and the weights of its method.

    Args:
      text: name or path, perhaps with :VARIANT, which its get_config is given.
      changes: of top-level fields, such as the method.

    Raises:
      Refusal: there is none, it does not run, or a field is wrong; in one line.
    """
    name, *variant = text.split(":", 1)
    path = find(name)
    try:
        module = _module(path)
        given = module.get_config(*variant)
        given = given.to_dict() if hasattr(given, "to_dict") else dict(given)
    except Exception as error:  # of code that is the user's
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise Refusal(
            f"--config={text}: {kind}{one_line(error)}; a config file has a function"
            " get_config() that returns a ConfigDict"
        ) from error
    task = given.get("task")
    kind = Evaluation if isinstance(task, str) and task in READS else Config
    kind = Study if task == "study" else kind
    config = fields.build(kind, given | dict(changes or {}))
    if kind is not Config:
        return Recipe(path.stem, module.__doc__ or "", config)
    own = given.get("method", Config.method)
    if config.method != own and given.get("loss") and "loss" not in (changes or {}):
        raise Refusal(
            f"--config.method={config.method}: the recipe {text} has weights for {own}"
            f" ({', '.join(f'{k} {x:g}' for k, x in given['loss'].items())}); write one"
            " of your own with those that you want"
        )
    weights = methods.named(config.method).weighed(config.loss)
    config = dataclasses.replace(config, loss=weights)
    return Recipe(path.stem, module.__doc__ or "", config)


def changed(text: str, given: Mapping[str, str]) -> Recipe:
    """Returns a recipe with some fields changed; no limits are checked.

    Args:
      text: see `read`. given: see `override`.

    Raises:
      Refusal: see `read` and `override`.
    """
    first = {  # what decides on other defaults
        name: given[name].partition("=")[2]
        for name in ("task", "method")
        if "=" in given.get(name, "")
    }
    recipe = read(text, changes=first)
    return recipe._replace(config=override(recipe.config, given))


def values(config: Config | Evaluation | Study) -> dict[str, Any]:
    """Returns dotted names and values of the fields that the config's task reads."""
    found = fields.flat(config)
    if config.task not in READS:
        return found
    groups = ("task", "seed", *READS[config.task])
    return {k: v for k, v in found.items() if k.partition(".")[0] in groups}


def override(
    config: Config | Evaluation | Study, given: Mapping[str, str]
) -> Config | Evaluation | Study:
    """Returns a config with some fields changed on the command line; no limits checked.

    Args:
      given: dotted name of a field -> the word that sets it: --config.epochs=5.

    Raises:
      Refusal: the config has no such field, or its task does not read it, or the value
        is of another type.
    """
    named = config.loss if isinstance(config, Config) else {}
    if isinstance(config, Config):  # any method can be given these, too
        zeros = dict.fromkeys([*methods.REGULARIZERS, *methods.SECOND], 0.0)
        config = dataclasses.replace(config, loss={**named, **zeros, **named})
    known, everything = values(config), fields.flat(config)
    for name in given:
        fields.check_name(name, everything)
        if not any(f"{x}.".startswith(f"{name}.") for x in known):
            raise Refusal(
                f"config.{name} is not read by the task {config.task}; it reads"
                f" {', '.join(READS[config.task]) or 'none'}"
            )
        if "=" not in given[name] and not isinstance(everything.get(name), bool):
            raise Refusal(f"config.{name} has no value; expected --config.{name}=VALUE")
    words = ["vicreg-jax", *given.values()]
    parsed = flags.FlagValues()
    flag = config_flags.DEFINE_config_dict(
        "config",
        ConfigDict(dataclasses.asdict(config)),
        flag_values=parsed,
        sys_argv=words,
    )
    try:
        parsed(words)
    except Exception as error:  # of the user's words; such as a KeyError of a group
        raise Refusal(one_line(error)) from error
    found = fields.build(type(config), flag.value)
    if isinstance(found, Config):
        said = {*named, *(name.removeprefix("loss.") for name in given)}
        loss = {name: x for name, x in found.loss.items() if x or name in said}
        found = dataclasses.replace(found, loss=loss)
    return found


def _module(path):
    """Returns a config file as a module, to which the recipes are `configs`."""
    own = [str(x) for x in path.resolve().parents if x.name == "configs"]
    package = types.ModuleType("configs")
    package.__path__ = [*own[:1], str(FOLDER)]  # a copy of theirs may lie elsewhere
    sys.modules["configs"] = package
    beside = str(path.resolve().parent.parent)  # a config may import its own kind
    if beside not in sys.path:
        sys.path.append(beside)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

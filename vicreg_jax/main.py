"""The command line: flags in, task out; a refusal is one line."""

import sys
import traceback
from collections.abc import Sequence

from absl import app, flags, logging

from vicreg_jax import devices
from vicreg_jax.command import recipes, standard_streams, tasks, usage
from vicreg_jax.devices import distributed, processes
from vicreg_jax.refusals import Refusal, one_line

__all__ = ["console"]

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")


def choose(words: usage.Words) -> recipes.Recipe:
    """Returns the recipe of a command line with its changes; no limits are checked.

    Raises:
      Refusal: what is wrong with them, in one line.
    """
    if not words.config:
        raise Refusal(
            f"--config is missing; usage: {usage.USAGE}; NAME is the path of a config"
            f" file or one of {', '.join(recipes.names())}"
        )
    return recipes.changed(words.config, words.changes)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Reads the flags that are not of the config."""
    try:
        left = flags.FLAGS(argv)
    except flags.Error as error:
        raise Refusal(f"{one_line(error)}; usage: {usage.USAGE}") from error
    if left[1:]:
        raise Refusal(f"expected --flag=value; got {left[1]!r}; usage: {usage.USAGE}")
    return left


def run(recipe: recipes.Recipe) -> None:
    """Does the task of a recipe."""
    logging.set_verbosity(logging.WARNING)
    several = distributed.start()
    with processes.all_or_none(Refusal, of=Refusal):
        config = recipe.config.parse(recipe.config)
    if several:
        devices.check_gpus()
    tasks.run(config, WORKDIR.value, name=recipe.name)


def console() -> None:
    """Runs the program; a refusal is one line on standard error and exit status 2."""
    standard_streams.keep()
    try:
        words = usage.sort(sys.argv[1:])
        asked = {"--help", "-help", "-h"} & set(words.rest)
        if asked and not words.config:
            print(usage.of_program())
            return
        recipe = choose(words)
        if asked:
            print(usage.of_recipe(recipe))
            return
        argv = [sys.argv[0], *words.rest]
        app.run(lambda _: run(recipe), argv=argv, flags_parser=parse_flags)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        status = 2 if isinstance(error, Refusal) else 1
        if status == 2:
            sys.stderr.write(f"vicreg_jax: {error}\n")  # in one piece: others may write
        else:
            traceback.print_exc()
        distributed.leave(status)


if __name__ == "__main__":
    console()

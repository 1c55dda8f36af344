"""What a study is told: which runs, how often, what of them is shown; no behaviour."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from vicreg_jax.config.fields import Distinct, Finite, Seed, Settings, Some

__all__ = ["Study"]


@dataclass(frozen=True)
class Study(Settings):
    """A change is written as on a command line, without --config.: epochs=5."""

    task: Literal["study"] = "study"
    recipe: str = "digits"  # that all runs start from, perhaps with :VARIANT
    changes: tuple[str, ...] = ()  # of all runs
    rows: tuple[Some[str], ...] = ()  # of the table: name, then changes
    # A row has a run for each of these changes and each seed: its mean is over both.
    variations: tuple[str, ...] = ()
    seeds: Distinct[Seed] = (0, 1, 2)
    evaluations: tuple[str, ...] = ()  # recipes, such as eval/knn, of every run
    columns: Some[str] = ("healthy", "embedding_std")  # values of a run, by name
    baseline: str = ""  # the row whose values are taken from the others', run by run
    published: dict[str, Finite[float]] = field(default_factory=dict)  # row -> number
    published_as: str = ""  # what that number is

    def named(self) -> dict[str, tuple[str, ...]]:
        """Returns the changes of each row by its name."""
        return {name: changes for name, *changes in self.rows}

    def mistakes(self) -> Iterator[str]:
        named = self.named()
        if not named:
            yield (
                "config.rows is empty; a study has a row for each thing to compare,"
                " such as c.rows = (('vicreg',), ('simsiam', 'method=simsiam'))"
            )
        if len(named) < len(self.rows):
            yield "config.rows: each row has a name of its own; one has come twice"
        for name in named:
            if not re.fullmatch(r"[\w+-]+", name):
                yield (
                    "config.rows: a row begins with its name, which is that of a"
                    f" folder, of letters, digits, _, + and -; got {name!r}"
                )
        unknown = {*self.published, *filter(None, [self.baseline])} - named.keys()
        if unknown:
            yield (
                "config.baseline and config.published name rows of config.rows"
                f" ({', '.join(named)}); got {', '.join(sorted(unknown))}"
            )

"""The runs of a study: planned from its config, remembered once they are finished."""

import dataclasses
import re
from pathlib import Path
from typing import NamedTuple

from vicreg_jax import files, methods
from vicreg_jax.command import recipes, usage
from vicreg_jax.config import Config, Evaluation, Study
from vicreg_jax.refusals import NotFound, Refusal
from vicreg_jax.report import study as table
from vicreg_jax.report.read import read_run
from vicreg_jax.run import workdirs

__all__ = ["Planned", "finished", "plan", "remember"]

FILE = "study_run.json"  # in the folder of a run, once all of it is done


class Planned(NamedTuple):
    """One run of a study."""

    row: str
    variation: str  # the change, "" if there is none
    seed: int
    config: Config
    evaluations: dict[str, Evaluation]  # by the names of their recipes
    folder: Path


def plan(study: Study, workdir: Path) -> list[Planned]:
    """Returns the runs of a study, seed by seed, so that all rows grow together.

    Raises:
      Refusal: a recipe or a change that there is not, or an impossible run.
    """
    evaluations = {}
    for name in study.evaluations:
        recipe = recipes.read(name)
        if not isinstance(recipe.config, Evaluation):
            raise Refusal(
                f"config.evaluations are recipes such as eval/knn; {name} is no"
                " evaluation"
            )
        evaluations[recipe.name] = recipe.config
    planned = []
    for seed in study.seeds:
        for variation in study.variations or ("",):
            for row, changes in study.named().items():
                words = [*study.changes, *changes, *filter(None, [variation])]
                config = _config(study.recipe, [*words, f"seed={seed}"], row)
                folder = workdir / row
                if variation:
                    folder = folder / variation.replace("/", "_")
                folder = folder / f"seed_{seed}"
                own = {
                    name: Evaluation.parse(
                        dataclasses.replace(x, checkpoint=str(folder))
                    )
                    for name, x in evaluations.items()
                }
                planned.append(Planned(row, variation, seed, config, own, folder))
    return planned


def finished(run: Planned) -> table.Run | None:
    """Returns what a run has come to, None if it has not finished.

    Raises:
      Refusal: the folder holds another run.
    """
    before = workdirs.config_of_run(run.folder, Config)
    if before and (differences := before.differences(run.config)):
        raise Refusal(
            f"{run.folder} holds another run: {'; '.join(differences)}. Choose another"
            " --workdir, or give the old values to continue the study"
        )
    try:
        ended = files.read_json(run.folder / FILE, {"diverged": bool})
    except NotFound:
        return None
    if not before or ended.get("evaluations") != list(run.evaluations):
        return None
    values = table.values(read_run(run.folder))
    if ended["diverged"]:
        values["healthy"] = 0.0
    return table.Run(run.row, run.variation, run.seed, values)


def remember(run: Planned, *, diverged: bool) -> None:
    """Says in the folder of a run that it has ended, and its evaluations with it."""
    content = {"evaluations": list(run.evaluations), "diverged": diverged}
    files.write_json(run.folder / FILE, content)


def _config(recipe, words, row):
    if odd := [word for word in words if not re.match(r"[\w.]+=", word)]:
        raise Refusal(
            f"the row {row}: a change is FIELD=VALUE, such as epochs=5; got {odd[0]!r}"
        )
    changes = usage.sort([f"--config.{word}" for word in words]).changes
    try:
        config = Config.parse(recipes.changed(recipe, changes).config)
        loss = methods.named(config.method).weighed(config.loss)  # as a run keeps it
        return dataclasses.replace(config, loss=loss)
    except Refusal as error:
        raise Refusal(f"the row {row}: {error}") from error

"""Studies: which runs they have, and that they go on."""

import json

import pytest
from helpers.processes import TINY, main
from helpers.records import lines, without_times

from vicreg_jax import files
from vicreg_jax.command import recipes, studies, usage
from vicreg_jax.config import Study
from vicreg_jax.refusals import Refusal

SMALL = [word.removeprefix("--config.") for word in (*TINY, "evaluate.draws=0")]


def parsed(**given):
    return Study.parse(dict(rows=(("one",), ("two", "loss.variance=0"))) | given)


def test_a_run_is_that_of_the_same_words_on_a_command_line(tmp_path):
    study = parsed(
        changes=SMALL,
        rows=(("siam", "method=simsiam", "model.predictor=(8,)"), ("vicreg",)),
        variations=("optimizer.base_lr=0.1", "optimizer.base_lr=0.2"),
        seeds=(3, 5),
        evaluations=("eval/knn",),
    )
    planned = studies.plan(study, tmp_path)
    assert len(planned) == len({x.folder for x in planned}) == 8
    assert [x.seed for x in planned] == [3] * 4 + [5] * 4
    run = planned[0]
    words = [*SMALL, "method=simsiam", "model.predictor=(8,)", "seed=3"]
    words = usage.sort(
        [f"--config.{x}" for x in (*words, "optimizer.base_lr=0.1")]
    ).changes
    assert run.config == recipes.changed("digits", words).config
    assert run.folder == tmp_path / "siam" / "optimizer.base_lr=0.1" / "seed_3"
    assert run.evaluations["knn"].checkpoint == str(run.folder)


def test_a_study_may_be_in_a_bucket():
    planned = studies.plan(parsed(seeds=(4,)), files.expanded("gs://bucket/study"))
    assert str(planned[1].folder) == "gs://bucket/study/two/seed_4"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(rows=()), "config.rows is empty; a study has a row for each"),
        (dict(rows=(("a/b",),)), "config.rows: a row begins with its name, which"),
        (dict(rows=(("a",), ("a", "epochs=3"))), "one has come twice"),
        (dict(rows=((),)), "config.rows needs one value or more"),
        (dict(seeds=(1, 1)), "config.seeds has a value twice"),
        (dict(baseline="three"), "name rows of config.rows (one, two); got three"),
        (dict(recipe="digit"), "did you mean digits?"),
        (dict(rows=(("a", "los.variance=1"),)), "the row a: config.los.variance is"),
        (dict(rows=(("a", "epochs"),)), "a change is FIELD=VALUE, such as epochs=5"),
        (dict(rows=(("a", "epochs=0"),)), "the row a: config.epochs must be positive"),
        (dict(evaluations=("digits",)), "digits is no evaluation"),
        (dict(recipe="eval/knn"), "the row one: "),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(given, message, tmp_path):
    with pytest.raises(Refusal) as error:
        studies.plan(parsed(**given), tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_study_goes_on_with_what_is_missing(tmp_path):
    recipe = tmp_path / "mine.py"
    wild = ("wild", "optimizer.name=sgd", "optimizer.base_lr=1e30")
    # A weight of zero, of a term that simsiam need not have, is none.
    spread = ("spread", "method=simsiam", "loss.variance=0")
    rows = (("vicreg",), spread, wild)
    given = dict(task="study", changes=tuple(SMALL), seeds=(0,), rows=rows)
    given |= dict(evaluations=("eval/knn",), columns=("healthy", "knn: 20-NN top-1"))
    recipe.write_text(f"def get_config():\n    return {given!r}\n")
    words = (f"--config={recipe}", f"--workdir={tmp_path / 'study'}")
    done = main(*words)
    assert done.returncode == 0, done.stderr
    assert "run 3 of 3" in done.stderr and "it diverged: " in done.stderr
    head, _, vicreg, spread, wild = done.stdout.splitlines()[-6:-1]
    assert head == "|  | healthy | knn: 20-NN top-1 | runs |"
    assert vicreg.startswith("| vicreg | 1 of 1 ") and vicreg.endswith(" | 1 |")
    assert wild.startswith("| wild | 0 of 1 ") and " | – | " in wild

    # One run was not remembered: it alone is looked at again.
    folder = tmp_path / "study/spread/seed_0"
    before = lines(folder)
    (folder / studies.FILE).unlink()
    again = main(*words, "--config.changes=" + repr((*SMALL, "data.views=3")))
    assert again.returncode == 2 and "data.views was 2, is 3" in again.stderr
    again = main(*words)
    assert again.returncode == 0, again.stderr
    assert [x for x in again.stderr.splitlines() if x.startswith("run ")] == [
        f"run 2 of 3: {folder}"
    ]
    assert without_times(lines(folder)) == without_times(before)
    assert again.stdout.splitlines()[-6:-1] == [head, _, vicreg, spread, wild]

    # A run of a study is one as anybody would start it.
    alone = tmp_path / "alone"
    flags = [f"--config.{word}" for word in SMALL]
    done = main("--config=digits", f"--workdir={alone}", *flags, "--config.seed=0")
    assert done.returncode == 0, done.stderr
    assert without_times(lines(alone)) == without_times(
        lines(tmp_path / "study/vicreg/seed_0")
    )
    ended = json.loads((folder / studies.FILE).read_text())
    assert ended == {"evaluations": ["knn"], "diverged": False}

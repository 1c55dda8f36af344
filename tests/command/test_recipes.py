"""Recipes: those that ship, by name or path, and what a command line changes."""

import json
import sys
from dataclasses import asdict

import pytest
from helpers.paths import ROOT

from vicreg_jax import config
from vicreg_jax.command import recipes, usage
from vicreg_jax.command.usage import sort
from vicreg_jax.config import evaluation, fields
from vicreg_jax.refusals import NotFound, Refusal


def command_line(*words):
    """The config of a recipe with changes."""
    found = sort(words)
    return recipes.override(recipes.read(found.config).config, found.changes)


def complete(given):
    """The config with the path or checkpoint that its user would give."""
    if isinstance(given, evaluation.Evaluation):
        known = {"step": 1} if given.task == "replay" else {"checkpoint": "run"}
        return fields.build(type(given), asdict(given) | known)
    if isinstance(given, config.Study):
        return given
    assert given.data.path == ""
    path = "somewhere" if given.data.name in config.NEEDS_PATH else ""
    data = asdict(given.data) | {"path": path}
    return fields.build(type(given), asdict(given) | {"data": data})


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_is_good_survives_json_and_names_its_command(name):
    recipe = recipes.read(name)
    parsed = complete(recipe.config).parse(complete(recipe.config))
    assert type(parsed).parse(json.loads(json.dumps(asdict(parsed)))) == parsed
    assert f"python -m vicreg_jax.main --config=configs/{name}.py" in recipe.doc
    for word in ("\nCost: ", "\nResult: "):
        assert word in recipe.doc


def test_a_recipe_that_starts_from_no_other_states_what_differs_from_the_defaults():
    first = {"digits", "imagenet", "export", "report", "eval/finetune", "eval/voc07"}
    for name in first | {
        f"eval/{x}" for x in ("features", "knn", "linear", "logistic")
    }:
        module = recipes._module(recipes.find(name))
        given = module.get_config().to_dict()
        whole = recipes.read(name).config
        stated = {
            f"{group}.{key}" if isinstance(value, dict) else group
            for group, value in given.items()
            for key in (value if isinstance(value, dict) else [""])
        } - {"task"}
        values, defaults = fields.flat(whole), fields.flat(type(whole)())
        assert not {x for x in stated if values[x] == defaults[x]}


def test_all_folders_of_recipes_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = (ROOT / "configs").rglob("*.py")
    assert len(recipes.names()) == len(list(files))
    by_name = recipes.read("eval/semi_1percent")
    for path in (
        "configs/eval/semi_1percent.py",
        f"{ROOT}/configs/eval/semi_1percent.py",
    ):
        assert recipes.read(path) == by_name
    assert by_name.name == "semi_1percent" and by_name.config.data.fraction == 0.01
    assert recipes.read("imagenet:paper").config.augment.blur == (0.5, 0.5)


def test_a_file_of_the_users_may_start_from_a_recipe_or_its_own_copy(
    tmp_path, monkeypatch
):
    code = "from configs import {}\n\ndef get_config():\n    return {}.get_config()\n"
    mine = tmp_path / "mine.py"
    mine.write_text(code.format("imagenet", "imagenet"))
    assert recipes.read(str(mine)).config == recipes.read("imagenet").config
    copy = tmp_path / "configs"
    copy.mkdir()
    (copy / "base.py").write_text("def get_config():\n    return dict(epochs=7)\n")
    (copy / "mine.py").write_text(code.format("base", "base"))
    assert recipes.read(str(copy / "mine.py")).config.epochs == 7
    other = tmp_path / "recipes_of_mine"
    copy.rename(other)
    (other / "mine.py").write_text(
        code.format("base", "base").replace("configs", other.name)
    )
    monkeypatch.setattr("sys.path", [*sys.path])
    assert recipes.read(str(other / "mine.py")).config.epochs == 7


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("digit", "did you mean digits? There are cifar10, cifar100,"),
        ("configs/digit.py", "did you mean digits?"),
        ("linear", "did you mean eval/linear?"),
        ("eval/lineer", "did you mean eval/linear?"),
        ("nowhere.py", "'nowhere.py' is no file of yours and no recipe; "),
    ],
)
def test_an_unknown_recipe_is_refused_with_the_known_ones(name, hint):
    with pytest.raises(NotFound) as error:
        recipes.read(name)
    assert hint in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def get_config(:", "SyntaxError: "),
        ("", "AttributeError: module 'mine' has no attribute 'get_config'"),
        ("import nowhere_at_all", "No module named 'nowhere_at_all'"),
        ("def get_config(): return 3", "TypeError: 'int' object is not iterable"),
        ("def get_config(): return dict(task=['knn'])", "config.task is of type str;"),
        ("def get_config(): return {1: 2}", "config.1 is not a field"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, code, reason):
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(Refusal) as error:
        recipes.read(str(tmp_path / "mine.py"))
    assert reason in str(error.value) and "\n" not in str(error.value)
    (tmp_path / "mine.py").write_text("def get_config(): return dict(epohcs=1)")
    with pytest.raises(Refusal, match="did you mean config.epochs?"):
        recipes.read(str(tmp_path / "mine.py"))


def test_every_field_can_be_given_on_the_command_line():
    """Though the file of the recipe does not list it."""
    for name in ("digits", "eval/linear", "eval/knn", "eval/voc07", "export"):
        given = recipes.read(name).config
        for field, value in recipes.values(given).items():
            value = tuple(value) if isinstance(value, list) else value
            word = f"--config.{field}={value}"
            assert command_line(f"--config={name}", word) == given


def test_the_last_value_of_a_field_counts():
    found = command_line(
        "--config=digits",
        "--config.model.expander=(32,32)",
        "--config.epochs=5",
        "--config.seed",
        "1",
        "--config.optimizer.clip",
        "--config.model.expander=(64,64)",
        "--noconfig.optimizer.clip",
        "--config.epochs=7",
        "--config.seed",
        "2",
        "--config.data.path=a=b",
    )
    assert found.model.expander == (64, 64) and found.epochs == 7
    assert found.seed == 2 and not found.optimizer.clip and found.data.path == "a=b"
    group, one = "--config.loss={'variance': 3.0}", "--config.loss.variance=5"
    assert command_line("--config=digits", one, group).loss == {"variance": 3.0}
    assert command_line("--config=digits", group, one).loss == {"variance": 5.0}


def test_words_that_are_no_config_are_left_to_others():
    words = ["--workdir", "x", "--config", "digits", "-v", "1"]
    assert sort(words) == ("digits", {}, ["--workdir", "x", "-v", "1"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=digits", "--config.loss.varience=1"], "mean config.loss.variance?"),
        (["--config=digits", "--config.epohcs=1"], "did you mean config.epochs?"),
        (
            ["--config=digits", "--config.epochs=ten"],
            "--config.epochs=ten: invalid lit",
        ),
        (["--config=digits", "--config.epochs=1.5"], "--config.epochs=1.5: invalid"),
        (
            ["--config=eval/knn", "--config.head.rates=(1.0,)"],
            "config.head.rates is not read by the task knn; it reads checkpoint, data",
        ),
        (["--config=report", "--config.checkpoint=x"], "task report; it reads none"),
        (["--config=eval/knn", "--config.head=1"], "config.head is not read by"),
        (
            ["--config=digits", "--config.wandb", "--config.seed=1"],
            "config.wandb has no value; expected --config.wandb=VALUE",
        ),
        (["--config=digits", "--config.loss"], "config.loss has no value"),
        (
            ["--config=digits", "--noconfig.data.validation=True"],
            "--noconfig.data.validation=True does not take an argument",
        ),
        (
            [
                "--config=digits",
                "--config.loss={'variance':5}",
                "--config.loss.covariance=3",
            ],
            "covariance is not a valid key",
        ),
    ],
)
def test_a_wrong_change_is_refused_in_one_line(words, message):
    with pytest.raises(Refusal) as error:
        command_line(*words)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_weights_are_those_of_the_method_unless_they_are_given():
    digits = recipes.read("digits").config
    assert digits.loss == {"invariance": 25.0, "variance": 25.0, "covariance": 1.0}
    other = recipes.read("digits", changes={"method": "barlow_twins"}).config
    assert set(other.loss) == {"on_diagonal", "off_diagonal"}
    assert recipes.read("cifar10_sololearn").config.loss["variance"] == 50
    with pytest.raises(Refusal, match=r"has weights for vicreg \(variance 50\)"):
        recipes.read("cifar10_sololearn", changes={"method": "barlow_twins"})
    with pytest.raises(Refusal, match="config.loss.invariance is not a term of"):
        changes = {"method": "barlow_twins", "loss": {"invariance": 1.0}}
        recipes.read("digits", changes=changes)
    with pytest.raises(Refusal, match="no method 'moco'; there are vicreg"):
        recipes.read("digits", changes={"method": "moco"})


def test_a_task_of_another_kind_is_refused_with_those_that_there_are(tmp_path):
    for recipe, task, known in (
        ("eval/knn", "pretrain", "linear, finetune, knn, "),
        ("digits", "knn", "pretrain, prepare; got knn"),
        ("digits", "nonsense", "pretrain, prepare; got nonsense"),
    ):
        found = recipes.read(recipe, changes={"task": task}).config
        with pytest.raises(Refusal, match=f"config.task must be one of {known}"):
            found.parse(found)


def test_a_home_folder_of_nobody_and_a_file_of_another_kind_are_refused(tmp_path):
    with pytest.raises(NotFound, match="~nobody_here/a.py: there is nobody of that"):
        recipes.read("~nobody_here/a.py")
    (tmp_path / "a.yaml").write_text("")
    with pytest.raises(Refusal, match="a.yaml' is no config file, whose name ends in"):
        recipes.read(str(tmp_path / "a.yaml"))


def test_help_lists_recipes_and_the_fields_of_one():
    said = usage.of_program()
    for name in recipes.names():
        assert f"  {name} " in said
    for name in ("digits", "eval/knn"):
        recipe = recipes.read(name)
        said = usage.of_recipe(recipe)
        assert said.startswith(recipe.doc.splitlines()[0])
        for field in recipes.values(recipe.config):
            assert f"\n  --config.{field}=" in said
    assert "--config.head" not in said
    spaced = command_line("--config=folder", "--config.data.path=/a b/c")
    said += usage.of_recipe(recipes.Recipe("folder", "", spaced))
    assert "\n  --config.data.path=/a b/c " in said
    assert "--config.knn.neighbours=(1,20,200)\n" in said
    assert "  over all devices\n" in said

"""The config of a run: what is refused, and what makes two runs differ."""

import dataclasses
import importlib.util
import json
import sys

import ml_collections
import pytest

from vicreg_jax import config
from vicreg_jax.config import fields
from vicreg_jax.refusals import Refusal

FIELDS = list(fields.names(config.Config))


def nested(name, value):
    """{"a": {"b": value}} of "a.b"."""
    for key in reversed(name.split(".")):
        value = {key: value}
    return value


def test_what_a_mapping_leaves_out_has_its_default():
    assert config.parse({}) == config.Config()
    found = config.parse({"epochs": 20, "data": {"batch_size": 64}})
    assert found.epochs == 20 and found.data.batch_size == 64
    assert found.data.image_size == config.Data().image_size
    assert config.parse(found) is found


def test_a_plain_dict_needs_no_ml_collections(monkeypatch):
    given = {"epochs": 20, "model": {"expander": [64, 32]}, "seed": 1}
    want = config.parse(ml_collections.ConfigDict(given))
    monkeypatch.setitem(sys.modules, "ml_collections", None)  # import raises
    spec = importlib.util.spec_from_file_location("fresh", config.__file__)
    fresh = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fresh", fresh)  # where dataclasses look for it
    spec.loader.exec_module(fresh)
    found = fresh.parse(given)
    assert dataclasses.asdict(found) == dataclasses.asdict(want)


def test_lists_become_tuples_and_whole_numbers_floats():
    given = {"data": {"mean": [0], "std": [1]}, "optimizer": {"warmup_epochs": 5}}
    found = config.parse(given)
    assert found.data.mean == (0.0,) and isinstance(found.data.mean[0], float)
    assert isinstance(found.optimizer.warmup_epochs, float)


UNKNOWN = {
    "model.encodr": "did you mean config.model.encoder?",
    "batch_size": "did you mean config.data.batch_size?",
    "optimizer.lr": "config.optimizer.lr is not a field; there are optimizer.name",
    "optimiser": "did you mean config.optimizer?",
    "epoch": "did you mean config.epochs?",
    "quux": "config.quux is not a field; there are task, seed, epochs",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_field_is_refused_with_a_hint(name):
    for refuse in (
        lambda: config.parse(nested(name, 1)),
        lambda: fields.check_name(name, FIELDS),
    ):
        with pytest.raises(Refusal) as error:
            refuse()
        assert UNKNOWN[name] in str(error.value) and "\n" not in str(error.value)


def test_every_field_and_group_is_a_known_name():
    for name in [*FIELDS, *(f.name for f in dataclasses.fields(config.Config))]:
        fields.check_name(name, FIELDS)


BAD = [
    # a wrong type
    ("epochs", "10", "config.epochs is of type int; got '10'"),
    ("seed", 1.5, "config.seed is of type int; got 1.5"),
    ("data.batch_size", True, "config.data.batch_size is of type int; got True"),
    ("data.validation", 1, "config.data.validation is of type bool; got 1"),
    ("optimizer.clip", "yes", "config.optimizer.clip is of type bool; got 'yes'"),
    ("data.name", None, "config.data.name is of type str; got None"),
    ("optimizer.base_lr", None, "config.optimizer.base_lr is of type float; got None"),
    ("augment.flip", False, "config.augment.flip is of type float; got False"),
    ("model.expander", 64, "config.model.expander is of type tuple of int; got 64"),
    ("data.mean", "0.5", "config.data.mean is of type tuple of float; got '0.5'"),
    ("evaluate.labels_per_class", [1.5], "is of type tuple of int; got [1.5]"),
    ("data", 3, "config.data is a mapping of fields; got 3"),
    # a value that there is not
    ("task", "train", "config.task must be one of pretrain, prepare; got train"),
    (
        "data.name",
        "mnist",
        "data.name must be one of folder, prepared, tfds, tfrecord, huggingface",
    ),
    ("model.stem", "torch", "one of imagenet, cifar, solo_learn; got torch"),
    ("model.dtype", "float16", "must be one of float32, bfloat16; got float16"),
    ("optimizer.name", "adam", "must be one of lars, adamw, sgd; got adam"),
    # not positive, negative, not finite, no probability
    ("epochs", 0, "config.epochs must be positive; got 0"),
    ("every.log_steps", 0, "config.every.log_steps must be positive; got 0"),
    ("data.std", [0.0, 1.0, 1.0], "config.data.std must be positive; got (0.0, 1.0"),
    ("optimizer.base_lr", float("nan"), "base_lr must be positive; got nan"),
    ("optimizer.base_lr", float("inf"), "base_lr must be positive; got inf"),
    ("model.expander", [8, 0], "config.model.expander must be positive; got (8, 0)"),
    ("seed", -1, "config.seed must be zero or more; got -1"),
    ("loss.variance", -1.0, "config.loss.variance must be zero or more; got -1.0"),
    ("loss.covariance", float("nan"), "must be zero or more; got nan"),
    ("augment.jitter", 1.1, "config.augment.jitter must be between 0 and 1; got 1.1"),
    ("augment.flip", -0.1, "config.augment.flip must be between 0 and 1; got -0.1"),
    (
        "augment.solarize",
        [0.0, 1.1],
        "solarize must be between 0 and 1; got (0.0, 1.1)",
    ),
    ("augment.hue", 0.6, "config.augment.hue must be between 0 and 0.5; got 0.6"),
    ("augment.sigma", [0.1, 3.0], "must be two numbers in (0, 2.4]; got (0.1, 3.0)"),
    # pairs and channels
    ("augment.blur", [0.5], "views (2); got (0.5,)"),
    ("augment.crop_scale", [0.0, 1.0], "must be two numbers in (0, 1]; got (0.0, 1.0)"),
    ("augment.crop_scale", [0.9, 0.1], "is a pair (least, most); got (0.9, 0.1)"),
    ("augment.crop_ratio", [1.0], "is a pair (least, most); got (1.0,)"),
    ("augment.crop_ratio", [-1.0, 1.0], "must be two positive numbers"),
    ("data.mean", [0.5], "have one number per channel, 1 to 16; got 1 and 3"),
    ("data", dict(mean=[0] * 17, std=[1] * 17), "1 to 16; got 17 and 17"),
    (
        "data",
        dict(mean=[0, 0], std=[1, 1]),
        "augment.saturation and hue and grey need RGB, and config.data.mean has 2 ch",
    ),
    # what does not go together
    ("model.expander", [], "config.model.expander needs one value or more; got ()"),
    ("optimizer.warmup_epochs", 100, "(100) must be less than config.epochs (100)"),
    ("optimizer.momentum", 1.0, "config.optimizer.momentum must be below 1; got 1.0"),
    ("data.batch_size", 1, "config.data.batch_size must be 2 or more; got 1"),
    ("data.name", "arrays", "config.data.path is empty; data.name 'arrays' needs the"),
    ("data.name", "tfrecord", "needs the TFRecord files, such as DIR/train-*, there"),
    ("data.name", "tfds", "config.data.dataset is empty; data.name 'tfds' needs the"),
    ("data.path", "x.npz", "data.path is 'x.npz', but data.name is 'fake'; did you"),
    ("data", dict(name="tfds", dataset="a", path="x.npz"), "mean data.name=arrays?"),
    ("data", dict(name="folder", path="x/train-*"), "did you mean data.name=tfrecord?"),
    ("data.validation", True, "config.data.validation is for the digits; for others"),
    ("data.image_size", 10**5, "data.image_size must be 8192 or less; got 100000"),
    ("data.resize", "gpu", "data.resize must be one of auto, host, device; got gpu"),
    ("optimizer.end_scale", 2.0, "config.optimizer.end_scale must be 1 or less"),
    ("prepare.quality", 101, "config.prepare.quality must be between 0 and 100"),
    ("data.image_size", 1, "config.data.image_size must be 2 or more; got 1"),
    ("model.expander", [16, 1], "expander must end in 2 or more; got (16, 1)"),
]


@pytest.mark.parametrize("name, value, message", BAD)
def test_an_impossible_value_is_refused_in_one_line(name, value, message):
    with pytest.raises(Refusal) as error:
        config.parse(nested(name, value))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, value",
    [
        ("data.mean", [float("nan"), 0.5, 0.5]),
        ("data.std", [float("inf"), 0.5, 0.5]),
        ("augment.crop_ratio", [0.5, float("inf")]),
        ("augment.crop_scale", [float("nan"), 1.0]),
        ("augment.rotation", float("inf")),
    ],
)
def test_numbers_that_are_not_finite_are_refused(name, value):
    with pytest.raises(Refusal, match=f"config.{name} must be"):
        config.parse(nested(name, value))


def test_no_config_at_all_is_refused():
    with pytest.raises(Refusal, match="^config is a mapping of fields; got None$"):
        config.parse(None)


def test_a_seed_too_large_for_a_random_key_is_refused():
    # jax.random.key raises OverflowError from here on, without a word on the config.
    with pytest.raises(Refusal, match="config.seed must be"):
        config.parse({"seed": 2**63})


def test_flat_names_every_field_once():
    values = fields.flat(config.parse({"loss": {"invariance": 25}}))
    assert values["epochs"] == 100 and values["loss.invariance"] == 25.0
    assert values["model.expander"] == [8192, 8192, 8192]
    assert set(values) - {"loss.invariance"} == set(FIELDS) - {"loss"}
    assert len(FIELDS) == len(set(FIELDS))


@pytest.mark.parametrize(("epochs", "proposed"), [(1, 0), (2, 1), (5, 1), (10, 1)])
def test_a_warm_up_that_is_too_long_comes_with_one_that_is_not(epochs, proposed):
    with pytest.raises(Refusal, match=rf"add --config.*warmup_epochs={proposed}$"):
        config.parse({"epochs": epochs})
    config.parse({"epochs": epochs, "optimizer": {"warmup_epochs": proposed}})


@pytest.mark.parametrize(
    ("views", "chances", "good"), [(3, 2, True), (3, 3, True), (3, 4, False)]
)
def test_views_have_chances_of_their_own_or_take_turns_with_two(views, chances, good):
    given = {"data": {"views": views}, "augment": {"blur": [0.5] * chances}}
    if good:
        assert len(config.parse(given).augment.blur) == chances
    else:
        with pytest.raises(Refusal, match="of 2 views, .* or of config.data.views"):
            config.parse(given)


CHANGED = {
    "epochs": 200,
    "every.log_steps": 7,
    "every.checkpoint_epochs": 7,
    "every.profile_step": 7,
    "guard.skipped_steps": 7,
    "guard.broken_images": 0.7,
    "guard.stuck_seconds": 7.0,
    "guard.spike": 7.0,
    "guard.rerun_steps": 7,
    "guard.other_data": True,
    "data.path": "elsewhere",
    "data.pipeline": "threads",
    "evaluate.draws": 7,
    "evaluate.labels_per_class": [2],
    "evaluate.knn_epochs": 7,
    "prepare.shards": 7,
    "prepare.shorter_side": 7,
    "prepare.quality": 7,
    "wandb": "project",
}


def test_what_may_change_is_no_difference():
    changed = config.Config()
    for name, value in CHANGED.items():
        group, _, last = name.rpartition(".")
        if group:
            value = dataclasses.replace(getattr(changed, group), **{last: value})
        changed = dataclasses.replace(changed, **{group or last: value})
    assert changed != config.Config()
    assert config.Config().differences(changed) == []


def test_any_other_change_is_a_difference_named_with_both_values():
    old = config.Config()
    new = config.parse({"seed": 1, "model": {"expander": [64]}, "epochs": 7 * 100})
    assert old.differences(new) == [
        "seed was 0, is 1",
        "model.expander was [8192, 8192, 8192], is [64]",
    ]
    fixed = [f for f in FIELDS if not f.startswith(config.Config.CHANGEABLE)]
    assert set(FIELDS) - set(fixed) == set(CHANGED)
    assert old.differences(old) == []


def test_a_record_without_method_and_views_is_the_run_of_today():
    weights = {"invariance": 25.0, "variance": 25.0, "covariance": 1.0}
    new = config.parse({"loss": weights, "method": "vicreg", "data": {"views": 2}})
    record = dataclasses.asdict(new)
    del record["method"], record["data"]["views"], record["every"]["profile_step"]
    old = config.parse(json.loads(json.dumps(record)))
    assert old.differences(new) == new.differences(old) == []
    other = dataclasses.replace(new, method="other", loss={"a": 1.0})
    assert other.differences(new)[:2] == [
        "method was other, is vicreg",
        "loss.a was 1.0, is None",
    ]

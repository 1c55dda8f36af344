"""Configs: the files that ship, what is refused, and what makes two runs differ."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import ml_collections
import pytest

from vicreg_jax import config, fields

FOLDER = Path(__file__).parents[1] / "configs"
# The others are of test_protocol.py.
FILES = sorted(set(FOLDER.glob("*.py")) - {FOLDER / "export.py", FOLDER / "report.py"})
FIELDS = list(fields.flat(config.Config()))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def with_path(given):
    """The config with the path of data that its user would give."""
    assert given.data.path == ""
    if given.data.name in config.NEEDS_PATH:
        given.data.path = "somewhere"
    return given


def nested(name, value):
    """{"a": {"b": value}} of "a.b"."""
    for key in reversed(name.split(".")):
        value = {key: value}
    return value


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(FOLDER)))
def test_every_config_file_parses_lists_every_field_and_names_its_command(path):
    module = load(path)
    given = with_path(module.get_config())
    assert isinstance(config.parse(given), config.Config)
    # What a file leaves out cannot be overridden on the command line.
    listed = {
        f"{name}.{key}" if isinstance(value, dict) else name
        for name, value in given.to_dict().items()
        for key in (value if isinstance(value, dict) else [""])
    }
    assert listed == set(FIELDS)
    relative = path.relative_to(FOLDER.parent)
    assert f"python -m vicreg_jax.main --config={relative}" in module.__doc__


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
    fresh = load(Path(config.__file__))
    found = fresh.parse(given)
    assert dataclasses.asdict(found) == dataclasses.asdict(want)


def test_lists_become_tuples_and_whole_numbers_floats():
    given = {"data": {"mean": [0], "std": [1]}, "optimizer": {"warmup_epochs": 5}}
    found = config.parse(given)
    assert found.data.mean == (0.0,) and isinstance(found.data.mean[0], float)
    assert isinstance(found.optimizer.warmup_epochs, float)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(FOLDER)))
def test_a_config_survives_json(path):
    parsed = config.parse(with_path(load(path).get_config()))
    assert config.parse(json.loads(json.dumps(dataclasses.asdict(parsed)))) == parsed


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
        lambda: fields.check_name(name, [config.Config]),
    ):
        with pytest.raises(ValueError) as error:
            refuse()
        assert UNKNOWN[name] in str(error.value) and "\n" not in str(error.value)


def test_every_field_and_group_is_a_known_name():
    for name in [*FIELDS, *(f.name for f in dataclasses.fields(config.Config))]:
        fields.check_name(name, [config.Config])


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
        "data.name must be one of folder, prepared, tfds, tfrecord, arrays, digits",
    ),
    ("model.stem", "torch", "one of imagenet, cifar, solo_learn; got torch"),
    ("model.dtype", "float16", "must be one of float32, bfloat16; got float16"),
    ("optimizer.name", "sgd", "must be one of lars, adamw; got sgd"),
    # not positive, negative, not finite, no probability
    ("epochs", 0, "config.epochs must be positive; got 0"),
    ("every.log_steps", 0, "config.every.log_steps must be positive; got 0"),
    ("data.std", [0.0, 1.0, 1.0], "config.data.std must be positive; got [0.0, 1.0"),
    ("optimizer.base_lr", float("nan"), "base_lr must be positive; got nan"),
    ("optimizer.base_lr", float("inf"), "base_lr must be positive; got inf"),
    ("model.expander", [8, 0], "config.model.expander must be positive; got [8, 0]"),
    ("seed", -1, "config.seed must be zero or more; got -1"),
    ("loss.variance", -1.0, "config.loss.variance must be zero or more; got -1.0"),
    ("loss.covariance", float("nan"), "must be zero or more; got nan"),
    ("augment.jitter", 1.1, "config.augment.jitter must be between 0 and 1; got 1.1"),
    ("augment.flip", -0.1, "config.augment.flip must be between 0 and 1; got -0.1"),
    (
        "augment.solarize",
        [0.0, 1.1],
        "solarize must be between 0 and 1; got [0.0, 1.1]",
    ),
    ("augment.hue", 0.6, "config.augment.hue must be between 0 and 0.5; got 0.6"),
    ("augment.sigma", [0.1, 3.0], "must be two numbers in (0, 2.4]; got [0.1, 3.0]"),
    # pairs and channels
    ("augment.blur", [0.5], "is a pair (first view, second view); got (0.5,)"),
    ("augment.crop_scale", [0.0, 1.0], "must be two numbers in (0, 1]; got [0.0, 1.0]"),
    ("augment.crop_scale", [0.9, 0.1], "is a pair (least, most); got (0.9, 0.1)"),
    ("augment.crop_ratio", [1.0], "is a pair (least, most); got (1.0,)"),
    ("augment.crop_ratio", [-1.0, 1.0], "must be two positive numbers"),
    ("data.mean", [0.5], "have one number per channel, 1 or 3; got 1 and 3"),
    ("data", dict(mean=[0, 0], std=[1, 1]), "channel, 1 or 3; got 2 and 2"),
    # what does not go together
    ("model.expander", [], "config.model.expander needs one width or more; got ()"),
    ("optimizer.warmup_epochs", 100, "(100) must be less than config.epochs (100)"),
    ("optimizer.momentum", 1.0, "config.optimizer.momentum must be below 1; got 1.0"),
    (
        "loss",
        dict(invariance=0, variance=0, covariance=0),
        "config.loss: all weights are zero; nothing would be learned",
    ),
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
    ("model.expander", [16, 1], "config.model.expander must be 2 or more; got 1"),
]


@pytest.mark.parametrize("name, value, message", BAD)
def test_an_impossible_value_is_refused_in_one_line(name, value, message):
    with pytest.raises(ValueError) as error:
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
    with pytest.raises(ValueError, match=f"config.{name} must be"):
        config.parse(nested(name, value))


def test_no_config_at_all_is_refused():
    with pytest.raises(ValueError, match="^config is a mapping of fields; got None$"):
        config.parse(None)


def test_a_seed_too_large_for_a_random_key_is_refused():
    # jax.random.key raises OverflowError from here on, without a word on the config.
    with pytest.raises(ValueError, match="config.seed must be"):
        config.parse({"seed": 2**63})


def test_every_limit_names_a_field():
    limits = (*config.CHOICES, *config.POSITIVE, *config.NOT_NEGATIVE)
    for name in (*limits, *config.PROBABILITIES):
        assert name in FIELDS


def test_flat_names_every_field_once():
    values = fields.flat(config.Config())
    assert values["epochs"] == 100 and values["loss.invariance"] == 25.0
    assert values["model.expander"] == [8192, 8192, 8192]
    kinds = [f.default_factory for f in dataclasses.fields(config.Config)]
    groups = [k for k in kinds if k is not dataclasses.MISSING]
    plain = len(kinds) - len(groups)
    assert len(values) == plain + sum(len(dataclasses.fields(k)) for k in groups)


CHANGED = {
    "epochs": 200,
    "every.log_steps": 7,
    "every.checkpoint_epochs": 7,
    "guard.skipped_steps": 7,
    "guard.broken_images": 0.7,
    "guard.stuck_seconds": 7.0,
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
    assert config.differences(config.Config(), changed) == []


def test_any_other_change_is_a_difference_named_with_both_values():
    old = config.Config()
    new = config.parse({"seed": 1, "model": {"expander": [64]}, "epochs": 7 * 100})
    assert config.differences(old, new) == [
        "seed was 0, is 1",
        "model.expander was [8192, 8192, 8192], is [64]",
    ]
    fixed = [f for f in FIELDS if not f.startswith(config.CHANGEABLE)]
    assert set(FIELDS) - set(fixed) == set(CHANGED)
    assert config.differences(old, old) == []

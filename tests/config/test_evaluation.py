"""The config of an evaluation: its presets, and what is refused."""

from dataclasses import asdict

import pytest

from vicreg_jax.command import recipes
from vicreg_jax.config import evaluation
from vicreg_jax.evaluate import tasks
from vicreg_jax.refusals import Refusal


def test_every_task_is_one_that_the_program_does():
    elsewhere = {"export", "report", "compare", "ls", "replay"}  # of main
    assert set(evaluation.READS) == set(tasks.TASKS) | elsewhere


# arXiv:2105.04906, appendix D
PUBLISHED = {
    "linear": dict(rates=(0.02,), weight_decay=(1e-6,), drops=(), epochs=100),
    "semi_1percent": dict(rates=(0.08,), weight_decay=(0.0,), drops=(), epochs=20),
    "semi_10percent": dict(rates=(0.1,), weight_decay=(0.0,), drops=(), epochs=20),
    "places205": dict(
        rates=(0.003,), weight_decay=(1e-4,), drops=(4, 8, 12), epochs=28
    ),
    "inaturalist18": dict(
        rates=(0.005,), weight_decay=(1e-4,), drops=(24, 48, 72), epochs=84
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_the_published_schedule(name):
    parsed = recipes.read(f"eval/{name}").config
    want = dict(PUBLISHED[name])
    assert parsed.epochs == want.pop("epochs") and parsed.data.batch_size == 256
    found = asdict(parsed.head) | {}
    assert {key: found[key] for key in want} == want and found["momentum"] == 0.9
    rates = {"semi_1percent": 0.03, "semi_10percent": 0.01}
    if name in rates:
        assert parsed.finetune.encoder_rate == rates[name]


BAD = [
    (dict(task="test"), "config.task must be one of linear, finetune, knn"),
    (dict(checkpoint=""), "config.checkpoint is empty; give the workdir of a run"),
    (dict(head=dict(rate=1.0)), "did you mean config.head.rates?"),
    (dict(head=dict(rates=0.1)), "config.head.rates is of type tuple of float; got"),
    (dict(head=dict(rates=())), "config.head.rates needs one value or more; got ()"),
    (dict(head=dict(rates=(0.1, -1.0))), "config.head.rates must be positive"),
    (dict(head=dict(held_out=1.0)), "config.head.held_out must be in [0, 1); got 1.0"),
    (dict(head=dict(momentum=1.0)), "config.head.momentum must be below 1; got 1.0"),
    (
        dict(head=dict(rates=(0.1, 0.2), held_out=0.0)),
        "config.head makes a bank of 2; choosing among them needs training images held",
    ),
    (
        dict(task="finetune", head=dict(rates=(0.1, 0.2))),
        "an encoder is fine-tuned with one head; give one rate, weight decay and layer",
    ),
    (dict(data=dict(fraction=0.0)), "config.data.fraction must be in (0, 1]; got 0.0"),
    (dict(data=dict(fraction=0.1, names="x")), "both choose training images; give one"),
    (
        dict(data=dict(image_size=224, shorter_side=200)),
        "config.data.shorter_side 200 is less than config.data.image_size 224",
    ),
    (dict(augment=dict(crop_scale=(1.0, 0.5))), "crop_scale is a pair (least, most)"),
    (dict(augment=dict(interpolation="cubic")), "must be one of bicubic, bilinear"),
    (dict(knn=dict(neighbours=())), "config.knn.neighbours needs one value or more"),
    (dict(knn=dict(temperature=0.0)), "config.knn.temperature must be positive; got 0"),
    (dict(export=dict(formats=("onnx",))), "config.export.formats must be one of safe"),
]


@pytest.mark.parametrize("given, message", BAD, ids=lambda x: str(x)[:40])
def test_an_impossible_value_is_refused_in_one_line(given, message):
    with pytest.raises(Refusal) as error:
        evaluation.parse(dict(task="linear", checkpoint="run") | given)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_another_evaluation_is_told_apart():
    old = evaluation.parse(dict(checkpoint="a"))
    new = evaluation.parse(
        dict(checkpoint="b", seed=1, data=dict(path="x"), knn=dict(temperature=0.1))
    )  # a path is no part of it: what lies there is compared
    assert old.differences(new) == [
        "seed was 0, is 1",
        "knn.temperature was 0.07, is 0.1",
    ]
    assert old.differences(old) == []

"""Images without a label: every judge finds what it finds without these images."""

import json

import numpy as np
import pytest
from helpers.evaluations import load, protocol
from helpers.refusals import refused

from vicreg_jax import config as configs
from vicreg_jax import evaluate
from vicreg_jax.data.source import Arrays, Splits
from vicreg_jax.data.sources.arrays import open_arrays
from vicreg_jax.evaluate import gallery, tasks
from vicreg_jax.evaluate.inputs import need_labels
from vicreg_jax.refusals import Refusal
from vicreg_jax.weights import Encoder

PROTOCOLS = {
    "knn": dict(task="knn", knn=dict(neighbours=(1, 5))),
    "logistic": dict(task="logistic", logistic=dict(c=(1e-5, 1e-4))),
    "linear": dict(head=dict(rates=(0.3,))),
    "a bank": dict(head=dict(rates=(0.3, 1.0), held_out=0.3)),
    "some labels": dict(task="finetune", fraction=0.5),
}


@pytest.fixture
def both(data, tmp_path):
    """The data, and the same among images without a label in both parts."""
    rng, made = np.random.default_rng(1), {}
    for part, images in zip(("", "test_"), open_arrays(data), strict=True):
        n = len(images)
        where = np.sort(rng.permutation(n + 17)[:n])
        pixels = rng.integers(0, 256, (n + 17, *images.shape[1:]), np.uint8)
        labels = np.full(n + 17, -1)
        pixels[where], labels[where] = images.array, images.labels
        made |= {f"{part}images": pixels, f"{part}labels": labels}
    np.savez(tmp_path / "more.npz", **made)
    return data, str(tmp_path / "more.npz")


def judged(path, trained, workdir, name):
    config, encoder, variables = trained
    options = dict(PROTOCOLS[name])
    given = dict(name="arrays", path=path, batch_size=16)
    given |= {k: options.pop(k) for k in ("fraction",) if k in options}
    given = protocol(path, data=given, **options)
    (workdir / "run").mkdir(parents=True)
    sees = dict(mean=[0.4], std=[0.3], image_size=8)
    judge = Encoder(encoder, variables, **sees, source="run")
    found = load(given, config)
    need_labels(found)
    judged = {"variables": 0, "images": found.fingerprint()}
    task = tasks.Task(given, workdir / "run", judge, found, name, judged)
    tasks.TASKS[given.task](task)
    return json.loads((workdir / "run" / "result.json").read_text())


@pytest.mark.parametrize("name", PROTOCOLS)
def test_an_evaluation_counts_only_images_with_a_label(name, both, trained, tmp_path):
    without, among = (
        judged(path, trained, tmp_path / str(i), name) for i, path in enumerate(both)
    )
    assert among["results"] == without["results"]
    assert among["tested"] == without["tested"] == 30
    assert 0 < without["results"][next(iter(without["results"]))] < 100


def test_few_labels_are_drawn_from_images_with_a_label(both, trained):
    config, encoder, variables = trained
    given = dict(evaluate=dict(labels_per_class=(1, 3), draws=4))
    config = configs.parse(given | dict(data=dict(mean=[0.4], std=[0.3])))
    sees = dict(mean=[0.4], std=[0.3], image_size=8)
    encoders = {"mine": Encoder(encoder, variables, **sees)}
    tables = [evaluate.few_labels(open_arrays(path), encoders, config) for path in both]
    assert tables[0] == tables[1]


def test_features_are_written_of_all_images(both, trained):
    config, _, _ = trained
    data = dict(name="arrays", path=both[1], batch_size=16)
    found = load(protocol(both[1], task="features", data=data), config)
    assert len(found.kept) == 52 + 17 and len(found.tested) == 30 + 17


def test_nothing_is_judged_where_no_image_has_a_label(data, trained, tmp_path):
    config, _, _ = trained
    train, test = open_arrays(data)
    labels = dict(labels=train.labels, test_labels=test.labels)
    images = dict(images=train.array, test_images=test.array)
    for part, message in (
        ("labels", "the training images have no labels"),
        ("test_labels", "there are no labelled test images"),
    ):
        none = {part: np.full_like(labels[part], -1)}
        np.savez(tmp_path / "none.npz", **images, **(labels | none))
        path = str(tmp_path / "none.npz")
        with refused(Refusal, message):
            need_labels(load(protocol(path), config))
        settings = configs.parse(dict(evaluate=dict(draws=1)))
        with refused(Refusal, "draws needs arrays with labels and a labelled test"):
            evaluate.check(open_arrays(path), settings)
    path = str(tmp_path / "none.npz")
    np.savez(path, **images, labels=np.full(52, -1), test_labels=test.labels)
    given = dict(name="arrays", path=path, batch_size=16, fraction=0.5)
    with refused(Refusal, "config.data.fraction needs labels; there are none"):
        load(protocol(path, data=given), config)


def test_a_list_of_names_that_have_no_label_is_refused(trained, tmp_path, monkeypatch):
    from vicreg_jax.evaluate import inputs

    config, _, _ = trained
    images = Arrays(np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, -1, -1]))
    images.names = ["a", "b", "c", "d"]
    test = Arrays(np.ones((4, 8, 8, 1), np.uint8), images.labels)
    monkeypatch.setattr(inputs, "load_splits", lambda *_, **__: Splits(images, test))
    for listed, want in ("a\nc\n", [0]), ("b\na\n", [0, 1]):
        (tmp_path / "list.txt").write_text(listed)
        data = dict(name="arrays", path="x", names=str(tmp_path / "list.txt"))
        found = load(protocol("x", data=data), config)
        assert found.kept.tolist() == want and found.tested.tolist() == [0, 1]
    (tmp_path / "list.txt").write_text("d\nc\n")
    with refused(Refusal, "names: no image that .*list.txt names has a label"):
        load(protocol("x", data=data), config)


@pytest.mark.long
def test_a_report_shows_images_with_a_label_and_their_classes(both, tmp_path):
    from vicreg_jax import train

    run = dict(
        epochs=1,
        data=dict(name="arrays", path=both[1], batch_size=16, image_size=8)
        | dict(mean=(0.5,), std=(0.5,)),
        model=dict(encoder="digits", expander=(16, 16)),
        optimizer=dict(warmup_epochs=0),
    )
    train.run(run, tmp_path / "run")
    found = gallery.of_run(tmp_path / "run")
    test = open_arrays(both[1]).test
    assert sorted(found.labels) == sorted(test.labels[test.labels >= 0])
    assert len(found.features) == len(found.thumbnails) == 30

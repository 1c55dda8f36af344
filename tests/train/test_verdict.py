"""The verdict on a run: its intervals by closed forms, its line, what it leaves."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from helpers.pictures import pictures
from helpers.runs import SMALL, images

from vicreg_jax import config as configs
from vicreg_jax import train
from vicreg_jax.command import tasks
from vicreg_jax.config import evaluation
from vicreg_jax.data.source import Arrays
from vicreg_jax.train import verdict


def config(**data):
    return configs.parse(SMALL | dict(data=SMALL["data"] | dict(held_out=0.25) | data))


def test_the_change_of_a_share_has_the_interval_of_agresti_and_min():
    before = np.repeat([1, 1, 0, 0], [40, 5, 25, 30]).astype(bool)
    after = np.repeat([1, 0, 1, 0], [40, 5, 25, 30]).astype(bool)
    change, half = verdict.change_of_shares(before, after)
    assert change == pytest.approx(20)
    b, c, n = 25.5, 5.5, 102
    want = 196 * np.sqrt((b + c) / n - ((b - c) / n) ** 2) / np.sqrt(n)
    assert half == pytest.approx(want, rel=1e-6)
    assert verdict.change_of_shares([True] * 3, [True] * 3)[1] > 10  # three images


def test_the_jackknife_of_a_mean_has_the_interval_of_its_blocks():
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, 64))
    change, half = verdict.jackknife(
        *(verdict._without_blocks(np.mean, x) for x in (before, after))
    )
    blocks = (after - before).reshape(8, 8).mean(axis=1)
    assert change == pytest.approx(np.mean(after) - np.mean(before))
    assert half == pytest.approx(2.365 * blocks.std(ddof=1) / np.sqrt(8))


def test_the_linear_probe_is_scikit_learns_of_any_class_numbers():
    sklearn = pytest.importorskip("sklearn.linear_model", reason="the extra demo")
    rng = np.random.default_rng(0)
    labels = rng.choice([2, 5, 9], 90)
    features = rng.normal(size=(90, 6)) + labels[:, None] * 0.3
    asked = rng.normal(size=(40, 6)) + 1.5
    scaled = [(x - features.mean(axis=0)) / features.std() for x in (features, asked)]
    model = sklearn.LogisticRegression(C=1.0, tol=1e-8, max_iter=1000)
    want = model.fit(scaled[0], labels).predict(scaled[1])
    np.testing.assert_array_equal(verdict._linear(features, labels, asked), want)
    assert verdict._linear(features, np.full(90, 3), asked) is None


@pytest.mark.parametrize(
    ("change", "word"), [(2.1, "better"), (-2.1, "worse"), (1.9, "within noise")]
)
def test_a_change_within_its_interval_is_noise(change, word):
    assert verdict._judged(change, 2.0) == word


def test_a_run_with_labels_is_judged_by_neighbours_and_once(tmp_path, capsys):
    pixels, labels = images(96), np.arange(96) % 2
    pixels[labels == 1, :, :4] //= 4  # told apart by the untrained, too
    source = Arrays(pixels, labels)
    train.run(config(), tmp_path, source=source)
    said = capsys.readouterr().err
    assert "72 images" in said and "24 held out" in said
    (line,) = [x for x in said.splitlines() if x.startswith("verdict on 24 images")]
    found = json.loads((tmp_path / "verdict.json").read_text())
    old, new = (100 * np.mean(found[x]["right"]) for x in ("before", "after"))
    assert f"20-NN top-1 {old:.1f} % before, {new:.1f} % after" in line
    assert old > 80  # not chance: neighbours and labels belong together
    old, new = (100 * np.mean(found[x]["linear"]) for x in ("before", "after"))
    assert f"linear top-1 {old:.1f} % before, {new:.1f} % after" in line and old > 80
    kept = (tmp_path / "verdict.json").read_bytes()
    train.run(config(), tmp_path, source=source)
    assert line in capsys.readouterr().err.splitlines()
    assert (tmp_path / "verdict.json").read_bytes() == kept
    (tmp_path / "verdict.json").write_bytes(kept[:-9])
    train.run(config(), tmp_path, source=source)
    assert "no verdict: " in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_without_labels_is_judged_by_what_tells_images_apart(tmp_path, capsys):
    train.run(config(), tmp_path, source=images(256))
    said = capsys.readouterr().err
    (line,) = [x for x in said.splitlines() if x.startswith("verdict on 64 images")]
    for name in ("LiDAR ", "RankMe ", "alpha-ReQ ", "loss "):
        assert name in line and line.count(" ±") == 4
    found = json.loads((tmp_path / "verdict.json").read_text())
    for part in ("before", "after"):
        assert 1 <= found[part]["LiDAR"]["all"] <= 64
        assert len(found[part]["loss"]["without"]) == 8


@pytest.mark.long
def test_it_changes_no_bit_of_the_training(tmp_path):
    judged = train.run(config(), tmp_path / "a", source=images(64))
    job = train.pretrain.Pretraining(config(), None, None, images(64), None)
    plain = replace(config(), data=replace(config().data, held_out=0.0))
    other = train.run(plain, tmp_path / "b", source=job.images)
    for a, b in zip(*map(_leaves, (judged, other)), strict=True):
        np.testing.assert_array_equal(a, b)


def _leaves(trained):
    return jax.tree.leaves(jax.device_get(trained.state.params))


@pytest.mark.long
def test_a_folder_run_is_evaluated_on_what_it_held_out(tmp_path, capsys):
    folder = pictures(tmp_path / "images", "badc", each=10)
    data = dict(name="folder", path=str(folder), mean=(0.5,) * 3, std=(0.5,) * 3)
    run = tmp_path / "run"
    train.run(config(**data, held_out=0.4), run)
    given = dict(task="knn", checkpoint=str(run), knn=dict(neighbours=(5,)), seed=9)
    tasks.run(evaluation.parse(given), None, name="knn")
    result = json.loads((run / "eval" / "knn" / "result.json").read_text())
    assert result["tested"] == 16
    verdict_of_run = json.loads((run / "verdict.json").read_text())
    assert verdict_of_run["after"]["images"] == 16

"""Arrays and numbers behind a report, each against a plain computation."""

import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the extra report")

from vicreg_jax.report import map as maps  # noqa: E402


def normal(n):
    return np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32)


def test_neighbours_are_those_of_a_plain_sort():
    x = normal(200)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    wanted = np.argsort(-(unit @ unit.T), axis=1)[:, 1:6]  # the first is itself
    np.testing.assert_array_equal(maps.nearest(x, np.arange(200), 5), wanted)


def test_agreement_of_separated_groups_is_whole_and_of_noise_is_chance():
    labels = np.arange(600) % 3
    apart = np.eye(3, dtype=np.float32)[labels]
    share, chance = maps.agreement(apart, labels, 8)
    assert share == 1 and chance == pytest.approx(199 / 599)
    noise = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
    share, _ = maps.agreement(noise, labels, 8)
    assert abs(share - chance) < 5 * np.sqrt(chance * (1 - chance) / (600 * 8))


def test_queries_take_one_of_each_class_first():
    labels = np.array([2, 2, 0, 0, 1, 2])
    assert maps.queries(labels, 6, 4).tolist() == [2, 4, 0, 3]
    assert maps.queries(labels, 6, 3).tolist() == [2, 4, 0]
    assert maps.queries(labels, 6, 2).tolist() == [2, 0]
    assert maps.queries(None, 5, 3).tolist() == [0, 2, 4]


def test_principal_components_are_those_of_the_covariance():
    x = np.random.default_rng(0).normal(size=(50, 6)) * np.arange(1, 7)
    scores = maps.pca(x, 2)
    variances = np.linalg.eigvalsh(np.cov(x.T))[::-1]
    np.testing.assert_allclose(scores.var(axis=0, ddof=1), variances[:2])
    assert abs(np.corrcoef(scores.T)[0, 1]) < 1e-10
    assert (scores.max(axis=0) == np.abs(scores).max(axis=0)).all()
    assert maps.pca(x[:, :1], 2)[:, 1].tolist() == [0] * 50


def test_map_keeps_groups_together(monkeypatch):
    pytest.importorskip("sklearn", reason="the extra demo")
    monkeypatch.setitem(sys.modules, "umap", None)
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    x = 5 * np.eye(3)[labels] + rng.normal(size=(90, 3)) * 0.2
    method, xy = maps.project(x.astype(np.float32))
    assert method == "t-SNE" and xy.shape == (90, 2) and xy.dtype == np.float64
    near = np.linalg.norm(xy[:, None] - xy[None], axis=2).argsort(axis=1)[:, 1]
    assert (labels[near] == labels).all()
    np.testing.assert_array_equal(maps.project(x.astype(np.float32))[1], xy)


def test_map_without_other_packages_or_of_few_images_is_pca(monkeypatch):
    modules = sys.modules
    x = normal(30)
    assert maps.project(x[:5])[0] == "PCA"
    monkeypatch.setitem(modules, "umap", None)
    monkeypatch.setitem(modules, "sklearn.manifold", None)
    method, xy = maps.project(x)
    assert method == "PCA" and xy.shape == (30, 2)


def test_thumbnails_on_the_map_keep_clear_of_each_other_and_of_names():
    xy = np.random.default_rng(0).uniform(size=(500, 2))
    boxes = [(0.5, 0.5, 0.1, 0.02)]
    chosen = xy[maps.spaced(xy, 0.05, boxes)]
    gaps = np.abs(chosen[:, None] - chosen[None]).max(axis=2)
    assert gaps[~np.eye(len(chosen), dtype=bool)].min() >= 0.05 and len(chosen) > 100
    assert not (np.abs(chosen - 0.5) < (0.125, 0.045)).all(axis=1).any()


def test_names_on_the_map_do_not_overlap_while_there_is_room():
    xy = np.random.default_rng(0).uniform(size=(300, 2))
    boxes = []
    for _ in range(5):
        boxes.append(maps.label_box(xy, (0.06, 0.02), boxes))
    at = np.array(boxes)[:, :2]
    apart = np.abs(at[:, None] - at[None]) >= (0.12, 0.04)
    assert (apart.any(axis=2) | np.eye(5, dtype=bool)).all()

"""Nearest neighbours against scikit-learn and sorting, votes against loops."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors

from vicreg_jax.devices import sharding
from vicreg_jax.evaluate import neighbours


def features(n, f=32, seed=0):
    """Of different lengths, and with a mean, so that cosines are not all small."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, f)) + rng.standard_normal(f)
    return (x * rng.uniform(0.1, 30, (n, 1))).astype(np.float32)


def on(devices):
    return sharding.data_mesh(jax.devices()[:devices])


def by_sorting(queries, bank, k):
    """In float64, with exact ties broken by a stable sort."""

    def unit(x):
        x = np.asarray(x, np.float64)
        length = np.linalg.norm(x, axis=1, keepdims=True)
        return x / np.where(length == 0, 1, length)

    similarities = unit(queries) @ unit(bank).T
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarities, order, axis=1), order


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("scaled", [features, None])
def test_neighbours_are_those_of_scikit_learn(devices, scaled):
    if scaled:
        queries, bank = features(60, seed=1), features(1003)
    else:
        images = load_digits().data
        queries, bank = images[1000:], images[:1000]
    k = 20
    got, indices = neighbours.nearest(queries, bank, k=k, mesh=on(devices))
    model = NearestNeighbors(metric="cosine", algorithm="brute", n_neighbors=k + 1)
    distances, want = model.fit(np.float64(bank)).kneighbors(np.float64(queries))
    # Cosines of float32 unit vectors of 64 dimensions: 1e-6 is 8 units of the last
    # place of 1.
    np.testing.assert_allclose(got, 1 - distances[:, :k], atol=1e-6)
    apart = np.diff(distances, axis=1) > 1e-5
    clear = apart & np.c_[np.ones((len(queries), 1), bool), apart[:, :-1]]
    assert clear.mean() > 0.9
    assert (indices == want[:, :k])[clear].all()


@pytest.mark.parametrize("n", [1000, 1003, 9, 5])
def test_eight_devices_find_what_one_finds(mesh, n):
    queries, bank = features(33, seed=1), features(n)
    k = min(n, 7)
    one = neighbours.nearest(queries, bank, k=k, mesh=on(1))
    eight = neighbours.nearest(queries, bank, k=k, mesh=mesh)
    np.testing.assert_array_equal(one[1], eight[1])
    # The same products, perhaps added in another order.
    np.testing.assert_allclose(one[0], eight[0], atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(n=st.integers(8, 60), share=st.integers(1, 8), seed=st.integers(0, 99))
def test_of_equal_similarities_the_lower_index_comes_first(n, share, seed):
    # Powers of two in one dimension: cosines of exactly 0, 1 and -1.
    rng = np.random.default_rng(seed)
    values = np.array([-4, -1, 0, 0.5, 8], np.float32)
    bank, queries = np.zeros((2, n, 4), np.float32)
    bank[np.arange(n), rng.integers(0, 4, n)] = rng.choice(values, n)
    queries[np.arange(n), rng.integers(0, 4, n)] = rng.choice(values, n)
    k = max(1, n * share // 8)
    got = neighbours.nearest(queries, bank, k=k, mesh=on(8))
    for a, b in zip(got, by_sorting(queries, bank, k), strict=True):
        np.testing.assert_array_equal(a, b)


def test_copies_of_a_row_come_in_the_order_of_the_bank(mesh):
    bank = np.tile(features(10), (20, 1))  # copies on every device
    _, indices = neighbours.nearest(features(5, seed=1), bank, k=200, mesh=mesh)
    for row in indices.reshape(5, 10, 20):
        np.testing.assert_array_equal(
            row - row[:, :1], np.arange(0, 200, 10)[None, :] + 0 * row
        )


def test_padding_never_wins_even_where_all_similarities_are_negative(mesh):
    bank = -np.abs(features(9))  # two rows on each of 5 devices, the rest padded
    similarities, indices = neighbours.nearest(-bank, bank, k=9, mesh=mesh)
    assert similarities.max() < 0
    np.testing.assert_array_equal(
        np.sort(indices, axis=1), np.tile(np.arange(9), (9, 1))
    )


def test_rows_of_zeros_have_similarity_zero(mesh):
    bank, queries = features(20), features(3, seed=1)
    bank[[4, 11]] = 0
    queries[1] = 0
    similarities, indices = neighbours.nearest(queries, bank, k=20, mesh=mesh)
    assert (similarities[np.isin(indices, [4, 11])] == 0).all()
    assert (similarities[1] == 0).all()
    np.testing.assert_array_equal(indices[1], np.arange(20))


def test_length_of_features_does_not_matter(mesh):
    queries, bank = features(9, seed=1), features(50)
    want = neighbours.nearest(queries, bank, k=5, mesh=mesh)
    # Squares of 1e-30 and 1e30 leave float32; powers of two change no digit.
    for scale in 2.0**-100, 2.0**100:
        got = neighbours.nearest(queries, bank * np.float32(scale), k=5, mesh=mesh)
        np.testing.assert_array_equal(got, want)


def test_scores_stay_below_their_bytes_and_products_have_full_precision(
    mesh, monkeypatch
):
    search, shapes = neighbours._search, []

    def seen(queries, bank, **settings):
        shapes.append(queries.shape)
        compiled = search.lower(queries, bank, **settings).compile()
        k, rows = settings["k"], len(bank) // 8
        scores = 4 * len(queries) * rows
        assert scores <= 10_000
        # Beside the scores: candidates and indices of 8 devices, each a few times.
        candidates = 8 * len(queries) * 8 * (k + 5)
        held = compiled.memory_analysis().temp_size_in_bytes
        assert held <= scores + 4 * candidates
        text = compiled.as_text()
        assert "operand_precision={highest,highest}" in text
        assert text.count("all-gather(") == 2
        return search(queries, bank, **settings)

    monkeypatch.setattr(neighbours, "_search", seen)
    queries, bank = features(50, seed=1), features(1003)
    got = neighbours.nearest(queries, bank, k=3, mesh=mesh, score_bytes=10_000)
    assert shapes == [(19, 32)] * 3  # 10,000 bytes / (4 bytes * 126 rows)
    np.testing.assert_array_equal(got[1], by_sorting(queries, bank, 3)[1])


def test_one_query_at_a_time_is_the_least(mesh):
    queries, bank = features(3, seed=1), features(100)
    got = neighbours.nearest(queries, bank, k=3, mesh=mesh, score_bytes=1)
    np.testing.assert_array_equal(got[1], by_sorting(queries, bank, 3)[1])


def test_no_queries_have_no_neighbours(mesh):
    similarities, indices = neighbours.nearest(
        np.zeros((0, 4)), np.ones((9, 4)), k=2, mesh=mesh
    )
    assert similarities.shape == indices.shape == (0, 2)


@pytest.mark.parametrize(
    ("queries", "bank", "k", "message"),
    [
        ((4, 3), (9, 4), 1, r"same f; got \(4, 3\) and \(9, 4\)"),
        ((4,), (9, 4), 1, r"got \(4,\) and"),
        ((4, 3), (9, 3), 10, "from 1 to the 9 rows of the bank; got 10"),
        ((4, 3), (9, 3), 0, "got 0"),
        ((4, 3), (0, 3), 1, "from 1 to the 0 rows"),
    ],
)
def test_what_does_not_fit_is_refused(mesh, queries, bank, k, message):
    with pytest.raises(ValueError, match=message):
        neighbours.nearest(np.ones(queries), np.ones(bank), k=k, mesh=mesh)


def test_features_that_are_not_finite_are_refused_with_their_number(mesh):
    bank = features(20)
    bank[[3, 7], [1, 2]] = np.nan, np.inf
    with pytest.raises(ValueError, match="2 of the 20 rows of the bank are not finite"):
        neighbours.nearest(features(4), bank, k=1, mesh=mesh)
    with pytest.raises(ValueError, match="2 of the 20 rows of the queries"):
        neighbours.nearest(bank, features(4), k=1, mesh=mesh)
    with pytest.raises(ValueError, match="4 of the 4 rows of the bank"):
        neighbours.nearest(np.ones((2, 3)), np.full((4, 3), 1e200), k=1, mesh=mesh)


def voted(similarities, labels, classes, temperature):
    """One neighbour at a time."""
    scores = np.zeros((len(labels), classes))
    for i, row in enumerate(labels):
        for s, label in zip(similarities[i], row, strict=True):
            scores[i, label] += np.exp(s / temperature)
    return scores


def test_weighted_votes_are_proportional_to_those_of_a_loop():
    rng = np.random.default_rng(0)
    similarities = -np.sort(-rng.uniform(-1, 1, (30, 12)), axis=1)
    labels = rng.integers(0, 5, (30, 12))
    got = neighbours.votes(similarities, labels, classes=5, temperature=0.07)
    want = voted(similarities, labels, 5, 0.07)
    shares = [x / x.sum(axis=1, keepdims=True) for x in (got, want)]
    np.testing.assert_allclose(*shares, rtol=1e-12)  # float64 both


def test_weights_stay_finite_at_low_temperatures():
    scores = neighbours.votes([[1, 0.5]], [[0, 1]], classes=2, temperature=1e-4)
    np.testing.assert_array_equal(scores, [[1, 0]])


def test_most_votes_win_and_ties_go_to_the_nearest_of_those_tied():
    labels = [[2, 0, 0, 1], [2, 1, 1, 2], [1, 2, 2, 1], [3, 0, 2, 1], [3, 1, 2, 2]]
    s = np.tile([0.9, 0.8, 0.7, 0.6], (5, 1))
    scores = neighbours.votes(s, labels, classes=4, temperature=None)
    np.testing.assert_array_equal(scores.argmax(axis=1), [0, 2, 1, 3, 2])
    # The second row: a tie of 2 and 1, which hold 2 votes each; 0 and 3 hold none.
    np.testing.assert_array_equal(np.floor(scores[1]), [0, 2, 2, 0])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(0, 999))
def test_plain_votes_are_counts_to_the_half(k, seed):
    labels = np.random.default_rng(seed).integers(0, 4, (6, k))
    scores = neighbours.votes(np.zeros((6, k)), labels, classes=4, temperature=None)
    want = np.array([np.bincount(row, minlength=4) for row in labels])
    extra = scores - want
    assert (0 <= extra).all() and (extra <= 0.5).all() and (extra[want == 0] == 0).all()
    for row, votes in zip(labels, scores, strict=True):
        tied = np.flatnonzero(np.floor(votes) == np.floor(votes.max()))
        assert votes.argmax() == next(c for c in row if c in tied)


@pytest.mark.parametrize(
    ("labels", "temperature", "message"),
    [
        ([[0, 3]], 0.1, "from 0 to 2; got 0 to 3"),
        ([[-1, 0]], 0.1, "got -1 to 0"),
        ([[0.0, 1.0]], 0.1, "must be integers; got float64"),
        ([[0, 1, 2]], 0.1, r"one shape \[m, k\]; got \(1, 2\) and \(1, 3\)"),
        ([[0, 1]], 0.0, "temperature must be > 0 or None; got 0.0"),
        ([[0, 1]], float("nan"), "got nan"),
    ],
)
def test_votes_that_cannot_be_counted_are_refused(labels, temperature, message):
    with pytest.raises(ValueError, match=message):
        neighbours.votes([[0.5, 0.2]], labels, classes=3, temperature=temperature)


def test_accuracies_are_those_of_a_loop(mesh):
    images, labels = load_digits(return_X_y=True)
    known, asked = slice(0, 300), slice(300, 420)
    got = neighbours.accuracy(
        images[asked],
        labels[asked],
        images[known],
        labels[known],
        neighbours=(1, 20),
        temperature=0.07,
        mesh=mesh,
        classes=10,
    )
    assert set(got) == {(k, v) for k in (1, 20) for v in ("weighted", "plain")}
    similarities, indices = by_sorting(images[asked], images[known], 20)
    near = labels[known][indices]
    scores = voted(similarities, near, 10, 0.07)
    order = np.argsort(-scores, axis=1, kind="stable")
    right = (order == labels[asked][:, None]) & (
        np.take_along_axis(scores, order, 1) > 0
    )
    want = 100 * right[:, 0].mean(), 100 * right[:, :5].any(axis=1).mean()
    assert got[20, "weighted"] == pytest.approx(want)
    first = 100 * np.mean(near[:, 0] == labels[asked])
    for name in ("weighted", "plain"):  # one neighbour has one vote: no top five
        assert got[1, name] == pytest.approx((first, first))
    assert got[20, "plain"][0] > 80


def test_accuracies_need_labels_that_fit(mesh):
    settings = dict(neighbours=(1,), mesh=mesh, classes=3)
    x, y = np.ones((4, 2)), np.array([0, 1, 2, 0])
    with pytest.raises(ValueError, match=r"4 rows of the queries .* shape \(3,\)"):
        neighbours.accuracy(x, y[:3], x, y, **settings)
    with pytest.raises(ValueError, match="labels of the bank must be from 0 to 2"):
        neighbours.accuracy(x, y, x, y + 1, **settings)
    with pytest.raises(ValueError, match="got 0 queries"):
        neighbours.accuracy(x[:0], y[:0], x, y, **settings)

"""Average precision against a loop, SVMs against scikit-learn, the reader on files."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vicreg_jax.evaluate import multilabel

COSTS = (0.1, 1.0, 10.0)


def curve(scores, labels):
    """Returns (recall, precision) of every threshold, from the definition."""
    points = []
    for threshold in set(scores):
        found = [y for s, y in zip(scores, labels, strict=True) if s >= threshold and y]
        hits = sum(y == 1 for y in found)
        if found:
            points.append((hits / sum(y == 1 for y in labels), hits / len(found)))
    return sorted(points)


def by_loop(scores, labels, eleven_point):
    points = curve(scores, labels)

    def best(recall):
        # Recalls are shares of whole images: 1e-9 is rounding only.
        return max((p for r, p in points if r >= recall - 1e-9), default=0)

    if eleven_point:
        return sum(best(i / 10) for i in range(11)) / 11
    positives = sum(y == 1 for y in labels)
    return sum(best(i / positives) for i in range(1, positives + 1)) / positives


def test_average_precision_of_a_short_list():
    # Positives at 1, 3 and 6: precisions 1, 2/3, 1/2 at recalls 1/3, 2/3, 1.
    scores, labels = [9, 8, 7, 6, 5, 4, 3], [1, -1, 1, -1, -1, 1, -1]
    area = multilabel.average_precision(scores, labels, eleven_point=False)
    assert area == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)
    points = multilabel.average_precision(scores, labels, eleven_point=True)
    # Recalls 0 to 0.3, 0.4 to 0.6, 0.7 to 1.
    assert points == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 / 2) / 11)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-5, 5), st.sampled_from([1, 1, -1, -1, 0])),
        min_size=1,
        max_size=25,
    ),
    st.booleans(),
)
def test_average_precision_is_that_of_a_loop(pairs, eleven_point):
    scores, labels = zip(*[*pairs, (0, 1)], strict=True)  # at least one positive
    got = multilabel.average_precision(scores, labels, eleven_point=eleven_point)
    assert got == pytest.approx(by_loop(scores, labels, eleven_point))


def test_ten_positives_reach_every_tenth_of_recall():
    # 3 / 10 is not 0.3 in floats; the third positive is the last of precision 1.
    scores, labels = -np.arange(17), [1, 1, 1, *[-1] * 7, *[1] * 7]
    got = multilabel.average_precision(scores, labels, eleven_point=True)
    assert got == pytest.approx((4 + 7 * 10 / 17) / 11)


def test_difficult_images_have_no_part_in_it():
    rng = np.random.default_rng(0)
    scores, labels = rng.standard_normal(50), rng.choice([1, -1, 0], 50)
    for eleven_point in (False, True):
        ap = [
            multilabel.average_precision(s, y, eleven_point=eleven_point)
            for s, y in ((scores, labels), (scores[labels != 0], labels[labels != 0]))
        ]
        assert ap[0] == ap[1]


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1, 2], [1], r"one shape \[n\]; got \(2,\) and \(1,\)"),
        ([1, 2], [1, 2], r"labels must be 1, -1 or 0; got \[1, 2\]"),
        ([1, 2], [0, -1], "an image of label 1; got none"),
        ([1, np.nan], [1, -1], "finite scores"),
    ],
)
def test_what_has_no_average_precision_is_refused(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        multilabel.average_precision(scores, labels, eleven_point=False)


def split(n, seed):
    """Three classes that follow directions of the features, some images difficult."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 8)) * rng.uniform(1, 9, (n, 1))
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    y = np.where(units[:, :3] + 0.2 * rng.standard_normal((n, 3)) > 0.3, 1, -1)
    y[rng.random((n, 3)) < 0.1] = 0
    return x, y, units


@pytest.fixture
def svm():
    return pytest.importorskip("sklearn.svm", reason="linear SVMs need scikit-learn")


def test_scores_are_those_of_the_same_svms_fitted_here(svm):
    x, y, units = split(150, 0)
    asked, answers, asked_units = split(100, 1)
    for eleven_point in (False, True):
        got = multilabel.fit_and_score(
            x, y, asked, answers, costs=COSTS, eleven_point=eleven_point
        )
        assert set(got.costs) <= set(COSTS)
        for c, (ap, cost) in enumerate(zip(*got[:2], strict=True)):
            use = y[:, c] != 0
            model = svm.LinearSVC(C=cost, class_weight={1: 2, -1: 1}, random_state=0)
            model.fit(units[use], y[use, c])
            scores = model.decision_function(asked_units)
            want = 100 * by_loop(scores, answers[:, c], eleven_point)
            assert ap == pytest.approx(want)
        assert got.mean == pytest.approx(sum(got.average_precision) / 3)
    assert got.mean > 60  # of about 35 % positives


def test_cost_is_the_best_of_cross_validation(svm):
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    x, y, units = split(150, 0)
    got = multilabel.fit_and_score(x, y, x, y, costs=COSTS[::-1], folds=4, seed=7)
    for c, cost in enumerate(got.costs):
        use = y[:, c] != 0
        means = []
        for C in COSTS:
            model = svm.LinearSVC(C=C, class_weight={1: 2, -1: 1}, random_state=7)
            scores = cross_val_score(
                model,
                units[use],
                y[use, c],
                cv=StratifiedKFold(4, shuffle=True, random_state=7),
                scoring=lambda m, a, b: by_loop(m.decision_function(a), b, False),
            )
            means.append(scores.mean())
        assert cost == COSTS[int(np.argmax(means))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(train_labels=np.ones((9, 2))), r"training needs .* got \(150, 8\) and"),
        (dict(test_labels=np.full((100, 3), -1)), "1 test images of label 1 or more"),
        (dict(test_labels=np.full((100, 3), 2)), r"must be 1, -1 or 0; got \[2\]"),
        (dict(test_features=np.full((100, 8), np.nan)), "100 of the 100 test rows"),
        (dict(test_features=np.ones((100, 7))), r"same features .* \[8, 3\] and \[7"),
        (dict(folds=1), "folds >= 2 and costs > 0; got 1"),
        (dict(costs=(0.0, 1.0)), "costs > 0"),
        (dict(costs=()), "costs > 0"),
        (dict(folds=200), "200 training images of label 1 or more; class"),
    ],
)
def test_splits_that_do_not_fit_are_refused(svm, change, message):
    (x, y, _), (asked, answers, _) = split(150, 0), split(100, 1)
    arrays = dict(
        train_features=x, train_labels=y, test_features=asked, test_labels=answers
    )
    with pytest.raises(ValueError, match=message):
        multilabel.fit_and_score(**{**arrays, **change})


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    x, y, _ = split(20, 0)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "vicreg_jax\[demo\]"'):
        multilabel.fit_and_score(x, y, x, y)


@pytest.fixture
def devkit(tmp_path):
    """Two classes and three images, in the layout of VOC."""
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (tmp_path / "JPEGImages").mkdir()
    for name in ("000005", "000007", "000009"):
        (tmp_path / "JPEGImages" / f"{name}.jpg").touch()
    (lists / "dog_trainval.txt").write_text("000007  1\n000005 -1\n000009  0\n")
    (lists / "cat_trainval.txt").write_text("000005  1\n000007 -1\n000009  1\n")
    (lists / "dog_val.txt").write_text("000005 -1\n")
    (lists / "trainval.txt").write_text("000005\n000007\n000009\n")
    return tmp_path


def test_a_devkit_is_read(devkit):
    paths, labels, classes = multilabel.read_multilabel(devkit, "trainval")
    assert classes == ["cat", "dog"]
    assert [p.name for p in paths] == ["000005.jpg", "000007.jpg", "000009.jpg"]
    assert all(p.is_file() for p in paths)
    np.testing.assert_array_equal(labels, [[1, -1], [-1, 1], [1, 0]])
    assert labels.dtype == np.int8
    assert multilabel.read_multilabel(str(devkit), "val").classes == ["dog"]


def test_what_is_missing_is_said(devkit):
    with pytest.raises(FileNotFoundError, match="no files CLASS_test.txt in .*'test'"):
        multilabel.read_multilabel(devkit, "test")
    with pytest.raises(FileNotFoundError, match="no folder .*Main"):
        multilabel.read_multilabel(devkit / "JPEGImages", "trainval")
    (devkit / "JPEGImages" / "000007.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="1 of the 3 images .* 000007.jpg"):
        multilabel.read_multilabel(devkit, "trainval")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("000005 2\n", r"dog_trainval.txt, line 1: expected .* got '000005 2'"),
        ("000005 1\n000007\n", "line 2: expected an image's name and 1, -1 or 0"),
        ("000005 1\n000005 1\n", "line 2: '000005' comes twice"),
        ("", "dog_trainval.txt lists no images"),
        ("000005 1\n", "different images: 2 are in one only, such as '000007'"),
    ],
)
def test_what_is_inconsistent_is_said(devkit, text, message):
    (devkit / "ImageSets" / "Main" / "dog_trainval.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        multilabel.read_multilabel(devkit, "trainval")

"""Labels: what is one, who has none, and what is refused before anything compiles."""

import threading

import numpy as np
import pytest
from helpers.refusals import refused

from vicreg_jax.data import labels as rule
from vicreg_jax.data.source import Arrays, as_source, count_classes
from vicreg_jax.data.sources.arrays import open_arrays
from vicreg_jax.refusals import Refusal

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
GOOD = [[0, 1, 2, 0, 1, 2], [-1, 5, -1, 0, 999_999, -1], [-1] * 6]
BAD = {  # the first wrong one, where it is
    (0, 1, -2, 0, -3, 1): "image 2 has the label -2; expected 0 to 999999, or -1 for",
    (0, 1, 2, 10**12, 0, 1): "image 3 has the label 1000000000000; expected 0 to 99",
    (-1, 1_000_000, 0, 0, 0, 0): "image 1 has the label 1000000; expected",
    (0, 0, 0, 0, 0, -(2**63)): "image 5 has the label -9223372036854775808; expected",
}


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
def test_labels_keep_their_numbers_whatever_their_type(dtype):
    given = np.array([0, 5, -1, 100, -1, 7], dtype)
    found = Arrays(IMAGES, given).labels
    assert found.dtype == np.int64 and found.tolist() == given.tolist()
    np.testing.assert_array_equal(rule.known(found), [0, 1, 3, 5])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint64])
def test_what_was_minus_one_in_an_unsigned_type_is_no_label_at_all(dtype):
    given = np.array([0, 1, 2, 0, 1, -1]).astype(dtype)
    if dtype == np.uint64:
        with refused(Refusal, "image 5 has the label 18446744073709551615; expected"):
            Arrays(IMAGES, given)
    else:  # it may be one
        assert Arrays(IMAGES, given).labels[5] == 255


@pytest.mark.parametrize("given", GOOD)
def test_an_image_without_a_label_is_known(given):
    found = Arrays(IMAGES, np.array(given))
    want = [i for i, label in enumerate(given) if label >= 0]
    assert rule.known(found.labels).tolist() == want
    assert rule.exist(found.labels) == bool(want)
    if want:
        assert count_classes(found) == max(given) + 1
    assert rule.known(None).tolist() == [] and not rule.exist(None)


@pytest.mark.parametrize("given", BAD)
def test_numbers_of_no_class_are_refused_wherever_they_come_from(tmp_path, given):
    class Own:
        labels = np.array(given)

        def __len__(self):
            return 6

        def __getitem__(self, indices):
            return IMAGES[indices]

    np.savez(tmp_path / "x.npz", images=IMAGES, labels=given)
    tests = dict(test_images=IMAGES, test_labels=given)
    np.savez(tmp_path / "y.npz", images=IMAGES, labels=[0] * 6, **tests)
    lazy = rule.Labels(given.__getitem__, [0, 1, 2, 3, 4, 5], (), 2, lambda *_: None)
    for action in (
        lambda: Arrays(IMAGES, np.array(given)),
        lambda: as_source(Own()),
        lambda: open_arrays(str(tmp_path / "x.npz")),
        lambda: open_arrays(str(tmp_path / "y.npz")),
        lambda: lazy[np.arange(6)],
        lambda: np.asarray(lazy),
        lambda: [lazy[i] for i in range(6)],
    ):
        with refused(Refusal, BAD[given]):
            action()


def test_a_label_beyond_the_names_of_the_classes_is_refused():
    Arrays(IMAGES, np.array([0, 1, 1, -1, 0, 1]), classes=["a", "b"])
    with refused(Refusal, "image 2 has the label 2; expected 0 to 1, or -1 for"):
        Arrays(IMAGES, np.array([0, 1, 2, -1, 0, 1]), classes=["a", "b"])


def lazy(read, count=200, classes=()):
    names, broken, asked = [f"x{i}" for i in range(count)], {}, []
    lock = threading.Lock()

    def one(index):
        with lock:
            asked.append(index)
        return read(index)

    found = rule.Labels(one, names, classes, 4, broken.__setitem__)
    return found, broken, asked


def test_lazy_labels_are_read_when_asked_for_and_all_of_them_once():
    found, broken, asked = lazy(lambda i: i % 7)
    assert found[3] == 3 and found[np.array([9, 8, 9])].tolist() == [2, 1, 2]
    assert sorted(asked) == [3, 8, 9, 9] and len(found) == 200 and not broken
    for _ in range(2):
        np.testing.assert_array_equal(np.asarray(found), np.arange(200) % 7)
    assert len(asked) == 204 and found[5] == 5 and len(asked) == 204
    with pytest.raises(IndexError):
        found[200]


def test_of_lazy_labels_no_more_are_read_than_it_takes():
    found, _, asked = lazy(lambda i: 3)
    assert rule.exist(found) and len(asked) < 100
    # The only one lies between those that it looks at first.
    found, _, asked = lazy(lambda i: 3 if i == 1 else -1)
    assert rule.exist(found) and rule.known(found).tolist() == [1]
    found, _, _ = lazy(lambda i: -1)
    assert not rule.exist(found)


def test_an_image_whose_record_is_damaged_has_no_label_and_is_noted():
    def read(index):
        if index % 50 == 7:
            raise ValueError("the checksum of the record is wrong")
        return 0

    found, broken, _ = lazy(read)
    assert rule.known(found).tolist() == [i for i in range(200) if i % 50 != 7]
    assert sorted(broken) == [7, 57, 107, 157] and "checksum" in str(broken[7])


def test_a_refusal_of_a_reader_is_passed_on_and_a_wrong_label_named():
    def read(index):
        if index == 7:
            raise Refusal("x7 has no label")
        return index

    found, broken, _ = lazy(read, classes=["a"] * 100)
    with refused(Refusal, "x7 has no label"):
        np.asarray(found)
    with refused(Refusal, "image x130 has the label 130; expected 0 to 99, or -1"):
        found[np.array([3, 130])]
    assert not broken

"""What an encoder is judged on: which images and labels, and what is refused."""

import hashlib
import http.server
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vicreg_jax import config as configs
from vicreg_jax.config import evaluation as protocols
from vicreg_jax.evaluate.inputs import (
    balanced,
    held_out,
    listed,
    need_labels,
    open_inputs,
)
from vicreg_jax.weights import Encoder

RUN = configs.parse(
    dict(data=dict(name="digits", image_size=8, mean=(0.0,), std=(1.0,)))
)


FRACTION = "069d8983ea9835cdae79cff8517a7fe70a36d5d4874d7ec5f2dd1460a79ab0b0"


def protocol(task="linear", **groups):
    return protocols.parse(dict(task=task, checkpoint="run", **groups))


def load(given, trained):
    size = trained.data.image_size if trained else 224
    encoder = Encoder(
        None, {}, mean=(0.0,), std=(1.0,), image_size=size, config=trained
    )
    return open_inputs(given, encoder)


def write(root, classes=("ant", "bee"), count=3):
    """Class folders of small pictures; the name of each is its own."""
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture = np.full((20, 24, 3), 40 * c + 10 * i, np.uint8)
            Image.fromarray(picture).save(root / name / f"{name}_{i}.png")
    return str(root)


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    fraction=st.floats(0.01, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_fraction_has_the_share_of_each_class_and_depends_on_the_seed_alone(
    counts, fraction, seed
):
    labels = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng(1).shuffle(labels)
    found = balanced(labels, fraction, seed)
    assert len(set(found.tolist())) == len(found) and (np.diff(found) > 0).all()
    want = [max(1, round(fraction * n)) for n in counts]
    assert np.bincount(labels[found], minlength=len(counts)).tolist() == want
    np.testing.assert_array_equal(found, balanced(labels.copy(), fraction, seed))


def test_other_seeds_choose_other_images():
    labels = np.zeros(1000, int)
    a, b = (balanced(labels, 0.1, seed) for seed in (0, 1))
    assert len(set(a) & set(b)) < 30  # 10 expected of independent draws


def test_the_order_of_a_fraction_is_a_file_format():
    found = balanced(np.arange(10_000) % 10, 0.01, 7)
    assert hashlib.sha256(found.astype("<i8").tobytes()).hexdigest() == FRACTION


@pytest.mark.parametrize(
    ("purpose", "want"),
    [
        ("balanced", [281, 331, 344, 381, 776, 798, 824, 860]),
        ("held_out", [29, 355, 375, 562, 623, 798, 846, 996]),
        ("knn_queries", [54, 154, 164, 301, 433, 555, 565, 847]),
        ("knn_bank", [24, 178, 277, 315, 324, 769, 806, 985]),
        ("gallery", [225, 232, 462, 503, 505, 664, 707, 821]),
    ],
)
def test_what_is_drawn_for_each_purpose_never_changes(purpose, want):
    found = balanced(np.zeros(1000, int), 0.008, 7, purpose=purpose)
    assert found.tolist() == want


def test_held_out_images_are_those_that_are_not_trained_on():
    labels = np.arange(200) % 4
    kept = np.arange(0, 200, 2)  # of two classes
    train, aside = held_out(kept, labels, 0.2, seed=0)
    assert sorted([*train, *aside]) == kept.tolist() and len(aside) == 20
    assert np.bincount(labels[aside], minlength=4).tolist() == [10, 0, 10, 0]
    assert len(held_out(kept, labels, 0.0, seed=0)[1]) == 0


def test_what_is_left_open_is_the_runs_and_the_rest_the_protocols():
    found = load(protocol(data=dict(batch_size=32)), RUN)
    assert found.config.data.name == "digits" and found.config.data.batch_size == 32
    assert found.config.data.image_size == 8 and found.config.data.mean == (0.0,)
    assert found.classes == 10 and len(found.kept) == 1437
    assert len(found.test) == 360
    need_labels(found)


def test_test_images_of_a_folder_lie_apart(tmp_path):
    train, test = write(tmp_path / "a"), write(tmp_path / "b", count=2)
    data = dict(name="folder", path=train, test_path=test, image_size=16)
    found = load(protocol(data=data), None)
    assert (len(found.train), len(found.test)) == (6, 4)
    assert found.classes == 2 and found.shorter_side == 18
    assert found.test.labels.tolist() == [0, 0, 1, 1]


def test_a_list_of_file_names_chooses_the_images(tmp_path):
    names = ["a/x_1.jpg", "a/x_2.jpg", "b/y_1.jpg"]
    (tmp_path / "list.txt").write_text("y_1.jpg\n\nn015/x_1.jpg\n")
    assert listed(names, str(tmp_path / "list.txt")).tolist() == [0, 2]
    (tmp_path / "list.txt").write_text("z.jpg\nx_1.jpg\n")
    with pytest.raises(ValueError, match="1 of the 2 names .* such as z.jpg"):
        listed(names, str(tmp_path / "list.txt"))
    with pytest.raises(ValueError, match="names: nowhere.txt cannot be read"):
        listed(names, "nowhere.txt")


def test_a_name_of_two_images_is_no_choice(tmp_path):
    (tmp_path / "list.txt").write_text("cat/1.jpg\n")
    with pytest.raises(ValueError, match="1 names in .* are of several training"):
        listed(["cat/1.jpg", "dog/1.jpg"], str(tmp_path / "list.txt"))


def test_the_only_image_of_a_class_is_not_held_out():
    train, aside = held_out(np.arange(5), np.array([0, 0, 0, 1, 0]), 0.5, seed=0)
    assert 3 in train and len(aside) == 2


def test_test_images_that_a_run_did_not_see_stay_unseen():
    hidden = configs.parse(
        dict(data=dict(name="digits", validation=True, mean=(0.0,), std=(1.0,)))
    )
    found = load(protocol(), hidden)
    assert len(found.train) == 1077 and len(found.test) == 360
    seen = load(protocol(), RUN)
    assert not np.array_equal(found.test.array, seen.test.array)
    # Asked for by name, the data is the data.
    assert len(load(protocol(data=dict(name="digits")), hidden).train) == 1437


def test_a_list_may_be_a_url(tmp_path):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=tmp_path)

        def log_message(self, *args):
            pass

    (tmp_path / "list.txt").write_text("b.png\n")
    with http.server.HTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert listed(["a.png", "b.png"], f"{url}/list.txt").tolist() == [1]
        with pytest.raises(ValueError, match="cannot be read: HTTP Error 404"):
            listed(["a.png"], f"{url}/other.txt")
        server.shutdown()


def test_refusals(tmp_path):
    train, other = write(tmp_path / "a"), write(tmp_path / "c", classes=("ant", "cow"))
    cases = [
        (dict(), None, "config.data.name is empty, and the checkpoint does not say"),
        (dict(path=train), RUN, "but data.name is empty; did you mean data.name=fo"),
        (dict(), configs.Config(), "the images of the run were fake, or a source of"),
        (
            dict(name="folder", path=train, shorter_side=20),
            None,
            "config.data.shorter_side 20 is less than the image size 224",
        ),
        (
            dict(name="folder", path=train, test_path=other),
            None,
            f"{other} has 2 classes, {train} has 2 classes; expected the same (not in",
        ),
        (dict(name="digits", names="x.txt"), RUN, "names is for image files; arrays"),
    ]
    for data, trained, message in cases:
        with pytest.raises(ValueError) as error:
            load(protocol(data=data), trained)
        assert message in str(error.value) and "\n" not in str(error.value)


def test_labels_that_are_no_classes_of_the_training_images_are_refused(tmp_path):
    images = np.zeros((6, 8, 8, 1), np.uint8)
    made = dict(images=images, test_images=images)
    for labels, tests, message in (
        ([0, 1, 2] * 2, [0, 1, 3] * 2, "test labels are from 0 to 3; expected 0 to 2"),
        ([0, 1, 3] * 2, [0, 1, 3] * 2, "1 of 4 classes have no training image, such"),
        ([-1, 1, 0] * 2, [0, 2] * 3, "test labels are from 0 to 2; expected 0 to 1,"),
        ([-2, 1, 0] * 2, [0] * 6, "image 0 has the label -2; expected 0 to 999999"),
    ):
        np.savez(tmp_path / "x.npz", labels=labels, test_labels=tests, **made)
        data = dict(name="arrays", path=str(tmp_path / "x.npz"))
        with pytest.raises(ValueError, match=message):
            load(protocol(data=data), RUN)


def test_an_evaluation_needs_labels_and_labelled_test_images(tmp_path):
    found = load(protocol(data=dict(name="folder", path=write(tmp_path / "a"))), None)
    with pytest.raises(ValueError, match="no labelled test images; give config.data.t"):
        need_labels(found)
    need_labels(found, test=False)
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    data = dict(name="folder", path=str(tmp_path))
    for i in range(9):  # more than lie in class folders
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match="the training images have no labels"):
        need_labels(load(protocol(data=data), None))

"""Test images that are training images: refused, however they come to be both."""

import os
import shutil

import numpy as np
import pytest
from helpers import tfrecords
from helpers.evaluations import load, protocol
from helpers.pictures import pictures
from helpers.refusals import refused
from PIL import Image

from vicreg_jax import config as configs
from vicreg_jax import evaluate
from vicreg_jax.data.preparing import prepare
from vicreg_jax.data.source import Arrays
from vicreg_jax.data.sources.arrays import open_arrays
from vicreg_jax.data.sources.folder import open_folder
from vicreg_jax.evaluate import apart
from vicreg_jax.refusals import Refusal

RUN = configs.parse(dict(data=dict(image_size=8)))
SEEN = "the test images are training images"


def opened(name, path, test_path, task="knn"):
    data = dict(name=name, path=str(path), test_path=str(test_path))
    return load(protocol("", task=task, data=data), RUN)


def other(root, count=3):
    """Images of the same classes, others than those of `pictures`."""
    for name in "ab":
        (root / name).mkdir(parents=True)
        for i in range(count):
            image = np.random.default_rng(i).integers(0, 256, (9, 9, 3), np.uint8)
            Image.fromarray(image).save(root / name / f"{i}.png")
    return root


def linked(root, files):
    for file in files:
        at = root / os.path.basename(os.path.dirname(file)) / os.path.basename(file)
        at.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(file, at)
    return root


@pytest.fixture
def train(tmp_path):
    return pictures(tmp_path / "data" / "train")


def same_folder(train, root):
    return train


def written_otherwise(train, root):
    return f"{train}/../train/"


def a_link(train, root):
    os.symlink(train, root / "val")
    return root / "val"


def links_to_classes(train, root):
    for name in "ab":
        (root / "val").mkdir(exist_ok=True)
        os.symlink(train / name, root / "val" / name)
    return root / "val"


def links_to_some_images(train, root):
    return linked(root / "val", open_folder(train).names[1::3])


def one_among_others(train, root):
    (root / "val" / "a").mkdir(parents=True)
    other(root / "val" / "a" / "more", count=2)
    os.symlink(train / "b", root / "val" / "b")
    return root / "val"


def a_copy(train, root):
    shutil.copytree(train, root / "val")
    return root / "val"


FOLDERS = [same_folder, written_otherwise, a_link, links_to_classes]
FOLDERS += [links_to_some_images, one_among_others, a_copy]


@pytest.mark.parametrize("make", FOLDERS)
def test_a_folder_that_shows_training_images_is_refused(train, tmp_path, make):
    test = make(train, tmp_path)
    with refused(Refusal, SEEN):
        opened("folder", train, test)
    assert opened("folder", train, test, task="features").test is not None


def test_a_folder_of_links_to_the_test_images_is_no_training_folder(train, tmp_path):
    links = linked(tmp_path / "links", open_folder(train).names)
    with refused(Refusal, f"{SEEN}, such as .*/train/"):
        opened("folder", links, train)


def test_other_images_are_test_images(train, tmp_path):
    test = other(tmp_path / "val", count=4)  # of the same names, and as many
    found = opened("folder", train, test)
    assert (len(found.train), len(found.test)) == (8, 8)
    os.symlink(tmp_path / "elsewhere", tmp_path / "none")
    both = [open_folder(x) for x in (train, test)]
    apart.check(*both)
    apart.check(*both[::-1])


def test_prepared_images_are_the_same_wherever_they_lie(train, tmp_path):
    pytest.importorskip("array_record")
    for name, source in (("a", train), ("b", other(tmp_path / "val", count=4))):
        prepare(open_folder(source), tmp_path / name, shards=2)
    prepare(open_folder(train), tmp_path / "again", shards=3)
    for test in ("a", "again"):
        with refused(Refusal, SEEN):
            opened("prepared", tmp_path / "a", tmp_path / test)
    assert len(opened("prepared", tmp_path / "a", tmp_path / "b").test) == 8


def test_tfrecords_that_both_patterns_match_are_named(train, tmp_path):
    images = open_folder(train)
    rows = [tfrecords.example(images.read(i), i % 2) for i in range(8)]
    for i in range(4):
        part = tfrecords.file_of(rows[2 * i : 2 * i + 2])
        (tmp_path / f"train-{i}").write_bytes(part)
    shutil.copytree(tmp_path, tmp_path / "copy", ignore=lambda *_: ["data"])
    os.symlink(tmp_path / "train-3", tmp_path / "val-0")

    def check(*patterns):
        return opened("tfrecord", *(f"{tmp_path}/{x}" for x in patterns))

    with refused(Refusal, f"{SEEN}, such as {tmp_path}/train-0;"):
        check("train-*", "train-[01]")
    with refused(Refusal, f"{SEEN}, such as {tmp_path}/train-3;"):
        check("train-*", "val-*")
    with refused(Refusal, SEEN):
        check("train-*", "copy/train-*")
    assert len(check("train-[02]", "train-[13]").test) == 4


def noise(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    "chosen", [slice(None), slice(3, 9), [7, 7, 1], np.arange(39, -1, -1)]
)
def test_arrays_of_training_images_are_refused(tmp_path, chosen):
    images, labels = noise(40), np.arange(40) % 2
    tests = dict(test_images=images[chosen], test_labels=labels[chosen])
    np.savez(tmp_path / "x.npz", images=images, labels=labels, **tests)
    path = str(tmp_path / "x.npz")
    with refused(Refusal, SEEN):
        load(protocol(path), RUN)
    settings = configs.parse(dict(evaluate=dict(draws=1, labels_per_class=(1,))))
    with refused(Refusal, SEEN):
        evaluate.check(open_arrays(path), settings)


def test_some_images_that_are_in_both_are_no_reason(tmp_path):
    images, labels = noise(40), np.arange(40) % 2
    more = np.concatenate([noise(5, seed=1), images[:20]])
    apart.check(Arrays(images, labels), Arrays(more, labels[:25]))
    alike = Arrays(np.zeros((6, 8, 8, 3), np.uint8), np.arange(6) % 2)
    apart.check(alike, alike)


def test_the_same_images_of_voc_are_refused(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    for i in range(6):
        Image.fromarray(noise(6)[i]).save(tmp_path / "JPEGImages" / f"{i}.jpg")
    for split, images in (("trainval", range(4)), ("test", (4, 5))):
        for c, name in enumerate(("cat", "dog")):
            lines = [f"{i} {1 if i % 2 == c else -1}\n" for i in images]
            file = tmp_path / "ImageSets" / "Main" / f"{name}_{split}.txt"
            file.write_text("".join(lines))
    data = dict(name="voc", path=str(tmp_path), split="trainval")
    assert len(load(protocol("", task="svm", data=data), RUN).tested) == 2
    with refused(Refusal, f"{SEEN}, such as .*JPEGImages/0.jpg;"):
        data |= dict(test_split="trainval")
        load(protocol("", task="svm", data=data), RUN)

"""Images held out by the seed: which, what remains, and what needs other ones."""

import numpy as np
import pytest
from helpers.pictures import pictures
from helpers.refusals import refused
from helpers.runs import images

from vicreg_jax import config as configs
from vicreg_jax.data import held_out, plan
from vicreg_jax.data.source import Arrays
from vicreg_jax.data.sources.folder import open_folder
from vicreg_jax.data.sources.load import load_splits
from vicreg_jax.data.streams import Stream
from vicreg_jax.refusals import Refusal


def given(path, share=0.4):
    return configs.Data(name="folder", path=str(path), held_out=share)


def test_each_image_of_a_folder_is_in_one_part_with_its_own_pixels(tmp_path):
    whole = open_folder(pictures(tmp_path, "badc", each=10))
    parts = load_splits(given(tmp_path), seed=3)
    order = np.argsort(plan.stream("held_out_of_run", seed=3).random_raw(40))
    asked = order[:16].tolist()
    assert sorted(whole.names[i] for i in asked) == parts.test.names
    assert sorted([*parts.train.names, *parts.test.names]) == list(whole.names)
    for part in parts:
        where = [whole.names.index(name) for name in part.names]
        np.testing.assert_array_equal(part.labels, whole.labels[where])
        assert [part.read(i) for i in range(3)] == [whole.read(i) for i in where[:3]]
        assert part.paths == part.names and part.classes == whole.classes
    assert parts.train.skipped == {"held out": 16}
    again = load_splits(given(tmp_path), seed=3)
    assert again.train.fingerprint() == parts.train.fingerprint()
    other = load_splits(given(tmp_path), seed=4).train.fingerprint()
    assert other != parts.train.fingerprint()


def test_arrays_and_their_labels_go_together():
    pixels, labels = images(64), np.arange(64) % 4
    train, test = held_out.split(Arrays(pixels, labels), 0.25, 0)
    assert (len(train), len(test)) == (48, 16)
    whole = {x.tobytes(): y for x, y in zip(pixels, labels, strict=True)}
    for part in (train, test):
        found = [whole.pop(x.tobytes()) for x in part.array]
        assert found == part.labels.tolist()
    assert not whole


def test_a_class_that_would_be_held_out_whole_is_trained_on():
    order = plan.shuffled("held_out_of_run", 100, seed=0)
    labels = np.zeros(100, int)
    labels[order[:2]] = 1, 2  # single images, both drawn
    train, test = held_out.split(Arrays(images(100), labels), 0.5, 0)
    assert set(train.labels) == {0, 1, 2} and set(test.labels) == {0}
    assert (len(train), len(test)) == (52, 48)


def test_too_few_images_and_streams_are_refused():
    with refused(Refusal, "held_out=0.1 of 64 images are 6; expected 16 or more"):
        held_out.split(Arrays(images(64)), 0.1, 0)
    with refused(Refusal, "held_out=0.1 needs images with numbers; a Stream gives"):
        held_out.split(Stream(iter(images(3)), examples=64), 0.1, 0)
    with pytest.raises(Refusal, match="config.data.held_out must be below 1"):
        configs.parse(dict(data=dict(held_out=1.0)))

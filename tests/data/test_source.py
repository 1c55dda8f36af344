"""What a source is: arrays, whatever can be indexed, and what is refused as one."""

import numpy as np
import pytest

from vicreg_jax import config as configs
from vicreg_jax.data import batches, plan
from vicreg_jax.data.augment import draw
from vicreg_jax.data.image_files import ImageFiles
from vicreg_jax.data.source import Arrays, Source, as_source, count_classes
from vicreg_jax.devices import sharding
from vicreg_jax.refusals import Refusal

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 9, 8, 1)).astype(np.uint8)


class Lazy:
    labels = np.arange(20) % 3

    def __len__(self):
        return 20

    def __getitem__(self, indices):
        return IMAGES[indices]


class Flat(Lazy):
    def __getitem__(self, indices):
        return IMAGES[indices][:, :0]


def test_the_two_sources_are_sources():
    files = ImageFiles(lambda i: b"", ["a"])
    assert isinstance(files, Source) and isinstance(Arrays(IMAGES), Source)
    assert as_source(files) is files


def test_what_can_be_indexed_becomes_a_source_with_its_labels():
    found = as_source(Lazy())
    assert len(found) == 20 and found.shape == (20, 9, 8, 1) and found.array is None
    assert found.labels.tolist() == Lazy.labels.tolist() and count_classes(found) == 3
    seen = found.centres(np.array([3, 1]), size=4, shorter=4, channels=1)
    np.testing.assert_array_equal(seen, IMAGES[[3, 1]])
    assert as_source(IMAGES).array is IMAGES and as_source(IMAGES).labels is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1, 2], "expected images of uint8 .*; got a list: only integer scalar arrays"),
        (list(IMAGES), "got a list: "),
        ({"images": IMAGES}, "got a dict: "),
        (7, "got a int: object of type 'int' has no len"),
        (IMAGES / 255, r"got float64 \(20, 9, 8, 1\)"),
        (IMAGES[..., 0], r"got uint8 \(20, 9, 8\)"),
        (IMAGES[:, :0], r"got uint8 \(20, 0, 8, 1\)"),
        (IMAGES[:, :, :0], r"got uint8 \(20, 9, 0, 1\)"),
        (Flat(), r"got uint8 \(20, 0, 8, 1\)"),
        (IMAGES[:0], "there are no images in the ndarray"),
    ],
)
def test_what_is_no_source_is_refused_in_one_line(given, message):
    with pytest.raises(Refusal, match=message) as error:
        as_source(given)
    assert "\n" not in str(error.value)


def test_labels_of_another_form_are_refused():
    for labels in (np.arange(19), np.arange(20) / 2, np.zeros((20, 2), int)):
        with pytest.raises(Refusal, match=r"expected labels of int \[20\]; got "):
            Arrays(IMAGES, labels)


def rendered(source, count):
    data = dict(batch_size=8, image_size=6, views=count, mean=[0.5], std=[0.5])
    config = configs.parse(dict(data=data))
    made = batches.Batches(source, config, sharding.data_mesh())
    numbers = plan.uniforms(0, 0, (8, 3, draw.NUMBERS))[:, :count]
    planned = plan.Plan(np.arange(8), numbers)
    batch = made.make(lambda step: planned, 0, slice(None))
    return batch.kind, np.asarray(made.render(made.resident(), batch))


def test_images_that_devices_hold_are_seen_like_those_that_are_sent():
    (held, a), (whole, b) = (rendered(as_source(x), 2) for x in (IMAGES, Lazy()))
    assert (held, whole) == ("held", "whole") and a.shape == (8, 2, 6, 6, 1)
    # Computed on eight devices and on one, which round differently.
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("given", [IMAGES, Lazy()], ids=["held", "whole"])
def test_the_first_two_of_three_views_are_those_of_two(given):
    (_, two), (_, three) = (rendered(as_source(given), n) for n in (2, 3))
    assert three.shape == (8, 3, 6, 6, 1)
    np.testing.assert_allclose(three[:, :2], two, rtol=0, atol=1e-6)
    assert not np.array_equal(three[:, 2], three[:, 0])


def test_probabilities_of_blur_and_solarize_are_taken_in_turn():
    config = configs.parse(dict(data=dict(views=3)))
    found = batches.policies(config)
    assert [x.blur for x in found] == [1.0, 0.1, 1.0]
    assert [x.solarize for x in found] == [0.0, 0.2, 0.0]

"""The middle of an image, as evaluations see it: torchvision's, to the pixel."""

import numpy as np
import pytest
from helpers.paths import GOLDEN
from helpers.pictures import picture
from PIL import Image

from vicreg_jax.data.image_files import ImageFiles


def saved(folder, image):
    Image.fromarray(image).save(folder / "0.png")
    return ImageFiles(lambda i: (folder / "0.png").read_bytes(), ["0.png"])


def test_a_centre_is_that_of_torchvision(tmp_path):
    golden = np.load(GOLDEN / "augment.npz")
    images = saved(tmp_path, golden["image"])
    got = images.centres(np.zeros(3, int), size=224, shorter=256)
    assert got.shape == (3, 224, 224, 3) and got.dtype == np.uint8
    for each in got:
        np.testing.assert_array_equal(each, golden["resize256_centre224"])


@pytest.mark.parametrize(
    # torchvision: left = round((width - size) / 2), and halves go to the even number.
    ("height", "width", "top", "left"),
    [(32, 47, 2, 10), (32, 45, 2, 8), (45, 32, 8, 2), (32, 32, 2, 2), (32, 33, 2, 2)],
)
def test_centres_of_odd_sizes_are_those_of_torchvision(
    tmp_path, height, width, top, left
):
    image = np.asarray(picture(0, height, width))
    (got,) = saved(tmp_path, image).centres(np.array([0]), size=28, shorter=32)
    np.testing.assert_array_equal(got, image[top : top + 28, left : left + 28])


def test_the_longer_side_of_a_centre_is_rounded_down(tmp_path):
    image = picture(0, 197, 301)  # 32 * 301 / 197 is 48.9
    found = saved(tmp_path, np.asarray(image)).centres(
        np.zeros(1, int), size=32, shorter=32
    )
    want = image.resize((48, 32), Image.Resampling.BILINEAR).crop((8, 0, 40, 32))
    np.testing.assert_array_equal(found[0], want)


def test_centres_may_be_grey(tmp_path):
    image = np.asarray(picture(0, 32, 40))
    images = saved(tmp_path, image)
    found = images.centres(np.array([0]), size=32, shorter=32, channels=1)
    assert found.shape == (1, 32, 32, 1)
    want = np.asarray(Image.fromarray(image).convert("L"))[:, 4:36]
    np.testing.assert_array_equal(found[0, ..., 0], want)

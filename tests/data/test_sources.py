"""Sources of examples: what they hold, and what they refuse."""

import hashlib

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from vicreg_jax import config
from vicreg_jax.data.sources.arrays import open_arrays
from vicreg_jax.data.sources.digits import load_digits
from vicreg_jax.data.sources.fake import Noise
from vicreg_jax.data.sources.load import load_splits


def rows(source):
    """One bytes object per image, and its label."""
    pairs = source if isinstance(source, tuple) else (source.array, source.labels)
    return [(x.tobytes(), int(y)) for x, y in zip(*pairs, strict=True)]


def sha(examples):
    data = examples.array.tobytes() + examples.labels.astype("<i8").tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


def test_digits_are_split_into_1437_and_360_images():
    train, test = load_digits()
    assert train.array.shape == (1437, 8, 8, 1) and test.array.shape == (360, 8, 8, 1)
    assert train.labels.shape == (1437,) and test.labels.shape == (360,)
    assert train.array.dtype == np.uint8 and train.array.max() == 255
    assert set(train.labels) == set(test.labels) == set(range(10))


def test_the_splits_of_the_digits_share_no_image_and_lose_none():
    data = sklearn.datasets.load_digits()
    original = np.rint(data.images / 16 * 255).astype(np.uint8)[..., None]
    train, test = load_digits()
    assert sorted(rows(train) + rows(test)) == sorted(rows((original, data.target)))
    # All 1,797 pictures differ, so a shared one would show.
    assert len({image for image, _ in rows(train) + rows(test)}) == 1797


def test_the_splits_of_the_digits_never_change():
    train, test = load_digits()
    assert (sha(train), sha(test)) == (
        "99e6e9ab68d80fe9",
        "71f109635b5a51ea",
    )


def test_validation_is_a_part_of_training_and_never_of_the_test():
    train, test = load_digits()
    rest, held_out = load_digits(validation=True)
    assert len(held_out) == 360
    assert rows(held_out) + rows(rest) == rows(train)  # in order: it never changes
    assert not set(rows(test)) & set(rows(rest) + rows(held_out))


def save(tmp_path, **arrays):
    path = tmp_path / "examples.npz"
    np.savez(path, **arrays)
    return str(path)


IMAGES = np.arange(5 * 4 * 6 * 3, dtype=np.uint8).reshape(5, 4, 6, 3)
LABELS = np.arange(5)


def test_arrays_come_back_as_they_were_saved(tmp_path):
    train, test = open_arrays(
        save(
            tmp_path,
            images=IMAGES,
            labels=LABELS,
            test_images=IMAGES[:2],
            test_labels=LABELS[:2],
        )
    )
    np.testing.assert_array_equal(train.array, IMAGES)
    np.testing.assert_array_equal(train.labels, LABELS)
    np.testing.assert_array_equal(test.array, IMAGES[:2])
    np.testing.assert_array_equal(test.labels, LABELS[:2])


def test_labels_and_a_test_split_are_optional(tmp_path):
    train, test = open_arrays(save(tmp_path, images=IMAGES))
    assert train.labels is None and test is None


def test_grey_images_get_a_channel(tmp_path):
    train, _ = open_arrays(save(tmp_path, images=IMAGES[..., 0]))
    np.testing.assert_array_equal(train.array, IMAGES[..., :1])


BAD_ARRAYS = {
    "no images": (dict(labels=LABELS), "holds labels; expected an array 'images'"),
    "an empty array": (
        dict(images=IMAGES[:0]),
        "there are no images in the ndarray; exp",
    ),
    "nothing": ({}, "holds nothing; expected an array 'images'"),
    "floats": (
        dict(images=IMAGES / 255),
        r"expected images of uint8 .*; got float64 \(5, 4, 6, 3\)",
    ),
    "height 0": (dict(images=IMAGES[:, :0]), r"got uint8 \(5, 0, 6, 3\)"),
    "width 0": (dict(images=IMAGES[:, :, :0]), r"got uint8 \(5, 4, 0, 3\)"),
    "grey of height 0": (dict(images=IMAGES[:, :0, :, 0]), r"uint8 \(5, 0, 6, 1\)"),
    "no channel": (
        dict(images=IMAGES[..., :0]),
        r"1 to 16\]; got uint8 \(5, 4, 6, 0\)",
    ),
    "test images of height 0": (
        dict(images=IMAGES, test_images=IMAGES[:, :0]),
        r"got uint8 \(5, 0, 6, 3\)",
    ),
    "17 channels": (
        dict(images=np.zeros((5, 4, 6, 17), np.uint8)),
        r"1 to 16\]; got uint8 \(5, 4, 6, 17\)",
    ),
    "one image": (dict(images=IMAGES[0, :, 0]), r"got uint8 \(4, 3\)"),
    "labels too few": (
        dict(images=IMAGES, labels=LABELS[:4]),
        r"expected labels of int \[5\]; got int64 \(4,\)",
    ),
    "labels of float": (
        dict(images=IMAGES, labels=LABELS / 2),
        r"expected labels of int \[5\]; got float64 \(5,\)",
    ),
    "test images": (
        dict(images=IMAGES, test_images=IMAGES / 255),
        "expected images of uint8 .*; got float64",
    ),
    "test labels": (
        dict(images=IMAGES, test_images=IMAGES, test_labels=LABELS[:1]),
        r"expected labels of int \[5\]; got int64 \(1,\)",
    ),
    "pickles": (
        dict(images=np.array([None, "x"], object)),
        "is not a readable .npz file: Object arrays",
    ),
}


@pytest.mark.parametrize("arrays, message", BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_arrays_of_another_form_are_refused(tmp_path, arrays, message):
    path = save(tmp_path, **arrays)
    with pytest.raises(ValueError, match=message) as error:
        open_arrays(path)
    assert path in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="data.path: there is no file .*none"):
        open_arrays(str(tmp_path / "none.npz"))


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut short"])
def test_a_file_that_is_no_npz_is_refused(tmp_path, content):
    path = tmp_path / "examples.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a readable .npz file"):
        open_arrays(str(path))


def test_a_damaged_npz_is_refused(tmp_path):
    path = tmp_path / "examples.npz"
    np.savez_compressed(path, images=IMAGES)
    damaged = bytearray(path.read_bytes())
    damaged[100:120] = bytes(20)  # within the compressed images
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="is not a readable .npz file"):
        open_arrays(str(path))


def test_an_npy_file_is_refused(tmp_path):
    np.save(tmp_path / "examples.npy", IMAGES)
    with pytest.raises(ValueError, match="is not a readable .npz file"):
        open_arrays(str(tmp_path / "examples.npy"))


def noise(seed, examples=6):
    made = Noise(examples=examples, image_size=5, channels=3, seed=seed)
    return made[np.arange(examples)]


def test_noise_depends_on_the_seed_alone():
    assert noise(1).shape == (6, 5, 5, 3) and noise(1).dtype == np.uint8
    np.testing.assert_array_equal(noise(1), noise(1))
    assert not np.array_equal(noise(1), noise(2))


def test_much_noise_is_a_few_images_that_repeat(monkeypatch):
    monkeypatch.setattr(Noise, "DIFFERENT", 4)
    images = noise(1, examples=10)
    assert len({image.tobytes() for image in images}) == 4
    np.testing.assert_array_equal(images, images[np.arange(10) % 4])


def test_noise_has_as_many_examples_as_asked_for_and_no_need_of_memory_for_them():
    many = Noise(examples=10**9, image_size=5, channels=3, seed=0)
    assert len(many) == 10**9
    assert many[np.array([3, 10**9 - 1])].shape == (2, 5, 5, 3)


def test_load_takes_the_source_that_the_config_names(tmp_path):
    path = save(tmp_path, images=IMAGES)
    data = config.Data(name="arrays", path=path)
    np.testing.assert_array_equal(load_splits(data, seed=0).train.array, IMAGES)
    data = config.Data(name="digits", validation=True)
    assert len(load_splits(data, seed=0).train) == 1077
    data = config.Data(name="fake", batch_size=4, image_size=8, mean=(0.5,), std=(1.0,))
    fake = load_splits(data, seed=0).train
    found = fake.centres(np.arange(40), size=8, shorter=8, channels=1)
    assert len(fake) == 40 and found.shape == (40, 8, 8, 1)


def test_load_takes_the_labels_of_a_folder_from_its_classes(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        Image.fromarray(IMAGES[0]).save(tmp_path / name / "0.png")
    train, test = load_splits(config.Data(name="folder", path=str(tmp_path)), seed=0)
    assert train.labels.tolist() == [0, 1] and test is None
    np.testing.assert_array_equal(train.whole(1), IMAGES[0])

"""Fingerprints of data: the same wherever they lie, others after any change."""

import shutil

import numpy as np
import pytest
from helpers.pictures import pictures

from vicreg_jax.data import source
from vicreg_jax.data.image_files import ImageFiles
from vicreg_jax.data.preparing import prepare
from vicreg_jax.data.source import Arrays, describe
from vicreg_jax.data.sources.folder import open_folder
from vicreg_jax.data.sources.prepared import open_prepared


@pytest.fixture
def root(tmp_path):
    """Two class folders of four images."""
    pictures(tmp_path / "images")
    return tmp_path / "images"


def differ(a, b):
    return {name for name in a.keys() | b.keys() if a.get(name) != b.get(name)}


def longer(root):
    with (root / "a" / "1.png").open("ab") as file:
        file.write(b"more")


ALL = {"names of files", "sizes of files", "labels"}
CHANGES = [
    (longer, {"sizes of files"}),
    (lambda root: (root / "a" / "1.png").unlink(), ALL),
    (lambda root: shutil.copy(root / "a" / "1.png", root / "a" / "9.png"), ALL),
    (
        lambda root: (root / "a" / "1.png").rename(root / "a" / "1b.png"),
        {"names of files"},
    ),
    (
        lambda root: (root / "a" / "3.png").rename(root / "b" / "-.png"),
        {"names of files", "labels"},
    ),
]


@pytest.mark.parametrize("change, what", CHANGES)
def test_a_folder_is_the_same_elsewhere_and_another_after_a_change(
    change, what, root, tmp_path
):
    known = open_folder(root).fingerprint()
    assert set(known) == ALL
    shutil.copytree(root, tmp_path / "copy")
    assert open_folder(tmp_path / "copy").fingerprint() == known
    assert open_folder(f"{root}/").fingerprint() == known
    change(root)
    assert differ(known, open_folder(root).fingerprint()) == what


def test_a_file_that_is_gone_is_one_line(root):
    images = open_folder(root)
    (root / "a" / "1.png").unlink()
    with pytest.raises(OSError, match="1.png: No such file or directory$"):
        images.fingerprint()


def test_prepared_images_are_known_by_the_checksums_of_their_files(root, tmp_path):
    for name, quality in (("one", 0), ("two", 0), ("three", 50)):
        prepare(open_folder(root), tmp_path / name, shards=2, quality=quality)
    one, two, three = (
        open_prepared(tmp_path / name).fingerprint() for name in ("one", "two", "three")
    )
    assert one == two and differ(one, three) == {"checksums of files"}


def test_arrays_are_known_by_their_pixels_and_labels():
    images = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), np.uint8)
    labels = np.arange(40) % 4
    known = Arrays(images, labels).fingerprint()
    assert Arrays(images.copy(), labels.astype(np.int32)).fingerprint() == known
    assert Arrays(np.asfortranarray(images), labels).fingerprint() == known
    other = images.copy()
    other[17, 3, 2, 1] ^= 1
    assert differ(known, Arrays(other, labels).fingerprint()) == {"pixels"}
    turned = Arrays(images.reshape(40, 5, 6, 3), labels)
    assert differ(known, turned.fingerprint()) == {"pixels"}
    assert differ(known, Arrays(images, labels[::-1]).fingerprint()) == {"labels"}
    assert differ(known, Arrays(images).fingerprint()) == {"labels"}


def test_of_large_arrays_and_what_is_only_indexed_some_images_are_looked_at(
    monkeypatch,
):
    images = np.random.default_rng(0).integers(0, 256, (1000, 4, 4, 1), np.uint8)

    class Indexed:
        def __len__(self):
            return len(images)

        def __getitem__(self, indices):
            assert len(indices) <= 256
            return images[indices]

    known = Arrays(Indexed()).fingerprint()
    monkeypatch.setattr(source, "IN_MEMORY", 100)
    assert Arrays(images).fingerprint() == known
    other = images.copy()
    other[999] ^= 1
    assert Arrays(other).fingerprint() != known


def test_what_is_left_out_is_said(root):
    (root / "a" / "notes.txt").write_text("")
    (root / ".hidden").mkdir()
    words = describe(open_folder(root))
    assert words.startswith("8 images in 2 classes (left out: ")
    assert "1 hidden" in words and "1 " in words.partition(", ")[2]
    assert describe(ImageFiles(bytes, ["x"] * 1200)) == "1,200 images"

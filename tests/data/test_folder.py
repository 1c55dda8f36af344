"""A folder of images: what is one, what is a class, what is left out and counted."""

import os

import numpy as np
import pytest
from helpers.pictures import picture, pictures
from helpers.refusals import refused
from PIL import Image, features

from vicreg_jax.data import decoding
from vicreg_jax.data.sources.folder import open_folder
from vicreg_jax.refusals import Refusal


def fill(root, *folders):
    """An image in each of some folders."""
    for i, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        picture(i, 8, 8).save(root / folder / "0.png")
    return root


SPLITS = {  # folders of images -> the one that was meant
    ("train/a", "train/b", "val/a", "val/b"): "train",
    ("train/a", "train/b"): "train",
    ("Training/a", "Validation/a", "Testing/a"): "Training",
    ("train/a", "val", "test"): "train",  # as ImageNet comes
    ("val/a", "test/a"): "test",
    ("valid/a",): "valid",
    ("train2017/a", "val2017/a"): "train2017",
    ("train_images/a", "test-images/a", "meta"): "train_images",
    ("train/a/images", "val/images", "test/images"): "train",  # Tiny ImageNet
    ("ILSVRC/Data/CLS-LOC/train/a", "ILSVRC/Data/CLS-LOC/val/a"): (
        "ILSVRC/Data/CLS-LOC/train"
    ),
    ("trainset/a", "unlabeled", "dev/a"): "trainset",
}


@pytest.mark.parametrize("folders", SPLITS)
def test_splits_instead_of_classes_are_refused_with_the_one_that_is_meant(
    tmp_path, folders
):
    fill(tmp_path, *folders)
    picture(0, 8, 8).save(tmp_path / "logo.png")  # it changes nothing
    with refused(Refusal, f"holds splits, not .* mean {tmp_path}/{SPLITS[folders]}[?]"):
        open_folder(tmp_path)
    assert len(open_folder(tmp_path / SPLITS[folders])) >= 1


CLASSES = [
    ("airplane", "car", "train"),  # one may be named like a split
    ("airplane/jet", "car", "train/steam", "train/diesel"),
    ("train", "test"),  # perhaps not meant, but there is nothing to choose from
    ("train",),
    ("a/train", "a/val", "b/train", "b/val"),
    ("train_station/platform", "train_interior", "test_tube/rack", "valley/green"),
    ("latest/a", "invalid/a"),
]


@pytest.mark.parametrize("folders", CLASSES)
def test_classes_may_be_named_like_splits(tmp_path, folders):
    found = open_folder(fill(tmp_path, *folders))
    assert found.classes == sorted({x.partition("/")[0] for x in folders})
    assert len(found) == len(folders)


def test_what_is_left_out_is_counted_by_its_ending(tmp_path):
    root = pictures(tmp_path)
    for name in ("1.heic", "2.HEIC", "3.heic", "notes.txt", "README", "x.tar.gz"):
        (root / "a" / name).write_bytes(b"x")
    for name in ("x.\nvicreg: ", "y.1", "z.jpg~", "backup of a picture.2024-11-27"):
        (root / "a" / name).write_bytes(b"x")
    (root / "b" / ".hidden.heic").write_bytes(b"x")
    found = open_folder(root)
    assert len(found) == 8
    assert found.skipped == {
        "hidden": 1,
        ".heic": 3,
        ".txt": 1,
        ".gz": 1,
        "of another ending": 5,
    }


ENDINGS = dict(jpg="JPEG", jpeg="JPEG", jpe="JPEG", jfif="JPEG", apng="PNG", bmp="BMP")
ENDINGS |= dict(png="PNG", webp="WEBP", ppm="PPM", pgm="PPM", pbm="PPM", pnm="PPM")
ENDINGS |= dict(tif="TIFF", tiff="TIFF", gif="GIF", avif="AVIF")


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_pillow_reads_is_read_under_all_its_endings(tmp_path, ending):
    if ending == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    for name in (f"0.{ending}", f"1.{ending.upper()}"):
        picture(0, 20, 30).save(tmp_path / name, ENDINGS[ending])
    found = open_folder(tmp_path)
    assert len(found) == 2 and not found.skipped
    with Image.open(tmp_path / f"0.{ending}") as image:
        want = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(found.whole(0), want)
    assert want.std() > 10 and found.centres(np.arange(2), size=8, shorter=9).any()


def test_avif_is_counted_where_pillow_cannot_read_it(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "modules", {})
    decoding.formats.cache_clear()
    root = pictures(tmp_path)
    (root / "a" / "0.avif").write_bytes(b"x")
    found = open_folder(root)
    assert len(found) == 8 and found.skipped == {".avif": 1}
    monkeypatch.undo()
    decoding.formats.cache_clear()


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.heic").write_bytes(b"x")
    with refused(Refusal, r"no images below .*\(3 \.heic\); expected files ending in"):
        open_folder(tmp_path)


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", ".git", ".Trash-1000"])
def test_hidden_folders_are_no_classes_and_hold_no_images(tmp_path, hidden):
    root = pictures(tmp_path)
    fill(root, hidden, f"a/{hidden}", f"b/deep/{hidden}/deeper")
    for name in ("._0.png", ".DS_Store", ".0.png.swp"):
        (root / "a" / name).write_bytes(b"\0\5\x16\7")
    found = open_folder(root)
    assert len(found) == 8 and found.classes == ["a", "b"]
    assert found.skipped == {"hidden": 6}


LINKS = {
    "to the folder itself": {"a/self": "."},
    "to the root": {"a/up": "..", "b/c/up": "../.."},
    "two into each other": {"a/x": "../b/y", "b/y": "../a/x"},
    "two images into each other": {"a/x.png": "../b/y.png", "b/y.png": "../a/x.png"},
    "two folders into each other": {"a/down": "../b", "b/up": "../a"},
    "a chain": {"a/1": "2", "a/2": "3", "a/3": "../b"},
    "absolute": {"a/abs": "ROOT/b", "b/abs": "ROOT"},
    "outside and back": {"a/out": "../../outside", "../outside/in": "ROOT"},
}


@pytest.mark.parametrize("name", LINKS)
def test_links_show_no_image_twice_and_come_to_an_end(tmp_path, name):
    root = pictures(tmp_path / "data")
    (root / "b" / "c").mkdir()
    (tmp_path / "outside").mkdir()
    for link, target in LINKS[name].items():
        os.symlink(target.replace("ROOT", str(root)), root / link)
    found = open_folder(root)
    want = [f"a/{i}.png" for i in range(4)] + [f"b/{i}.png" for i in range(4)]
    assert [os.path.relpath(x, root) for x in found.names] == want
    assert found.labels.tolist() == [0] * 4 + [1] * 4 and found.classes == ["a", "b"]


def test_a_class_may_be_a_link_to_a_folder_elsewhere(tmp_path):
    pictures(tmp_path / "store", classes=("x", "y"))
    (tmp_path / "data").mkdir()
    for name, target in (("first", "x"), ("second", "y"), ("again", "x")):
        os.symlink(tmp_path / "store" / target, tmp_path / "data" / name)
    found = open_folder(tmp_path / "data")
    assert len(found) == 8 and len(np.unique(found.labels)) == 2
    assert found.skipped == {
        "folder that is read elsewhere": 1,
        "class folder without images": 1,
    }


def test_class_folders_without_images_stay_classes_and_are_counted(tmp_path):
    root = pictures(tmp_path, classes=("d", "b"))
    for name in ("a", "c", "e/deeper"):
        (root / name).mkdir(parents=True)
    (root / "c" / "note.txt").write_text("x")
    found = open_folder(root)
    assert found.classes == ["a", "b", "c", "d", "e"]
    assert found.labels.tolist() == [1] * 4 + [3] * 4
    assert found.skipped == {".txt": 1, "class folder without images": 3}

"""Data sets of tfds: the images and labels that tfds reads, and what is refused."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.paths import ROOT
from helpers.pictures import assert_same_views, picture
from helpers.processes import environment, main
from helpers.refusals import refused
from PIL import Image

from vicreg_jax.config import Data
from vicreg_jax.data import labels
from vicreg_jax.data.image_files import ImageFiles
from vicreg_jax.data.sources import tfds as tfds_source
from vicreg_jax.data.sources.folder import open_folder
from vicreg_jax.data.sources.load import load_splits
from vicreg_jax.data.sources.tfds import open_tfds

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
tfds = pytest.importorskip("tensorflow_datasets")
F = tfds.features
FORMATS = ("tfrecord", "array_record")
INSTALL = re.escape('pip install "vicreg_jax[data]"')

# prepared: data sets of tfds, small ones that are made here.


LABELLED = dict(image=F.Image(shape=(8, 8, 3)), label=F.ClassLabel(num_classes=3))


def make(root, file_format, features, splits, *, shards=1):
    """Prepares a data set; `splits`: name -> list of examples."""
    builder = tfds.dataset_builders.AdhocBuilder(
        name="tiny",
        version="1.0.0",
        features=F.FeaturesDict(features),
        split_datasets={split: enumerate(rows) for split, rows in splits.items()},
        data_dir=str(root),
        file_format=file_format,
    )
    options = tfds.download.DownloadConfig(num_shards=shards)
    builder.download_and_prepare(download_config=options)
    return builder


def examples(n, seed, shape=(8, 8, 3)):
    images = np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)
    return [{"image": image, "label": i % 3} for i, image in enumerate(images)]


def tfds_reads(builder, split):
    """Images and labels as tfds decodes them, in the order of the files."""
    if builder.info.file_format.value == "array_record":
        rows = list(builder.as_data_source(split))
    else:
        one_by_one = tfds.ReadConfig(interleave_cycle_length=1)
        rows = list(tfds.as_numpy(builder.as_dataset(split, read_config=one_by_one)))
    return [x["image"] for x in rows], [x.get("label") for x in rows]


@pytest.fixture(scope="module", params=FORMATS)
def tiny(request, tmp_path_factory):
    """A data set of 50 training images in three files, and 20 of the test."""
    return make(
        tmp_path_factory.mktemp(request.param),
        request.param,
        LABELLED,
        {"train": examples(50, 0), "test": examples(20, 1)},
        shards=3,
    )


def folder_of(builder):
    return str(builder.data_path.parent.parent)


def read(builder, split="train"):
    return open_tfds("tiny", split=split, data_dir=folder_of(builder))


def assert_read(found, builder, split):
    images, labels = found.array, found.labels
    assert images.dtype == np.uint8 and labels.dtype == np.int64
    want = tfds_reads(builder, split)
    np.testing.assert_array_equal(images, want[0])
    np.testing.assert_array_equal(labels, want[1])


SPLITS = ["train", "train[10:40]", "train[:50%]", "train[-7:]", "train[17:18]"]


@pytest.mark.parametrize("split", SPLITS)
def test_arrays_and_labels_are_those_that_tfds_reads(tiny, split):
    assert tiny.info.splits["train"].num_shards == 3
    assert_read(read(tiny, split).train, tiny, split)


def test_the_test_split_comes_with_the_training_images(tiny):
    _, test = read(tiny, "train[:10]")
    assert_read(test, tiny, "test")


def test_the_test_split_itself_comes_alone(tiny):
    assert read(tiny, "test").test is None


def test_an_unknown_split_is_refused(tiny):
    with refused(ValueError, "split 'dev' is not of tiny, which has train, test: Unk"):
        read(tiny, "dev")


def test_load_gives_both_splits_of_the_data_set_that_the_config_names(tiny):
    data = Data(name="tfds", dataset="tiny", path=folder_of(tiny))
    train, test = load_splits(data, seed=0)
    assert_read(train, tiny, "train")
    assert_read(test, tiny, "test")


def test_many_images_stay_encoded_and_several_threads_read_them(tiny, monkeypatch):
    monkeypatch.setattr(tfds_source, "IN_MEMORY", 0)
    images, others = read(tiny)
    labels, more = images.labels, others.labels
    assert isinstance(images, ImageFiles) and isinstance(others, ImageFiles)
    want, known = tfds_reads(tiny, "train")
    known, order = np.array(known), list(range(50)) * 10
    # Labels are read with the records: one, some or all of them.
    np.testing.assert_array_equal(np.asarray(labels), known)
    np.testing.assert_array_equal(labels[np.array([7, 3])], known[[7, 3]])
    assert labels[4] == known[4] and len(more) == len(others)
    np.testing.assert_array_equal(np.asarray(more), tfds_reads(tiny, "test")[1])
    assert len(images.classes) == 3
    with ThreadPoolExecutor(8) as threads:
        got = list(threads.map(images.whole, order))
    np.testing.assert_array_equal(got, [want[i] for i in order])


@pytest.mark.parametrize("file_format", FORMATS)
def test_views_of_images_of_several_sizes_are_those_of_a_folder(tmp_path, file_format):
    rows = [{"image": np.asarray(picture(i, 30 + i, 40 - i))} for i in range(12)]
    kinds = {"image": F.Image(shape=(None, None, 3))}
    builder = make(tmp_path, file_format, kinds, {"train": rows, "test": rows[:2]})
    images, _ = read(builder)
    assert images.labels is None and len({images.names[i] for i in range(12)}) == 12
    (tmp_path / "folder").mkdir()
    for i, image in enumerate(tfds_reads(builder, "train")[0]):
        Image.fromarray(image).save(tmp_path / "folder" / f"{i:02}.png")
    assert_same_views(images, open_folder(tmp_path / "folder"))
    assert not images.broken


@pytest.mark.parametrize("file_format", FORMATS)
def test_grey_images_without_labels_are_those_that_tfds_reads(tmp_path, file_format):
    rows = [{"image": x["image"]} for x in examples(6, 0, (8, 9, 1))]
    kinds = {"image": F.Image(shape=(8, 9, 1))}
    builder = make(tmp_path, file_format, kinds, {"train": rows})
    images, test = read(builder)
    assert images.labels is test is None and images.shape == (6, 8, 9, 1)
    np.testing.assert_array_equal(images.array, tfds_reads(builder, "train")[0])


def test_a_validation_split_comes_where_there_is_no_test_split(tmp_path):
    splits = {"train": examples(6, 0), "validation": examples(4, 1)}
    builder = make(tmp_path, "tfrecord", LABELLED, splits)
    assert_read(read(builder)[1], builder, "validation")


def test_a_data_set_without_images_is_refused(tmp_path):
    kinds = {"text": F.Text()}
    builder = make(tmp_path, "tfrecord", kinds, {"train": [{"text": "x"}]})
    with refused(ValueError, "'tiny' has no feature 'image'; it has text"):
        read(builder)


def test_an_unknown_data_set_is_refused_without_naming_all_others(tmp_path):
    with refused(ValueError, "tfds has no data set 'no_such_set' .{,120}$"):
        open_tfds("no_such_set", split="train", data_dir=str(tmp_path))


class CountedPictures(tfds.core.GeneratorBasedBuilder):
    """A data set that counts how often it is generated."""

    VERSION = tfds.core.Version("1.0.0")
    generated = 0

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(LABELLED))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        type(self).generated += 1
        yield from enumerate(examples(30, 0))


class FailingPictures(CountedPictures):
    def _generate_examples(self):
        yield 0, examples(1, 0)[0]
        raise RuntimeError("the archive\nis damaged")


def test_what_is_not_prepared_is_prepared_once_as_array_record_files(tmp_path):
    for _ in range(2):
        found = open_tfds("counted_pictures", split="train", data_dir=str(tmp_path))
        builder = tfds.builder("counted_pictures", data_dir=tmp_path)
        assert_read(found.train, builder, "train")
        assert CountedPictures.generated == 1
    (file,) = tmp_path.rglob("*-of-*")
    assert file.name.startswith("counted_pictures-train.array_record-")


def test_a_data_set_that_cannot_be_prepared_is_refused(tmp_path):
    with refused(ValueError, "cannot prepare it: RuntimeError: the archive is damaged"):
        open_tfds("failing_pictures", split="train", data_dir=str(tmp_path))


def test_missing_tfds_is_named_with_what_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with refused(ModuleNotFoundError, f"needs tensorflow_datasets, which.*{INSTALL}"):
        open_tfds("tiny", split="train", data_dir=str(tmp_path))


ARRAY_RECORD = """if True:
    import sys
    from vicreg_jax.data.sources.tfds import open_tfds
    images, _ = open_tfds("tiny", split="train", data_dir=sys.argv[1])
    print(images.shape, "tensorflow" in sys.modules)
"""


def test_a_prepared_data_set_is_read_without_tensorflow(tiny):
    command = [sys.executable, "-c", ARRAY_RECORD, folder_of(tiny)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.stdout == "(50, 8, 8, 3) False\n", done.stderr


@pytest.mark.parametrize("tiny", ["tfrecord"], indirect=True)
@pytest.mark.long
def test_a_run_on_a_prepared_data_set_ends_with_the_table(tiny, tmp_path):
    shrunk = (
        *("data.dataset=tiny", f"data.path={folder_of(tiny)}", "data.batch_size=16"),
        *("data.image_size=8", "model.encoder=digits", "model.expander=(8,8)"),
        *("epochs=2", "optimizer.warmup_epochs=0.5", "evaluate.draws=2"),
        "evaluate.labels_per_class=(1,)",
    )
    flags = [f"--config.{flag}" for flag in shrunk]
    config = f"--config={ROOT}/configs/cifar10.py"
    done = main(config, *flags, f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "step 6/6" in done.stderr and "│ VICReg " in done.stdout


# What would be silently wrong.


@pytest.mark.parametrize("split", ["test[:5]", "train[:3]+test[:5]"])
def test_what_is_trained_on_is_no_test_split(tiny, split):
    assert read(tiny, split).test is None


def test_all_splits_together_leave_no_test_split(tiny):
    images, test = read(tiny, "all")
    assert len(images) == 70 and test is None


@pytest.mark.parametrize("split", ["train+train", "train[:9]+train[5:]", "all+test"])
def test_a_split_that_may_name_an_example_twice_is_refused(tiny, split):
    with refused(ValueError, "may name an example twice; name each split once"):
        read(tiny, split)


def test_splits_can_be_joined(tiny):
    images, _ = read(tiny, "train+test")
    assert len(images) == len(images.labels) == 70


@pytest.mark.parametrize(
    "split", ["train[", "train[a:b]", "train[:150%]", "train[90:]"]
)
def test_a_split_that_there_is_not_is_refused(tiny, split):
    with refused(ValueError, rf"config.data.split '{re.escape(split)}' is not of tiny"):
        read(tiny, split)


def test_an_empty_split_is_refused(tiny):
    with refused(ValueError, "config.data.split 'train.5:5.' of tiny is empty"):
        read(tiny, "train[5:5]")


BAD_IMAGES = {
    "float32": F.Image(shape=(8, 8, 1), dtype=np.float32),
    "uint16": F.Image(shape=(8, 8, 1), dtype=np.uint16, encoding_format="png"),
    "four channels": F.Image(shape=(8, 8, 4), encoding_format="png"),
    "a tensor": F.Tensor(shape=(8, 8, 3), dtype=np.uint8),
    "a sequence": F.Sequence(F.Image(shape=(8, 8, 3))),
}


@pytest.mark.parametrize("feature", BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_images_of_another_kind_are_refused(tmp_path, feature):
    shape = (2, 8, 8, 3) if isinstance(feature, F.Sequence) else feature.shape
    row = {"image": np.zeros(shape, feature.np_dtype)}
    make(tmp_path, "array_record", {"image": feature}, {"train": [row]})
    with refused(ValueError, "feature 'image' .*; expected an Image of uint8"):
        open_tfds("tiny", split="train", data_dir=str(tmp_path))


@pytest.mark.parametrize("file_format", FORMATS)
def test_labels_that_are_no_classes_are_left_out(tmp_path, file_format):
    features = LABELLED | {"label": F.Text()}
    rows = [x | {"label": "red"} for x in examples(4, 0)]
    make(tmp_path, file_format, features, {"train": rows})
    images, test = open_tfds("tiny", split="train", data_dir=str(tmp_path))
    assert len(images) == 4 and images.labels is test is None


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_test_split_with_examples_of_the_training_is_refused(tmp_path, file_format):
    splits = {"train": examples(30, 0), "extra": examples(6, 1)}
    make(tmp_path, file_format, LABELLED, splits, shards=3)
    where = dict(data_dir=str(tmp_path))
    for split, test in (
        ("train", "train"),
        ("train", "train[90%:]"),
        ("train[:60%]", "train[50%:]"),
        ("extra+train[:1]", "extra"),
    ):
        message = re.escape(f"test_split {test!r} of tiny has examples of the split")
        with refused(ValueError, message):
            open_tfds("tiny", split=split, test_split=test, **where)
    for split, test in (("train[:50%]", "train[50%:]"), ("train", "extra")):
        found = open_tfds("tiny", split=split, test_split=test, **where)
        assert (len(found.train), len(found.test)) in ((15, 15), (30, 6))


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("lazy", [False, True])
def test_minus_one_is_no_label(tmp_path, file_format, lazy, monkeypatch):
    monkeypatch.setattr(tfds_source, "IN_MEMORY", 0 if lazy else 2**20)
    rows = [row | {"label": i % 4 - 1} for i, row in enumerate(examples(12, 0))]
    none = [row | {"label": -1} for row in examples(5, 1)]
    builder = make(tmp_path, file_format, LABELLED, {"train": rows, "test": none})
    found = open_tfds("tiny", split="train", data_dir=str(tmp_path))
    _, want = tfds_reads(builder, "train")
    assert isinstance(found.train, ImageFiles) == lazy
    assert np.asarray(found.train.labels).tolist() == list(want)
    np.testing.assert_array_equal(
        labels.known(found.train.labels), np.flatnonzero(np.array(want) >= 0)
    )
    assert not labels.exist(found.test.labels)


def test_a_damaged_example_is_refused_where_all_are_decoded(tmp_path):
    builder = make(tmp_path, "tfrecord", LABELLED, {"train": examples(6, 0)})
    (path,) = builder.data_path.glob("*.tfrecord*")
    data = bytearray(path.read_bytes())
    data[100] ^= 1  # within the first image
    path.write_bytes(data)
    with refused(ValueError, r"@\d+ cannot be read \(the checksum of the record is w"):
        open_tfds("tiny", split="train", data_dir=str(tmp_path))

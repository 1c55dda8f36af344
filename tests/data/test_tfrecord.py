"""TFRecord files: the records and images that TensorFlow reads."""

import io
import json
import os
import random
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.pictures import POLICY, assert_same_views, picture, uniforms
from helpers.refusals import refused
from PIL import Image

from vicreg_jax import train
from vicreg_jax.config import Data, evaluation
from vicreg_jax.data.source import How
from vicreg_jax.data.sources.folder import open_folder
from vicreg_jax.data.sources.load import load_splits
from vicreg_jax.data.sources.tfrecord import Records, open_tfrecords
from vicreg_jax.evaluate.inputs import open_inputs
from vicreg_jax.refusals import Refusal, Unusable
from vicreg_jax.weights import Encoder

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
tf = pytest.importorskip("tensorflow")
tfds = pytest.importorskip("tensorflow_datasets")
F = tfds.features
FORMATS = ("tfrecord", "array_record")
INSTALL = re.escape('pip install "vicreg_jax[data]"')


def write(path, data):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in data:
            writer.write(record)
    return str(path)


def tf_example(features):
    """Features by name, bytes or int, as the bytes of a tf.train.Example."""
    made = tf.train.Example()
    for name, value in features.items():
        kind = "bytes_list" if isinstance(value, bytes) else "int64_list"
        getattr(made.features.feature[name], kind).value.append(value)
    return made.SerializeToString()


@pytest.fixture
def files(tmp_path):
    """Files of 7, 0, 1 and 12 records, of which two are empty and one is long."""
    rng = np.random.default_rng(0)
    sizes = ([5, 0, 9, 70_000, 1, 2, 3], [], [8], range(12))
    return [
        write(tmp_path / f"{i}.tfrecord", [rng.bytes(size) for size in lengths])
        for i, lengths in enumerate(sizes)
    ]


def parts(files, skip=0, take=-1):
    return [(path, skip, take) for path in files]


def tensorflow_reads(files, skip=0, take=-1):
    found = []
    for path in files:
        data = tf.data.TFRecordDataset(path).skip(skip).take(take)
        found += data.as_numpy_iterator()
    return found


@pytest.mark.parametrize("skip, take", [(0, -1), (0, 3), (2, -1), (2, 4), (9, 9)])
def test_records_are_those_that_tensorflow_reads(files, skip, take):
    want = tensorflow_reads(files, skip, take)
    assert list(Records(parts(files, skip, take))) == want


def test_records_come_in_any_order_that_is_asked_for(files):
    want, made = tensorflow_reads(files), Records(parts(files))
    order = random.Random(0).choices(range(len(want)), k=60)
    assert len(made) == len(want) == 20
    assert [made[i] for i in order] == [want[i] for i in order]


def test_several_threads_read_the_same_records_at_once(files):
    want, made = tensorflow_reads(files), Records(parts(files))
    order = random.Random(1).choices(range(len(want)), k=2000)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(made.__getitem__, order)) == [want[i] for i in order]


def test_the_name_of_a_record_tells_its_file_and_where_it_starts(files):
    made = Records(parts(files))
    for i, record in enumerate(made):
        path, _, start = made.name(i).rpartition("@")
        with open(path, "rb") as file:
            assert file.read()[int(start) :].startswith(record)


@pytest.mark.parametrize("kept", [1, 7, 8, 11, 12, 13, -1, -4, -5])
def test_a_file_that_is_cut_short_is_refused(tmp_path, kept):
    path = tmp_path / "cut"
    write(path, [b"abc", b"defgh"])
    path.write_bytes(path.read_bytes()[:kept])
    with refused(ValueError, "/cut is cut short, or is no "):
        Records(parts([str(path)]))


def test_a_compressed_file_is_refused(tmp_path):
    options = tf.io.TFRecordOptions(compression_type="GZIP")
    with tf.io.TFRecordWriter(str(tmp_path / "a"), options) as writer:
        writer.write(b"abc" * 100)
    with refused(ValueError, r"/a is .* no \(uncompressed\) TFRecord file"):
        Records(parts([str(tmp_path / "a")]))


def test_a_text_is_refused(tmp_path):
    (tmp_path / "a").write_text("These are no records, only a text.\n" * 20)
    with refused(ValueError, r"/a is .* no \(uncompressed\) TFRecord file"):
        Records(parts([str(tmp_path / "a")]))


def test_a_bucket_of_another_service_is_refused():
    with refused(FileNotFoundError, "no file matches 'hdfs://bucket/a'; expected"):
        open_tfrecords("hdfs://bucket/a")


# tfrecords: encoded images in tf.train.Examples.


@pytest.fixture
def encoded(tmp_path):
    """Twelve JPEG files of different sizes, and the folder that they are in."""
    root = tmp_path / "folder"
    root.mkdir()
    for i in range(12):
        picture(i, 40 + 3 * i, 60 - 2 * i).save(root / f"{i:02}.jpg")
    return root, [path.read_bytes() for path in sorted(root.iterdir())]


def shards(root, data, key, each=5):
    """Writes the files of a data set, the last one first."""
    root.mkdir(exist_ok=True)
    for i in reversed(range(0, len(data), each)):
        rows = [tf_example({key: x, "label": 0}) for x in data[i : i + each]]
        write(root / f"train-{i // each}", rows)
    return f"{root}/train-*"


@pytest.mark.parametrize("key", ["image/encoded", "image"])
def test_views_are_those_of_a_folder_of_the_same_images(tmp_path, encoded, key):
    root, data = encoded
    images = open_tfrecords(shards(tmp_path, data, key))
    assert len(images) == 12 and not images.broken
    assert_same_views(images, open_folder(root))


def test_images_are_in_the_order_of_the_file_names(tmp_path, encoded):
    _, data = encoded
    images = open_tfrecords(shards(tmp_path, data, "image"))
    found = [name.rpartition("@")[0] for name in images.names]
    assert found == [f"{tmp_path}/train-{i // 5}" for i in range(12)]
    for i, one in enumerate(data):
        np.testing.assert_array_equal(images.whole(i), Image.open(io.BytesIO(one)))


def test_a_broken_image_is_replaced_by_the_next_and_named(tmp_path, encoded):
    root, data = encoded
    data[3] = b"no image"
    (root / "03.jpg").write_bytes(data[3])
    images = open_tfrecords(shards(tmp_path, data, "image"))
    assert_same_views(images, open_folder(root))
    assert list(images.broken) == [3]
    assert images.names[3].startswith(f"{tmp_path}/train-0@")


def test_a_record_without_an_image_is_replaced_by_the_next(tmp_path, encoded):
    _, data = encoded
    rows = [tf_example({"image": x}) for x in data]
    rows.insert(3, tf_example({"label": 1}))
    images = open_tfrecords(write(tmp_path / "a", rows))
    same = np.repeat(uniforms(1), 2, axis=0)
    (got, want), _ = images.views(np.array([3, 4]), same, [POLICY] * 2, How("crops", 8))
    np.testing.assert_array_equal(got, want)
    assert list(images.broken) == [3]


def test_a_pattern_of_no_file_is_refused(tmp_path):
    with refused(FileNotFoundError, "data.path: no file matches '.*/none-\\*'"):
        open_tfrecords(f"{tmp_path}/none-*")


def test_a_folder_instead_of_files_is_refused(tmp_path):
    with refused(ValueError, r"is a folder; give the files, such as .*/\*"):
        open_tfrecords(str(tmp_path))


def test_records_that_are_no_examples_are_refused(tmp_path):
    path = write(tmp_path / "a", [b"hello, this is no example"])
    with refused(ValueError, "a record is no tf.train.Example"):
        open_tfrecords(path)


def test_names_end_where_the_images_end(tmp_path):
    path = write(tmp_path / "a", [tf_example({"image": b"x"})] * 5)
    names = open_tfrecords(path).names
    assert len(list(names)) == 5
    with pytest.raises(IndexError):
        names[5]


def test_empty_files_are_refused(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"")
    with refused(ValueError, r"/\*': the 2 file\(s\) hold no record"):
        open_tfrecords(f"{tmp_path}/*")


def test_records_without_an_image_are_refused_with_what_they_hold(tmp_path):
    path = write(tmp_path / "a", [tf_example({"text": b"x", "height": 3})])
    with refused(ValueError, "an image named image/encoded or image .* height, text"):
        open_tfrecords(path)


def test_load_reads_the_records_that_the_config_names(tmp_path, encoded):
    data = Data(name="tfrecord", path=shards(tmp_path, encoded[1], "image"))
    train, test = load_splits(data, seed=0)
    assert len(train) == 12 and test is None
    assert np.asarray(train.labels).tolist() == [0] * 12
    more = shards(tmp_path / "more", encoded[1][:4], "image")
    _, test = load_splits(data, seed=0, test_path=more)
    assert len(test) == 4 and test.labels[2] == 0


# Damage, and labels that are none.


def flipped(path, byte):
    data = bytearray(path.read_bytes())
    data[byte] ^= 0x10
    path.write_bytes(data)


def labelled(root, encoded, labels):
    """A file of images with these labels; where each of its records starts."""
    rows = [
        tf_example({"image": x, "label": y} if y is not None else {"image": x})
        for x, y in zip(encoded[1], labels, strict=False)
    ]
    root.mkdir(exist_ok=True)
    write(root / "train-0", rows)
    starts = np.cumsum([0, *(len(row) + 16 for row in rows)])
    return root / "train-0", starts.tolist()


# Of the first record, of one in between and of the last one: its first and last byte,
# which may be of a label, one within the image, and its checksum.
@pytest.mark.parametrize("record", [0, 3, 11])
@pytest.mark.parametrize("place", ["first", "label", "image", "last", "checksum"])
def test_a_flipped_bit_makes_a_broken_image(tmp_path, encoded, record, place):
    path, starts = labelled(tmp_path / "a", encoded, range(12))
    data = path.read_bytes()[starts[record] : starts[record + 1]]
    byte = {
        "first": 12,
        "label": data.index(b"label") + 12,
        "image": data.index(encoded[1][record]) + 200,
        "last": len(data) - 5,
        "checksum": len(data) - 1,
    }[place]
    flipped(path, starts[record] + byte)
    images, whole = open_tfrecords(str(path)), open_folder(encoded[0])
    seen = np.array([record, 5, (record + 1) % 12])
    numbers = np.repeat(uniforms(1), 3, axis=0)
    got, _ = images.views(seen, numbers, [POLICY] * 2, How("crops", 8))
    seen[0] = seen[2]  # which stands for it
    want, _ = whole.views(seen, numbers, [POLICY] * 2, How("crops", 8))
    np.testing.assert_array_equal(got, want)
    reason = "ValueError: the checksum of the record is wrong"
    assert images.broken == {record: reason}
    with refused(Refusal, r"train-0@\d+ cannot be read \(the checksum of the rec"):
        images.centres(np.array([record]), size=8, shorter=8)
    again = open_tfrecords(str(path))  # whose labels are asked for first
    labels = np.asarray(again.labels).tolist()
    assert labels == [-1 if i == record else i for i in range(12)]
    assert again.broken == {record: reason}


@pytest.mark.parametrize("byte", [0, 2, 7, 8, 11])
def test_a_damaged_length_is_refused_where_it_is(tmp_path, encoded, byte):
    path, starts = labelled(tmp_path / "a", encoded, range(12))
    flipped(path, starts[4] + byte)
    message = f"train-0 is damaged: at byte {starts[4]} the checksum of a record's len"
    with refused(Unusable, message):
        open_tfrecords(str(path))


def test_a_file_whose_records_are_all_damaged_is_refused(tmp_path, encoded):
    path, starts = labelled(tmp_path / "a", encoded, range(2))
    for start in starts[:2]:
        flipped(path, start + 50)
    with refused(Unusable, "train-0@12: the checksums of all records are wrong"):
        open_tfrecords(str(path))


def test_a_run_replaces_damaged_records_and_an_evaluation_refuses(tmp_path, encoded):
    path, starts = labelled(tmp_path / "a", encoded, [i % 2 for i in range(12)])
    flipped(path, starts[7] + 100)
    config = dict(
        epochs=1,
        data=dict(name="tfrecord", path=str(path), batch_size=8, image_size=16),
        model=dict(encoder="digits", expander=(8, 8)),
        optimizer=dict(warmup_epochs=0),
        guard=dict(broken_images=0.2),
        evaluate=dict(knn_epochs=1),
    )
    trained = train.run(config, tmp_path / "run")
    assert int(trained.state.step) == 1
    noted = json.loads((tmp_path / "run" / "bad_examples.jsonl").read_text())
    assert noted["name"] == f"{path}@{starts[7] + 12}"
    assert noted["reason"] == "ValueError: the checksum of the record is wrong"
    whole, _ = labelled(tmp_path / "b", encoded, [i % 2 for i in range(8)])
    for damaged in (dict(path=str(path), test_path=str(whole)), dict(path=str(whole))):
        data = dict(name="tfrecord", batch_size=4, test_path=str(path)) | damaged
        given = dict(task="linear", checkpoint="run", data=data)
        with refused(Refusal, rf"train-0@{starts[7] + 12} cannot be read"):
            open_inputs(evaluation.parse(given), trained.encoder)


WRONG_LABELS = {-2: "-2", 10**12: "1000000000000", -(2**63): "-9223372036854775808"}


@pytest.mark.parametrize("label", WRONG_LABELS)
def test_a_record_whose_label_is_no_number_of_a_class_is_refused(
    tmp_path, encoded, label
):
    path, starts = labelled(tmp_path / "a", encoded, [0, 1, -1, 0, label])
    images = open_tfrecords(str(path))
    name = f"train-0@{starts[4] + 12}"
    with refused(Refusal, f"{name} has the label {WRONG_LABELS[label]}; expected 0 to"):
        np.asarray(images.labels)
    path, _ = labelled(tmp_path / "a", encoded, [0, 1, -1, 0, None])
    with refused(Refusal, f"{name} has no label"):
        np.asarray(open_tfrecords(str(path)).labels)


def test_records_without_a_label_are_not_judged(tmp_path, encoded):
    given, _ = labelled(tmp_path / "a", encoded, [0, -1, 1, -1, 2, 0, 1, -1])
    tests, _ = labelled(tmp_path / "b", encoded, [-1, -1, 1, 2])
    data = dict(name="tfrecord", path=str(given), test_path=str(tests), image_size=16)
    encoder = Encoder(None, {}, mean=(0.5,) * 3, std=(0.5,) * 3)
    found = open_inputs(
        evaluation.parse(dict(task="knn", checkpoint="run", data=data)), encoder
    )
    assert found.kept.tolist() == [0, 2, 4, 5, 6] and found.tested.tolist() == [2, 3]
    assert found.classes == 3


def test_records_without_a_label_have_none(tmp_path, encoded):
    rows = [tf_example({"image": x}) for x in encoded[1][:3]]
    write(tmp_path / "train-0", rows)
    assert open_tfrecords(f"{tmp_path}/train-*").labels is None

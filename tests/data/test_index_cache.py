"""What is found out about data once: kept, used again, and never trusted blindly."""

import io
import shutil

import numpy as np
import pytest
from helpers import tfrecords
from helpers.pictures import picture, pictures
from helpers.records import lines
from helpers.tfrecords import example

from vicreg_jax import files, train
from vicreg_jax.data.index_cache import IndexCache
from vicreg_jax.data.sources import tfrecord
from vicreg_jax.data.sources.folder import open_folder
from vicreg_jax.data.sources.tfrecord import Records, open_tfrecords
from vicreg_jax.refusals import Unusable


def never():
    raise AssertionError("it is known")


ARRAYS = {"a": np.arange(6).reshape(2, 3), "b": np.array([1, 2], np.uint8)}


def kept(folder, key=("x", 1)):
    folder.mkdir(exist_ok=True)
    cache = IndexCache(folder)
    cache.arrays(key, lambda: ARRAYS)
    cache.write()
    (path,) = (folder / "data_index").iterdir()
    return path


def test_what_was_found_is_read_at_the_next_start(tmp_path):
    kept(tmp_path)
    found = IndexCache(tmp_path).arrays(("x", 1), never)
    assert set(found) == set(ARRAYS)
    for name, want in ARRAYS.items():
        np.testing.assert_array_equal(found[name], want, strict=True)
    with pytest.raises(AssertionError, match="it is known"):
        IndexCache(tmp_path).arrays(("x", 2), never)
    with pytest.raises(AssertionError, match="it is known"):
        IndexCache().arrays(("x", 1), never)


def test_nothing_is_written_before_the_workdir_is_ones_own(tmp_path):
    cache = IndexCache(tmp_path / "run")
    cache.arrays(("x", 1), lambda: ARRAYS)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "data_index").write_text("no folder")
    with pytest.raises(Unusable, match=r"^\S+data_index\S* cannot be written: .*$"):
        cache.write()


@pytest.mark.parametrize("damage", ["cut", "empty", "other arrays", "other key"])
def test_what_is_damaged_or_foreign_is_found_out_again(tmp_path, damage):
    path = kept(tmp_path)
    if damage == "other arrays":
        files.write_npz(path, {**files.read_npz(path), "a": np.zeros([2, 3], int)})
    elif damage == "other key":
        shutil.copy(kept(tmp_path / "other", ("x", 2)), path)
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else -9])
    found = IndexCache(tmp_path).arrays(("x", 1), lambda: {"made": np.ones(1)})
    assert set(found) == {"made"}


def write_records(folder):
    """Twelve images in three files."""
    folder.mkdir()
    made = [example(encoded(i), i % 2) for i in range(12)]
    for i in range(3):
        part = made[4 * i : 4 * i + 4]
        (folder / f"train-{i}").write_bytes(tfrecords.file_of(part))
    return [str(folder / f"train-{i}") for i in range(3)]


def encoded(i):
    picture(i, 24, 20).save(content := io.BytesIO(), "JPEG")
    return content.getvalue()


def test_records_are_indexed_once_as_long_as_no_file_changes(tmp_path, monkeypatch):
    paths = write_records(tmp_path / "data")
    parts, cache = [(x, 1, 2) for x in paths], IndexCache(tmp_path)
    want = list(Records(parts, cache))
    cache.write()
    indexed, index = [], tfrecord._index
    monkeypatch.setattr(tfrecord, "_index", lambda x: indexed.append(x) or index(x))
    assert list(Records(parts, IndexCache(tmp_path))) == want and not indexed
    whole = Records([(x, 0, -1) for x in paths], IndexCache(tmp_path))
    assert len(whole) == 12 and not indexed
    content = (tmp_path / "data" / "train-1").read_bytes()
    (tmp_path / "data" / "train-1").write_bytes(content + content)
    assert len(Records([(x, 0, -1) for x in paths], IndexCache(tmp_path))) == 16
    assert len(indexed) == 3


def test_a_bucket_is_listed_and_its_records_found_once(bucket, tmp_path):
    pictures(tmp_path / "folder", ending="jpg")
    write_records(tmp_path / "data")
    bucket.upload(tmp_path / "folder", "folder")
    bucket.upload(tmp_path / "data", "records")
    where, found = "gs://bucket/runs/1", []
    for start in range(2):
        cache, bucket.asked = IndexCache(where), []
        images = open_folder("gs://bucket/folder", cache=cache)
        records = open_tfrecords("gs://bucket/records/train-*", cache=cache)
        asked = [x for x in bucket.asked if "runs" not in str(x[0])]
        if start == 0:
            cache.write()
            # An image that is added later is not of the run that has begun.
            bucket.objects["folder/class_0/new.jpg"] = b""
        else:  # the pattern is listed, each file's version asked for, a record read
            assert len(asked) == 1 + 3 + 1, asked
        found.append([list(images.names), list(records.names), images.labels.tolist()])
        assert records.fingerprint() and images.read(0)
    assert found[0] == found[1]
    assert len(open_folder("gs://bucket/folder").names) == len(found[0][0]) + 1


@pytest.mark.long
def test_a_run_and_its_continuation_index_once(tmp_path, monkeypatch):
    write_records(tmp_path / "data")
    config = dict(
        epochs=2,
        data=dict(
            name="tfrecord", path=f"{tmp_path}/data/train-*", batch_size=8, image_size=8
        ),
        model=dict(encoder="digits", expander=(8, 8)),
        optimizer=dict(warmup_epochs=1),
        every=dict(log_steps=1),
    )
    train.run(config, tmp_path / "run")
    monkeypatch.setattr(tfrecord, "_index", lambda path: never())
    train.run(config | dict(epochs=3), tmp_path / "run")
    assert [x["step"] for x in lines(tmp_path / "run")] == [1, 2, 3]

"""Images in a bucket, of a stand-in for Cloud Storage on this machine: no network."""

import json
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from helpers import tfrecords
from helpers.pictures import POLICY, pictures, uniforms
from helpers.processes import DIGITS, main
from helpers.tfrecords import example
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vicreg_jax import config as configs
from vicreg_jax import files
from vicreg_jax.config import Data
from vicreg_jax.data.preparing import prepare
from vicreg_jax.data.source import How
from vicreg_jax.data.sources.folder import open_folder
from vicreg_jax.data.sources.load import load_splits
from vicreg_jax.data.sources.prepared import verify
from vicreg_jax.data.sources.tfrecord import Records

pytest.importorskip("array_record.python.array_record_module")

KINDS = {"prepared": "gs://bucket/a b/prepared", "tfrecord": "gs://bucket/a b/train-*"}


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Eight images as files, prepared in three shards, and in two TFRecord files."""
    root = tmp_path_factory.mktemp("images")
    images = open_folder(pictures(root / "folder", ending="jpg"))
    prepare(images, root / "prepared", shards=3)
    made = [example(images.read(i), int(images.labels[i])) for i in range(8)]
    (root / "records").mkdir()
    for i, part in enumerate((made[:5], [], made[5:])):
        (root / "records" / f"train-{i}").write_bytes(tfrecords.file_of(part))
    return root


@pytest.fixture
def stored(bucket, local):
    """The same in the bucket."""
    bucket.upload(local / "prepared", "a b/prepared")
    bucket.upload(local / "records", "a b")
    bucket.objects["a b/train-2/more"] = bucket.objects["b/train-3"] = b"not asked for"
    return bucket


def load(kind, path=None, **more):
    return load_splits(Data(name=kind, path=path or KINDS[kind]), seed=0, **more)


@contextmanager
def refused(kind, message):
    with pytest.raises(kind, match=f"^[^\n]*{message}[^\n]*$"):
        yield


DATA = bytes(range(256)) * 3


@settings(deadline=None)
@given(start=st.integers(0, 800), length=st.none() | st.integers(1, 800))
def test_a_read_is_a_slice_of_the_file(server, tmp_path_factory, start, length):
    stop = None if length is None else start + length
    server.objects["slice"] = DATA
    path = tmp_path_factory.getbasetemp() / "slice"
    path.write_bytes(DATA)
    for where in ("gs://bucket/slice", str(path)):
        assert files.read(where, start, length) == DATA[start:stop]
        with files.opened(where) as read:
            assert read(length or 5, start) == DATA[start : start + (length or 5)]
        assert b"".join(files.pieces(where)) == DATA


@pytest.mark.parametrize("kind", KINDS)
def test_images_in_a_bucket_are_those_of_the_folder(local, stored, kind):
    want, got = open_folder(local / "folder"), load(kind).train
    assert [got.read(i) for i in range(len(got))] == [want.read(i) for i in range(8)]
    np.testing.assert_array_equal(np.asarray(got.labels), want.labels, strict=True)
    if kind == "prepared":
        assert list(got.names) == want.names
        assert got.classes == want.classes
    else:
        assert got.names[7].startswith("gs://bucket/a b/train-2@")
    for canvas in (0, 64):
        batch = np.array([5, 0, 3, 7]), uniforms(4), [POLICY] * 2
        np.testing.assert_equal(
            got.views(*batch, How("whole" if canvas else "crops", 24, canvas=canvas)),
            want.views(*batch, How("whole" if canvas else "crops", 24, canvas=canvas)),
        )
    assert not got.broken


@pytest.mark.parametrize("kind", KINDS)
def test_several_threads_read_the_same_images_at_once(local, stored, kind):
    want, got = open_folder(local / "folder"), load(kind).train
    order = np.random.default_rng(0).integers(0, 8, 200).tolist()
    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(got.read, order)) == [want.read(i) for i in order]


@pytest.mark.parametrize("kind", KINDS)
def test_test_images_may_lie_in_a_bucket_too(local, stored, kind):
    splits = load(kind, test_path=KINDS[kind])
    want = open_folder(local / "folder").centres(np.arange(8), size=24, shorter=28)
    got = splits.test.centres(np.arange(8), size=24, shorter=28)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_fails_for_a_moment_is_asked_again(local, stored, kind, status):
    stored.failures = [status]
    got = load(kind).train
    assert not stored.failures
    stored.failures = [status]
    assert got.read(6) == open_folder(local / "folder").read(6)
    assert not stored.failures and not got.broken


# What it costs, in requests and bytes; docs/data.md tells the figures that are printed.


@pytest.fixture
def large(bucket, tmp_path):
    """Forty images of 120 kB in two files, of both kinds."""
    (tmp_path / "files").mkdir()
    noise = np.random.default_rng(0)
    for i in range(40):
        image = noise.integers(0, 256, (200, 200, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / "files" / f"{i:02}.png")
    images = open_folder(tmp_path / "files")
    prepare(images, tmp_path / "prepared", shards=2)
    bucket.upload(tmp_path / "prepared", "a b/prepared")
    for i in range(2):
        data = [example(images.read(j), 0) for j in range(20 * i, 20 * i + 20)]
        bucket.objects[f"a b/train-{i}"] = tfrecords.file_of(data)
    return bucket


def cost(bucket, what, action):
    """Returns the number of requests and the bytes sent, and prints them."""
    bucket.asked.clear()
    action()
    before = -1
    while before != (now := sum(sent for *_, sent in bucket.asked)):
        before = now
        time.sleep(0.2)  # the server may still be writing
    asked = len(bucket.asked), sum(sent for *_, sent in bucket.asked)
    print(f"{what}: {asked[0]} requests, {asked[1]:,} bytes")
    return asked


def test_costs_of_prepared_images(large):
    sources = []
    requests, sent = cost(large, "start", lambda: sources.append(load("prepared")))
    assert requests == 1 + 2 + 1  # index.json; each shard's last byte; the first's end
    assert sent == len(large.objects["a b/prepared/index.json"]) + 2 + 2**20
    images = sources[0].train
    requests, sent = cost(large, "first image of a shard", lambda: images.read(25))
    assert requests == 2 and sent >= 2**20 + 120_000
    few = (3, 8, 2, 9, 15)  # not in order, which would save requests
    requests, sent = cost(large, "five more", lambda: [images.read(i) for i in few])
    assert requests == 5 and sent >= sum(len(images.read(i)) for i in few)


def test_labels_cost_two_requests(stored):
    load("prepared")
    asked = [name for name, *_ in stored.asked if name.endswith("labels.npy")]
    assert len(asked) == 2


def test_costs_of_tfrecords(large):
    sources = []
    requests, sent = cost(large, "start", lambda: sources.append(load("tfrecord")))
    # The list; of each file its version, 20 records, two at its end and its last
    # byte; a record.
    assert requests == 1 + 2 * (1 + 20 + 2 + 1) + 1
    images, files = sources[0].train, ("a b/train-0", "a b/train-1")
    first = len(example(images.read(0), 0))
    assert sent - first - 2 * 20 * 12 < 300
    few = (3, 8, 2, 9, 15)
    size = sum(len(example(images.read(i), 0)) for i in few)
    costs = cost(large, "five images", lambda: [images.read(i) for i in few])
    assert costs == (5, size + 5 * 4)  # and their checksums
    assert sum(len(large.objects[file]) for file in files) > 40 * 120_000


# Refusals: one line each.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["gs://other/x", "gs://bucket/x"])
def test_what_is_not_there_is_refused(stored, kind, where):
    with refused(FileNotFoundError, f"{where}.*expected"):
        load(kind, where)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["gs://", "gs://UPPER/x", "gs://a/b"])
def test_what_names_no_bucket_is_refused(bucket, kind, where):
    with refused(ValueError, f"expected gs://BUCKET/NAME; got '{where}"):
        load(kind, where)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [401, 403])
def test_missing_credentials_are_refused_at_once(stored, kind, status):
    stored.always = status
    with refused(
        files.Unreachable, "a b/.* PERMISSION_DENIED: so it is; .*gcloud auth"
    ):
        load(kind)
    assert len(stored.asked) == (1 if kind == "prepared" else 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_service_that_does_not_answer_is_given_up(once, stored, kind):
    stored.always = 503
    with refused(
        files.Unreachable, "a b/.* retry attempts failed: .*check the network"
    ):
        load(kind)
    assert len(stored.asked) == 2


def test_array_record_is_given_up_at_the_start(stored, monkeypatch):
    monkeypatch.setattr("vicreg_jax.data.sources.prepared.PATIENCE", 0.3)
    stored.always, stored.client = 503, "gl-cpp"
    with refused(
        files.Unreachable, "/images-00000-of-00003.* no answer in 0.3 seconds"
    ):
        load("prepared")
    stored.always = None
    (waiting,) = (x for x in threading.enumerate() if x.name == "first answer")
    waiting.join(60)  # in C++, where the end of Python would abort the process
    assert not waiting.is_alive()


@pytest.mark.parametrize("kind", KINDS)
def test_images_out_of_reach_are_not_taken_for_broken(stored, tmp_path, kind):
    images = load(kind).train
    stored.always = 403
    batch = np.array([5, 0]), uniforms(2), [POLICY] * 2
    for ask in (
        lambda: images.views(*batch, How("crops", 24)),
        lambda: images.centres(np.arange(8), size=24, shorter=28),
        lambda: images.check(configs.Config()),
        lambda: prepare(images, tmp_path / "again", shards=2),
    ):
        with refused(files.Unreachable, "gs://bucket/a b/.* cannot be read: "):
            ask()
    assert not images.broken and not (tmp_path / "again" / "index.json").exists()
    stored.always = None
    images.views(*batch, How("crops", 24))


def test_a_shard_that_went_away_is_named(stored):
    images = load("prepared").train
    shard = "a b/prepared/images-00001-of-00003.array_record"
    del stored.objects[shard]
    with refused(files.Unreachable, f"gs://bucket/{shard} cannot be read"):
        images.read(3)


def damage(stored, local, name, change):
    """Changes a file in the bucket and on the disk; returns the disk's folder."""
    root = local.parent / f"{local.name}-{len(list(local.parent.iterdir()))}"
    shutil.copytree(local / "prepared", root)
    data = change((root / name).read_bytes())
    (root / name).write_bytes(data)
    stored.objects[f"a b/prepared/{name}"] = data
    return root


def test_a_damaged_record_is_named_as_on_a_disk(local, stored):
    image = open_folder(local / "folder").read(4)

    def change(data):
        at = data.index(image[-60:])
        return data[:at] + b"damaged" + data[at + 7 :]

    shard = "images-00001-of-00003.array_record"
    root = damage(stored, local, shard, change)
    batch = np.array([4, 0]), uniforms(2), [POLICY] * 2
    pair = load("prepared", root).train, load("prepared").train
    want, got = (x.views(*batch, How("crops", 24)) and x.broken for x in pair)
    assert got == want and list(got) == [4]
    assert verify(KINDS["prepared"]) == verify(root) == [shard]


@pytest.mark.parametrize(
    "name, change",
    [
        ("index.json", lambda x: x[:20]),
        ("index.json", lambda x: x.replace(b'"format": 1', b'"format": 7')),
        ("labels.npy", lambda x: x[:-1] + b"7"),
        ("labels.npy", lambda x: x + b"more"),
        ("images-00002-of-00003.array_record", lambda x: x + b"more"),
    ],
)
def test_damaged_files_are_refused_as_on_a_disk(local, stored, name, change):
    root = damage(stored, local, name, change)
    with pytest.raises(ValueError) as error:
        load("prepared", root)
    message = str(error.value).replace(str(root), KINDS["prepared"])
    with refused(ValueError, f"^{re.escape(message)}$"):
        load("prepared")


def test_files_cut_short_or_missing_are_refused(local, stored):
    shard = "a b/prepared/images-00002-of-00003.array_record"
    size = len(stored.objects[shard])
    stored.objects[shard] = stored.objects[shard][:-3]
    with refused(ValueError, f"{shard} has fewer bytes; expected {size}"):
        load("prepared")
    del stored.objects[shard]
    with refused(FileNotFoundError, f"gs://bucket/{shard} is missing"):
        load("prepared")
    assert verify(KINDS["prepared"]) == [shard.split("/")[-1]]


@pytest.mark.parametrize("kept", [1, 7, 8, 11, 12, 13, -1, -4, -5])
def test_tfrecord_files_cut_short_are_refused(bucket, kept):
    bucket.objects["a"] = tfrecords.file_of([b"abc", b"defgh"])[:kept]
    with refused(ValueError, "gs://bucket/a is cut short, or is no "):
        Records([("gs://bucket/a", 0, -1)])


def test_a_text_is_no_tfrecord_file(bucket):
    bucket.objects["a"] = b"These are no records, only a text.\n" * 20
    with refused(ValueError, "gs://bucket/a is cut short, or is no "):
        Records([("gs://bucket/a", 0, -1)])


def test_arrays_are_read_from_a_disk_alone(bucket):
    with refused(
        ValueError, "gs://bucket/x: data.name=arrays is not read from gs://, as are"
    ):
        load("arrays", "gs://bucket/x")
    assert not bucket.asked


def test_a_folder_in_a_bucket_is_the_folder_on_a_disk(bucket, local, tmp_path):
    """Also what is skipped, the classes, and how many requests it takes."""
    folder = tmp_path / "folder"
    shutil.copytree(local / "folder", folder)
    (folder / ".hidden.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("")
    bucket.upload(folder, "a b/folder")
    there, here = load("folder", "gs://bucket/a b/folder").train, open_folder(folder)
    assert [x.removeprefix("gs://bucket/a b") for x in there.names] == [
        x.removeprefix(str(tmp_path)) for x in here.names
    ]
    np.testing.assert_array_equal(there.labels, here.labels)
    assert (there.classes, there.skipped) == (here.classes, here.skipped)
    assert there.threads >= 32
    known = here.fingerprint()
    assert there.fingerprint().items() == known.items() - {
        ("sizes of files", known["sizes of files"])
    }
    assert len(bucket.asked) == 1  # a list of up to 1,000 files
    assert all(there.read(i) == here.read(i) for i in range(8))
    assert len(bucket.asked) == 9
    with refused(ValueError, "no images below gs://bucket/none; expected files ending"):
        load("folder", "gs://bucket/none")


def test_prepared_images_in_a_bucket_are_those_on_a_disk(bucket, local):
    """Also where the bucket refuses the second of three shards at first."""
    images, before = open_folder(local / "folder"), bucket.before

    def refuse(method, name):
        bucket.always = 403 if "images-00001" in name else None

    bucket.before = refuse
    with refused(files.Unreachable, "images-00001-of-00003.array_record cannot be wri"):
        prepare(images, "gs://bucket/x", shards=3)
    bucket.before, bucket.always, bucket.changed = before, None, []
    prepare(images, "gs://bucket/x", shards=3)
    assert not [name for _, name in bucket.changed if "images-00000" in name]
    written = {path.name: path.read_bytes() for path in (local / "prepared").iterdir()}
    assert bucket.objects == {f"x/{name}": data for name, data in written.items()}
    with refused(
        ValueError, "gs://bucket/x holds another preparation: shards 3, not 2"
    ):
        prepare(images, "gs://bucket/x", shards=2)
    with refused(ValueError, "on a disk or gs://BUCKET/FOLDER; got s3://bucket/x"):
        prepare(images, "s3://bucket/x", shards=2)


@pytest.mark.long
def test_a_run_on_a_bucket_is_the_run_on_a_disk(local, stored, tmp_path):
    """And a folder that is not there is refused in one line, status 2."""
    flags = ("--config.data.name=prepared", "--config.epochs=2")
    flags += ("--config.data.batch_size=8", "--config.every.log_steps=1")
    flags += ("--config.optimizer.warmup_epochs=1", "--config.model.expander=(16,16)")
    flags += ("--config.evaluate.draws=0",)
    records = []
    for name, path in ("disk", local / "prepared"), ("bucket", KINDS["prepared"]):
        where = f"--config.data.path={path}", f"--workdir={tmp_path / name}"
        done = main(DIGITS, *flags, *where)
        assert done.returncode == 0, done.stderr
        text = (tmp_path / name / "metrics.jsonl").read_text()
        records.append(
            [json.loads(x)["loss"] for x in text.splitlines() if "loss" in x]
        )
    assert records[0] == records[1] and len(records[0]) == 2
    where = "--config.data.path=gs://bucket/x", f"--workdir={tmp_path / 'none'}"
    done = main(DIGITS, *flags, *where)
    assert done.returncode == 2
    assert "vicreg_jax: data.path: there is no gs://bucket/x/index.json" in done.stderr
    assert "Traceback" not in done.stderr

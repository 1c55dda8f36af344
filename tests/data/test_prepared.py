"""Prepared images: what the files hold, stops at any moment, damage, refusals."""

import io
import json
import os
import random
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers.pictures import POLICY, picture, pictures, uniforms
from helpers.processes import environment
from PIL import Image

from vicreg_jax.data.image_files import ImageFiles
from vicreg_jax.data.preparing import prepare
from vicreg_jax.data.source import How
from vicreg_jax.data.sources.folder import open_folder
from vicreg_jax.data.sources.prepared import open_prepared, verify
from vicreg_jax.refusals import Refusal, Unusable

array_record = pytest.importorskip("array_record.python.array_record_module")


@contextmanager
def refused(kind, message):
    with pytest.raises(kind, match=f"^[^\n]*{message}[^\n]*$"):
        yield


def contents(out):
    files = [x for x in out.rglob("*") if x.is_file()]
    return {str(x.relative_to(out)): x.read_bytes() for x in files}


def records(out):
    """The (label, name, image) of every record, read as the format is described."""
    found = []
    for path in sorted(out.glob("images-*-of-*.array_record")):
        for record in array_record.ArrayRecordReader(str(path)).read_all():
            crc32, label, length = struct.unpack("<IiI", record[:12])
            assert crc32 == zlib.crc32(record[4:])
            found.append((label, record[12 : 12 + length], record[12 + length :]))
    return found


def as_jpeg(image, quality):
    image.save(file := io.BytesIO(), "jpeg", quality=quality)
    return np.asarray(Image.open(file))


def files_of(root, images):
    """A source of images that are saved under their names."""
    root.mkdir()
    for name, image in images.items():
        image.save(root / os.fsdecode(name))
    return open_folder(root)


@pytest.fixture
def root(tmp_path):
    return pictures(tmp_path / "files", ending="jpg")


@pytest.fixture
def out(root, tmp_path):
    """Eight images in three files."""
    prepare(open_folder(root), tmp_path / "out", shards=3)
    return tmp_path / "out"


def test_the_files_hold_the_images_bit_for_bit_in_the_order_of_the_source(root, out):
    pairs = enumerate(open_folder(root).names)
    want = [(i // 4, name.encode(), Path(name).read_bytes()) for i, name in pairs]
    assert records(out) == want
    names = [f"images-0000{i}-of-00003.array_record" for i in range(3)]
    assert sorted(contents(out)) == [*names, "index.json", "labels.npy"]


def test_the_index_tells_the_sizes_and_checksums_of_the_files(out):
    held = json.loads((out / "index.json").read_text())
    assert (held["format"], held["examples"], held["broken"]) == (1, 8, [])
    assert [file["examples"] for file in held["files"]] == [2, 3, 3, 0]
    for file in held["files"]:
        data = (out / file["file"]).read_bytes()
        assert (file["bytes"], file["crc32"]) == (len(data), zlib.crc32(data))


def test_an_index_that_was_changed_is_refused_with_and_without_a_checksum(out):
    path = out / "index.json"
    held = json.loads(path.read_text())
    path.write_text(json.dumps(held | {"examples": 5}))
    with refused(Unusable, "index.json is damaged: its checksum is wrong"):
        open_prepared(out)
    assert held.pop("checksum")
    path.write_text(json.dumps(held))
    assert len(open_prepared(out)) == 8  # of an earlier version
    for change in (
        {"examples": 5},
        {"examples": 8.0},
        {"files": []},
        {"files": [3]},
        {"files": [file | {"file": "../a"} for file in held["files"]]},
        {"files": [file | {"bytes": "9"} for file in held["files"]]},
        {"classes": [1, 2]},
        {"settings": None},
    ):
        path.write_text(json.dumps(held | change))
        with refused(Unusable, "index.json is damaged: (examples|files|classes|set)"):
            open_prepared(out)


def test_fewer_images_than_files_make_fewer_files(root, tmp_path):
    prepare(open_folder(root), tmp_path / "out", shards=64)
    assert len(list(tmp_path.glob("out/*.array_record"))) == 8
    assert len(open_prepared(tmp_path / "out")) == 8


def test_what_is_read_is_what_was_written(root, out):
    source, images = open_folder(root), open_prepared(out)
    assert len(images) == 8 and images.classes == ["a", "b"]
    assert list(images.names) == source.names
    np.testing.assert_array_equal(images.labels, source.labels, strict=True)
    for i in range(8):
        np.testing.assert_array_equal(images.whole(i), source.whole(i))


@pytest.mark.parametrize("canvas", [0, 64])
def test_views_are_those_of_the_folder(root, out, canvas):
    arguments = np.array([5, 0, 3, 7]), uniforms(4), [POLICY] * 2
    got = open_prepared(out).views(
        *arguments, How("whole" if canvas else "crops", 24, canvas=canvas)
    )
    want = open_folder(root).views(
        *arguments, How("whole" if canvas else "crops", 24, canvas=canvas)
    )
    np.testing.assert_equal(got, want)


def test_images_without_labels_and_with_odd_names(tmp_path):
    names = (b"caf\xe9.png", "猫 1.png")  # the first is not UTF-8
    source = files_of(tmp_path / "files", dict.fromkeys(names, picture(0, 20, 30)))
    prepare(source, tmp_path / "out", shards=1)
    images = open_prepared(tmp_path / "out")
    assert images.labels is None and list(images.names) == source.names
    assert [label for label, _, _ in records(tmp_path / "out")] == [-1, -1]
    assert not (tmp_path / "out" / "labels.npy").exists()


def test_larger_images_are_shrunk_as_pillow_does_it(tmp_path):
    sizes = [((40, 61), (24, 36)), ((90, 30), (72, 24)), ((20, 70), (20, 70))]
    images = {f"{i}.png": picture(i, *size[::-1]) for i, (size, _) in enumerate(sizes)}
    source = files_of(tmp_path / "files", images)
    prepare(source, tmp_path / "out", shards=2, shorter_side=24)
    got = open_prepared(tmp_path / "out")
    for i, (image, (_, size)) in enumerate(zip(images.values(), sizes, strict=True)):
        want = as_jpeg(image.resize(size, Image.Resampling.BICUBIC), quality=90)
        np.testing.assert_array_equal(got.whole(i), want)


def test_quality_alone_re_encodes_in_the_same_size_and_grey_stays_grey(tmp_path):
    modes = dict(CMYK="RGB", L="L", LA="L", P="RGB", RGBA="RGB")
    images = {f"{x}.tif": picture(0, 30, 40).convert(x) for x in modes}
    source = files_of(tmp_path / "files", images)
    prepare(source, tmp_path / "out", shards=1, quality=70)
    for i, (_, _, data) in enumerate(records(tmp_path / "out")):
        image, mode = Image.open(io.BytesIO(data)), list(modes.values())[i]
        assert (image.format, image.mode, image.size) == ("JPEG", mode, (40, 30))
        want = as_jpeg(Image.open(source.names[i]).convert(mode), 70)
        np.testing.assert_array_equal(np.asarray(image), want)


def test_the_files_do_not_depend_on_the_number_of_threads(root, tmp_path):
    for n in (1, 2, 7):
        where = dict(shards=3, shorter_side=24)
        prepare(open_folder(root, threads=n), tmp_path / str(n), **where)
        assert contents(tmp_path / str(n)) == contents(tmp_path / "1")


def counted(source, times=1):
    """The source, repeated, and a list that the index of every reading is added to."""
    read, n = [], len(source)

    def one(i):
        read.append(i)
        return Path(source.names[i % n]).read_bytes()

    more = dict(classes=source.classes, threads=source.threads)
    more |= dict(known=source.fingerprint)
    labels = np.tile(source.labels, times)
    return ImageFiles(one, source.names * times, labels=labels, **more), read


def test_a_bounded_number_of_images_is_in_memory(root, tmp_path):
    (images, read), ahead = counted(open_folder(root, threads=2), 25), []
    where = dict(shards=2, progress=lambda done, _: ahead.append(len(read) - done))
    prepare(images, tmp_path / "out", **where)
    assert len(read) == 200 and max(ahead) <= 8


def test_several_threads_read_at_once_from_few_open_files(root, tmp_path, monkeypatch):
    monkeypatch.setattr("vicreg_jax.data.sources.prepared.OPEN_AT_MOST", 2)
    prepare(open_folder(root), tmp_path / "out", shards=8)
    images, source = open_prepared(tmp_path / "out"), open_folder(root)
    want = [source.whole(i).tobytes() for i in range(8)]
    order = random.Random(0).choices(range(8), k=500)
    with ThreadPoolExecutor(8) as threads:
        found = threads.map(lambda i: images.whole(i).tobytes(), order)
        assert list(found) == [want[i] for i in order]
    files = [os.path.realpath(x.path) for x in os.scandir("/proc/self/fd")]
    assert sum(str(tmp_path) in x for x in files) == 2


def stop(at, done, total):
    if done == at:
        raise KeyboardInterrupt


def test_a_second_call_goes_on_where_the_first_was_stopped(root, out, tmp_path):
    (images, read), seen = counted(open_folder(root, threads=1)), []
    with refused(FileNotFoundError, "there is no folder '.*/again'"):
        open_prepared(tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        prepare(images, tmp_path / "again", shards=3, progress=partial(stop, 6))
    with refused(FileNotFoundError, "again is not finished: it has no index.json"):
        open_prepared(tmp_path / "again")
    files = [tmp_path / "again" / x for x in sorted(contents(out))[:3]]
    assert [x.exists() for x in files] == [True, True, False]
    files[0].write_bytes(b"")
    read.clear()
    where = dict(shards=3, progress=lambda *x: seen.append(x))
    prepare(images, tmp_path / "again", **where)
    assert read == [0, 1, 5, 6, 7] and seen == [(i, 8) for i in range(3, 9)]
    assert contents(tmp_path / "again") == contents(out)
    prepare(images, tmp_path / "again", **where)
    assert len(read) == 5 and len(seen) == 6  # all was there


PREPARE = """if True:
    import itertools, os, shutil, signal, sys, time
    from pathlib import Path
    from vicreg_jax.data.sources.folder import open_folder
    from vicreg_jax.data.sources.prepared import open_prepared
    from vicreg_jax.data.preparing import prepare
    root, out = sys.argv[1:]
    def make(progress=lambda done, total: None):
        prepare(open_folder(root, threads=2), out, shards=3, progress=progress)
"""
KILL = """
    def files():
        return {x: x.read_bytes() for x in Path(out).rglob("*") if x.is_file()}
    def apart(stop):
        if os.fork():
            return os.waitstatus_to_exitcode(os.wait()[1])
        seen = itertools.count(1)
        def hook(event, args):
            changes = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir")
            if changes or (event == "open" and str(args[0]).startswith(out)):
                if next(seen) == stop:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        make()
        os._exit(0)
    assert apart(0) == 0
    want, code, stop = files(), -9, 0
    while code == -9:  # until it has fewer file operations than that
        shutil.rmtree(out)
        code = apart(stop := stop + 1)
        assert apart(0) == 0 and files() == want, stop
    print(stop if code == 0 else code)
"""
SLOWLY = """
    print("ready", flush=True)
    make(lambda done, total: time.sleep(0.05))
"""


def command(code, *arguments):
    return [sys.executable, "-c", PREPARE + code, *map(str, arguments)]


def output(code, *arguments):
    where = dict(env=environment(), capture_output=True, text=True)
    done = subprocess.run(command(code, *arguments), **where)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_kill_before_any_file_operation_changes_nothing_in_the_end(root, tmp_path):
    assert int(output(KILL, root, tmp_path / "out")) > 30


def test_kills_at_random_moments_change_nothing_in_the_end(root, out, tmp_path):
    again, moments = tmp_path / "again", random.Random(0)
    where = dict(env=environment(), stdout=subprocess.PIPE)
    for _ in range(4):
        with subprocess.Popen(command(SLOWLY, root, again), **where) as process:
            process.stdout.readline()
            time.sleep(moments.uniform(0, 0.5))
            process.kill()
    prepare(open_folder(root), again, shards=3)
    assert contents(again) == contents(out)


@pytest.mark.parametrize("at", [4, 99])
def test_other_settings_or_images_are_refused(root, tmp_path, at):
    out, images = tmp_path / "out", open_folder(root)
    try:
        prepare(images, out, shards=3, progress=partial(stop, at))
    except KeyboardInterrupt:
        assert at == 4
    before = contents(out)
    with refused(ValueError, "preparation: shards 3, not 2; shorter_side 0, not 24; q"):
        prepare(images, out, shards=2, shorter_side=24)
    few = ImageFiles(images.read, images.names[:7], labels=images.labels[:7])
    with refused(ValueError, "images 8, not 7; names of files .*; labels "):
        prepare(few, out, shards=3)
    assert contents(out) == before


def test_settings_out_of_range_and_other_folders_are_refused(root, tmp_path):
    images = open_folder(root)
    for change in (dict(shards=0), dict(shorter_side=-1), dict(quality=101)):
        with refused(ValueError, r"expected shards >= 1, shorter_side >= 0 and qualit"):
            prepare(images, tmp_path / "out", **dict(shards=2) | change)
    for used in (root, Path(images.names[0])):
        with refused(ValueError, "holds other things; name an empty or a new folder"):
            prepare(images, used, shards=2)


def test_broken_images_are_left_out_and_listed(root, tmp_path, monkeypatch):
    monkeypatch.setattr("vicreg_jax.data.image_files.BROKEN_AT_MOST", 0.5)
    source = open_folder(root)
    Path(source.names[1]).write_bytes(b"not an image")
    cut = Path(source.names[6])
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])  # its header is whole
    prepare(source, tmp_path / "out", shards=3)
    images, kept = open_prepared(tmp_path / "out"), [0, 2, 3, 4, 5, 7]
    assert list(images.names) == [source.names[i] for i in kept]
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    a, b = json.loads((tmp_path / "out" / "index.json").read_text())["broken"]
    assert (a["index"], a["name"]) == (1, source.names[1])
    assert (b["index"], b["name"]) == (6, source.names[6])
    assert "cannot identify" in a["reason"] and "Truncated" in b["reason"]


def test_too_many_broken_images_stop_it_until_they_are_mended(root, tmp_path):
    source, out = open_folder(root), tmp_path / "out"
    held = {name: Path(name).read_bytes() for name in source.names}
    for i in (1, 6):
        Path(source.names[i]).write_bytes(b"")
    with refused(ValueError, "2 of 8 images cannot be read, such as .*/1.jpg, .*/2"):
        prepare(source, out, shards=3)
    assert not (out / "index.json").exists()
    for name, data in held.items():
        Path(name).write_bytes(data)
    prepare(source, out, shards=3)
    assert [image for _, _, image in records(out)] == list(held.values())


def test_a_damaged_image_is_replaced_and_noted(root, out, monkeypatch):
    monkeypatch.setattr("vicreg_jax.data.image_files.BROKEN_AT_MOST", 0.2)
    assert verify(out) == []
    file = "images-00001-of-00003.array_record"  # of examples 2, 3 and 4
    end = Path(open_folder(root).names[3]).read_bytes()[-40:]
    changed = bytes([end[0] ^ 1]) + end[1:]
    (out / file).write_bytes((out / file).read_bytes().replace(end, changed))
    images = open_prepared(out)
    got, _ = images.views(np.array([3, 6]), uniforms(2), [POLICY] * 2, How("crops", 16))
    want, _ = images.views(
        np.array([4, 6]), uniforms(2), [POLICY] * 2, How("crops", 16)
    )
    np.testing.assert_array_equal(got, want)
    assert list(images.broken) == [3] and images.names[3] == f"{file}@1"
    assert verify(out) == [file]
    (out / file).unlink()
    assert verify(out) == [file]


@pytest.mark.parametrize("n, reason", [(2, "checksum of the"), (1, "its own index")])
def test_records_that_are_not_those_written_are_noted(out, monkeypatch, n, reason):
    monkeypatch.setattr("vicreg_jax.data.image_files.BROKEN_AT_MOST", 0.5)
    path = out / "images-00000-of-00003.array_record"
    held = array_record.ArrayRecordReader(str(path)).read_all()
    writer = array_record.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in (held[0][:-1] + b"?", held[1])[:n]:
        writer.write(record)
    writer.close()
    images = open_prepared(out)
    images.views(np.array([0]), uniforms(1), [POLICY] * 2, How("crops", 16))
    assert images.broken[0].startswith("ValueError") and reason in images.broken[0]


FILE = "images-00002-of-00003.array_record"
DAMAGE = {  # of a file, None for removing it: what is said of it
    (FILE, b"short"): (ValueError, f"{FILE} has 5 bytes; expected [0-9]{{6}}"),
    (FILE, None): (FileNotFoundError, f"{FILE} is missing"),
    ("labels.npy", b"0" * 160): (ValueError, "labels.npy is damaged: its checksum"),
    ("index.json", b'{"format": 2}'): (ValueError, "expected format 1, got 2"),
    ("index.json", b"{"): (ValueError, "index.json is damaged: Expecting property"),
    ("index.json", None): (FileNotFoundError, "out is not prepared: it has no index"),
}


@pytest.mark.parametrize("name, data", DAMAGE)
def test_an_incomplete_or_unknown_folder_is_refused(out, name, data):
    (out / name).unlink() if data is None else (out / name).write_bytes(data)
    with refused(*DAMAGE[name, data]):
        open_prepared(out)


def test_a_missing_array_record_is_named(root, out, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, array_record.__name__, None)
    message = r'needs array_record.* pip install "vicreg_jax\[data\]"'
    with refused(ModuleNotFoundError, message):
        open_prepared(out)
    with refused(ModuleNotFoundError, message):
        prepare(open_folder(root), tmp_path / "new", shards=3)
    assert not (tmp_path / "new").exists()


def test_neither_tensorflow_nor_jax_is_needed(root, tmp_path):
    code = """
    make()
    print(len(open_prepared(out)), {"jax", "tensorflow"} & {*sys.modules})
"""
    assert output(code, root, tmp_path / "out") == "8 set()\n"


def test_an_image_may_have_no_label_and_other_numbers_are_refused(root, tmp_path):
    source = open_folder(root)
    given = np.array([0, -1, 1, 1, -1, 0, 0, -1])
    images = ImageFiles(source.read, source.names, labels=given)
    prepare(images, tmp_path / "out", shards=2)
    found = open_prepared(tmp_path / "out").labels
    assert found.tolist() == given.tolist()
    assert [label for label, *_ in records(tmp_path / "out")] == given.tolist()
    images = ImageFiles(source.read, source.names, labels=np.where(given < 0, -7, 0))
    prepare(images, tmp_path / "wrong", shards=2)
    with refused(Refusal, "image 1 has the label -7; expected 0 to 999999, or -1 for"):
        open_prepared(tmp_path / "wrong")

"""A data set prepared once for fast random reads: ArrayRecord files with checksums.

It never needs TensorFlow. A prepared folder holds

    images-00000-of-00064.array_record    the first examples, in the source's order
    labels.npy                            int32 [n], where there are labels
    index.json                            written last: what the other files must be
    unfinished/                           only until index.json is there

A record is one example, little-endian: the crc32 of all that follows (uint32), the
label (int32, -1 for none), the length of the name (uint32), the name (UTF-8), and the
image as a file would hold it (JPEG, PNG, ...). The files are uncompressed and of group
size 1, so that any example costs one read.
"""

import bisect
import functools
import io
import itertools
import json
import os
import re
import shutil
import struct
import threading
import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from vicreg_jax import files
from vicreg_jax.data import image_files
from vicreg_jax.data.image_files import ImageFiles
from vicreg_jax.data.sources.tfrecord import Names, readers
from vicreg_jax.refusals import NotFound, Refusal, Unusable, one_line, require

FORMAT = 1
INDEX, LABELS, DRAFT = "index.json", "labels.npy", "unfinished"
WRITE, READ = "group_size:1,uncompressed", "readahead_buffer_size:0,max_parallelism:0"
HEAD = struct.Struct("<IiI")  # crc32, label, length of the name
OPEN_AT_MOST = 256  # files; a process may often have 1024
PATIENCE = 100  # seconds for a first answer from a bucket


def prepare(
    images: ImageFiles,
    out: str | os.PathLike,
    *,
    shards: int = 64,
    shorter_side: int = 0,
    quality: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes a data set as ArrayRecord files, for `open_prepared` to read.

    Example i stays example i, except that images which cannot be decoded are left out
    and listed in index.json. The bytes written depend neither on the threads nor on
    interruptions: called again with the same settings it keeps the files that are
    finished and goes on, and returns at once if all are. Whether the source is the
    same is judged by its names and labels, not by the images.

    Args:
      images: what to write; as many threads as it has, four images each in memory.
      out: a folder, which is made if need be.
      shards: number of files, at most that of images.
      shorter_side: 0 to keep images as they are; otherwise those whose shorter side is
        longer are shrunk to it, by Pillow's BICUBIC, which is antialiased. The longer
        side is rounded down, as torchvision's Resize does.
      quality: 0 to keep the encoded bytes, bit for bit; otherwise every image is
        re-encoded as JPEG of this quality, grey as grey and all else as RGB. With a
        `shorter_side`, 0 means 90.
      progress: called with the number of images that are done and that there are.

    Raises:
      Refusal: a setting is out of range, too many images are broken, or the folder
        holds other things.
      Unusable: a file cannot be written, or another process is writing.
      NotInstalled: array_record is not installed.
    """
    if not (1 <= shards <= len(images) and shorter_side >= 0 and 0 <= quality <= 100):
        raise Refusal(
            f"expected 1 to {len(images)} shards (as many as images), shorter_side >= 0"
            f" and quality 0 to 100; got {shards}, {shorter_side} and {quality}"
        )
    if re.match(r"\w{2,}:/", str(out)):  # a Path has lost the second slash
        raise Refusal(
            f"prepared images are written into a folder on a disk; got {out}; then copy"
            " it: gcloud storage cp -r FOLDER gs://BUCKET"
        )
    _array_record()
    quality = quality or (90 if shorter_side else 0)
    settings = dict(format=FORMAT, shards=shards)
    settings |= dict(shorter_side=shorter_side, quality=quality) | _describe(images)
    out = Path(out).expanduser()
    draft = out / DRAFT
    if (out / INDEX).exists():
        _refuse_others(out, _index(str(out))["settings"], settings)
        shutil.rmtree(draft, ignore_errors=True)  # it was stopped right before that
        return
    new = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    if not new and not draft.is_dir():
        raise Refusal(f"{out} holds other things; name an empty or a new folder")
    draft.mkdir(parents=True, exist_ok=True)
    with _alone(draft):
        path = draft / "settings.json"
        if path.exists():
            _refuse_others(out, json.loads(path.read_text()), settings)
        files.write_json(path, settings)
        entries = _write_shards(images, out, settings, progress)
        broken = [x for entry in entries for x in entry.pop("broken")]
        index = dict(format=FORMAT, examples=len(images) - len(broken))
        index |= dict(settings=settings, files=entries, broken=broken)
        index["classes"] = list(images.classes)
        if images.labels is not None:
            everything = np.asarray(images.labels)
            kept = np.delete(everything, [x["index"] for x in broken])
            np.save(held := io.BytesIO(), kept.astype(np.int32))
            _put(draft, out / LABELS, held.getvalue())
            entries.append(_entry(out / LABELS, examples=0))
        _put(draft, out / INDEX, json.dumps(index, indent=1))
    shutil.rmtree(draft)


def open_prepared(path: str | os.PathLike, *, threads: int | None = None) -> ImageFiles:
    """Returns the images of a folder that `prepare` made.

    Args:
      path: the folder, perhaps in a bucket: gs://...
      threads: see `ImageFiles`; in a bucket 32 at least by default.

    Raises:
      NotFound: there is no such folder, or it is not finished or complete.
      files.Unreachable: the bucket refuses, or does not answer.
      Unusable: its format is unknown, or a file is cut short or damaged.
      NotInstalled: array_record is not installed.
    """
    root = files.folder(path)
    index = _index(root)
    _array_record()
    labels, last = None, index["files"][-1]
    if last["file"] == LABELS:
        held = files.read(f"{root}/{LABELS}")
        if zlib.crc32(held) != last["crc32"]:
            raise Unusable(f"{root}/{LABELS} is damaged: its checksum is wrong")
        labels = np.load(io.BytesIO(held)).astype(int)
    examples = _Examples(root, index["files"])
    if files.in_bucket(root):
        examples.try_bucket()
    return ImageFiles(
        lambda i: examples[i][1],
        Names(examples.name, index["examples"]),
        labels=labels,
        classes=index["classes"],
        threads=threads or readers(root),
    )


def verify(path: str | os.PathLike) -> list[str]:
    """Returns the files that are missing or whose crc32 is wrong; reads all of them.

    Raises: as `open_prepared`, of the folder and its index.json.
    """
    root = files.folder(path)

    def good(entry):
        try:
            return files.crc32(f"{root}/{entry['file']}") == entry["crc32"]
        except FileNotFoundError:
            return False

    entries = _index(root, sizes=False)["files"]
    return [entry["file"] for entry in entries if not good(entry)]


class _Examples:
    """Examples by number; several threads may ask at once, and share open files."""

    def __init__(self, root, entries):
        self._root, self._files = root, entries
        self._ends = list(itertools.accumulate(file["examples"] for file in entries))
        self._reader = functools.lru_cache(OPEN_AT_MOST)(self._open)

    def __getitem__(self, index: int) -> tuple[str, bytes]:
        """Returns the name and the image; raises whatever a damaged file brings."""
        shard, position = self._where(index)
        record = self._read(self._reader(shard), shard, position)
        crc32, _, length = HEAD.unpack_from(record)
        if zlib.crc32(memoryview(record)[4:]) != crc32:
            raise ValueError("the checksum of the record is wrong")
        image = HEAD.size + length
        name = record[HEAD.size : image].decode("utf-8", "surrogateescape")
        return name, record[image:]

    def try_bucket(self) -> None:
        """Raises files.Unreachable where ArrayRecord's own client gets no answer.

        Without credentials it would look for them for a quarter of an hour.
        """

        def open_one():
            with suppress(Exception):  # which the first image meets again
                self._reader(0)

        thread = threading.Thread(target=open_one, name="first answer", daemon=True)
        thread.start()
        thread.join(PATIENCE)
        if thread.is_alive():
            path = f"{self._root}/{self._files[0]['file']}"
            reason = f"ArrayRecord's client had no answer in {PATIENCE} seconds"
            raise files.unreachable(path, reason)

    def name(self, index: int) -> str:
        shard, position = self._where(index)
        try:
            return self[index][0]
        except Exception:  # of a damaged record, whose name is asked for most
            return f"{self._files[shard]['file']}@{position}"

    def _where(self, index):
        if not 0 <= index < self._ends[-1]:
            raise IndexError(f"example {index} of {self._ends[-1]}")
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - self._ends[shard] + self._files[shard]["examples"]

    def _read(self, reader, shard, position):
        try:
            return reader.read([position])[0]
        except RuntimeError as error:
            if "gs://" not in str(error):  # it got the bytes, but they are damaged
                raise
            path = f"{self._root}/{self._files[shard]['file']}"
            raise files.unreachable(path, str(error)) from error

    def _open(self, shard):
        file = self._files[shard]
        reader = _array_record().ArrayRecordReader(
            f"{self._root}/{file['file']}", READ, file_reader_buffer_size=2**15
        )
        if reader.num_records() != file["examples"]:  # 0 in files it cannot read
            if not reader.ok():
                with suppress(RuntimeError):
                    self._read(reader, shard, 0)  # tells whether the bucket refused
            raise ValueError(f"{file['file']} is damaged: its own index is wrong")
        return reader


def _write_shards(images, out, settings, progress):
    """Writes the shards that are not finished; returns the entries of all.

    A shard is finished when its note is there. That is written after the file is
    complete and has got its name, so a stop at any moment costs this shard at most.
    """
    draft, total, n = out / DRAFT, settings["shards"], len(images)
    names = [f"images-{i:05}-of-{total:05}.array_record" for i in range(total)]
    notes = [draft / f"{i:05}.json" for i in range(total)]
    entries = [_finished(out, note) for note in notes]
    spans = [range(n * i // total, n * (i + 1) // total) for i in range(total)]
    left = [i for i in range(total) if not entries[i]]
    broken = [x for entry in entries if entry for x in entry["broken"]]
    done = n - sum(len(spans[i]) for i in left)
    progress(done, n)
    with ThreadPoolExecutor(images.threads) as threads:
        make = functools.partial(_make, images, settings)
        indices = itertools.chain.from_iterable(spans[i] for i in left)
        made = _in_order(threads, make, indices, ahead=4 * images.threads)
        for i in left:
            known, path = len(broken), draft / names[i]
            with _writer(path) as writer:
                for record in itertools.islice(made, len(spans[i])):
                    if isinstance(record, bytes):
                        writer.write(record)
                    else:
                        broken.append(record)
                        _refuse_many_broken(broken, n, notes)
                    done += 1
                    progress(done, n)
            kept = len(spans[i]) - len(broken[known:])
            entries[i] = _entry(path, examples=kept) | dict(broken=broken[known:])
            os.replace(path, out / names[i])
            files.write_json(notes[i], entries[i])
    return entries


def _finished(out, note):
    """Returns the entry of a finished shard, or None."""
    entry = json.loads(note.read_text()) if note.exists() else None
    return entry if entry and _size(out / entry["file"]) == entry["bytes"] else None


@contextmanager
def _writer(path):
    try:
        writer = _array_record().ArrayRecordWriter(str(path), WRITE)
        yield writer
        writer.close()
    except RuntimeError as error:  # such as a full disk
        raise Unusable(f"{path} cannot be written: {one_line(error)}") from error


def _make(images, settings, index):
    """Returns the record of an image, or what index.json says of a broken one."""
    from PIL import Image

    name, quality = images.names[index], settings["quality"]
    try:
        data = images.read(index)
        image = image_files.open_image(data)
        grey = Image.getmodebase(image.mode) == "L"
        image = image.convert("L" if grey else "RGB")  # decodes all of it
        shorter, wanted = min(image.size), settings["shorter_side"]
        if 0 < wanted < shorter:
            size = [side * wanted // shorter for side in image.size]
            image = image.resize(size, Image.Resampling.BICUBIC)
        if quality:
            image.save(file := io.BytesIO(), "jpeg", quality=quality)
            data = file.getvalue()
    except files.Unreachable:
        raise
    except Exception as error:  # whatever a damaged file makes Pillow raise
        return dict(index=index, name=name, reason=image_files.reason_of(error))
    label = -1 if images.labels is None else int(images.labels[index])
    name = name.encode("utf-8", "surrogateescape")  # file names may be any bytes
    rest = HEAD.pack(0, label, len(name))[4:] + name + data
    return struct.pack("<I", zlib.crc32(rest)) + rest


def _in_order(threads, function, items, *, ahead):
    """Yields function(item) in order; threads work on a bounded number of them."""
    waiting = deque()
    for item in items:
        waiting.append(threads.submit(function, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _refuse_many_broken(broken, n, notes):
    if len(broken) < n and len(broken) <= max(1, image_files.BROKEN_AT_MOST * n):
        return
    for note in notes:  # once mended, these images are looked at again
        if note.exists() and json.loads(note.read_text())["broken"]:
            note.unlink()
    raise Refusal(
        f"{len(broken)} of {n} images cannot be read, such as"
        f" {', '.join(x['name'] for x in broken[:3])}; mend or remove them"
    )


def _describe(images):
    """Returns what tells a source from another, without reading its images."""
    names = 0
    for name in images.names:
        names = zlib.crc32(name.encode("utf-8", "surrogateescape") + b"\0", names)
    labels = None if images.labels is None else np.asarray(images.labels).tolist()
    labels = zlib.crc32(json.dumps([labels, *images.classes]).encode())
    crc32 = dict(names_crc32=names, labels_crc32=labels)
    return dict(images=len(images), first_image=images.names[0]) | crc32


def _refuse_others(out, held, asked):
    keys = [key for key in held | asked if held.get(key) != asked.get(key)]
    if keys:
        other = (f"{key} {held.get(key)!r}, not {asked.get(key)!r}" for key in keys)
        raise Refusal(
            f"{out} holds another preparation: {'; '.join(other)}; name another"
            " folder, or remove this one"
        )


@contextmanager
def _alone(draft):
    """Keeps a second process out, which would write the same drafts."""
    import fcntl

    with open(draft / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Unusable(f"another process writes {draft.parent}") from error
        yield


def _index(root, *, sizes=True):
    """Returns index.json; its format is known and the files are of their sizes."""
    path = f"{root}/{INDEX}"
    if not files.in_bucket(root) and not os.path.isdir(root):
        raise NotFound(f"data.path: there is no folder {root!r}")
    try:
        held = files.read(path)
    except FileNotFoundError as error:
        state = "not finished" if os.path.isdir(f"{root}/{DRAFT}") else "not prepared"
        why = f"{root} is {state}: it has no {INDEX}"
        if files.in_bucket(root):
            why = f"{error}; expected a copy of what the task prepare wrote"
        raise NotFound(f"data.path: {why}") from error
    try:
        index = json.loads(held)
        known = index["format"] == FORMAT
    except (ValueError, TypeError, KeyError) as error:
        raise Unusable(f"{path} is damaged: {error!r}") from error
    if not known:
        raise Unusable(f"{path}: expected format {FORMAT}, got {index['format']}")
    if sizes:
        wanted = [(f"{root}/{x['file']}", x["bytes"]) for x in index["files"]]
        with ThreadPoolExecutor(readers(root)) as threads:
            list(threads.map(files.check_size, *zip(*wanted, strict=True)))
    return index


def _entry(path, *, examples):
    """Returns what index.json says of a file, which is on the disk from then on."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    checked = dict(bytes=_size(path), crc32=files.crc32(path))
    return dict(file=path.name, examples=examples) | checked


def _size(path):
    return path.stat().st_size if path.exists() else None


def _put(draft, path, data):
    """Writes a file by way of the drafts, where what a stop leaves is removed later."""
    files.write(draft / path.name, data)
    os.replace(draft / path.name, path)


def _array_record():
    return require(
        "array_record.python.array_record_module",
        "reading or writing prepared images",
        install="vicreg_jax[data]",
    )

"""A data set prepared once for fast random reads: ArrayRecord files with checksums.

It never needs TensorFlow. A prepared folder holds

    images-00000-of-00064.array_record    the first examples, in the source's order
    labels.npy                            int32 [n], where there are labels
    index.json                            written last: what the other files must be,
                                          and its own checksum (not those of old)
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
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import ModuleType

import numpy as np

from vicreg_jax import files
from vicreg_jax.data.image_files import ImageFiles
from vicreg_jax.data.labels import checked
from vicreg_jax.data.sources.tfrecord import Names, readers
from vicreg_jax.refusals import NotFound, Unusable, require

__all__ = ["array_record", "open_prepared", "read_index", "verify"]

FORMAT = 1
INDEX, LABELS, DRAFT = "index.json", "labels.npy", "unfinished"
READ = "readahead_buffer_size:0,max_parallelism:0"
FIELDS = {  # of INDEX
    "format": int,
    "examples": int,
    "settings": dict,
    "files": list,
    "broken": list,
    "classes": list,
}
ENTRY = {"file": str, "examples": int, "bytes": int, "crc32": int}  # of a file
HEAD = struct.Struct("<IiI")  # crc32, label, length of the name
OPEN_AT_MOST = 256  # files; a process may often have 1024
PATIENCE = 100  # seconds for a first answer from a bucket


def open_prepared(path: str | os.PathLike, *, threads: int | None = None) -> ImageFiles:
    """Returns the images of a folder that `preparing.prepare` made.

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
    index = read_index(root)
    array_record()
    labels, last = None, index["files"][-1]
    if last["file"] == LABELS:
        held = files.read(f"{root}/{LABELS}")
        if zlib.crc32(held) != last["crc32"]:
            raise Unusable(f"{root}/{LABELS} is damaged: its checksum is wrong")
        labels = np.load(io.BytesIO(held))
        labels = checked(labels, index["examples"], index["classes"])
    examples = _Examples(root, index["files"])
    if files.in_bucket(root):
        examples.try_bucket()
    return ImageFiles(
        lambda i: examples[i][1],
        Names(examples.name, index["examples"]),
        labels=labels,
        classes=index["classes"],
        threads=threads or readers(root),
        known=lambda: {"checksums of files": _digest(index["files"])},
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

    entries = read_index(root, sizes=False)["files"]
    return [entry["file"] for entry in entries if not good(entry)]


def _digest(entries):
    known = [[entry["file"], entry["bytes"], entry["crc32"]] for entry in entries]
    return files.digest(json.dumps(known).encode())


class _Examples:
    """Examples by number; several threads may ask at once, and share open files."""

    def __init__(self, root, entries):
        self._paths = [f"{root}/{entry['file']}" for entry in entries]
        self._counts = [entry["examples"] for entry in entries]
        self._starts = [0, *itertools.accumulate(self._counts)]
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
            reason = f"ArrayRecord's client had no answer in {PATIENCE} seconds"
            raise files.unreachable(self._paths[0], reason)

    def name(self, index: int) -> str:
        try:
            return self[index][0]
        except Exception:  # of a damaged record, whose name is asked for most
            shard, position = self._where(index)
            return f"{os.path.basename(self._paths[shard])}@{position}"

    def _where(self, index):
        if not 0 <= index < self._starts[-1]:
            raise IndexError(f"example {index} of {self._starts[-1]}")
        shard = bisect.bisect_right(self._starts, index) - 1
        return shard, index - self._starts[shard]

    def _read(self, reader, shard, position):
        try:
            return reader.read([position])[0]
        except RuntimeError as error:
            if "gs://" not in str(error):  # it got the bytes, but they are damaged
                raise
            raise files.unreachable(self._paths[shard], str(error)) from error

    def _open(self, shard):
        path = self._paths[shard]
        reader = array_record().ArrayRecordReader(
            path, READ, file_reader_buffer_size=2**15
        )
        if reader.num_records() != self._counts[shard]:  # 0 in files it cannot read
            if not reader.ok():
                with suppress(RuntimeError):
                    self._read(reader, shard, 0)  # tells whether the bucket refused
            name = os.path.basename(path)
            raise ValueError(f"{name} is damaged: its own index is wrong")
        return reader


def read_index(root: str, *, sizes: bool = True) -> dict:
    """Returns index.json, whose format is known; by default checks the files' sizes.

    Raises: as `open_prepared`.
    """
    path = f"{root}/{INDEX}"
    if not files.in_bucket(root) and not os.path.isdir(root):
        raise NotFound(f"data.path: there is no folder {root!r}")
    try:
        index = files.read_json(path, {"format": int})
    except NotFound as error:
        state = "not finished" if os.path.isdir(f"{root}/{DRAFT}") else "not prepared"
        why = f"{root} is {state}: it has no {INDEX}"
        if files.in_bucket(root):
            why = f"{error}; expected a copy of what the task prepare wrote"
        raise NotFound(f"data.path: {why}") from error
    if index["format"] != FORMAT:
        raise Unusable(f"{path}: expected format {FORMAT}, got {index['format']}")
    odd = files.odd_fields(index, FIELDS)
    if odd or not _is_whole(index):
        odd = ", ".join(odd) or "files, examples or classes"
        raise Unusable(f"{path} is damaged: {odd} missing or impossible")
    if sizes:
        wanted = [(f"{root}/{x['file']}", x["bytes"]) for x in index["files"]]
        with ThreadPoolExecutor(readers(root)) as threads:
            list(threads.map(files.check_size, *zip(*wanted, strict=True)))
    return index


def _is_whole(index):
    """Tells whether the files of an index can be, and have as many examples as it."""
    entries, classes = index["files"], index["classes"]
    return (
        all(isinstance(x, dict) and not files.odd_fields(x, ENTRY) for x in entries)
        and all(x["file"] == os.path.basename(x["file"]) != "" for x in entries)
        and all(x["bytes"] > 0 and x["examples"] >= 0 for x in entries)
        and sum(x["examples"] for x in entries) == index["examples"] > 0
        and all(isinstance(x, str) for x in classes)
    )


def array_record() -> ModuleType:
    """Returns the module that reads and writes ArrayRecord files.

    Raises:
      NotInstalled: array_record is not installed.
    """
    return require(
        "array_record.python.array_record_module",
        "reading or writing prepared images",
        install="vicreg_jax[data]",
    )

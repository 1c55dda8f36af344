"""TFRecord files with random access to their images, without TensorFlow."""

import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vicreg_jax import files
from vicreg_jax.data import crc32c
from vicreg_jax.data.image_files import ImageFiles, cores
from vicreg_jax.data.index_cache import IndexCache
from vicreg_jax.refusals import NotFound, Refusal, Unusable, require

__all__ = ["Names", "Records", "example_parser", "open_tfrecords", "readers"]

IMAGE_KEYS = ("image/encoded", "image")  # of the usual ImageNet TFRecords, and of tfds
LABEL_KEYS = ("image/class/label", "label")
WAITING = 32  # threads at least that read from a bucket, where they mostly wait


class Records:
    """The records of TFRecord files in order, as a sequence of bytes.

    The format has no index. Here one is made by reading where each record ends, so that
    a step can have any records it wants, in files that were made for streaming. The
    checksums of lengths are looked at there, that of a record when it is read.

    Args:
      parts: (path, first record, number of records or -1 for all others) each.
      cache: where the index of these files is kept, while they do not change.

    Raises:
      NotFound: there is no such file.
      files.Unreachable: the bucket of a file refuses, or does not answer.
      Refusal: a file is no TFRecord file, is cut short, or a length is damaged.
    """

    def __init__(
        self, parts: Sequence[tuple[str, int, int]], cache: IndexCache | None = None
    ):
        self._paths = [path for path, _, _ in parts]
        with ThreadPoolExecutor(readers(self._paths[0])) as threads:
            versions = list(threads.map(files.version, self._paths))

            def index():
                each = list(threads.map(_index, self._paths))
                counts = np.array([len(x) for x in each])
                return {"records": np.concatenate(each), "counts": counts}

            key = ["tfrecord", self._paths, versions]
            whole = (cache or IndexCache()).arrays(key, index)
        found = np.split(whole["records"], np.cumsum(whole["counts"])[:-1])
        kept = [
            index[skip : len(index) if take < 0 else skip + take]
            for index, (_, skip, take) in zip(found, parts, strict=True)
        ]
        self._where = np.concatenate(kept)
        self._file = np.repeat(np.arange(len(kept)), [len(index) for index in kept])

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, index: int) -> bytes:
        start, length = self._where[index].tolist()
        found = files.read(self._paths[self._file[index]], start, length + 4)
        data, checksum = found[:length], found[length:]
        if struct.pack("<I", crc32c.masked(data)) != checksum:
            raise ValueError("the checksum of the record is wrong")
        return data

    def digests(self) -> dict[str, str]:
        """Returns digests of the names of the files, and of the records' lengths."""
        names = "\n".join(os.path.basename(path) for path in self._paths)
        return {
            "names of files": files.digest(names.encode(errors="surrogateescape")),
            "lengths of records": files.digest(
                self._file.data, np.ascontiguousarray(self._where).reshape(-1).data
            ),
        }

    def name(self, index: int) -> str:
        return f"{self._paths[self._file[index]]}@{self._where[index][0]}"


def readers(path: str | os.PathLike) -> int:
    """Returns how many threads are to read where this file or folder is."""
    return max(cores(), WAITING) if files.in_bucket(path) else cores()


class Names(Sequence):
    """Names that are made when they are asked for."""

    def __init__(self, make, length):
        self._make, self._length = make, length

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        if not 0 <= index < self._length:
            raise IndexError(index)
        return self._make(index)


def open_tfrecords(pattern: str, *, cache: IndexCache | None = None) -> ImageFiles:
    """Returns the images of TFRecord files, in the order of the file names.

    Args:
      pattern: such as DIR/train-* or gs://BUCKET/DIR/train-*; the records are
        tf.train.Examples with an encoded image named image/encoded or image, and
        perhaps a label from 0 on, named image/class/label or label.
      cache: see `Records`.

    Raises:
      NotFound: no file matches.
      files.Unreachable: the bucket refuses, or does not answer.
      Refusal: no TFRecord file, or no such image in the first record.
    """
    paths = files.matching(pattern)
    if not paths:
        why = ", or there is no such bucket" if files.in_bucket(pattern) else ""
        raise NotFound(
            f"data.path: no file matches {pattern!r}{why}; expected files, such as"
            " DIR/train-* or gs://BUCKET/DIR/train-*"
        )
    if os.path.isdir(paths[0]):
        raise Refusal(
            f"data.path: {paths[0]} is a folder; give the files, such as"
            f" {os.path.join(paths[0], '*')}"
        )
    odd = [x for x in paths if not (files.in_bucket(x) or os.path.isfile(x))]
    if odd:  # a pipe would keep whoever reads it waiting
        raise Refusal(f"data.path: {odd[0]} is no regular file; give those alone")
    records = Records([(path, 0, -1) for path in paths], cache)
    if not len(records):
        raise Refusal(f"{pattern!r}: the {len(paths)} file(s) hold no record")
    example = example_parser()
    found = _first_of(records, example)
    key = next((key for key in IMAGE_KEYS if key in found), None)
    if key is None:
        raise Refusal(
            f"{paths[0]}: expected an image named {' or '.join(IMAGE_KEYS)} in each"
            f" record; the first has {', '.join(sorted(found)) or 'nothing'}"
        )
    label = next((key for key in LABEL_KEYS if key in found), None)

    def read_label(index):
        try:
            return example(records[index])[label].int64_list.value[0]
        except (KeyError, IndexError) as error:
            raise Unusable(f"{records.name(index)} has no {label}") from error

    return ImageFiles(
        lambda i: example(records[i])[key].bytes_list.value[0],
        Names(records.name, len(records)),
        read_label=read_label if label else None,
        threads=readers(pattern),
        known=records.digests,
    )


def example_parser():
    """Returns a function: the bytes of a tf.train.Example -> its features by name.

    With protobuf alone: TensorFlow would take seconds to import, and a GPU.
    """
    require("google.protobuf", "reading TFRecords", install="vicreg_jax[data]")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", syntax="proto3")
    many, one = 3, 1  # LABEL_REPEATED, LABEL_OPTIONAL
    text, message, raw, integer, real = 9, 11, 12, 3, 2  # TYPE_STRING and so on
    for name, fields in {
        "BytesList": [("value", many, raw, "")],
        "FloatList": [("value", many, real, "")],
        "Int64List": [("value", many, integer, "")],
        "Feature": [
            ("bytes_list", one, message, ".BytesList"),
            ("float_list", one, message, ".FloatList"),
            ("int64_list", one, message, ".Int64List"),
        ],
        # What a map is on the wire.
        "Entry": [("key", one, text, ""), ("value", one, message, ".Feature")],
        "Features": [("feature", many, message, ".Entry")],
        "Example": [("features", one, message, ".Features")],
    }.items():
        kind = file.message_type.add(name=name)
        for number, (field, label, type_, type_name) in enumerate(fields, 1):
            kind.field.add(name=field, number=number, label=label, type=type_)
            if type_name:
                kind.field[-1].type_name = type_name
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    example = message_factory.GetMessageClass(pool.FindMessageTypeByName("Example"))

    def parse(record):
        entries = example.FromString(record).features.feature
        return {entry.key: entry.value for entry in entries}

    return parse


def _first_of(records, example):
    """Returns the features of the first record that is not damaged."""
    for index in range(len(records)):
        try:
            record = records[index]
            break
        except Refusal:
            raise
        except ValueError:
            continue
    else:
        raise Unusable(f"{records.name(0)}: the checksums of all records are wrong")
    try:
        return example(record)
    except Exception as error:  # protobuf's own
        name = records.name(index)
        raise Unusable(f"{name}: a record is no tf.train.Example") from error


def _index(path):
    """Returns int64 [records, 2]: where each record starts, and its length in bytes.

    A record is its length (8 bytes), a checksum (4), the data, and a checksum (4).
    """
    found, headers, position = [], [], 0
    with files.opened(path) as read:
        while len(header := read(12, position)) == 12:
            length = struct.unpack_from("<Q", header)[0]
            headers.append(header)
            found.append((position + 12, length))
            position += length + 16
            if length > 2**40:  # is no length
                break
        whole = not header and (not position or read(1, position - 1))
    lengths = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, 12)
    checksums = lengths[:, 8:].copy().view("<u4")[:, 0]
    wrong = np.flatnonzero(crc32c.masked_rows(lengths[:, :8]) != checksums)
    if len(wrong) and wrong[0]:
        start = found[wrong[0]][0] - 12
        raise Unusable(
            f"{path} is damaged: at byte {start} the checksum of a record's length is"
            " wrong; get the file again"
        )
    if len(wrong) or not whole:
        raise Unusable(f"{path} is cut short, or is no (uncompressed) TFRecord file")
    return np.array(found, np.int64).reshape(-1, 2)

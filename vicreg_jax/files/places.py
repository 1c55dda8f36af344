"""Files on a disk or in a Google Cloud Storage bucket (gs://...): read, found, written.

Buckets are read by tensorstore, which comes with Orbax: it finds Google's credentials,
tries again what fails for a moment, and may be asked by several threads at once. Like
JAX, it does not survive os.fork.
"""

import functools
import glob
import hashlib
import io
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from vicreg_jax.refusals import NotFound, Refusal, Unusable, one_line

__all__ = [
    "AT_ONCE",
    "Unreachable",
    "check_size",
    "crc32",
    "digest",
    "expanded",
    "folder",
    "in_bucket",
    "matching",
    "opened",
    "pieces",
    "read",
    "regular",
    "unreachable",
    "write",
    "writing",
]


# A minute and a half in all. By default it would be a quarter of an hour, in silence.
RETRIES = dict(max_retries=8, initial_delay="0.5s", max_delay="32s")
AT_ONCE = 256  # requests; the threads that ask are fewer


class Unreachable(Unusable):
    """A bucket refuses, or does not answer: no fault of the images in it."""


def in_bucket(path: str | os.PathLike) -> bool:
    """Tells whether a path is in a bucket, even one of which Path has cut a slash."""
    return str(path).startswith("gs:/")


def folder(path: str | os.PathLike) -> str:
    """Returns a folder's path to which /NAME can be appended."""
    if in_bucket(path):
        return re.sub("(?<=[^/:])/+$", "", str(path))
    return str(expanded(path))


def expanded(path: str | os.PathLike) -> Path:
    """Returns a path on a disk, ~ and ~NAME replaced by a home folder.

    Raises:
      NotFound: there is nobody of that name.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise NotFound(f"{path}: there is nobody of that name here") from error


def read(path: str, start: int = 0, length: int | None = None) -> bytes:
    """Returns some bytes of a file, fewer where it ends; by default all.

    Raises:
      NotFound: there is no such file, or no such bucket.
      Unusable: it is a folder, a device or a pipe, or may not be read.
      Unreachable: the bucket refuses, or does not answer.
      Refusal: the name of the bucket cannot be one.
    """
    if in_bucket(path):
        return _read(path, start, length)
    with regular(path) as file:
        file.seek(start)
        return file.read(-1 if length is None else length)


@contextmanager
def regular(path: str | os.PathLike) -> Iterator[io.BufferedReader]:
    """Gives a file on a disk, open, which is no folder, no device and no pipe.

    Raises:
      NotFound, Unusable: see `read`.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Unusable(f"{path} cannot be read: it is no regular file")
            yield file
    except Refusal:
        raise
    except FileNotFoundError as error:
        raise NotFound(f"there is no {path}") from error
    except OSError as error:
        raise Unusable(f"{path} cannot be read: {error.strerror}") from error


@contextmanager
def opened(path: str) -> Iterator[Callable[[int, int], bytes]]:
    """Gives a function (length, start) -> bytes, for many small reads of one file.

    It returns fewer bytes where the file ends. Raises: as `read`.
    """
    if in_bucket(path):
        yield lambda length, start: _read(path, start, length)
        return
    with regular(path) as file:
        yield functools.partial(os.pread, file.fileno())


def pieces(path: str) -> Iterator[bytes]:
    """Yields a whole file, a few MiB at a time. Raises: as `read`."""
    each = 2**24 if in_bucket(path) else 2**20  # a request is dearer
    with opened(path) as read_some:
        start = 0
        while piece := read_some(each, start):
            yield piece
            start += len(piece)


def check_size(path: str, expected: int) -> None:
    """Raises where a file is not of this size, in bytes, at least 1.

    Raises:
      NotFound: there is no such file.
      Refusal: it has another size.
      Unreachable: see `read`.
    """
    try:
        if in_bucket(path):  # from the last byte on, as tensorstore tells no sizes
            rest = len(_read(path, expected - 1, None))
            size = expected - 1 + rest if rest else "fewer"
        else:
            size = os.stat(path).st_size
    except FileNotFoundError as error:
        raise NotFound(f"{path} is missing") from error
    except OSError as error:
        raise Unusable(f"{path} cannot be read: {error.strerror}") from error
    if size != expected:
        raise Refusal(f"{path} has {size} bytes; expected {expected}")


def write(path: str | os.PathLike, content: bytes | memoryview | str) -> None:
    """Writes a file on a disk, whole or not at all; it outlives a crash of the machine.

    Raises:
      Unusable: the disk is full, or the folder cannot be written to.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    content = content.encode() if isinstance(content, str) else content
    with writing(path):
        try:
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        except OSError:
            with suppress(OSError):
                draft.unlink()
            raise


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Turns what a disk raises, such as that it is full, into one line.

    Raises:
      Unusable: what is done in its context has failed.
    """
    try:
        yield
    except Refusal:
        raise
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise Unusable(f"{path} cannot be written: {reason}") from error


def digest(*parts: bytes | memoryview) -> str:
    """Returns 16 hexadecimal digits that tell contents apart: BLAKE2b of all parts."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        state.update(part)
    return state.hexdigest()


def crc32(path: str | os.PathLike) -> int:
    """Returns the CRC-32 of a whole file. Raises: as `read`."""
    checksum = 0
    for piece in pieces(str(path)):
        checksum = zlib.crc32(piece, checksum)
    return checksum


def matching(pattern: str) -> list[str]:
    """Returns the paths that match, such as DIR/train-*, sorted; perhaps none.

    Raises:
      Unreachable: see `read`.
      ValueError: see `read`.
    """
    if not in_bucket(pattern):
        return sorted(glob.glob(str(expanded(pattern))))
    bucket, wanted = _split(pattern)
    first = re.split(r"[*?\[]", wanted)[0]  # all names begin with that
    with _explained(pattern):
        found = _bucket(bucket, first).list().result()
    # An absolute pattern, as a relative one would match the end of a name.
    keys = sorted(first + key.decode() for key in found)
    keys = [key for key in keys if PurePosixPath(f"/{key}").match(f"/{wanted}")]
    if not keys:  # tensorstore lists nothing where it is refused, too; a read tells
        with suppress(FileNotFoundError):
            _read(pattern, 0, 1)
    return [f"gs://{bucket}/{key}" for key in keys if not key.endswith("/")]


def unreachable(path: str, reason: str) -> Unreachable:
    """Returns the error of a bucket's file, in one line."""
    reason = " ".join(reason.partition(" [http_")[0].split())[:300]
    return Unreachable(
        f"{path} cannot be read: {reason}; check the network, and that the account of"
        " `gcloud auth application-default login`, GOOGLE_APPLICATION_CREDENTIALS or"
        " this machine may read the bucket"
    )


def _without_waiting(path, flags):
    """Opens a file; of a pipe, it would wait for somebody to write."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _read(path, start, length):
    bucket, key = _split(path)
    stop = None if length is None else start + length
    some = slice(start, stop) if start or stop is not None else None
    with _explained(path):
        store = _bucket(bucket)
        try:
            found = store.read(key, byte_range=some).result()
        except ValueError as error:
            if not str(error).startswith("OUT_OF_RANGE"):
                raise
            # It gives all of a range or nothing; what is left of the file is less.
            return b"" if stop is None else _read(path, start, None)
    if found.state == "missing":
        raise NotFound(f"there is no {path}, or no bucket {bucket!r}")
    return found.value


@contextmanager
def _explained(path):
    try:
        yield
    except (FileNotFoundError, Unreachable):
        raise
    except Exception as error:  # tensorstore has a type for each kind of status
        raise unreachable(path, str(error)) from error


def _split(path):
    """Returns the bucket's name, and the file's name in it."""
    bucket, _, key = path.removeprefix("gs://").partition("/")
    if not re.fullmatch("[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", bucket):
        raise Refusal(f"expected gs://BUCKET/NAME; got {path!r}")
    return bucket, key


@functools.cache
def _bucket(name, prefix=""):
    import tensorstore

    context = dict(gcs_request_retries=RETRIES)
    context |= dict(gcs_request_concurrency=dict(limit=AT_ONCE))
    spec = dict(driver="gcs", bucket=name, path=prefix, context=context)
    return tensorstore.KvStore.open(spec).result()

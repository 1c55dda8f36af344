"""Files on a disk or in a bucket (gs://..., s3://...): one way for both."""

import functools
import glob
import hashlib
import io
import os
import re
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from vicreg_jax.files import buckets
from vicreg_jax.files.buckets import Place, in_bucket
from vicreg_jax.refusals import NotFound, Refusal, Unusable, one_line

__all__ = [
    "at_hand",
    "check_size",
    "crc32",
    "digest",
    "download",
    "elsewhere",
    "expanded",
    "folder",
    "matching",
    "move",
    "near",
    "opened",
    "pieces",
    "place",
    "read",
    "regular",
    "remove",
    "remove_drafts",
    "staged",
    "upload",
    "version",
    "write",
    "writing",
]


def folder(path: str | os.PathLike) -> str:
    """Returns a folder's path to which /NAME can be appended."""
    return str(expanded(path))


def elsewhere(path: str | os.PathLike) -> str:
    """Returns the whole of a path such as hdfs://..., which is neither, else ""."""
    if in_bucket(path) or not re.match(r"\w{2,}:/", str(path)):
        return ""
    return re.sub(":/+", "://", str(path), count=1)  # a Path has lost a slash


def expanded(path: str | os.PathLike) -> Path | Place:
    """Returns a path in a bucket, or on a disk, ~ and ~NAME replaced by a home folder.

    Raises:
      NotFound: there is nobody of that name.
      Refusal: the name of the bucket cannot be one.
    """
    if in_bucket(path):
        buckets.split(str(path))
        return Place(path)
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
        return buckets.read(path, start, length)
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
        yield lambda length, start: buckets.read(path, start, length)
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


def version(path: str) -> str:
    """Returns a text that is another one when a file has been written anew.

    Raises:
      NotFound: there is no such file.
      Unusable, Unreachable: see `read`.
    """
    if in_bucket(path):
        return buckets.version(path)
    with regular(path) as file:
        found = os.fstat(file.fileno())
    return f"{found.st_size} {found.st_mtime_ns}"


def check_size(path: str, expected: int) -> None:
    """Raises where a file is not of this size, in bytes, at least 1.

    Raises:
      NotFound: there is no such file.
      Refusal: it has another size.
      Unreachable: see `read`.
    """
    try:
        if in_bucket(path):  # from the last byte on, as tensorstore tells no sizes
            rest = len(buckets.read(path, expected - 1, None))
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
    """Writes a file, whole or not at all; it outlives a crash of the machine.

    Raises:
      Unusable: the disk is full, or the folder cannot be written to.
      Unreachable: the bucket refuses, or does not answer.
    """
    if in_bucket(path):
        Place(path).put(
            content.encode() if isinstance(content, str) else bytes(content)
        )
        return
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


def remove_drafts(folder: Path | Place) -> None:
    """Removes what `write` has left below a folder, killed, where it can.

    Nobody else must be writing there.
    """
    if in_bucket(folder):  # which has none
        return
    for path in folder.rglob(".*.tmp"):
        if re.fullmatch(r"\..+\.[0-9]+\.tmp", path.name):
            with suppress(OSError):
                path.unlink()


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


def remove(folder: Path | Place) -> None:
    """Removes a folder and all that is in it, where it can."""
    if in_bucket(folder):
        buckets.remove_below(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def move(folder: Path | Place, to: Path | Place) -> None:
    """Gives a folder another name: on a disk at once, in a bucket file by file."""
    if not in_bucket(folder):
        folder.rename(to)
        return
    for path in folder.files():
        write(to / path.relative_to(folder), read(str(path)))
    buckets.remove_below(folder)


def upload(local: Path, folder: Place, *, last: str = "") -> None:
    """Copies all files of a folder on a disk into one in a bucket.

    Args:
      last: the file, if there is one, that is to be written after all others.
    """
    found = sorted(path for path in local.rglob("*") if path.is_file())
    for path in sorted(found, key=lambda path: path == local / last):
        write(folder / path.relative_to(local), path.read_bytes())


def download(folder: Place, local: Path, *, names: Iterable[str] | None = None) -> None:
    """Copies files of a folder in a bucket into one on a disk.

    Args:
      names: which; by default all.

    Raises:
      Unusable: the disk is full, or cannot be written to.
      Unreachable: the bucket refuses, or does not answer.
    """
    found = folder.files() if names is None else [folder / name for name in names]
    for path in found:
        target = local / path.relative_to(folder)
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(read(str(path)))


@contextmanager
def near(folder: Path | Place) -> Iterator[Path]:
    """Gives a folder on a disk for drafts: itself, or of one in a bucket another."""
    if in_bucket(folder):
        with tempfile.TemporaryDirectory(prefix="vicreg_jax_") as local:
            yield Path(local)
    else:
        yield folder


def place(draft: Path, path: Path | Place) -> None:
    """Gives a draft that is `near` its folder its place there, whole at once."""
    if in_bucket(path):
        write(path, draft.read_bytes())
        draft.unlink()
    else:
        os.replace(draft, path)


@contextmanager
def at_hand(path: Path | Place) -> Iterator[Path]:
    """Gives a file on a disk for what reads nothing else: itself, or a copy.

    Raises:
      NotFound, Unreachable: see `read`.
    """
    with near(path.parent) as folder:
        local = folder / path.name
        if in_bucket(path):
            local.write_bytes(read(str(path)))
        yield local


@contextmanager
def staged(folder: Path | Place) -> Iterator[Path]:
    """Gives a folder on a disk to write into, for what can write nowhere else.

    It is the folder itself, or of one in a bucket one that is copied there at the end.
    """
    with near(folder) as local:
        yield local
        if in_bucket(folder):
            upload(local, folder)


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
    names = buckets.listed(pattern.split("*")[0].split("?")[0].split("[")[0])
    # Absolute, as a relative pattern would match the end of a name.
    wanted = f"/{Place(pattern)}"
    return [name for name in names if PurePosixPath(f"/{Place(name)}").match(wanted)]


def _without_waiting(path, flags):
    """Opens a file; of a pipe, it would wait for somebody to write."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))

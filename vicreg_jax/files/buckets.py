"""Files in a Google Cloud Storage bucket (gs://...): read, listed, written, removed.

Buckets are asked by tensorstore, which comes with Orbax: it finds Google's credentials,
tries again what fails for a moment, and may be asked by several threads at once. Like
JAX, it does not survive os.fork. What is written is there for everybody at once, whole
or not at all; nothing can be appended to, renamed or locked.
"""

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath

from vicreg_jax.refusals import NotFound, Refusal, Unusable

__all__ = ["AT_ONCE", "Place", "Unreachable", "in_bucket", "unreachable"]


# A minute and a half in all. By default it would be a quarter of an hour, in silence.
RETRIES = dict(max_retries=8, initial_delay="0.5s", max_delay="32s")
AT_ONCE = 256  # requests; the threads that ask are fewer
REFUSED = b""  # the generation that a write returns which has found another


class Unreachable(Unusable):
    """A bucket refuses, or does not answer: no fault of the images in it."""


class Place(PurePosixPath):
    """A path in a bucket, with the methods of `pathlib.Path` that a bucket has.

    A folder is there where a file below it is, so none needs to be made.

    Raises, where it asks the bucket:
      Unreachable: the bucket refuses, or does not answer.
      Refusal: the name of the bucket cannot be one.
    """

    def __str__(self) -> str:
        return re.sub("^gs:/+", "gs://", super().__str__())  # a path keeps one slash

    def absolute(self) -> "Place":
        return self

    resolve = absolute

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        try:
            read(str(self), 0, 1)
        except NotFound:
            return False
        return True

    def is_dir(self) -> bool:
        return bool(self._below())

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        pass

    def iterdir(self) -> Iterator["Place"]:
        return self.glob("*")

    def glob(self, pattern: str) -> Iterator["Place"]:
        """Yields what matches, files and folders; the pattern has no "**"."""
        depth = len(PurePosixPath(pattern).parts)
        fixed = re.split(r"[*?\[]", pattern)[0]
        parts = (PurePosixPath(x).parts for x in self._below(fixed))
        found = {PurePosixPath(*x[:depth]) for x in parts if len(x) >= depth}
        yield from sorted(self / x for x in found if x.match(pattern))

    def files(self) -> list["Place"]:
        """Returns all files below it, at any depth."""
        return [self / name for name in self._below()]

    def unlink(self) -> None:
        bucket, key = split(str(self))
        with _explained(str(self), "removed"):
            _store(bucket).write(key, None).result()

    def held(self) -> tuple[bytes | None, bytes]:
        """Returns the content of the file, or None, and which version that is."""
        bucket, key = split(str(self))
        with _explained(str(self)):
            found = _store(bucket).read(key).result()
        content = found.value if found.state == "value" else None
        return content, found.stamp.generation

    def put(self, content: bytes | None, *, over: bytes | None = None) -> bool:
        """Writes the file, or removes it; returns False where it was another version.

        Args:
          content: or None, to remove it.
          over: the version that it must be, or anything, see `held`.
        """
        bucket, key = split(str(self))
        with _explained(str(self), "written"):
            stamp = _store(bucket).write(key, content, if_equal=over).result()
        return over is None or stamp.generation != REFUSED

    def _below(self, fixed=""):
        """Returns the names of the files below it that begin with `fixed`, sorted."""
        return listed(f"{self}/{fixed}", strip=len(str(self)) + 1)


def in_bucket(path: object) -> bool:
    """Tells whether a path is in a bucket, even one of which Path has cut a slash."""
    return str(path).startswith("gs:/")


def read(path: str, start: int, length: int | None) -> bytes:
    """Returns some bytes of a file: see `places.read`."""
    bucket, key = split(path)
    stop = None if length is None else start + length
    some = slice(start, stop) if start or stop is not None else None
    if not key:
        raise NotFound(f"{path} is a bucket, and no file in one")
    with _explained(path):
        store = _store(bucket)
        try:
            found = store.read(key, byte_range=some).result()
        except ValueError as error:
            if not str(error).startswith("OUT_OF_RANGE"):
                raise
            # It gives all of a range or nothing; what is left of the file is less.
            return b"" if stop is None else read(path, start, None)
    if found.state == "missing":
        raise NotFound(f"there is no {path}, or no bucket {bucket!r}")
    return found.value


def version(path: str) -> str:
    """Returns which version of a file there is: see `places.version`."""
    bucket, key = split(path)
    with _explained(path):
        found = _store(bucket).read(key, byte_range=slice(0, 0)).result()
    if found.state == "missing":
        raise NotFound(f"there is no {path}, or no bucket {bucket!r}")
    return found.stamp.generation.hex()


def listed(start: str, *, strip: int = 0) -> list[str]:
    """Returns the paths of all files that begin like that, sorted; perhaps none.

    Args:
      strip: characters that are cut off.
    """
    bucket, first = split(start)
    with _explained(start):
        found = _store(bucket, first).list().result()
    if not found:  # tensorstore lists nothing where it is refused, too; a read tells
        with suppress(NotFound):
            read(f"gs://{bucket}/{first or '-'}", 0, 1)
    names = sorted(f"gs://{bucket}/{first}{key.decode()}" for key in found)
    return [name[strip:] for name in names if not name.endswith("/")]


def remove_below(place: Place) -> None:
    """Removes all files below a folder."""
    bucket, key = split(f"{place}/")
    with _explained(str(place), "removed"):
        import tensorstore

        _store(bucket, key).delete_range(tensorstore.KvStore.KeyRange()).result()


def split(path: str) -> tuple[str, str]:
    """Returns the bucket's name, and the file's name in it."""
    bucket, _, key = re.sub("^gs:/+", "", path).partition("/")
    if not re.fullmatch("[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", bucket):
        raise Refusal(f"expected gs://BUCKET/NAME; got {path!r}")
    return bucket, key


def unreachable(path: str, reason: str, done: str = "read") -> Unreachable:
    """Returns the error of a bucket's file, in one line."""
    reason = " ".join(reason.partition(" [http_")[0].split())[:300]
    verb = "write to" if done != "read" else "read"
    return Unreachable(
        f"{path} cannot be {done}: {reason}; check the network, and that the account of"
        " `gcloud auth application-default login`, GOOGLE_APPLICATION_CREDENTIALS or"
        f" this machine may {verb} the bucket"
    )


@contextmanager
def _explained(path, done="read"):
    try:
        yield
    except (NotFound, Unreachable):
        raise
    except Exception as error:  # tensorstore has a type for each kind of status
        raise unreachable(path, str(error), done) from error


@functools.cache
def _store(name, prefix=""):
    import tensorstore

    context = dict(gcs_request_retries=RETRIES)
    context |= dict(gcs_request_concurrency=dict(limit=AT_ONCE))
    spec = dict(driver="gcs", bucket=name, path=prefix, context=context)
    return tensorstore.KvStore.open(spec).result()

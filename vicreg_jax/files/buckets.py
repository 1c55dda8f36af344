"""Files in a bucket (gs://..., s3://...): read, listed, written, removed.

Of Google Cloud Storage, Amazon S3, or a service that answers like S3, whose address is
AWS_ENDPOINT_URL. Buckets are asked by tensorstore, which comes with Orbax: it finds the
credentials of Google and Amazon, tries again what fails for a moment, and may be asked
by several threads at once. Like JAX, it does not survive os.fork. What is written is
there for everybody at once, whole or not at all; nothing can be appended to, renamed or
locked.
"""

import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath

from vicreg_jax.refusals import NotFound, Refusal, Unusable

__all__ = ["AT_ONCE", "Place", "Unreachable", "in_bucket", "kind", "unreachable"]

DRIVERS = {"gs": "gcs", "s3": "s3"}  # of tensorstore

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
        kept = super().__str__()  # has one slash
        return re.sub("^([a-z0-9]+):/+", r"\1://", kept)

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
        root, key = split(str(self))
        with _explained(str(self), "removed"):
            _store(root).write(key, None).result()

    def held(self) -> tuple[bytes | None, bytes]:
        """Returns the content of the file, or None, and which version that is."""
        root, key = split(str(self))
        with _explained(str(self)):
            found = _store(root).read(key).result()
        content = found.value if found.state == "value" else None
        return content, found.stamp.generation

    def put(self, content: bytes | None, *, over: bytes | None = None) -> bool:
        """Writes the file, or removes it; returns False where it was another version.

        Args:
          content: or None, to remove it.
          over: the version that it must be, or anything, see `held`.
        """
        root, key = split(str(self))
        with _explained(str(self), "written"):
            stamp = _store(root).write(key, content, if_equal=over).result()
        return over is None or stamp.generation != REFUSED

    def _below(self, fixed=""):
        """Returns the names of the files below it that begin with `fixed`, sorted."""
        return listed(f"{self}/{fixed}", strip=len(str(self)) + 1)


def in_bucket(path: object) -> bool:
    """Tells whether a path is in a bucket, even one of which Path has cut a slash."""
    return bool(kind(path))


def kind(path: object) -> str:
    """Returns "gs" or "s3" of a path in a bucket, "" of another."""
    found = re.match("(gs|s3):/", str(path))
    return found[1] if found else ""


def read(path: str, start: int, length: int | None) -> bytes:
    """Returns some bytes of a file: see `places.read`."""
    root, key = split(path)
    stop = None if length is None else start + length
    some = slice(start, stop) if start or stop is not None else None
    if not key:
        raise NotFound(f"{path} is a bucket, and no file in one")
    with _explained(path):
        store = _store(root)
        try:
            found = store.read(key, byte_range=some).result()
        except ValueError as error:
            if not str(error).startswith("OUT_OF_RANGE"):
                raise
            # It gives all of a range or nothing; what is left of the file is less.
            return b"" if stop is None else read(path, start, None)
    if found.state == "missing":
        raise NotFound(f"there is no {path}, or no bucket {root}")
    return found.value


def version(path: str) -> str:
    """Returns which version of a file there is: see `places.version`."""
    root, key = split(path)
    with _explained(path):
        found = _store(root).read(key, byte_range=slice(0, 0)).result()
    if found.state == "missing":
        raise NotFound(f"there is no {path}, or no bucket {root}")
    return found.stamp.generation.hex()


def listed(start: str, *, strip: int = 0) -> list[str]:
    """Returns the paths of all files that begin like that, sorted; perhaps none.

    Args:
      strip: characters that are cut off.
    """
    root, first = split(start)
    with _explained(start):
        found = _store(root, first).list().result()
    if not found:  # tensorstore lists nothing where it is refused, too; a read tells
        with suppress(NotFound):
            read(f"{root}/{first or '-'}", 0, 1)
    names = sorted(f"{root}/{first}{key.decode()}" for key in found)
    return [name[strip:] for name in names if not name.endswith("/")]


def remove_below(place: Place) -> None:
    """Removes all files below a folder."""
    root, key = split(f"{place}/")
    with _explained(str(place), "removed"):
        import tensorstore

        _store(root, key).delete_range(tensorstore.KvStore.KeyRange()).result()


def split(path: str) -> tuple[str, str]:
    """Returns the bucket, such as gs://NAME, and the file's name in it."""
    scheme, rest = kind(path), re.sub("^[a-z0-9]+:/+", "", path)
    bucket, _, key = rest.partition("/")
    if not re.fullmatch("[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", bucket):
        raise Refusal(f"expected {scheme}://BUCKET/NAME; got {path!r}")
    return f"{scheme}://{bucket}", key


def unreachable(path: str, reason: str, done: str = "read") -> Unreachable:
    """Returns the error of a bucket's file, in one line."""
    reason = " ".join(reason.partition(" [http_")[0].split())[:300]
    verb = "write to" if done != "read" else "read"
    account = (
        "the keys of AWS_ACCESS_KEY_ID, of AWS_PROFILE or of this machine"
        if kind(path) == "s3"
        else "the account of `gcloud auth application-default login`,"
        " GOOGLE_APPLICATION_CREDENTIALS or this machine"
    )
    return Unreachable(
        f"{path} cannot be {done}: {reason}; check the network, and that {account} may"
        f" {verb} the bucket"
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
def _store(root, prefix=""):
    import tensorstore

    scheme, _, name = root.partition("://")
    driver = DRIVERS[scheme]
    context = {f"{driver}_request_retries": RETRIES}
    context |= {f"{driver}_request_concurrency": dict(limit=AT_ONCE)}
    spec = dict(driver=driver, bucket=name, path=prefix, context=context)
    return tensorstore.KvStore.open(
        spec | (_of_s3() if scheme == "s3" else {})
    ).result()


def _of_s3():
    """Returns what Amazon's own clients would find in the environment."""
    found = dict(use_conditional_write=True)  # else nobody could hold a workdir
    if "AWS_ACCESS_KEY_ID" in os.environ:
        found |= dict(aws_credentials=dict(type="environment"))
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        found |= dict(endpoint=endpoint, aws_region=region or "us-east-1")
    elif region:
        found |= dict(aws_region=region)
    return found

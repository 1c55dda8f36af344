"""What files hold, checked as it is read: JSON, text, arrays; it runs nothing."""

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from vicreg_jax.files.buckets import in_bucket
from vicreg_jax.files.places import read, regular, write
from vicreg_jax.refusals import Refusal, Unusable, one_line

__all__ = [
    "is_number",
    "odd_fields",
    "parse_json",
    "read_json",
    "read_npz",
    "read_text",
    "sealed",
    "write_json",
    "write_npz",
]

END = struct.Struct("<I4H2IH")  # of a zip file; the fifth: how many files it has
SEAL = "checksum"  # the field of a sealed JSON file
DEEPEST = 30  # objects and lists in each other; what follows may go down in them


def read_text(path: str | os.PathLike) -> str:
    """Returns a text file, which is UTF-8.

    Raises:
      Unusable: it is no UTF-8. The rest: as `read`.
    """
    try:
        return read(os.fspath(path)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unusable(f"{path} is no text of UTF-8: {error}") from error


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes a JSON file: see `write`."""
    write(path, json.dumps(content, indent=2) + "\n")


def read_json(path: str | os.PathLike, fields: Mapping[str, type] | None = None) -> Any:
    """Returns the content of a JSON file, whose seal holds if it has one.

    Args:
      fields: what an object must have, at least, by their types; by default it may
        hold anything.

    Raises:
      NotFound, Unreachable: see `read`.
      Unusable: it cannot be read, is damaged, or is no such object.
    """
    held = read(os.fspath(path))
    try:
        content = parse_json(held)
    except ValueError as error:
        raise Unusable(f"{path} is damaged: {one_line(error)}") from error
    if isinstance(content, dict) and SEAL in content:
        seal = content.pop(SEAL)
        if sealed(content)[SEAL] != seal:
            raise Unusable(f"{path} is damaged: its checksum is wrong")
    if fields is None:
        return content
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise Unusable(f"{path} is damaged: expected an object, got {kind}")
    if odd := odd_fields(content, fields):
        raise Unusable(f"{path}: {', '.join(odd)} missing or of another type")
    return content


def parse_json(text: bytes | str) -> Any:
    """Returns the content of JSON, in which no object has two fields of one name.

    Raises:
      ValueError: it is no such JSON, no UTF-8, or nested deeper than anything here.
    """
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    with suppress(RecursionError):
        content = json.loads(text, object_pairs_hook=_once)
        level = [content]
        for _ in range(DEEPEST):
            level = [x for x in level if isinstance(x, dict | list)]
            if not level:
                return content
            level = [y for x in level for y in (x.values() if type(x) is dict else x)]
    raise ValueError(f"it is nested more than {DEEPEST} deep")


def odd_fields(content: Mapping[str, Any], fields: Mapping[str, type]) -> list[str]:
    """Returns the names of fields that are missing or of another type."""
    return [
        name
        for name, kind in fields.items()
        if not isinstance(content.get(name, ...), kind)
        or (isinstance(content[name], bool) and kind is not bool)  # is an int, too
    ]


def is_number(x: Any) -> bool:
    """Tells numbers that a float32 can hold from the rest of JSON, bool included."""
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 3.4e38


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is to be a JSON file with a checksum of itself: see `read_json`."""
    text = json.dumps(content, sort_keys=True)
    return {**content, SEAL: zlib.crc32(text.encode())}


def read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns the arrays of an .npz file; runs no code that it may hold.

    Raises:
      NotFound: there is no such file.
      Unusable: it cannot be read, is no .npz file, or is damaged.
    """
    found = {}
    try:
        with _seekable(path) as file, zipfile.ZipFile(file) as archive:
            file.seek(-END.size - len(archive.comment), io.SEEK_END)
            if END.unpack(file.read(END.size))[4] != len(archive.infolist()):
                raise ValueError("its list of arrays is damaged")
            for member in archive.namelist():
                name = member.removesuffix(".npy")
                if name == member or name in found:
                    raise ValueError(f"{member!r} is no array, or comes twice")
                with archive.open(member) as raw:
                    found[name] = np.lib.format.read_array(raw, allow_pickle=False)
                    # Only what is read to its end has its checksum compared.
                    if raw.read(1):
                        raise ValueError(f"{member!r} has more than its header says")
    except Refusal:
        raise
    except Exception as error:  # whatever a damaged file makes zipfile or NumPy raise
        raise Unusable(
            f"{path} is not a readable .npz file: {one_line(error)}"
        ) from error
    return found


def write_npz(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz file: see `write`."""
    np.savez(content := io.BytesIO(), **arrays)
    write(path, content.getbuffer())


def _seekable(path):
    return io.BytesIO(read(str(path))) if in_bucket(path) else regular(path)


def _once(pairs):
    """Returns an object of JSON, after checking that no name comes twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field comes twice")
    return found

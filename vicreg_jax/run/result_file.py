"""result.json of an evaluation on disk: written, read back, checked; not computed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vicreg_jax import files
from vicreg_jax.refusals import NotFound, Unusable

__all__ = ["FILE", "is_result", "read", "write"]

FILE = "result.json"
FIELDS = {
    "task": str,
    "name": str,
    "checkpoint": str,
    "step": int | None,
    "data": str,
    "tested": int,
    "results": dict,
    "published": dict,
    "notes": list,
    "variables": int,
    "images": dict,
}
NOT_OF_OLD = {"variables": 0, "images": {}}


def write(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes a result with its checksum. Raises: as `files.write`.

    Args:
      content: "task"; "name" of the config file; "checkpoint" and, where it is known,
        its "step"; the checksum of its "variables" and digests of the "images"; "data";
        "results", by name in per cent of the "tested" images, and those "published";
        "notes", lines.
    """
    files.write_json(folder / FILE, files.sealed(content))


def read(folder: Path) -> dict[str, Any] | None:
    """Returns what `write` wrote there, if it did.

    Raises:
      Unusable: the file cannot be read, is damaged, or is no result.
    """
    path = folder / FILE
    try:
        content = files.read_json(path)
    except NotFound:
        return None
    if not is_result(content):
        raise Unusable(f"{path} is no result of an evaluation; remove it")
    return content


def is_result(content: Any) -> bool:
    """Tells whether it has all that will be shown, of the right types and limits."""
    if not isinstance(content, dict):
        return False
    if files.odd_fields(NOT_OF_OLD | content, FIELDS):
        return False
    shares = [*content["results"].values(), *content["published"].values()]
    return (
        all(files.is_number(x) and 0 <= x <= 100 for x in shares)
        and 1 <= content["tested"] < 2**53
        and all(isinstance(x, str) for x in content["notes"])
    )

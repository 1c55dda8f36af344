"""The record in each checkpoint: its step, checksums of files and arrays, what was so.

It restores nothing. Orbax itself does not notice a flipped bit in array data, and casts
dtypes silently. Files are compared as they lie on the disk; arrays from the state that
is saved to the state that is restored, which is more than the files.
"""

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vicreg_jax import files
from vicreg_jax.refusals import NotFound, Refusal, Unusable, printable

__all__ = [
    "RECORD",
    "arrays",
    "check_arrays",
    "check_files",
    "check_fit",
    "read",
    "size",
    "write",
]

RECORD = "record.json"
DATA = ("examples", "data")  # facts that are of the data


def arrays(tree: Any) -> dict[str, list]:
    """Returns {name: [kind, CRC-32 of the values]} of the arrays of a tree.

    Names are like params/encoder/conv1/kernel, kinds like float32[64,3]. The checksum
    is None for what has no values, and for an array of which other processes hold
    parts: the checksums of the files stand for it.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): [
            f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]",
            _crc32_of_array(leaf),
        ]
        for path, leaf in leaves
    }


def size(tree: Any) -> int:
    """Returns the bytes of the arrays of a tree."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def check_fit(
    folder: Path,
    record: Mapping[str, Any],
    like: Any,
    facts: Mapping[str, Any],
    *,
    part: bool,
    other_data: bool = False,
) -> list[str]:
    """Refuses a checkpoint of something else; returns in words what may be other.

    Args:
      record: that of the checkpoint in the folder.
      like: tree of what has a shape and a dtype.
      facts: what must be as recorded. "examples" and "data", digests by what they are
        of, are of the data; "code", a digest, may be another. (Records of old may lack
        digests.)
      part: whether the state may have more arrays than are wanted.
      other_data: whether those facts may differ.

    Raises:
      Refusal: naming the fact, or the first arrays.
    """
    saved = record["facts"]
    for name, value in facts.items():
        if name not in (*DATA, "code") and saved.get(name) != value:
            raise Refusal(
                f"the checkpoint {folder} was made with {saved.get(name)} {name}, now"
                f" there are {value}; choose another --workdir"
            )
    differs = []
    then, now = saved.get("examples"), facts.get("examples")
    if now not in (None, then):
        differs.append(f"{then} examples, now there are {now}")
    then, now = saved.get("data"), facts.get("data")
    if then and now:
        others = [name for name in then | now if then.get(name) != now.get(name)]
        differs += [f"other {name}" for name in others]
    if differs and not other_data:
        raise Refusal(
            f"the checkpoint {folder} was made with {', '.join(differs)}; give the old"
            " data, go on with these by --config.guard.other_data=True, or choose"
            " another --workdir"
        )
    code = facts.get("code")
    if saved.get("code", code) != code:
        differs.append("other code of the method")
    saved, wanted, wrong = record["arrays"], arrays(like), []
    for name, (kind, _) in wanted.items():
        if name not in saved:
            wrong.append(f"it has no {name}")
        elif saved[name][0] != kind:
            wrong.append(f"{name} is {saved[name][0]} there and now {kind}")
    if not part:
        wrong += [f"{name} is only there" for name in saved if name not in wanted]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise Refusal(
            f"the checkpoint {folder} is of something else: {', '.join(wrong[:3])}"
            f"{more}; give the encoder (encoder=) and optimizer that it was trained"
            " with, or choose another --workdir"
        )
    return differs


def check_arrays(record: Mapping[str, Any], tree: Any) -> None:
    """Compares what was restored with what was saved, as far as both are known.

    Raises:
      Unusable: naming the first arrays that differ.
    """
    wrong = []
    for name, (kind, checksum) in arrays(tree).items():
        saved_kind, saved = record["arrays"][name]
        if kind != saved_kind or (None not in (checksum, saved) and checksum != saved):
            wrong.append(name)
    if wrong:
        raise Unusable(f"checksum of {', '.join(wrong[:3])} is wrong")


def write(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes the record, and in it the checksums of all files below the folder."""
    found = sorted(path for path in folder.glob("*/**/*") if path.is_file())
    crcs = {path.relative_to(folder).as_posix(): files.crc32(path) for path in found}
    record = {**record, "files": crcs}
    content = {"record": record, "crc32": _crc32_of_json(record)}
    files.write(folder / RECORD, json.dumps(content))


def read(folder: Path) -> dict[str, Any]:
    """Returns the record of the checkpoint in a folder, which is named by its step.

    Raises:
      Unusable: it is missing, damaged, or that of another step.
    """
    try:
        content = files.read_json(folder / RECORD, {"record": dict, "crc32": int})
    except NotFound as error:
        raise Unusable(f"{RECORD} cannot be read: it is missing") from error
    except Unusable as error:  # in which the whole path is
        said = str(error).removeprefix(printable(f"{folder}/"))
        raise Unusable(said) from error
    record = content["record"]
    if _crc32_of_json(record) != content["crc32"]:
        raise Unusable(f"{RECORD} is damaged: its checksum is wrong")
    step = record.get("step", folder.name)  # records of old do not say
    if str(step) != folder.name:
        raise Unusable(f"{RECORD} is that of step {step}")
    return record


def check_files(folder: Path) -> None:
    """Reads every file of the record.

    Raises:
      Unusable: the record, or a file, is missing or damaged.
    """
    for name, checksum in read(folder)["files"].items():
        if not (folder / name).is_file():
            raise Unusable(f"{name} is missing")
        if files.crc32(folder / name) != checksum:
            raise Unusable(f"{name} is damaged: its checksum is wrong")


def _crc32_of_array(leaf):
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return None
    if isinstance(leaf, jax.Array):
        if leaf.is_fully_replicated:
            leaf = leaf.addressable_data(0)
        elif not leaf.is_fully_addressable:
            return None
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
    return zlib.crc32(np.asarray(leaf).reshape(-1).view(np.uint8))


def _crc32_of_json(content):
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())

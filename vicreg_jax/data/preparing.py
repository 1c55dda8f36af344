"""Writes a data set once, as `sources.prepared` describes and reads it."""

import io
import itertools
import json
import os
import struct
import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial

import numpy as np

from vicreg_jax import files
from vicreg_jax.data import decoding, image_files
from vicreg_jax.data.image_files import ImageFiles
from vicreg_jax.data.sources.prepared import (
    DRAFT,
    ENTRY,
    FORMAT,
    HEAD,
    INDEX,
    LABELS,
    array_record,
    read_index,
)
from vicreg_jax.refusals import Refusal, Unusable, one_line

__all__ = ["prepare"]

WRITE = "group_size:1,uncompressed"


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
    same is judged by its fingerprint: names, sizes and labels, not the images.

    Args:
      images: what to write; as many threads as it has, four images each in memory.
      out: a folder, which is made if need be.
      shards: number of files; of fewer images as many as those.
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
      Unusable: a file cannot be written.
      NotInstalled: array_record is not installed.
    """
    if not (shards >= 1 and shorter_side >= 0 and 0 <= quality <= 100):
        raise Refusal(
            f"expected shards >= 1, shorter_side >= 0 and quality 0 to 100; got"
            f" {shards}, {shorter_side} and {quality}"
        )
    elsewhere = files.elsewhere(out)
    if files.kind(out) == "s3":
        elsewhere = str(files.expanded(out))
    if elsewhere:
        raise Refusal(
            "prepared images are written into a folder on a disk or gs://BUCKET/FOLDER;"
            f" got {elsewhere}"
        )
    array_record()
    settings = dict(
        format=FORMAT,
        shards=min(shards, len(images)),
        shorter_side=shorter_side,
        quality=quality or (90 if shorter_side else 0),
        images=len(images),
        **images.fingerprint(),
    )
    out = files.expanded(out)
    if (out / INDEX).exists():
        _refuse_others(out, read_index(str(out))["settings"], settings)
        files.remove(out / DRAFT)  # it was stopped before that
        return
    with files.writing(out):
        _continue(images, out, settings, progress)


def _continue(images, out, settings, progress):
    """Begins, or goes on with what was begun, and cleans up when all is written."""
    draft = out / DRAFT
    new = not out.exists() or (
        out.is_dir() and all(path.name.startswith(".") for path in out.iterdir())
    )
    if not new and not draft.is_dir():
        raise Refusal(f"{out} holds other things; name an empty or a new folder")
    draft.mkdir(parents=True, exist_ok=True)
    path = draft / "settings.json"
    if not any(draft.glob("*.json")):
        files.write_json(path, settings)
    _refuse_others(out, files.read_json(path, {}), settings)
    _write(images, out, settings, progress)
    files.remove(draft)


def _write(images, out, settings, progress):
    """Writes shards, labels and, when they are complete, the index."""
    entries = _write_shards(images, out, settings, progress)
    broken = [x for entry in entries for x in entry.pop("broken")]
    if images.labels is not None:
        kept = np.delete(np.asarray(images.labels), [x["index"] for x in broken])
        np.save(held := io.BytesIO(), kept.astype(np.int32))
        data = held.getvalue()
        _put(out / LABELS, data)
        facts = dict(examples=0, bytes=len(data), crc32=zlib.crc32(data))
        entries.append(dict(file=LABELS, **facts))
    index = dict(
        format=FORMAT,
        examples=len(images) - len(broken),
        settings=settings,
        files=entries,
        broken=broken,
        classes=list(images.classes),
    )
    _put(out / INDEX, json.dumps(files.sealed(index), indent=1))


def _write_shards(images, out, settings, progress):
    """Writes the shards that are not finished; returns the entries of all.

    A shard is finished when its note is there. That is written after the file is
    complete and has got its name, so a stop at any moment costs this shard at most.
    """
    draft, total, n = out / DRAFT, settings["shards"], len(images)
    spans = [range(n * i // total, n * (i + 1) // total) for i in range(total)]
    notes = [draft / f"{i:05}.json" for i in range(total)]
    names = [f"images-{i:05}-of-{total:05}.array_record" for i in range(total)]
    shards = zip(names, notes, spans, strict=True)
    entries = [_finished(out, *shard) for shard in shards]
    finished = [entry for entry in entries if entry]
    broken = [x for entry in finished for x in entry["broken"]]
    done = sum(entry["examples"] + len(entry["broken"]) for entry in finished)
    progress(done, n)
    left = [i for i in range(total) if not entries[i]]
    with files.near(draft) as near, ThreadPoolExecutor(images.threads) as threads:
        make = partial(_make, images, settings)
        indices = itertools.chain.from_iterable(spans[i] for i in left)
        made = _in_order(threads, make, indices, ahead=4 * images.threads)
        for i in left:
            path = near / names[i]
            known = len(broken)
            with _writer(path) as writer:
                for record in itertools.islice(made, len(spans[i])):
                    if isinstance(record, bytes):
                        writer.write(record)
                    else:
                        broken.append(record)
                        _refuse_many_broken(broken, n, notes)
                    done += 1
                    progress(done, n)
            own = broken[known:]
            entries[i] = _entry(path, examples=len(spans[i]) - len(own))
            entries[i]["broken"] = own
            files.place(path, out / path.name)
            files.write_json(notes[i], files.sealed(entries[i]))
    return entries


def _finished(out, name, note, span):
    """Returns the entry of a finished shard, or None: then it is written again."""
    try:
        entry = files.read_json(note, ENTRY | {"broken": list})
        files.check_size(f"{out}/{name}", entry["bytes"])
    except Refusal:
        return None
    whole = entry["examples"] + len(entry["broken"]) == len(span)
    return entry if whole and entry["file"] == name else None


@contextmanager
def _writer(path):
    try:
        writer = array_record().ArrayRecordWriter(str(path), WRITE)
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
        image = decoding.open_image(data)
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
        return dict(index=index, name=name, reason=decoding.reason_of(error))
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
        with suppress(Refusal):
            if files.read_json(note, {"broken": list})["broken"]:
                note.unlink()
    raise Refusal(
        f"{len(broken)} of {n} images cannot be read, such as"
        f" {', '.join(x['name'] for x in broken[:3])}; mend or remove them"
    )


def _refuse_others(out, held, asked):
    keys = [key for key in held | asked if held.get(key) != asked.get(key)]
    if keys:
        other = (f"{key} {held.get(key)!r}, not {asked.get(key)!r}" for key in keys)
        raise Refusal(
            f"{out} holds another preparation: {'; '.join(other)}; name another"
            " folder, or remove this one"
        )


def _entry(path, *, examples):
    """Returns what index.json says of a file, which is on the disk from then on."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        size = os.fstat(file.fileno()).st_size
    return dict(file=path.name, examples=examples, bytes=size, crc32=files.crc32(path))


def _put(path, data):
    """Writes a file by way of the drafts, where what a stop leaves is removed later."""
    if files.in_bucket(path):  # there is none
        files.write(path, data)
        return
    draft = path.parent / DRAFT / path.name
    files.write(draft, data)
    os.replace(draft, path)

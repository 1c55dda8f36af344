"""Damaged small files by thousands: read right, made anew, or refused in a line.

Of what has a checksum, or is written whole or not at all, no damage may change a value
unseen. Where nothing can tell (`free`), as in a config that people edit, a value may be
another, but nothing may fail in another way.
"""

import re
import shutil
from collections import Counter

import pytest
from helpers.mutants import FOLDER, GONE, mutants
from helpers.small_files import KINDS

from vicreg_jax.refusals import Refusal

# What is said of a folder whose file is whole, but of something else.
OTHER = (
    "holds another|holds features of another|nor is it an export|is no encoder known"
)


def outcome(read, folder):
    """Returns what a reader found, or its refusal."""
    try:
        return "right", read(folder)
    except Refusal as error:
        return "refused", str(error)


def damage(path, content):
    path.unlink()
    if content is FOLDER:
        path.mkdir()
    elif content is not GONE:
        path.write_bytes(content)


def check(kind, folder, whole, content):
    """Reads damage with every reader; returns how each ended."""
    kept, path = folder.with_name("kept"), folder / kind.file
    for read, (ended, value) in zip(kind.readers, whole, strict=True):
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        damage(path, content)
        found, seen = outcome(read, folder)
        yield found
        if found == "refused":
            assert "\n" not in seen and seen.isprintable()
            whole_file = not content or content in (FOLDER, GONE)
            known = path.name in seen or (whole_file and str(folder) in seen)
            known = known or re.search(OTHER, seen)
            assert known or ended == "refused", seen
        elif not kind.free and not (content is GONE and kind.gone):
            assert ended == "right" and kind.same(seen, value)


def try_all(name, tmp_path, count):
    kind, folder = KINDS[name], tmp_path / "here"
    folder.mkdir()
    kind.make(folder)
    shutil.copytree(folder, tmp_path / "kept")
    whole = [outcome(read, folder) for read in kind.readers]
    ended = Counter()
    held = (tmp_path / "kept" / kind.file).read_bytes()
    for way, content in mutants(held, count, json_lines=kind.content):
        shown = content if isinstance(content, bytes) else way
        try:
            ends = list(check(kind, folder, whole, content))
        except Exception as error:
            error.add_note(f"{way}: {shown[:2000]!r}")
            raise
        ended["refused" if "refused" in ends else "right"] += 1
    print(
        f"{name}: {count} mutants, {ended['right']} right, {ended['refused']} refused"
    )


@pytest.mark.parametrize("name", KINDS)
def test_damage_is_read_right_or_refused(name, tmp_path):
    try_all(name, tmp_path, 16)


@pytest.mark.long
@pytest.mark.parametrize("name", KINDS)
def test_much_damage_is_read_right_or_refused(name, tmp_path):
    try_all(name, tmp_path, 420)

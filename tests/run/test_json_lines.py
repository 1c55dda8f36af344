"""Files of JSON lines: what damage costs."""

import pytest

from vicreg_jax.refusals import Unusable
from vicreg_jax.run import json_lines


def has_name(line):
    return isinstance(line.get("name"), str)


def test_damaged_lines_are_counted_and_the_rest_is_read(tmp_path):
    path = tmp_path / "x.jsonl"
    assert json_lines.read(path, has_name) == ([], 0)
    json_lines.write(path, [{"name": "a"}])
    json_lines.append(path, {"name": "é", "more": 1})
    whole = path.read_bytes()
    damages = (b"null", b"3", b"{}", b'{"name": 3}', b"\xff\xfe{", b"", b"[" * 10**5)
    path.write_bytes(b"\n".join(damages) + b"\n" + whole + b'{"name": "b')
    lines, damaged = json_lines.read(path, has_name)
    assert lines == [{"name": "a"}, {"name": "é", "more": 1}]
    assert damaged == len(damages) + 1


def test_what_cannot_be_read_or_written_is_refused_in_one_line(tmp_path):
    with pytest.raises(Unusable, match=r"cannot be read: Is a directory$"):
        json_lines.read(tmp_path, has_name)
    for action in (json_lines.append, json_lines.write):
        with pytest.raises(Unusable, match=r"x.jsonl cannot be written: No such file"):
            action(tmp_path / "gone" / "x.jsonl", {})
    with pytest.raises(Unusable, match="full cannot be written: No space left"):
        full = tmp_path / "full"
        full.symlink_to("/dev/full")
        json_lines.append(full, {})

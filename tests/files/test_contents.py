"""JSON, text and arrays of files: what is right is read, the rest is one line."""

import io
import json
import zipfile
import zlib

import numpy as np
import pytest
from helpers.refusals import refused

from vicreg_jax import files
from vicreg_jax.refusals import NotFound, Unusable


def test_json_is_what_the_standard_library_reads(tmp_path):
    content = {"a": [1, 2.5, None, True, {"é": "\udcff"}], "b": {}}
    for path, text in ((tmp_path / "a", json.dumps(content)), (tmp_path / "b", "3")):
        path.write_text(text)
        assert files.read_json(path) == json.loads(text)
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf[1]")  # of an editor on Windows
    assert files.read_json(tmp_path / "a") == [1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ('{"a": 1', "Expecting ',' delimiter"),
        ('{"a": 1, "a": 1}', "a field comes twice"),
        ("[" * 31 + "]" * 31, "it is nested more than 30 deep"),
        ("[" * 10**5, "it is nested more than 30 deep"),
        ("9" * 10**4, "Exceeds the limit"),
    ],
)
def test_what_is_no_json_is_refused(text, reason, tmp_path):
    (tmp_path / "a").write_text(text)
    with refused(Unusable, f"/a is damaged: {reason}"):
        files.read_json(tmp_path / "a")


def test_fields_are_there_and_of_their_types(tmp_path):
    path, fields = tmp_path / "a", {"n": int, "s": str | None}
    path.write_text('{"n": 3, "s": null, "more": []}')
    assert files.read_json(path, fields) == {"n": 3, "s": None, "more": []}
    for text in ('{"n": 3}', '{"n": true, "s": 3}', '{"n": 3.0}'):
        path.write_text(text)
        with refused(Unusable, "/a: (n|s|n, s) missing or of another type"):
            files.read_json(path, fields)
    path.write_text("[3]")
    with refused(Unusable, "/a is damaged: expected an object, got list"):
        files.read_json(path, fields)


def test_a_sealed_file_cannot_change_unseen(tmp_path):
    path, content = tmp_path / "a", {"b": [0.1, "x"], "a": {"é": 3}}
    sealed = files.sealed(content)
    text = json.dumps(content, sort_keys=True)
    assert sealed == content | {"checksum": zlib.crc32(text.encode())}
    files.write_json(path, sealed)
    assert files.read_json(path) == content
    path.write_text(path.read_text().replace("0.1", "0.2"))
    with refused(Unusable, "/a is damaged: its checksum is wrong"):
        files.read_json(path)


def test_a_text_is_utf_8(tmp_path):
    (tmp_path / "a").write_bytes("é\n".encode())
    assert files.read_text(tmp_path / "a") == "é\n"
    (tmp_path / "a").write_bytes(b"\xe9\n")
    with refused(Unusable, "/a is no text of UTF-8: "):
        files.read_text(tmp_path / "a")


def test_arrays_are_those_that_were_written(tmp_path):
    arrays = {"a": np.arange(6).reshape(2, 3), "b": np.array(["x", "é"])}
    files.write_npz(tmp_path / "a.npz", arrays)
    with np.load(tmp_path / "a.npz") as want:
        found = files.read_npz(tmp_path / "a.npz")
        assert found.keys() == set(want) == {"a", "b"}
        for name, array in found.items():
            np.testing.assert_array_equal(array, want[name], strict=True)


def npy(array, **changes):
    np.save(out := io.BytesIO(), array, allow_pickle=True)
    data = out.getvalue()
    for old, new in changes.values():
        data = data.replace(old, new)
    return data


IMAGES = np.zeros((4, 2, 2), np.uint8)
ARCHIVES = {  # members, compression, reason
    "no array": ({"images": b"x"}, 0, "'images' is no array"),
    "text": ({"images.npy": b"x"}, 0, "a.npz is not a readable .npz"),
    "pickle": ({"a.npy": npy(np.array([{}]))}, 0, "Object arrays cannot be loaded"),
    "fewer": ({"a.npy": npy(IMAGES, n=(b"(4, 2", b"(3, 2"))}, 0, "more than its head"),
    "more": ({"a.npy": npy(IMAGES, n=(b"(4, 2", b"(9, 2"))}, 0, "a.npz is not a reada"),
    "very many": (
        {"a.npy": npy(IMAGES, n=(b"(4, 2, 2), }        ", b"(10000000000000, 2), }"))},
        0,
        "a.npz is not a readable .npz",
    ),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_of_other_things_are_refused(name, tmp_path):
    members, compression, reason = ARCHIVES[name]
    with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    with refused(Unusable, reason):
        files.read_npz(tmp_path / "a.npz")


def test_a_changed_byte_a_method_and_a_cipher_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=IMAGES)
    whole = bytearray(path.read_bytes())
    central = whole.index(b"PK\x01\x02")
    for at, value in ((-central // 2, 0), (central + 8, 1), (central + 10, 99)):
        other = bytearray(whole)
        other[abs(at)] ^= value or 1
        if value:  # the flags and the method stand in both headers
            other[6 if value == 1 else 8] = other[at]
        path.write_bytes(other)
        with refused(Unusable, "a.npz is not a readable .npz file: ."):
            files.read_npz(path)


def test_paths_of_other_things_are_refused(tmp_path):
    for read in (files.read_json, files.read_npz, files.read_text, files.read):
        with refused(NotFound, "there is no .*/gone"):
            read(str(tmp_path / "gone"))
        with refused(Unusable, "cannot be read: Is a directory"):
            read(str(tmp_path))
        with refused(Unusable, "/dev/zero cannot be read: it is no regular file"):
            read("/dev/zero")


@pytest.mark.parametrize("x", [0, -1, 2.5, 3.3e38])
def test_numbers_are_told_from_the_rest(x):
    assert files.is_number(x)
    for other in (True, "1", None, [1], float("nan"), float("inf"), 10**400):
        assert not files.is_number(other)

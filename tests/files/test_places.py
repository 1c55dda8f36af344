"""Paths in a bucket, of a stand-in for Cloud Storage, against those on a disk."""

import pytest
from helpers.refusals import refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vicreg_jax import files

NAMES = st.lists(st.sampled_from(["a", "b", "ab", "1", "12"]), min_size=1, max_size=3)
PATTERNS = ["*", "a*", "[0-9]*", "*/b", "a/*", "[0-9]*/a", "*/*/*", "b", "a/[!a]*"]
ROOT = files.Place("gs://bucket/a b/run")


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(NAMES, min_size=1, max_size=6))
def test_a_bucket_holds_and_finds_what_a_disk_does(bucket, tmp_path_factory, names):
    bucket.clear()
    disk = tmp_path_factory.mktemp("disk")
    for parts in names:
        path = disk.joinpath(*parts, "x")  # so that no file is a folder, too
        path.parent.mkdir(parents=True, exist_ok=True)
        for root in (disk, ROOT):
            files.write(root.joinpath(*parts, "x"), "/".join(parts))
    for pattern in PATTERNS:
        found = [
            sorted(str(x.relative_to(root)) for x in root.glob(pattern))
            for root in (disk, ROOT)
        ]
        assert found[0] == found[1], pattern
    for parts in (*names, ["none"], ["1", "none"]):
        for name in ("", "x", "y"):
            one, other = disk.joinpath(*parts, name), ROOT.joinpath(*parts, name)
            for asked in ("exists", "is_file", "is_dir"):
                assert getattr(one, asked)() == getattr(other, asked)(), (asked, other)
    for root in (disk, ROOT):
        files.move(root / names[0][0], root / "moved")
        for path in root.glob("1*"):
            files.remove(path)
    left = {str(x.relative_to(disk)) for x in disk.rglob("*") if x.is_file()}
    assert left == {str(x.relative_to(ROOT)) for x in ROOT.files()}


def test_a_path_keeps_both_slashes_whatever_it_went_through(tmp_path):
    assert str(files.expanded("gs:/bucket/a//b/")) == "gs://bucket/a/b"
    assert str(files.expanded(tmp_path) / "x") == f"{tmp_path}/x"
    assert f"{ROOT / 'x'} {(ROOT / 'x').parent}" == f"{ROOT}/x {ROOT}"
    assert files.elsewhere("abfs:/a/b") == "abfs://a/b" and not files.elsewhere(ROOT)


def test_only_the_first_of_two_changes_is_done(bucket):
    path = ROOT / "x"
    (_, none), other = path.held(), files.Place(path)
    assert path.put(b"one", over=none) and not other.put(b"two", over=none)
    (content, version), (_, same) = path.held(), other.held()
    assert content == b"one"
    assert path.put(b"three", over=version) and not other.put(None, over=same)
    assert path.held()[0] == b"three" == bucket.objects["a b/run/x"]


def test_what_is_staged_is_written_with_its_last_file_last(bucket, tmp_path):
    with files.staged(tmp_path) as local:
        assert local == tmp_path
    for name in ("record", "a", "z/y"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    files.upload(tmp_path, ROOT, last="record")
    assert [name for _, name in bucket.changed][-1] == "a b/run/record"
    files.download(ROOT, tmp_path / "again")
    assert (tmp_path / "again/z/y").read_text() == "z/y"


@pytest.mark.parametrize("status", [401, 403, 503])
def test_a_bucket_that_refuses_is_never_taken_for_an_empty_one(bucket, once, status):
    bucket.objects["a b/run/x"] = b"x"
    bucket.always = status
    changes = [
        lambda: list(ROOT.glob("*")),
        lambda: ROOT.exists(),
        lambda: (ROOT / "x").held(),
        lambda: (ROOT / "x").unlink(),
        lambda: files.write(ROOT / "y", b""),
    ]
    for change in changes:
        with refused(files.Unreachable, "^gs://bucket/a b/run.* cannot be .*; check "):
            change()
    assert list(bucket.objects) == ["a b/run/x"]

"""The folder of a run: damage and disks that do not take it, each in one line."""

import dataclasses
import json
import os
from types import SimpleNamespace

import pytest

from vicreg_jax import config
from vicreg_jax.refusals import Refusal, Unusable
from vicreg_jax.run import workdirs

CONFIG = config.parse(dict(epochs=2, optimizer=dict(warmup_epochs=1)))


@pytest.fixture
def run(tmp_path):
    """A folder in which a run has begun."""
    workdirs.write_config(tmp_path, CONFIG)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    return tmp_path


def claim(workdir, config):
    with workdirs.claimed(workdir, config):
        raise AssertionError("it was to be refused")


def test_a_run_is_continued_with_its_own_config_only(run):
    with workdirs.claimed(run, CONFIG) as found:
        assert found == (run, CONFIG)
    other = config.parse(dict(epochs=2, seed=1, optimizer=dict(warmup_epochs=1)))
    with pytest.raises(Refusal, match="holds another run: seed was 0, is 1. Choose"):
        claim(run, other)
    moved = dataclasses.replace(CONFIG, data=config.Data(path="elsewhere"))
    with workdirs.claimed(run, moved) as found:  # a path is no property of a run
        assert found.path == run
    (run / "config.json").unlink()
    with pytest.raises(Unusable, match="holds a run, but its config.json is missing"):
        claim(run, other)


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b"null", b"3", b"\xff\xfe\x00", b"[" * 10**5, b'{"seed": "x"}'],
)
def test_a_damaged_config_is_named(damage, run):
    (run / "config.json").write_bytes(damage)
    with pytest.raises(Unusable, match="config.json(:| is damaged:) .") as refusal:
        claim(run, CONFIG)
    assert "\n" not in str(refusal.value)


def test_what_is_damaged_in_a_folder_where_nothing_was_begun_is_written_anew(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with workdirs.claimed(tmp_path, CONFIG) as (path, before):
        assert before is None
        workdirs.write_config(path, CONFIG)
    assert json.loads((tmp_path / "config.json").read_text())["epochs"] == 2


@pytest.mark.parametrize("name", ["file", "file/run", "x" * 300])
def test_a_folder_that_cannot_be_made_is_one_line(name, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Unusable, match="the workdir .* cannot be made: [A-Z][a-z ]+$"):
        claim(tmp_path / name, CONFIG)


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unusable, match="config.json cannot be written: No space left"):
        workdirs.write_config(tmp_path, CONFIG)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["abfs://a/b", "abfs:/a/b"])
def test_other_buckets_are_refused_with_both_slashes(path):
    with pytest.raises(Refusal, match=r"a folder on a .*; got abfs://a/b$"):
        claim(path, CONFIG)


def test_broken_images_are_listed_once_whatever_the_list_was_like(tmp_path):
    images = SimpleNamespace(broken={2: "cut off", 0: "no image"}, names="abc")
    path, notes = tmp_path / "bad_examples.jsonl", []
    path.write_bytes(b'{"name": "c", "reason": "cut off"}\nnull\n\xff\n{"name": "a"')
    for _ in range(2):
        workdirs.list_broken(images, tmp_path, notes.append)
        assert [json.loads(line) for line in path.read_text().splitlines()] == [
            {"name": "c", "reason": "cut off"},
            {"name": "a", "reason": "no image"},
        ]
    said = f"2 images could not be read; {path} lists them"
    assert notes == [f"{said}; 3 damaged lines of it are dropped", said]
    workdirs.list_broken(SimpleNamespace(broken={}), tmp_path, notes.append)
    assert len(notes) == 2


def test_what_a_killed_writer_has_left_is_removed_and_nothing_else(tmp_path):
    deep = tmp_path / "features" / "train"
    deep.mkdir(parents=True)
    drafts = [tmp_path / ".result.json.123.tmp", deep / ".part-0.npz.9.tmp"]
    own = [tmp_path / "notes.tmp", deep / ".hidden.tmp", tmp_path / ".x.12a.tmp"]
    for path in drafts + own:
        path.write_text("half")
    with workdirs.held(tmp_path):
        assert not any(path.exists() for path in drafts)
    assert all(path.exists() for path in own)

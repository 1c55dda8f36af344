"""Files and runs in a stand-in for a bucket of Amazon's, against those on a disk."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from helpers.pictures import pictures
from helpers.processes import DIGITS, TINY, environment, main
from helpers.records import lines, without_times
from helpers.refusals import refused

from vicreg_jax import files
from vicreg_jax.config import Data
from vicreg_jax.data.preparing import prepare
from vicreg_jax.data.sources.folder import open_folder
from vicreg_jax.data.sources.load import load_splits
from vicreg_jax.refusals import NotFound, Refusal
from vicreg_jax.run.lock import Lease

ROOT = files.Place("s3://bucket/a b")


def test_files_are_written_read_listed_moved_and_removed_as_on_a_disk(s3, tmp_path):
    names = ["x/1", "x/2.json", "x/y/3 & <4>"]
    for root in (ROOT, tmp_path):
        for i, name in enumerate(names):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            files.write(root / name, bytes(range(i, 200)))
    assert str(files.expanded("s3:/bucket/a b")) == str(ROOT)
    for name in names:
        for start, length in ((0, None), (3, 5), (190, 50), (300, 4), (7, None)):
            there, here = (
                files.read(str(root / name), start, length) for root in (ROOT, tmp_path)
            )
            assert there == here
    found = [
        sorted(str(x.relative_to(root)) for x in root.glob("x/*"))
        for root in (ROOT, tmp_path)
    ]
    assert found[0] == found[1] == ["x/1", "x/2.json", "x/y"]
    before = files.version(str(ROOT / "x/1"))
    files.write(ROOT / "x/1", b"other")
    assert files.version(str(ROOT / "x/1")) != before
    files.move(ROOT / "x", ROOT / "z")
    assert sorted(s3.objects) == ["a b/z/1", "a b/z/2.json", "a b/z/y/3 & <4>"]
    files.remove(ROOT / "z")
    assert not s3.objects
    with pytest.raises(NotFound, match="no s3://bucket/a b/x/1, or no bucket s3://buc"):
        files.read(str(ROOT / "x/1"))


def test_only_the_first_of_two_changes_is_done(s3):
    path = ROOT / "x"
    (_, none), other = path.held(), files.Place(path)
    assert path.put(b"one", over=none) and not other.put(b"two", over=none)
    _, version = path.held()
    assert other.put(b"three", over=version) and not path.put(b"four", over=version)
    assert not path.put(None, over=version) and s3.objects == {"a b/x": b"three"}
    assert path.put(None, over=path.held()[1]) and not s3.objects


def test_a_folder_is_held_once_and_given_back(s3):
    with Lease(ROOT):
        with refused(Refusal, f"held by process {os.getpid()} on .*; wait for it"):
            Lease(ROOT).__enter__()
    assert not s3.objects


def test_what_a_bucket_refuses_is_one_line(s3, once):
    s3.always = 403
    with refused(files.Unreachable, "a b/x cannot be read: .* AWS_ACCESS_KEY_ID, of A"):
        files.read(str(ROOT / "x"))
    with refused(Refusal, "expected s3://BUCKET/NAME; got 's3://UPPER/x'"):
        files.expanded("s3://UPPER/x")


def test_images_of_a_folder_are_those_on_a_disk_and_others_are_refused(s3, tmp_path):
    here = open_folder(pictures(tmp_path / "folder", ending="jpg"))
    s3.upload(tmp_path / "folder", "folder")
    there = load_splits(Data(name="folder", path="s3://bucket/folder"), seed=0).train
    assert there.labels.tolist() == here.labels.tolist()
    found = [x.centres(np.arange(8), size=24, shorter=28) for x in (there, here)]
    np.testing.assert_array_equal(*found)
    for name in ("prepared", "tfds", "arrays"):
        with refused(Refusal, f"data.name={name} is not read from s3://, as are tfrec"):
            load_splits(Data(name=name, path="s3://bucket/x"), seed=0)
    with refused(Refusal, "a disk or gs://BUCKET/FOLDER; got s3://bucket/x"):
        prepare(here, "s3://bucket/x", shards=2)


@pytest.mark.long
def test_a_run_killed_in_a_save_is_the_run_on_a_disk(s3, tmp_path):
    flags = (DIGITS, *TINY, "--config.evaluate.draws=0")
    done = main(*flags, f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    there = [sys.executable, "-m", "vicreg_jax.main", *flags, f"--workdir={ROOT}/run"]
    with subprocess.Popen(there, env=environment(), stderr=subprocess.PIPE) as run:

        def kill(method, name):
            if re.fullmatch("PUT .*/28/record.json", f"{method} {name}"):
                os.kill(run.pid, signal.SIGKILL)
                run.wait()

        s3.before = kill
        run.communicate(timeout=1500)
    assert run.returncode == -signal.SIGKILL
    s3.before = lambda *_: None
    done = main(*flags, f"--workdir={ROOT}/run")
    assert done.returncode == 0, done.stderr
    assert "continuing s3://bucket/a b/run at step" in done.stderr
    text = s3.objects["a b/run/metrics.jsonl"].decode().splitlines()
    assert without_times(map(json.loads, text)) == without_times(lines(tmp_path))
    records = [
        files.read_json(root / "checkpoints/56/record.json")["record"]["arrays"]
        for root in (ROOT / "run", tmp_path)
    ]
    assert records[0] == records[1]
    assert "a b/run/.lock.json" not in s3.objects

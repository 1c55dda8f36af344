"""Runs with all they keep in a bucket, a stand-in's, against the same on a disk."""

import json
import os
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers.checkpoints import tree
from helpers.paths import ROOT
from helpers.processes import DIGITS, TINY, environment, finish, main, start_processes
from helpers.records import lines, without_times
from helpers.refusals import refused

from vicreg_jax import files, load
from vicreg_jax.refusals import Unusable
from vicreg_jax.run import json_lines
from vicreg_jax.run.checkpoints import Checkpoints
from vicreg_jax.run.metrics_file import Writer

RUN = "gs://bucket/a b/run"
FLAGS = (DIGITS, *TINY, "--config.evaluate.draws=0")  # 4 epochs of 14 steps
FOLDER = f"{RUN}/checkpoints"
LONG = pytest.mark.long


def record(bucket):
    """Returns the lines of the record in the bucket."""
    text = bucket.objects["a b/run/metrics.jsonl"].decode()
    return [json.loads(line) for line in text.splitlines()]


def states(root):
    """Returns what the records say of all arrays, by step."""
    found = root.glob(f"checkpoints/[0-9]*/{'record.json'}")
    content = {x.parent.name: files.read_json(x)["record"] for x in found}
    return {step: x["arrays"] for step, x in content.items()}


def saved(folder, *steps, score=None):
    checkpoints = Checkpoints(folder)
    for step in steps:
        checkpoints.save(step, tree(step), score=score and score[step])
    checkpoints.close()


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_checkpoints_come_back_the_newest_two_and_the_best(bucket):
    saved(FOLDER, 1, 2, 3, 4, score={1: 0.1, 2: 0.9, 3: 0.3, 4: 0.2})
    checkpoints = Checkpoints(FOLDER, read_only=True)
    assert checkpoints.steps() == [2, 3, 4] and checkpoints.best() == 2
    for step in (2, 3, 4):
        found, state = checkpoints.restore(tree(), step=step)
        assert found == step
        same(state, tree(step))
    steps = {name.split("/")[3] for name in bucket.objects}
    assert steps == {"2", "3", "4"}


def test_a_damaged_one_is_set_aside_and_an_unfinished_one_removed(bucket):
    saved(FOLDER, 1, 2)
    (name,) = (x for x in bucket.objects if re.search("/2/state/d/", x))
    flipped = bytearray(bucket.objects[name])
    flipped[len(flipped) // 2] ^= 1
    bucket.objects[name] = bytes(flipped)
    bucket.objects["a b/run/checkpoints/3/state/d/x"] = b"of a save that was killed"
    checkpoints = Checkpoints(FOLDER)
    step, state = checkpoints.restore(tree())
    assert step == 1
    same(state, tree(1))
    folders = {x.split("/")[3] for x in bucket.objects}
    assert folders == {"1", "damaged_2"}
    checkpoints.save(2, tree(2))
    assert checkpoints.restore(tree())[0] == 2
    checkpoints.close()
    folders = {x.split("/")[3] for x in bucket.objects}
    assert folders == {"1", "2"}


def test_what_a_checkpoint_costs(bucket):
    checkpoints = Checkpoints(FOLDER)
    for step in (1, 2, 3):
        checkpoints.save(step, tree(step))
        checkpoints.wait()
    bucket.asked, bucket.changed = [], []
    checkpoints.save(4, tree(4))
    checkpoints.wait()
    written = [name for method, name in bucket.changed if method == "POST"]
    removed = [name for method, name in bucket.changed if method == "DELETE"]
    assert {name.split("/")[3] for name in written} == {"4"}
    assert {name.split("/")[3] for name in removed} == {"2"}
    assert len(written) == len(set(written)) <= 20 and len(removed) <= 20
    assert len(bucket.asked) <= 4
    print(f"{len(written)} writes, {len(removed)} removals, {len(bucket.asked)} lists")
    checkpoints.close()


def test_what_goes_back_saves_the_same_steps_again(bucket):
    checkpoints = Checkpoints(FOLDER)
    for step in (1, 2, 3):
        checkpoints.save(step, tree(step))
    checkpoints.wait()
    assert checkpoints.restore(tree(), before=3)[0] == 2
    checkpoints.save(3, tree(5))
    checkpoints.close()
    same(Checkpoints(FOLDER, read_only=True).restore(tree())[1], tree(5))


def test_a_save_that_the_bucket_refuses_is_one_line_and_the_last_is_whole(bucket, once):
    checkpoints = Checkpoints(FOLDER)
    checkpoints.save(1, tree(1))
    checkpoints.wait()
    bucket.always = 403
    bucket.client = "nobody who reads"
    with refused(Unusable, "of step 2 could not .*: gs://.* cannot be .*; the earl"):
        checkpoints.save(2, tree(2))
        checkpoints.wait()
    bucket.always = None
    checkpoints.close()
    assert Checkpoints(FOLDER, read_only=True).restore(tree())[0] == 1


def test_the_record_has_each_line_once_though_it_is_written_late(bucket, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(json_lines.time, "monotonic", lambda: clock[0])
    workdir, notes = files.Place(RUN), []
    writer = Writer(workdir, step=0, note=notes.append)
    for step in (1, 2, 3):
        writer.write(step, {"loss": 1.0})
    assert "a b/run/metrics.jsonl" not in bucket.objects
    clock[0] += json_lines.SECONDS
    writer.write(4, {"loss": 1.0})
    assert [line["step"] for line in record(bucket)] == [1, 2, 3, 4]
    writer.write(5, {"loss": 1.0})
    writer.flush()
    assert [line["step"] for line in record(bucket)] == [1, 2, 3, 4, 5]
    writer.write(6, {"loss": 1.0})  # which a kill takes; no checkpoint has it
    monkeypatch.setattr(writer, "flush", lambda: None)
    writer.close()
    again = Writer(workdir, step=3, note=notes.append)
    assert again.first["step"] == 1
    again.write(4, {"loss": 2.0})
    again.close()
    assert [line["step"] for line in record(bucket)] == [1, 2, 3, 4]
    assert not notes


@pytest.mark.parametrize(
    "workdir, status, said",
    [
        ("gs://other/run", None, "gs://other/run/.lock.json cannot be written: NOT_FO"),
        ("gs://bucket/run", 401, "gs://bucket/run/checkpoints/ cannot be read: "),
        ("gs://UPPER/run", None, "expected gs://BUCKET/NAME; got 'gs://UPPER/run'"),
        ("abfs://bucket/run", None, "the workdir must be a folder on a disk, .* or s3"),
    ],
)
def test_what_is_no_bucket_of_ones_own_is_one_line(bucket, workdir, status, said):
    bucket.always = status
    done = main(*FLAGS, f"--workdir={workdir}")
    assert done.returncode == 2
    *_, last = done.stderr.strip().splitlines()
    assert re.match(f"vicreg_jax: {said}", last)
    assert "compiling" not in done.stderr and not bucket.objects


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("disk") / "run"
    done = main(*FLAGS, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir


KILLS = {
    "between": ("POST", "a b/run/checkpoints/28/_CHECKPOINT_METADATA"),
    "in the middle of": ("POST", "a b/run/checkpoints/42/state/manifest.ocdbt"),
    "before the end of": ("POST", "a b/run/checkpoints/28/record.json"),
    "while removing after": ("DELETE", "a b/run/checkpoints/14/record.json"),
}


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(x, marks=pytest.mark.slow if x == "in the middle of" else LONG)
        for x in KILLS
    ],
)
def test_a_run_killed_at_any_moment_of_a_save_is_the_run_on_a_disk(
    bucket, disk, moment
):
    command = [sys.executable, "-m", "vicreg_jax.main", *FLAGS, f"--workdir={RUN}"]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE) as run:

        def kill(*change):
            if change == KILLS[moment]:
                os.kill(run.pid, signal.SIGKILL)
                run.wait()

        bucket.before = kill
        run.communicate(timeout=1500)
    assert run.returncode == -signal.SIGKILL
    bucket.before = lambda *_: None
    done = main(*FLAGS, f"--workdir={RUN}")
    assert done.returncode == 0, done.stderr
    assert "continuing gs://bucket/a b/run at step" in done.stderr
    assert without_times(record(bucket)) == without_times(lines(disk))
    assert states(files.Place(RUN)) == states(disk)
    assert "a b/run/.lock.json" not in bucket.objects


@pytest.mark.long
def test_two_processes_stopped_and_continued_are_those_on_a_disk(bucket, tmp_path):
    flags, running = ("--config.optimizer.sharded=True",), []

    def stop(method, name):
        if name == "a b/run/checkpoints/28/record.json" and running:
            running.pop().send_signal(signal.SIGTERM)

    bucket.before = stop
    running += (first := start_processes(RUN, 2, 2, *flags))
    statuses, said = finish(first)
    assert statuses == [0, 0] and len(running) == 1, "".join(said)
    assert "the same command continues" in said[0]
    for workdir in (RUN, tmp_path / "run"):
        statuses, said = finish(start_processes(workdir, 2, 2, *flags))
        assert statuses == [0, 0], said
    assert without_times(record(bucket)) == without_times(lines(tmp_path / "run"))
    same(*(load(x).variables for x in (RUN, tmp_path / "run")))


@pytest.mark.slow
def test_what_follows_a_run_is_the_same_in_a_bucket_as_on_a_disk(bucket, disk):
    """Evaluation, report and export, each of a run there, into that run's folder."""
    bucket.upload(disk, "a b/run")
    kept = {name for name in bucket.objects if "/checkpoints/" in name}
    for root in (RUN, disk):
        for recipe in ("knn", "features"):
            flags = () if recipe == "features" else ("--config.knn.neighbours=(5,)",)
            done = main(
                f"--config={ROOT}/configs/eval/{recipe}.py",
                f"--config.checkpoint={root}",
                "--config.data.name=digits",
                *flags,
            )
            assert done.returncode == 0, done.stderr
        for flags in (
            (f"--config={ROOT}/configs/report.py", f"--workdir={root}"),
            (
                f"--config={ROOT}/configs/export.py",
                f"--config.checkpoint={root}",
                "--config.export.formats=('safetensors','stablehlo')",
                f"--workdir={root}/export",
            ),
        ):
            done = main(*flags)
            assert done.returncode == 0, done.stderr
    place = files.Place(RUN)
    results = [files.read_json(x / "eval/knn/result.json") for x in (place, disk)]
    assert [x.pop("checkpoint") for x in results] == [RUN, str(disk)]
    assert results[0] == results[1]
    assert read(place / "eval/features/diagnostics.json") == read(
        disk / "eval/features/diagnostics.json"
    )
    for name in ("encoder.safetensors", "encoder.stablehlo"):
        assert read(place / "export" / name) == read(disk / "export" / name)
    assert b"5-NN top-1" in read(place / "report.html")
    images = np.zeros([2, 8, 8, 1], np.uint8)
    for path in (place, place / "export", place / "export/encoder.safetensors"):
        np.testing.assert_array_equal(load(path)(images), load(disk)(images))
    # Nothing of the run itself was touched.
    assert {name for name in bucket.objects if "/checkpoints/" in name} == kept


@pytest.mark.parametrize(
    "task",
    [
        pytest.param("linear", marks=pytest.mark.slow),
        pytest.param("finetune", marks=LONG),
    ],
)
def test_a_judge_killed_in_a_bucket_ends_as_on_a_disk(bucket, disk, task, tmp_path):
    bucket.upload(disk, "a b/run")
    flags = (f"--config={ROOT}/configs/eval/{task}.py", "--config.data.name=digits")
    flags += ("--config.epochs=4", "--config.data.batch_size=256")
    done = main(*flags, f"--config.checkpoint={disk}", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    there = (*flags, f"--config.checkpoint={RUN}", f"--workdir={RUN}/eval/{task}")
    saving = []
    command = [sys.executable, "-m", "vicreg_jax.main", *there]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE) as judge:

        def kill(method, name):
            if re.search(r"eval/.*/checkpoints/\d+/record.json", name):
                saving.append(name)
                if len(saving) == 2:
                    os.kill(judge.pid, signal.SIGKILL)
                    judge.wait()

        bucket.before = kill
        judge.communicate(timeout=1500)
    assert judge.returncode == -signal.SIGKILL
    bucket.before = lambda *_: None
    done = main(*there)
    assert done.returncode == 0, done.stderr
    place = files.Place(RUN) / "eval" / task
    results = [files.read_json(x / "result.json") for x in (place, tmp_path)]
    assert [x.pop("checkpoint") for x in results] == [RUN, str(disk)]
    assert results[0] == results[1]
    text = files.read(str(place / "metrics.jsonl")).decode().splitlines()
    assert without_times(map(json.loads, text)) == without_times(lines(tmp_path))


def test_an_export_in_a_bucket_is_not_pushed(bucket):
    flags = (f"--config={ROOT}/configs/export.py", "--config.checkpoint=gs://bucket/x")
    done = main(*flags, f"--workdir={RUN}", "--config.export.hub=me/mine")
    assert done.returncode == 2 and not bucket.objects
    assert done.stderr.endswith(f"by --config.export.hub; got {RUN}\n")


def read(path):
    return files.read(str(path))

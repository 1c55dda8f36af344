"""Damage to checkpoints: it is found, named, and costs one checkpoint, not the run."""

import random
import shutil
import socket
import subprocess
import sys
import zlib

import chex
import jax
import jax.numpy as jnp
import pytest
from helpers.checkpoints import saved, tree
from helpers.processes import DIGITS, TINY, environment
from helpers.runs import RUN, images

from vicreg_jax import train
from vicreg_jax.run import checksums, orbax
from vicreg_jax.run.checkpoints import Checkpoints
from vicreg_jax.weights import loading

HARMLESS = ("commit_success.txt", "_CHECKPOINT_METADATA")  # Orbax restores without
CHANCE = random.Random(0)


def flip(data):
    i = CHANCE.randrange(8 * len(data))
    return data[: i // 8] + bytes([data[i // 8] ^ 1 << i % 8]) + data[i // 8 + 1 :]


WAYS = {
    "flipped": flip,
    "flipped elsewhere": flip,
    "truncated": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "zeroed": lambda data: bytes(len(data)),
    "deleted": None,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The checkpoints of a small run, of steps 4 and 6, and its last state."""
    folder = tmp_path_factory.mktemp("run")
    trained = train.run(RUN | dict(epochs=3), folder, source=images(32, channels=3))
    assert Checkpoints(folder / "checkpoints", read_only=True).steps() == [4, 6]
    return folder, trained.state


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("way", WAYS)
def test_no_damage_to_any_file_goes_unnoticed(run, way, tmp_path, caplog):
    whole, last = run[0] / "checkpoints", run[1]
    _, before = Checkpoints(whole, read_only=True).restore(last, step=4)
    assert len(files(whole / "6")) > 10
    for i, file in enumerate(files(whole / "6")):
        name, folder = file.relative_to(whole / "6").as_posix(), tmp_path / str(i)
        shutil.copytree(whole, folder)
        if WAYS[way]:
            (folder / "6" / name).write_bytes(WAYS[way](file.read_bytes()))
        else:
            (folder / "6" / name).unlink()
        caplog.clear()
        checkpoints = Checkpoints(folder)
        step, state = checkpoints.restore(last)
        checkpoints.close()
        if name in HARMLESS:
            assert step == 6 and not caplog.records
        else:
            (line,) = caplog.messages
            assert line.startswith(f"checkpoint not usable, step 6: {name} "), line
            assert step == 4 and names(folder) == ["4", "damaged_6"]
        chex.assert_trees_all_equal(state, last if step == 6 else before)
        chex.assert_trees_all_equal_dtypes(state, last)


def test_a_run_whose_newest_checkpoint_is_damaged_ends_like_an_undamaged_one(
    run, tmp_path, caplog
):
    folder, last = run
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "checkpoints" / "6")
    trained = train.run(RUN | dict(epochs=3), tmp_path, source=images(32, channels=3))
    assert "checkpoint not usable, step 6: state/" in caplog.text
    chex.assert_trees_all_equal(trained.state, last)


def damage(folder):
    """Flips a bit of the largest file below the folder: its array data."""
    file = max(files(folder), key=lambda path: path.stat().st_size)
    file.write_bytes(flip(file.read_bytes()))


def test_values_that_were_wrong_before_they_were_written_are_found(
    tmp_path, monkeypatch, caplog
):
    saved(tmp_path, 1)
    save = orbax.save
    wrong = tree(2) | {"a": tree(2)["a"].at[5, 7].multiply(2)}
    monkeypatch.setattr(orbax, "save", lambda manager, step, _: save(manager, 2, wrong))
    saved(tmp_path, 2)
    step, state = Checkpoints(tmp_path).restore(tree())
    assert "step 2: checksum of a is wrong" in caplog.text
    assert step == 1
    chex.assert_trees_all_equal(state, tree(1))


def test_what_orbax_cannot_read_is_passed_over_though_its_files_are_as_written(
    tmp_path, monkeypatch, caplog
):
    saved(tmp_path, 1, 2)
    read = orbax.read

    def fails(folder, *args, **options):
        if folder.name == "2":
            raise RuntimeError("some\nreason")
        return read(folder, *args, **options)

    monkeypatch.setattr(orbax, "read", fails)
    assert Checkpoints(tmp_path, read_only=True).restore(tree())[0] == 1
    assert "step 2: some reason" in caplog.text


def test_a_record_of_other_content_is_found(tmp_path):
    saved(tmp_path, 1, examples=10)
    record = tmp_path / "1" / "record.json"
    text = record.read_text()
    for old, new in (('"examples": 10', '"examples": 20'), ("float32", "float16")):
        record.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match="step 1: record.json is damaged: its"):
            Checkpoints(tmp_path, facts={"examples": 20}).restore(tree())
    record.write_text("[]")
    with pytest.raises(ValueError, match="step 1: record.json is damaged"):
        Checkpoints(tmp_path).restore(tree())


def test_a_copy_under_the_name_of_another_step_is_passed_over(tmp_path, caplog):
    saved(tmp_path, 1, 2)
    shutil.copytree(tmp_path / "2", tmp_path / "5")
    step, state = Checkpoints(tmp_path).restore(tree())
    assert "step 5: record.json is that of step 2" in caplog.text
    assert step == 2 and names(tmp_path) == ["1", "2", "damaged_5"]
    chex.assert_trees_all_equal(state, tree(2))


def test_a_record_of_old_that_does_not_say_its_step_is_read(tmp_path):
    saved(tmp_path, 1)
    record = checksums.read(tmp_path / "1")
    assert record.pop("step") == 1
    checksums.write(tmp_path / "1", record)
    assert Checkpoints(tmp_path).restore(tree())[0] == 1


def test_damage_to_other_parts_is_found_where_a_part_is_restored(tmp_path):
    saved(tmp_path, 1, 2)
    damage(tmp_path / "2")
    part = {"b": {"step": jax.ShapeDtypeStruct((), jnp.int32)}}
    step, found = Checkpoints(tmp_path, read_only=True).restore(part, part=True)
    assert step == 1 and found == {"b": {"step": 3}}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_damaged_checkpoint_is_kept_aside_until_a_later_one_was_restored(tmp_path):
    saved(tmp_path, 1, 2, 3)
    for step in (3, 3):  # the second time it replaces the one aside
        damage(tmp_path / "3")
        checkpoints = Checkpoints(tmp_path)
        assert checkpoints.restore(tree())[0] == 2
        assert names(tmp_path) == ["2", "damaged_3"]
        checkpoints.save(3, tree(step))
        checkpoints.close()
    assert names(tmp_path) == ["2", "3", "damaged_3"]
    step, state = Checkpoints(tmp_path).restore(tree())
    assert step == 3 and names(tmp_path) == ["2", "3"]
    chex.assert_trees_all_equal(state, tree(3))


def test_without_a_usable_checkpoint_nothing_is_started_anew_nor_renamed(tmp_path):
    saved(tmp_path, 1, 2)
    damage(tmp_path / "1"), damage(tmp_path / "2")
    expected = "no usable checkpoint in .*step 2: state/.* is damaged.*step 1: state/"
    with pytest.raises(ValueError, match=expected):
        Checkpoints(tmp_path).restore(tree())
    assert names(tmp_path) == ["1", "2"]


def test_reading_only_touches_nothing(tmp_path):
    saved(tmp_path, 1, 2)
    damage(tmp_path / "2")
    shutil.copytree(tmp_path / "1", tmp_path / "3.orbax-checkpoint-tmp")
    before = names(tmp_path)
    checkpoints = Checkpoints(tmp_path, read_only=True)
    assert checkpoints.restore(tree())[0] == 1
    checkpoints.close()
    assert names(tmp_path) == before


def test_what_a_killed_save_left_is_cleaned_or_passed_over(tmp_path, caplog):
    saved(tmp_path, 1, 2, 3)
    shutil.copytree(tmp_path / "2", tmp_path / "4.orbax-checkpoint-tmp")
    shutil.rmtree(tmp_path / "3" / "state" / "d")  # renamed in part
    (tmp_path / "4").mkdir()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(tree())[0] == 2
    assert "step 3: state/d/" in caplog.text
    assert "step 4: record.json cannot be read" in caplog.text
    checkpoints.save(3, tree(3))
    checkpoints.close()
    assert names(tmp_path) == ["2", "3", "damaged_3", "damaged_4"]


# Saves until it fails, in a folder where it must, and then uses what is there.
FILL = """if True:
    import resource, subprocess, sys
    from absl import logging
    import jax, jax.numpy as jnp
    from vicreg_jax.run.checkpoints import Checkpoints

    logging.set_verbosity(logging.WARNING)
    folder, how = sys.argv[1:]
    tree = lambda step: {"a": jax.random.normal(jax.random.key(step), (200, 256))}
    checkpoints = Checkpoints(folder)
    print(checkpoints.room(tree(0)))
    for step in (1, 2):
        checkpoints.save(step, tree(step), score=-step)
        checkpoints.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if how == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    if how == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    try:
        checkpoints.save(3, tree(3), score=3)
        checkpoints.wait()
    except OSError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    if how == "read-only":
        try:
            Checkpoints(folder)
        except OSError as error:
            print(error)
        subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
    step, state = checkpoints.restore(tree(0))
    print(checkpoints.steps(), checkpoints.best(), step, bool((state["a"] ==
        tree(step)["a"]).all()))
    checkpoints.close()
"""


def in_a_disk_of(size, folder, command):
    """The command, in a disk of its own that is mounted at the folder."""
    folder.mkdir(parents=True)
    mount = f"mount -t tmpfs -o size={size} none {folder}"
    if subprocess.run(["unshare", "-Urm", "sh", "-c", mount]).returncode:
        pytest.skip("this machine does not let a user mount a disk")
    return ["unshare", "-Urm", "sh", "-c", f'{mount} && "$@"', "sh", *command]


@pytest.mark.parametrize("how", ["full", "limit", "read-only"])
def test_a_save_that_fails_is_one_line_and_the_one_before_is_whole(how, tmp_path):
    folder = tmp_path / "checkpoints"
    command = [sys.executable, "-W", "ignore", "-c", FILL, str(folder), how]
    if how != "limit":
        size = {"full": "550k", "read-only": "20m"}[how]
        command = in_a_disk_of(size, folder, command)
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=1500
    )
    room, error, *again, last = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    reason = {
        "full": "No space left on device",
        "limit": "File too large",
        "read-only": "Read-only file system",
    }[how]
    start = f"the checkpoint of step 3 could not be written to {folder}: "
    assert error.startswith(start) and reason in error
    assert "it needs over 0.2 MB, " in error
    assert error.endswith(" MB were free; that of step 2 is whole")
    assert last == "[1, 2] 1 2 True"
    expected = f"{folder} has 0.6 MB free, but checkpoints will need 0.6 MB"
    assert room == (expected if how == "full" else "")
    written = f"{folder} cannot be written to: Read-only file system"
    assert again == ([written] if how == "read-only" else [])


# One of two processes cannot write its part of the second checkpoint.
HALF = """if True:
    import os, resource, sys
    import jax, jax.numpy as jnp

    folder, port, own, failing = sys.argv[1], *map(int, sys.argv[2:])
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, own)
    from vicreg_jax.devices import sharding
    from vicreg_jax.run.checkpoints import Checkpoints

    split = sharding.split(sharding.data_mesh())
    make = lambda step: jax.random.normal(jax.random.key(step), (400, 256))
    state = {"a": jax.jit(make, static_argnums=0, out_shardings=split)(1)}
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, state)
    checkpoints.wait()
    if own == failing:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        checkpoints.save(2, state)
        checkpoints.wait()
    except OSError as error:
        print(error, flush=True)
        os._exit(2)
"""


@pytest.mark.parametrize("failing", [0, 1])
def test_of_two_processes_the_one_that_cannot_write_says_so_at_once(failing, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running = []
    for own in range(2):
        words = [str(x) for x in (tmp_path, port, own, failing)]
        command = [sys.executable, "-c", HALF, *words]
        process = subprocess.Popen(command, env=environment(NPROC="16"), **pipes)
        running.append(process)
    out, said = running[failing].communicate(timeout=600)  # Orbax would wait 1200 s
    other = running[1 - failing]
    other.kill()  # else when the heartbeats stay away
    other.communicate()
    assert running[failing].returncode == 2, said
    assert "of step 2 could not be written to" in out and "File too large" in out
    assert names(tmp_path)[0] == "1"
    assert "2" not in names(tmp_path)
    state = {"a": jnp.zeros((400, 256))}
    step, state = Checkpoints(tmp_path).restore(state)
    assert step == 1
    want = jax.random.normal(jax.random.key(1), (400, 256))
    chex.assert_trees_all_equal(state, {"a": want})


def test_a_run_on_a_full_disk_ends_with_one_line_and_its_last_checkpoint(tmp_path):
    workdir, kept = tmp_path / "run", tmp_path / "kept"
    flags = (DIGITS, *TINY, "--config.evaluate.draws=0", f"--workdir={workdir}")
    program = [sys.executable, "-m", "vicreg_jax.main", *flags]
    script = f'"$@"; status=$?; cp -r {workdir}/checkpoints {kept}; exit $status'
    command = ["sh", "-c", script, "sh", *program]
    done = subprocess.run(
        in_a_disk_of("1500k", workdir / "checkpoints", command),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 2, done.stderr
    failed = [x for x in done.stderr.splitlines() if x.startswith("vicreg_jax: ")]
    assert done.stderr.splitlines()[-1:] == failed
    assert "the checkpoint of step 28 could not be written to" in failed[0]
    assert failed[0].endswith("that of step 14 is whole")
    shutil.copytree(kept, workdir / "checkpoints", dirs_exist_ok=True)
    assert loading.load(workdir).step == 14


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/checkpoints cannot be written to: Not a"):
        Checkpoints(tmp_path / "file" / "checkpoints")


def test_checksums_are_those_of_the_bytes(tmp_path):
    state = tree()
    found = checksums.arrays(state)
    want = zlib.crc32(b"".join(row.tobytes() for row in jax.device_get(state["a"])))
    assert found["a"] == ["float32[64,33]", want]
    assert found["b/step"] == ["int32[]", zlib.crc32(b"\x03\0\0\0")]
    assert checksums.size(state) == 64 * 33 * 6 + 4 + 8

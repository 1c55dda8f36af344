"""One process at a time in a workdir, on this machine or another, dead or alive."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers.processes import environment

from vicreg_jax.refusals import Refusal, Unusable
from vicreg_jax.run import lock
from vicreg_jax.run.lock import Lock

HOLD = """
import sys, time
from pathlib import Path
from vicreg_jax.run.lock import Lock
with Lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def holder(folder, code=HOLD):
    """Gives a process that holds a folder, and ends it."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lock, "LEASE", 0.5)
    monkeypatch.setattr(lock, "SIGN", 0.05)


def entry(folder):
    return json.loads((folder / lock.NAME).read_text())


def elsewhere(folder, sign=0):
    """Leaves the entry of a process on another machine."""
    found = dict(machine="far", host="far.example", process=7, since="then", sign=sign)
    (folder / lock.NAME).write_text(json.dumps(found | {"id": "other"}))


def test_who_holds_it_is_said_until_it_is_killed(tmp_path):
    with holder(tmp_path) as process:
        said = f"held by process {process.pid} on .* since 20..-..-.. ..:..; wait for i"
        with pytest.raises(Refusal, match=said) as refusal, Lock(tmp_path):
            pass
        assert "\n" not in str(refusal.value)
        process.send_signal(signal.SIGSTOP)  # it is suspended, not dead
        with pytest.raises(Refusal, match=said), Lock(tmp_path):
            pass
    with Lock(tmp_path):
        assert entry(tmp_path)["process"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_one_that_has_ended_and_waits_for_its_parent_holds_nothing(tmp_path):
    with holder(tmp_path) as process:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie
        with Lock(tmp_path):
            pass


def test_another_process_of_the_same_number_is_none(tmp_path):
    with holder(tmp_path):
        found = entry(tmp_path)
        (tmp_path / lock.NAME).write_text(json.dumps(found | {"started": "1"}))
        with Lock(tmp_path):
            assert entry(tmp_path)["process"] == os.getpid()


def test_a_copied_folder_is_free(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    with Lock(tmp_path / "a"):
        (tmp_path / "b" / lock.NAME).write_bytes(
            (tmp_path / "a" / lock.NAME).read_bytes()
        )
        with Lock(tmp_path / "b"):
            pass


def test_one_elsewhere_is_waited_for_and_then_replaced(tmp_path, quick, capsys):
    elsewhere(tmp_path)
    with Lock(tmp_path):
        assert entry(tmp_path)["process"] == os.getpid()
    said = capsys.readouterr().err
    assert f"{tmp_path} is held by process 7 on far.example since then" in said
    assert "waiting up to 0 s" in said or "waiting up to 1 s" in said


def test_one_elsewhere_that_gives_a_sign_is_refused(tmp_path, monkeypatch):
    elsewhere(tmp_path)
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            elsewhere(tmp_path, sign=1)

    monkeypatch.setattr(lock.time, "sleep", sleep)
    with pytest.raises(Refusal, match="on far.example since"), Lock(tmp_path):
        pass
    assert len(looks) == 3 and entry(tmp_path)["sign"] == 1


def test_one_elsewhere_that_leaves_makes_room_at_once(tmp_path, monkeypatch):
    elsewhere(tmp_path)
    monkeypatch.setattr(lock.time, "sleep", lambda _: (tmp_path / lock.NAME).unlink())
    with Lock(tmp_path):
        assert entry(tmp_path)["process"] == os.getpid()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b"\xff", b'{"id": 3}'])
def test_an_entry_that_cannot_be_read_is_waited_for(damage, tmp_path, quick):
    (tmp_path / lock.NAME).write_bytes(damage)
    with Lock(tmp_path):
        assert entry(tmp_path)["process"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_signs_are_given(tmp_path, quick):
    with Lock(tmp_path):
        seen = set()
        while len(seen) < 3:
            seen.add(entry(tmp_path)["sign"])
    assert not list(tmp_path.iterdir())


def test_who_was_replaced_ends_and_leaves_the_entry(tmp_path):
    new = {"id": "new", "process": 7, "host": "far", "since": "now"}
    draft = tmp_path / "draft"
    with holder(
        tmp_path, f"from vicreg_jax.run import lock\nlock.SIGN = 0.05{HOLD}"
    ) as process:
        while process.poll() is None:  # its sign may have fallen between
            draft.write_text(json.dumps(new))
            draft.replace(tmp_path / lock.NAME)
            time.sleep(0.1)
        said = process.stderr.read()
    assert process.returncode == 2
    assert "was taken over by process 7 on far since now, which goes on" in said
    assert entry(tmp_path) == new


def test_a_disk_without_links_will_do(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", none)
    with Lock(tmp_path), pytest.raises(Refusal, match="is held by"), Lock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_disk_that_takes_nothing_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(Unusable, match="cannot be written to: No such file"):
        with Lock(tmp_path / "none"):
            pass


def test_of_many_that_come_at_once_one_holds_it(tmp_path):
    """Each writes down when it came and left; no two overlap."""
    code = """if True:
        import sys, time
        from pathlib import Path
        from vicreg_jax.refusals import Refusal
        from vicreg_jax.run.lock import Lock
        folder, out = Path(sys.argv[1]), Path(sys.argv[2])
        held = 0
        while held < 20:
            try:
                with Lock(folder):
                    with out.open("a") as file:
                        file.write("in ")
                        file.flush()
                        time.sleep(0.001)
                        file.write("out\\n")
                    held += 1
            except Refusal:
                time.sleep(0.001)
    """
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", code, str(tmp_path / "run"), str(tmp_path / "out")]
    running = [subprocess.Popen(command, env=environment()) for _ in range(4)]
    assert [process.wait(timeout=1500) for process in running] == [0] * 4
    assert (tmp_path / "out").read_text() == "in out\n" * 80

"""Steps that never end: the process is ended, and what was only slow is not."""

import subprocess
import sys
import time

import pytest
from helpers.processes import environment
from helpers.records import lines

from vicreg_jax.run.watchdog import Watchdog


def test_what_never_beats_again_is_ended_with_its_stacks(tmp_path):
    code = """if True:
        import sys, time
        from pathlib import Path
        from vicreg_jax.run.watchdog import Watchdog

        def stuck_in_here():
            time.sleep(100)

        dog = Watchdog(1.0, Path(sys.argv[1]))
        for _ in range(3):
            dog.beat()
        with dog.paused():
            time.sleep(2.5)  # longer than the limit, but told
        stuck_in_here()
    """
    begin = time.monotonic()
    command = [sys.executable, "-c", code, str(tmp_path / "stuck.txt")]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 75 and time.monotonic() - begin < 80
    assert (
        "stuck_in_here" in done.stderr
        and "stuck_in_here" in (tmp_path / "stuck.txt").read_text()
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith("vicreg_jax: no step has finished for ")


@pytest.fixture
def watched(monkeypatch, tmp_path):
    """A function (seconds) -> (watchdog that ends nothing, its clock, its looks)."""
    monkeypatch.setattr(Watchdog, "_watch", lambda self: None)

    def make(seconds):
        now = [0.0]
        dog = Watchdog(seconds, tmp_path / "stuck", clock=lambda: now[0])

        def looks(seconds, every=1.0):
            """What the thread sees of some seconds without a beat."""
            seen = []
            for _ in range(round(seconds / every)):
                now[0] += every
                seen.append(dog._look())
            return max(seen)

        return dog, now, looks

    return make


def test_nothing_is_ended_before_the_second_beat(watched):
    dog, _, looks = watched(8.0)
    assert looks(100) == 0
    dog.beat()
    assert looks(0.1, every=0.1) == 0 and looks(100) == 0  # it compiles
    dog.beat()
    assert looks(1000) == 0  # 20 times 100.1 s
    for _ in range(9):
        dog.beat()
    assert looks(9) == 0
    assert 8.0 < looks(1) <= 9.0


def test_a_pause_and_each_beat_begin_anew(watched):
    dog, now, looks = watched(8.0)
    dog.beat()
    dog.beat()
    for _ in range(3):
        assert looks(8) == 0
        with dog.paused():
            assert looks(100) == 0
        assert looks(8) == 0
        now[0] += 0.1
        dog.beat()
        dog._times.clear(), dog._times.append(0.1)
    assert looks(10) > 8.0


def test_a_process_that_was_stopped_is_not_stuck(watched):
    """By SIGSTOP, Ctrl-Z or with its machine: neither it nor its watchdog ran."""
    dog, now, looks = watched(120.0)
    dog.beat()
    dog.beat()
    for _ in range(5):
        assert looks(20) == 0
        now[0] += 3600  # stopped
    assert looks(9) == 0
    assert looks(20) > 120.0  # what it has run


def test_a_run_whose_data_hangs_is_ended_and_continues(tmp_path):
    code = """if True:
        import sys, threading, time
        from pathlib import Path
        import numpy as np
        from vicreg_jax import train
        from vicreg_jax.run.watchdog import Watchdog

        init, dogs = Watchdog.__init__, []
        def remembered(self, *args, **options):
            init(self, *args, **options)
            dogs.append(self)
        Watchdog.__init__ = remembered

        class Hanging:
            def __len__(self):
                return 64

            def __getitem__(self, indices):
                Hanging.reads = getattr(Hanging, "reads", 0) + 1
                if sys.argv[2] == "hang" and Hanging.reads == 10:
                    # Only now: a busy machine may take long to compile.
                    while not Path(sys.argv[1], "checkpoints", "4").exists():
                        time.sleep(0.05)
                    dogs[0]._least = 0.5
                    threading.Event().wait()
                return np.zeros((len(indices), 8, 8, 1), np.uint8)

        train.run(
            dict(
                epochs=4,
                data=dict(batch_size=16, image_size=8, mean=(0.5,), std=(0.5,)),
                model=dict(encoder="digits", expander=(16, 16)),
                optimizer=dict(warmup_epochs=1),
                guard=dict(stuck_seconds=600.0),
            ),
            sys.argv[1],
            source=Hanging(),
        )
    """
    command = [sys.executable, "-c", code, str(tmp_path)]
    how = dict(env=environment(), capture_output=True, text=True, timeout=170)
    done = subprocess.run([*command, "hang"], **how)
    assert done.returncode == 75, done.stderr
    assert "Hanging" in done.stderr or "__getitem__" in done.stderr
    assert (tmp_path / "stuck_0.txt").exists()
    done = subprocess.run([*command, "go"], **how)
    assert done.returncode == 0 and "continuing" in done.stderr, done.stderr
    steps = [line["step"] for line in lines(tmp_path)]
    assert steps[-1] == 16 and len(set(steps)) == len(steps)

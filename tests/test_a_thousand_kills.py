"""Every task, killed by SIGKILL at random moments, again and again, and continued.

Moments are uniform over the time from when the task has begun to work. A command is
killed twice at least before it may end; what it leaves is what one leaves that nobody
killed. `pytest -m long -rP` prints how often, task by task.
"""

import json
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from helpers.forks import Forks, finish
from helpers.paths import ROOT
from helpers.pictures import picture
from helpers.processes import FOUR_EPOCHS
from helpers.records import lines, without_times
from helpers.runs import checkpoint_hash

EVAL = ROOT / "configs/eval"
LONG = ("--config.epochs=40", "--config.data.batch_size=256")  # 200 steps
MOST = 4  # kills of one command; then it may end
# Task -> its config, flags, processes, devices of each, and how often it is killed.
TRAINED = {
    "pretrain": ((*FOUR_EPOCHS, "--config.evaluate.probe=True"), 1, 1, 60),
    "pretrain on 8 devices": (FOUR_EPOCHS, 1, 8, 40),
    "pretrain on 2 x 2": (FOUR_EPOCHS, 2, 2, 20),
    "linear": ((f"--config={EVAL}/linear.py", *LONG), 1, 1, 60),
    "linear on 2 x 2": ((f"--config={EVAL}/linear.py", *LONG), 2, 2, 20),
    "linear_bank": (
        (f"--config={EVAL}/linear_bank.py", *LONG, "--config.head.layers=(0,)"),
        *(1, 1, 40),
    ),
    "linear_cifar": (
        (f"--config={EVAL}/linear_cifar.py", *LONG, "--config.head.batch_norm=True"),
        *(1, 1, 40),
    ),
    "finetune": ((f"--config={EVAL}/finetune.py", *LONG), 1, 1, 40),
}
SHORT = {
    "knn": ((f"--config={EVAL}/knn.py",), 200),
    "logistic": ((f"--config={EVAL}/logistic.py",), 100),
    "features": ((f"--config={EVAL}/features.py",), 40),
    "export": ((f"--config={ROOT}/configs/export.py",), 200),
    "prepare": (
        (
            f"--config={ROOT}/configs/prepare.py",
            *("--config.prepare.shards=40", "--config.prepare.shorter_side=24"),
        ),
        300,
    ),
    "report": ((f"--config={ROOT}/configs/report.py",), 4),
}


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    return Forks(tmp_path_factory.mktemp("forks"))


def begun(workdir, running):
    """Tells whether a command is at work: its own lock is there, or it has spoken."""
    if any(Path(x.said).stat().st_size for x in running):
        return True
    try:
        held = json.loads((workdir / ".lock.json").read_text())
    except (FileNotFoundError, ValueError):
        return False
    return held["process"] in {x.pid for x in running}


def wait_for(running, reached):
    """Waits until something is so or a process has ended."""
    while all(x.is_alive() for x in running) and not reached():
        time.sleep(0.002)


def whole_run(start, workdir):
    """Runs a command; returns for how long it held its folder, in seconds."""
    running = start(workdir)
    wait_for(running, lambda: begun(workdir, running))
    begin = time.monotonic()
    statuses, said = finish(running)
    assert set(statuses) == {0}, said
    return time.monotonic() - begin


def campaign(name, start, kills, workdirs, left, *, lasts=None):
    """Kills a command as often, and compares what is left with what `whole` left.

    Args:
      workdirs: function of a number -> the workdir that a command begins with.
      left: function of a workdir -> what is compared.
      lasts: for how long a command holds its folder; by default it is measured.
    """
    whole = workdirs("first")  # compiles
    whole_run(start, whole)
    again = workdirs("whole")
    measured = whole_run(start, again)
    lasts, want = lasts or measured, left(again)
    assert left(whole) == want
    chance, done, ended, twice = random.Random(name), 0, 0, 0
    while done < kills:
        workdir, own = workdirs(ended), 0
        while True:
            running = start(workdir)
            if own < MOST and done < kills:
                wait_for(running, partial(begun, workdir, running))
                time.sleep(chance.random() * lasts * (0.4 if own < 2 else 1.0))
                chance.choice(running).kill()
                time.sleep(chance.random() / 5 if len(running) > 1 else 0)
                for process in running:  # as the launcher of all would
                    process.kill()
            statuses, said = finish(running)
            if set(statuses) == {0}:
                break
            assert -signal.SIGKILL in statuses, (statuses, said)
            own, done = own + 1, done + 1
        assert left(workdir) == want, f"{workdir} was killed {own} times"
        ended, twice = ended + 1, twice + (own >= 2)
        shutil.rmtree(workdir)
    print(f"{name}: {done} kills, {ended} commands ended, {twice} killed twice or more")


def trained(workdir):
    """What training leaves: the state to the bit, every line once, the result."""
    assert not list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
    assert not (workdir / ".lock.json").exists()
    result = workdir / "result.json"
    found = json.loads(result.read_text()) if result.exists() else None
    return checkpoint_hash(workdir), without_times(lines(workdir)), found


def files(workdir, but=()):
    """What a short task leaves: all files, byte by byte."""
    return {
        path.relative_to(workdir): path.read_bytes()
        for path in workdir.rglob("*")
        if path.is_file() and path.name not in but
    }


@pytest.mark.long
@pytest.mark.parametrize("name", TRAINED)
def test_training_killed_again_and_again(name, run, forks, tmp_path):
    flags, processes, devices, kills = TRAINED[name]
    if not name.startswith("pretrain"):
        flags += (f"--config.checkpoint={run}",)

    def start(workdir):
        given = [*flags, f"--workdir={workdir}"]
        return forks.start(given, processes=processes, devices=devices)

    campaign(name, start, kills, lambda x: tmp_path / str(x), trained)


@pytest.mark.long
@pytest.mark.parametrize("name", SHORT)
def test_a_task_killed_again_and_again(name, run, forks, tmp_path):
    flags, kills = SHORT[name]
    if name == "prepare":
        (tmp_path / "images").mkdir()
        for i in range(400):
            picture(i, 40, 50).save(tmp_path / "images" / f"{i}.jpg")
        flags += (f"--config.data.path={tmp_path / 'images'}",)
    elif name != "report":
        flags += (f"--config.checkpoint={run}",)

    def workdir(number):
        if name == "report":  # of a run, in its own folder
            shutil.copytree(run, tmp_path / str(number))
        return tmp_path / str(number)

    # A page says how long it took; the rest of the run's folder is as it was.
    left = partial(files, but=("report.html",) if name == "report" else ())
    campaign(
        name,
        lambda workdir: forks.start([*flags, f"--workdir={workdir}"]),
        kills,
        workdir,
        left,
    )

"""Evaluations that train, killed by SIGKILL at random moments and continued."""

import itertools
import json
import random
import signal
import time

import pytest
from helpers.paths import ROOT
from helpers.processes import finish, reached, start_processes
from helpers.records import lines, without_times
from helpers.runs import checkpoint_hash

EPOCHS, EPOCH = 40, 5  # of so many steps; a checkpoint after each epoch
LAST = EPOCHS * EPOCH
FLAGS = {
    "linear": ("--config.head.test_every_epoch=True",),
    "linear_bank": ("--config.head.layers=(0,)",),
    "linear_cifar": ("--config.head.batch_norm=True",),
    "finetune": (),
}


def start(name, run, workdir, processes):
    """Starts an evaluation, of several processes with two devices each."""
    flags = (f"--config.checkpoint={run}", f"--config.epochs={EPOCHS}")
    flags += ("--config.data.batch_size=256", *FLAGS[name])
    config, devices = f"--config={ROOT}/configs/eval/{name}.py", min(2, processes)
    return start_processes(workdir, processes, devices, *flags, base=(config,))


def last_step(workdir):
    path = workdir / "metrics.jsonl"
    done = lines(workdir) if path.exists() and path.read_text() else []
    return done[-1]["step"] if done else 0


def inode(workdir):
    path = workdir / "metrics.jsonl"
    return path.stat().st_ino if path.exists() else None


def half_written(workdir):
    return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def kill_at_random(running, workdir, before, chance):
    """Kills in the middle of training, of writing a checkpoint, or near the end.

    The survivor of two is killed too, as its launcher would.

    Args:
      before: inode of the record, which a run that goes on replaces as it begins.
    """
    moment = chance.choice(["training", "training", "writing", "writing", "end"])
    target = min(LAST, last_step(workdir) + chance.randint(1, 12) * EPOCH)
    first, wait = chance.choice(running), chance.random() / 5

    def alive():
        return all(process.poll() is None for process in running)

    while alive() and inode(workdir) == before:
        time.sleep(0.001)
    reached(workdir, running, LAST if moment == "end" else target)
    if moment == "writing":
        while alive() and not half_written(workdir):
            time.sleep(0.001)
    else:
        time.sleep(wait)
    first.kill()
    time.sleep(wait)
    for process in running:
        process.kill()


def check(name, run, folder, *, kills, processes=1):
    """Kills as often, and compares what is left with an uninterrupted evaluation."""
    whole = folder / "whole"
    statuses, said = finish(start(name, run, whole, processes))
    assert set(statuses) == {0}, said
    want = checkpoint_hash(whole)
    assert want[0] == str(LAST)
    chance, killed, writing = random.Random(f"{name} {kills}"), [], 0
    for number in itertools.count():
        workdir = folder / f"{number}"
        while True:
            before, trained = inode(workdir), last_step(workdir)
            running = start(name, run, workdir, processes)
            if len(killed) < kills and trained < LAST:
                kill_at_random(running, workdir, before, chance)
            statuses, said = finish(running)
            if set(statuses) == {0}:
                break
            assert -signal.SIGKILL in statuses, said
            killed.append(last_step(workdir))
            writing += half_written(workdir)
        assert checkpoint_hash(workdir) == want
        # Every line once, and the same.
        assert without_times(lines(workdir)) == without_times(lines(whole))
        found, wanted = (
            json.loads((x / "result.json").read_text()) for x in (workdir, whole)
        )
        assert found == wanted
        assert not half_written(workdir)
        if len(killed) == kills:
            break
    print(f"{name}: killed after steps {killed}, {writing} times while it was saving")


@pytest.mark.long
@pytest.mark.parametrize("name, kills", [("linear", 3), ("finetune", 2)])
def test_an_evaluation_killed_again_and_again_ends_like_an_uninterrupted_one(
    name, kills, run, tmp_path
):
    check(name, run, tmp_path, kills=kills)


@pytest.mark.long
@pytest.mark.parametrize(
    "name, processes", [*((name, 1) for name in FLAGS), ("linear", 2)]
)
def test_an_evaluation_killed_often_ends_bit_for_bit_like_an_uninterrupted_one(
    name, processes, run, tmp_path
):
    check(name, run, tmp_path, kills=12, processes=processes)

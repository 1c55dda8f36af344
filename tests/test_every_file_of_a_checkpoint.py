"""Every file of a run's newest checkpoint, damaged in three ways, one at a time.

The same command then ends where the undamaged run ended. `pytest -m long -rP` prints
how many damages were seen, and how many were of files that hold nothing a run needs.
"""

import shutil

import pytest
from helpers.forks import Forks, finish
from helpers.processes import FOUR_EPOCHS
from helpers.records import lines, without_times
from helpers.runs import checkpoint_hash


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    if not content:
        content = bytearray(1)  # a file that was empty is so no more
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def remove(path):
    path.unlink()


@pytest.mark.long
@pytest.mark.parametrize(("processes", "devices"), [(1, 1), (1, 8), (2, 2)])
def test_a_run_goes_on_from_before_whatever_file_is_damaged(
    processes, devices, tmp_path
):
    forks = Forks(tmp_path)

    def command(workdir):
        flags = [*FOUR_EPOCHS, f"--workdir={workdir}"]
        statuses, said = finish(
            forks.start(flags, processes=processes, devices=devices)
        )
        assert set(statuses) == {0}, said
        return said[0]

    whole = tmp_path / "whole"
    command(whole)
    want = checkpoint_hash(whole), without_times(lines(whole))
    last = whole / "checkpoints" / "56"
    names = sorted(x.relative_to(whole) for x in last.rglob("*") if x.is_file())
    seen, unneeded = 0, []
    for name in names:
        for damage in (cut, flip, remove):
            workdir = tmp_path / "damaged"
            shutil.copytree(whole, workdir)
            damage(workdir / name)
            said = command(workdir)
            if "checkpoint not usable" in said:
                seen += 1
            else:
                unneeded.append(f"{damage.__name__} {name.name}")
            assert (checkpoint_hash(workdir), without_times(lines(workdir))) == want, (
                f"{damage.__name__} {name}: {said}"
            )
            shutil.rmtree(workdir)
    print(f"{processes} x {devices}: {len(names)} files, {3 * len(names)} damages:")
    print(f"{seen} damages seen; nothing that is needed was lost by {unneeded}")
    assert seen > len(names)

"""The same command twice in one workdir, at random moments: exactly one goes on."""

import random
import time

import pytest
from helpers.processes import finish, start_processes
from helpers.records import lines, without_times
from helpers.runs import checkpoint_hash


@pytest.mark.long
def test_of_two_starts_at_any_moments_one_goes_on_as_if_it_were_alone(tmp_path):
    begin = time.monotonic()
    assert finish(start_processes(tmp_path / "alone", 1, 1))[0] == [0]
    lasts = time.monotonic() - begin
    want = checkpoint_hash(tmp_path / "alone")
    chance, ends = random.Random(0), {"refused": 0, "finished": 0}
    for number in range(STARTS):
        workdir = tmp_path / str(number)
        (first,) = start_processes(workdir, 1, 1)
        time.sleep(chance.random() * lasts)
        (second,) = start_processes(workdir, 1, 1)
        statuses, said = finish([first, second])
        if sorted(statuses) == [0, 0]:  # the second came when the first had ended
            assert "has finished its 56 steps" in said[1]
            ends["finished"] += 1
        else:
            assert sorted(statuses) == [0, 2], said
            (line,) = said[statuses.index(2)].strip().splitlines()
            assert line.startswith("vicreg_jax: ") and " is held by process " in line
            ends["refused"] += 1
        assert checkpoint_hash(workdir) == want
        recorded = (without_times(lines(x)) for x in (workdir, tmp_path / "alone"))
        assert next(recorded) == next(recorded)
    print(f"{STARTS} double starts: {ends}")
    assert ends["refused"] > STARTS / 4


STARTS = 50

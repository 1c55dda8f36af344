"""What the time of a run went into, by hand; several starts; a process that is slow."""

import json

import pytest

from vicreg_jax.run import goodput
from vicreg_jax.run.goodput import Goodput


def line(first, last, steps, **others):
    seconds = dict.fromkeys(goodput.PARTS, 0.0) | {"steps": steps} | others
    return {"began": "then", "first": first, "last": last, "seconds": seconds}


def test_each_second_is_counted_once(tmp_path):
    now = [0.0]

    def later(seconds):
        now[0] += seconds

    def batches():
        for _ in range(3):
            later(0.5)
            yield None

    spent = Goodput(tmp_path, 4, clock=lambda: now[0])
    later(2)
    spent.add("starting", spent.in_steps())
    for _ in spent.timed("waiting for data", batches()):
        with spent.spent("saving"):
            later(1)
        with spent.blocking():
            later(3)
        later(1)
    spent.write(7)
    (found,) = goodput.read(tmp_path)
    assert (found["first"], found["last"]) == (4, 7) and spent.blocked == 9
    assert found["seconds"] == {
        "steps": 12.0,
        "starting": 2.0,
        "compiling": 0.0,
        "waiting for data": 1.5,
        "saving": 3.0,
        "judging": 0.0,
    }
    assert sum(found["seconds"].values()) == now[0]
    assert goodput.words([found]) == (
        "time: 65% steps, 11% starting, 8% waiting for data, 16% saving (1 start)"
    )


def test_what_a_kill_had_lost_is_repeated_not_good():
    # 10 steps of 1 s; back to 6, so 4 of the next 8 steps are steps once more.
    lines = [line(0, 10, 10.0), line(6, 14, 8.0, compiling=2.0)]
    found = goodput.shares(lines)
    assert found["repeated"] == pytest.approx(4 / 20)
    assert found["steps"] == pytest.approx(14 / 20)
    assert found["compiling"] == pytest.approx(2 / 20)
    assert sum(found.values()) == pytest.approx(1)
    assert goodput.words(lines).endswith("20% repeated (2 starts)")
    assert goodput.shares([line(5, 5, 0.0)])["steps"] == 0  # killed at once
    assert goodput.shares([line(0, 9, 1.0), line(0, 3, 1.0)])["repeated"] == 0.5


def test_earlier_starts_are_kept_and_damaged_lines_passed_over(tmp_path):
    path = tmp_path / goodput.NAME
    good = line(0, 10, 10.0)
    bad = [
        good | {"first": 11},
        good | {"last": None},
        good | {"seconds": {"steps": 1.0}},
        good | {"seconds": good["seconds"] | {"saving": "x"}},
        good | {"seconds": good["seconds"] | {"saving": float("nan")}},
        3,
    ]
    path.write_text("".join(json.dumps(x) + "\n" for x in [*bad, good]) + "half")
    Goodput(tmp_path, 8).write(9)
    first, second = goodput.read(tmp_path)
    assert first == good and (second["first"], second["last"]) == (8, 9)


def test_a_process_that_holds_the_others_up_is_named():
    assert goodput.slowest([0.1, 0.11, 0.1], 0.5) == ""
    said = goodput.slowest([0.1, 0.3, 0.12], 0.5)
    assert said == (
        "process 1 is the slowest: 0.3 s a step of its own, from 0.1 to 0.3 s, median"
        " 0.12 s"
    )

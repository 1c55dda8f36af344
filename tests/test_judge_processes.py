"""Evaluations of several processes, as their users start them."""

import json
import signal
import time

import numpy as np
import pytest
from helpers.paths import ROOT
from helpers.processes import finish, kill, start_processes
from helpers.records import lines, without_times
from helpers.runs import checkpoint_hash

NAMES = {
    "knn": ("--config.knn.neighbours=(1,20)",),
    "linear": (
        *("--config.head.rates=(0.1,1.0)", "--config.epochs=3"),
        "--config.head.test_every_epoch=True",
    ),
    "finetune": ("--config.data.fraction=0.5", "--config.epochs=2"),
    "logistic": (),
    "features": ("--config.lidar.images=50", "--config.lidar.views=3"),
}


def start(name, run, workdir, processes, devices, *flags):
    flags = (*NAMES[name], *flags, f"--config.checkpoint={run}")
    config = f"--config={ROOT}/configs/eval/{name}.py"
    return start_processes(workdir, processes, devices, *flags, base=(config,))


@pytest.mark.parametrize(
    "name",
    [  # fine-tuning is what linear is, with other parameters
        pytest.param(
            x, marks=getattr(pytest.mark, "long" if x == "finetune" else "slow")
        )
        for x in NAMES
    ],
)
def test_two_processes_find_what_one_finds_and_only_the_first_speaks(
    name, run, tmp_path
):
    said = {}
    for processes in (1, 2):
        workdir = tmp_path / f"{processes}"
        running = start(name, run, workdir, processes, 4 // processes)
        statuses, said[processes] = finish(running)
        assert set(statuses) == {0}, said
    one, two = (tmp_path / x for x in "12")
    assert not any("%" in line or "top-1" in line for line in said[2][1].splitlines())
    if name == "features":
        a, b = (
            np.load(x / "features" / "train" / "part-00000.npz") for x in (one, two)
        )
        for key in ("labels", "names"):
            np.testing.assert_array_equal(a[key], b[key])
        for key in ("representations", "embeddings"):
            np.testing.assert_allclose(a[key], b[key], rtol=0, atol=1e-5)
        a, b = (json.loads((x / "diagnostics.json").read_text()) for x in (one, two))
        for key in ("lidar", "representation_rank", "embedding_std"):
            assert a[key] == pytest.approx(b[key], rel=1e-3), key
        return
    a, b = (json.loads((x / "result.json").read_text()) for x in (one, two))
    assert a["notes"] == b["notes"] and a["results"].keys() == b["results"].keys()
    for key, value in a["results"].items():
        # Two of the 360 test images: rounding in another order.
        assert b["results"][key] == pytest.approx(value, abs=2 * 100 / 360), key
    if name in ("linear", "finetune"):
        a, b = lines(one), lines(two)
        assert [x["step"] for x in a] == [x["step"] for x in b]
        assert a[0]["loss"] == pytest.approx(b[0]["loss"], rel=1e-3)


@pytest.mark.long
def test_sigterm_to_one_of_two_stops_a_linear_evaluation_which_continues(run, tmp_path):
    long = "--config.epochs=30"
    whole = start("linear", run, tmp_path / "whole", 2, 2, long)
    statuses, said = finish(whole)
    assert statuses == [0, 0], said
    running = start("linear", run, tmp_path / "parts", 2, 2, long)
    kill(tmp_path / "parts", running, signal.SIGTERM, 10, 1)
    statuses, said = finish(running)
    assert statuses == [0, 0] and "the same command continues" in said[0], said
    assert not (tmp_path / "parts" / "result.json").exists()
    assert lines(tmp_path / "parts")[-1]["step"] < 150
    running = start("linear", run, tmp_path / "parts", 2, 2, long)
    statuses, said = finish(running)
    assert statuses == [0, 0] and "continuing" in said[0], said
    a, b = (tmp_path / x for x in ("whole", "parts"))
    assert checkpoint_hash(a) == checkpoint_hash(b)
    assert without_times(lines(a)) == without_times(lines(b))
    assert (a / "result.json").read_text() == (b / "result.json").read_text()


@pytest.mark.long
def test_features_of_several_processes_end_when_told_to(run, tmp_path):
    views = "--config.lidar.views=20000"  # minutes
    running = start("features", run, tmp_path / "x", 2, 1, views)
    path = tmp_path / "x" / "features" / "test" / "part-00000.npz"
    begin = time.monotonic()
    while not path.exists() and time.monotonic() < begin + 1500:
        assert all(process.poll() is None for process in running)
        time.sleep(0.05)
    for process in running:
        process.send_signal(signal.SIGTERM)
    statuses, said = finish(running, timeout=1500)
    assert statuses == [-signal.SIGTERM] * 2, said
    assert len(np.load(path)["labels"]) == 360


@pytest.mark.long
def test_an_export_is_made_by_one_process(run, tmp_path):
    config = f"--config={ROOT}/configs/export.py"
    flags = (f"--config.checkpoint={run}",)
    running = start_processes(tmp_path / "x", 2, 1, *flags, base=(config,))
    statuses, said = finish(running)
    assert statuses == [2, 2], said
    assert all("one process makes an export" in text for text in said)
    assert not (tmp_path / "x").exists()

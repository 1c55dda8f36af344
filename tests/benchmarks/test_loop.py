"""The benchmark of the loop against the bare step, at the smallest size."""

import json
import subprocess
import sys

import pytest
from helpers.paths import ROOT
from helpers.processes import environment


def benchmark(*flags):
    command = [sys.executable, "-m", "benchmarks.loop", *flags]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True
    )


@pytest.mark.long
def test_the_benchmark_of_the_loop_runs_and_its_numbers_fit_together(tmp_path):
    out = tmp_path / "loop.json"
    sizes = ("--encoder=digits", "--image_size=8", "--batch_size=4")
    done = benchmark(*sizes, "--steps=20", "--rounds=1", f"--out={out}")
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found == json.loads(done.stdout)
    assert (found["encoder"], found["batch_size"], found["steps"]) == ("digits", 4, 20)
    assert 0 <= found["waited_for_data"] < 1
    assert len(found["bare_step_ms_of_turns"]) == 2
    bare, loop = found["bare_step_ms"], found["loop_step_ms"]
    assert bare == pytest.approx(sum(found["bare_step_ms_of_turns"]) / 2, abs=0.01)
    assert found["overhead_ms"] == pytest.approx(loop - bare, abs=0.02)  # rounded
    assert found["ratio"] == pytest.approx(bare / loop, abs=0.02 / loop + 1e-4)
    for name in ("ratio", "ratio_of_processor_time"):
        assert found[f"{name}_quartiles"] == 2 * [found[name]]
        assert found[f"{name}_of_rounds"] == [found[name]] and found[name] > 0


def test_a_turn_that_has_no_line_of_metrics_is_refused():
    done = benchmark("--steps=30")
    assert done.returncode == 2 and "--steps is a multiple of 20; got 30" in done.stderr

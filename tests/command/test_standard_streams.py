"""Standard output and error that are closed, full, or read by nobody any more."""

import subprocess
import sys

import pytest
from helpers.processes import DIGITS, TINY, environment
from helpers.records import lines, without_times

PROGRAM = f"{sys.executable} -m vicreg_jax.main"
FLAGS = " ".join(f"'{x}'" for x in (DIGITS, *TINY, "--config.evaluate.draws=0"))


def shell(command):
    """Returns the status of the first of a pipe, and what reached the test."""
    return subprocess.run(
        ["bash", "-c", f"{command}\nexit ${{PIPESTATUS[0]}}"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1500,
    )


@pytest.mark.parametrize(
    "streams, shown", [("| head -1", 1), (">&-", 0), ("> /dev/full", 0)]
)
def test_help_that_nobody_reads_is_no_error(streams, shown):
    done = shell(f"{PROGRAM} --help {streams}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == shown


@pytest.mark.parametrize("streams", ["2>&-", "2> /dev/full", "> /dev/full 2>&1"])
def test_a_refusal_that_nobody_reads_is_a_refusal(streams):
    done = shell(f"{PROGRAM} --config=nosuch {streams}")
    assert (done.returncode, done.stderr) == (2, "")


@pytest.mark.long
def test_a_run_whose_words_reach_nobody_goes_on_to_its_end(tmp_path):
    assert shell(f"{PROGRAM} {FLAGS} --workdir={tmp_path}/0").returncode == 0
    want = without_times(lines(tmp_path / "0"))
    for i, streams in enumerate(
        ("2>&1 | head -1", "2>&-", "2> /dev/full", "<&- >&- 2>&-"), start=1
    ):
        done = shell(f"{PROGRAM} {FLAGS} --workdir={tmp_path}/{i} {streams}")
        assert done.returncode == 0, (streams, done.stderr)
        assert without_times(lines(tmp_path / f"{i}")) == want

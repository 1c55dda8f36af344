"""The scripts of launch/, run with stand-ins of gcloud and SLURM."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from helpers.launch import LAUNCH, MAIN, checker, documents, executable
from helpers.launchers import PROGRAM
from helpers.paths import ROOT
from helpers.processes import FOUR_EPOCHS, environment
from helpers.records import lines

SCRIPTS = ("slurm.sbatch", "tpu_pod.sh")
# What quoting must not change.
FLAGS = ("--config=configs/digits.py", "--workdir=/runs/a b", "--config.x=($HOME,'1')")


# Says when it runs; saves when it is told to end.
STOPPABLE = f"""#!{sys.executable}
import os, signal, sys, time
def save(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it comes twice: group and srun
    os.write(1, b"saved\\n")
    os._exit(0)
signal.signal(signal.SIGTERM, save)
print(*sys.argv[1:], sep="\\n", flush=True)
print("running", flush=True)
time.sleep(60)
"""


def wait_for(condition, seconds=1500):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@contextmanager
def started(*command, **options):
    """A process in a group of its own, all of which ends with the context."""
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen(command, start_new_session=True, **pipes, **options)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # all have ended
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=1500)


def shell_of(name, tmp_path):
    """The path of a script; of skypilot.yaml both of its scripts, as one."""
    if name != "skypilot.yaml":
        return LAUNCH / name
    (task,) = documents(name)
    text = "\n".join(["#!/bin/bash", task["setup"], task["run"]])
    return executable(tmp_path / "skypilot.sh", text)


@pytest.mark.parametrize("name", [*SCRIPTS, "skypilot.yaml"])
def test_scripts_are_correct_bash(name, tmp_path):
    script = shell_of(name, tmp_path)
    subprocess.run(["bash", "-n", script], check=True, timeout=1500)
    shellcheck = [checker("shellcheck"), "--shell=bash", script]
    found = subprocess.run(shellcheck, capture_output=True, text=True, timeout=1500)
    assert found.returncode == 0, found.stdout


def test_every_launcher_runs_a_config_that_exists():
    for path in LAUNCH.iterdir():
        if path.name in ("Dockerfile", "README.md"):
            continue
        configs = re.findall(r"--config=(configs/\w+\.py)", path.read_text())
        assert configs, path
        assert all((ROOT / config).is_file() for config in configs)
        assert path.name in (LAUNCH / "README.md").read_text()


# Writes down what it is asked; the commands for a host it runs in HOST_HOME, if any.
GCLOUD = """#!/bin/bash
printf '%s\\0' "$@" >> "$RECORD"
printf '\\n' >> "$RECORD"
command=${!#}
[ -z "$HOST_HOME" ] || { cd "$HOST_HOME" && exec bash -c "${command#--command=}"; }
"""


def tpu(tmp_path, *words, **variables):
    """(process, [arguments of each call of gcloud]) of tpu_pod.sh."""
    executable(tmp_path / "bin" / "gcloud", GCLOUD)
    record = tmp_path / "record"
    record.write_bytes(b"")
    done = subprocess.run(
        [LAUNCH / "tpu_pod.sh", *words],
        cwd=ROOT,
        env=dict(PATH=f"{tmp_path}/bin:{os.environ['PATH']}", RECORD=str(record))
        | variables,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    calls = record.read_text().split("\0\n")[:-1]
    return done, [call.split("\0") for call in calls]


TPUS = ["compute", "tpus"]
AT = ["vicreg", "--zone=us-central2-b"]


@pytest.mark.parametrize(
    ("word", "variables", "expected"),
    [
        (
            "create",
            {},
            [
                *("queued-resources", "create", "vicreg", "--node-id=vicreg"),
                *("--zone=us-central2-b", "--accelerator-type=v4-32"),
                "--runtime-version=tpu-ubuntu2204-base",
            ],
        ),
        (
            "create",
            dict(NAME="a", ZONE="z", TYPE="v6e-16", RUNTIME="r", SPOT="1"),
            [
                *("queued-resources", "create", "a", "--node-id=a", "--zone=z"),
                *("--accelerator-type=v6e-16", "--runtime-version=r", "--spot"),
            ],
        ),
        (
            "state",
            {},
            ["queued-resources", "describe", *AT, "--format=value(state.state)"],
        ),
        (
            "logs",
            {"HOST": "3"},
            [
                *("tpu-vm", "ssh", *AT, "--worker=3"),
                "--command=tail -n 100 -F vicreg_jax/run.log",
            ],
        ),
        (
            "stop",
            {},
            [
                *("tpu-vm", "ssh", *AT, "--worker=all"),
                "--command=xargs kill -TERM < vicreg_jax/run.pid",
            ],
        ),
        ("delete", {}, ["queued-resources", "delete", *AT, "--force"]),
    ],
)
def test_tpu_commands(word, variables, expected, tmp_path):
    done, calls = tpu(tmp_path, word, **variables)
    assert done.returncode == 0, done.stderr
    assert calls == [[*TPUS, *expected]]


def test_tpu_install_copies_the_commit_to_every_host(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    done, (copy, ssh) = tpu(tmp_path, "install")
    assert done.returncode == 0, done.stderr
    assert copy[:4] == [*TPUS, "tpu-vm", "scp"]
    archive = Path(copy[4])
    assert archive.name == "vicreg_jax.tar.gz"
    assert not archive.parent.exists()  # removed again
    assert copy[5:] == ["vicreg:", "--zone=us-central2-b", "--worker=all"]
    assert ssh[:-1] == [*TPUS, "tpu-vm", "ssh", *AT, "--worker=all"]
    steps = ssh[-1].removeprefix("--command=").splitlines()
    assert steps[0] == "set -e"
    assert "tar -xzf vicreg_jax.tar.gz -C vicreg_jax" in steps
    assert steps[-1].endswith('pip install --python .venv ".[tpu,data]"')
    subprocess.run(["bash", "-n", "-c", "\n".join(steps)], check=True, timeout=1500)


def test_tpu_run_goes_on_until_it_is_stopped(tmp_path):
    folder = tmp_path / "host" / "vicreg_jax"
    executable(folder / ".venv" / "bin" / "python", STOPPABLE)
    log, host = folder / "run.log", dict(HOST_HOME=str(tmp_path / "host"))
    done, ((*_, worker, command),) = tpu(tmp_path, "run", *FLAGS, **host)
    assert done.returncode == 0, done.stderr
    assert worker == "--worker=all"
    assert "nohup .venv/bin/python -u -m vicreg_jax.main " in command
    pid = int((folder / "run.pid").read_text())
    try:
        wait_for(lambda: "running" in log.read_text())
        assert log.read_text().splitlines() == [*MAIN, *FLAGS, "running"]
        again, _ = tpu(tmp_path, "run", *FLAGS, **host)
        assert again.returncode == 1
        assert again.stderr == "a run is under way; stop it first\n"
        assert tpu(tmp_path, "stop", **host)[0].returncode == 0
        wait_for(lambda: "saved" in log.read_text())
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_tpu_says_how_it_is_used(tmp_path):
    for words, first in (([], "A run on a Cloud TPU slice"), (["run"], "usage: ")):
        done, calls = tpu(tmp_path, *words)
        assert (done.returncode, calls) == (2, [])
        assert done.stderr.startswith(first)


# Two tasks on one node; a signal goes to both, and one that fails ends the other.
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys

record, words = os.environ["RECORD"], sys.argv[1:]
open(record + ".srun", "w").write(str(os.getpid()))
open(record, "w").write("".join(word + "\\n" for word in words))
while words[0].startswith("-"):
    words.pop(0)
shared = dict(
    os.environ,
    **dict(SLURM_STEP_ID="0", SLURM_STEP_NODELIST="localhost", SLURM_NODEID="0"),
    **dict(SLURM_STEP_NUM_TASKS="2", SLURM_NTASKS="2", SLURM_STEP_TASKS_PER_NODE="2"),
)
tasks = []

def end(*_):
    for task in tasks:
        task.terminate()

signal.signal(signal.SIGTERM, end)
for i in "01":
    own = dict(shared, SLURM_PROCID=i, SLURM_LOCALID=i)
    tasks.append(subprocess.Popen(words, env=own))
status = 0
for task in tasks:
    status = status or task.wait()
    if status:
        end()
sys.exit(status if status >= 0 else 128 - status)
"""
SCANCEL = """#!/bin/bash
[ "$*" = "--signal=TERM $SLURM_JOB_ID" ] && kill -TERM "$(cat "$RECORD.srun")"
"""
SCONTROL = """#!/bin/bash
echo "$*" > "$RECORD.scontrol"
"""


def slurm(tmp_path, python, job=1, flags=FLAGS, **variables):
    """The job of slurm.sbatch, running: a context of its process."""
    for name, text in (("srun", SRUN), ("scancel", SCANCEL), ("scontrol", SCONTROL)):
        executable(tmp_path / "bin" / name, text)
    return started(
        "bash",
        str(LAUNCH / "slurm.sbatch"),
        *flags,
        cwd=tmp_path,
        env=environment(
            PATH=f"{tmp_path}/bin:{os.environ['PATH']}",
            RECORD=str(tmp_path / "record"),
            PYTHON=str(python),
            SLURM_JOB_ID=str(job),
            SLURM_CPUS_PER_TASK="6",
            **variables,
        ),
    )


def free_job():
    """The number of a job whose port is free."""
    for job in range(100, 4096):
        try:
            socket.create_server(("", 61440 + job)).close()
            return job
        except OSError:
            continue
    raise OSError("no free port")


def test_slurm_starts_a_cluster_of_two_processes(tmp_path):
    # Stands for `python -u -m vicreg_jax.main FLAGS`.
    program = (sys.executable, "-c", PROGRAM, "60")
    python = executable(tmp_path / "python", f"#!/bin/sh\nexec {shlex.join(program)}\n")
    variables = dict(JAX_NUM_CPU_DEVICES="2", NPROC="16")
    with slurm(tmp_path, python, free_job(), **variables) as job:
        _, err = job.communicate(timeout=1500)
        assert job.returncode == 0, err
    said = [json.loads(x) for x in err.splitlines() if x.startswith("{")]
    same = dict(joined=True, of=2, devices=4, total=6.0, seen=[0, 1])
    assert sorted(said, key=lambda x: x["process"]) == [
        dict(process=0) | same,
        dict(process=1) | same,
    ]
    assert (tmp_path / "record").read_text().splitlines() == [
        *("--kill-on-bad-exit=1", "--cpus-per-task=6", str(python), *MAIN, *FLAGS)
    ]


@pytest.mark.long
def test_slurm_trains_a_run_of_two_processes(tmp_path):
    flags = (*FOUR_EPOCHS, f"--workdir={tmp_path / 'run'}")
    variables = dict(JAX_NUM_CPU_DEVICES="2", NPROC="16", PYTHONPATH=str(ROOT))
    with slurm(tmp_path, sys.executable, free_job(), flags, **variables) as job:
        _, err = job.communicate(timeout=1500)
    assert job.returncode == 0, err
    assert [line["step"] for line in lines(tmp_path / "run")][-1] == 56
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert len(facts["devices"]) == 4


@pytest.mark.parametrize("signals", [["USR1"], ["TERM"]])
def test_slurm_queues_again_when_the_time_is_over_but_not_when_cancelled(
    signals, tmp_path
):
    python = executable(tmp_path / "python", STOPPABLE)
    with slurm(tmp_path, python, job=17) as job:
        for _ in range(2 * (len(MAIN + FLAGS) + 1)):  # the last line: "running"
            assert job.stdout.readline()
        if signals == ["USR1"]:  # SLURM signals the shell alone
            job.send_signal(signal.SIGUSR1)
        else:  # and here the tasks too
            os.killpg(job.pid, signal.SIGTERM)
        out, err = job.communicate(timeout=1500)
    assert out.count("saved") == 2, err
    assert job.returncode == 0, err
    asked = tmp_path / "record.scontrol"
    if signals == ["USR1"]:
        assert asked.read_text() == "requeue 17\n"
    else:
        assert not asked.exists()


def test_a_job_that_fails_does_not_queue_again(tmp_path):
    python = executable(tmp_path / "python", "#!/bin/sh\nexit 2\n")
    with slurm(tmp_path, python) as job:
        job.communicate(timeout=1500)
        assert job.returncode == 2
    assert not (tmp_path / "record.scontrol").exists()

"""Processes of the program, as its users start them, and their ends."""

import os
import socket
import subprocess
import sys
import time

from helpers.paths import ROOT
from helpers.records import lines

DIGITS = f"--config={ROOT}/configs/digits.py"
TINY = (
    *("--config.epochs=4", "--config.optimizer.warmup_epochs=1"),
    *("--config.model.expander=(16,16)", "--config.data.batch_size=100"),
    *("--config.every.log_steps=5", "--config.every.checkpoint_epochs=1"),
)  # 4 epochs of 14 steps
FOUR_EPOCHS = (
    *(DIGITS, "--config.epochs=4", "--config.optimizer.warmup_epochs=1"),
    *("--config.model.expander=(16,16)", "--config.data.batch_size=96"),
    *("--config.every.log_steps=5", "--config.evaluate.draws=0"),
    "--config.every.checkpoint_epochs=1",
)  # of 14 steps too


def environment(**changes):
    names = ("XLA_FLAGS", "NPROC", "JAX_NUM_CPU_DEVICES", "JAX_PLATFORMS")
    kept = {k: v for k, v in os.environ.items() if k not in names}
    return kept | {"JAX_PLATFORMS": "cpu"} | changes


def main(*flags, cwd=None, timeout=1500, **env):
    return subprocess.run(
        [sys.executable, "-m", "vicreg_jax.main", *flags],
        cwd=cwd,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def start_processes(
    workdir, processes, devices, *flags, base=FOUR_EPOCHS, own=None, homes=None
):
    """Starts the processes of a run on this machine.

    Args:
      own: process -> flags that it alone has. homes: process -> its HOME.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "vicreg_jax.main", *base, *flags]
    command.append(f"--workdir={workdir}")
    shared = dict(JAX_NUM_CPU_DEVICES=str(devices), NPROC="16")
    several = processes > 1
    if several:
        shared["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
        shared["JAX_NUM_PROCESSES"] = str(processes)
    return [
        subprocess.Popen(
            [*command, *(own or {}).get(i, ())],
            env=environment(
                **shared,
                **({"JAX_PROCESS_ID": str(i)} if several else {}),
                **({"HOME": str(homes[i])} if homes else {}),
            ),
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]


def finish(running, timeout=1500):
    """Returns exit statuses and what was said; leaves no process behind."""
    try:
        said = [process.communicate(timeout=timeout)[1] for process in running]
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
    return [process.returncode for process in running], said


def reached(workdir, running, target):
    """Waits until the record has a step; returns whether it has, with all alive."""
    begin = time.monotonic()
    while time.monotonic() < begin + 1500:
        if any(process.poll() is not None for process in running):
            return False
        path = workdir / "metrics.jsonl"
        done = lines(workdir) if path.exists() and path.read_text() else []
        if done and done[-1]["step"] >= target:
            return True
        time.sleep(0.01)
    return False


def kill(workdir, running, number, target, who):
    """Sends a signal to one of the processes once the record has reached a step."""
    if reached(workdir, running, target):
        running[who].send_signal(number)

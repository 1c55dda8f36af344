"""When processes join, with what, and how they fail."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress

import pytest
from helpers.launchers import PROGRAM, TPU, by_hand, mpirun
from helpers.processes import environment

from vicreg_jax import devices
from vicreg_jax.devices import distributed, found, launchers
from vicreg_jax.refusals import Refusal


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def processes(*environments, arguments=("60",)):
    """Processes of the program, one for each environment; they end with the context."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    base = environment(JAX_NUM_CPU_DEVICES="2", NPROC="16")
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with ExitStack() as closing:
        running = []
        for variables in environments:
            process = subprocess.Popen(command, env=base | variables, **pipes)
            closing.enter_context(process)
            closing.callback(process.kill)
            running.append(process)
        yield running


def run(*environments, **options):
    """[(exit status, standard output, standard error)] of a process for each."""
    with processes(*environments, **options) as running:
        ended = [process.communicate(timeout=1500) for process in running]
        return [(p.returncode, *e) for p, e in zip(running, ended, strict=True)]


def test_the_gpus_of_nvidia_smi_are_to_be_used(tmp_path, monkeypatch):
    devices.check_gpus()  # on a CPU there is nothing to check
    asked = []
    monkeypatch.setattr(found, "_backend", lambda: "gpu")
    monkeypatch.setattr(
        launchers, "idle_gpus", lambda _, used, present: asked.append(present)
    )
    smi = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for lines, status, expected in (
        ("GPU 0: H100 (UUID: a)\nGPU 1: H100 (UUID: b)", 0, 2),
        ("GPU 0: H100 (UUID: a)\n  MIG 1g.10gb Device 0: (UUID: c)", 0, None),
        ("Unable to determine the device handle", 9, None),
    ):
        smi.write_text(f"#!/bin/sh\necho '{lines}'\nexit {status}\n")
        smi.chmod(0o755)
        devices.check_gpus()
        assert asked.pop() == expected
    monkeypatch.setattr(launchers, "idle_gpus", lambda *_, **__: "some are idle")
    with pytest.raises(Refusal, match="some are idle"):
        devices.check_gpus()


def test_two_processes_join_by_plain_variables():
    port = free_port()
    ended = run(by_hand(0, 2, port), by_hand(1, 2, port))
    for process, (status, _, err) in enumerate(ended):
        assert status == 0, err
        assert json.loads(err.splitlines()[-1]) == {
            "joined": True,
            "process": process,
            "of": 2,
            "devices": 4,
            "total": 1 + 1 + 2 + 2,
            "seen": [0, 1],
        }


@pytest.mark.parametrize("process", [0, 1])
def test_a_process_whose_peer_never_comes_ends_in_one_line(process):
    port = free_port()
    ((status, out, err),) = run(by_hand(process, 2, port), arguments=["3"])
    assert (status, out) == (1, "")
    assert err.splitlines() == [
        f"vicreg_jax: process {process} of 2 did not meet the others at"
        f" 127.0.0.1:{port} within 3 s; check that all were started, that process 0"
        " runs there, and that from here this name resolves and the port can be reached"
    ]


def test_ctrl_c_ends_the_waiting():
    port = free_port()
    with processes(by_hand(0, 2, port)) as (process,):
        while process.poll() is None:
            with suppress(OSError):  # until it listens
                socket.create_connection(("127.0.0.1", port)).close()
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=1500) == -signal.SIGINT


def test_a_port_that_is_taken_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        message = f"process 0 cannot listen on port {port}: Address already in use; end"
        with pytest.raises(ValueError, match=message):
            distributed.start(by_hand(0, 2, port))
        environ = TPU | {"JAX_COORDINATOR_PORT": str(port)}  # that of another run
        with pytest.raises(ValueError, match=message):
            distributed.start(environ)


def test_a_process_that_fails_does_not_wait_for_the_others():
    port = free_port()
    environments = by_hand(0, 2, port), by_hand(1, 2, port)
    with processes(*environments, arguments=["60", "fail"]) as (other, failed):
        assert failed.wait(timeout=1500) == 3
        assert other.poll() is None  # it waits; its launcher or jax will end it


def test_a_process_that_fails_does_not_wait_for_its_own_threads():
    program = """if True:
        import threading, time
        from vicreg_jax.devices import distributed

        threading.Thread(target=time.sleep, args=[600]).start()
        print("said", end="")
        distributed.leave(3)
    """
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=1500
    )
    assert (done.returncode, done.stdout) == (3, "said"), done.stderr


def test_what_jax_cannot_start_is_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install mpi4py, or: mpirun -x"):
        distributed.start(mpirun(2, 0))
    # Here jax has devices already, which is too late.
    with pytest.raises(ValueError, match="cannot start: .* must be called before"):
        distributed.start(by_hand(1, 2, 80))


def test_jax_marks_the_environment_where_there_are_tpu_chips():
    command = "import jax, os; print(os.environ.get('TPU_ML_PLATFORM'))"
    clean = environment()
    clean.pop("TPU_ML_PLATFORM", None)  # TensorFlow, in this process, may have set it
    for changes, expected in (({}, "None"), ({"JAX_FORCE_TPU_INIT": "1"}, "JAX")):
        found = subprocess.run(
            [sys.executable, "-c", command],
            env=clean | changes,
            capture_output=True,
            text=True,
            timeout=1500,
        )
        assert found.stdout.strip() == expected, found.stderr

"""Starting as one of several processes, and ending; it holds no arrays and no mesh."""

import importlib.util
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping

import jax

from vicreg_jax.devices import launchers
from vicreg_jax.refusals import NotInstalled, Refusal, Unusable, one_line

__all__ = ["leave", "start"]


# Seconds until a silent process counts as dead. Heartbeats come from a thread of their
# own, so compiling does not delay them. jax's default is 100.
HEARTBEAT = 60
# At the end each waits so long for all, of whom one may still be writing; then all are
# aborted, that one too. jax's default is 300.
SHUTDOWN = 3600


def start(
    environ: Mapping[str, str] = os.environ, *, initialization_timeout: int = 600
) -> bool:
    """Joins the other processes, if there are any; to be called before jax computes.

    `launchers.wanted` says whether there are.

    Args:
      environ: the environment of this process.
      initialization_timeout: seconds to wait for the others; Kubernetes may start a
        failed one again after 6 minutes. Then the process ends with one line and exit
        status 1: a launcher may try again, as it should not after a refusal, status 2.
        This is no exception because jax waits in C++, and would itself abort with a
        stack trace.

    Returns:
      Whether this is one of several processes.

    Raises:
      Refusal: the environment is incomplete or contradicts itself, or jax cannot start.
      Unusable: the port is taken.
      NotInstalled: Open MPI 5 without mpi4py.
    """
    arguments = launchers.wanted(environ)
    if arguments is None:
        return False
    mpi4py = arguments.get("cluster_detection_method") == "mpi4py"
    if mpi4py and not importlib.util.find_spec("mpi4py"):
        raise NotInstalled(
            "mpirun of Open MPI 5 does not tell where process 0 is; run: pip install"
            " mpi4py, or: mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT ..."
        )
    _check_port(launchers.port(arguments, environ))
    message = _unmet(arguments, initialization_timeout)
    timer = threading.Timer(initialization_timeout, _end, [message])
    timer.daemon = True
    timer.start()
    ctrl_c = signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's waits for C++
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=initialization_timeout + 60,  # ours comes first
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=SHUTDOWN,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise Refusal(f"jax.distributed cannot start: {one_line(error)}") from error
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, ctrl_c or signal.SIG_DFL)
    return True


def leave(status: int) -> None:
    """Ends this process, which failed, at once.

    Leaving as usual, one of several would wait up to `SHUTDOWN` for the others, which
    wait for it in a collective; they end when its heartbeats stay away, or by their
    launcher. And threads that ask a bucket which does not answer would be waited for.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _check_port(port):
    """Raises where process 0 cannot listen, which crashes jax 0.10.2."""
    if port is None:
        return
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise Unusable(
            f"process 0 cannot listen on port {port}: {os.strerror(error.errno)};"
            " end what holds it, perhaps an earlier run, or set another"
            " JAX_COORDINATOR_PORT or JAX_COORDINATOR_ADDRESS"
        ) from error


def _unmet(arguments, seconds):
    """Returns the line on processes that did not meet."""
    how = arguments.get("cluster_detection_method")
    found = {"ompi": "the host of mpirun", "mpi4py": "the host of rank 0"}
    where = arguments.get("coordinator_address") or found.get(
        how, "the first host of the TPU"
    )
    count = arguments.get("num_processes")
    who = f"process {arguments['process_id']} of {count}" if count else "this process"
    return (
        f"{who} did not meet the others at {where} within {seconds} s; check that all"
        " were started, that process 0 runs there, and that from here this name"
        " resolves and the port can be reached"
    )


def _end(message):
    print(f"vicreg_jax: {message}", file=sys.stderr, flush=True)
    os._exit(1)

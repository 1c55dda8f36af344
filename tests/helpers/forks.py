"""Processes of the program that are forked from one that has imported everything.

They are as real as others and get real signals; only the seconds of importing are
spent once. Compiled programs are kept in a folder for all of them.
"""

import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path

import helpers

HEAVY = ("vicreg_jax.main", "vicreg_jax.train", "vicreg_jax.evaluate")
HEAVY += ("vicreg_jax.report", "vicreg_jax.weights.export", "orbax.checkpoint")
HEAVY += ("helpers.forks", "sklearn.datasets", "sklearn.neighbors", "array_record")


class Forks:
    """Starts processes.

    Args:
      folder: for what they say, and what they have compiled.
    """

    def __init__(self, folder):
        self._folder, self._count = folder, 0
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(HEAVY))
        paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        here = os.path.dirname(os.path.dirname(helpers.__file__))
        kept = {"PYTHONPATH": os.environ.get("PYTHONPATH")}
        os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, paths)])
        self._context.Process(target=int).start()  # the server imports as it starts
        if kept["PYTHONPATH"] is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = kept["PYTHONPATH"]

    def start(self, flags, *, processes=1, devices=1):
        """Returns the processes of one command."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        started = []
        for i in range(processes):
            self._count += 1
            said = str(self._folder / f"said_{self._count}.txt")
            env = {}
            if processes > 1:
                env = {
                    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                    "JAX_NUM_PROCESSES": str(processes),
                    "JAX_PROCESS_ID": str(i),
                }
            given = (list(map(str, flags)), env, devices, said, str(self._folder))
            Path(said).touch()  # for who is killed at once
            process = self._context.Process(target=_main, args=given)
            process.start()
            process.said = said
            started.append(process)
        return started


def finish(running, timeout=1500):
    """Returns exit statuses and what was said; leaves no process behind."""
    try:
        for process in running:
            process.join(timeout)
    finally:
        for process in running:
            if process.is_alive():
                process.kill()
                process.join()
    said = []
    for process in running:
        with open(process.said) as file:
            said.append(file.read())
        os.unlink(process.said)
    return [process.exitcode for process in running], said


def _main(flags, env, devices, said, folder):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(env, NPROC="16")
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_compilation_cache_dir", os.path.join(folder, "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    from vicreg_jax.main import console

    sys.argv = ["vicreg_jax", *flags]
    console()

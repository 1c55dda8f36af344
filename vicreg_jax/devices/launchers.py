"""What launchers tell a process in its environment: pure functions; starts nothing.

    by hand, SkyPilot        JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID
    Kubernetes Indexed Job   the first two, and JOB_COMPLETION_INDEX
    srun, mpirun, TPUs       nothing needs to be set

A process alone needs none of them: a laptop, a notebook, `srun -n1`. Where a launcher
speaks for several, JAX_NUM_PROCESSES=1 says that this one is alone.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from vicreg_jax.refusals import Refusal

__all__ = ["NOTEBOOKS", "Launched", "idle_gpus", "port", "wanted"]


NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
NOTEBOOKS = ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE", "JPY_PARENT_PID")
TPU_PORT = 8482  # any that is free would do; jax itself takes this one


class Launched(NamedTuple):
    """What a launcher says of this process."""

    name: str
    processes: int | None  # None: jax asks the metadata server of the TPU
    process: int | None
    address: str | None  # None: jax finds it
    more: dict[str, Any]  # further arguments


def wanted(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Returns the arguments of `jax.distributed.initialize`, None for a process alone.

    The three JAX_ variables together (or JOB_COMPLETION_INDEX as the third) override a
    launcher; fewer must agree with what Open MPI, else SLURM, else the TPU says,
    which gives the rest. Of the three jax 0.10.2 reads only the address. It would find
    SLURM by itself, but take one GPU where a task has several, the same port for two
    steps of a job, the wrong host of `r[1-2]n[04-07]`, and could wait in a shell of
    `salloc` for tasks never started.

    Raises:
      Refusal: one line on what is incomplete, contradictory or impossible.

    Source: `jax.distributed.initialize` and "Multi-process programs" of docs.jax.dev;
    srun(1), output environment variables; kubernetes.io, Jobs, completion mode.
    """
    address = environ.get(NAMES[0])
    if address is not None and not _port(address):
        raise Refusal(
            f"{NAMES[0]}={address!r}; expected HOST:PORT of process 0, such as"
            " node1:8476"
        )
    processes, own = (_integer(environ, name) for name in NAMES[1:])
    if processes == 0:
        raise Refusal(f"{NAMES[1]}=0; expected 1 or more")
    if processes == 1 and not own:
        return None
    name = NAMES[2] if own is not None else "JOB_COMPLETION_INDEX"
    process = _integer(environ, name)
    if processes and process is not None and process >= processes:
        raise Refusal(
            f"{name}={process}, but {NAMES[1]}={processes}; processes are numbered from"
            f" 0 to {processes - 1}"
        )
    if address and processes and process is not None:
        return _arguments(address, processes, process)
    launched = _open_mpi(environ) or _slurm(environ) or _tpu(environ)
    if launched is None:
        if address or processes or own is not None:
            _refuse_incomplete(address, processes, process)
        return None
    told = launched.processes, launched.process
    for name, given, said in zip(NAMES[1:], (processes, own), told, strict=True):
        if None not in (given, said) and given != said:
            raise Refusal(
                f"{name}={given}, but {launched.name} says {said}; unset it, or set"
                f" {', '.join(NAMES)} all three"
            )
    if launched.processes == 1:
        return None
    address = address or launched.address
    if launched.processes is None:
        return {"coordinator_address": address} if address else {}
    return launched.more | _arguments(address, *told)


def port(arguments: Mapping[str, Any], environ: Mapping[str, str]) -> int | None:
    """Returns where this process would listen: process 0, or any host of a TPU."""
    address = arguments.get("coordinator_address")
    if arguments.get("process_id"):
        return None
    if address:
        return _port(address)
    return None if "process_id" in arguments else _coordinator_port(environ, TPU_PORT)


def idle_gpus(
    environ: Mapping[str, str], *, used: int, present: int | None
) -> str | None:
    """Returns one line if jax uses fewer GPUs than this process was given, else None.

    A process is given what JAX_LOCAL_DEVICE_IDS or JAX_CUDA_VISIBLE_DEVICES names, else
    its share of CUDA_VISIBLE_DEVICES, which SLURM sets, else of the whole machine.

    Args:
      environ: the environment of this process.
      used: local devices of jax.
      present: GPUs that nvidia-smi lists, None where it cannot tell.

    Raises:
      Refusal: the GPUs of the machine cannot be divided among its processes.
    """
    chosen = ("JAX_LOCAL_DEVICE_IDS", "JAX_CUDA_VISIBLE_DEVICES")
    given, source = present, "of nvidia-smi"
    for name in (*chosen, "CUDA_VISIBLE_DEVICES"):
        if environ.get(name, "all") not in ("all", ""):
            given, source = _length(environ[name]), f"of {name}={environ[name]}"
            break
    if given is None:
        return None
    if name not in chosen:
        given = len(_share(environ, given))
    if used >= given:
        return None
    return (
        f"jax uses {used} of the {given} GPUs of this process ({source}); start one"
        f" process for each (srun --ntasks-per-node={given}) or one for all of them"
        f" (JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(given)))}); if nvidia-smi"
        " shows a broken one, leave it out by CUDA_VISIBLE_DEVICES"
    )


def _integer(environ, name, default=None):
    """Returns a variable, 0 or more, the default where it is not set."""
    text = environ.get(name)
    if text is None:
        return default
    if not re.fullmatch("[0-9]+", text):
        raise Refusal(f"{name}={text!r}; expected an integer, 0 or more")
    return int(text)


def _length(text):
    return text.count(",") + 1


def _port(address):
    """Returns the port of HOST:PORT, None where there is no valid one."""
    match = re.fullmatch(".+:([0-9]+)", address)
    return int(match[1]) if match and 0 < int(match[1]) < 2**16 else None


def _coordinator_port(environ, default):
    return _integer(environ, "JAX_COORDINATOR_PORT") or default


def _arguments(address, processes, process):
    numbers = {"num_processes": processes, "process_id": process}
    if not address:  # jax finds it, and nothing else
        return numbers
    where = {"coordinator_address": address, "cluster_detection_method": "deactivate"}
    return numbers | where


def _refuse_incomplete(*values):
    names = (*NAMES[:2], f"{NAMES[2]} (or JOB_COMPLETION_INDEX)")
    both = list(zip(names, values, strict=True))
    missing = " and ".join(name for name, value in both if value is None)
    there = " and ".join(name for name, value in both if value is not None)
    raise Refusal(
        f"{there} without {missing}, and no launcher (srun, mpirun, a TPU) tells; set"
        f" all three, or {NAMES[1]}=1 for a process alone"
    )


def _open_mpi(environ):
    processes = _integer(environ, "OMPI_COMM_WORLD_SIZE")
    process = _integer(environ, "OMPI_COMM_WORLD_RANK")
    if processes is None or process is None:
        return None
    more = _local_gpus(environ)
    if NAMES[0] not in environ:
        # Up to version 4 mpirun tells where it runs; from 5 on ranks ask each other.
        old = "OMPI_MCA_orte_hnp_uri" in environ
        more["cluster_detection_method"] = "ompi" if old else "mpi4py"
    return Launched("mpirun", processes, process, None, more)


def _slurm(environ):
    """A step of srun; not the shell of sbatch, salloc or ssh around it."""
    process = _integer(environ, "SLURM_PROCID")
    tasks = _integer(environ, "SLURM_NTASKS")  # of the job, unless the step says
    processes = _integer(environ, "SLURM_STEP_NUM_TASKS", tasks)
    if process is None or processes is None:
        return None
    if "SLURM_STEP_NODELIST" not in environ:
        nodes = _integer(environ, "SLURM_JOB_NUM_NODES", 1)
        if nodes > 1:
            raise Refusal(
                f"this SLURM job has {nodes} nodes and the program was started on one;"
                f" put srun before it, or set {NAMES[1]}=1 to leave the others idle"
            )
        return None
    nodes = re.sub(r"\[([0-9]+)[^]]*\]", r"\1", environ["SLURM_STEP_NODELIST"])
    # One for each step of a job, above the ports that Linux hands out by itself.
    ids = [_integer(environ, x, 0) for x in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
    port = _coordinator_port(environ, 61440 + sum(ids) % 4096)
    address = f"{nodes.split(',')[0]}:{port}"
    return Launched("srun", processes, process, address, _local_gpus(environ))


def _tpu(environ):
    """A Cloud TPU: jax sets TPU_ML_PLATFORM when imported where there are chips."""
    platforms = environ.get("JAX_PLATFORMS") or "tpu"
    if "TPU_ML_PLATFORM" not in environ or "tpu" not in platforms.split(","):
        return None
    if any(name in environ for name in NOTEBOOKS):
        return None
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    slices = _integer(environ, "MEGASCALE_NUM_SLICES") or 1
    if hosts and slices == 1:
        # jax would ask a metadata server about slices, which GKE may not let it reach.
        processes = _length(hosts)
        process = _integer(environ, "TPU_WORKER_ID", 0)
        if process >= processes:
            raise Refusal(
                f"TPU_WORKER_ID={process}, but the TPU has {processes} hosts: {hosts}"
            )
        first = hosts.split(",")[0].split(":")[0]
        address = f"{first}:{_coordinator_port(environ, TPU_PORT)}"
        return Launched("the TPU", processes, process, address, {})
    if "TPU_SKIP_MDS_QUERY" in environ and slices == 1:  # no metadata server
        return None
    return Launched("the TPU", None, None, None, {})


def _neighbours(environ):
    """Returns how many processes this machine has and which is ours; else (None, 0)."""
    processes = _integer(environ, "OMPI_COMM_WORLD_LOCAL_SIZE")
    if processes:
        return processes, _integer(environ, "OMPI_COMM_WORLD_LOCAL_RANK", 0)
    if "SLURM_STEP_NODELIST" not in environ:
        return None, 0
    text = environ.get("SLURM_TASKS_PER_NODE", "")
    text = environ.get("SLURM_STEP_TASKS_PER_NODE", text)
    tasks = []  # of each node: 8(x2),4 is 8, 8, 4
    for count, times in re.findall(r"([0-9]+)(?:\(x([0-9]+)\))?", text):
        tasks += [int(count)] * int(times or 1)
    node = _integer(environ, "SLURM_NODEID", 0)
    local = _integer(environ, "SLURM_LOCALID", 0)
    return (tasks[node] if node < len(tasks) else None), local


def _share(environ, gpus):
    """Returns which of the GPUs that a process sees are its own.

    All where it sees only its own: it is alone, or sees fewer than SLURM_GPUS_ON_NODE,
    because SLURM or a wrapper script bound it. Else an equal part.
    """
    processes, local = _neighbours(environ)
    on_node = _integer(environ, "SLURM_GPUS_ON_NODE")
    bound = gpus == 1 if on_node is None else gpus < on_node
    if bound or processes in (None, 1):
        return range(gpus)
    if gpus % processes:
        raise Refusal(
            f"{gpus} GPUs cannot be divided among the {processes} processes of this"
            f" machine; start {gpus} (srun --ntasks-per-node={gpus}) or 1"
        )
    share = gpus // processes
    return range(local * share, (local + 1) * share)


def _local_gpus(environ):
    """Returns the argument that says which devices a process of a launcher uses."""
    if "JAX_LOCAL_DEVICE_IDS" in environ:  # jax reads it
        return {}
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        return {"local_device_ids": list(_share(environ, _length(visible)))}
    return {"local_device_ids": [_neighbours(environ)[1]]}  # jax's rule: one each

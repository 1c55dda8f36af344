"""Variables that launchers set, and a program that joins by them."""

TPU = {"TPU_ML_PLATFORM": "JAX"}


def by_hand(process, of, port, host="127.0.0.1"):
    return {
        "JAX_COORDINATOR_ADDRESS": f"{host}:{port}",
        "JAX_NUM_PROCESSES": str(of),
        "JAX_PROCESS_ID": str(process),
    }


def mpirun(tasks, process, **changes):
    return {
        "OMPI_COMM_WORLD_SIZE": str(tasks),
        "OMPI_COMM_WORLD_RANK": str(process),
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(tasks),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(process),
    } | changes


# Joins, adds over all devices of all processes, and says what it saw.
PROGRAM = """if True:
    import json, sys
    from vicreg_jax.devices import distributed  # importing main starts no device
    from vicreg_jax import main  # importing main starts no device

    try:
        joined = distributed.start(initialization_timeout=int(sys.argv[1]))
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
    import jax, jax.numpy as jnp, numpy as np
    from jax.experimental import multihost_utils
    from vicreg_jax.devices import sharding

    process = jax.process_index()
    split = sharding.split(sharding.data_mesh())
    mine = np.full(jax.local_device_count(), process + 1, np.float32)
    rows = jax.make_array_from_process_local_data(split, mine)
    total = jax.jit(jnp.sum, out_shardings=sharding.whole(sharding.data_mesh()))(rows)
    seen = multihost_utils.process_allgather(np.int32(process))
    if "fail" in sys.argv and process == 1:
        distributed.leave(3)
    said = dict(joined=joined, process=process, of=jax.process_count(),
        devices=jax.device_count(), total=float(total), seen=np.ravel(seen).tolist())
    # Gloo writes to the other; in one piece, as others may write here too.
    sys.stderr.write(json.dumps(said) + "\\n")
"""

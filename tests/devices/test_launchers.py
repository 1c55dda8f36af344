"""What made environments say: to join, to stay alone, or a refusal."""

import pytest
from helpers.launchers import TPU, by_hand, mpirun
from hypothesis import given
from hypothesis import strategies as st

from vicreg_jax.devices import distributed, launchers


def step(tasks, process, **changes):
    """The environment of a task of srun, 4 a node at most."""
    nodes = -(-tasks // 4)
    return {
        "SLURM_JOB_ID": "4097",
        "SLURM_STEP_ID": "2",
        "SLURM_STEP_NODELIST": "gpu[007-009,011]" if nodes > 1 else "gpu007",
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_NTASKS": str(tasks),
        "SLURM_STEP_TASKS_PER_NODE": f"4(x{nodes})" if nodes > 1 else str(tasks),
        "SLURM_PROCID": str(process),
        "SLURM_NODEID": str(process // 4),
        "SLURM_LOCALID": str(process % 4),
    } | changes


def explicit(address, of, process, **more):
    return dict(
        coordinator_address=address,
        num_processes=of,
        process_id=process,
        cluster_detection_method="deactivate",
        **more,
    )


GKE = TPU | {"TPU_WORKER_HOSTNAMES": "job-0.svc,job-1.svc", "TPU_WORKER_ID": "1"}
MADE = {"JAX_COORDINATOR_ADDRESS": "node:80", "JAX_NUM_PROCESSES": "4"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"JOB_COMPLETION_INDEX": "3"},  # an indexed Job of runs of their own
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        {"JAX_NUM_PROCESSES": "1"},
        MADE | {"JAX_NUM_PROCESSES": "1"},
        step(1, 0),
        step(8, 3, JAX_NUM_PROCESSES="1"),
        # salloc: a shell that is one task of a job of 8
        step(1, 0, SLURM_NTASKS="8", SLURM_JOB_NUM_NODES="2"),
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"},  # salloc on the login node
        {"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "2"},  # ssh into a node
        # the shell of sbatch on one node
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
        mpirun(1, 0),
        mpirun(1, 0) | step(2, 1),  # mpirun starts its daemons by srun
        {"TPU_WORKER_HOSTNAMES": "a,b"},  # no chips
        TPU | {"JAX_PLATFORMS": "cpu"},
        TPU | {"TPU_WORKER_HOSTNAMES": "localhost"},
        TPU | {"TPU_SKIP_MDS_QUERY": "1"},
        TPU | {"COLAB_RELEASE_TAG": "release"},
        GKE | {"KAGGLE_KERNEL_RUN_TYPE": "Interactive"},
        GKE | {"JPY_PARENT_PID": "7"},
    ],
)
def test_a_process_alone_stays_alone(environ):
    assert launchers.wanted(environ) is None
    assert distributed.start(environ) is False


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (by_hand(3, 4, 80), explicit("127.0.0.1:80", 4, 3)),
        (MADE | {"JOB_COMPLETION_INDEX": "0"}, explicit("node:80", 4, 0)),
        (
            MADE | {"JAX_PROCESS_ID": "2", "JOB_COMPLETION_INDEX": "0"},
            {"process_id": 2},
        ),
        (by_hand(3, 4, 80) | step(2, 0), explicit("127.0.0.1:80", 4, 3)),
        # 61440 + (4097 + 2) % 4096
        (step(8, 6), explicit("gpu007:61443", 8, 6, local_device_ids=[2])),
        (
            step(8, 6, SLURM_STEP_NODELIST="login,b"),
            {"coordinator_address": "login:61443"},
        ),
        (
            step(8, 0, SLURM_STEP_NODELIST="r[1-2,9]n[04-07],x3"),
            {"coordinator_address": "r1n04:61443"},
        ),
        (step(8, 6, JAX_COORDINATOR_PORT="99"), {"coordinator_address": "gpu007:99"}),
        (
            step(4, 1, JAX_COORDINATOR_ADDRESS="ib0:80", JAX_NUM_PROCESSES="4"),
            explicit("ib0:80", 4, 1, local_device_ids=[1]),
        ),
        (
            mpirun(2, 1, OMPI_MCA_orte_hnp_uri="1.0;tcp://10.0.0.1:34911"),
            dict(
                num_processes=2,
                process_id=1,
                cluster_detection_method="ompi",
                local_device_ids=[1],
            ),
        ),
        (mpirun(2, 1), {"cluster_detection_method": "mpi4py"}),
        (
            mpirun(2, 1, JAX_COORDINATOR_ADDRESS="node:80") | step(1, 0),
            explicit("node:80", 2, 1, local_device_ids=[1]),
        ),
        (GKE, explicit("job-0.svc:8482", 2, 1)),
        (
            GKE | {"TPU_PROCESS_ADDRESSES": "x:8471,y:8471,z:8471"},
            explicit("x:8482", 3, 1),
        ),
        (GKE | {"MEGASCALE_NUM_SLICES": "2"}, {}),  # jax knows about slices
        (TPU, {}),  # jax asks the metadata server
        (TPU | {"JAX_COORDINATOR_ADDRESS": "w:80"}, {"coordinator_address": "w:80"}),
        (TPU | {"JAX_PLATFORMS": "tpu,cpu"}, {}),
    ],
)
def test_processes_join_as_their_launcher_says(environ, expected):
    found = launchers.wanted(environ)
    assert found is not None
    assert expected.items() <= found.items()
    if not expected:
        assert found == {}


# visible to the task, tasks a node, GPUs that SLURM says the node has -> its own
@pytest.mark.parametrize(
    ("visible", "tasks", "on_node", "expected"),
    [
        ("0,1,2,3", 4, 4, [2]),  # one each
        ("0,1,2,3,4,5,6,7", 4, 8, [4, 5]),  # two each
        ("0,1,2,3,4,5,6,7", 1, 8, [0, 1, 2, 3, 4, 5, 6, 7]),  # jax would take one
        ("0", 4, 4, [0]),  # --gpus-per-task=1; jax would ask for the third of one
        ("2", 4, 4, [0]),  # a wrapper that sets CUDA_VISIBLE_DEVICES
        ("4,5", 4, 8, [0, 1]),  # --gpus-per-task=2
        ("GPU-a,GPU-b,GPU-c,GPU-d", 4, None, [2]),
        ("3", 4, None, [0]),
        ("", 4, None, [2]),
    ],
)
def test_a_task_uses_the_gpus_that_are_its_own(visible, tasks, on_node, expected):
    environ = step(8, 6, SLURM_STEP_TASKS_PER_NODE=f"{tasks}(x2)")
    environ |= {"CUDA_VISIBLE_DEVICES": visible}
    if on_node:
        environ |= {"SLURM_GPUS_ON_NODE": str(on_node)}
    assert launchers.wanted(environ)["local_device_ids"] == expected
    assert launchers.idle_gpus(environ, used=len(expected), present=None) is None
    environ |= {"JAX_LOCAL_DEVICE_IDS": "1"}  # jax reads that
    assert "local_device_ids" not in launchers.wanted(environ)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.data())
def test_tasks_of_a_node_divide_its_gpus_without_rest(tasks, data):
    node = data.draw(st.integers(0, len(tasks) - 1))
    each = data.draw(st.integers(1, 3))
    gpus = ",".join(map(str, range(each * tasks[node])))
    before = sum(tasks[:node])
    shares = []
    for local in range(tasks[node]):
        environ = {
            "SLURM_STEP_NODELIST": "a",
            "SLURM_STEP_NUM_TASKS": str(sum(tasks) + 1),
            "SLURM_STEP_TASKS_PER_NODE": ",".join(map(str, [*tasks, 1])),
            "SLURM_PROCID": str(before + local),
            "SLURM_NODEID": str(node),
            "SLURM_LOCALID": str(local),
            "SLURM_GPUS_ON_NODE": str(each * tasks[node]),
            "CUDA_VISIBLE_DEVICES": gpus,
        }
        shares += launchers.wanted(environ)["local_device_ids"]
    assert shares == list(range(each * tasks[node]))


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "without JAX_COORDINATOR_ADDRESS and JAX_PROCESS"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "without JAX_NUM_PROCESSES and JAX_PROC"),
        ({"JAX_PROCESS_ID": "0"}, "without JAX_COORDINATOR_ADDRESS and JAX_NUM_PROC"),
        (MADE, "JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES without JAX_PROCESS_ID"),
        (by_hand(4, 4, 80), "JAX_PROCESS_ID=4, but JAX_NUM_PROCESSES=4; .* 0 to 3"),
        (MADE | {"JOB_COMPLETION_INDEX": "7"}, "JOB_COMPLETION_INDEX=7, but JAX_NUM"),
        (by_hand("one", 4, 80), "JAX_PROCESS_ID='one'; expected an integer, 0 or more"),
        (by_hand(-1, 4, 80), "JAX_PROCESS_ID='-1'; expected an integer"),
        (by_hand(0, "", 80), "JAX_NUM_PROCESSES=''; expected an integer"),
        (by_hand(0, 0, 80), "JAX_NUM_PROCESSES=0; expected 1 or more"),
        (by_hand(1, 1, 80), "JAX_PROCESS_ID=1, but JAX_NUM_PROCESSES=1"),
        (by_hand(0, 2, 80, host=""), "':80'; expected HOST:PORT of process 0"),
        (by_hand(0, 2, 65536), "expected HOST:PORT"),
        ({"JAX_COORDINATOR_ADDRESS": "node"}, "'node'; expected HOST:PORT"),
        (step(4, 1, JAX_NUM_PROCESSES="2"), "JAX_NUM_PROCESSES=2, but srun says 4"),
        (step(4, 1, JAX_PROCESS_ID="2"), "JAX_PROCESS_ID=2, but srun says 1"),
        (mpirun(4, 1, JAX_NUM_PROCESSES="2"), "but mpirun says 4"),
        (step(4, 0, SLURM_PROCID="x"), "SLURM_PROCID='x'; expected an integer"),
        (
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_NUM_NODES": "2"},
            "this SLURM job has 2 nodes and the program was started on one; put srun",
        ),
        (
            step(4, 0, CUDA_VISIBLE_DEVICES="0,1,2", SLURM_GPUS_ON_NODE="3"),
            "3 GPUs cannot be divided among the 4 processes .*--ntasks-per-node=3",
        ),
        (GKE | {"TPU_WORKER_ID": "2"}, "TPU_WORKER_ID=2, but the TPU has 2 hosts"),
    ],
)
def test_incomplete_or_contradictory_environments_are_refused(environ, message):
    with pytest.raises(ValueError, match=message) as refusal:
        launchers.wanted(environ)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("environ", "used", "present", "message"),
    [
        ({}, 8, 8, None),
        ({}, 2, None, None),  # no nvidia-smi, or divided GPUs
        ({}, 7, 8, "7 of the 8 GPUs .*nvidia-smi"),
        ({"CUDA_VISIBLE_DEVICES": "1,3"}, 2, 8, None),
        (
            {"CUDA_VISIBLE_DEVICES": "1,3"},
            1,
            8,
            "1 of the 2 .*CUDA_VISIBLE_DEVICES=1,3",
        ),
        ({"JAX_CUDA_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1,3"}, 1, 8, None),
        ({"JAX_CUDA_VISIBLE_DEVICES": "all"}, 1, 2, "1 of the 2"),
        ({"JAX_LOCAL_DEVICE_IDS": "0,1"}, 1, 8, "1 of the 2"),
        (step(1, 0), 8, 8, None),
        # one task for 8 GPUs, and SLURM does not say which: jax takes one
        (step(1, 0), 1, 8, "1 of the 8 .*--ntasks-per-node=8.*IDS=0,1,2,3,4,5,6,7"),
        (step(8, 0), 1, 4, None),
        (step(8, 0), 1, 8, "1 of the 2"),
        (mpirun(4, 0), 1, 8, "1 of the 2"),
    ],
)
def test_gpus_that_jax_does_not_use_are_reported(environ, used, present, message):
    found = launchers.idle_gpus(environ, used=used, present=present)
    if message is None:
        assert found is None
        return
    assert "\n" not in found
    with pytest.raises(ValueError, match=message):
        raise ValueError(found)

"""The same bytes for the same (seed, step): on any number of hosts, after resuming."""

import subprocess
import sys

import numpy as np
import pytest
from helpers.processes import environment
from PIL import Image

STEPS = (0, 1, 7)  # 6 steps an epoch
# One host: prepares its rows of each step, in its own process, in its own order.
HOST = """if True:
    import sys, jax, numpy as np
    from vicreg_jax import config as configs, devices
    from vicreg_jax.data import batches, plan
    from vicreg_jax.data.augment import draw
    from vicreg_jax.train import build

    path, out, host, hosts, *steps = sys.argv[1:]
    name = "arrays" if path.endswith(".npz") else "folder"
    config = configs.parse(dict(data=dict(name=name, path=path, batch_size=8,
        image_size=24), seed=3))
    images = build.images(config, None).train
    made = batches.Batches(images, config, devices.mesh())
    planner = plan.Planner(seed=config.seed, examples=len(images), batch_size=8,
        views=2, numbers=draw.NUMBERS)
    share = 8 // int(hosts)
    rows = slice(int(host) * share, (int(host) + 1) * share)
    leaves = {}
    for step in map(int, steps):
        batch = made.make(planner, step, rows)
        for i, leaf in enumerate(jax.tree.leaves(batch)):
            leaves[f"{step}/{i}"] = leaf
    np.savez(out, **leaves)
"""


def global_batches(path, folder, hosts, steps):
    """{step/leaf: rows of all hosts}, each host a process."""
    running, parts = [], []
    for host in range(hosts):
        parts.append(folder / f"{hosts}_{host}_{len(steps)}.npz")
        words = [str(x) for x in (path, parts[-1], host, hosts, *steps)]
        command = [sys.executable, "-c", HOST, *words]
        running.append(subprocess.Popen(command, env=environment()))
    assert [process.wait(timeout=1500) for process in running] == [0] * hosts
    parts = [np.load(part) for part in parts]
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


@pytest.fixture(params=["folder", "arrays"])
def images(request, tmp_path):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (48, 40, 32, 3), np.uint8)
    if request.param == "arrays":
        np.savez(tmp_path / "images.npz", images=pictures)
        return tmp_path / "images.npz"
    (tmp_path / "images").mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / "images" / f"{i:02d}.png")
    (tmp_path / "images" / "07.png").write_bytes(b"broken")
    return tmp_path / "images"


def test_hosts_together_prepare_the_batches_of_one(images, tmp_path):
    one = global_batches(images, tmp_path, 1, STEPS)
    # Crops of files, or the indices of images that the device holds.
    assert one["0/0"].shape == ((8, 2, 24, 24, 3) if images.is_dir() else (8,))
    assert not np.array_equal(one["0/0"], one["1/0"])
    for hosts in (2, 4):
        found = global_batches(images, tmp_path, hosts, STEPS)
        assert found.keys() == one.keys()
        for name in one:
            assert found[name].tobytes() == one[name].tobytes(), (hosts, name)


def test_a_run_that_starts_at_a_step_sees_what_an_uninterrupted_one_saw(
    images, tmp_path
):
    whole = global_batches(images, tmp_path, 1, STEPS)
    resumed = global_batches(images, tmp_path, 2, STEPS[-1:])
    for name in resumed:
        assert resumed[name].tobytes() == whole[name].tobytes()

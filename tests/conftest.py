"""Eight virtual CPU devices and strict numerics for every test."""

import atexit
import os
import shutil
import tempfile

# What is compiled once is there for all processes of these tests.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# More threads than virtual devices: a collective waits for all of them at once.
os.environ["NPROC"] = "16"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import pytest  # noqa: E402

pytest.register_assert_rewrite("helpers")

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def float64():
    """Computes in double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def mesh():
    from vicreg_jax.devices import sharding

    return sharding.data_mesh()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run on the digits."""
    from helpers.processes import DIGITS, TINY, main

    workdir = tmp_path_factory.mktemp("judge") / "run"
    done = main(DIGITS, f"--workdir={workdir}", *TINY, "--config.evaluate.draws=0")
    assert done.returncode == 0, done.stderr
    return workdir

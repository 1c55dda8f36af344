"""Eight virtual CPU devices and strict numerics for every test."""

import atexit
import os
import shutil
import tempfile
import threading

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


@pytest.fixture(scope="module")
def server():
    """A stand-in for Cloud Storage, which this process and those it starts ask."""
    from helpers.stand_in import StandIn

    from vicreg_jax.files import buckets

    server = StandIn()
    with pytest.MonkeyPatch.context() as patch:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
        patch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", url)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")  # looks for no other
        buckets._store.cache_clear()
        yield server
        buckets._store.cache_clear()
    # It goes on to the end, as a client would else ask it for a quarter of an hour.


@pytest.fixture
def bucket(server):
    server.clear()
    return server


@pytest.fixture(scope="module")
def amazon():
    """A stand-in for S3, which this process and those it starts ask."""
    from helpers.stand_in import S3

    from vicreg_jax.files import buckets

    server = S3()
    with pytest.MonkeyPatch.context() as patch:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        patch.setenv("AWS_ENDPOINT_URL", address)
        patch.setenv("AWS_ACCESS_KEY_ID", "anybody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        buckets._store.cache_clear()
        yield server
        buckets._store.cache_clear()


@pytest.fixture
def s3(amazon):
    amazon.clear()
    return amazon


@pytest.fixture
def once(monkeypatch):
    """One retry alone, as eight take a minute and a half."""
    from vicreg_jax.files import buckets

    monkeypatch.setattr(buckets, "RETRIES", dict(max_retries=1, initial_delay="0.01s"))
    buckets._store.cache_clear()
    yield
    buckets._store.cache_clear()

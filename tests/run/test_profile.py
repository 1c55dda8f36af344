"""`every.profile_step`: a profile of one step, for TensorBoard and Perfetto."""

import gzip
import json

import numpy as np
import pytest

from vicreg_jax import train


@pytest.mark.slow
def test_a_step_is_profiled(tmp_path, capfd):
    config = {
        "epochs": 1,
        "data": {"batch_size": 16, "image_size": 8, "mean": (0.5,), "std": (0.5,)},
        "model": {"encoder": "digits", "expander": (16, 16)},
        "optimizer": {"warmup_epochs": 0},
        "every": {"log_steps": 1, "profile_step": 2},
    }
    images = np.random.default_rng(0).integers(0, 256, (48, 8, 8, 1), np.uint8)
    train.run(config, tmp_path, source=images)
    folder = tmp_path / "profile"
    assert f"step 2 is profiled: {folder}" in capfd.readouterr().err
    (trace,) = folder.glob("**/perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = {event.get("name") for event in events}
    assert "train" in names  # the step's own mark
    assert list(folder.glob("**/*.xplane.pb"))  # which TensorBoard reads

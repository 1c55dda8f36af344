"""The estimate of memory: against what XLA counts, and what it refuses."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from vicreg_jax import config as configs
from vicreg_jax import train
from vicreg_jax.devices import sharding
from vicreg_jax.run import recorder, session
from vicreg_jax.train import build
from vicreg_jax.train import memory_estimate as memory


def shrunk(**data):
    data = dict(name="fake", batch_size=64, image_size=32) | data
    model = dict(encoder="resnet18", stem="cifar", expander=(512, 512))
    return configs.parse(dict(data=data, model=model, epochs=20))


def need(config, devices=1):
    method = build.method(config, None, None)
    _, tx = build.optimizer(config, 10)
    state = jax.eval_shape(build.initializer(method, tx, config))
    return memory.estimate(method, state, config, devices)


@pytest.mark.long
def test_xla_needs_more_than_the_least_and_about_the_likely():
    config = shrunk()
    method = build.method(config, None, None)
    _, tx = build.optimizer(config, 10)
    state = jax.eval_shape(build.initializer(method, tx, config))
    views = jax.ShapeDtypeStruct((64, 2, 32, 32, 3), np.float32)
    step = train.make_train_step(method, tx, mesh=sharding.data_mesh(jax.devices()[:1]))
    found = step.lower(state, views).compile().memory_analysis()
    used = found.temp_size_in_bytes + found.argument_size_in_bytes
    estimated = need(config)
    # XLA fuses and copies as it likes; a third either way.
    assert estimated.least < used < 1.35 * estimated.likely
    assert used > estimated.likely / 1.35


def test_local_views_of_the_same_size_need_what_global_ones_do():
    four, other = (
        need(shrunk(**x)) for x in (dict(views=4), dict(local_views=2, local_size=32))
    )
    assert other.least == four.least and other.likely == four.likely
    small = need(shrunk(local_views=2))  # of 14 pixels
    two = need(shrunk())
    assert two.least < small.least < (two.least + four.least) / 2


def test_what_grows_with_the_batch_is_divided_over_the_devices():
    one, two, eight = (need(shrunk(batch_size=n)) for n in (64, 128, 512))
    fixed = 2 * one.least - two.least
    assert fixed > 0 and eight.least == pytest.approx(8 * one.least - 7 * fixed)
    split = need(shrunk(batch_size=512), devices=8)
    assert split.least == pytest.approx(one.least)
    assert split.likely == pytest.approx(one.likely)


class Layers(nn.Module):
    """Ten dense layers on [n, 16], plain, scanned or rematerialized."""

    kind: str

    @nn.compact
    def __call__(self, x, *, train):
        x = x.reshape(len(x), -1)[:, :16]
        dense = {"remat": nn.remat(nn.Dense)}.get(self.kind, nn.Dense)
        if self.kind == "scan":
            layer = nn.Dense(16)
            body = nn.scan(
                lambda layer, x, _: (layer(x), None),
                variable_broadcast="params",
                split_rngs={"params": False},
                length=10,
            )
            return body(layer, x, None)[0]
        for _ in range(10):
            x = dense(16)(x)
        return x


def test_scanned_layers_count_each_time_and_rematerialized_ones_do_not():
    def activations(kind):
        config = shrunk(image_size=8)
        method = build.method(config, Layers(kind), None)
        state = jax.eval_shape(build.initializer(method, optax.identity(), config))
        found = memory.estimate(method, state, config, 1)
        gradients = sum(x.size * 4 for x in jax.tree.leaves(state.params))
        return found.likely - found.least - gradients  # the products once more

    one = 2 * 64 * 16 * 4  # both views of a layer
    assert activations("plain") == activations("scan")
    assert activations("plain") - activations("remat") == 10 * one


def test_too_little_memory_is_refused_and_what_may_suffice_is_warned_of():
    found = memory.Need(least=2e9, likely=3e9, words="batch 8 and expander (4,)")
    assert memory.check(found, None) == memory.check(found, 3e9) == ""
    warning = memory.check(found, 2.5e9)
    assert warning.startswith(
        "memory may not suffice: batch 8 and expander (4,); a dev"
    )
    with pytest.raises(ValueError, match="before it begins: batch 8 .* has 1.9 GB"):
        memory.check(found, 1.9e9)


def test_a_run_that_cannot_fit_is_refused_before_it_compiles(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "limit", lambda: 1e8)
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)
    with pytest.raises(ValueError) as error:
        train.run(shrunk(), tmp_path / "run")
    message = str(error.value)
    assert "config.data.batch_size 64 and config.model.expander (512, 512)" in message
    assert "\n" not in message and not (tmp_path / "run").exists()


def test_a_device_that_runs_out_of_memory_is_explained():
    size = need(shrunk()).words
    with pytest.raises(ValueError, match="ran out of memory with config.data.batch_s"):
        with session.out_of_memory(size):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        with session.out_of_memory(size):
            raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_the_memory_of_this_machine_is_known():
    total = memory.limit() * jax.local_device_count()
    with open("/proc/meminfo") as file:
        kilobytes = int(file.readline().split()[1])
    assert total == pytest.approx(1024 * kilobytes, rel=0.01)


def test_the_peak_of_a_device_is_recorded_where_it_is_counted(monkeypatch):
    assert recorder.peak_memory() == {}  # a CPU does not count

    class Device:
        def memory_stats(self):
            return {"peak_bytes_in_use": 2_500_000_000}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert recorder.peak_memory() == {"memory_peak_gb": 2.5}

"""Optimizers and schedules against the published code's numbers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.paths import GOLDEN
from helpers.refusals import refused

from vicreg_jax import models, optim
from vicreg_jax.refusals import Refusal
from vicreg_jax.weights import contents

LEAVES = ("conv", "dense", "bias", "bn_scale", "zero")


def steps_taken(tx, params, all_grads):
    """Returns the parameters after each step, as the jitted train step takes them."""

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state, history = tx.init(params), []
    for grads in all_grads:
        params, state = step(params, state, grads)
        history.append(jax.tree.map(np.asarray, params))
    return history


def golden_lars():
    """Returns the file, the parameters at the start and the gradients of each step."""
    file = np.load(GOLDEN / "lars.npz")
    tree = lambda prefix: {k: jnp.asarray(file[f"{prefix}/{k}"]) for k in LEAVES}  # noqa: E731
    return file, tree("init"), [tree(f"grad{t}") for t in range(len(file["lr"]))]


def test_lars_is_the_published_one(float64):
    file, params, grads = golden_lars()
    rates = jnp.asarray(file["lr"])
    tx = optim.lars(
        lambda step: rates[step],
        weight_decay=float(file["weight_decay"]),
        momentum=float(file["momentum"]),
        trust_coefficient=float(file["eta"]),
    )
    for t, after in enumerate(steps_taken(tx, params, grads)):
        for leaf in LEAVES:
            want = file[f"param{t}/{leaf}"]
            # Float64 norms summed in another order than torch's, over six steps.
            np.testing.assert_allclose(after[leaf], want, rtol=1e-10, atol=1e-10)


def test_lars_is_not_that_of_optax_once_the_rate_changes(float64):
    _, params, grads = golden_lars()
    mask = optim.matrices(params)
    for rates, same in [((0.2, 0.2, 0.2), True), ((0.2, 0.2, 0.1), False)]:
        settings = dict(weight_decay=1e-2, momentum=0.9, trust_coefficient=1e-3)
        schedule = lambda step, rates=rates: jnp.asarray(rates)[step]  # noqa: E731
        ours = optim.lars(schedule, **settings)
        theirs = optax.lars(
            schedule, **settings, weight_decay_mask=mask, trust_ratio_mask=mask
        )
        a, b = (steps_taken(tx, params, grads[:3])[-1] for tx in (ours, theirs))
        # Rounding of float64 on one side, a halved momentum on the other.
        close = [np.allclose(a[k], b[k], rtol=1e-12, atol=1e-12) for k in LEAVES]
        assert all(close) == same


def larc(rates, params, all_grads, *, weight_decay, momentum, trust_coefficient):
    """solo-learn's LARS with clip_lr and exclude_bias_n_norm, one tensor at a time."""
    history = []
    params = {k: np.asarray(p, np.float64) for k, p in params.items()}
    buffers = {k: np.zeros_like(p) for k, p in params.items()}
    for rate, grads in zip(rates, all_grads, strict=True):
        for k, p in params.items():
            d = np.asarray(grads[k], np.float64)
            p_norm, g_norm = np.linalg.norm(p.ravel()), np.linalg.norm(d.ravel())
            if p.ndim != 1 and p_norm != 0 and g_norm != 0:
                local = p_norm / (g_norm + p_norm * weight_decay + 1e-8)
                local *= trust_coefficient
                local = min(local / rate, 1) if rate > 0 else 1
                d = local * (d + weight_decay * p)
            buffers[k] = momentum * buffers[k] + d
            params[k] = p - rate * buffers[k]
        history.append(dict(params))
    return history


def test_clipped_lars_is_solo_learns_also_at_rate_zero_and_zero_norms(float64):
    rng = np.random.default_rng(0)
    shapes = dict(
        small=(4, 3, 2, 5), large=(8, 8), bias=(7,), zero=(3, 3), still=(2, 2)
    )
    params = {k: jnp.asarray(rng.standard_normal(s)) for k, s in shapes.items()}
    params["zero"] = jnp.zeros((3, 3))  # takes the raw gradient
    rates = (0.0, 0.01, 0.3, 2.0, 0.5)
    grads = []
    for _ in rates:
        grads.append(
            {k: jnp.asarray(rng.standard_normal(s)) for k, s in shapes.items()}
        )
        grads[-1]["small"] *= 1e-4  # ratio about 2: clipped
        grads[-1]["still"] *= 0  # no gradient: not even weight decay
    settings = dict(weight_decay=1e-2, momentum=0.9, trust_coefficient=0.02)
    table = jnp.asarray(rates)
    tx = optim.lars(lambda step: table[step], **settings, clip=True)
    got, want = (
        steps_taken(tx, params, grads),
        larc(rates, params, grads, **settings),
    )
    for a, b in zip(got, want, strict=True):
        for k in shapes:
            # The same float64 arithmetic, norms summed in another order.
            np.testing.assert_allclose(a[k], b[k], rtol=1e-12, atol=1e-14)
    for k in shapes:
        np.testing.assert_array_equal(got[0][k], params[k])  # rate 0, and finite
    np.testing.assert_array_equal(got[-1]["still"], params["still"])


def test_clipped_lars_takes_a_constant_rate_too(float64):
    _, params, grads = golden_lars()
    settings = dict(weight_decay=1e-2, momentum=0.9, trust_coefficient=1e-3)
    got = steps_taken(optim.lars(0.3, **settings, clip=True), params, grads)[-1]
    want = larc([0.3] * len(grads), params, grads, **settings)[-1]
    for k in LEAVES:
        # The same float64 arithmetic, norms summed in another order.
        np.testing.assert_allclose(got[k], want[k], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("clip", [False, True])
def test_lars_keeps_float32_under_strict_promotion(clip):
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    schedule = optim.warmup_cosine(
        base_lr=0.3, batch_size=256, epochs=20, steps_per_epoch=2
    )
    tx = optim.lars(schedule, weight_decay=1e-4, clip=clip)
    after = steps_taken(tx, params, [params, params])[-1]
    assert all(p.dtype == np.float32 for p in after.values())
    assert not np.array_equal(after["w"], params["w"])


@pytest.mark.parametrize("run", json.loads((GOLDEN / "schedule.json").read_text()))
def test_schedule_is_the_published_one(run):
    schedule = optim.warmup_cosine(
        base_lr=run["base_lr"],
        batch_size=run["batch_size"],
        epochs=run["epochs"],
        steps_per_epoch=run["steps_per_epoch"],
    )
    got = jax.vmap(schedule)(jnp.asarray(run["steps"], jnp.int32))
    # Rates up to 1.6 in float32, where an ulp is 1.2e-7; the cosine costs a few.
    np.testing.assert_allclose(got, run["lr"], rtol=0, atol=1e-6)


def test_schedule_takes_an_int32_step_under_jit():
    schedule = optim.warmup_cosine(
        base_lr=0.2, batch_size=512, epochs=20, steps_per_epoch=3, end_scale=0.5
    )
    rate = jax.jit(schedule)
    assert rate(jnp.int32(0)) == 0
    assert rate(jnp.int32(30)).dtype == jnp.float32
    # The peak 0.2 * 512 / 256 after ten epochs and half of it at the end; float32.
    got = [float(rate(jnp.int32(step))) for step in (15, 30, 60, 1000)]
    np.testing.assert_allclose(got, [0.2, 0.4, 0.2, 0.2], rtol=1e-6)


def test_schedule_without_warm_up_starts_at_the_peak():
    schedule = optim.warmup_cosine(
        base_lr=0.2, batch_size=256, epochs=2, steps_per_epoch=3, warmup_epochs=0
    )
    assert float(schedule(0)) == pytest.approx(0.2)


@pytest.mark.parametrize("warmup", [10, 11, -1])
def test_a_warm_up_as_long_as_the_run_is_refused(warmup):
    with pytest.raises(ValueError, match=rf"shorter than the run; got {warmup} of 10"):
        optim.warmup_cosine(
            base_lr=0.2,
            batch_size=256,
            epochs=10,
            steps_per_epoch=3,
            warmup_epochs=warmup,
        )


@pytest.mark.parametrize("start", [-0.1, 0.5])
def test_a_warm_up_that_starts_outside_the_rates_is_refused(start):
    with pytest.raises(ValueError, match=f"the peak, 0.4; warmup_start is {start}"):
        optim.warmup_cosine(
            **dict(base_lr=0.2, batch_size=512, epochs=20, steps_per_epoch=3),
            warmup_start=start,
        )


def test_adamw_decays_matrices_but_not_vectors():
    params = {"w": jnp.full((3, 2), 2.0), "b": jnp.full(2, 2.0)}
    grads = jax.tree.map(jnp.zeros_like, params)
    # optax's adamw multiplies floats by an int32 count: not under strict promotion.
    with jax.numpy_dtype_promotion("standard"):
        tx = optim.adamw(0.1, weight_decay=0.5)
        (after,) = steps_taken(tx, params, [grads])
    # Without a gradient only the decay is left: p - rate * decay * p, in float32.
    np.testing.assert_allclose(after["w"], 2.0 * (1 - 0.1 * 0.5), rtol=1e-6)
    np.testing.assert_array_equal(after["b"], 2.0)


def test_class_token_and_positions_of_a_vit_are_not_decayed():
    params = {"encoder": {"cls_token": jnp.ones((1, 1, 2)), "kernel": jnp.ones((2, 2))}}
    params["encoder"]["pos_embed"] = jnp.ones((1, 5, 2))
    want = {"cls_token": False, "kernel": True, "pos_embed": False}
    assert optim.matrices(params) == {"encoder": want}
    assert optim.matrices(jnp.ones((2, 2))) is True


RATES = {  # of a sub-module over that of what follows the blocks, with 0.5 a layer
    "vit_small_patch16": {
        **{f"blocks_{i}": 0.5 ** (12 - i) for i in range(12)},  # 9 before 10
        **dict.fromkeys(("patch_embed_proj", "cls_token", "pos_embed"), 0.5**13),
        "norm": 1,
    },
    "resnet18": {
        **{f"layer{i // 2 + 1}_{i % 2}": 0.5 ** (8 - i) for i in range(8)},
        **dict.fromkeys(("conv1", "bn1"), 0.5**9),
    },
    "convnext_tiny": {
        **{f"stages_0_blocks_{i}": 0.5 ** (18 - i) for i in range(3)},
        **{f"stages_2_blocks_{i}": 0.5 ** (12 - i) for i in range(9)},
        **dict.fromkeys(("stages_2_downsample_0", "stages_2_downsample_1"), 0.5**12),
        **{f"stages_3_blocks_{i}": 0.5 ** (3 - i) for i in range(3)},
        **dict.fromkeys(("stem_0", "stem_1"), 0.5**19),
        "head_norm": 1,
    },
}


@pytest.mark.parametrize("name", RATES)
def test_a_layer_moves_by_its_depth(name):
    module = models.create(name)
    shapes = contents.abstract(module, size=32, channels=3)["params"]
    ones = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
    params = {"encoder": ones, "expander": np.ones(2, np.float32)}
    tx = optim.layerwise(optax.sgd(1.0), "encoder", decay=0.5)
    updates, _ = tx.update(params, tx.init(params), params)
    assert (updates["expander"] == -1).all()
    assert updates["encoder"].keys() == ones.keys()
    for part, rate in RATES[name].items():
        for x in jax.tree.leaves(updates["encoder"][part]):
            np.testing.assert_array_equal(x, -rate)


@pytest.mark.parametrize(
    "params, found",
    [
        ({"encoder": {"conv0": np.ones(1), "norm": np.ones(1)}}, "conv0, norm"),
        ({"expander": {"linear0": np.ones(1)}}, "no layers"),
    ],
)
def test_a_decay_over_layers_needs_blocks(params, found):
    tx = optim.layerwise(optax.sgd(1.0), "encoder", decay=0.5)
    with refused(Refusal, f"an encoder of {found} has no blocks"):
        tx.init(params)

# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The loss in code of your own
#
# `losses.vicreg` is a pure function of embeddings: it knows no model, no optimizer and no
# data. Here it is eager, masked, on several devices, and in training loops of Flax Linen
# and Flax NNX. Seconds on any device.

# %%
# Installs vicreg_jax, for a GPU or TPU with its own jax, unless it is there already.
import glob
import shutil
import sys

tpu = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
extra = "cuda" if shutil.which("nvidia-smi") else "tpu" if tpu else "demo"
# !{sys.executable} -c "import vicreg_jax" 2> /dev/null || {sys.executable} -m pip install -q "vicreg_jax[{extra}] @ git+https://github.com/OWNER/vicreg_jax"

# %%
import jax
import jax.numpy as jnp

from vicreg_jax import losses

print(jax.device_count(), "x", jax.devices()[0].device_kind)

# %% [markdown]
# ## Three terms
# Of two views, embeddings `[n, d]` each. Independent noise of unit variance has a
# covariance term of about `2 (d - 1) / (n - 1)`, however good the network: hold yours
# against that.

# %%
za, zb = jax.random.normal(jax.random.key(0), (2, 256, 512))
terms = losses.vicreg(za, zb)
print(terms, "chance:", 2 * 511 / 255)
loss = 25 * terms.invariance + 25 * terms.variance + terms.covariance
collapsed = losses.vicreg(jnp.ones_like(za), jnp.ones_like(za))
collapsed  # only the variance objects

# %% [markdown]
# ## Rows that do not count
# `where` leaves out padding or masked tokens; time or token axes become rows.

# %%
tokens = jax.random.normal(jax.random.key(1), (2, 32, 20, 64))  # views, n, time, d
lengths = jnp.arange(32) % 20 + 1
real = (jnp.arange(20) < lengths[:, None]).reshape(-1)
masked = losses.vicreg(*tokens.reshape(2, -1, 64), where=real)
kept = losses.vicreg(*(x[real] for x in tokens.reshape(2, -1, 64)))
print(float(masked.covariance), float(kept.covariance))

# %% [markdown]
# ## Several devices
# Shard the batch, and statistics are those of the global batch. Nothing else changes.

# %%
from jax.sharding import AxisType, NamedSharding, PartitionSpec

mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
split = NamedSharding(mesh, PartitionSpec("data"))
sharded = jax.jit(losses.vicreg)(*jax.device_put((za, zb), split))
print(float(terms.covariance), float(sharded.covariance))

# %% [markdown]
# ## A loop in Flax Linen
# Any function from images to embeddings will do; in Equinox it is the same with
# `eqx.filter_value_and_grad`.

# %%
import flax.linen as nn
import optax


def objective(embed, key):
    """Returns the loss of two noisy views of points on a circle, [n, 2]."""
    angle = jax.random.uniform(key, (128, 1), maxval=6.28)
    points = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=1)
    views = points + 0.1 * jax.random.normal(key, (2, 128, 2))
    terms = losses.vicreg(embed(views[0]), embed(views[1]))
    return 25 * terms.invariance + 25 * terms.variance + terms.covariance


model = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(16)])
params = model.init(jax.random.key(0), jnp.zeros((1, 2)))
tx = optax.adam(1e-2)
opt_state = tx.init(params)


@jax.jit
def step(params, opt_state, key):
    value, grads = jax.value_and_grad(
        lambda p: objective(lambda x: model.apply(p, x), key)
    )(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value


for i in range(201):
    params, opt_state, value = step(params, opt_state, jax.random.key(i))
    if i % 50 == 0:
        print(i, float(value))

# %% [markdown]
# ## The same in Flax NNX

# %%
from flax import nnx

net = nnx.Sequential(
    nnx.Linear(2, 64, rngs=nnx.Rngs(0)),
    nnx.relu,
    nnx.Linear(64, 16, rngs=nnx.Rngs(1)),
)
optimizer = nnx.Optimizer(net, optax.adam(1e-2), wrt=nnx.Param)


@nnx.jit
def nnx_step(net, optimizer, key):
    value, grads = nnx.value_and_grad(lambda net: objective(net, key))(net)
    optimizer.update(net, grads)
    return value


for i in range(201):
    value = nnx_step(net, optimizer, jax.random.key(i))
    if i % 50 == 0:
        print(i, float(value))

# %% [markdown]
# Barlow Twins, SimCLR and others have the same form: [methods](../docs/methods.md). A whole
# run with your own encoder: `train.run(..., encoder=)`; the step alone:
# `train.make_train_step`.

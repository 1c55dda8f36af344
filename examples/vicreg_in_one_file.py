"""VICReg in one file: data, augmentation, networks, loss, steps and evaluation.

    python examples/vicreg_in_one_file.py

It needs jax, flax, optax and scikit-learn, not the package beside it, learns from
1,437 images of handwritten digits without their labels, and says how well one labelled
image in ten tells all others. The package does the same, step by step equal (a test
compares them), and what a long run on many devices needs besides.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

EPOCHS, WARMUP, BATCH, RATE, DECAY = 90, 9, 128, 1e-2, 1e-4


# The loss: three terms over embeddings of two views of the same images, [n, d] each.


def vicreg(a, b):
    invariance = jnp.mean((a - b) ** 2)
    variance = sum(jnp.mean(nn.relu(1 - deviation(x))) / 2 for x in (a, b))
    return 25 * invariance + 25 * variance + sum(covariance(x) for x in (a, b))


def deviation(x):
    """Returns the standard deviation of each dimension; 1e-4 keeps it smooth."""
    return jnp.sqrt(jnp.var(x, axis=0, ddof=1) + 1e-4)


def covariance(x):
    """Returns the squares of the covariances of different dimensions, over d."""
    n, d = x.shape
    x = x - x.mean(axis=0)
    c = jnp.matmul(x.T, x, precision="highest") / (n - 1)
    return (jnp.sum(c**2) - jnp.sum(jnp.diag(c) ** 2)) / d


# The networks: what an encoder learns is used afterwards; the expander is for the loss.


class Encoder(nn.Module):
    """Maps images [n, 8, 8, 1] to representations [n, 64]."""

    @nn.compact
    def __call__(self, x, train):
        for i, width in enumerate((32, 32, 32, 64, 64), 1):
            x = nn.Conv(width, (3, 3), use_bias=False, name=f"conv{i}")(x)
            norm = nn.BatchNorm(not train, momentum=0.9, name=f"bn{i}")
            x = nn.relu(norm(x))
            if i == 3:
                x = nn.avg_pool(x, (2, 2), (2, 2))
        return x.mean(axis=(1, 2))


class Expander(nn.Module):
    """Maps representations to embeddings [n, 128]."""

    @nn.compact
    def __call__(self, x, train):
        for i in range(2):
            x = nn.Dense(128, name=f"linear{i}")(x)
            norm = nn.BatchNorm(not train, momentum=0.9, name=f"bn{i}")
            x = nn.relu(norm(x))
        return nn.Dense(128, use_bias=False, name="linear2")(x)


class Network(nn.Module):
    def setup(self):
        self.encoder, self.expander = Encoder(), Expander()

    def __call__(self, x, train):
        return self.expander(self.encoder(x, train), train)

    def represent(self, x):
        return self.encoder(x, False)


# The views: a part of the image, turned and slanted, brighter or darker.


def view(key, images):
    """Returns a random view of each image [n, 8, 8, 1] in [0, 1]."""
    keys = jax.random.split(key, 8)

    def between(i, low, high):
        return jax.random.uniform(keys[i], (len(images), 1, 1), minval=low, maxval=high)

    area, ratio = between(0, 0.5, 1.0), jnp.exp(between(1, *np.log([0.5, 2.0])))
    height, width = (
        8 * jnp.minimum(jnp.sqrt(x), 1) for x in (area / ratio, area * ratio)
    )
    angle, slant = between(2, -np.pi / 12, np.pi / 12), between(3, -0.4, 0.4)
    grid = (jnp.arange(8) + 0.5) / 8 - 0.5
    y = grid[None, :, None] * height
    x = grid[None, None, :] * width + slant * y
    top, left = (8 - height) * between(4, 0.0, 1.0), (8 - width) * between(5, 0.0, 1.0)
    rows = top + height / 2 + jnp.sin(angle) * x + jnp.cos(angle) * y - 0.5
    columns = left + width / 2 + jnp.cos(angle) * x - jnp.sin(angle) * y - 0.5

    def sample(image, *where):
        return jax.scipy.ndimage.map_coordinates(image, where, order=1)

    seen = jnp.clip(jax.vmap(sample)(images[..., 0], rows, columns), 0, 1)
    seen = jnp.clip(seen * between(6, 0.5, 1.5), 0, 1)
    mean, factor = seen.mean(axis=(1, 2), keepdims=True), between(7, 0.5, 1.5)
    return jnp.clip(mean + factor * (seen - mean), 0, 1)[..., None]


# The steps.


def optimizer(steps):
    """Returns AdamW whose rate rises, then falls as a cosine; vectors do not decay."""
    warmup = steps * WARMUP // EPOCHS
    rate = optax.warmup_cosine_decay_schedule(0.0, RATE, warmup, steps, 1e-3 * RATE)
    matrices = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)  # noqa: E731
    return optax.adamw(rate, weight_decay=DECAY, mask=matrices)


def step(network, tx, variables, opt_state, views):
    """Returns variables, optimizer state and loss after a step on two views."""

    def loss(params):
        stats, embeddings = variables["batch_stats"], []
        for x in views:
            given = {"params": params, "batch_stats": stats}
            z, changed = network.apply(given, x, True, mutable=["batch_stats"])
            stats = changed["batch_stats"]
            embeddings.append(z)
        return vicreg(*embeddings), stats

    params = variables["params"]
    (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    return {"params": params, "batch_stats": stats}, opt_state, value


def main(epochs=EPOCHS):
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[360:], order[:360]
    network, per_epoch = Network(), len(train) // BATCH
    tx = optimizer(epochs * per_epoch)
    variables = network.init(jax.random.key(0), images[:2], False)
    opt_state = tx.init(variables["params"])

    @jax.jit
    def next_step(variables, opt_state, batch, key):
        views = [view(k, batch) for k in jax.random.split(key)]
        return step(network, tx, variables, opt_state, views)

    for epoch in range(epochs):
        shuffled = np.random.default_rng(1 + epoch).permutation(train)
        for i in range(per_epoch):
            key = jax.random.fold_in(jax.random.key(1), epoch * per_epoch + i)
            batch = images[shuffled[i * BATCH : (i + 1) * BATCH]]
            variables, opt_state, loss = next_step(variables, opt_state, batch, key)
        if epoch % 10 == 9 or epoch == epochs - 1:
            print(f"epoch {epoch + 1}: loss {loss:.2f}")

    def nearest(seen):
        known = train[: len(train) // 10]
        found = KNeighborsClassifier(1).fit(seen[known], digits.target[known])
        return 100 * found.score(seen[test], digits.target[test])

    seen = network.apply(variables, images, method="represent")
    pixels = images.reshape(len(images), -1)
    print(f"1-NN, {len(train) // 10} labels: {nearest(np.asarray(seen)):.1f} %")
    print(f"of raw pixels: {nearest(pixels):.1f} %")


if __name__ == "__main__":
    main()

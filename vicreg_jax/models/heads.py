"""What sits on top of an encoder: the expander, and both as one module."""

import itertools
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vicreg_jax.models.norm import BatchNorm
from vicreg_jax.refusals import Refusal

__all__ = ["Expander", "JointEmbedding", "linear"]


def linear(features, inputs, *, use_bias=True, dtype, name):
    """Returns a dense layer initialized as in PyTorch: uniform in +-1/sqrt(inputs)."""
    bound = inputs**-0.5

    def bias(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(
        features,
        use_bias=use_bias,
        kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
        bias_init=bias,
        dtype=dtype,
        name=name,
    )


class Expander(nn.Module):
    """Maps representations [n, f] to embeddings [n, widths[-1]], or [n, v, f] of views.

    Linear, BatchNorm, ReLU for each hidden layer; the last layer is linear, in the
    authors' code without bias. Source: arXiv:2105.04906, sec. 4.2.

    A predictor is one, too: from embeddings to embeddings, with bias.
    """

    widths: Sequence[int] = (8192, 8192, 8192)
    bias: bool = False  # of the last layer
    hidden_norm: bool = True  # BatchNorm in the hidden layers
    norm: Literal["none", "batch", "l2"] = "none"  # of what comes out
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, y: jax.Array, *, train: bool) -> jax.Array:
        if not self.widths:
            raise ValueError("the expander needs one width or more; got none")
        y = y.astype(self.dtype)
        for i, width in enumerate(self.widths[:-1]):
            y = linear(width, y.shape[-1], dtype=self.dtype, name=f"linear{i}")(y)
            if self.hidden_norm:
                y = BatchNorm(name=f"bn{i}")(y, train=train, views=y.ndim == 3)
            y = nn.relu(y)
        last, width = f"linear{len(self.widths) - 1}", self.widths[-1]
        final = linear(
            width, y.shape[-1], use_bias=self.bias, dtype=self.dtype, name=last
        )
        z = final(y)
        if self.norm == "batch":
            z = BatchNorm(name=f"bn{len(self.widths) - 1}")(
                z, train=train, views=z.ndim == 3
            )
        if self.norm == "l2":
            squares = jnp.sum(z.astype(jnp.float32) ** 2, axis=-1, keepdims=True)
            z = z * jax.lax.rsqrt(jnp.maximum(squares, 1e-12)).astype(z.dtype)
        return z


class JointEmbedding(nn.Module):
    """An encoder and its expander: images [n, h, w, c] -> ([n, f], [n, d]).

    With a predictor, what it makes of the embedding is a third: [n, d].

    The representation is what is used afterwards, the embedding what the loss sees.
    Views [n, v, h, w, c] become ([n, v, f], [n, v, d]), in one pass where the encoder
    says that it `takes_views`, else in one pass for each view, in order.

    A pair of global and local views of other h and w, [n, v, h, w, c] each, become
    ([n, v, f], [n, v, d]) of all of them, the local ones last; the encoder is called
    once for each of the two.

    With a `second` branch the views take turns: the first, third, ... go through the
    parts here, the others through that. Representations are then those of the first
    branch alone, [n, (v + 1) // 2, f], as those of the second may be of another width.
    With `frozen_norm` the encoder is in inference mode in training, too: BatchNorm
    takes its running statistics, which stay, and there is no dropout. It learns all the
    same.
    With `microbatches` m the encoder sees in training the rows 0, m, 2m, ..., then 1,
    m + 1, ..., and so on, each part with its own BatchNorm statistics. Of a part
    nothing is kept but its representations: the backward pass computes the rest again.
    What follows sees all rows at once, so the loss and its gradient are of the whole.
    """

    encoder: nn.Module
    expander: nn.Module
    predictor: nn.Module | None = None
    second: nn.Module | None = None  # another JointEmbedding
    frozen_norm: bool = False
    microbatches: int = 1

    def __call__(self, images: jax.Array | tuple[jax.Array, jax.Array], *, train: bool):
        if isinstance(images, tuple) and self.second is not None:
            raise Refusal(
                "local views go with one branch; set config.data.local_views to 0, or"
                " leave config.model.second_encoder empty"
            )
        if self.second is None or images.ndim < 5:
            return self._outputs(images, train)
        representation, *own = self._outputs(images[:, ::2], train)
        _, *others = self.second(images[:, 1::2], train=train)
        widths = own[0].shape[-1], others[0].shape[-1]
        if widths[0] != widths[1]:
            raise Refusal(
                f"the branches embed in {widths[0]} and {widths[1]} dimensions; end"
                " model.expander and model.second_expander in one width"
            )
        return representation, *map(_in_turn, own, others)

    def _outputs(self, images, train):
        representation = self.encode(images, train=train)
        embedding = self.expander(representation, train=train)
        if self.predictor is None:
            return representation, embedding
        return representation, embedding, self.predictor(embedding, train=train)

    def encode(
        self, images: jax.Array | tuple[jax.Array, jax.Array], *, train: bool
    ) -> jax.Array:
        """Returns the representations of the first branch: [n, f], or [n, v, f]."""
        if isinstance(images, tuple):
            seen = [self.encode(x, train=train) for x in images]
            return jnp.concatenate(seen, axis=1)
        train = train and not self.frozen_norm
        parts = self.microbatches if train else 1
        if parts == 1:
            return _encoded(self.encoder, images, train)
        encode_next = nn.scan(
            nn.remat(_encode_next, static_argnums=(3,), prevent_cse=False),
            variable_broadcast="params",
            variable_carry="batch_stats",
            variable_axes={"intermediates": 0},
            split_rngs={"params": False, "dropout": True},
            in_axes=(1, nn.broadcast),
            out_axes=1,
        )
        # Rows that lie together are of one device: it has some of each part.
        rows = images.reshape(len(images) // parts, parts, *images.shape[1:])
        _, seen = encode_next(self.encoder, (), rows, train)
        return seen.reshape(len(images), *seen.shape[2:])


def _encode_next(encoder, carry, images, train):
    return carry, _encoded(encoder, images, train)


def _encoded(encoder, images, train):
    """Returns representations [n, f], or [n, v, f] of views."""
    if images.ndim == 5 and not getattr(encoder, "takes_views", False):
        seen = [encoder(view, train=train) for view in jnp.unstack(images, axis=1)]
        return jnp.stack(seen, axis=1)
    return encoder(images, train=train)


def _in_turn(a, b):
    """Returns views [n, v, d], one of a, one of b, and so on."""
    pairs = itertools.zip_longest(*(jnp.unstack(x, axis=1) for x in (a, b)))
    views = [x for pair in pairs for x in pair if x is not None]
    return jnp.stack(views, axis=1)

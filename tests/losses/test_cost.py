"""What the losses cost: products and their precision, collectives, operations."""

import math
import re

import jax
import jax.numpy as jnp
import pytest
from helpers.losses import AUTO, EXPLICIT, embeddings, make_mesh, per_device, published
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vicreg_jax import losses


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for leaf in jax.tree.leaves(equation.params, is_leaf=inner):
            if inner(leaf):
                yield from equations(getattr(leaf, "jaxpr", leaf))


def inner(leaf):
    return hasattr(leaf, "jaxpr") or hasattr(leaf, "eqns")


@pytest.mark.parametrize("n, d", [(16, 256), (256, 16)])
def test_two_products_a_view_in_full_precision_and_nothing_larger_than_the_batch(n, d):
    views = embeddings(n, d)
    alone = jax.make_jaxpr(published)(*views)
    shared = per_device(published, make_mesh(), "data", check_vma=True)
    for jaxpr in (alone.jaxpr, jax.make_jaxpr(shared)(*views).jaxpr):
        found = list(equations(jaxpr))
        products = [e for e in found if e.primitive.name == "dot_general"]
        assert len(products) == 4
        for product in products:
            assert product.params["precision"] == 2 * (jax.lax.Precision.HIGHEST,)
        # max(n, d)^2 would be larger: the n x n or d x d matrix that is not needed.
        sizes = [math.prod(v.aval.shape) for e in found for v in e.outvars]
        assert max(sizes) == n * d


def test_products_of_the_loss_without_gradient_have_full_precision():
    for shape in ((16, 24), (24, 16)):
        found = equations(jax.make_jaxpr(losses.vicreg)(*embeddings(*shape)).jaxpr)
        products = [e for e in found if e.primitive.name == "dot_general"]
        assert len(products) == 2
        for product in products:
            assert product.params["precision"] == 2 * (jax.lax.Precision.HIGHEST,)


def collectives(program):
    """Returns the kinds of collectives, each with the sizes of its results."""
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-[a-z]+"
    found = {}
    for line in program.as_text().splitlines():
        if match := re.search(rf" = (.+?) ({kinds})(-start)?\(", line):
            shapes = re.findall(r"\w\[([\d,]*)\]", match[1])
            sizes = [math.prod(map(int, filter(None, s.split(",")))) for s in shapes]
            found.setdefault(match[2], []).extend(sizes)
    return found


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
def test_on_a_mesh_the_batch_is_gathered_once_a_view_and_never_in_the_backward(kind):
    n, d = 512, 2048
    split = NamedSharding(make_mesh(kind=kind), P("data"))
    view = jax.ShapeDtypeStruct((n, d), jnp.float32, sharding=split)
    forward = jax.jit(losses.vicreg).lower(view, view).compile()
    both = jax.jit(published).lower(view, view).compile()
    # The forward needs one gather a view, so the backward has none of these two. All
    # else are sums of a few vectors of d, far below a batch or a d x d matrix.
    for program in (forward, both):
        found = collectives(program)
        assert found.pop("all-gather") == [n * d] * 2
        assert set(found) == {"all-reduce"}
        assert max(found["all-reduce"]) == d
        assert sum(found["all-reduce"]) < 12 * d
    # Two products a view, each of an eighth of the rows: 2 * 2 * 2 n n d / 8 = 0.54e9.
    assert both.cost_analysis()["flops"] < 0.65e9


def test_work_on_a_batch_that_every_device_holds_is_divided_too():
    whole = NamedSharding(make_mesh(), P())
    view = jax.ShapeDtypeStruct((512, 2048), jnp.float32, sharding=whole)
    program = jax.jit(published).lower(view, view).compile()
    assert program.cost_analysis()["flops"] < 0.65e9  # as above


def direct_forward(z):
    n, d = z.shape
    z = z - jnp.mean(z, axis=0, keepdims=True)
    c = jnp.where(jnp.eye(d, dtype=bool), 0, z.T @ z / (n - 1))
    return jnp.sum(c**2) / d, (z, c)


def direct_backward(residuals, slope):
    z, c = residuals
    n, d = z.shape
    return (4 / (n - 1) / d * slope * (z @ c),)


def gram_forward(z):
    n, d = z.shape
    z = z - jnp.mean(z, axis=0, keepdims=True)
    g = z @ z.T / (n - 1)
    v = jnp.sum(z**2, axis=0, keepdims=True) / (n - 1)
    return (jnp.sum(g**2) - jnp.sum(v**2)) / d, (z, g, v)


def gram_backward(residuals, slope):
    z, g, v = residuals
    n, d = z.shape
    return (4 / (n - 1) / d * slope * (g @ z - z * v),)


def loss_with(forward, backward):
    covariance = jax.custom_vjp(lambda z: forward(z)[0])
    covariance.defvjp(forward, backward)

    def loss(a, b):
        std = [jnp.sqrt(jnp.var(z, axis=0, ddof=1) + 1e-4) for z in (a, b)]
        hinge = sum(jnp.mean(jax.nn.relu(1 - s)) for s in std) / 2
        overlap = covariance(a) + covariance(b)
        return 25 * jnp.mean((a - b) ** 2) + 25 * hinge + overlap

    return loss


def flops(function, n, d):
    view = jax.ShapeDtypeStruct((n, d), jnp.float32)
    return jax.jit(function).lower(view, view).compile().cost_analysis()["flops"]


@pytest.mark.parametrize(
    "n, d",
    [(64, 512), (64, 8192), (256, 2048), (1024, 1024)]
    + [(1024, 512), (4096, 512), (4096, 8192)],
)
def test_the_loss_takes_the_operations_of_the_cheaper_form(n, d):
    forms = [(direct_forward, direct_backward), (gram_forward, gram_backward)]
    rivals = [jax.value_and_grad(loss_with(*form), (0, 1)) for form in forms]
    cheaper = min(flops(rival, n, d) for rival in rivals)
    assert flops(published, n, d) <= 1.02 * cheaper

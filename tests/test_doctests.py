"""The examples in docstrings are true, and what users call has one."""

import doctest
import importlib

import pytest
from helpers.paths import ROOT

from vicreg_jax import config, losses, methods, models, optim, weights
from vicreg_jax.data import plan
from vicreg_jax.weights import torch_names

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "vicreg_jax").rglob("*.py")
    if ">>>" in path.read_text()
)
PUBLIC = [
    *(losses.vicreg, losses.invariance, losses.variance, losses.covariance),
    *(losses.agreement, losses.simclr, losses.sigreg, losses.visreg),
    *(optim.sgd, optim.rising),
    *(losses.barlow_twins, models.create, models.spec, methods.named),
    *(optim.lars, optim.adamw, optim.warmup_cosine, config.Config.parse),
    *(plan.permutation, plan.uniforms, weights.Encoder, weights.load),
    *(torch_names.from_torch, torch_names.to_torch),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed


@pytest.mark.parametrize("public", PUBLIC, ids=lambda x: x.__qualname__)
def test_what_users_call_has_an_example(public):
    assert ">>>" in public.__doc__

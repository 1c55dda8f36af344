"""The step in PyTorch that ours is timed against is the same step."""

import jax
import numpy as np
import pytest
from helpers.torch_files import NO_TORCH

from vicreg_jax import losses, models

torch = pytest.importorskip("torch", reason=NO_TORCH)

from benchmarks import torch_step  # noqa: E402


def test_its_loss_is_the_published_one():
    a, b = np.random.default_rng(0).normal(size=(2, 12, 7)).astype(np.float32) * 0.3
    terms = losses.vicreg(a, b)
    want = 25 * terms.invariance + 25 * terms.variance + terms.covariance
    found = torch_step.vicreg(torch.tensor(a), torch.tensor(b))
    assert float(found) == pytest.approx(float(want), rel=1e-5)


def test_its_network_has_our_parameters():
    module = models.JointEmbedding(
        models.create("resnet18", stem="cifar"), models.Expander((64, 32))
    )
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
    init = jax.eval_shape(
        lambda x: module.init(jax.random.key(0), x, train=False), images
    )
    ours = sorted(int(np.prod(x.shape)) for x in jax.tree.leaves(init["params"]))
    network = torch.nn.Sequential(torch_step.resnet18(), torch_step.expander((64, 32)))
    assert sorted(x.numel() for x in network.parameters()) == ours


def test_it_learns():
    views = np.random.default_rng(0).normal(size=(4, 2, 8, 8, 3)).astype(np.float32)
    step = torch_step.step_of(views, (8, 8), bfloat16=False, device="cpu")
    first, *_, last = (step() for _ in range(5))
    assert np.isfinite(last) and last < first

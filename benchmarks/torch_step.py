"""The same step in PyTorch, for `benchmarks.step`: a ResNet-18, the published loss."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride > 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet18(channels: int = 3) -> nn.Module:
    """Returns a ResNet-18 with the stem for CIFAR: images to [n, 512]."""
    layers = [nn.Conv2d(channels, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)]
    layers.append(nn.ReLU())
    inputs = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def expander(widths: Sequence[int]) -> nn.Module:
    """Returns linear layers from 512, BatchNorm and ReLU between them."""
    layers, inputs = [], 512
    for width in widths[:-1]:
        layers += [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, widths[-1], bias=False))


def vicreg(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Returns the loss as published, with its d x d covariances.

    Source: arXiv:2105.04906, eq. 1 to 6, with the means over two branches of its
    authors' implementation.
    """
    n, d = a.shape
    loss = 25 * F.mse_loss(a, b)
    for z in (a, b):
        z = z - z.mean(dim=0)
        std = torch.sqrt(z.var(dim=0) + 1e-4)
        loss = loss + 25 * F.relu(1 - std).mean() / 2
        covariance = z.T @ z / (n - 1)
        off_diagonal = covariance - torch.diag(torch.diagonal(covariance))
        loss = loss + off_diagonal.pow(2).sum() / d
    return loss


def step_of(
    views: np.ndarray, widths: Sequence[int], *, bfloat16: bool, device: str
) -> Callable[[], float]:
    """Returns a function that takes a step of SGD on views [n, 2, h, w, c].

    Convolutions are channels_last; bfloat16 is autocast, with a float32 loss.
    """
    network = nn.Sequential(resnet18(views.shape[-1]), expander(widths)).to(device)
    network = network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    images = torch.tensor(views, device=device).permute(1, 0, 4, 2, 3)
    first, second = (
        x.contiguous(memory_format=torch.channels_last) for x in images.unbind()
    )

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bfloat16):
            a, b = network(first), network(second)
        loss = vicreg(a.float(), b.float())
        loss.backward()
        optimizer.step()
        return loss.item()

    return step

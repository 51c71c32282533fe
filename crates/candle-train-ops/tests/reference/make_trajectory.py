"""Trains ResNet-18 for 20 steps in PyTorch with f64 and writes what
tests/trajectory.rs must meet with f32: the loss of every step, the norm of every
parameter's gradient, and its inner product with fixed numbers. The rate is small:
at a larger one training is chaotic, and PyTorch's own f32 leaves its f64 for good after
a few steps.

usage: make_trajectory.py > trajectory.json      (PyTorch 2.15)
"""

import json

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

STEPS, BATCH, SIZE = 20, 8, 64


def numbers(shape, seed):
    """Hashed integers as numbers in [-1, 1), the same in the Rust test."""
    x = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(seed) * np.uint64(7_919_777)
    x &= np.uint64(0xFFFFFFFF)
    for _ in range(2):
        x = ((x >> np.uint64(16)) ^ x) * np.uint64(0x45D9F3B) & np.uint64(0xFFFFFFFF)
    x = (x >> np.uint64(16)) ^ x
    # f32 holds 24 bits exactly.
    return torch.from_numpy((x >> np.uint64(8)).astype(np.float64) / 2**23 - 1).reshape(shape)


def conv_norm(i, o, kernel, stride):
    return nn.Sequential(nn.Conv2d(i, o, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(o))


class Block(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.first = conv_norm(i, o, 3, stride)
        self.second = conv_norm(o, o, 3, 1)
        self.shortcut = conv_norm(i, o, 1, stride) if stride != 1 else nn.Identity()

    def forward(self, x):
        y = F.relu(self.first(x))
        return F.relu(self.second(y) + self.shortcut(x))


class ResNet18(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv_norm(1, 64, 7, 2)
        blocks, i = [], 64
        for o, stride in [(64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)]:
            blocks.append(Block(i, o, stride))
            i = o
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(512, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1)
        return self.head(self.blocks(x).mean((2, 3)))


def train(dtype, first_seed):
    """Loss and gradients of every step."""
    net = ResNet18().train().to(dtype)
    parameters = list(net.parameters())
    with torch.no_grad():
        for index, parameter in enumerate(parameters):
            if parameter.dim() > 1:
                # Rounded to f32, where the Rust side starts.
                bound = np.float32((6 / parameter[0].numel()) ** 0.5)
                values = numbers(parameter.shape, index).float() * torch.tensor(bound)
                parameter.copy_(values)
            elif index == len(parameters) - 1:
                parameter.zero_()
    optimiser = torch.optim.SGD(parameters, lr=1e-5, momentum=0.9)
    label = torch.arange(BATCH) % 3
    steps = []
    for step in range(STEPS):
        x = numbers((BATCH, 1, SIZE, SIZE), first_seed + step).to(dtype)
        loss = F.cross_entropy(net(x), label)
        optimiser.zero_grad()
        loss.backward()
        steps.append((loss.item(), [p.grad.double().clone() for p in parameters]))
        optimiser.step()
    return steps


def errors(steps, want):
    """Of every gradient, by its norm, sorted."""
    pairs = [(a, b) for step, other in zip(steps, want) for a, b in zip(step[1], other[1])]
    return sorted(((a - b).norm() / b.norm()).item() for a, b in pairs)


def main():
    steps = train(torch.float64, 1000)
    # Where a number lies on the edge of a ReLU or a maximum, rounding decides which way
    # the gradient goes, in PyTorch as here. Its own f32 says how often that happens.
    own = errors(train(torch.float32, 1000), steps)
    tenths = [own[(len(own) - 1) * tenth // 10] for tenth in range(11)]
    digits = lambda values: [float(f"{value:.7g}") for value in values]
    rows = []
    for loss, gradients in steps:
        norms = [gradient.norm().item() for gradient in gradients]
        products = [(g * numbers(g.shape, 500 + i)).sum().item() for i, g in enumerate(gradients)]
        rows.append({"loss": loss, "norms": digits(norms), "products": digits(products)})
    head = {"batch": BATCH, "size": SIZE, "first_seed": 1000, "pytorch_f32_error_tenths": tenths}
    print(json.dumps({**head, "steps": rows}))


main()

"""Writes reference.json: what PyTorch computes for the cases of tests/reference.rs.

Inputs are a formula both sides know, `numbers`; only results are stored.
usage: python make_reference.py   (needs torch; the CPU build is enough)
"""

import json
import pathlib

import torch
import torch.nn.functional as F


def numbers(shape, seed, dtype=torch.float64):
    count = int(torch.Size(shape).numel())
    values = [((i * 7919 + seed * 104729) % 2003) / 1001.5 - 1.0 for i in range(count)]
    return torch.tensor(values, dtype=dtype).reshape(shape)


def listed(tensor, digits=12):
    return [float(f"{v:.{digits}g}") for v in tensor.detach().flatten().tolist()]


def case(op, shapes, settings, run):
    tensors = [numbers(shape, seed).requires_grad_() for seed, shape in enumerate(shapes)]
    y = run(*tensors)
    (y * numbers(y.shape, 99)).sum().backward()
    results = [listed(y, 9)] + [listed(t.grad, 9) for t in tensors]
    return {"op": op, "shapes": shapes, "settings": settings, "results": results}


def conv(image, weight, stride, padding, groups):
    return case(
        "conv2d",
        [image, weight],
        [stride, padding, groups],
        lambda x, w: F.conv2d(x, w, None, stride, padding, 1, groups),
    )


def pool(op, image, kernel, stride, padding):
    run = F.max_pool2d if op == "max_pool2d" else F.avg_pool2d
    return case(op, [image], [kernel, stride, padding], lambda x: run(x, kernel, stride, padding))


def norm(channels, train):
    image = [3, channels, 4, 3]
    mean = numbers([channels], 5)
    var = numbers([channels], 6) + 1.5

    def run(x, gamma, beta, residual):
        y = F.batch_norm(x, mean, var, gamma, beta, train, 0.1, 1e-5)
        return F.relu(y + residual)

    result = case("batch_norm", [image, [channels], [channels], image], [int(train)], run)
    result["running"] = [listed(mean, 9), listed(var, 9)]
    return result


def trajectory(name, make, settings):
    """Weights after each of six steps; the second variable never decays."""
    variables = [numbers(shape, seed, torch.float32).requires_grad_() for seed, shape in enumerate([[5, 3], [4]])]
    groups = [{"params": [variables[0]]}, {"params": [variables[1]], "weight_decay": 0.0}]
    optimiser = make(groups)
    steps = []
    for step in range(6):
        for group in optimiser.param_groups:
            group["lr"] = 0.02 / (step + 1)
        for seed, variable in enumerate(variables):
            variable.grad = numbers(variable.shape, 10 + 2 * step + seed, torch.float32)
        optimiser.step()
        steps.append([listed(variable) for variable in variables])
    return {"optimiser": name, "settings": settings, "steps": steps}


def clipped(max_norm):
    variables = [torch.zeros(shape) for shape in ([5, 3], [4])]
    for seed, variable in enumerate(variables):
        variable.grad = numbers(variable.shape, 10 + seed, torch.float32)
    norm = torch.nn.utils.clip_grad_norm_(variables, max_norm)
    return {"max_norm": max_norm, "norm": float(norm), "grads": [listed(v.grad) for v in variables]}


def main():
    adamw = dict(betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    reference = {
        "torch": torch.__version__,
        "operations": [
            conv([2, 3, 7, 6], [4, 3, 3, 3], 2, 1, 1),
            conv([1, 16, 5, 6], [16, 16, 3, 3], 1, 1, 1),
            conv([1, 16, 7, 5], [16, 16, 3, 3], 2, 1, 1),
            conv([1, 1, 13, 11], [16, 1, 7, 7], 2, 3, 1),
            conv([1, 6, 7, 7], [6, 1, 3, 3], 3, 1, 6),
            pool("max_pool2d", [1, 16, 7, 6], 3, 2, 1),
            pool("max_pool2d", [1, 3, 6, 6], 2, 2, 0),
            pool("avg_pool2d", [1, 3, 7, 6], 3, 2, 1),
            norm(16, True),
            norm(5, True),
            norm(16, False),
        ],
        "optimisers": [
            trajectory("adamw", lambda g: torch.optim.AdamW(g, **adamw), [0.8, 0.95, 1e-6, 0.1]),
            trajectory("sgd", lambda g: torch.optim.SGD(g, lr=1.0, weight_decay=0.1), [0.0, 0, 0.1]),
            trajectory(
                "sgd",
                lambda g: torch.optim.SGD(g, lr=1.0, momentum=0.9, weight_decay=0.1),
                [0.9, 0, 0.1],
            ),
            trajectory(
                "sgd",
                lambda g: torch.optim.SGD(g, lr=1.0, momentum=0.9, nesterov=True, weight_decay=0.1),
                [0.9, 1, 0.1],
            ),
        ],
        "clips": [clipped(0.5), clipped(100.0)],
    }
    path = pathlib.Path(__file__).with_name("reference.json")
    path.write_text(json.dumps(reference, indent=None, separators=(",", ":")) + "\n")


main()

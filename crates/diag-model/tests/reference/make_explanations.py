"""Grad-CAM, Grad-CAM++ and occlusion of the tiny network, by PyTorch's autograd in float64.

Written apart from the Rust code: the architecture is rebuilt here, weights and image come
from a formula that both sides compute.

Run: python make_explanations.py > explanations.json   (needs torch; 2.15.0 made the file beside this script)
"""
import json
import math
import torch
from torch.nn import functional as F

torch.set_default_dtype(torch.float64)
SIDE, CLASSES, CHANNELS = 64, 3, [16, 32, 64, 96]


def formula(name, shape, scale, offset=0.0):
    start = sum(name.encode())
    n = math.prod(shape)
    values = [offset + scale * math.sin(0.37 * i * (1 + i % 3) + start) for i in range(n)]
    return torch.tensor(values).reshape(shape)


def conv(name, inputs, outputs, kernel):
    return formula(name + ".weight", (outputs, inputs, kernel, kernel), math.sqrt(2 / (inputs * kernel * kernel)))


def norm(name, x):
    c = x.shape[1]
    # Running statistics are single precision in the network.
    mean = formula(name + ".running_mean", (c,), 0.1).float().double()
    var = formula(name + ".running_var", (c,), 0.3, 1.0).float().double()
    weight, bias = formula(name + ".weight", (c,), 0.3, 1.0), formula(name + ".bias", (c,), 0.2)
    return F.batch_norm(x, mean, var, weight, bias, training=False, eps=1e-5)


def block(x, name, outputs, stride):
    inputs = x.shape[1]
    y = F.conv2d(x, conv(name + ".conv1", inputs, outputs, 3), stride=stride, padding=1)
    y = F.relu(norm(name + ".bn1", y))
    y = norm(name + ".bn2", F.conv2d(y, conv(name + ".conv2", outputs, outputs, 3), padding=1))
    if stride > 1 or inputs != outputs:
        x = norm(name + ".downsample.1", F.conv2d(x, conv(name + ".downsample.0", inputs, outputs, 1), stride=stride))
    return F.relu(x + y)


def linear(name, x):
    weight = formula(name + ".weight", (CLASSES, x.shape[1]), 1 / math.sqrt(x.shape[1]))
    return F.linear(x, weight, formula(name + ".bias", (CLASSES,), 0.1))


def backbone(image):
    x = F.conv2d(image, conv("conv1", 1, CHANNELS[0], 7), stride=4, padding=3)
    x = F.relu(norm("bn1", x))
    stages = []
    for s, outputs in enumerate(CHANNELS):
        x = block(x, f"layer{s + 1}.0", outputs, 2 if s else 1)
        stages.append(x)
    return stages


def heads(stages):
    logits = {}
    for s, x in enumerate(stages):
        name = f"heads.stage{s + 1}"
        y = F.relu(norm(name + ".bn", F.conv2d(x, conv(name + ".conv", x.shape[1], x.shape[1], 1))))
        logits[f"stage{s + 1}"] = linear(name + ".fc", y.mean((2, 3)))
    final = linear("fc", stages[-1].mean((2, 3)))
    fusion = formula("fusion.weight", (4,), 0.2, 0.25)
    for s in range(4):
        final = final + fusion[s] * logits[f"stage{s + 1}"]
    return {**logits, "final": final}


def maps(activations, gradients):
    """Both maps of one image: sums over the stages that have a gradient."""
    size = max((a.shape[-2:] for a in activations), key=lambda s: s[0])
    plain, plus = torch.zeros(size), torch.zeros(size)
    for a, g in zip(activations, gradients):
        to_size = lambda m: F.interpolate(m[None, None], size=tuple(size), mode="bilinear", align_corners=False)[0, 0]
        n_cells = a.shape[-1] * a.shape[-2]
        plain = plain + to_size((g.mean((1, 2))[:, None, None] * a).sum(0) * n_cells)
        bottom = 2 * g**2 + g**3 * a.sum((1, 2), keepdim=True)
        alpha = torch.where(bottom != 0, g**2 / torch.where(bottom != 0, bottom, 1.0), 0.0)
        plus = plus + to_size(((alpha * g.relu()).sum((1, 2))[:, None, None] * a).sum(0))
    return plain.relu(), plus.relu()


image = formula("image", (2, 1, SIDE, SIDE), 1.0)
classes = [2, 0]
stages = [stage.detach().requires_grad_() for stage in backbone(image)]
logits = heads(stages)
rounded = lambda tensor: [float(f"{v:.12g}") for v in tensor.flatten().tolist()]
cams = []
for head, of_head in logits.items():
    target = sum(of_head[n, c] for n, c in enumerate(classes))
    gradients = torch.autograd.grad(target, stages, retain_graph=True, allow_unused=True)
    read = [(a, g) for a, g in zip(stages, gradients) if g is not None]
    for n, c in enumerate(classes):
        plain, plus = maps([a[n].detach() for a, _ in read], [g[n] for _, g in read])
        cams.append({
            "head": head, "image": n, "side": plain.shape[0],
            "probability": torch.softmax(of_head[n], 0)[c].item(),
            "grad_cam": rounded(plain), "grad_cam_plus_plus": rounded(plus),
        })

window, stride, fill = 24, 16, -0.25
first, c = image[:1], classes[0]
answer = lambda x: torch.softmax(heads(backbone(x))["final"], 1)[:, c]
drops = []
with torch.no_grad():
    whole = answer(first)
    for row in range(8, SIDE, stride):
        for col in range(8, SIDE, stride):
            hidden = first.clone()
            hidden[:, :, max(row - 12, 0):row + 12, max(col - 12, 0):col + 12] = fill
            drops.append((whole - answer(hidden)).item())
print(json.dumps({"cams": cams, "occlusion": {"window": window, "stride": stride, "fill": fill, "drops": drops}}))

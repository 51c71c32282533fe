"""Population statistics of the tiny network's normalisations, by PyTorch in float64.

Written apart from the Rust code, after Wu and Johnson 2021, "Rethinking Batch in BatchNorm",
section 3 (PreciseBN): one pass in training mode over several mini-batches with fixed weights;
per channel the mean is E[x] and the variance E[x^2] - E[x]^2 over all values of all batches.

`frozen` are the statistics where the stem and stage 1 do not learn: these normalise with
their running statistics, and only the layers behind them are recomputed.

Run: python make_batch_statistics.py > batch_statistics.json   (needs torch; 2.15.0 made the file beside this script)
"""
import json
import math
import torch
from torch import nn

torch.set_default_dtype(torch.float64)
SIDE, CLASSES, CHANNELS, BATCH, BATCHES = 64, 3, [16, 32, 64, 96], 4, 3


def formula(name, shape, scale, offset=0.0):
    start = sum(name.encode())
    n = math.prod(shape)
    values = [offset + scale * math.sin(0.37 * i * (1 + i % 3) + start) for i in range(n)]
    return torch.tensor(values).reshape(shape)


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class SideHead(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, CHANNELS[0], 7, 4, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(CHANNELS[0])
        for s, outputs in enumerate(CHANNELS):
            inputs = CHANNELS[max(s - 1, 0)]
            setattr(self, f"layer{s + 1}", nn.Sequential(Block(inputs, outputs, 2 if s else 1)))
        self.heads = nn.ModuleDict({f"stage{s + 1}": SideHead(c) for s, c in enumerate(CHANNELS)})

    def forward(self, image):
        x = torch.relu(self.bn1(self.conv1(image)))
        for s in range(4):
            x = getattr(self, f"layer{s + 1}")(x)
            head = self.heads[f"stage{s + 1}"]
            head.bn(head.conv(x))


def filled():
    net = Tiny()
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            if tensor.dim() == 4:
                scale, offset = math.sqrt(2 / (tensor.shape[1] * tensor.shape[2] ** 2)), 0.0
            else:
                ending = name.rsplit(".", 1)[1]
                scale, offset = {"running_mean": (0.1, 0.0), "running_var": (0.3, 1.0), "bias": (0.2, 0.0),
                                 "weight": (0.3, 1.0)}[ending]
            values = formula(name, tensor.shape, scale, offset)
            # Running statistics are single precision in the network.
            tensor.copy_(values.float().double() if "running" in name else values)
    return net


def statistics(frozen):
    net = filled().train()
    seen = {}

    def keep(name):
        def hook(module, inputs):
            seen.setdefault(name, []).append(inputs[0].detach())
        return hook

    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            if name.startswith(frozen):
                module.eval()
            else:
                module.register_forward_pre_hook(keep(name))
    with torch.no_grad():
        for b in range(BATCHES):
            net(formula(f"image{b}", (BATCH, 1, SIDE, SIDE), 1.0, 0.1 * b))
    result = {}
    for name, inputs in seen.items():
        x = torch.cat(inputs).transpose(0, 1).flatten(1)
        mean, square = x.mean(1), (x**2).mean(1)
        result[name] = {"mean": mean.tolist(), "var": (square - mean**2).tolist()}
    return result


rounded = lambda found: {name: {key: [float(f"{v:.10g}") for v in values] for key, values in of_layer.items()}
                         for name, of_layer in found.items()}
print(json.dumps({"all": rounded(statistics(("never",))), "frozen": rounded(statistics(("bn1", "layer1")))}))

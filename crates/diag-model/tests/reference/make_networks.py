"""Reference values of the networks, by torchvision's and timm's own classes.

Weights come from a formula of their names, so that none has to be stored; the Rust
test has the same formula. The last entry uses published ImageNet weights, given as
the first argument (names in the style of EfficientNet-PyTorch).

Run: python make_networks.py efficientnet_lite0_imagenet.safetensors > networks.json
(needs torch, torchvision, timm, safetensors; 2.15.0, 0.29.2, 1.0.31 made the file beside this script)
"""
import json
import sys
import numpy as np
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch.nn import functional as F

K = 7


def weyl(name, count):
    """Numbers in [-0.5, 0.5) that follow from a name (FNV-1a, then a Weyl sequence)."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) % 2**64
    with np.errstate(over="ignore"):
        x = np.uint64(h) + np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (x >> np.uint64(40)).astype(np.float64) / 2**24 - 0.5


def tensor(name, shape):
    u = weyl(name, int(np.prod(shape)))
    if len(shape) > 1:
        fan_in = int(np.prod(shape[1:]))
        v = u * np.sqrt(12.0) * np.sqrt(2.0 / fan_in)
    elif name.endswith("running_var"):
        v = 1.0 + u
    elif name.endswith(".weight"):
        v = 1.0 + 0.4 * u
    else:
        v = 0.2 * u
    return torch.tensor(v.reshape(shape), dtype=torch.float32)


def images(n, side):
    u = weyl("image", n * side * side).reshape(n, 1, side, side)
    row, col = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    wave = np.sin(row / 7.0) * np.cos(col / 5.0)
    return torch.tensor(0.5 * wave + u, dtype=torch.float32)


def answers(model, image, grads):
    """Logits in evaluation, then in training, and gradients of a mean cross entropy."""
    model.eval()
    with torch.no_grad():
        evaluated = model(image.repeat(1, 3, 1, 1))
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    logits = model(image.repeat(1, 3, 1, 1))
    labels = torch.arange(len(image)) % K
    F.cross_entropy(logits, labels).backward()
    named = dict(model.named_parameters())
    gradients = {}
    for ours, theirs in grads.items():
        gradient = named[theirs].grad
        gradients[ours] = [gradient.double().norm().item(), gradient.double().sum().item(),
                           gradient.flatten()[0].item()]
    return {"evaluated": evaluated.tolist(), "trained": logits.detach().tolist(), "gradients": gradients}


def by_formula(backbone, model, grads, rename=lambda name: name):
    state = {name: (value if name.endswith("num_batches_tracked") else tensor(rename(name), value.shape))
             for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    # Double precision: with so few numbers a channel, batch statistics magnify rounding.
    return {"backbone": backbone, **answers(model.double(), images(4, 64).double(), grads)}


def lite0_name(timm_name):
    """EfficientNet-PyTorch's name of a tensor of timm's tf_efficientnet_lite0."""
    repeats = [1, 2, 2, 3, 3, 4, 1]
    parts = timm_name.split(".")
    top = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "fc"}
    if parts[0] != "blocks":
        return ".".join([top[parts[0]]] + parts[1:])
    stage, block, layer = int(parts[1]), int(parts[2]), parts[3]
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    other = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1",
             "conv_pwl": "_project_conv", "bn3": "_bn2"}
    index = sum(repeats[:stage]) + block
    return ".".join([f"_blocks.{index}", (first if stage == 0 else other)[layer]] + parts[4:])


same = lambda *names: {name: name for name in names}
models = torchvision.models
cases = []
for name, make in [("resnet18", models.resnet18), ("resnet34", models.resnet34), ("resnet50", models.resnet50)]:
    cases.append(by_formula(name, make(num_classes=K), same(
        "bn1.weight", "layer1.0.conv1.weight", "layer3.0.downsample.0.weight", "layer4.1.bn2.bias", "fc.bias")))
cases.append(by_formula("densenet121", models.densenet121(num_classes=K), {
    **same("features.norm0.weight", "features.denseblock1.denselayer1.conv2.weight",
           "features.transition2.conv.weight", "features.norm5.bias"), "fc.bias": "classifier.bias"},
    rename=lambda name: name.replace("classifier.", "fc.")))
lite = timm.create_model("tf_efficientnet_lite0", num_classes=K)
cases.append(by_formula("efficientnet-lite0", lite, {
    "_bn0.weight": "bn1.weight", "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
    "_blocks.1._depthwise_conv.weight": "blocks.1.0.conv_dw.weight",
    "_blocks.5._project_conv.weight": "blocks.3.0.conv_pwl.weight", "_bn1.bias": "bn2.bias",
    "fc.bias": "classifier.bias"}, rename=lite0_name))

published = {name.replace("_fc.", "fc."): value for name, value in load_file(sys.argv[1]).items()}
lite = timm.create_model("tf_efficientnet_lite0", num_classes=1000)
lite.load_state_dict({name: published.get(lite0_name(name), value) for name, value in lite.state_dict().items()})
lite.eval()
with torch.no_grad():
    logits = lite(images(1, 224).repeat(1, 3, 1, 1))
timm_names = [name for name in lite.state_dict() if not name.endswith("num_batches_tracked")]
print(json.dumps({"cases": cases, "imagenet_logits": logits[0, ::50].tolist(),
                  "timm_lite0": {name: list(lite.state_dict()[name].shape) for name in timm_names}}))

"""Reference values of the losses that learn nothing, by PyTorch in float64, apart from the Rust code.

Each function is written from its paper with PyTorch's own building blocks.
Run: python make_fixed_losses.py > fixed_losses.json   (needs torch; 2.15.0 made the file beside this script)
"""
import json
import torch
from torch.nn import functional as F

torch.set_default_dtype(torch.float64)


def plain(x, y, n, share_done, s):
    return F.cross_entropy(x, y)


def smoothing(x, y, n, share_done, s):
    return F.cross_entropy(x, y, label_smoothing=s["smoothing"])


def scaled(w, n):
    """Weights of the classes that have slices sum to their number."""
    w = torch.where(n > 0, w, torch.zeros(()))
    return w * (n > 0).sum() / w.sum()


def inverse(x, y, n, share_done, s):
    w = scaled(1 / n.clamp(min=1), n)
    return (w[y] * F.cross_entropy(x, y, reduction="none")).mean()


def effective(n, alpha):
    return scaled((1 - alpha) / (1 - alpha ** n.clamp(min=1)), n)


def class_balanced(x, y, n, share_done, s):
    return (effective(n, s["alpha"])[y] * F.cross_entropy(x, y, reduction="none")).mean()


def focal_rows(x, y, gamma):
    p = torch.softmax(x, 1).gather(1, y[:, None]).squeeze(1)
    return (1 - p) ** gamma * -torch.log(p)


def focal(x, y, n, share_done, s):
    return focal_rows(x, y, s["gamma"]).mean()


def class_balanced_focal(x, y, n, share_done, s):
    return (effective(n, s["alpha"])[y] * focal_rows(x, y, s["gamma"])).mean()


def ldam(x, y, n, share_done, s):
    m = 1 / n.clamp(min=1) ** 0.25
    m = m * s["largest_margin"] / m.max()
    shifted = x.clone()
    rows = torch.arange(len(y))
    shifted[rows, y] = x[rows, y] - m[y]
    rows = F.cross_entropy(s["scale"] * shifted, y, reduction="none")
    return ((effective(n, s["alpha"])[y] if share_done >= s["reweight_from"] else 1) * rows).mean()


def ghm(x, y, n, share_done, s):
    with torch.no_grad():
        g = 1 - torch.softmax(x, 1).gather(1, y[:, None]).squeeze(1)
        edges = torch.linspace(0, 1, s["bins"] + 1)
        edges[-1] += 1e-6
        w, used = torch.zeros_like(g), 0
        for lo, hi in zip(edges[:-1], edges[1:]):
            inside = (g >= lo) & (g < hi)
            if inside.any():
                used += 1
                w[inside] = len(g) / inside.sum()
        w = w / used
    return (w * F.cross_entropy(x, y, reduction="none")).sum() / len(g)


def balanced_softmax(x, y, n, share_done, s):
    weighted = n.clamp(min=1) * torch.exp(x)
    return -torch.log(weighted.gather(1, y[:, None]).squeeze(1) / weighted.sum(1)).mean()


def logit_adjustment(x, y, n, share_done, s):
    prior = n.clamp(min=1) / n.clamp(min=1).sum()
    return F.nll_loss(F.log_softmax(x + s["strength"] * torch.log(prior), 1), y)


def symmetric(x, y, n, share_done, s):
    q = F.one_hot(y, x.shape[1]).double()
    log_q = torch.where(q > 0, torch.zeros(()), torch.full((), s["log_zero"]))
    reverse = -(torch.softmax(x, 1) * log_q).sum(1).mean()
    return s["cross_entropy"] * F.cross_entropy(x, y) + s["reverse"] * reverse


def generalised(x, y, n, share_done, s):
    p = torch.softmax(x, 1).gather(1, y[:, None]).squeeze(1)
    return ((1 - p ** s["q"]) / s["q"]).mean()


LOSSES = {
    "cross-entropy": (plain, {}),
    "label-smoothing": (smoothing, {"smoothing": 0.1}),
    "inverse-frequency": (inverse, {}),
    "class-balanced": (class_balanced, {"alpha": 0.999}),
    "focal": (focal, {"gamma": 2.0}),
    "class-balanced-focal": (class_balanced_focal, {"alpha": 0.99, "gamma": 0.5}),
    "ldam": (ldam, {"largest_margin": 0.5, "scale": 3.0, "reweight_from": 0.8, "alpha": 0.9999}),
    "ghm": (ghm, {"bins": 4}),
    "balanced-softmax": (balanced_softmax, {}),
    "logit-adjustment": (logit_adjustment, {"strength": 1.5}),
    "symmetric-cross-entropy": (symmetric, {"cross_entropy": 0.3, "reverse": 0.8, "log_zero": -4.0}),
    "generalised-cross-entropy": (generalised, {"q": 0.7}),
}
# name, counts, batch, spread of the logits, share of the run that is done
SETTINGS = [
    ("the paper's counts", [1256, 2674, 980], 6, 1.0, 0.0),
    ("late in the run", [1256, 2674, 980], 6, 1.0, 0.9),
    ("a class with one slice", [300, 50, 1], 4, 3.0, 0.9),
    ("an absent class", [50, 200, 0], 4, 1.0, 0.9),
    ("a batch of one", [1256, 2674, 980], 1, 1.0, 0.9),
]

cases = []
for loss, (function, settings) in LOSSES.items():
    for i, (name, counts, batch, spread, share_done) in enumerate(SETTINGS):
        torch.manual_seed(i)
        heads = [(torch.randn(batch, 3) * spread).requires_grad_() for _ in range(2)]
        labels = torch.randint(0, 2 if counts[-1] == 0 else 3, (batch,))
        n = torch.tensor(counts).double()
        total = sum(function(x, labels, n, share_done, settings) for x in heads)
        total.backward()
        cases.append({
            "name": name,
            "spec": {"name": loss, **settings},
            "counts": counts,
            "share_done": share_done,
            "logits": [x.tolist() for x in heads],
            "labels": labels.tolist(),
            "total": total.item(),
            "logit_gradients": [x.grad.tolist() for x in heads],
        })
print(json.dumps(cases))

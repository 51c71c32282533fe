"""Rules fitted by an independent script: numpy and scipy, no code of this project.

    python make_decision.py > decision.json

Written against numpy 2.4 and scipy 1.17. Slices are rounded before anything is computed, so
that the file holds what was computed from.
"""

import json
import math

import numpy as np
from scipy import optimize, stats
from scipy.special import log_softmax, softmax

FLOOR = 1e-7
N_FOLDS = 5
CASES_PER_CLASS = 10
LOG_SD = 0.2


def cohort(seed, n_k, signal, shown, scale, n_slices):
    """Cases in a shuffled order; names are numbers, so that sorting by name restores it."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(n_k)), n_k))
    cases = []
    for label in labels:
        of_case = rng.normal(size=len(n_k))
        slices = []
        for _ in range(rng.integers(n_slices[0], n_slices[1] + 1)):
            logits = of_case + rng.normal(size=len(n_k))
            logits[label if rng.random() < shown else len(n_k) - 1] += signal
            slices.append([round(float(p), 6) for p in softmax(scale * logits)])
        cases.append({"label": int(label), "slices": slices})
    return cases


def join(slices, k):
    """Mean over all slices (k = 0), or over the k highest of each class; scaled to sum 1."""
    values = -np.sort(-np.asarray(slices), axis=0)
    joined = values[: k or len(values)].mean(axis=0)
    return joined / joined.sum()


def losses(log_p, labels, temperature):
    return -log_softmax(log_p / temperature, axis=1)[np.arange(len(labels)), labels]


def map_temperature(log_p, labels):
    def cost(log_t):
        return losses(log_p, labels, math.exp(log_t)).sum() - stats.norm.logpdf(log_t, scale=LOG_SD)

    starts = [optimize.minimize_scalar(cost, bounds=b, method="bounded", options={"xatol": 1e-12})
              for b in ((-3, -1), (-1, 0.1), (-0.1, 1), (1, 3))]
    return math.exp(min(starts, key=lambda found: found.fun).x)


def cross_fit(log_p, labels):
    seen, folds = {}, []
    for label in labels:
        folds.append(seen.get(label, 0) % N_FOLDS)
        seen[label] = seen.get(label, 0) + 1
    folds = np.asarray(folds)
    out = np.zeros(len(labels))
    for fold in range(N_FOLDS):
        temperature = map_temperature(log_p[folds != fold], labels[folds != fold])
        out[folds == fold] = losses(log_p[folds == fold], labels[folds == fold], temperature)
    return out


def quantile_cut(prob, event, level):
    """Split-conformal: the (n + 1)(1 - level)-th lowest event, if there is one."""
    events = np.sort(prob[event])
    rank = math.floor((len(events) + 1) * (1 - level) + 1e-9)
    if rank == 0:
        return None
    passing = events[rank - 1]
    lower = prob[prob < passing]
    return float((passing + (lower.max() if len(lower) else 0.0)) / 2)


def fit(cases, n_classes, positive, sensitivity, coverage):
    labels = np.array([case["label"] for case in cases])
    most = max(len(case["slices"]) for case in cases)
    log_p = {k: np.log(np.maximum([join(c["slices"], k) for c in cases], FLOOR))
             for k in [0] + [k for k in (10, 5, 3, 1) if k < most]}
    choice, temperature, candidates = 0, 1.0, []
    if np.bincount(labels, minlength=n_classes).min() >= CASES_PER_CLASS:
        tried = [(0, 1.0, losses(log_p[0], labels, 1.0))]
        tried += [(k, map_temperature(log_p[k], labels), cross_fit(log_p[k], labels)) for k in log_p]
        best = min(tried, key=lambda entry: entry[2].mean())[2]
        for k, t, loss in tried:
            error = np.std(loss - best, ddof=1) / math.sqrt(len(labels))
            candidates.append({"k": k, "temperature": t, "log_loss": loss.mean(),
                               "difference": (loss - best).mean(), "standard_error": error})
        near = next(c for c in candidates if c["difference"] <= c["standard_error"])
        choice, temperature = near["k"], near["temperature"]
    joined = np.array([join(case["slices"], choice) for case in cases])
    prob = joined if temperature == 1.0 else softmax(np.log(np.maximum(joined, FLOOR)) / temperature, axis=1)
    lowest = [quantile_cut(prob[:, k], labels == k, coverage) for k in range(n_classes)]
    return {"k": choice, "temperature": temperature, "candidates": candidates,
            "threshold": quantile_cut(prob[:, positive], labels == positive, sensitivity),
            "lowest": None if None in lowest else lowest}


def apply(rule, slices, positive):
    joined = join(slices, rule["k"])
    t = rule["temperature"]
    prob = joined if t == 1.0 else softmax(np.log(np.maximum(joined, FLOOR)) / t)
    best = int(prob.argmax())
    return {
        "class": best,
        "probability": prob.tolist(),
        "mean": join(slices, 0).tolist(),
        "set": None if rule["lowest"] is None else [bool(p >= low or k == best)
                                                     for k, (p, low) in enumerate(zip(prob, rule["lowest"]))],
        "call": None if rule["threshold"] is None else bool(prob[positive] >= rule["threshold"]),
    }


SCENARIOS = [
    dict(name="overconfident", seed=1, n_k=[30, 40, 30], signal=1.5, shown=1.0, scale=4.0, n_slices=(2, 8)),
    dict(name="timid, two classes", seed=2, n_k=[25, 40], signal=2.0, shown=1.0, scale=0.5, n_slices=(1, 6)),
    dict(name="focal", seed=3, n_k=[20, 20, 20], signal=3.0, shown=0.3, scale=1.0, n_slices=(6, 12)),
    dict(name="separable and few", seed=4, n_k=[3, 3, 3], signal=9.0, shown=1.0, scale=1.0, n_slices=(3, 5)),
    dict(name="just enough for a threshold", seed=5, n_k=[9, 5, 9], signal=2.0, shown=1.0, scale=1.0, n_slices=(3, 5)),
    dict(name="one picture a case", seed=6, n_k=[15, 15, 60], signal=1.5, shown=1.0, scale=1.0, n_slices=(1, 1)),
]

out = []
for scenario in SCENARIOS:
    world = {key: scenario[key] for key in ("signal", "shown", "scale", "n_slices")}
    n_k, positive = scenario["n_k"], scenario["seed"] % len(scenario["n_k"])
    cases = cohort(scenario["seed"], n_k, **world)
    rule = fit(cases, len(n_k), positive, 0.9, 0.9)
    further = cohort(100 + scenario["seed"], [4] * len(n_k), **world)
    applied = [apply(rule, case["slices"], positive) for case in further]
    out.append({"name": scenario["name"], "n_classes": len(n_k), "positive": positive, "cases": cases,
                "rule": rule, "further": [{**case, "applied": a} for case, a in zip(further, applied)]})
print(json.dumps(out))

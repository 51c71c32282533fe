"""Reference values of the intervals by unit: numpy's jackknife, Wilson's formula, scipy's t.

Run: python make_intervals.py > intervals.json   (needs numpy, scipy and scikit-learn)
"""
import json

import numpy as np
from scipy import stats
from sklearn import metrics


def measures(labels, probs):
    called = probs.argmax(1)
    classes = range(probs.shape[1])
    one_hot = np.eye(probs.shape[1])[labels]
    matrix = metrics.confusion_matrix(labels, called, labels=classes)
    sensitivity = matrix.diagonal() / matrix.sum(1)
    return {
        "accuracy": (labels == called).mean(),
        "balanced_accuracy": sensitivity.mean(),
        "macro_f1": metrics.f1_score(labels, called, average="macro", labels=classes),
        "mcc": metrics.matthews_corrcoef(labels, called),
        "macro_auroc": np.mean([metrics.roc_auc_score(labels == k, probs[:, k]) for k in classes]),
        "brier": ((probs - one_hot) ** 2).sum(1).mean(),
        "log_loss": metrics.log_loss(labels, probs, labels=classes),
    }


def wilson(share, n):
    z = stats.norm.ppf(0.975)
    centre, scale = share + z * z / (2 * n), 1 + z * z / n
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return [(centre - half) / scale, (centre + half) / scale]


def intervals(labels, probs, units):
    values = measures(labels, probs)
    strata = {}
    for unit in range(units.max() + 1):
        strata.setdefault(tuple(sorted(set(labels[units == unit].tolist()))), []).append(unit)
    left_out = {u: measures(labels[units != u], probs[units != u]) for u in range(units.max() + 1)}
    freedom = sum(len(s) - 1 for s in strata.values())
    found = {}
    for name, value in values.items():
        variance = 0.0
        for stratum in strata.values():
            v = np.array([left_out[u][name] for u in stratum])
            variance += (len(v) - 1) / len(v) * ((v - v.mean()) ** 2).sum()
        if name in ("brier", "log_loss"):
            half = stats.t.ppf(0.975, freedom) * np.sqrt(variance) / value
            low, high = value * np.exp(-half), value * np.exp(half)
        elif name == "accuracy" and len(left_out) == len(labels):
            low, high = wilson(value, len(labels))
        else:
            share, v = ((value + 1) / 2, variance / 4) if name == "mcc" else (value, variance)
            low, high = wilson(share, share * (1 - share) / v)
            if name == "mcc":
                low, high = 2 * low - 1, 2 * high - 1
        found[name] = [float(value), float(low), float(high)]
    return found


cases = []
for seed, counts, n_patients in [(1, (9, 7, 8), None), (2, (20, 15, 25), 31)]:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), counts)
    logits = rng.normal(size=(len(labels), 3))
    logits[np.arange(len(labels)), labels] += 1.2
    probs = np.exp(logits)
    probs /= probs.sum(1, keepdims=True)
    units = np.arange(len(labels))
    if n_patients:
        # Patients of one class or of two; each has a case at least.
        units = np.concatenate([np.arange(n_patients), rng.integers(0, n_patients, len(labels) - n_patients)])
        units = units[rng.permutation(len(labels))]
        # A stratum of one patient has no spread: give its classes to a second one.
        while True:
            kinds = {}
            for unit in range(n_patients):
                kinds.setdefault(tuple(sorted(set(labels[units == unit].tolist()))), []).append(unit)
            lonely = [k for k, v in kinds.items() if len(v) == 1]
            if not lonely:
                break
            units = np.unique(rng.integers(0, n_patients, len(labels)), return_inverse=True)[1]
            n_patients = units.max() + 1
    cases.append({"labels": labels.tolist(), "probs": probs.ravel().tolist(), "units": units.tolist(),
                  "want": intervals(labels, probs, units)})
print(json.dumps(cases))

"""Reference values for diag-metrics, from scikit-learn, statsmodels and scipy.

Run: pip install scikit-learn statsmodels scipy numpy
     python make_reference.py > reference.json

DeLong's variance is written here from its definition (the plain double sum over
pairs), not from the midrank form that the crate uses.
"""

import json
import sys

import numpy as np
import scipy
import scipy.stats as st
import sklearn
import sklearn.metrics as sk
import statsmodels
import statsmodels.api as sm
from sklearn.calibration import calibration_curve
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint


def dataset(seed, counts, sharpness, decimals):
    """Probabilities of a middling classifier; rounding makes ties."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    logits = rng.normal(size=(len(labels), len(counts)))
    logits[np.arange(len(labels)), labels] += sharpness
    probs = np.exp(logits)
    probs /= probs.sum(1, keepdims=True)
    probs = np.round(probs, decimals)
    probs[:, -1] = 1 - probs[:, :-1].sum(1)
    return np.clip(probs, 0, 1), labels


def delong_components(scores, positive):
    pos, neg = scores[positive], scores[~positive]
    psi = (pos[:, None] > neg[None, :]) + 0.5 * (pos[:, None] == neg[None, :])
    return psi.mean(), psi.mean(1), psi.mean(0)


def delong(scores, positive):
    auc, v10, v01 = delong_components(scores, positive)
    return auc, np.var(v10, ddof=1) / len(v10) + np.var(v01, ddof=1) / len(v01)


def delong_paired(a, b, positive):
    auc_a, a10, a01 = delong_components(a, positive)
    auc_b, b10, b01 = delong_components(b, positive)
    variance = (
        np.var(a10 - b10, ddof=1) / len(a10) + np.var(a01 - b01, ddof=1) / len(a01)
    )
    z = (auc_a - auc_b) / np.sqrt(variance)
    return {
        "difference": auc_a - auc_b,
        "standard_error": np.sqrt(variance),
        "p_value": 2 * st.norm.sf(abs(z)),
    }


def ece_top_label(probs, labels, n_bins):
    top = probs.max(1)
    right = probs.argmax(1) == labels
    index = np.minimum((top * n_bins).astype(int), n_bins - 1)
    return sum(
        abs(top[index == b].mean() - right[index == b].mean()) * (index == b).mean()
        for b in np.unique(index)
    )


def recalibration(p, y):
    logit = np.log(p / (1 - p))
    both = sm.GLM(y, sm.add_constant(logit), family=sm.families.Binomial()).fit(tol=1e-14)
    large = sm.GLM(y, np.ones(len(y)), family=sm.families.Binomial(), offset=logit).fit(tol=1e-14)
    return {
        "intercept": both.params[0],
        "slope": both.params[1],
        "intercept_standard_error": both.bse[0],
        "slope_standard_error": both.bse[1],
        "in_the_large": large.params[0],
    }


def case(name, seed, counts, sharpness, decimals):
    probs, labels = dataset(seed, counts, sharpness, decimals)
    predicted = probs.argmax(1)
    k = len(counts)
    classes = []
    for c in range(k):
        y = labels == c
        tn, fp, fn, tp = sk.confusion_matrix(y, predicted == c).ravel()
        fpr, tpr, thresholds = sk.roc_curve(y, probs[:, c], drop_intermediate=False)
        precision, recall, pr_thresholds = sk.precision_recall_curve(y, probs[:, c])
        auc, variance = delong(probs[:, c], y)
        assert abs(auc - sk.roc_auc_score(y, probs[:, c])) < 1e-12
        inside = np.clip(probs[:, c], 0.002, 0.998)
        observed, mean_probability = calibration_curve(y, probs[:, c], n_bins=10)
        classes.append(
            {
                "support": int(y.sum()),
                "sensitivity": sk.recall_score(y, predicted == c),
                "specificity": tn / (tn + fp),
                "precision": sk.precision_score(y, predicted == c),
                "npv": tn / (tn + fn),
                "f1": sk.f1_score(y, predicted == c),
                "auroc": sk.roc_auc_score(y, probs[:, c]),
                "auprc": sk.average_precision_score(y, probs[:, c]),
                "delong_variance": variance,
                "roc": {"fpr": fpr, "tpr": tpr, "thresholds": thresholds[1:]},
                "pr": {
                    "precision": precision[:-1][::-1],
                    "recall": recall[:-1][::-1],
                    "thresholds": pr_thresholds[::-1],
                },
                "recalibration_input": inside,
                "recalibration": recalibration(inside, y.astype(float)),
                "reliability": {"observed": observed, "mean_probability": mean_probability},
            }
        )
    return {
        "name": name,
        "n_classes": k,
        "probs": probs.ravel(),
        "labels": labels,
        "confusion": sk.confusion_matrix(labels, predicted, labels=range(k)),
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "macro_precision": sk.precision_score(labels, predicted, average="macro"),
        "macro_f1": sk.f1_score(labels, predicted, average="macro"),
        "mcc": sk.matthews_corrcoef(labels, predicted),
        "kappa": sk.cohen_kappa_score(labels, predicted),
        "macro_auroc": np.mean([c["auroc"] for c in classes]),
        "macro_auprc": np.mean([c["auprc"] for c in classes]),
        "brier": np.mean(np.sum((probs - np.eye(k)[labels]) ** 2, 1)),
        "log_loss": -np.mean(np.log(np.maximum(probs[np.arange(len(labels)), labels], 1e-7))),
        "ece": ece_top_label(probs, labels, 10),
        "classes": classes,
    }


def bca():
    """Efron's interval from given resamples, as scipy forms it."""
    rng = np.random.default_rng(5)
    data = rng.exponential(size=30)
    resampled = np.array([rng.choice(data, 30).mean() for _ in range(999)])
    estimate = data.mean()
    left_out = np.array([np.delete(data, i).mean() for i in range(30)])
    influence = (30 - 1) * (left_out.mean() - left_out)
    acceleration = np.sum(influence**3) / 6 / np.sum(influence**2) ** 1.5
    share = (np.sum(resampled < estimate) + np.sum(resampled <= estimate)) / (2 * 999)
    bias = st.norm.ppf(share)
    z = st.norm.ppf([0.025, 0.975])
    ends = st.norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))
    # The formula above is held against scipy's own bootstrap of the same data.
    theirs = st.bootstrap(
        (data,), np.mean, n_resamples=20000, method="BCa", random_state=np.random.default_rng(1)
    ).confidence_interval
    low, high = np.quantile(resampled, ends)
    assert abs(low - theirs.low) < 0.05 and abs(high - theirs.high) < 0.05
    return {
        "estimate": estimate,
        "resampled": resampled,
        "acceleration": acceleration,
        "low": low,
        "high": high,
        "percentile_low": np.quantile(resampled, 0.025),
        "percentile_high": np.quantile(resampled, 0.975),
    }


def net_benefit(probs, labels, c):
    y = labels == c
    thresholds = np.array([0.0, 0.05, 0.2, 0.5, 0.9])
    called = probs[:, c][None, :] >= thresholds[:, None]
    odds = thresholds / (1 - thresholds)
    return {
        "thresholds": thresholds,
        "model": (called & y).mean(1) - (called & ~y).mean(1) * odds,
        "everybody": y.mean() - (1 - y.mean()) * odds,
    }


def main():
    cases = [
        case("middling", 1, (30, 50, 20), 1.0, 4),
        case("many ties", 2, (12, 25, 9), 0.7, 1),
        case("two classes", 3, (15, 40), 0.6, 3),
        case("long", 4, (90, 150, 60), 1.2, 3),
    ]
    probs_a, labels = dataset(11, (20, 40, 15), 1.0, 3)
    probs_b, _ = dataset(12, (20, 40, 15), 0.4, 3)
    tables = [[0, 0], [1, 8], [5, 5], [0, 6], [10, 14], [10, 15], [40, 22]]
    p_values = [0.01, 0.04, 0.03, 0.005, 0.2, 0.03]
    document = {
        "versions": {
            "scikit-learn": sklearn.__version__,
            "statsmodels": statsmodels.__version__,
            "scipy": scipy.__version__,
            "numpy": np.__version__,
        },
        "cases": cases,
        "bca": bca(),
        "net_benefit": net_benefit(probs_a, labels, 0),
        "pair": {
            "n_classes": 3,
            "labels": labels,
            "first": probs_a.ravel(),
            "second": probs_b.ravel(),
            "delong": [
                delong_paired(probs_a[:, c], probs_b[:, c], labels == c) for c in range(3)
            ],
        },
        "mcnemar": [
            {
                "only_first": b,
                "only_second": c,
                "p_value": mcnemar([[50, b], [c, 30]], exact=b + c < 25, correction=True).pvalue,
            }
            for b, c in tables
        ],
        "holm": {
            "p_values": p_values,
            "adjusted": multipletests(p_values, method="holm")[1],
        },
        "wilson": [
            {
                "successes": s,
                "trials": n,
                "bounds": proportion_confint(s, n, 0.05, method="wilson"),
            }
            for s, n in [(0, 5), (5, 5), (3, 7), (80, 100)]
        ],
        "normal": {
            "z": [-8.0, -3.0, -1.96, -0.5, 0.0, 0.3, 1.5, 2.0, 2.9, 4.0, 6.0],
            "cdf": st.norm.cdf([-8.0, -3.0, -1.96, -0.5, 0.0, 0.3, 1.5, 2.0, 2.9, 4.0, 6.0]),
            "p": [1e-10, 0.001, 0.025, 0.3, 0.5, 0.9, 0.975, 0.9999],
            "quantile": st.norm.ppf([1e-10, 0.001, 0.025, 0.3, 0.5, 0.9, 0.975, 0.9999]),
        },
    }
    json.dump(document, sys.stdout, default=lambda x: x.tolist(), indent=None)
    print()


main()

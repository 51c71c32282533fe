"""Measures of a run's test part by scikit-learn, from its predictions alone.

Prints JSON by unit of analysis; titles are those of the report's columns. `case` is the decided
rule, from case_predictions.csv; `case_mean` the mean probability of the slices and `slice` the
slices, final head, both from predictions.parquet.
"""
import csv
import json
import sys

import numpy as np
import pyarrow.parquet
from sklearn import metrics

run = sys.argv[1]
labels = json.load(open(run + "/run.json"))["labels"]
table = pyarrow.parquet.read_table(run + "/predictions.parquet").to_pylist()
rows = [row for row in table if row["split"] == "test"]


def ratio(a, b):
    return None if b == 0 else float(a / b)


def calibration_error(truth, probs):
    """Of the most probable class, over 10 bins of equal width."""
    top, right = probs.max(1), probs.argmax(1) == truth
    bins = np.minimum((top * 10).astype(int), 9)
    return float(sum(abs(top[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)))


def of_unit(truth, probs):
    called = probs.argmax(1)
    matrix = metrics.confusion_matrix(truth, called, labels=range(len(labels)))
    classes = []
    for k in range(len(labels)):
        is_k, score = truth == k, probs[:, k]
        tn, fp, fn, tp = metrics.confusion_matrix(is_k, called == k, labels=[False, True]).ravel()
        classes.append({
            "Sensitivity": ratio(tp, tp + fn),
            "Specificity": ratio(tn, tn + fp),
            "Precision": ratio(tp, tp + fp),
            "NPV": ratio(tn, tn + fn),
            "F1": float(metrics.f1_score(is_k, called == k)),
            "AUROC": float(metrics.roc_auc_score(is_k, score)),
            "AUPRC": float(metrics.average_precision_score(is_k, score)),
        })
    mean = lambda title: float(np.mean([c[title] for c in classes]))
    one_hot = np.eye(len(labels))[truth]
    return {
        "confusion": matrix.tolist(),
        "classes": classes,
        "overall": {
            "Accuracy": float(metrics.accuracy_score(truth, called)),
            "Balanced accuracy": float(metrics.balanced_accuracy_score(truth, called)),
            "Macro precision": float(metrics.precision_score(truth, called, average="macro")),
            "Macro specificity": mean("Specificity"),
            "Macro F1": float(metrics.f1_score(truth, called, average="macro")),
            "MCC": float(metrics.matthews_corrcoef(truth, called)),
            "Cohen's kappa": float(metrics.cohen_kappa_score(truth, called)),
            "Macro AUROC": mean("AUROC"),
            "Macro AUPRC": mean("AUPRC"),
            "Brier score": float(((probs - one_hot) ** 2).sum(1).mean()),
            "Log loss": float(metrics.log_loss(truth, probs, labels=range(len(labels)))),
            "ECE": calibration_error(truth, probs),
        },
    }


probs = np.array([[row[f"final/{name}"] for name in labels] for row in rows], dtype=np.float64)
truth = np.array([row["label"] for row in rows])
case_ids = np.array([row["case_id"] for row in rows])
cases = sorted(set(case_ids))
case_probs = np.array([probs[case_ids == case].mean(0) for case in cases])
case_probs /= case_probs.sum(1, keepdims=True)
case_truth = np.array([truth[case_ids == case][0] for case in cases])
with open(run + "/case_predictions.csv", newline="") as file:
    decided = sorted((row for row in csv.DictReader(file) if row["split"] == "test"), key=lambda row: row["case_id"])
assert [row["case_id"] for row in decided] == cases
assert [labels.index(row["label"]) for row in decided] == case_truth.tolist()
decided_probs = np.array([[float(row["p_" + name]) for name in labels] for row in decided])
assert [labels.index(row["predicted"]) for row in decided] == decided_probs.argmax(1).tolist()
mean_probs = np.array([[float(row["mean_p_" + name]) for name in labels] for row in decided])
assert np.abs(mean_probs - case_probs).max() < 1e-9
print(json.dumps({
    "labels": labels,
    "case": of_unit(case_truth, decided_probs),
    "case_mean": of_unit(case_truth, case_probs),
    "slice": of_unit(truth, probs),
}))

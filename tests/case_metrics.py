"""Measures by split by scikit-learn, from a table of case predictions alone.

Prints {split: {measure: value}}; names are those of metrics.json, `splits.<split>.decision.case`.
"""
import csv
import json
import sys

import numpy as np
from sklearn import metrics

with open(sys.argv[1], newline="") as file:
    rows = list(csv.DictReader(file))
# `mean_p_` does not start with `p_`.
labels = [name.removeprefix("p_") for name in rows[0] if name.startswith("p_")]
result = {}
for split in sorted({row["split"] for row in rows}):
    of_split = [row for row in rows if row["split"] == split]
    truth = np.array([labels.index(row["label"]) for row in of_split])
    predicted = np.array([labels.index(row["predicted"]) for row in of_split])
    probs = np.array([[float(row["p_" + name]) for name in labels] for row in of_split])
    auroc = [metrics.roc_auc_score(truth == k, probs[:, k]) for k in range(len(labels))]
    result[split] = {
        "n": len(of_split),
        "accuracy": float(metrics.accuracy_score(truth, predicted)),
        "balanced_accuracy": float(metrics.balanced_accuracy_score(truth, predicted)),
        "macro_f1": float(metrics.f1_score(truth, predicted, average="macro")),
        "macro_auroc": float(np.mean(auroc)),
        "log_loss": float(metrics.log_loss(truth, probs, labels=range(len(labels)))),
    }
print(json.dumps(result))

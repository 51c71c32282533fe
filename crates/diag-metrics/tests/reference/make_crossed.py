"""Writes crossed.json: a small crossed design of synthetic runs and what numpy makes of it, by
docs/experiments/recompute.py with many resamples.

    python3 crates/diag-metrics/tests/reference/make_crossed.py
"""

import json
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[3] / "docs/experiments"))
from recompute import analyse  # noqa: E402

rng = np.random.default_rng(7)
patient_n = np.concatenate([np.arange(60), rng.integers(0, 60, 40)])
label_n = np.concatenate([np.arange(60) % 3, rng.integers(0, 3, 40)])
hardness_p = rng.normal(0.0, 1.0, 60)
right = []
for skill in (0.9, 0.5, 0.6):
    series = []
    for seed in range(5):
        score = skill + rng.normal(0.0, 0.15) + 0.8 * hardness_p[patient_n] + rng.normal(0.0, 0.7, 100)
        series.append(score > 0.0)
    right.append(series)
right_srn = np.array(right)
contrasts = np.array([[1.0, -1.0, 0.0], [1.0, 0.0, -1.0], [0.5, 0.5, -1.0]])
found = analyse(label_n, patient_n, right_srn, contrasts, seed=1, n_resamples=200_000)
text = lambda run: "".join("1" if right else "0" for right in run)  # noqa: E731
json.dump(
    {
        "label": label_n.tolist(),
        "patient": patient_n.tolist(),
        "right": [[text(run) for run in series] for series in right],
        "contrasts": contrasts.tolist(),
        "found": found,
    },
    open(HERE / "crossed.json", "w"),
    indent=1,
)

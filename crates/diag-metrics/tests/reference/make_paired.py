"""Reference values of the paired tests, by scipy.

Run: python make_paired.py > paired.json   (needs scipy; 1.17.1 made the file beside this script)
"""
import json
import numpy as np
import scipy
from scipy import stats

cases = []
for differences in [[0.02, 0.05, -0.01], [0.1, 0.12, 0.09, 0.11, 0.1], [-0.3, 0.2], [0.4],
                    list(np.round(np.random.default_rng(1).normal(0.02, 0.05, 12), 6)), [0.1, 0.1, 0.1]]:
    d = np.array(differences)
    n = len(d)
    case = {"differences": differences, "mean": d.mean(), "low": None, "high": None, "t": None}
    if n > 1:
        low, high = stats.t.interval(0.95, n - 1, d.mean(), stats.sem(d)) if d.std() > 1e-12 else (d.mean(), d.mean())
        case["low"], case["high"] = low, high
        if d.std() > 1e-12:
            case["t"] = stats.ttest_1samp(d, 0).pvalue
    exact = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf,
                                   alternative="two-sided") if n > 1 else None
    case["sign"] = exact.pvalue if exact is not None else 1.0
    cases.append(case)
print(json.dumps(cases, indent=1))

"""Recomputes the tables of docs/protocol-cxr.md from calls.csv and cases.csv, with numpy alone and
without any code of the programs.

    python3 docs/experiments/recompute.py docs/experiments/cxr contrasts test saal 10 OTHER...
    python3 docs/experiments/recompute.py docs/experiments/cxr pair validation saal-wide 10 saal

Prints difference, standard error, degrees of freedom and interval, one contrast a line.
"""

import csv
import math
import sys

import numpy as np

N_RESAMPLES = 10_000
LEVEL = 0.95
CHUNK = 500


def normal_tail(z):
    """Chance that a standard normal value is further from 0 than z."""
    return math.erfc(abs(z) / math.sqrt(2.0))


def student_tail(t, freedom):
    """Chance that Student's t is further from 0 than t: the density integrated numerically over
    the angle theta, t = sqrt(freedom) tan(theta), where it is cos(theta)^(freedom - 1)."""
    theta = np.linspace(0.0, math.pi / 2.0, 200_001)
    density = np.cos(theta) ** (freedom - 1.0)
    area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2.0)])
    return 1.0 - np.interp(math.atan(abs(t) / math.sqrt(freedom)), theta, area) / area[-1]


def student_bound(tail, freedom):
    """The t beyond which, on both sides, lies that chance."""
    low, high = 0.0, 1e3
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if student_tail(middle, freedom) > tail else (low, middle)
    return (low + high) / 2.0


def analyse(label_n, patient_n, right_srn, contrasts_cs, seed=12345, n_resamples=N_RESAMPLES):
    """label_n, patient_n: [N]; right_srn: [series, seeds, N]; contrasts_cs: [contrasts, series]."""
    rng = np.random.default_rng(seed)
    n_classes, n_patients = label_n.max() + 1, patient_n.max() + 1
    n_series, n_seeds, _ = right_srn.shape
    # Right and all cases of each patient and class.
    cell_n = patient_n * n_classes + label_n
    total_pk = np.bincount(cell_n, minlength=n_patients * n_classes).reshape(n_patients, n_classes)
    right_rpk = np.stack(
        [np.bincount(cell_n, weights=run, minlength=n_patients * n_classes) for run in right_srn.reshape(n_series * n_seeds, -1)]
    ).reshape(n_series * n_seeds, n_patients, n_classes)

    def accuracies(times_bp):
        hits_rbk = np.einsum("bp,rpk->rbk", times_bp, right_rpk, optimize=True)
        return (hits_rbk / (times_bp @ total_pk)).mean(axis=2).reshape(n_series, n_seeds, -1)

    observed_cr = np.einsum("cs,sr->cr", contrasts_cs, accuracies(np.ones((1, n_patients)))[:, :, 0])
    crossed, by_patient = [], []
    for start in range(0, n_resamples, CHUNK):
        n = min(CHUNK, n_resamples - start)
        times_bp = rng.multinomial(n_patients, np.full(n_patients, 1.0 / n_patients), size=n).astype(float)
        share_br = rng.multinomial(n_seeds - 1, np.full(n_seeds, 1.0 / n_seeds), size=n) / (n_seeds - 1)
        value_crb = np.einsum("cs,srb->crb", contrasts_cs, accuracies(times_bp))
        crossed.append(np.einsum("crb,br->cb", value_crb, share_br))
        by_patient.append(value_crb.mean(axis=1))
    crossed_cb, by_patient_cb = np.concatenate(crossed, axis=1), np.concatenate(by_patient, axis=1)
    difference_c = observed_cr.mean(axis=1)
    error_c = crossed_cb.std(axis=1, ddof=1)
    seed_c = observed_cr.std(axis=1, ddof=1) / math.sqrt(n_seeds)
    patient_c = by_patient_cb.std(axis=1, ddof=1)
    freedom_c = (seed_c**2 + patient_c**2) ** 2 / (seed_c**4 / (n_seeds - 1) + patient_c**4 / (n_patients - 1))
    largest_b = (np.abs(crossed_cb - difference_c[:, None]) / error_c[:, None]).max(axis=0)
    family_tail = normal_tail(np.quantile(largest_b, LEVEL))
    found = []
    for difference, error, freedom in zip(difference_c, error_c, freedom_c):
        own = student_bound(1.0 - LEVEL, freedom) * error
        together = student_bound(family_tail, freedom) * error
        found.append(
            {
                "difference": difference,
                "standard_error": error,
                "degrees_of_freedom": freedom,
                "interval": [difference - own, difference + own],
                "simultaneous": [difference - together, difference + together],
            }
        )
    return found


def read(folder, split, variants):
    cases = [row for row in csv.DictReader(open(f"{folder}/cases.csv")) if row["split"] == split]
    label_n = np.array([int(row["label"]) for row in cases])
    patients = [row["patient"] for row in cases]
    patient_n = np.arange(len(cases)) if "" in patients else np.array([int(p) for p in patients])
    calls, settings = {}, []
    for row in csv.DictReader(open(f"{folder}/calls.csv")):
        if row["split"] != split:
            continue
        setting = (row["class_ratio"], row["label_noise"])
        if setting not in settings:
            settings.append(setting)
        called = np.frombuffer(row["calls"].encode(), dtype=np.uint8) - ord("a")
        calls[row["variant"], setting, int(row["seed"])] = called == label_n
    seeds = sorted({seed for variant, _, seed in calls if variant in variants})
    seeds = [r for r in seeds if all((v, s, r) in calls for v in variants for s in settings)]
    right = [[calls[v, s, r] for r in seeds] for v in variants for s in settings]
    return label_n, patient_n, np.array(right), settings, seeds


def main(folder, kind, split, own, n_seeds, *others):
    variants = [own, *others]
    label_n, patient_n, right_srn, settings, seeds = read(folder, split, variants)
    if len(seeds) < int(n_seeds):
        sys.exit(f"{len(seeds)} of {n_seeds} seeds are finished")
    rows, names = [], []
    for o, other in enumerate(others, start=1):
        for s, setting in enumerate(settings):
            row = np.zeros(len(variants) * len(settings))
            row[s], row[o * len(settings) + s] = 1.0, -1.0
            rows.append(row)
            names.append(f"{own} less {other}, {setting[0]}, {setting[1]} wrong")
    if kind == "pair":
        rows, names = [np.mean(rows, axis=0)], [f"{own} less {others[0]}, mean over the settings"]
    found = analyse(label_n, patient_n, right_srn, np.array(rows))
    for name, one in zip(names, found):
        low, high = one["interval" if kind == "pair" else "simultaneous"]
        print(
            f"{name}: {one['difference']:+.4f}, SE {one['standard_error']:.4f}, "
            f"df {one['degrees_of_freedom']:.1f}, {low:+.4f} to {high:+.4f}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])

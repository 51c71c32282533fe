"""The format control of docs/protocol-cxr.md: brings all images of COVID-CT to one form, so that
size, aspect, file format, grey range, border and JPEG quality no longer tell the classes apart.

    python3 docs/experiments/format_control.py data/covid-ct OUT

needs numpy and Pillow. Writes OUT/images (256x256, the central 224x224 kept, percentiles 1 and 99
black and white, JPEG of quality 75) and OUT/labels.csv, which has split and patient of every image
(patients.csv) and fits the original folder too but for the ending of the names; OUT/labels-original.csv
is for that one.
"""

import csv
import pathlib
import sys

import numpy as np
from PIL import Image

SIDE, KEPT, QUALITY = 256, 224, 75
CLASSES = {"COVID": "CT_COVID", "NonCOVID": "CT_NonCOVID"}
SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


def controlled(path):
    image = Image.open(path).convert("RGBA")
    # What is transparent was shown on white paper.
    paper = Image.new("RGBA", image.size, "white")
    grey = Image.alpha_composite(paper, image).convert("L").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    edge = (SIDE - KEPT) // 2
    pixels = np.asarray(grey, dtype=float)[edge : edge + KEPT, edge : edge + KEPT]
    low, high = np.percentile(pixels, [1, 99])
    stretched = (pixels - low) / max(high - low, 1.0) * 255.0
    return Image.fromarray(np.clip(np.rint(stretched), 0, 255).astype(np.uint8))


def main(source, out):
    source, out = pathlib.Path(source), pathlib.Path(out)
    rows = list(csv.DictReader(open(source / "patients.csv")))
    head = ["case_id", "label", "patient_id", "split"]
    tables = {name: csv.writer(open(out / name, "w")) for name in make(out)}
    for table in tables.values():
        table.writerow(head)
    for number, row in enumerate(rows):
        label, split = CLASSES[row["label"]], SPLITS[row["split"]]
        # A new name: the old one can say from which paper a figure is.
        name = f"{label}/case-{number:04}"
        (out / "images" / label).mkdir(parents=True, exist_ok=True)
        controlled(source / row["image"]).save(out / "images" / f"{name}.jpg", quality=QUALITY)
        tables["labels.csv"].writerow([f"{name}.jpg", label, row["patient_id"], split])
        tables["labels-original.csv"].writerow([row["image"], label, row["patient_id"], split])


def make(out):
    out.mkdir(parents=True)
    return ["labels.csv", "labels-original.csv"]


if __name__ == "__main__":
    main(*sys.argv[1:])

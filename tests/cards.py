"""Loads a shard folder by its cards: croissant.json with mlcroissant, README.md with
Hugging Face datasets. Prints what each saw, as JSON."""

import hashlib
import json
import os
import sys
import tempfile

cache = tempfile.mkdtemp()
os.environ.update(HF_HOME=cache, HF_HUB_OFFLINE="1")
folder = sys.argv[1]

import datasets  # noqa: E402
import mlcroissant  # noqa: E402

croissant = mlcroissant.Dataset(jsonld=folder + "/croissant.json")
records = [
    [r["slices/case_id"].decode(), int(r["slices/slice_index"]), int(r["slices/label"]), r["slices/pixel_sha256"].decode()]
    for r in croissant.records("slices")
]

loaded = datasets.load_dataset(folder, cache_dir=cache)


def pixels(row):
    return bytes(row["pixels"]) if "pixels" in row else row["image"].convert("L").tobytes()


hugging_face = [
    [r["case_id"], r["slice_index"], r["label"], hashlib.sha256(pixels(r)).hexdigest()]
    for part in loaded.values()
    for r in part
]
json.dump(
    {
        "errors": sorted(croissant.metadata.issues.errors),
        "croissant": sorted(records),
        "hugging_face": sorted(hugging_face),
        "splits": {name: len(part) for name, part in loaded.items()},
        "label_names": next(iter(loaded.values())).features["label"].names,
    },
    sys.stdout,
)

"""Reads a shard folder with three independent Arrow tools and prints, per tool,
one [case_id, slice_index, label, sha256 of pixels] a row, as JSON."""

import glob
import hashlib
import json
import sys

import duckdb
import polars
import pyarrow.parquet

COLUMNS = ["case_id", "slice_index", "label", "pixels"]
files = sorted(glob.glob(sys.argv[1] + "/data/*.parquet"))


def rows(records):
    return sorted([c, int(i), int(l), hashlib.sha256(bytes(p)).hexdigest()] for c, i, l, p in records)


def with_pyarrow():
    for file in files:
        table = pyarrow.parquet.read_table(file, columns=COLUMNS)
        yield from zip(*(table[name].to_pylist() for name in COLUMNS))


json.dump(
    {
        "pyarrow": rows(with_pyarrow()),
        "duckdb": rows(duckdb.execute(f"select {', '.join(COLUMNS)} from read_parquet({files!r})").fetchall()),
        "polars": rows(polars.concat([polars.read_parquet(f, columns=COLUMNS) for f in files]).select(COLUMNS).rows()),
    },
    sys.stdout,
)

"""Runs the SQL of docs/query.md with DuckDB and DataFusion over a shard folder.

    queries.py DOCUMENT SHARDS

Prints, as JSON, per engine and query the rows."""

import json
import re
import sys

import datafusion
import duckdb

text = open(sys.argv[1], encoding="utf-8").read()
blocks = re.findall(r"```sql\n-- (.+?)\n(.+?)```", text, re.DOTALL)
statements = {name: sql.replace("SHARDS", sys.argv[2]) for name, sql in blocks}
database, context = duckdb.connect(), datafusion.SessionContext()
database.execute(statements.pop("DuckDB"))
context.sql(statements.pop("DataFusion")).collect()


def with_datafusion(sql):
    return [list(row.values()) for batch in context.sql(sql).collect() for row in batch.to_pylist()]


json.dump(
    {
        "DuckDB": {name: [list(row) for row in database.execute(sql).fetchall()] for name, sql in statements.items()},
        "DataFusion": {name: with_datafusion(sql) for name, sql in statements.items()},
    },
    sys.stdout,
)

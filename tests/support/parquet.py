"""Parquet files for tests."""

from __future__ import annotations

import datetime as dt
import decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def write_rows(path: Path, count: int, *, first: int = 0, row_group_size: int = 100) -> pa.Table:
    """Write `count` rows of (id, text); return them."""
    ids = range(first, first + count)
    schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
    table = pa.table([list(ids), [f"text of row {i}" for i in ids]], schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)
    return table


def every_type() -> pa.Table:
    """Return three rows (one of nulls) of every Arrow type that Parquet keeps."""
    when = dt.datetime(2024, 2, 29, 12, 30, 15, 123456)
    columns: dict[str, pa.Array] = {
        "null": pa.nulls(3),
        "bool": pa.array([True, None, False]),
        "string": pa.array(["a", None, ""]),
        "large_string": pa.array(["a", None, "ü"], pa.large_string()),
        "string_view": pa.array(["a", None, "a text longer than a view"], pa.string_view()),
        "binary": pa.array([b"a", None, b"\0"]),
        "large_binary": pa.array([b"a", None, b""], pa.large_binary()),
        "fixed_binary": pa.array([b"abc", None, b"def"], pa.binary(3)),
        "date32": pa.array([dt.date(2024, 2, 29), None, dt.date(1969, 1, 1)]),
        "date64": pa.array([when, None, when], pa.date64()),
        "time32": pa.array([dt.time(1, 2, 3), None, dt.time(0)], pa.time32("s")),
        "time64": pa.array([dt.time(1, 2, 3, 4), None, dt.time(0)], pa.time64("us")),
        "timestamp_ns": pa.array([when, None, when], pa.timestamp("ns")),
        "timestamp_zone": pa.array([when, None, when], pa.timestamp("us", "Europe/Zurich")),
        "timestamp_s": pa.array([when, None, when], pa.timestamp("s", "UTC")),
        "duration": pa.array([dt.timedelta(3), None, dt.timedelta(0)], pa.duration("us")),
        "decimal128": pa.array([decimal.Decimal("1.23"), None, None], pa.decimal128(20, 2)),
        "decimal256": pa.array([decimal.Decimal("9.999"), None, None], pa.decimal256(50, 3)),
        "list": pa.array([[1, None], None, []], pa.list_(pa.int64())),
        "large_list": pa.array([["a"], None, []], pa.large_list(pa.string())),
        "fixed_list": pa.array([[1.0, 2.0], None, [3.0, None]], pa.list_(pa.float64(), 2)),
        "struct": pa.array(
            [{"a": 1, "b": [{"c": "x"}]}, None, {"a": None, "b": None}],
            pa.struct([("a", pa.int32()), ("b", pa.list_(pa.struct([("c", pa.string())])))]),
        ),
        "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
        "dictionary": pa.array(["a", None, "b"]).dictionary_encode(),
        "dictionary_wide": pa.array(["a", None, "b"]).cast(pa.dictionary(pa.int64(), pa.string())),
        "with.dot": pa.array([1, None, 3]),
        "float16": pa.array([1.5, None, -2.0], pa.float16()),
    }
    for kind in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"):
        columns[kind] = pa.array([1, None, 3], getattr(pa, kind)())
    for kind in ("float32", "float64"):
        columns[kind] = pa.array([1.5, None, float("inf")], getattr(pa, kind)())
    return pa.table(columns)

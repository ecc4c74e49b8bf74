"""Resident memory and speed of the data path alone: a large file through a stub engine.

    python -m tests.benchmarks.data_path --rows 5000000

Everything but the model is the real run: streamed reading, templates, schema, atomic parts,
totals, `_SUCCESS`. Exits with 1 if the peak is over the limit.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from helios_batch.job import prepare
from helios_batch.local import run_local
from helios_batch.spec_file import parse_spec
from tests.support.engines import Silent
from tests.support.stub_engine import StubEngine

_CHUNK = 100_000
_DEFAULT_ROW_GROUP = 1 << 20


def write_input(path: Path, rows: int) -> None:
    """Write `rows` rows in row groups of pyarrow's default size, in bounded memory."""
    schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for group in range(0, rows, _DEFAULT_ROW_GROUP):
            stop = min(group + _DEFAULT_ROW_GROUP, rows)
            batches = []
            for first in range(group, stop, _CHUNK):
                ids = range(first, min(first + _CHUNK, stop))
                texts = [f"row {i}: the quick brown fox jumps over the lazy dog" for i in ids]
                batches.append(pa.record_batch([pa.array(ids), texts], schema=schema))
            writer.write_table(pa.Table.from_batches(batches), row_group_size=_DEFAULT_ROW_GROUP)


def peak_resident() -> int:
    """Return this process's peak resident memory in bytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024


def measure(folder: Path, model: str, rows_per_shard: int) -> dict[str, float]:
    """Run the job in `folder`; return rows, seconds and peak resident bytes."""
    spec = {
        "name": "data path",
        "input": {"path": str(folder / "in.parquet")},
        "prompt": {"template": "Summarize: {{ text }}"},
        "models": [model],
        "output": {"path": str(folder / "out"), "rows_per_shard": rows_per_shard},
    }
    job = prepare(parse_spec(spec, "benchmark"))
    libraries = peak_resident()
    started = time.perf_counter()
    result = run_local(job, lambda job: StubEngine(), Silent())
    seconds = time.perf_counter() - started
    peak = peak_resident()
    return {"rows": result.totals.rows, "seconds": seconds, "libraries": libraries, "peak": peak}


def main() -> None:
    """Write the input in a process of its own, run the job here, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--rows-per-shard", type=int, default=5_000)
    parser.add_argument("--limit-mb", type=int, default=500)
    parser.add_argument("--folder", type=Path, help="holds in.parquet; default: a temporary one")
    parser.add_argument("--model", default="smollm2-135m")
    options = parser.parse_args()
    if options.folder is not None:
        print(json.dumps(measure(options.folder, options.model, options.rows_per_shard)))
        return
    with tempfile.TemporaryDirectory() as name:
        import subprocess

        folder = Path(name)
        write_input(folder / "in.parquet", options.rows)
        size = (folder / "in.parquet").stat().st_size
        command = [sys.executable, "-m", "tests.benchmarks.data_path", "--folder", name]
        command += ["--rows-per-shard", str(options.rows_per_shard), "--model", options.model]
        found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    python, group = platform.python_version(), _DEFAULT_ROW_GROUP
    print(f"machine: {platform.machine()}, Python {python}, pyarrow {pa.__version__}")
    print(f"input:   {options.rows:,} rows, {size / 1e6:,.0f} MB, row groups of {group:,}")
    print(f"speed:   {found['rows'] / found['seconds']:,.0f} rows/s")
    print(
        f"peak:    {found['peak'] / 1e6:,.0f} MB resident (limit {options.limit_mb} MB), "
        f"{found['libraries'] / 1e6:,.0f} MB of it before the first row (libraries)"
    )
    if found["peak"] > options.limit_mb * 1e6:
        sys.exit(1)


if __name__ == "__main__":
    main()

"""A random sample of a job's own rows, as two small jobs at full depth: to learn from, to judge by.

These run as any job does: what they write is valid output, and an interrupted one is resumed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from helios_batch.data.reader import RowReader
from helios_batch.data.source import InputTable, open_input
from helios_batch.errors import SpecError
from helios_batch.spec import ExitSpec, InputSpec, JobSpec, OutputSpec
from helios_batch.spec_file import load_spec
from helios_batch.tune.request import TuneRequest

HELD_OUT_SHARE = 0.2
_LEAST_ROWS = 20
_MAX_TOKENS = 128
# as many rows as an engine decodes at once; an interruption loses no more than these
_ROWS_PER_SHARD = 256
_PROMPT_COLUMNS = ("messages", "prompt", "text")


@dataclass(frozen=True)
class Sampled:
    """One source of data: its jobs at full depth on the rows to learn from and those held out."""

    learn: JobSpec
    held_out: JobSpec
    digest: str


def sample(request: TuneRequest, source: str, rows: int, number: int) -> Sampled:
    """Draw rows of a source, and write them and the specs of their jobs' input.

    Raises:
        UsageError: the source can't be read, has too few rows, or is no spec or Parquet.
    """
    spec = _spec(request, source)
    table = open_input(*spec.input.paths)
    count = min(rows, table.rows)
    if count < _LEAST_ROWS:
        raise SpecError(
            f"{count} rows are too few to make exits from",
            where=source,
            fix=f"give {_LEAST_ROWS} rows at the least; some hundreds do well",
        )
    chosen = random.Random(f"{request.seed}/{number}").sample(range(table.rows), count)
    held = max(_LEAST_ROWS // 4, int(count * HELD_OUT_SHARE))

    def job(name: str, part: Sequence[int]) -> JobSpec:
        path = request.output / f"{name}-{number}.parquet"
        if not path.exists():
            _write_rows(table, sorted(part), path)
        return spec.model_copy(
            update={
                "name": f"{spec.name}: {name}",
                "input": InputSpec(path=str(path), columns=spec.input.columns),
                "output": OutputSpec(
                    path=str(request.output / f"{name}-{number}-full-depth"),
                    rows_per_shard=_ROWS_PER_SHARD,
                ),
            }
        )

    files = ",".join(file.content_digest() for file in table.files)
    return Sampled(job("learn", chosen[held:]), job("held-out", chosen[:held]), files)


def _spec(request: TuneRequest, source: str) -> JobSpec:
    """Return a spec of the source for this model at full depth."""
    # a job may already name the exits that are to be made
    changes = {
        "models": (request.model,),
        "depth": "full",
        "exits": ExitSpec(),
        "resources": request.resources,
    }
    if Path(source).suffix in (".yaml", ".yml", ".json"):
        return load_spec(source).model_copy(update=changes)
    names = open_input(source).schema.names
    column = next((name for name in _PROMPT_COLUMNS if name in names), None)
    if column is None:
        raise SpecError(
            f"no column of prompts is in the data; it has {', '.join(names)}",
            where=source,
            fix="name a column messages, prompt or text, or give a job spec",
        )
    spec = JobSpec.model_validate(
        {
            "name": Path(source).stem,
            "input": {"path": source},
            "prompt": {"messages" if column == "messages" else "column": column},
            "sampling": {"max_tokens": _MAX_TOKENS},
            "models": [request.model],
            "output": {"path": str(request.output)},
        }
    )
    return spec.model_copy(update=changes)


def _write_rows(table: InputTable, rows: Sequence[int], path: Path) -> None:
    reader = RowReader(table, tuple(table.schema.names))
    found = pa.concat_tables([reader.read(row, row + 1) for row in rows])
    fresh = path.with_suffix(".writing")
    pq.write_table(found, fresh)
    fresh.replace(path)

"""Examples of a job's rows with errors, read from its published parts."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from helios_batch.data.output import OutputFolder
from helios_batch.data.shards import ShardPlan
from helios_batch.errors import OutputError
from helios_batch.queue.jobs import JobState
from helios_batch.queue.roots import is_inside
from helios_batch.queue.settings import QueueSettings
from helios_batch.totals import Totals


class Examples(NamedTuple):
    """Failed rows (file, row, code, message), and why there are not more of them, if so."""

    rows: list[dict[str, Any]]
    problem: str = ""


def failed_rows(state: JobState, settings: QueueSettings, most: int) -> Examples:
    """Return up to `most` failed rows; only parts whose own totals count errors are opened."""
    if not is_inside(state.job.output, settings.output_roots):
        return Examples([], f"{state.job.output} is not under HELIOS_OUTPUT_ROOTS here")
    found: list[dict[str, Any]] = []
    try:
        output = OutputFolder(state.job.output)
        if not output.path.is_dir():
            return Examples([], f"{state.job.output} is not on this machine")
        plan = ShardPlan(state.job.rows, int(state.job.spec["output"]["rows_per_shard"]))
        for shard, data in output.finished(plan, state.job.fingerprint):
            if len(found) >= most:
                break
            if Totals.from_json(data).failed_rows:
                table = pq.read_table(output.path / shard.part_name, columns=["row_id", "error"])
                found += [row["row_id"] | row["error"] for row in table.to_pylist() if row["error"]]
    except OutputError as exc:
        return Examples(found[:most], f"{exc.what} ({exc.where})")
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as exc:
        return Examples(found[:most], f"a part can't be read: {exc}")
    return Examples(found[:most])

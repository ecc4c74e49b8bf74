"""Examples of a job's rows with errors, read from its published parts."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq

from helios_batch.data.output import OutputFolder
from helios_batch.data.shards import ShardPlan
from helios_batch.queue.jobs import JobState
from helios_batch.queue.roots import is_inside
from helios_batch.queue.settings import QueueSettings
from helios_batch.totals import Totals


def failed_rows(state: JobState, settings: QueueSettings, most: int) -> list[dict[str, Any]]:
    """Return up to `most` failed rows: file, row, code, message; none if the folder is not here.

    Only parts whose own totals count errors are opened.

    Raises:
        OutputError: a part is damaged.
    """
    if not is_inside(state.job.output, settings.output_roots):
        return []
    output, found = OutputFolder(state.job.output), list[dict[str, Any]]()
    plan = ShardPlan(state.job.rows, int(state.job.spec["output"]["rows_per_shard"]))
    for shard, data in output.finished(plan, state.job.fingerprint):
        if len(found) >= most:
            break
        if Totals.from_json(data).failed_rows:
            table = pq.read_table(output.path / shard.part_name, columns=["row_id", "error"])
            found += [row["row_id"] | row["error"] for row in table.to_pylist() if row["error"]]
    return found[:most]

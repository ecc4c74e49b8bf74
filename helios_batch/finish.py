"""What a job's output folder says: which shards are finished, what they took, how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from helios_batch.data.shards import Shard
from helios_batch.errors import FailureLimitError, OutputError
from helios_batch.helios.measured import measured
from helios_batch.job import Job
from helios_batch.promise import judge
from helios_batch.totals import Totals


@dataclass
class Finished:
    """The finished shards of a job by index, and their totals together."""

    shards: set[int] = field(default_factory=set)
    totals: Totals = field(default_factory=Totals)


def finished(job: Job) -> Finished:
    """Read the job's output folder.

    Raises:
        OutputError: a part is damaged, of another job, or of another version.
    """
    found = Finished()
    for shard, data in job.output.finished(job.shards, job.fingerprint):
        found.shards.add(shard.index)
        found.totals += _totals(data, job, shard)
    return found


def part_totals(job: Job, shard: Shard) -> Totals:
    """Return the totals of a published part.

    Raises:
        OutputError: the part is damaged, of another job, or of another version.
    """
    return _totals(job.output.part_totals(shard, job.fingerprint), job, shard)


def check_failures(job: Job, totals: Totals) -> None:
    """Check `limits.max_failed_rows` against the rows that have failed so far.

    Raises:
        FailureLimitError: more rows have failed than are allowed.
    """
    allowed = job.spec.limits.failed_rows_allowed(job.table.rows)
    if allowed is None or totals.failed_rows <= allowed:
        return
    codes = ", ".join(f"{code} {count}" for code, count in totals.errors.most_common())
    raise FailureLimitError(
        f"{totals.failed_rows} of {totals.rows} rows failed so far ({codes}); "
        f"limits.max_failed_rows allows {allowed} of {job.table.rows}",
        where=str(job.output.path),
        fix="what was computed stays; look at the error column, then raise the limit and run "
        "again, or correct the input and choose a new output folder",
    )


def final_record(job: Job, totals: Totals, status: str) -> dict[str, Any]:
    """Return what `_job.json` says when the job has ended.

    If it is done, its promise is judged by all of its parts first.
    """
    if job.spec.quality is not None and status == "done":
        judge(job.output, job.spec.quality.bound, totals.audit_losses)
    summary = totals.to_json() | {
        "failed_rows": totals.failed_rows,
        "tokens_per_second": round(totals.tokens_per_second, 3),
        "mean_batch": round(totals.mean_batch, 3),
    }
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    record = job.record()
    if (policy := job.policy) is not None:
        found = measured(policy, totals)
        record["policy"]["measured"] = found._asdict() if found else None
    return record | {"status": status, "totals": summary, "finished": ended}


def _totals(data: dict[str, Any], job: Job, shard: Shard) -> Totals:
    try:
        return Totals.from_json(data)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise OutputError(
            f"a finished part was written by another version: {exc!r}",
            where=str(job.output.path / shard.part_name),
            fix="finish the job with the version that began it, or choose a new output folder",
        ) from None

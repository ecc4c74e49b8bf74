"""Running a job in this process, shard after shard, without a queue."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from helios_batch.data.shards import Shard
from helios_batch.errors import FailureLimitError, OutputError
from helios_batch.job import Job
from helios_batch.records import EngineFacts, Generator, Progress
from helios_batch.shard import run_shard
from helios_batch.totals import Totals


class Observer(Protocol):
    """Who watches a run; each method is called from the run's own thread."""

    def loading(self) -> None:
        """The engine is about to be loaded."""

    def started(self, engine: EngineFacts, rows: int, rows_done: int) -> None:
        """Shards are about to run; `rows_done` rows were finished by earlier runs."""

    def step(self, progress: Progress) -> None:
        """The engine has made a step in the current shard."""

    def shard_done(self, rows: int) -> None:
        """A shard of `rows` rows is finished."""


@dataclass(frozen=True)
class JobResult:
    """How a run ended; totals are over all parts, old and new."""

    output: Path
    totals: Totals
    resumed_rows: int
    wall_seconds: float


def run_local(job: Job, make_engine: Callable[[Job], Generator], observer: Observer) -> JobResult:
    """Run the shards of a job that are not finished, and complete its output folder.

    A run that is killed leaves whole parts only; calling this again with the same job goes on
    after them. The engine is made only if there is something left to run.

    Raises:
        UsageError: found before anything was written.
        JobError: reading or writing failed, or more rows failed than the spec allows.
    """
    started = time.perf_counter()
    job.output.check(job.fingerprint, job.identity)
    totals = Totals()
    finished = set()
    for shard, data in job.output.finished(job.shards, job.fingerprint):
        finished.add(shard.index)
        totals += _read_totals(data, job, shard)
    resumed_rows = totals.rows
    _check_failures(job, totals)

    if len(finished) < len(job.shards):
        observer.loading()
        engine = make_engine(job)
        _check_dtype(job, totals, engine.facts)
        job.output.claim(job.record())
        observer.started(engine.facts, job.table.rows, resumed_rows)
        context = job.context()
        for index in range(len(job.shards)):
            if index in finished:
                continue
            shard = job.shards[index]
            result = run_shard(shard, context, engine, observer.step)
            done = result.totals
            if not result.published:
                # another run was first; its part is the one that counts
                done = _read_totals(job.output.part_totals(shard, job.fingerprint), job, shard)
            totals += done
            observer.shard_done(done.rows)
            _check_failures(job, totals)

    job.output.record(_final(job, totals, "done"), success=True)
    return JobResult(job.output.path, totals, resumed_rows, time.perf_counter() - started)


def _check_dtype(job: Job, totals: Totals, engine: EngineFacts) -> None:
    others = {old.dtype for old in totals.engines} - {engine.dtype}
    if others:
        raise OutputError(
            f"the finished parts were computed in {', '.join(sorted(others))}; "
            f"this run would use {engine.dtype}",
            where=str(job.output.path),
            fix=f"set resources.dtype to {min(others)}, or choose a new output folder",
        )


def _check_failures(job: Job, totals: Totals) -> None:
    allowed = job.spec.limits.failed_rows_allowed(job.table.rows)
    if allowed is None or totals.failed_rows <= allowed:
        return
    job.output.record(_final(job, totals, "failed"), success=False)
    codes = ", ".join(f"{code} {count}" for code, count in totals.errors.most_common())
    raise FailureLimitError(
        f"{totals.failed_rows} of {totals.rows} rows failed so far ({codes}); "
        f"limits.max_failed_rows allows {allowed} of {job.table.rows}",
        where=str(job.output.path),
        fix="what was computed stays; look at the error column, then raise the limit and run "
        "again, or correct the input and choose a new output folder",
    )


def _final(job: Job, totals: Totals, status: str) -> dict[str, Any]:
    summary = totals.to_json() | {
        "failed_rows": totals.failed_rows,
        "tokens_per_second": round(totals.tokens_per_second, 3),
        "mean_batch": round(totals.mean_batch, 3),
    }
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    return job.record() | {"status": status, "totals": summary, "finished": finished}


def _read_totals(data: dict[str, Any], job: Job, shard: Shard) -> Totals:
    try:
        return Totals.from_json(data)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise OutputError(
            f"a finished part was written by another version: {exc!r}",
            where=str(job.output.path / shard.part_name),
            fix="finish the job with the version that began it, or choose a new output folder",
        ) from None

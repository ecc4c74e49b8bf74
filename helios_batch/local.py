"""Running a job in this process, shard after shard, without a queue."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

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
    """How a run ended: totals over all parts, old and new, and this run's own share."""

    output: Path
    totals: Totals
    resumed_rows: int
    wall_seconds: float
    new: Totals = field(default_factory=Totals)


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
    totals, new = Totals(), Totals()
    finished = set()
    for shard, data in job.output.finished(job.shards, job.fingerprint):
        finished.add(shard.index)
        totals += _read_totals(data, str(job.output.path / shard.part_name))
    resumed_rows = totals.rows
    created = job.output.created() or _now()

    if len(finished) < len(job.shards):
        observer.loading()
        engine = make_engine(job)
        job.output.claim(job.record() | {"created": created})
        observer.started(engine.facts, job.table.rows, resumed_rows)
        context = job.context()
        for index in range(len(job.shards)):
            if index in finished:
                continue
            result = run_shard(job.shards[index], context, engine, observer.step)
            totals += result.totals
            new += result.totals
            observer.shard_done(result.totals.rows)
            _check_failures(job, totals, created)

    _check_failures(job, totals, created)
    job.output.record(_final(job, totals, created, "done"), success=True)
    return JobResult(job.output.path, totals, resumed_rows, time.perf_counter() - started, new)


def _check_failures(job: Job, totals: Totals, created: str) -> None:
    allowed = job.spec.limits.failed_rows_allowed(job.table.rows)
    if allowed is None or totals.failed_rows <= allowed:
        return
    job.output.record(_final(job, totals, created, "failed"), success=False)
    codes = ", ".join(f"{code} {count}" for code, count in totals.errors.most_common())
    raise FailureLimitError(
        f"{totals.failed_rows} of {totals.rows} rows failed so far ({codes}); "
        f"limits.max_failed_rows allows {allowed} of {job.table.rows}",
        where=str(job.output.path),
        fix="what was computed stays; look at the error column, then raise the limit and run "
        "again, or correct the input and choose a new output folder",
    )


def _final(job: Job, totals: Totals, created: str, status: str) -> dict[str, Any]:
    summary = totals.to_json() | {
        "failed_rows": totals.failed_rows,
        "tokens_per_second": round(totals.tokens_per_second, 3),
    }
    times = {"created": created, "finished": _now()}
    return job.record() | {"status": status, "totals": summary} | times


def _read_totals(data: dict[str, Any], where: str) -> Totals:
    try:
        return Totals.from_json(data)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise OutputError(
            f"a finished part was written by another version: {exc!r}",
            where=where,
            fix="finish the job with the version that began it, or choose a new output folder",
        ) from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

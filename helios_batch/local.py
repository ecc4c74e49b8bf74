"""Running a job in this process, shard after shard, without a queue."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from helios_batch.errors import DeadlineError, FailureLimitError, OutputError
from helios_batch.finish import check_failures, final_record, finished, part_totals
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
        JobError: reading or writing failed, more rows failed than the spec allows, or its deadline
            passed.
    """
    started = time.perf_counter()
    job.output.check(job.fingerprint, job.identity)
    found = finished(job)
    totals, resumed_rows = found.totals, found.totals.rows
    _stop_on_failures(job, totals)

    if len(found.shards) < len(job.shards):
        observer.loading()
        engine = make_engine(job)
        _check_dtype(job, totals, engine.facts)
        job.output.claim(job.record())
        observer.started(engine.facts, job.table.rows, resumed_rows)
        context = job.context()
        for index in range(len(job.shards)):
            if index in found.shards:
                continue
            _check_deadline(job, started)
            shard = job.shards[index]
            result = run_shard(shard, context, engine, observer.step)
            done = result.totals
            if not result.published:
                # another run was first; its part is the one that counts
                done = part_totals(job, shard)
            totals += done
            observer.shard_done(done.rows)
            _stop_on_failures(job, totals)

    job.output.record(final_record(job, totals, "done"), success=True)
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


def _stop_on_failures(job: Job, totals: Totals) -> None:
    try:
        check_failures(job, totals)
    except FailureLimitError:
        job.output.record(final_record(job, totals, "failed"), success=False)
        raise


def _check_deadline(job: Job, started: float) -> None:
    seconds = job.spec.limits.deadline
    if seconds is not None and time.perf_counter() - started > seconds:
        raise DeadlineError(
            f"limits.deadline of {seconds:g} s has passed",
            where=str(job.output.path),
            fix="what is finished stays; run the same command again to go on for as long again",
        )

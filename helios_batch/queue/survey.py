"""The survey: an output folder tells what is finished, and its job goes on or ends."""

from __future__ import annotations

from typing import Literal

from helios_batch.crashpoint import crashpoint
from helios_batch.finish import check_failures, final_record, finished
from helios_batch.job import Job
from helios_batch.queue.jobs import JobState, JobTable, QueuedJob
from helios_batch.queue.keeper import LeaseKeeper
from helios_batch.queue.leases import Lease, LeaseTable


def survey(
    job: Job,
    state: JobState,
    jobs: JobTable,
    leases: LeaseTable,
    lease: Lease,
    keeper: LeaseKeeper,
) -> None:
    """Read a job's output folder and put what it says into Redis.

    A complete folder gets its last `_job.json` and `_SUCCESS`; another is made the job's own.

    Raises:
        OutputError: the folder is not usable, or holds another job.
        FailureLimitError: more rows have failed than the job allows.
        CommitRefused: the lease is lost, or the job was stopped.
    """
    job.output.check(job.fingerprint, job.identity)
    found = finished(job)
    check_failures(job, found.totals)
    keeper.confirm()
    output, note = job.output.guarded(keeper.confirm), queue_note(state.job, jobs.keys.prefix)
    status: Literal["running", "done"] = "running"
    if len(found.shards) == len(job.shards):
        status = "done"
        output.record(final_record(job, found.totals, status) | note, success=True)
    elif (output.read_record() or {}).get("status") == status:
        output.claim(job.record() | note)
    else:
        output.record(job.record() | note, success=False)
    crashpoint("survey.recorded")
    for engine in found.totals.engines:
        jobs.agree(lease.job_id, "dtype", engine.dtype)
    if leases.surveyed(lease, status, sorted(found.shards), found.totals):
        jobs.event(lease.job_id, "surveyed", finished=len(found.shards), status=status)
    else:
        leases.release(lease, "handed_back")


def queue_note(job: QueuedJob, prefix: str) -> dict[str, object]:
    """Return what `_job.json` keeps of the queue, so that Redis can be made again from it."""
    note = {"id": job.id, "prefix": prefix, "queue": job.queue, "priority": job.priority}
    return {"queue": note | {"deadline_at": job.deadline_at, "max_failed": job.max_failed}}

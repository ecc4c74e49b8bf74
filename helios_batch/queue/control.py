"""Pausing, resuming, cancelling and retrying jobs."""

from __future__ import annotations

import time

from helios_batch.data.output import OutputFolder
from helios_batch.data.shards import ShardPlan
from helios_batch.errors import QueueUsageError
from helios_batch.queue.jobs import JobState, JobTable, Status
from helios_batch.queue.mirror import record_reopened, record_status
from helios_batch.queue.roots import is_inside
from helios_batch.queue.settings import QueueSettings
from helios_batch.totals import Totals

_LIVING: tuple[Status, ...] = ("queued", "running", "paused")


def find(jobs: JobTable, job_id: str) -> JobState:
    """Return a job by its id or the beginning of it.

    Raises:
        QueueUsageError: there is none, or more than one.
    """
    state = jobs.get(job_id) if job_id else None
    if state is not None:
        return state
    found = [known for known in jobs.ids() if job_id and known.startswith(job_id)]
    if len(found) == 1 and (state := jobs.get(found[0])) is not None:
        return state
    if len(found) == 1:
        raise QueueUsageError(
            f"what Redis has of job {found[0]} is damaged",
            where=f"the queue {jobs.keys.prefix!r}",
            fix="submit its spec again: finished shards are kept",
        )
    raise QueueUsageError(
        f"{'more than one job begins' if found else 'no job begins'} with {job_id!r:.40}",
        where=f"the queue {jobs.keys.prefix!r}",
        fix="helios-batch status lists the jobs that the queue knows",
    )


def pause(jobs: JobTable, state: JobState) -> None:
    """Begin no more shards; those that run are finished."""
    _change(jobs, state, "paused", ("queued", "running"))


def resume(jobs: JobTable, state: JobState, settings: QueueSettings) -> None:
    """Go on with a paused job."""
    if state.status == "paused":
        record_reopened(state, settings)
    _change(jobs, state, "queued", ("paused",))


def cancel(
    jobs: JobTable, state: JobState, settings: QueueSettings, patience: float = 30.0
) -> bool:
    """Stop a job: what is published stays, and nothing is published after this returns True.

    Commits under way are stopped in the output folder itself, here or, where the folder is not
    to be had here, by a worker. False means that no worker has done so within `patience` seconds.
    """
    if state.status != "cancelled":
        _change(jobs, state, "cancelled", _LIVING)
    deadline = time.monotonic() + patience
    while True:
        now = find(jobs, state.job.id)
        if now.recorded == now.status:
            return True
        if record_status(now, settings):
            jobs.recorded(now)
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def retry(
    jobs: JobTable, state: JobState, settings: QueueSettings, *, failed_rows: bool = False
) -> int:
    """Open an ended job again; return how many finished shards will be run anew.

    With `failed_rows` these are the shards that hold rows with errors: their parts are taken away.
    The deadline is not set again.

    Raises:
        QueueUsageError: the job has not ended, or it is done and there is nothing to retry.
        OutputError: a part can't be read.
    """
    if state.live:
        raise QueueUsageError(
            f"the job is {state.status}",
            where=f"job {state.job.id}",
            fix="only a job that has failed, was cancelled or is done can be retried",
        )
    again = _discard_failed(state, settings) if failed_rows else 0
    if state.status == "done" and not again:
        raise QueueUsageError(
            "the job is done" + (" and no row has an error" if failed_rows else ""),
            where=f"job {state.job.id}",
            fix="retry --failed runs the shards with failed rows again, where there are any",
        )
    record_reopened(state, settings)
    jobs.reopen(state)
    return again


def _discard_failed(state: JobState, settings: QueueSettings) -> int:
    if not is_inside(state.job.output, settings.output_roots):
        raise QueueUsageError(
            f"{state.job.output} lies outside of what may be written here",
            where=f"job {state.job.id}, output.path",
            fix="run this from a folder above it, or name one in HELIOS_OUTPUT_ROOTS",
        )
    output, count = OutputFolder(state.job.output), 0
    rows_per_shard = int(state.job.spec["output"]["rows_per_shard"])
    plan = ShardPlan(state.job.rows, rows_per_shard)
    for shard, data in output.finished(plan, state.job.fingerprint):
        if Totals.from_json(data).failed_rows:
            output.discard_part(shard)
            count += 1
    return count


def _change(jobs: JobTable, state: JobState, status: Status, allowed: tuple[Status, ...]) -> None:
    now = jobs.set_status(state.job.id, status, allowed)
    if now != status:
        raise QueueUsageError(
            f"the job is {now}",
            where=f"job {state.job.id}",
            fix=f"it must be {' or '.join(allowed)} for this",
        )

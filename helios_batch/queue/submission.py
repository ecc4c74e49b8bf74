"""Putting a job into the queue, once however often it is tried."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from helios_batch.crashpoint import crashpoint
from helios_batch.job import Job, prepare
from helios_batch.queue.jobs import JobTable, QueuedJob
from helios_batch.queue.settings import DEFAULT_QUEUE
from helios_batch.queue.survey import queue_note
from helios_batch.spec import JobSpec


@dataclass(frozen=True)
class Submitted:
    """A job in the queue; `state` is "created", "reopened", or the status it already had."""

    id: str
    state: str
    rows: int
    shards: int
    output: str


def submit(
    spec: JobSpec,
    jobs: JobTable,
    *,
    queue: str = DEFAULT_QUEUE,
    priority: int = 0,
    confirm: Callable[[], None] = lambda: None,
) -> Submitted:
    """Check a job, make its output folder its own, and queue it.

    The id is made from what the job computes and where it writes: trying again, after a crash at
    any point too, finds the same job. One that has ended is opened again, and only what is
    missing is run. `confirm` is called just before the folder becomes the job's; what it raises
    refuses the job.

    Raises:
        UsageError: the job can't be run; nothing was written.
    """
    job = prepare(absolute(spec))
    crashpoint("submit.prepared")
    job.output.check(job.fingerprint, job.identity)
    queued = _queued(job, jobs, queue, priority)
    known = jobs.get(queued.id)
    if known is not None and known.live:
        return _submitted(queued, known.status)
    record = job.record() | {"status": "queued"} | queue_note(queued, jobs.keys.prefix)
    output = job.output.guarded(confirm)
    if output.read_record() is None:
        output.claim(record)
    else:
        output.record(record, success=False)
    crashpoint("submit.claimed")
    state = jobs.submit(queued)
    crashpoint("submit.queued")
    return _submitted(queued, state)


def absolute(spec: JobSpec) -> JobSpec:
    """Return the spec with local paths made absolute: workers have other working folders."""
    model = spec.model
    if Path(model).expanduser().is_dir():
        model = str(Path(model).expanduser().resolve())
    return spec.model_copy(
        update={
            "input": spec.input.model_copy(update={"path": _absolute_paths(spec.input.path)}),
            "output": spec.output.model_copy(update={"path": _absolute(spec.output.path)}),
            "models": (model,),
        }
    )


def _absolute_paths(path: str | tuple[str, ...]) -> str | tuple[str, ...]:
    return _absolute(path) if isinstance(path, str) else tuple(map(_absolute, path))


def _absolute(path: str) -> str:
    if "://" in path and not path.startswith("file://"):
        return path
    return str(Path.cwd() / Path(path.removeprefix("file://")).expanduser())


def job_id(fingerprint: str, output: str) -> str:
    """Return the id of the job of this fingerprint that writes there: 16 hex digits."""
    return hashlib.sha256(f"{fingerprint}\n{output}".encode()).hexdigest()[:16]


def _queued(job: Job, jobs: JobTable, queue: str, priority: int) -> QueuedJob:
    limits = job.spec.limits
    allowed = limits.failed_rows_allowed(job.table.rows)
    deadline = 0 if limits.deadline is None else round((jobs.now() + limits.deadline) * 1000)
    output = str(job.output.path)
    return QueuedJob(
        id=job_id(job.fingerprint, output),
        name=job.spec.name,
        fingerprint=job.fingerprint,
        spec=job.spec.model_dump(mode="json"),
        output=output,
        rows=job.table.rows,
        shards=len(job.shards),
        queue=queue,
        priority=priority,
        deadline_at=deadline,
        max_failed=-1 if allowed is None else allowed,
    )


def _submitted(job: QueuedJob, state: str) -> Submitted:
    return Submitted(job.id, state, job.rows, job.shards, job.output)

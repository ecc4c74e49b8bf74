"""A fire of a schedule: a job over the input files that no earlier run has taken."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from helios_batch.crashpoint import crashpoint
from helios_batch.data.output import OutputFolder
from helios_batch.data.publish import revoke
from helios_batch.data.source import has_files
from helios_batch.errors import OutputError
from helios_batch.job import Job, prepare
from helios_batch.queue.fire_lock import FireLock
from helios_batch.queue.jobs import JobTable
from helios_batch.queue.mirror import reopen, restore
from helios_batch.queue.roots import check_spec
from helios_batch.queue.schedules import Schedule, ScheduleTable
from helios_batch.queue.settings import QueueSettings
from helios_batch.queue.submission import job_id, submit
from helios_batch.spec_file import parse_spec

NOTHING_NEW = "nothing new"
_STOPPED = ("failed", "cancelled")


def fire(schedule: Schedule, time: datetime, jobs: JobTable, settings: QueueSettings) -> str:
    """Submit the job of one fire time; return its id, or what begins with `NOTHING_NEW`.

    The fire time names the job's output folder and so the job: firing again, after a crash or
    beside another process, finds the same one. What earlier runs have taken is read off their own
    `_job.json`. A run that failed or was cancelled has taken its files if it has published any of
    their rows, for then another run would do those twice: it is queued again, so that it does the
    others, unless the schedule's spec or model is another one now.

    Raises:
        UsageError: the spec, its input or model can't be used, or another fire is under way.
        CommitRefused: the lock was lost; nothing was submitted.
    """
    table = ScheduleTable(jobs)
    with FireLock(jobs, schedule.name, settings.lease) as lock:
        table.tried(schedule.name, time)
        try:
            crashpoint("fire.claimed")
            result = _submit(schedule, time, jobs, settings, lock.confirm)
        except KeyboardInterrupt:
            table.not_tried(schedule.name, time)
            raise
        except Exception as exc:
            what = str(exc).partition("\n")[0]
            table.note(schedule.name, time, f"failed: {what}")
            raise
        crashpoint("fire.submitted")
        table.fired(schedule.name, time, result)
    return result


def _submit(
    schedule: Schedule,
    time: datetime,
    jobs: JobTable,
    settings: QueueSettings,
    confirm: Callable[[], None],
) -> str:
    spec = parse_spec(schedule.spec, f"schedule {schedule.name}")
    check_spec(spec, settings)
    folder = schedule.folder / f"run-{time.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    runs = _runs(schedule.folder, jobs)
    if folder in runs:
        return job_id(runs[folder]["fingerprint"], str(folder))
    if not has_files(*spec.input.paths):
        return NOTHING_NEW
    job = prepare(spec)
    runs = {run: record for run, record in runs.items() if _same_work(record, job)}
    unfinished = [run for run, record in runs.items() if _is_unfinished(run, record)]
    reopened = [each for run in unfinished if (each := reopen(run, jobs, confirm)) is not None]
    new = _new_files(job, [record for run, record in runs.items() if _has_taken(run, record)])
    if not new:
        return f"{NOTHING_NEW}, goes on with {', '.join(reopened)}" if reopened else NOTHING_NEW
    run = spec.model_copy(
        update={
            "input": spec.input.model_copy(update={"path": new}),
            "output": spec.output.model_copy(update={"path": str(folder)}),
        }
    )
    submitted = submit(run, jobs, queue=schedule.queue, priority=schedule.priority, confirm=confirm)
    return submitted.id


def _runs(folder: Path, jobs: JobTable) -> dict[Path, dict[str, Any]]:
    """Return what the runs' `_job.json` say, by folder.

    A fire that was killed or lost its lock may have left a run: one that is about to begin is
    stopped, and one that began and was not queued is queued.

    Raises:
        OutputError: one of the files can't be read.
    """
    found = {}
    for run in sorted(folder.glob("run-*")):
        output = OutputFolder(str(run))
        if (record := output.read_record()) is None:
            revoke(run, "_job.json")
            record = output.read_record()
        if record is None:
            continue
        if not record.keys() >= {"status", "identity"}:
            raise OutputError(
                "_job.json is of another version",
                where=str(run),
                fix="move that folder away; its files are then new again",
            )
        restore(run, jobs)
        found[run] = record
    return found


def _new_files(job: Job, runs: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return the input files whose contents no run has taken."""
    taken = {file["content"] for run in runs for file in run["identity"]["input"]}
    return tuple(file.name for file in job.table.files if file.content_digest() not in taken)


def _has_taken(run: Path, record: dict[str, Any]) -> bool:
    return record["status"] not in _STOPPED or _has_published(run)


def _is_unfinished(run: Path, record: dict[str, Any]) -> bool:
    return record["status"] in _STOPPED and _has_published(run)


def _has_published(run: Path) -> bool:
    return any(run.glob("part-*.parquet"))


def _same_work(record: dict[str, Any], job: Job) -> bool:
    """Whether a run does to its files what the job does, whichever files they are."""
    identity = record["identity"]
    before, now = _work(identity["spec"]), _work(job.spec.identity())
    return before == now and bool(identity["model"] == job.model.digest)


def _work(identity: dict[str, Any]) -> dict[str, Any]:
    inputs = {key: value for key, value in identity["input"].items() if key != "path"}
    return identity | {"input": inputs}

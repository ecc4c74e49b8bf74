"""The job's status, kept in its output folder too, and read back when Redis has lost it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from helios_batch.data.output import OutputFolder
from helios_batch.errors import HeliosError
from helios_batch.queue.jobs import JobState, JobTable, QueuedJob
from helios_batch.queue.roots import is_inside
from helios_batch.queue.schedules import SCHEDULE_FILE, ScheduleTable, read_file
from helios_batch.queue.settings import QueueSettings

_log = logging.getLogger(__name__)
_DEEPEST = 4  # levels below a root; the README says so


def record_status(state: JobState, settings: QueueSettings) -> bool:
    """Write a job's status into its `_job.json`; return False if its folder is not to be had here.

    A stopped job's commits that are under way are stopped with it.
    """
    if not is_inside(state.job.output, settings.output_roots):
        return False
    try:
        output = OutputFolder(state.job.output)
        if state.status in ("cancelled", "failed"):
            output.revoke()
        found = output.read_record()
        if found is None or found.get("fingerprint") != state.job.fingerprint:
            return True
        # the survey, under its lease, writes what is not a stop
        if (
            state.status in ("paused", "cancelled", "failed")
            and found.get("status") != state.status
        ):
            note = {"status": state.status, "error": state.error or None}
            output.record(found | note, success=False)
    except HeliosError as exc:
        _log.warning("job %s: its folder can't be told its status: %s", state.job.id, exc)
        return False
    return True


def record_reopened(state: JobState, settings: QueueSettings) -> None:
    """Say in a job's folder that it lives again, so that a wiped Redis does not forget that.

    Where the folder is not to be had here, the job's next survey says so.
    """
    if is_inside(state.job.output, settings.output_roots):
        output = OutputFolder(state.job.output)
        found = output.read_record()
        if found is not None:
            output.record(found | {"status": "queued", "error": None}, success=False)


def rebuild(jobs: JobTable, settings: QueueSettings) -> list[str]:
    """Put the living jobs of the output folders under the roots back into Redis; return their ids.

    Jobs that Redis knows are left as they are.
    """
    folders = _folders(settings, "_job.json")
    return [job_id for folder in folders if (job_id := restore(folder, jobs)) is not None]


def restore(folder: Path, jobs: JobTable) -> str | None:
    """Put the living job of an output folder back into Redis; return its id if that was news."""
    record = _read(folder)
    job = _queued_job(record, jobs.keys.prefix, ("queued", "running", "paused"))
    if job is None or jobs.get(job.id) is not None:
        return None
    jobs.submit(job)
    if record["status"] == "paused":
        jobs.set_status(job.id, "paused", ("queued", "running"))
    jobs.event(job.id, "rebuilt", folder=str(folder))
    return job.id


def reopen(folder: Path, jobs: JobTable, confirm: Callable[[], None]) -> str | None:
    """Queue the failed or cancelled job of an output folder again, without a deadline.

    Redis need not know it any more. Returns its id, or None if there is none, or if it lives.

    Raises:
        WriteError: the folder can't be written.
    """
    record = _read(folder)
    job = _queued_job(record, jobs.keys.prefix, ("failed", "cancelled"))
    known = jobs.get(job.id) if job is not None else None
    if job is None or (known is not None and known.live):
        return None
    output = OutputFolder(str(folder)).guarded(confirm)
    output.record(record | {"status": "queued", "error": None}, success=False)
    jobs.submit(replace(job, deadline_at=0))
    return job.id


def rebuild_schedules(jobs: JobTable, settings: QueueSettings) -> list[str]:
    """Put the schedules of the output folders under the roots back; return their names."""
    found = (read_file(folder, settings.prefix) for folder in _folders(settings, SCHEDULE_FILE))
    table = ScheduleTable(jobs)
    return [each.name for each in found if each is not None and table.restore(each)]


def _folders(settings: QueueSettings, name: str) -> Iterator[Path]:
    """Yield the folders under the output roots that hold a file of that name, some levels deep."""
    for root in settings.output_roots:
        if "://" in root:
            continue
        for path, names, files in os.walk(root):
            if name in files:
                yield Path(path)
            deep = len(Path(path).relative_to(root).parts) >= _DEEPEST
            if deep or "_job.json" in files:
                names.clear()
            else:
                names[:] = sorted(each for each in names if not each.startswith((".", "_")))


def _read(folder: Path) -> dict[str, Any]:
    """Return what a folder's `_job.json` says; nothing if it can't be read."""
    try:
        record = json.loads((folder / "_job.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _queued_job(record: dict[str, Any], prefix: str, statuses: tuple[str, ...]) -> QueuedJob | None:
    """Return the job of this queue that a record tells of, if it has one of the statuses."""
    note = record.get("queue")
    if not isinstance(note, dict) or note.get("prefix") != prefix:
        return None
    if record.get("status") not in statuses:
        return None
    try:
        return QueuedJob(
            id=str(note["id"]),
            name=str(record["name"]),
            fingerprint=str(record["fingerprint"]),
            spec=dict(record["spec"]),
            output=str(record["spec"]["output"]["path"]),
            rows=int(record["rows"]),
            shards=int(record["shards"]),
            queue=str(note["queue"]),
            priority=int(note["priority"]),
            deadline_at=int(note["deadline_at"]),
            max_failed=int(note["max_failed"]),
        )
    except (KeyError, TypeError, ValueError):
        return None

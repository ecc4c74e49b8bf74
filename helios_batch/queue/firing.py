"""A fire of a schedule: a job over the input files that no earlier run has taken."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from helios_batch.crashpoint import crashpoint
from helios_batch.data.source import InputFile
from helios_batch.job import prepare
from helios_batch.queue.jobs import JobTable
from helios_batch.queue.roots import check_spec
from helios_batch.queue.schedules import Schedule, ScheduleTable
from helios_batch.queue.settings import QueueSettings
from helios_batch.queue.submission import submit
from helios_batch.spec import JobSpec
from helios_batch.spec_file import parse_spec

NOTHING_NEW = "nothing new"


def fire(schedule: Schedule, time: datetime, jobs: JobTable, settings: QueueSettings) -> str:
    """Submit the job of one fire time; return its id, or `NOTHING_NEW`.

    The fire time names the job's output folder and so the job: firing again, after a crash or
    beside another process, finds the same one. What earlier runs have taken is read off their own
    `_job.json`; a run that failed or was cancelled has taken nothing.

    Raises:
        UsageError: the spec, its input or model can't be used.
    """
    folder = schedule.folder / f"run-{time.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    crashpoint("fire.claimed")
    record = _record(folder)
    if record is not None:
        spec = parse_spec(record["spec"], str(folder))
        check_spec(spec, settings)
    else:
        spec = parse_spec(schedule.spec, f"schedule {schedule.name}")
        check_spec(spec, settings)
        new = _new_files(spec, schedule.folder)
        if not new:
            ScheduleTable(jobs).fired(schedule.name, time, NOTHING_NEW)
            return NOTHING_NEW
        spec = spec.model_copy(
            update={
                "input": spec.input.model_copy(update={"path": tuple(f.name for f in new)}),
                "output": spec.output.model_copy(update={"path": str(folder)}),
            }
        )
    submitted = submit(spec, jobs, queue=schedule.queue, priority=schedule.priority)
    crashpoint("fire.submitted")
    ScheduleTable(jobs).fired(schedule.name, time, submitted.id)
    return submitted.id


def _new_files(spec: JobSpec, folder: Path) -> list[InputFile]:
    """Return the input files whose contents no run under `folder` has taken for the same work."""
    job = prepare(spec)
    work = _work(spec.identity(), job.model.digest)
    taken = {
        file["content"]
        for run in folder.glob("run-*")
        if (record := _record(run)) is not None
        and record.get("status") not in ("failed", "cancelled")
        and _work(record["identity"]["spec"], record["identity"]["model"]) == work
        for file in record["identity"]["input"]
    }
    return [file for file in job.table.files if file.content_digest() not in taken]


def _work(identity: dict[str, Any], model: str) -> dict[str, Any]:
    """Return what is done to a file, whichever it is."""
    inputs = {key: value for key, value in identity["input"].items() if key != "path"}
    return identity | {"input": inputs, "model": model}


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((folder / "_job.json").read_text(encoding="utf-8"))
        return record if "identity" in record and "spec" in record else None
    except (OSError, ValueError, TypeError):
        return None

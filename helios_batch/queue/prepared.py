"""Jobs from the queue, checked and opened, once per process."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from helios_batch.errors import OutputError
from helios_batch.job import Job, prepare
from helios_batch.queue.engines import Overrides
from helios_batch.queue.jobs import QueuedJob
from helios_batch.queue.roots import check_files, check_spec
from helios_batch.queue.settings import QueueSettings
from helios_batch.shard import ShardContext
from helios_batch.spec_file import parse_spec

_KEPT = 4


@dataclass(frozen=True)
class Prepared:
    """An open job, and what its shards share."""

    job: Job
    context: ShardContext


class PreparedJobs:
    """Opens jobs and keeps the last few open."""

    def __init__(self, settings: QueueSettings, overrides: Overrides) -> None:
        self._settings, self._overrides = settings, overrides
        self._open: OrderedDict[str, Prepared] = OrderedDict()

    def get(self, queued: QueuedJob, *, fresh: bool = False) -> Prepared:
        """Return the open job; with `fresh`, look at its input, model and folder again.

        Nothing outside of the roots is touched.

        Raises:
            UsageError: the spec, its input, model or output are not usable here, or have changed.
        """
        if fresh:
            self._open.pop(queued.id, None)
        if queued.id not in self._open:
            self._open[queued.id] = self._prepare(queued)
            while len(self._open) > _KEPT:
                self._open.popitem(last=False)
        self._open.move_to_end(queued.id)
        return self._open[queued.id]

    def _prepare(self, queued: QueuedJob) -> Prepared:
        spec = parse_spec(queued.spec, f"job {queued.id}")
        check_spec(spec, self._settings)
        resources = self._overrides.apply(spec.resources)
        job = prepare(spec.model_copy(update={"resources": resources}))
        check_files(job.table, self._settings)
        if job.fingerprint != queued.fingerprint:
            raise OutputError(
                "the input or the model has changed since the job was submitted, or this worker "
                "sees another one under its name",
                where=f"job {queued.id}, {spec.input.path}, {spec.model}",
                fix="submit the changed job with a new output folder, or undo the change",
            )
        return Prepared(job, job.context())


def in_dtype(job: Job, dtype: str | None) -> Job:
    """Return the job with `auto` standing for the dtype that its other parts have."""
    resources = job.spec.resources
    if not dtype or resources.dtype != "auto":
        return job
    resources = resources.model_copy(update={"dtype": dtype})
    return replace(job, spec=job.spec.model_copy(update={"resources": resources}))

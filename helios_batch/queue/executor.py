"""What a worker's process does with a message: claim the unit, run it, publish, tell Redis."""

from __future__ import annotations

import os
import random
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import redis

from helios_batch.crashpoint import crashpoint
from helios_batch.data.shards import Shard
from helios_batch.errors import CommitRefused, HeliosError, JobError, OutputError
from helios_batch.finish import check_failures, final_record, finished, part_totals
from helios_batch.job import Job, prepare
from helios_batch.queue.engines import Overrides, WarmEngine
from helios_batch.queue.jobs import JobState, JobTable, QueuedJob
from helios_batch.queue.keeper import LeaseKeeper
from helios_batch.queue.leases import SURVEY, Holder, Lease, LeaseTable
from helios_batch.queue.poison import Suspicion
from helios_batch.queue.roots import check_files, check_spec
from helios_batch.queue.settings import QueueSettings
from helios_batch.records import Generator, Progress
from helios_batch.shard import ShardContext, probe_rows, run_shard
from helios_batch.spec_file import parse_spec
from helios_batch.totals import Totals

Outcome = Literal["done", "refused", "fenced", "failed", "handed_back", "unconfirmed"]
OnStep = Callable[[Progress], None]
_JOBS_KEPT = 4


class EngineLostError(Exception):
    """The engine died with this unit; the process that held it must not go on."""


class _HandBack(Exception):  # noqa: N818 - nothing failed
    """The worker is told to stop."""


@dataclass(frozen=True)
class _Prepared:
    job: Job
    context: ShardContext


class ShardExecutor:
    """Runs units one after the other in the process that owns the device.

    Args:
        settings: the queue's address, times and roots.
        jobs: the jobs, over this process's connection.
        holder: who this process is.
        overrides: the worker's own device, memory and threads.
        refill: called with a queue's name when one of its units is finished.
    """

    def __init__(
        self,
        settings: QueueSettings,
        jobs: JobTable,
        holder: Holder,
        overrides: Overrides,
        refill: Callable[[str], None],
    ) -> None:
        self._settings, self._jobs, self._holder = settings, jobs, holder
        self._overrides, self._refill, self._client = overrides, refill, jobs.client
        self._leases = LeaseTable(jobs.client, jobs.keys, settings.lease)
        self._engine = WarmEngine()
        self._prepared: OrderedDict[str, _Prepared] = OrderedDict()
        self.stop = threading.Event()

    def execute(self, job_id: str, unit: str) -> Outcome:
        """Claim a unit and see it through; every way out leaves it published or due again.

        Raises:
            EngineLostError: this process is not to be used any more.
        """
        state = self._jobs.get(job_id)
        if state is None:
            self._client.hincrby(self._jobs.keys.counters, "unknown_jobs", 1)
            return "refused"
        if self.stop.is_set():
            return "handed_back"
        lease = self._leases.claim(job_id, unit, state.job.queue, self._holder)
        crashpoint("lease.claimed")
        if isinstance(lease, str):
            return "refused"
        self._note(lease=f"{job_id} {unit} {lease.token}")
        try:
            return self._attempt(lease, state)
        finally:
            self._note(lease="")

    def _attempt(self, lease: Lease, state: JobState) -> Outcome:
        try:
            with LeaseKeeper(self._leases, lease) as keeper:
                if lease.unit == SURVEY:
                    self._survey(lease, state, keeper)
                else:
                    self._shard(lease, state, keeper)
            self._refill(state.job.queue)
            return "done"
        except _HandBack:
            self._leases.release(lease, "handed_back")
            return "handed_back"
        except CommitRefused as exc:
            return self._fenced(lease, exc)
        except redis.RedisError:
            # the part may be published; whoever claims the unit next will find it
            return "unconfirmed"
        except HeliosError as exc:
            return self._failed(lease, exc)
        except Exception as exc:
            self._lost(lease, exc)
            raise EngineLostError(str(exc)) from exc

    def _survey(self, lease: Lease, state: JobState, keeper: LeaseKeeper) -> None:
        """Read the output folder: go on with what is missing, or end the job."""
        job = self._prepare(state, fresh=True).job
        job.output.check(job.fingerprint, job.identity)
        found = finished(job)
        complete = len(found.shards) == len(job.shards)
        output = job.output.guarded(keeper.confirm)
        note = queue_note(state.job, self._settings.prefix)
        check_failures(job, found.totals)
        keeper.confirm()
        if complete:
            output.record(final_record(job, found.totals, "done") | note, success=True)
        elif (job.output.read_record() or {}).get("status") == "running":
            output.claim(job.record() | note)
        else:
            output.record(job.record() | note, success=False)
        crashpoint("survey.recorded")
        dtypes = {engine.dtype for engine in found.totals.engines}
        if dtypes:
            self._agree_dtype(lease.job_id, min(dtypes))
        status: Literal["running", "done"] = "done" if complete else "running"
        if self._leases.surveyed(lease, status, sorted(found.shards), found.totals):
            self._jobs.event(lease.job_id, "surveyed", finished=len(found.shards))
        else:
            self._leases.release(lease, "handed_back")

    def _shard(self, lease: Lease, state: JobState, keeper: LeaseKeeper) -> None:
        prepared = self._prepare(state)
        job = prepared.job
        shard = job.shards[int(lease.unit)]
        # whoever had this shard before can't publish any more, wherever it stands
        job.output.revoke(shard)
        if job.output.has_part(shard):
            totals, quarantined = part_totals(job, shard), 0
        else:
            totals, quarantined = self._run(lease, shard, prepared, keeper)
        crashpoint("shard.published")
        self._leases.complete(lease, totals, quarantined)
        crashpoint("shard.completed")
        self._jobs.event(lease.job_id, "published", unit=lease.unit, rows=totals.rows)
        self._note(rows=totals.rows, tokens=totals.completion_tokens, shards=1)
        self._check_failures(job, state)

    def _run(
        self, lease: Lease, shard: Shard, prepared: _Prepared, keeper: LeaseKeeper
    ) -> tuple[Totals, int]:
        engine = self._warm_engine(lease.job_id, prepared.job)

        def on_step(progress: Progress) -> None:
            keeper.check()
            if self.stop.is_set():
                raise _HandBack

        keeper.check()
        suspicion = self._clear_suspicion(lease, shard, prepared, engine, on_step)
        context = replace(prepared.context, output=prepared.job.output.guarded(keeper.confirm))
        result = run_shard(shard, context, engine, on_step, frozenset(suspicion.quarantined))
        if not result.published:
            return part_totals(prepared.job, shard), 0
        return result.totals, len(suspicion.quarantined)

    def _clear_suspicion(
        self, lease: Lease, shard: Shard, prepared: _Prepared, engine: Generator, on_step: OnStep
    ) -> Suspicion:
        """Probe the rows of a shard that has lost its processes, until it may be run as a whole."""
        suspicion = Suspicion.from_json(lease.suspicion, shard.rows)
        suspicion = suspicion.after_deaths(lease.deaths, self._settings.max_deaths)
        if lease.deaths or lease.suspicion:
            self._leases.suspect(lease, suspicion.to_json())
        while (probe := suspicion.probe) is not None:
            if suspicion.hopeless:
                raise JobError(
                    f"shard {shard.index} loses its process again and again, and no single row is "
                    "to blame",
                    where=f"rows {shard.start} to {shard.stop - 1} of the input",
                    fix="give the workers more memory, or the job a smaller max_batch, and retry",
                )
            self._jobs.event(lease.job_id, "probing", unit=lease.unit, rows=str(probe))
            probe_rows(shard, probe, prepared.context, engine, on_step, suspicion.quarantined)
            suspicion = suspicion.survived()
            self._leases.suspect(lease, suspicion.to_json())
        return suspicion

    def _prepare(self, state: JobState, *, fresh: bool = False) -> _Prepared:
        """Check and open a job, once per process; nothing outside of the roots is touched.

        Raises:
            UsageError: the spec, its input, model or output are not usable here, or have changed.
        """
        job_id = state.job.id
        if fresh:
            self._prepared.pop(job_id, None)
        if job_id not in self._prepared:
            spec = parse_spec(state.job.spec, f"job {job_id}")
            check_spec(spec, self._settings)
            resources = self._overrides.apply(spec.resources)
            job = prepare(spec.model_copy(update={"resources": resources}))
            check_files(job.table, self._settings)
            if job.fingerprint != state.job.fingerprint:
                raise OutputError(
                    "the input or the model has changed since the job was submitted, or this "
                    "worker sees another one under its name",
                    where=f"job {job_id}, {spec.input.path}, {spec.model}",
                    fix="submit the changed job with a new output folder, or undo the change",
                )
            self._prepared[job_id] = _Prepared(job, job.context())
            while len(self._prepared) > _JOBS_KEPT:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(job_id)
        return self._prepared[job_id]

    def _warm_engine(self, job_id: str, job: Job) -> Generator:
        """Return the engine, in the dtype that the job's other parts have."""
        agreed = self._client.hget(self._jobs.keys.job(job_id).job, "dtype")
        engine = self._engine.serve(job_id, _in_dtype(job, agreed))
        agreed = self._agree_dtype(job_id, engine.facts.dtype)
        if engine.facts.dtype != agreed:
            engine = self._engine.serve(job_id, _in_dtype(job, agreed))
        facts = engine.facts
        self._note(model=facts.model, depth=facts.layers_loaded, device=facts.device)
        return engine

    def _agree_dtype(self, job_id: str, dtype: str) -> str:
        """Settle a job's dtype with the other workers: the first one's counts."""
        key = self._jobs.keys.job(job_id).job
        self._client.hsetnx(key, "dtype", dtype)
        return str(self._client.hget(key, "dtype"))

    def _check_failures(self, job: Job, state: JobState) -> None:
        now = self._jobs.get(state.job.id)
        if now is None or now.job.max_failed < 0:
            return
        if now.counters["failed_rows"] > now.job.max_failed:
            try:
                check_failures(job, finished(job).totals)
            except JobError as exc:
                self._jobs.set_status(state.job.id, "failed", ("queued", "running"), str(exc))

    def _fenced(self, lease: Lease, exc: CommitRefused) -> Outcome:
        self._jobs.count(lease.job_id, "fenced")
        self._jobs.event(lease.job_id, "fenced", unit=lease.unit, why=exc.what)
        if self._leases.release(lease, "handed_back") < 0:
            self._leases.forgive(lease)
        return "fenced"

    def _failed(self, lease: Lease, exc: HeliosError) -> Outcome:
        """Count a failure; another try comes later and elsewhere, up to the limit."""
        delay = random.uniform(0.5, 1.0) * self._settings.redelivery
        failures = self._leases.release(lease, "failed", delay)
        self._jobs.event(
            lease.job_id, "error", unit=lease.unit, worker=self._holder.worker, error=str(exc)
        )
        if failures >= self._settings.max_failures:
            self._jobs.set_status(lease.job_id, "failed", ("queued", "running"), str(exc))
        return "failed"

    def _lost(self, lease: Lease, exc: Exception) -> None:
        self._jobs.event(
            lease.job_id,
            "engine_lost",
            unit=lease.unit,
            worker=self._holder.worker,
            error="".join(traceback.format_exception_only(exc)).strip(),
            traceback=traceback.format_exc()[-4000:],
        )
        self._leases.release(lease, "died")

    def _note(self, *, rows: int = 0, tokens: int = 0, shards: int = 0, **facts: str | int) -> None:
        """Tell the worker's entry in Redis; a lost note loses nothing else."""
        key = self._jobs.keys.worker(self._holder.boot)
        try:
            pipe = self._client.pipeline(transaction=False)
            for name, amount in (("rows", rows), ("tokens", tokens), ("shards", shards)):
                if amount:
                    pipe.hincrby(key, name, amount)
            pipe.hset(key, mapping={"child": os.getpid(), **facts})
            pipe.execute()
        except redis.RedisError:
            pass


def queue_note(job: QueuedJob, prefix: str) -> dict[str, object]:
    """Return what `_job.json` keeps of the queue, so that Redis can be made again from it."""
    note = {"id": job.id, "prefix": prefix, "queue": job.queue, "priority": job.priority}
    return {"queue": note | {"deadline_at": job.deadline_at, "max_failed": job.max_failed}}


def _in_dtype(job: Job, dtype: str | None) -> Job:
    resources = job.spec.resources
    if not dtype or resources.dtype != "auto":
        return job
    resources = resources.model_copy(update={"dtype": dtype})
    return replace(job, spec=job.spec.model_copy(update={"resources": resources}))

"""What a worker's process does with a message: claim the unit, see it through, tell Redis."""

from __future__ import annotations

import random
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Literal

import redis

from helios_batch.crashpoint import crashpoint
from helios_batch.errors import CommitRefused, HeliosError, JobError, UsageError
from helios_batch.finish import check_failures, finished
from helios_batch.job import Job
from helios_batch.policy_file import calibration_mark
from helios_batch.queue.attempt import HandBack, ShardAttempt
from helios_batch.queue.engines import Overrides, WarmEngine
from helios_batch.queue.jobs import JobState, JobTable
from helios_batch.queue.keeper import LeaseKeeper
from helios_batch.queue.leases import SURVEY, Holder, Lease, LeaseTable
from helios_batch.queue.prepared import PreparedJobs, in_dtype
from helios_batch.queue.settings import QueueSettings
from helios_batch.queue.survey import survey
from helios_batch.records import Generator
from helios_batch.supervision import Supervisor
from helios_batch.totals import Totals

_LONGEST_PAUSE = 8  # times the redelivery time
_REFILL_EVERY = 2
_SHOW_AFTER = 0.3

Outcome = Literal["done", "refused", "fenced", "failed", "handed_back", "unconfirmed"]


class EngineLostError(Exception):
    """The engine died with its unit; the process that held it must not go on."""


class UnitExecutor:
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
        self._client, self._refill = jobs.client, refill
        self._leases = LeaseTable(jobs.client, jobs.keys, settings.lease)
        self._prepared = PreparedJobs(settings, overrides)
        self._engine = WarmEngine()
        self._ready: tuple[tuple[object, ...], Generator] | None = None
        self._facts: dict[str, str | int] = {}
        self._done: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._note: threading.Timer | None = None
        self._unfilled = 0
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
        if lease.failures >= self._settings.max_failures:
            return self._given_up(lease)
        outcome = self._see_through(lease, state)
        self._show_soon()
        if outcome == "done":
            self._refill_at_times(lease, state.job.queue)
        return outcome

    def _refill_at_times(self, lease: Lease, queue: str) -> None:
        """Let more be sent, after every second shard: two a worker are on their way."""
        self._unfilled += 1
        if lease.unit == SURVEY or self._unfilled >= _REFILL_EVERY:
            self._unfilled = 0
            self._refill(queue)

    def _see_through(self, lease: Lease, state: JobState) -> Outcome:
        try:
            with LeaseKeeper(self._leases, lease) as keeper:
                if lease.unit == SURVEY:
                    job = self._prepared.get(state.job, fresh=True).job
                    survey(job, state, self._jobs, self._leases, lease, keeper)
                else:
                    self._shard(lease, state, keeper)
            return "done"
        except HandBack:
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

    def _shard(self, lease: Lease, state: JobState, keeper: LeaseKeeper) -> None:
        prepared = self._prepared.get(state.job)
        attempt = ShardAttempt(
            *(prepared, lease, keeper, self._jobs, self._leases),
            *(self.stop, self._settings.max_deaths),
        )
        totals = attempt.published()
        if totals is None:
            totals = self._run(attempt, lease.job_id, prepared.job)
        with self._lock:
            self._done.update(rows=totals.rows, tokens=totals.completion_tokens, shards=1)
        if state.job.max_failed >= 0:
            self._stop_on_failures(prepared.job, lease.job_id)

    def _run(self, attempt: ShardAttempt, job_id: str, job: Job) -> Totals:
        """Run the shard; an engine that could not do what was asked serves no other."""
        try:
            return attempt.run(self._warm_engine(job_id, job, attempt.supervisor))
        except UsageError:
            self._ready = None
            self._engine.drop()
            raise

    def _warm_engine(self, job_id: str, job: Job, supervisor: Supervisor) -> Generator:
        """Return the engine, in the dtype that the job's other parts have: the first one's."""
        if self._ready is not None and self._ready[0] == (job_id, calibration_mark(job.output)):
            return self._ready[1]
        # nothing may hold the engine while another takes its place
        self._ready, loads = None, self._engine.loads
        settled = in_dtype(job, self._jobs.agreed(job_id, "dtype"))
        dtype = self._engine.serve(job_id, settled, supervisor).facts.dtype
        agreed = self._jobs.agree(job_id, "dtype", dtype)
        settled = settled if dtype == agreed else in_dtype(job, agreed)
        engine = self._engine.serve(job_id, settled, supervisor)
        facts = engine.facts
        if facts.dtype != agreed:
            raise JobError(
                f"the job's other parts are computed in {agreed}, this one would be in "
                f"{facts.dtype}",
                where=f"job {job_id}, resources.dtype",
                fix="let resources.dtype be auto, or the same in all that run this job",
            )
        self._ready = (job_id, calibration_mark(job.output)), engine
        self._facts = {"model": facts.model, "depth": facts.layers_loaded, "device": facts.device}
        if self._engine.loads != loads:
            self._jobs.event(job_id, "loaded", worker=self._holder.worker, **self._facts)
        return engine

    def _stop_on_failures(self, job: Job, job_id: str) -> None:
        state = self._jobs.get(job_id)
        if state is None or state.counters["failed_rows"] <= state.job.max_failed:
            return
        try:
            check_failures(job, finished(job).totals)
        except JobError as exc:
            self._jobs.set_status(job_id, "failed", ("queued", "running"), str(exc))

    def _fenced(self, lease: Lease, exc: CommitRefused) -> Outcome:
        self._jobs.count(lease.job_id, "fenced")
        self._jobs.event(lease.job_id, "fenced", unit=lease.unit, why=exc.what)
        if self._leases.release(lease, "handed_back") < 0:
            self._leases.forgive(lease)
        return "fenced"

    def _failed(self, lease: Lease, exc: HeliosError) -> Outcome:
        worker = self._holder.worker
        self._jobs.event(lease.job_id, "error", unit=lease.unit, worker=worker, error=str(exc))
        self._release(lease, "failed", str(exc))
        return "failed"

    def _release(self, lease: Lease, why: Literal["failed", "died"], error: str) -> None:
        """Count a failure; other tries come later and elsewhere, each after a longer pause.

        The last one that is allowed fails the job.
        """
        pause = min(2**lease.failures, _LONGEST_PAUSE) * self._settings.redelivery
        failures = self._leases.release(lease, why, random.uniform(0.5, 1.0) * pause)
        if failures >= self._settings.max_failures:
            self._jobs.set_status(lease.job_id, "failed", ("queued", "running"), error)

    def _given_up(self, lease: Lease) -> Outcome:
        why = (
            f"unit {lease.unit} has failed {lease.failures} times, or lost its process before a "
            f"row ran; helios-batch errors {lease.job_id} tells how, retry tries again"
        )
        self._jobs.set_status(lease.job_id, "failed", ("queued", "running"), why)
        self._leases.release(lease, "handed_back")
        return "failed"

    def _lost(self, lease: Lease, exc: Exception) -> None:
        error = "".join(traceback.format_exception_only(exc)).strip()
        self._jobs.event(
            lease.job_id,
            "engine_lost",
            unit=lease.unit,
            worker=self._holder.worker,
            error=error,
            traceback=traceback.format_exc()[-4000:],
        )
        what = "the job's folder was read" if lease.unit == SURVEY else "a row ran"
        self._release(lease, "died", f"a worker lost its process before {what}: {error}")

    def _show_soon(self) -> None:
        """Have the worker's entry in Redis told, once for what is done in a while."""
        if self._note is None:
            self._note = threading.Timer(_SHOW_AFTER, self._show)
            self._note.daemon = True
            self._note.start()

    def _show(self) -> None:
        """Tell the worker's entry what was done; a note that is lost loses nothing else."""
        self._note = None
        with self._lock:
            done, self._done = self._done, Counter()
        key = self._jobs.keys.worker(self._holder.boot)
        try:
            pipe = self._client.pipeline(transaction=False)
            for name, amount in done.items():
                pipe.hincrby(key, name, amount)
            if self._facts:
                pipe.hset(key, mapping=self._facts)
            pipe.execute()
        except redis.RedisError:
            with self._lock:
                self._done.update(done)

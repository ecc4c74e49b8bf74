"""Keeping a bounded number of messages on their way, and finding those that were lost.

Any process may do this at any time; what must be atomic is in the scripts. A lock makes it
one process's work while that one lives, which saves effort and decides nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import redis

from helios_batch.crashpoint import crashpoint
from helios_batch.queue.app import send_unit
from helios_batch.queue.jobs import JobState, JobTable
from helios_batch.queue.mirror import record_status
from helios_batch.queue.scripts import Scripts
from helios_batch.queue.settings import QueueSettings
from helios_batch.queue.turns import Candidate, engine_of, next_turn

_log = logging.getLogger(__name__)
_SPARE_MESSAGES = 2
_LOOK_EVERY = 1.0

Send = Callable[[QueueSettings, str, str, str], None]


@dataclass
class _Queue:
    """A queue's jobs, and when each engine's latest stretch began (Redis's time, in seconds)."""

    jobs: list[Candidate]
    began: dict[str, float]


class Dispatcher:
    """Sends the units of living jobs to their queues, a few per worker at a time.

    What someone has damaged in Redis is left out, logged and counted; other jobs go on.
    """

    def __init__(self, settings: QueueSettings, jobs: JobTable, send: Send = send_unit) -> None:
        self._settings, self._jobs, self._send = settings, jobs, send
        self._client, self._keys = jobs.client, jobs.keys
        self._scripts = Scripts(jobs.client)
        self._known: dict[str, tuple[str, str]] = {}  # queue and engine of each active job
        self._left_out: set[str] = set()
        self._workers: dict[str, int] = {}
        self._looked = -_LOOK_EVERY

    def tick(self) -> None:
        """Find what was lost, stop what is over, mirror what has changed, and send.

        Raises:
            redis.RedisError: Redis does not answer; the next tick tries again.
        """
        for state in self._look():
            try:
                self._see_to(state)
            except (redis.ResponseError, ValueError, OSError) as exc:
                self._leave_out(state.job.id, str(exc))
        self.fill()

    def fill(self, only: str | None = None) -> None:
        """Send units until each queue (or one) has its share underway."""
        if time.monotonic() - self._looked > _LOOK_EVERY:
            self._look()
        now, queues = self._queues(only)
        for name, queue in queues.items():
            room = self._window(name) - sum(job.underway for job in queue.jobs)
            while queue.jobs and room > 0:
                job, begins = next_turn(queue.jobs, queue.began, now, self._settings.stretch)
                try:
                    units = self.choose(job.id, 1)
                except redis.ResponseError as exc:
                    self._leave_out(job.id, str(exc))
                    units = []
                crashpoint("dispatch.chosen")
                if not units:
                    queue.jobs.remove(job)
                    continue
                if begins:
                    self._begin_stretch(name, queue, job.engine, now)
                for unit in units:
                    self._send(self._settings, job.id, unit, name)
                job.underway, job.sent = job.underway + len(units), now
                room -= len(units)

    def _look(self) -> list[JobState]:
        """Read the active jobs and count the workers; note which jobs can't be read."""
        self._looked = time.monotonic()
        self._workers = count_workers(self._client, self._jobs)
        ids = sorted(self._client.smembers(self._keys.active))
        states = self._jobs.read(ids)
        self._known = {s.job.id: (s.job.queue, engine_of(s.job.spec)) for s in states}
        self._left_out &= {*ids}
        for job_id in set(ids) - self._known.keys():
            self._leave_out(job_id, "its entry in Redis is damaged")
        return states

    def _leave_out(self, job_id: str, why: str) -> None:
        """Tell, once, that a job is not served while it is as it is."""
        if job_id not in self._left_out:
            self._left_out.add(job_id)
            _log.error("job %s is left out, others go on: %s", job_id, why)
            if self._client.sadd(self._keys.damaged, job_id):  # no other process has told
                self._client.hincrby(self._keys.counters, "damaged_jobs", 1)

    def _queues(self, only: str | None) -> tuple[float, dict[str, _Queue]]:
        """Return Redis's time in seconds, and the queues that have jobs to serve, in a round trip.

        A job that was damaged since it was read is not among them.
        """
        known = {i: found for i, found in self._known.items() if only in (None, found[0])}
        names = sorted({queue for queue, _ in known.values()})
        pipe = self._client.pipeline(transaction=False)
        pipe.time()
        for name in names:
            pipe.hgetall(self._keys.turns(name))
        for job_id in known:
            keys = self._keys.job(job_id)
            pipe.hmget(keys.job, "status", "priority", "submitted", "sent")
            pipe.zcard(*keys.parts("open"))
        (seconds, micros), *found = pipe.execute(raise_on_error=False)
        queues = {
            name: _Queue([], {engine: float(at) for engine, at in began.items()})
            for name, began in zip(names, found, strict=False)
        }
        found = found[len(names) :]
        for job_id, facts, underway in zip(known, found[::2], found[1::2], strict=True):
            queue, engine = known[job_id]
            with suppress(ValueError, TypeError):
                status, priority, submitted, sent = facts
                times = int(submitted) / 1000, int(sent or 0) / 1000
                job = Candidate(job_id, engine, int(priority), *times, int(underway))
                if status in ("queued", "running"):
                    queues[queue].jobs.append(job)
        return float(seconds) + float(micros) / 1e6, queues

    def _begin_stretch(self, name: str, queue: _Queue, engine: str, now: float) -> None:
        """Note that an engine's turn begins; engines that no job wants are forgotten."""
        key, wanted = self._keys.turns(name), {job.engine for job in queue.jobs}
        self._client.hset(key, engine, now)
        if gone := queue.began.keys() - wanted:
            self._client.hdel(key, *gone)
        queue.began[engine] = now

    def choose(self, job_id: str, room: int) -> list[str]:
        """Return a job's next units, at most `room`, marked as sent; the caller sends them."""
        keys = self._keys.job(job_id)
        names = [keys.job, *keys.parts("open", "again", "done")]
        return [str(unit) for unit in self._scripts.run("dispatch", names, room)]

    def _window(self, queue: str) -> int:
        """How many units may be underway: each worker has one to run and one to take next."""
        return 2 * self._workers.get(queue, 0) + _SPARE_MESSAGES

    def _see_to(self, state: JobState) -> None:
        self._recover(state)
        if state.live and 0 < state.job.deadline_at / 1000 < self._jobs.now():
            why = "its deadline has passed; what is finished stays, retry goes on without one"
            self._jobs.set_status(state.job.id, "failed", ("queued", "running", "paused"), why)
        elif state.recorded != state.status and record_status(state, self._settings):
            self._jobs.recorded(state)

    def _recover(self, state: JobState) -> None:
        keys, queue = self._keys.job(state.job.id), state.job.queue
        waiting = self._client.llen(f"{self._keys.broker}{queue}")
        died, lost = self._scripts.run(
            "recover",
            [
                keys.job,
                *keys.parts("holders", "open", "again", "deaths"),
                self._keys.watermark(queue),
                *keys.parts("events", "failures"),
            ],
            *(keys.leases, round(self._settings.redelivery * 1000), int(waiting == 0)),
        )
        if died or lost:
            text = "job %s: %d leases had run out, %d messages were lost"
            _log.warning(text, state.job.id, died, lost)


def count_workers(client: redis.Redis, jobs: JobTable) -> dict[str, int]:
    """Return how many living workers take from each queue."""
    counts: dict[str, int] = {}
    for boot in client.smembers(jobs.keys.workers):
        queues = client.hget(jobs.keys.worker(boot), "queues")
        if queues is None:
            client.srem(jobs.keys.workers, boot)
        for queue in (queues or "").split(",") if queues else []:
            counts[queue] = counts.get(queue, 0) + 1
    return counts

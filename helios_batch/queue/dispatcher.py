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

_log = logging.getLogger(__name__)
_SPARE_MESSAGES = 2
_COUNT_WORKERS_EVERY = 1.0

Send = Callable[[QueueSettings, str, str, str], None]


@dataclass
class _Candidate:
    """A job that may have units to send; `underway` counts those sent and not finished."""

    id: str
    queue: str
    priority: int
    submitted: int
    underway: int

    @property
    def turn(self) -> tuple[int, int, int, str]:
        """Sorts the job whose turn it is to the front: priority, then fewest underway."""
        return (-self.priority, self.underway, self.submitted, self.id)


class Dispatcher:
    """Sends the units of living jobs to their queues, a few per worker at a time."""

    def __init__(self, settings: QueueSettings, jobs: JobTable, send: Send = send_unit) -> None:
        self._settings, self._jobs, self._send = settings, jobs, send
        self._client, self._keys = jobs.client, jobs.keys
        self._scripts = Scripts(jobs.client)
        self._workers: dict[str, int] = {}
        self._counted = -_COUNT_WORKERS_EVERY

    def tick(self) -> None:
        """Find what was lost, stop what is over, mirror what has changed, and send.

        Raises:
            redis.RedisError: Redis does not answer; the next tick tries again.
        """
        for state in self._jobs.active():
            try:
                self._recover(state)
            except redis.ResponseError:
                _log.exception("job %s: its leases can't be read; others go on", state.job.id)
            if state.live and 0 < state.job.deadline_at / 1000 < self._jobs.now():
                why = "its deadline has passed; what is finished stays, retry goes on without one"
                self._jobs.set_status(state.job.id, "failed", ("queued", "running", "paused"), why)
            elif state.recorded != state.status and record_status(state, self._settings):
                self._jobs.recorded(state)
        self.fill()

    def fill(self, only: str | None = None) -> None:
        """Send units until each queue (or one) has its share underway."""
        for queue, jobs in self._candidates(only).items():
            room = self._window(queue) - sum(job.underway for job in jobs)
            while jobs and room > 0:
                job = min(jobs, key=lambda candidate: candidate.turn)
                units = self.choose(job.id, 1)
                if not units:
                    jobs.remove(job)
                crashpoint("dispatch.chosen")
                for unit in units:
                    self._send(self._settings, job.id, unit, queue)
                job.underway += len(units)
                room -= len(units)

    def _candidates(self, only: str | None) -> dict[str, list[_Candidate]]:
        ids = sorted(self._client.smembers(self._keys.active))
        pipe = self._client.pipeline(transaction=False)
        for job_id in ids:
            keys = self._keys.job(job_id)
            pipe.hmget(keys.job, "status", "queue", "priority", "submitted")
            pipe.zcard(*keys.parts("open"))
        found = pipe.execute()
        queues: dict[str, list[_Candidate]] = {}
        for job_id, facts, underway in zip(ids, found[::2], found[1::2], strict=True):
            status, queue, priority, submitted = facts
            if status in ("queued", "running") and queue and only in (None, queue):
                with suppress(ValueError, TypeError):  # a damaged job's: it waits
                    job = _Candidate(job_id, queue, int(priority), int(submitted), underway)
                    queues.setdefault(queue, []).append(job)
        return queues

    def choose(self, job_id: str, room: int) -> list[str]:
        """Return a job's next units, at most `room`, marked as sent; the caller sends them."""
        keys = self._keys.job(job_id)
        names = [keys.job, *keys.parts("open", "again", "done")]
        return [str(unit) for unit in self._scripts.run("dispatch", names, room)]

    def _window(self, queue: str) -> int:
        """How many units may be underway: each worker has one to run and one to take next."""
        now = time.monotonic()
        if now - self._counted > _COUNT_WORKERS_EVERY:
            self._counted, self._workers = now, count_workers(self._client, self._jobs)
        return 2 * self._workers.get(queue, 0) + _SPARE_MESSAGES

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

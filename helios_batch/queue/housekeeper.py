"""What a worker's main process does beside its messages: show that it lives, and dispatch."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import redis

from helios_batch.queue import transport
from helios_batch.queue.dispatcher import Dispatcher
from helios_batch.queue.jobs import JobTable
from helios_batch.queue.mirror import rebuild, rebuild_schedules
from helios_batch.queue.settings import QueueSettings

_log = logging.getLogger(__name__)
_LOCK = "dispatcher"


class Housekeeper:
    """A thread that beats, and that dispatches for all while it has the lock.

    Args:
        boot: names this process among all that ever lived.
        facts: what the worker's entry in Redis says; empty for a process without a worker.
        chores: called in each round while the lock is held.
    """

    def __init__(
        self,
        settings: QueueSettings,
        jobs: JobTable,
        boot: str,
        facts: Mapping[str, str | int],
        chores: tuple[Callable[[], None], ...] = (),
    ) -> None:
        self._settings, self._jobs, self._boot, self._facts = settings, jobs, boot, dict(facts)
        self._client, self._keys = jobs.client, jobs.keys
        self._chores = (self._rebuild, Dispatcher(settings, jobs).tick, *chores)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self.run, name="housekeeper", daemon=True)

    def start(self) -> None:
        """Begin in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and take the worker's entry away."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        try:
            self._client.delete(self._keys.worker(self._boot))
            self._client.srem(self._keys.workers, self._boot)
        except redis.RedisError:
            pass  # it expires by itself

    def run(self) -> None:
        """Go round until stopped; Redis may be away for any time."""
        while not self._done.wait(self._settings.tick):
            try:
                self.round()
            except redis.RedisError as exc:
                _log.warning("Redis: %s", exc)
            except Exception:
                _log.exception("housekeeping failed; the next round tries again")

    def round(self) -> None:
        """Beat; with the lock, dispatch."""
        if self._facts:
            self._beat()
        if self._has_lock():
            for chore in self._chores:
                chore()

    def _beat(self) -> None:
        key = self._keys.worker(self._boot)
        refused = transport.refused.total()
        transport.refused.clear()
        pipe: Any = self._client.pipeline(transaction=False)
        pipe.hset(key, mapping=self._facts)
        pipe.pexpire(key, self._milliseconds(20))
        pipe.sadd(self._keys.workers, self._boot)
        if refused:
            pipe.hincrby(self._keys.counters, "refused_messages", refused)
        pipe.execute()

    def _has_lock(self) -> bool:
        lock, life = self._keys.lock(_LOCK), self._milliseconds(6)
        if self._client.set(lock, self._boot, nx=True, px=life):
            return True
        if self._client.get(lock) != self._boot:
            return False
        self._client.pexpire(lock, life)
        return True

    def _rebuild(self) -> None:
        if self._client.exists(self._keys.epoch):
            return
        for job_id in rebuild(self._jobs, self._settings):
            _log.warning("job %s is put back into Redis from its output folder", job_id)
        for name in rebuild_schedules(self._jobs, self._settings):
            _log.warning("schedule %s is put back into Redis from its output folder", name)
        self._client.set(self._keys.epoch, self._boot)

    def _milliseconds(self, rounds: int) -> int:
        return round(max(1.0, rounds * self._settings.tick) * 1000)

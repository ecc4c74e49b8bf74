"""The lock of a schedule's fires: two at once would take the same files."""

from __future__ import annotations

import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

import redis
from redis.exceptions import LockError, LockNotOwnedError

from helios_batch.errors import CommitRefused, QueueUsageError
from helios_batch.queue.jobs import JobTable


class FireLock:
    """Held while a fire is under way, and renewed by a thread; it ends `seconds` after its process.

    Raises:
        QueueUsageError: on entry, another fire of the schedule has it.
    """

    def __init__(self, jobs: JobTable, schedule: str, seconds: float) -> None:
        self._name, self._seconds = schedule, seconds
        self._lock = jobs.client.lock(
            jobs.keys.lock(f"fire:{schedule}"), timeout=seconds, thread_local=False
        )
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="fire-lock", daemon=True)

    def __enter__(self) -> Self:
        if not self._lock.acquire(blocking=False):
            raise QueueUsageError(
                "another fire of this schedule is under way",
                where=f"schedule {self._name}",
                fix=f"try again when it has ended, or {self._seconds:g} s after its process died",
            )
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        # a lock that is lost, or that can't be given back now, ends by itself
        with suppress(LockError, redis.RedisError):
            self._lock.release()

    def confirm(self) -> None:
        """Ask Redis whether the lock is still held.

        Raises:
            CommitRefused: it is not.
            redis.RedisError: Redis does not answer.
        """
        try:
            self._lock.reacquire()
        except LockNotOwnedError:
            raise CommitRefused(
                "the fire took so long between two signs of life that another may have begun",
                where=f"schedule {self._name}",
                fix="nothing: the fire is tried again",
            ) from None

    def _renew(self) -> None:
        while not self._done.wait(self._seconds / 3):
            try:
                self._lock.reacquire()
            except LockError:
                return
            except redis.RedisError:
                continue  # until it runs out; `confirm` sees to that

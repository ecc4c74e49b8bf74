"""Keeping a lease alive while its shard computes, and noticing when it is lost."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

import redis

from helios_batch.errors import CommitRefused
from helios_batch.queue.leases import Lease, LeaseTable


class LeaseKeeper:
    """Renews a lease from a thread of its own, three times in the life of the lease.

    Trusted are Redis's clock, for what others may do, and this machine's monotonic one, for how
    long ago the last renewal was sent: a process that was stopped longer than its lease knows it
    from its own clock before Redis tells.
    """

    def __init__(self, table: LeaseTable, lease: Lease) -> None:
        self._table, self._lease = table, lease
        self._seconds = table.milliseconds / 1000
        self._held_until = time.monotonic() + self._seconds
        self._lost = ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_done, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()

    def check(self) -> None:
        """Raise if the lease is lost, as far as this process knows.

        Raises:
            CommitRefused: it is; nothing of this attempt will be published.
        """
        if not self._lost and time.monotonic() > self._held_until:
            self._lost = "it was not renewed in time"
        if self._lost:
            raise CommitRefused(
                f"the lease is lost: {self._lost}",
                where=f"job {self._lease.job_id}, shard {self._lease.unit}",
                fix="nothing: whoever holds the shard now goes on",
            )

    def confirm(self) -> None:
        """Ask Redis; to be called when a part is ready, just before it is published.

        Raises:
            CommitRefused: the lease is lost, the job was stopped, or Redis does not answer before
                the lease runs out.
        """
        while True:
            self.check()
            try:
                self._renew()
            except (redis.ConnectionError, redis.TimeoutError):
                time.sleep(min(0.05, self._seconds / 20))
                continue
            self.check()
            return

    def _renew(self) -> None:
        sent = time.monotonic()
        answer = self._table.renew(self._lease)
        if answer == "held":
            self._held_until = max(self._held_until, sent + self._seconds)
        elif answer == "lost":
            self._lost = "another attempt has it, or Redis has forgotten it"
        else:
            self._lost = f"the job is {answer}"

    def _renew_until_done(self) -> None:
        while not self._done.wait(self._seconds / 3) and not self._lost:
            try:
                self._renew()
            except redis.RedisError:
                continue  # until the lease runs out; `check` sees to that

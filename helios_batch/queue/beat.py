"""Firing schedules when they are due: any process that dispatches does it, none has to."""

from __future__ import annotations

import logging
import subprocess
from datetime import UTC, datetime

from helios_batch.queue.cron import due_fire
from helios_batch.queue.jobs import JobTable
from helios_batch.queue.relaunch import own_command
from helios_batch.queue.schedules import ScheduleTable
from helios_batch.queue.settings import QueueSettings

_log = logging.getLogger(__name__)
_TRIES = 3


class Beat:
    """Starts a process of its own for a fire that is due, one at a time: reading inputs takes long.

    Fire times are told by Redis's clock. Several beats may run: a fire has its schedule's lock, and
    one that is done twice still gives one job. A fire that fails is tried again up to three times,
    until the next is due.
    """

    def __init__(self, settings: QueueSettings, jobs: JobTable) -> None:
        self._jobs, self._schedules = jobs, ScheduleTable(jobs)
        self._pause = 3 * settings.redelivery
        self._running: subprocess.Popen[bytes] | None = None

    def tick(self) -> None:
        """See to the fire that runs, or start one that is due.

        Raises:
            redis.RedisError: Redis does not answer; the next tick tries again.
        """
        if self._running is not None and self._running.poll() is None:
            return
        self._running = None
        now = datetime.fromtimestamp(self._jobs.now(), UTC)
        for schedule in self._schedules.all():
            last = self._schedules.last(schedule.name)
            due = due_fire(schedule.cron, schedule.zone, last.time, now)
            if due is not None and self._schedules.may_try(schedule.name, due, self._pause):
                self._start(schedule.name, due)
                return

    def stop(self) -> None:
        """End the fire that runs; another beat does it again."""
        if self._running is not None:
            self._running.terminate()
            self._running.wait()

    def _start(self, name: str, time: datetime) -> None:
        if self._schedules.tries(name, time) >= _TRIES:
            _log.error("schedule %s: its fire of %s is given up", name, time)
            self._schedules.fired(name, time, f"given up after {_TRIES} tries")
            return
        self._running = subprocess.Popen(own_command("schedule", "fire", name, time.isoformat()))

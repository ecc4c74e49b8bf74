"""Firing schedules when they are due: any process that dispatches does it, none has to."""

from __future__ import annotations

import logging
import subprocess
import sys
from datetime import UTC, datetime

from helios_batch.queue.cron import due_fire
from helios_batch.queue.jobs import JobTable
from helios_batch.queue.schedules import ScheduleTable

_log = logging.getLogger(__name__)
_TRIES = 3
_SECONDS_PER_TRY = 600.0


class Beat:
    """Starts a process of its own for each fire that is due: reading inputs takes its time.

    Fire times are told by Redis's clock. Several beats may run: a fire is claimed, and one that was
    claimed twice still gives one job.
    """

    def __init__(self, jobs: JobTable) -> None:
        self._jobs, self._schedules = jobs, ScheduleTable(jobs)
        self._running: dict[tuple[str, datetime], subprocess.Popen[bytes]] = {}

    def tick(self) -> None:
        """See to the fires that run, and start those that are due.

        Raises:
            redis.RedisError: Redis does not answer; the next tick tries again.
        """
        for (name, time), process in list(self._running.items()):
            if process.poll() is not None:
                del self._running[name, time]
                if process.returncode:
                    _log.error("schedule %s: its fire of %s failed", name, time)
        now = datetime.fromtimestamp(self._jobs.now(), UTC)
        for schedule in self._schedules.all():
            last = self._schedules.last(schedule.name)
            due = due_fire(schedule.cron, schedule.zone, last.time, now)
            if due is not None and (schedule.name, due) not in self._running:
                self._start(schedule.name, due)

    def _start(self, name: str, time: datetime) -> None:
        tries = self._schedules.attempt(name, time, _SECONDS_PER_TRY)
        if tries > _TRIES:
            self._schedules.fired(name, time, f"given up after {_TRIES} tries; see the log")
        elif tries:
            command = [sys.executable, "-m", _main_module(), "schedule", "fire", name]
            self._running[name, time] = subprocess.Popen([*command, time.isoformat()])


def _main_module() -> str:
    """Return the module that this process runs, to run it again."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec is not None and spec.name != "__main__" else "helios_batch.cli"

"""The schedules: what is to be submitted when, kept in Redis and beside the output."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from helios_batch.data.publish import publish
from helios_batch.errors import QueueUsageError
from helios_batch.queue.cron import check_cron
from helios_batch.queue.jobs import JobTable
from helios_batch.queue.settings import DEFAULT_QUEUE

SCHEDULE_FILE = "_schedule.json"


@dataclass(frozen=True)
class Schedule:
    """A job spec (JSON values, absolute paths) that is submitted at each fire time of `cron`."""

    name: str
    cron: str
    zone: str
    spec: dict[str, Any]
    queue: str = DEFAULT_QUEUE
    priority: int = 0

    @property
    def folder(self) -> Path:
        """Where its runs write: each into a folder of its own in here."""
        return Path(str(self.spec["output"]["path"]))


@dataclass(frozen=True)
class LastFire:
    """The latest fire: its time, and the job it gave, or why it gave none."""

    time: datetime
    result: str


class ScheduleTable:
    """Reads and changes the schedules in Redis."""

    def __init__(self, jobs: JobTable) -> None:
        self._client, self._keys, self._jobs = jobs.client, jobs.keys, jobs

    def add(self, schedule: Schedule, *, replace: bool = False) -> None:
        """Keep a schedule; its first fire is the next one from now.

        Raises:
            QueueUsageError: cron or zone are wrong, or the name stands for another schedule.
        """
        check_cron(schedule.cron, schedule.zone)
        known = self.get(schedule.name)
        if known is not None and known != schedule and not replace:
            raise QueueUsageError(
                f"there is another schedule {schedule.name!r}",
                where="schedule add",
                fix="choose another name, or give --replace",
            )
        write_file(schedule, self._keys.prefix)
        self._put(schedule)

    def restore(self, schedule: Schedule) -> bool:
        """Put a schedule back that Redis has lost; return False if it has not."""
        if self.get(schedule.name) is not None:
            return False
        self._put(schedule)
        return True

    def _put(self, schedule: Schedule) -> None:
        last = {"time": round(self._jobs.now()), "result": "added"}
        self._client.hsetnx(f"{self._keys.schedules}:last", schedule.name, json.dumps(last))
        self._client.hset(self._keys.schedules, schedule.name, json.dumps(asdict(schedule)))

    def get(self, name: str) -> Schedule | None:
        """Return a schedule, or None."""
        found = self._client.hget(self._keys.schedules, name)
        return None if found is None else Schedule(**json.loads(found))

    def all(self) -> list[Schedule]:
        """Return the schedules by name."""
        found = self._client.hgetall(self._keys.schedules)
        return [Schedule(**json.loads(found[name])) for name in sorted(found)]

    def remove(self, name: str) -> None:
        """Forget a schedule; what it has submitted goes on.

        Raises:
            QueueUsageError: there is none of that name.
        """
        schedule = self.find(name)
        (schedule.folder / SCHEDULE_FILE).unlink(missing_ok=True)
        self._client.hdel(self._keys.schedules, name)
        self._client.hdel(f"{self._keys.schedules}:last", name)

    def find(self, name: str) -> Schedule:
        """Return a schedule.

        Raises:
            QueueUsageError: there is none of that name.
        """
        schedule = self.get(name)
        if schedule is None:
            raise QueueUsageError(
                f"no schedule is named {name!r:.60}",
                where=f"the queue {self._keys.prefix!r}",
                fix="helios-batch schedule list shows them",
            )
        return schedule

    def last(self, name: str) -> LastFire:
        """Return the latest fire, or when the schedule was added."""
        found = json.loads(self._client.hget(f"{self._keys.schedules}:last", name) or "{}")
        return LastFire(datetime.fromtimestamp(found.get("time", 0), UTC), found.get("result", ""))

    def fired(self, name: str, time: datetime, result: str) -> None:
        """Note what a fire came to; an older fire's note changes nothing."""
        if time >= self.last(name).time:
            note = json.dumps({"time": round(time.timestamp()), "result": result})
            self._client.hset(f"{self._keys.schedules}:last", name, note)

    def attempt(self, name: str, time: datetime, seconds: float) -> int:
        """Claim a fire for some seconds; return how often it was tried, 0 if another one tries."""
        key = f"{self._keys.prefix}:fire:{name}:{round(time.timestamp())}"
        if not self._client.set(key, "1", nx=True, px=round(seconds * 1000)):
            return 0
        tries = self._client.incr(f"{key}:tries")
        self._client.expire(f"{key}:tries", 7 * 24 * 3600)
        return int(tries)


def write_file(schedule: Schedule, prefix: str) -> None:
    """Write the schedule beside its runs, so that a wiped Redis does not lose it.

    Raises:
        WriteError: the folder can't be written.
    """
    text = json.dumps(asdict(schedule) | {"prefix": prefix}, indent=2)

    def write(file: BinaryIO) -> None:
        file.write(text.encode())

    publish(schedule.folder / SCHEDULE_FILE, write, replace=True)


def read_file(folder: Path, prefix: str) -> Schedule | None:
    """Return the schedule of this queue whose runs a folder holds, if it holds one."""
    try:
        data = json.loads((folder / SCHEDULE_FILE).read_text(encoding="utf-8"))
        if data.pop("prefix") != prefix:
            return None
        schedule = Schedule(**data)
        check_cron(schedule.cron, schedule.zone)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, QueueUsageError):
        return None
    return schedule

"""The schedules: what is to be submitted when, kept in Redis and beside the output."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Self

from helios_batch.data.output import OutputFolder
from helios_batch.data.publish import publish, remove_if_empty
from helios_batch.errors import OutputError, QueueUsageError
from helios_batch.queue.cron import check_cron
from helios_batch.queue.jobs import JobTable
from helios_batch.queue.settings import DEFAULT_QUEUE

SCHEDULE_FILE = "_schedule.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_WEEK = 7 * 24 * 3600


@dataclass(frozen=True)
class Schedule:
    """A job spec (JSON values, absolute paths) that is submitted at each fire time of `cron`."""

    name: str
    cron: str
    zone: str
    spec: dict[str, Any]
    queue: str = DEFAULT_QUEUE
    priority: int = 0

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Return the schedule that `asdict` gave.

        Raises:
            KeyError, TypeError, ValueError, QueueUsageError: it is none.
        """
        found = cls(
            *(str(data["name"]), str(data["cron"]), str(data["zone"]), dict(data["spec"])),
            *(str(data["queue"]), int(data["priority"])),
        )
        check_name(found.name)
        check_cron(found.cron, found.zone)
        str(found.spec["output"]["path"])
        return found

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
            UsageError: name, cron or zone are wrong, the name stands for another schedule, or the
                output folder is not free.
        """
        check_name(schedule.name)
        check_cron(schedule.cron, schedule.zone)
        _check_folder(schedule)
        known = self.get(schedule.name)
        if known is not None and known != schedule and not replace:
            raise QueueUsageError(
                f"there is another schedule {schedule.name!r}",
                where="schedule add",
                fix="choose another name, or give --replace",
            )
        write_file(schedule, self._keys.prefix)
        if known is not None and known.folder != schedule.folder:
            _remove_file(known)
        self._put(schedule)

    def restore(self, schedule: Schedule) -> bool:
        """Put a schedule back that Redis has lost; return False if it has not."""
        if self.get(schedule.name) is not None:
            return False
        self._put(schedule)
        return True

    def _put(self, schedule: Schedule) -> None:
        last = {"time": round(self._jobs.now()), "result": "added"}
        self._client.hsetnx(self._keys.last_fires, schedule.name, json.dumps(last))
        self._client.hset(self._keys.schedules, schedule.name, json.dumps(asdict(schedule)))

    def get(self, name: str) -> Schedule | None:
        """Return a schedule; None if there is none that can be read."""
        found = self._client.hget(self._keys.schedules, name)
        return None if found is None else _read(name, found)

    def all(self) -> list[Schedule]:
        """Return the schedules by name, without what can't be read."""
        found = self._client.hgetall(self._keys.schedules)
        read = (_read(name, found[name]) for name in sorted(found))
        return [schedule for schedule in read if schedule is not None]

    def remove(self, name: str) -> None:
        """Forget a schedule; what it has submitted goes on.

        Raises:
            QueueUsageError: there is none of that name.
            OutputError: its file can't be removed; nothing has changed.
        """
        _remove_file(self.find(name))
        self._client.hdel(self._keys.schedules, name)
        self._client.hdel(self._keys.last_fires, name)
        self._client.delete(self._keys.history(name))

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
        found = json.loads(self._client.hget(self._keys.last_fires, name) or "{}")
        return LastFire(datetime.fromtimestamp(found.get("time", 0), UTC), found.get("result", ""))

    def fired(self, name: str, time: datetime, result: str) -> None:
        """Note what a fire came to; it is done. An older fire's note changes the history only."""
        if time >= self.last(name).time:
            note = json.dumps({"time": round(time.timestamp()), "result": result})
            self._client.hset(self._keys.last_fires, name, note)
        self.note(name, time, result)

    def note(self, name: str, time: datetime, result: str) -> None:
        """Note in the history what a fire, or a try at it, came to; the same is not said twice."""
        entry: dict[Any, Any] = {"time": time.astimezone(UTC).isoformat(), "result": result}
        if entry not in self.history(name):
            self._client.xadd(self._keys.history(name), entry, maxlen=100, approximate=True)

    def history(self, name: str, count: int = 10) -> list[dict[str, str]]:
        """Return the latest notes, the last one first: `time` and `result`."""
        return [entry for _, entry in self._client.xrevrange(self._keys.history(name), count=count)]

    def may_try(self, name: str, time: datetime, pause: float) -> bool:
        """Whether to try a fire: no other of the schedule is under way, and no try was just begun.

        Says yes to one asker in `pause` seconds.
        """
        if self._client.exists(self._keys.lock(f"fire:{name}")):
            return False
        key = self._keys.fire(name, round(time.timestamp()))
        return bool(self._client.set(key, "1", nx=True, px=round(pause * 1000)))

    def tried(self, name: str, time: datetime) -> None:
        """Count a try at a fire that has begun."""
        self._client.incr(self._tries(name, time))
        self._client.expire(self._tries(name, time), _WEEK)

    def not_tried(self, name: str, time: datetime) -> None:
        """Take back a try that was told to stop."""
        self._client.decr(self._tries(name, time))

    def tries(self, name: str, time: datetime) -> int:
        """Return how often a fire was begun."""
        return int(self._client.get(self._tries(name, time)) or 0)

    def _tries(self, name: str, time: datetime) -> str:
        return f"{self._keys.fire(name, round(time.timestamp()))}:tries"


def check_name(name: str) -> None:
    """Check a schedule's name.

    Raises:
        QueueUsageError: it is not usable.
    """
    if not _NAME.fullmatch(name):
        raise QueueUsageError(
            f"a schedule can't be named {name!r:.80}",
            where="NAME",
            fix="use up to 64 letters, digits, and any of . _ - after the first",
        )


def _check_folder(schedule: Schedule) -> None:
    job = OutputFolder(schedule.spec["output"]["path"]).read_record()
    try:
        found = json.loads((schedule.folder / SCHEDULE_FILE).read_text(encoding="utf-8"))
        other = found["name"]
    except (OSError, ValueError, KeyError, TypeError):
        other = schedule.name
    if job or other != schedule.name:
        raise QueueUsageError(
            f"the output folder is of {'a job' if job else f'the schedule {other!r:.80}'}",
            where=f"output.path, {schedule.folder}",
            fix="choose another folder: each run of a schedule makes one in it",
        )


def _remove_file(schedule: Schedule) -> None:
    try:
        (schedule.folder / SCHEDULE_FILE).unlink(missing_ok=True)
    except OSError as exc:
        raise OutputError(
            f"the schedule's file can't be removed: {exc}",
            where=str(schedule.folder / SCHEDULE_FILE),
            fix="change its folder's permissions",
        ) from None


def _read(name: str, text: str) -> Schedule | None:
    try:
        found = Schedule.from_json(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, QueueUsageError):
        return None
    return found if found.name == name else None


def write_file(schedule: Schedule, prefix: str) -> None:
    """Write the schedule beside its runs, so that a wiped Redis does not lose it.

    Raises:
        WriteError: the folder can't be written.
    """
    text = json.dumps(asdict(schedule) | {"prefix": prefix}, indent=2)

    def write(file: BinaryIO) -> None:
        file.write(text.encode())

    publish(schedule.folder / SCHEDULE_FILE, write, replace=True)
    remove_if_empty(schedule.folder)


def read_file(folder: Path, prefix: str) -> Schedule | None:
    """Return the schedule of this queue whose runs a folder holds, if it holds one."""
    try:
        data = json.loads((folder / SCHEDULE_FILE).read_text(encoding="utf-8"))
        schedule = Schedule.from_json(data)
        mine = data["prefix"] == prefix and schedule.folder.resolve() == folder.resolve()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, QueueUsageError):
        return None
    return schedule if mine else None

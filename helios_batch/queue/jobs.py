"""The jobs that Redis knows: their facts, counters, status and events.

Redis is the second witness. A job's output folder is the first: whatever is here can be made again
from `_job.json` and the parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import redis

from helios_batch.queue.keys import JobPart, Keys
from helios_batch.queue.scripts import Scripts
from helios_batch.queue.settings import DEFAULT_QUEUE

Status = Literal["queued", "running", "paused", "done", "failed", "cancelled"]
ENDED: frozenset[str] = frozenset({"done", "failed", "cancelled"})
_STATUSES: dict[str, Status] = {status: status for status in get_args(Status)}
_ERROR = "error:"
_KEPT_SECONDS = 14 * 24 * 3600
_LISTED_SECONDS = 365 * 24 * 3600
_KEPT_EVENTS = 5000
_STREAMS: tuple[JobPart, ...] = ("events", "published")


@dataclass(frozen=True)
class QueuedJob:
    """What is fixed about a job when it is submitted.

    `spec` is the job spec as JSON values with absolute paths. Of two jobs the one of higher
    `priority` goes first; `deadline_at` is a time of Redis's clock in milliseconds, 0 for none;
    `max_failed` is the number of rows that may fail, -1 for any.
    """

    id: str
    name: str
    fingerprint: str
    spec: dict[str, Any]
    output: str
    rows: int
    shards: int
    queue: str = DEFAULT_QUEUE
    priority: int = 0
    deadline_at: int = 0
    max_failed: int = -1

    def fields(self) -> list[str | int]:
        """Return the fields of the job's hash, each followed by its value."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "id"}
        data["spec"] = json.dumps(self.spec)
        return [item for pair in data.items() for item in pair]


@dataclass(frozen=True)
class JobState:
    """A job as it stands. Times are Redis's, in seconds since 1970; counters are of this queue's
    work, while the totals in `_job.json` are the parts' own."""

    job: QueuedJob
    status: Status
    recorded: str
    submitted: float
    started: float
    ended: float
    done_shards: int
    counters: dict[str, int]
    error_rows: dict[str, int]
    error: str

    @property
    def live(self) -> bool:
        """Whether there may be work left."""
        return self.status not in ENDED


class JobTable:
    """Reads and changes jobs in Redis."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self.client, self.keys, self.scripts = client, keys, Scripts(client)

    def submit(self, job: QueuedJob) -> str:
        """Create or reopen a job; return "created", "reopened", or a living job's status.

        A job that is opened again has nothing held against its shards; one whose hash is damaged is
        created anew.
        """
        names = self.keys.job(job.id)
        if self.get(job.id) is None:
            self.client.delete(names.job)
        held = names.parts("deaths", "failures", "suspects", "again")
        found: str = self.scripts.run(
            "submit", [names.job, self.keys.jobs, self.keys.active, *held], job.id, *job.fields()
        )
        if found in ("created", "reopened"):
            for key in (names.job, *names.parts(*get_args(JobPart))):
                self.client.persist(key)
            self.event(job.id, found)
        return found

    def reopen(self, state: JobState) -> None:
        """Queue an ended job again, without a deadline."""
        self.submit(replace(state.job, deadline_at=0))

    def get(self, job_id: str) -> JobState | None:
        """Return a job, or None if Redis does not know it, or what it knows is damaged."""
        try:
            found = self.client.hgetall(self.keys.job(job_id).job)
        except redis.ResponseError as exc:
            found = exc
        return _state(job_id, found)

    def read(self, job_ids: Iterable[str]) -> list[JobState]:
        """Return those of the jobs that can be read, in their order, in one round trip."""
        wanted = list(job_ids)
        pipe = self.client.pipeline(transaction=False)
        for job_id in wanted:
            pipe.hgetall(self.keys.job(job_id).job)
        found = zip(wanted, pipe.execute(raise_on_error=False), strict=True)
        states = (_state(job_id, fields) for job_id, fields in found)
        return [state for state in states if state is not None]

    def ids(self) -> list[str]:
        """Return all jobs, the latest first; those that ended long ago are forgotten."""
        self.client.zremrangebyscore(self.keys.jobs, 0, (self.now() - _LISTED_SECONDS) * 1000)
        return list(self.client.zrevrange(self.keys.jobs, 0, -1))

    def active(self) -> list[JobState]:
        """Return the jobs that may need something done."""
        return self.read(sorted(self.client.smembers(self.keys.active)))

    def set_status(
        self, job_id: str, status: Status, allowed: tuple[Status, ...], error: str = ""
    ) -> str:
        """Change a job's status if it is one of `allowed`; return the status it has then."""
        keys = self.keys.job(job_id)
        _, now = self.scripts.run(
            "set_status",
            [keys.job, self.keys.active, *keys.parts("events")],
            *(job_id, status, ",".join(allowed), error),
        )
        return str(now)

    def now(self) -> float:
        """Return the time by Redis's clock, in seconds since 1970."""
        seconds, micros = self.client.time()
        return float(seconds) + float(micros) / 1e6

    def recorded(self, state: JobState) -> None:
        """Note that the output folder says what Redis says; an ended job needs no more care."""
        keys = self.keys.job(state.job.id)
        self.client.hset(keys.job, "recorded", state.status)
        if not state.live:
            self.client.srem(self.keys.active, state.job.id)
            for key in (keys.job, *keys.parts(*get_args(JobPart))):
                self.client.expire(key, _KEPT_SECONDS)

    def agreed(self, job_id: str, what: str) -> str | None:
        """Return what the workers of a job have agreed on, if they have."""
        found = self.client.hget(self.keys.job(job_id).job, what)
        return None if found is None else str(found)

    def agree(self, job_id: str, what: str, value: str) -> str:
        """Agree with the other workers of a job: the first one's value counts, and is returned."""
        self.client.hsetnx(self.keys.job(job_id).job, what, value)
        return self.agreed(job_id, what) or value

    def count(self, job_id: str, counter: str, amount: int = 1) -> None:
        """Add to one of a job's counters."""
        self.client.hincrby(self.keys.job(job_id).job, counter, amount)

    def event(self, job_id: str, kind: str, **fields: str | int | float) -> None:
        """Append to a job's events, of which the latest few thousand are kept."""
        (stream,) = self.keys.job(job_id).parts("events")
        entry: dict[Any, Any] = {"kind": kind} | fields
        self.client.xadd(stream, entry, maxlen=_KEPT_EVENTS, approximate=True)

    def events(
        self,
        job_id: str,
        after: str = "",
        count: int | None = 1000,
        streams: tuple[JobPart, ...] = _STREAMS,
    ) -> list[dict[str, str]]:
        """Return events in order: the latest `count`, or about as many after the id `after`.

        Each has its `id`, which begins with Redis's time in milliseconds, and its `kind`. Shards
        that are published are told in a stream of their own: they push nothing else out.
        """
        pipe = self.client.pipeline(transaction=False)
        for stream in self.keys.job(job_id).parts(*streams):
            if after:
                pipe.xrange(stream, min=f"({after}", count=count)
            else:
                pipe.xrevrange(stream, count=count)
        found = [{"id": entry} | fields for entries in pipe.execute() for entry, fields in entries]
        found.sort(key=_moment)
        if count is None or len(found) <= count:
            return found
        if not after:
            return found[-count:]
        # who goes on after the last id must not miss another stream's event of the same one
        return [event for event in found if _moment(event) <= _moment(found[count - 1])]

    def tells_all(self, job_id: str, streams: tuple[JobPart, ...] = _STREAMS) -> bool:
        """Whether a job's events are all kept: the first one is always its creation."""
        events, published = self.keys.job(job_id).parts("events", "published")
        first = self.client.xrange(events, count=1)
        if not first or first[0][1].get("kind") != "created":
            return False
        return "published" not in streams or self.client.xlen(published) < _KEPT_EVENTS


def _moment(event: dict[str, str]) -> tuple[int, int]:
    """Return when an event was noted: milliseconds, and its number in that one."""
    milliseconds, _, number = event["id"].partition("-")
    return int(milliseconds), int(number)


_COUNTERS = (
    "rows_done",
    "rows_before",
    "failed_rows",
    "prompt_tokens",
    "completion_tokens",
    "tokens_before",
    "republished",
    "duplicates_refused",
    "fenced",
    "quarantined",
)


def _state(job_id: str, found: dict[str, str] | redis.ResponseError) -> JobState | None:
    """Read a job's hash; None if it is damaged, or only a counter that came back after a wipe."""
    if isinstance(found, redis.ResponseError):
        if "WRONGTYPE" in str(found):
            return None
        raise found
    try:
        return _read_state(job_id, found)
    except (KeyError, ValueError, RecursionError):
        return None


def _read_state(job_id: str, found: dict[str, str]) -> JobState:
    def number(name: str) -> int:
        return int(found.get(name) or 0)

    spec = json.loads(found["spec"])
    if not isinstance(spec, dict):
        raise ValueError("the spec is no object")
    job = QueuedJob(
        id=job_id,
        name=found["name"],
        fingerprint=found["fingerprint"],
        spec=spec,
        output=found["output"],
        rows=number("rows"),
        shards=number("shards"),
        queue=found["queue"],
        priority=number("priority"),
        deadline_at=number("deadline_at"),
        max_failed=number("max_failed"),
    )
    errors = {k.removeprefix(_ERROR): int(v) for k, v in found.items() if k.startswith(_ERROR)}
    return JobState(
        job=job,
        status=_STATUSES[found["status"]],
        recorded=found.get("recorded", ""),
        submitted=number("submitted") / 1000,
        started=number("started") / 1000,
        ended=number("ended") / 1000,
        done_shards=number("done_shards"),
        counters={name: number(name) for name in _COUNTERS},
        error_rows=errors,
        error=found.get("error", ""),
    )

"""The names of the queue's keys; all of them begin with the prefix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

JobPart = Literal[
    "done",  # bitmap of finished shards
    "open",  # sorted set: units that were sent, by when
    "again",  # sorted set: units that are due once more, by when
    "holders",  # hash: who has which unit
    "deaths",  # hash: processes lost while rows ran, by unit or round of calibration
    "failures",  # hash: errors met, by unit
    "suspects",  # hash: the search for rows that kill, by shard
    "events",  # capped stream: what happened, but for
    "published",  # capped stream: the shards that were published
]
"""What a job has beside its hash of facts and counters; times are Redis's, in milliseconds."""


@dataclass(frozen=True)
class JobKeys:
    """The keys of one job."""

    prefix: str
    id: str

    @property
    def job(self) -> str:
        """The hash of the job's facts and counters."""
        return f"{self.prefix}:job:{self.id}"

    def parts(self, *names: JobPart) -> list[str]:
        """Return the keys of the parts, in the order asked for."""
        return [f"{self.job}:{name}" for name in names]

    @property
    def leases(self) -> str:
        """What the job's lease keys begin with; the unit follows."""
        return f"{self.prefix}:lease:{self.id}:"

    def lease(self, unit: str) -> str:
        """The key that lives as long as the lease; its value is the fencing token."""
        return f"{self.leases}{unit}"


@dataclass(frozen=True)
class Keys:
    """The keys that are not of one job."""

    prefix: str

    def job(self, job_id: str) -> JobKeys:
        """The keys of a job."""
        return JobKeys(self.prefix, job_id)

    @property
    def jobs(self) -> str:
        """Sorted set of all jobs by time of submission."""
        return f"{self.prefix}:jobs"

    @property
    def active(self) -> str:
        """Set of the jobs that the dispatcher looks at."""
        return f"{self.prefix}:active"

    @property
    def damaged(self) -> str:
        """Set of the jobs that were once found damaged."""
        return f"{self.prefix}:damaged"

    @property
    def fence(self) -> str:
        """The last fencing token."""
        return f"{self.prefix}:fence"

    @property
    def epoch(self) -> str:
        """Is there since the jobs were last read back from the output folders."""
        return f"{self.prefix}:epoch"

    @property
    def workers(self) -> str:
        """Set of boot ids of workers."""
        return f"{self.prefix}:workers"

    @property
    def counters(self) -> str:
        """Hash of counters over all jobs."""
        return f"{self.prefix}:counters"

    @property
    def schedules(self) -> str:
        """Hash of schedules by name."""
        return f"{self.prefix}:schedules"

    @property
    def last_fires(self) -> str:
        """Hash of the latest fire by schedule."""
        return f"{self.schedules}:last"

    def history(self, schedule: str) -> str:
        """Capped stream of what a schedule's fires came to."""
        return f"{self.schedules}:history:{schedule}"

    def fire(self, schedule: str, seconds: int) -> str:
        """Is there while a fire is not to be tried again; its time is in seconds since 1970."""
        return f"{self.prefix}:fire:{schedule}:{seconds}"

    def worker(self, boot: str) -> str:
        """Hash of one worker; it expires when the worker is gone."""
        return f"{self.prefix}:worker:{boot}"

    def watermark(self, queue: str) -> str:
        """When the youngest message was sent that a worker has taken."""
        return f"{self.prefix}:watermark:{queue}"

    def turns(self, queue: str) -> str:
        """Hash of when each engine's latest stretch began."""
        return f"{self.prefix}:turns:{queue}"

    def lock(self, name: str) -> str:
        """A lock that expires."""
        return f"{self.prefix}:lock:{name}"

    @property
    def broker(self) -> str:
        """What all of Celery's keys and channels begin with."""
        return f"{self.prefix}:celery:"

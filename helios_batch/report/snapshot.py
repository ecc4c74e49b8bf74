"""The queue as it is shown: plain snapshots of jobs, shards and workers."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class RunningShard:
    """A leased unit; times in seconds by Redis's clock."""

    unit: str
    worker: str
    device: str
    model: str
    depth: int
    held_for: float
    lease_left: float


@dataclass(frozen=True)
class Cell:
    """A range of shards in the grid: how many there are, and how many are done, held, sent, due."""

    shards: int
    done: int = 0
    held: int = 0
    sent: int = 0
    due: int = 0


@dataclass(frozen=True)
class JobView:
    """A job for people and scripts.

    Rates are over `seconds`, the time since its folder was last surveyed and work began, and leave
    out what was finished before; `eta` is the time left at that rate; None where unknown. `grid`
    and `running` are filled for a single job only.
    """

    id: str
    name: str
    status: str
    queue: str
    priority: int
    output: str
    rows: int
    rows_done: int
    failed_rows: int
    shards: int
    shards_done: int
    submitted: float
    seconds: float | None
    rows_per_second: float | None
    tokens_per_second: float | None
    eta: float | None
    counters: dict[str, int]
    error_rows: dict[str, int]
    error: str
    running: tuple[RunningShard, ...] = ()
    grid: tuple[Cell, ...] = ()


@dataclass(frozen=True)
class WorkerView:
    """A living worker, and what it has done since it began.

    `boot` tells it from others that had its name; it began at `since`, by Redis's clock.
    """

    boot: str
    worker: str
    host: str
    pid: int
    queues: str
    since: float
    device: str
    model: str
    depth: int
    job: str
    unit: str
    shards: int
    rows: int
    tokens: int


@dataclass(frozen=True)
class QueueView:
    """The whole queue at Redis's time `now`."""

    now: float
    jobs: tuple[JobView, ...]
    workers: tuple[WorkerView, ...]
    counters: dict[str, int] = field(default_factory=dict)

"""What the queue looks like from outside: snapshots of jobs and workers, taken from Redis."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from redis.client import NEVER_DECODE

from helios_batch.queue.jobs import JobState, JobTable
from helios_batch.report.snapshot import Cell, JobView, QueueView, RunningShard, WorkerView

_CELLS = 60


def view_queue(jobs: JobTable) -> QueueView:
    """Return the queue's jobs, the latest first, its workers and its counters."""
    states = [state for job_id in jobs.ids() if (state := jobs.get(job_id)) is not None]
    now, counters = jobs.now(), jobs.client.hgetall(jobs.keys.counters)
    return QueueView(
        tuple(_job(state, now) for state in states),
        view_workers(jobs),
        {name: int(count) for name, count in counters.items()},
    )


def view_job(jobs: JobTable, state: JobState) -> JobView:
    """Return one job with its grid and its running shards."""
    now, keys = jobs.now(), jobs.keys.job(state.job.id)
    done, opened, again, holders = keys.parts("done", "open", "again", "holders")
    held = {unit: json.loads(text) for unit, text in jobs.client.hgetall(holders).items()}
    sent, due = jobs.client.zrange(opened, 0, -1), jobs.client.zrange(again, 0, -1)
    finished = _set_bits(jobs, done)
    workers = {worker.worker: worker for worker in view_workers(jobs)}
    running = []
    for unit, holder in held.items():
        worker = workers.get(holder["worker"])
        left = jobs.client.pttl(keys.lease(unit))
        running.append(
            RunningShard(
                unit=unit,
                worker=holder["worker"],
                device=worker.device if worker else holder["device"],
                model=worker.model if worker else "",
                depth=worker.depth if worker else 0,
                held_for=max(0.0, now - holder["since"] / 1000),
                lease_left=max(0.0, left / 1000),
            )
        )
    grid = make_grid(state.job.shards, finished, held, set(sent) - set(held), due)
    return _job(state, now, tuple(running), grid)


def view_workers(jobs: JobTable) -> tuple[WorkerView, ...]:
    """Return the living workers by name."""
    found = []
    for boot in jobs.client.smembers(jobs.keys.workers):
        facts = jobs.client.hgetall(jobs.keys.worker(boot))
        if "worker" in facts:
            found.append(_worker(facts))
    return tuple(sorted(found, key=lambda worker: worker.worker))


def make_grid(
    shards: int,
    finished: Iterable[int],
    held: Iterable[str],
    sent: Iterable[str],
    due: Iterable[str],
) -> tuple[Cell, ...]:
    """Return at most 60 cells of equal ranges of shards; units that are no shard are left out."""
    size = max(1, -(-shards // _CELLS))
    counts = [[0, 0, 0, 0] for _ in range(-(-shards // size))]
    numbers = [map(int, finished)] + [
        (int(unit) for unit in units if unit.isdigit()) for units in (held, sent, due)
    ]
    for kind, units in enumerate(numbers):
        for number in units:
            if number < shards:
                counts[number // size][kind] += 1
    return tuple(
        Cell(min(size, shards - index * size), *count) for index, count in enumerate(counts)
    )


def _set_bits(jobs: JobTable, key: str) -> Iterable[int]:
    bitmap = jobs.client.execute_command("GET", key, **{NEVER_DECODE: True}) or b""
    for index, byte in enumerate(bitmap):
        if byte:
            yield from (index * 8 + i for i in range(8) if byte >> 7 - i & 1)


def _job(
    state: JobState,
    now: float,
    running: tuple[RunningShard, ...] = (),
    grid: tuple[Cell, ...] = (),
) -> JobView:
    job, counters = state.job, state.counters
    seconds = (state.ended or now) - state.started if state.started else None
    rows = counters["rows_done"] - counters["rows_before"]
    tokens = counters["completion_tokens"] - counters["tokens_before"]
    rate = rows / seconds if seconds else None
    left = (job.rows - counters["rows_done"]) / rate if rate and state.status == "running" else None
    return JobView(
        *(job.id, job.name, state.status, job.queue, job.priority, job.output),
        *(job.rows, counters["rows_done"], counters["failed_rows"]),
        *(job.shards, state.done_shards, state.submitted),
        *(seconds, rate, tokens / seconds if seconds else None, left),
        counters={
            name: counters[name]
            for name in ("republished", "duplicates_refused", "fenced", "quarantined")
        },
        error_rows=state.error_rows,
        error=state.error,
        running=running,
        grid=grid,
    )


def _worker(facts: dict[str, Any]) -> WorkerView:
    return WorkerView(
        *(
            facts["worker"],
            facts["host"],
            int(facts["pid"]),
            facts["queues"],
            facts.get("device", "auto"),
        ),
        *(facts.get("model", ""), int(facts.get("depth", 0))),
        *(facts.get("job", ""), facts.get("unit", "")),
        *(int(facts.get(name, 0)) for name in ("shards", "rows", "tokens")),
    )

"""What the queue looks like from outside: snapshots of jobs and workers, taken from Redis."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import redis
from redis.client import NEVER_DECODE

from helios_batch.queue.jobs import JobState, JobTable
from helios_batch.report.snapshot import Cell, JobView, QueueView, RunningShard, WorkerView

JOB_COUNTERS = ("republished", "duplicates_refused", "fenced", "quarantined")
_CELLS = 60


def view_queue(jobs: JobTable) -> QueueView:
    """Return the queue's jobs, the latest first, its workers and its counters."""
    states = jobs.read(jobs.ids())
    now, counters = jobs.now(), jobs.client.hgetall(jobs.keys.counters)
    return QueueView(
        now,
        tuple(_job(state, now) for state in states),
        view_workers(jobs),
        {name: int(count) for name, count in counters.items()},
    )


def view_job(jobs: JobTable, state: JobState) -> JobView:
    """Return one job with its grid and its running shards."""
    now, keys = jobs.now(), jobs.keys.job(state.job.id)
    done, opened, again, holders = keys.parts("done", "open", "again", "holders")
    # no transaction: its answers would all be decoded as text
    pipe = jobs.client.pipeline(transaction=False)
    pipe.hgetall(holders).zrange(opened, 0, -1).zrange(again, 0, -1)
    pipe.execute_command("GET", done, **{NEVER_DECODE: True})
    found, sent, due, bitmap = pipe.execute()
    held = {unit: json.loads(text) for unit, text in found.items()}
    pipe = jobs.client.pipeline(transaction=False)
    for unit in held:
        pipe.pttl(keys.lease(unit))
    workers = {worker.boot: worker for worker in view_workers(jobs)}
    running = []
    for (unit, holder), left in zip(held.items(), pipe.execute(), strict=True):
        worker = workers.get(holder["boot"])
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
    grid = make_grid(state.job.shards, bitmap or b"", held, set(sent) - set(held), due)
    return _job(state, now, tuple(running), grid)


def view_workers(jobs: JobTable) -> tuple[WorkerView, ...]:
    """Return the living workers by name."""
    boots = sorted(jobs.client.smembers(jobs.keys.workers))
    pipe = jobs.client.pipeline(transaction=False)
    for boot in boots:
        pipe.hgetall(jobs.keys.worker(boot))
    held = {holder["boot"]: (job_id, unit) for job_id, unit, holder in _holders(jobs)}
    found = [
        _worker(boot, facts, *held.get(boot, ("", "")))
        for boot, facts in zip(boots, pipe.execute(), strict=True)
        if "worker" in facts
    ]
    return tuple(sorted(found, key=lambda worker: worker.worker))


def _holders(jobs: JobTable) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield job, unit and holder of each lease."""
    job_ids = sorted(jobs.client.smembers(jobs.keys.active))
    pipe = jobs.client.pipeline(transaction=False)
    for job_id in job_ids:
        pipe.hgetall(*jobs.keys.job(job_id).parts("holders"))
    for job_id, units in zip(job_ids, pipe.execute(raise_on_error=False), strict=True):
        for unit, text in {} if isinstance(units, redis.ResponseError) else units.items():
            with suppress(ValueError):
                yield job_id, unit, json.loads(text)


def make_grid(
    shards: int, bitmap: bytes, held: Iterable[str], sent: Iterable[str], due: Iterable[str]
) -> tuple[Cell, ...]:
    """Return at most 60 cells of equal ranges of shards; units that are no shard are left out.

    Bit i of `bitmap`, the highest of a byte first, tells whether shard i is done.
    """
    size = max(1, -(-shards // _CELLS))
    counts = [[0, 0, 0] for _ in range(-(-shards // size))]
    for kind, units in enumerate((held, sent, due)):
        for number in (int(unit) for unit in units if unit.isdigit()):
            if number < shards:
                counts[number // size][kind] += 1
    return tuple(
        Cell(last - first, count_bits(bitmap, first, last), *count)
        for first, count in zip(range(0, shards, size), counts, strict=True)
        for last in (min(first + size, shards),)
    )


def count_bits(bitmap: bytes, first: int, last: int) -> int:
    """Return how many of the bits `first` to `last` - 1 are set; those beyond the end are not."""
    piece = bitmap[first // 8 : -(-last // 8)].ljust(-(-last // 8) - first // 8, b"\0")
    bits = int.from_bytes(piece, "big") >> -last % 8
    return (bits & (1 << last - first) - 1).bit_count()


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
        counters={name: counters[name] for name in JOB_COUNTERS},
        error_rows=state.error_rows,
        error=state.error,
        running=running,
        grid=grid,
    )


def _worker(boot: str, facts: dict[str, Any], job_id: str, unit: str) -> WorkerView:
    return WorkerView(
        boot,
        *(
            facts["worker"],
            facts["host"],
            int(facts["pid"]),
            facts["queues"],
            float(facts.get("since", 0)),
            facts.get("device", "auto"),
        ),
        *(facts.get("model", ""), int(facts.get("depth", 0))),
        *(job_id, unit),
        *(int(facts.get(name, 0)) for name in ("shards", "rows", "tokens")),
    )

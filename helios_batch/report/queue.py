"""How the queue, its jobs and its workers look on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from helios_batch.report.facts import facts_table
from helios_batch.report.snapshot import Cell, JobView, WorkerView

_STYLES = {"done": "green", "failed": "red", "cancelled": "yellow", "paused": "yellow"}


def jobs_table(jobs: Sequence[JobView]) -> Table:
    """Return one line for each job."""
    table = Table("job", "name", "status", "rows", "failed", "rows/s", "ETA", title="jobs")
    for job in jobs:
        table.add_row(
            job.id,
            escape(job.name),
            Text(job.status, _STYLES.get(job.status, "")),
            f"{job.rows_done:,}/{job.rows:,}",
            f"{job.failed_rows:,}",
            _rate(job.rows_per_second),
            duration(job.eta),
        )
    return table


def workers_table(workers: Sequence[WorkerView]) -> Table:
    """Return one line for each worker."""
    table = Table("worker", "device", "model", "now", "shards", "rows", "tokens", title="workers")
    for worker in workers:
        model = f"{worker.model}, {worker.depth} layers" if worker.model else "none yet"
        now = f"{worker.job[:8]} {worker.unit}" if worker.job else "waits"
        counts = (f"{count:,}" for count in (worker.shards, worker.rows, worker.tokens))
        table.add_row(escape(worker.worker), worker.device, escape(model), now, *counts)
    return table


def schedules_table(schedules: Sequence[Mapping[str, str]]) -> Table:
    """Return one line for each schedule, from its values by column."""
    columns = ("name", "cron", "tz", "next", "last", "result", "output")
    table = Table(*columns, title="schedules")
    for schedule in schedules:
        table.add_row(*(escape(schedule[column]) for column in columns))
    return table


def job_panel(job: JobView) -> RenderableType:
    """Return all about one job: facts, shard grid, running shards."""
    errors = ", ".join(f"{code} {count:,}" for code, count in sorted(job.error_rows.items()))
    facts = {
        "status": job.status,
        "output": job.output,
        "rows": f"{job.rows_done:,} of {job.rows:,}",
        "failed rows": f"{job.failed_rows:,}" + (f" ({errors})" if errors else ""),
        "shards": f"{job.shards_done:,} of {job.shards:,}",
        "speed": f"{_rate(job.rows_per_second)} rows/s, {_rate(job.tokens_per_second)} tokens/s",
        "time left": duration(job.eta),
        "queue": f"{job.queue}, priority {job.priority}",
        "submitted": moment(job.submitted),
    } | {name.replace("_", " "): f"{count:,}" for name, count in job.counters.items()}
    if job.error:
        facts["error"] = job.error
    parts: list[RenderableType] = [facts_table(f"{job.name} ({job.id})", facts)]
    if job.grid:
        parts += [shard_grid(job.grid), Text("█ done  ▶ runs  · sent  ! due again  ░ to do", "dim")]
    if job.running:
        table = Table("shard", "worker", "device", "model", "for", "lease left")
        for shard in job.running:
            model = f"{shard.model}, {shard.depth} layers" if shard.model else "loading"
            times = (f"{shard.held_for:.0f} s", f"{shard.lease_left:.0f} s")
            table.add_row(shard.unit, escape(shard.worker), shard.device, escape(model), *times)
        parts.append(table)
    return Group(*parts)


def shard_grid(cells: Sequence[Cell]) -> Text:
    """Return a character for each cell: what is going on there, or how far it is."""
    grid = Text()
    for cell in cells:
        if cell.done == cell.shards:
            grid.append("█", "green")
        elif cell.held:
            grid.append("▶", "cyan")
        elif cell.due:
            grid.append("!", "red")
        elif cell.sent:
            grid.append("·", "cyan")
        else:
            grid.append("░▒▓▓"[4 * cell.done // cell.shards], "green" if cell.done else "dim")
    return grid


def job_line(job: JobView) -> str:
    """Return a job's progress in one line, for where there is no terminal."""
    return (
        f"{job.id} {job.status} · {job.rows_done}/{job.rows} rows · {job.failed_rows} failed · "
        f"{_rate(job.rows_per_second)} rows/s · {_rate(job.tokens_per_second)} tokens/s · "
        f"ETA {duration(job.eta)}"
    )


def moment(seconds: float) -> str:
    """Return a time since 1970 as UTC to the second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S") + "Z"


def duration(seconds: float | None) -> str:
    """Return a time span as people write it, or a dash."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"

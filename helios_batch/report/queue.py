"""How the queue, its jobs and its workers look on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from helios_batch.report.facts import facts_table
from helios_batch.report.snapshot import Cell, JobView, WorkerView

_STYLES = {"done": "green", "failed": "red", "cancelled": "yellow", "paused": "yellow"}


def jobs_table(jobs: Sequence[JobView], now: float) -> Table:
    """Return one line for each job; ids are cut to their beginning, which commands take too."""
    table = _compact("jobs")
    table.add_column("job", no_wrap=True)
    table.add_column("name", overflow="fold", min_width=6)
    table.add_column("status", no_wrap=True)
    table.add_column("queue", overflow="fold", min_width=6)
    for heading in ("prio", "rows", "failed", "rows/s", "ETA", "age"):
        table.add_column(heading, justify="right", no_wrap=True)
    for job in jobs:
        table.add_row(
            job.id[:8],
            escape(job.name),
            Text(job.status, _STYLES.get(job.status, "")),
            escape(job.queue),
            str(job.priority),
            f"{_short(job.rows_done)}/{_short(job.rows)}",
            _short(job.failed_rows),
            _rate(job.rows_per_second),
            duration(job.eta),
            span(now - job.submitted),
        )
    return table


def workers_table(workers: Sequence[WorkerView], now: float) -> Table:
    """Return two lines for each worker: what it does, and where it lives."""
    table = _compact("workers")
    table.add_column("worker", overflow="fold", min_width=14)
    table.add_column("device", no_wrap=True)
    table.add_column("model", overflow="fold", min_width=10)
    table.add_column("now", no_wrap=True)
    for heading in ("shards", "rows", "tokens", "up"):
        table.add_column(heading, justify="right", no_wrap=True)
    for worker in workers:
        table.add_row(
            f"{escape(worker.worker)}\n[dim]pid {worker.pid}, {escape(worker.queues)}[/]",
            escape(worker.device),
            f"{escape(worker.model)}\n{worker.depth} layers" if worker.model else "none yet",
            f"{worker.job[:8]}\n{_unit(worker.unit)}" if worker.job else "waits",
            *(_short(count) for count in (worker.shards, worker.rows, worker.tokens)),
            span(now - worker.since) if worker.since else "-",
        )
    return table


def schedules_table(schedules: Sequence[Mapping[str, str]]) -> Table:
    """Return one line for each schedule, from its values by column."""
    columns = ("name", "cron", "tz", "next", "last", "result", "input", "output")
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
        "counters": ", ".join(f"{n.replace('_', ' ')} {c:,}" for n, c in job.counters.items()),
    }
    if job.error:
        facts["error"] = job.error
    parts: list[RenderableType] = [facts_table(f"{job.name} ({job.id})", facts)]
    if job.grid:
        legend = "█ done  ░▒▓ part of it done  ▶ runs  ! due again  · sent  ░ to do"
        if job.grid[0].shards > 1:
            legend += f"\neach cell is {job.grid[0].shards:,} shards"
        parts += [shard_grid(job.grid), Text(legend, "dim")]
    if job.running:
        table = _compact("running")
        for heading in ("shard", "worker", "device", "model", "for", "lease left"):
            table.add_column(heading, overflow="fold")
        for shard in job.running:
            model = f"{shard.model}, {shard.depth} layers" if shard.model else "loading"
            times = (f"{shard.held_for:.0f} s", f"{shard.lease_left:.0f} s")
            place = (escape(shard.worker), escape(shard.device), escape(model))
            table.add_row(shard.unit, *place, *times)
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


def span(seconds: float) -> str:
    """Return a time span in its largest unit: 40s, 12m, 5h, 3d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


def _compact(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)


def _unit(unit: str) -> str:
    return f"shard {unit}" if unit.isdigit() else unit


def _short(count: int) -> str:
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if count >= size:
            return f"{count / (10**3 if unit == 'k' else size):.1f}{unit}"
    return f"{count:,}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"

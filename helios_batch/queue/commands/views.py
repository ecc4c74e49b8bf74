"""Commands that show the queue."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from helios_batch.errors import Interrupted
from helios_batch.queue.commands.options import AsJson, JobId, Queue, RedisUrl, open_queue

if TYPE_CHECKING:
    from rich.console import RenderableType

    from helios_batch.report.snapshot import JobView, QueueView

_REFRESH_SECONDS = 0.5
_EXAMPLES = 20
_NOT_KEPT = "earlier events are not kept"
_TROUBLE = ("error", "engine_lost", "died", "lease_expired", "failed")


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (status, workers, logs, errors):
        app.command()(command)


def status(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="A job; else all.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until the job has ended.")] = False,
    redis: RedisUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show the queue, or one job with its shards; --json with --watch prints a line each time.

    Watching a job ends with status 1 if the job failed or was cancelled.
    """
    with open_queue(redis) as queue, _until_interrupted("status"):
        if not watch:
            view = _look(queue, job)
            _print_json(asdict(view), indent=2) if as_json else _print(_render(view))
            return
        if as_json:
            for view in _views(queue, job):
                _print_json(asdict(view))
        else:
            view = _watch(queue, job)
    if getattr(view, "status", "") in ("failed", "cancelled"):
        raise typer.Exit(1)


def workers(redis: RedisUrl = None, as_json: AsJson = False) -> None:
    """List the living workers and what they do."""
    from helios_batch.queue.views import view_workers
    from helios_batch.report.queue import workers_table

    with open_queue(redis) as (_, jobs):
        found, now = view_workers(jobs), jobs.now()
    if as_json:
        _print_json([asdict(worker) for worker in found], indent=2)
    else:
        _print(workers_table(found, now))


def logs(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job ends.")] = False,
    redis: RedisUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show what has happened to a job, with Redis's time."""
    from helios_batch.queue import control

    with open_queue(redis) as (_, jobs), _until_interrupted("logs"):
        job_id, after, ended = control.find(jobs, job).job.id, "0-0", not follow
        if not jobs.tells_all(job_id):
            _print_json({"kind": "not_kept"}) if as_json else typer.echo(_NOT_KEPT)
        while True:
            while events := jobs.events(job_id, after):
                after = events[-1]["id"]
                for event in events:
                    _print_json(event) if as_json else typer.echo(_event_line(event))
            if ended:
                return
            time.sleep(_REFRESH_SECONDS)
            # one more look after the end: its event is written after the status
            ended = not control.find(jobs, job_id).live


def errors(job: JobId, redis: RedisUrl = None, as_json: AsJson = False) -> None:
    """Show what went wrong in a job: attempts that failed, and rows with errors."""
    from helios_batch.queue import control
    from helios_batch.queue.examples import Examples, failed_rows

    with open_queue(redis) as (settings, jobs):
        state = control.find(jobs, job)
        story = jobs.events(state.job.id, count=None, streams=("events",))
        events = [event for event in story if event["kind"] in _TROUBLE]
        complete = jobs.tells_all(state.job.id, streams=("events",))
        examples = failed_rows(state, settings, _EXAMPLES) if state.error_rows else Examples([])
    if as_json:
        data = {"error": state.error, "attempts": events, "attempts_complete": complete}
        data |= {"rows_by_code": state.error_rows}
        data |= {"examples": examples.rows, "examples_problem": examples.problem}
        _print_json(data, indent=2)
        return
    if state.error:
        typer.echo(f"job {state.job.id} {state.status}: {state.error}")
    if not complete:
        typer.echo(_NOT_KEPT)
    for event in events:
        typer.echo(_event_line(event))
    for code, count in sorted(state.error_rows.items()):
        typer.echo(f"{count} rows: {code}")
    for example in examples.rows:
        typer.echo(f"  {example['file']} row {example['row']}: {example['message']}")
    if examples.problem:
        typer.echo(f"  no more examples: {examples.problem}")
    if complete and not (state.error or events or state.error_rows):
        typer.echo("nothing went wrong")


def _look(queue: Queue, job: str | None) -> JobView | QueueView:
    from helios_batch.queue import control
    from helios_batch.queue.views import view_job, view_queue

    if job is None:
        return view_queue(queue.jobs)
    return view_job(queue.jobs, control.find(queue.jobs, job))


def _views(queue: Queue, job: str | None) -> Iterator[JobView | QueueView]:
    """Yield what is there, again and again until the job has ended."""
    while True:
        view = _look(queue, job)
        yield view
        if job is not None and getattr(view, "status", "") in ("done", "failed", "cancelled"):
            return
        time.sleep(_REFRESH_SECONDS)


def _progress(view: JobView | QueueView) -> Any:
    from helios_batch.report.snapshot import JobView

    found = (view,) if isinstance(view, JobView) else view.jobs
    return [(each.id, each.status, each.rows_done, each.failed_rows) for each in found]


def _watch(queue: Queue, job: str | None) -> JobView | QueueView:
    """Show what is there until the job has ended; return what was seen last."""
    from rich.console import Console
    from rich.live import Live

    from helios_batch.report.queue import job_line
    from helios_batch.report.snapshot import JobView

    console = Console()
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for view in _views(queue, job):
                live.update(_render(view), refresh=True)
        return view
    shown: Any = None
    for view in _views(queue, job):
        if (progress := _progress(view)) == shown:
            continue
        shown = progress
        for each in (view,) if isinstance(view, JobView) else view.jobs:
            typer.echo(job_line(each))
    return view


def _render(view: JobView | QueueView) -> RenderableType:
    from rich.console import Group

    from helios_batch.report.queue import job_panel, jobs_table, workers_table
    from helios_batch.report.snapshot import JobView

    if isinstance(view, JobView):
        return job_panel(view)
    lines = [f"messages refused: {view.counters.get('refused_messages', 0)}"]
    if damaged := view.counters.get("damaged_jobs", 0):
        lines.append(f"jobs left out because what Redis has of them is damaged: {damaged}")
    tables = jobs_table(view.jobs, view.now), workers_table(view.workers, view.now)
    return Group(*tables, *lines)


def _event_line(event: dict[str, str]) -> str:
    from helios_batch.report.events import event_words
    from helios_batch.report.queue import moment

    return f"{moment(int(event['id'].split('-')[0]) / 1000)} {event_words(event)}"


def _print(what: RenderableType) -> None:
    from rich.console import Console

    Console(highlight=False).print(what)


def _print_json(data: Any, indent: int | None = None) -> None:
    typer.echo(json.dumps(data, indent=indent))


@contextmanager
def _until_interrupted(command: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("interrupted", where=command, fix="the job goes on without it") from None

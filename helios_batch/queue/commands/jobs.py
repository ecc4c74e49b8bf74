"""Commands that change jobs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from helios_batch.queue.commands.options import AsJson, JobId, RedisUrl, open_queue


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (submit, cancel, pause, resume, retry):
        app.command()(command)


def submit(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="Job spec, YAML or JSON.")],
    redis: RedisUrl = None,
    queue: Annotated[str, typer.Option(help="The queue whose workers are to run it.")] = "shards",
    priority: Annotated[int, typer.Option(help="Higher goes first.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Queue a job; submitting it again finds it, or opens it again if it has ended."""
    from helios_batch.queue.submission import submit as submit_job
    from helios_batch.spec_file import load_spec

    with open_queue(redis) as (_, jobs):
        done = submit_job(load_spec(spec), jobs, queue=queue, priority=priority)
    if as_json:
        typer.echo(json.dumps(asdict(done)))
        return
    known = done.state if done.state in ("created", "reopened") else f"is {done.state}"
    typer.echo(f"job {done.id} {known}: {done.rows} rows, {done.shards} shards, {done.output}")


def cancel(job: JobId, redis: RedisUrl = None) -> None:
    """Stop a job; what is published stays, and nothing is published afterwards."""
    from helios_batch.errors import QueueError
    from helios_batch.queue import control

    with open_queue(redis) as (settings, jobs):
        state = control.find(jobs, job)
        stopped = control.cancel(jobs, state, settings)
    if not stopped:
        raise QueueError(
            "the job is cancelled, but its output folder is not to be had here and no worker has "
            "seen to it yet: a shard that was being published may still appear",
            where=state.job.output,
            fix="start a worker, or run this where the folder is (HELIOS_OUTPUT_ROOTS)",
        )
    typer.echo(f"job {state.job.id} is cancelled")


def pause(job: JobId, redis: RedisUrl = None) -> None:
    """Begin no more shards of a job; those that run are finished."""
    from helios_batch.queue import control

    with open_queue(redis) as (_, jobs):
        state = control.find(jobs, job)
        control.pause(jobs, state)
    typer.echo(f"job {state.job.id} is paused")


def resume(job: JobId, redis: RedisUrl = None) -> None:
    """Go on with a paused job."""
    from helios_batch.queue import control

    with open_queue(redis) as (settings, jobs):
        state = control.find(jobs, job)
        control.resume(jobs, state, settings)
    typer.echo(f"job {state.job.id} goes on")


def retry(
    job: JobId,
    failed: Annotated[
        bool, typer.Option("--failed", help="Run shards that hold failed rows anew.")
    ] = False,
    redis: RedisUrl = None,
) -> None:
    """Open a failed or cancelled job again; only what is missing is run."""
    from helios_batch.queue import control

    with open_queue(redis) as (settings, jobs):
        state = control.find(jobs, job)
        again = control.retry(jobs, state, settings, failed_rows=failed)
    typer.echo(f"job {state.job.id} goes on; {again} finished shards are run anew")

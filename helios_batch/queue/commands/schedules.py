"""Commands of schedules, and the process that does nothing but dispatch."""

from __future__ import annotations

import json
import os
import secrets
from datetime import UTC, datetime
from typing import Annotated

import typer

from helios_batch.errors import QueueUsageError
from helios_batch.queue.commands.options import AsJson, RedisUrl, open_queue

schedule = typer.Typer(help="Submit a job's new input at fixed times.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(schedule, name="schedule")
    app.command()(beat)


@schedule.command("add")
def add(
    name: Name,
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="Job spec, YAML or JSON.")],
    cron: Annotated[str, typer.Option(help='Five fields, such as "0 2 * * *".')],
    tz: Annotated[str, typer.Option(help="IANA time zone of the fields.")] = "UTC",
    queue: Annotated[str, typer.Option(help="The queue whose workers are to run it.")] = "shards",
    priority: Annotated[int, typer.Option(help="Higher goes first.")] = 0,
    replace: Annotated[bool, typer.Option("--replace", help="Take its name's place.")] = False,
    redis: RedisUrl = None,
) -> None:
    """Submit, at each fire time, a job over the input files that no earlier run has taken."""
    from helios_batch.queue.schedules import Schedule, ScheduleTable
    from helios_batch.queue.submission import absolute
    from helios_batch.spec_file import load_spec

    found = absolute(load_spec(spec)).model_dump(mode="json")
    with open_queue(redis) as (_, jobs):
        ScheduleTable(jobs).add(Schedule(name, cron, tz, found, queue, priority), replace=replace)
    typer.echo(f"schedule {name}: {cron} ({tz})")


@schedule.command("list")
def list_schedules(redis: RedisUrl = None, as_json: AsJson = False) -> None:
    """List the schedules with their next and latest fire times, in UTC."""
    from helios_batch.queue.cron import next_fire
    from helios_batch.queue.schedules import ScheduleTable
    from helios_batch.report.queue import schedules_table

    with open_queue(redis) as (_, jobs):
        table, now = ScheduleTable(jobs), datetime.fromtimestamp(jobs.now(), UTC)
        rows = []
        for each in table.all():
            last, paths = table.last(each.name), each.spec["input"]["path"]
            rows.append(
                {
                    "name": each.name,
                    "cron": each.cron,
                    "tz": each.zone,
                    "next": next_fire(each.cron, each.zone, now).isoformat(),
                    "last": last.time.isoformat(),
                    "result": last.result,
                    "input": ", ".join([paths] if isinstance(paths, str) else paths),
                    "output": str(each.folder),
                }
            )
        histories = [table.history(row["name"]) for row in rows]
    if as_json:
        both = zip(rows, histories, strict=True)
        typer.echo(json.dumps([row | {"history": history} for row, history in both], indent=2))
    else:
        from rich.console import Console

        Console(highlight=False).print(schedules_table(rows))


@schedule.command("remove")
def remove(name: Name, redis: RedisUrl = None) -> None:
    """Forget a schedule; jobs that it has submitted go on."""
    from helios_batch.queue.schedules import ScheduleTable

    with open_queue(redis) as (_, jobs):
        ScheduleTable(jobs).remove(name)
    typer.echo(f"schedule {name} is removed")


@schedule.command("run-now")
def run_now(name: Name, redis: RedisUrl = None) -> None:
    """Fire a schedule now, beside its fixed times."""
    with open_queue(redis) as (_, jobs):
        now = datetime.fromtimestamp(int(jobs.now()), UTC)
    fire(name, now.isoformat(), redis)


@schedule.command("fire", hidden=True)
def fire(name: Name, time: str, redis: RedisUrl = None) -> None:
    """Do the fire of one time; repeated, it gives the same job."""
    from helios_batch.errors import Interrupted
    from helios_batch.queue.firing import fire as fire_schedule
    from helios_batch.queue.schedules import ScheduleTable

    moment = _moment(time)
    with open_queue(redis) as (settings, jobs):
        try:
            result = fire_schedule(ScheduleTable(jobs).find(name), moment, jobs, settings)
        except KeyboardInterrupt:
            raise Interrupted(
                "interrupted",
                where=f"schedule {name}",
                fix="the fire may not be done; the same command does it",
            ) from None
    typer.echo(f"schedule {name}: {result}")


def beat(redis: RedisUrl = None) -> None:
    """Dispatch and fire schedules without a worker; workers do so too, and any number may run."""
    import logging
    import threading

    from helios_batch.queue.beat import Beat
    from helios_batch.queue.housekeeper import Housekeeper

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if redis:
        os.environ["HELIOS_REDIS_URL"] = redis
    with open_queue(redis) as (settings, jobs):
        jobs.client.ping()
        fires = Beat(settings, jobs)
        keeper = Housekeeper(settings, jobs, secrets.token_hex(8), {}, (fires.tick,))
        keeper.start()
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            keeper.stop()
            fires.stop()


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise QueueUsageError(
            f"{text!r:.40} is no time", where="TIME", fix="write it as 2026-01-02T03:04:05+00:00"
        ) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)

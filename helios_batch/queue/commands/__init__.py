"""The queue's commands; each is thin, and imports what it needs when it runs."""

from __future__ import annotations

import typer

from helios_batch.queue.commands import jobs, schedules, up, views, worker


def register(app: typer.Typer) -> None:
    """Add the queue's commands to the command line."""
    for module in (jobs, worker, up, views, schedules):
        module.register(app)

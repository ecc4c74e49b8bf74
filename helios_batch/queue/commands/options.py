"""What the queue's commands have in common: their options, and the way to the queue."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

if TYPE_CHECKING:
    from helios_batch.queue.jobs import JobTable
    from helios_batch.queue.settings import QueueSettings

RedisUrl = Annotated[
    str | None,
    typer.Option("--redis", metavar="URL", help="Redis; or set HELIOS_REDIS_URL."),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, or how it begins.")]
Queues = Annotated[str, typer.Option(help="Queues to take from, with commas.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda:N; else what each job asks for.")]
Memory = Annotated[str | None, typer.Option(help="An engine's budget, such as 8GiB.")]
Threads = Annotated[int | None, typer.Option(min=1, help="An engine's CPU threads.")]
InputRoots = Annotated[
    list[str] | None,
    typer.Option(
        "--input-root", help="Where inputs and models may lie; repeatable. Default: here."
    ),
]
OutputRoots = Annotated[
    list[str] | None,
    typer.Option("--output-root", help="Where outputs may lie; repeatable. Default: here."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


class Queue(NamedTuple):
    """The queue that a command talks to."""

    settings: QueueSettings
    jobs: JobTable


@contextmanager
def open_queue(url: str | None) -> Iterator[Queue]:
    """Give the queue that `url` or the environment names.

    Raises:
        QueueUsageError: none is named.
        QueueError: Redis can't be reached, or refuses a command.
    """
    from helios_batch.queue.connection import connect, redis_errors
    from helios_batch.queue.jobs import JobTable
    from helios_batch.queue.keys import Keys
    from helios_batch.queue.settings import QueueSettings

    settings = QueueSettings.from_env(url)
    with redis_errors(settings), connect(settings) as client:
        yield Queue(settings, JobTable(client, Keys(settings.prefix)))

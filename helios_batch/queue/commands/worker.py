"""The command that runs a worker."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from helios_batch.errors import QueueUsageError
from helios_batch.queue.commands.options import (
    Device,
    InputRoots,
    Memory,
    OutputRoots,
    Queues,
    RedisUrl,
    Threads,
)


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(worker)


def worker(
    redis: RedisUrl = None,
    queues: Queues = "shards",
    device: Device = None,
    memory: Memory = None,
    threads: Threads = None,
    name: Annotated[str | None, typer.Option(help="A name no other worker here has.")] = None,
    input_root: InputRoots = None,
    output_root: OutputRoots = None,
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "INFO",
    metrics_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, envvar="HELIOS_METRICS_PORT", help="Serve Prometheus here."),
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(envvar="HELIOS_METRICS_HOST", help="Address of --metrics-port.")
    ] = "127.0.0.1",
) -> None:
    """Run shards from the queue: one worker, one device, one engine."""
    from helios_batch.queue.settings import QueueSettings
    from helios_batch.queue.worker import WorkerOptions, run_worker

    # the process that computes is a new interpreter, and reads the environment
    roots = {"HELIOS_INPUT_ROOTS": input_root, "HELIOS_OUTPUT_ROOTS": output_root}
    os.environ.update({variable: ",".join(given) for variable, given in roots.items() if given})
    if redis:
        os.environ["HELIOS_REDIS_URL"] = redis
    options = WorkerOptions(
        name=name,
        queues=tuple(part.strip() for part in queues.split(",") if part.strip()),
        device=device,
        memory=size_in_bytes(memory),
        threads=threads,
        log_level=log_level.upper(),
        metrics_host=metrics_host,
        metrics_port=metrics_port,
    )
    raise typer.Exit(run_worker(QueueSettings.from_env(), options))


def size_in_bytes(text: str | None) -> int | None:
    """Return the bytes that `--memory` gives.

    Raises:
        QueueUsageError: it is no size.
    """
    from helios_batch.units import parse_bytes

    try:
        return None if text is None else parse_bytes(text)
    except ValueError as exc:
        raise QueueUsageError(f"{text!r:.40} is no size", where="--memory", fix=str(exc)) from None

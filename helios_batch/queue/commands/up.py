"""The command that runs a whole queue on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from helios_batch.queue.commands.options import (
    Device,
    InputRoots,
    Memory,
    OutputRoots,
    Queues,
    Threads,
)
from helios_batch.queue.commands.worker import size_in_bytes


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(up)


def up(
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many.")] = 1,
    folder: Annotated[
        Path | None, typer.Option(help="Where data and logs stay. Default: in the cache folder.")
    ] = None,
    queues: Queues = "shards",
    device: Device = None,
    memory: Memory = None,
    threads: Threads = None,
    input_root: InputRoots = None,
    output_root: OutputRoots = None,
) -> None:
    """Try the queue on this machine: a Redis of its own and workers, until Ctrl-C."""
    from helios_batch.cache import cache_folder
    from helios_batch.queue.local_cluster import LocalCluster

    size_in_bytes(memory)
    given = {"--device": device, "--memory": memory, "--threads": threads}
    arguments = ["--queues", queues]
    arguments += [part for key, value in given.items() if value for part in (key, str(value))]
    for key, roots in (("--input-root", input_root), ("--output-root", output_root)):
        arguments += [part for root in roots or () for part in (key, root)]
    place = (folder or cache_folder() / "queue").expanduser().resolve()
    LocalCluster(place, workers, arguments, typer.echo).run()

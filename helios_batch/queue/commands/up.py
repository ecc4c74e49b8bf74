"""The command that runs a whole queue on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from helios_batch.queue.commands.worker import Roots, size_in_bytes


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(up)


def up(
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many.")] = 1,
    folder: Annotated[
        Path | None, typer.Option(help="Where data and logs stay. Default: in the cache folder.")
    ] = None,
    queues: Annotated[str, typer.Option(help="Queues to take from, with commas.")] = "shards",
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda:N; else what each job asks for.")
    ] = None,
    memory: Annotated[str | None, typer.Option(help="Each engine's budget, such as 8GiB.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Each engine's CPU threads.")] = None,
    input_root: Annotated[
        Roots, typer.Option(help="Where inputs and models may lie; repeatable. Default: here.")
    ] = None,
    output_root: Annotated[
        Roots, typer.Option(help="Where outputs may lie; repeatable. Default: here.")
    ] = None,
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

"""The command `models tune`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from helios_batch.errors import Interrupted, SpecError
from helios_batch.spec import ResourceSpec
from helios_batch.units import parse_bytes

_out = Console(highlight=False)
_err = Console(stderr=True, highlight=False)


def tune_model(
    model: Annotated[str, typer.Argument(help="A pack, a folder or a hub id.")],
    data: Annotated[
        list[str],
        typer.Option(help="Job spec, or Parquet with a column messages, prompt or text."),
    ],
    exits: Annotated[str, typer.Option(help="Layers after which to make exits, as in 10,15,20.")],
    out: Annotated[Path, typer.Option(help="Folder for the exits; a job names it as exits.path.")],
    rows: Annotated[int, typer.Option(min=20, help="Rows to run at full depth.")] = 1000,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="Time in all; default: until it gains no more.")
    ] = None,
    kind: Annotated[str, typer.Option(help="norm, bridge, mlp or layer:N.")] = "bridge",
    tail: Annotated[int, typer.Option(help="The model's last layers that a bridge ends in.")] = 2,
    rank: Annotated[int, typer.Option(min=0, help="Rank of the deltas on the tail.")] = 32,
    adapt: Annotated[int, typer.Option(min=0, help="Loaded layers that get deltas too.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of sample, order and starting values.")] = 0,
    disk: Annotated[str, typer.Option(help="Disk for hidden states while tuning.")] = "8GiB",
    memory: Annotated[str | None, typer.Option(help="As resources.memory in a spec.")] = None,
    device: Annotated[str, typer.Option(help="As resources.device in a spec.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make exits for a model on a job's own prompts; running it again goes on."""
    if not re.fullmatch(r"\d{1,4}(,\d{1,4})*", exits):
        raise SpecError(
            f"exits {exits!r} are no layers", where="--exits", fix="write them as 10,15,20"
        )
    from helios_batch.report.tuning import plot_tuning, tuning_tables
    from helios_batch.report.tuning_progress import TuningProgress
    from helios_batch.tune.request import TuneRequest
    from helios_batch.tune.run import tune

    try:
        sizes = {"disk": parse_bytes(disk), "memory": parse_bytes(memory) if memory else None}
    except ValueError as exc:
        raise SpecError(str(exc), where="--disk, --memory", fix="write 8GiB, 500MB") from None
    request = TuneRequest(
        model=model,
        data=tuple(data),
        exits=tuple(sorted({int(depth) for depth in exits.split(",")})),
        output=out,
        rows=rows,
        minutes=minutes,
        kind=kind,
        tail=tail,
        rank=rank,
        adapt=adapt,
        seed=seed,
        disk=sizes["disk"] or 0,
        resources=ResourceSpec(device=device, memory=sizes["memory"]),
    )
    try:
        with TuningProgress(_err) as progress:
            result = tune(request, progress, progress)
    except KeyboardInterrupt:
        fix = "what was done is kept; the same command goes on from there"
        raise Interrupted("interrupted", where="models tune", fix=fix) from None
    plot_tuning(result, out / "tuning.png")
    if as_json:
        typer.echo(json.dumps(result.to_json(), indent=2))
    else:
        _out.print(tuning_tables(result))

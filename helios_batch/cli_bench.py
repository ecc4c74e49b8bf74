"""The commands `bench`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from helios_batch.errors import SpecError

bench = typer.Typer(help="Compare policies.", no_args_is_help=True)
_out = Console(highlight=False)


@bench.callback()
def _group() -> None:
    """Keep `policy` a command of its own, though it is the only one."""


@bench.command("policy")
def bench_policy(
    simulate: Annotated[
        bool,
        typer.Option("--simulate", help="On the paper's models and chips, by counting seconds."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plots: Annotated[
        Path | None, typer.Option(help="Folder for plots and figures of ablations.")
    ] = None,
    requests: Annotated[int, typer.Option(min=10, help="Requests of the simulated job.")] = 1087,
    seed: Annotated[int, typer.Option(min=0, help="Of the simulated job.")] = 0,
) -> None:
    """Compare the policies, beside the published figures."""
    if not simulate:
        raise SpecError(
            "there is nothing to compare on", where="bench policy", fix="write --simulate"
        )
    from helios_batch.report.simulation import plot_ablations, simulation_tables
    from helios_batch.simulate.ablations import ablate
    from helios_batch.simulate.comparison import compare

    found = compare(requests, seed)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        _out.print(simulation_tables(found))
    if plots is not None:
        plot_ablations(ablate(requests, seed), plots)

"""The commands `bench`."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from helios_batch.errors import SpecError

bench = typer.Typer(help="Compare policies.", no_args_is_help=True)
_out = Console(highlight=False)
_err = Console(stderr=True, highlight=False)


@bench.callback()
def _group() -> None:
    """Keep `policy` a command of its own, though it is the only one."""


@bench.command("policy")
def bench_policy(
    spec: Annotated[
        str | None, typer.Argument(metavar="[SPEC]", help="Job to run under each policy.")
    ] = None,
    simulate: Annotated[
        bool,
        typer.Option("--simulate", help="On the paper's models and chips, by counting seconds."),
    ] = False,
    rows: Annotated[int, typer.Option(min=1, help="The job's first rows to run.")] = 500,
    rounds: Annotated[int, typer.Option(min=1, help="How often each policy runs, in turn.")] = 1,
    bounds: Annotated[
        str, typer.Option(help="Promises to keep besides, as in 0.8,0.9 or 1.05,1.1.")
    ] = "",
    only: Annotated[
        str, typer.Option(help="Policies to run, by the beginnings of their names; default: all.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plots: Annotated[
        Path | None, typer.Option(help="Folder for plots and figures of ablations.")
    ] = None,
    requests: Annotated[int, typer.Option(min=10, help="Requests of the simulated job.")] = 1087,
    seed: Annotated[int, typer.Option(min=0, help="Of the simulated job.")] = 0,
) -> None:
    """Compare the policies: on a job of yours, or on the paper's models by simulation."""
    if (spec is None) == (not simulate):
        raise SpecError(
            "say what to compare the policies on: a job, or the paper's models",
            where="bench policy",
            fix="name a spec, or write --simulate",
        )
    if spec is not None:
        names = tuple(name.strip() for name in only.split(",") if name.strip())
        _on_a_job(spec, rows, rounds, _numbers(bounds), names, as_json, plots)
        return
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


def _on_a_job(
    spec: str,
    rows: int,
    rounds: int,
    bounds: tuple[float, ...],
    only: tuple[str, ...],
    as_json: bool,
    plots: Path | None,
) -> None:
    from helios_batch.bench.policies import bench_policies
    from helios_batch.report.policies import plot_policies, policies_tables
    from helios_batch.spec_file import load_spec

    with tempfile.TemporaryDirectory(prefix="helios-bench-") as folder:
        found = bench_policies(
            *(load_spec(spec), Path(folder), rows, rounds, bounds, only),
            lambda line: _err.print(line, markup=False),
        )
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=2))
    else:
        _out.print(policies_tables(found))
    if plots is not None:
        plot_policies(found, plots)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise SpecError(
            f"bounds are numbers (found {text!r})", where="--bounds", fix="write, say, 0.8,0.9"
        ) from None

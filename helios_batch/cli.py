"""The command line; every command is thin, and torch is imported only where a model runs."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from helios_batch.cli_bench import bench
from helios_batch.cli_tune import tune_model
from helios_batch.errors import HeliosError, Interrupted
from helios_batch.queue import commands as queue_commands

app = typer.Typer(
    name="helios-batch",
    help="Offline batch inference over Parquet on early-exit language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
models = typer.Typer(help="List, fetch, convert and describe models.", no_args_is_help=True)
app.add_typer(models, name="models")
models.command("tune")(tune_model)
app.add_typer(bench, name="bench")
queue_commands.register(app)

SpecPath = Annotated[str, typer.Argument(metavar="SPEC", help="Job spec, YAML or JSON.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
RepositoryPath = Annotated[
    Path | None,
    typer.Option(
        "--repository",
        help="Model repository: a YAML file or a folder of such, instead of the one in the cache.",
    ),
]

_out = Console(highlight=False)
_err = Console(stderr=True, highlight=False)


def main() -> None:
    """Run the command line; errors become one message and an exit status."""
    # an orchestrator's SIGTERM is handled as Ctrl-C is
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except HeliosError as exc:
        _err.print(f"error: {exc}", style="red", markup=False, soft_wrap=True)
        sys.exit(exc.exit_code)


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def _interruptible(command: str, fix: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("interrupted", where=command, fix=fix) from None


@app.command()
def run(
    spec: SpecPath,
    as_json: AsJson = False,
    show: Annotated[int, typer.Option(min=0, help="Print this many results.")] = 0,
) -> None:
    """Run a job in this process; running it again resumes it."""
    from helios_batch.job import prepare
    from helios_batch.loading import load_engine
    from helios_batch.local import run_local
    from helios_batch.report.progress import RunProgress
    from helios_batch.report.summary import sample_rows, summary_table
    from helios_batch.spec_file import load_spec

    with _interruptible("run", "finished shards are kept; the same command goes on from there"):
        job = prepare(load_spec(spec))
        with RunProgress(_err) as progress:
            result = run_local(job, load_engine, progress)
    if as_json:
        data = {"output": str(result.output), "resumed_rows": result.resumed_rows}
        data |= {"wall_seconds": result.wall_seconds, "totals": result.totals.to_json()}
        typer.echo(json.dumps(data, indent=2))
        return
    _out.print(
        summary_table(
            result.totals,
            result.output,
            result.resumed_rows,
            result.wall_seconds,
            job.policy,
            job.broken,
        )
    )
    if show:
        _out.print(sample_rows(result.output, show))


@app.command()
def plan(spec: SpecPath, as_json: AsJson = False) -> None:
    """Check a job and show its rows, tokens, shards and memory by depth; writes nothing."""
    from helios_batch.job import prepare
    from helios_batch.preflight import preflight
    from helios_batch.report.plan import plan_tables
    from helios_batch.spec_file import load_spec

    result = preflight(prepare(load_spec(spec)))
    if as_json:
        typer.echo(json.dumps(asdict(result), indent=2))
    else:
        _out.print(plan_tables(result))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show what this machine offers and what is missing."""
    from helios_batch.report.doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        table = Table("check", "state", "found", "what to do", title="doctor")
        for finding in findings:
            state = "[green]ok[/]" if finding.ok else "[yellow]missing[/]"
            table.add_row(finding.check, state, escape(finding.found), finding.fix)
        _out.print(table)


@models.command("list")
def list_models(as_json: AsJson = False, repository: RepositoryPath = None) -> None:
    """List the packs, whether they are fetched, and what the model repository knows."""
    from helios_batch.models.repository.files import load_repository
    from helios_batch.report.repository import list_tables, listing

    rows = listing(load_repository(repository))
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    _out.print(list_tables(rows))
    _out.print("Local folders and Hugging Face hub ids are models too.")


@models.command("fetch")
def fetch_model(
    name: Annotated[str, typer.Argument(help="Name of a pack.")],
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="You accept the pack's licence.")
    ] = False,
) -> None:
    """Download, check and convert a pack into the cache folder.

    A pack under a licence that has to be accepted is fetched only with --accept-license; without
    it, the command says where the terms are.
    """
    from helios_batch.errors import ModelError
    from helios_batch.models.packs import PACKS, fetch

    if name not in PACKS:
        raise ModelError(
            f"unknown pack {name!r}", where="models fetch", fix=f"the packs are {', '.join(PACKS)}"
        )
    with _interruptible("models fetch", "nothing was kept; fetch it again"):
        folder = fetch(
            PACKS[name],
            lambda line: _err.print(line, markup=False),
            accept_license=accept_license,
        )
    typer.echo(folder)


@models.command("convert")
def convert_model(
    source: Annotated[
        Path, typer.Argument(help="Folder of an EE-LLM, EE-Tuning or Balcony checkpoint.")
    ],
    target: Annotated[Path, typer.Argument(help="Folder to write; it must not exist.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the model's tokenizer, which is copied.")
    ] = None,
) -> None:
    """Convert a checkpoint that has exits to a folder that jobs can name."""
    from helios_batch.models.convert.convert import convert

    with _interruptible("models convert", "nothing was kept; convert it again"):
        conversion = convert(
            source.expanduser(),
            target.expanduser(),
            tokenizer.expanduser() if tokenizer else None,
            lambda line: _err.print(line, markup=False),
        )
    for note in conversion.notes:
        _err.print(f"note: {note}", markup=False, soft_wrap=True)
    _err.print(f"exits at layers {', '.join(map(str, conversion.depths)) or 'none'}")
    typer.echo(target)


@models.command("show")
def show_model(
    name: Annotated[str, typer.Argument(help="A pack, a folder or a hub id.")],
    as_json: AsJson = False,
    repository: RepositoryPath = None,
) -> None:
    """Describe a model: its shape, its weights in memory by depth, and what was measured of it."""
    from helios_batch.models.repository.files import load_repository
    from helios_batch.report.model import describe, model_table

    entry = load_repository(repository).find(name)
    facts = describe(name, entry)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        _out.print(model_table(facts, entry))


if __name__ == "__main__":
    main()

"""The outcome of a tuning: a table, and a plot of the curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group
from rich.table import Table

from helios_batch.report.facts import facts_table
from helios_batch.tune.result import ExitReport, TuneResult


def tuning_tables(result: TuneResult) -> Group:
    """Return what was learned from, and each exit's figures on held-out texts."""
    rates = [report.flops_per_second / 1e9 for report in result.exits]
    facts = {
        "model": result.model,
        "exits": str(result.output),
        "learned from": f"{result.learned_tokens:,} tokens of {result.learned_texts:,} texts",
        "held out": f"{result.held_out_tokens:,} tokens that the model wrote itself",
        "training rate": f"{min(rates):,.0f} to {max(rates):,.0f} GFLOP/s, where a large matrix "
        f"product runs at {result.matrix_flops_per_second / 1e9:,.0f}",
        "training ended as": ", ".join(
            f"{report.ended} (exit {report.metadata.depth})" for report in result.exits
        ),
        "time": ", ".join(f"{phase} {value:.0f} s" for phase, value in result.seconds.items()),
    }
    table = Table(
        *("exit", "runs", "closed form", "agreement", "over 0.9", "agree", "ECE", "MB"),
        title="Exits on held-out texts: layers run, agreement with full depth, share of tokens "
        "over 0.9 and agreement among these",
        title_justify="left",
    )
    for report in result.exits:
        metadata, held = report.metadata, report.metadata.measured["held_out"]
        closed = [point.agreement for point in report.curve if point.loss is None]
        table.add_row(
            f"{metadata.depth} of {metadata.num_layers}",
            str(metadata.layers_run),
            f"{closed[-1]:.1%}" if metadata.kind != "norm" else "",
            f"{held.agreement:.1%}",
            f"{held.coverage['0.9']:.1%}",
            f"{held.precision['0.9']:.1%}",
            f"{held.ece:.3f}",
            f"{report.size / 1e6:.1f}",
        )
    parts = [facts_table("Tuning", facts), table]
    if any(report.labels for report in result.exits):
        parts.append(_labels(result.exits))
    return Group(*parts)


def _labels(reports: Sequence[ExitReport]) -> Table:
    table = Table(
        *("exit", "rows", "agreement", "kappa", "ECE", "cost of a row", "full depth is sure of"),
        *("largest class",),
        title="Labels, on held-out rows",
        title_justify="left",
    )
    for report in reports:
        if (found := report.labels) is not None:
            table.add_row(
                str(report.metadata.depth),
                str(found.rows),
                f"{found.agreement:.1%}",
                f"{found.kappa:.3f}",
                f"{found.ece:.3f}",
                f"1/{1 / found.cost:.2f}",
                f"{found.decisive:.2f}",
                f"{found.largest_class:.1%}",
            )
    return table


def plot_tuning(result: TuneResult, path: Path) -> None:
    """Write a plot: agreement by data and training, by confidence threshold, and by depth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    by_data, by_confidence, by_depth = figure.subplots(1, 3)
    for report in result.exits:
        name = f"exit {report.metadata.depth}"
        points = [(point.tokens, 100 * point.agreement) for point in report.curve if point.tokens]
        by_data.plot(*zip(*points, strict=True), marker=".", label=name)
        held = report.metadata.measured["held_out"]
        shares = [100 * held.coverage[key] for key in held.coverage]
        precise = [100 * held.precision[key] for key in held.coverage]
        by_confidence.plot(shares, precise, marker=".", label=name)
    by_data.set(xscale="log", xlabel="tokens learned from", ylabel="agreement, %")
    by_confidence.set(xlabel="tokens over the threshold, %", ylabel="of these agree, %")
    depths = [report.metadata.depth for report in result.exits]
    agreement = [100 * r.metadata.measured["held_out"].agreement for r in result.exits]
    by_depth.plot(depths, agreement, marker="o")
    by_depth.set(xlabel="layers loaded", ylabel="agreement on held-out texts, %")
    for axes in (by_data, by_confidence, by_depth):
        axes.grid(alpha=0.3)
    by_data.legend()
    figure.suptitle(f"Exits of {result.model}")
    figure.savefig(path)

"""Policies side by side: tables and a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Group
from rich.table import Table

from helios_batch.bench.policies import PolicyFigures


def policies_tables(figures: Sequence[PolicyFigures]) -> Group:
    """Return what each policy takes and what comes of it; all are compared with the first."""
    first = figures[0]
    speed = Table(
        *("policy", "rows/s", "of the first", "tokens/s", "batch (held)", "weights + KV"),
        title="The same rows under each policy; memory is that of as many sequences as the first "
        "had at once",
        title_justify="left",
    )
    outcome = Table(
        *("policy", "first exit", "all layers", "agreement", "perplexity", "profile", "before"),
        title="Share of tokens by exit, agreement with the first, perplexity to its model; before: "
        "loading and calibration, once a job",
        title_justify="left",
    )
    for one in figures:
        speed.add_row(
            one.name,
            f"{one.rows_per_second:.2f}",
            f"{one.rows_per_second / first.rows_per_second:.2f}x",
            f"{one.tokens_per_second:,.0f}",
            f"{one.batch} ({one.batch_limit})",
            f"{one.memory / 2**20:,.0f} MiB ({one.memory / first.memory - 1:+.0%})",
        )
        moves = ", ".join(f"{kind} {count}" for kind, count in sorted(one.moves.items()))
        outcome.add_row(
            one.name + (f" ({moves})" if moves else ""),
            f"{one.earliest:.1%}",
            f"{one.full:.1%}",
            f"{one.agreement:.1%}",
            "" if one.perplexity is None else f"{one.perplexity:.3f}x",
            f"{one.profile:.1f} s",
            f"{one.before:.1f} s",
        )
    return Group(speed, outcome)


def plot_policies(figures: Sequence[PolicyFigures], folder: Path) -> None:
    """Write the speeds as a bar chart, `policies.png`, and all figures as `policies.json`."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(8, 0.4 * len(figures) + 1.5), layout="constrained")
    axes = figure.subplots()
    first = figures[0]
    ratios = [one.rows_per_second / first.rows_per_second for one in reversed(figures)]
    bars = axes.barh([one.name for one in reversed(figures)], ratios)
    axes.bar_label(bars, [f"{ratio:.2f}x" for ratio in ratios], padding=3)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel(f"rows/s, of {first.name}'s {first.rows_per_second:.2f}")
    axes.margins(x=0.12)
    figure.savefig(folder / "policies.png", dpi=150)
    (folder / "policies.json").write_text(json.dumps([asdict(one) for one in figures], indent=2))

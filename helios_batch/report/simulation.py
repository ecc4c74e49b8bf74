"""The simulated policies: tables, and plots of the ablations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table

from helios_batch.simulate.ablations import Ablations, Escalation, Point
from helios_batch.simulate.comparison import Comparison
from helios_batch.simulate.result import PolicyResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def simulation_tables(found: Comparison) -> Group:
    """Return the paper's figures beside the simulated ones, and the policies in batches."""
    lines = Table(
        *("figure", "host's time", "chip's time", "published", "what makes the difference"),
        title=f"HELIOS on A100-40GB, one request at a time, {found.requests:,} requests: simulated "
        "and published",
        title_justify="left",
    )
    for line in found.lines:
        lines.add_row(line.figure, *line.simulated, line.published, line.because)
    sizes = Table(
        *("model", "chip", "layers", "batch", "weights and a sequence, GB"),
        title="What memory holds, at full depth and at the earliest exit",
        title_justify="left",
    )
    for each in found.footprints:
        shown = [
            " to ".join(f"{value:,}" for value in pair) for pair in (each.layers, each.batches)
        ]
        bytes_ = " to ".join(f"{value / 1e9:.1f}" for value in each.memory)
        sizes.add_row(each.model, each.chip, *shown, bytes_)
    policies = Table(
        *("policy", "models", "chip", "tokens/s", "batch", "GB", "earliest exit", "all layers"),
        "reactions",
        title="In batches, by the chip's time",
        title_justify="left",
    )
    for result in [result for setting in found.batches for result in setting.results]:
        policies.add_row(*_row(result))
    return Group(lines, sizes, policies)


def _row(found: PolicyResult) -> list[str]:
    return [
        found.policy,
        ", ".join(found.models),
        found.chip,
        f"{found.tokens_per_second:,.0f}",
        f"{found.batch:,}",
        f"{found.memory / 1e9:.1f}",
        f"{found.earliest:.1%}",
        f"{found.all_layers:.1%}",
        str(found.reactions),
    ]


def plot_ablations(found: Ablations, folder: Path) -> None:
    """Write a plot of each ablation, and all figures as `ablations.json`, into a folder."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ablations.json").write_text(json.dumps(asdict(found), indent=1), encoding="utf-8")
    sweeps = {
        "threshold": (found.thresholds, "confidence threshold"),
        "reprofile": (found.intervals, "rows between profiles (the last: never)"),
        "window": (found.windows, "tokens of a window"),
    }
    for name, (points, label) in sweeps.items():
        figure = Figure(figsize=(11, 4), layout="constrained")
        speed, shares = figure.subplots(1, 2)
        _speeds(speed, points, label)
        _shares(shares, points, label)
        figure.savefig(folder / f"{name}.png")
    figure = Figure(figsize=(11, 4), layout="constrained")
    speed, shares = figure.subplots(1, 2)
    names = [str(point.changed) for point in found.without]
    speed.barh(names, [point.result.tokens_per_second for point in found.without])
    speed.set(xlabel="tokens/s")
    shares.barh(names, [100 * point.result.unsure for point in found.without])
    shares.set(xlabel="tokens that left unsure, %")
    for axes in (speed, shares):
        axes.invert_yaxis()
        axes.grid(alpha=0.3)
    figure.savefig(folder / "without.png")
    figure = Figure(figsize=(6, 4), layout="constrained")
    _escalation(figure.subplots(), found.escalation)
    figure.savefig(folder / "escalation.png")


def _speeds(axes: Axes, points: Sequence[Point], label: str) -> None:
    places = [str(point.changed) for point in points]
    axes.plot(places, [p.result.tokens_per_second for p in points], marker="o", label="as it is")
    free = [p.result.tokens / (p.result.seconds - p.result.profile_seconds) for p in points]
    axes.plot(places, free, marker=".", linestyle=":", label="profiles left out")
    axes.set(xlabel=label, ylabel="tokens/s", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()


def _shares(axes: Axes, points: Sequence[Point], label: str) -> None:
    places = [str(point.changed) for point in points]
    for name in ("earliest", "all_layers", "unsure", "agreement"):
        shares = [100 * float(getattr(point.result, name)) for point in points]
        axes.plot(places, shares, marker="o", label=name.replace("_", " "))
    axes.set(xlabel=label, ylabel="tokens, %", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend()


def _escalation(axes: Axes, points: Sequence[Escalation]) -> None:
    bounds = [100 * point.bound for point in points]
    axes.plot(bounds, [1e3 * p.one_depth for p in points], marker=".", label="one depth for all")
    axes.plot(bounds, [1e3 * p.cascade for p in points], marker=".", label="unsure rows run again")
    axes.set(
        xlabel="tokens that may differ from full depth's, %", ylabel="ms a row", ylim=(0, None)
    )
    axes.grid(alpha=0.3)
    axes.legend()

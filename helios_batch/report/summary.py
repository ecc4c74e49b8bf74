"""What a person reads after a run: a summary table and a few results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from helios_batch.helios.policy import Policy
from helios_batch.records import EngineFacts
from helios_batch.report.facts import exit_text, facts_table
from helios_batch.report.policy import policy_facts
from helios_batch.totals import Totals

_LABELS_SHOWN = 10


def summary_table(
    totals: Totals,
    output: Path,
    resumed_rows: int,
    wall_seconds: float,
    policy: Policy | None = None,
    broken: Mapping[str, Any] | None = None,
) -> Table:
    """Return the summary of a job; rates and phases are those of all its parts."""
    errors = ", ".join(f"{code} {count}" for code, count in totals.errors.most_common())
    exits = ", ".join(f"layer {k}: {v:,}" for k, v in sorted(totals.exit_histogram.items()))
    phases = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in totals.seconds.items())
    facts = {
        "output": str(output),
        "rows": f"{totals.rows:,} ({resumed_rows:,} of them by earlier runs)",
        "failed rows": f"{totals.failed_rows:,}" + (f" ({errors})" if errors else ""),
        "tokens": f"{totals.prompt_tokens:,} prompt, {totals.completion_tokens:,} completion",
        "completion tokens/s": f"{totals.tokens_per_second:,.0f}",
        "batch": (f"mean {totals.mean_batch:.0f}, " if totals.decode_steps else "")
        + f"largest {totals.largest_batch}",
        "model": "\n".join(_engine(engine) for engine in totals.engines) or "none ran",
        "tokens by exit": exits or "none",
        "time by phase": phases or "nothing ran",
        "this run": f"{wall_seconds:.1f} s",
    }
    if totals.moves:
        moves = ", ".join(f"{kind} {count}" for kind, count in sorted(totals.moves.items()))
        facts["moves"] = (
            f"{moves}; the longest made rows wait for {totals.longest_stall:.2f} s "
            f"(expected: {totals.expected_stall:.2f} s)"
        )
    if totals.labels:
        facts["labels"] = _labels(totals)
    if policy is not None:
        facts |= policy_facts(policy, totals, broken)
    return facts_table("Summary", facts)


def _labels(totals: Totals) -> str:
    shown = [f"{label} {count:,}" for label, count in totals.labels.most_common(_LABELS_SHOWN)]
    others = len(totals.labels) - len(shown)
    return ", ".join([*shown, f"and {others} others"] if others else shown)


def _engine(engine: EngineFacts) -> str:
    whole = engine.weight_bytes_loaded + engine.weight_bytes_left
    layers = f"{engine.layers_loaded} of {engine.num_layers} layers"
    if engine.layers_run > engine.layers_loaded:
        layers += f" and {engine.layers_run - engine.layers_loaded} of the exit"
    return (
        f"{engine.model} on {engine.device} in {engine.dtype}: "
        f"{layers}, exit: {exit_text(engine.exit)}, "
        f"{engine.weight_bytes_loaded / 1e6:,.0f} of {whole / 1e6:,.0f} MB of weights read"
    )


def sample_rows(output: Path, count: int) -> RenderableType:
    """Return the first `count` rows that have a generation, each as a panel."""
    dataset = ds.dataset(output, format="parquet")
    scanner = dataset.scanner(
        columns=["row_id", "generated_text", "finish_reason", "exit"],
        filter=ds.field("generated_text").is_valid(),
    )
    panels = []
    for row in scanner.head(count).to_pylist():
        exit_ = row["exit"]
        title = (
            f"row {row['row_id']['row']} · {row['finish_reason']} · exit layer "
            f"{exit_['layers_loaded']} of {exit_['num_layers']} · mean confidence "
            f"{exit_['mean_confidence']:.2f}"
        )
        panels.append(Panel(Text(row["generated_text"].strip()), title=title, title_align="left"))
    return Group(*panels)

"""What a person reads of a job's policy: what was promised, chosen, expected and measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from helios_batch.helios.measured import measured
from helios_batch.helios.policy import Policy, Stage
from helios_batch.spec_quality import Metric
from helios_batch.totals import Totals


def policy_facts(
    policy: Policy, totals: Totals, broken: Mapping[str, Any] | None
) -> dict[str, str]:
    """Return what was decided and what came of it, by name.

    Args:
        policy: what was decided.
        totals: of the job.
        broken: what an audit found that broke the promise, if one did.
    """
    metric = policy.metric
    held = "on average" if policy.confidence is None else f"confidence {policy.confidence:.0%}"
    facts = {"policy": f"{policy.reason} ({metric}, {held})"}
    if broken is not None:
        facts["BROKEN PROMISE"] = (
            f"{broken['audited']} audited rows had "
            f"{_told(metric, policy.value_of(broken['mean_loss']))}: the shards after them ran at "
            "full depth"
        )
    if policy.leaves_early:
        stages = ", ".join(
            f"{_name(stage, policy)}: {kept:.1%} of rows (had {totals.stages[place]:,})"
            for place, (stage, kept) in enumerate(zip(policy.stages, policy.kept, strict=True))
        )
        expected = (policy.expected, policy.expected_low, policy.expected_high)
        facts |= {
            "stages": stages,
            "threshold": f"a row leaves early at a confidence of {policy.threshold:.4f}",
            "expected": f"{_told(metric, *expected)}, a row at 1/"
            f"{policy.full_seconds / policy.seconds:.2f} of full depth's cost; from {policy.rows} "
            "rows, by which the threshold was found",
        }
    if (found := measured(policy, totals)) is not None:
        facts["measured"] = (
            f"{_told(metric, found.value, found.low, found.high)}; the {found.audited_rows:,} "
            f"audited of the rows that left early have {_told(metric, found.audited)}"
        )
    return facts


def _told(metric: Metric, value: float, *interval: float) -> str:
    """Say an agreement or a ratio of perplexities, with its interval if there is one."""
    figure, unit = "{:.1%}", "agreement"
    if metric == "perplexity":
        figure, unit = "{:.3f}", "times full depth's perplexity"
    ends = " to ".join(figure.format(end) for end in interval)
    return f"{figure.format(value)} {unit}" + (f" ({ends})" if ends else "")


def _name(stage: Stage, policy: Policy) -> str:
    layer = f"layer {stage.layers}"
    return f"{stage.model}, {layer}" if len(set(policy.models)) > 1 else layer

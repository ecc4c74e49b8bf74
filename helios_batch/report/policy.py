"""What a person reads of a job's policy: what was promised, chosen, expected and measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from helios_batch.helios.bounds import mean_interval
from helios_batch.helios.policy import Policy
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
    held = "on average" if policy.confidence is None else f"confidence {policy.confidence:.0%}"
    facts = {"policy": f"{policy.reason} ({policy.metric}, {held})"}
    if broken is not None:
        facts["BROKEN PROMISE"] = (
            f"{broken['audited']} audited rows had a mean loss of {broken['mean_loss']:.1%}: "
            "the shards after them ran at full depth"
        )
    if policy.leaves_early:
        stages = ", ".join(
            f"layer {depth}: {kept:.1%} of rows (had {totals.stages[stage]:,})"
            for stage, (depth, kept) in enumerate(zip(policy.depths, policy.kept, strict=True))
        )
        facts |= {
            "stages": stages,
            "threshold": f"a row leaves early at a confidence of {policy.threshold:.4f}",
            "expected": f"{policy.agreement:.1%} agreement ({policy.agreement_low:.1%} to "
            f"{policy.agreement_high:.1%}), a row at 1/{policy.full_seconds / policy.seconds:.2f} "
            f"of full depth's cost; from {policy.rows} rows, by which the threshold was found",
        }
    if totals.audited_rows:
        mean = totals.audited_agreement / totals.audited_rows
        early = 1 - totals.stages[len(policy.depths) - 1] / max(1, totals.stages.total())
        # all others are full depth's own
        whole, low, high = (
            1 - early * (1 - share)
            for share in (mean, *mean_interval(mean, totals.audited_rows, 0.95))
        )
        facts["measured"] = (
            f"{whole:.1%} agreement ({low:.1%} to {high:.1%}); the {totals.audited_rows:,} audited "
            f"of the rows that left early agree by {mean:.1%}"
        )
    return facts

"""What audits showed of a job: how far its rows are as good as full depth's own (pure)."""

from __future__ import annotations

from typing import NamedTuple

from helios_batch.helios.bounds import mean_interval
from helios_batch.helios.policy import Policy
from helios_batch.totals import Totals


class Measured(NamedTuple):
    """In the metric's own terms: an agreement, or a ratio of perplexities.

    `value` is that of all rows, with the ends of its 95 % interval; `audited` is that of the
    `audited_rows`, which left early, alone.
    """

    value: float
    low: float
    high: float
    audited: float
    audited_rows: int


def measured(policy: Policy, totals: Totals) -> Measured | None:
    """Return what the audited rows say of all, or None if none was audited."""
    if not totals.audited_rows:
        return None
    loss = 1 - totals.audited_agreement / totals.audited_rows
    # all others are full depth's own
    early = 1 - totals.stages[len(policy.depths) - 1] / max(1, totals.stages.total())
    ends = mean_interval(loss, totals.audited_rows, 0.95)
    low, high = sorted(policy.value_of(early * end) for end in ends)
    return Measured(
        policy.value_of(early * loss), low, high, policy.value_of(loss), totals.audited_rows
    )

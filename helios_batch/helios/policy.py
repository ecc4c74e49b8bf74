"""The policy of a job: at which depths its rows run, and when a row may leave (pure)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from helios_batch.helios.bounds import mean_interval
from helios_batch.helios.calibrate import boldest
from helios_batch.helios.cascade import Observed, cheapest, outcomes
from helios_batch.spec_quality import Metric, QualitySpec

_LARGEST_SHARE = 0.25
CHOOSING_SHARE = 1 / 3
"""Share of the calibrated rows that the stages are chosen on; the others test the threshold."""


@dataclass(frozen=True)
class DepthFacts:
    """What the calibrated rows showed of a depth: seconds of a row, and its mean agreement."""

    depth: int
    seconds: float
    agreement: float


@dataclass(frozen=True)
class Policy:
    """Where rows leave: at the first of `depths` that is at least `threshold` sure, or the last.

    Args:
        depths: stages, shallow first.
        threshold: least confidence of a row that leaves before the last stage.
        min_agreement: what was asked for.
        confidence: with which it holds; None if it holds on average, `guarantee: expectation`.
        metric: what agreement is measured by.
        rows: that were calibrated on.
        reason: why it is this policy, for people.
        seconds: expected of a row, audits included; `full_seconds` is that of full depth.
        agreement: of the rows that the threshold was found by, so rather too high than too low;
            `agreement_low` and `agreement_high` are its 95 % interval.
        kept: expected share of rows that leave at each depth.
        by_depth: what each depth that was looked at showed.
    """

    depths: tuple[int, ...]
    threshold: float
    min_agreement: float
    confidence: float | None
    metric: Metric
    rows: int
    reason: str
    seconds: float = 0.0
    full_seconds: float = 0.0
    agreement: float = 1.0
    agreement_low: float = 1.0
    agreement_high: float = 1.0
    kept: tuple[float, ...] = (1.0,)
    by_depth: tuple[DepthFacts, ...] = ()

    @property
    def leaves_early(self) -> bool:
        """Whether any row may leave before the last stage."""
        return len(self.depths) > 1


def rows_to_draw(rows: int, quality: QualitySpec) -> int:
    """Return how many of a job's rows are drawn to calibrate on."""
    return min(quality.calibration_rows, int(rows * _LARGEST_SHARE))


def too_small(rows: int, quality: QualitySpec) -> str | None:
    """Say why a job of so many rows can show nothing, or return None.

    It takes so many calibrated rows that all of them without a loss just suffice.
    """
    bound = 1 - quality.min_agreement
    if quality.guarantee == "probability":
        tested = math.ceil(math.log(1 - quality.chance) / math.log(1 - bound))
    else:
        tested = math.ceil(1 / bound) - 1
    least, count = math.ceil(tested / (1 - CHOOSING_SHARE)) + 1, rows_to_draw(rows, quality)
    if count >= least:
        return None
    return (
        f"{count} rows to calibrate on (at most {quality.calibration_rows}, and a quarter of the "
        f"{rows:,}) show nothing; an agreement of {quality.min_agreement:.1%} takes {least} at the "
        "least"
    )


def full_depth(depth: int, quality: QualitySpec, metric: Metric, rows: int, reason: str) -> Policy:
    """Return the policy that falls back to full depth, and says why."""
    confidence = quality.chance if quality.guarantee == "probability" else None
    asked = quality.min_agreement
    return Policy((depth,), 2.0, asked, confidence, metric, rows, f"full depth: {reason}")


def choose(depths: tuple[int, ...], looked: Observed, quality: QualitySpec) -> tuple[int, ...]:
    """Return the depths of the cheapest cascade that keeps the bound on the rows looked at.

    Args:
        depths: of the observed stages, full depth last.
        looked: rows that the cascade's threshold is not tested on.
        quality: what is promised.
    """
    found = cheapest(looked, 1 - quality.min_agreement, quality.audit_fraction)
    return tuple(depths[stage] for stage in found.stages)


def decide(
    depths: tuple[int, ...], tested: Observed, quality: QualitySpec, metric: Metric
) -> Policy:
    """Return the boldest cascade over some depths that is shown to keep the promise.

    Args:
        depths: of the cascade and of the observed stages, full depth last.
        tested: rows that the depths were not chosen on.
        quality: what is promised.
        metric: what agreement is measured by.
    """
    found = outcomes(tested, range(len(depths)), quality.audit_fraction)
    bound, exact = 1 - quality.min_agreement, metric in ("label", "exact")
    passed = boldest(found.losses, bound, quality.chance, quality.guarantee, exact)
    promised = f"an agreement of {quality.min_agreement:.1%}"

    def fall_back(reason: str) -> Policy:
        return full_depth(depths[-1], quality, metric, tested.rows, reason)

    if passed <= 1:
        return fall_back(f"{promised} could not be shown for any threshold")
    place, full_seconds = passed - 1, float(tested.costs[-1])
    if found.costs[place] >= full_seconds:
        return fall_back(f"what can be shown to keep {promised} costs no less")
    agreement = 1 - float(found.losses[place].mean())
    interval = mean_interval(agreement, tested.rows, 0.95)
    return replace(
        fall_back(""),
        depths=depths,
        threshold=found.cascades[place].threshold,
        reason=f"the cheapest stages that keep {promised}",
        seconds=float(found.costs[place]),
        full_seconds=full_seconds,
        agreement=agreement,
        agreement_low=interval.low,
        agreement_high=interval.high,
        kept=tuple(map(float, found.kept[place])),
    )

"""The policy of a job: at which depths its rows run, and when a row may leave (pure)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from helios_batch.helios.bounds import mean_interval
from helios_batch.helios.calibrate import boldest
from helios_batch.helios.cascade import Observed, cheapest, outcomes
from helios_batch.spec_quality import QualitySpec

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
        confidence: with which it holds.
        rows: that were calibrated on.
        reason: why it is this policy, for people.
        seconds: expected of a row; `full_seconds` is that of full depth.
        agreement: expected of the rows, by those that the threshold was tested on;
            `agreement_low` and `agreement_high` are its 95 % interval.
        kept: expected share of rows that leave at each depth.
        by_depth: what each depth that was looked at showed.
    """

    depths: tuple[int, ...]
    threshold: float
    min_agreement: float
    confidence: float
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


def least_rows(quality: QualitySpec) -> int:
    """Return how many calibrated rows it takes for any policy to be shown good enough.

    So many rows without a single loss just suffice.
    """
    bound = 1 - quality.min_agreement
    if quality.guarantee == "probability":
        testing = math.ceil(math.log(1 - quality.confidence) / math.log(1 - bound))
    else:
        testing = math.ceil(1 / bound) - 1
    return math.ceil(testing / (1 - CHOOSING_SHARE)) + 1


def full_depth(depth: int, quality: QualitySpec, rows: int, reason: str) -> Policy:
    """Return the policy that falls back to full depth, and says why."""
    return Policy((depth,), 2.0, quality.min_agreement, quality.confidence, rows, reason)


def choose(depths: tuple[int, ...], looked: Observed, quality: QualitySpec) -> tuple[int, ...]:
    """Return the depths of the cheapest cascade that keeps the bound on the rows looked at.

    Args:
        depths: of the observed stages, full depth last.
        looked: rows that the cascade's threshold is not tested on.
        quality: what is promised.
    """
    return tuple(depths[stage] for stage in cheapest(looked, 1 - quality.min_agreement).stages)


def decide(
    depths: tuple[int, ...],
    tested: Observed,
    quality: QualitySpec,
    rows: int,
    by_depth: tuple[DepthFacts, ...],
) -> Policy:
    """Return the boldest cascade over some depths that is shown to keep the promise.

    Args:
        depths: of the cascade and of the observed stages, full depth last.
        tested: rows that the depths were not chosen on.
        quality: what is promised.
        rows: calibrated in all.
        by_depth: what each depth that was looked at showed.
    """
    found = outcomes(tested, range(len(depths)))
    bound = 1 - quality.min_agreement
    passed = boldest(found.losses, bound, quality.confidence, quality.guarantee)
    promised = f"an agreement of {quality.min_agreement:.1%}"
    if passed <= 1:
        reason = f"full depth: {promised} could not be shown for any threshold"
        return replace(full_depth(depths[-1], quality, rows, reason), by_depth=by_depth)
    place = passed - 1
    agreement = 1 - float(found.losses[place].mean())
    interval = mean_interval(agreement, tested.rows, 0.95)
    return Policy(
        depths=depths,
        threshold=found.cascades[place].threshold,
        min_agreement=quality.min_agreement,
        confidence=quality.confidence,
        rows=rows,
        reason=f"the cheapest stages that keep {promised}",
        seconds=float(found.costs[place]),
        full_seconds=float(tested.costs[-1]),
        agreement=agreement,
        agreement_low=interval.low,
        agreement_high=interval.high,
        kept=tuple(map(float, found.kept[place])),
        by_depth=by_depth,
    )

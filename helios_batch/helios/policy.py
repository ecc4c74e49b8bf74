"""The policy of a job: at which depths its rows run, and when a row may leave (pure)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from helios_batch.helios.bounds import mean_interval
from helios_batch.helios.calibrate import boldest
from helios_batch.helios.cascade import Observed, cheapest, outcomes
from helios_batch.spec_quality import Metric, QualitySpec, loss_of, value_of

_LARGEST_SHARE = 0.25
CHOOSING_SHARE = 1 / 3
"""Share of the calibrated rows that the stages are chosen on; the others test the threshold."""


class Stage(NamedTuple):
    """A model of the job, and the layers after which rows leave it."""

    model: str
    layers: int


@dataclass(frozen=True)
class StageFacts:
    """What the calibrated rows showed of a stage: seconds of a row, and `value` by the metric."""

    model: str
    depth: int
    seconds: float
    value: float


@dataclass(frozen=True)
class Policy:
    """Where rows leave: at the first of `stages` that is at least `threshold` sure, or the last.

    What was asked for and is expected is told in the metric's own terms: a mean agreement with full
    depth, or for `perplexity` the ratio to that of full depth's own texts (see `QualitySpec`).

    Args:
        models: of each stage.
        depths: of each stage; the last is full depth of the job's first model.
        threshold: least confidence of a row that leaves before the last stage.
        asked: the least agreement, or the largest ratio of perplexities.
        confidence: with which it holds; None if it holds on average, `guarantee: expectation`.
        metric: what rows are compared by.
        rows: that were calibrated on.
        reason: why it is this policy, for people.
        seconds: expected of a row, audits included; `full_seconds` is that of full depth.
        expected: what was asked for, on the rows that the threshold was found by, so rather too
            good than too bad; `expected_low` and `expected_high` are its 95 % interval.
        kept: expected share of rows that leave at each stage.
        by_stage: what each stage that was looked at showed.
    """

    models: tuple[str, ...]
    depths: tuple[int, ...]
    threshold: float
    asked: float
    confidence: float | None
    metric: Metric
    rows: int
    reason: str
    seconds: float = 0.0
    full_seconds: float = 0.0
    expected: float = 1.0
    expected_low: float = 1.0
    expected_high: float = 1.0
    kept: tuple[float, ...] = (1.0,)
    by_stage: tuple[StageFacts, ...] = ()

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Where rows run, the cheapest first."""
        return tuple(map(Stage, self.models, self.depths))

    @property
    def leaves_early(self) -> bool:
        """Whether any row may leave before the last stage."""
        return len(self.depths) > 1

    @property
    def bound(self) -> float:
        """The largest mean loss that was asked for."""
        return loss_of(self.asked, self.metric)

    def value_of(self, loss: float) -> float:
        """Return a mean loss in the metric's own terms."""
        return value_of(loss, self.metric)


def rows_to_draw(rows: int, quality: QualitySpec) -> int:
    """Return how many of a job's rows are drawn to calibrate on."""
    return min(quality.calibration_rows, int(rows * _LARGEST_SHARE))


def too_small(rows: int, quality: QualitySpec) -> str | None:
    """Say why a job of so many rows can show nothing, or return None.

    It takes so many calibrated rows that all of them without a loss just suffice.
    """
    bound = quality.bound
    if quality.guarantee == "probability":
        tested = math.ceil(math.log(1 - quality.chance) / math.log(1 - bound))
    else:
        tested = math.ceil(1 / bound) - 1
    least, count = math.ceil(tested / (1 - CHOOSING_SHARE)) + 1, rows_to_draw(rows, quality)
    if count >= least:
        return None
    return (
        f"{count} rows to calibrate on (at most {quality.calibration_rows}, and a quarter of the "
        f"{rows:,}) show nothing; {quality.promised} takes {least} at the least"
    )


def full_depth(
    stage: Stage, quality: QualitySpec, metric: Metric, rows: int, reason: str
) -> Policy:
    """Return the policy that falls back to full depth, and says why."""
    confidence = quality.chance if quality.guarantee == "probability" else None
    return Policy(
        (stage.model,),
        (stage.layers,),
        2.0,
        quality.asked,
        confidence,
        metric,
        rows,
        f"full depth: {reason}",
    )


def choose(stages: tuple[Stage, ...], looked: Observed, quality: QualitySpec) -> tuple[Stage, ...]:
    """Return the stages of the cheapest cascade that keeps the bound on the rows looked at.

    Args:
        stages: those observed, full depth last.
        looked: rows that the cascade's threshold is not tested on.
        quality: what is promised.
    """
    found = cheapest(looked, quality.bound, quality.audit_fraction)
    return tuple(stages[stage] for stage in found.stages)


def decide(
    stages: tuple[Stage, ...], tested: Observed, quality: QualitySpec, metric: Metric
) -> Policy:
    """Return the boldest cascade over some stages that is shown to keep the promise.

    Args:
        stages: of the cascade, those observed, full depth last.
        tested: rows that the stages were not chosen on.
        quality: what is promised.
        metric: what rows are compared by.
    """
    found = outcomes(tested, range(len(stages)), quality.audit_fraction)
    exact, promised = metric in ("label", "exact"), quality.promised
    passed = boldest(found.losses, quality.bound, quality.chance, quality.guarantee, exact)

    def fall_back(reason: str) -> Policy:
        return full_depth(stages[-1], quality, metric, tested.rows, reason)

    if passed <= 1:
        return fall_back(f"{promised} could not be shown for any threshold")
    place, full_seconds = passed - 1, float(tested.costs[-1])
    if found.costs[place] >= full_seconds:
        return fall_back(f"what can be shown to keep {promised} costs no less")
    loss = float(found.losses[place].mean())
    ends = (value_of(end, metric) for end in mean_interval(loss, tested.rows, 0.95))
    low, high = sorted(ends)
    return replace(
        fall_back(""),
        models=tuple(stage.model for stage in stages),
        depths=tuple(stage.layers for stage in stages),
        threshold=found.cascades[place].threshold,
        reason=f"the cheapest stages that keep {promised}",
        seconds=float(found.costs[place]),
        full_seconds=full_seconds,
        expected=value_of(loss, metric),
        expected_low=low,
        expected_high=high,
        kept=tuple(map(float, found.kept[place])),
    )

"""The cascade: which stages a row passes until one is sure enough of it (pure).

A stage is a depth, of the job's one model or of one of its candidates. A row leaves at the first
stage whose confidence reaches the threshold; the last stage keeps whatever comes to it. What each
stage would say of a row, and what that would cost, is known for some rows, drawn at random; from
them the cheapest cascade is found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_LOGIT_STEP = 0.25
_LARGEST_LOGIT = 9.0
MOST_EARLY_STAGES = 8
"""Stages before the last of which all subsets are tried."""


@dataclass(frozen=True)
class Observed:
    """What each stage said of the rows, the stages in the order of their cost.

    Args:
        costs: [stages] seconds of a row at each stage.
        loads: [stages] seconds a row for loading each stage, where there is more than one.
        confidences: [stages, rows] in [0, 1].
        losses: [stages, rows] in [0, 1], against the reference; the last stage is the reference,
            or what the job falls back to.
    """

    costs: Floats
    loads: Floats
    confidences: Floats
    losses: Floats

    def __post_init__(self) -> None:
        shape = (len(self.costs), self.rows)
        if not len(self.costs) or self.confidences.shape != shape or self.losses.shape != shape:
            raise ValueError(f"{shape}, {self.confidences.shape} and {self.losses.shape} differ")

    @property
    def rows(self) -> int:
        """How many rows were observed."""
        return int(self.confidences.shape[1])

    @cached_property
    def last(self) -> int:
        """The stage that keeps whatever comes to it."""
        return len(self.costs) - 1

    def of(self, stages: Sequence[int]) -> Observed:
        """Return the observations of some of the stages."""
        chosen = list(stages)
        return Observed(
            self.costs[chosen], self.loads[chosen], self.confidences[chosen], self.losses[chosen]
        )

    def part(self, rows: NDArray[np.int64]) -> Observed:
        """Return the observations of some of the rows."""
        return Observed(self.costs, self.loads, self.confidences[:, rows], self.losses[:, rows])


@dataclass(frozen=True)
class Cascade:
    """Stages by index in `Observed`, the last stage included, with one threshold for all.

    Confidence means the same at each exit, as its temperature sees to it: so does a threshold.
    Over 1 it lets no row leave before the last stage.
    """

    stages: tuple[int, ...]
    threshold: float


@dataclass(frozen=True)
class Outcomes:
    """What the cascades over some stages come to, one for each of `thresholds()`.

    Args:
        cascades: from the safest threshold to the boldest.
        costs: [cascades] mean seconds of a row.
        losses: [cascades, rows].
        kept: [cascades, stages of each] share of rows that leave there.
    """

    cascades: tuple[Cascade, ...]
    costs: Floats
    losses: Floats
    kept: Floats


def thresholds() -> tuple[float, ...]:
    """Return the thresholds that are tried, from the safest to the boldest.

    They are even in log-odds and fixed beforehand; the first lets no row leave early, the last
    every row.
    """
    steps = int(2 * _LARGEST_LOGIT / _LOGIT_STEP)
    logits = _LARGEST_LOGIT - _LOGIT_STEP * np.arange(steps + 1)
    return (2.0, *(1 / (1 + np.exp(-logits))).tolist(), 0.0)


def outcomes(observed: Observed, stages: Sequence[int], audited: float = 0.0) -> Outcomes:
    """Return what the cascades over some stages would have made of the observed rows.

    Args:
        observed: rows, one or more.
        stages: by index in `observed`, the last one last.
        audited: share of the rows that leave early which are run at the last stage too.
    """
    tried = np.array(thresholds())[:, None]
    left = np.ones((len(tried), observed.rows), dtype=bool)
    losses, costs = np.zeros(left.shape), np.zeros(len(tried))
    if len(stages) > 1:
        costs += float(observed.loads[list(stages)].sum())
    kept = []
    for stage in stages:
        costs += observed.costs[stage] * left.mean(axis=1)
        leaves = left & (observed.confidences[stage] >= tried) if stage != stages[-1] else left
        losses += leaves * observed.losses[stage]
        kept.append(leaves.mean(axis=1))
        left = left & ~leaves
    costs += audited * observed.costs[stages[-1]] * (1 - kept[-1])
    cascades = tuple(Cascade(tuple(stages), float(threshold)) for threshold in tried[:, 0])
    return Outcomes(cascades, costs, losses, np.stack(kept, axis=1))


def cheapest(observed: Observed, bound: float, audited: float = 0.0) -> Cascade:
    """Return the cascade of least mean cost whose mean loss is within the bound.

    All subsets of the stages before the last are tried at all thresholds, with a threshold of 0
    for a stage that keeps everything. So what is returned is never dearer than any single stage
    that keeps the bound, with what loading it beside the last one and its audits cost. If nothing
    keeps the bound and is cheaper, it is the last stage alone.

    Args:
        observed: rows, one or more.
        bound: the largest mean loss.
        audited: share of the rows that leave early which are run at the last stage too.
    """
    best, least = Cascade((observed.last,), 2.0), float(observed.costs[observed.last])
    for stages in _subsets(observed):
        found = outcomes(observed, stages, audited)
        costs = np.where(found.losses.mean(axis=1) <= bound, found.costs, np.inf)
        place = int(costs.argmin())
        if costs[place] < least:
            best, least = found.cascades[place], float(costs[place])
    return best


def _subsets(observed: Observed) -> Iterator[tuple[int, ...]]:
    early = range(observed.last)
    if len(early) > MOST_EARLY_STAGES:
        raise ValueError(f"{len(early)} stages; {MOST_EARLY_STAGES} can be tried")
    for size in range(1, len(early) + 1):
        for stages in combinations(early, size):
            yield (*stages, observed.last)

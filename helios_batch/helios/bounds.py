"""Exact and finite-sample statements about a mean in [0, 1] (pure)."""

from __future__ import annotations

import math
from typing import NamedTuple


class Interval(NamedTuple):
    """A confidence interval of a share."""

    low: float
    high: float


def binomial_p_value(failures: int, rows: int, bound: float) -> float:
    """Return the p-value of "the failure rate is over `bound`", for independent 0/1 losses.

    The chance of at most `failures` among `rows` at a rate of exactly `bound`. Rows drawn without
    replacement only make it smaller.
    """
    from scipy.special import bdtr  # 25 MB that only jobs with a promise need

    return float(bdtr(failures, rows, bound)) if rows else 1.0


def hoeffding_bentkus_p_value(mean: float, rows: int, bound: float) -> float:
    """Return a p-value of "the mean loss is over `bound`", for independent losses in [0, 1].

    Source: Bates, Angelopoulos, Lei, Malik, Jordan, arXiv 2101.02703, section 3.1.

    Args:
        mean: mean loss of the rows.
        rows: how many.
        bound: the mean loss that is asked about, over 0 and under 1.
    """
    if not rows:
        return 1.0
    from scipy.special import bdtr

    hoeffding = math.exp(-rows * _divergence(min(mean, bound), bound))
    bentkus = math.e * float(bdtr(math.ceil(rows * mean - 1e-9), rows, bound))
    return min(1.0, hoeffding, bentkus)


def mean_interval(mean: float, rows: int, confidence: float) -> Interval:
    """Return a two-sided interval of a mean of values in [0, 1], by Hoeffding's bound in its
    relative-entropy form (Journal of the American Statistical Association 58, 1963)."""
    if not rows:
        return Interval(0.0, 1.0)
    allowed = math.log(2 / (1 - confidence)) / rows
    return Interval(_reach(mean, 0.0, allowed), _reach(mean, 1.0, allowed))


def _reach(mean: float, end: float, allowed: float) -> float:
    """Return the value farthest from `mean` towards `end` whose divergence is allowed."""
    near, far = mean, end
    for _ in range(60):
        middle = (near + far) / 2
        if _divergence(mean, middle) <= allowed:
            near = middle
        else:
            far = middle
    return far


def _divergence(a: float, b: float) -> float:
    """Return the relative entropy of coins with chances a and b."""
    result = 0.0
    for p, q in ((a, b), (1 - a, 1 - b)):
        if p > 0:
            if q <= 0:
                return math.inf
            result += p * math.log(p / q)
    return result

"""How bold may a policy be? The quality contract's statistics (pure).

Policies are given as an ordered family, from the safest to the boldest, fixed before the rows are
looked at; for each, the losses of the calibration rows. What is returned is how far along the
family one may go.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from helios_batch.helios.bounds import binomial_p_value, hoeffding_bentkus_p_value
from helios_batch.spec_quality import Guarantee

Losses = NDArray[np.float64]


def boldest(
    family: Iterable[Losses], bound: float, confidence: float, guarantee: Guarantee, exact: bool
) -> int:
    """Return how many policies of the family may be used, counted from the safest.

    Args:
        family: for each policy the losses [rows] in [0, 1], of the same random rows each time.
        bound: the mean loss that may not be exceeded, over 0 and under 1.
        confidence: with which the bound holds, if it is to hold in probability.
        guarantee: `probability`: over the draw of the rows, the bound is broken with a chance of
            at most 1 - confidence (`learn_then_test`). `expectation`: the mean over such draws is
            within the bound (`conformal_risk_control`).
        exact: whether losses are always 0 or 1, by what they measure.
    """
    if guarantee == "probability":
        return learn_then_test(family, bound, 1 - confidence, exact)
    return conformal_risk_control(family, bound)


def learn_then_test(family: Iterable[Losses], bound: float, error: float, exact: bool) -> int:
    """Return how many policies in a row are shown to keep the bound, by fixed-sequence testing.

    Each is tested at level `error`; the first that fails ends it, so that the chance that any of
    the passed ones breaks the bound is at most `error`, whatever the losses depend on.

    Source: Angelopoulos, Bates, Candès, Jordan, Lei, arXiv 2110.01052, section 4. Losses of 0 and 1
    are tested by the exact binomial p-value, others by Hoeffding and Bentkus.
    """
    passed = 0
    for losses in family:
        rows, total = len(losses), float(losses.sum())
        if exact:
            p_value = binomial_p_value(round(total), rows, bound)
        else:
            p_value = hoeffding_bentkus_p_value(total / max(1, rows), rows, bound)
        if p_value > error:
            break
        passed += 1
    return passed


def conformal_risk_control(family: Iterable[Losses], bound: float) -> int:
    """Return how many policies may be used so that the expected loss is within the bound.

    The losses of a row must not fall along the family: each is raised to the largest before it.

    Source: Angelopoulos, Bates, Fisch, Lei, Schuster, arXiv 2208.02814, section 2.
    """
    passed = 0
    worst: Losses | None = None
    for losses in family:
        worst = losses if worst is None else np.maximum(worst, losses)
        if (float(worst.sum()) + 1) / (len(losses) + 1) > bound:
            break
        passed += 1
    return passed

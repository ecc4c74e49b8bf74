"""From the scores of a row's choices to its label (no torch)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from helios_batch.spec import Confidence


class Verdict(NamedTuple):
    """What the scores of a row's choices come to.

    The probability of a choice is the soft-max of the scores, divided by the exit's temperature for
    choices, over the choices alone; `label` is the index of the likeliest one, of equal ones the
    first. `confidence` is the label's probability, or its lead over the next one's. `depth` is that
    of the exit.
    """

    label: int
    probabilities: tuple[float, ...]
    confidence: float
    depth: int

    @classmethod
    def of(
        cls, scores: Sequence[float], temperature: float, depth: int, confidence: Confidence
    ) -> Verdict:
        """Judge the log-probabilities of a row's choices, two at least, at an exit."""
        top = max(scores)
        best = scores.index(top)
        weights = [math.exp((score - top) / temperature) for score in scores]
        total = math.fsum(weights)
        probabilities = tuple(weight / total for weight in weights)
        sure = probabilities[best]
        if confidence == "margin":
            sure -= sorted(probabilities)[-2]
        return cls(best, probabilities, sure, depth)

"""From scores to labels: pure, without a model."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_batch.engine.verdict import Verdict

scores = st.lists(st.floats(-300, 0), min_size=2, max_size=8)
temperatures = st.floats(0.1, 10)


@given(scores, temperatures)
def test_probabilities_are_a_soft_max(given_scores: list[float], temperature: float) -> None:
    """They add up to one and are in the order of the scores; the label is the first of the best."""
    found = Verdict.of(given_scores, temperature, 3, "probability")
    assert math.fsum(found.probabilities) == pytest.approx(1)
    assert found.label == given_scores.index(max(given_scores))
    ordered = sorted(range(len(given_scores)), key=given_scores.__getitem__)
    probabilities = [found.probabilities[index] for index in ordered]
    assert probabilities == sorted(probabilities)
    assert found.confidence == max(found.probabilities)
    assert found.depth == 3


@given(scores, temperatures)
def test_the_margin_is_the_lead_over_the_next(
    given_scores: list[float], temperature: float
) -> None:
    """All but the confidence is as without it; equal scores leave none."""
    sure = Verdict.of(given_scores, temperature, 1, "probability")
    found = Verdict.of(given_scores, temperature, 1, "margin")
    *_, second, first = sorted(sure.probabilities)
    assert found == sure._replace(confidence=first - second)
    equal = Verdict.of([given_scores[0]] * 2, temperature, 1, "margin")
    assert equal.confidence == 0


@given(scores, temperatures, st.floats(1, 5))
def test_a_higher_temperature_is_never_surer(
    given_scores: list[float], temperature: float, more: float
) -> None:
    """Dividing by more brings the choices closer together."""
    cold = Verdict.of(given_scores, temperature, 1, "probability")
    warm = Verdict.of(given_scores, temperature * more, 1, "probability")
    assert warm.label == cold.label
    assert warm.confidence <= cold.confidence + 1e-12

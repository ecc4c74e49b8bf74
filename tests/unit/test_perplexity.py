"""The metric perplexity: its loss, what is scored for it, and how it is told."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_batch.helios.agreement import agreements, excess_loss
from helios_batch.helios.cascade import Observed
from helios_batch.helios.measured import measured
from helios_batch.helios.policy import Stage, decide, too_small
from helios_batch.records import ErrorCode, FinishReason, Generation, Prompt, RowError
from helios_batch.report.policy import policy_facts
from helios_batch.spec_quality import LARGEST_EXCESS, Metric, QualitySpec, loss_of, value_of
from helios_batch.totals import Totals

PERPLEXITY: Metric = "perplexity"
QUALITY = QualitySpec(metric=PERPLEXITY, max_perplexity=1.25)
NATS = st.floats(-50, 50)


@given(NATS, NATS)
def test_loss_rises_with_the_excess(one: float, other: float) -> None:
    """From 0 for no excess to 1 at the largest, in step with it between."""
    low, high = sorted((one, other))
    assert 0 <= excess_loss(low) <= excess_loss(high) <= 1
    assert excess_loss(-abs(one)) == 0
    assert excess_loss(LARGEST_EXCESS + abs(one)) == 1
    if 0 <= low <= high <= LARGEST_EXCESS:
        slope = (high - low) / LARGEST_EXCESS
        assert excess_loss(high) - excess_loss(low) == pytest.approx(slope, abs=1e-12)


def test_what_can_not_be_told_counts_as_lost() -> None:
    """No number, and a text that full depth holds for impossible, are the largest loss."""
    assert excess_loss(math.nan) == excess_loss(math.inf) == 1
    assert excess_loss(-math.inf) == 0


@given(st.lists(st.floats(-3, LARGEST_EXCESS), min_size=1, max_size=50), st.floats(1.001, 7))
def test_a_mean_loss_within_the_bound_keeps_the_ratio(excess: list[float], ratio: float) -> None:
    """Where no row is beyond the largest excess, the bound on the loss is one on the perplexity."""
    quality = QualitySpec(metric=PERPLEXITY, max_perplexity=ratio)
    assert 0 < quality.bound < 1
    if np.mean([excess_loss(each) for each in excess]) <= quality.bound:
        assert math.exp(np.mean(excess)) <= ratio * (1 + 1e-9)


@given(st.floats(0, 1), st.sampled_from(["token", PERPLEXITY]))
def test_a_loss_and_its_value_are_the_same(loss: float, metric: Metric) -> None:
    """One undoes the other; no loss is 1 in any metric's terms."""
    assert loss_of(value_of(loss, metric), metric) == pytest.approx(loss, abs=1e-12)
    assert value_of(0, metric) == 1


def said(row: int, *tokens: int) -> Generation:
    return Generation(row, "x", FinishReason.STOP, 1, len(tokens), None, token_ids=tokens)


def failed(row: int) -> Generation:
    return Generation.failed(row, RowError(ErrorCode.EXCEEDS_MEMORY, "too long"))


def test_only_texts_that_differ_are_scored_and_once() -> None:
    """Each stage's loss is its excess over full depth's text; what equals it has none."""
    prompts = [Prompt(row, str(row)) for row in range(5)]
    reference = [said(0, 1), said(1, 1), said(2, 1), failed(3), said(4, 1)]
    found = [
        [said(0, 1), said(1, 2, 2), said(2, 3), said(3, 1), failed(4)],
        [said(0, 1), said(1, 1), said(2, 3), failed(3), said(4, 4)],
        reference,
    ]
    calls = []
    values = {1: -1.0, 2: -2.0, 3: -0.5, 4: -9.0}

    def score(asked: Sequence[Prompt], completions: Sequence[Sequence[int]]) -> list[float]:
        calls.append([(prompt.row, *c) for prompt, c in zip(asked, completions, strict=True)])
        return [values[completion[0]] for completion in completions]

    assert agreements(prompts, found, reference, PERPLEXITY, score) == [
        [1, 0.5, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1] * 5,
    ]
    assert [sorted(call) for call in calls] == [[(1, 1), (1, 2, 2), (2, 1), (2, 3), (4, 1), (4, 4)]]
    assert agreements(prompts, [reference], reference, PERPLEXITY, score) == [[1] * 5]
    assert agreements([], [[], []], [], PERPLEXITY, score) == [[], []]
    assert agreements(prompts, found, reference, "token", score)[1] == [1, 1, 0, 1, 0]
    assert len(calls) == 1


def test_a_policy_and_its_audit_are_told_as_ratios() -> None:
    """What was asked, is expected and was measured, in the numbers that a person promised."""
    draw = np.random.default_rng(7)
    excess = draw.exponential(0.05, 200)
    observed = Observed(
        np.array([1.0, 3.0]),
        np.zeros(2),
        np.vstack([draw.random(200), np.ones(200)]),
        np.vstack([[excess_loss(each) for each in excess], np.zeros(200)]),
    )
    policy = decide((Stage("model", 3), Stage("model", 12)), observed, QUALITY, PERPLEXITY)
    assert policy.leaves_early
    assert (policy.asked, policy.bound) == (1.25, QUALITY.bound)
    assert policy.expected == pytest.approx(math.exp(excess.mean() * policy.kept[0]), rel=0.02)
    assert 1 < policy.expected_low < policy.expected < policy.expected_high
    assert "a perplexity of at most 1.25 times full depth's" in policy.reason
    assert "a perplexity of at most 1.25" in str(too_small(60, QUALITY))

    totals = Totals(rows=100, stages=Counter({0: 80, 1: 20}))
    assert measured(policy, totals) is None
    totals.audited_rows, totals.audited_agreement = 40, 40 * (1 - math.log(1.1) / LARGEST_EXCESS)
    found = measured(policy, totals)
    assert found is not None
    assert found.audited == pytest.approx(1.1)
    assert found.value == pytest.approx(1.1**0.8)
    assert 1 < found.low < found.value < found.high
    facts = policy_facts(policy, totals, {"audited": 60, "mean_loss": loss_of(1.5, PERPLEXITY)})
    assert facts["expected"].startswith(f"{policy.expected:.3f} times full depth's perplexity (")
    assert facts["measured"].startswith("1.079 times full depth's perplexity (")
    assert facts["measured"].endswith("have 1.100 times full depth's perplexity")
    assert "60 audited rows had 1.500 times full depth's perplexity" in facts["BROKEN PROMISE"]
    assert not any("agreement" in fact for fact in facts.values())

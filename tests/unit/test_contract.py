"""The quality contract keeps its promise over many jobs of known truth, up to chance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binom, binomtest

from helios_batch.helios.audit import Audit
from helios_batch.helios.bounds import (
    binomial_p_value,
    hoeffding_bentkus_p_value,
    mean_interval,
)
from helios_batch.helios.calibrate import conformal_risk_control
from helios_batch.helios.cascade import Observed, cheapest, outcomes
from helios_batch.helios.policy import Policy, Stage, choose, decide
from helios_batch.spec_quality import Metric, QualitySpec

JOBS = 140
SEED = 20241


def test_p_values_and_intervals_are_the_textbooks() -> None:
    """Against scipy's distributions; the bounded one is never under the exact one for 0/1."""
    for failures, rows, bound in [(0, 59, 0.05), (3, 200, 0.05), (20, 100, 0.1)]:
        exact = binom.cdf(failures, rows, bound)
        assert binomial_p_value(failures, rows, bound) == pytest.approx(exact)
        assert hoeffding_bentkus_p_value(failures / rows, rows, bound) >= exact
        low = beta.ppf(0.05, failures, rows - failures + 1) if failures else 0.0
        high = beta.ppf(0.95, failures + 1, rows - failures)
        wide = mean_interval(failures / rows, rows, 0.9)
        assert wide.low <= low
        assert wide.high >= high
    assert mean_interval(0.0, 0, 0.9) == (0, 1)
    assert hoeffding_bentkus_p_value(0.0, 0, 0.1) == 1


def job(draw: np.random.Generator, rows: int, kind: str) -> Observed:
    """Rows of a made-up job: two early stages and the last one, which is the reference.

    `calibrated`: a confidence is the chance to agree; `over`: it is far too high; `none`: it tells
    nothing; `adverse`: the surer, the worse; `tokens`: losses between 0 and 1.
    """
    chances = np.stack([draw.beta(4, 1, rows), draw.beta(8, 1, rows)])
    wrong = (draw.random((2, rows)) > chances).astype(float)
    confidences = {
        "calibrated": chances,
        "over": chances**0.2,
        "none": draw.random((2, rows)),
        "adverse": 1 - chances,
        "tokens": chances,
    }[kind]
    losses = wrong * (draw.random((2, rows)) if kind == "tokens" else 1)
    return Observed(
        np.array([1.0, 1.6, 3.0]),
        np.zeros(3),
        np.vstack([confidences, np.ones(rows)]),
        np.vstack([losses, np.zeros(rows)]),
    )


@pytest.mark.parametrize("kind", ["calibrated", "over", "none", "adverse", "tokens"])
@pytest.mark.parametrize(("rows", "bound"), [(90, 0.1), (300, 0.05), (300, 0.2)])
def test_broken_promises_are_as_rare_as_promised(kind: str, rows: int, bound: float) -> None:
    """Of 2,100 jobs, no more break the bound than the confidence allows, up to chance.

    Each draws its rows from a large population, chooses its stages on a third of them and finds its
    threshold by the others; what counts is the mean loss over the population.
    """
    draw = np.random.default_rng([SEED, rows, int(bound * 100)])
    metric: Metric = "token" if kind == "tokens" else "label"
    truth, depths = job(draw, 20_000, kind), at(10, 15, 30)
    asked = [
        QualitySpec(min_agreement=1 - bound, confidence=0.9),
        QualitySpec(min_agreement=1 - bound, guarantee="expectation"),
    ]
    broken, deep, expected = 0, 0, 0.0
    for _ in range(JOBS):
        drawn = truth.part(draw.choice(truth.rows, rows, replace=False))
        looked, tested = (drawn.part(part) for part in np.split(np.arange(rows), [rows // 3]))
        risks = []
        for quality in asked:
            stages = choose(depths, looked, quality)
            places = [depths.index(depth) for depth in stages]
            policy = decide(stages, tested.of(places), quality, metric)
            risks.append(risk(truth.of(places), policy))
        deep += not policy.leaves_early
        broken += risks[0] > bound
        expected += risks[1]
    print(f"seed {SEED}: {broken} of {JOBS} broken, {deep} at full depth, {expected / JOBS:.4f}")
    assert binomtest(broken, JOBS, 0.1, alternative="greater").pvalue > 1e-3
    assert expected / JOBS <= bound * 1.02
    if kind == "calibrated" and rows == 300:
        assert deep < JOBS / 10, "a contract that never lets go of full depth is no use"


def at(*depths: int) -> tuple[Stage, ...]:
    """Return stages of one model."""
    return tuple(Stage("model", depth) for depth in depths)


def risk(truth: Observed, policy: Policy) -> float:
    """Return a policy's mean loss over the population."""
    if not policy.leaves_early:
        return 0.0
    found = outcomes(truth, range(len(policy.depths)))
    return float(found.losses[[c.threshold for c in found.cascades].index(policy.threshold)].mean())


def test_a_policy_that_costs_more_than_full_depth_is_not_taken() -> None:
    """Where the early stage is dear and lets few rows go, all run at full depth."""
    draw = np.random.default_rng(SEED)
    quality = QualitySpec(min_agreement=0.95)
    taken = 0
    for _ in range(100):
        sure = draw.beta(4, 1, 300)
        losses = (draw.random(300) > sure).astype(float)
        observed = Observed(
            np.array([1.0, 1.8]),
            np.zeros(2),
            np.vstack([sure, np.ones(300)]),
            np.vstack([losses, np.zeros(300)]),
        )
        policy = decide(at(10, 30), observed, quality, "label")
        taken += policy.leaves_early
        assert policy.seconds < 1.8
    assert taken < 100


def test_audits_are_part_of_the_cost() -> None:
    """What only seems cheaper, as nobody counted the rows that are run twice, is not taken."""
    rows = 300
    observed = Observed(np.array([1.5, 1.8]), np.zeros(2), np.ones((2, rows)), np.zeros((2, rows)))
    for share, depths in ((0.1, (10, 30)), (0.2, (30,))):
        quality = QualitySpec(min_agreement=0.95, audit_fraction=share)
        policy = decide(at(10, 30), observed, quality, "label")
        assert policy.depths == depths
        assert choose(at(10, 30), observed, quality) == at(*depths)
        if policy.leaves_early:
            assert policy.seconds == pytest.approx(1.5 + share * 1.8)


def test_controlled_risk_never_falls_along_the_family() -> None:
    """A row that a bolder policy gets right again still counts as lost."""
    rows = 100
    lost, none = np.zeros(rows), np.zeros(rows)
    lost[:10] = 1
    other = np.roll(lost, 10)
    assert conformal_risk_control([none, lost, other], 0.15) == 2
    assert conformal_risk_control([none, lost, lost], 0.15) == 3


@given(st.data())
def test_no_cascade_is_dearer_than_a_single_stage(data: st.DataObject) -> None:
    """The chosen cascade keeps the bound on its rows, and no stage alone that does is cheaper, with
    its audits; nor is full depth, ever."""
    rows, stages = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 4))
    shares = st.lists(st.floats(0, 1), min_size=rows, max_size=rows)
    tables = [data.draw(st.lists(shares, min_size=stages, max_size=stages)) for _ in range(2)]
    costs = data.draw(st.lists(st.floats(0.01, 9), min_size=stages, max_size=stages))
    tables[1][-1] = [0.0] * rows
    observed = Observed(
        np.array(sorted(costs)), np.zeros(stages), np.array(tables[0]), np.array(tables[1])
    )
    bound, audited = data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))
    best = cheapest(observed, bound, audited)
    found = outcomes(observed, best.stages, audited)
    place = found.cascades.index(best)
    assert found.losses[place].mean() <= bound
    assert found.kept.sum(axis=1) == pytest.approx(1)
    full = observed.costs[-1]
    assert found.costs[place] <= full
    for stage in range(stages - 1):
        if observed.losses[stage].mean() <= bound:
            assert found.costs[place] <= observed.costs[stage] + audited * full + 1e-9
    plain = outcomes(observed, best.stages)
    early = 1 - found.kept[:, -1]
    assert found.costs == pytest.approx(plain.costs + audited * full * early)
    assert all(np.diff(found.costs) <= 1e-9), "bolder is never dearer"


@pytest.mark.parametrize("rate", [0.02, 0.05])
def test_false_alarms_of_the_audit_are_rare(rate: float) -> None:
    """A job that keeps the bound is seldom accused, one that breaks it by far nearly always."""
    draw = np.random.default_rng(SEED)
    alarms = sum(_accused(draw.random(300) < rate, 0.05) for _ in range(500))
    assert binomtest(alarms, 500, 0.05, alternative="greater").pvalue > 1e-3
    assert sum(_accused(draw.random(300) < 0.2, 0.05) for _ in range(100)) > 95


def _accused(losses: np.ndarray, bound: float) -> bool:
    audit = Audit(bound, 0.05)
    for loss in losses:
        audit.add({1000 if loss else 0: 1})
        if audit.violated:
            return True
    return False

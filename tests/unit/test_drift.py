"""The change-point test: alarms after changes, and few without, over many seeded jobs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from helios_batch.helios.drift import Drift

JOBS = 400
BEFORE, WITHIN = 100, 50


def first_alarm(rows: np.ndarray, drift: Drift) -> int | None:
    return next((place for place, row in enumerate(rows) if drift.add(float(row))), None)


@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_a_change_is_noticed(shift: float) -> None:
    """After a shift by a standard deviation, 95 % of jobs raise an alarm within 50 rows."""
    seed = 7
    print(f"seed {seed}")
    random = np.random.default_rng(seed)
    noticed = tried = 0
    for _ in range(JOBS):
        rows = 0.7 + 0.1 * random.standard_normal(BEFORE + WITHIN)
        drift = Drift()
        if first_alarm(rows[:BEFORE], drift) is None:
            tried += 1
            noticed += first_alarm(rows[BEFORE:] + 0.1 * shift, drift) is not None
    assert binomtest(noticed, tried, 0.95, alternative="less").pvalue > 0.01, (noticed, tried)


def test_no_change_raises_few_alarms() -> None:
    """Between two profiles, 150 rows that do not change rarely ask for a third: under 20 %."""
    seed = 8
    print(f"seed {seed}")
    random = np.random.default_rng(seed)
    jobs = 0.7 + 0.1 * random.standard_normal((JOBS, 150))
    alarms = sum(first_alarm(rows, Drift()) is not None for rows in jobs)
    assert binomtest(alarms, JOBS, 0.2, alternative="greater").pvalue > 0.01, alarms


@given(st.floats(0, 1), st.integers(1, 300))
def test_equal_rows_never_alarm(confidence: float, rows: int) -> None:
    """Without any spread there is nothing to see, rounding included."""
    assert first_alarm(np.full(rows, confidence), Drift()) is None


@given(st.lists(st.floats(0, 1), max_size=30))
def test_the_first_rows_only_teach(rows: list[float]) -> None:
    """Thirty rows say what is usual."""
    assert first_alarm(np.array(rows), Drift()) is None


def test_starting_anew() -> None:
    """After a restart the new level is the usual one."""
    drift = Drift()
    rows = np.tile([0.8, 0.9], 50)
    assert first_alarm(rows, drift) is None
    assert first_alarm(rows - 0.4, drift) is not None
    drift.restart()
    assert drift == Drift()
    assert first_alarm(rows - 0.4, drift) is None

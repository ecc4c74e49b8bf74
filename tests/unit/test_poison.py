"""The search for rows that kill: it ends, and blames exactly the guilty."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from helios_batch.queue.poison import ALONE, ROUNDS, Suspicion

MAX_DEATHS = 3


def search(rows: int, kills: object, limit: int) -> tuple[Suspicion, int]:
    """Play attempts until the shard comes through or the search gives up; count the deaths.

    `kills(live)` tells whether running these rows together kills the process.
    """
    text, deaths = "", 0
    while deaths < limit:
        state = Suspicion.from_json(text, rows).after_deaths(deaths, MAX_DEATHS)
        text = state.to_json()
        while (probe := state.probe) is not None and not state.hopeless:
            if kills([row for row in probe if row not in state.quarantined]):
                break
            state = state.survived()
            text = state.to_json()
        else:
            if state.hopeless:
                return state, deaths
            live = [row for row in range(rows) if row not in state.quarantined]
            if not kills(live):
                return state, deaths
        deaths += 1
    raise AssertionError(f"no end after {deaths} deaths")


@given(st.data())
def test_exactly_the_killing_rows_are_quarantined(data: st.DataObject) -> None:
    """Any set of rows that kill is found, in a number of deaths that is logarithmic in the rows."""
    rows = data.draw(st.integers(1, 600))
    poison = data.draw(st.sets(st.integers(0, rows - 1), max_size=4))
    each = MAX_DEATHS + math.ceil(math.log2(rows + 1)) + ALONE
    state, deaths = search(rows, lambda live: bool(poison & set(live)), each * len(poison) + 1)
    assert set(state.quarantined) == poison
    assert not state.hopeless
    assert deaths <= each * len(poison)


@given(st.integers(2, 300), st.data())
def test_rows_that_kill_only_together_are_not_blamed(rows: int, data: st.DataObject) -> None:
    """Where no row dies alone, none is quarantined, and the search gives up."""
    least = data.draw(st.integers(2, rows))
    state, deaths = search(rows, lambda live: len(live) >= least, 200)
    assert state.quarantined == ()
    assert state.hopeless
    assert deaths <= ROUNDS * (MAX_DEATHS + math.ceil(math.log2(rows)) + 1)


@given(st.integers(1, 100), st.integers(0, MAX_DEATHS - 1))
def test_a_few_deaths_are_the_machines(rows: int, deaths: int) -> None:
    """Fewer deaths than the limit change nothing about how the shard is run."""
    state = Suspicion(rows).after_deaths(deaths, MAX_DEATHS)
    assert state.probe is None
    assert not state.quarantined


@given(st.integers(1, 100), st.integers(0, 40))
def test_the_state_survives_being_written(rows: int, deaths: int) -> None:
    """What is read is what was written; deaths that were counted are not counted again."""
    state = Suspicion(rows).after_deaths(deaths, MAX_DEATHS)
    assert Suspicion.from_json(state.to_json(), rows) == state
    assert state.after_deaths(deaths, MAX_DEATHS) == state


def test_a_death_taken_back_is_not_a_new_one() -> None:
    """A count that has gone down (the process was only cut off) accounts for nothing."""
    state = Suspicion(10).after_deaths(2, MAX_DEATHS)
    assert state.after_deaths(1, MAX_DEATHS).strikes == state.strikes

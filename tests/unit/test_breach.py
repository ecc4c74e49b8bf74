"""The breach counter, against a naive recount."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from helios_batch.helios.breach import BreachCounter

confidences = st.lists(st.sampled_from([0.1, 0.5, 0.8, 0.9]), max_size=120)
windows = st.integers(1, 12)


@given(confidences, windows, st.data())
def test_against_a_recount(tokens: list[float], window: int, data: st.DataObject) -> None:
    """It trips when a whole window has more breaches than the limit; the last such one counts."""
    limit = data.draw(st.integers(0, window - 1))
    counter = BreachCounter(0.8, window, limit)
    whole = [tokens[at : at + window] for at in range(0, len(tokens) - window + 1, window)]
    counts = [sum(token < 0.8 for token in part) for part in whole]
    over = [count for count in counts if count > limit]
    assert counter.add(tokens) == bool(over)
    assert counter.share == (over[-1] / window if over else 0.0)


@given(confidences, windows, st.lists(st.integers(0, 120), max_size=6), st.data())
def test_batch_boundaries_do_not_matter(
    tokens: list[float], window: int, cuts: list[int], data: st.DataObject
) -> None:
    """Tokens in one step or in many: the same windows, shares and calm."""
    limit = data.draw(st.integers(0, window - 1))
    one, many = BreachCounter(0.8, window, limit), BreachCounter(0.8, window, limit)
    ends = sorted({0, len(tokens), *(cut for cut in cuts if cut < len(tokens))})
    tripped = [many.add(tokens[a:b]) for a, b in pairwise(ends)]
    assert one.add(tokens) == any(tripped)
    assert one == many


@given(st.lists(st.integers(0, 10), max_size=60))
def test_calm_is_patience_windows_in_a_row(breaches: list[int]) -> None:
    """Four windows in a row with at most half the limit, whatever came before."""
    counter = BreachCounter(0.8, 10, 6)
    for count in breaches:
        counter.add([0.1] * count + [0.9] * (10 - count))
    streak = 0
    for count in reversed(breaches):
        if count > 3:
            break
        streak += 1
    assert counter.is_calm == (streak >= 4)


def windows_until_calm(counter: BreachCounter) -> int:
    count = 0
    while not counter.is_calm:
        counter.add([0.9] * counter.window)
        count += 1
    return count


@given(st.lists(st.sampled_from(["wrong", "right", "profile", "later"]), max_size=12))
def test_patience_doubles_on_wrong_returns(ways: list[str]) -> None:
    """A way back that breaches undo doubles it, up to 1,024; no other move does."""
    counter, patience = BreachCounter(0.8, 1, 0), 4
    for way in ways:
        assert windows_until_calm(counter) == patience
        counter.moved(back=True)
        if way == "wrong":
            counter.moved(unsure=True)
            patience = min(1024, 2 * patience)
        elif way == "profile":
            counter.moved()
        elif way == "later":
            counter.moved()
            counter.moved(unsure=True)
        counter.moved()
    assert windows_until_calm(counter) == patience


def test_waiting_starts_the_calm_anew() -> None:
    """Who stays though it is calm is asked again after as many windows."""
    counter = BreachCounter(0.8, 2, 1)
    assert windows_until_calm(counter) == 4
    counter.wait()
    assert windows_until_calm(counter) == 4


def test_a_move_forgets_the_window_at_hand() -> None:
    """Tokens of the old place do not count at the new one."""
    counter = BreachCounter(0.8, 4, 1)
    counter.add([0.1] * 3)
    counter.moved(unsure=True)
    assert not counter.add([0.1, 0.9, 0.9, 0.9])

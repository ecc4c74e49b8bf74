"""The breach counter, against a naive recount."""

from __future__ import annotations

from fractions import Fraction
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from helios_batch.helios.breach import BreachCounter

confidences = st.lists(st.sampled_from([0.1, 0.5, 0.8, 0.9]), max_size=120)
windows = st.integers(1, 12)


@given(confidences, windows, st.data())
def test_a_token_a_step_is_the_papers(
    tokens: list[float], window: int, data: st.DataObject
) -> None:
    """It trips at the end of each window of just so many tokens with more breaches than the
    limit."""
    limit = data.draw(st.integers(0, window - 1))
    counter = BreachCounter(0.8, window, limit)
    for end, token in enumerate(tokens, 1):
        count = sum(t < 0.8 for t in tokens[end - window : end]) if end % window == 0 else 0
        assert counter.add([token]) == (count > limit)
        if count > limit:
            assert counter.share == count / window


@given(
    st.lists(st.lists(st.sampled_from([0.5, 0.9]), max_size=30), max_size=12), windows, st.data()
)
def test_against_a_recount(steps: list[list[float]], window: int, data: st.DataObject) -> None:
    """A window is the steps since the last one, once they hold enough; its share is what counts."""
    limit = data.draw(st.integers(0, window - 1))
    counter, since = BreachCounter(0.8, window, limit), list[float]()
    for step in steps:
        since += step
        tripped = counter.add(step)
        if len(since) < window:
            assert not tripped
            continue
        share = Fraction(sum(token < 0.8 for token in since), len(since))
        assert tripped == (share > Fraction(limit, window))
        if tripped:
            assert counter.share == float(share)
        since = []


@given(st.lists(st.sampled_from([0.5, 0.9]), min_size=100, max_size=400), st.randoms())
def test_the_rows_of_a_batch_have_no_order(tokens: list[float], random: Random) -> None:
    """A step of a window or more is judged as a whole: one hard slice of it moves nothing."""
    one, other = BreachCounter(0.8, 100, 50), BreachCounter(0.8, 100, 50)
    shuffled = random.sample(tokens, len(tokens))
    assert one.add(sorted(tokens)) == other.add(shuffled) == (tokens.count(0.5) > len(tokens) / 2)
    assert one == other


@given(confidences, st.integers(1, 4), st.integers(1, 4), st.data())
def test_steps_that_fill_a_window_exactly(
    tokens: list[float], batch: int, steps: int, data: st.DataObject
) -> None:
    """Where windows end with steps, steps of many tokens are as those of one: the same windows,
    shares and calm."""
    window = batch * steps
    limit = data.draw(st.integers(0, window - 1))
    one, many = BreachCounter(0.8, window, limit), BreachCounter(0.8, window, limit)
    for begin in range(0, len(tokens), batch):
        step = tokens[begin : begin + batch]
        tripped = [one.add([token]) for token in step]
        assert many.add(step) == any(tripped)
    assert one == many


@given(st.lists(st.integers(0, 10), max_size=60), st.integers(1, 9))
def test_calm_is_patience_windows_in_a_row(breaches: list[int], times: int) -> None:
    """Four windows in a row with at most half the limit, whatever came before, however large."""
    counter = BreachCounter(0.8, 10, 6)
    for count in breaches:
        counter.add(times * ([0.1] * count + [0.9] * (10 - count)))
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

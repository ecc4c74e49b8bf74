"""The performance history table: what it adds up, and that a file gives back what went in."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from helios_batch.helios.history import BINS, Depth, History, ModelHistory, Spent
from tests.support.histories import histories, model, model_histories, request

_ADAPTER: TypeAdapter[dict[str, ModelHistory]] = TypeAdapter(dict[str, ModelHistory])


@given(histories())
def test_json_and_back(history: History) -> None:
    """A table that was written as JSON, as the job's note is, reads as itself."""
    text = json.dumps({name: asdict(model) for name, model in history.models.items()})
    assert _ADAPTER.validate_python(json.loads(text)) == history.models


@given(model_histories(), st.integers(0, 3))
def test_what_was_not_measured_is_in_proportion_to_the_work(
    found: ModelHistory, place: int
) -> None:
    """A depth that ran has its own mean; another that of the nearest by work, scaled."""
    place = min(place, len(found.depths) - 1)
    work = found.depths[place].work
    for seconds, spent in (
        (found.tried_seconds(place), [depth.tried for depth in found.depths]),
        (found.served_seconds(place), [depth.served for depth in found.depths]),
    ):
        pairs = zip(found.depths, spent, strict=True)
        measured = [(abs(d.work - work), one_unit(d, s)) for d, s in pairs if s.tokens]
        nearest = min((distance for distance, _ in measured), default=0)
        expected = [unit for distance, unit in measured if distance == nearest] or [0.0]
        assert any(seconds / work == pytest.approx(unit) for unit in expected)


def one_unit(depth: Depth, spent: Spent) -> float:
    """The seconds of a unit of a token's work."""
    return spent.seconds / spent.tokens / depth.work


def test_running_is_added_up() -> None:
    """Stretches at a depth add up; while nothing ran, a token takes no time."""
    found = ModelHistory("t", [Depth(1, 1.0, 10, 1, 4), Depth(2, 3.0, 20, 2, 2)])
    table = History({"a": found})
    assert table.token_seconds("a", 0) == found.load_seconds(10) == 0.0
    found.depths[0].served.add(3.0, 10)
    found.depths[0].served.add(1.0, 10)
    assert table.token_seconds("a", 0) == 0.2
    assert table.token_seconds("a", 1) == pytest.approx(0.6)


def test_another_candidate_by_the_ratio_of_trying() -> None:
    """Tried, b takes 1.5 times a's token; so it does served, in proportion to the work."""
    table = History({"a": model((1.0, 8), (4.0, 8)), "b": model((2.0, 8), (6.0, 8))})
    assert table.token_seconds("b", 1) == 6.0
    table.models["a"].depths[0].served.add(1.0, 100)  # a hundredth of what trying says
    table.models["a"].depths[1].served.add(9.0, 10)  # too few tokens to go by
    assert table.token_seconds("a", 0) == pytest.approx(0.01)
    assert table.token_seconds("a", 1) == pytest.approx(0.9)
    assert table.token_seconds("b", 0) == pytest.approx(0.02)
    assert table.token_seconds("b", 1) == pytest.approx(0.06)
    table.models["b"].depths[0].served.add(3.0, 10)
    assert table.token_seconds("b", 1) == pytest.approx(0.9)


@given(histories(), st.integers(1, 100))
def test_what_trying_itself_took_decides_nothing(history: History, factor: int) -> None:
    """Profiles of other rows, or of fewer at once, scale all tried times alike: once anything has
    served, no estimate changes, and before that, none against another."""
    places = [(name, p) for name, m in history.models.items() for p in range(len(m.depths))]
    before = [history.token_seconds(*place) for place in places]
    depths = [depth for found in history.models.values() for depth in found.depths]
    for depth in depths:
        depth.tried.seconds *= factor
    scale = 1 if any(depth.served.tokens for depth in depths) else factor
    after = [history.token_seconds(*place) for place in places]
    assert after == pytest.approx([scale * seconds for seconds in before])
    assert all(seconds > 0 for seconds in after)


@given(st.lists(st.lists(st.integers(0, 99), max_size=40), max_size=5))
def test_the_newer_of_a_row_counts(batches: list[list[int]]) -> None:
    """Each row is there once, as it was seen last; the last 64 stay."""
    found, expected = model((1.0, 1), (2.0, 1), requests=0), dict[int, int]()
    for number, rows in enumerate(batches):
        found.observe([request(row, number, 100) for row in rows], [[(1, 2)] * BINS] * 2)
        for row in dict.fromkeys(rows):
            expected.pop(row, None)
            expected[row] = number
    kept = [(seen.row, seen.sure[0]) for seen in found.requests]
    assert kept == list(expected.items())[-64:]
    counted = (len(batches), 2 * len(batches))
    assert found.reliability == ([[counted] * BINS] * 2 if batches else [])


@given(model_histories(least_requests=0), st.frozensets(st.integers(0, 9)))
def test_breaches_are_a_share_of_tokens(found: ModelHistory, rows: frozenset[int]) -> None:
    """Over the tokens of the rows asked for; deeper has no more, full depth none."""
    last = len(found.depths) - 1
    assert found.breach_share(last) == found.breach_share(last, rows) == 0.0
    for place in range(last):
        seen = [r for r in found.requests if r.row in rows]
        unsure = sum(r.tokens - r.sure[place] for r in seen)
        tokens = sum(r.tokens for r in seen)
        expected = unsure / tokens if tokens else 1.0
        assert found.breach_share(place, rows) == pytest.approx(expected)
        assert found.breach_share(place) >= found.breach_share(place + 1) - 1e-9


@given(model_histories(least_requests=0))
def test_the_exit_distribution_adds_up(found: ModelHistory) -> None:
    """Each token has a first sure depth or none."""
    shares = found.exit_distribution()
    assert len(shares) == (len(found.depths) + 1 if found.requests else 0)
    assert sum(shares) == pytest.approx(1.0 if found.requests else 0.0)
    assert (found.perplexity < float("inf")) == bool(found.requests)


@given(histories(), st.integers(0, 3), st.floats(0, 1))
def test_rows_like_those_at_hand(history: History, place: int, breaches: float) -> None:
    """They are those that this depth was as unsure of; None, not an empty set, for none."""
    found = history.models["model-0"]
    place = min(place, len(found.depths) - 1)
    expected = {r.row for r in found.requests if (r.tokens - r.sure[place]) / r.tokens >= breaches}
    like = history.rows_like("model-0", place, breaches)
    assert like is None or like
    assert (like or frozenset()) ^ expected <= {
        r.row
        for r in found.requests
        if (r.tokens - r.sure[place]) / r.tokens == pytest.approx(breaches)
    }


def test_as_unsure_is_like() -> None:
    """A request exactly as unsure as it is now counts."""
    found = model((1.0, 1), (2.0, 1), sure=0.5)
    assert History({"a": found}).rows_like("a", 0, 0.5) == {0}
    assert History({"a": found}).rows_like("a", 0, 0.51) is None

"""The performance history table: what it adds up, and that a file gives back what went in."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from helios_batch.helios.history import BINS, Depth, History, ModelHistory
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
    depth = found.depths[place]
    seconds = found.token_seconds(place)
    if depth.tokens:
        assert seconds == pytest.approx(depth.seconds / depth.tokens)
        return
    measured = [other for other in found.depths if other.tokens]
    nearest = min(abs(other.work - depth.work) for other in measured)
    assert any(
        seconds / depth.work == pytest.approx(other.seconds / other.tokens / other.work)
        for other in measured
        if abs(other.work - depth.work) == nearest
    )


def test_running_is_added_up() -> None:
    """Stretches at a depth add up; while nothing ran, a token takes no time."""
    found = ModelHistory("t", [Depth(1, 1.0, 10, 1, 4), Depth(2, 3.0, 20, 2, 2)])
    assert found.token_seconds(0) == found.load_seconds(10) == 0.0
    found.ran(0, 3.0, 10)
    found.ran(0, 1.0, 10)
    assert (found.token_seconds(0), found.token_seconds(1)) == (0.2, pytest.approx(0.6))


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

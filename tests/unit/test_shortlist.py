"""The shortlist: the best that fit, whatever order they come in, and room for the unmeasured."""

from __future__ import annotations

import math
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_batch.helios.shortlist import Candidate, shortlist
from helios_batch.spec_policy import Objective

FIGURE = {
    "throughput": "tokens_per_second",
    "latency": "tokens_per_second",
    "memory": "memory_bytes",
    "quality": "accuracy",
}
objectives = st.sampled_from(sorted(FIGURE))
counts = st.integers(1, 8)


@st.composite
def some_candidates(draw: st.DrawFn) -> list[Candidate]:
    """Up to eight candidates of distinct names; few values, so that ties are common."""
    drawn = st.tuples(
        st.none() | st.sampled_from([1.0, 2.0, 3.0]),
        st.none() | st.sampled_from([100, 200, 300]),
        st.none() | st.sampled_from([0.0, 0.5, 1.0]),
        st.booleans() | st.just(True),
    )
    figures = draw(st.lists(drawn, max_size=8))
    names = draw(st.permutations([f"model-{place}" for place in range(len(figures))]))
    return [Candidate(name, *found) for name, found in zip(names, figures, strict=True)]


def costs(candidate: Candidate) -> tuple[float, float, float]:
    """Each figure as one of which less is better; what is not measured is worst."""
    speed, memory, accuracy = (
        candidate.tokens_per_second,
        candidate.memory_bytes,
        candidate.accuracy,
    )
    return (
        math.inf if speed is None else -speed,
        math.inf if memory is None else memory,
        math.inf if accuracy is None else -accuracy,
    )


@given(some_candidates(), objectives, counts)
def test_as_many_as_asked_for_of_those_that_fit(
    given_: list[Candidate], objective: Objective, count: int
) -> None:
    """Each at most once, none that does not fit, and no room left while one that fits is out."""
    found = shortlist(given_, objective, count)
    assert len(found) == min(count, sum(candidate.fits for candidate in given_))
    assert len(set(found)) == len(found)
    assert all(candidate.fits and candidate in given_ for candidate in found)
    assert shortlist(given_, objective, count + 1)[:count] == found


@given(some_candidates(), objectives)
def test_the_order(given_: list[Candidate], objective: Objective) -> None:
    """By the objective's figure; then those that lack it, in the order given."""
    found = shortlist(given_, objective, 8)
    values = [getattr(candidate, FIGURE[objective]) for candidate in found]
    known = [value for value in values if value is not None]
    assert values == known + [None] * (len(values) - len(known))
    assert known == sorted(known, reverse=objective != "memory")
    places = [given_.index(candidate) for candidate in found[len(known) :]]
    assert all(left < right for left, right in pairwise(places))


@given(some_candidates(), objectives)
def test_no_candidate_precedes_one_that_is_better_in_all(
    given_: list[Candidate], objective: Objective
) -> None:
    """Of measured ones, who is at least as good in each figure and better in one comes first."""
    found = [
        candidate
        for candidate in shortlist(given_, objective, 8)
        if getattr(candidate, FIGURE[objective]) is not None
    ]
    for place, later in enumerate(found):
        for earlier in found[:place]:
            pairs = list(zip(costs(later), costs(earlier), strict=True))
            dominates = all(mine <= other for mine, other in pairs) and any(
                mine < other for mine, other in pairs
            )
            assert not dominates, f"{earlier} before {later}"


@given(some_candidates(), objectives, counts, st.randoms(use_true_random=False))
def test_measured_ones_may_come_in_any_order(
    given_: list[Candidate], objective: Objective, count: int, random: Random
) -> None:
    """Shuffling the measured candidates changes nothing."""
    measured = [c for c in given_ if getattr(c, FIGURE[objective]) is not None]
    others = [c for c in given_ if getattr(c, FIGURE[objective]) is None]
    shuffled = list(measured)
    random.shuffle(shuffled)
    expected = shortlist(measured + others, objective, count)
    assert shortlist(shuffled + others, objective, count) == expected
    assert shortlist(others + shuffled, objective, count) == expected


def test_the_objectives_differ() -> None:
    """Each objective puts its own model first; one without measurements is last, and one too."""
    fast = Candidate("fast", 3000.0, 400, 0.5, True)
    small = Candidate("small", 2000.0, 100, 0.6, True)
    good = Candidate("good", 1000.0, 900, 0.9, True)
    new = Candidate("new", None, None, None, True)
    large = Candidate("large", 9000.0, 1, 1.0, False)
    given_ = [new, large, good, small, fast]
    assert shortlist(given_, "throughput", 3) == (fast, small, good)
    assert shortlist(given_, "latency", 2) == (fast, small)
    assert shortlist(given_, "memory", 2) == (small, fast)
    assert shortlist(given_, "quality", 4) == (good, small, fast, new)
    assert shortlist([large], "throughput", 1) == ()
    with pytest.raises(ValueError, match="a shortlist of 0"):
        shortlist(given_, "throughput", 0)

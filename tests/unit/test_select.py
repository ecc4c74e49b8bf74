"""Choosing and reacting, against the table that they read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_batch.helios.history import History, Spent
from helios_batch.helios.select import (
    Ahead,
    Place,
    Ways,
    held,
    move_cost,
    move_seconds,
    react,
    select,
)
from helios_batch.spec_policy import Objective
from tests.support.histories import histories, model

OBJECTIVES: tuple[Objective, ...] = ("throughput", "latency", "memory", "quality")
shares = st.floats(0, 1)
aheads = st.builds(Ahead, st.integers(0, 1000), st.integers(0, 100))


def breaches(history: History, place: Place) -> float:
    return history.models[place.model].breach_share(place.depth)


def sure(history: History, tolerated: float) -> list[Place]:
    """The places that select may return."""
    return [place for place in held(history) if breaches(history, place) <= tolerated]


def everywhere(history: History) -> list[Place | None]:
    return [None, *held(history)]


@given(histories(), st.sampled_from(OBJECTIVES), shares, aheads, st.data())
def test_what_is_selected_is_held_and_sure(
    history: History, objective: Objective, tolerated: float, ahead: Ahead, data: st.DataObject
) -> None:
    """Memory holds it; it is sure enough, or nothing is and it is the surest there is."""
    now = data.draw(st.sampled_from(everywhere(history)))
    found = select(history, objective, tolerated, ahead, now)
    assert found in set(held(history))
    if sure(history, tolerated):
        assert breaches(history, found) <= tolerated
    else:
        assert breaches(history, found) == min(breaches(history, p) for p in held(history))


@given(histories(), shares, aheads, st.data())
def test_no_sure_place_is_cheaper(
    history: History, tolerated: float, ahead: Ahead, data: st.DataObject
) -> None:
    """For throughput all that is to come counts, for latency loading and one token."""
    now = data.draw(st.sampled_from(everywhere(history)))
    objectives: dict[Objective, Ahead] = {
        "throughput": Ahead(ahead.tokens),
        "latency": Ahead(1),
    }
    for objective, counted in objectives.items():
        found = select(history, objective, tolerated, ahead, now)
        for other in sure(history, tolerated):
            assert move_cost(history, now, found, counted) <= move_cost(
                history, now, other, counted
            )


@given(histories(), shares, aheads)
def test_the_least_memory(history: History, tolerated: float, ahead: Ahead) -> None:
    """No sure place has fewer bytes of weights and KV cache."""

    def size(place: Place) -> int:
        depth = history.models[place.model].depths[place.depth]
        return depth.weights + depth.batch * depth.kv_per_token

    found = select(history, "memory", tolerated, ahead)
    assert all(size(found) <= size(other) for other in sure(history, tolerated))


@given(histories(), shares, aheads)
def test_the_most_quality(history: History, tolerated: float, ahead: Ahead) -> None:
    """Of the candidates that compare it is the best, at a depth that agrees as much as any."""
    found = select(history, "quality", tolerated, ahead)
    chosen = history.models[found.model]
    places = sure(history, tolerated)
    if not places:
        return
    first = history.models[places[0].model].tokenizer
    for other in (history.models[p.model] for p in places):
        assert other.tokenizer != first or chosen.perplexity <= other.perplexity
    own = [p for p in places if p.model == found.model]
    most = max(chosen.agreement(p.depth) for p in own)
    assert chosen.agreement(found.depth) >= most - 0.005


@given(histories(), shares, aheads, st.data())
def test_a_reaction_goes_deeper_or_elsewhere(
    history: History, tolerated: float, ahead: Ahead, data: st.DataObject
) -> None:
    """To the cheapest place that is sure of such rows; from full depth only if that is cheaper."""
    now = data.draw(st.sampled_from(list(held(history))))
    share = data.draw(st.floats(tolerated, 1))
    found = react(history, now, share, tolerated, ahead)
    assert found in set(held(history))
    like = history.rows_like(now.model, now.depth, share)
    ways = [p for p in held(history) if p.model != now.model or p.depth > now.depth]
    good = [p for p in ways if history.models[p.model].breach_share(p.depth, like) <= tolerated]
    full = now.depth == len(history.models[now.model].depths) - 1
    costs = {p: move_cost(history, now, p, ahead) for p in [*good, now, found]}
    if full:
        assert found in {*good, now}
        assert costs[found] == min(costs[p] for p in [*good, now])
    elif good:
        assert found in good
        assert costs[found] == min(costs[p] for p in good)
    else:
        assert found == max(p for p in held(history) if p.model == now.model)


@given(histories(), shares, aheads, st.data())
def test_full_depth_is_a_way_out(
    history: History, tolerated: float, ahead: Ahead, data: st.DataObject
) -> None:
    """Where memory holds it, a reaction never leaves the rows at what is not sure of them."""
    for found in history.models.values():
        found.depths[-1].batch = max(1, found.depths[-1].batch)
    now = data.draw(st.sampled_from(list(held(history))))
    after = react(history, now, 1.0, tolerated, ahead)
    like = history.rows_like(now.model, now.depth, 1.0)
    assert history.models[after.model].breach_share(after.depth, like) <= tolerated


@given(histories(), shares, aheads, st.booleans(), st.booleans(), st.data())
def test_ways_that_are_closed(
    history: History,
    tolerated: float,
    ahead: Ahead,
    deeper: bool,
    elsewhere: bool,
    data: st.DataObject,
) -> None:
    """A reaction takes the ways that are open, and stays if there is none."""
    now = data.draw(st.sampled_from(list(held(history))))
    after = react(history, now, 1.0, tolerated, ahead, Ways(deeper, elsewhere))
    if after.model != now.model:
        assert elsewhere
    elif after != now:
        assert deeper
        assert after.depth > now.depth


@given(histories(), st.integers(0, 1000), st.data())
def test_what_a_move_costs(history: History, stored: int, data: st.DataObject) -> None:
    """Staying is free; within a model no more than from elsewhere; less is never to be read."""
    places = list(held(history))
    now, to = (data.draw(st.sampled_from(places)) for _ in range(2))
    seconds = move_seconds(history, now, to, stored)
    assert 0 <= seconds <= move_seconds(history, None, to, stored) + 1e-9
    assert move_seconds(history, to, to, stored) == 0.0


def test_a_switch_pays_for_its_weights() -> None:
    """With little to come it stays with what is loaded; with much it takes what is faster."""
    history = History({"now": model((10.0, 1)), "fast": model((5.0, 1))})
    now = Place("now", 0)
    assert select(history, "throughput", 0.5, Ahead(0), now) == now
    assert select(history, "throughput", 0.5, Ahead(100), now) == Place("fast", 0)
    assert react(history, now, 1.0, 0.5, Ahead(0)) == now
    assert react(history, now, 1.0, 0.5, Ahead(100)) == Place("fast", 0)


def test_serving_is_cheaper_than_trying() -> None:
    """In batches a token takes less than a tenth of what it took in profiles: that is counted of
    the candidate that has not served too, which else would never be chosen."""
    for fast, after in ((10.5, Place("now", 0)), (5.0, Place("fast", 0))):
        history = History({"now": model((10.0, 1)), "fast": model((fast, 1))})
        history.models["fast"].read_seconds = 0.0
        history.models["now"].depths[0].served.add(9.0, 10)
        assert select(history, "throughput", 0.5, Ahead(100), Place("now", 0)) == after


def test_a_candidate_that_failed_is_not_free() -> None:
    """Without a request it has shown no speed: it is left out, unless all are like that."""
    failed = model((1.0, 1), (2.0, 1), requests=0)
    failed.depths[-1].tried = Spent()
    history = History({"failed": failed, "good": model((3.0, 1), (9.0, 1))})
    assert select(history, "throughput", 0.5, Ahead(100)) == Place("good", 0)
    assert react(history, Place("good", 0), 1.0, 0.5, Ahead(100)).model == "good"
    assert select(History({"failed": failed}), "throughput", 0.5, Ahead(1)) == Place("failed", 1)


def test_full_depth_that_memory_does_not_hold() -> None:
    """The deepest that it holds is not sure just because nothing is deeper."""
    small = model((1.0, 1), (2.0, 0), sure=0.0)
    history = History({"small": small, "large": model((50.0, 1))})
    assert react(history, Place("small", 0), 1.0, 0.5, Ahead(10)) == Place("large", 0)
    assert react(History({"small": small}), Place("small", 0), 1.0, 0.5, Ahead(10)) == Place(
        "small", 0
    )


def test_memory_that_holds_nothing() -> None:
    """There is nothing to choose."""
    with pytest.raises(ValueError, match="no depth"):
        select(History({"a": model((1.0, 0))}), "throughput", 0.5, Ahead(1))

"""Which candidate runs, and how deep: from the performance history table (pure).

Source: HELIOS, arXiv 2504.10724, section 4; the objectives other than throughput, and the choice by
like requests, are this project's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from helios_batch.helios.history import History
from helios_batch.spec_policy import Objective

_AS_GOOD = 0.005


class Place(NamedTuple):
    """A candidate by name, and the number of one of its depths."""

    model: str
    depth: int


@dataclass(frozen=True)
class Ahead:
    """What is still to run: tokens to come, and tokens that lie in the KV cache now."""

    tokens: int
    stored: int = 0


class Ways(NamedTuple):
    """Where a reaction may go."""

    deeper: bool = True
    elsewhere: bool = True


ANYWHERE = Ways()


def select(
    history: History, objective: Objective, tolerated: float, ahead: Ahead, now: Place | None = None
) -> Place:
    """Return the best place to run at by an objective, among those that are sure enough.

    A depth is sure enough if no more than `tolerated` of the observed tokens breach there; full
    depth always is. `throughput`: least seconds for all that is to come, loading included;
    `latency`: least seconds until it runs and of one token; `memory`: fewest bytes of weights and
    of the KV cache; `quality`: most agreement with full depth, of equal ones the fastest, on the
    candidate of least perplexity among those that share the first one's tokenizer, as others don't
    compare.

    Args:
        history: with one depth or more that memory holds; a candidate without a request is left
            out, unless none has one.
        objective: of the job.
        tolerated: share of breaches.
        ahead: what is still to run.
        now: where it runs at present, which costs no loading.

    Raises:
        ValueError: memory holds no depth of any candidate.
    """
    found = _observed(history)
    if not found:
        raise ValueError("memory holds no depth of any candidate")
    shares = {place: _model_breaches(history, place, None) for place in found}
    # a job that memory holds at shallow depths only takes what is surest
    places = [p for p in found if shares[p] <= tolerated] or [min(found, key=shares.__getitem__)]
    if objective == "memory":
        return min(places, key=lambda place: (_bytes(history, place), place.depth))
    if objective == "quality":
        places = _finest(history, places)
    tokens = 1 if objective == "latency" else ahead.tokens
    return min(places, key=lambda place: move_cost(history, now, place, Ahead(tokens)))


def react(
    history: History,
    now: Place,
    breaches: float,
    tolerated: float,
    ahead: Ahead,
    ways: Ways = ANYWHERE,
) -> Place:
    """Return where to go when too many tokens are unsure: deeper, or to another candidate.

    That is the cheapest place, the move included, among those that the table expects to be sure
    enough of requests like those at hand; of such, full depth of the present candidate always is.
    If there is none, it is the deepest that memory holds of the present candidate.

    Args:
        history: the table.
        now: where it runs.
        breaches: share of tokens that are unsure there.
        tolerated: share of breaches that is not too many.
        ahead: what is still to run, and what the move has to carry over.
        ways: where it may go; it stays if there is no such place.
    """
    like = history.rows_like(now.model, now.depth, breaches)

    def is_sure(place: Place) -> bool:
        return _model_breaches(history, place, like) <= tolerated

    def cost(place: Place) -> float:
        return move_cost(history, now, place, ahead)

    found = _observed(history)
    deeper = [p for p in found if ways.deeper and p.model == now.model and p.depth > now.depth]
    others = [place for place in found if ways.elsewhere and place.model != now.model]
    sure = [place for place in [*deeper, *others] if is_sure(place)]
    if now.depth == len(history.models[now.model].depths) - 1:
        # nothing is surer than full depth: another candidate has to be cheaper too
        return min([now, *sure], key=cost)
    return min(sure or deeper[-1:] or [now], key=cost)


def held(history: History) -> Iterator[Place]:
    """Yield the places that the memory budget holds."""
    for name, model in history.models.items():
        for place, depth in enumerate(model.depths):
            if depth.batch:
                yield Place(name, place)


def _observed(history: History) -> list[Place]:
    """Return what memory holds of the candidates that have a request, or of all if none has.

    One on which every request failed has shown no speed, and would seem to cost nothing.
    """
    places = list(held(history))
    return [place for place in places if history.models[place.model].requests] or places


def move_cost(history: History, now: Place | None, to: Place, ahead: Ahead) -> float:
    """Return the seconds that a move and all that is to come take.

    Deeper layers of the same candidate run over what is stored; anything else prefills it again.
    """
    seconds = move_seconds(history, now, to, ahead.stored)
    return seconds + ahead.tokens * history.token_seconds(*to)


def move_seconds(history: History, now: Place | None, to: Place, stored: int) -> float:
    """Return the seconds that a move takes, with so many stored tokens to carry over."""
    if now == to:
        return 0.0
    model = history.models[to.model]
    depth = model.depths[to.depth]
    weights, again = depth.weights, stored * history.token_seconds(*to)
    if now is not None and now.model == to.model:
        old = model.depths[now.depth]
        weights = max(0, depth.weights - old.weights)
        if to.depth > now.depth:
            again *= 1 - old.work / depth.work
    return model.load_seconds(weights) + again


def _model_breaches(history: History, place: Place, rows: frozenset[int] | None) -> float:
    return history.models[place.model].breach_share(place.depth, rows)


def _bytes(history: History, place: Place) -> int:
    depth = history.models[place.model].depths[place.depth]
    return depth.weights + depth.batch * depth.kv_per_token


def _finest(history: History, places: list[Place]) -> list[Place]:
    """Return the places that agree most, of the candidate of least perplexity."""
    first = history.models[places[0].model].tokenizer
    comparable = [p for p in places if history.models[p.model].tokenizer == first]
    best = min(history.models[place.model].perplexity for place in comparable)
    fine = [p for p in comparable if history.models[p.model].perplexity <= best]
    agreed = {p: history.models[p.model].agreement(p.depth) for p in fine}
    return [p for p in fine if agreed[p] >= max(agreed.values()) - _AS_GOOD]

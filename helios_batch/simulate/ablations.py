"""HELIOS without this or that, and with other settings, on the simulated engine (no torch)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from helios_batch.helios.cascade import Observed, cheapest, outcomes
from helios_batch.helios.controller import REACTIONS
from helios_batch.simulate.costs import Costs, Machine
from helios_batch.simulate.models import AGREES_SURE, OPT_LARGE, THRESHOLD
from helios_batch.simulate.requests import Floats, Requests, draw_requests
from helios_batch.simulate.result import PolicyResult
from helios_batch.simulate.settings import BATCHES, HOST, PAIR, run_helios
from helios_batch.spec_policy import PolicySpec

_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_INTERVALS = (25, 50, 150, 400, 10**6)
_WINDOWS = (20, 50, 100, 300, 1000, 3000)
_BOUNDS = tuple(round(0.01 * step, 2) for step in range(17))
_IN_BATCHES = 4


@dataclass(frozen=True)
class Point:
    """A run by what was changed: a name, or the value of a setting."""

    changed: str | float
    result: PolicyResult


@dataclass(frozen=True)
class Escalation:
    """Rows set aside and run again deeper, against all rows at one depth, by allowed loss.

    Args:
        bound: the largest mean share of tokens that are not full depth's.
        one_depth: seconds of a row at the cheapest single depth within it.
        cascade: seconds of a row where each leaves at the first depth that is sure of it.
    """

    bound: float
    one_depth: float
    cascade: float


@dataclass(frozen=True)
class Ablations:
    """All that was tried: one request at a time by the host's time; `escalation` in batches by the
    chip's, where each step is a window."""

    without: tuple[Point, ...]
    thresholds: tuple[Point, ...]
    intervals: tuple[Point, ...]
    windows: tuple[Point, ...]
    escalation: tuple[Escalation, ...]


def ablate(count: int, seed: int) -> Ablations:
    """Run all ablations on jobs of `count` requests, four times as many in batches."""
    requests = draw_requests(PAIR, count, seed)
    more = draw_requests(PAIR, _IN_BATCHES * count, seed)

    def changed(policies: dict[float, PolicySpec]) -> tuple[Point, ...]:
        return tuple(
            Point(value, run_helios(HOST, requests, policy)) for value, policy in policies.items()
        )

    return Ablations(
        without=_without(requests),
        thresholds=changed({t: PolicySpec(type="helios", threshold=t) for t in _THRESHOLDS}),
        intervals=changed({i: PolicySpec(type="helios", reprofile=i) for i in _INTERVALS}),
        windows=changed({w: PolicySpec(type="helios", window=w, limit=w // 2) for w in _WINDOWS}),
        escalation=escalation(more, BATCHES[0]),
    )


def _without(requests: Requests) -> tuple[Point, ...]:
    policy = PolicySpec(type="helios")
    kinds = {
        "helios": REACTIONS,
        "no switch": REACTIONS - {"switch"},
        "no deepening": REACTIONS - {"deepen"},
        "no return": REACTIONS - {"return"},
        "no reaction": REACTIONS - REACTIONS,
    }
    found = [Point(name, run_helios(HOST, requests, policy, some)) for name, some in kinds.items()]
    single = run_helios(HOST, requests, policy, models=PAIR[:1])
    return (*found, Point("one model", single))


def escalation(requests: Requests, machine: Machine) -> tuple[Escalation, ...]:
    """Compare one depth for all rows of OPT-6.7B with its cheapest cascade, by allowed loss."""
    observed = observe(requests, machine)
    alone = [outcomes(observed.of([stage]), [0]) for stage in range(observed.last + 1)]
    found = []
    for bound in _BOUNDS:
        one = min(float(each.costs[0]) for each in alone if each.losses[0].mean() <= bound)
        best = cheapest(observed, bound)
        costs = outcomes(observed, best.stages)
        place = [cascade.threshold for cascade in costs.cascades].index(best.threshold)
        found.append(Escalation(bound, one, float(costs.costs[place])))
    return tuple(found)


def observe(requests: Requests, machine: Machine) -> Observed:
    """Return what the depths of OPT-6.7B say of all rows: shares of tokens unlike full depth's."""
    model, costs = OPT_LARGE, Costs(OPT_LARGE, machine)
    outputs = np.diff(requests.starts).astype(float)
    length = (sum(requests.prompts) + requests.tokens / 2) / requests.count
    seconds, loads, confidences, losses = [], [], [], []
    for place, depth in enumerate(costs.history().depths):
        step = costs.decode(depth.layers, 1, depth.batch, round(depth.batch * length))
        seconds.append(step / depth.batch * requests.tokens / requests.count)
        loads.append(costs.load(depth.weights) / requests.count)
        sure = np.asarray(requests.confidences[model.name][place])
        confidences.append(_row_means(sure, requests, outputs))
        differs = np.where(sure >= THRESHOLD, 1 - AGREES_SURE, 1 - model.agrees_unsure)
        losses.append(_row_means(differs, requests, outputs))
    losses[-1] = np.zeros(requests.count)
    return Observed(np.array(seconds), np.array(loads), np.array(confidences), np.array(losses))


def _row_means(values: Floats, requests: Requests, outputs: Floats) -> Floats:
    found: Floats = np.add.reduceat(values, np.array(requests.starts[:-1])) / outputs
    return found

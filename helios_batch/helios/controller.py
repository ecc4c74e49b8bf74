"""The HELIOS loop: profile, choose, watch, react (pure; engines and simulations drive it).

Source: HELIOS, arXiv 2504.10724, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from helios_batch.helios.breach import BreachCounter
from helios_batch.helios.drift import Drift
from helios_batch.helios.history import History
from helios_batch.helios.select import Ahead, Place, Ways, move_cost, move_seconds, react, select
from helios_batch.spec_policy import Objective, PolicySpec

Reaction = Literal["deepen", "switch", "return"]
REACTIONS: frozenset[Reaction] = frozenset(get_args(Reaction))
Kind = Literal["choose"] | Reaction
_WORTH_MOVING = 0.9


@dataclass(frozen=True)
class Move:
    """A change of place.

    Args:
        kind: `choose` follows a profile; `deepen` and `switch` are reactions to breaches; `return`
            tries fewer layers again after a calm time.
        seconds: that the table expects it to take.
        breaches: the share that it is a reaction to; 0 otherwise.
    """

    kind: Kind
    before: Place | None
    after: Place
    seconds: float
    breaches: float = 0.0


class Controller:
    """Decides for one engine where it runs.

    Args:
        policy: window, limit, threshold, and how often is profiled.
        objective: what is chosen by.
        history: the table; whoever profiles and runs keeps it up to date.
        reactions: the moves that it may make between profiles.
    """

    def __init__(
        self,
        policy: PolicySpec,
        objective: Objective,
        history: History,
        reactions: frozenset[Reaction] = REACTIONS,
    ) -> None:
        self.history = history
        self._policy, self._objective, self._reactions = policy, objective, reactions
        self._counter = BreachCounter(policy.threshold, policy.window, policy.limit)
        self._drift = Drift()
        self._rows_since, self._due = 0, True
        self.now: Place | None = None
        self.moves: list[Move] = []

    @property
    def profile_due(self) -> bool:
        """Whether requests are to be observed on all candidates before more rows run."""
        return self._due

    def skip_profile(self) -> None:
        """Do without a profile: the table has one that fits."""
        self._due = False

    def choose(self, ahead: Ahead) -> Place:
        """Choose where to run, after a profile; stay where a move would gain less than a tenth."""
        self._due, self._rows_since = False, 0
        self._drift.restart()
        tolerated = self._policy.tolerated
        best = select(self.history, self._objective, tolerated, ahead, self.now)
        if self.now is not None and self._objective == "throughput" and best != self.now:
            breaches = self.history.models[self.now.model].breach_share(self.now.depth)
            costs = [move_cost(self.history, self.now, place, ahead) for place in (best, self.now)]
            if breaches <= tolerated and costs[0] > _WORTH_MOVING * costs[1]:
                best = self.now
        return self._go("choose", best, ahead, 0.0)

    def saw(self, confidences: Iterable[float], ahead: Callable[[], Ahead]) -> Place | None:
        """Take the confidences of a step's tokens; return where to go, or None to stay.

        `ahead` is asked only when it matters.
        """
        assert self.now is not None, "there are no tokens before a choice"
        tripped = self._counter.add(confidences)
        before, tolerated = self.now, self._policy.tolerated
        if tripped:
            share, allowed = self._counter.share, self._reactions
            ways = Ways("deepen" in allowed, "switch" in allowed)
            after = react(self.history, before, share, tolerated, ahead(), ways)
            if after == before:
                return None
            kind: Kind = "deepen" if after.model == before.model else "switch"
            return self._go(kind, after, ahead(), share)
        if "return" in self._reactions and self._counter.is_calm:
            best = select(self.history, self._objective, tolerated, ahead(), before)
            if best.model == before.model and best.depth < before.depth:
                return self._go("return", best, ahead(), 0.0)
            self._counter.wait()
        return None

    def finished(self, confidence: float) -> None:
        """Take the mean confidence of a row that is done."""
        self._rows_since += 1
        self._due |= self._drift.add(confidence) or self._rows_since >= self._policy.reprofile

    def _go(self, kind: Kind, after: Place, ahead: Ahead, breaches: float) -> Place:
        if after != self.now:
            expected = move_seconds(self.history, self.now, after, ahead.stored)
            self.moves.append(Move(kind, self.now, after, expected, breaches))
            self._counter.moved(back=kind == "return", unsure=kind in ("deepen", "switch"))
            self._drift.restart()  # elsewhere, rows are as sure as they are there
            self.now = after
        return after

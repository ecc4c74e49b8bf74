"""HELIOS on a simulated engine: what `adaptive/engine.py` does for real ones, on a clock.

The controller, its table and its choices are those of real jobs.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from helios_batch.helios.controller import REACTIONS, Controller, Reaction
from helios_batch.helios.history import BINS, History, Request
from helios_batch.helios.select import Ahead, Place
from helios_batch.simulate.costs import Costs, Machine
from helios_batch.simulate.engine import Row, SimulatedEngine
from helios_batch.simulate.models import AGREES_SURE, THRESHOLD, SimulatedModel
from helios_batch.simulate.requests import Requests
from helios_batch.simulate.result import PolicyResult, Tally
from helios_batch.spec_policy import Objective, PolicySpec

_BATCHES = 4


class SimulatedHelios:
    """Runs a job where a controller says, and tells it what the tokens were like.

    Args:
        models: the candidates; with one it is the policy helios-single.
        machine: where; all weights lie in the host's memory.
        requests: the job.
        policy: its settings.
        reactions: the moves that it may make between profiles.
        objective: what it chooses by.
    """

    def __init__(
        self,
        models: Sequence[SimulatedModel],
        machine: Machine,
        requests: Requests,
        policy: PolicySpec,
        reactions: Iterable[Reaction] = REACTIONS,
        objective: Objective = "throughput",
    ) -> None:
        self._costs = {model.name: Costs(model, machine) for model in models}
        history = History({name: costs.history() for name, costs in self._costs.items()})
        self.controller = Controller(policy, objective, history, frozenset(reactions))
        self._machine, self._requests, self._policy = machine, requests, policy
        self._tally = Tally()
        self._loaded: Place | None = None
        self._waiting = list(range(requests.count))
        self._done, self._outputs = 0, 0

    def run(self) -> PolicyResult:
        """Run the job to its end."""
        while self._waiting:
            if self.controller.profile_due:
                self._profile()
                continue
            now = self._now
            limit = self.controller.history.models[now.model].depths[now.depth].batch
            count = max(self._policy.reprofile, _BATCHES * limit)
            rows, self._waiting = self._waiting[:count], self._waiting[count:]
            self._generate([Row(row) for row in rows])
        self._tally.moves.update(move.kind for move in self.controller.moves)
        name = "helios" if len(self._costs) > 1 else "helios-single"
        return self._tally.result(name, tuple(self._costs), self._machine.chip.name)

    @property
    def _now(self) -> Place:
        assert self.controller.now is not None, "a place was chosen before rows run"
        return self.controller.now

    def _profile(self) -> None:
        """Run some random rows on all candidates, choose, and keep what the chosen one said."""
        started, count = self._tally.seconds, min(self._policy.requests, len(self._waiting))
        draw = random.Random(f"profile/{self._waiting[0]}")
        rows = sorted(draw.sample(self._waiting, count))
        for name in self._costs:
            self._try(name, rows)
        chosen = self.controller.choose(self._ahead(0))
        model, names = self._costs[chosen.model].model, self._requests.confidences[chosen.model]
        last = self._deepest(chosen.model)
        starts = self._requests.starts
        for row in rows:
            self._tally.left(model, last, names[last][starts[row] : starts[row + 1]])
            self._outputs += self._requests.outputs(row)
        self._done += len(rows)
        self._waiting = [row for row in self._waiting if row not in rows]
        self._go_to(chosen)
        self._tally.profiles += 1
        self._tally.profile_seconds += self._tally.seconds - started

    def _try(self, name: str, rows: list[int]) -> None:
        """Run rows at the deepest depth that memory holds, then look at all depths along them."""
        history, costs = self.controller.history.models[name], self._costs[name]
        last = self._deepest(name)
        self._go_to(Place(name, last))
        engine = SimulatedEngine(costs, last, self._requests, map(Row, rows))
        spent = Tally()
        while engine.step(spent) is not None:
            pass
        history.depths[last].tried.add(spent.seconds, spent.tokens)
        whole = sum(self._requests.prompts[row] for row in rows) + spent.tokens
        for place in range(last + 1):
            layers = costs.model.depths[place]
            spent.seconds += costs.prefill(layers, whole, len(rows), spent.tokens)
        self._go_to(Place(name, 0))
        self._tally.seconds += spent.seconds
        nothing = [[(0, 0)] * BINS for _ in history.depths]
        history.observe([self._look(name, row) for row in rows], nothing)

    def _look(self, name: str, row: int) -> Request:
        """Count what a candidate's depths say of a request."""
        model, threshold = self._costs[name].model, self._policy.threshold
        by_depth = [self._requests.of(name, place, row) for place in range(len(model.depths))]
        tokens = self._requests.outputs(row)
        sure = [[c >= threshold for c in depth] for depth in by_depth]
        first = [0] * (len(sure) + 1)
        for flags in zip(*sure, strict=True):
            first[flags.index(True) if True in flags else -1] += 1
        agreeing = [
            sum(AGREES_SURE if c >= THRESHOLD else model.agrees_unsure for c in depth)
            for depth in by_depth[:-1]
        ]
        return Request(
            row,
            tokens,
            sure=tuple(map(sum, sure)),
            agreeing=(*map(round, agreeing), tokens),
            first_sure=tuple(first),
            surprise=0.0,
        )

    def _generate(self, rows: list[Row]) -> None:
        """Run rows to their ends, on as many models as it takes."""
        while rows:
            now = self._now
            engine = SimulatedEngine(self._costs[now.model], now.depth, self._requests, rows)
            after = self._watch(engine)
            rows = [*engine.running, *engine.waiting]
            if after is not None:
                before = self._tally.seconds
                self._go_to(after)
                self._tally.load_seconds += self._tally.seconds - before

    def _watch(self, engine: SimulatedEngine) -> Place | None:
        """Step until all is done, or another model is to go on; then return its place."""
        name, tally, controller = engine.costs.model.name, self._tally, self.controller
        history, moving, arrives = controller.history.models[name], engine.place, 0.0
        while True:
            extra = 0.0
            if moving != engine.place and tally.seconds >= arrives:
                extra = self._deepen(engine, moving)
            place = engine.place
            step = engine.step(tally)
            if step is None:
                tally.seconds = max(tally.seconds, arrives)
                self._loaded = Place(name, moving)
                return None
            history.depths[place].served.add(step.seconds + extra, len(step.confidences))
            self._done += len(step.finished)
            for row in step.finished:
                sure = self._requests.of(name, place, row.row)
                controller.finished(sum(sure) / len(sure))
            self._outputs += len(step.confidences)
            if moving != engine.place:
                continue
            after = controller.saw(step.confidences, lambda: self._ahead(engine.stored))
            if after is None:
                continue
            if after.model != name:
                return after
            moving = after.depth
            more = history.depths[moving].weights - history.depths[place].weights
            # what is not there yet is read while rows go on
            arrives = tally.seconds + engine.costs.load(max(0, more))

    def _deepen(self, engine: SimulatedEngine, place: int) -> float:
        """Be at another depth: what is stored runs through the layers that are new."""
        depths = engine.costs.model.depths
        layers = max(0, depths[place] - depths[engine.place])
        engine.move_to(place)
        seconds = engine.costs.prefill(layers, engine.stored, max(1, len(engine.running)))
        self._tally.seconds += seconds
        self._loaded = Place(engine.costs.model.name, place)
        return seconds

    def _ahead(self, stored: int) -> Ahead:
        """Estimate what is to come: by the rows that are done, or one output a row."""
        rows = self._requests.count - self._done
        return Ahead(int(rows * max(1.0, self._outputs / max(1, self._done))), stored)

    def _go_to(self, place: Place) -> None:
        """Load a place; the table learns how fast weights are read."""
        history, old = self.controller.history.models[place.model], self._loaded
        weights = history.depths[place.depth].weights
        if old is not None and old.model == place.model:
            weights = max(0, weights - history.depths[old.depth].weights)
        seconds = self._costs[place.model].load(weights)
        self._tally.seconds += seconds
        self._loaded = place
        if old is None or old.model != place.model:
            history.read_seconds += seconds
            history.bytes_read += weights

    def _deepest(self, name: str) -> int:
        depths = self.controller.history.models[name].depths
        return max(place for place, depth in enumerate(depths) if depth.batch)

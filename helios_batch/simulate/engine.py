"""An engine that runs requests by counting seconds, and the policies that never move."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from helios_batch.simulate.costs import Costs, Machine
from helios_batch.simulate.models import SimulatedModel
from helios_batch.simulate.requests import Requests
from helios_batch.simulate.result import PolicyResult, Tally


@dataclass
class Row:
    """A request that is under way: how many of its tokens are written."""

    row: int
    written: int = 0


@dataclass(frozen=True)
class Step:
    """What a step gave: how sure the exit was of each token, and the rows that ended."""

    confidences: list[float]
    finished: list[Row]
    seconds: float


class SimulatedEngine:
    """One model at one depth, or with the exits that each token takes.

    Args:
        costs: of the model on its machine.
        place: the depth, by number.
        requests: the job.
        rows: of it that are to run.
        leave_at: with exits for each token: by token, the number of the first sure depth; all
            layers are loaded, and a step goes as deep as the slowest of its tokens.
    """

    def __init__(
        self,
        costs: Costs,
        place: int,
        requests: Requests,
        rows: Iterable[Row],
        leave_at: list[int] | None = None,
    ) -> None:
        self.costs, self.place = costs, place
        self.depths = costs.history().depths
        self.running: list[Row] = []
        self.waiting = deque(rows)
        self._requests, self._leave_at = requests, leave_at

    @property
    def limit(self) -> int:
        """How many sequences memory holds at this depth."""
        return self.depths[self.place].batch

    @property
    def stored(self) -> int:
        """Tokens in the KV caches of what runs."""
        prompts = self._requests.prompts
        return sum(prompts[row.row] + row.written for row in self.running)

    @property
    def memory(self) -> int:
        """Bytes of the weights, and of the KV cache that the most rows so far would fill."""
        depth, tokens = self.depths[self.place], self.costs.machine.sequence_tokens
        return depth.weights + len(self.running) * tokens * depth.kv_per_token

    def move_to(self, place: int) -> None:
        """Be at another depth, whose weights are there; rows that memory can't hold go on later."""
        self.place = place
        while len(self.running) > self.limit:
            self.waiting.appendleft(self.running.pop())

    def step(self, tally: Tally) -> Step | None:
        """Run prompts that have room, then a token of each row; None once nothing is left."""
        prefill = self._admit()
        running = self.running
        if not running:
            return None
        starts, name = self._requests.starts, self.costs.model.name
        tokens = [starts[row.row] + row.written for row in running]
        if self._leave_at is None:
            places = [self.place] * len(tokens)
        else:
            places = [self._leave_at[token] for token in tokens]
        deepest = max(places)
        heads = 1 if self._leave_at is None else deepest + 1
        layers = self.costs.model.depths[deepest]
        decode = self.costs.decode(layers, heads, len(tokens), self.stored)
        by_depth = self._requests.confidences[name]
        found = [by_depth[place][token] for place, token in zip(places, tokens, strict=True)]
        tally.seconds += prefill + decode
        tally.waited += decode * len(tokens)
        tally.awaited += len(tokens)
        tally.batch = max(tally.batch, len(tokens))
        tally.memory = max(tally.memory, self.memory)
        for place in set(places):
            here = [c for c, at in zip(found, places, strict=True) if at == place]
            tally.left(self.costs.model, place, here)
        for row in running:
            row.written += 1
        ended = [row for row in running if row.written == self._requests.outputs(row.row)]
        if ended:
            self.running = [row for row in running if row not in ended]
        return Step(found, ended, prefill + decode)

    def _admit(self) -> float:
        """Give waiting rows the room that there is; return the seconds of their prompts."""
        fresh = []
        while self.waiting and len(self.running) < self.limit:
            fresh.append(self.waiting.popleft())
            self.running.append(fresh[-1])
        tokens = sum(self._requests.prompts[row.row] + row.written for row in fresh)
        return self.costs.prefill(self.costs.model.depths[self.place], tokens, len(fresh))


def run_fixed(
    model: SimulatedModel, machine: Machine, requests: Requests, threshold: float | None
) -> PolicyResult:
    """Run a job on one model with all layers loaded.

    Args:
        model: the model.
        machine: where.
        requests: the job.
        threshold: each token leaves at the first exit that is so sure of it (policy `ee`, after
            EE-LLM, arXiv 2312.04916; keys and values of the layers left out come for nothing);
            None: all layers run for each token (policy `vanilla`).
    """
    costs, last = Costs(model, machine), len(model.depths) - 1
    leave_at = None
    if threshold is not None:
        early = zip(*requests.confidences[model.name][:last], strict=True)
        leave_at = [next((i for i, c in enumerate(e) if c >= threshold), last) for e in early]
    rows = [Row(row) for row in range(requests.count)]
    engine, tally = SimulatedEngine(costs, last, requests, rows, leave_at), Tally()
    tally.seconds = tally.load_seconds = costs.load(engine.depths[last].weights)
    while engine.step(tally) is not None:
        pass
    policy = "vanilla" if threshold is None else "ee"
    return tally.result(policy, (model.name,), machine.chip.name)

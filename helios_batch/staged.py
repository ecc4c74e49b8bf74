"""An engine under a policy: rows pass its stages until one is sure enough of them."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from helios_batch.engine.engine import Engine
from helios_batch.engine.sole import SoleEngine
from helios_batch.helios.agreement import agreements, row_confidence
from helios_batch.helios.audit import in_thousandths
from helios_batch.helios.policy import Policy
from helios_batch.records import EngineStats, Generation, Progress, Prompt
from helios_batch.spec import SamplingSpec

Watch = Callable[[Progress], None] | None
Answer = Callable[[Engine, list[Prompt], Watch], list[Generation]]


def is_drawn(row: int, fraction: float) -> bool:
    """Whether a row is among the share that is audited: drawn before anything is known of it."""
    return random.Random(f"audit/{row}").random() < fraction


class Promise(Protocol):
    """Who judges by the audits of the job's finished parts whether its promise is kept."""

    def is_broken(self) -> bool:
        """Whether they show it broken."""
        ...


class StagedEngine:
    """Runs all rows of a call at the policy's first stage, those it is unsure of at the next, ...

    A random share of the rows is audited: those of them that leave early are run at full depth as
    well, and the agreement is noted with them. Once the promise is broken, the rows of later calls
    run at full depth.

    Args:
        sole: the engine; its first contender is the job's first model.
        policy: the stages and when a row may leave.
        audit_fraction: share of the rows that are audited.
        answers: generations at full depth that are there already, by row.
        promise: asked before each call whether it is broken.
    """

    def __init__(
        self,
        sole: SoleEngine,
        policy: Policy,
        audit_fraction: float,
        answers: Mapping[int, Generation],
        promise: Promise,
    ) -> None:
        self.facts = sole.at(*policy.stages[-1]).facts
        self.stats = EngineStats()
        self._sole, self._policy = sole, policy
        self._audit_fraction, self.answers, self._promise = audit_fraction, answers, promise
        self._last = len(policy.depths) - 1

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingSpec, on_step: Watch = None
    ) -> list[Generation]:
        """Return a generation for each prompt; see `Engine.generate`."""
        return self._run(prompts, on_step, lambda e, p, w: e.generate(p, sampling, w))

    def label(
        self, prompts: Sequence[Prompt], choices: Sequence[str], on_step: Watch = None
    ) -> list[Generation]:
        """Return a labelled generation for each prompt; see `Engine.label`."""
        return self._run(prompts, on_step, lambda e, p, w: e.label(p, choices, w))

    def _run(self, prompts: Sequence[Prompt], on_step: Watch, answer: Answer) -> list[Generation]:
        self.stats = EngineStats()
        known = {p.row: self.answers[p.row] for p in prompts if p.row in self.answers}
        results = {row: self._at_stage(found, self._last) for row, found in known.items()}
        waiting = [prompt for prompt in prompts if prompt.row not in results]
        drawn = [prompt for prompt in waiting if is_drawn(prompt.row, self._audit_fraction)]
        first = 0 if self._last and not self._promise.is_broken() else self._last
        for stage in range(first, self._last + 1):
            last = stage == self._last
            early = [p for p in drawn if p.row in results] if last else []
            batch = waiting + early
            if not batch:
                continue
            done = len(results) - sum(prompt.row in results for prompt in drawn)
            found = self._at(stage, batch, done, on_step, answer)
            unsure = []
            for prompt, generation in zip(waiting, found, strict=False):
                if last or self._is_sure(generation):
                    results[prompt.row] = self._at_stage(generation, stage)
                else:
                    unsure.append(prompt)
            left = [results[prompt.row] for prompt in early]
            for compared in self._compared(early, left, found[len(waiting) :]):
                results[compared.row] = compared
            waiting = unsure
        if first < self._last:
            self.stats.audit_losses = Counter(
                in_thousandths(self._loss(results[prompt.row])) for prompt in drawn
            )
        return [results[prompt.row] for prompt in prompts]

    def _is_sure(self, generation: Generation) -> bool:
        return generation.error is None and row_confidence(generation) >= self._policy.threshold

    def _at_stage(self, generation: Generation, stage: int) -> Generation:
        """Note with a generation at which stage it came, and how many tokens were not sure."""
        if generation.exit is None:
            return generation
        breaches = sum(s < self._policy.threshold for s in generation.exit.token_confidences)
        return replace(generation, exit=replace(generation.exit, stage=stage, breaches=breaches))

    def _compared(
        self, prompts: list[Prompt], found: list[Generation], references: list[Generation]
    ) -> Iterator[Generation]:
        """Note with rows that left early how far they agree with full depth, which is loaded."""
        [agreed] = agreements(prompts, [found], references, self._policy.metric, self._score)
        for row, agrees in zip(found, agreed, strict=True):
            assert row.exit is not None, "a row that left early was sure, and so has an exit"
            yield replace(row, exit=replace(row.exit, audited=True, agreement=agrees))

    def _score(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]]
    ) -> list[float]:
        engine = self._sole.current
        scores = engine.score(prompts, completions)
        self.stats += engine.stats
        return scores

    def _loss(self, result: Generation) -> float:
        """Return the loss of a drawn row: what full depth answered itself has none."""
        agrees = result.exit.agreement if result.exit else None
        return 0.0 if agrees is None else 1 - agrees

    def _at(
        self, stage: int, prompts: list[Prompt], done: int, on_step: Watch, answer: Answer
    ) -> list[Generation]:
        """Run prompts at a stage; add what it took to the call's statistics."""
        started = time.perf_counter()
        engine = self._sole.at(*self._policy.stages[stage])
        loading = time.perf_counter() - started

        def watch(progress: Progress) -> None:
            if on_step is not None:
                rows = done + progress.rows_done if stage == self._last else done
                on_step(replace(progress, rows_done=rows))

        found = answer(engine, prompts, watch)
        self.stats += engine.stats
        self.stats.load_seconds += loading
        if engine.facts not in self.stats.engines:
            self.stats.engines.append(engine.facts)
        return found

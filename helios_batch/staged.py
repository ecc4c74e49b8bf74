"""An engine under a policy: rows pass its stages until one is sure enough of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from helios_batch.engine.engine import Engine
from helios_batch.helios.agreement import agreements, row_confidence
from helios_batch.helios.audit import Audit
from helios_batch.helios.policy import Policy
from helios_batch.models.exits.file import ExitFile
from helios_batch.records import EngineStats, Generation, Progress, Prompt
from helios_batch.spec import SamplingSpec

_FALSE_ALARM = 0.01

Watch = Callable[[Progress], None] | None
Answer = Callable[[list[Prompt], Watch], list[Generation]]


class Promise(Protocol):
    """Where it is kept whether the job's promise is broken."""

    def is_broken(self) -> bool:
        """Whether an audit, of this engine or another, has found it broken."""
        ...

    def broke(self, audit: Audit) -> None:
        """An audit has found it broken."""
        ...


class StagedEngine:
    """Runs all rows of a call at the policy's first depth, those it is unsure of at the next, ...

    A random share of the rows is audited: those of them that leave early are run at full depth as
    well, and the agreement is noted with them. If the bound is broken beyond what chance does, the
    rows of later calls run at full depth.

    Args:
        engine: of the job's model, at full depth.
        exits: the model's exits by depth.
        policy: the stages and when a row may leave.
        audit_fraction: share of the rows that are audited.
        answers: generations at full depth that are there already, by row.
        promise: told of a broken promise, and asked about it.
    """

    def __init__(
        self,
        engine: Engine,
        exits: Mapping[int, ExitFile],
        policy: Policy,
        audit_fraction: float,
        answers: Mapping[int, Generation],
        promise: Promise,
    ) -> None:
        self.facts = engine.facts
        self.stats = EngineStats()
        self._engine, self._exits, self._policy = engine, exits, policy
        self._audit_fraction, self._answers, self._promise = audit_fraction, answers, promise
        self._last = len(policy.depths) - 1
        self._audit, self._audited = Audit(policy.bound, _FALSE_ALARM), set[int]()

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingSpec, on_step: Watch = None
    ) -> list[Generation]:
        """Return a generation for each prompt; see `Engine.generate`."""
        return self._run(prompts, on_step, lambda p, w: self._engine.generate(p, sampling, w))

    def label(
        self, prompts: Sequence[Prompt], choices: Sequence[str], on_step: Watch = None
    ) -> list[Generation]:
        """Return a labelled generation for each prompt; see `Engine.label`."""
        return self._run(prompts, on_step, lambda p, w: self._engine.label(p, choices, w))

    def _run(self, prompts: Sequence[Prompt], on_step: Watch, answer: Answer) -> list[Generation]:
        self.stats = EngineStats()
        known = {p.row: self._answers[p.row] for p in prompts if p.row in self._answers}
        results = {row: self._at_stage(found, self._last) for row, found in known.items()}
        waiting = [prompt for prompt in prompts if prompt.row not in results]
        drawn = [prompt for prompt in waiting if self._is_drawn(prompt)]
        first = self._last if self._promise.is_broken() else 0
        for stage in range(first, self._last + 1):
            last = stage == self._last
            early = [p for p in drawn if p.row in results] if last else []
            batch = waiting + early
            if not batch:
                continue
            done = len(results) - len(early)
            found = self._at(self._policy.depths[stage], batch, done, on_step, answer)
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
        for prompt in drawn:
            self._count(results[prompt.row])
        return [results[prompt.row] for prompt in prompts]

    def _is_drawn(self, prompt: Prompt) -> bool:
        """Whether a row is audited: drawn before anything is known of it."""
        return random.Random(f"audit/{prompt.row}").random() < self._audit_fraction

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
        scores = self._engine.score(prompts, completions)
        self.stats += self._engine.stats
        return scores

    def _count(self, result: Generation) -> None:
        """Count a drawn row, once: what full depth answered itself has no loss."""
        if result.row in self._audited:
            return
        self._audited.add(result.row)
        agrees = result.exit.agreement if result.exit else None
        was_broken = self._audit.violated
        self._audit.add(0.0 if agrees is None else 1 - agrees)
        if self._audit.violated and not was_broken:
            self._promise.broke(self._audit)

    def _at(
        self, depth: int, prompts: list[Prompt], done: int, on_step: Watch, answer: Answer
    ) -> list[Generation]:
        """Run prompts at a depth; add what it took to the call's statistics."""
        started = time.perf_counter()
        self._engine.move_to(depth, self._exits.get(depth))
        loading = time.perf_counter() - started
        last = depth == self._policy.depths[-1]

        def watch(progress: Progress) -> None:
            if on_step is not None:
                rows = done + progress.rows_done if last else done
                on_step(replace(progress, rows_done=rows))

        found = answer(prompts, watch)
        self.stats += self._engine.stats
        self.stats.load_seconds += loading
        return found

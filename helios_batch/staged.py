"""An engine under a policy: rows pass its stages until one is sure enough of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from helios_batch.engine.engine import Engine
from helios_batch.helios.agreement import agreement, row_confidence
from helios_batch.helios.audit import Audit
from helios_batch.helios.policy import Policy
from helios_batch.models.exits.file import ExitFile
from helios_batch.records import EngineFacts, EngineStats, Generation, Progress, Prompt
from helios_batch.spec import SamplingSpec
from helios_batch.spec_quality import Metric

_FALSE_ALARM = 0.01

Watch = Callable[[Progress], None] | None
Answer = Callable[[list[Prompt], Watch], list[Generation]]


class StagedEngine:
    """Runs all rows of a call at the policy's first depth, those it is unsure of at the next, ...

    Some of the rows that leave early, drawn at random, are run at full depth as well, and the
    agreement is noted with them; if the bound is broken beyond what chance does, the rows of later
    calls run at full depth.

    Args:
        engine: of the job's model.
        exits: the model's exits by depth.
        policy: the stages and when a row may leave.
        metric: what agreement is measured by.
        audit_fraction: share of the rows that leave early that are audited.
        answers: generations at full depth that are there already, by row.
    """

    def __init__(
        self,
        engine: Engine,
        exits: Mapping[int, ExitFile],
        policy: Policy,
        metric: Metric,
        audit_fraction: float,
        answers: Mapping[int, Generation],
    ) -> None:
        self._engine, self._exits, self._policy = engine, exits, policy
        self._metric: Metric = metric
        self._audit_fraction, self._answers = audit_fraction, answers
        self._full = engine.model.config.num_layers
        self.stats = EngineStats()
        left_early = 1 - policy.kept[-1]
        # rows of the last stage agree; all of the loss that is allowed may fall on the others
        allowed = min(1.0, (1 - policy.min_agreement) / left_early) if left_early else 1.0
        self._audit = Audit(allowed, _FALSE_ALARM)

    @property
    def facts(self) -> EngineFacts:
        """What the engine is at the policy's deepest stage."""
        return self._engine.facts

    @property
    def depths(self) -> tuple[int, ...]:
        """The stages in force: full depth alone once the audit has found the bound broken."""
        return (self._full,) if self._audit.violated else self._policy.depths

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
        depths = self.depths
        results: dict[int, Generation] = {}
        waiting: list[Prompt] = []
        for prompt in prompts:
            if (known := self._answers.get(prompt.row)) is not None:
                results[prompt.row] = _at_stage(known, len(depths) - 1, self._policy.threshold)
            else:
                waiting.append(prompt)
        for stage, depth in enumerate(depths):
            last = stage == len(depths) - 1
            audited = self._drawn(prompts, results) if last else []
            if not waiting and not audited:
                continue
            batch = waiting + audited
            found = self._at(depth, batch, len(results), on_step, answer)
            unsure = []
            for prompt, generation in zip(waiting, found, strict=False):
                noted = _at_stage(generation, stage, self._policy.threshold)
                results[prompt.row] = noted
                if not last and noted.error is None and not self._is_sure(noted):
                    unsure.append(prompt)
            for prompt, reference in zip(audited, found[len(waiting) :], strict=True):
                results[prompt.row] = self._compared(results[prompt.row], reference)
            waiting = unsure
        return [results[prompt.row] for prompt in prompts]

    def _is_sure(self, generation: Generation) -> bool:
        return row_confidence(generation) >= self._policy.threshold

    def _at(
        self, depth: int, prompts: list[Prompt], done: int, on_step: Watch, answer: Answer
    ) -> list[Generation]:
        """Run prompts at a depth; add what it took to the call's statistics."""
        self._engine.move_to(depth, self._exits.get(depth))

        def watch(progress: Progress) -> None:
            if on_step is not None:
                rows = done + progress.rows_done if depth == self._full else done
                on_step(replace(progress, rows_done=rows))

        found = answer(prompts, watch)
        self.stats += self._engine.stats
        return found

    def _drawn(self, prompts: Sequence[Prompt], results: Mapping[int, Generation]) -> list[Prompt]:
        """Draw from the rows that have left early those that are audited."""
        return [
            prompt
            for prompt in prompts
            if (found := results.get(prompt.row)) is not None
            and found.exit is not None
            and found.exit.token_layers[-1] < self._full
            and self._is_sure(found)
            and random.Random(f"audit/{prompt.row}").random() < self._audit_fraction
        ]

    def _compared(self, found: Generation, reference: Generation) -> Generation:
        """Note the agreement of an audited row with its reference, and count it."""
        if found.exit is None or reference.error is not None:
            return found
        agrees = agreement(found, reference, self._metric)
        self._audit.add(1 - agrees)
        return replace(found, exit=replace(found.exit, audited=True, agreement=agrees))


def _at_stage(generation: Generation, stage: int, threshold: float) -> Generation:
    """Note with a generation at which stage it came, and how many tokens were not sure."""
    if generation.exit is None:
        return generation
    breaches = sum(sure < threshold for sure in generation.exit.token_confidences)
    return replace(generation, exit=replace(generation.exit, stage=stage, breaches=breaches))

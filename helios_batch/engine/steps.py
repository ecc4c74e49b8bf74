"""The loop of an engine: one step after the other, until every sequence is finished."""

from __future__ import annotations

import time
from typing import Protocol

from helios_batch.engine.picking import NextToken
from helios_batch.engine.scheduler import DecodeStep, PrefillStep, Scheduler
from helios_batch.engine.sequence import Sequence
from helios_batch.engine.slots import Move
from helios_batch.records import EngineStats


class StepRunner(Protocol):
    """What runs the steps."""

    def prefill(self, step: PrefillStep) -> list[NextToken]:
        """Run prompt chunks; return the first token of each sequence whose prompt is done."""
        ...

    def decode(self, step: DecodeStep) -> list[NextToken]:
        """Run one token of every sequence; return the next of each that decodes."""
        ...

    def move(self, move: Move, length: int) -> None:
        """Carry out a move: the first `length` tokens of a slot go to another."""
        ...


class Steps:
    """Takes steps of a scheduler through a runner, and counts what they take in `stats`.

    `finished` holds the sequences that are done, in that order.
    """

    def __init__(self, scheduler: Scheduler, runner: StepRunner, stats: EngineStats) -> None:
        self.scheduler, self.runner, self._stats = scheduler, runner, stats
        self.finished: list[Sequence] = []

    def step(self) -> list[NextToken] | None:
        """Make a step; return the tokens that came out of it, or None when all is done."""
        step = self.scheduler.next_step()
        if step is None:
            return None
        stats, started = self._stats, time.perf_counter()
        stats.largest_batch = max(stats.largest_batch, self.scheduler.running)
        if isinstance(step, PrefillStep):
            new = self.runner.prefill(step)
            stats.prefill_seconds += time.perf_counter() - started
        else:
            new = self.runner.decode(step)
            stats.decode_seconds += time.perf_counter() - started
            stats.decode_tokens += len(new)
            stats.decode_steps += 1
        self._commit(new)
        return new

    def _commit(self, new: list[NextToken]) -> None:
        """Append the new tokens; let finished sequences go and close their gaps."""
        for sequence, token, layer, confidence in new:
            sequence.append(token, layer, confidence)
        # only now do all lengths count what the step has stored, as moves need them
        for sequence, *_ in new:
            if sequence.finish is not None:
                self.finished.append(sequence)
                move = self.scheduler.finish(sequence)
                if move is not None:
                    self.runner.move(move, self.scheduler.length_of(move.owner))

"""The runner under policy `ee`: a token leaves at the first exit that is sure of it."""

from __future__ import annotations

import torch

from helios_batch.engine.batch import BatchMaker
from helios_batch.engine.kv_cache import KVCache
from helios_batch.engine.ladder import Climb, Ladder, Rung
from helios_batch.engine.picking import NextToken, draw_tokens, most_likely
from helios_batch.engine.scheduler import DecodeStep, PrefillStep
from helios_batch.engine.sequence import Sequence
from helios_batch.engine.slots import Move, SlotAllocator
from helios_batch.spec import Confidence


class EarlyRunner:
    """Owns the ladder of exits and the KV cache; `slots` says where each sequence's keys lie.

    A step goes as deep as its slowest row. At each exit those rows leave, with that exit's token,
    whose most likely token is at least `threshold` sure. Once all have left, the layers above get
    their keys and values by state copy; so a row that runs alone stops where it leaves. While some
    row needs the layers above, they run for all, but the states of those that left are frozen:
    what these layers keep of them is the same state copy, made of the state at their own exit. So
    a row does not depend on the rows beside it.
    """

    def __init__(
        self,
        ladder: Ladder,
        threshold: float,
        cache: KVCache,
        slots: SlotAllocator,
        confidence: Confidence,
    ) -> None:
        self._ladder, self._threshold = ladder, threshold
        self._cache, self._slots = cache, slots
        self._confidence: Confidence = confidence
        device = ladder.top.weights.embedding.device
        self._batches = BatchMaker(ladder.top.config, ladder.kinds, cache, slots, device)

    @torch.inference_mode()
    def prefill(self, step: PrefillStep) -> list[NextToken]:
        """Run prompt chunks; return the first token of each sequence whose prompt is done.

        Prompts run through all layers and all exits' layers: they are stored as computed, never as
        copied. The first token is still that of the first exit that is sure of it.
        """
        batch = self._batches.prefill(step)
        climb = Climb(self._ladder, batch.tokens, batch.positions, batch.attention)
        waiting = {row: sequence for sequence, row in batch.ends}
        found: list[NextToken] = []
        for rung in self._ladder.rungs:
            found += self._leave(rung, climb.reach(rung), waiting).values()
        return found

    @torch.inference_mode()
    def decode(self, step: DecodeStep) -> list[NextToken]:
        """Run one token of every sequence in the slabs; return the next of each that decodes."""
        batch = self._batches.decode(step)
        climb = Climb(self._ladder, batch.tokens, batch.positions, batch.attention)
        waiting = {row: sequence for sequence, row in batch.ends}
        found: list[NextToken] = []
        for rung in self._ladder.rungs:
            left = self._leave(rung, climb.reach(rung), waiting)
            found += left.values()
            if not waiting:
                break
            climb.freeze(list(left))
        climb.skip_rest(batch.attention)
        return found

    @torch.inference_mode()
    def move(self, move: Move, length: int) -> None:
        """Carry out a move: the first `length` tokens of a slot go to another."""
        self._cache.move(move, self._slots.capacity(move.source.slab), length)

    def _leave(
        self, rung: Rung, hidden: torch.Tensor, waiting: dict[int, Sequence]
    ) -> dict[int, NextToken]:
        """Return the tokens that leave at a rung, by row, and take their rows from `waiting`."""
        if not waiting:
            return {}
        rows = list(waiting)
        picked = most_likely(rung.decoder, hidden, rows, self._confidence)
        last = rung is self._ladder.rungs[-1]
        leaving = {
            place: waiting.pop(row)
            for place, row in enumerate(rows)
            if last or picked.confidences[place] >= self._threshold
        }
        draw_tokens(rung.decoder, picked, leaving)
        return {
            rows[place]: NextToken(
                sequence, picked.tokens[place], rung.depth, picked.confidences[place]
            )
            for place, sequence in leaving.items()
        }

"""The runner: turns steps into tensors, runs the decoder, and picks the next tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch

from helios_batch.engine.attention import DecodeAttention, PrefillAttention
from helios_batch.engine.batch import Batch, BatchMaker
from helios_batch.engine.kv_cache import KVCache
from helios_batch.engine.picking import draw_tokens, most_likely
from helios_batch.engine.scheduler import DecodeStep, PrefillStep
from helios_batch.engine.sequence import Sequence
from helios_batch.engine.slots import Move, SlotAllocator
from helios_batch.models.decoder import Decoder
from helios_batch.spec import Confidence


class NextToken(NamedTuple):
    """What a step gave for one sequence."""

    sequence: Sequence
    token: int
    confidence: float


class Runner:
    """Owns the decoder and the KV cache; `slots` says where each sequence's keys lie."""

    def __init__(
        self, decoder: Decoder, cache: KVCache, slots: SlotAllocator, confidence: Confidence
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._slots = slots
        self._confidence: Confidence = confidence
        device = decoder.weights.embedding.device
        self._batches = BatchMaker(decoder.config, decoder.kinds, cache, slots, device)

    @torch.inference_mode()
    def prefill(self, step: PrefillStep) -> list[NextToken]:
        """Run prompt chunks; return the first token of each sequence whose prompt is done."""
        return self._next_tokens(self._batches.prefill(step))

    @torch.inference_mode()
    def decode(self, step: DecodeStep) -> list[NextToken]:
        """Run one token of every sequence in the slabs; return the next of each that decodes."""
        return self._next_tokens(self._batches.decode(step))

    @torch.inference_mode()
    def move(self, move: Move, length: int) -> None:
        """Carry out a move: the first `length` tokens of a slot go to another."""
        self._cache.move(move, self._slots.capacity(move.source.slab), length)

    def _next_tokens(
        self, batch: Batch[PrefillAttention] | Batch[DecodeAttention]
    ) -> list[NextToken]:
        hidden = self._decoder.forward(batch.tokens, batch.positions, batch.attention)
        if not batch.ends:
            return []
        sequences = [sequence for sequence, _ in batch.ends]
        rows = [row for _, row in batch.ends]
        picked = most_likely(self._decoder, hidden, rows, self._confidence)
        draw_tokens(self._decoder, picked, dict(enumerate(sequences)))
        found = zip(sequences, picked.tokens, picked.confidences, strict=True)
        return [NextToken(sequence, token, sure) for sequence, token, sure in found]

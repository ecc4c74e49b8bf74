"""The runner: turns steps into tensors, runs the decoder, and picks the next tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch

from helios_batch.engine.attention import ChunkPlace, DecodeAttention, PrefillAttention, SlabRows
from helios_batch.engine.head import best_token, logits
from helios_batch.engine.kv_cache import KVCache
from helios_batch.engine.memory import SAMPLED_ROWS
from helios_batch.engine.sampling import draw
from helios_batch.engine.scheduler import DecodeStep, PrefillStep
from helios_batch.engine.sequence import Sequence
from helios_batch.engine.slots import Move, SlotAllocator
from helios_batch.models.decoder import Attention, Decoder
from helios_batch.spec import Confidence

ROW_GRANULE = 16
"""Rows are padded to multiples of this many, so that none falls into the remainder that CPU
libraries treat apart, with other rounding: a row must not depend on its place in the batch."""


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
        self._confidence = confidence
        self._device = decoder.weights.embedding.device

    @torch.inference_mode()
    def prefill(self, step: PrefillStep) -> list[NextToken]:
        """Run prompt chunks; return the first token of each sequence whose prompt is done."""
        places: list[ChunkPlace] = []
        tokens: list[int] = []
        positions: list[int] = []
        ends: list[tuple[Sequence, int]] = []
        for chunk in step.chunks:
            slot = chunk.sequence.slot
            assert slot is not None, "a scheduled sequence holds a slot"
            capacity = self._slots.capacity(slot.slab)
            places.append(ChunkPlace(slot.slab, slot.index, capacity, chunk.start, chunk.stop))
            tokens += chunk.sequence.prompt[chunk.start : chunk.stop]
            positions += range(chunk.start, chunk.stop)
            if chunk.ends_prompt:
                ends.append((chunk.sequence, len(tokens) - 1))
        attention = PrefillAttention(
            self._decoder.config, self._decoder.kinds, self._cache, places, self._device
        )
        hidden = self._forward(tokens, positions, attention)
        return self._next_tokens(hidden, ends)

    @torch.inference_mode()
    def decode(self, step: DecodeStep) -> list[NextToken]:
        """Run one token of every sequence in the slabs; return the next of each that decodes."""
        slabs: list[SlabRows] = []
        tokens: list[int] = []
        positions: list[int] = []
        ends: list[tuple[Sequence, int]] = []
        for slab, rows in zip(step.slabs, step.rows, strict=True):
            for sequence in rows:
                if sequence.prompt_done:
                    ends.append((sequence, len(tokens)))
                tokens.append(sequence.tokens[-1] if sequence.prompt_done else 0)
                positions.append(sequence.length)
            places = torch.tensor(positions[-len(rows) :], device=self._device)
            slabs.append(SlabRows(slab, self._slots.capacity(slab), places))
        attention = DecodeAttention(self._decoder.config, self._decoder.kinds, self._cache, slabs)
        hidden = self._forward(tokens, positions, attention)
        return self._next_tokens(hidden, ends)

    @torch.inference_mode()
    def move(self, move: Move, length: int) -> None:
        """Carry out a move: the first `length` tokens of a slot go to another."""
        self._cache.move(move, self._slots.capacity(move.source.slab), length)

    def _forward(
        self, tokens: list[int], positions: list[int], attention: Attention
    ) -> torch.Tensor:
        """Return hidden states; T is padded with rows to ignore."""
        padding = [0] * (-len(tokens) % ROW_GRANULE)
        return self._decoder.forward(
            torch.tensor(tokens + padding, device=self._device),
            torch.tensor(positions + padding, device=self._device),
            attention,
        )

    def _next_tokens(
        self, hidden: torch.Tensor, ends: list[tuple[Sequence, int]]
    ) -> list[NextToken]:
        if not ends:
            return []
        rows = [row for _, row in ends] + [0] * (-len(ends) % ROW_GRANULE)
        normed = self._decoder.final_norm(hidden[torch.tensor(rows, device=self._device)])
        head, margin = self._decoder.head, self._confidence == "margin"
        best = best_token(normed, head, self._decoder.exit.temperature, margin)
        tokens = best.token.tolist()
        confidences = (best.probability - best.runner_up if margin else best.probability).tolist()
        sampled = [i for i, (sequence, _) in enumerate(ends) if sequence.sampling.temperature > 0]
        for begin in range(0, len(sampled), SAMPLED_ROWS):
            chosen = sampled[begin : begin + SAMPLED_ROWS]
            sequences = [ends[i][0] for i in chosen]
            uniforms = torch.tensor([s.uniform() for s in sequences], dtype=torch.float64)
            padded = chosen + [0] * (-len(chosen) % ROW_GRANULE)
            row_logits = logits(normed[padded], head)[: len(chosen)]
            drawn = draw(row_logits, sequences[0].sampling, uniforms.to(self._device))
            for i, token in zip(chosen, drawn.tolist(), strict=True):
                tokens[i] = token
        return [
            NextToken(sequence, token, confidence)
            for (sequence, _), token, confidence in zip(ends, tokens, confidences, strict=False)
        ]

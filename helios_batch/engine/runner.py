"""The runner: turns steps into tensors, runs the decoder, and picks the next tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
from helios_batch.engine.states import StateRows, keep, kept
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


class _Piece(NamedTuple):
    """Tokens `start` to `stop - 1` of a sequence that is in the KV cache."""

    sequence: Sequence
    start: int
    stop: int


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
        tokens: list[int] = []
        positions: list[int] = []
        ends: list[tuple[Sequence, int]] = []
        for chunk in step.chunks:
            tokens += chunk.sequence.context[chunk.start : chunk.stop]
            positions += range(chunk.start, chunk.stop)
            if chunk.ends_prompt:
                ends.append((chunk.sequence, len(tokens) - 1))
        places = [self._place(c.sequence, c.start, c.stop) for c in step.chunks]
        attention = self._attention(places)
        hidden = self._forward(tokens, positions, attention, self._chunk_rows(places))
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
        hidden = self._forward(tokens, positions, attention, self._slab_rows(slabs))
        return self._next_tokens(hidden, ends)

    @torch.inference_mode()
    def deepen(
        self, decoder: Decoder, sequences: Iterable[Sequence], chunk_tokens: int, step_tokens: int
    ) -> None:
        """Go on with a deeper decoder of the same model; `sequences` are all that are in the cache.

        Their kept hidden states run through the layers that are new, in one block and in pieces of
        `chunk_tokens`, of which a step holds `step_tokens` tokens: afterwards keys and values are
        those of a run that has been as deep from the start, under the same tokens.
        """
        first, self._decoder = self._decoder.own, decoder
        step: list[_Piece] = []
        for sequence in sequences:
            for start in range(0, sequence.length, chunk_tokens):
                piece = _Piece(sequence, start, min(start + chunk_tokens, sequence.length))
                if sum(p.stop - p.start for p in [*step, piece]) > step_tokens:
                    self._run_kept(step, first)
                    step = []
                # pieces of one sequence look at those before: these have to be done
                if start:
                    self._run_kept(step, first)
                    step = []
                step.append(piece)
        self._run_kept(step, first)

    def _run_kept(self, pieces: list[_Piece], first: int) -> None:
        if not pieces:
            return
        places = [self._place(*piece) for piece in pieces]
        size = self._decoder.config.hidden_size
        hidden = torch.cat(
            [kept(self._cache, p.slab, p.capacity, p.index, p.start, p.stop, size) for p in places]
        )
        positions = [position for p in places for position in range(p.start, p.stop)]
        padding = -len(positions) % ROW_GRANULE
        at = torch.tensor(positions + [0] * padding, device=self._device)
        attention = self._attention(places)
        hidden = torch.cat([hidden, hidden.new_zeros(padding, size)])
        states = self._decoder.states_from(hidden, at, attention, first)
        self._leave(states, first, at, attention, self._chunk_rows(places))

    @torch.inference_mode()
    def move(self, move: Move, length: int) -> None:
        """Carry out a move: the first `length` tokens of a slot go to another."""
        self._cache.move(move, self._slots.capacity(move.source.slab), length)

    def _place(self, sequence: Sequence, start: int, stop: int) -> ChunkPlace:
        slot = sequence.slot
        assert slot is not None, "a sequence that runs holds a slot"
        return ChunkPlace(slot.slab, slot.index, self._slots.capacity(slot.slab), start, stop)

    def _attention(self, places: list[ChunkPlace]) -> PrefillAttention:
        decoder = self._decoder
        return PrefillAttention(decoder.config, decoder.kinds, self._cache, places, self._device)

    def _forward(
        self,
        tokens: list[int],
        positions: list[int],
        attention: Attention,
        rows: Iterable[StateRows],
    ) -> torch.Tensor:
        """Return hidden states; T is padded with rows to ignore. States are kept by `rows`."""
        padding = [0] * (-len(tokens) % ROW_GRANULE)
        at = torch.tensor(positions + padding, device=self._device)
        states = self._decoder.states(
            torch.tensor(tokens + padding, device=self._device), at, attention
        )
        return self._leave(states, 0, at, attention, rows)

    def _leave(
        self,
        states: Iterable[torch.Tensor],
        first: int,
        positions: torch.Tensor,
        attention: Attention,
        rows: Iterable[StateRows],
    ) -> torch.Tensor:
        """Run layers, whose `states` begin after `first`, and the exit; keep what is to be kept."""
        decoder = self._decoder
        wanted = self._cache.keeps_states and decoder.own < decoder.config.num_layers
        for layer, hidden in enumerate(states, start=first):
            if wanted and layer == decoder.own:
                keep(self._cache, list(rows), hidden)
        return decoder.leave(hidden, positions, attention)

    def _chunk_rows(self, places: Iterable[ChunkPlace]) -> Iterator[StateRows]:
        begin = 0
        for place in places:
            count = place.stop - place.start
            at = torch.arange(place.start, place.stop, device=self._device)
            slots, rows = torch.full_like(at, place.index), slice(begin, begin + count)
            yield StateRows(place.slab, place.capacity, rows, slots, at)
            begin += count

    def _slab_rows(self, slabs: Iterable[SlabRows]) -> Iterator[StateRows]:
        begin = 0
        for slab in slabs:
            count = len(slab.positions)
            slots, rows = torch.arange(count, device=self._device), slice(begin, begin + count)
            yield StateRows(slab.slab, slab.capacity, rows, slots, slab.positions)
            begin += count

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

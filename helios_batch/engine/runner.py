"""The runner: runs a step's tokens through the decoder, and picks the next tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from helios_batch.engine.attention import DecodeAttention, PrefillAttention
from helios_batch.engine.batch import ROW_GRANULE, Batch, BatchMaker
from helios_batch.engine.kv_cache import KVCache
from helios_batch.engine.picking import NextToken, draw_tokens, most_likely
from helios_batch.engine.scheduler import DecodeStep, PrefillStep
from helios_batch.engine.sequence import Sequence
from helios_batch.engine.slots import Move, SlotAllocator
from helios_batch.engine.states import StateRows, keep, kept
from helios_batch.models.decoder import Attention, Decoder
from helios_batch.spec import Confidence


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
        self._cache, self._slots = cache, slots
        self._confidence: Confidence = confidence
        self._device = decoder.weights.embedding.device
        self._decoder = decoder
        self._batches = BatchMaker(decoder.config, decoder.kinds, cache, slots, self._device)

    @torch.inference_mode()
    def prefill(self, step: PrefillStep) -> list[NextToken]:
        """Run prompt chunks; return the first token of each sequence whose prompt is done."""
        return self._next_tokens(self._batches.prefill(step))

    @torch.inference_mode()
    def decode(self, step: DecodeStep) -> list[NextToken]:
        """Run one token of every sequence in the slabs; return the next of each that decodes."""
        return self._next_tokens(self._batches.decode(step))

    @torch.inference_mode()
    def deepen(
        self, first: int, sequences: Iterable[Sequence], chunk_tokens: int, step_tokens: int
    ) -> None:
        """Go on where another decoder of the same model was, of which the `first` layers are left.

        `sequences` are all that are in the cache. Their hidden states, kept after these layers, run
        through those that are new, in one block and in pieces of `chunk_tokens`, of which a step
        holds `step_tokens` tokens: afterwards keys and values are those of a run that has been as
        deep from the start, under the same tokens.
        """
        step: list[_Piece] = []
        for sequence in sequences:
            for start in range(0, sequence.length, chunk_tokens):
                piece = _Piece(sequence, start, min(start + chunk_tokens, sequence.length))
                # pieces of one sequence look at those before: these have to be done
                if start or sum(p.stop - p.start for p in [*step, piece]) > step_tokens:
                    self._run_kept(step, first)
                    step = []
                step.append(piece)
        self._run_kept(step, first)

    @torch.inference_mode()
    def move(self, move: Move, length: int) -> None:
        """Carry out a move: the first `length` tokens of a slot go to another."""
        self._cache.move(move, self._slots.capacity(move.source.slab), length)

    def _run_kept(self, pieces: list[_Piece], first: int) -> None:
        if not pieces:
            return
        places = [self._batches.place(*piece) for piece in pieces]
        size = self._decoder.config.hidden_size
        hidden = torch.cat(
            [kept(self._cache, p.slab, p.capacity, p.index, p.start, p.stop, size) for p in places]
        )
        padding = -len(hidden) % ROW_GRANULE
        positions = [position for p in places for position in range(p.start, p.stop)]
        at = torch.tensor(positions + [0] * padding, device=self._device)
        hidden = torch.cat([hidden, hidden.new_zeros(padding, size)])
        attention = self._batches.attention(places)
        states = self._decoder.states_from(hidden, at, attention, first)
        self._leave(states, first, at, attention, self._batches.chunk_rows(places))

    def _leave(
        self,
        states: Iterable[torch.Tensor],
        first: int,
        positions: torch.Tensor,
        attention: Attention,
        rows: list[StateRows],
    ) -> torch.Tensor:
        """Run layers, whose `states` begin after `first`, and the exit; keep what is to be kept."""
        decoder = self._decoder
        wanted = self._cache.keeps_states and decoder.own < decoder.config.num_layers
        for layer, hidden in enumerate(states, start=first):
            if wanted and layer == decoder.own:
                keep(self._cache, rows, hidden)
        return decoder.leave(hidden, positions, attention)

    def _next_tokens(
        self, batch: Batch[PrefillAttention] | Batch[DecodeAttention]
    ) -> list[NextToken]:
        states = self._decoder.states(batch.tokens, batch.positions, batch.attention)
        hidden = self._leave(states, 0, batch.positions, batch.attention, batch.rows)
        if not batch.ends:
            return []
        sequences = [sequence for sequence, _ in batch.ends]
        rows = [row for _, row in batch.ends]
        picked = most_likely(self._decoder, hidden, rows, self._confidence)
        draw_tokens(self._decoder, picked, dict(enumerate(sequences)))
        layer = self._decoder.depth
        found = zip(sequences, picked.tokens, picked.confidences, strict=True)
        return [NextToken(sequence, token, layer, sure) for sequence, token, sure in found]

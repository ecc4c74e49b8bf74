"""A step of the scheduler as tensors: which tokens run, where they stand, what they attend to."""

from __future__ import annotations

from collections.abc import Sequence as Several
from typing import Generic, NamedTuple, TypeVar

import torch

from helios_batch.engine.attention import ChunkPlace, DecodeAttention, PrefillAttention, SlabRows
from helios_batch.engine.kv_cache import KVCache
from helios_batch.engine.scheduler import DecodeStep, PrefillStep
from helios_batch.engine.sequence import Sequence
from helios_batch.engine.slots import SlotAllocator
from helios_batch.engine.states import StateRows
from helios_batch.models.config import DecoderConfig, LayerKind

ROW_GRANULE = 16
"""Rows are padded to multiples of this many, so that none falls into the remainder that CPU
libraries treat apart, with other rounding: a row must not depend on its place in the batch."""

A = TypeVar("A", PrefillAttention, DecodeAttention)


class Batch(NamedTuple, Generic[A]):
    """Tokens and their positions, each [T] int64, the last ones being padding.

    `ends` are the sequences that get a new token, each with its row in T. `rows` says where hidden
    states of the tokens are kept, if the cache keeps any.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    ends: list[tuple[Sequence, int]]
    attention: A
    rows: list[StateRows]


class BatchMaker:
    """Makes batches of layers of `kinds`, whose keys and values lie in `cache` as `slots` says."""

    def __init__(
        self,
        config: DecoderConfig,
        kinds: Several[LayerKind],
        cache: KVCache,
        slots: SlotAllocator,
        device: torch.device,
    ) -> None:
        self._config, self._kinds = config, kinds
        self._cache, self._slots, self._device = cache, slots, device

    def prefill(self, step: PrefillStep) -> Batch[PrefillAttention]:
        """Return the step's prompt chunks; those sequences end whose prompts do."""
        places: list[ChunkPlace] = []
        tokens: list[int] = []
        positions: list[int] = []
        ends: list[tuple[Sequence, int]] = []
        for chunk in step.chunks:
            places.append(self.place(chunk.sequence, chunk.start, chunk.stop))
            tokens += chunk.sequence.context[chunk.start : chunk.stop]
            positions += range(chunk.start, chunk.stop)
            if chunk.ends_prompt:
                ends.append((chunk.sequence, len(tokens) - 1))
        found = self._padded(tokens), self._padded(positions), ends
        return Batch(*found, self.attention(places), self.chunk_rows(places))

    def decode(self, step: DecodeStep) -> Batch[DecodeAttention]:
        """Return one token of every sequence in the slabs; those end that decode."""
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
        attention = DecodeAttention(self._config, self._kinds, self._cache, slabs)
        found = self._padded(tokens), self._padded(positions), ends
        return Batch(*found, attention, self._slab_rows(slabs))

    def place(self, sequence: Sequence, start: int, stop: int) -> ChunkPlace:
        """Return where tokens `start` to `stop - 1` of a sequence lie in the cache."""
        slot = sequence.slot
        assert slot is not None, "a scheduled sequence holds a slot"
        return ChunkPlace(slot.slab, slot.index, self._slots.capacity(slot.slab), start, stop)

    def attention(self, places: Several[ChunkPlace]) -> PrefillAttention:
        """Return the attention of chunks that stand one after the other."""
        return PrefillAttention(self._config, self._kinds, self._cache, places, self._device)

    def chunk_rows(self, places: Several[ChunkPlace]) -> list[StateRows]:
        """Return where the hidden states of chunks are kept."""
        if not self._cache.keeps_states:
            return []
        found, begin = [], 0
        for place in places:
            at = torch.arange(place.start, place.stop, device=self._device)
            slots, rows = torch.full_like(at, place.index), slice(begin, begin + len(at))
            found.append(StateRows(place.slab, place.capacity, rows, slots, at))
            begin += len(at)
        return found

    def _slab_rows(self, slabs: Several[SlabRows]) -> list[StateRows]:
        if not self._cache.keeps_states:
            return []
        found, begin = [], 0
        for slab in slabs:
            count = len(slab.positions)
            slots, rows = torch.arange(count, device=self._device), slice(begin, begin + count)
            found.append(StateRows(slab.slab, slab.capacity, rows, slots, slab.positions))
            begin += count
        return found

    def _padded(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(padded(values), device=self._device)


def padded(values: list[int]) -> list[int]:
    """Fill up with zeros, to rows that are ignored."""
    return values + [0] * (-len(values) % ROW_GRANULE)

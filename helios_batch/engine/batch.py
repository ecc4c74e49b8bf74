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
from helios_batch.models.config import DecoderConfig, LayerKind

ROW_GRANULE = 16
"""Rows are padded to multiples of this many, so that none falls into the remainder that CPU
libraries treat apart, with other rounding: a row must not depend on its place in the batch."""

A = TypeVar("A", PrefillAttention, DecodeAttention)


class Batch(NamedTuple, Generic[A]):
    """Tokens and their positions, each [T] int64, the last ones being padding.

    `ends` are the sequences that get a new token, each with its row in T.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    ends: list[tuple[Sequence, int]]
    attention: A


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
            slot = chunk.sequence.slot
            assert slot is not None, "a scheduled sequence holds a slot"
            capacity = self._slots.capacity(slot.slab)
            places.append(ChunkPlace(slot.slab, slot.index, capacity, chunk.start, chunk.stop))
            tokens += chunk.sequence.prompt[chunk.start : chunk.stop]
            positions += range(chunk.start, chunk.stop)
            if chunk.ends_prompt:
                ends.append((chunk.sequence, len(tokens) - 1))
        attention = PrefillAttention(self._config, self._kinds, self._cache, places, self._device)
        return Batch(self._padded(tokens), self._padded(positions), ends, attention)

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
        return Batch(self._padded(tokens), self._padded(positions), ends, attention)

    def _padded(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(padded(values), device=self._device)


def padded(values: list[int]) -> list[int]:
    """Fill up with zeros, to rows that are ignored."""
    return values + [0] * (-len(values) % ROW_GRANULE)

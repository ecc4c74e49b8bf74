"""Attention over the slots of the KV cache, for one prefill or decode step.

Both are arranged so that a row's result does not depend on the rows beside it: a decode row is its
own matrix in a batched product whose length is rounded to the granule, and a prefill chunk is
attended on its own. This holds bit for bit on a CPU for models whose heads have more than 128
elements in all; smaller (toy) ones fall under a size at which torch changes its kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from helios_batch.engine.kv_cache import KVCache
from helios_batch.engine.slots import GRANULE
from helios_batch.models.config import DecoderConfig, LayerKind

_SUM_BLOCK = 128


@dataclass(frozen=True, slots=True)
class ChunkPlace:
    """A prefill chunk: its slot, the slot's capacity, and its positions [start, stop)."""

    slab: int
    index: int
    capacity: int
    start: int
    stop: int


class SlabRows(NamedTuple):
    """Decode rows of one slab: positions [n] of the tokens in slots 0 to n - 1."""

    slab: int
    capacity: int
    positions: torch.Tensor


class PrefillAttention:
    """Causal attention of prompt chunks; the chunks' tokens stand one after the other in T."""

    def __init__(
        self,
        config: DecoderConfig,
        kinds: Sequence[LayerKind],
        cache: KVCache,
        chunks: Sequence[ChunkPlace],
        device: torch.device,
    ) -> None:
        self._config = config
        self._windows = [kind.window for kind in kinds]
        self._cache = cache
        self._chunks = chunks
        self._masks = [
            {window: _chunk_mask(chunk, window, device) for window in set(self._windows)}
            for chunk in chunks
        ]

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Store the chunks' keys and values and attend; see `models.decoder.Attention`."""
        config = self._config
        window = self._windows[layer]
        heads, dim = config.num_kv_heads, config.head_dim
        result = torch.zeros_like(query)
        token = 0
        for chunk, masks in zip(self._chunks, self._masks, strict=True):
            count = chunk.stop - chunk.start
            rows = slice(token, token + count)
            keys, values = self._cache.slots(layer, chunk.slab, chunk.capacity)
            slot_keys, slot_values = keys[chunk.index], values[chunk.index]
            slot_keys[:, chunk.start : chunk.stop] = key[rows].transpose(0, 1)
            slot_values[:, chunk.start : chunk.stop] = value[rows].transpose(0, 1)
            # [num_kv_heads, group, count, head_dim]; keys are broadcast over the group
            grouped = query[rows].view(count, heads, -1, dim).permute(1, 2, 0, 3)
            shape = (heads, grouped.shape[1], chunk.stop, dim)
            mixed = F.scaled_dot_product_attention(
                grouped,
                slot_keys[:, None, : chunk.stop].expand(shape),
                slot_values[:, None, : chunk.stop].expand(shape),
                attn_mask=masks[window],
                is_causal=masks[window] is None,
                scale=config.attention_scale,
            )
            result[rows] = mixed.permute(2, 0, 1, 3).reshape(count, -1, dim)
            token += count
        return result


class DecodeAttention:
    """Attention of one new token per slot; rows of all slabs stand one after the other in T."""

    def __init__(
        self,
        config: DecoderConfig,
        kinds: Sequence[LayerKind],
        cache: KVCache,
        slabs: Sequence[SlabRows],
    ) -> None:
        self._config = config
        self._windows = [kind.window for kind in kinds]
        self._cache = cache
        self._slabs = [(slab, _Span.of(slab)) for slab in slabs]
        self._biases = [
            {
                window: _decode_bias(slab.positions, span.length, window)
                for window in set(self._windows)
            }
            for slab, span in self._slabs
        ]

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Store the tokens' keys and values and attend; see `models.decoder.Attention`."""
        config = self._config
        heads, dim = config.num_kv_heads, config.head_dim
        group = config.num_heads // heads
        self.store(layer, key, value)
        result = torch.zeros_like(query)
        first = 0
        for (slab, span), biases in zip(self._slabs, self._biases, strict=True):
            count = len(slab.positions)
            rows = slice(first, first + count)
            keys, values = self._cache.slots(layer, slab.slab, slab.capacity)
            flat = (count * heads, slab.capacity, dim)
            seen_keys = keys[:count].view(flat)[:, : span.length]
            seen_values = values[:count].view(flat)[:, : span.length]
            grouped = query[rows].reshape(count * heads, group, dim)
            scores = torch.bmm(grouped, seen_keys.transpose(1, 2)).float()
            scores = scores.view(count, heads, group, span.length).mul_(config.attention_scale)
            scores += biases[self._windows[layer]]
            weights = scores.softmax(dim=-1).to(query.dtype)
            mixed = _weigh(weights.view(count * heads, group, span.length), seen_values)
            result[rows] = mixed.view(count, -1, dim)
            first += count
        return result

    def store(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store the tokens' keys and values of a layer that does not run.

        Args:
            layer: index of the layer, as when it is called.
            key: [T, num_kv_heads, head_dim], rotated.
            value: [T, num_kv_heads, head_dim].
        """
        first = 0
        for slab, span in self._slabs:
            rows = slice(first, first + len(slab.positions))
            keys, values = self._cache.slots(layer, slab.slab, slab.capacity)
            keys[span.slots, :, slab.positions] = key[rows]
            values[span.slots, :, slab.positions] = value[rows]
            first += len(slab.positions)


def _weigh(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return weights [N, group, length] times values [N, length, head_dim].

    CPU libraries split long float32 sums at places that depend on the length, which depends on the
    batch; fixed blocks leave them nothing to split. Masked tokens add exact zeros.
    """
    if weights.dtype != torch.float32:
        return torch.bmm(weights, values)
    result = torch.bmm(weights[..., :_SUM_BLOCK], values[:, :_SUM_BLOCK])
    for begin in range(_SUM_BLOCK, weights.shape[-1], _SUM_BLOCK):
        block = slice(begin, begin + _SUM_BLOCK)
        result += torch.bmm(weights[..., block], values[:, block])
    return result


class _Span(NamedTuple):
    """Slot indices [n] of a slab's rows, and how many tokens of a slot they attend to."""

    slots: torch.Tensor
    length: int

    @classmethod
    def of(cls, slab: SlabRows) -> _Span:
        slots = torch.arange(len(slab.positions), device=slab.positions.device)
        longest = int(slab.positions.max()) + 1
        return cls(slots, -(-longest // GRANULE) * GRANULE)


def _chunk_mask(chunk: ChunkPlace, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Return [count, stop], true where a token may look, or None if plain causal is the same."""
    windowed = window is not None and chunk.stop > window
    if chunk.start == 0 and not windowed:
        return None
    query = torch.arange(chunk.start, chunk.stop, device=device)[:, None]
    key = torch.arange(chunk.stop, device=device)[None, :]
    mask = key <= query
    if window is not None:
        mask &= key > query - window
    return mask


def _decode_bias(positions: torch.Tensor, length: int, window: int | None) -> torch.Tensor:
    """Return [n, 1, 1, length] float32: 0 where a row may look, -inf elsewhere."""
    key = torch.arange(length, device=positions.device)
    hidden = key > positions[:, None]
    if window is not None:
        hidden |= key <= positions[:, None] - window
    bias = torch.zeros(hidden.shape, device=positions.device).masked_fill_(hidden, float("-inf"))
    return bias[:, None, None, :]

"""Hidden states kept beside the KV cache: from them deeper layers can be run later."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from helios_batch.engine.kv_cache import KVCache


@dataclass(frozen=True, slots=True)
class StateRows:
    """Rows of a step and where they are kept: row i in slot `slots[i]` at `positions[i]`."""

    slab: int
    capacity: int
    rows: slice
    slots: torch.Tensor
    positions: torch.Tensor


def keep(cache: KVCache, places: list[StateRows], hidden: torch.Tensor) -> None:
    """Write hidden states [T, hidden_size] of a step."""
    for place in places:
        begin = 0
        for piece in cache.states(place.slab, place.capacity):
            part = hidden[place.rows, begin : begin + piece.shape[-1]]
            piece[place.slots, place.positions, : part.shape[-1]] = part
            begin += piece.shape[-1]


def kept(
    cache: KVCache, slab: int, capacity: int, slot: int, start: int, stop: int, size: int
) -> torch.Tensor:
    """Return the hidden states [stop - start, size] of a slot's tokens `start` to `stop - 1`."""
    pieces = [piece[slot, start:stop] for piece in cache.states(slab, capacity)]
    return torch.cat(pieces, dim=-1)[:, :size]

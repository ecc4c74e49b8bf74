"""Places in the KV cache: which sequence holds which slot (no torch).

The cache is cut into slabs of equal size. A slab in use holds slots of one capacity, dense from
slot 0 up, so that attention reads a slab as one regular block without gathering. When a sequence
leaves, the last one of its slab moves into the gap. A sequence gets room for all the tokens it can
come to, so nothing is ever evicted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

GRANULE = 32
"""Capacities are multiples of this many tokens."""
_SLABS_WANTED = 16
_LARGEST_SLAB = 16384


def capacity_class(tokens: int) -> int:
    """Return the capacity of a slot for `tokens` tokens: at most an eighth or a granule more."""
    step = max(GRANULE, 1 << max(0, tokens.bit_length() - 4))
    return -(-tokens // step) * step


def choose_slab(tokens: int, longest: int) -> int:
    """Return the tokens of a slab: large enough for the longest sequence, and few slabs in all.

    `tokens` are those of the whole cache.
    """
    wanted = min(max(tokens // _SLABS_WANTED, capacity_class(longest)), _LARGEST_SLAB)
    return min(max(wanted, capacity_class(longest)), tokens)


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one sequence."""

    slab: int
    index: int


class Move(NamedTuple):
    """The sequence `owner` goes from slot `source` to slot `target` of the same slab."""

    owner: int
    source: Slot
    target: Slot


@dataclass(slots=True)
class _Slab:
    capacity: int = 0
    owners: list[int] = field(default_factory=list)


class SlotAllocator:
    """Hands out slots of a cache of `num_slabs` slabs of `slab_tokens` tokens each."""

    def __init__(self, num_slabs: int, slab_tokens: int) -> None:
        self.slab_tokens = slab_tokens
        self._slabs = [_Slab() for _ in range(num_slabs)]

    def allocate(self, owner: int, tokens: int) -> Slot | None:
        """Return a slot for `tokens` tokens, or None while none is free.

        Raises:
            ValueError: no slot can ever hold so many tokens.
        """
        capacity = capacity_class(tokens)
        if capacity > self.slab_tokens:
            raise ValueError(f"{tokens} tokens don't fit a slab of {self.slab_tokens}")
        chosen = self._choose(capacity)
        if chosen is None:
            return None
        slab = self._slabs[chosen]
        if not slab.owners:
            slab.capacity = capacity
        slab.owners.append(owner)
        return Slot(chosen, len(slab.owners) - 1)

    def free(self, slot: Slot) -> Move | None:
        """Give a slot back; return the move that closes the gap, if there is one to close."""
        owners = self._slabs[slot.slab].owners
        last = owners.pop()
        if slot.index == len(owners):
            return None
        owners[slot.index] = last
        return Move(last, Slot(slot.slab, len(owners)), slot)

    def resize(self, num_slabs: int) -> list[int]:
        """Have so many slabs from now on; return the owners of slots in those that are gone."""
        gone = [owner for slab in self._slabs[num_slabs:] for owner in slab.owners]
        self._slabs[num_slabs:] = [_Slab() for _ in range(num_slabs - len(self._slabs))]
        return gone

    def capacity(self, slab: int) -> int:
        """Return the capacity in tokens of each slot of a slab."""
        return self._slabs[slab].capacity

    def owners(self, slab: int) -> tuple[int, ...]:
        """Return who holds the slots of a slab, from slot 0 up."""
        return tuple(self._slabs[slab].owners)

    @property
    def slabs_in_use(self) -> list[int]:
        """Slabs that hold at least one sequence."""
        return [index for index, slab in enumerate(self._slabs) if slab.owners]

    def _choose(self, capacity: int) -> int | None:
        """Prefer a slab of this capacity, then an empty one, then the tightest larger one."""
        best: tuple[int, int] | None = None
        for index, slab in enumerate(self._slabs):
            if not slab.owners:
                rank = 1
            elif slab.capacity < capacity or not self._has_room(slab):
                continue
            else:
                rank = 0 if slab.capacity == capacity else 1 + slab.capacity
            if best is None or (rank, index) < best:
                best = (rank, index)
        return None if best is None else best[1]

    def _has_room(self, slab: _Slab) -> bool:
        return (len(slab.owners) + 1) * slab.capacity <= self.slab_tokens

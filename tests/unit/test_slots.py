"""The slot allocator, against a model of who lies where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_batch.engine.slots import GRANULE, Slot, SlotAllocator, capacity_class


@given(st.integers(1, 200_000))
def test_capacity_is_enough_and_not_wasteful(tokens: int) -> None:
    """A slot holds its tokens, and is an eighth or a granule too large at the most."""
    capacity = capacity_class(tokens)
    assert tokens <= capacity < tokens + max(GRANULE, tokens // 8 + 1)
    assert capacity % GRANULE == 0
    assert capacity_class(capacity) == capacity


@given(
    slabs=st.integers(1, 5),
    slab_granules=st.integers(1, 40),
    actions=st.lists(st.integers(-20, 2000), max_size=80),
)
def test_slots_never_overlap_and_stay_dense(
    slabs: int, slab_granules: int, actions: list[int]
) -> None:
    """Whatever comes and goes, each owner has one slot of its own, and no slab has a gap."""
    slab_tokens = slab_granules * GRANULE
    allocator = SlotAllocator(slabs, slab_tokens)
    held: dict[int, tuple[Slot, int]] = {}
    for owner, action in enumerate(actions):
        if action > 0:
            if capacity_class(action) > slab_tokens:
                with pytest.raises(ValueError, match="don't fit"):
                    allocator.allocate(owner, action)
                continue
            slot = allocator.allocate(owner, action)
            if slot is not None:
                held[owner] = (slot, action)
        elif held:
            leaving = sorted(held)[-action % len(held)]
            move = allocator.free(held.pop(leaving)[0])
            if move is not None:
                slot, tokens = held[move.owner]
                assert slot == move.source
                held[move.owner] = (move.target, tokens)
        for slab in range(slabs):
            owners = allocator.owners(slab)
            assert len(owners) * allocator.capacity(slab) <= slab_tokens
            assert [held[o][0] for o in owners] == [Slot(slab, i) for i in range(len(owners))]
        assert sum(len(allocator.owners(s)) for s in range(slabs)) == len(held)
        for slot, tokens in held.values():
            assert tokens <= allocator.capacity(slot.slab)


@given(st.lists(st.integers(1, 640), min_size=1, max_size=60))
def test_an_empty_cache_takes_anything_that_fits(requests: list[int]) -> None:
    """Refusals are only for want of room: with all slots free, the next request gets one."""
    allocator = SlotAllocator(2, 640)
    for owner, tokens in enumerate(requests):
        slot = allocator.allocate(owner, tokens)
        if slot is None:
            for slab in allocator.slabs_in_use:
                for index in reversed(range(len(allocator.owners(slab)))):
                    allocator.free(Slot(slab, index))
            assert allocator.allocate(owner, tokens) is not None

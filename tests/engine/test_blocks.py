"""The pool of blocks, against a model of what each block holds."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from helios_batch.engine.blocks import BlockPool


@given(first=st.integers(1, 80), used=st.integers(0, 80), count=st.integers(0, 120))
def test_a_pool_comes_to_the_size_that_is_asked_for(first: int, used: int, count: int) -> None:
    """Shrunk and grown, it has no block too many, and those in use hold what they held."""
    pool = BlockPool(4, first, torch.float32, torch.device("cpu"))
    taken = [pool.take() for _ in range(min(used, first, count))]
    for number, block in enumerate(taken):
        pool.view(block).fill_(number)
    moved = pool.shrink(count)
    pool.grow(count)
    chunk = max(1, first // 16)
    assert count <= pool.size < count + chunk
    if len(taken) <= count - chunk:
        assert pool.size == count
    now = [moved.get(block, block) for block in taken]
    assert len(set(now)) == len(taken)
    assert [float(pool.view(block)[0]) for block in now] == list(map(float, range(len(taken))))

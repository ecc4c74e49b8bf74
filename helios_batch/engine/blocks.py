"""A pool of equal blocks, allocated in chunks that can be given back one by one."""

from __future__ import annotations

from typing import NamedTuple

import torch

from helios_batch.models.pages import zero_pages

_CHUNKS = 16


class Block(NamedTuple):
    """The name of a block."""

    chunk: int
    place: int


class BlockPool:
    """Hands out blocks of `elements` elements.

    A chunk holds a sixteenth of the blocks first asked for, or one. On a CPU its pages become
    resident as they are first written.
    """

    def __init__(self, elements: int, count: int, dtype: torch.dtype, device: torch.device) -> None:
        self._elements, self._dtype, self._device = elements, dtype, device
        self._per_chunk = max(1, count // _CHUNKS)
        self._chunks: dict[int, torch.Tensor] = {}
        self._free: list[Block] = []
        self._next_chunk = 0
        self.grow(count)

    @property
    def size(self) -> int:
        """Blocks in use and free."""
        return sum(map(len, self._chunks.values()))

    def grow(self, count: int) -> None:
        """Allocate chunks until there are `count` blocks."""
        while (missing := count - self.size) > 0:
            # zeros: garbage in unused places would turn masked-out products into NaN
            shape = (min(self._per_chunk, missing), self._elements)
            chunk, self._next_chunk = self._next_chunk, self._next_chunk + 1
            self._chunks[chunk] = zero_pages(shape, self._dtype, self._device)
            self._free += [Block(chunk, place) for place in reversed(range(shape[0]))]

    def take(self) -> Block:
        """Return the name of a free block; what it holds is finite.

        Raises:
            IndexError: none is free.
        """
        return self._free.pop()

    def give(self, block: Block) -> None:
        """Take a block back."""
        self._free.append(block)

    def view(self, block: Block) -> torch.Tensor:
        """Return a block [elements]."""
        chunk, place = block
        return self._chunks[chunk][place]

    def shrink(self, count: int) -> dict[Block, Block]:
        """Give chunks back until no more than `count` blocks are left, or the rest is in use.

        Blocks that are in use are copied out of a chunk that goes. Returns where they are now. As
        whole chunks go, fewer may be left: `grow` brings the rest back.
        """
        moved: dict[Block, Block] = {}
        used = self.size - len(self._free)
        while self.size > count:
            chunk = max(self._chunks, key=lambda chunk: len(self._free_of(chunk)))
            gone, size = set(self._free_of(chunk)), len(self._chunks[chunk])
            if self.size - size < used:
                break
            self._free = [block for block in self._free if block not in gone]
            for place in range(size):
                if (chunk, place) not in gone:
                    target = self.take()
                    self.view(target).copy_(self.view(Block(chunk, place)))
                    moved[Block(chunk, place)] = target
            del self._chunks[chunk]
        return {source: _last(source, moved) for source in moved}

    def _free_of(self, chunk: int) -> list[Block]:
        return [block for block in self._free if block[0] == chunk]


def _last(block: Block, moved: dict[Block, Block]) -> Block:
    """Follow a block that was moved more than once."""
    while block in moved:
        block = moved[block]
    return block

"""KV storage: slabs of slots, each made of one block per layer for keys and one for values."""

from __future__ import annotations

import torch

from helios_batch.engine.blocks import Block, BlockPool
from helios_batch.engine.slots import Move
from helios_batch.models.config import DecoderConfig


class KVCache:
    """Keys and values of `layers` layers for `tokens` tokens in all.

    The memory is allocated once and cut into slabs by `arrange`. `reserve` and `extend` give it to
    more or fewer layers while sequences are in it. With `states`, it keeps for each token a hidden
    state too, from which deeper layers can be run later.
    """

    def __init__(
        self,
        config: DecoderConfig,
        layers: int,
        tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        states: bool = False,
    ) -> None:
        self.layers, self.tokens = layers, tokens
        self._heads, self._dim = config.num_kv_heads, config.head_dim
        self._dtype, self._device = dtype, device
        self._hidden = config.hidden_size if states else 0
        self.slab_tokens = 0
        self._pool: BlockPool | None = None
        self._slabs: list[_Slab] = []
        self._views: dict[tuple[int, int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def keeps_states(self) -> bool:
        """Whether hidden states are kept."""
        return self._hidden > 0

    @property
    def _state_blocks(self) -> int:
        """Blocks of a slab that hold hidden states, each a piece of their width."""
        return -(-self._hidden // (self._heads * self._dim))

    def arrange(self, slab_tokens: int) -> int:
        """Cut the empty cache into slabs of `slab_tokens`; return how many there are."""
        slabs = self.tokens // slab_tokens
        if slab_tokens != self.slab_tokens or len(self._slabs) != slabs:
            self._slabs, self._pool, self._views = (
                [],
                None,
                {},
            )  # the old memory goes before the new comes
            self.slab_tokens = slab_tokens
            elements = slab_tokens * self._heads * self._dim
            count = slabs * (2 * self.layers + self._state_blocks)
            self._pool = BlockPool(elements, count, self._dtype, self._device)
            self._fill(slabs)
        return slabs

    def reserve(self, layers: int, tokens: int) -> int:
        """Make room for a plan of `layers` and `tokens`; return how many slabs stay.

        Slabs from that number on are lost, and memory beyond the plan is given back. The layers
        that are stored now stay as they are, until `extend`.
        """
        self.tokens = tokens
        self._views.clear()
        slabs = tokens // self.slab_tokens
        for slab in self._slabs[slabs:]:
            self._give(slab.keys + slab.values + slab.states)
        del self._slabs[slabs:]
        self._fit(slabs * (2 * layers + self._state_blocks))
        return slabs

    def extend(self, layers: int, tokens: int) -> int:
        """Store `layers` layers from now on, for `tokens` tokens in all; return how many slabs.

        What is stored of the first layers stays; keys and values of new ones are to be written
        before they are read.
        """
        self._views.clear()
        self.layers, self.tokens = layers, tokens
        for slab in self._slabs:
            self._give(slab.keys[layers:] + slab.values[layers:])
            del slab.keys[layers:], slab.values[layers:]
        slabs = self.tokens // self.slab_tokens
        self._fit(slabs * (2 * layers + self._state_blocks))
        self._fill(slabs)
        return slabs

    def slots(self, layer: int, slab: int, capacity: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of a slab, each [slots, num_kv_heads, capacity, head_dim]."""
        place = (layer, slab, capacity)
        if place not in self._views:
            found, shape = self._slabs[slab], (-1, self._heads, capacity, self._dim)
            keys, values = found.keys[layer], found.values[layer]
            self._views[place] = self._view(keys, shape), self._view(values, shape)
        return self._views[place]

    def states(self, slab: int, capacity: int) -> list[torch.Tensor]:
        """Return the hidden states of a slab in pieces of their width, [slots, capacity, piece]."""
        shape = (-1, capacity, self._heads * self._dim)
        return [self._view(block, shape) for block in self._slabs[slab].states]

    def move(self, move: Move, capacity: int, length: int) -> None:
        """Copy the first `length` tokens of a slot to another of the same slab."""
        source, target, slab = move.source.index, move.target.index, move.source.slab
        for layer in range(self.layers):
            for store in self.slots(layer, slab, capacity):
                store[target, :, :length] = store[source, :, :length]
        for piece in self.states(slab, capacity):
            piece[target, :length] = piece[source, :length]

    def _view(self, block: Block, shape: tuple[int, ...]) -> torch.Tensor:
        assert self._pool is not None, "the cache is arranged before it is used"
        store = self._pool.view(block)
        slot = -torch.Size(shape).numel()
        return store[: len(store) // slot * slot].view(shape)

    def _fill(self, slabs: int) -> None:
        """Bring `slabs` slabs to the layers and states that are to be stored."""
        assert self._pool is not None, "the cache is arranged before it is filled"
        self._slabs += [_Slab() for _ in range(slabs - len(self._slabs))]
        for slab in self._slabs:
            wanted = (self.layers, self.layers, self._state_blocks)
            for blocks, count in zip((slab.keys, slab.values, slab.states), wanted, strict=True):
                blocks += [self._pool.take() for _ in range(count - len(blocks))]

    def _give(self, blocks: list[Block]) -> None:
        assert self._pool is not None, "the cache is arranged before it is changed"
        for block in blocks:
            self._pool.give(block)

    def _fit(self, blocks: int) -> None:
        """Bring the pool to the size of so many blocks."""
        assert self._pool is not None, "the cache is arranged before it is changed"
        moved = self._pool.shrink(blocks)
        for slab in self._slabs:
            for named in (slab.keys, slab.values, slab.states):
                named[:] = [moved.get(block, block) for block in named]
        self._pool.grow(blocks)


class _Slab:
    """The blocks of a slab: keys and values by layer, and pieces of the hidden states."""

    def __init__(self) -> None:
        self.keys: list[Block] = []
        self.values: list[Block] = []
        self.states: list[Block] = []

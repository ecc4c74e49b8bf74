"""KV storage: one preallocated arena per layer, seen as slabs of slots."""

from __future__ import annotations

import torch

from helios_batch.engine.slots import Move
from helios_batch.models.config import DecoderConfig
from helios_batch.models.pages import zero_pages


class KVCache:
    """Keys and values of `layers` layers for `tokens` tokens in all.

    The arena is allocated once; `arrange` cuts it into slabs anew while it is empty. On a CPU its
    pages become resident as they are first written. Slots are [num_kv_heads, capacity, head_dim].
    """

    def __init__(
        self,
        config: DecoderConfig,
        layers: int,
        tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.tokens = tokens
        self._heads, self._dim = config.num_kv_heads, config.head_dim
        # zeros: garbage in unused places would turn masked-out products into NaN
        shape = (tokens * self._heads * self._dim,)
        self._keys = [zero_pages(shape, dtype, device) for _ in range(layers)]
        self._values = [zero_pages(shape, dtype, device) for _ in range(layers)]
        self._slab_elements = 0
        self._capacities: dict[int, int] = {}

    def arrange(self, slab_tokens: int) -> int:
        """Cut the arena into slabs of `slab_tokens`; return how many there are."""
        self._slab_elements = slab_tokens * self._heads * self._dim
        return self.tokens // slab_tokens

    def slots(self, layer: int, slab: int, capacity: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of a slab, each [slots, num_kv_heads, capacity, head_dim]."""
        slot_elements = capacity * self._heads * self._dim
        count = self._slab_elements // slot_elements
        begin = slab * self._slab_elements
        shape = (count, self._heads, capacity, self._dim)
        keys = self._keys[layer][begin : begin + count * slot_elements].view(shape)
        values = self._values[layer][begin : begin + count * slot_elements].view(shape)
        return keys, values

    def move(self, move: Move, capacity: int, length: int) -> None:
        """Copy the first `length` tokens of a slot to another of the same slab."""
        for layer in range(len(self._keys)):
            for store in self.slots(layer, move.source.slab, capacity):
                store[move.target.index, :, :length] = store[move.source.index, :, :length]

"""Attention over tapes: a choice's tokens see the prefix and their own earlier tokens only."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from helios_batch.engine.attention import ChunkPlace, PrefillAttention
from helios_batch.engine.kv_cache import KVCache
from helios_batch.engine.tape import TapeChunk, TapeStep
from helios_batch.models.config import DecoderConfig, LayerKind


class BranchAttention(PrefillAttention):
    """Prefill attention whose masks tell the choices apart.

    The tapes' slots lie in slab 0 of the cache.
    """

    def __init__(
        self,
        config: DecoderConfig,
        kinds: Sequence[LayerKind],
        cache: KVCache,
        step: TapeStep,
        device: torch.device,
    ) -> None:
        places = [
            ChunkPlace(0, chunk.slot, step.capacity, chunk.start, chunk.stop)
            for chunk in step.chunks
        ]
        super().__init__(config, kinds, cache, places, device)
        for chunk, masks in zip(step.chunks, self._masks, strict=True):
            if chunk.has_branches:
                for window in masks:
                    masks[window] = _branch_mask(chunk, window, device)


def _branch_mask(chunk: TapeChunk, window: int | None, device: torch.device) -> torch.Tensor:
    """Return [count, stop], true where a token may look."""
    positions = torch.tensor(chunk.tape.positions[: chunk.stop], device=device)
    branches = torch.tensor(chunk.tape.branches[: chunk.stop], device=device)
    rows = slice(chunk.start, chunk.stop)
    mask = (branches == branches[rows, None]) | (branches == 0)
    # among the prefix and one branch, the order of positions is that of the tape
    mask &= positions <= positions[rows, None]
    if window is not None:
        mask &= positions > positions[rows, None] - window
    return mask

"""Memory for weights and KV cache: pages of their own, that go back when they are let go."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch


def zero_pages(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return zeros of `shape`.

    On a CPU they lie in anonymous pages that become resident as they are first written and return
    to the system with the tensor. The allocator's heap does neither: `torch.zeros` writes all of
    it at once, and what is freed between other blocks stays resident.
    """
    if device.type != "cpu":
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    elements = math.prod(shape)
    pages = mmap.mmap(-1, max(1, elements) * dtype.itemsize)
    return torch.frombuffer(pages, dtype=dtype)[:elements].view(tuple(shape))

"""The output head, streamed over the vocabulary: argmax and its probability, no stored logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from helios_batch.engine.memory import HEAD_TILE


class Best(NamedTuple):
    """The most likely token of each row [R] int64, and its probability [R] float32."""

    token: torch.Tensor
    probability: torch.Tensor


def best_token(hidden: torch.Tensor, head: torch.Tensor) -> Best:
    """Return each row's most likely token; of equal ones, the first.

    The soft-max is accumulated tile by tile as in Milakov and Gimelshein, arXiv 1805.02867, in
    float32.

    Args:
        hidden: [R, hidden_size], after the final norm.
        head: [vocab_size, hidden_size].
    """
    rows = len(hidden)
    top = torch.full((rows,), float("-inf"), device=hidden.device)
    token = torch.zeros(rows, dtype=torch.int64, device=hidden.device)
    total = torch.zeros(rows, device=hidden.device)
    for begin in range(0, len(head), HEAD_TILE):
        logits = F.linear(hidden, head[begin : begin + HEAD_TILE])
        # `max` takes a quarter of `argmax`'s time
        tile_top, tile_token = logits.max(dim=-1)
        # the top's share is 1 / sum(exp(logits - top)); this kernel treats each row by itself,
        # where an element-wise exp rounds by an element's place in the whole batch
        share = logits.float().softmax(dim=-1).gather(-1, tile_token[:, None]).squeeze(-1)
        tile_top = tile_top.float()
        token = torch.where(tile_top > top, tile_token + begin, token)
        new_top = torch.maximum(tile_top, top)
        total = total * (top - new_top).exp_() + (tile_top - new_top).exp_() / share
        top = new_top
    return Best(token, total.reciprocal_())


def logits(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """Return [R, vocab_size] float32 logits; for few rows only."""
    return F.linear(hidden, head).float()

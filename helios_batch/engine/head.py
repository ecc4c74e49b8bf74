"""The output head, streamed over the vocabulary: argmax and its probability, no stored logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from helios_batch.engine.memory import HEAD_TILE

SCORED_TILE = 512
"""Vocabulary entries that are scored at a time: in float32, a tile of the head is a copy."""


class Best(NamedTuple):
    """The most likely token of each row [R] int64; its probability, and that of the next [R]."""

    token: torch.Tensor
    probability: torch.Tensor
    runner_up: torch.Tensor


def best_token(
    hidden: torch.Tensor, head: torch.Tensor, temperature: float = 1.0, margin: bool = False
) -> Best:
    """Return each row's most likely token; of equal ones, the first.

    The soft-max is accumulated tile by tile as in Milakov and Gimelshein, arXiv 1805.02867, in
    float32.

    Args:
        hidden: [R, hidden_size], after the final norm.
        head: [vocab_size, hidden_size].
        temperature: divides the logits before the soft-max.
        margin: whether the runner-up is wanted; its probability is 0 otherwise.
    """
    rows, width = len(hidden), min(HEAD_TILE, len(head))
    top = torch.full((rows,), float("-inf"), device=hidden.device)
    second = top.clone()
    token = torch.zeros(rows, dtype=torch.int64, device=hidden.device)
    total = torch.zeros(rows, device=hidden.device)
    for begin in range(0, len(head), width):
        # all tiles have one width, so that rows of any batch meet the same vector instructions;
        # what the last one repeats counts for nothing
        start = min(begin, len(head) - width)
        logits = F.linear(hidden, head[start : start + width])
        logits[:, : begin - start] = float("-inf")
        # `max` takes a quarter of `argmax`'s time
        tile_top, tile_token = logits.max(dim=-1)
        tile_top = tile_top.float()
        token = torch.where(tile_top > top, tile_token + start, token)
        if margin:
            # of the next best so far, the tile's next best, and the loser of the two best ones
            others = logits.scatter(1, tile_token[:, None], float("-inf")).amax(dim=-1).float()
            loser = torch.minimum(tile_top, top)
            second = torch.maximum(torch.maximum(second, others), loser)
        new_top = torch.maximum(tile_top, top)
        total *= ((top - new_top) / temperature).exp_()
        # in place, in float32 of the logits themselves: they are not needed any more
        wide = logits.float().sub_(new_top[:, None])
        if temperature != 1.0:
            wide.div_(temperature)
        total += wide.exp_().sum(dim=-1)
        top = new_top
    probability = total.reciprocal_()
    return Best(token, probability, probability * ((second - top) / temperature).exp_())


def logits(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """Return [R, vocab_size] float32 logits; for few rows only."""
    return F.linear(hidden, head).float()


def log_probability(
    hidden: torch.Tensor,
    head: torch.Tensor,
    rows: torch.Tensor,
    tokens: torch.Tensor,
) -> torch.Tensor:
    """Return the log-probabilities of given tokens after given rows, [N] float32.

    Computed in float32 whatever the model's type: the logits of two choices often differ by less
    than bfloat16 tells apart. The soft-max is accumulated as in `best_token`.

    Args:
        hidden: [R, hidden_size], after the final norm.
        head: [vocab_size, hidden_size].
        rows: [N] int64, for each token the row of `hidden` that it comes after.
        tokens: [N] int64.
    """
    count, width = len(hidden), min(SCORED_TILE, len(head))
    wide = hidden.float()
    top = torch.full((count,), float("-inf"), device=hidden.device)
    total = torch.zeros(count, device=hidden.device)
    found = torch.zeros(len(tokens), device=hidden.device)
    for begin in range(0, len(head), width):
        start = min(begin, len(head) - width)
        tile = F.linear(wide, head[start : start + width].float())
        place = tokens - start
        inside = (tokens >= begin) & (place < width)
        found = torch.where(inside, tile[rows, place.clamp(0, width - 1)], found)
        tile[:, : begin - start] = float("-inf")
        new_top = torch.maximum(tile.amax(dim=-1), top)
        total *= (top - new_top).exp_()
        total += tile.sub_(new_top[:, None]).exp_().sum(dim=-1)
        top = new_top
    return found - (top + total.log_())[rows]

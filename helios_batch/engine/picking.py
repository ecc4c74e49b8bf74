"""Picking the next tokens at an exit: the most likely ones, and those drawn instead."""

from __future__ import annotations

from typing import NamedTuple

import torch

from helios_batch.engine.batch import padded
from helios_batch.engine.head import best_token, logits
from helios_batch.engine.memory import SAMPLED_ROWS
from helios_batch.engine.sampling import draw
from helios_batch.engine.sequence import Sequence
from helios_batch.models.decoder import Decoder
from helios_batch.spec import Confidence


class NextToken(NamedTuple):
    """What a step gave for one sequence, and after how many of the model's layers it left."""

    sequence: Sequence
    token: int
    layer: int
    confidence: float


class Picked(NamedTuple):
    """What an exit says of some rows: a token for each, and how sure it is of the likeliest one.

    `normed` [R, hidden_size] holds their hidden states as the head reads them, then padding.
    """

    tokens: list[int]
    confidences: list[float]
    normed: torch.Tensor


def most_likely(
    decoder: Decoder, hidden: torch.Tensor, rows: list[int], confidence: Confidence
) -> Picked:
    """Return the most likely token of some rows of `hidden` [T, hidden_size].

    Args:
        decoder: with the exit that `hidden` has passed, all but its norm and head.
        hidden: [T, hidden_size].
        rows: which of T.
        confidence: how it is measured.
    """
    count, margin = len(rows), confidence == "margin"
    normed = decoder.final_norm(hidden[torch.tensor(padded(rows), device=hidden.device)])
    best = best_token(normed, decoder.head, decoder.exit.temperature, margin)
    sure = best.probability - best.runner_up if margin else best.probability
    return Picked(best.token.tolist()[:count], sure.tolist()[:count], normed)


def draw_tokens(decoder: Decoder, picked: Picked, sequences: dict[int, Sequence]) -> None:
    """Put drawn tokens in place of the most likely ones, for sequences that are sampled.

    Args:
        decoder: the one that `picked` comes from.
        picked: its tokens are changed.
        sequences: by place among its rows; the others keep their tokens and draw nothing.
    """
    sampled = [place for place, sequence in sequences.items() if sequence.sampling.temperature > 0]
    for begin in range(0, len(sampled), SAMPLED_ROWS):
        chosen = sampled[begin : begin + SAMPLED_ROWS]
        drawing = [sequences[place] for place in chosen]
        uniforms = torch.tensor([s.uniform() for s in drawing], dtype=torch.float64)
        scores = logits(picked.normed[padded(chosen)], decoder.head)[: len(chosen)]
        drawn = draw(scores, drawing[0].sampling, uniforms.to(scores.device))
        for place, token in zip(chosen, drawn.tolist(), strict=True):
            picked.tokens[place] = token

"""How good an exit is on texts it was not trained on, against the model at full depth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from helios_batch.models.decoder import Decoder
from helios_batch.models.exits.metadata import Measured
from helios_batch.models.tuning.attention import PaddedAttention
from helios_batch.models.tuning.states import StateCache

THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95)
_STEPS_PER_UNIT, _STEPS = 10, range(4, 26)
TEMPERATURES = tuple(_STEPS_PER_UNIT / step for step in _STEPS)
"""Candidates, from 2.5 to 0.4: their inverses are multiples of a tenth."""
_BINS = 15
_STEP_TOKENS = 4096
_HEAD_ROWS = 64


class Judged(NamedTuple):
    """By token [N]: whether the exit says what full depth says, and by candidate temperature how
    sure it is [N, len(TEMPERATURES)]."""

    agrees: torch.Tensor
    confidence: torch.Tensor


@torch.inference_mode()
def judge(decoder: Decoder, depth: int, cache: StateCache, indices: Sequence[int]) -> Judged:
    """Run an exit over texts, and compare it where the model wrote the next token itself.

    Args:
        decoder: the exit, and the last loaded layers before it or none.
        depth: layers before the exit.
        cache: hidden states before these layers, and full depth's tokens.
        indices: texts to judge by.
    """
    agrees, confidence = [], []
    for normed, expected in _exit_rows(decoder, depth, cache, indices):
        logits = (normed @ decoder.head.T).float()
        top, token = logits.max(dim=-1)
        agrees.append(token == expected)
        confidence.append(_confidence(logits.sub_(top[:, None])))
    return Judged(torch.cat(agrees), torch.cat(confidence))


@torch.inference_mode()
def agreement(decoder: Decoder, depth: int, cache: StateCache, indices: Sequence[int]) -> float:
    """Return the share of tokens at which an exit says what full depth says; args as `judge`'s."""
    right = total = 0
    for normed, expected in _exit_rows(decoder, depth, cache, indices):
        right += int(((normed @ decoder.head.T).argmax(dim=-1) == expected).sum())
        total += len(expected)
    return right / total


def _exit_rows(
    decoder: Decoder, depth: int, cache: StateCache, indices: Sequence[int]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the exit's normed states [R, hidden_size] and full depth's tokens [R], piece by piece,
    where the model wrote the next token itself."""
    device = decoder.weights.embedding.device
    first = depth - decoder.depth
    for group in cache.batches(indices, _STEP_TOKENS):
        batch = cache.read(group, [first])
        hidden = batch.hidden[first].flatten(0, 1).to(decoder.weights.embedding)
        attention = PaddedAttention(decoder.config, decoder.kinds, *batch.texts.tokens.shape)
        decides = batch.texts.decides.flatten()
        left = decoder.resume(hidden, batch.texts.positions.to(device), attention)
        normed = decoder.final_norm(left[decides.to(device)])
        expected = batch.top_tokens[..., 0].flatten()[decides].to(device)
        rows = (torch.split(part, _HEAD_ROWS) for part in (normed, expected))
        yield from zip(*rows, strict=True)


def _confidence(logits: torch.Tensor) -> torch.Tensor:
    """Return the highest probability [R, len(TEMPERATURES)] of logits [R, V] whose maximum is 0.

    exp(x / 10) to the power of k is exp(x k / 10): one exponential serves all temperatures.
    """
    base = logits.mul_(1 / _STEPS_PER_UNIT).exp_()
    power, sums = base.clone(), []
    for step in range(2, _STEPS.stop):
        power.mul_(base)
        if step in _STEPS:
            sums.append(power.sum(dim=-1))
    return torch.stack(sums, dim=-1).reciprocal_()


def fit_temperature(judged: Judged) -> float:
    """Return the temperature at which confidence predicts agreement best, by log loss.

    Temperature scaling after Guo et al., arXiv 1706.04599, applied to the one event that matters
    here: that the exit's token is full depth's.
    """
    sure = judged.confidence.double().clamp(1e-6, 1 - 1e-6)
    right = judged.agrees[:, None].double()
    loss = -(right * sure.log() + (1 - right) * (1 - sure).log()).mean(dim=0)
    return TEMPERATURES[int(loss.argmin())]


def summarize(judged: Judged, temperature: float) -> Measured:
    """Return agreement, calibration, and coverage and precision by threshold."""
    agrees = judged.agrees.double()
    sure = judged.confidence[:, TEMPERATURES.index(temperature)].double()
    above = {threshold: sure > threshold for threshold in THRESHOLDS}
    return Measured(
        tokens=len(agrees),
        agreement=float(agrees.mean()),
        ece=calibration_error(sure, agrees),
        coverage={f"{t:g}": float(rows.double().mean()) for t, rows in above.items()},
        precision={
            f"{t:g}": float(agrees[rows].mean()) if rows.any() else 1.0 for t, rows in above.items()
        },
    )


def calibration_error(confidence: torch.Tensor, agrees: torch.Tensor) -> float:
    """Return the expected calibration error over 15 bins of equal width.

    Args:
        confidence: [N] in [0, 1].
        agrees: [N], 0 or 1.
    """
    bins = (confidence * _BINS).long().clamp_(0, _BINS - 1)
    gap = torch.zeros(_BINS, dtype=torch.double).index_add_(0, bins, confidence - agrees)
    return float(gap.abs().sum() / len(agrees))

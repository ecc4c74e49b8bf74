"""How good an exit is on texts it was not trained on, against the model at full depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from helios_batch.models.decoder import Decoder
from helios_batch.models.exits.metadata import Measured
from helios_batch.models.tuning.attention import PaddedAttention
from helios_batch.models.tuning.states import StateCache

THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95)
TEMPERATURES = tuple(round(0.5 * 1.08**i, 4) for i in range(22))
"""Candidates, from 0.5 to 2.5 by steps of 8 %."""
_BINS = 15
_STEP_TOKENS = 4096
_HEAD_ROWS = 256


class Judged(NamedTuple):
    """By token [N]: whether the exit says what full depth says, and by candidate temperature how
    sure it is [N, len(TEMPERATURES)]."""

    agrees: torch.Tensor
    confidence: torch.Tensor


@torch.inference_mode()
def judge(decoder: Decoder, depth: int, cache: StateCache, indices: Sequence[int]) -> Judged:
    """Run an exit over texts, and compare it where the model wrote the next token itself.

    Args:
        decoder: no layers loaded, and the exit.
        depth: layers before the exit.
        cache: hidden states at that depth, and full depth's tokens.
        indices: texts to judge by.
    """
    agrees, confidence = [], []
    for group in cache.batches(indices, _STEP_TOKENS):
        batch = cache.read(group, [depth])
        hidden = batch.hidden[depth].flatten(0, 1).to(decoder.weights.embedding)
        attention = PaddedAttention(decoder.config, decoder.kinds, *batch.texts.tokens.shape)
        positions = batch.texts.positions.to(hidden.device)
        decides = batch.texts.decides.flatten().to(hidden.device)
        normed = decoder.final_norm(decoder.leave(hidden, positions, attention)[decides])
        expected = batch.top_tokens[..., 0].flatten()[decides.cpu()].to(hidden.device)
        for begin in range(0, len(normed), _HEAD_ROWS):
            rows = slice(begin, begin + _HEAD_ROWS)
            logits = (normed[rows] @ decoder.head.T).float()
            top, token = logits.max(dim=-1)
            agrees.append(token == expected[rows])
            logits -= top[:, None]
            sums = [(logits / t).exp_().sum(dim=-1) for t in TEMPERATURES]
            confidence.append(torch.stack(sums, dim=-1).reciprocal_())
    return Judged(torch.cat(agrees), torch.cat(confidence))


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

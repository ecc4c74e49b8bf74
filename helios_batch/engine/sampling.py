"""Drawing tokens: temperature, then top_k, then top_p, then one uniform number per row."""

from __future__ import annotations

import torch

from helios_batch.engine.memory import rows_drawn
from helios_batch.spec import SamplingSpec


def draw(logits: torch.Tensor, sampling: SamplingSpec, uniforms: torch.Tensor) -> torch.Tensor:
    """Return one token per row, by inverting the filtered distribution at `uniforms`.

    Args:
        logits: [R, vocab_size] float32.
        sampling: temperature above 0; top_k 0 and top_p 1 filter nothing.
        uniforms: [R] float64 in [0, 1).

    Returns:
        [R] int64 token ids.
    """
    rows = rows_drawn(logits.shape[-1])
    blocks = [slice(begin, begin + rows) for begin in range(0, len(logits), rows)]
    return torch.cat([_draw(logits[block], sampling, uniforms[block]) for block in blocks])


def _draw(logits: torch.Tensor, sampling: SamplingSpec, uniforms: torch.Tensor) -> torch.Tensor:
    scaled = logits / sampling.temperature
    if 0 < sampling.top_k < scaled.shape[-1]:
        ordered, tokens = scaled.topk(sampling.top_k, dim=-1)
    else:
        ordered, tokens = scaled.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.double().softmax(dim=-1)
    cumulative = probabilities.cumsum(dim=-1)
    # a token stays while those before it have not reached top_p; the first always stays
    kept = probabilities.masked_fill(cumulative - probabilities >= sampling.top_p, 0.0)
    bounds = kept.cumsum(dim=-1)
    place = torch.searchsorted(bounds, uniforms[:, None] * bounds[:, -1:], right=True)
    last = (kept > 0).sum(dim=-1, keepdim=True) - 1
    return tokens.gather(-1, torch.minimum(place, last)).squeeze(-1)

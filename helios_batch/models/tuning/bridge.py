"""The closed-form bridge: one affine map into the input of the model's own last layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from helios_batch.models.tuning.states import StateCache
from helios_batch.models.weights import Affine

_STEP_TOKENS = 16384
_RIDGE = 1e-4


def fit_bridge(cache: StateCache, indices: Sequence[int], source: int, target: int) -> Affine:
    """Fit hidden states after `target` layers as an affine map of those after `source` layers.

    Weighted least squares by the normal equations, summed in float64 in one pass. Each token is
    weighted by its target's inverse squared norm: first-token states are a hundred times longer
    than others and would be all that counts. A ridge of 1e-4 of the mean variance keeps it stable.

    Args:
        cache: hidden states after `source` and `target` layers.
        indices: texts to fit on; every position counts.
        source: layers before the exit.
        target: layers before the tail; `source` itself gives the identity.

    Returns:
        float32 weight [hidden_size, hidden_size] and bias [hidden_size].
    """
    gram = cross = torch.zeros(())
    for group in cache.batches(indices, _STEP_TOKENS):
        batch = cache.read(group, [source, target])
        within = batch.texts.within
        x, y = (batch.hidden[layer][within].float() for layer in (source, target))
        x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
        scale = y.norm(dim=1, keepdim=True).clamp_min(1e-6)
        x, y = x / scale, y / scale
        gram = gram + (x.T @ x).double()
        cross = cross + (x.T @ y).double()
    size = len(gram) - 1
    gram.diagonal()[:size] += _RIDGE * gram.diagonal()[:size].mean()
    solution = torch.linalg.solve(gram, cross).float()
    return Affine(solution[:size].T.contiguous(), solution[size].contiguous())

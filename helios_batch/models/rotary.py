"""Rotary position embeddings: inverse frequencies and rotation of query and key heads."""

from __future__ import annotations

import math

import torch

from helios_batch.models.config import DecoderConfig, Llama3Scaling, Rotary


class RotaryTables:
    """Cosines and sines of every distinct rotary embedding of a model, by position.

    Those of the positions asked for last are kept: exits on the way up ask for them again.
    """

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        kinds = {layer.rotary for layer in config.layers}
        self._frequencies = {
            rotary: inverse_frequencies(rotary, config.head_dim).to(device)
            for rotary in kinds
            if rotary is not None
        }
        self._positions: torch.Tensor | None = None
        self._rotations: dict[Rotary | None, torch.Tensor | None] = {}

    def at(self, positions: torch.Tensor) -> dict[Rotary | None, torch.Tensor | None]:
        """Return, for positions [T], each embedding's rotation [2, T, 1, head_dim / 2]."""
        if positions is self._positions:
            return self._rotations
        rotations: dict[Rotary | None, torch.Tensor | None] = {None: None}
        for rotary, frequencies in self._frequencies.items():
            angles = positions.float()[:, None, None] * frequencies
            rotations[rotary] = torch.stack([angles.cos(), angles.sin()]).to(self._dtype)
        self._positions, self._rotations = positions, rotations
        return rotations


def rotate(heads: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Rotate the halves of each head: heads [T, H, head_dim], rotation as from `at`."""
    cos, sin = rotation
    left, right = heads.chunk(2, dim=-1)
    if heads.requires_grad:
        return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
    result = torch.empty(heads.shape, dtype=heads.dtype, device=heads.device)
    out_left, out_right = result.chunk(2, dim=-1)
    torch.mul(left, cos, out=out_left).addcmul_(right, sin, value=-1)
    torch.mul(right, cos, out=out_right).addcmul_(left, sin)
    return result


def inverse_frequencies(rotary: Rotary, head_dim: int) -> torch.Tensor:
    """Return [head_dim / 2] float32 angular frequencies per position."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / (rotary.theta**exponents)
    if rotary.llama3 is not None:
        return _llama3(frequencies, rotary.llama3)
    return frequencies / rotary.linear_factor


def _llama3(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """Scale low frequencies down, leave high ones, blend between (Llama 3.1, `apply_scaling`)."""
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_context / wavelengths
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies

"""Causal attention over padded sequences, without a KV cache: for teaching, not for serving."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from helios_batch.models.config import DecoderConfig, LayerKind


class PaddedAttention:
    """Attention of `batch` sequences padded at the right to `length` tokens; T = batch * length.

    What stands behind a sequence's end is computed in vain: nothing before it looks there.
    """

    def __init__(
        self, config: DecoderConfig, kinds: Sequence[LayerKind], batch: int, length: int
    ) -> None:
        self._config = config
        self._windows = [kind.window for kind in kinds]
        self._shape = (batch, length, -1, config.head_dim)

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Attend; see `models.decoder.Attention`."""
        query_heads, keys, values = (
            x.reshape(self._shape).transpose(1, 2) for x in (query, key, value)
        )
        mask = self._window_mask(self._windows[layer], query.device)
        mixed = F.scaled_dot_product_attention(
            query_heads,
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            scale=self._config.attention_scale,
            enable_gqa=self._config.num_heads != self._config.num_kv_heads,
        )
        return mixed.transpose(1, 2).reshape(query.shape)

    def _window_mask(self, window: int | None, device: torch.device) -> torch.Tensor | None:
        length = self._shape[1]
        if window is None or window >= length:
            return None
        place = torch.arange(length, device=device)
        behind = place[:, None] - place[None, :]
        return (behind >= 0) & (behind < window)

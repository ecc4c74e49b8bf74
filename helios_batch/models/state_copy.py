"""State copy: keys and values of layers that a token skips (Elbayad et al., arXiv 1910.10073).

Later tokens attend to a token in layers that it did not run. The hidden state with which it left
stands for those that it would have had there, as in EE-LLM (arXiv 2312.04916).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from helios_batch.models.config import DecoderConfig
from helios_batch.models.decoder import Decoder, linear, normalize
from helios_batch.models.rotary import rotate
from helios_batch.models.weights import Affine, LayerWeights


class Copied(NamedTuple):
    """What a layer keeps: keys, rotated, and values, each [T, num_kv_heads, head_dim].

    `layer` is its index among those that run, the exit's included.
    """

    layer: int
    key: torch.Tensor
    value: torch.Tensor


def skip_layers(
    decoder: Decoder, hidden: torch.Tensor, positions: torch.Tensor, layers: range
) -> Iterator[Copied]:
    """Yield what some of the loaded layers keep of hidden states [T, hidden_size]."""
    rotations = decoder.rotary.at(positions)
    for index in layers:
        rotation = rotations[decoder.config.layers[index].rotary]
        yield _copied(index, decoder.config, decoder.weights.layers[index], hidden, rotation)


def skip_exit(decoder: Decoder, hidden: torch.Tensor, positions: torch.Tensor) -> Iterator[Copied]:
    """Yield what the exit's layers keep of hidden states [T, hidden_size] before its bridge."""
    if not decoder.exit.layers:
        return
    rotations, state = decoder.rotary.at(positions), decoder.cross(hidden)
    exit_layers = zip(decoder.exit.kinds, decoder.exit.layers, strict=True)
    for index, (kind, layer) in enumerate(exit_layers, start=decoder.depth):
        yield _copied(index, decoder.config, layer, state, rotations[kind.rotary])


def _copied(
    index: int,
    config: DecoderConfig,
    layer: LayerWeights,
    hidden: torch.Tensor,
    rotation: torch.Tensor | None,
) -> Copied:
    normed = normalize(hidden, layer.attention_norm, config.norm)
    # the rows of the fused matrix behind those of the queries
    queries, bias = config.num_heads * config.head_dim, layer.qkv.bias
    projection = Affine(layer.qkv.weight[queries:], None if bias is None else bias[queries:])
    heads = linear(normed, projection).view(len(hidden), -1, config.head_dim)
    key, value = heads[:, : config.num_kv_heads], heads[:, config.num_kv_heads :]
    if layer.k_norm is not None:
        key = normalize(key, layer.k_norm, config.norm)
    return Copied(index, key if rotation is None else rotate(key, rotation), value)

"""Where the training of an exit starts: copies of the model's own parts, behind a bridge."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from helios_batch.models.exits.assemble import MATRICES
from helios_batch.models.exits.metadata import ExitMetadata
from helios_batch.models.tuning.bridge import fit_bridge
from helios_batch.models.tuning.states import StateCache
from helios_batch.models.weights import Affine, DecoderWeights, MlpWeights


def target_layer(metadata: ExitMetadata) -> int:
    """Return how many layers of the model stand before what the exit's bridge leads to."""
    if metadata.tail:
        return metadata.tail[0]
    return metadata.num_layers - metadata.own_layers


def starting_tensors(
    metadata: ExitMetadata,
    weights: DecoderWeights,
    cache: StateCache,
    indices: Sequence[int],
    rank: int,
    adapt: int,
    seed: int,
) -> dict[str, torch.Tensor]:
    """Return the tensors of a new exit.

    A `norm` is a copy of the final one. All other kinds begin with a closed-form bridge to where
    their layers stand in the model; a bridge's tail, and the last `adapt` loaded layers, get deltas
    of rank `rank` that begin at zero; `layer:N` has copies of the last layers, `mlp` one of the
    last layer's that begins with no effect.

    Args:
        metadata: what the exit consists of.
        weights: the model at full depth.
        cache: hidden states at the exit and at `target_layer`.
        indices: texts that the bridge is fitted on.
        rank: of the deltas; 0 for none.
        adapt: loaded layers before the exit that get deltas too.
        seed: of the deltas' initial values.
    """
    tensors = _named("norm", weights.final_norm)
    if metadata.kind == "norm":
        return tensors
    tensors |= _named("bridge", fit_bridge(cache, indices, metadata.depth, target_layer(metadata)))
    generator = torch.Generator().manual_seed(seed)
    adapted = range(metadata.depth - adapt, metadata.depth)
    for index in (*adapted, *metadata.tail) if rank else ():
        for slot in MATRICES:
            rows, columns = getattr(weights.layers[index], slot).weight.shape
            down = torch.randn(rank, columns, generator=generator) / columns**0.5
            tensors[f"delta.{index}.{slot}.down"] = down
            tensors[f"delta.{index}.{slot}.up"] = torch.zeros(rows, rank)
    if metadata.kind == "mlp":
        for slot in MlpWeights.__dataclass_fields__:
            tensors |= _named(f"mlp.{slot}", getattr(weights.layers[-1], slot))
        tensors["mlp.mlp_out.weight"].zero_()
    last = weights.layers[metadata.num_layers - metadata.own_layers :]
    for number, layer in enumerate(last):
        for slot in layer.__dataclass_fields__:
            if (part := getattr(layer, slot)) is not None:
                tensors |= _named(f"layers.{number}.{slot}", part)
    return tensors


def _named(name: str, part: Affine) -> dict[str, torch.Tensor]:
    found = {f"{name}.weight": part.weight, f"{name}.bias": part.bias}
    return {
        key: t.detach().to("cpu", torch.float32, copy=True)
        for key, t in found.items()
        if t is not None
    }

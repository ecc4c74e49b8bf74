"""Loading an exit: its own tensors, and the model's own last layers that it ends in."""

from __future__ import annotations

from dataclasses import replace

import torch

from helios_batch.errors import ModelError
from helios_batch.models.checkpoint import Checkpoint
from helios_batch.models.config import DecoderConfig
from helios_batch.models.exits.assemble import MATRICES, ExitWeights, assemble
from helios_batch.models.exits.file import ExitFile
from helios_batch.models.exits.metadata import is_norm
from helios_batch.models.weights import Affine, DecoderWeights, GreedyLoader, LayerWeights


def read_exit(
    exit_file: ExitFile,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> dict[str, torch.Tensor]:
    """Return an exit's own tensors by name; those of norms are in float32 always."""
    with Checkpoint(exit_file.path) as checkpoint:
        return {
            name: checkpoint.read(name).to(device, torch.float32 if is_norm(name) else dtype)
            for name in checkpoint.entries
        }


def load_exit(
    exit_file: ExitFile, config: DecoderConfig, loader: GreedyLoader, weights: DecoderWeights
) -> ExitWeights:
    """Read an exit and the tail layers it names; adapt `weights` where the exit says so.

    Adapted weights are no longer the model's own: they are for this exit only. What the exit leaves
    unchanged of a tail layer that is loaded is shared with it.

    Raises:
        ModelError: a tensor is missing, too many, or of a shape that does not fit the model.
    """
    metadata = exit_file.metadata
    if len(weights.layers) < metadata.depth:
        raise ValueError(f"{len(weights.layers)} layers are loaded, not {metadata.depth}")
    tensors = read_exit(exit_file, loader.dtype, loader.device)
    layers = dict(enumerate(weights.layers))
    layers |= {index: loader.layer(index) for index in metadata.tail if index not in layers}
    try:
        found, adapted = assemble(tensors, metadata, config, layers)
    except ValueError as exc:
        raise ModelError(
            f"the exit's tensors don't fit the model: {exc}",
            where=str(exit_file.path),
            fix="make the exit again: helios-batch models tune",
        ) from None
    for index, layer in adapted.items():
        weights.layers[index] = _merged(layer)
    return replace(found, layers=tuple(_merged(layer) for layer in found.layers))


def _merged(layer: LayerWeights) -> LayerWeights:
    """Return a layer with its deltas added into its matrices."""
    changed: dict[str, Affine] = {}
    for slot in MATRICES:
        old: Affine = getattr(layer, slot)
        if old.delta is not None:
            down, up = old.delta.down.float(), old.delta.up.float()
            # a copy: the layer may be the model's own, which runs beside this one
            wide = old.weight.to(torch.float32, copy=True)
            summed = wide.addmm_(up, down).to(old.weight.dtype)
            changed[slot] = Affine(summed, old.bias)
    return replace(layer, **changed)

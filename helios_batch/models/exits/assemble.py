"""Putting an exit together: its tensors by name, and the layers of the model that it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from helios_batch.models.config import DecoderConfig, LayerKind
from helios_batch.models.exits.metadata import ExitMetadata
from helios_batch.models.weights import Affine, Delta, LayerWeights, MlpWeights

MATRICES = ("qkv", "attention_out", "mlp_in", "mlp_out")


@dataclass(frozen=True, slots=True)
class ExitWeights:
    """What runs after the loaded layers: bridge, layers, MLP, norm, head; None is left out.

    `layers` are the model's own last layers or the exit's own; `kinds` says of each what it attends
    to. A norm or head that is None is the model's own; if not `normed`, there is no norm at all.
    """

    bridge: Affine | None = None
    layers: tuple[LayerWeights, ...] = ()
    kinds: tuple[LayerKind, ...] = ()
    mlp: MlpWeights | None = None
    norm: Affine | None = None
    head: torch.Tensor | None = None
    normed: bool = True
    temperature: float = 1.0
    choice_temperature: float = 1.0


class Assembled(NamedTuple):
    """An exit, and the layers of the model before it that it changes, by index."""

    exit: ExitWeights
    adapted: dict[int, LayerWeights]


def assemble(
    tensors: Mapping[str, torch.Tensor],
    metadata: ExitMetadata,
    config: DecoderConfig,
    layers: Mapping[int, LayerWeights],
) -> Assembled:
    """Return the exit that `tensors`, named as in `exits.file`, make up.

    Args:
        tensors: used as they are, so that gradients reach them.
        metadata: which layers of the model's and of its own the exit runs.
        config: the model.
        layers: the model's loaded layers and those of the tail, by index.

    Raises:
        ValueError: a tensor is missing, too many, or of a shape that does not fit.
    """
    parts = _Parts(tensors)
    depth = metadata.depth
    tail = {index: layers[index] for index in metadata.tail}
    adapted: dict[int, LayerWeights] = {}
    for index in parts.adapted_layers():
        if index >= depth and index not in tail:
            raise ValueError(f"layer {index} is adapted, but not run")
        changed = parts.adapt(index, layers[index])
        (adapted if index < depth else tail)[index] = changed
    own = tuple(parts.layer(f"layers.{i}.") for i in range(metadata.own_layers))
    own_kinds = (config.layers[depth - 1],) * len(own)
    hidden = config.hidden_size
    found = ExitWeights(
        bridge=parts.affine("bridge", (hidden, hidden)),
        layers=(*tail.values(), *own),
        kinds=(*(config.layers[index] for index in tail), *own_kinds),
        mlp=parts.mlp("mlp."),
        norm=parts.affine("norm", (hidden,)),
        head=parts.take("head.weight", (config.vocab_size, hidden)),
        normed=metadata.normed,
        temperature=metadata.temperature,
        choice_temperature=metadata.choice_temperature,
    )
    parts.finish()
    return Assembled(found, adapted)


class _Parts:
    """Takes tensors one after the other, and knows which are left."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._left = dict(tensors)

    def adapted_layers(self) -> list[int]:
        """Return the layers of the model that deltas and replacements are for."""
        changes = [name for name in self._left if name.startswith(("delta.", "replace."))]
        return sorted({int(name.split(".")[1]) for name in changes})

    def adapt(self, index: int, layer: LayerWeights) -> LayerWeights:
        """Return a layer of the model with this exit's changes."""
        changed: dict[str, Affine] = {}
        for slot in ("attention_norm", "mlp_norm", *MATRICES):
            old: Affine = getattr(layer, slot)
            new = self.affine(f"replace.{index}.{slot}", tuple(old.weight.shape)) or old
            down = self.take(f"delta.{index}.{slot}.down")
            if down is not None:
                rows, columns = new.weight.shape
                up = self.take(f"delta.{index}.{slot}.up", (rows, len(down)))
                if up is None or down.shape[1] != columns:
                    raise ValueError(f"delta.{index}.{slot} does not fit {rows} x {columns}")
                new = replace(new, delta=Delta(down, up))
            changed[slot] = new
        return replace(layer, **changed)

    def layer(self, prefix: str) -> LayerWeights:
        """Return a decoder layer of the exit's own."""
        slots = {slot: self.affine(prefix + slot) for slot in LayerWeights.__dataclass_fields__}
        try:
            return LayerWeights(**{slot: part for slot, part in slots.items() if part is not None})
        except TypeError:
            raise ValueError(f"no whole decoder layer is under {prefix}") from None

    def mlp(self, prefix: str) -> MlpWeights | None:
        """Return the MLP of an exit that has one."""
        slots = {slot: self.affine(prefix + slot) for slot in MlpWeights.__dataclass_fields__}
        found = {slot: part for slot, part in slots.items() if part is not None}
        return MlpWeights(**found) if len(found) == len(slots) else None

    def affine(self, name: str, shape: tuple[int, ...] | None = None) -> Affine | None:
        """Return a weight with its bias, if it has one."""
        weight = self.take(f"{name}.weight", shape)
        return None if weight is None else Affine(weight, self.take(f"{name}.bias"))

    def take(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor | None:
        """Return a tensor, or None if there is none of that name."""
        tensor = self._left.pop(name, None)
        if tensor is not None and shape is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)} instead of {shape}")
        return tensor

    def finish(self) -> None:
        """Check that every tensor has found its place."""
        if self._left:
            raise ValueError(f"nobody asked for {', '.join(sorted(self._left)[:4])}")

"""Loading an exit: its own tensors, and the model's own last layers that it ends in."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import torch

from helios_batch.errors import ModelError
from helios_batch.models.checkpoint import Checkpoint
from helios_batch.models.config import DecoderConfig, LayerKind
from helios_batch.models.exits.file import ExitFile
from helios_batch.models.weights import (
    Affine,
    DecoderWeights,
    GreedyLoader,
    LayerWeights,
    MlpWeights,
)

_MATRICES = ("qkv", "attention_out", "mlp_in", "mlp_out")


@dataclass(frozen=True, slots=True)
class ExitWeights:
    """What runs after the loaded layers: bridge, layers, MLP, norm, head; None is left out.

    `layers` are the model's own last layers or the exit's own; `kinds` says of each what it attends
    to. A norm or head that is None is the model's own.
    """

    bridge: Affine | None = None
    layers: tuple[LayerWeights, ...] = ()
    kinds: tuple[LayerKind, ...] = ()
    mlp: MlpWeights | None = None
    norm: Affine | None = None
    head: torch.Tensor | None = None
    temperature: float = 1.0


def load_exit(
    exit_file: ExitFile, config: DecoderConfig, loader: GreedyLoader, weights: DecoderWeights
) -> ExitWeights:
    """Read an exit and the tail layers it names; adapt `weights` where the exit says so.

    Adapted weights are no longer the model's own: they are for this exit only.

    Raises:
        ModelError: a tensor is missing, too many, or of a shape that does not fit the model.
    """
    with Checkpoint(exit_file.path) as checkpoint:
        reader = _Reader(checkpoint, loader)
        metadata = exit_file.metadata
        if len(weights.layers) != metadata.depth:
            raise ValueError(f"{len(weights.layers)} layers are loaded, not {metadata.depth}")
        tail = {index: loader.layer(index) for index in metadata.tail}
        for index in reader.adapted_layers():
            if index < metadata.depth:
                weights.layers[index] = reader.adapt(index, weights.layers[index])
            elif index in tail:
                tail[index] = reader.adapt(index, tail[index])
            else:
                raise reader.unfit(f"layer {index} is adapted, but not run")
        own = tuple(reader.layer(f"layers.{i}.") for i in range(metadata.own_layers))
        own_kinds = (config.layers[metadata.depth - 1],) * len(own)
        found = ExitWeights(
            bridge=reader.affine("bridge"),
            layers=(*tail.values(), *own),
            kinds=(*(config.layers[index] for index in tail), *own_kinds),
            mlp=reader.mlp("mlp."),
            norm=reader.norm("norm"),
            head=reader.matrix("head.weight"),
            temperature=metadata.temperature,
        )
        reader.finish()
    _check_shapes(found, config, reader)
    return found


class _Reader:
    """Takes tensors out of an exit file one after the other, and knows which are left."""

    def __init__(self, checkpoint: Checkpoint, loader: GreedyLoader) -> None:
        self._checkpoint = checkpoint
        self._loader = loader
        self._left = set(checkpoint.entries)

    def adapted_layers(self) -> list[int]:
        """Return the layers of the model that deltas and replacements are for."""
        found = {
            int(name.split(".")[1])
            for name in self._left
            if name.startswith(("delta.", "replace."))
        }
        return sorted(found)

    def adapt(self, index: int, layer: LayerWeights) -> LayerWeights:
        """Return a layer of the model with this exit's changes."""
        changed: dict[str, Affine] = {}
        for slot in _MATRICES:
            old: Affine = getattr(layer, slot)
            new = self.affine(f"replace.{index}.{slot}") or old
            if new.weight.shape != old.weight.shape:
                raise self.unfit(f"replace.{index}.{slot} is {tuple(new.weight.shape)}")
            down, up = (self.matrix(f"delta.{index}.{slot}.{part}") for part in ("down", "up"))
            if down is not None and up is not None:
                if (up.shape[0], down.shape[1]) != new.weight.shape or up.shape[1] != len(down):
                    raise self.unfit(f"delta.{index}.{slot} does not fit {tuple(new.weight.shape)}")
                summed = new.weight.float().addmm_(up.float(), down.float()).to(new.weight)
                new = Affine(summed, new.bias)
            if new is not old:
                changed[slot] = new
        for slot in ("attention_norm", "mlp_norm"):
            if (norm := self.norm(f"replace.{index}.{slot}")) is not None:
                changed[slot] = norm
        return replace(layer, **changed)

    def layer(self, prefix: str) -> LayerWeights:
        """Return a decoder layer of the exit's own."""
        slots: dict[str, Affine] = defaultdict()
        for slot in LayerWeights.__dataclass_fields__:
            read = self.affine if slot in _MATRICES else self.norm
            if (found := read(prefix + slot)) is not None:
                slots[slot] = found
        try:
            return LayerWeights(**slots)
        except TypeError:
            raise self.unfit(f"a whole decoder layer is expected under {prefix}") from None

    def mlp(self, prefix: str) -> MlpWeights | None:
        """Return the MLP of an exit that has one."""
        norm, mlp_in, mlp_out = (
            self.norm(f"{prefix}mlp_norm"),
            self.affine(f"{prefix}mlp_in"),
            self.affine(f"{prefix}mlp_out"),
        )
        if norm is None or mlp_in is None or mlp_out is None:
            return None
        return MlpWeights(norm, mlp_in, mlp_out)

    def affine(self, name: str) -> Affine | None:
        """Return a matrix with its bias, if it has one, in the model's type."""
        weight = self.matrix(f"{name}.weight")
        return None if weight is None else Affine(weight, self.matrix(f"{name}.bias"))

    def norm(self, name: str) -> Affine | None:
        """Return the parameters of a norm in float32."""
        if f"{name}.weight" not in self._left:
            return None
        return Affine(*(self._take(f"{name}.{part}", torch.float32) for part in ("weight", "bias")))  # type: ignore[arg-type]

    def matrix(self, name: str) -> torch.Tensor | None:
        """Return a tensor in the model's type."""
        return self._take(name, self._loader.dtype)

    def _take(self, name: str, dtype: torch.dtype) -> torch.Tensor | None:
        if name not in self._left:
            return None
        self._left.remove(name)
        return self._checkpoint.read(name).to(self._loader.device, dtype)

    def unfit(self, what: str) -> ModelError:
        """Return the error of an exit file that does not fit."""
        return ModelError(
            f"the exit's tensors don't fit the model: {what}",
            where=str(self._checkpoint.files[0]),
            fix="make the exit again: helios-batch models tune",
        )

    def finish(self) -> None:
        """Check that every tensor has found its place."""
        if self._left:
            raise self.unfit(f"nobody asked for {', '.join(sorted(self._left)[:4])}")


def _check_shapes(found: ExitWeights, config: DecoderConfig, reader: _Reader) -> None:
    hidden = config.hidden_size
    if found.bridge is not None and found.bridge.weight.shape != (hidden, hidden):
        raise reader.unfit(f"bridge.weight is {tuple(found.bridge.weight.shape)}")
    if found.norm is not None and found.norm.weight.shape != (hidden,):
        raise reader.unfit(f"norm.weight is {tuple(found.norm.weight.shape)}")
    if found.head is not None and found.head.shape != (config.vocab_size, hidden):
        raise reader.unfit(f"head.weight is {tuple(found.head.shape)}")

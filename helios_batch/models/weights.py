"""Greedy layer loading: layers 0..k-1 are read, the rest of the checkpoint is not touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from helios_batch.errors import ModelError
from helios_batch.models.checkpoint import Checkpoint
from helios_batch.models.config import DecoderConfig
from helios_batch.models.pages import zero_pages
from helios_batch.models.tensor_names import TensorNames


class Delta(NamedTuple):
    """A low-rank change of a matrix (out, in): `up` [out, r] times `down` [r, in]."""

    down: torch.Tensor
    up: torch.Tensor


@dataclass(frozen=True, slots=True)
class Affine:
    """A weight and, where the architecture has one, its bias. Matrices are (out, in).

    `delta` is set while an exit is trained; loaded ones are added into the weight.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    delta: Delta | None = None


@dataclass(frozen=True, slots=True)
class MlpWeights:
    """The MLP of a layer, with the norm before it. If gated, `mlp_in` is gate and up fused."""

    mlp_norm: Affine
    mlp_in: Affine
    mlp_out: Affine


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. `qkv` and, if gated, `mlp_in` are fused along the output dimension."""

    attention_norm: Affine
    qkv: Affine
    attention_out: Affine
    mlp_norm: Affine
    mlp_in: Affine
    mlp_out: Affine
    q_norm: Affine | None = None
    k_norm: Affine | None = None
    attention_post_norm: Affine | None = None
    mlp_post_norm: Affine | None = None


@dataclass(slots=True)
class DecoderWeights:
    """What is loaded: everything outside the layers, and the first `len(layers)` of them."""

    embedding: torch.Tensor
    position_embedding: torch.Tensor | None
    final_norm: Affine
    head: torch.Tensor
    layers: list[LayerWeights] = field(default_factory=list)


class GreedyLoader:
    """Loads a model's weights up to a depth, deepens and truncates them.

    Norm weights are kept in float32, with the architecture's offset folded in; all else in
    `dtype`. `checkpoint.bytes_read` tells what was taken from disk.
    """

    def __init__(
        self,
        config: DecoderConfig,
        names: TensorNames,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._config = config
        self._names = names
        self._checkpoint = checkpoint
        self.dtype = dtype
        self.device = device
        # some checkpoints (GPT-2's own) leave the base model's prefix out
        self._base = names.base if self._has(names.base + names.embedding) else ""

    def load(self, depth: int) -> DecoderWeights:
        """Read embeddings, head and layers 0 to `depth - 1`.

        Raises:
            ModelError: a tensor is missing or has another shape than the config says.
        """
        config, names = self._config, self._names
        embedding = self._matrix([self._base + names.embedding], config.vocab_size, False)
        positions = None
        if names.position_embedding is not None and config.position_offset is not None:
            rows = config.context_length + config.position_offset
            positions = self._matrix([self._base + names.position_embedding], rows, False)
        head = embedding
        if not config.tied_head:
            head = self._matrix([names.head], config.vocab_size, False)
        elif self._has(names.head):
            self._require_same(names.head, self._base + names.embedding)
        weights = DecoderWeights(
            embedding, positions, self._norm(self._base + names.final_norm), head
        )
        self.deepen(weights, depth)
        return weights

    def deepen(self, weights: DecoderWeights, depth: int) -> None:
        """Read the layers from `len(weights.layers)` to `depth - 1`, and nothing else."""
        if not len(weights.layers) <= depth <= self._config.num_layers:
            raise ValueError(f"can't deepen from {len(weights.layers)} to {depth} layers")
        for index in range(len(weights.layers), depth):
            weights.layers.append(self.layer(index))

    @staticmethod
    def truncate(weights: DecoderWeights, depth: int) -> None:
        """Drop the layers from `depth` on; their memory is given back."""
        del weights.layers[depth:]

    def layer(self, index: int) -> LayerWeights:
        """Read one layer.

        Raises:
            ModelError: a tensor is missing or has another shape than the config says.
        """
        config = self._config
        matrices = {
            "qkv": (config.qkv_size, config.qkv_bias),
            "attention_out": (config.hidden_size, config.attention_out_bias),
            "mlp_in": ((1 + config.gated) * config.intermediate_size, config.mlp_bias),
            "mlp_out": (config.hidden_size, config.mlp_bias),
        }
        prefix = self._base + self._names.layers.format(index)
        slots = {}
        for slot, sources in self._names.layer.items():
            stored = [prefix + source for source in sources]
            if slot not in matrices:
                slots[slot] = self._norm(stored[0])
                continue
            rows, biased = matrices[slot]
            bias = self._stack([f"{name}.bias" for name in stored], (rows,)) if biased else None
            slots[slot] = Affine(self._matrix(stored, rows, self._names.transposed), bias)
        return LayerWeights(**slots)

    def _norm(self, name: str) -> Affine:
        weight = self._checkpoint.read(f"{name}.weight").to(self.device, torch.float32)
        bias = None
        if self._config.norm.kind == "layer":
            bias = self._checkpoint.read(f"{name}.bias").to(self.device, torch.float32)
        return Affine(weight + self._config.norm.offset, bias)

    def _matrix(self, names: Sequence[str], rows: int, transposed: bool) -> torch.Tensor:
        stored = [f"{name}.weight" for name in names]
        columns = self._checkpoint.entry(stored[0]).shape[0 if transposed else -1]
        return self._stack(stored, (rows, columns), transposed)

    def _stack(
        self, names: Sequence[str], shape: tuple[int, ...], transposed: bool = False
    ) -> torch.Tensor:
        """Read tensors one after the other into one of `shape`, along dimension 0."""
        result = zero_pages(shape, self.dtype, self.device)
        row = 0
        for name in names:
            stored = self._checkpoint.entry(name).shape
            part = stored[::-1] if transposed else stored
            target = result[row : row + part[0]]
            if target.shape != part:
                raise self._wrong_shape(names, shape)
            self._checkpoint.read_into(name, target.T if transposed else target)
            row += part[0]
        if row != shape[0]:
            raise self._wrong_shape(names, shape)
        return result

    def _require_same(self, head: str, embedding: str) -> None:
        stored = self._checkpoint.read(f"{head}.weight")
        if not torch.equal(stored, self._checkpoint.read(f"{embedding}.weight")):
            raise ModelError(
                "config.json says that the output head is the embedding, but the checkpoint holds "
                f"another one in {head}.weight",
                where=str(self._checkpoint.path),
                fix='write "tie_word_embeddings": false into config.json to use that head',
            )

    def _wrong_shape(self, names: Sequence[str], shape: tuple[int, ...]) -> ModelError:
        found = ", ".join(f"{name} {self._checkpoint.entry(name).shape}" for name in names)
        return ModelError(
            f"tensors don't make up the shape {shape} that config.json asks for: {found}",
            where=str(self._checkpoint.path),
            fix="config.json and weights are of different models; download the model again",
        )

    def _has(self, name: str) -> bool:
        return f"{name}.weight" in self._checkpoint.entries

"""The decoder: one data-driven forward pass for all supported architectures.

Tokens of many sequences stand in one flat dimension T, without padding. What tokens see of one
another is the business of the `Attention` that the caller passes in.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F

from helios_batch.models.config import DecoderConfig, LayerKind, Norm
from helios_batch.models.exits.assemble import ExitWeights
from helios_batch.models.rotary import RotaryTables, rotate
from helios_batch.models.weights import Affine, DecoderWeights, LayerWeights, MlpWeights


class Attention(Protocol):
    """Stores new keys and values of one layer, and attends to all that are stored."""

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Attend.

        Args:
            layer: index of the layer among those that run, the exit's included.
            query: [T, num_heads, head_dim], rotated.
            key: [T, num_kv_heads, head_dim], rotated.
            value: [T, num_kv_heads, head_dim].

        Returns:
            [T, num_heads, head_dim], in the order of the queries.
        """
        ...


class Decoder:
    """Runs the loaded layers of a model, then its exit.

    Without an exit, tokens leave through the model's own final norm and head, and `weights` may be
    deepened between calls. The first `own` layers are as in the model's files (default: all);
    the exit may have changed the others.
    """

    def __init__(
        self,
        config: DecoderConfig,
        weights: DecoderWeights,
        exit_: ExitWeights | None = None,
        own: int | None = None,
    ) -> None:
        self.config = config
        self.weights = weights
        self.exit = exit_ or ExitWeights()
        self.own = len(weights.layers) if own is None else own
        self.rotary = RotaryTables(config, weights.embedding.dtype, weights.embedding.device)

    def beside(self, exit_: ExitWeights) -> Decoder:
        """Return a decoder of the same layers with another exit."""
        other = copy.copy(self)
        other.exit = exit_
        return other

    @property
    def depth(self) -> int:
        """Layers loaded, those of the exit not counted."""
        return len(self.weights.layers)

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """What each layer that runs attends to; there is one KV cache for each."""
        return (*self.config.layers[: self.depth], *self.exit.kinds)

    @property
    def head(self) -> torch.Tensor:
        """The output head [vocab_size, hidden_size] of the exit."""
        return self.weights.head if self.exit.head is None else self.exit.head

    def forward(
        self, tokens: torch.Tensor, positions: torch.Tensor, attention: Attention
    ) -> torch.Tensor:
        """Return the hidden states after the exit's last layer, before the final norm.

        Args:
            tokens: [T] int64 token ids.
            positions: [T] int64, each token's position in its own sequence.
            attention: called once per layer.

        Returns:
            [T, hidden_size].
        """
        *_, hidden = self.states(tokens, positions, attention)
        return self.leave(hidden, positions, attention)

    def states(
        self, tokens: torch.Tensor, positions: torch.Tensor, attention: Attention
    ) -> Iterator[torch.Tensor]:
        """Yield the hidden states [T, hidden_size] after 0, 1, ... loaded layers."""
        hidden = self.embed(tokens, positions)
        yield hidden
        yield from self.run(hidden, positions, attention, range(self.depth))

    def states_from(
        self, hidden: torch.Tensor, positions: torch.Tensor, attention: Attention, first: int
    ) -> Iterator[torch.Tensor]:
        """Yield `hidden` [T, hidden_size], after `first` layers, and what `states` does from there.

        `positions` and `attention` are as for `forward`.
        """
        yield hidden
        yield from self.run(hidden, positions, attention, range(first, self.depth))

    def resume(
        self, hidden: torch.Tensor, positions: torch.Tensor, attention: Attention
    ) -> torch.Tensor:
        """Return what `forward` does, from hidden states before the first of the loaded layers.

        Args and result are those of `forward`, with `hidden` [T, hidden_size] for the tokens.
        """
        for after in self.run(hidden, positions, attention, range(self.depth)):
            hidden = after
        return self.leave(hidden, positions, attention)

    def run(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        attention: Attention,
        layers: range,
        frozen: torch.Tensor | None = None,
    ) -> Iterator[torch.Tensor]:
        """Yield the hidden states after each of some of the loaded layers.

        Args:
            hidden: [T, hidden_size], before the first of `layers`.
            positions: [T] int64, each token's position in its own sequence.
            attention: called once per layer.
            layers: indices of the layers.
            frozen: [T] bool; these tokens' states stay as they are, and give each layer's keys and
                values.
        """
        rotations = self.rotary.at(positions)
        for index in layers:
            rotation = rotations[self.config.layers[index].rotary]
            layer = self.weights.layers[index]
            hidden = self._layer(index, layer, hidden, rotation, attention, frozen)
            yield hidden

    def leave(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        attention: Attention,
        frozen: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run the exit's bridge, layers and MLP on hidden states after the loaded layers.

        Args and result are those of `forward`, with `hidden` [T, hidden_size] for the tokens;
        `frozen` is that of `run`, from the bridge on.
        """
        hidden = self.cross(hidden)
        if self.exit.layers:
            rotations = self.rotary.at(positions)
            exit_layers = zip(self.exit.kinds, self.exit.layers, strict=True)
            for index, (kind, layer) in enumerate(exit_layers, start=self.depth):
                rotation = rotations[kind.rotary]
                hidden = self._layer(index, layer, hidden, rotation, attention, frozen)
        return hidden if self.exit.mlp is None else self._mlp(self.exit.mlp, hidden)

    def cross(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return `hidden` [T, hidden_size] beyond the exit's bridge, if it has one."""
        return hidden if self.exit.bridge is None else linear(hidden, self.exit.bridge)

    def final_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return `hidden` [T, hidden_size] normed for the output head, if the exit has a norm."""
        if not self.exit.normed:
            return hidden
        return normalize(hidden, self.exit.norm or self.weights.final_norm, self.config.norm)

    def embed(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the hidden states [T, hidden_size] before the first layer; see `forward`."""
        hidden = F.embedding(tokens, self.weights.embedding)
        if self.config.embedding_scale != 1.0:
            # the factor is rounded to the model's type, as in the original
            hidden = hidden * hidden.new_tensor(self.config.embedding_scale)
        if self.weights.position_embedding is not None:
            rows = positions + (self.config.position_offset or 0)
            hidden = hidden + F.embedding(rows, self.weights.position_embedding)
        return hidden

    def _layer(
        self,
        index: int,
        layer: LayerWeights,
        hidden: torch.Tensor,
        rotation: torch.Tensor | None,
        attention: Attention,
        frozen: torch.Tensor | None,
    ) -> torch.Tensor:
        after = self._mlp(layer, self._attend(index, layer, hidden, rotation, attention))
        return after if frozen is None else torch.where(frozen[:, None], hidden, after)

    def _attend(
        self,
        index: int,
        layer: LayerWeights,
        hidden: torch.Tensor,
        rotation: torch.Tensor | None,
        attention: Attention,
    ) -> torch.Tensor:
        config = self.config
        normed = normalize(hidden, layer.attention_norm, config.norm)
        heads = linear(normed, layer.qkv).view(len(hidden), -1, config.head_dim)
        queries, rotated = config.num_heads, config.num_heads + config.num_kv_heads
        query_key, value = heads[:, :rotated], heads[:, rotated:]
        if layer.q_norm is not None and layer.k_norm is not None:
            query = normalize(query_key[:, :queries], layer.q_norm, config.norm)
            key = normalize(query_key[:, queries:], layer.k_norm, config.norm)
            query_key = torch.cat([query, key], dim=1)
        if rotation is not None:
            query_key = rotate(query_key, rotation)
        mixed = attention(index, query_key[:, :queries], query_key[:, queries:], value)
        update = linear(mixed.reshape(len(hidden), -1), layer.attention_out)
        if layer.attention_post_norm is not None:
            update = normalize(update, layer.attention_post_norm, config.norm)
        return update.add_(hidden)

    def _mlp(self, layer: LayerWeights | MlpWeights, hidden: torch.Tensor) -> torch.Tensor:
        config = self.config
        inner = linear(normalize(hidden, layer.mlp_norm, config.norm), layer.mlp_in)
        if config.gated:
            gate, up = inner.chunk(2, dim=-1)
            inner = _activate(gate, config.activation).mul_(up)
        else:
            inner = _activate(inner, config.activation)
        update = linear(inner, layer.mlp_out)
        if isinstance(layer, LayerWeights) and layer.mlp_post_norm is not None:
            update = normalize(update, layer.mlp_post_norm, config.norm)
        return update.add_(hidden)


def linear(x: torch.Tensor, parameters: Affine) -> torch.Tensor:
    """Return x @ weight.T + bias; x is [..., in], the result [..., out]."""
    result = F.linear(x, parameters.weight, parameters.bias)
    if parameters.delta is not None:
        result = result + F.linear(F.linear(x, parameters.delta.down), parameters.delta.up)
    return result


def normalize(x: torch.Tensor, parameters: Affine, norm: Norm) -> torch.Tensor:
    """Norm the last dimension of x in float32; the result has x's type."""
    size = x.shape[-1]
    if norm.kind == "layer":
        return F.layer_norm(x.float(), (size,), parameters.weight, parameters.bias, norm.eps).to(x)
    wide = x.float()
    if x.requires_grad:
        return (F.rms_norm(wide, (size,), eps=norm.eps) * parameters.weight).to(x.dtype)
    # vector_norm reads x once, where pow and mean write a temporary of x's size
    length: torch.Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = length.square_().div_(size).add_(norm.eps).rsqrt_()
    return (wide * scale).mul_(parameters.weight).to(x)


def _activate(x: torch.Tensor, name: str) -> torch.Tensor:
    match name:
        case "silu":
            return F.silu(x)
        case "relu":
            return F.relu(x)
        case "gelu":
            return F.gelu(x)
        case _:
            return F.gelu(x, approximate="tanh")

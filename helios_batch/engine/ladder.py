"""All layers of a model with its exits on the way up (EE-LLM, arXiv 2312.04916)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from helios_batch.engine.attention import DecodeAttention
from helios_batch.engine.device import Resources
from helios_batch.models.checkpoint import Checkpoint
from helios_batch.models.config import LayerKind
from helios_batch.models.decoder import Attention, Decoder
from helios_batch.models.exits.assemble import ExitWeights
from helios_batch.models.exits.file import ExitFile
from helios_batch.models.exits.load import load_exit
from helios_batch.models.folder import ModelFolder
from helios_batch.models.state_copy import skip_exit, skip_layers
from helios_batch.models.weights import GreedyLoader


class Rung(NamedTuple):
    """An exit, or full depth: the layer after which it is, and a decoder of all layers and it.

    `shift` is added to the decoder's indices of the exit's layers: each exit has a KV cache of its
    own for these, behind those of the exits below.
    """

    depth: int
    decoder: Decoder
    shift: int


class Ladder(NamedTuple):
    """The rungs from the first exit to full depth; they share the model's weights.

    `bytes_read` were taken from the model's files, of `bytes_stored` there.
    """

    rungs: tuple[Rung, ...]
    bytes_read: int
    bytes_stored: int

    @property
    def top(self) -> Decoder:
        """The decoder of full depth."""
        return self.rungs[-1].decoder

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """What each layer that keeps keys and values attends to: the model's, then each exit's."""
        exits = (kind for rung in self.rungs for kind in rung.decoder.exit.kinds)
        return (*self.top.config.layers, *exits)


def load_ladder(
    model: ModelFolder, resources: Resources, exits: Mapping[int, ExitFile | None]
) -> Ladder:
    """Read all of a model's layers and its exits.

    Args:
        model: the model's folder.
        resources: device and dtype.
        exits: by depth, below the model's own; None is the model's own final norm and head. None
            of them may change a layer before its depth.

    Raises:
        ModelError: weights can't be read.
    """
    config, layers = model.config, model.config.num_layers
    with Checkpoint(model.path) as checkpoint:
        names = model.architecture.tensor_names
        loader = GreedyLoader(config, names, checkpoint, resources.dtype, resources.device)
        weights = loader.load(layers)
        top = Decoder(config, weights)
        rungs, shift = [], 0
        for depth, exit_file in sorted(exits.items()):
            found = ExitWeights()
            if exit_file is not None:
                found = load_exit(exit_file, config, loader, weights)
            rungs.append(Rung(depth, top.beside(found), shift))
            shift += len(found.layers)
        rungs.append(Rung(layers, top, shift))
        return Ladder(tuple(rungs), checkpoint.bytes_read, checkpoint.total_bytes)


class Climb:
    """Tokens on their way up: `tokens` and `positions` are [T] int64.

    Tokens may be frozen: their hidden states stay as they are while the others run further layers,
    so what these layers keep of them is the state copy, as if they had been skipped.
    """

    def __init__(
        self,
        ladder: Ladder,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        attention: Attention,
    ) -> None:
        self._ladder, self._positions, self._attention = ladder, positions, attention
        self._hidden = ladder.top.embed(tokens, positions)
        self._frozen: torch.Tensor | None = None
        self._depth = 0

    def reach(self, rung: Rung) -> torch.Tensor:
        """Run the layers up to the next rung, and its exit.

        Returns:
            [T, hidden_size] hidden states before the exit's norm; those of frozen tokens are to be
            ignored.
        """
        positions, frozen = self._positions, self._frozen
        layers = range(self._depth, rung.depth)
        for after in rung.decoder.run(self._hidden, positions, self._attention, layers, frozen):
            self._hidden = after
        self._depth = rung.depth

        def attention(
            layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
        ) -> torch.Tensor:
            return self._attention(layer + rung.shift, query, key, value)

        return rung.decoder.leave(self._hidden, positions, attention, frozen)

    def freeze(self, tokens: list[int]) -> None:
        """Leave the hidden states of some of the T tokens as they are from now on."""
        if not tokens:
            return
        if self._frozen is None:
            self._frozen = torch.zeros(len(self._hidden), dtype=torch.bool).to(self._hidden.device)
        self._frozen[tokens] = True

    def skip_rest(self, attention: DecodeAttention) -> None:
        """Let what is above keep the state copy of all tokens, each as it was when it left."""
        hidden, positions, top = self._hidden, self._positions, self._ladder.top
        for copied in skip_layers(top, hidden, positions, range(self._depth, top.depth)):
            attention.store(*copied)
        for rung in self._ladder.rungs:
            if rung.depth > self._depth:
                for layer, key, value in skip_exit(rung.decoder, hidden, positions):
                    attention.store(layer + rung.shift, key, value)

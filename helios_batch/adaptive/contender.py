"""A candidate that is ready to run: its tokenizer, and the depths that the memory budget holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from helios_batch.engine.device import Resources
from helios_batch.engine.engine import Engine
from helios_batch.engine.memory import (
    StepShape,
    layer_bytes,
    plan_memory,
)
from helios_batch.errors import ResourceError
from helios_batch.helios.history import Depth, ModelHistory
from helios_batch.models.exits.file import ExitFile, exit_shape
from helios_batch.models.folder import ModelFolder
from helios_batch.models.tokenizer import Tokenizer
from helios_batch.spec import Confidence


@dataclass(frozen=True)
class Contender:
    """One of a job's models.

    Args:
        model: its folder.
        tokenizer: its own.
        exits: its exits by depth.
        depths: layers at which it may be left, shallow first.
        sequence_tokens: tokens of a sequence that the memory must hold at the least.
        confidence: how a token's confidence is measured.
    """

    model: ModelFolder
    tokenizer: Tokenizer
    exits: Mapping[int, ExitFile]
    depths: tuple[int, ...]
    sequence_tokens: int
    confidence: Confidence

    def history(self, resources: Resources) -> ModelHistory:
        """Return the table's entry before anything was observed: sizes, by the memory planner."""
        return ModelHistory(
            self.tokenizer.digest, [self._depth(layers, resources) for layers in self.depths]
        )

    def engine(self, place: int, resources: Resources) -> Engine:
        """Load an engine at depth number `place` that can deepen under running sequences.

        Raises:
            ModelError: the weights can't be read.
            ResourceError: the budget is too small.
        """
        layers = self.depths[place]
        return Engine(
            self.model,
            self.tokenizer,
            layers,
            resources,
            self.sequence_tokens,
            self.exits.get(layers),
            self.confidence,
            states=len(self.depths) > 1,
        )

    def _depth(self, layers: int, resources: Resources) -> Depth:
        config, itemsize = self.model.config, resources.dtype.itemsize
        extra, states = exit_shape(self.exits.get(layers)), len(self.depths) > 1
        shape = StepShape(max_batch=resources.max_batch)

        def plan(budget: int) -> tuple[int, int, int]:
            found = plan_memory(
                *(config, layers, itemsize, budget, shape, self.sequence_tokens, extra, states)
            )
            return found.weights, found.kv_per_token, found.batch_size

        weights, kv_per_token, _ = plan(1 << 62)
        try:
            batch = plan(resources.memory)[-1]
        except ResourceError:
            batch = 0
        # of a token: two operations for each weight that it meets
        head = config.vocab_size * config.hidden_size
        work = 2 * ((layers + extra.layers) * layer_bytes(config, 1) + head)
        return Depth(layers, float(work), weights, kv_per_token, batch)

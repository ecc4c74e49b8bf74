"""A candidate that is ready to run: its tokenizer, and the depths at which it may be left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from helios_batch.engine.device import Resources
from helios_batch.engine.engine import Engine
from helios_batch.engine.memory import MemoryPlan, StepShape, plan_memory
from helios_batch.engine.slots import capacity_class
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

    def engine(self, layers: int, resources: Resources, states: bool = False) -> Engine:
        """Load an engine at a depth; see `Engine`.

        Raises:
            ModelError: the weights can't be read.
            ResourceError: the budget is too small.
        """
        return Engine(
            self.model,
            self.tokenizer,
            layers,
            resources,
            self.sequence_tokens,
            self.exits.get(layers),
            self.confidence,
            states,
        )

    def plan(self, layers: int, resources: Resources, budget: int, states: bool) -> MemoryPlan:
        """Plan a budget in bytes at a depth.

        Raises:
            ResourceError: it is too small.
        """
        config, itemsize = self.model.config, resources.dtype.itemsize
        shape, extra = StepShape(max_batch=resources.max_batch), exit_shape(self.exits.get(layers))
        return plan_memory(
            *(config, layers, itemsize, budget, shape, self.sequence_tokens, extra, states)
        )

    def holds(self, layers: int, resources: Resources, states: bool = False) -> bool:
        """Whether the memory budget holds a depth."""
        return self.needs(layers, resources, states) <= resources.memory

    def needs(self, layers: int, resources: Resources, states: bool) -> int:
        """Return the least budget in bytes that holds a depth."""
        roomy = self.plan(layers, resources, 1 << 62, states)
        one = capacity_class(self.sequence_tokens) * roomy.kv_per_token
        return roomy.weights + roomy.activations + one

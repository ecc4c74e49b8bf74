"""What steps of a model on a chip take: the roofline, and what a host needs to launch them (pure).

Source: Williams, Waterman, Patterson, Roofline, Communications of the ACM 52 (2009).
"""

from __future__ import annotations

from dataclasses import dataclass

from helios_batch.engine.memory import StepShape, layer_bytes, plan_memory, weight_bytes
from helios_batch.errors import ResourceError
from helios_batch.helios.history import Depth, ModelHistory
from helios_batch.simulate.chips import Chip
from helios_batch.simulate.models import SimulatedModel

ITEMSIZE = 2
"""Bytes of an element in bfloat16."""


@dataclass(frozen=True)
class Machine:
    """Where a simulated engine runs.

    Args:
        chip: the accelerator.
        host_seconds: that the host takes to launch a layer; an exit's head counts as one. The chip
            works meanwhile, so the longer of the two is what a step takes.
        max_batch: the most sequences at once.
        sequence_tokens: of the sequences that memory is planned for.
    """

    chip: Chip
    host_seconds: float
    max_batch: int
    sequence_tokens: int = 768


@dataclass(frozen=True)
class Costs:
    """The seconds of a model's steps on a machine."""

    model: SimulatedModel
    machine: Machine

    def decode(self, layers: int, heads: int, batch: int, stored: int) -> float:
        """Return the seconds of a step of a token for each sequence.

        Args:
            layers: that it runs.
            heads: how often the output head runs: once for each exit that is looked at.
            batch: sequences.
            stored: tokens in their KV caches.
        """
        config = self.model.config
        weights = layers * layer_bytes(config, ITEMSIZE) + heads * self._head * ITEMSIZE
        read = weights + stored * layers * config.kv_elements_per_token * ITEMSIZE
        return self._step(layers + heads, read, batch * self._work(layers, heads), stored * layers)

    def prefill(self, layers: int, tokens: int, prompts: int, heads: int = 0) -> float:
        """Return the seconds that tokens of some prompts take, `heads` of them with logits."""
        if not tokens:
            return 0.0
        weights = layers * layer_bytes(self.model.config, ITEMSIZE)
        pairs = tokens * tokens / prompts / 2
        work = tokens * self._work(layers, 0) + heads * 2 * self._head
        return self._step(layers + bool(heads), weights, work, pairs * layers)

    def load(self, weights: int) -> float:
        """Return the seconds of reading so many bytes of weights from the host's memory."""
        return weights / self.machine.chip.link

    def history(self) -> ModelHistory:
        """Return the table's entry before anything was observed, as a contender's."""
        return ModelHistory("opt", [self._depth(layers) for layers in self.model.depths])

    def _depth(self, layers: int) -> Depth:
        config, chip = self.model.config, self.machine.chip
        shape = StepShape(max_batch=self.machine.max_batch)
        weights = weight_bytes(config, layers, ITEMSIZE)
        kv_per_token = layers * config.kv_elements_per_token * ITEMSIZE
        tokens = self.machine.sequence_tokens
        try:
            plan = plan_memory(config, layers, ITEMSIZE, chip.memory, shape, tokens)
            batch = plan.batch_size
        except ResourceError:
            batch = 0
        return Depth(layers, float(self._work(layers, 1)), weights, kv_per_token, batch)

    @property
    def _head(self) -> int:
        return self.model.config.vocab_size * self.model.config.hidden_size

    def _work(self, layers: int, heads: int) -> int:
        """Return the operations of a token: two for each weight that it meets."""
        return 2 * (layers * layer_bytes(self.model.config, 1) + heads * self._head)

    def _step(self, launches: int, read: int, work: float, pairs: float) -> float:
        """Return what takes longest: reading, multiplying, or launching."""
        config, chip = self.model.config, self.machine.chip
        attention = 4 * config.num_heads * config.head_dim * pairs
        on_chip = max(read / chip.bandwidth, (work + attention) / chip.flops)
        return max(on_chip, launches * self.machine.host_seconds)

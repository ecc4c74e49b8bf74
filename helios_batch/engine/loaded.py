"""A model at one depth on a device, within a memory budget: weights, KV cache and their plan."""

from __future__ import annotations

from dataclasses import replace

import torch

from helios_batch.engine.backbone import Backbone, Reading
from helios_batch.engine.device import Resources
from helios_batch.engine.kv_cache import KVCache
from helios_batch.engine.memory import MemoryPlan, StepShape, layer_bytes, plan_memory
from helios_batch.errors import ResourceError
from helios_batch.models.exits.file import ExitFile, exit_kind, exit_shape
from helios_batch.models.folder import ModelFolder
from helios_batch.records import EngineFacts


class LoadedModel:
    """The layers up to a depth, an exit, and a KV cache of what the budget leaves.

    Args:
        model: the model's folder.
        depth: layers to load; every token leaves there.
        exit_file: the exit at that depth; None is the model's own final norm and head.
        resources: device, dtype, memory budget, threads and largest batch.
        sequence_tokens: tokens of a sequence that the memory must hold at the least.
        states: whether hidden states are kept, so that it can deepen under running sequences.

    Raises:
        ModelError: the weights can't be read.
        ResourceError: the budget is too small.
    """

    def __init__(
        self,
        model: ModelFolder,
        depth: int,
        exit_file: ExitFile | None,
        resources: Resources,
        sequence_tokens: int,
        states: bool = False,
    ) -> None:
        torch.set_num_threads(resources.threads)
        self.model, self.resources = model, resources
        self.shape = StepShape(max_batch=resources.max_batch)
        self._states = states
        self.exit_file = exit_file
        self.plan = self._plan(depth, exit_file, sequence_tokens)
        self._backbone = Backbone(model, resources)
        reading = self._backbone.read(depth, exit_file)
        self.decoder = self._backbone.install(reading)
        self.facts = EngineFacts(
            model=model.name,
            num_layers=model.config.num_layers,
            layers_loaded=depth,
            layers_run=len(self.decoder.kinds),
            exit=exit_kind(model, depth, exit_file),
            device=str(resources.device),
            dtype=str(resources.dtype).removeprefix("torch."),
            weight_bytes_loaded=reading.bytes_read,
            weight_bytes_left=reading.bytes_stored - reading.bytes_read,
            memory_budget=resources.memory,
            batch_limit=self.plan.batch_size,
            weight_bytes=self.plan.weights,
            kv_bytes_per_token=self.plan.kv_per_token,
        )
        self.cache = self._new_cache()

    @property
    def depth(self) -> int:
        """Layers loaded."""
        return self.decoder.depth

    def holds(self, depth: int, exit_file: ExitFile | None) -> bool:
        """Whether the memory budget holds a depth with the sequences that are planned for."""
        try:
            self.check(depth, exit_file)
        except ResourceError:
            return False
        return True

    def check(self, depth: int, exit_file: ExitFile | None, sequence_tokens: int = 0) -> None:
        """Check that the budget holds a depth, with sequences of so many tokens too.

        Raises:
            ResourceError: it does not.
        """
        self._plan(depth, exit_file, max(sequence_tokens, self.plan.sequence_tokens))

    def move_to(self, depth: int, exit_file: ExitFile | None) -> None:
        """Load the layers of another depth that lack, drop those not needed; the cache is lost.

        Raises:
            ModelError: the weights can't be read; this is of no use any more.
            ResourceError: the budget does not hold the depth; all is as before.
        """
        if (depth, exit_file) == (self.facts.layers_loaded, self.exit_file):
            return
        plan = self._plan(depth, exit_file, self.plan.sequence_tokens)
        del self.cache, self.decoder  # the budget does not hold two
        self._backbone.drop(depth, exit_file)
        self._install(self._backbone.read(depth, exit_file), depth, exit_file, plan)
        self.cache = self._new_cache()

    def make_room(self, depth: int, exit_file: ExitFile | None) -> int | None:
        """Shrink the KV cache, so that a depth can be read beside what is in use.

        Returns how many slabs are left; None if the budget does not hold both, or if the exit there
        changes layers of which keys and values are stored, with all as before.
        """
        if self._backbone.kept(depth, exit_file) < self.decoder.own:
            return None
        beside, itemsize = exit_shape(self.exit_file), self.resources.dtype.itemsize
        # layers that either exit changes are read a second time
        again = self.depth - self._backbone.kept(depth, exit_file) + beside.tail_layers
        held = beside.elements * itemsize + again * layer_bytes(self.model.config, itemsize)
        try:
            plan = self._plan(depth, exit_file, self.plan.sequence_tokens, held)
        except ResourceError:
            return None
        layers = depth + exit_shape(exit_file).layers
        if plan.kv_tokens < self.cache.slab_tokens or layers < self.cache.layers:
            return None
        return self.cache.reserve(layers, plan.kv_tokens)

    def forget_room(self) -> None:
        """Take back what `make_room` did; what the cache held is lost."""
        del self.cache  # the budget does not hold two
        self.cache = self._new_cache()

    def read(self, depth: int, exit_file: ExitFile | None) -> Reading:
        """Read what lacks for a depth, from any thread; see `make_room` and `deepen`.

        Raises:
            ModelError: the weights can't be read; all is as before.
        """
        return self._backbone.read(depth, exit_file)

    def deepen(self, reading: Reading, depth: int, exit_file: ExitFile | None) -> int:
        """Install what was read; what lies in the cache of the first layers stays.

        Returns how many slabs there are now.
        """
        plan = self._plan(depth, exit_file, self.plan.sequence_tokens)
        self._install(reading, depth, exit_file, plan)
        return self.cache.extend(len(self.decoder.kinds), plan.kv_tokens)

    def replan(self, sequence_tokens: int) -> None:
        """Plan for sequences of another length: the weights stay.

        Raises:
            ResourceError: the budget is too small for them; all is as before.
        """
        plan = self._plan(self.depth, self.exit_file, sequence_tokens)
        self.facts = replace(self.facts, batch_limit=plan.batch_size)
        moved, self.plan = plan.kv_tokens != self.plan.kv_tokens, plan
        if moved:
            del self.cache  # the budget does not hold two
            self.cache = self._new_cache()

    def _plan(
        self, depth: int, exit_file: ExitFile | None, sequence_tokens: int, held: int = 0
    ) -> MemoryPlan:
        """Plan the budget without `held` bytes that something else takes."""
        resources, extra = self.resources, exit_shape(exit_file)
        itemsize, budget = resources.dtype.itemsize, resources.memory - held
        config, shape, states = self.model.config, self.shape, self._states
        return plan_memory(config, depth, itemsize, budget, shape, sequence_tokens, extra, states)

    def _install(
        self, reading: Reading, depth: int, exit_file: ExitFile | None, plan: MemoryPlan
    ) -> None:
        self.decoder = self._backbone.install(reading)
        self.plan, self.exit_file = plan, exit_file
        self.facts = replace(
            self.facts,
            layers_loaded=depth,
            layers_run=len(self.decoder.kinds),
            exit=exit_kind(self.model, depth, exit_file),
            batch_limit=plan.batch_size,
            weight_bytes=plan.weights,
            kv_bytes_per_token=plan.kv_per_token,
        )

    def _new_cache(self) -> KVCache:
        resources, tokens, layers = self.resources, self.plan.kv_tokens, len(self.decoder.kinds)
        config = self.model.config
        return KVCache(config, layers, tokens, resources.dtype, resources.device, self._states)

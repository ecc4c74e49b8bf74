"""The engine of policy `ee`: all layers loaded, and each token leaves where it is sure enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from helios_batch.engine.device import Resources
from helios_batch.engine.early_labels import EarlyLabeler
from helios_batch.engine.early_runner import EarlyRunner
from helios_batch.engine.kv_cache import KVCache
from helios_batch.engine.ladder import load_ladder
from helios_batch.engine.memory import MemoryPlan, StepShape, plan_memory
from helios_batch.engine.rows import Admission, completed
from helios_batch.engine.scheduler import Scheduler
from helios_batch.engine.sequence import Sequence as RunningSequence
from helios_batch.engine.slots import SlotAllocator, choose_slab
from helios_batch.engine.steps import Steps
from helios_batch.models.exits.file import ExitFile, exits_shape
from helios_batch.models.folder import ModelFolder
from helios_batch.models.tokenizer import Tokenizer
from helios_batch.records import EngineFacts, EngineStats, Generation, Progress, Prompt
from helios_batch.spec import Confidence, SamplingSpec


class EarlyExitEngine:
    """One model with all its layers and exits, as EE-LLM serves it (arXiv 2312.04916).

    See `early_runner.EarlyRunner` and `early_labels.EarlyLabeler` for when a row leaves.

    Args:
        model: the model's folder.
        tokenizer: the same model's tokenizer.
        exits: by depth, below the model's own; see `ladder.load_ladder`.
        threshold: confidence from which on a token leaves.
        resources: device, dtype, memory budget, threads and largest batch.
        sequence_tokens: tokens of a sequence that the memory must hold at the least.
        confidence: how a token's confidence is measured.

    Raises:
        ModelError: the weights can't be read.
        ResourceError: the budget is too small.
    """

    def __init__(
        self,
        model: ModelFolder,
        tokenizer: Tokenizer,
        exits: Mapping[int, ExitFile | None],
        threshold: float,
        resources: Resources,
        sequence_tokens: int,
        confidence: Confidence = "probability",
    ) -> None:
        torch.set_num_threads(resources.threads)
        self.model, self.tokenizer = model, tokenizer
        self.shape = StepShape(max_batch=resources.max_batch)
        self.stats = EngineStats()
        self._exits, self._threshold, self._resources = exits, threshold, resources
        self._confidence: Confidence = confidence
        self.plan = self._plan(sequence_tokens)
        self._ladder = load_ladder(model, resources, exits)
        self.facts = EngineFacts(
            model=model.name,
            num_layers=model.config.num_layers,
            layers_loaded=model.config.num_layers,
            layers_run=len(self._ladder.kinds),
            exit="ee",
            device=str(resources.device),
            dtype=str(resources.dtype).removeprefix("torch."),
            weight_bytes_loaded=self._ladder.bytes_read,
            weight_bytes_left=self._ladder.bytes_stored - self._ladder.bytes_read,
            memory_budget=resources.memory,
            batch_limit=self.plan.batch_size,
            weight_bytes=self.plan.weights,
            kv_bytes_per_token=self.plan.kv_per_token,
        )
        self._cache = self._new_cache()

    def adopt(self, tokenizer: Tokenizer, sequence_tokens: int) -> None:
        """Serve another job of this model: the weights stay, the KV cache is planned anew.

        Raises:
            ResourceError: the budget is too small for the job's sequences; the engine is as before.
        """
        plan = self._plan(sequence_tokens)
        self.tokenizer = tokenizer
        self.facts = replace(self.facts, batch_limit=plan.batch_size)
        moved, self.plan = plan.kv_tokens != self.plan.kv_tokens, plan
        if moved:
            del self._cache  # the budget does not hold two
            self._cache = self._new_cache()

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingSpec,
        on_step: Callable[[Progress], None] | None = None,
    ) -> list[Generation]:
        """Run prompts to their ends; see `engine.Engine.generate`, whose promises hold here."""
        self.stats = EngineStats()
        admission = Admission(self.model, self.tokenizer, self.plan.kv_tokens)
        sequences, results = admission.admit(prompts, sampling)
        if sequences:
            steps = self._steps(sequences)
            while (new := steps.step()) is not None:
                if on_step is not None:
                    done, batch = len(results) + len(steps.finished), steps.scheduler.running
                    on_step(Progress(done, len(new), max(len(new), batch)))
            for sequence in steps.finished:
                results[sequence.index] = completed(sequence, self.model, self.tokenizer)
        return [results[index] for index in range(len(prompts))]

    def label(
        self,
        prompts: Sequence[Prompt],
        choices: Sequence[str],
        on_step: Callable[[Progress], None] | None = None,
    ) -> list[Generation]:
        """Label each prompt with the likeliest of `choices`; see `engine.Engine.label`."""
        self.stats = EngineStats()
        labeler = EarlyLabeler(
            self.model,
            self.tokenizer,
            self._ladder,
            self._threshold,
            self._cache,
            self.shape,
            self._confidence,
        )
        return labeler.run(prompts, choices, self.stats, on_step)

    def _plan(self, sequence_tokens: int) -> MemoryPlan:
        config, resources = self.model.config, self._resources
        shape = exits_shape(found for found in self._exits.values() if found is not None)
        return plan_memory(
            config,
            config.num_layers,
            resources.dtype.itemsize,
            resources.memory,
            self.shape,
            sequence_tokens,
            shape,
        )

    def _new_cache(self) -> KVCache:
        resources, layers = self._resources, len(self._ladder.kinds)
        return KVCache(
            self.model.config, layers, self.plan.kv_tokens, resources.dtype, resources.device
        )

    def _steps(self, sequences: list[RunningSequence]) -> Steps:
        longest = max(sequence.capacity_needed for sequence in sequences)
        slab_tokens = choose_slab(self.plan.kv_tokens, longest)
        slots = SlotAllocator(self._cache.arrange(slab_tokens), slab_tokens)
        scheduler = Scheduler(slots, self.shape)
        runner = EarlyRunner(self._ladder, self._threshold, self._cache, slots, self._confidence)
        for sequence in sequences:
            scheduler.add(sequence)
        return Steps(scheduler, runner, self.stats)

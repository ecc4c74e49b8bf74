"""The engine of policy `ee`: all layers loaded, and each token leaves where it is sure enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from helios_batch.engine.device import Resources
from helios_batch.engine.early_labels import EarlyLabeler
from helios_batch.engine.early_runner import EarlyRunner, EarlyToken
from helios_batch.engine.kv_cache import KVCache
from helios_batch.engine.ladder import load_ladder
from helios_batch.engine.memory import MemoryPlan, StepShape, plan_memory
from helios_batch.engine.rows import Admission, completed
from helios_batch.engine.scheduler import PrefillStep, Scheduler
from helios_batch.engine.sequence import Sequence as RunningSequence
from helios_batch.engine.slots import SlotAllocator, choose_slab
from helios_batch.models.exits.file import ExitFile, exits_shape
from helios_batch.models.folder import ModelFolder
from helios_batch.models.tokenizer import Tokenizer
from helios_batch.records import EngineFacts, EngineStats, Generation, Progress, Prompt
from helios_batch.spec import Confidence, SamplingSpec


@dataclass(slots=True)
class _Call:
    """One call of `generate`: its sequences' fate, and at which layer each of their tokens left."""

    on_step: Callable[[Progress], None] | None
    results: dict[int, Generation]
    layers: dict[int, list[int]] = field(default_factory=dict)


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
        sequences, refused = admission.admit(prompts, sampling)
        call = _Call(on_step, refused)
        if sequences:
            self._run(sequences, call)
        return [call.results[index] for index in range(len(prompts))]

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

    def _run(self, sequences: list[RunningSequence], call: _Call) -> None:
        longest = max(sequence.capacity_needed for sequence in sequences)
        slab_tokens = choose_slab(self.plan.kv_tokens, longest)
        slots = SlotAllocator(self._cache.arrange(slab_tokens), slab_tokens)
        scheduler = Scheduler(slots, self.shape)
        runner = EarlyRunner(self._ladder, self._threshold, self._cache, slots, self._confidence)
        for sequence in sequences:
            scheduler.add(sequence)
        while (step := scheduler.next_step()) is not None:
            self.stats.largest_batch = max(self.stats.largest_batch, scheduler.running)
            batch, started = scheduler.running, time.perf_counter()
            if isinstance(step, PrefillStep):
                new = runner.prefill(step)
                self.stats.prefill_seconds += time.perf_counter() - started
            else:
                new = runner.decode(step)
                self.stats.decode_seconds += time.perf_counter() - started
                self.stats.decode_tokens += len(new)
                self.stats.decode_steps += 1
            self._commit(new, scheduler, runner, call)
            if call.on_step is not None:
                call.on_step(Progress(len(call.results), len(new), batch))

    def _commit(
        self, new: list[EarlyToken], scheduler: Scheduler, runner: EarlyRunner, call: _Call
    ) -> None:
        """Append the new tokens; let finished sequences go and close their gaps."""
        for sequence, token, confidence, layer in new:
            sequence.append(token, confidence)
            call.layers.setdefault(sequence.index, []).append(layer)
        # only now do all lengths count what the step has stored, as moves need them
        for sequence, *_ in new:
            if sequence.finish is not None:
                layers = tuple(call.layers.pop(sequence.index))
                found = completed(sequence, self.model, self.tokenizer, layers)
                call.results[sequence.index] = found
                move = scheduler.finish(sequence)
                if move is not None:
                    runner.move(move, scheduler.length_of(move.owner))

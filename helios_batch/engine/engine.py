"""The engine: prompts in, generations out, by continuous batching at a fixed depth."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from helios_batch.engine.backbone import Backbone
from helios_batch.engine.device import Resources
from helios_batch.engine.kv_cache import KVCache
from helios_batch.engine.labeling import Labeler
from helios_batch.engine.memory import MemoryPlan, StepShape, plan_memory
from helios_batch.engine.rows import Admission, completed
from helios_batch.engine.runner import NextToken, Runner
from helios_batch.engine.scheduler import PrefillStep, Scheduler
from helios_batch.engine.sequence import Sequence as RunningSequence
from helios_batch.engine.slots import SlotAllocator, choose_slab
from helios_batch.errors import ResourceError
from helios_batch.models.exits.file import ExitFile, exit_kind, exit_shape
from helios_batch.models.folder import ModelFolder
from helios_batch.models.tokenizer import Tokenizer
from helios_batch.records import EngineFacts, EngineStats, Generation, Progress, Prompt
from helios_batch.spec import Confidence, SamplingSpec


@dataclass(slots=True)
class _Call:
    """One call of `generate`: its sequences' fate."""

    on_step: Callable[[Progress], None] | None
    results: dict[int, Generation]


class Engine:
    """One model at one depth at a time on one device.

    Args:
        model: the model's folder.
        tokenizer: the same model's tokenizer.
        depth: layers to load; every token leaves there.
        exit_file: the exit at that depth; None is the model's own final norm and head.
        confidence: how a token's confidence is measured.
        resources: device, dtype, memory budget, threads and largest batch.
        sequence_tokens: tokens of a sequence that the memory must hold at the least.

    Raises:
        ModelError: the weights can't be read.
        ResourceError: the budget is too small.
    """

    def __init__(
        self,
        model: ModelFolder,
        tokenizer: Tokenizer,
        depth: int,
        resources: Resources,
        sequence_tokens: int,
        exit_file: ExitFile | None = None,
        confidence: Confidence = "probability",
    ) -> None:
        torch.set_num_threads(resources.threads)
        self.model = model
        self._resources = resources
        self.shape = StepShape(max_batch=resources.max_batch)
        self._exit_file = exit_file
        self._confidence: Confidence = confidence
        self.plan = self._plan(depth, sequence_tokens, exit_file)
        self.stats = EngineStats()
        self.tokenizer = tokenizer
        self._backbone = Backbone(model, resources)
        self._decoder = self._backbone.at(depth, exit_file)
        read, stored = self._backbone.bytes_read, self._backbone.bytes_stored
        self.facts = EngineFacts(
            model=model.name,
            num_layers=model.config.num_layers,
            layers_loaded=depth,
            layers_run=len(self._decoder.kinds),
            exit=exit_kind(model, depth, exit_file),
            device=str(resources.device),
            dtype=str(resources.dtype).removeprefix("torch."),
            weight_bytes_loaded=read,
            weight_bytes_left=stored - read,
            memory_budget=resources.memory,
            batch_limit=self.plan.batch_size,
        )
        self._cache = self._new_cache()

    def _plan(self, depth: int, sequence_tokens: int, exit_file: ExitFile | None) -> MemoryPlan:
        resources, config = self._resources, self.model.config
        itemsize, budget = resources.dtype.itemsize, resources.memory
        extra = exit_shape(exit_file)
        return plan_memory(config, depth, itemsize, budget, self.shape, sequence_tokens, extra)

    def holds(self, depth: int, exit_file: ExitFile | None) -> bool:
        """Whether the memory budget holds a depth with the sequences that are planned for."""
        try:
            self._plan(depth, self.plan.sequence_tokens, exit_file)
        except ResourceError:
            return False
        return True

    def move_to(self, depth: int, exit_file: ExitFile | None = None) -> None:
        """Let tokens leave at another depth: load the layers that lack, drop those not needed.

        The memory that this frees or takes is the KV cache's.

        Raises:
            ModelError: the weights can't be read; the engine is of no use any more.
            ResourceError: the budget does not hold the depth; the engine is as before.
        """
        if (depth, exit_file) == (self.facts.layers_loaded, self._exit_file):
            return
        plan = self._plan(depth, self.plan.sequence_tokens, exit_file)
        del self._cache, self._decoder  # the budget does not hold two
        self._decoder = self._backbone.at(depth, exit_file)
        self.plan, self._exit_file = plan, exit_file
        self.facts = replace(
            self.facts,
            layers_loaded=depth,
            layers_run=len(self._decoder.kinds),
            exit=exit_kind(self.model, depth, exit_file),
            batch_limit=plan.batch_size,
        )
        self._cache = self._new_cache()

    def adopt(self, tokenizer: Tokenizer, sequence_tokens: int) -> None:
        """Serve another job of this model: the weights stay, the KV cache is planned anew.

        Raises:
            ResourceError: the budget is too small for the job's sequences; the engine is as before.
        """
        plan = self._plan(self.depth, sequence_tokens, self._exit_file)
        self.tokenizer = tokenizer
        self.facts = replace(self.facts, batch_limit=plan.batch_size)
        moved, self.plan = plan.kv_tokens != self.plan.kv_tokens, plan
        if moved:
            del self._cache  # the budget does not hold two
            self._cache = self._new_cache()

    def _new_cache(self) -> KVCache:
        resources, tokens = self._resources, self.plan.kv_tokens
        layers = len(self._decoder.kinds)
        return KVCache(self.model.config, layers, tokens, resources.dtype, resources.device)

    @property
    def depth(self) -> int:
        """Layers loaded."""
        return self._decoder.depth

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingSpec,
        on_step: Callable[[Progress], None] | None = None,
    ) -> list[Generation]:
        """Run prompts to their ends; return their generations in the same order.

        A prompt that can't be run gives a generation with an error; the others are unaffected. At
        a given model and depth a row's result does not depend on the prompts beside it.
        """
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
        """Label each prompt with the likeliest of `choices`; return generations in the same order.

        See `labeling.Labeler`. What holds for `generate` holds here: a prompt that can't be run
        gives an error, and a row's result does not depend on the prompts beside it.
        """
        self.stats = EngineStats()
        labeler = Labeler(
            self.model, self.tokenizer, self._decoder, self._cache, self.shape, self._confidence
        )
        return labeler.run(prompts, choices, self.stats, on_step)

    def _run(self, sequences: list[RunningSequence], call: _Call) -> None:
        longest = max(sequence.capacity_needed for sequence in sequences)
        slab_tokens = choose_slab(self.plan.kv_tokens, longest)
        slots = SlotAllocator(self._cache.arrange(slab_tokens), slab_tokens)
        scheduler = Scheduler(slots, self.shape)
        runner = Runner(self._decoder, self._cache, slots, self._confidence)
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
        self, new: list[NextToken], scheduler: Scheduler, runner: Runner, call: _Call
    ) -> None:
        """Append the new tokens; let finished sequences go and close their gaps."""
        for sequence, token, confidence in new:
            sequence.append(token, confidence)
        # only now do all lengths count what the step has stored, as moves need them
        for sequence, _, _ in new:
            if sequence.finish is not None:
                layers = (self.depth,) * len(sequence.tokens)
                call.results[sequence.index] = completed(
                    sequence, self.model, self.tokenizer, layers
                )
                move = scheduler.finish(sequence)
                if move is not None:
                    runner.move(move, scheduler.length_of(move.owner))

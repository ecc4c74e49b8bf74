"""One call of the engine under way: its sequences step by step, and moves to other depths."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from helios_batch.engine.backbone import Reading
from helios_batch.engine.loaded import LoadedModel
from helios_batch.engine.picking import NextToken
from helios_batch.engine.runner import Runner
from helios_batch.engine.scheduler import Scheduler
from helios_batch.engine.sequence import Sequence
from helios_batch.engine.slots import SlotAllocator, choose_slab
from helios_batch.engine.steps import Steps
from helios_batch.models.exits.file import ExitFile
from helios_batch.records import EngineStats
from helios_batch.spec import Confidence


@dataclass(frozen=True)
class _Loading:
    """A depth that is being read while steps go on."""

    depth: int
    exit_file: ExitFile | None
    reading: Future[Reading]


class Running:
    """Sequences on a loaded model until they are finished, or taken away unfinished.

    Args:
        loaded: the model; while this runs, it is this one's alone.
        sequences: what to run, one or more; each fits the memory plan.
        confidence: how a token's confidence is measured.
        stats: counts what the steps take.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        sequences: list[Sequence],
        confidence: Confidence,
        stats: EngineStats,
    ) -> None:
        self._loaded, self._confidence, self._stats = loaded, confidence, stats
        self._longest = max(sequence.capacity_needed for sequence in sequences)
        self._slots = self._new_slots()
        self._scheduler = Scheduler(self._slots, loaded.shape)
        self._steps = Steps(self._scheduler, self._new_runner(), stats)
        self._loading: _Loading | None = None
        for sequence in sequences:
            self._scheduler.add(sequence)

    @property
    def finished(self) -> list[Sequence]:
        """Sequences that are done, in that order."""
        return self._steps.finished

    @property
    def is_moving(self) -> bool:
        """Whether another depth is being read; until then, tokens leave where they did."""
        return self._loading is not None

    @property
    def batch(self) -> int:
        """Sequences that hold a slot."""
        return self._scheduler.running

    @property
    def stored(self) -> int:
        """Tokens in the KV cache."""
        return sum(sequence.length for sequence in self._scheduler.in_flight)

    @property
    def unfinished(self) -> tuple[Sequence, ...]:
        """Sequences that run, then those that wait."""
        return self._scheduler.unfinished

    def step(self) -> list[NextToken] | None:
        """Make a step; return the tokens that came out of it, or None when all is done.

        Raises:
            ModelError: the layers to deepen by can't be read; the model is as before, this over.
        """
        if self._loading is not None and self._loading.reading.done():
            self._deepen(self._loading)
        return self._steps.step()

    def move_to(self, depth: int, exit_file: ExitFile | None) -> None:
        """Have tokens leave at another depth from now on, or as soon as its layers are read.

        Where the budget allows, deeper layers are read while steps go on, and then run over the
        kept hidden states of the sequences in flight. Otherwise, and towards fewer layers, these
        are prefilled again.

        Raises:
            ModelError: the weights can't be read.
            ResourceError: the budget does not hold the depth with these sequences; all is as
                before.
        """
        self.settle()
        loaded = self._loaded
        loaded.check(depth, exit_file, self._longest)
        if loaded.cache.keeps_states and depth > loaded.depth and loaded.decoder.own > 0:
            slabs = loaded.make_room(depth, exit_file)
            if slabs is not None:
                for index in reversed(self._slots.resize(slabs)):
                    self._scheduler.requeue(index)
                pool = ThreadPoolExecutor(1)
                reading = pool.submit(loaded.read, depth, exit_file)
                pool.shutdown(wait=False)
                self._loading = _Loading(depth, exit_file, reading)
                return
        started = time.perf_counter()
        self._note(loaded.depth, depth)
        for sequence in reversed(self._scheduler.in_flight):
            self._scheduler.requeue(sequence.index)
        del self._steps.runner  # nothing holds the old layers and cache while new ones come
        loaded.move_to(depth, exit_file)
        self._slots = self._new_slots()
        self._scheduler.use(self._slots)
        self._steps.runner = self._new_runner()
        self._stalled(time.perf_counter() - started)

    def settle(self) -> None:
        """Wait for what is being read, and go on with it."""
        if self._loading is not None:
            self._deepen(self._loading)

    def close(self) -> None:
        """End, finished or not: the model comes to the depth that is being read for it.

        Raises:
            ModelError: the layers can't be read; the model is as before.
        """
        if self._loading is not None:
            self._install(self._loading)

    def _install(self, loading: _Loading) -> int:
        """Wait for what is being read and use it; return how many slabs there are now."""
        loaded, self._loading = self._loaded, None
        del self._steps.runner  # nothing holds the old layers while the cache grows
        try:
            reading = loading.reading.result()
        except BaseException:
            loaded.forget_room()
            raise
        return loaded.deepen(reading, loading.depth, loading.exit_file)

    def _deepen(self, loading: _Loading) -> None:
        started, before = time.perf_counter(), self._loaded.depth
        first, shape = self._loaded.decoder.own, self._loaded.shape
        slabs = self._install(loading)
        self._note(before, loading.depth)
        self._slots.resize(slabs)
        runner = self._new_runner()
        runner.deepen(first, self._scheduler.in_flight, shape.chunk_tokens, shape.prefill_tokens)
        self._steps.runner = runner
        self._stalled(time.perf_counter() - started)

    def _note(self, before: int, depth: int) -> None:
        for sequence in self._scheduler.in_flight:
            moved = f"{before} to {depth} layers after {sequence.written} tokens"
            sequence.reactions.append(moved)

    def _stalled(self, seconds: float) -> None:
        self._stats.load_seconds += seconds
        self._stats.longest_stall = max(self._stats.longest_stall, seconds)

    def _new_runner(self) -> Runner:
        loaded = self._loaded
        return Runner(loaded.decoder, loaded.cache, self._slots, self._confidence)

    def _new_slots(self) -> SlotAllocator:
        slab_tokens = choose_slab(self._loaded.plan.kv_tokens, self._longest)
        return SlotAllocator(self._loaded.cache.arrange(slab_tokens), slab_tokens)

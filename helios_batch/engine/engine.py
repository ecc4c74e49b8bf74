"""The engine: prompts in, generations out, by continuous batching at a fixed depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from helios_batch.engine.device import Resources
from helios_batch.engine.following import Followed, follow
from helios_batch.engine.labeling import Labeler
from helios_batch.engine.loaded import LoadedModel
from helios_batch.engine.memory import MemoryPlan, StepShape
from helios_batch.engine.rows import Admission, completed, left_off
from helios_batch.engine.running import Running
from helios_batch.engine.scoring import score_completions
from helios_batch.engine.sequence import Sequence as RunningSequence
from helios_batch.engine.sequence import Written
from helios_batch.engine.slots import capacity_class
from helios_batch.models.exits.file import ExitFile
from helios_batch.models.folder import ModelFolder
from helios_batch.models.tokenizer import Tokenizer
from helios_batch.records import (
    EngineFacts,
    EngineStats,
    Generation,
    Progress,
    Prompt,
    RowError,
)
from helios_batch.spec import Confidence, SamplingSpec


class Engine:
    """One model at one depth at a time on one device.

    Args:
        model: the model's folder.
        tokenizer: the same model's tokenizer.
        depth: layers to load; every token leaves there.
        resources: device, dtype, memory budget, threads and largest batch.
        sequence_tokens: tokens of a sequence that the memory must hold at the least.
        exit_file: the exit at that depth; None is the model's own final norm and head.
        confidence: how a token's confidence is measured.
        states: whether memory goes into deepening under running sequences; see `Running.move_to`.

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
        states: bool = False,
    ) -> None:
        self._loaded = LoadedModel(model, depth, exit_file, resources, sequence_tokens, states)
        self.model, self.tokenizer = model, tokenizer
        self._confidence: Confidence = confidence
        self.stats = EngineStats()

    @property
    def facts(self) -> EngineFacts:
        """What the engine is now."""
        return self._loaded.facts

    @property
    def plan(self) -> MemoryPlan:
        """How the memory budget is spent."""
        return self._loaded.plan

    @property
    def shape(self) -> StepShape:
        """Limits of one step."""
        return self._loaded.shape

    @shape.setter
    def shape(self, shape: StepShape) -> None:
        self._loaded.shape = shape

    @property
    def depth(self) -> int:
        """Layers loaded."""
        return self._loaded.depth

    def holds(self, depth: int, exit_file: ExitFile | None) -> bool:
        """Whether the memory budget holds a depth with the sequences that are planned for."""
        return self._loaded.holds(depth, exit_file)

    def move_to(self, depth: int, exit_file: ExitFile | None = None) -> None:
        """Let tokens leave at another depth: load the layers that lack, drop those not needed.

        The memory that this frees or takes is the KV cache's.

        Raises:
            ModelError: the weights can't be read; the engine is of no use any more.
            ResourceError: the budget does not hold the depth; the engine is as before.
        """
        self._loaded.move_to(depth, exit_file)

    def adopt(self, tokenizer: Tokenizer, sequence_tokens: int) -> None:
        """Serve another job of this model: the weights stay, the KV cache is planned anew.

        Raises:
            ResourceError: the budget is too small for the job's sequences; the engine is as before.
        """
        self._loaded.replan(sequence_tokens)
        self.tokenizer = tokenizer

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
        results, running = self.start(prompts, sampling)
        while running is not None and (new := running.step()) is not None:
            if on_step is not None:
                done = len(results) + len(running.finished)
                on_step(Progress(done, len(new), max(len(new), running.batch)))
        if running is not None:
            results |= {s.index: self.generation(s) for s in running.finished}
        return [results[index] for index in range(len(prompts))]

    def start(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingSpec,
        before: Mapping[int, Written] | None = None,
    ) -> tuple[dict[int, Generation], Running | None]:
        """Begin to run prompts: return what is decided at once, by place, and what is under way.

        Args:
            prompts: rows to run.
            sampling: how tokens are drawn, and when a row ends.
            before: what another model has written of some prompts, by place; it is gone on with.
        """
        admission = Admission(self.model, self.tokenizer, self.plan.kv_tokens)
        sequences, refused = admission.admit(prompts, sampling, before)
        if not sequences:
            return refused, None
        return refused, Running(self._loaded, sequences, self._confidence, self.stats)

    def generation(self, sequence: RunningSequence) -> Generation:
        """Return what a finished sequence has come to."""
        return completed(sequence, self.model, self.tokenizer)

    def written(self, sequence: RunningSequence) -> Written:
        """Return what an unfinished sequence has come to, for another model to go on with."""
        return left_off(sequence, self.tokenizer)

    def follow(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]]
    ) -> list[Followed | None]:
        """Return what the model says along completions of prompts that it can run.

        None for one that the KV cache does not hold at this depth.

        Args:
            prompts: rows that `generate` gives no error for.
            completions: for each prompt the tokens that are given, one or more.
        """
        encoded = self.tokenizer.encode([prompt.content for prompt in prompts])
        found: list[Followed | None] = []
        for tokens, completion in zip(encoded, completions, strict=True):
            assert not isinstance(tokens, RowError), "a prompt that was run can be encoded"
            if capacity_class(len(tokens) + len(completion) - 1) > self.plan.kv_tokens:
                found.append(None)
            else:
                found.append(follow(self._loaded, tokens, list(completion), self._confidence))
        return found

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
        loaded = self._loaded
        labeler = Labeler(
            *(self.model, self.tokenizer, loaded.decoder, loaded.cache, loaded.shape),
            self._confidence,
        )
        return labeler.run(prompts, choices, self.stats, on_step)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]]) -> list[float]:
        """Return the mean log-probability of each completion's tokens after its prompt.

        Under the layers that are loaded now, teacher-forced, the soft-max in float32 and at a
        temperature of 1; in nats a token. A row's score does not depend on the rows beside it.

        Args:
            prompts: what the completions follow.
            completions: token ids, one or more, such as `Generation.token_ids`.

        Raises:
            ValueError: a prompt can't be run, or not with its completion.
        """
        self.stats = EngineStats()
        encoded = self.tokenizer.encode([prompt.content for prompt in prompts])
        loaded = self._loaded
        return score_completions(
            encoded, completions, loaded.decoder, loaded.cache, loaded.shape, self.stats
        )

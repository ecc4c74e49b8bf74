"""The engine: prompts in, generations out, by continuous batching at a fixed depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from helios_batch.engine.device import Resources
from helios_batch.engine.following import Followed, follow
from helios_batch.engine.labeling import Labeler
from helios_batch.engine.loaded import LoadedModel
from helios_batch.engine.memory import MemoryPlan
from helios_batch.engine.running import Running
from helios_batch.engine.scoring import score_completions
from helios_batch.engine.sequence import Sequence as RunningSequence
from helios_batch.engine.sequence import Written, cut_at_stop
from helios_batch.engine.slots import capacity_class
from helios_batch.models.exits.file import ExitFile
from helios_batch.models.folder import ModelFolder
from helios_batch.models.tokenizer import Tokenizer
from helios_batch.records import (
    EngineFacts,
    EngineStats,
    ErrorCode,
    ExitRecord,
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
        results: dict[int, Generation] = {}
        sequences = self._sequences(prompts, sampling, before or {}, results)
        if not sequences:
            return results, None
        return results, Running(self._loaded, sequences, self._confidence, self.stats)

    def follow(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]]
    ) -> list[Followed]:
        """Return what the model says along completions of prompts that it can run.

        Args:
            prompts: rows that `generate` gives no error for.
            completions: for each prompt the tokens that are given, one or more.
        """
        encoded = self.tokenizer.encode([prompt.content for prompt in prompts])
        found = []
        for tokens, completion in zip(encoded, completions, strict=True):
            assert not isinstance(tokens, RowError), "a prompt that was run can be encoded"
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

    def _sequences(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingSpec,
        before: Mapping[int, Written],
        results: dict[int, Generation],
    ) -> list[RunningSequence]:
        eos = frozenset() if sampling.ignore_eos else self.model.eos_tokens
        sequences = []
        encoded = self.tokenizer.encode([prompt.content for prompt in prompts])
        for index, (prompt, tokens) in enumerate(zip(prompts, encoded, strict=True)):
            written = before.get(index, Written())
            left = sampling.max_tokens - len(written.tokens)
            carried = self._carried(written)
            checked = tokens
            if not isinstance(tokens, RowError):
                checked = self._check(tokens + carried, left)
            if isinstance(checked, RowError):
                count = 0 if isinstance(tokens, RowError) else len(tokens)
                results[index] = Generation.failed(prompt.row, checked, count)
                continue
            room = self.model.config.context_length - len(checked)
            sequence = RunningSequence(
                index=index,
                row=prompt.row,
                prompt=checked,
                sampling=sampling,
                max_new=min(left, room),
                eos=eos,
                new_text=self.tokenizer.stream() if sampling.stop else None,
                before=written,
                carried=len(carried),
            )
            sequences.append(sequence)
        return sequences

    def _carried(self, written: Written) -> list[int]:
        """Return this model's tokens of what another one has written."""
        if written.tokenizer == self.tokenizer.digest:
            return list(written.tokens)
        return self.tokenizer.encode_plain([written.text])[0] if written.text else []

    def _check(self, tokens: list[int], new_tokens: int) -> list[int] | RowError:
        context = self.model.config.context_length
        if len(tokens) >= context:
            return RowError(
                ErrorCode.PROMPT_TOO_LONG,
                f"the prompt has {len(tokens)} tokens; the model's context holds {context}, "
                "with one at least to generate",
            )
        needed = len(tokens) + min(new_tokens, context - len(tokens)) - 1
        if capacity_class(needed) > self.plan.kv_tokens:
            return RowError(
                ErrorCode.EXCEEDS_MEMORY,
                f"the prompt and its completion come to {needed} tokens; the KV cache that fits "
                f"resources.memory holds {self.plan.kv_tokens}. With more memory, delete this part "
                "and run the job again",
            )
        if max(tokens) >= self.model.config.vocab_size:
            return RowError(
                ErrorCode.UNKNOWN_TOKEN,
                f"the tokenizer gives token {max(tokens)}; the model knows "
                f"{self.model.config.vocab_size} tokens",
            )
        return tokens

    def written(self, sequence: RunningSequence) -> Written:
        """Return what an unfinished sequence has come to, for another model to go on with."""
        before, tokens = sequence.before, list(sequence.tokens)
        text = self.tokenizer.decode(tokens)
        while tokens and text.endswith("\ufffd"):  # a character of which tokens are still to come
            tokens.pop()
            text = self.tokenizer.decode(tokens)
        return Written(
            text=before.text + text,
            tokens=(*before.tokens, *tokens),
            tokenizer=self.tokenizer.digest,
            layers=(*before.layers, *sequence.layers[: len(tokens)]),
            confidences=(*before.confidences, *sequence.confidences[: len(tokens)]),
            reactions=(*before.reactions, *sequence.reactions),
        )

    def generation(self, sequence: RunningSequence) -> Generation:
        """Return what a finished sequence has come to."""
        assert sequence.finish is not None, "only a finished sequence becomes a generation"
        before = sequence.before
        text = before.text + self.tokenizer.decode(sequence.tokens)
        tokens = (*before.tokens, *sequence.tokens)
        return Generation(
            row=sequence.row,
            text=cut_at_stop(text, sequence.sampling.stop),
            finish_reason=sequence.finish,
            prompt_tokens=len(sequence.prompt) - sequence.carried,
            completion_tokens=len(tokens),
            exit=ExitRecord(
                model=self.model.name,
                num_layers=self.model.config.num_layers,
                token_layers=(*before.layers, *sequence.layers),
                token_confidences=(*before.confidences, *sequence.confidences),
                reactions=(*before.reactions, *sequence.reactions),
            ),
            token_ids=tokens,
        )

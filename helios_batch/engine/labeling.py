"""Labels: choices scored exactly, all of a row over one computation of its prompt."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from helios_batch.engine.kv_cache import KVCache
from helios_batch.engine.memory import StepShape
from helios_batch.engine.scoring import score_step
from helios_batch.engine.slots import capacity_class
from helios_batch.engine.tape import Tape, TapeStep, tape_steps
from helios_batch.engine.verdict import Verdict
from helios_batch.models.choices import EncodedChoices
from helios_batch.models.decoder import Decoder
from helios_batch.models.folder import ModelFolder
from helios_batch.models.tokenizer import Tokenizer
from helios_batch.records import (
    EngineStats,
    ErrorCode,
    ExitRecord,
    FinishReason,
    Generation,
    Progress,
    Prompt,
    RowError,
)
from helios_batch.spec import Confidence


class Labeler:
    """Labels prompts with the likeliest of a few choices.

    The score of a choice is its log-probability after the prompt under the loaded layers: the sum
    over its tokens, not divided by their number, and with no end of text behind it. See `Verdict`
    for the label and its confidence.

    Args:
        model: the model's folder.
        tokenizer: the same model's tokenizer.
        decoder: its loaded layers.
        cache: scratch for the steps of one call; what it holds is lost.
        shape: limits of one step.
        confidence: how a row's confidence is measured.
    """

    def __init__(
        self,
        model: ModelFolder,
        tokenizer: Tokenizer,
        decoder: Decoder,
        cache: KVCache,
        shape: StepShape,
        confidence: Confidence,
    ) -> None:
        self._model, self._tokenizer, self._decoder = model, tokenizer, decoder
        self._cache, self._shape, self._confidence = cache, shape, confidence

    def run(
        self,
        prompts: Sequence[Prompt],
        choices: Sequence[str],
        stats: EngineStats,
        on_step: Callable[[Progress], None] | None = None,
    ) -> list[Generation]:
        """Return a labelled generation or an error for each prompt, and count in `stats`."""
        results: dict[int, Generation] = {}
        tapes = self._tapes(prompts, choices, results)
        self._cache.arrange(self._cache.tokens)
        context = self._model.config.context_length
        for step in tape_steps(tapes, self._shape, context, self._cache.tokens):
            started = time.perf_counter()
            self._score(step)
            tokens = 0
            for chunk in step.chunks:
                if chunk.ends_tape:
                    labelled = self._generation(chunk.tape, choices)
                    results[chunk.tape.index] = labelled
                    tokens += labelled.completion_tokens
            stats.prefill_seconds += time.perf_counter() - started
            stats.largest_batch = max(stats.largest_batch, len(step.chunks))
            if on_step is not None:
                on_step(Progress(len(results), tokens, len(step.chunks)))
        return [results[index] for index in range(len(prompts))]

    def _tapes(
        self, prompts: Sequence[Prompt], choices: Sequence[str], results: dict[int, Generation]
    ) -> list[Tape]:
        tapes = []
        encoded = self._tokenizer.encode_choices([prompt.content for prompt in prompts], choices)
        for index, (prompt, item) in enumerate(zip(prompts, encoded, strict=True)):
            if isinstance(item, RowError):
                results[index] = Generation.failed(prompt.row, item)
                continue
            tape = Tape(index, prompt.row, item)
            error = self._check(item, len(tape))
            if error is None:
                tapes.append(tape)
            else:
                results[index] = Generation.failed(prompt.row, error, item.prompt_tokens)
        return tapes

    def _check(self, encoded: EncodedChoices, needed: int) -> RowError | None:
        config, held = self._model.config, self._cache.tokens
        if encoded.longest > config.context_length:
            return RowError(
                ErrorCode.PROMPT_TOO_LONG,
                f"the prompt with its longest choice has {encoded.longest} tokens; the model's "
                f"context holds {config.context_length}",
            )
        if capacity_class(needed) > held:
            return RowError(
                ErrorCode.EXCEEDS_MEMORY,
                f"the prompt and its choices come to {needed} tokens; the KV cache that fits "
                f"resources.memory holds {held}. With more memory, delete this part and run the "
                "job again",
            )
        highest = max(max(tokens) for tokens in (encoded.prefix, *encoded.choices))
        if highest >= config.vocab_size:
            return RowError(
                ErrorCode.UNKNOWN_TOKEN,
                f"the tokenizer gives token {highest}; the model knows {config.vocab_size} tokens",
            )
        return None

    def _score(self, step: TapeStep) -> None:
        """Run a step's chunks and add what they tell to the scores of their tapes."""
        score_step(step, self._decoder, self._cache)

    def _verdict(self, tape: Tape) -> Verdict:
        """Judge a tape whose last chunk was run."""
        decoder = self._decoder
        temperature = decoder.exit.choice_temperature
        return Verdict.of(tape.scores, temperature, decoder.depth, self._confidence)

    def _generation(self, tape: Tape, choices: Sequence[str]) -> Generation:
        found = self._verdict(tape)
        label, tokens = choices[found.label], len(tape.encoded.choices[found.label])
        return Generation(
            row=tape.row,
            text=label,
            finish_reason=FinishReason.STOP,
            prompt_tokens=tape.encoded.prompt_tokens,
            completion_tokens=tokens,
            exit=ExitRecord(
                model=self._model.name,
                num_layers=self._model.config.num_layers,
                token_layers=(found.depth,) * tokens,
                token_confidences=(found.confidence,) * tokens,
            ),
            label=label,
            label_probability=found.probabilities,
        )

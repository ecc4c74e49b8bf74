"""Rows in and out: prompts become sequences, and finished sequences generations."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Several
from typing import NamedTuple

from helios_batch.engine.sequence import Sequence, Written, cut_at_stop
from helios_batch.engine.slots import capacity_class
from helios_batch.models.folder import ModelFolder
from helios_batch.models.tokenizer import Tokenizer
from helios_batch.records import ErrorCode, ExitRecord, Generation, Prompt, RowError
from helios_batch.spec import SamplingSpec

_BROKEN_TOKENS = 3
"""Tokens that a character may have before its last one: it has four bytes at most."""


class Admitted(NamedTuple):
    """The prompts that can run, and the failed generations of those that can't, by index."""

    sequences: list[Sequence]
    refused: dict[int, Generation]


class Admission(NamedTuple):
    """Decides which prompts can run on a model with a KV cache of `kv_tokens` tokens."""

    model: ModelFolder
    tokenizer: Tokenizer
    kv_tokens: int

    def admit(
        self,
        prompts: Several[Prompt],
        sampling: SamplingSpec,
        before: Mapping[int, Written] | None = None,
    ) -> Admitted:
        """Tokenize prompts and check each; their indices are their places here.

        `before` is what another model has written of some prompts, by place; it is gone on with.
        """
        eos = frozenset() if sampling.ignore_eos else self.model.eos_tokens
        sequences: list[Sequence] = []
        refused: dict[int, Generation] = {}
        encoded = self.tokenizer.encode([prompt.content for prompt in prompts])
        for index, (prompt, tokens) in enumerate(zip(prompts, encoded, strict=True)):
            written = (before or {}).get(index, Written())
            carried, left = self._carried(written), sampling.max_tokens - len(written.tokens)
            checked = tokens
            if not isinstance(tokens, RowError):
                checked = self._check(tokens + carried, left)
            if isinstance(checked, RowError):
                count = 0 if isinstance(tokens, RowError) else len(tokens)
                refused[index] = Generation.failed(prompt.row, checked, count)
                continue
            room = self.model.config.context_length - len(checked)
            sequence = Sequence(
                index=index,
                row=prompt.row,
                prompt=checked,
                sampling=sampling,
                max_new=min(left, room),
                eos=eos,
                new_text=self.tokenizer.stream(carried) if sampling.stop else None,
                before=written,
                carried=len(carried),
            )
            sequences.append(sequence)
        return Admitted(sequences, refused)

    def _carried(self, written: Written) -> list[int]:
        """Return this model's tokens of what another one has written."""
        if written.tokenizer == self.tokenizer.digest:
            return list(written.carried)
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
        if capacity_class(needed) > self.kv_tokens:
            return RowError(
                ErrorCode.EXCEEDS_MEMORY,
                f"the prompt and its completion come to {needed} tokens; the KV cache that fits "
                f"resources.memory holds {self.kv_tokens}. With more memory, delete this part "
                "and run the job again",
            )
        if max(tokens) >= self.model.config.vocab_size:
            return RowError(
                ErrorCode.UNKNOWN_TOKEN,
                f"the tokenizer gives token {max(tokens)}; the model knows "
                f"{self.model.config.vocab_size} tokens",
            )
        return tokens


def completed(sequence: Sequence, model: ModelFolder, tokenizer: Tokenizer) -> Generation:
    """Return what came of a finished sequence."""
    assert sequence.finish is not None, "only a finished sequence becomes a generation"
    before = sequence.before
    text = _text(sequence, sequence.tokens, tokenizer)
    tokens = (*before.tokens, *sequence.tokens)
    return Generation(
        row=sequence.row,
        text=cut_at_stop(text, sequence.sampling.stop),
        finish_reason=sequence.finish,
        prompt_tokens=len(sequence.prompt) - sequence.carried,
        completion_tokens=len(tokens),
        exit=ExitRecord(
            model=model.name,
            num_layers=model.config.num_layers,
            token_layers=(*before.layers, *sequence.layers),
            token_confidences=(*before.confidences, *sequence.confidences),
            reactions=(*before.reactions, *sequence.reactions),
        ),
        token_ids=tokens,
    )


def left_off(sequence: Sequence, tokenizer: Tokenizer) -> Written:
    """Return what an unfinished sequence has come to, for another model to go on with."""
    before, tokens = sequence.before, sequence.tokens
    for count in range(min(_BROKEN_TOKENS, len(tokens)) + 1):
        some = tokens[: len(tokens) - count]
        text = _text(sequence, some, tokenizer)
        if not text.endswith("\ufffd"):
            tokens = some
            break
    else:  # no more tokens make it a character
        text = _text(sequence, tokens, tokenizer)
    return Written(
        text=text,
        tokens=(*before.tokens, *tokens),
        tokenizer=tokenizer.digest,
        layers=(*before.layers, *sequence.layers[: len(tokens)]),
        confidences=(*before.confidences, *sequence.confidences[: len(tokens)]),
        reactions=(*before.reactions, *sequence.reactions),
        carried=(*_carried(sequence), *tokens),
    )


def _carried(sequence: Sequence) -> list[int]:
    return sequence.prompt[len(sequence.prompt) - sequence.carried :]


def _text(sequence: Sequence, tokens: list[int], tokenizer: Tokenizer) -> str:
    """Return what was written before and the text of `tokens` after it.

    Some tokenizers drop a space at the beginning of what they decode, so they get both.
    """
    carried = _carried(sequence)
    known, whole = tokenizer.decode(carried), tokenizer.decode([*carried, *tokens])
    text = whole.removeprefix(known) if whole.startswith(known) else tokenizer.decode(tokens)
    return sequence.before.text + text

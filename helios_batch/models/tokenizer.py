"""A model's own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path

from helios_batch.cache import file_digest
from helios_batch.errors import ModelError
from helios_batch.models.choices import EncodedChoices, split
from helios_batch.records import ErrorCode, Message, RowError


class Tokenizer:
    """Turns prompts into token ids and token ids into text.

    Args:
        folder: the model's folder.
        now: what chat templates that print a date take for today; a job's rows must not depend on
            the day that they ran on.

    Raises:
        ModelError: the folder holds no usable tokenizer.
    """

    def __init__(self, folder: Path, now: datetime) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except Exception as exc:  # transformers raises many kinds
            raise ModelError(
                f"the model's tokenizer can't be read: {exc}",
                where=str(folder),
                fix="the folder must hold tokenizer.json, or what transformers makes it from",
            ) from None
        # prompts are checked against the context here, with an error of their own
        self._tokenizer.model_max_length = int(1e30)
        self._now = now
        self._folder = folder

    @cached_property
    def digest(self) -> str:
        """Equal for tokenizers that give the same ids to the same text."""
        file = self._folder / "tokenizer.json"
        return file_digest(file) if file.is_file() else str(self._folder.resolve())

    @property
    def has_chat_template(self) -> bool:
        """Whether chat messages can be rendered."""
        return self._tokenizer.chat_template is not None

    def encode(self, contents: Sequence[str | tuple[Message, ...]]) -> list[list[int] | RowError]:
        """Tokenize prompts: plain text with the model's special tokens, messages by its template.

        A prompt that the chat template refuses, or that comes to no tokens, is a `RowError`.
        """
        results: list[list[int] | RowError] = [[] for _ in contents]
        for special, texts in self._render(contents, results).items():
            if texts:
                encoded = self._tokenizer(list(texts.values()), add_special_tokens=special)
                for index, ids in zip(texts, encoded["input_ids"], strict=True):
                    results[index] = ids or _no_tokens()
        return results

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize texts as they stand in the midst of others, without special tokens."""
        if not texts:
            return []
        encoded = self._tokenizer(list(texts), add_special_tokens=False)
        return [list(ids) for ids in encoded["input_ids"]]

    def encode_choices(
        self, contents: Sequence[str | tuple[Message, ...]], choices: Sequence[str]
    ) -> Iterator[EncodedChoices | RowError]:
        """Tokenize prompts, each with every choice written right behind it.

        A prompt that `encode` refuses, or all of which merges with a choice, is a `RowError`.
        """
        results: list[list[int] | RowError] = [[] for _ in contents]
        rendered = self._render(contents, results)
        for index, result in enumerate(results):
            if isinstance(result, RowError):
                yield result
                continue
            special = index in rendered[True]
            text = rendered[special][index]
            # row by row: the whole texts of many rows and choices would be long lists
            texts = [text, *(text + choice for choice in choices)]
            prompt, *whole = self._tokenizer(texts, add_special_tokens=special)["input_ids"]
            yield split(prompt, whole) if prompt else _no_tokens()

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`, without special tokens."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def stream(self, before: Sequence[int] = ()) -> Callable[[int], str]:
        """Return a function that takes one token after another and returns each one's new text.

        `before` are the tokens that they follow.
        """
        from tokenizers.decoders import DecodeStream

        stream, backend = DecodeStream(skip_special_tokens=True), self._tokenizer.backend_tokenizer
        for token in before:
            stream.step(backend, token)
        return lambda token: stream.step(backend, token) or ""

    def _render(
        self,
        contents: Sequence[str | tuple[Message, ...]],
        results: list[list[int] | RowError],
    ) -> dict[bool, dict[int, str]]:
        """Return texts by index, apart for those that need special tokens added."""
        texts: dict[bool, dict[int, str]] = {True: {}, False: {}}
        for index, content in enumerate(contents):
            if isinstance(content, str):
                texts[True][index] = content
                continue
            try:
                texts[False][index] = self._tokenizer.apply_chat_template(
                    list(content),
                    tokenize=False,
                    add_generation_prompt=True,
                    strftime_now=self._now.strftime,
                )
            except Exception as exc:  # the template is the model's and can raise anything
                results[index] = RowError(
                    ErrorCode.BAD_MESSAGES, f"the model's chat template refuses: {exc}"
                )
        return texts


def _no_tokens() -> RowError:
    return RowError(ErrorCode.EMPTY_PROMPT, "the prompt comes to no tokens")

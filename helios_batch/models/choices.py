"""Choices as tokens: what a row's choices share with its prompt, and what sets them apart.

A tokenizer may merge the end of a prompt with the beginning of a choice ("Answer: " and "io" become
"Answer", ":", " io"). So each choice is tokenized together with its prompt, as a text that the
model could have read, and the prompt is shared only as far as all these texts begin with its
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from helios_batch.records import ErrorCode, RowError


@dataclass(frozen=True, slots=True)
class EncodedChoices:
    """A prompt with its choices, as tokens.

    `prefix` is what they all begin with and lies within the prompt; `choices` holds what follows
    in each, one token at least. `prefix` followed by a choice is exactly how the tokenizer cuts
    the whole text. `prompt_tokens` counts the prompt's own tokens.
    """

    prompt_tokens: int
    prefix: list[int]
    choices: tuple[list[int], ...]

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest choice."""
        return len(self.prefix) + max(map(len, self.choices))

    @property
    def total(self) -> int:
        """Tokens of the prefix and of all choices."""
        return len(self.prefix) + sum(map(len, self.choices))

    def shadowed(self) -> tuple[int, int] | None:
        """Return a choice whose tokens begin with all those of another, and that other.

        The first can never be likelier than the other.
        """
        seen: dict[tuple[int, ...], int] = {}
        for index, choice in sorted(enumerate(self.choices), key=lambda item: len(item[1])):
            begins = (tuple(choice[:length]) for length in range(1, len(choice) + 1))
            other = next((seen[tokens] for tokens in begins if tokens in seen), None)
            if other is not None:
                return index, other
            seen[tuple(choice)] = index
        return None


def split(prompt: list[int], texts: Sequence[list[int]]) -> EncodedChoices | RowError:
    """Find what a prompt shares with its choices.

    Args:
        prompt: tokens of the prompt alone.
        texts: tokens of the prompt with each choice behind it.
    """
    shared = min(_common(prompt, text) for text in texts)
    # the last token of every text belongs to the choice, even one that added none
    shared = min(shared, min(map(len, texts)) - 1)
    if shared < 1:
        return RowError(
            ErrorCode.EMPTY_PROMPT,
            "no token of the prompt stays its own before each choice: there is nothing to score "
            "the choices after",
        )
    return EncodedChoices(len(prompt), prompt[:shared], tuple(text[shared:] for text in texts))


def _common(first: list[int], second: list[int]) -> int:
    """Return how many tokens two lists begin with alike."""
    pairs = zip(first, second, strict=False)
    return next(
        (i for i, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second))
    )

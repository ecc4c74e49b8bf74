"""A sequence: one row on its way through the engine (no torch)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from helios_batch.engine.slots import Slot
from helios_batch.records import FinishReason
from helios_batch.spec import SamplingSpec


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt, what was generated for it, and where it stands.

    The engine fills `tokens`, `confidences` and `finish`; the scheduler `slot` and `prefilled`.
    `max_new` already respects the context length. `eos` is empty if end-of-text is ignored.
    """

    index: int
    row: int
    prompt: list[int]
    sampling: SamplingSpec
    max_new: int
    eos: frozenset[int]
    new_text: Callable[[int], str] | None
    slot: Slot | None = None
    prefilled: int = 0
    tokens: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    finish: FinishReason | None = None
    _tail: str = ""
    _random: np.random.Generator | None = None

    @property
    def capacity_needed(self) -> int:
        """Tokens whose keys and values are stored: all but the last one generated."""
        return len(self.prompt) + self.max_new - 1

    @property
    def length(self) -> int:
        """Tokens stored in the KV cache."""
        return self.prefilled + max(0, len(self.tokens) - 1)

    @property
    def prompt_done(self) -> bool:
        """Whether the whole prompt is in the KV cache."""
        return self.prefilled == len(self.prompt)

    def uniform(self) -> float:
        """Draw the next number in [0, 1) of this row's own generator.

        The generator is keyed by (seed, row), so that a row draws the same numbers in any batch.
        """
        if self._random is None:
            key = np.array([self.sampling.seed, self.row], dtype=np.uint64)
            self._random = np.random.Generator(np.random.Philox(key=key))
        return float(self._random.random())

    def append(self, token: int, confidence: float) -> None:
        """Take the next token, and set `finish` if it ends the sequence."""
        self.tokens.append(token)
        self.confidences.append(confidence)
        if token in self.eos or self._stop_string_completed(token):
            self.finish = FinishReason.STOP
        elif len(self.tokens) == self.max_new:
            self.finish = FinishReason.LENGTH

    def _stop_string_completed(self, token: int) -> bool:
        if self.new_text is None:
            return False
        self._tail += self.new_text(token)
        if any(stop in self._tail for stop in self.sampling.stop):
            return True
        keep = max(map(len, self.sampling.stop)) - 1
        self._tail = self._tail[-keep:] if keep else ""
        return False


def cut_at_stop(text: str, stops: tuple[str, ...]) -> str:
    """Return `text` up to the first of the stop strings in it."""
    found = [text.find(stop) for stop in stops if stop in text]
    return text[: min(found)] if found else text

"""A sequence: one row on its way through the engine (no torch)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from helios_batch.engine.slots import Slot
from helios_batch.records import FinishReason
from helios_batch.spec import SamplingSpec


@dataclass(frozen=True, slots=True)
class Written:
    """What another model has written of a row, before this one went on with it.

    `text` is part of the context that this one was given. `tokens` are as they were written, by one
    model or more; `carried` are those of the whole text by the tokenizer that has the digest
    `tokenizer`.
    """

    text: str = ""
    tokens: tuple[int, ...] = ()
    tokenizer: str = ""
    layers: tuple[int, ...] = ()
    confidences: tuple[float, ...] = ()
    reactions: tuple[str, ...] = ()
    carried: tuple[int, ...] = ()


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt, what was generated for it, and where it stands.

    The engine fills `tokens`, `layers`, `confidences`, `reactions` and `finish`; the scheduler
    `slot` and `prefilled`. The last `carried` tokens of `prompt` are what was written `before`.
    `max_new` counts what is still to come, and already respects the context length. `eos` is empty
    if end-of-text is ignored. `context` is what is prefilled: the prompt, and after `restart` the
    tokens generated before it.
    """

    index: int
    row: int
    prompt: list[int]
    sampling: SamplingSpec
    max_new: int
    eos: frozenset[int]
    new_text: Callable[[int], str] | None
    before: Written = Written()
    carried: int = 0
    slot: Slot | None = None
    prefilled: int = 0
    tokens: list[int] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    reactions: list[str] = field(default_factory=list)
    finish: FinishReason | None = None
    context: list[int] = field(init=False)
    _tail: str = ""
    _random: np.random.Generator | None = None

    def __post_init__(self) -> None:
        self.context = self.prompt
        self._tail = self._cut(self.before.text)

    @property
    def capacity_needed(self) -> int:
        """Tokens whose keys and values are stored: all but the last one generated."""
        return len(self.prompt) + self.max_new - 1

    @property
    def length(self) -> int:
        """Tokens stored in the KV cache."""
        after = len(self.prompt) + len(self.tokens) - len(self.context)
        return self.prefilled + max(0, after - 1)

    @property
    def prompt_done(self) -> bool:
        """Whether the whole context is in the KV cache."""
        return self.prefilled == len(self.context)

    @property
    def written(self) -> int:
        """Tokens generated so far, by other models too."""
        return len(self.before.tokens) + len(self.tokens)

    def restart(self) -> None:
        """Have all tokens so far prefilled anew: they are in no KV cache any more."""
        self.slot, self.prefilled = None, 0
        self.context = self.prompt + self.tokens

    def uniform(self) -> float:
        """Draw the next number in [0, 1) of this row's own generator.

        The generator is keyed by (seed, row), so that a row draws the same numbers in any batch.
        """
        if self._random is None:
            key = np.array([self.sampling.seed, self.row], dtype=np.uint64)
            self._random = np.random.Generator(np.random.Philox(key=key))
            self._random.random(len(self.before.tokens))
        return float(self._random.random())

    def append(self, token: int, layer: int, confidence: float) -> None:
        """Take the next token, which left at `layer`; set `finish` if it ends the sequence."""
        self.tokens.append(token)
        self.layers.append(layer)
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
        self._tail = self._cut(self._tail)
        return False

    def _cut(self, text: str) -> str:
        """Return as much of the end of `text` as a stop string may begin in."""
        kept = max(map(len, self.sampling.stop), default=1) - 1
        return text[-kept:] if kept else ""


def cut_at_stop(text: str, stops: tuple[str, ...]) -> str:
    """Return `text` up to the first of the stop strings in it."""
    found = [text.find(stop) for stop in stops if stop in text]
    return text[: min(found)] if found else text

"""The breach counter: are too many tokens unsure, or has it been calm for long (pure)?

Source: HELIOS, arXiv 2504.10724, section 4: a token under the threshold still leaves, and is
counted; in each window the count may reach a limit before anything happens. The way back is this
project's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_CALM_SHARE = 0.5
_FIRST_PATIENCE = 4
_LONGEST_PATIENCE = 1024


@dataclass
class BreachCounter:
    """Counts in windows one after the other, over the tokens of all sequences of a batch.

    After `patience` windows in a row with at most half the limit, it is calm: a shallower depth
    may be tried again. Each time that this turns out wrong, patience doubles.

    Args:
        threshold: least confidence of a token that is no breach.
        window: tokens of a window.
        limit: breaches that a window may have.
    """

    threshold: float
    window: int
    limit: int
    share: float = 0.0
    _tokens: int = 0
    _breaches: int = 0
    _calm: int = 0
    _patience: int = _FIRST_PATIENCE
    _came_back: bool = False

    def add(self, confidences: Iterable[float]) -> bool:
        """Count tokens; tell whether a window among them had more breaches than the limit.

        `share` is then that of the last such window.
        """
        tripped = False
        for confidence in confidences:
            self._tokens += 1
            self._breaches += confidence < self.threshold
            if self._tokens == self.window:
                tripped |= self._close()
        return tripped

    def _close(self) -> bool:
        tripped = self._breaches > self.limit
        if tripped:
            self.share = self._breaches / self.window
        calm = self._breaches <= _CALM_SHARE * self.limit
        self._calm = self._calm + 1 if calm else 0
        self._tokens = self._breaches = 0
        return tripped

    @property
    def is_calm(self) -> bool:
        """Whether a shallower depth may be tried."""
        return self._calm >= self._patience

    def wait(self) -> None:
        """Stay, though it is calm: ask again when it has been so for as long again."""
        self._calm = 0

    def moved(self, back: bool = False, unsure: bool = False) -> None:
        """Begin anew after a move.

        Args:
            back: it went to a shallower depth, because it was calm.
            unsure: it is because of breaches; right after a way back, that was wrong.
        """
        if self._came_back and unsure:
            self._patience = min(2 * self._patience, _LONGEST_PATIENCE)
        self._came_back = back
        self._tokens = self._breaches = self._calm = 0

"""The breach counter: are too many tokens unsure, or has it been calm for long (pure)?

Source: HELIOS, arXiv 2504.10724, section 4: a token under the threshold still leaves, and is
counted; in each window the count may reach a limit before anything happens. The way back is this
project's, and so are windows for batches. One that held a fixed number of tokens would be a slice
of a large batch's step, the same few rows each time, and a hard slice would move the whole batch.
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

    A window ends with the step that fills it, and holds all tokens of its steps; its limit grows in
    proportion. With a token a step, windows are the paper's; a step that is larger than a window is
    one by itself. After `patience` windows in a row with at most half the limit, it is calm: a
    shallower depth may be tried again. Each time that this turns out wrong, patience doubles.

    Args:
        threshold: least confidence of a token that is no breach.
        window: least tokens of a window.
        limit: breaches that a window of so many may have.
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
        """Count the tokens of a step; tell whether it ends a window that has too many breaches.

        `share` is then that of the window.
        """
        for confidence in confidences:
            self._tokens += 1
            self._breaches += confidence < self.threshold
        return self._tokens >= self.window and self._close()

    def _close(self) -> bool:
        limit = self.limit * self._tokens  # for `window` times as many breaches, to stay exact
        tripped = self._breaches * self.window > limit
        if tripped:
            self.share = self._breaches / self._tokens
        calm = self._breaches * self.window <= _CALM_SHARE * limit
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

"""Has what the job's rows look like changed? A change-point test on their confidence (pure)."""

from __future__ import annotations

from dataclasses import dataclass

_SLACK = 0.25
_ALARM = 10.0
_ROWS_FIRST = 30


@dataclass
class Drift:
    """Watches the mean confidence of rows for a change to either side, in the order they come.

    Page's test: two sums of standardised deviations, one for each side, each less a slack of a
    quarter of the standard deviation and never under 0. An alarm is a sum over 10 standard
    deviations; rows that do not change raise one in a thousand or so.

    Source: Page, Continuous inspection schemes, Biometrika 41 (1954).
    """

    _rows: int = 0
    _mean: float = 0.0
    _squares: float = 0.0
    _up: float = 0.0
    _down: float = 0.0

    def add(self, confidence: float) -> bool:
        """Take a row's mean confidence; tell whether there was a change.

        After an alarm, `restart` it.
        """
        if self._rows >= _ROWS_FIRST:
            deviation = (confidence - self._mean) / max(1e-3, (self._squares / self._rows) ** 0.5)
            self._up = max(0.0, self._up + deviation - _SLACK)
            self._down = max(0.0, self._down - deviation - _SLACK)
        self._rows += 1
        step = confidence - self._mean
        self._mean += step / self._rows
        self._squares += step * (confidence - self._mean)
        return max(self._up, self._down) > _ALARM

    def restart(self) -> None:
        """Learn anew what rows look like."""
        self._rows, self._mean, self._squares, self._up, self._down = 0, 0.0, 0.0, 0.0, 0.0

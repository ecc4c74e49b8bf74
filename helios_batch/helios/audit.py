"""The audit: are the rows that were let go early as good as promised, while the job runs (pure)?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_BETS = 32
_STEPS = 1000


def in_thousandths(loss: float) -> int:
    """Return a loss in [0, 1] in thousandths, rounded down, which never makes it more."""
    return math.floor(loss * _STEPS + 1e-9)


@dataclass
class Audit:
    """A test that may be looked at after every part: is the mean loss over `bound`?

    A gambler bets on each audited row that its loss is over the bound; if the mean loss is within
    it, the fortune is a supermartingale, and the chance that it ever reaches 1 / error is at most
    `error` (Ville's inequality). The stakes are a mixture over a fixed grid.

    That holds for one sequence of rows, however often and by however many it is looked at, if its
    order owes nothing to the losses. So parts are to be added in the order of the input: taken as
    they are finished, easy ones, which are quicker, would come first, and each worker that looks
    would see another sequence.

    Source: Waudby-Smith and Ramdas, arXiv 2010.09686, section 4.

    Args:
        bound: the mean loss that was promised of the audited rows.
        error: chance of a false alarm over the whole job.
    """

    bound: float
    error: float
    rows: int = 0
    total: float = 0.0

    def __post_init__(self) -> None:
        # at a stake of 1 / bound, a row without a loss would cost the whole fortune
        self._stakes = np.linspace(0, 1, _BETS + 2)[1:-1] / max(self.bound, 1e-6)
        self._log_fortunes = np.zeros(_BETS)

    def add(self, losses: Mapping[int, int]) -> None:
        """Take the audited rows of a part: how many by loss, `in_thousandths`."""
        for thousandths, rows in losses.items():
            loss = thousandths / _STEPS
            self.rows += rows
            self.total += rows * loss
            self._log_fortunes += rows * np.log1p(self._stakes * (loss - self.bound))

    @property
    def violated(self) -> bool:
        """Whether the promise is broken, beyond what chance does."""
        largest = float(self._log_fortunes.max())
        fortune = largest + math.log(float(np.exp(self._log_fortunes - largest).mean()))
        return fortune >= -math.log(self.error)

"""What the calibration of a job asks of whoever runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from helios_batch.records import Progress


@dataclass(frozen=True)
class Supervisor:
    """Watches over a calibration; what its functions raise ends it, and nothing is kept.

    Args:
        begin: called before the first row runs; returns why none is to run, or None.
        on_step: called after each step of the engine.
        confirm: called before anything gets its name in the output folder.
    """

    begin: Callable[[], str | None] = lambda: None
    on_step: Callable[[Progress], None] | None = None
    confirm: Callable[[], None] = lambda: None


ALONE = Supervisor()
"""Of a run with nobody beside it."""

"""Progress of a tuning: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

_LINE_EVERY_SECONDS = 10.0


class TuningProgress:
    """Shows the phase, how far it is, and what the tuning says of it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._name, self._total = "", 1.0
        self._printed = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def phase(self, name: str, total: float) -> None:
        """Begin a phase of `total` units."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._name, self._total = name, total
        self._task = self._bar.add_task(name, total=total, status="")
        if self._bar.disable:
            self._console.print(name)

    def advance(self, done: float, status: str) -> None:
        """Show that `done` units are done, and a line about it."""
        now = time.monotonic()
        if self._task is not None and not self._bar.disable:
            self._bar.update(self._task, completed=done, status=status)
        elif now - self._printed >= _LINE_EVERY_SECONDS:
            self._printed = now
            self._console.print(f"{self._name}: {done / self._total:.0%} · {status}")

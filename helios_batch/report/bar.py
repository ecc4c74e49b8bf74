"""A live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

_LINE_EVERY_SECONDS = 10.0


class LiveBar:
    """One bar at a time with a line of status; without a terminal, the line now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[status]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
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

    def begin(self, name: str, total: float, done: int = 0) -> None:
        """Put a bar of `total` units in the place of the one before."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._printed = time.monotonic()
        self._task = self._bar.add_task(name, total=total, completed=done, status="")

    def show(self, done: float, status: str) -> None:
        """Show that `done` units are done, and what there is to say of it."""
        now = time.monotonic()
        if self._task is not None and not self._bar.disable:
            self._bar.update(self._task, completed=done, status=status)
        elif now - self._printed >= _LINE_EVERY_SECONDS:
            self._printed = now
            self._console.print(status)

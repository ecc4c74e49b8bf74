"""Progress of a run: rows, rates, and the time left."""

from __future__ import annotations

import time

from rich.console import Console

from helios_batch.records import EngineFacts
from helios_batch.records import Progress as Step
from helios_batch.report.bar import LiveBar


class RunProgress(LiveBar):
    """Shows rows, rows/s, tokens/s, batch, layers loaded and the time left.

    Rates are of this run alone; rows finished by earlier runs count as done, not as speed.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._engine: EngineFacts | None = None
        self._total = self._resumed = self._finished = self._in_shard = 0
        self._tokens = self._batch = 0
        self._began = time.monotonic()

    def loading(self) -> None:
        """Say that the engine is being loaded."""
        self._console.print("loading the model")

    def started(self, engine: EngineFacts, rows: int, rows_done: int) -> None:
        """Begin to count; what was counted of a job before is forgotten."""
        self._engine, self._total, self._resumed = engine, rows, rows_done
        self._finished = self._in_shard = self._tokens = 0
        self._began = time.monotonic()
        self.begin("rows", rows, rows_done)
        if rows_done:
            self._console.print(f"going on after {rows_done} of {rows} rows")

    def step(self, progress: Step) -> None:
        """Count a step's tokens and rows."""
        self._in_shard = progress.rows_done
        self._tokens += progress.new_tokens
        self._batch = progress.batch
        self._show()

    def shard_done(self, rows: int) -> None:
        """Count a finished shard."""
        self._finished += rows
        self._in_shard = 0
        self._show()

    def _show(self) -> None:
        done = self._resumed + self._finished + self._in_shard
        self.show(done, self.status(time.monotonic()))

    def status(self, now: float) -> str:
        """Return the line that is shown at time `now` (of the monotonic clock)."""
        new = self._finished + self._in_shard
        seconds = max(now - self._began, 1e-9)
        rate = new / seconds
        left = self._total - self._resumed - new
        eta = _duration(left / rate) if rate else "unknown"
        engine = self._engine
        layers = f"{engine.layers_loaded}/{engine.num_layers} layers" if engine else ""
        return (
            f"{self._resumed + new}/{self._total} rows · {rate:.1f} rows/s · "
            f"{self._tokens / seconds:.0f} tokens/s · batch {self._batch} · {layers} · ETA {eta}"
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

"""Progress of a tuning: the phase, how far it is, and what the tuning says of it."""

from __future__ import annotations

from helios_batch.report.progress import RunProgress


class TuningProgress(RunProgress):
    """Watches a tuning and the jobs that it runs: a terminal holds one bar at a time."""

    _phase, _units = "", 1.0

    def phase(self, name: str, total: float) -> None:
        """Begin a phase of `total` units."""
        self._phase, self._units = name, total
        self.begin(name, total)
        if self._bar.disable:
            self._console.print(name)

    def advance(self, done: float, status: str) -> None:
        """Show that `done` units are done, and a line about it."""
        where = f"{self._phase}: " if self._bar.disable else ""
        self.show(done, f"{where}{done / self._units:.0%} · {status}")

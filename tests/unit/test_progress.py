"""What a person sees while a job runs."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from helios_batch.records import EngineFacts, Progress
from helios_batch.report import progress as progress_module
from helios_batch.report.progress import RunProgress
from helios_batch.report.tuning_progress import TuningProgress

ENGINE = EngineFacts("m", 30, 10, "cpu", "float32", 10, 20, 1000, 8)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock, as a list whose last entry is now."""
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[-1])
    return now


def run(console: Console, clock: list[float]) -> RunProgress:
    """Run 60 of 100 rows, 20 of them done before, in 20 seconds."""
    with RunProgress(console) as progress:
        progress.loading()
        progress.started(ENGINE, rows=100, rows_done=20)
        for step in range(4):
            clock.append(clock[-1] + 5)
            progress.step(Progress(rows_done=10 * (step % 2 + 1), new_tokens=50, batch=16))
            if step % 2:
                progress.shard_done(20)
    return progress


def test_rates_are_of_this_run_alone(clock: list[float]) -> None:
    """Rows of earlier runs are done, but do not make this one look faster."""
    progress = run(Console(file=io.StringIO()), clock)
    assert progress.status(clock[-1]) == (
        "60/100 rows · 2.0 rows/s · 10 tokens/s · batch 16 · 10/30 layers · ETA 0:20"
    )


def test_without_a_terminal_there_are_plain_lines(clock: list[float]) -> None:
    """A log file gets a line now and then, without control characters."""
    out = io.StringIO()
    run(Console(file=out, highlight=False), clock)
    lines = out.getvalue().splitlines()
    assert lines[:2] == ["loading the model", "going on after 20 of 100 rows"]
    assert lines[2].startswith("40/100 rows · 2.0 rows/s")
    assert len(lines) == 4
    assert "\x1b" not in out.getvalue()


def test_on_a_terminal_there_is_a_bar(clock: list[float]) -> None:
    """A terminal shows the bar with the same facts."""
    out = io.StringIO()
    run(Console(file=out, force_terminal=True, width=140), clock)
    assert "60/100 rows" in out.getvalue()
    assert "━" in out.getvalue()


def test_a_second_job_is_counted_anew(clock: list[float]) -> None:
    """One progress may watch several jobs, one after the other."""
    progress = run(Console(file=io.StringIO()), clock)
    progress.started(ENGINE, rows=8, rows_done=0)
    clock.append(clock[-1] + 2)
    progress.step(Progress(rows_done=4, new_tokens=20, batch=4))
    assert progress.status(clock[-1]).startswith("4/8 rows · 2.0 rows/s · 10 tokens/s")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_tuning_shows_its_jobs_and_its_phases(clock: list[float], terminal: bool) -> None:
    """Jobs at full depth and training follow one another in one bar, or line by line."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=140, highlight=False)
    with TuningProgress(console) as progress:
        for _ in range(2):
            progress.started(ENGINE, rows=8, rows_done=0)
            clock.append(clock[-1] + 20)
            progress.step(Progress(rows_done=4, new_tokens=20, batch=4))
        progress.phase("exit 10", 60.0)
        clock.append(clock[-1] + 20)
        progress.advance(30.0, "loss 2.000")
    # a terminal is drawn anew in its own time; the last state is always drawn
    assert terminal or "4/8 rows" in out.getvalue()
    assert "exit 10" in out.getvalue()
    assert "50% · loss 2.000" in out.getvalue()

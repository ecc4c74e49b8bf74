"""What snapshots of the queue look like, on made-up values."""

from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType

from helios_batch.queue.views import count_bits, make_grid
from helios_batch.report.events import event_words
from helios_batch.report.queue import job_panel, jobs_table, shard_grid, span, workers_table
from helios_batch.report.snapshot import Cell, JobView, RunningShard, WorkerView

COUNTERS = {"republished": 1, "duplicates_refused": 2, "fenced": 3, "quarantined": 4}
JOB = JobView(
    *("0123456789abcdef", "stdlib-summaries", "running", "shards", 3, "/data/out"),
    *(10_000_000, 1_234_567, 12, 1_000_000, 123_456, 1000.0),
    *(3600.0, 342.9, 16_000.0, 25_000.0, COUNTERS, {"null_prompt": 12}, ""),
    running=(RunningShard("7", "gpu@node", "cuda:0", "smollm2-135m", 15, 12.0, 25.0),),
    grid=(Cell(16_667, 16_667), Cell(16_667, 8000), Cell(16_667)),
)
WORKER = WorkerView(
    *("b00t", "helios-12345@a-machine-of-some-length", "a-machine", 12345, "shards", 1000.0),
    *("cuda:0", "smollm2-135m", 15, "0123456789abcdef", "123456", 99, 1_234_567, 98_765_432),
)


def drawn(what: RenderableType, width: int = 80) -> str:
    """Return what a terminal of this width shows."""
    out = io.StringIO()
    Console(file=out, width=width).print(what)
    return out.getvalue()


@pytest.mark.parametrize("shards", [1, 59, 60, 61, 1_000_000])
def test_the_grid_covers_every_shard(shards: int) -> None:
    """At most 60 cells, whose shards are all shards; each state is counted where it is."""
    grid = make_grid(shards, b"\x80", {str(shards - 1)}, {"survey"}, [])
    assert sum(cell.shards for cell in grid) == shards
    assert len(grid) <= 60
    assert [cell.done for cell in grid] == [1] + [0] * (len(grid) - 1)
    assert grid[-1].held == 1


def test_bits_are_counted_as_redis_numbers_them() -> None:
    """Any range gives what a walk over single bits gives, beyond the bitmap's end too."""
    bitmap = bytes([0b10100101, 0b11110000, 0b00000001])
    bits = [byte >> 7 - i & 1 for byte in bitmap for i in range(8)] + [0] * 16
    for first in range(len(bits)):
        for last in range(first, len(bits) + 1):
            assert count_bits(bitmap, first, last) == sum(bits[first:last])


def test_cells_show_what_matters_most() -> None:
    """Done, running, due again, sent, part done and untouched look different."""
    cells = [Cell(2, 2), Cell(2, held=1), Cell(2, due=1), Cell(2, sent=1), Cell(4, 1), Cell(2)]
    assert shard_grid(cells).plain == "█▶!·▒░"


def test_tables_fit_eighty_columns() -> None:
    """No number is cut off on a narrow terminal; names may be."""
    shown = drawn(jobs_table([JOB], now=1000.0 + 7200))
    for text in ("01234567", "running", "1.2M/10.0M", "343", "6:56:40", "2h"):
        assert text in shown
    shown = drawn(workers_table([WORKER], now=1090.0))
    for text in ("pid 12345", "cuda:0", "15 layers", "01234567", "shard 123456", "98.8M", "2m"):
        assert text in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_a_job_shows_its_story() -> None:
    """Speed, counters, errors by code, what a cell stands for, and who runs what."""
    shown = drawn(job_panel(JOB))
    for text in (
        "343 rows/s, 16,000 tokens/s",
        "republished 1, duplicates refused 2",
        "null_prompt 12",
        "each cell is 16,667 shards",
        "smollm2-135m, 15 layers",
        "25 s",
    ):
        assert text in shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0s"), (59, "59s"), (90, "2m"), (7200, "2h"), (259200, "3d")]
)
def test_spans(seconds: float, text: str) -> None:
    """A span is said in its largest unit."""
    assert span(seconds) == text


def test_events_are_sentences() -> None:
    """Known kinds are told in words, their errors below; unknown ones show what they carry."""
    lost = {"id": "1-0", "kind": "engine_lost", "unit": "7", "worker": "w", "error": "boom\nmore"}
    assert event_words(lost) == "the engine of w died with shard 7\n    boom\n    more"
    again = event_words({"id": "1-0", "kind": "republished", "unit": "survey"})
    assert again == "the message for the survey was lost; it is sent again"
    assert event_words({"kind": "published", "unit": "1"}) == "shard 1 is published, ? rows"
    assert event_words({"id": "1-0", "kind": "new", "unit": "3"}) == "new unit=3"

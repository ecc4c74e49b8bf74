"""Candidates: which of a model's measurements speak for it on this hardware and task."""

from __future__ import annotations

import datetime
from typing import Any

from helios_batch.candidates import candidates
from helios_batch.helios.shortlist import Candidate
from helios_batch.models.repository.entry import Entry, Measurement, Quality, Repository

HERE = "A CPU, 2 threads"


def measured(**changes: Any) -> Measurement:
    """A measurement made here, of the job `job`, at depth 4."""
    made: dict[str, Any] = {
        "task": "job",
        "hardware": HERE,
        "dtype": "float32",
        "depth": 4,
        "measured_by": "a test",
        "date": datetime.date(2026, 1, 2),
    }
    return Measurement.model_validate(made | changes)


def found(*entries: Entry, models: tuple[str, ...] = ()) -> tuple[Candidate, ...]:
    """The candidates of a job named `job` that generates."""
    return candidates(
        Repository(entries),
        models or tuple(entry.name for entry in entries),
        lambda name: name != "too-large",
        tasks=("job", "generate"),
        hardware=HERE,
        dtype="float32",
    )


def test_nothing_is_known() -> None:
    """A model without an entry is a candidate without figures; what fits is asked for each."""
    assert found(models=("new", "too-large")) == (
        Candidate("new", None, None, None, True),
        Candidate("too-large", None, None, None, False),
    )


def test_the_best_of_this_task_here() -> None:
    """The job's own name counts before its type, that before other tasks; elsewhere never."""
    other = measured(task="other", tokens_per_second=90)
    kind = measured(task="generate", tokens_per_second=50)
    slow, fast = measured(depth=8, tokens_per_second=10), measured(tokens_per_second=20)
    away = measured(hardware="a GPU", tokens_per_second=1000)
    half = measured(dtype="bfloat16", tokens_per_second=500)
    labels = measured(depth=2, rows_per_second=7)
    speeds = [
        candidate.tokens_per_second
        for candidate in found(
            Entry(name="a", measured=(other, kind, slow, fast, away, half, labels)),
            Entry(name="b", measured=(other, kind, away, half, labels)),
            Entry(name="c", measured=(other, away, half, labels)),
            Entry(name="d", measured=(away, half, labels)),
        )
    ]
    assert speeds == [20, 50, 90, None]


def test_memory_compares_at_one_batch_size() -> None:
    """The least bytes at the batch size that most models have, on any hardware in this dtype."""
    sizes = [
        candidate.memory_bytes
        for candidate in found(
            Entry(
                name="a",
                measured=(
                    measured(memory_bytes=500, batch=8),
                    measured(depth=2, memory_bytes=300, batch=8, hardware="a GPU"),
                    measured(depth=1, memory_bytes=10, batch=1),
                ),
            ),
            Entry(name="b", measured=(measured(memory_bytes=700, batch=8),)),
            Entry(name="c", measured=(measured(memory_bytes=20, batch=1, dtype="bfloat16"),)),
        )
    ]
    assert sizes == [300, 700, None]


def test_accuracy_compares_by_one_metric() -> None:
    """The metric of most models, against answers; agreement with full depth says nothing here."""
    right = Quality(metric="exact", against="answers", value=0.6)
    better = Quality(metric="exact", against="answers", value=0.8)
    rouge = Quality(metric="rouge_l", against="answers", value=0.9)
    same = Quality(metric="exact", against="full depth", value=1)
    accuracies = [
        candidate.accuracy
        for candidate in found(
            Entry(name="a", measured=(measured(quality=right), measured(depth=8, quality=better))),
            Entry(name="b", measured=(measured(quality=right, hardware="a GPU"),)),
            Entry(name="c", measured=(measured(quality=rouge),)),
            Entry(name="d", measured=(measured(quality=same),)),
        )
    ]
    assert accuracies == [0.8, 0.6, None, None]

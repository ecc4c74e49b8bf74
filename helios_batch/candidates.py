"""What the model repository knows of a job's models, for the shortlist."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from helios_batch.helios.shortlist import Candidate
from helios_batch.models.repository.entry import Measurement, Repository

_Key = TypeVar("_Key", int, str)
_Figure = TypeVar("_Figure", int, float)


def candidates(
    repository: Repository,
    models: Sequence[str],
    fits: Callable[[str], bool],
    *,
    tasks: Sequence[str],
    hardware: str,
    dtype: str,
) -> tuple[Candidate, ...]:
    """Return the models as candidates, each with the best that was measured of it at any depth.

    A model's figures are those of the first of `tasks` that it was measured on, or of any task if
    it was measured on none of them. Tokens per second are those on this hardware; memory depends
    on the dtype only, and accuracy on neither. Memory at another batch size and accuracy by
    another metric than most of the models have don't compare, and are left out; so is agreement
    with a model's own full depth.

    Args:
        repository: where to look.
        models: names as the job has them.
        fits: whether the memory budget holds a model at some depth.
        tasks: what the job does, the most telling first: its name, then the type of its task.
        hardware: as `hardware_name` tells it.
        dtype: `float32` or `bfloat16`.
    """
    entries = [repository.find(name) for name in models]
    measured = [entry.measured if entry else () for entry in entries]
    speeds = [_speed(found, tasks, hardware, dtype) for found in measured]
    memories = _at_shared([_memories(found, tasks, dtype) for found in measured])
    accuracies = _at_shared([_accuracies(found, tasks) for found in measured])
    return tuple(
        Candidate(name, speed, memory, accuracy, fits(name))
        for name, speed, memory, accuracy in zip(models, speeds, memories, accuracies, strict=True)
    )


def _of_task(found: list[Measurement], tasks: Sequence[str]) -> list[Measurement]:
    for task in tasks:
        if same := [one for one in found if one.task == task]:
            return same
    return found


def _speed(
    measured: Iterable[Measurement], tasks: Sequence[str], hardware: str, dtype: str
) -> float | None:
    here = [one for one in measured if (one.hardware, one.dtype) == (hardware, dtype)]
    timed = [one for one in here if one.tokens_per_second]
    return max((one.tokens_per_second or 0.0 for one in _of_task(timed, tasks)), default=None)


def _memories(measured: Iterable[Measurement], tasks: Sequence[str], dtype: str) -> dict[int, int]:
    """Return bytes by batch size."""
    sized = [one for one in measured if one.memory_bytes and one.dtype == dtype]
    least: dict[int, int] = {}
    for one in _of_task(sized, tasks):
        batch, size = one.batch or 0, one.memory_bytes or 0
        least[batch] = min(size, least.get(batch, size))
    return least


def _accuracies(measured: Iterable[Measurement], tasks: Sequence[str]) -> dict[str, float]:
    """Return shares of right answers by metric."""
    judged = [one for one in measured if one.quality and one.quality.against == "answers"]
    best: dict[str, float] = {}
    for one in _of_task(judged, tasks):
        if one.quality:
            metric, value = one.quality.metric, one.quality.value
            best[metric] = max(value, best.get(metric, value))
    return best


def _at_shared(figures: Sequence[dict[_Key, _Figure]]) -> list[_Figure | None]:
    """Return each model's figure at the key that most models have, of equally many the least."""
    counts = Counter(key for found in figures for key in found)
    if not counts:
        return [None] * len(figures)
    shared = min(counts, key=lambda key: (-counts[key], key))
    return [found.get(shared) for found in figures]

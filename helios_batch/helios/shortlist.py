"""The shortlist: which of a job's models are worth running a few requests on (pure).

The first step of HELIOS (arXiv 2504.10724): the top K candidates of the model repository, by the
job's objective and the hardware; they are then run on requests of the job itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

from helios_batch.spec_policy import Objective

_Figure = Literal["tokens_per_second", "memory_bytes", "accuracy"]
# the objective's own figure first; the others order what is equal in it. The repository keeps no
# time per token: in full batches, the model of more tokens per second is that of less time for each
_FIGURES: dict[Objective, tuple[_Figure, _Figure, _Figure]] = {
    "throughput": ("tokens_per_second", "accuracy", "memory_bytes"),
    "latency": ("tokens_per_second", "accuracy", "memory_bytes"),
    "memory": ("memory_bytes", "tokens_per_second", "accuracy"),
    "quality": ("accuracy", "tokens_per_second", "memory_bytes"),
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that a job may run on, as far as it has been measured on such hardware.

    Args:
        name: of the model, as the job has it.
        tokens_per_second: generated tokens; more is better.
        memory_bytes: weights and KV cache, of all candidates at one batch size; less is better.
        accuracy: in [0, 1], of all candidates by one metric; more is better.
        fits: whether the memory budget holds the model at some depth.
    """

    name: str
    tokens_per_second: float | None
    memory_bytes: int | None
    accuracy: float | None
    fits: bool


def shortlist(
    candidates: Sequence[Candidate], objective: Objective, count: int
) -> tuple[Candidate, ...]:
    """Return the best `count` of the candidates that fit, the best first.

    Those without a measurement for the objective come after those with one, in the order given: a
    model that nobody has measured yet is tried when there is room.

    Raises:
        ValueError: `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"a shortlist of {count} models")
    own, *others = _FIGURES[objective]

    def rank(candidate: Candidate) -> tuple[float | str, ...]:
        return (*(_cost(candidate, figure) for figure in (own, *others)), candidate.name)

    fitting = [candidate for candidate in candidates if candidate.fits]
    measured = attrgetter(own)
    known = [candidate for candidate in fitting if measured(candidate) is not None]
    unknown = [candidate for candidate in fitting if measured(candidate) is None]
    return tuple((sorted(known, key=rank) + unknown)[:count])


def _cost(candidate: Candidate, figure: _Figure) -> float:
    """Return a figure as one of which less is better, infinite where it was not measured."""
    value: float | None = getattr(candidate, figure)
    if value is None:
        return math.inf
    return value if figure == "memory_bytes" else -value

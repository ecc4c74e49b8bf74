"""Whose turn it is: priority, a bounded stretch with one engine, fewest underway, longest wait.

A worker keeps one engine, so each change between jobs of different engines loads weights anew.
Jobs of one engine take turns unit by unit, which costs nothing; engines take turns stretch by
stretch, each the longer the more jobs it has, so that over time every job gets the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass
class Candidate:
    """A job that may have units to send: the last was sent at `sent`, `underway` are not finished.

    Times are of one clock, in seconds; 0 for never.
    """

    id: str
    engine: str
    priority: int
    submitted: float
    sent: float
    underway: int


class Turn(NamedTuple):
    """The job that is served next, and whether a stretch of its engine begins with it."""

    job: Candidate
    begins: bool


def next_turn(
    jobs: Sequence[Candidate], began: Mapping[str, float], now: float, stretch: float
) -> Turn:
    """Return whose turn it is among the jobs of one queue, of which there is at least one.

    Args:
        jobs: the jobs that may have units to send.
        began: when each engine's latest stretch began; the last one goes on.
        now: the time by the same clock, in seconds.
        stretch: seconds that an engine is kept for each of its jobs while others wait.
    """
    first = max(job.priority for job in jobs)
    jobs = [job for job in jobs if job.priority == first]
    engine = max(began, key=lambda each: began[each], default="")
    chosen = [job for job in jobs if job.engine == engine]
    begins = not chosen or now - began[engine] >= stretch * len(chosen)
    if begins:
        engine = min(jobs, key=lambda job: (began.get(job.engine, 0.0), *_order(job))).engine
        chosen = [job for job in jobs if job.engine == engine]
    return Turn(min(chosen, key=lambda job: (job.underway, job.sent, *_order(job))), begins)


def engine_of(spec: Mapping[str, Any]) -> str:
    """Name what a spec makes a worker load: jobs of equal names are served by one engine."""
    parts = [spec.get(name) for name in ("models", "depth", "exits", "resources")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _order(job: Candidate) -> tuple[float, str]:
    return job.submitted, job.id

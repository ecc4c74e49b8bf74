"""Whose turn it is: priority first, few changes of engine, and in the end the same for all."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from helios_batch.queue.turns import Candidate, engine_of, next_turn

STRETCH = 10.0

seconds_a_unit = st.floats(0.1, 3.0)
engines = st.lists(st.sampled_from("abc"), min_size=1, max_size=6)


def serve(jobs: list[Candidate], units: int, seconds: float) -> list[tuple[str, str]]:
    """Serve units one after the other; return the jobs and engines that they went to."""
    began: dict[str, float] = {}
    served = []
    for number in range(units):
        now = 1e9 + number * seconds
        job, begins = next_turn(jobs, began, now, STRETCH)
        if begins:
            began[job.engine] = now
        served.append((job.id, job.engine))
        job.sent = now
        # what was sent two units ago is finished
        job.underway += 1
        if len(served) > 2:
            next(each for each in jobs if each.id == served[-3][0]).underway -= 1
    return served


def make_jobs(names: list[str]) -> list[Candidate]:
    """Return a job for each engine named."""
    return [Candidate(str(i), engine, 0, i, 0, 0) for i, engine in enumerate(names)]


@given(engines, seconds_a_unit)
def test_jobs_get_the_same_and_engines_change_seldom(names: list[str], seconds: float) -> None:
    """Over whole rounds of stretches each job has its share, and no stretch is cut short."""
    jobs = make_jobs(names)
    a_round = STRETCH * len(jobs) / seconds
    units = int(4 * a_round) + 1
    served = serve(jobs, units, seconds)
    changes = sum(before != after for (_, before), (_, after) in pairwise(served))
    assert changes <= units * seconds / STRETCH + 1
    shares = Counter(job_id for job_id, _ in served)
    # a stretch ends with the unit that is over its time, so each round gives a unit or so more
    most = STRETCH / seconds + 6
    for job in jobs:
        assert abs(shares[job.id] - units / len(jobs)) <= most


@given(engines, seconds_a_unit, st.integers(0, 5))
def test_nobody_waits_for_ever(names: list[str], seconds: float, late: int) -> None:
    """Between two units of a job lies at most a stretch for each of the others."""
    jobs = make_jobs(names)
    served = serve(jobs, int(4 * STRETCH * len(jobs) / seconds) + 1, seconds)
    mine = [i for i, (job_id, _) in enumerate(served) if job_id == str(late % len(jobs))]
    longest = max(after - before for before, after in pairwise([-1, *mine, len(served)]))
    # each engine's last unit may begin just before its time is over
    assert longest * seconds <= STRETCH * len(jobs) + 2 * seconds * (len(jobs) + 1)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), min_size=1, max_size=6))
def test_priority_goes_before_all(found: list[tuple[str, int]]) -> None:
    """A stretch under way holds up no job of a higher priority."""
    jobs = [Candidate(str(i), *each, i, 0, 0) for i, each in enumerate(found)]
    job, _ = next_turn(jobs, {"a": 5.0, "b": 7.0}, 7.5, STRETCH)
    assert job.priority == max(each.priority for each in jobs)


def test_what_makes_an_engine() -> None:
    """Input, output and name make no difference; model, depth, exits and resources do."""
    spec = {"models": ["m"], "depth": 4, "resources": {"memory": "1GiB"}, "name": "one"}
    assert engine_of(spec) == engine_of(spec | {"name": "two", "output": {"path": "/b"}})
    assert engine_of(spec) != engine_of(spec | {"depth": 5})
    assert engine_of(spec) != engine_of(spec | {"resources": {"memory": "2GiB"}})

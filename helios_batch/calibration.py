"""Calibration: what a job's rows are worth at each depth, measured on some of them."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from helios_batch.data.reader import RowReader
from helios_batch.engine.engine import Engine
from helios_batch.engine.sole import SoleEngine
from helios_batch.helios.agreement import agreements, row_confidence
from helios_batch.helios.cascade import Observed
from helios_batch.helios.policy import (
    CHOOSING_SHARE,
    Policy,
    Stage,
    StageFacts,
    choose,
    decide,
    full_depth,
    rows_to_draw,
    too_small,
)
from helios_batch.job import Job
from helios_batch.policy_file import Calibration, publish_calibration, read_calibration
from helios_batch.records import Generation, Prompt
from helios_batch.spec_quality import Metric, QualitySpec, value_of
from helios_batch.supervision import Supervisor

_WARM_UP_ROWS = 16


def calibrated(
    job: Job, sole: SoleEngine, quality: QualitySpec, supervisor: Supervisor
) -> Calibration:
    """Return the job's calibration: the one in its output folder, or a new one put there.

    Args:
        job: the job; its output folder is made its own.
        sole: the engine, at full depth of the job's first model.
        quality: what the job promises.
        supervisor: watches over it.

    Raises:
        OutputError: the folder is another job's, or holds an unreadable policy.
        WriteError: the policy can't be written.
    """
    found = read_calibration(job.output, job.fingerprint)
    if found is None:
        output = job.output.guarded(supervisor.confirm)
        output.claim(job.record())
        found = publish_calibration(output, _calibrate(job, sole, quality, supervisor))
    return found


def _calibrate(
    job: Job, sole: SoleEngine, quality: QualitySpec, supervisor: Supervisor
) -> Calibration:
    """Run random rows of the job at each stage, and decide."""
    rows, metric, dtype = job.table.rows, job.spec.metric, sole.current.facts.dtype
    places = tuple(stage for stage in job.stages if sole.holds(*stage))
    left_out = [
        f"{name} at {layers}" for name, layers in job.stages if (name, layers) not in places
    ]
    note = f"; resources.memory does not hold {', '.join(left_out)}" if left_out else ""
    answers: tuple[Generation, ...] = ()
    facts: tuple[StageFacts, ...] = ()

    def made(policy: Policy) -> Calibration:
        told = replace(policy, reason=policy.reason + note, rows=len(answers), by_stage=facts)
        return Calibration(job.fingerprint, dtype, told, answers)

    def fall_back(reason: str) -> Calibration:
        return made(full_depth(places[-1], quality, metric, 0, reason))

    if (reason := too_small(rows, quality) or supervisor.begin()) is not None:
        return fall_back(reason)
    prompts = _drawn(job, rows_to_draw(rows, quality))
    # what a first call sets up is no row's cost
    _answers(job, sole.current, prompts[:_WARM_UP_ROWS], supervisor)
    chosen_on = int(len(prompts) * CHOOSING_SHARE)
    looked = _observe(job, sole, prompts[:chosen_on], places, supervisor)
    if not looked.observed.rows:
        return fall_back("none of the rows drawn to calibrate on can be run")
    answers, facts = looked.answers, _facts(places, looked.observed, metric)
    # stages stand in the order of their cost; the last is what rows fall back to
    order = (*np.argsort(looked.observed.costs[:-1]).tolist(), len(places) - 1)
    ordered = tuple(places[place] for place in order)
    stages = choose(ordered, looked.observed.of(order), quality)
    if len(stages) == 1:
        return fall_back(f"no shallower depth keeps {quality.promised} and is cheaper")
    tested = _observe(job, sole, prompts[chosen_on:], stages, supervisor)
    answers = looked.answers + tested.answers
    if not tested.observed.rows:
        return fall_back("too few of the rows drawn to calibrate on can be run")
    return made(decide(stages, tested.observed, quality, metric))


def _facts(places: tuple[Stage, ...], observed: Observed, metric: Metric) -> tuple[StageFacts, ...]:
    told = zip(places, observed.costs.tolist(), observed.losses.mean(axis=1).tolist(), strict=True)
    return tuple(StageFacts(*stage, cost, value_of(loss, metric)) for stage, cost, loss in told)


class _Seen(NamedTuple):
    """What each stage said of some rows, and full depth's generations of them."""

    observed: Observed
    answers: tuple[Generation, ...]


def _observe(
    job: Job,
    sole: SoleEngine,
    prompts: Sequence[Prompt],
    places: tuple[Stage, ...],
    supervisor: Supervisor,
) -> _Seen:
    """Run prompts at each stage; those that fail at all of them are left out.

    A row that fails at full depth agrees with nothing that a shallower one says of it. Comparing
    is no part of a row's cost. Full depth is the last, and where the engine is then.
    """
    costs: list[float] = []
    loads: list[float] = []
    by_stage: list[list[Generation]] = []
    for stage in places:
        started = time.perf_counter()
        engine = sole.at(*stage)
        loads.append((time.perf_counter() - started) / job.spec.output.rows_per_shard)
        by_stage.append(_answers(job, engine, prompts, supervisor))
        spent = engine.stats.prefill_seconds + engine.stats.decode_seconds
        del engine  # nothing here holds it while another model takes its place
        costs.append(spent / max(1, len(prompts)))
    rows = [
        row for row in range(len(prompts)) if any(found[row].error is None for found in by_stage)
    ]
    kept = [[found[row] for row in rows] for found in by_stage]
    drawn, reference = [prompts[row] for row in rows], kept[-1]
    agreed = agreements(drawn, kept, reference, job.spec.metric, sole.current.score)
    observed = Observed(
        costs=np.array(costs),
        loads=np.array(loads),
        confidences=np.array([[row_confidence(row) for row in found] for found in kept]),
        losses=1 - np.array(agreed),
    )
    return _Seen(observed, tuple(row for row in reference if row.error is None))


def _drawn(job: Job, count: int) -> list[Prompt]:
    """Return the prompts of `count` random rows, without those that have none."""
    draw = random.Random(f"calibration/{job.fingerprint}")
    context = job.context()
    reader = RowReader(job.table, job.renderer.columns)
    rows = draw.sample(range(job.table.rows), count)
    found = [context.renderer.render(reader.read(row, row + 1), row)[0] for row in rows]
    return [item for item in found if isinstance(item, Prompt)]


def _answers(
    job: Job, engine: Engine, prompts: Sequence[Prompt], supervisor: Supervisor
) -> list[Generation]:
    task = job.spec.task
    if task.type == "label":
        return engine.label(prompts, task.choices, supervisor.on_step)
    return engine.generate(prompts, job.spec.sampling, supervisor.on_step)

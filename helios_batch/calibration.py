"""Calibration: what a job's rows are worth at each depth, measured on some of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from helios_batch.data.reader import RowReader
from helios_batch.engine.engine import Engine
from helios_batch.helios.agreement import agreement, row_confidence
from helios_batch.helios.cascade import Observed
from helios_batch.helios.policy import (
    CHOOSING_SHARE,
    DepthFacts,
    choose,
    decide,
    full_depth,
    least_rows,
)
from helios_batch.job import Job
from helios_batch.policy_file import Calibration, publish_calibration, read_calibration
from helios_batch.records import Generation, Prompt
from helios_batch.spec_quality import QualitySpec

_LARGEST_SHARE = 0.25
_WARM_UP_ROWS = 16


def calibrated(job: Job, engine: Engine, quality: QualitySpec) -> Calibration:
    """Return the job's calibration: the one in its output folder, or a new one put there.

    Args:
        job: the job.
        engine: at full depth; it is left at another.
        quality: what the job promises.

    Raises:
        OutputError: the folder holds the policy of another job, or an unreadable one.
        WriteError: the policy can't be written.
    """
    found = read_calibration(job.output, job.fingerprint)
    return found or publish_calibration(job.output, _calibrate(job, engine, quality))


def _calibrate(job: Job, engine: Engine, quality: QualitySpec) -> Calibration:
    """Run random rows of the job at each depth, and decide."""
    depths, rows = job.stage_depths, job.table.rows

    def fall_back(reason: str, answers: tuple[Generation, ...] = ()) -> Calibration:
        policy = full_depth(depths[-1], quality, len(answers), f"full depth: {reason}")
        return Calibration(job.fingerprint, replace(policy, by_depth=facts), answers)

    facts: tuple[DepthFacts, ...] = ()
    count = min(quality.calibration_rows, int(rows * _LARGEST_SHARE))
    least = least_rows(quality)
    if count < least:
        return fall_back(
            f"{count} rows to calibrate on (at most {quality.calibration_rows}, and a "
            f"quarter of the {rows:,}) show nothing; an agreement of {quality.min_agreement:.1%} "
            f"takes {least} at the least"
        )
    prompts = _drawn(job, count)
    _answers(job, engine, prompts[:_WARM_UP_ROWS])  # what a first call sets up is no row's cost
    chosen_on = int(len(prompts) * CHOOSING_SHARE)
    looked = _observe(job, engine, prompts[:chosen_on], depths)
    if not looked.answers:
        return fall_back("none of the rows drawn to calibrate on can be run")
    facts = tuple(
        DepthFacts(depth, float(seconds), float(1 - losses.mean()))
        for depth, seconds, losses in zip(
            depths, looked.observed.costs, looked.observed.losses, strict=True
        )
    )
    stages = choose(depths, looked.observed, quality)
    if len(stages) == 1:
        promised = f"an agreement of {quality.min_agreement:.1%}"
        return fall_back(f"no shallower depth keeps {promised} and is cheaper", looked.answers)
    tested = _observe(job, engine, prompts[chosen_on:], stages)
    answers = looked.answers + tested.answers
    if not tested.answers:
        return fall_back("too few of the rows drawn to calibrate on can be run", answers)
    policy = decide(stages, tested.observed, quality, len(answers), facts)
    return Calibration(job.fingerprint, policy, answers)


class _Seen(NamedTuple):
    """What each depth said of some rows, and full depth's generations of them."""

    observed: Observed
    answers: tuple[Generation, ...]


def _observe(job: Job, engine: Engine, prompts: Sequence[Prompt], depths: tuple[int, ...]) -> _Seen:
    """Run prompts at each depth; those that fail at one of them are left out."""
    costs: list[float] = []
    by_depth: list[list[Generation]] = []
    for depth in depths:
        engine.move_to(depth, job.exits.get(depth))
        by_depth.append(_answers(job, engine, prompts))
        spent = engine.stats.prefill_seconds + engine.stats.decode_seconds
        costs.append(spent / max(1, len(prompts)))
    rows = [
        row for row in range(len(prompts)) if all(found[row].error is None for found in by_depth)
    ]
    reference, metric = by_depth[-1], job.spec.metric
    observed = Observed(
        costs=np.array(costs),
        confidences=np.array([[row_confidence(found[r]) for r in rows] for found in by_depth]),
        losses=np.array(
            [[1 - agreement(found[r], reference[r], metric) for r in rows] for found in by_depth]
        ),
    )
    return _Seen(observed, tuple(reference[row] for row in rows))


def _drawn(job: Job, count: int) -> list[Prompt]:
    """Return the prompts of `count` random rows, without those that have none."""
    draw = random.Random(f"calibration/{job.fingerprint}")
    context = job.context()
    reader = RowReader(job.table, job.renderer.columns)
    rows = draw.sample(range(job.table.rows), count)
    found = [context.renderer.render(reader.read(row, row + 1), row)[0] for row in rows]
    return [item for item in found if isinstance(item, Prompt)]


def _answers(job: Job, engine: Engine, prompts: Sequence[Prompt]) -> list[Generation]:
    task = job.spec.task
    if task.type == "label":
        return engine.label(prompts, task.choices)
    return engine.generate(prompts, job.spec.sampling)

"""Calibration: what a job's rows are worth at each depth, measured on some of them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from helios_batch.data.reader import RowReader
from helios_batch.engine.engine import Engine
from helios_batch.helios.agreement import agreement, row_confidence
from helios_batch.helios.cascade import Observed
from helios_batch.helios.policy import decide, full_depth, least_rows
from helios_batch.job import Job
from helios_batch.policy_file import Calibration, publish_calibration, read_calibration
from helios_batch.records import Generation, Prompt
from helios_batch.spec_quality import QualitySpec

_LARGEST_SHARE = 0.25


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
    count = min(quality.calibration_rows, int(rows * _LARGEST_SHARE))
    least = least_rows(quality)
    if count < least:
        reason = (
            f"full depth: {count} rows to calibrate on (at most {quality.calibration_rows}, and a "
            f"quarter of the {rows:,}) show nothing; an agreement of {quality.min_agreement:.1%} "
            f"takes {least} at the least"
        )
        policy = full_depth(depths[-1], quality, 0, reason)
        return Calibration(job.fingerprint, policy, ())
    prompts = _drawn(job, count)
    costs: list[float] = []
    by_depth: list[list[Generation]] = []
    for depth in reversed(depths):  # the engine comes at full depth, and leaves at the shallowest
        engine.move_to(depth, job.exits.get(depth))
        by_depth.insert(0, _answers(job, engine, prompts))
        spent = engine.stats.prefill_seconds + engine.stats.decode_seconds
        costs.insert(0, spent / max(1, len(prompts)))
    whole = [
        row for row in range(len(prompts)) if all(found[row].error is None for found in by_depth)
    ]
    if len(whole) < least:
        reason = f"full depth: only {len(whole)} of the {count} rows drawn can be run"
        policy = full_depth(depths[-1], quality, len(whole), reason)
    else:
        policy = decide(depths, _observed(job, costs, by_depth, whole), quality)
    answers = tuple(by_depth[-1][row] for row in whole)
    return Calibration(job.fingerprint, policy, answers)


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


def _observed(
    job: Job, costs: Sequence[float], by_depth: Sequence[Sequence[Generation]], rows: Sequence[int]
) -> Observed:
    reference, metric = by_depth[-1], job.spec.metric
    return Observed(
        costs=np.array(costs),
        confidences=np.array([[row_confidence(found[r]) for r in rows] for found in by_depth]),
        losses=np.array(
            [[1 - agreement(found[r], reference[r], metric) for r in rows] for found in by_depth]
        ),
    )
